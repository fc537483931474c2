//! What goes to a client, and what comes with its token, whatever its dialect.

use std::time::Duration;

use crate::protocol::cause::Cause;

/// What the gateway sends to a client when its connection ends.
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
    /// Whether a message of [`write_explanation`](super::Dialect::write_explanation) goes before the close frame. Not after
    /// the client broke the protocol (nothing may follow but the close), and not to one that
    /// does not read or said goodbye itself.
    pub explain: bool,
    /// How long the close frame waits at least, the message having been sent: some clients come
    /// back immediately, whatever the close says. Up to half as much again is added at random.
    pub pace: Duration,
}

/// Longest reason of a close frame: a control frame's payload without the code (RFC 6455 §5.5).
pub const REASON_MAX: usize = 123;

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

/// The answer to a client that authenticated by its first message.
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

/// Text as the inside of a JSON string (RFC 8259 §7).
pub(super) struct Escaped<'t>(pub(super) &'t str);

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

pub(super) struct RetryAfter(pub(super) Option<Duration>);

impl std::fmt::Display for RetryAfter {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(wait) => write!(out, r#","retry_after_ms":{}"#, wait.as_millis()),
            None => Ok(()),
        }
    }
}
