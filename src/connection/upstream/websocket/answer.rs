//! The answer of a WebSocket server to the opening handshake (RFC 6455 §4.1): what it says, and what
//! that means for the client, the server and the operator.

use std::time::Duration;

use crate::protocol::cause::Cause;
use crate::protocol::http_decision;
use crate::protocol::http_upgrade::{accept_key, is_bearer_entry};

/// Most fields of an answer.
const FIELDS_MAX: usize = 64;
/// Most answers that may come before the one that counts (RFC 9110 §15.2).
const INTERIM_MAX: u8 = 4;
/// When a client may come again that met a fault which only the operator can remove.
const OPERATOR_RETRY: Duration = Duration::from_secs(30);

/// What a server's answer came to.
#[derive(Debug, PartialEq, Eq)]
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
#[derive(Debug, PartialEq, Eq)]
pub struct Accepted {
    subprotocol: Option<String>,
    cookies: Vec<Vec<u8>>,
    advice: Option<&'static str>,
}

impl Accepted {
    /// The subprotocol that the client may hear of: the server's choice, one that the client
    /// offered; in place of a token, its first other offer.
    pub fn subprotocol(&self) -> Option<&str> {
        self.subprotocol.as_deref()
    }

    /// The values of its Set-Cookie fields.
    pub fn cookies(&self) -> &[Vec<u8>] {
        &self.cookies
    }

    /// What the operator should know.
    pub fn advice(&self) -> Option<&'static str> {
        self.advice
    }
}

/// Why a client is not taken, as it is to hear it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub cause: Cause,
    /// The status that the server answered with.
    pub status: Option<u16>,
    /// When to come again.
    pub retry_after: Option<Duration>,
    /// The close frame's reason; empty leaves it to the dialect.
    pub reason: String,
    /// What the operator should look at: the answer points to a wrong configuration.
    pub advice: Option<&'static str>,
}

impl Refused {
    /// No server answered.
    pub fn unavailable() -> Self {
        Refused {
            cause: Cause::BackendUnavailable,
            status: None,
            retry_after: None,
            reason: String::new(),
            advice: None,
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
    /// No TLS with it: why, without unescaped bytes of the server's.
    #[error("TLS: {0}")]
    Tls(String),
    /// The connection ended before the end of the TLS handshake.
    #[error("closed during the TLS handshake; does the server speak TLS there?")]
    TlsClosed,
    /// No answer in time.
    #[error("no answer to the handshake in time")]
    AnswerTimedOut,
    /// The connection ended before the answer.
    #[error("closed before it answered the handshake")]
    ClosedEarly,
    /// Not an HTTP answer.
    #[error("the answer is not HTTP/1.1")]
    Malformed,
    /// A TLS record.
    #[error("the answer is TLS: write wss:// for this endpoint")]
    SpeaksTls,
    /// A frame of HTTP/2.
    #[error("the answer is HTTP/2, which this port speaks without HTTP/1.1")]
    SpeaksHttp2,
    /// The head has no end.
    #[error("the head of the answer is longer than limits.upstream_head_max")]
    HeadTooLong,
    /// Answers before the answer, without end.
    #[error("more than {INTERIM_MAX} interim answers came before the answer")]
    Interim,
    /// A 101 without the right Sec-WebSocket-Accept.
    #[error("the 101 has a wrong Sec-WebSocket-Accept")]
    WrongAccept,
    /// A 101 without `Upgrade: websocket` and `Connection: Upgrade`.
    #[error("the 101 does not upgrade to WebSocket")]
    NotUpgraded,
    /// A subprotocol that was not offered.
    #[error("the 101 names a subprotocol that was not offered")]
    Subprotocol,
    /// Two subprotocols.
    #[error("the 101 names more than one subprotocol")]
    Subprotocols,
    /// An extension that was not offered.
    #[error("the 101 names an extension that was not offered")]
    Extension,
    /// No local port is free for another connection to the server.
    #[error("no local port is free; see net.ipv4.ip_local_port_range")]
    NoPorts,
    /// The gateway has no descriptor for the connection.
    #[error("out of descriptors or memory")]
    NoDescriptors,
    /// No answer in time, which was short, or in which the server answered others.
    #[error("no answer in the time that was left")]
    Hurried,
    /// A reload removed the endpoint meanwhile.
    #[error("a reload removed the endpoint")]
    Removed,
    /// The gateway's own want of memory.
    #[error("no room for the request")]
    NoRoom,
}

impl Fault {
    /// Whether it says something about the server. No status does: otherwise a stranger whose
    /// requests it refuses could close it to all.
    pub fn is_servers(&self) -> bool {
        !matches!(
            self,
            Fault::NoRoom | Fault::NoPorts | Fault::NoDescriptors | Fault::Removed | Fault::Hurried
        )
    }

    /// Whether another server may do better with the same request.
    pub fn is_worth_another(&self) -> bool {
        matches!(
            self,
            Fault::Connect(_)
                | Fault::ConnectTimedOut
                | Fault::ClosedEarly
                | Fault::Tls(_)
                | Fault::TlsClosed
        )
    }
}

/// What an answer is compared with.
#[derive(Clone, Copy)]
pub struct Expected<'a> {
    /// The Sec-WebSocket-Key of the request.
    pub key: &'a [u8; 24],
    /// The subprotocols that the request offered, in order.
    pub offered: &'a [String],
    /// Longest head, those of interim answers included.
    pub head_max: usize,
}

/// As much of an answer's head as has come. It has no `Debug`: heads hold cookies.
#[derive(Default)]
pub struct AnswerReader {
    head: Vec<u8>,
    /// Bytes of interim answers before that.
    passed: usize,
    interim: u8,
}

impl AnswerReader {
    /// Takes what the server sent. Returns how many bytes of `input` were used: all of them, unless
    /// a whole answer has come, which ends with them.
    pub fn receive(&mut self, input: &[u8], expected: Expected<'_>) -> (usize, Answered) {
        let mut used = 0;
        loop {
            let (taken, whole) = match self.take_head(&input[used..], expected.head_max) {
                Ok(taken) => taken,
                Err(fault) => return (input.len(), Answered::Broken(fault)),
            };
            used += taken;
            if !whole {
                return (used, Answered::NeedMore);
            }
            match judge(&self.head, expected) {
                Answered::NeedMore if self.interim == INTERIM_MAX => {
                    return (used, Answered::Broken(Fault::Interim));
                }
                Answered::NeedMore => {
                    self.interim += 1;
                    self.passed += self.head.len();
                    self.head.clear();
                }
                answered => return (used, answered),
            }
        }
    }

    /// Takes bytes to the end of one head; says whether that has come.
    fn take_head(&mut self, input: &[u8], head_max: usize) -> Result<(usize, bool), Fault> {
        for (index, &byte) in input.iter().enumerate() {
            if self.passed + self.head.len() == head_max {
                return Err(Fault::HeadTooLong);
            }
            self.head.push(byte);
            if let Some(fault) = other_protocol(&self.head) {
                return Err(fault);
            }
            // A bare line feed ends a line for some, and not for others.
            if byte == b'\n' && !self.head.ends_with(b"\r\n") {
                return Err(Fault::Malformed);
            }
            if byte == b'\n' && self.head.ends_with(b"\r\n\r\n") {
                return Ok((index + 1, true));
            }
        }
        Ok((input.len(), false))
    }
}

/// What the first bytes show that are not HTTP/1: it need not be waited for more.
fn other_protocol(head: &[u8]) -> Option<Fault> {
    const HTTP: &[u8] = b"HTTP/1.";
    if head.len() > HTTP.len() || HTTP.starts_with(head) || head.starts_with(HTTP) {
        return None;
    }
    match head {
        // A record of an alert or handshake (RFC 8446 §5.1).
        [0x15 | 0x16] => None,
        [0x15 | 0x16, 3, ..] => Some(Fault::SpeaksTls),
        // The header of a SETTINGS frame: three bytes of length, type 4 (RFC 9113 §4.1).
        [0] | [0, 0] | [0, 0, _] => None,
        [0, 0, _, 4, ..] => Some(Fault::SpeaksHttp2),
        _ => Some(Fault::Malformed),
    }
}

/// Judges a whole head; [`Answered::NeedMore`] is an interim one.
fn judge(head: &[u8], expected: Expected<'_>) -> Answered {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let whole =
        matches!(response.parse(head), Ok(httparse::Status::Complete(end)) if end == head.len());
    let (true, Some(status), Some(version)) = (whole, response.code, response.version) else {
        return Answered::Broken(Fault::Malformed);
    };
    let fields = Fields(response.headers);
    match status {
        101 if version == 1 => accept(fields, expected),
        101 => Answered::Broken(Fault::NotUpgraded),
        100..=199 => Answered::NeedMore,
        200..=599 => Answered::Refused(refused(status, fields)),
        _ => Answered::Broken(Fault::Malformed),
    }
}

#[derive(Clone, Copy)]
struct Fields<'h, 'b>(&'h [httparse::Header<'b>]);

impl<'h, 'b> Fields<'h, 'b> {
    fn all(self, name: &'static str) -> impl Iterator<Item = &'b [u8]> + use<'h, 'b> {
        let named = self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value.trim_ascii())
    }

    /// The elements of all fields of this name.
    fn list(self, name: &'static str) -> impl Iterator<Item = &'b [u8]> + use<'h, 'b> {
        let parts = self.all(name).flat_map(|value| value.split(|&byte| byte == b','));
        parts.map(<[u8]>::trim_ascii).filter(|part| !part.is_empty())
    }

    /// The value of the only field of this name, if it is text.
    fn only(self, name: &'static str) -> Option<&'b str> {
        let mut values = self.all(name);
        let value = values.next().filter(|_| values.next().is_none())?;
        str::from_utf8(value).ok()
    }
}

fn accept(fields: Fields<'_, '_>, expected: Expected<'_>) -> Answered {
    let is =
        |name, own: &str| fields.list(name).any(|value| value.eq_ignore_ascii_case(own.as_bytes()));
    let mut upgrades = fields.list("upgrade");
    let is_websocket = upgrades.next().is_some_and(|to| to.eq_ignore_ascii_case(b"websocket"))
        && upgrades.next().is_none();
    if !is_websocket || !is("connection", "upgrade") {
        return Answered::Broken(Fault::NotUpgraded);
    }
    let mut accepts = fields.all("sec-websocket-accept");
    let right = accepts.next().is_some_and(|value| value == accept_key(expected.key));
    if !right || accepts.next().is_some() {
        return Answered::Broken(Fault::WrongAccept);
    }
    if fields.list("sec-websocket-extensions").next().is_some() {
        return Answered::Broken(Fault::Extension);
    }
    let mut chosen = fields.list("sec-websocket-protocol");
    let (first, second) = (chosen.next(), chosen.next());
    if second.is_some() {
        return Answered::Broken(Fault::Subprotocols);
    }
    let is_offered = |choice: &[u8]| expected.offered.iter().any(|own| own.as_bytes() == choice);
    let (subprotocol, advice) = match first {
        None => (None, None),
        Some(choice) if !is_offered(choice) => return Answered::Broken(Fault::Subprotocol),
        Some(choice) if is_bearer_entry(choice) => {
            let mut offers = expected.offered.iter();
            let other = offers.find(|own| !is_bearer_entry(own.as_bytes()));
            let advice = "the server selected the subprotocol that carries the token, which no client \
                          is answered with: it got its first other offer";
            (other.cloned(), Some(advice))
        }
        Some(choice) => (str::from_utf8(choice).ok().map(str::to_owned), None),
    };
    let cookies = fields.all("set-cookie").map(<[u8]>::to_vec).collect();
    Answered::Accepted(Accepted { subprotocol, cookies, advice })
}

/// What a status means for the client. Those that only the operator can change are retryable, and
/// come with advice for the log.
fn refused(status: u16, fields: Fields<'_, '_>) -> Refused {
    let retry_after = fields.only("retry-after").and_then(http_decision::retry_after);
    let retry_after = retry_after.map(|seconds| Duration::from_secs(seconds.into()));
    let mut refused = Refused { status: Some(status), ..Refused::unavailable() };
    match status {
        301 | 308 => {
            let to_https = fields.only("location").is_some_and(|to| {
                to.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("https://"))
            });
            refused.advice = Some(match to_https {
                true => {
                    "it redirects to https: it takes the client for one without TLS (force_ssl of \
                     Phoenix and Rails); have clients use TLS, or say external_scheme = \"https\""
                }
                false => "it redirects: is the path right, up to the slash at its end?",
            });
        }
        401 | 403 | 300..=399 => {
            let (usual, allowed) = http_decision::causes(status);
            let label = fields.only("x-auth-reason");
            let named = allowed.iter().find(|cause| label == Some(cause.label()));
            refused.cause = named.copied().unwrap_or(usual);
        }
        429 | 503 => refused.retry_after = retry_after,
        500..=599 => {}
        _ => refused.advice = Some(advice(status)),
    }
    if refused.advice.is_some() {
        refused.retry_after = Some(OPERATOR_RETRY);
    }
    refused
}

/// The likely cause of a status that no client can change.
fn advice(status: u16) -> &'static str {
    match status {
        200..=299 => "it answers as to a page: no WebSocket is served on this path",
        400 => {
            "it does not accept the request: does it serve WebSockets on this path, for this Host, \
             and does it trust the X-Forwarded- fields of the gateway?"
        }
        404 => {
            "it has nothing on this path: are the endpoint's path and strip_prefix right? Rails \
             answers so to an Origin that it does not know"
        }
        405 => "it takes no GET on this path: no WebSocket is served there",
        421 => "it does not serve this Host: see preserve_host",
        426 => "it wants another version or protocol: does it serve WebSockets on this path?",
        _ => "it answers with a status that WebSocket servers do not use",
    }
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
