//! How a dialect's own handshake in a first message is acknowledged.

use std::time::Duration;

use crate::base::time::UnixTime;
use crate::connection::context::{Context, Output};
use crate::protocol::dialect::{ConnectAck, Dialect};
use crate::protocol::websocket::OpCode;

use super::phase::FirstMessageInfo;
use super::state::{Client, write_frame};

impl Client {
    /// Leaves in `output.connect_ack` the message that acknowledges the token once the session is open.
    pub(super) fn acknowledge(
        &mut self,
        first_message: FirstMessageInfo,
        expires: Option<UnixTime>,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        output.connect_ack.clear();
        let Some(dialect) = self.dialect().filter(|_| first_message.wants_ack) else { return };
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
        if let Some(open) = self.open_mut() {
            open.handshake_done = true;
            open.pings_promised = dialect == Dialect::Centrifuge;
        }
    }
}
