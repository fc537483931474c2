//! For backends that decide who a client is (`kind = "backend"` in the gateway's settings).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::message::Identity;
use crate::base::secret::Secret;
use crate::base::time::UnixTime;
pub use crate::protocol::cause::Cause;
pub use crate::protocol::link::CredentialCarrier;
use crate::protocol::link::{Accept, Auth, Reject, SessionId};

/// A client that shows credentials: the gateway asks who it is.
pub struct Question {
    request: Identity,
    credentials: Vec<ShownCredential>,
}

/// One credential that a client showed. Its token cannot be printed.
pub struct ShownCredential {
    /// Where it was found.
    pub carrier: CredentialCarrier,
    /// Name of the cookie, header field or parameter; path in a first message; else empty.
    pub name: String,
    token: Secret,
}

impl ShownCredential {
    /// The token's bytes. Never log them.
    pub fn token(&self) -> &[u8] {
        self.token.expose()
    }
}

impl Question {
    pub(super) fn from_auth(auth: &Auth<'_>) -> Self {
        let credentials = auth
            .credentials()
            .map(|credential| ShownCredential {
                carrier: credential.carrier,
                name: credential.name.to_owned(),
                token: Secret::new(credential.token.to_vec()),
            })
            .collect();
        Question { request: Identity::from_open(&auth.open), credentials }
    }

    /// What the client asked for; no subject yet.
    pub fn request(&self) -> &Identity {
        &self.request
    }

    /// Everything that the client showed, in the order of the gateway's settings; at least one.
    pub fn credentials(&self) -> &[ShownCredential] {
        &self.credentials
    }

    /// The first credential's token. Never log it.
    pub fn token(&self) -> &[u8] {
        self.credentials.first().map_or(b"", ShownCredential::token)
    }
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The session opens.
    Accept(Accepted),
    /// The client is turned away.
    Reject(Rejected),
}

impl Decision {
    /// The client is this one. Convert it with `into()` once it says all it should.
    pub fn accept(subject: impl Into<String>) -> Accepted {
        Accepted {
            subject: subject.into(),
            token_id: None,
            issued_at: None,
            expires: None,
            claims: Bytes::new(),
        }
    }

    /// No, for this cause: one of those that a verdict may give
    /// ([`Cause::BackendUnavailable`] stands for every other).
    pub fn reject(cause: Cause) -> Rejected {
        Rejected { cause, retry_after: None, message: String::new() }
    }
}

impl From<Accepted> for Decision {
    fn from(accepted: Accepted) -> Self {
        Decision::Accept(accepted)
    }
}

impl From<Rejected> for Decision {
    fn from(rejected: Rejected) -> Self {
        Decision::Reject(rejected)
    }
}

/// Who a client is.
#[derive(Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Its name: 1 to 1,024 bytes.
    pub subject: String,
    /// The token's own id, by which it can be revoked: at most 1,024 bytes.
    pub token_id: Option<String>,
    /// When the token was made.
    pub issued_at: Option<UnixTime>,
    /// When the gateway must end the session; not in the past.
    pub expires: Option<UnixTime>,
    /// What else is known: at most 8 KiB.
    pub claims: Bytes,
}

impl Accepted {
    /// The token's own id.
    pub fn token_id(mut self, id: impl Into<String>) -> Self {
        self.token_id = Some(id.into());
        self
    }

    /// When the session must end.
    pub fn expires(mut self, at: UnixTime) -> Self {
        self.expires = Some(at);
        self
    }

    /// What else is known.
    pub fn claims(mut self, claims: impl Into<Bytes>) -> Self {
        self.claims = claims.into();
        self
    }
}

impl std::fmt::Debug for Accepted {
    /// Claims may hold secrets, so they are not shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accepted").field("subject", &self.subject).finish_non_exhaustive()
    }
}

/// Why a client is turned away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The cause, which the gateway explains in the client's dialect.
    pub cause: Cause,
    /// When to come back: for [`Cause::OverCapacity`], [`Cause::RateLimited`] and
    /// [`Cause::BackendUnavailable`] alone; at most an hour.
    pub retry_after: Option<Duration>,
    /// A word to the client: the reason of its close frame, at most 123 bytes.
    pub message: String,
}

impl Rejected {
    /// When to come back.
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// A word to the client.
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }
}

/// Decides, perhaps after having asked others. Dropped when the client leaves meanwhile.
pub(super) type Deciding = Pin<Box<dyn Future<Output = Decision> + Send>>;
/// What the author gave to [`Builder::authenticate`](super::Builder::authenticate).
pub(super) type Authenticator = Arc<dyn Fn(Question) -> Deciding + Send + Sync>;

/// Appends the frame that says `decision`; false when the session is over by it.
pub(super) fn encode(decision: &Decision, id: SessionId, out: &mut Vec<u8>) -> bool {
    match decision {
        Decision::Accept(accepted) => {
            let accept = Accept {
                subject: &accepted.subject,
                token_id: accepted.token_id.as_deref(),
                issued_at: accepted.issued_at,
                expires: accepted.expires,
                claims: &accepted.claims,
            };
            if accept.encode(id, out) {
                return true;
            }
            tracing::error!("a client was accepted with a field out of its bounds: refused");
            unavailable(id, out);
        }
        Decision::Reject(rejected) => {
            let wait = rejected.retry_after.unwrap_or_default().as_millis();
            let reject = Reject {
                cause: rejected.cause,
                retry_after_ms: u32::try_from(wait).unwrap_or(u32::MAX),
                message: &rejected.message,
            };
            let sent =
                reject.encode(id, out) || Reject { retry_after_ms: 0, ..reject }.encode(id, out);
            if !sent {
                unavailable(id, out);
            }
        }
    }
    false
}

/// Appends the rejection for whatever went wrong on this side.
pub(super) fn unavailable(id: SessionId, out: &mut Vec<u8>) {
    let sent = Reject::new(Cause::BackendUnavailable).encode(id, out);
    debug_assert!(sent, "a cause that a verdict may give");
}
