//! How a cause is put so that a client's own library understands it: one table of every cause
//! and dialect, read from the sources of the libraries.
//!
//! `docs/closing.md` is made from the table, and a test keeps the two the same.

mod answer;
pub mod centrifuge;
mod family;
pub mod graphql;
mod handshake;
mod liveness;
mod table;

pub use answer::{Answer, ConnectAck, FirstMessage, REASON_MAX};
use answer::{Escaped, RetryAfter};
pub use family::Dialect;
pub use liveness::MESSAGE_MAX as LIVENESS_MAX;

use std::io::Write as _;
use std::time::Duration;

use crate::protocol::cause::Cause;

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

impl Dialect {
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
        // A client that must not come back needs no time to wait.
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

#[cfg(test)]
#[path = "dialect/page_tests.rs"]
mod page_tests;
#[cfg(test)]
#[path = "dialect/tests.rs"]
mod tests;
