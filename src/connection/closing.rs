//! Explain, then pace: what a client is told when its connection ends, and how long its close
//! frame waits.
//!
//! While it waits a client has no session, sends into the void, and holds nothing but its place:
//! no buffer, and of TLS what it takes to encrypt one more frame.

use std::time::Duration;

use crate::base::time::Instant;
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::dialect::{Answer, Dialect};
use crate::protocol::websocket::{self, OpCode};
use crate::settings::{MessageTypes, Settings};

use super::client::{Client, CloseProgress, RejectHint, SocketAction, write_frame};
use super::stage::{ClosedBy, Stage};
use super::{Context, Output};

/// What goes with a close beyond its cause.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CloseDetails<'a> {
    /// The client's command that is answered, if it was one.
    pub(super) command: Option<u32>,
    /// What whoever refused the client wants it to be told.
    pub(super) advice: RejectHint<'a>,
}

impl Client {
    /// Whether the close frame is still to come, at [`next_deadline`](Self::next_deadline).
    pub fn is_paced(&self) -> bool {
        self.close_progress == CloseProgress::Delayed
    }

    /// A reload moved the client's route; `None` took it away.
    pub fn move_route(&mut self, moved: impl FnOnce(u16) -> Option<u16>) {
        self.replace_route(self.route().and_then(moved));
    }

    /// How `cause` is put to this client: looked up when it is said, so that it costs no memory
    /// and a reload counts.
    pub(super) fn answer<'s>(&self, cause: Cause, settings: &'s Settings) -> Answer<'s> {
        let dialect = self.dialect().unwrap_or(Dialect::Plain);
        match self.route().and_then(|index| settings.routes.get(usize::from(index))) {
            Some(route) => route.closes.answer(dialect, cause),
            None => dialect.answer(cause),
        }
    }

    /// Explains, where the dialect has words for `cause`, and closes: at once, or when the pace
    /// is over.
    pub(super) fn explain_and_close(
        &mut self,
        cause: Cause,
        told: &CloseDetails<'_>,
        stage: Stage,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        let mut answer = self.answer(cause, ctx.settings);
        if answer.reconnect && told.advice.retry_after.is_some() {
            answer.retry_after = told.advice.retry_after;
        }
        self.write_explanation(&answer, told.command, output);
        self.conclude(cause, ClosedBy::Gateway, Some(answer.code));
        let due = self.pace_end(answer.pace, stage, ctx);
        let waits = due > ctx.now.instant;
        self.close_progress = if waits { CloseProgress::Delayed } else { CloseProgress::Idle };
        self.enter(stage, ctx);
        if !waits {
            let own = told.advice.message;
            write_close(answer.code, if own.is_empty() { answer.reason } else { own }, output);
        } else {
            ctx.counters.increment(Metric::ClosesPaced);
            self.close_at = due.into();
        }
    }

    /// Explains a refusal, closes, and waits a linger for the client's close.
    pub(super) fn refuse_in_dialect(
        &mut self,
        cause: Cause,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        self.refuse_told(cause, &CloseDetails::default(), ctx, output);
    }

    pub(super) fn refuse_told(
        &mut self,
        cause: Cause,
        told: &CloseDetails<'_>,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        output.rest.clear();
        self.explain_and_close(cause, told, Stage::Refused, ctx, output);
    }

    /// The close frame has waited long enough. A reload may have given it other words.
    pub(super) fn end_pace(&mut self, ctx: &Context<'_>, output: &mut Output) {
        self.close_progress = CloseProgress::Idle;
        let Some(cause) = self.end().map(|end| end.cause) else { return };
        let answer = self.answer(cause, ctx.settings);
        write_close(answer.code, answer.reason, output);
        self.set_close_code(answer.code);
        self.stage_since = ctx.now.instant.into();
        if self.failed {
            self.dispose(SocketAction::ShutdownWhenFlushed);
        }
    }

    /// The explanation is a message of its own, so it stays away from the middle of another, and
    /// from clients that expect no text.
    fn write_explanation(
        &mut self,
        answer: &Answer<'_>,
        command: Option<u32>,
        output: &mut Output,
    ) {
        if !answer.explain || self.to_client_unfinished || self.messages == MessageTypes::Binary {
            return;
        }
        let dialect = self.dialect().unwrap_or(Dialect::Plain);
        output.explanation.clear();
        dialect.write_explanation(answer, command, &mut output.explanation);
        if !output.explanation.is_empty() {
            write_frame(OpCode::Text, &output.explanation, &mut output.answers);
        }
    }

    /// When a close frame that waits for `pace` is due. Who is not authenticated must be gone
    /// when all stages together are over, linger included, so the pace is cut for it.
    fn pace_end(&self, pace: Duration, stage: Stage, ctx: &Context<'_>) -> Instant {
        let now = ctx.now.instant;
        let share = f64::from(self.spread(ctx.jitter)) / f64::from(u32::MAX);
        let due = now + pace + (pace / 2).mul_f64(share);
        if pace.is_zero() || stage != Stage::Refused {
            return due;
        }
        let deadlines = &ctx.settings.deadlines;
        let left = self.refused_at_latest(deadlines).since(now).saturating_sub(deadlines.linger);
        due.min(now + left)
    }

    /// A number of this client's own, drawn from one that all of a turn share: those that are
    /// closed together must not come back together. (The mixing is SplitMix64's.)
    fn spread(&self, jitter: u32) -> u32 {
        let port = self.peer().map_or(0, |peer| peer.port());
        let own = self.accepted.instant().as_nanos() ^ (u64::from(port) << 32);
        let mut mixed = own.wrapping_add(u64::from(jitter).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 32) as u32
    }
}

/// Appends a close frame.
pub(super) fn write_close(code: u16, reason: &str, output: &mut Output) {
    let payload = websocket::close_payload(code, reason);
    write_frame(OpCode::Close, payload.as_slice(), &mut output.answers);
}
