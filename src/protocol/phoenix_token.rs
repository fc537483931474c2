//! Tokens of Phoenix.Token (Plug.Crypto.sign), verified by its own rules.
//!
//! The payload of the signed message is the Erlang term `{data, signed_at_ms, max_age_s}`; older
//! libraries wrote `{data, signed_at_ms}` or a map of the two, with an age of a day.

#[cfg(test)]
mod tests;

use std::time::Duration;

use serde_json::Value;

use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::protocol::cause::Cause;
use crate::protocol::external_term::{self, Term, TermPath};
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::mac::Algorithm;
use crate::protocol::plug_crypto::{self, MessageVerifier};
use crate::protocol::scratch::{NAME_MAX, TokenScratch};

/// Age of tokens that name none, in seconds.
const MAX_AGE_S: i64 = 86_400;

/// What the configuration says of an age, against what the token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxAge {
    /// The token's own.
    Embedded,
    /// This one, whatever the token says.
    Fixed(Duration),
    /// None: `max_age: :infinity`.
    Infinite,
}

/// What is asked of a token beside a valid MAC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhoenixOptions {
    /// How old it may be.
    pub max_age: MaxAge,
    /// Where in the data the subject stands; an integer or a text is the subject as it is.
    pub subject: Option<TermPath>,
}

/// Verifies the tokens of one auth block. Immutable, shared by the workers.
pub struct PhoenixVerifier {
    messages: MessageVerifier,
    options: PhoenixOptions,
}

impl PhoenixVerifier {
    /// Takes the derived keys (1 to [`plug_crypto::BASES_MAX`]).
    pub fn new(keys: &[Secret], options: PhoenixOptions) -> Self {
        PhoenixVerifier { messages: MessageVerifier::new(keys), options }
    }

    /// Verifies one token. The claims are the data as JSON, as far as JSON can say it: the
    /// subject decides, not what stands beside it.
    ///
    /// # Errors
    /// In this order: [`Cause::TokenMalformed`] when the token cannot be read,
    /// [`Cause::BadSignature`], and only with a valid MAC `TokenMalformed` for the term,
    /// [`Cause::TokenExpired`], [`Cause::TokenNotYetValid`] for one that was signed in the future
    /// (Plug.Crypto has no leeway), [`Cause::TokenForbidden`] for data without a subject.
    pub fn verify<'s>(
        &self,
        token: &[u8],
        now: UnixTime,
        scratch: &'s mut TokenScratch,
    ) -> Result<VerifiedIdentity<'s>, Cause> {
        let TokenScratch { claims, rendered, subject, inflated, .. } = scratch;
        let payload = self.messages.verify(token, claims)?;
        let payload = external_term::inflated(payload, inflated).ok_or(Cause::TokenMalformed)?;
        let term = external_term::read(payload).ok_or(Cause::TokenMalformed)?;
        let signed = Signed::of(term).ok_or(Cause::TokenMalformed)?;
        let expires = self.judge_age(&signed, now)?;
        let named = match (signed.data, &self.options.subject) {
            (data @ (Term::Integer(_) | Term::Binary(_)), _) | (data, None) => Some(data),
            (data, Some(path)) => path.find(data),
        };
        let subject = named.and_then(|term| name_of(term, subject)).ok_or(Cause::TokenForbidden)?;
        let claims = external_term::write_json(signed.data, None, rendered);
        let issued = u64::try_from(signed.at_ms).ok().map(UnixTime::from_millis);
        Ok(VerifiedIdentity::verified(subject, None, issued, expires, claims))
    }

    /// See [`Verifier::valid_from`](crate::protocol::verifier::Verifier::valid_from).
    pub fn valid_from(&self, token: &[u8]) -> Option<UnixTime> {
        let payload = plug_crypto::unverified_payload(token)?;
        let mut inflated = Vec::new();
        let term =
            external_term::inflated(&payload, &mut inflated).and_then(external_term::read)?;
        u64::try_from(Signed::of(term)?.at_ms).ok().map(UnixTime::from_millis)
    }

    /// When the token ends; `None` is never.
    fn judge_age(&self, signed: &Signed<'_>, now: UnixTime) -> Result<Option<UnixTime>, Cause> {
        let age_ms = match (self.options.max_age, signed.max_age_ms) {
            (MaxAge::Infinite, _) | (MaxAge::Embedded, None) => return Ok(None),
            (MaxAge::Embedded, Some(millis)) => millis,
            (MaxAge::Fixed(age), _) => i64::try_from(age.as_millis()).unwrap_or(i64::MAX),
        };
        let now_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        if age_ms < 0 {
            return Err(Cause::TokenExpired);
        }
        if signed.at_ms > now_ms {
            return Err(Cause::TokenNotYetValid);
        }
        let expires_ms = signed.at_ms.saturating_add(age_ms);
        if expires_ms < now_ms {
            return Err(Cause::TokenExpired);
        }
        // At or after `now`, so not before 1970.
        Ok(u64::try_from(expires_ms).ok().map(UnixTime::from_millis))
    }
}

/// What a token says, shapes checked.
struct Signed<'t> {
    data: Term<'t>,
    at_ms: i64,
    /// `None` is `:infinity`; negative is an age of 0 or less, which is over from the start.
    max_age_ms: Option<i64>,
}

impl<'t> Signed<'t> {
    fn of(term: Term<'t>) -> Option<Signed<'t>> {
        let (data, at, max_age) = match term {
            Term::Tuple(mut terms) => {
                let (data, at, max_age) = (terms.next()?, terms.next()?, terms.next());
                if !terms.is_empty() {
                    return None;
                }
                (data, at, max_age)
            }
            Term::Map(pairs) => {
                // Only atoms: this one was `%{data: data, signed: signed}`.
                let value = |name: &str| {
                    let is = |key: &Term<'_>| matches!(key, Term::Atom(atom) if *atom == name);
                    pairs.pairs().find(|(key, _)| is(key)).map(|(_, value)| value)
                };
                (value("data")?, value("signed")?, None)
            }
            _ => return None,
        };
        let Term::Integer(at) = at else { return None };
        let millis = |seconds: i64| match seconds {
            ..=0 => -1,
            seconds => seconds.saturating_mul(1000),
        };
        let max_age_ms = match max_age {
            None => Some(millis(MAX_AGE_S)),
            Some(Term::Integer(seconds)) => Some(millis(seconds.saturated())),
            Some(Term::Float(seconds)) if seconds <= 0.0 => Some(-1),
            // `trunc(seconds * 1000)`; the conversion saturates.
            Some(Term::Float(seconds)) => Some((seconds * 1000.0) as i64),
            Some(Term::Atom("infinity")) => None,
            Some(_) => return None,
        };
        Some(Signed { data, at_ms: at.saturated(), max_age_ms })
    }
}

/// The subject that an integer or a text is: 1 to [`NAME_MAX`] bytes.
pub(in crate::protocol) fn name_of<'s>(term: Term<'s>, scratch: &'s mut [u8]) -> Option<&'s str> {
    let name = match term {
        Term::Integer(integer) => integer.write_decimal(scratch)?,
        term => term.text()?,
    };
    (1..=NAME_MAX).contains(&name.len()).then_some(name)
}

/// Makes a token, with a derived key: for the command line and tests.
pub fn mint(key: &Secret, data: &Value, signed: UnixTime, max_age_s: u64) -> String {
    let mut payload = Vec::new();
    let signed_ms = i64::try_from(signed.as_millis()).unwrap_or(i64::MAX);
    let max_age_s = i64::try_from(max_age_s).unwrap_or(i64::MAX);
    external_term::encode_signed(data, signed_ms, max_age_s, &mut payload);
    plug_crypto::sign(key, Algorithm::HS256, &payload)
}
