//! Which carrier holds a token, and what the token is worth.
//!
//! A route names one or more `[[auth]]` blocks. They are asked in that order: a block that finds
//! no token, or one that it has not signed, gives way to the next. What a block did sign, it
//! judges for good, so that an expired token is never "unknown" to somebody else.

use crate::base::time::UnixTime;
use crate::protocol::carrier::{self, Carrier, CarrierScratch, Found};
use crate::protocol::cause::Cause;
use crate::protocol::http_upgrade::UpgradeRequest;
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::jwt::TokenScratch;
use crate::settings::{Auth, AuthKind, ROUTE_AUTHS_MAX, Reauthenticate, Route, Settings};

/// Room to decode tokens in, made once for each worker: one for each block of a route, because
/// the identity borrows from it.
pub struct Scratch(Box<[BlockScratch; ROUTE_AUTHS_MAX]>);

#[derive(Default)]
struct BlockScratch {
    carried: CarrierScratch,
    claims: TokenScratch,
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch(Box::new(std::array::from_fn(|_| BlockScratch::default())))
    }
}

/// What a request is worth.
pub enum Verdict<'s> {
    /// The token is good, or none is needed.
    Accepted(VerifiedIdentity<'s>),
    /// No token yet, but the first message may bring it.
    AwaitFirstMessage,
    /// The token is bad, or there is none and none may come.
    Refused(Cause),
}

/// Judges the tokens that the request carries: in each of the route's blocks, the first in the
/// order of `auth.carriers`. One over `limits.token_max` bytes is malformed, whatever it says.
pub fn by_request<'s>(
    settings: &Settings,
    route: &Route,
    request: &UpgradeRequest<'_, '_>,
    now: UnixTime,
    scratch: &'s mut Scratch,
) -> Verdict<'s> {
    if route.auths.is_empty() {
        return Verdict::Accepted(VerifiedIdentity::anonymous());
    }
    let token_max = settings.limits.token_max;
    let mut refused = Cause::TokenMissing;
    for (auth, scratch) in settings.auths_of(route).zip(scratch.0.iter_mut()) {
        let BlockScratch { carried, claims } = scratch;
        let found = match carrier::find(&auth.carriers, request, carried) {
            Ok(Some(found)) => found,
            Ok(None) => continue,
            // Two tokens, or a broken carrier: whoever reads on might read another token than
            // the server behind us.
            Err(cause) => return Verdict::Refused(cause),
        };
        // A browser sends cookies whoever wrote the page, so a cookie counts only beside an
        // Origin, which the route has checked by now.
        let verdict = if is_cookie(auth, &found) && request.origin().is_none() {
            Err(Cause::ForbiddenOrigin)
        } else {
            verify(auth, found.token(), token_max, now, claims)
        };
        match verdict {
            Ok(identity) => return Verdict::Accepted(identity),
            Err(cause) if gives_way(cause) => refused = first_telling(refused, cause),
            Err(cause) => return Verdict::Refused(cause),
        }
    }
    let may_come = |auth: &Auth| auth.carriers.iter().any(Carrier::is_first_message);
    if refused == Cause::TokenMissing && settings.auths_of(route).any(may_come) {
        return Verdict::AwaitFirstMessage;
    }
    Verdict::Refused(refused)
}

/// Judges the token in a client's first message.
pub fn by_first_message<'s>(
    settings: &Settings,
    route: &Route,
    message: &[u8],
    now: UnixTime,
    scratch: &'s mut Scratch,
) -> Verdict<'s> {
    let token_max = settings.limits.token_max;
    let mut refused = Cause::TokenMissing;
    for (auth, scratch) in settings.auths_of(route).zip(scratch.0.iter_mut()) {
        let BlockScratch { carried, claims } = scratch;
        let token = match carried_by_message(auth, message, carried) {
            Ok(token) => token,
            Err(cause) => {
                refused = first_telling(refused, cause);
                continue;
            }
        };
        match verify(auth, token, token_max, now, claims) {
            Ok(identity) => return Verdict::Accepted(identity),
            Err(cause) if gives_way(cause) => refused = first_telling(refused, cause),
            Err(cause) => return Verdict::Refused(cause),
        }
    }
    Verdict::Refused(refused)
}

/// Judges the token in a message with which an open client renews its identity.
pub fn by_open_client<'s>(
    settings: &Settings,
    form: &Reauthenticate,
    message: &[u8],
    now: UnixTime,
    scratch: &'s mut Scratch,
) -> Verdict<'s> {
    let token_max = settings.limits.token_max;
    // The blocks that the client dealt with before: a reload may have taken some away, and the
    // client has to come again then.
    let mut refused = Cause::GoingAway;
    for (name, scratch) in form.auths.iter().zip(scratch.0.iter_mut()) {
        let Some(auth) = settings.auths.iter().find(|auth| auth.name == *name) else { continue };
        let BlockScratch { carried, claims } = scratch;
        let token = match carrier::first_message_token(&form.token, message, carried) {
            Ok(token) => token,
            // The same for every block.
            Err(cause) => return Verdict::Refused(cause),
        };
        match verify(auth, token, token_max, now, claims) {
            Ok(identity) => return Verdict::Accepted(identity),
            Err(cause) if gives_way(cause) => {
                refused = if refused == Cause::GoingAway { cause } else { refused };
            }
            Err(cause) => return Verdict::Refused(cause),
        }
    }
    Verdict::Refused(refused)
}

/// Whether a block has not signed the token at all, so that the next one may have.
fn gives_way(cause: Cause) -> bool {
    matches!(cause, Cause::TokenMissing | Cause::TokenMalformed | Cause::BadSignature)
}

/// The first cause that says more than "none there".
fn first_telling(earlier: Cause, cause: Cause) -> Cause {
    if earlier == Cause::TokenMissing { cause } else { earlier }
}

/// The token of the first of the block's carriers that finds one in the message.
fn carried_by_message<'t>(
    auth: &Auth,
    message: &'t [u8],
    scratch: &'t mut CarrierScratch,
) -> Result<&'t [u8], Cause> {
    let mut carriers = auth.carriers.iter().filter(|carrier| carrier.is_first_message());
    let holds =
        |carrier: &&Carrier| carrier::first_message_token(carrier, message, &mut *scratch).is_ok();
    match carriers.clone().find(holds).or_else(|| carriers.next()) {
        Some(carrier) => carrier::first_message_token(carrier, message, scratch),
        None => Err(Cause::TokenMissing),
    }
}

fn is_cookie(auth: &Auth, found: &Found<'_>) -> bool {
    matches!(auth.carriers[found.carrier()], Carrier::Cookie(_))
}

fn verify<'s>(
    auth: &Auth,
    token: &[u8],
    token_max: u16,
    now: UnixTime,
    scratch: &'s mut TokenScratch,
) -> Result<VerifiedIdentity<'s>, Cause> {
    if token.len() > usize::from(token_max) {
        return Err(Cause::TokenMalformed);
    }
    let AuthKind::Jwt(verifier) = &auth.kind;
    verifier.verify(token, now, scratch)
}
