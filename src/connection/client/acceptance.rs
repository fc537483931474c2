//! While the server behind, whose 101 lets every client in, has still to say that the client is in:
//! a few frames pass both ways, under all deadlines and caps of strangers.

use std::sync::Arc;

use crate::connection::context::{Context, Output};
use crate::counters::Metric;
use crate::protocol::acceptance::{Acceptance, Judgement, MESSAGE_MAX};
use crate::protocol::cause::Cause;
use crate::protocol::websocket::DataKind;

use super::open::Admitted;
use super::phase::{Authenticating, Awaited, Phase};
use super::state::Client;
use super::step::Step;

/// What passes between a client and a server that has not accepted it.
pub(super) struct PendingAcceptance {
    rules: Arc<Acceptance>,
    /// How many messages the client may still begin.
    messages_left: u16,
    /// How many bytes it may still send in them.
    bytes_left: u32,
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
            message: None,
            to_client_unfinished: false,
        }
    }

    /// Takes a piece of a message of the server's; says what a whole one means.
    fn take(&mut self, kind: DataKind, first: bool, last: bool, bytes: &[u8]) -> Judgement {
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

impl Client {
    /// Whether the server behind, which has answered with 101, has still to accept the client.
    pub fn awaits_acceptance(&self) -> bool {
        let Phase::Authenticating(authenticating) = &self.phase else { return false };
        matches!(authenticating.awaited, Awaited::Acceptance(_))
    }

    pub(super) fn pending_acceptance(&mut self) -> Option<&mut PendingAcceptance> {
        match &mut self.phase {
            Phase::Authenticating(Authenticating {
                awaited: Awaited::Acceptance(pending), ..
            }) => Some(pending),
            _ => None,
        }
    }

    /// What a client that is not accepted may send to the server: no more than it takes to
    /// authenticate.
    pub(super) fn bound_unaccepted(
        &mut self,
        step: Step,
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Step {
        let (Step::Data { range, first, .. }, Some(pending)) = (&step, self.pending_acceptance())
        else {
            return step;
        };
        let begun = u16::from(*first);
        let length = range.len() as u32;
        if begun > pending.messages_left || length > pending.bytes_left {
            self.close(Cause::TooLarge, ctx, output);
            return Step::Handled;
        }
        pending.messages_left -= begun;
        pending.bytes_left -= length;
        step
    }

    /// The server sent its client a piece of a message. Whether that lets the client in.
    pub fn server_said(
        &mut self,
        kind: DataKind,
        (first, last): (bool, bool),
        bytes: &[u8],
        ctx: &Context<'_>,
    ) -> bool {
        let Some(pending) = self.pending_acceptance() else { return false };
        match pending.take(kind, first, last, bytes) {
            Judgement::Neither => false,
            Judgement::Refuses => {
                ctx.counters.increment(Metric::UpstreamMessageRefusals);
                false
            }
            Judgement::Accepts => {
                let Some(route) = self.settings_of_route(ctx) else { return false };
                ctx.counters.increment(Metric::TokensAccepted);
                self.enter_open(Admitted::by_server(), route, ctx);
                self.pass_controls();
                true
            }
        }
    }
}
