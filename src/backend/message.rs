//! What an author handles: messages, identities, and how sessions end.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use crate::base::time::UnixTime;
use crate::protocol::link::{Close, Closer, Open, Reauth};

/// One whole WebSocket message. Clones share the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A text message.
    Text(Arc<str>),
    /// A binary message.
    Binary(Bytes),
}

impl Message {
    /// A text message.
    pub fn text(text: impl Into<Arc<str>>) -> Self {
        Message::Text(text.into())
    }

    /// A binary message.
    pub fn binary(bytes: impl Into<Bytes>) -> Self {
        Message::Binary(bytes.into())
    }

    /// The text, unless the message is binary.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Message::Text(text) => Some(text),
            Message::Binary(_) => None,
        }
    }

    /// The message without its ownership.
    pub fn borrowed(&self) -> MessageRef<'_> {
        match self {
            Message::Text(text) => MessageRef::Text(text),
            Message::Binary(bytes) => MessageRef::Binary(bytes),
        }
    }
}

impl From<&str> for Message {
    fn from(text: &str) -> Self {
        Message::Text(text.into())
    }
}

impl From<String> for Message {
    fn from(text: String) -> Self {
        Message::Text(text.into())
    }
}

/// One whole WebSocket message in a borrowed buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageRef<'a> {
    /// A text message.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
}

impl<'a> MessageRef<'a> {
    /// The payload.
    pub fn bytes(self) -> &'a [u8] {
        match self {
            MessageRef::Text(text) => text.as_bytes(),
            MessageRef::Binary(bytes) => bytes,
        }
    }

    /// Whether the message is text.
    pub fn is_text(self) -> bool {
        matches!(self, MessageRef::Text(_))
    }

    /// A copy that owns its bytes.
    pub fn to_message(self) -> Message {
        match self {
            MessageRef::Text(text) => Message::Text(text.into()),
            MessageRef::Binary(bytes) => Message::Binary(Bytes::copy_from_slice(bytes)),
        }
    }
}

/// Who a client is and what it asked for, as the gateway verified it.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// Whom the token names (`sub` of a JWT); `None` on a route without authentication.
    pub subject: Option<String>,
    /// The token's own id (`jti`).
    pub token_id: Option<String>,
    /// When the token's time is over.
    pub expires: Option<UnixTime>,
    /// The token's claims as they stood in it: the JSON of a JWT. May be empty.
    pub claims: Bytes,
    /// Path and query of the request, with tokens removed.
    pub path: String,
    /// Index of the route in the gateway's settings. It changes when routes are added or moved;
    /// `route_name` does not.
    pub route: u16,
    /// What the gateway's settings call the route: its `name`, or its path as written there.
    pub route_name: String,
    /// The connection as the gateway's close line names it (`connection`): put it into your own log.
    /// Empty when the gateway does not tell it.
    pub connection: String,
    /// The client's address as the gateway sees it.
    pub remote: Option<SocketAddr>,
    /// The subprotocol that was agreed on.
    pub subprotocol: Option<String>,
    /// The page's origin; the gateway has checked it.
    pub origin: Option<String>,
    /// The request headers that the route forwards; names in lower case.
    pub headers: Vec<(String, Bytes)>,
}

impl Identity {
    /// The first header with this lower-case name, if it is there and is UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(known, _)| known == name)?;
        std::str::from_utf8(value).ok()
    }

    pub(super) fn from_open(open: &Open<'_>) -> Self {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Identity {
            subject: owned(open.subject),
            token_id: owned(open.token_id),
            expires: open.expires,
            claims: Bytes::copy_from_slice(open.claims),
            path: open.path.to_owned(),
            route: open.route,
            route_name: open.route_name.to_owned(),
            connection: open.connection.map(|it| format!("{it:016x}")).unwrap_or_default(),
            remote: open.remote,
            subprotocol: owned(open.subprotocol),
            origin: owned(open.origin),
            headers: open
                .headers
                .iter()
                .map(|(name, value)| (name.to_owned(), Bytes::copy_from_slice(value)))
                .collect(),
        }
    }
}

/// What a fresh token of a client's says; its subject is the same as before.
#[derive(Clone, PartialEq, Eq)]
pub struct Renewal {
    /// The token's own id (`jti`).
    pub token_id: Option<String>,
    /// When the token's time is over.
    pub expires: Option<UnixTime>,
    /// The token's claims as they stood in it. They may permit more than before, or less.
    pub claims: Bytes,
}

impl Renewal {
    pub(super) fn from_reauth(reauth: &Reauth<'_>) -> Self {
        Renewal {
            token_id: reauth.token_id.map(str::to_owned),
            expires: reauth.expires,
            claims: Bytes::copy_from_slice(reauth.claims),
        }
    }
}

impl std::fmt::Debug for Renewal {
    /// Claims may hold secrets, so they are not shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Renewal").field("expires", &self.expires).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Identity {
    /// Claims and headers may hold secrets, so they are not shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("subject", &self.subject)
            .field("route", &self.route_name)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

/// Who ended a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// The client closed, or went.
    Client,
    /// The gateway closed: a deadline, a limit, a drain.
    Gateway,
    /// This program closed.
    Backend,
    /// The link was lost. The client may live on elsewhere; nothing more is known of it.
    Link,
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Who ended it.
    pub by: EndedBy,
    /// The gateway's label for the cause, as in `client_closed` or `slow_consumer`;
    /// `link_lost` when the link went.
    pub cause: String,
    /// WebSocket close code; 0 when there was none.
    pub code: u16,
    /// The reason that came with the code, or why the link was lost.
    pub reason: String,
}

impl Ended {
    pub(super) fn from_close(close: &Close<'_>) -> Self {
        let by = match close.by {
            Closer::Client => EndedBy::Client,
            Closer::Gateway => EndedBy::Gateway,
            Closer::Backend => EndedBy::Backend,
        };
        Ended {
            by,
            cause: close.label.to_owned(),
            code: close.code,
            reason: close.reason.to_owned(),
        }
    }

    pub(super) fn link_lost(reason: &str) -> Self {
        Ended { by: EndedBy::Link, cause: "link_lost".into(), code: 0, reason: reason.into() }
    }
}

/// Why the gateway cannot be told something about an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TellError {
    /// The session has ended, or there is no link.
    #[error("the session is closed, or no gateway is connected")]
    Closed,
    /// The gateway is older than this.
    #[error("the gateway does not know of expiries and revocations; upgrade it")]
    Unsupported,
    /// The gateway does not read: so much waits for it already.
    #[error("the gateway does not read; try again later")]
    Full,
}

/// Why a message could not be sent. The message is not sent, not even in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The session has ended, or this side has closed it.
    #[error("the session is closed; ask Session::ended for the cause")]
    Closed,
    /// The client reads too slowly: an earlier message still waits for credit. Only for
    /// `try_send`; close the session, drop the message knowingly, or use `send`.
    #[error("an earlier message still waits for the client; close the session or use `send`")]
    Full,
    /// The gateway takes no message as large as this.
    #[error("message of {bytes} bytes is over the gateway's message_max of {limit}")]
    TooLarge {
        /// The message's length in bytes.
        bytes: usize,
        /// The gateway's limit in bytes.
        limit: u32,
    },
}
