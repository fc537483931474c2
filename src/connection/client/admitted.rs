//! The leave to open a client, and what it says of when that ends.

use std::time::Duration;

use crate::base::time::{Instant, PackedInstant, UnixTime};
use crate::connection::context::Context;
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::revocation::IdentityFingerprint;
use crate::settings::Route;

/// That a client may be let in: made of the proof that its token was verified, or of the word of a
/// server that judges its clients itself.
pub(super) struct Admitted {
    mark: IdentityFingerprint,
    expires: PackedInstant,
    has_no_identity: bool,
}

impl Admitted {
    /// The gateway, or one that it asked, has verified who the client is.
    pub(super) fn new(identity: &VerifiedIdentity<'_>, ctx: &Context<'_>) -> Self {
        ctx.counters.increment(Metric::TokensAccepted);
        let expires = identity_end(identity, ctx).into();
        let has_no_identity = identity.is_anonymous();
        Admitted { mark: ctx.revoked.mark(identity), expires, has_no_identity }
    }

    /// The server behind has accepted the client by itself: no one else knows who it is, so that
    /// only the server ends the session, its lifetime, or a drain.
    pub(super) fn by_server() -> Self {
        Admitted {
            mark: IdentityFingerprint::ANONYMOUS,
            expires: Instant::NEVER.into(),
            has_no_identity: false,
        }
    }

    /// What revocations are compared with.
    pub(super) fn mark(&self) -> IdentityFingerprint {
        self.mark
    }

    /// Whether the gateway let the client in without one, as a visitor or where none is asked for.
    pub(super) fn has_no_identity(&self) -> bool {
        self.has_no_identity
    }

    /// When the identity is over.
    pub(super) fn expires(&self) -> PackedInstant {
        self.expires
    }

    /// Why the identity is not worth anything any more, if so.
    pub(super) fn is_over(&self, route: &Route, ctx: &Context<'_>) -> Option<Cause> {
        let backend = &ctx.settings.backends[usize::from(route.backend)].name;
        if ctx.revoked.holds(self.mark, backend, ctx.now.unix) {
            ctx.counters.increment(Metric::RevokedRefused);
            return Some(Cause::TokenRevoked);
        }
        (self.expires.instant() <= ctx.now.instant).then_some(Cause::TokenExpired)
    }
}

/// When an identity is over on the monotonic clock.
pub(super) fn identity_end(identity: &VerifiedIdentity<'_>, ctx: &Context<'_>) -> Instant {
    identity.ends(ctx.now.unix).map_or(Instant::NEVER, |end| expiry(end, ctx))
}

pub(super) fn expiry(expires: UnixTime, ctx: &Context<'_>) -> Instant {
    let left = expires.as_millis().saturating_sub(ctx.now.unix.as_millis());
    ctx.now.instant + Duration::from_millis(left) + ctx.settings.deadlines.expiry_grace
}
