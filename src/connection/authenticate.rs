//! Which carrier holds a token, and what the token is worth.

use crate::base::time::UnixTime;
use crate::protocol::carrier::{self, Carrier, CarrierScratch, Found};
use crate::protocol::cause::Cause;
use crate::protocol::http_upgrade::UpgradeRequest;
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::jwt::TokenScratch;
use crate::settings::{Auth, AuthKind};

/// Room to decode tokens in, made once for each worker.
#[derive(Default)]
pub struct Scratch {
    carried: CarrierScratch,
    claims: TokenScratch,
}

/// What a request is worth.
pub enum Verdict<'s> {
    /// The token is good.
    Accepted(VerifiedIdentity<'s>),
    /// No token yet, but the first message may bring it.
    AwaitFirstMessage,
    /// The token is bad, or there is none and none may come.
    Refused(Cause),
}

/// Judges the first token that the request carries, in the order of `auth.carriers`. One over
/// `token_max` bytes is malformed, whatever it says.
pub fn by_request<'s>(
    auth: &Auth,
    request: &UpgradeRequest<'_, '_>,
    token_max: u16,
    now: UnixTime,
    scratch: &'s mut Scratch,
) -> Verdict<'s> {
    let Scratch { carried, claims } = scratch;
    match carrier::find(&auth.carriers, request, carried) {
        // A browser sends cookies whoever wrote the page, so a cookie counts only beside an
        // Origin, which the route has checked by now.
        Ok(Some(found)) if is_cookie(auth, &found) && request.origin().is_none() => {
            Verdict::Refused(Cause::ForbiddenOrigin)
        }
        Ok(Some(found)) => verify(auth, found.token(), token_max, now, claims),
        Ok(None) if auth.carriers.iter().any(Carrier::is_first_message) => {
            Verdict::AwaitFirstMessage
        }
        Ok(None) => Verdict::Refused(Cause::TokenMissing),
        Err(cause) => Verdict::Refused(cause),
    }
}

/// Judges the token in a client's first message.
pub fn by_first_message<'s>(
    auth: &Auth,
    message: &[u8],
    token_max: u16,
    now: UnixTime,
    scratch: &'s mut Scratch,
) -> Verdict<'s> {
    let Scratch { carried, claims } = scratch;
    let mut refused = Cause::TokenMissing;
    for carrier in auth.carriers.iter().filter(|carrier| carrier.is_first_message()) {
        match carrier::first_message_token(carrier, message, carried) {
            Ok(token) => return verify(auth, token, token_max, now, claims),
            Err(cause) => refused = cause,
        }
    }
    Verdict::Refused(refused)
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
) -> Verdict<'s> {
    if token.len() > usize::from(token_max) {
        return Verdict::Refused(Cause::TokenMalformed);
    }
    let AuthKind::Jwt(verifier) = &auth.kind;
    match verifier.verify(token, now, scratch) {
        Ok(identity) => Verdict::Accepted(identity),
        Err(cause) => Verdict::Refused(cause),
    }
}
