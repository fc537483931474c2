//! Signed messages as Plug.Crypto.MessageVerifier makes them: `SFMyNTY.PAYLOAD.MAC`.
//!
//! The first part is base64 of the bare text `HS256`, so this is no JWT; `SFMzODQ` and `SFM1MTI`
//! are HS384 and HS512, with the same key. The key is PBKDF2 (RFC 8018) of `secret_key_base` and
//! a salt, derived once, when the settings are loaded.

use hmac::Hmac;
use sha2::{Sha256, Sha384, Sha512};

use crate::base::secret::Secret;
use crate::protocol::base64url;
use crate::protocol::cause::Cause;
use crate::protocol::mac::{Algorithm, MAC_MAX, MacState};
use crate::protocol::scratch::TOKEN_MAX;

/// Most `secret_key_base` values of one verifier: a message says nothing of its key, so each is
/// tried with all of them.
pub const BASES_MAX: usize = 16;

/// How a key is derived: the options `key_iterations`, `key_length` and `key_digest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Derivation {
    /// Rounds of PBKDF2, at least 1.
    pub iterations: u32,
    /// Length of the key in bytes, 1 to 1,024.
    pub length: usize,
    /// The hash within PBKDF2. It does not change what messages are signed with.
    pub digest: Algorithm,
}

impl Default for Derivation {
    fn default() -> Self {
        Derivation { iterations: 1000, length: 32, digest: Algorithm::HS256 }
    }
}

/// Longest derived key, in bytes.
const LENGTH_MAX: usize = 1024;

impl Derivation {
    /// The key of this `secret_key_base` and salt.
    ///
    /// # Panics
    /// When iterations or length are out of range.
    pub fn derive(&self, secret_key_base: &Secret, salt: &[u8]) -> Secret {
        assert!(self.iterations >= 1 && (1..=LENGTH_MAX).contains(&self.length));
        let base = secret_key_base.expose();
        let mut key = vec![0; self.length];
        let derived = match self.digest {
            Algorithm::HS256 => {
                pbkdf2::pbkdf2::<Hmac<Sha256>>(base, salt, self.iterations, &mut key)
            }
            Algorithm::HS384 => {
                pbkdf2::pbkdf2::<Hmac<Sha384>>(base, salt, self.iterations, &mut key)
            }
            Algorithm::HS512 => {
                pbkdf2::pbkdf2::<Hmac<Sha512>>(base, salt, self.iterations, &mut key)
            }
        };
        derived.expect("HMAC takes keys of any length");
        Secret::new(key)
    }
}

/// Verifies signed messages with every key that may have signed them.
pub(in crate::protocol) struct MessageVerifier {
    /// Each key, ready for each algorithm in the order of [`Algorithm::ALL`].
    keys: Vec<[MacState; 3]>,
}

impl MessageVerifier {
    /// Takes derived keys, at most [`BASES_MAX`].
    pub(in crate::protocol) fn new(keys: &[Secret]) -> Self {
        assert!((1..=BASES_MAX).contains(&keys.len()), "the settings bound the number of keys");
        let ready = |key: &Secret| Algorithm::ALL.map(|a| MacState::new(a, key.expose()));
        MessageVerifier { keys: keys.iter().map(ready).collect() }
    }

    /// The payload of a signed message, decoded into the start of `out`.
    ///
    /// # Errors
    /// [`Cause::TokenMalformed`] or [`Cause::BadSignature`].
    pub(in crate::protocol) fn verify<'o>(
        &self,
        message: &[u8],
        out: &'o mut [u8],
    ) -> Result<&'o [u8], Cause> {
        let parts = Parts::split(message).ok_or(Cause::TokenMalformed)?;
        let mut mac = [0; MAC_MAX];
        let mac = base64url::decode(parts.mac, &mut mac).ok_or(Cause::TokenMalformed)?;
        let payload = base64url::decode(parts.payload, out).ok_or(Cause::TokenMalformed)?;
        let mut matched = false;
        for key in &self.keys {
            matched |= key[parts.algorithm as usize].matches(parts.signed, mac);
        }
        if matched { Ok(payload) } else { Err(Cause::BadSignature) }
    }
}

/// Signs a payload with a derived key: for the command line and tests.
pub(in crate::protocol) fn sign(key: &Secret, algorithm: Algorithm, payload: &[u8]) -> String {
    let mut message = Vec::new();
    base64url::encode(algorithm.name().as_bytes(), &mut message);
    message.push(b'.');
    base64url::encode(payload, &mut message);
    let mut mac = [0; MAC_MAX];
    let mac = MacState::new(algorithm, key.expose()).compute(&message, &mut mac);
    message.push(b'.');
    base64url::encode(mac, &mut message);
    message.into_iter().map(char::from).collect()
}

/// What a signed message holds, with no key asked. Never decide on it.
pub fn unverified_payload(message: &[u8]) -> Option<Vec<u8>> {
    let parts = Parts::split(message)?;
    let mut payload = vec![0; TOKEN_MAX];
    let length = base64url::decode(parts.payload, &mut payload)?.len();
    payload.truncate(length);
    Some(payload)
}

struct Parts<'m> {
    algorithm: Algorithm,
    /// The first two parts with the dot between them: what the MAC covers.
    signed: &'m [u8],
    payload: &'m [u8],
    mac: &'m [u8],
}

impl<'m> Parts<'m> {
    fn split(message: &'m [u8]) -> Option<Self> {
        if message.len() > TOKEN_MAX {
            return None;
        }
        let mut parts = message.split(|&b| b == b'.');
        let (name, payload, mac) = (parts.next()?, parts.next()?, parts.next()?);
        let algorithm = match name {
            b"SFMyNTY" => Algorithm::HS256,
            b"SFMzODQ" => Algorithm::HS384,
            b"SFM1MTI" => Algorithm::HS512,
            _ => return None,
        };
        let signed = &message[..name.len() + 1 + payload.len()];
        parts.next().is_none().then_some(Parts { algorithm, signed, payload, mac })
    }
}
