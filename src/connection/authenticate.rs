//! Which carrier holds a token, and what the token is worth.
//!
//! A route names one or more `[[auth]]` blocks. They are asked in that order: a block that finds
//! no token, or one that it has not signed, falls through to the next. A block's decision on a
//! token that it did sign is final, so that an expired token is never "unknown" to another block.

use std::borrow::Cow;

use crate::base::time::UnixTime;
use crate::protocol::carrier::{self, Carrier, CarrierScratch, Found};
use crate::protocol::cause::Cause;
use crate::protocol::http_upgrade::UpgradeRequest;
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::link::{Credential, CredentialCarrier};
use crate::protocol::plug_session::{CSRF_NAME, MASKED_BYTES};
use crate::protocol::rejected_tokens::RejectedTokenCache;
use crate::protocol::scratch::TokenScratch;
use crate::protocol::verifier::{Refusal, TokenCheck, Verifier, falls_through};
use crate::settings::{Auth, AuthKind, ROUTE_AUTHS_MAX, Reauthenticate, Route, Settings};

/// What one worker verifies tokens with, made once.
pub struct Scratch {
    /// Room to decode tokens in: one for each block of a route, because the identity borrows
    /// from it.
    blocks: Box<[BlockScratch; ROUTE_AUTHS_MAX]>,
    /// Room to look at a session again that may be a visitor's.
    visitor: TokenScratch,
    rejected: RejectedTokenCache,
    /// Tokens that [`Scratch::take_dead_hits`] has not told of yet.
    rejected_hits: u64,
}

#[derive(Default)]
struct BlockScratch {
    carried: CarrierScratch,
    claims: TokenScratch,
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch::new(RejectedTokenCache::new(0, [0; 16]))
    }
}

impl Scratch {
    /// Allocates the buffers. `rejected` remembers what was refused for good.
    pub fn new(rejected: RejectedTokenCache) -> Self {
        let blocks = Box::new(std::array::from_fn(|_| BlockScratch::default()));
        Scratch { blocks, visitor: TokenScratch::new(), rejected, rejected_hits: 0 }
    }

    /// Room for each block, and what their tokens are checked by.
    fn parts(
        &mut self,
        settings: &Settings,
        now: UnixTime,
    ) -> (&mut [BlockScratch; ROUTE_AUTHS_MAX], &mut TokenScratch, TokenCheck<'_>) {
        let Scratch { blocks, visitor, rejected, rejected_hits } = self;
        let token_max = settings.limits.token_max;
        (blocks, visitor, TokenCheck { token_max, now, rejected, rejected_hits })
    }

    /// Room to decode a token of a block that another program decides on.
    pub(super) fn carried(&mut self) -> &mut CarrierScratch {
        &mut self.blocks[0].carried
    }

    /// How many tokens were refused from memory since this was last asked.
    pub fn take_dead_hits(&mut self) -> u64 {
        std::mem::take(&mut self.rejected_hits)
    }
}

/// What a request is worth.
pub enum Decision<'s> {
    /// The token is good, or none is needed.
    Accepted(VerifiedIdentity<'s>),
    /// No token yet, but the first message may bring it.
    AwaitFirstMessage,
    /// The `[[auth]]` with this index has credentials, and another program must judge them.
    Ask(u16),
    /// The application behind judges its clients itself.
    AskServer,
    /// The token is bad, or there is none and none may come.
    Refused(Refusal),
}

/// Judges the tokens that the request carries: in each of the route's blocks, the first in the
/// order of `auth.carriers`. One over `limits.token_max` bytes is malformed, whatever it says.
pub fn by_request<'s>(
    settings: &Settings,
    route: &Route,
    request: &UpgradeRequest<'_, '_>,
    now: UnixTime,
    scratch: &'s mut Scratch,
) -> Decision<'s> {
    if let Some(proof) = route.no_authentication {
        return Decision::Accepted(proof.identity());
    }
    let (blocks, visitor, mut check) = scratch.parts(settings, now);
    let mut refused = Cause::TokenMissing;
    for ((&index, auth), scratch) in asked(settings, route).zip(blocks.iter_mut()) {
        let BlockScratch { carried, claims } = scratch;
        let Some(verifier) = auth.kind.verifier() else {
            match each_credential(auth, request, check.token_max, carried, |_| {}) {
                Ok(0) => continue,
                Ok(_) => return Decision::Ask(index),
                Err(cause) => return Decision::Refused(cause.into()),
            }
        };
        let found = match carrier::find(&auth.carriers, request, carried) {
            Ok(Some(found)) => found,
            Ok(None) => continue,
            // Two tokens, or a broken carrier: the server behind the gateway might read another
            // token than the gateway.
            Err(cause) => return Decision::Refused(cause.into()),
        };
        // A browser sends cookies along with any page's request, so a cookie counts only beside
        // an Origin, which the route has checked by now.
        if is_cookie(auth, &found) && request.origin().is_none() {
            return Decision::Refused(Cause::ForbiddenOrigin.into());
        }
        let mut csrf = [0; MASKED_BYTES];
        let csrf = csrf_parameter(verifier, request, &mut csrf);
        match check.verify(verifier, found.token(), csrf, claims) {
            Ok(identity) => return Decision::Accepted(identity),
            // There is a credential, so only a session without a user is a visitor's.
            Err(Refusal { cause: Cause::TokenMissing, .. }) if route.visitors.is_some() => {
                if let Err(cause) = verifier.check_visitor(found.token(), csrf, visitor) {
                    return Decision::Refused(cause.into());
                }
            }
            Err(refusal) if falls_through(refusal.cause) => {
                refused = first_telling(refused, refusal.cause);
            }
            Err(refusal) => return Decision::Refused(refusal),
        }
    }
    if settings.auths_of(route).any(|auth| matches!(auth.kind, AuthKind::Upstream(_))) {
        return Decision::AskServer;
    }
    let may_come = |auth: &Auth| auth.carriers.iter().any(Carrier::is_first_message);
    if refused == Cause::TokenMissing && settings.auths_of(route).any(may_come) {
        return Decision::AwaitFirstMessage;
    }
    match route.visitors {
        Some(welcome) if refused == Cause::TokenMissing => Decision::Accepted(welcome.identity()),
        _ => Decision::Refused(refused.into()),
    }
}

/// Judges the token in a client's first message.
pub fn by_first_message<'s>(
    settings: &Settings,
    route: &Route,
    message: &[u8],
    now: UnixTime,
    scratch: &'s mut Scratch,
) -> Decision<'s> {
    let (blocks, _, mut check) = scratch.parts(settings, now);
    let mut refused = Cause::TokenMissing;
    for ((&index, auth), scratch) in asked(settings, route).zip(blocks.iter_mut()) {
        let BlockScratch { carried, claims } = scratch;
        let token = match carried_by_message(auth, message, carried) {
            Ok((_, token)) if token.len() > usize::from(check.token_max) => {
                refused = first_telling(refused, Cause::TokenMalformed);
                continue;
            }
            Ok((_, token)) => token,
            Err(cause) => {
                refused = first_telling(refused, cause);
                continue;
            }
        };
        let Some(verifier) = auth.kind.verifier() else { return Decision::Ask(index) };
        match check.verify(verifier, token, None, claims) {
            Ok(identity) => return Decision::Accepted(identity),
            Err(refusal) if falls_through(refusal.cause) => {
                refused = first_telling(refused, refusal.cause);
            }
            Err(refusal) => return Decision::Refused(refusal),
        }
    }
    Decision::Refused(refused.into())
}

/// Judges the token in a message with which an open client renews its identity.
pub fn by_open_client<'s>(
    settings: &Settings,
    pattern: &Reauthenticate,
    message: &[u8],
    now: UnixTime,
    scratch: &'s mut Scratch,
) -> Decision<'s> {
    let (blocks, _, mut check) = scratch.parts(settings, now);
    // The blocks that the client dealt with before: a reload may have taken some away, and the
    // client has to come again then.
    let mut refused = Cause::GoingAway;
    for (name, scratch) in pattern.auths.iter().zip(blocks.iter_mut()) {
        // A decision of another program takes time, and an open client is not held up for it:
        // that program ends identities by itself.
        let mut named = settings.auths.iter().filter(|auth| auth.name == *name);
        let Some(verifier) = named.find_map(|auth| auth.kind.verifier()) else { continue };
        let BlockScratch { carried, claims } = scratch;
        let token = match carrier::first_message_token(&pattern.token, message, carried) {
            Ok(token) => token,
            // The same for every block.
            Err(cause) => return Decision::Refused(cause.into()),
        };
        match check.verify(verifier, token, None, claims) {
            Ok(identity) => return Decision::Accepted(identity),
            Err(Refusal { cause, .. }) if falls_through(cause) => {
                refused = if refused == Cause::GoingAway { cause } else { refused };
            }
            Err(refusal) => return Decision::Refused(refusal),
        }
    }
    Decision::Refused(refused.into())
}

/// The route's blocks with their indices.
fn asked<'s>(
    settings: &'s Settings,
    route: &'s Route,
) -> impl Iterator<Item = (&'s u16, &'s Auth)> {
    route.auths.iter().zip(settings.auths_of(route))
}

/// Hands out every credential that the request carries for this block, in the order of its
/// carriers, and counts them.
///
/// # Errors
/// [`Cause::TokenMalformed`] for a broken carrier or a token over `token_max` bytes,
/// [`Cause::ForbiddenOrigin`] when there are only cookies, and no Origin beside them.
pub(super) fn each_credential(
    auth: &Auth,
    request: &UpgradeRequest<'_, '_>,
    token_max: u16,
    scratch: &mut CarrierScratch,
    mut each: impl FnMut(Credential<'_>),
) -> Result<usize, Cause> {
    let (mut count, mut lone_cookie) = (0, false);
    for carrier in &auth.carriers {
        let found = carrier::find(std::slice::from_ref(carrier), request, scratch)?;
        let Some(found) = found else { continue };
        if found.token().len() > usize::from(token_max) {
            return Err(Cause::TokenMalformed);
        }
        if matches!(carrier, Carrier::Cookie(_)) && request.origin().is_none() {
            lone_cookie = true;
            continue;
        }
        let name = credential_name(carrier);
        let carrier = credential_carrier(carrier);
        each(Credential { carrier, name: &name, token: found.token() });
        count += 1;
    }
    if count == 0 && lone_cookie { Err(Cause::ForbiddenOrigin) } else { Ok(count) }
}

/// Hands out the credential in a first message; false when there is none.
pub(super) fn message_credential(
    auth: &Auth,
    message: &[u8],
    scratch: &mut CarrierScratch,
    each: impl FnOnce(Credential<'_>),
) -> bool {
    let Ok((carrier, token)) = carried_by_message(auth, message, scratch) else { return false };
    let name = credential_name(carrier);
    each(Credential { carrier: CredentialCarrier::FirstMessage, name: &name, token });
    true
}

fn credential_carrier(carrier: &Carrier) -> CredentialCarrier {
    match carrier {
        Carrier::Authorization => CredentialCarrier::Authorization,
        Carrier::Subprotocol => CredentialCarrier::Subprotocol,
        Carrier::Cookie(_) => CredentialCarrier::Cookie,
        Carrier::Header(_) => CredentialCarrier::Header,
        Carrier::Query(_) => CredentialCarrier::Query,
        Carrier::FirstMessage | Carrier::FirstMessageJson(_) => CredentialCarrier::FirstMessage,
    }
}

fn credential_name(carrier: &Carrier) -> Cow<'_, str> {
    match carrier {
        Carrier::Cookie(name) | Carrier::Header(name) | Carrier::Query(name) => name.into(),
        Carrier::FirstMessageJson(path) => path.join(".").into(),
        Carrier::Authorization | Carrier::Subprotocol | Carrier::FirstMessage => "".into(),
    }
}

/// The first cause that says more than "none there".
fn first_telling(earlier: Cause, cause: Cause) -> Cause {
    if earlier == Cause::TokenMissing { cause } else { earlier }
}

/// The token of the first of the block's carriers that finds one in the message.
fn carried_by_message<'a, 't>(
    auth: &'a Auth,
    message: &'t [u8],
    scratch: &'t mut CarrierScratch,
) -> Result<(&'a Carrier, &'t [u8]), Cause> {
    let mut carriers = auth.carriers.iter().filter(|carrier| carrier.is_first_message());
    let holds =
        |carrier: &&Carrier| carrier::first_message_token(carrier, message, &mut *scratch).is_ok();
    match carriers.clone().find(holds).or_else(|| carriers.next()) {
        Some(carrier) => Ok((carrier, carrier::first_message_token(carrier, message, scratch)?)),
        None => Err(Cause::TokenMissing),
    }
}

fn is_cookie(auth: &Auth, found: &Found<'_>) -> bool {
    matches!(auth.carriers[found.carrier()], Carrier::Cookie(_))
}

/// The parameter that goes with a session; `None` when it is not asked for, either.
fn csrf_parameter<'o>(
    verifier: &Verifier,
    request: &UpgradeRequest<'_, '_>,
    out: &'o mut [u8],
) -> Option<&'o [u8]> {
    verifier.asks_csrf().then(|| carrier::query_parameter(request, CSRF_NAME, out)).flatten()
}
