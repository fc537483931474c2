//! What the gateway judges by itself: tokens whose keys it has, and routes without authentication.
//!
//! The settings build a [`Verifier`]; it is a value of its own behind an `Arc`, so that keys can
//! be replaced while the settings stay.

use crate::base::time::UnixTime;
use crate::protocol::cause::Cause;
use crate::protocol::compact_token::CompactVerifier;
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::jwt::JwtVerifier;
use crate::protocol::phoenix_token::PhoenixVerifier;
use crate::protocol::plug_session::SessionVerifier;
use crate::protocol::rejected_tokens::RejectedTokenCache;
use crate::protocol::scratch::TokenScratch;

/// Keys and rules of one kind of token.
pub struct Verifier {
    format: TokenFormat,
    fingerprint: [u8; 16],
}

/// How tokens are written and signed.
#[allow(clippy::large_enum_variant, reason = "a few per process")]
pub enum TokenFormat {
    /// JSON Web Tokens with an HMAC.
    Jwt(JwtVerifier),
    /// Tokens of Phoenix.Token.
    Phoenix(PhoenixVerifier),
    /// Signed session cookies of Plug.Session.
    PlugSession(SessionVerifier),
    /// The gateway's own tokens.
    Compact(CompactVerifier),
}

impl Verifier {
    /// `fingerprint` is a digest of all that a decision depends on beside the token and the
    /// clock: keys and options. Decisions are remembered under it, so that none outlives a change
    /// of them.
    pub fn new(format: TokenFormat, fingerprint: [u8; 16]) -> Self {
        Verifier { format, fingerprint }
    }

    /// See [`Verifier::new`].
    pub fn fingerprint(&self) -> &[u8; 16] {
        &self.fingerprint
    }

    /// Whether the tokens are sessions of Plug, which a page sends together with a CSRF token.
    pub fn is_session(&self) -> bool {
        matches!(self.format, TokenFormat::PlugSession(_))
    }

    /// Whether a session counts only together with its CSRF token.
    pub fn asks_csrf(&self) -> bool {
        matches!(&self.format, TokenFormat::PlugSession(verifier) if verifier.asks_csrf())
    }

    /// Judges a token. `csrf` is the query parameter that goes with a session.
    ///
    /// # Errors
    /// Why the token is refused.
    pub fn verify<'s>(
        &self,
        token: &[u8],
        csrf: Option<&[u8]>,
        now: UnixTime,
        scratch: &'s mut TokenScratch,
    ) -> Result<VerifiedIdentity<'s>, Cause> {
        match &self.format {
            TokenFormat::Jwt(verifier) => verifier.verify(token, now, scratch),
            TokenFormat::Phoenix(verifier) => verifier.verify(token, now, scratch),
            TokenFormat::PlugSession(verifier) => verifier.verify(token, csrf, now, scratch),
            TokenFormat::Compact(verifier) => verifier.verify(token, now, scratch),
        }
    }

    /// Whether a token that was refused as [`Cause::TokenMissing`] is a session in which no user is
    /// logged in, with the CSRF token that goes with it.
    ///
    /// # Errors
    /// What it is refused for even where visitors are welcome.
    pub fn check_visitor(
        &self,
        token: &[u8],
        csrf: Option<&[u8]>,
        scratch: &mut TokenScratch,
    ) -> Result<(), Cause> {
        match &self.format {
            TokenFormat::PlugSession(verifier) => verifier.check_visitor(token, csrf, scratch),
            TokenFormat::Jwt(_) | TokenFormat::Phoenix(_) | TokenFormat::Compact(_) => {
                Err(Cause::TokenMissing)
            }
        }
    }

    /// From when on a token is accepted that was refused as [`Cause::TokenNotYetValid`]; of no
    /// meaning for others, since nothing is verified here. It allocates: only a token that one of
    /// the keys signed comes here.
    pub fn valid_from(&self, token: &[u8]) -> Option<UnixTime> {
        match &self.format {
            TokenFormat::Jwt(verifier) => verifier.valid_from(token),
            TokenFormat::Phoenix(verifier) => verifier.valid_from(token),
            TokenFormat::Compact(verifier) => verifier.valid_from(token),
            // A session carries no time.
            TokenFormat::PlugSession(_) => None,
        }
    }
}

/// Why a token, or a request without one, is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub cause: Cause,
    /// When the same token will be good, where that is [`Cause::TokenNotYetValid`] and known.
    pub valid_from: Option<UnixTime>,
}

impl From<Cause> for Refusal {
    fn from(cause: Cause) -> Self {
        Refusal { cause, valid_from: None }
    }
}

/// Verifies tokens for one client, whichever block they are for: refuses what is too long before
/// it is decoded, and what was refused before without verifying it again.
pub struct TokenCheck<'d> {
    /// Longest token, in bytes.
    pub token_max: u16,
    /// By the wall clock.
    pub now: UnixTime,
    /// Tokens that no later moment will make good.
    pub rejected: &'d mut RejectedTokenCache,
    /// How many were refused from memory.
    pub rejected_hits: &'d mut u64,
}

impl TokenCheck<'_> {
    /// Judges a token.
    ///
    /// # Errors
    /// Why the token is refused.
    pub fn verify<'s>(
        &mut self,
        verifier: &Verifier,
        token: &[u8],
        csrf: Option<&[u8]>,
        scratch: &'s mut TokenScratch,
    ) -> Result<VerifiedIdentity<'s>, Refusal> {
        if token.len() > usize::from(self.token_max) {
            return Err(Cause::TokenMalformed.into());
        }
        let key = self.rejected.key(&verifier.fingerprint, token);
        if let Some(cause) = key.and_then(|key| self.rejected.find(key, self.now)) {
            *self.rejected_hits += 1;
            return Err(cause.into());
        }
        let decision = verifier.verify(token, csrf, self.now, scratch);
        if let (Some(key), Err(cause)) = (key, &decision) {
            self.rejected.insert(key, *cause);
        }
        decision.map_err(|cause| {
            let early = cause == Cause::TokenNotYetValid;
            Refusal { cause, valid_from: early.then(|| verifier.valid_from(token)).flatten() }
        })
    }
}

/// Whether a block has not signed the token at all, so that it falls through to the next auth
/// block, which may have.
pub fn falls_through(cause: Cause) -> bool {
    matches!(cause, Cause::TokenMissing | Cause::TokenMalformed | Cause::BadSignature)
}

/// The proof that a route says `auth = "none"`, written out. Without it there is no identity
/// without a token:
///
/// ```compile_fail,E0624
/// let identity = portcullis::protocol::identity::VerifiedIdentity::anonymous();
/// ```
///
/// ```compile_fail,E0423
/// let proof = portcullis::protocol::verifier::NoAuthentication(());
/// ```
#[derive(Clone, Copy)]
pub struct NoAuthentication(());

impl NoAuthentication {
    /// The proof, if this is what the route's `auth` says.
    pub fn written_out(auth: &str) -> Option<NoAuthentication> {
        (auth == "none").then_some(NoAuthentication(()))
    }

    /// The identity of every client of such a route.
    pub const fn identity(self) -> VerifiedIdentity<'static> {
        VerifiedIdentity::anonymous()
    }
}

/// The proof that a route's list ends with "anonymous", written out: it lets clients in as visitors
/// whose request carries no credential, or a verified session in which no user is logged in.
///
/// ```compile_fail,E0423
/// let proof = portcullis::protocol::verifier::VisitorsWelcome(());
/// ```
#[derive(Clone, Copy)]
pub struct VisitorsWelcome(());

impl VisitorsWelcome {
    /// The word for it in a route's `auth`.
    pub const NAME: &'static str = "anonymous";

    /// The proof, if this is the last name in a route's `auth`.
    pub fn written_out(last: &str) -> Option<VisitorsWelcome> {
        (last == Self::NAME).then_some(VisitorsWelcome(()))
    }

    /// The identity of every visitor.
    pub const fn identity(self) -> VerifiedIdentity<'static> {
        VerifiedIdentity::anonymous()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visitors_must_be_written_out() {
        let proof = VisitorsWelcome::written_out("anonymous").expect("written out");
        assert!(proof.identity().is_anonymous());
        for text in ["", "Anonymous", "anonymous ", "none", "any", "app"] {
            assert!(VisitorsWelcome::written_out(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn no_authentication_must_be_written_out() {
        let proof = NoAuthentication::written_out("none").expect("written out");
        assert!(proof.identity().is_anonymous());
        for text in ["", "None", "none ", "any", "off", "app"] {
            assert!(NoAuthentication::written_out(text).is_none(), "{text:?}");
        }
    }
}
