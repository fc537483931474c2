//! What a client sends after its end: only its close frame counts. While ours still waits, checks
//! of liveness are answered too, so that the client waits and does not turn to another transport.

use crate::connection::context::{Context, Output};
use crate::protocol::dialect::{Dialect, LIVENESS_MAX};
use crate::protocol::websocket::{self, OpCode};
use crate::settings::MessageTypes;

use super::phase::{Delayed, DelayedInput, Next};
use super::state::{Client, write_frame};
use super::step::{SocketAction, Step};

impl Client {
    /// Takes input after the end. While our close frame is still to come it answers the client's.
    pub(super) fn receive_after_close(
        &mut self,
        input: &mut [u8],
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> (usize, Step) {
        if self.socket_action() != SocketAction::Stay {
            return (input.len(), Step::Handled);
        }
        let limits = self.frame_limits(ctx.settings);
        let is_delayed = self.is_close_delayed();
        match self.reader.next(input, usize::MAX, &limits) {
            Ok((_, websocket::Step::Close { .. })) => {
                self.end_delay(ctx, output);
                self.say_last(Next::Close);
                (input.len(), Step::Handled)
            }
            Ok((used, step)) if is_delayed => {
                let more = step == websocket::Step::NeedMore;
                self.receive_delayed(&input[..used], step, ctx, output);
                (used, if more { Step::NeedMore } else { Step::Handled })
            }
            Ok((used, websocket::Step::NeedMore)) => (used, Step::NeedMore),
            Ok((used, _)) => (used, Step::Handled),
            Err(_) => {
                match self.delayed_mut() {
                    Some(delayed) => delayed.input = DelayedInput::Broken,
                    None => self.say_last(Next::Close),
                }
                (input.len(), Step::Handled)
            }
        }
    }

    /// Takes what is no close frame while ours waits. Each frame costs what it costs an open
    /// client, and an answer costs a control frame; a client that goes on too fast is not read
    /// until the delay is over.
    fn receive_delayed(
        &mut self,
        input: &[u8],
        step: websocket::Step,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        let within = self.within_budgets(None, ctx);
        let Some(delayed) = self.delayed_mut() else { return };
        if !within && delayed.input == DelayedInput::Answered {
            delayed.input = DelayedInput::Unread;
            delayed.partial = None;
        }
        if delayed.input != DelayedInput::Answered {
            return;
        }
        match step {
            websocket::Step::Ping(payload) => {
                self.answer_ping(&payload, ctx.settings.limits.pongs_unsent_max, output);
            }
            websocket::Step::Data { range, first, last, .. } => {
                if let Some(message) = delayed.whole_message(&input[range], (first, last)) {
                    self.answer_liveness(&message, ctx, output);
                }
            }
            _ => {}
        }
    }

    /// Answers a check of liveness that the dialect knows; other messages were for a session that
    /// is over.
    fn answer_liveness(&mut self, message: &[u8], ctx: &Context<'_>, output: &mut Output) {
        let unfit = self.delayed().is_none_or(|delayed| delayed.to_client_unfinished);
        if unfit || self.messages == MessageTypes::Binary {
            return;
        }
        output.explanation.clear();
        let dialect = self.dialect().unwrap_or(Dialect::Plain);
        if dialect.answer_liveness(message, &mut output.explanation) && self.charge_controls(1, ctx)
        {
            write_frame(OpCode::Text, &output.explanation, &mut output.answers);
        }
    }
}

impl Delayed {
    /// A whole message of at most [`LIVENESS_MAX`] bytes, once its last `piece` is here. What is
    /// longer, or began before the delay, is no check of liveness.
    fn whole_message(&mut self, piece: &[u8], (first, last): (bool, bool)) -> Option<Vec<u8>> {
        let mut message = match self.partial.take() {
            _ if first => Vec::new(),
            Some(partial) => partial.into_vec(),
            None => return None,
        };
        if message.len() + piece.len() > LIVENESS_MAX {
            return None;
        }
        message.extend_from_slice(piece);
        if last {
            return Some(message);
        }
        self.partial = Some(message.into_boxed_slice());
        None
    }
}
