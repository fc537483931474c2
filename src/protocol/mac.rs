//! HMAC with SHA-2 (RFC 2104, FIPS 198-1), as every kind of signed token uses it.

#[cfg(test)]
mod tests;

use hmac::{Hmac, KeyInit as _, Mac};
use sha2::{Sha256, Sha384, Sha512};

/// Longest MAC, in bytes.
pub const MAC_MAX: usize = 64;

/// An HMAC algorithm, by its name in RFC 7518 §3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    HS256,
    /// HMAC with SHA-384.
    HS384,
    /// HMAC with SHA-512.
    HS512,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Algorithm; 3] = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];

    /// The name in `alg`.
    pub const fn name(self) -> &'static str {
        match self {
            Algorithm::HS256 => "HS256",
            Algorithm::HS384 => "HS384",
            Algorithm::HS512 => "HS512",
        }
    }

    /// The algorithm of this name, in this case.
    pub fn from_name(name: &str) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }
}

/// An HMAC that has taken in its key.
#[allow(clippy::large_enum_variant, reason = "a few per process")]
#[derive(Clone)]
pub(in crate::protocol) enum MacState {
    Sha256(Hmac<Sha256>),
    Sha384(Hmac<Sha384>),
    Sha512(Hmac<Sha512>),
}

impl MacState {
    pub(in crate::protocol) fn new(algorithm: Algorithm, key: &[u8]) -> Self {
        let any_length = "HMAC takes keys of any length";
        match algorithm {
            Algorithm::HS256 => Self::Sha256(Hmac::new_from_slice(key).expect(any_length)),
            Algorithm::HS384 => Self::Sha384(Hmac::new_from_slice(key).expect(any_length)),
            Algorithm::HS512 => Self::Sha512(Hmac::new_from_slice(key).expect(any_length)),
        }
    }

    /// Whether `mac` is the MAC of `text`, of exactly full length, in constant time.
    pub(in crate::protocol) fn matches(&self, text: &[u8], mac: &[u8]) -> bool {
        fn check<M: Mac + Clone>(state: &M, text: &[u8], mac: &[u8]) -> bool {
            state.clone().chain_update(text).verify_slice(mac).is_ok()
        }
        match self {
            MacState::Sha256(state) => check(state, text, mac),
            MacState::Sha384(state) => check(state, text, mac),
            MacState::Sha512(state) => check(state, text, mac),
        }
    }

    pub(in crate::protocol) fn compute<'o>(
        self,
        text: &[u8],
        out: &'o mut [u8; MAC_MAX],
    ) -> &'o [u8] {
        fn finish<'o, M: Mac>(state: M, text: &[u8], out: &'o mut [u8]) -> &'o [u8] {
            let mac = state.chain_update(text).finalize().into_bytes();
            let out = &mut out[..mac.len()];
            out.copy_from_slice(&mac);
            out
        }
        match self {
            MacState::Sha256(state) => finish(state, text, out),
            MacState::Sha384(state) => finish(state, text, out),
            MacState::Sha512(state) => finish(state, text, out),
        }
    }
}
