//! What happens to a client: input and output that moved, handed to the part of the machine that
//! its phase is about.

use crate::connection::context::{Context, Output};
use crate::connection::stage::Stage;
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::dialect::Dialect;
use crate::protocol::websocket::DataKind;

use super::phase::{Authenticating, Awaited, CloseProgress, Ended, Phase, Standing};
use super::state::Client;
use super::step::Step;

impl Client {
    /// The TLS handshake is done: the request head may come.
    pub fn handshake_finished(&mut self, ctx: &Context<'_>) {
        if self.stage() == Stage::TlsHandshake {
            ctx.counters.increment(Metric::TlsHandshakes);
            self.enter(Phase::RequestHead(None), ctx);
        }
    }

    /// Takes plaintext in. At most `allowance` payload bytes come out as [`Step::Data`].
    /// Returns how many bytes of `input` are used up, and what they came to.
    pub fn receive(
        &mut self,
        input: &mut [u8],
        allowance: usize,
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> (usize, Step) {
        if input.is_empty() {
            return (0, Step::NeedMore);
        }
        self.received = ctx.now.instant.into();
        match &mut self.phase {
            Phase::TlsHandshake => unreachable!("plaintext before the handshake is finished"),
            Phase::RequestHead(_) => (input.len(), self.receive_head(input, ctx, output)),
            Phase::Authenticating(Authenticating { awaited: Awaited::Acceptance(_), .. }) => {
                let (used, step) = self.receive_frames(input, allowance, ctx, output);
                (used, self.bound_unaccepted(step, input, ctx, output))
            }
            Phase::Authenticating(_) => {
                debug_assert!(!self.awaits_decision(), "input before the decision");
                let (used, step) = self.receive_frames(input, usize::MAX, ctx, output);
                (used, self.take_first_message(step, input, ctx, output))
            }
            Phase::Open(open) => {
                open.ping_sent = false;
                let (used, step) = match open.renewal.take() {
                    None => self.receive_frames(input, allowance, ctx, output),
                    Some(renewal) => {
                        self.receive_classified(renewal, input, allowance, ctx, output)
                    }
                };
                if self.repeats_handshake(&step, input, output) {
                    self.close(Cause::HandshakeRepeated, ctx, output);
                    return (used, Step::Handled);
                }
                (used, step)
            }
            Phase::Ended(_) => self.receive_after_close(input, ctx, output),
        }
    }

    /// Whether a piece of a message begins the dialect's handshake again. Of a message in several
    /// pieces what its libraries write is known: nothing is held back, since the token comes later.
    fn repeats_handshake(&mut self, step: &Step, input: &[u8], output: &Output) -> bool {
        let (piece, kind, first, last) = match step {
            Step::Data { range, kind, first, last } => (&input[range.clone()], kind, *first, *last),
            Step::Released { kind, last } => (&output.released[..], kind, true, *last),
            _ => return false,
        };
        let dialect = self.dialect().unwrap_or(Dialect::Plain);
        let Some(open) = self.open_mut().filter(|open| open.handshake_done) else { return false };
        if *kind != DataKind::Text {
            return false;
        }
        if first && last {
            return dialect.is_handshake(piece);
        }
        let prefix = dialect.handshake_prefix();
        let seen = if first { 0 } else { usize::from(open.handshake_seen) };
        let wanted = &prefix[seen..];
        if wanted.is_empty() {
            return false;
        }
        let length = wanted.len().min(piece.len());
        let alike = wanted[..length] == piece[..length];
        // Behind a prefix that was seen whole there is no message any more.
        open.handshake_seen = if alike { seen + length } else { prefix.len() } as u8;
        alike && length == wanted.len()
    }

    /// Some output was sent. With `flushed`, nothing is left.
    pub fn output_sent(&mut self, flushed: bool, ctx: &Context<'_>, output: &mut Output) {
        self.progressed = ctx.now.instant.into();
        if !flushed {
            return;
        }
        self.output_pending = false;
        self.pongs_unsent = 0;
        if let Some(payload) = self.pong.take() {
            self.write_pong(&payload, output);
        }
        match &mut self.phase {
            Phase::Ended(Ended {
                standing: Standing::Leaving,
                progress: CloseProgress::Said { lingering, .. },
                ..
            }) if !*lingering => {
                // The linger counts from when the last word left, not from when it was queued
                // behind messages that an authenticated client was still owed. It does so once:
                // what TLS adds later, a key update for instance, is not worth waiting for.
                *lingering = true;
                self.phase_since = ctx.now.instant.into();
            }
            Phase::Open(open) => {
                if let Some(mut renewal) = open.renewal.take() {
                    self.answer_renewal(&mut renewal, ctx, output);
                    self.put_back(renewal);
                }
            }
            _ => {}
        }
    }
}
