//! One client, from its first plaintext byte to its last: request head, token, frames, close.
//!
//! The transport (TLS) lies below and the worker above. After every call the worker sends what
//! is in [`Output::answers`], acts on the [`Step`], and looks at [`Client::is_open`],
//! [`Client::socket_action`] and [`Client::next_deadline`].

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use crate::base::time::{Instant, PackedInstant, UnixTime};
use crate::base::token_bucket::TokenBucket;
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::dialect::Dialect;
use crate::protocol::http_upgrade::{self, HttpRefusal};
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::revocation::IdentityFingerprint;
use crate::protocol::websocket::{
    self, ControlPayload, DataKind, FrameLimits, FrameReader, HeaderBytes, OpCode, Side,
};
use crate::settings::{MessageTypes, Route, Settings};

use super::auth_request::Question;
use super::closing::{CloseDetails, write_close};
use super::deadlines;
use super::rare_state::RareState;
use super::stage::{ClosedBy, Stage};
use super::{Context, Output};

/// What a call to [`Client::receive`] came to. Bytes that were not consumed come again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// All input is used up.
    NeedMore,
    /// The next bytes are payload, and the allowance is used up.
    Blocked,
    /// Something was handled that concerns nobody else.
    Handled,
    /// A piece of a message, unmasked, in `input[range]`.
    Data {
        /// Where the piece is.
        range: Range<usize>,
        /// Text or binary.
        kind: DataKind,
        /// The message begins with this piece.
        first: bool,
        /// The message ends with this piece.
        last: bool,
    },
    /// A piece of a message that was held back until it was told apart, in [`Output::released`].
    /// The message begins with it.
    Released {
        /// Text or binary.
        kind: DataKind,
        /// The message ends with this piece.
        last: bool,
    },
    /// The client presented a fresh token; [`Output::open`] holds the REAUTH frame.
    Reauthenticated,
    /// Somebody else must say who the client is. Nothing more is to be fed until
    /// [`Client::accept`], or until the client is refused.
    Ask(Question),
    /// The identity is verified; [`Output::open`] holds the OPEN frame.
    Authenticated {
        /// Index of the backend that gets the session.
        backend: u16,
    },
}

/// What the worker is to do with the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketAction {
    /// Keep it.
    Stay,
    /// Send FIN once everything queued is sent, then wait for the client's end or the deadline.
    ShutdownWhenFlushed,
    /// FIN is sent: wait for the client's end or the deadline, and throw away what comes.
    AwaitEnd,
    /// Close once everything queued is sent.
    CloseWhenFlushed,
    /// Close, whatever is queued.
    CloseNow {
        /// With RST.
        reset: bool,
    },
}

/// What whoever refused a client wants it to be told beyond the cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RejectHint<'a> {
    /// When to come back, instead of the dialect's own time; of no effect where the client
    /// should not come back at all.
    pub retry_after: Option<Duration>,
    /// The close frame's reason, at most 123 bytes; empty leaves it to the dialect. A close frame
    /// that waits goes without it.
    pub message: &'a str,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub cause: Cause,
    /// Who began it.
    pub by: ClosedBy,
    /// The close code on the wire, if there was a close frame.
    pub code: Option<u16>,
    /// The furthest stage before the end began.
    pub stage: Stage,
}

/// The state machine of one client.
///
/// Invariants: `stage == Open` exactly while a session may exist; `end.is_some()` exactly in
/// `Refused` and `Closing`, or when the socket_action is `CloseNow`.
pub struct Client {
    pub(super) stage: Stage,
    pub(super) socket_action: SocketAction,
    dialect: Option<Dialect>,
    pub(super) pings: Pings,
    pub(super) output_pending: bool,
    /// 0 <= pongs_unsent <= limits.pongs_unsent_max, as that was when the last was written.
    pongs_unsent: u8,
    /// The client broke the protocol: nothing more is read.
    pub(super) failed: bool,
    tls: bool,
    /// The client has been sent the beginning of a message, but not its end.
    pub(super) to_client_unfinished: bool,
    pub(super) close_progress: CloseProgress,
    pub(super) close_scheduled: Cause,
    pub(super) messages: MessageTypes,
    route: u16,
    end: Option<End>,
    pub(super) accepted: PackedInstant,
    pub(super) stage_since: PackedInstant,
    pub(super) received: PackedInstant,
    pub(super) progressed: PackedInstant,
    pub(super) expires: PackedInstant,
    pub(super) close_at: PackedInstant,
    /// Largest message that the session's backend takes.
    backend_message_max: u32,
    frames: TokenBucket,
    controls: TokenBucket,
    reader: FrameReader,
    /// What most connections do not have most of the time.
    pub(super) rare_state: Option<Box<RareState>>,
    peer: PackedAddress,
    mark: IdentityFingerprint,
}

/// How far the end of a connection is, in `Refused` and `Closing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CloseProgress {
    /// All is said, and perhaps queued. Also before there is anything to say.
    Idle,
    /// The close frame is still to come, at `close_at`.
    Delayed,
    /// In `Closing`: everything up to our close frame was sent once.
    Lingering,
}

/// What is known of pings, in one byte: there is one for each connection.
#[derive(Clone, Copy, Default)]
pub(super) struct Pings(u8);

impl Pings {
    const SENT: u8 = 1;
    const PROMISED: u8 = 2;

    /// A ping is out, and nothing came since.
    pub(super) fn is_sent(self) -> bool {
        self.0 & Pings::SENT != 0
    }

    /// The client was promised messages of the dialect at the ping interval.
    pub(super) fn are_promised(self) -> bool {
        self.0 & Pings::PROMISED != 0
    }

    pub(super) fn set_sent(&mut self, sent: bool) {
        self.0 = (self.0 & !Pings::SENT) | u8::from(sent);
    }

    pub(super) fn promise(&mut self) {
        self.0 |= Pings::PROMISED;
    }
}

/// `route` before a route is chosen.
const NO_ROUTE: u16 = u16::MAX;

impl Client {
    /// A connection just accepted. `jitter` is a random number; it spreads lifetimes.
    pub fn new(peer: Option<SocketAddr>, tls: bool, jitter: u32, ctx: &Context<'_>) -> Self {
        let now = ctx.now.instant;
        let stage = if tls { Stage::TlsHandshake } else { Stage::RequestHead };
        ctx.counters.increment(gauge(stage));
        Client {
            stage,
            socket_action: SocketAction::Stay,
            dialect: None,
            pings: Pings::default(),
            output_pending: false,
            pongs_unsent: 0,
            failed: false,
            tls,
            to_client_unfinished: false,
            close_progress: CloseProgress::Idle,
            close_scheduled: Cause::Lifetime,
            messages: MessageTypes::Any,
            route: NO_ROUTE,
            end: None,
            accepted: now.into(),
            stage_since: now.into(),
            received: now.into(),
            progressed: now.into(),
            expires: Instant::NEVER.into(),
            close_at: deadlines::lifetime_end(now, ctx.settings.deadlines.lifetime, jitter).into(),
            backend_message_max: u32::MAX,
            frames: TokenBucket::full(now),
            controls: TokenBucket::full(now),
            reader: FrameReader::new(Side::Server),
            rare_state: None,
            peer: PackedAddress::pack(peer),
            mark: IdentityFingerprint::ANONYMOUS,
        }
    }

    /// Where the client comes from, as far as is known.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer.unpack()
    }

    /// A trusted proxy said where the client comes from.
    pub fn set_peer(&mut self, peer: SocketAddr) {
        self.peer = PackedAddress::pack(Some(peer));
    }

    /// Whether the client came over TLS to this gateway.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// How far the connection is.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Whether the client is authenticated and not closing: it has, or may have, a session.
    pub fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// Whether the client counts against the cap on unauthenticated connections.
    pub fn is_unauthenticated(&self) -> bool {
        match self.stage {
            Stage::TlsHandshake | Stage::RequestHead | Stage::Authenticating => true,
            Stage::Refused => true,
            Stage::Open | Stage::Closing => false,
        }
    }

    /// What the worker is to do with the connection.
    pub fn socket_action(&self) -> SocketAction {
        self.socket_action
    }

    /// How the connection ended, once it has.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// The dialect, once a route was chosen.
    pub fn dialect(&self) -> Option<Dialect> {
        self.dialect
    }

    /// Index of the route, once one was chosen.
    pub fn route(&self) -> Option<u16> {
        (self.route != NO_ROUTE).then_some(self.route)
    }

    /// When the connection was accepted.
    pub fn accepted(&self) -> Instant {
        self.accepted.instant()
    }

    /// When a byte last came from the client.
    pub fn received(&self) -> Instant {
        self.received.instant()
    }

    /// When a send last made progress.
    pub fn progressed(&self) -> Instant {
        self.progressed.instant()
    }

    /// The TLS handshake is done: the request head may come.
    pub fn handshake_finished(&mut self, ctx: &Context<'_>) {
        if self.stage == Stage::TlsHandshake {
            ctx.counters.increment(Metric::TlsHandshakes);
            self.enter(Stage::RequestHead, ctx);
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
        self.pings.set_sent(false);
        match self.stage {
            Stage::TlsHandshake => unreachable!("plaintext before the handshake is finished"),
            Stage::RequestHead => (input.len(), self.receive_head(input, ctx, output)),
            Stage::Authenticating => {
                debug_assert!(!self.awaits_decision(), "input before the verdict");
                let (used, step) = self.receive_frames(input, usize::MAX, ctx, output);
                (used, self.take_first_message(step, input, ctx, output))
            }
            Stage::Open => match self.take_renewal() {
                None => self.receive_frames(input, allowance, ctx, output),
                Some(renewal) => self.receive_sifted(renewal, input, allowance, ctx, output),
            },
            Stage::Refused | Stage::Closing => self.receive_after_close(input, ctx, output),
        }
    }

    /// The client's connection ended, and nothing reaches it any more.
    pub fn peer_gone(&mut self, ctx: &Context<'_>) {
        if self.end.is_none() {
            let cause = match self.stage {
                Stage::TlsHandshake => Cause::TlsFailed,
                _ => Cause::ClientGone,
            };
            self.conclude(cause, ClosedBy::Client, None);
            self.enter(Stage::Closing, ctx);
        }
        self.dispose(SocketAction::CloseNow { reset: false });
    }

    /// The client will send nothing more, but may still read: an answer that is queued goes out
    /// first. A session does not live on half a connection.
    pub fn peer_finished(&mut self, ctx: &Context<'_>) {
        if self.end.is_some() && self.output_pending {
            self.dispose(SocketAction::CloseWhenFlushed);
        } else {
            self.peer_gone(ctx);
        }
    }

    /// TLS failed. An alert may be queued; it is sent as far as that goes at once.
    pub fn tls_failed(&mut self, ctx: &Context<'_>) {
        if self.end.is_none() {
            self.conclude(Cause::TlsFailed, ClosedBy::Gateway, None);
            let stage = if self.is_open() { Stage::Closing } else { Stage::Refused };
            self.enter(stage, ctx);
        }
        self.dispose(SocketAction::ShutdownWhenFlushed);
    }

    /// Ends the connection for `cause`, telling the client as its stage allows.
    pub fn close(&mut self, cause: Cause, ctx: &Context<'_>, output: &mut Output) {
        match self.stage {
            Stage::TlsHandshake | Stage::RequestHead => self.drop_silently(cause, ctx),
            Stage::Authenticating => self.refuse_in_dialect(cause, ctx, output),
            Stage::Open => {
                self.explain_and_close(cause, &CloseDetails::default(), Stage::Closing, ctx, output)
            }
            // Whoever was told already is not kept waiting.
            Stage::Refused | Stage::Closing if self.is_paced() => self.end_pace(ctx, output),
            Stage::Refused | Stage::Closing => {}
        }
    }

    /// Refuses an open client whose session could not be opened: as [`close`](Self::close), but
    /// with the explanation that a refused client gets.
    pub fn refuse(&mut self, cause: Cause, ctx: &Context<'_>, output: &mut Output) {
        match self.stage {
            Stage::Authenticating | Stage::Open => self.refuse_in_dialect(cause, ctx, output),
            _ => self.close(cause, ctx, output),
        }
    }

    /// The backend closed the session. A code that may not be sent becomes the dialect's.
    pub fn close_by_backend(
        &mut self,
        code: u16,
        reason: &str,
        ctx: &Context<'_>,
        output: &mut Output,
    ) {
        if self.stage != Stage::Open {
            return;
        }
        let unsaid = self.answer(Cause::BackendClosed, ctx.settings).code;
        let code = if websocket::is_sendable_close_code(code) { code } else { unsaid };
        write_close(code, reason, output);
        self.conclude(Cause::BackendClosed, ClosedBy::Backend, Some(code));
        self.enter(Stage::Closing, ctx);
    }

    /// The session's backend takes messages up to this: a larger one would cost all its clients
    /// their link, so it costs this client its connection.
    pub fn session_opened(&mut self, message_max: u32) {
        self.backend_message_max = message_max;
    }

    /// Ends the connection without a word.
    pub fn drop_silently(&mut self, cause: Cause, ctx: &Context<'_>) {
        if self.end.is_none() {
            self.conclude(cause, ClosedBy::Gateway, None);
            self.enter(Stage::Closing, ctx);
        }
        self.dispose(SocketAction::CloseNow { reset: true });
    }

    /// Closes the connection for `cause` at `at`, unless it ends earlier.
    pub fn schedule_close(&mut self, at: Instant, cause: Cause) {
        if at < self.close_at.instant() {
            self.close_at = at.into();
            self.close_scheduled = cause;
        }
    }

    /// The header of a frame that carries the next piece of a message to the client; `None`
    /// when the client is no longer open. The link has seen to the order of the pieces.
    pub fn data_header(
        &mut self,
        kind: DataKind,
        first: bool,
        last: bool,
        length: usize,
    ) -> Option<HeaderBytes> {
        if !self.is_open() {
            return None;
        }
        self.to_client_unfinished = !last;
        Some(websocket::write_header(last, kind.opcode(first), length as u64, None))
    }

    /// FIN was sent after the last answer.
    pub fn shut_down(&mut self) {
        self.dispose(SocketAction::AwaitEnd);
    }

    /// Output was queued for the client where none was.
    pub fn output_queued(&mut self, ctx: &Context<'_>) {
        if !self.output_pending {
            self.output_pending = true;
            self.progressed = ctx.now.instant.into();
        }
    }

    /// Some output was sent. With `flushed`, nothing is left.
    pub fn output_sent(&mut self, flushed: bool, ctx: &Context<'_>, output: &mut Output) {
        self.progressed = ctx.now.instant.into();
        if !flushed {
            return;
        }
        self.output_pending = false;
        self.pongs_unsent = 0;
        if self.stage == Stage::Closing && self.close_progress == CloseProgress::Idle {
            // The linger counts from when the close frame left, not from when it was queued
            // behind messages that an authenticated client was still owed. It does so once:
            // what TLS adds later, a key update for instance, is not worth waiting for.
            self.close_progress = CloseProgress::Lingering;
            self.stage_since = ctx.now.instant.into();
        }
        if self.rare_state.is_none() {
            return;
        }
        if let Some(payload) = self.take_pong() {
            self.write_pong(&payload, output);
        }
        if let Some(mut renewal) = self.take_renewal() {
            self.answer_renewal(&mut renewal, ctx, output);
            self.set_renewal(renewal);
        }
    }

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
        if !self.within_budgets(ctx) {
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
            websocket::Step::Ping(payload) => {
                self.pong(&payload, ctx.settings.limits.pongs_unsent_max, output);
                Step::Handled
            }
            websocket::Step::Pong(_) => Step::Handled,
            websocket::Step::Close { code, reason } => {
                self.closed_by_client(code, reason.as_slice(), ctx, output);
                Step::Handled
            }
        };
        (used, step)
    }

    /// RFC 6455 §7.1.7: after a broken frame nothing more is read, not even a close, so FIN
    /// follows our close frame at once. Where the settings say so, that waits for what the
    /// backend has under way for this client.
    fn fail(&mut self, cause: Cause, ctx: &Context<'_>, output: &mut Output) {
        self.failed = true;
        let grace = ctx.settings.deadlines.failure_grace;
        if self.is_open() && !grace.is_zero() {
            self.schedule_close(ctx.now.instant + grace, cause);
        } else {
            self.close(cause, ctx, output);
        }
    }

    /// Sets the socket_action. `CloseNow` is the last word: what is queued may be cut short by
    /// then, and must not be sent as if it were whole.
    pub(super) fn dispose(&mut self, socket_action: SocketAction) {
        if !matches!(self.socket_action, SocketAction::CloseNow { .. }) {
            self.socket_action = socket_action;
        }
    }

    /// RFC 6455 §5.5.1: a close is answered with a close, and then the server ends first.
    fn closed_by_client(
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
        self.conclude(Cause::ClientClosed, ClosedBy::Client, code);
        // Who never authenticated stays under the cap and the deadlines of those.
        let stage = if self.is_open() { Stage::Closing } else { Stage::Refused };
        self.enter(stage, ctx);
        self.socket_action = SocketAction::CloseWhenFlushed;
    }

    /// After our close frame only the client's matters; all else is thrown away. While ours is
    /// still to come it answers the client's.
    fn receive_after_close(
        &mut self,
        input: &mut [u8],
        ctx: &Context<'_>,
        output: &mut Output,
    ) -> (usize, Step) {
        if self.socket_action != SocketAction::Stay {
            return (input.len(), Step::Handled);
        }
        let limits = self.frame_limits(ctx.settings);
        match self.reader.next(input, usize::MAX, &limits) {
            Ok((_, websocket::Step::Close { .. })) => {
                if self.is_paced() {
                    self.end_pace(ctx, output);
                }
                self.socket_action = SocketAction::CloseWhenFlushed;
                (input.len(), Step::Handled)
            }
            // It has been told to wait, and does not.
            Ok(_) if self.is_paced() && !self.within_budgets(ctx) => {
                self.dispose(SocketAction::CloseNow { reset: true });
                (input.len(), Step::Handled)
            }
            Ok((used, websocket::Step::NeedMore)) => (used, Step::NeedMore),
            Ok((used, _)) => (used, Step::Handled),
            Err(_) if self.is_paced() => (input.len(), Step::Handled),
            Err(_) => {
                self.socket_action = SocketAction::CloseWhenFlushed;
                (input.len(), Step::Handled)
            }
        }
    }

    fn within_budgets(&mut self, ctx: &Context<'_>) -> bool {
        let limits = &ctx.settings.limits;
        let now = ctx.now.instant;
        let frames = self.reader.frames_seen();
        let controls = self.reader.controls_seen();
        (frames == 0
            || self.frames.take(frames, limits.frames_per_second, limits.frames_burst, now))
            && (controls == 0 || self.take_controls(controls, ctx))
    }

    fn take_controls(&mut self, count: u32, ctx: &Context<'_>) -> bool {
        let limits = &ctx.settings.limits;
        let (rate, burst) = (limits.controls_per_second, limits.controls_burst);
        self.controls.take(count, rate, burst, ctx.now.instant)
    }

    /// Takes what something dear costs from the budget of control frames: all of a burst, where
    /// that is less.
    pub(super) fn afford_controls(&mut self, cost: u32, ctx: &Context<'_>) -> bool {
        self.take_controls(cost.min(ctx.settings.limits.controls_burst), ctx)
    }

    fn frame_limits(&self, settings: &Settings) -> FrameLimits {
        let limits = &settings.limits;
        let authenticating = self.stage == Stage::Authenticating;
        let relayed_max = limits.message_max.min(self.backend_message_max);
        FrameLimits {
            message_max: if authenticating { limits.first_message_max } else { relayed_max },
            fragments_max: limits.fragments_max,
            text: authenticating || self.messages != MessageTypes::Binary,
            binary: authenticating || self.messages != MessageTypes::Text,
        }
    }

    /// Answers a ping at once, or, while enough earlier answers are still unsent, remembers only
    /// the latest: RFC 6455 §5.5.3 lets one pong stand for several pings.
    fn pong(&mut self, payload: &ControlPayload, unsent_max: u8, output: &mut Output) {
        if self.pongs_unsent >= unsent_max {
            self.set_pong(payload);
        } else {
            self.write_pong(payload, output);
        }
    }

    fn write_pong(&mut self, payload: &ControlPayload, output: &mut Output) {
        self.pongs_unsent += 1;
        write_frame(OpCode::Pong, payload.as_slice(), &mut output.answers);
    }

    /// Answers over HTTP and ends.
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
        refusal.write_with(detail, &mut output.answers);
        self.end_over_http(refusal.cause(), ctx);
    }

    pub(super) fn answer_health(&mut self, is_head: bool, ctx: &Context<'_>, output: &mut Output) {
        http_upgrade::write_ok_health(&mut output.answers, is_head);
        self.end_over_http(Cause::HealthCheck, ctx);
    }

    /// An HTTP answer was the last word: FIN follows it.
    fn end_over_http(&mut self, cause: Cause, ctx: &Context<'_>) {
        self.conclude(cause, ClosedBy::Gateway, None);
        self.enter(Stage::Refused, ctx);
        self.socket_action = SocketAction::ShutdownWhenFlushed;
    }

    /// Keeps what later frames need of the route: a reload may move or remove it.
    pub(super) fn set_route(&mut self, index: u16, route: &Route) {
        self.route = index;
        self.messages = route.messages;
    }

    /// The client speaks it from the 101 on, whatever a reload makes of its route.
    pub(super) fn set_dialect(&mut self, dialect: Dialect) {
        self.dialect = Some(dialect);
    }

    pub(super) fn replace_route(&mut self, index: Option<u16>) {
        self.route = index.unwrap_or(NO_ROUTE);
    }

    /// When the identity is over, as the wall clock says now. From here on the monotonic clock
    /// counts: a step of the wall clock neither lengthens the connection nor cuts it short.
    pub fn set_expiry(&mut self, expires: UnixTime, ctx: &Context<'_>) {
        let left = expires.as_millis().saturating_sub(ctx.now.unix.as_millis());
        let grace = ctx.settings.deadlines.expiry_grace;
        self.expires = (ctx.now.instant + Duration::from_millis(left) + grace).into();
    }

    /// Keeps what is asked of the identity later: when it is over, and what revocations and
    /// fresh tokens are compared with.
    pub(super) fn set_identity(&mut self, identity: &VerifiedIdentity<'_>, ctx: &Context<'_>) {
        self.mark = ctx.revoked.mark(identity);
        match identity.ends(ctx.now.unix) {
            Some(end) => self.set_expiry(end, ctx),
            None => self.expires = Instant::NEVER.into(),
        }
    }

    /// What revocations are compared with; of no use before the client is open.
    pub fn mark(&self) -> IdentityFingerprint {
        self.mark
    }

    pub(super) fn enter(&mut self, stage: Stage, ctx: &Context<'_>) {
        if stage != self.stage {
            ctx.counters.decrement(gauge(self.stage));
            ctx.counters.increment(gauge(stage));
        }
        self.stage = stage;
        self.stage_since = ctx.now.instant.into();
        if matches!(stage, Stage::Open | Stage::Refused | Stage::Closing) {
            self.question_over(ctx);
            self.take_pending();
            self.drop_empty_rare_state();
        }
        if matches!(stage, Stage::Refused | Stage::Closing) {
            self.rare_state = None;
            if self.failed && !self.is_paced() {
                self.dispose(SocketAction::ShutdownWhenFlushed);
            }
        }
    }

    /// The close frame said this after all.
    pub(super) fn set_close_code(&mut self, code: u16) {
        if let Some(end) = &mut self.end {
            end.code = Some(code);
        }
    }

    pub(super) fn conclude(&mut self, cause: Cause, by: ClosedBy, code: Option<u16>) {
        if self.end.is_none() {
            self.end = Some(End { cause, by, code, stage: self.stage });
        }
    }

    /// The connection leaves the worker: its gauge goes down.
    pub fn leave(&self, ctx: &Context<'_>) {
        ctx.counters.decrement(gauge(self.stage));
    }
}

/// An optional socket address in 18 bytes instead of 32: there is one for each connection. No
/// client has port 0, so that stands for none.
#[derive(Clone, Copy)]
struct PackedAddress {
    /// IPv4 in its mapped form.
    ip: [u8; 16],
    port: u16,
}

impl PackedAddress {
    fn pack(address: Option<SocketAddr>) -> Self {
        let Some(address) = address else { return PackedAddress { ip: [0; 16], port: 0 } };
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        PackedAddress { ip: ip.octets(), port: address.port() }
    }

    fn unpack(self) -> Option<SocketAddr> {
        let ip = IpAddr::from(self.ip).to_canonical();
        (self.port != 0).then(|| SocketAddr::new(ip, self.port))
    }
}

/// Appends a whole frame of the gateway's own.
pub(super) fn write_frame(opcode: OpCode, payload: &[u8], answers: &mut Vec<u8>) {
    let header = websocket::write_header(true, opcode, payload.len() as u64, None);
    answers.extend_from_slice(header.as_slice());
    answers.extend_from_slice(payload);
}

const fn gauge(stage: Stage) -> Metric {
    match stage {
        Stage::TlsHandshake => Metric::StageTls,
        Stage::RequestHead => Metric::StageHead,
        Stage::Authenticating => Metric::StageAuthenticating,
        Stage::Open => Metric::StageOpen,
        Stage::Refused => Metric::StageRefused,
        Stage::Closing => Metric::StageClosing,
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
