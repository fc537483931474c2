//! How a cause is put so that a client's own library understands it: one table of every cause
//! and dialect, read from the sources of the libraries.
//!
//! `docs/closing.md` is made from the table, and a test keeps the two the same.

pub mod centrifuge;
pub mod graphql;
mod handshake;
mod liveness;
mod table;

pub use liveness::MESSAGE_MAX as LIVENESS_MAX;

use std::io::Write as _;
use std::time::Duration;

use crate::protocol::cause::Cause;

/// A family of clients with its own reading of close codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Dialect {
    /// A raw WebSocket: the application reads code and reason.
    Plain,
    /// phoenix.js and LiveView, serializer version 2.
    Phoenix,
    /// graphql-ws.
    Graphql,
    /// pusher-js and the servers that speak its protocol.
    Pusher,
    /// centrifuge-js, JSON only.
    Centrifuge,
}

/// What a client is told when its connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'r> {
    /// Why.
    pub cause: Cause,
    /// The close code (RFC 6455 §7.4).
    pub code: u16,
    /// The reason: at most [`REASON_MAX`] bytes. The cause's label, unless a route says else.
    pub reason: &'r str,
    /// Whether it makes sense to come back with the same request, and, where the client gets a
    /// new one by itself, another token.
    pub reconnect: bool,
    /// How long to wait first; set whenever `reconnect` is. The client adds jitter.
    pub retry_after: Option<Duration>,
    /// Whether a message of [`Dialect::write_explanation`] goes before the close frame. Not after
    /// the client broke the protocol (nothing may follow but the close), and not to one that
    /// does not read or said goodbye itself.
    pub explain: bool,
    /// How long the close frame waits at least, the message having been sent: some clients come
    /// back at once, whatever they are told. Up to half as much again is added at random.
    pub pace: Duration,
}

/// Longest reason of a close frame: a control frame's payload without the code (RFC 6455 §5.5).
pub const REASON_MAX: usize = 123;

/// What a route says of one cause, in place of the table. `None` leaves the table's word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Override {
    /// The close code; it may be sent.
    pub code: Option<u16>,
    /// The reason, at most [`REASON_MAX`] bytes.
    pub reason: Option<String>,
    /// Whether the client should come back.
    pub reconnect: Option<bool>,
    /// How long it should wait.
    pub retry_after: Option<Duration>,
    /// How long the close frame waits; zero is not at all.
    pub pace: Option<Duration>,
    /// Whether a message goes before the close frame.
    pub explain: Option<bool>,
}

/// What a route says of closes: few causes, looked up when a connection ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides(pub Vec<(Cause, Override)>);

/// A client's first message, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstMessage<'m> {
    /// Where the carrier's path begins.
    pub token_in: &'m [u8],
    /// The number of the command that asks to be let in, where the dialect numbers them.
    pub command: Option<u32>,
    /// What came with it and is meant for the backend.
    pub rest: &'m [u8],
}

/// What a client is told that was let in by its first message.
#[derive(Clone, Copy, Debug)]
pub struct ConnectAck {
    /// The command that is answered.
    pub command: Option<u32>,
    /// A name for the connection, not a secret.
    pub client: u128,
    /// How long the identity lasts yet.
    pub expires_in: Option<Duration>,
    /// How often the server will be heard at least.
    pub ping_interval: Duration,
}

impl Dialect {
    /// Every dialect, in the order of the table's columns.
    pub const ALL: &'static [Dialect] =
        &[Dialect::Plain, Dialect::Phoenix, Dialect::Graphql, Dialect::Pusher, Dialect::Centrifuge];

    /// The name in the configuration and in logs.
    pub const fn name(self) -> &'static str {
        match self {
            Dialect::Plain => "plain",
            Dialect::Phoenix => "phoenix",
            Dialect::Graphql => "graphql-transport-ws",
            Dialect::Pusher => "pusher",
            Dialect::Centrifuge => "centrifuge",
        }
    }

    /// The dialect of this name.
    pub fn from_name(name: &str) -> Option<Dialect> {
        Dialect::ALL.iter().copied().find(|dialect| dialect.name() == name)
    }

    /// The dialect of a client that asked for this: by the subprotocol that it is answered with,
    /// and, as phoenix.js and pusher-js offer none of their own, by what they put into the URL.
    /// centrifuge-js offers none for JSON and has no mark in its URL: its routes must say so.
    pub fn detect(subprotocol: Option<&str>, path: &str, query: Option<&str>) -> Dialect {
        match subprotocol {
            Some("phoenix") => return Dialect::Phoenix,
            Some("graphql-transport-ws") => return Dialect::Graphql,
            Some(_) => return Dialect::Plain,
            None => {}
        }
        let parameters = || query.into_iter().flat_map(|query| query.split('&'));
        let starts = |start: &str| parameters().any(|parameter| parameter.starts_with(start));
        if path.ends_with("/websocket") && starts("vsn=2.") {
            Dialect::Phoenix
        } else if path.contains("/app/") && starts("protocol=") && starts("client=") {
            Dialect::Pusher
        } else {
            Dialect::Plain
        }
    }

    /// How `cause` is put in this dialect. For [`Cause::BackendClosed`] and
    /// [`Cause::ClientClosed`] the code is the one for when the other side gave none; its own
    /// goes first.
    pub const fn answer(self, cause: Cause) -> Answer<'static> {
        let answer = table::cell(self, cause).answer(cause);
        match (self, cause) {
            // The protocol's own words (its GitHub repository's PROTOCOL.md).
            (Dialect::Graphql, Cause::HandshakeRepeated) => {
                Answer { reason: "Too many initialisation requests", ..answer }
            }
            _ => answer,
        }
    }

    /// Appends the text message that explains the close; nothing where the dialect has none.
    /// `command` is the client's command that it answers, where the dialect numbers them.
    pub fn write_explanation(self, answer: &Answer<'_>, command: Option<u32>, out: &mut Vec<u8>) {
        let Answer { code, reason, reconnect, retry_after, .. } = answer;
        let reason = Escaped(reason);
        // Writing to a Vec cannot fail.
        let _infallible = match self {
            Dialect::Plain => write!(
                out,
                r#"{{"type":"close","code":{code},"reason":"{reason}","reconnect":{reconnect}{}}}"#,
                RetryAfter(*retry_after)
            ),
            Dialect::Phoenix => write!(
                out,
                r#"[null,null,"phoenix","phx_error",{{"reason":"{reason}","code":{code},"reconnect":{reconnect}{}}}]"#,
                RetryAfter(*retry_after)
            ),
            Dialect::Pusher => write!(
                out,
                r#"{{"event":"pusher:error","data":{{"code":{code},"message":"{reason}"}}}}"#
            ),
            Dialect::Centrifuge => {
                if let Some(id) = command {
                    centrifuge::write_error(id, answer, out);
                }
                Ok(())
            }
            Dialect::Graphql => Ok(()),
        };
    }

    /// What a first message says that carries a token as JSON.
    ///
    /// # Errors
    /// [`Cause::TokenMalformed`] when it is not what the dialect begins with, and
    /// [`Cause::TokenMissing`] when it is another of the dialect's messages.
    pub fn first_message(self, message: &[u8]) -> Result<FirstMessage<'_>, Cause> {
        match self {
            Dialect::Graphql => graphql::first_message(message),
            Dialect::Centrifuge => centrifuge::first_message(message),
            Dialect::Plain | Dialect::Phoenix | Dialect::Pusher => {
                Ok(FirstMessage { token_in: message, command: None, rest: &[] })
            }
        }
    }

    /// Appends the message that answers a first message whose token was good; nothing where the
    /// dialect has none.
    pub fn write_welcome(self, connect_ack: &ConnectAck, out: &mut Vec<u8>) {
        match self {
            Dialect::Graphql => out.extend_from_slice(graphql::ACKNOWLEDGED.as_bytes()),
            Dialect::Centrifuge => centrifuge::write_connected(connect_ack, out),
            Dialect::Plain | Dialect::Phoenix | Dialect::Pusher => {}
        }
    }
}

impl Overrides {
    /// How `cause` is put: the dialect's word, with what the route says of it.
    pub fn answer(&self, dialect: Dialect, cause: Cause) -> Answer<'_> {
        let answer = dialect.answer(cause);
        match self.0.iter().find(|(named, _)| *named == cause) {
            Some((_, said)) => said.apply(answer),
            None => answer,
        }
    }
}

impl Override {
    fn apply<'r>(&'r self, said: Answer<'r>) -> Answer<'r> {
        // A time to wait is no use to a client that is told to stay away.
        let reconnect = self.reconnect.unwrap_or(said.reconnect || self.retry_after.is_some());
        let wait = self.retry_after.or(said.retry_after).unwrap_or(table::RETRY_AFTER);
        Answer {
            cause: said.cause,
            code: self.code.unwrap_or(said.code),
            reason: self.reason.as_deref().unwrap_or(said.reason),
            reconnect,
            retry_after: reconnect.then_some(wait),
            explain: self.explain.unwrap_or(said.explain),
            pace: self.pace.unwrap_or(said.pace),
        }
    }
}

/// Whether a connection can end for this cause only without a WebSocket to close: before the
/// 101, or when the client is gone.
pub const fn is_silent(cause: Cause) -> bool {
    use Cause::*;
    matches!(
        cause,
        BadRequest | Redirected | HealthCheck | TlsFailed | HandshakeTimedOut | ClientGone
    )
}

/// Text as the inside of a JSON string (RFC 8259 §7).
struct Escaped<'t>(&'t str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use std::fmt::Write as _;
        for character in self.0.chars() {
            match character {
                '"' | '\\' => write!(out, "\\{character}")?,
                '\0'..='\u{1f}' => write!(out, "\\u{:04x}", u32::from(character))?,
                _ => out.write_char(character)?,
            }
        }
        Ok(())
    }
}

struct RetryAfter(Option<Duration>);

impl std::fmt::Display for RetryAfter {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(wait) => write!(out, r#","retry_after_ms":{}"#, wait.as_millis()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "dialect/page_tests.rs"]
mod page_tests;
#[cfg(test)]
#[path = "dialect/tests.rs"]
mod tests;
