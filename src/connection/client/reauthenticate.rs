//! A fresh token on an open connection: finds the messages that bring one among those for
//! the backend, and judges the token as any other.
//!
//! A message is the gateway's by its first bytes alone, so that all others pass as they come. Only
//! a message whose beginning came in several parts, each of which could still become the prefix,
//! is buffered until it is classified: at most a prefix's length of it.

use std::time::Duration;

use crate::base::time::Instant;
use crate::connection::authenticate::{self, Decision};
use crate::connection::context::{Context, Output};
use crate::connection::session::SessionRequest;
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::dialect::{Dialect, centrifuge};
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::verifier::Refusal;
use crate::protocol::websocket::{DataKind, OpCode};

use super::closing::CloseDetails;
use super::phase::Phase;
use super::renewal::{Buffered, Renewal};
use super::state::{Client, write_frame};
use super::step::Step;

/// What one fresh token takes from the budget of control frames: it costs a MAC or several, and a
/// frame to the backend.
const COST: u32 = 10;

impl Client {
    /// Takes frames of an open client that may present fresh tokens.
    pub(super) fn receive_classified(
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
                let classified =
                    self.classify(&mut renewal, piece, (kind, first, last), ctx, output);
                classified.unwrap_or(Step::Data { range, kind, first, last })
            }
            step => step,
        };
        self.put_back(renewal);
        (used, step)
    }

    /// Keeps what was taken out of the phase to be worked on, unless the client is closed now.
    pub(super) fn put_back(&mut self, renewal: Box<Renewal>) {
        if let Some(open) = self.open_mut() {
            open.renewal = Some(renewal);
        }
    }

    /// Looks at a piece of a message; `None` when it is the backend's.
    fn classify(
        &mut self,
        renewal: &mut Renewal,
        piece: &[u8],
        (kind, first, last): (DataKind, bool, bool),
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> Option<Step> {
        let prefix = renewal.pattern.prefix.as_bytes();
        if first {
            if kind != DataKind::Text || !begins_alike(prefix, piece) {
                return None;
            }
            if last {
                let ours = piece.len() >= prefix.len();
                return ours.then(|| self.reauthenticate(renewal, piece, ctx, output));
            }
            renewal.buffered = Some(Buffered { bytes: Vec::new(), since: ctx.now.instant });
        }
        let mut buffered = renewal.buffered.take()?;
        if buffered.bytes.len() + piece.len() > ctx.settings.limits.first_message_max as usize {
            return Some(self.refuse_token(Cause::TokenMalformed.into(), ctx, output));
        }
        buffered.bytes.extend_from_slice(piece);
        if !begins_alike(prefix, &buffered.bytes) || (last && buffered.bytes.len() < prefix.len()) {
            output.released = buffered.bytes;
            return Some(Step::Released { kind, last });
        }
        if last {
            return Some(self.reauthenticate(renewal, &buffered.bytes, ctx, output));
        }
        renewal.buffered = Some(buffered);
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
        if !self.charge_controls(COST, ctx) {
            self.close(Cause::RateLimited, ctx, output);
            return Step::Handled;
        }
        let Output { request, tokens, .. } = output;
        let (settings, unix) = (ctx.settings, ctx.now.unix);
        let decision =
            authenticate::by_open_client(settings, &renewal.pattern, message, unix, tokens);
        let refusal = match decision {
            Decision::Accepted(identity) => match self.renew(&identity, ctx, request) {
                Ok(()) => {
                    ctx.counters.increment(Metric::ReauthAccepted);
                    renewal.answer_owed = true;
                    renewal.command = centrifuge::refresh(message);
                    self.answer_renewal(renewal, ctx, output);
                    return Step::Reauthenticated;
                }
                Err(cause) => cause.into(),
            },
            Decision::AwaitFirstMessage | Decision::Ask(_) | Decision::AskServer => {
                Cause::TokenMissing.into()
            }
            Decision::Refused(refusal) => refusal,
        };
        self.refuse_token(refusal, ctx, output)
    }

    /// Puts a verified identity in the place of the one before, if it is the same subject's.
    fn renew(
        &mut self,
        identity: &VerifiedIdentity<'_>,
        ctx: &Context<'_>,
        request: &mut SessionRequest,
    ) -> Result<(), Cause> {
        let mark = ctx.revoked.mark(identity);
        // Of a route that a reload removed the worker knows the backend: by the session.
        let route = self.settings_of_route(ctx);
        if route.is_some_and(|route| ctx.is_revoked(identity, route)) {
            ctx.counters.increment(Metric::RevokedRefused);
            return Err(Cause::TokenRevoked);
        }
        if !self.mark().same_subject(mark) {
            return Err(Cause::TokenForbidden);
        }
        self.replace_identity(identity, ctx);
        request.clear();
        request.set_identity(identity);
        Ok(())
    }

    /// A token that is not good ends the connection: a client that presents one has no better, and
    /// where trying again may help, the answer says so.
    fn refuse_token(&mut self, refusal: Refusal, ctx: &Context<'_>, output: &mut Output) -> Step {
        ctx.counters.increment(Metric::ReauthRefused);
        self.close_with(refusal.cause, &CloseDetails::of(refusal, ctx), ctx, output);
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
        let Phase::Open(open) = &self.phase else { return };
        if !renewal.answer_owed || open.to_client_unfinished {
            return;
        }
        renewal.answer_owed = false;
        let expires = open.expires.instant();
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
