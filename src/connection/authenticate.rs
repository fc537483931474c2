//! Which carrier holds a token, and what the token is worth.
//!
//! A route names one or more `[[auth]]` blocks. They are asked in that order: a block that finds
//! no token, or one that it has not signed, gives way to the next. What a block did sign, it
//! judges for good, so that an expired token is never "unknown" to somebody else.

use crate::base::time::UnixTime;
use crate::protocol::carrier::{self, Carrier, CarrierScratch, Found};
use crate::protocol::cause::Cause;
use crate::protocol::dead_tokens::DeadTokens;
use crate::protocol::http_upgrade::UpgradeRequest;
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::plug_session::{CSRF_NAME, MASKED_BYTES};
use crate::protocol::scratch::TokenScratch;
use crate::settings::{Auth, AuthKind, ROUTE_AUTHS_MAX, Route, Settings};

/// What one worker verifies tokens with, made once.
pub struct Scratch {
    /// Room to decode tokens in: one for each block of a route, because the identity borrows
    /// from it.
    blocks: Box<[BlockScratch; ROUTE_AUTHS_MAX]>,
    dead: DeadTokens,
    /// Tokens that [`Scratch::take_dead_hits`] has not told of yet.
    dead_hits: u64,
}

#[derive(Default)]
struct BlockScratch {
    carried: CarrierScratch,
    claims: TokenScratch,
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch::new(DeadTokens::new(0, [0; 16]))
    }
}

impl Scratch {
    /// Allocates the buffers. `dead` remembers what was refused for good.
    pub fn new(dead: DeadTokens) -> Self {
        let blocks = Box::new(std::array::from_fn(|_| BlockScratch::default()));
        Scratch { blocks, dead, dead_hits: 0 }
    }

    /// How many tokens were refused from memory since this was last asked.
    pub fn take_dead_hits(&mut self) -> u64 {
        std::mem::take(&mut self.dead_hits)
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
    let Scratch { blocks, dead, dead_hits } = scratch;
    let mut desk = Desk { token_max: settings.limits.token_max, now, dead, dead_hits };
    let mut refused = Cause::TokenMissing;
    for (auth, scratch) in settings.auths_of(route).zip(blocks.iter_mut()) {
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
            let mut csrf = [0; MASKED_BYTES];
            let csrf = csrf_parameter(auth, request, &mut csrf);
            desk.verify(auth, found.token(), csrf, claims)
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
    let Scratch { blocks, dead, dead_hits } = scratch;
    let mut desk = Desk { token_max: settings.limits.token_max, now, dead, dead_hits };
    let mut refused = Cause::TokenMissing;
    for (auth, scratch) in settings.auths_of(route).zip(blocks.iter_mut()) {
        let BlockScratch { carried, claims } = scratch;
        let token = match carried_by_message(auth, message, carried) {
            Ok(token) => token,
            Err(cause) => {
                refused = first_telling(refused, cause);
                continue;
            }
        };
        match desk.verify(auth, token, None, claims) {
            Ok(identity) => return Verdict::Accepted(identity),
            Err(cause) if gives_way(cause) => refused = first_telling(refused, cause),
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

/// The parameter that goes with a session; `None` when it is not asked for, either.
fn csrf_parameter<'o>(
    auth: &Auth,
    request: &UpgradeRequest<'_, '_>,
    out: &'o mut [u8],
) -> Option<&'o [u8]> {
    match &auth.kind {
        AuthKind::PlugSession(verifier) if verifier.asks_csrf() => {
            carrier::query_parameter(request, CSRF_NAME, out)
        }
        _ => None,
    }
}

/// What every token is judged by, whichever block it is for.
struct Desk<'d> {
    token_max: u16,
    now: UnixTime,
    dead: &'d mut DeadTokens,
    dead_hits: &'d mut u64,
}

impl Desk<'_> {
    fn verify<'s>(
        &mut self,
        auth: &Auth,
        token: &[u8],
        csrf: Option<&[u8]>,
        scratch: &'s mut TokenScratch,
    ) -> Result<VerifiedIdentity<'s>, Cause> {
        if token.len() > usize::from(self.token_max) {
            return Err(Cause::TokenMalformed);
        }
        let key = self.dead.key(&auth.fingerprint, token);
        if let Some(cause) = key.and_then(|key| self.dead.find(key, self.now)) {
            *self.dead_hits += 1;
            return Err(cause);
        }
        let verdict = auth.kind.verify(token, csrf, self.now, scratch);
        if let (Some(key), Err(cause)) = (key, &verdict) {
            self.dead.insert(key, *cause);
        }
        verdict
    }
}
