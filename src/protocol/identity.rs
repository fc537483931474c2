//! The proof that a client may pass: nothing reaches a backend without one.

use std::time::Duration;

use crate::base::time::UnixTime;

/// Longest subject or token id that a decision from outside may name, in bytes.
pub const IDENTITY_TEXT_MAX: usize = 1024;
/// Most claims that a decision from outside may bring, in bytes.
pub const CLAIMS_MAX: usize = 8 * 1024;

/// Who a client is, as verified. Only token verification (or a backend's decision) in this layer
/// can make one, so code that holds one need not check again. It has no `Debug`: claims are private.
#[derive(Clone, Copy)]
pub struct VerifiedIdentity<'a> {
    subject: &'a str,
    token_id: Option<&'a str>,
    issued_at: Option<UnixTime>,
    expires: Option<UnixTime>,
    claims: &'a [u8],
    leeway: Duration,
}

impl<'a> VerifiedIdentity<'a> {
    /// The identity of every client on a route with `auth = "none"`: no subject, no claims, no end.
    pub(in crate::protocol) const fn anonymous() -> VerifiedIdentity<'static> {
        VerifiedIdentity {
            subject: "",
            token_id: None,
            issued_at: None,
            expires: None,
            claims: b"",
            leeway: Duration::ZERO,
        }
    }

    /// What a verified token says. Keep this out of reach of the layers above.
    pub(in crate::protocol) const fn verified(
        subject: &'a str,
        token_id: Option<&'a str>,
        issued_at: Option<UnixTime>,
        expires: Option<UnixTime>,
        claims: &'a [u8],
    ) -> Self {
        VerifiedIdentity { subject, token_id, issued_at, expires, claims, leeway: Duration::ZERO }
    }

    /// The same, where clocks were granted this much when its expiry was judged.
    pub(in crate::protocol) const fn with_leeway(mut self, leeway: Duration) -> Self {
        self.leeway = leeway;
        self
    }

    /// Whom the token is about (RFC 7519 §4.1.2); empty for anonymous clients and for
    /// tokens without `sub`.
    pub const fn subject(&self) -> &'a str {
        self.subject
    }

    /// The token's own id (RFC 7519 §4.1.7), by which it can be revoked.
    pub const fn token_id(&self) -> Option<&'a str> {
        self.token_id
    }

    /// When the token was made.
    pub const fn issued_at(&self) -> Option<UnixTime> {
        self.issued_at
    }

    /// When the token ends, without leeway; `None` never ends.
    pub const fn expires(&self) -> Option<UnixTime> {
        self.expires
    }

    /// When a connection of this identity, opened at `now`, ends: when the token does. One that
    /// was let in past that, by leeway alone, ends with the leeway: it would otherwise be closed
    /// as it is opened.
    pub fn ends(&self, now: UnixTime) -> Option<UnixTime> {
        let leeway = u64::try_from(self.leeway.as_millis()).unwrap_or(u64::MAX);
        self.expires.map(|expires| match expires > now {
            true => expires,
            false => UnixTime::from_millis(expires.as_millis().saturating_add(leeway)),
        })
    }

    /// The claims: JSON, as signed in a JWT or rendered from Erlang's terms; whatever its issuer
    /// put into a compact token. Empty for anonymous clients; compact tokens and decisions from
    /// outside may come without any, too.
    pub const fn claims(&self) -> &'a [u8] {
        self.claims
    }

    /// Whether the client was not authenticated: an authentication names a subject or claims.
    pub const fn is_anonymous(&self) -> bool {
        self.claims.is_empty() && self.subject.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_has_nothing() {
        let nobody = VerifiedIdentity::anonymous();
        assert!(nobody.is_anonymous() && nobody.claims().is_empty());
        assert_eq!((nobody.token_id(), nobody.expires(), nobody.issued_at()), (None, None, None));
    }
}
