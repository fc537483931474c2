//! First messages that are a dialect's own handshake: where the token is in them, and how they
//! are answered once the session is open.

use std::time::Duration;

use crate::base::time::UnixTime;
use crate::protocol::carrier::Carrier;
use crate::protocol::cause::Cause;
use crate::protocol::dialect::{ConnectAck, Dialect};
use crate::protocol::websocket::{self, OpCode};
use crate::settings::Settings;

use super::client::{Client, write_frame};
use super::{Context, Output};

/// A mask that leaves bytes as they are.
const NO_MASK: [u8; 4] = [0; 4];

/// What a first message asked for, beside being let in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FirstMessageInfo {
    /// It was the dialect's handshake, and the dialect has an answer to that.
    wanted: bool,
    /// The number of the command to answer, where the dialect numbers them.
    pub(super) command: Option<u32>,
}

impl Client {
    /// Takes a first message apart as the dialect has it: leaves in `message` what holds the
    /// token, and in `output.rest`, as a frame of the client's, what is for the backend. Where
    /// the token is the whole message, there is no handshake in it.
    ///
    /// # Errors
    /// What the client is refused for.
    pub(super) fn split_first_message(
        &self,
        message: &mut Vec<u8>,
        settings: &Settings,
        output: &mut Output,
    ) -> Result<FirstMessageInfo, Cause> {
        output.rest.clear();
        let json = |carrier: &Carrier| matches!(carrier, Carrier::FirstMessageJson(_));
        let dialect = self.dialect().unwrap_or(Dialect::Plain);
        let route = self.route().and_then(|index| settings.routes.get(usize::from(index)));
        let mut auths = route.into_iter().flat_map(|route| settings.auths_of(route));
        let wanted = matches!(dialect, Dialect::Graphql | Dialect::Centrifuge)
            && auths.any(|auth| auth.carriers.iter().any(json));
        if !wanted {
            return Ok(FirstMessageInfo::default());
        }
        let first = dialect.first_message(message)?;
        if !first.rest.is_empty() {
            let length = first.rest.len() as u64;
            let header = websocket::write_header(true, OpCode::Text, length, Some(NO_MASK));
            output.rest.extend_from_slice(header.as_slice());
            output.rest.extend_from_slice(first.rest);
        }
        let (command, length) = (first.command, first.token_in.len());
        message.truncate(length);
        Ok(FirstMessageInfo { wanted, command })
    }

    /// Leaves in `output.connect_ack` what the client is told once its session is open.
    pub(super) fn greet(
        &mut self,
        first_message: FirstMessageInfo,
        expires: Option<UnixTime>,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        output.connect_ack.clear();
        let Some(dialect) = self.dialect().filter(|_| first_message.wanted) else { return };
        let now = ctx.now.unix.as_millis();
        let left = |end: UnixTime| Duration::from_millis(end.as_millis().saturating_sub(now));
        let own = u128::from(self.accepted.instant().as_nanos()) << 64;
        let port = u128::from(self.peer().map_or(0, |peer| peer.port()));
        let connect_ack = ConnectAck {
            command: first_message.command,
            client: own | u128::from(ctx.jitter) << 16 | port,
            expires_in: expires.map(left),
            ping_interval: ctx.settings.deadlines.ping_interval,
        };
        output.explanation.clear();
        dialect.write_welcome(&connect_ack, &mut output.explanation);
        write_frame(OpCode::Text, &output.explanation, &mut output.connect_ack);
        if dialect == Dialect::Centrifuge {
            self.pings.promise();
        }
    }
}
