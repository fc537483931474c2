//! The opening handshake with a WebSocket server (RFC 6455 §4.1), with the gateway as the client.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::connection::session::SessionIdentity;
use crate::protocol::cause::Cause;
use crate::protocol::host::Site;
use crate::protocol::http_upgrade::{UpgradeRequest, accept_key};
use crate::settings::{Route, WebSocketBackend};

/// Longest head of an answer.
const HEAD_MAX: usize = 16 * 1024;
/// Most fields of an answer.
const FIELDS_MAX: usize = 64;

/// What a server is asked, and as much of its answer as has come. It has no `Debug`: the request
/// holds credentials.
pub struct Handshake {
    request: Vec<u8>,
    key: [u8; 24],
    /// What the client offered, entries with tokens included.
    offered: Vec<String>,
    answer: Vec<u8>,
}

/// What a server's answer came to.
pub enum Answered {
    /// Its head is not whole.
    NeedMore,
    /// It takes the client: a proper 101. Frames follow the `used` bytes.
    Accepted(Accepted),
    /// It does not.
    Refused(Refused),
    /// It is no answer to this request.
    Broken(Fault),
}

/// That a server has accepted a client: made of a proper 101 alone.
pub struct Accepted {
    subprotocol: Option<String>,
    cookies: Vec<Vec<u8>>,
}

impl Accepted {
    /// The subprotocol that the server chose, one that the client offered.
    pub fn subprotocol(&self) -> Option<&str> {
        self.subprotocol.as_deref()
    }

    /// The values of its Set-Cookie fields.
    pub fn cookies(&self) -> &[Vec<u8>] {
        &self.cookies
    }
}

/// Why a client is not taken, as it is to hear it.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Why.
    pub cause: Cause,
    /// The status that the server answered with.
    pub status: Option<u16>,
    /// When to come again.
    pub retry_after: Option<Duration>,
    /// The close frame's reason; empty leaves it to the dialect.
    pub reason: String,
}

impl Refused {
    /// No server answered.
    pub fn unavailable() -> Self {
        Refused {
            cause: Cause::BackendUnavailable,
            status: None,
            retry_after: None,
            reason: String::new(),
        }
    }
}

/// What was wrong with a server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No connection.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// No connection in time.
    #[error("no connection in time")]
    ConnectTimedOut,
    /// No answer in time.
    #[error("no answer to the handshake in time")]
    AnswerTimedOut,
    /// The connection ended before the answer.
    #[error("closed before it answered the handshake")]
    ClosedEarly,
    /// Not an HTTP answer.
    #[error("the answer is not HTTP/1.1")]
    Malformed,
    /// The head has no end.
    #[error("the head of the answer is too long")]
    HeadTooLong,
    /// A 101 without the right Sec-WebSocket-Accept.
    #[error("the 101 has a wrong Sec-WebSocket-Accept")]
    WrongAccept,
    /// A 101 without `Upgrade: websocket` and `Connection: Upgrade`.
    #[error("the 101 does not upgrade to WebSocket")]
    NotUpgraded,
    /// A subprotocol that was not offered, or two.
    #[error("the 101 names a subprotocol that was not offered")]
    Subprotocol,
    /// An extension that was not offered.
    #[error("the 101 names an extension that was not offered")]
    Extension,
    /// The gateway's own want of memory.
    #[error("no room for the request")]
    NoRoom,
}

impl Fault {
    /// Whether it says something about the server (`settled`: no status does).
    pub fn is_servers(&self) -> bool {
        !matches!(self, Fault::NoRoom)
    }

    /// Whether another server may do better with the same request.
    pub fn is_worth_another(&self) -> bool {
        matches!(self, Fault::Connect(_) | Fault::ConnectTimedOut | Fault::ClosedEarly)
    }
}

impl Handshake {
    /// What the server of a route's backend is asked for this client.
    pub fn new(
        request: &UpgradeRequest<'_, '_>,
        (_route, _server): (&Route, &WebSocketBackend),
        site: Site<'_>,
        (peer, _from_proxy): (Option<SocketAddr>, bool),
        _identity: Option<&SessionIdentity<'_>>,
        nonce: [u8; 16],
    ) -> Self {
        let mut key = [0; 24];
        let length = STANDARD.encode_slice(nonce, &mut key);
        debug_assert_eq!(length, Ok(24));
        let mut head = Vec::with_capacity(1024);
        head.extend_from_slice(b"GET ");
        head.extend_from_slice(request.path().as_bytes());
        if let Some(query) = request.query() {
            head.push(b'?');
            head.extend_from_slice(query.as_bytes());
        }
        head.extend_from_slice(b" HTTP/1.1\r\n");
        let mut field = |name: &str, value: &[u8]| {
            head.extend_from_slice(name.as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value);
            head.extend_from_slice(b"\r\n");
        };
        for (name, value) in request.fields() {
            let removed =
                ["connection", "upgrade", "sec-websocket-key", "sec-websocket-extensions"];
            if !removed.iter().any(|removed| name.eq_ignore_ascii_case(removed)) {
                field(name, value);
            }
        }
        field("Connection", b"Upgrade");
        field("Upgrade", b"websocket");
        field("Sec-WebSocket-Key", &key);
        field("X-Forwarded-Proto", site.scheme().as_bytes());
        if let Some(peer) = peer {
            field("X-Forwarded-For", peer.ip().to_string().as_bytes());
        }
        head.extend_from_slice(b"\r\n");
        let offered = request.subprotocols().map(str::to_owned).collect();
        Handshake { request: head, key, offered, answer: Vec::new() }
    }

    /// The request's head.
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// The same for another server.
    pub fn again(mut self) -> Self {
        self.answer.clear();
        self
    }

    /// Takes what the server sent; returns how many bytes of `input` belong to its head, all of
    /// them while that is not whole.
    pub fn receive(&mut self, input: &[u8]) -> (usize, Answered) {
        let before = self.answer.len();
        self.answer.extend_from_slice(input);
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut response = httparse::Response::new(&mut fields);
        let end = match response.parse(&self.answer) {
            Ok(httparse::Status::Complete(end)) => end,
            Ok(httparse::Status::Partial) if self.answer.len() > HEAD_MAX => {
                return (input.len(), Answered::Broken(Fault::HeadTooLong));
            }
            Ok(httparse::Status::Partial) => return (input.len(), Answered::NeedMore),
            Err(_) => return (input.len(), Answered::Broken(Fault::Malformed)),
        };
        (end - before.min(end), self.judge(&response))
    }

    fn judge(&self, response: &httparse::Response<'_, '_>) -> Answered {
        let all = |name: &'static str| {
            response.headers.iter().filter(move |field| field.name.eq_ignore_ascii_case(name))
        };
        match response.code {
            Some(101) => {}
            Some(status) => return Answered::Refused(refused(status)),
            None => return Answered::Broken(Fault::Malformed),
        }
        let is = |name, value: &str| {
            all(name).any(|field| field.value.eq_ignore_ascii_case(value.as_bytes()))
        };
        if !is("upgrade", "websocket") || !is("connection", "upgrade") {
            return Answered::Broken(Fault::NotUpgraded);
        }
        let accept = accept_key(&self.key);
        let mut accepts = all("sec-websocket-accept");
        if accepts.next().is_none_or(|field| field.value != accept) || accepts.next().is_some() {
            return Answered::Broken(Fault::WrongAccept);
        }
        if all("sec-websocket-extensions").next().is_some() {
            return Answered::Broken(Fault::Extension);
        }
        let mut chosen = all("sec-websocket-protocol");
        let subprotocol = match (chosen.next(), chosen.next()) {
            (None, _) => None,
            (Some(field), None) => {
                let offer = self.offered.iter().find(|offer| offer.as_bytes() == field.value);
                match offer {
                    Some(offer) => Some(offer.clone()),
                    None => return Answered::Broken(Fault::Subprotocol),
                }
            }
            (Some(_), Some(_)) => return Answered::Broken(Fault::Subprotocol),
        };
        let cookies = all("set-cookie").map(|field| field.value.to_vec()).collect();
        Answered::Accepted(Accepted { subprotocol, cookies })
    }
}

fn refused(status: u16) -> Refused {
    let cause = match status {
        401 => Cause::BadSignature,
        403 => Cause::TokenForbidden,
        _ => Cause::BackendUnavailable,
    };
    Refused { cause, status: Some(status), retry_after: None, reason: String::new() }
}
