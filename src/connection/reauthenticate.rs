//! A fresh token on an open connection: the messages that bring one are told apart from those
//! for the backend, and judged as tokens are anywhere else.
//!
//! A message is the gateway's by its first bytes alone, so that all others pass as they come. Only
//! a message whose beginning came in several parts, each of which could still become the prefix,
//! is held until it is told apart: at most a prefix's length of it.

use std::sync::Arc;
use std::time::Duration;

use crate::base::time::Instant;
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::dialect::{Dialect, centrifuge};
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::link::{self, Reauth, SessionId};
use crate::protocol::websocket::{DataKind, OpCode};
use crate::settings::{Deadlines, Reauthenticate};

use super::authenticate::{self, Decision};
use super::client::{Client, Step, write_frame};
use super::{Context, Output};

/// What one fresh token takes from the budget of control frames: it costs a MAC or several, and a
/// frame to the backend.
const COST: u32 = 10;

/// What an open client keeps on a route where it may present fresh tokens.
pub(super) struct Renewal {
    form: Arc<Reauthenticate>,
    /// The message under way, if it is or may become the gateway's.
    held: Option<Held>,
    /// An answer waits for the end of a message of the backend's.
    answer_owed: bool,
    /// The command that it answers, where the dialect numbers them.
    command: Option<u32>,
}

/// The beginning of a message. Invariant: `form.prefix` and `bytes` begin alike, and
/// `bytes.len() <= limits.first_message_max`.
struct Held {
    bytes: Vec<u8>,
    since: Instant,
}

impl Renewal {
    pub(super) fn new(form: &Arc<Reauthenticate>) -> Box<Self> {
        Box::new(Renewal { form: Arc::clone(form), held: None, answer_owed: false, command: None })
    }

    /// Until when the message under way must be whole.
    pub(super) fn deadline(&self, deadlines: &Deadlines) -> Instant {
        self.held.as_ref().map_or(Instant::NEVER, |held| held.since + deadlines.authenticate)
    }

    /// Bytes that will need the backend's credit if they turn out to be for it.
    fn undecided(&self) -> usize {
        let held = self.held.as_ref().map_or(0, |held| held.bytes.len());
        if held < self.form.prefix.len() { held } else { 0 }
    }

    fn is_ours(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.bytes.len() >= self.form.prefix.len())
    }
}

impl Client {
    /// Takes frames of an open client that may present fresh tokens.
    pub(super) fn receive_sifted(
        &mut self,
        mut renewal: Box<Renewal>,
        input: &mut [u8],
        allowance: usize,
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> (usize, Step) {
        let left = match renewal.is_ours() {
            true => usize::MAX,
            false => allowance.saturating_sub(renewal.undecided()),
        };
        let (used, step) = match left {
            0 => (0, Step::Blocked),
            left => self.receive_frames(input, left, ctx, output),
        };
        let step = match step {
            Step::Data { range, kind, first, last } => {
                let piece = &input[range.clone()];
                let sifted = self.sift(&mut renewal, piece, (kind, first, last), ctx, output);
                sifted.unwrap_or(Step::Data { range, kind, first, last })
            }
            step => step,
        };
        if self.is_open() {
            self.set_renewal(renewal);
        }
        (used, step)
    }

    /// Looks at a piece of a message; `None` when it is the backend's.
    fn sift(
        &mut self,
        renewal: &mut Renewal,
        piece: &[u8],
        (kind, first, last): (DataKind, bool, bool),
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Option<Step> {
        let prefix = renewal.form.prefix.as_bytes();
        if first {
            if kind != DataKind::Text || !begins_alike(prefix, piece) {
                return None;
            }
            if last {
                let ours = piece.len() >= prefix.len();
                return ours.then(|| self.reauthenticate(renewal, piece, ctx, output));
            }
            renewal.held = Some(Held { bytes: Vec::new(), since: ctx.now.instant });
        }
        let mut held = renewal.held.take()?;
        if held.bytes.len() + piece.len() > ctx.settings.limits.first_message_max as usize {
            return Some(self.refuse_token(Cause::TokenMalformed, ctx, output));
        }
        held.bytes.extend_from_slice(piece);
        if !begins_alike(prefix, &held.bytes) || (last && held.bytes.len() < prefix.len()) {
            output.released = held.bytes;
            return Some(Step::Released { kind, last });
        }
        if last {
            return Some(self.reauthenticate(renewal, &held.bytes, ctx, output));
        }
        renewal.held = Some(held);
        Some(Step::Handled)
    }

    /// Judges the token in a whole message.
    fn reauthenticate(
        &mut self,
        renewal: &mut Renewal,
        message: &[u8],
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Step {
        if !self.afford_controls(COST, ctx) {
            self.close(Cause::RateLimited, ctx, output);
            return Step::Handled;
        }
        let Output { open, tokens, .. } = output;
        let (settings, unix) = (ctx.settings, ctx.now.unix);
        let decision = authenticate::by_open_client(settings, &renewal.form, message, unix, tokens);
        let cause = match decision {
            Decision::Accepted(identity) => match self.renew(&identity, ctx, open) {
                Ok(()) => {
                    ctx.counters.increment(Metric::ReauthAccepted);
                    renewal.answer_owed = true;
                    renewal.command = centrifuge::refresh(message);
                    self.answer_renewal(renewal, ctx, output);
                    return Step::Reauthenticated;
                }
                Err(cause) => cause,
            },
            Decision::AwaitFirstMessage | Decision::Ask(_) => Cause::TokenMissing,
            Decision::Refused(cause) => cause,
        };
        self.refuse_token(cause, ctx, output)
    }

    /// Puts a verified identity in the place of the one before, if it is the same subject's.
    fn renew(
        &mut self,
        identity: &VerifiedIdentity<'_>,
        ctx: &Context<'_>,
        frame: &mut Vec<u8>,
    ) -> Result<(), Cause> {
        let mark = ctx.revoked.mark(identity);
        if ctx.revoked.holds(mark, ctx.now.unix) {
            ctx.counters.increment(Metric::RevokedRefused);
            return Err(Cause::TokenRevoked);
        }
        if !self.mark().same_subject(mark) {
            return Err(Cause::TokenForbidden);
        }
        self.set_identity(identity, ctx);
        frame.clear();
        let reauth = Reauth {
            subject: Some(identity.subject()),
            token_id: identity.token_id(),
            expires: identity.expires(),
            claims: identity.claims(),
        };
        // All fields together are bounded by `token_max`, far below what a frame can hold.
        let fits = reauth.encode(SessionId::new(0, 0), link::PAYLOAD_MAX as u32, frame);
        assert!(fits, "a token over the size of a frame");
        Ok(())
    }

    /// A token that is not good ends the connection: whoever presents one has no better, and
    /// where trying again may help, the answer says so.
    fn refuse_token(&mut self, cause: Cause, ctx: &Context<'_>, output: &mut Output) -> Step {
        ctx.counters.increment(Metric::ReauthRefused);
        self.close(cause, ctx, output);
        Step::Handled
    }

    /// Tells the client that its token was taken, unless that would land in the middle of a
    /// message. Only two dialects have words for it.
    pub(super) fn answer_renewal(
        &self,
        renewal: &mut Renewal,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        if !renewal.answer_owed || self.to_client_unfinished {
            return;
        }
        renewal.answer_owed = false;
        let expires = self.expires.instant();
        let left = (expires != Instant::NEVER).then(|| expires.since(ctx.now.instant));
        match (self.dialect().unwrap_or(Dialect::Plain), renewal.command) {
            (Dialect::Plain, _) => {}
            (Dialect::Centrifuge, Some(command)) => {
                output.explanation.clear();
                centrifuge::write_refreshed(command, left, &mut output.explanation);
                return write_frame(OpCode::Text, &output.explanation, &mut output.answers);
            }
            _ => return,
        }
        let left = left.as_ref().map_or("null".to_owned(), |left| millis(*left).to_string());
        let answer = format!(r#"{{"type":"authenticated","expires_in_ms":{left}}}"#);
        write_frame(OpCode::Text, answer.as_bytes(), &mut output.answers);
    }
}

/// Whether the shorter is the beginning of the longer.
fn begins_alike(prefix: &[u8], text: &[u8]) -> bool {
    let length = prefix.len().min(text.len());
    prefix[..length] == text[..length]
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
