//! The end of a connection: what the gateway sends, how long its close frame waits, and what
//! follows it.
//!
//! While its close frame waits a client has no session, and holds its place, of TLS what it takes
//! to encrypt one more frame, and at most the beginning of one short message.

use std::time::Duration;

use crate::base::time::Instant;
use crate::connection::context::{Context, Output};
use crate::connection::stage::{ClosedBy, Stage};
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::close_detail::{CloseDetail, TlsFault};
use crate::protocol::dialect::{Answer, Dialect};
use crate::protocol::http_upgrade::{self, HttpRefusal};
use crate::protocol::proxy_header::ProxyError;
use crate::protocol::verifier::Refusal;
use crate::protocol::websocket::{self, OpCode};
use crate::settings::{Deadlines, MessageTypes};

use super::phase::{
    Authenticating, Awaited, CloseProgress, Delayed, DelayedInput, Ended, Next, Phase, Standing,
};
use super::state::{Client, write_frame};

/// What a client that used up every stage still gets to read its refusal.
const REFUSED_GRACE: Duration = Duration::from_millis(100);

/// The longest that a client waits for its token to become valid: clocks that are further apart
/// are not a matter of waiting.
const EARLY_MAX: Duration = Duration::from_secs(60);

/// What graphql-ws's servers close with when they refuse a connection_init.
const GRAPHQL_FORBIDDEN: u16 = 4403;

/// What a backend that refuses a client wants it to be told beyond the cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RejectHint<'a> {
    /// When to come back, instead of the dialect's own time; of no effect where the client
    /// should not come back at all.
    pub retry_after: Option<Duration>,
    /// The close frame's reason, at most 123 bytes; empty leaves it to the dialect. A close frame
    /// that waits goes without it.
    pub message: &'a str,
}

/// What goes with a close beyond its cause.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CloseDetails<'a> {
    /// The client's command that is answered, if it was one.
    pub(super) command: Option<u32>,
    pub(super) hint: RejectHint<'a>,
    /// After a broken frame (RFC 6455 §7.1.7): FIN follows the close frame.
    pub(super) broken: bool,
    /// Trying again is of no use, though the cause's own answer says so.
    pub(super) is_final: bool,
}

impl CloseDetails<'_> {
    /// A token whose time begins soon is to be shown again then; one of next year is not.
    pub(super) fn of(refusal: Refusal, ctx: &Context<'_>) -> Self {
        let now_ms = ctx.now.unix.as_millis();
        let wait = refusal
            .valid_from
            .map(|at| Duration::from_millis(at.as_millis().saturating_sub(now_ms)));
        let soon = wait.filter(|wait| *wait <= EARLY_MAX);
        CloseDetails {
            hint: RejectHint { retry_after: soon, ..RejectHint::default() },
            is_final: wait.is_some() && soon.is_none(),
            ..CloseDetails::default()
        }
    }
}

impl Client {
    /// The client's connection ended, and nothing reaches it any more.
    pub fn peer_gone(&mut self, ctx: &Context<'_>) {
        let (cause, detail) = match self.phase {
            Phase::TlsHandshake => (Cause::TlsFailed, Some(CloseDetail::Tls(TlsFault::ClientLeft))),
            _ => (Cause::ClientGone, None),
        };
        let progress = CloseProgress::Dropped { reset: false };
        let end = (cause, ClosedBy::Client, None);
        self.end_because(end, detail, Standing::Leaving, progress, ctx);
        self.drop_ended(false);
    }

    /// The client will send nothing more, but may still read: what is queued goes out first. A
    /// session does not live on half a connection.
    pub fn peer_finished(&mut self, ctx: &Context<'_>) {
        if !self.output_pending || self.stage() == Stage::TlsHandshake {
            return self.peer_gone(ctx);
        }
        let standing = if self.is_open() { Standing::Leaving } else { Standing::Refused };
        let progress = CloseProgress::said(Next::Close);
        self.end_with((Cause::ClientGone, ClosedBy::Client, None), standing, progress, ctx);
        self.say_last(Next::Close);
    }

    /// TLS failed. An alert may be queued; it is sent as far as the socket takes it.
    pub fn tls_failed(&mut self, fault: TlsFault, ctx: &Context<'_>) {
        let standing = if self.is_open() { Standing::Leaving } else { Standing::Refused };
        let progress = CloseProgress::said(Next::Shutdown);
        let end = (Cause::TlsFailed, ClosedBy::Gateway, None);
        self.end_because(end, Some(CloseDetail::Tls(fault)), standing, progress, ctx);
        self.say_last(Next::Shutdown);
    }

    /// Ends the connection for `cause`, telling the client as its phase allows.
    pub fn close(&mut self, cause: Cause, ctx: &Context<'_>, output: &mut Output) {
        self.close_with(cause, &CloseDetails::default(), ctx, output);
    }

    pub(super) fn close_with(
        &mut self,
        cause: Cause,
        details: &CloseDetails<'_>,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        match &self.phase {
            Phase::TlsHandshake | Phase::RequestHead(_) => self.drop_silently(cause, ctx),
            Phase::Authenticating(_) => self.refuse_with(cause, details, ctx, output),
            Phase::Open(_) => {
                self.explain_and_close(cause, details, Standing::Leaving, ctx, output);
            }
            // A client that was told already is not kept waiting.
            Phase::Ended(_) => self.end_delay(ctx, output),
        }
    }

    /// Refuses an open client whose session could not be opened: as [`close`](Self::close), but
    /// with the explanation that a refused client gets.
    pub fn refuse(&mut self, cause: Cause, ctx: &Context<'_>, output: &mut Output) {
        match self.phase {
            Phase::Authenticating(_) | Phase::Open(_) => {
                self.refuse_in_dialect(cause, ctx, output);
            }
            _ => self.close(cause, ctx, output),
        }
    }

    /// The backend closed the session; a WebSocket server perhaps without a code. One that may not
    /// be sent becomes the dialect's.
    pub fn close_by_backend(
        &mut self,
        code: Option<u16>,
        reason: &str,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        if !self.relays() {
            return;
        }
        // A refusal: the clients of graphql-ws would return after the code of their own servers.
        let refuses = self.awaits_acceptance() && code == Some(GRAPHQL_FORBIDDEN);
        if refuses && self.dialect() == Some(Dialect::Graphql) {
            ctx.counters.increment(Metric::UpstreamMessageRefusals);
            return self.refuse_in_dialect(Cause::TokenForbidden, ctx, output);
        }
        let unsaid = self.answer(Cause::BackendClosed, false, ctx).code;
        let sendable = |code| if websocket::is_sendable_close_code(code) { code } else { unsaid };
        let code = code.map(sendable);
        match code {
            Some(code) => write_close(code, reason, output),
            None => write_frame(OpCode::Close, &[], &mut output.answers),
        }
        let next = if self.is_broken() { Next::Shutdown } else { Next::AwaitClose };
        let end = (Cause::BackendClosed, ClosedBy::Backend, code);
        let standing = if self.is_open() { Standing::Leaving } else { Standing::Refused };
        self.end_with(end, standing, CloseProgress::said(next), ctx);
    }

    /// RFC 6455 §5.5.1: a close is answered with a close, and then the server ends first.
    pub(super) fn close_by_client(
        &mut self,
        code: Option<u16>,
        reason: &[u8],
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        output.reason.clear();
        output.reason.extend_from_slice(reason);
        match code {
            Some(code) => write_close(code, "", output),
            None => write_frame(OpCode::Close, &[], &mut output.answers),
        }
        // A client that never authenticated stays under the cap and the deadlines of those.
        let standing = if self.is_open() { Standing::Leaving } else { Standing::Refused };
        let end = (Cause::ClientClosed, ClosedBy::Client, code);
        self.end_with(end, standing, CloseProgress::said(Next::Close), ctx);
    }

    /// Ends the connection without a word.
    pub fn drop_silently(&mut self, cause: Cause, ctx: &Context<'_>) {
        self.drop_because(cause, None, ctx);
    }

    /// A trusted proxy did not say where the client comes from.
    pub fn refuse_proxy_header(&mut self, error: ProxyError, ctx: &Context<'_>) {
        self.drop_because(Cause::BadRequest, Some(CloseDetail::Proxy(error)), ctx);
    }

    fn drop_because(&mut self, cause: Cause, detail: Option<CloseDetail>, ctx: &Context<'_>) {
        let progress = CloseProgress::Dropped { reset: true };
        let end = (cause, ClosedBy::Gateway, None);
        self.end_because(end, detail, Standing::Leaving, progress, ctx);
        self.drop_ended(true);
    }

    /// Answers over HTTP, and ends.
    pub(super) fn refuse_http(
        &mut self,
        refusal: HttpRefusal,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        self.refuse_http_with(refusal, &[], ctx, output);
    }

    /// `detail` goes behind the sentence of the answer: it must be fit to show.
    pub(super) fn refuse_http_with(
        &mut self,
        refusal: HttpRefusal,
        detail: &[&str],
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        refusal.write_with(detail, None, &mut output.answers);
        self.end_over_http(refusal.cause(), refusal.detail(), ctx);
    }

    /// Refuses an upgrade over HTTP. Programs read these answers, so whether to try again, and when,
    /// is what the route and the plain dialect say of the cause.
    pub(super) fn refuse_upgrade_over_http(
        &mut self,
        refusal: Refusal,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        let CloseDetails { hint, is_final, .. } = CloseDetails::of(refusal, ctx);
        let answer = self.answer_in(Dialect::Plain, refusal.cause, is_final, ctx);
        let wait = if answer.reconnect { hint.retry_after.or(answer.retry_after) } else { None };
        let over_http = HttpRefusal::for_cause(refusal.cause);
        over_http.write_with(&[], wait, &mut output.answers);
        let detail = is_final.then_some(CloseDetail::TokenFarOff).or(over_http.detail());
        self.end_over_http(over_http.cause(), detail, ctx);
    }

    pub(super) fn answer_health(&mut self, is_head: bool, ctx: &Context<'_>, output: &mut Output) {
        http_upgrade::write_ok_health(&mut output.answers, is_head);
        self.end_over_http(Cause::HealthCheck, None, ctx);
    }

    /// An HTTP answer was the last word: FIN follows it.
    fn end_over_http(&mut self, cause: Cause, detail: Option<CloseDetail>, ctx: &Context<'_>) {
        let end = (cause, ClosedBy::Gateway, None);
        let progress = CloseProgress::said(Next::Shutdown);
        self.end_because(end, detail, Standing::Refused, progress, ctx);
    }

    /// Explains a refusal, closes, and waits a linger for the client's close.
    pub(super) fn refuse_in_dialect(
        &mut self,
        cause: Cause,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        self.refuse_with(cause, &CloseDetails::default(), ctx, output);
    }

    pub(super) fn refuse_with(
        &mut self,
        cause: Cause,
        details: &CloseDetails<'_>,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        output.rest.clear();
        if self.switch_for_refusal(cause, ctx, output) {
            self.explain_and_close(cause, details, Standing::Refused, ctx, output);
        }
    }

    /// Explains, where the dialect has words for `cause`, and closes: immediately, or when the
    /// delay is over.
    fn explain_and_close(
        &mut self,
        cause: Cause,
        details: &CloseDetails<'_>,
        standing: Standing,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        let mut answer = self.answer(cause, details.is_final, ctx);
        if answer.reconnect && details.hint.retry_after.is_some() {
            answer.retry_after = details.hint.retry_after;
        }
        self.write_explanation(&answer, details.command, output);
        let broken = details.broken || self.is_broken();
        let due = self.delay_end(answer.pace, standing, ctx);
        let progress = if due > ctx.now.instant {
            ctx.counters.increment(Metric::ClosesPaced);
            CloseProgress::Delayed(Delayed {
                until: due.into(),
                input: if broken { DelayedInput::Broken } else { DelayedInput::Answered },
                to_client_unfinished: self.to_client_unfinished(),
                partial: None,
            })
        } else {
            let own = details.hint.message;
            write_close(answer.code, if own.is_empty() { answer.reason } else { own }, output);
            CloseProgress::said(if broken { Next::Shutdown } else { Next::AwaitClose })
        };
        let detail = details.is_final.then_some(CloseDetail::TokenFarOff);
        let end = (cause, ClosedBy::Gateway, Some(answer.code));
        self.end_because(end, detail, standing, progress, ctx);
    }

    /// The close frame has waited long enough. A reload may have given it other words.
    pub(super) fn end_delay(&mut self, ctx: &Context<'_>, output: &mut Output) {
        let Phase::Ended(Ended { end, progress: CloseProgress::Delayed(delayed), .. }) =
            &self.phase
        else {
            return;
        };
        let broken = delayed.input == DelayedInput::Broken;
        let is_final = end.detail == Some(CloseDetail::TokenFarOff);
        let answer = self.answer(end.cause, is_final, ctx);
        write_close(answer.code, answer.reason, output);
        self.phase_since = ctx.now.instant.into();
        // Nothing may follow the close frame.
        self.pong = None;
        if let Phase::Ended(ended) = &mut self.phase {
            ended.end.code = Some(answer.code);
            let next = if broken { Next::Shutdown } else { Next::AwaitClose };
            ended.progress = CloseProgress::said(next);
        }
    }

    /// Whether the close frame is still to come, at [`next_deadline`](Self::next_deadline).
    pub fn is_close_delayed(&self) -> bool {
        self.delayed().is_some()
    }

    /// Whether the socket is to be read. A client that went on too fast, or broke the protocol,
    /// while its close frame waits is read again after that: its own close, or its end, may be
    /// behind what it sent.
    pub fn takes_input(&self) -> bool {
        self.delayed().is_none_or(|delayed| delayed.input == DelayedInput::Answered)
    }

    pub(super) fn delayed(&self) -> Option<&Delayed> {
        match &self.phase {
            Phase::Ended(Ended { progress: CloseProgress::Delayed(delayed), .. }) => Some(delayed),
            _ => None,
        }
    }

    pub(super) fn delayed_mut(&mut self) -> Option<&mut Delayed> {
        match &mut self.phase {
            Phase::Ended(Ended { progress: CloseProgress::Delayed(delayed), .. }) => Some(delayed),
            _ => None,
        }
    }

    fn is_broken(&self) -> bool {
        matches!(&self.phase, Phase::Open(open) if open.broken)
    }

    fn to_client_unfinished(&self) -> bool {
        match &self.phase {
            Phase::Open(open) => open.to_client_unfinished,
            Phase::Authenticating(Authenticating { awaited: Awaited::Acceptance(it), .. }) => {
                it.to_client_unfinished
            }
            _ => false,
        }
    }

    /// How `cause` is put to this client: looked up when it is said, so that it costs no memory
    /// and a reload counts.
    pub(super) fn answer<'s>(&self, cause: Cause, is_final: bool, ctx: &Context<'s>) -> Answer<'s> {
        self.answer_in(self.dialect().unwrap_or(Dialect::Plain), cause, is_final, ctx)
    }

    fn answer_in<'s>(
        &self,
        dialect: Dialect,
        cause: Cause,
        is_final: bool,
        ctx: &Context<'s>,
    ) -> Answer<'s> {
        let answer = |cause| match self.settings_of_route(ctx) {
            Some(route) => route.closes.answer(dialect, cause),
            None => dialect.answer(cause),
        };
        let own = answer(cause);
        match is_final && own.reconnect {
            false => own,
            true => Answer { cause, reason: own.reason, ..answer(Cause::BadSignature) },
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
        let unfit = self.to_client_unfinished() || self.messages == MessageTypes::Binary;
        if !answer.explain || unfit {
            return;
        }
        let dialect = self.dialect().unwrap_or(Dialect::Plain);
        output.explanation.clear();
        dialect.write_explanation(answer, command, &mut output.explanation);
        if !output.explanation.is_empty() {
            write_frame(OpCode::Text, &output.explanation, &mut output.answers);
        }
    }

    /// When a close frame that waits for `delay` is due. An unauthenticated client must be closed
    /// within the sum of its stages' deadlines, linger included, so its delay is capped.
    fn delay_end(&self, delay: Duration, standing: Standing, ctx: &Context<'_>) -> Instant {
        let now = ctx.now.instant;
        let share = f64::from(self.spread(ctx.jitter)) / f64::from(u32::MAX);
        let due = now + delay + (delay / 2).mul_f64(share);
        if delay.is_zero() || standing != Standing::Refused {
            return due;
        }
        let deadlines = &ctx.settings.deadlines;
        let left = self.refused_at_latest(deadlines).since(now).saturating_sub(deadlines.linger);
        due.min(now + left)
    }

    /// When all unauthenticated stages together are over.
    pub(super) fn refused_at_latest(&self, deadlines: &Deadlines) -> Instant {
        let stages = deadlines.tls_handshake + deadlines.request_head + deadlines.authenticate;
        self.accepted + stages + REFUSED_GRACE
    }

    /// A number of this client's own, drawn from one that all of a turn share: those that are
    /// closed together must not come back together. (The mixing is SplitMix64's.)
    pub(super) fn spread(&self, jitter: u32) -> u32 {
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
