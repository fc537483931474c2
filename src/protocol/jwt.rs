//! JSON Web Tokens with an HMAC (RFC 7515, 7518 §3.2, 7519, 8725).
//!
//! Verification allocates nothing, whether it accepts or refuses, and spends the same work on an
//! unknown key as on a known one. The algorithm belongs to the key, never to the token.

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::protocol::base64url;
use crate::protocol::cause::Cause;
use crate::protocol::compact_json::{self, Object, Value};
use crate::protocol::external_term::{Step, TermPath};
use crate::protocol::identity::VerifiedIdentity;
pub use crate::protocol::mac::Algorithm;
use crate::protocol::mac::{MAC_MAX, MacState};
use crate::protocol::scratch::{CLAIMS_MAX, NAME_MAX};
pub use crate::protocol::scratch::{TOKEN_MAX, TokenScratch};

/// Most members of a header: a forged one must not cost much.
const HEADER_MEMBERS_MAX: usize = 16;

/// Shortest key, in bytes: 256 bits.
pub const KEY_MIN: usize = 32;

/// Most keys of one verifier: a token without `kid` is tried with all of them.
pub const KEYS_MAX: usize = 16;

/// Longest leeway between the clocks of issuer and gateway.
pub const LEEWAY_MAX: Duration = Duration::from_secs(5 * 60);

/// The claim that names the subject (RFC 7519 §4.1.2).
const SUBJECT_CLAIM: &str = "sub";

/// A key, the algorithm that it is for, and the `kid` by which tokens may name it.
#[derive(Clone)]
pub struct JwtKey {
    /// The `kid`; a key without one verifies only tokens without one.
    pub id: Option<String>,
    /// The only algorithm for which the key is used.
    pub algorithm: Algorithm,
    /// At least [`KEY_MIN`] bytes.
    pub secret: Secret,
}

/// What a token must say beside a valid MAC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtOptions {
    /// `iss` must be this.
    pub issuer: Option<String>,
    /// `aud` must be or contain this. Without it, tokens that carry an `aud` are refused: they
    /// are for another service (RFC 7519 §4.1.3).
    pub audience: Option<String>,
    /// How far the clocks of issuer and gateway may differ, at most [`LEEWAY_MAX`].
    pub leeway: Duration,
    /// How far ahead `exp` may lie.
    pub lifetime_max: Duration,
    /// Where the subject is among the claims; `None` is `sub`.
    pub subject: Option<TermPath>,
}

impl Default for JwtOptions {
    fn default() -> Self {
        JwtOptions {
            issuer: None,
            audience: None,
            leeway: Duration::from_secs(10),
            lifetime_max: Duration::from_secs(10 * 365 * 24 * 60 * 60),
            subject: None,
        }
    }
}

/// Why a verifier cannot be made. The operator is to blame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtSetupError {
    /// No key.
    #[error("at least one key is needed")]
    NoKeys,
    /// Too many keys.
    #[error("at most {KEYS_MAX} keys are possible: remove those that were rotated out")]
    TooManyKeys,
    /// A key under [`KEY_MIN`] bytes; the index counts from 0.
    #[error(
        "key {index} has {length} bytes; at least {KEY_MIN} are needed: \
             make one with `openssl rand 32`"
    )]
    ShortKey {
        /// Which key.
        index: usize,
        /// Its length in bytes.
        length: usize,
    },
    /// Two keys with one id.
    #[error("two keys have the id \"{0}\"")]
    RepeatedId(String),
    /// An id that is empty.
    #[error("the id of key {0} is empty: leave it out or name it")]
    EmptyId(usize),
    /// A leeway over [`LEEWAY_MAX`].
    #[error("the leeway is over 5m: mend the clocks instead")]
    LeewayTooLong,
}

/// Verifies the tokens of one auth block. Immutable, shared by the workers.
pub struct JwtVerifier {
    keys: Vec<ReadyKey>,
    /// Stand in for keys that are not there, in the order of [`Algorithm::ALL`].
    dummies: [MacState; 3],
    options: JwtOptions,
}

struct ReadyKey {
    id: Option<String>,
    algorithm: Algorithm,
    state: MacState,
}

impl JwtVerifier {
    /// Prepares the keys.
    ///
    /// # Errors
    /// What is wrong with keys or options.
    pub fn new(keys: Vec<JwtKey>, options: JwtOptions) -> Result<JwtVerifier, JwtSetupError> {
        if keys.is_empty() {
            return Err(JwtSetupError::NoKeys);
        }
        if keys.len() > KEYS_MAX {
            return Err(JwtSetupError::TooManyKeys);
        }
        if options.leeway > LEEWAY_MAX {
            return Err(JwtSetupError::LeewayTooLong);
        }
        let mut ready: Vec<ReadyKey> = Vec::with_capacity(keys.len());
        for (index, key) in keys.iter().enumerate() {
            let length = key.secret.len();
            if length < KEY_MIN {
                return Err(JwtSetupError::ShortKey { index, length });
            }
            if let Some(id) = &key.id {
                if id.is_empty() {
                    return Err(JwtSetupError::EmptyId(index));
                }
                if ready.iter().any(|other| other.id == key.id) {
                    return Err(JwtSetupError::RepeatedId(id.clone()));
                }
            }
            let state = MacState::new(key.algorithm, key.secret.expose());
            ready.push(ReadyKey { id: key.id.clone(), algorithm: key.algorithm, state });
        }
        let dummies = Algorithm::ALL.map(|algorithm| MacState::new(algorithm, &[0; KEY_MIN]));
        Ok(JwtVerifier { keys: ready, dummies, options })
    }

    /// Verifies one token.
    ///
    /// # Errors
    /// In this order: [`Cause::TokenMalformed`] when the token or its header cannot be read;
    /// [`Cause::BadSignature`]; and only with a valid MAC `TokenMalformed` for the claims (no
    /// `exp`, times that are no numbers of 0 to 2^53), [`Cause::TokenForbidden`] for an `exp` beyond
    /// `lifetime_max`, issuer and audience, [`Cause::TokenExpired`],
    /// [`Cause::TokenNotYetValid`], and `TokenForbidden` for a token that names no subject.
    pub fn verify<'s>(
        &self,
        token: &[u8],
        now: UnixTime,
        scratch: &'s mut TokenScratch,
    ) -> Result<VerifiedIdentity<'s>, Cause> {
        let TokenScratch { header, claims, subject, token_id, .. } = scratch;
        let parts = Parts::split(token).ok_or(Cause::TokenMalformed)?;
        let mut mac = [0; MAC_MAX];
        let mac = base64url::decode(parts.mac, &mut mac).ok_or(Cause::TokenMalformed)?;
        let claims = base64url::decode(parts.claims, claims).ok_or(Cause::TokenMalformed)?;
        let header = base64url::decode(parts.header, header).ok_or(Cause::TokenMalformed)?;
        if !self.is_signed(header, parts.signed, mac)? {
            return Err(Cause::BadSignature);
        }
        let object = compact_json::object(claims, compact_json::MEMBERS_MAX)
            .map_err(|_| Cause::TokenMalformed)?;
        let read = Claims::read(object, self.options.subject.as_ref())?;
        if read.expires > now.later(self.options.lifetime_max) {
            // Not malformed: what is too far off now will be near enough some day.
            return Err(Cause::TokenForbidden);
        }
        self.judge_parties(&read)?;
        self.judge_times(&read, now)?;
        // A token without a subject names no user: sessions could be neither told apart nor
        // revoked.
        let subject = unescape(read.subject.ok_or(Cause::TokenForbidden)?, subject)?;
        if subject.is_empty() {
            return Err(Cause::TokenForbidden);
        }
        let token_id = read.token_id.map(|name| unescape(name, token_id)).transpose()?;
        Ok(VerifiedIdentity::verified(
            subject,
            token_id,
            read.issued_at,
            Some(read.expires),
            claims,
        )
        .with_leeway(self.options.leeway))
    }

    /// Whether one of the keys that the header permits made this MAC.
    fn is_signed(&self, header: &[u8], signed: &[u8], mac: &[u8]) -> Result<bool, Cause> {
        let object =
            compact_json::object(header, HEADER_MEMBERS_MAX).map_err(|_| Cause::TokenMalformed)?;
        let mut algorithm = None;
        let mut key_id = None;
        for (name, value) in object.members() {
            if name.is("alg") {
                let known = |value: &Value<'_>| {
                    let text = value.string()?;
                    Algorithm::ALL.into_iter().find(|algorithm| text.is(algorithm.name()))
                };
                algorithm = Some(known(&value).ok_or(Cause::TokenMalformed)?);
            } else if name.is("kid") {
                key_id = Some(value.string().ok_or(Cause::TokenMalformed)?);
            } else if name.is("crit") || (name.is("typ") && value.string().is_none()) {
                // RFC 7515 §4.1.11: no extension is understood here, so none may be critical.
                return Err(Cause::TokenMalformed);
            }
        }
        let algorithm = algorithm.ok_or(Cause::TokenMalformed)?;
        let mut matched = false;
        let mut computed = false;
        for key in &self.keys {
            let named = key_id.is_none_or(|id| key.id.as_deref().is_some_and(|ours| id.is(ours)));
            if named && key.algorithm == algorithm {
                matched |= key.state.matches(signed, mac);
                computed = true;
            }
        }
        if !computed {
            // An unknown key must take as long as a wrong MAC.
            let dummy = &self.dummies[algorithm as usize];
            std::hint::black_box(dummy.matches(signed, mac));
        }
        Ok(matched)
    }

    fn judge_parties(&self, claims: &Claims<'_>) -> Result<(), Cause> {
        let issuer_ok = match (&self.options.issuer, claims.issuer) {
            (None, _) => true,
            (Some(ours), Some(theirs)) => theirs.string().is_some_and(|text| text.is(ours)),
            (Some(_), None) => false,
        };
        let audience_ok = match (&self.options.audience, claims.audience) {
            (None, None) => true,
            (Some(ours), Some(Value::String(theirs))) => theirs.is(ours),
            (Some(ours), Some(Value::Array(theirs))) => {
                theirs.elements().any(|element| element.string().is_some_and(|text| text.is(ours)))
            }
            _ => false,
        };
        if issuer_ok && audience_ok { Ok(()) } else { Err(Cause::TokenForbidden) }
    }

    /// See [`Verifier::valid_from`](crate::protocol::verifier::Verifier::valid_from).
    pub fn valid_from(&self, token: &[u8]) -> Option<UnixTime> {
        let mut room = vec![0; CLAIMS_MAX];
        let claims = base64url::decode(Parts::split(token)?.claims, &mut room)?;
        let object = compact_json::object(claims, compact_json::MEMBERS_MAX).ok()?;
        let claims = Claims::read(object, None).ok()?;
        claims.begins().map(|begins| begins.earlier(self.options.leeway))
    }

    fn judge_times(&self, claims: &Claims<'_>, now: UnixTime) -> Result<(), Cause> {
        let leeway = self.options.leeway;
        if now >= claims.expires.later(leeway) {
            return Err(Cause::TokenExpired);
        }
        let latest = now.later(leeway);
        if claims.begins().is_some_and(|begin| begin > latest) {
            return Err(Cause::TokenNotYetValid);
        }
        Ok(())
    }
}

/// Makes a token: for the command line, the demo and tests.
pub fn mint(key: &JwtKey, claims_json: &[u8]) -> String {
    let id = key.id.as_ref().map(|id| format!(",\"kid\":{}", serde_json::Value::from(id.as_str())));
    let header =
        format!(r#"{{"alg":"{}","typ":"JWT"{}}}"#, key.algorithm.name(), id.unwrap_or_default());
    let mut token = Vec::new();
    base64url::encode(header.as_bytes(), &mut token);
    token.push(b'.');
    base64url::encode(claims_json, &mut token);
    let mut mac = [0; MAC_MAX];
    let mac = MacState::new(key.algorithm, key.secret.expose()).compute(&token, &mut mac);
    token.push(b'.');
    base64url::encode(mac, &mut token);
    token.into_iter().map(char::from).collect()
}

/// The compact serialization (RFC 7515 §7.1).
struct Parts<'t> {
    /// Header and claims with the dot between them: what the MAC covers.
    signed: &'t [u8],
    header: &'t [u8],
    claims: &'t [u8],
    mac: &'t [u8],
}

impl<'t> Parts<'t> {
    fn split(token: &'t [u8]) -> Option<Self> {
        if token.len() > TOKEN_MAX {
            return None;
        }
        let mut parts = token.split(|&b| b == b'.');
        let (header, claims, mac) = (parts.next()?, parts.next()?, parts.next()?);
        let signed = &token[..header.len() + 1 + claims.len()];
        parts.next().is_none().then_some(Parts { signed, header, claims, mac })
    }
}

/// The registered claims (RFC 7519 §4.1), shapes checked.
#[derive(Default)]
struct Claims<'t> {
    issuer: Option<Value<'t>>,
    audience: Option<Value<'t>>,
    subject: Option<compact_json::JsonString<'t>>,
    token_id: Option<compact_json::JsonString<'t>>,
    expires: UnixTime,
    not_before: Option<UnixTime>,
    issued_at: Option<UnixTime>,
}

impl<'t> Claims<'t> {
    /// When the token's time begins, if it says so.
    fn begins(&self) -> Option<UnixTime> {
        self.not_before.max(self.issued_at)
    }

    /// `subject` is where the subject is; `None` is `sub`.
    fn read(object: Object<'t>, subject: Option<&TermPath>) -> Result<Self, Cause> {
        let steps = subject.map_or(&[][..], TermPath::steps);
        let (subject_claim, steps) = match steps.split_first() {
            Some((Step::Name(name), rest)) => (name.as_str(), rest),
            _ => (SUBJECT_CLAIM, &[][..]),
        };
        let seconds = |value: Value<'_>| {
            value.numeric_date().map(UnixTime::from_seconds).ok_or(Cause::TokenMalformed)
        };
        let text = |value: Value<'t>| value.string().ok_or(Cause::TokenMalformed);
        let mut claims = Claims::default();
        let mut expires = None;
        for (name, value) in object.members() {
            if name.is(subject_claim) {
                // Many issuers number their users, though RFC 7519 §4.1.2 has text here.
                claims.subject = value_at(value, steps)
                    .and_then(|value| value.integer_text().or_else(|| value.string()));
            }
            if name.is("iss") {
                claims.issuer = Some(value);
            } else if name.is("aud") {
                claims.audience = Some(value);
            } else if name.is("jti") {
                claims.token_id = Some(text(value)?);
            } else if name.is("exp") {
                expires = Some(seconds(value)?);
            } else if name.is("nbf") {
                claims.not_before = Some(seconds(value)?);
            } else if name.is("iat") {
                claims.issued_at = Some(seconds(value)?);
            }
        }
        claims.expires = expires.ok_or(Cause::TokenMalformed)?;
        Ok(claims)
    }
}

/// The part of a claim that the steps lead to. A name that stands there twice leads nowhere.
fn value_at<'t>(value: Value<'t>, steps: &[Step]) -> Option<Value<'t>> {
    steps.iter().try_fold(value, |value, step| match (step, value) {
        (Step::Name(name), Value::Object(object)) => object.member(name).ok()?,
        (Step::Index(index), Value::Array(array)) => array.elements().nth(*index),
        _ => None,
    })
}

/// A name of at most [`NAME_MAX`] bytes.
fn unescape<'s>(
    name: compact_json::JsonString<'s>,
    scratch: &'s mut [u8],
) -> Result<&'s str, Cause> {
    let name = name.unescape(scratch).map_err(|_| Cause::TokenMalformed)?;
    if name.len() <= NAME_MAX { Ok(name) } else { Err(Cause::TokenMalformed) }
}
