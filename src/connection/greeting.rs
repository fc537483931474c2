//! First messages that are a dialect's own handshake: where the token is in them, and how they
//! are answered once the session is open.

use crate::base::time::UnixTime;
use crate::protocol::carrier::Carrier;
use crate::protocol::cause::Cause;
use crate::protocol::dialect::{Dialect, FirstMessage, Welcome};
use crate::protocol::websocket::{self, OpCode};
use crate::settings::{Route, Settings};

use super::client::{Client, write_frame};
use super::{Output, Surroundings};

/// A mask that leaves bytes as they are.
const NO_MASK: [u8; 4] = [0; 4];

impl Client {
    /// Takes the first message apart as the dialect has it. Where the token is the whole message,
    /// there is no handshake in it.
    ///
    /// # Errors
    /// What the client is refused for.
    pub(super) fn first_message<'m>(
        &self,
        message: &'m [u8],
        route: &Route,
        settings: &Settings,
    ) -> Result<FirstMessage<'m>, Cause> {
        let json = |carrier: &Carrier| matches!(carrier, Carrier::FirstMessageJson(_));
        if settings.auths_of(route).any(|auth| auth.carriers.iter().any(json)) {
            self.dialect().unwrap_or(Dialect::Plain).first_message(message)
        } else {
            Ok(FirstMessage { token_in: message, command: None, rest: &[] })
        }
    }

    /// Leaves in `output` what the client is told once its session is open, and what its first
    /// message held for the backend.
    pub(super) fn greet(
        &mut self,
        first: &FirstMessage<'_>,
        expires: Option<UnixTime>,
        cx: &Surroundings<'_>,
        output: &mut Output,
    ) {
        let Some(dialect) = self.dialect() else { return };
        let now = cx.now.unix.as_millis();
        let left = |expires: UnixTime| {
            std::time::Duration::from_millis(expires.as_millis().saturating_sub(now))
        };
        let own = u128::from(self.accepted.as_nanos()) << 64;
        let port = u128::from(self.peer().map_or(0, |peer| peer.port()));
        let welcome = Welcome {
            command: first.command,
            client: own | u128::from(cx.jitter) << 16 | port,
            expires_in: expires.map(left),
            ping_interval: cx.settings.deadlines.ping_interval,
        };
        output.explanation.clear();
        dialect.write_welcome(&welcome, &mut output.explanation);
        output.welcome.clear();
        if !output.explanation.is_empty() {
            write_frame(OpCode::Text, &output.explanation, &mut output.welcome);
        }
        self.pings_promised = dialect == Dialect::Centrifuge;
        output.rest.clear();
        if !first.rest.is_empty() {
            let length = first.rest.len() as u64;
            let header = websocket::write_header(true, OpCode::Text, length, Some(NO_MASK));
            output.rest.extend_from_slice(header.as_slice());
            output.rest.extend_from_slice(first.rest);
        }
    }
}
