//! Sessions of Plug.Session.COOKIE that are signed and not encrypted, and the CSRF token that
//! LiveView's client sends beside them.
//!
//! The cookie is a signed message whose payload is the session: an Erlang map with binary keys.
//! It carries no time. Plug.CSRFProtection keeps 24 random characters in it, under
//! `_csrf_token`; a page gets them masked, as `base64url(token XOR mask) + mask` with a mask of
//! 24 other random characters, and sends that as the query parameter `_csrf_token`.

#[cfg(test)]
mod tests;

use std::time::Duration;

use serde_json::Value;
use subtle::ConstantTimeEq as _;

use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::protocol::base64url;
use crate::protocol::cause::Cause;
use crate::protocol::external_term::{self, Term, TermPath};
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::mac::Algorithm;
use crate::protocol::phoenix_token::name_of;
use crate::protocol::plug_crypto::{self, MessageVerifier};
use crate::protocol::scratch::TokenScratch;

/// Name of the query parameter, and of the session's member.
pub const CSRF_NAME: &str = "_csrf_token";

/// Length of a session's CSRF token, and of a mask: base64 of 18 bytes.
const CSRF_BYTES: usize = 24;

/// Length of a masked token in the query: base64 of as many bytes as the token has, and the mask.
pub const MASKED_BYTES: usize = 32 + CSRF_BYTES;

/// What is asked of a session beside a valid MAC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Where in the session the subject stands. A session without it belongs to no user yet.
    pub subject: TermPath,
    /// How long a connection may live on one look at the session; `None` is as long as it likes.
    pub max_age: Option<Duration>,
    /// Whether the request must carry the masked CSRF token.
    pub csrf: bool,
}

/// Verifies the sessions of one auth block. Immutable, shared by the workers.
pub struct SessionVerifier {
    messages: MessageVerifier,
    options: SessionOptions,
}

impl SessionVerifier {
    /// Takes the derived keys (1 to [`plug_crypto::BASES_MAX`]).
    pub fn new(keys: &[Secret], options: SessionOptions) -> Self {
        SessionVerifier { messages: MessageVerifier::new(keys), options }
    }

    /// Whether [`SessionVerifier::verify`] looks at the CSRF parameter.
    pub fn asks_csrf(&self) -> bool {
        self.options.csrf
    }

    /// Verifies one session. `csrf` is the decoded value of the query parameter [`CSRF_NAME`];
    /// `None` when there is none, or more than one. The claims are the session as JSON, without
    /// its CSRF token.
    ///
    /// # Errors
    /// In this order: [`Cause::TokenMalformed`] when the cookie cannot be read,
    /// [`Cause::BadSignature`], and only with a valid MAC `TokenMalformed` for the term,
    /// [`Cause::TokenMissing`] when the session has no subject: a visitor who has not logged in;
    /// [`Cause::CsrfMismatch`].
    pub fn verify<'s>(
        &self,
        cookie: &[u8],
        csrf: Option<&[u8]>,
        now: UnixTime,
        scratch: &'s mut TokenScratch,
    ) -> Result<VerifiedIdentity<'s>, Cause> {
        let TokenScratch { claims, rendered, subject, inflated, .. } = scratch;
        let term = self.read(cookie, claims, inflated)?;
        let named = self.options.subject.find(term);
        let subject = named.and_then(|term| name_of(term, subject)).ok_or(Cause::TokenMissing)?;
        self.check_csrf(term, csrf)?;
        let claims = external_term::write_json(term, Some(CSRF_NAME), rendered);
        let expires = self.options.max_age.map(|age| now.later(age));
        Ok(VerifiedIdentity::verified(subject, None, None, expires, claims))
    }
}

impl SessionVerifier {
    /// Whether this is a session in which no user is logged in, for routes that welcome visitors.
    ///
    /// # Errors
    /// As [`SessionVerifier::verify`]; [`Cause::TokenMissing`] also for a subject that cannot be
    /// read: a user is logged in.
    pub fn check_visitor(
        &self,
        cookie: &[u8],
        csrf: Option<&[u8]>,
        scratch: &mut TokenScratch,
    ) -> Result<(), Cause> {
        let TokenScratch { claims, inflated, .. } = scratch;
        let term = self.read(cookie, claims, inflated)?;
        match self.options.subject.find(term) {
            None | Some(Term::Atom("nil")) => self.check_csrf(term, csrf),
            Some(_) => Err(Cause::TokenMissing),
        }
    }

    /// The session in a cookie with a valid MAC: a map.
    fn read<'s>(
        &self,
        cookie: &[u8],
        claims: &'s mut [u8],
        inflated: &'s mut Vec<u8>,
    ) -> Result<Term<'s>, Cause> {
        let payload = self.messages.verify(cookie, claims)?;
        let payload = external_term::inflated(payload, inflated).ok_or(Cause::TokenMalformed)?;
        let term = external_term::read(payload).ok_or(Cause::TokenMalformed)?;
        matches!(term, Term::Map(_)).then_some(term).ok_or(Cause::TokenMalformed)
    }

    fn check_csrf(&self, session: Term<'_>, csrf: Option<&[u8]>) -> Result<(), Cause> {
        if !self.options.csrf {
            return Ok(());
        }
        let Term::Map(session) = session else { return Err(Cause::CsrfMismatch) };
        let Some(Term::Binary(ours)) = session.value(CSRF_NAME) else {
            return Err(Cause::CsrfMismatch);
        };
        let matches = csrf.is_some_and(|masked| is_masked(ours, masked));
        matches.then_some(()).ok_or(Cause::CsrfMismatch)
    }
}

/// Whether `masked` unmasks to `token`, in constant time for texts of the right length.
fn is_masked(token: &[u8], masked: &[u8]) -> bool {
    let Some((text, mask)) = masked
        .split_last_chunk::<CSRF_BYTES>()
        .filter(|_| masked.len() == MASKED_BYTES && token.len() == CSRF_BYTES)
    else {
        return false;
    };
    let mut unmasked = [0; CSRF_BYTES];
    if base64url::decode(text, &mut unmasked).is_none() {
        return false;
    }
    unmasked.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    unmasked.ct_eq(token).into()
}

/// A session cookie's value and the parameter that goes with it.
pub struct Minted {
    /// The cookie's value.
    pub cookie: String,
    /// The value of the query parameter [`CSRF_NAME`].
    pub csrf: String,
}

/// Makes a session and a parameter for it, with a derived key and 36 random bytes: for the
/// command line and tests. `session` must be an object.
pub fn mint(key: &Secret, mut session: Value, random: &[u8; 36]) -> Minted {
    let text = |bytes: &[u8]| {
        let mut text = Vec::new();
        base64url::encode(bytes, &mut text);
        text
    };
    let (token, mask) = (text(&random[..18]), text(&random[18..]));
    let masked: Vec<u8> = token.iter().zip(&mask).map(|(byte, mask)| byte ^ mask).collect();
    let parameter = [text(&masked), mask].concat();
    if let Value::Object(members) = &mut session {
        let token: String = token.into_iter().map(char::from).collect();
        members.insert(CSRF_NAME.to_owned(), token.into());
    }
    let mut payload = Vec::new();
    external_term::encode(&session, &mut payload);
    Minted {
        cookie: plug_crypto::sign(key, Algorithm::HS256, &payload),
        csrf: parameter.into_iter().map(char::from).collect(),
    }
}
