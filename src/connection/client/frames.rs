//! The frames of an authenticating or open client: checked, charged to their budgets, and the
//! control frames among them answered.

use crate::connection::context::{Context, Output};
use crate::protocol::cause::Cause;
use crate::protocol::websocket::{self, ControlPayload, FrameLimits, OpCode};
use crate::settings::{MessageTypes, Settings};

use super::closing::CloseDetails;
use super::phase::Phase;
use super::state::{Client, write_frame};
use super::step::Step;

/// A piece of a frame that is at least this long costs no more than its bytes.
const PIECE_FREE: u16 = 1024;
/// The bytes that small pieces fall short of [`PIECE_FREE`] together, for which one frame is
/// charged. So a client that sends a frame in one-byte segments gets eight of them for the price
/// of a frame, and one that sends it in segments of 536 bytes, the smallest maximum of TCP,
/// sixteen.
const PIECE_DEBT_PER_FRAME: u16 = 8 * PIECE_FREE;

impl Client {
    pub(super) fn receive_frames(
        &mut self,
        input: &mut [u8],
        allowance: usize,
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> (usize, Step) {
        let limits = self.frame_limits(ctx.settings);
        let (used, step) = match self.reader.next(input, allowance, &limits) {
            Ok(found) => found,
            Err(error) => {
                self.fail(error.cause(), ctx, output);
                return (input.len(), Step::Handled);
            }
        };
        let piece = match &step {
            websocket::Step::Data { range, .. } if range.len() < allowance => Some(range.len()),
            _ => None,
        };
        if !self.within_budgets(piece, ctx) {
            // What follows comes again: the client's close may be in it.
            self.close(Cause::RateLimited, ctx, output);
            return (used, Step::Handled);
        }
        let step = match step {
            websocket::Step::NeedMore => Step::NeedMore,
            websocket::Step::Blocked => Step::Blocked,
            websocket::Step::Data { range, kind, first, last } => {
                Step::Data { range, kind, first, last }
            }
            websocket::Step::Ping(payload) if self.passes_controls() => {
                output.control = payload;
                Step::Control(OpCode::Ping)
            }
            websocket::Step::Pong(payload) if self.passes_controls() => {
                if payload.as_slice() == self.own_ping() {
                    return (used, Step::Handled);
                }
                output.control = payload;
                Step::Control(OpCode::Pong)
            }
            websocket::Step::Ping(payload) => {
                self.answer_ping(&payload, ctx.settings.limits.pongs_unsent_max, output);
                Step::Handled
            }
            websocket::Step::Pong(_) => Step::Handled,
            websocket::Step::Close { code, reason } => {
                self.close_by_client(code, reason.as_slice(), ctx, output);
                Step::Handled
            }
        };
        (used, step)
    }

    /// RFC 6455 §7.1.7: after a broken frame nothing more is read, not even a close, so FIN
    /// follows our close frame. Where the settings say so, that waits for what the backend has
    /// under way for this client.
    fn fail(&mut self, cause: Cause, ctx: &Context<'_>, output: &mut Output) {
        let grace = ctx.settings.deadlines.failure_grace;
        match self.open_mut() {
            Some(open) if !grace.is_zero() => {
                open.broken = true;
                self.schedule_close(ctx.now.instant + grace, cause);
            }
            _ => {
                let details = CloseDetails { broken: true, ..CloseDetails::default() };
                self.close_with(cause, &details, ctx, output);
            }
        }
    }

    /// Charges the frames that began in the last step, and the `piece` of an earlier one that
    /// the client cut.
    pub(super) fn within_budgets(&mut self, piece: Option<usize>, ctx: &Context<'_>) -> bool {
        let limits = &ctx.settings.limits;
        let begun = self.reader.frames_seen();
        let controls = self.reader.controls_seen();
        let mut frames = begun;
        // First messages are bounded by their size and their deadline.
        if let (Phase::Open(open), Some(length), 0) = (&mut self.phase, piece, begun) {
            open.piece_debt += PIECE_FREE - length.min(PIECE_FREE.into()) as u16;
            if open.piece_debt >= PIECE_DEBT_PER_FRAME {
                open.piece_debt -= PIECE_DEBT_PER_FRAME;
                frames += 1;
            }
        }
        let (rate, burst) = (limits.frames_per_second, limits.frames_burst);
        (frames == 0 || self.frames.take(frames, rate, burst, ctx.now.instant))
            && (controls == 0 || self.take_controls(controls, ctx))
    }

    fn passes_controls(&self) -> bool {
        match &self.phase {
            Phase::Open(open) => open.passes_controls,
            _ => self.awaits_acceptance(),
        }
    }

    /// The payload of the gateway's own pings where others' pass: the same for all of a connection,
    /// and no other's.
    pub(super) fn own_ping(&self) -> [u8; 8] {
        let (low, high) = (self.spread(0), self.spread(1));
        (u64::from(high) << 32 | u64::from(low)).to_ne_bytes()
    }

    fn take_controls(&mut self, count: u32, ctx: &Context<'_>) -> bool {
        let limits = &ctx.settings.limits;
        let (rate, burst) = (limits.controls_per_second, limits.controls_burst);
        self.controls.take(count, rate, burst, ctx.now.instant)
    }

    /// Charges an expensive operation to the control-frame budget, capped at one burst.
    pub(super) fn charge_controls(&mut self, cost: u32, ctx: &Context<'_>) -> bool {
        self.take_controls(cost.min(ctx.settings.limits.controls_burst), ctx)
    }

    pub(super) fn frame_limits(&self, settings: &Settings) -> FrameLimits {
        let limits = &settings.limits;
        let authenticating = matches!(self.phase, Phase::Authenticating(_));
        let message_max = match &self.phase {
            Phase::Authenticating(_) => limits.first_message_max,
            // A link agreed on the limits' size; a server has a size of its own.
            Phase::Open(open) if open.passes_controls => open.backend_message_max,
            Phase::Open(open) => limits.message_max.min(open.backend_message_max),
            _ => limits.message_max,
        };
        FrameLimits {
            message_max,
            fragments_max: limits.fragments_max,
            text: authenticating || self.messages != MessageTypes::Binary,
            binary: authenticating || self.messages != MessageTypes::Text,
        }
    }

    /// Answers a ping immediately, or, while enough earlier answers are still unsent, remembers
    /// only the latest: RFC 6455 §5.5.3 lets one pong stand for several pings.
    pub(super) fn answer_ping(
        &mut self,
        payload: &ControlPayload,
        unsent_max: u8,
        output: &mut Output,
    ) {
        if self.pongs_unsent < unsent_max {
            return self.write_pong(payload, output);
        }
        match &mut self.pong {
            Some(waiting) => **waiting = *payload,
            none => *none = Some(Box::new(*payload)),
        }
    }

    pub(super) fn write_pong(&mut self, payload: &ControlPayload, output: &mut Output) {
        self.pongs_unsent += 1;
        write_frame(OpCode::Pong, payload.as_slice(), &mut output.answers);
    }
}
