//! While the server behind, whose 101 lets every client in, has still to say that the client is in:
//! a few frames pass both ways, under all deadlines and caps of strangers.

use crate::connection::context::{Context, Output};
use crate::counters::Metric;
use crate::protocol::acceptance::Judgement;
use crate::protocol::cause::Cause;
use crate::protocol::websocket::DataKind;

use super::admitted::Admitted;
use super::pending_acceptance::PendingAcceptance;
use super::phase::{Authenticating, Awaited, Phase};
use super::state::Client;
use super::step::Step;

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
        input: &[u8],
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Step {
        let (Step::Data { range, kind, first, last }, Some(pending)) =
            (&step, self.pending_acceptance())
        else {
            return step;
        };
        let begun = u16::from(*first);
        let length = range.len() as u32;
        if !pending.allows(begun, length) {
            self.close(Cause::TooLarge, ctx, output);
            return Step::Handled;
        }
        if !pending.permits(*kind, (*first, *last), &input[range.clone()]) {
            if *first && *last {
                // Nothing of it has gone on, and so nothing need: phoenix.js leaves a topic that
                // it was refused.
                ctx.counters.increment(Metric::UpstreamMessagesHeld);
                return Step::Handled;
            }
            self.close(Cause::ProtocolError, ctx, output);
            return Step::Handled;
        }
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
                self.pass_all(route, ctx);
                true
            }
        }
    }
}
