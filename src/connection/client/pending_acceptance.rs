//! What is kept of a client that the server behind has still to accept by a message.

use std::sync::Arc;

use crate::connection::context::Context;
use crate::protocol::acceptance::{Acceptance, Judgement, MESSAGE_MAX};
use crate::protocol::websocket::DataKind;

/// What passes between a client and a server that has not accepted it.
pub(super) struct PendingAcceptance {
    rules: Arc<Acceptance>,
    /// How many messages the client may still begin.
    messages_left: u16,
    /// How many bytes it may still send in them.
    bytes_left: u32,
    /// The client's message under way; all of them together are bounded by `bytes_left`.
    sent: Vec<u8>,
    /// The server's text message under way, while it is one that may accept.
    message: Option<Vec<u8>>,
    /// The client has been sent the beginning of a message, but not its end.
    pub(super) to_client_unfinished: bool,
}

impl PendingAcceptance {
    pub(super) fn new(rules: Arc<Acceptance>, ctx: &Context<'_>) -> Self {
        let limits = &ctx.settings.limits;
        PendingAcceptance {
            rules,
            messages_left: limits.first_messages_max,
            bytes_left: limits.first_message_max,
            sent: Vec::new(),
            message: None,
            to_client_unfinished: false,
        }
    }

    /// Whether the client may send this beside what it has sent.
    pub(super) fn allows(&mut self, messages_begun: u16, bytes: u32) -> bool {
        let left =
            (self.messages_left.checked_sub(messages_begun), self.bytes_left.checked_sub(bytes));
        let (Some(messages_left), Some(bytes_left)) = left else { return false };
        (self.messages_left, self.bytes_left) = (messages_left, bytes_left);
        true
    }

    /// Takes a piece of a message of the client's; whether it may go on, the last one of a message
    /// that the server must not see being held back.
    pub(super) fn permits(
        &mut self,
        kind: DataKind,
        (first, last): (bool, bool),
        bytes: &[u8],
    ) -> bool {
        if first {
            self.sent.clear();
        }
        self.sent.extend_from_slice(bytes);
        !last || self.rules.permits(kind, &self.sent)
    }

    /// Takes a piece of a message of the server's; says what a whole one means.
    pub(super) fn take(
        &mut self,
        kind: DataKind,
        first: bool,
        last: bool,
        bytes: &[u8],
    ) -> Judgement {
        if first {
            self.message = (kind == DataKind::Text).then(Vec::new);
        }
        match &mut self.message {
            Some(message) if message.len() + bytes.len() <= MESSAGE_MAX => {
                message.extend_from_slice(bytes);
            }
            message => *message = None,
        }
        if !last {
            return Judgement::Neither;
        }
        let message = self.message.take();
        message.map_or(Judgement::Neither, |message| self.rules.judge(&message))
    }
}
