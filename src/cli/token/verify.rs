//! Verifies a token by an `[[auth]]` of a configuration.

use portcullis::base::time::UnixTime;
use portcullis::protocol::cause::Cause;
use portcullis::protocol::scratch::TokenScratch;
use portcullis::settings::Auth;
use portcullis::settings::load::{Issuing, Loaded};

/// The `[[auth]]` called `name`, and how to make its tokens.
pub(super) fn find_auth<'l>(
    loaded: &'l Loaded,
    name: &str,
) -> Result<(&'l Auth, &'l Issuing), String> {
    let auths = &loaded.settings.auths;
    let Some(index) = auths.iter().position(|auth| auth.name == name) else {
        let names: Vec<_> = auths.iter().map(|auth| auth.name.as_str()).collect();
        return Err(format!(
            "there is no [[auth]] called {name:?}; there are: {}",
            names.join(", ")
        ));
    };
    let auth = &auths[index];
    if auth.kind.verifier().is_none() {
        return Err(format!(
            "[[auth]] {name:?} is decided outside the gateway, where its tokens are made, too"
        ));
    }
    Ok((auth, &loaded.issuing[index]))
}

pub(super) fn verify(
    auth: &Auth,
    token: &str,
    csrf: Option<&str>,
    now_s: u64,
) -> Result<(), Cause> {
    let now = UnixTime::from_seconds(now_s);
    let csrf = csrf.map(str::as_bytes);
    let verifier = auth.kind.verifier().expect("find_auth refuses the rest");
    verifier.verify(token.as_bytes(), csrf, now, &mut TokenScratch::new()).map(|_| ())
}

/// A cause for a person at a terminal, beside the label that clients and metrics use.
pub(super) fn explain(cause: Cause) -> String {
    let why = match cause {
        Cause::TokenMalformed => "it cannot be read; a fault or reason above says why",
        Cause::BadSignature => "none of the keys signed it, or not with the key's algorithm",
        Cause::TokenExpired => "it has expired",
        Cause::TokenNotYetValid => "it is not valid yet",
        Cause::TokenForbidden => {
            "it is for another issuer or audience, names no subject, or ends beyond lifetime_max"
        }
        Cause::TokenMissing => "the session has no subject: the user has not logged in",
        Cause::CsrfMismatch => "the session needs its _csrf_token beside it: --csrf",
        _ => "see docs/configuration.md",
    };
    format!("{} ({why})", cause.label())
}
