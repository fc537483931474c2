//! Which carrier holds a token, and what the token is worth.

use crate::base::time::UnixTime;
use crate::protocol::carrier::{self, Carrier, TokenScratch};
use crate::protocol::cause::Cause;
use crate::protocol::http_upgrade::UpgradeRequest;
use crate::protocol::identity::VerifiedIdentity;
use crate::settings::{Auth, AuthKind};

/// What a request is worth.
pub enum Verdict<'s> {
    /// The token is good.
    Accepted(VerifiedIdentity<'s>),
    /// No token yet, but the first message may bring it.
    AwaitFirstMessage,
    /// The token is bad, or there is none and none may come.
    Refused(Cause),
}

/// Judges the first token that the request carries, in the order of `auth.carriers`.
pub fn by_request<'s>(
    auth: &Auth,
    request: &UpgradeRequest<'_, '_>,
    now: UnixTime,
    scratch: &'s mut TokenScratch,
) -> Verdict<'s> {
    for carrier in &auth.carriers {
        match carrier::find(carrier, request, &mut scratch.carried) {
            Ok(None) => {}
            Ok(Some(token)) => return verify(auth, token, now, &mut scratch.claims),
            Err(cause) => return Verdict::Refused(cause),
        }
    }
    if auth.carriers.iter().any(awaits_message) {
        Verdict::AwaitFirstMessage
    } else {
        Verdict::Refused(Cause::TokenMissing)
    }
}

/// Judges the token in a client's first message.
pub fn by_first_message<'s>(
    auth: &Auth,
    message: &[u8],
    now: UnixTime,
    scratch: &'s mut TokenScratch,
) -> Verdict<'s> {
    for carrier in auth.carriers.iter().filter(|carrier| awaits_message(carrier)) {
        match carrier::first_message_token(carrier, message, &mut scratch.carried) {
            Ok(None) => {}
            Ok(Some(token)) => return verify(auth, token, now, &mut scratch.claims),
            Err(cause) => return Verdict::Refused(cause),
        }
    }
    Verdict::Refused(Cause::TokenMissing)
}

fn awaits_message(carrier: &Carrier) -> bool {
    matches!(carrier, Carrier::FirstMessage | Carrier::FirstMessageJson(_))
}

fn verify<'s>(
    auth: &Auth,
    token: &[u8],
    now: UnixTime,
    scratch: &'s mut crate::protocol::jwt::TokenScratch,
) -> Verdict<'s> {
    let AuthKind::Jwt(verifier) = &auth.kind;
    match verifier.verify(token, now, scratch) {
        Ok(identity) => Verdict::Accepted(identity),
        Err(cause) => Verdict::Refused(cause),
    }
}
