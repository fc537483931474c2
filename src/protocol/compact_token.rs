//! The gateway's own token: binary, and no larger than it must be. `docs/compact-token.md` has
//! it byte by byte.
//!
//! ```text
//! version u8 = 1 | key u8 | issued u32 | expires u32 | n u8, subject | m u8, token id | claims
//! | MAC, 32 bytes
//! ```
//!
//! Numbers are big-endian, times in seconds since 1970. The MAC is HMAC-SHA-256 of all bytes
//! before it. The whole is base64url without padding.

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::protocol::base64url;
use crate::protocol::cause::Cause;
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::mac::{Algorithm, MAC_MAX, MacState};
use crate::protocol::scratch::{TOKEN_MAX, TokenScratch};

/// The only version.
pub const VERSION: u8 = 1;

/// Length of the MAC, in bytes.
const MAC_BYTES: usize = 32;

/// Most keys of one verifier.
pub const KEYS_MAX: usize = 16;

/// A key and the number by which tokens name it.
#[derive(Clone)]
pub struct CompactKey {
    /// Its number in tokens.
    pub id: u8,
    /// 32 bytes or more.
    pub secret: Secret,
}

/// What is asked of a token beside a valid MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactOptions {
    /// How far the clocks of issuer and gateway may differ.
    pub leeway: Duration,
    /// How far ahead the end may lie.
    pub lifetime_max: Duration,
}

/// Verifies the tokens of one auth block. Immutable, shared by the workers.
pub struct CompactVerifier {
    keys: Vec<(u8, MacState)>,
    /// Stands in for a key that is not there.
    dummy: MacState,
    options: CompactOptions,
}

impl CompactVerifier {
    /// Prepares the keys (1 to [`KEYS_MAX`], no two of one number).
    pub fn new(keys: &[CompactKey], options: CompactOptions) -> Self {
        assert!((1..=KEYS_MAX).contains(&keys.len()), "the settings bound the number of keys");
        let ready =
            |key: &CompactKey| (key.id, MacState::new(Algorithm::HS256, key.secret.expose()));
        let dummy = MacState::new(Algorithm::HS256, &[0; MAC_BYTES]);
        CompactVerifier { keys: keys.iter().map(ready).collect(), dummy, options }
    }

    /// Verifies one token. The claims are passed on as they are.
    ///
    /// # Errors
    /// In this order: [`Cause::TokenMalformed`] when the token cannot be read,
    /// [`Cause::BadSignature`], and only with a valid MAC `TokenMalformed` for the fields,
    /// [`Cause::TokenForbidden`] for an end beyond `lifetime_max`, [`Cause::TokenExpired`],
    /// [`Cause::TokenNotYetValid`].
    pub fn verify<'s>(
        &self,
        token: &[u8],
        now: UnixTime,
        scratch: &'s mut TokenScratch,
    ) -> Result<VerifiedIdentity<'s>, Cause> {
        if token.len() > TOKEN_MAX {
            return Err(Cause::TokenMalformed);
        }
        let bytes = base64url::decode(token, &mut scratch.claims).ok_or(Cause::TokenMalformed)?;
        let (signed, mac) = bytes.split_last_chunk::<MAC_BYTES>().ok_or(Cause::TokenMalformed)?;
        let &[VERSION, key, ..] = signed else { return Err(Cause::TokenMalformed) };
        if !self.is_signed(key, signed, mac) {
            return Err(Cause::BadSignature);
        }
        let fields = Fields::read(signed).ok_or(Cause::TokenMalformed)?;
        if fields.expires > now.later(self.options.lifetime_max) {
            return Err(Cause::TokenForbidden);
        }
        if now >= fields.expires.later(self.options.leeway) {
            return Err(Cause::TokenExpired);
        }
        if fields.issued > now.later(self.options.leeway) {
            return Err(Cause::TokenNotYetValid);
        }
        Ok(VerifiedIdentity::verified(
            fields.subject,
            Some(fields.token_id).filter(|id| !id.is_empty()),
            Some(fields.issued),
            Some(fields.expires),
            fields.claims,
        )
        .with_leeway(self.options.leeway))
    }

    /// See [`Verifier::valid_from`](crate::protocol::verifier::Verifier::valid_from).
    pub fn valid_from(&self, token: &[u8]) -> Option<UnixTime> {
        inspect(token).map(|token| token.unverified_issued.earlier(self.options.leeway))
    }

    fn is_signed(&self, id: u8, signed: &[u8], mac: &[u8]) -> bool {
        let known = self.keys.iter().find(|(ours, _)| *ours == id).map(|(_, state)| state);
        // One call for both: an unknown key must cost a MAC like a wrong one.
        let matched = known.unwrap_or(&self.dummy).matches(signed, mac);
        matched & known.is_some()
    }
}

/// What a token holds.
#[derive(Clone, Copy)]
pub struct Fields<'t> {
    /// When it was made.
    pub issued: UnixTime,
    /// When it ends.
    pub expires: UnixTime,
    /// Whom it is about: 1 to 255 bytes.
    pub subject: &'t str,
    /// Its own id; empty when it has none.
    pub token_id: &'t str,
    /// Whatever the issuer wants the backend to know.
    pub claims: &'t [u8],
}

impl<'t> Fields<'t> {
    /// Reads all that stands before the MAC.
    fn read(signed: &'t [u8]) -> Option<Self> {
        let ([_version, _key], rest) = signed.split_first_chunk()?;
        let (issued, rest) = rest.split_first_chunk()?;
        let (expires, rest) = rest.split_first_chunk()?;
        let (subject, rest) = split_text(rest)?;
        let (token_id, claims) = split_text(rest)?;
        let time = |bytes: &[u8; 4]| UnixTime::from_seconds(u32::from_be_bytes(*bytes).into());
        let (issued, expires) = (time(issued), time(expires));
        (!subject.is_empty()).then_some(Fields { issued, expires, subject, token_id, claims })
    }
}

fn split_text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first()?;
    let (text, rest) = rest.split_at_checked(usize::from(*length))?;
    Some((str::from_utf8(text).ok()?, rest))
}

/// Makes a token: for the command line, benches and tests. `None` when a field is too long for
/// the format, a time beyond 2106, or the subject empty.
pub fn mint(key: &CompactKey, fields: &Fields<'_>) -> Option<String> {
    let mut bytes = vec![VERSION, key.id];
    for time in [fields.issued, fields.expires] {
        bytes.extend_from_slice(&u32::try_from(time.as_seconds()).ok()?.to_be_bytes());
    }
    for text in [fields.subject, fields.token_id] {
        bytes.push(u8::try_from(text.len()).ok()?);
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes.extend_from_slice(fields.claims);
    let mut mac = [0; MAC_MAX];
    let state = MacState::new(Algorithm::HS256, key.secret.expose());
    bytes.extend_from_slice(state.compute(&bytes, &mut mac));
    let mut text = Vec::new();
    base64url::encode(&bytes, &mut text);
    let fits = text.len() <= TOKEN_MAX && !fields.subject.is_empty();
    fits.then(|| text.into_iter().map(char::from).collect())
}

/// What a token says of itself, with no key asked: its key's number and its fields. Never decide
/// on it.
pub fn inspect(token: &[u8]) -> Option<Inspection> {
    let mut buffer = vec![0; TOKEN_MAX];
    let bytes = base64url::decode(token, &mut buffer)?;
    let (signed, _mac) = bytes.split_last_chunk::<MAC_BYTES>()?;
    let &[VERSION, key, ..] = signed else { return None };
    let fields = Fields::read(signed)?;
    Some(Inspection {
        unverified_key: key,
        unverified_issued: fields.issued,
        unverified_expires: fields.expires,
        unverified_subject: fields.subject.to_owned(),
        unverified_token_id: fields.token_id.to_owned(),
        unverified_claims: fields.claims.to_vec(),
    })
}

/// A token taken apart for a person to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in `Fields`")]
pub struct Inspection {
    pub unverified_key: u8,
    pub unverified_issued: UnixTime,
    pub unverified_expires: UnixTime,
    pub unverified_subject: String,
    pub unverified_token_id: String,
    pub unverified_claims: Vec<u8>,
}
