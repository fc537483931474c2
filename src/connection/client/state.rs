//! One client from its first plaintext byte to its last: what is known of it in every phase, and
//! the one place where phases change.

use std::net::SocketAddr;
use std::time::Duration;

use crate::base::time::{Instant, PackedInstant, UnixTime};
use crate::base::token_bucket::TokenBucket;
use crate::connection::context::{Context, Output};
use crate::connection::route_order::{RouteNumber, RouteOrder};
use crate::connection::stage::{ClosedBy, Stage};
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::close_detail::CloseDetail;
use crate::protocol::dialect::Dialect;
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::revocation::IdentityFingerprint;
use crate::protocol::websocket::{
    self, ControlPayload, DataKind, FrameReader, HeaderBytes, OpCode, Side,
};
use crate::settings::{MessageTypes, Route};

use super::admitted::{expiry, identity_end};
use super::peer_address::{PeerAddress, PeerIs};
use super::phase::{
    Authenticating, Awaited, CloseProgress, End, Ended, Next, Open, PendingDecision, Phase,
    Standing, gauge,
};
use super::step::SocketAction;

/// The state machine of one client.
///
/// After every call the worker sends what is in
/// [`Output::answers`](crate::connection::Output::answers), acts on the
/// [`Step`](super::Step), and looks at [`Client::is_open`], [`Client::socket_action`] and
/// [`Client::next_deadline`].
pub struct Client {
    pub(super) phase: Phase,
    dialect: Option<Dialect>,
    tls: bool,
    pub(super) output_pending: bool,
    /// 0 <= pongs_unsent <= limits.pongs_unsent_max, as that was when the last was written.
    pub(super) pongs_unsent: u8,
    pub(super) messages: MessageTypes,
    route: RouteNumber,
    /// When a live client is closed, whatever it does: at the end of its lifetime, in a drain, or
    /// after the loss of its backend. Of no effect in [`Phase::Ended`].
    pub(super) close_scheduled: PackedInstant,
    pub(super) close_cause: Cause,
    pub(super) accepted: PackedInstant,
    pub(super) phase_since: PackedInstant,
    pub(super) received: PackedInstant,
    pub(super) progressed: PackedInstant,
    pub(super) frames: TokenBucket,
    pub(super) controls: TokenBucket,
    pub(super) reader: FrameReader,
    /// The pong that waits for earlier ones to be sent.
    pub(super) pong: Option<Box<ControlPayload>>,
    pub(super) peer: PeerAddress,
    /// The number of the listener: there are at most 64.
    pub(super) listener: u8,
    pub(super) peer_is: PeerIs,
    /// The client was let in without an identity, where the route welcomes visitors.
    pub(super) is_visitor: bool,
    /// The client speaks TLS, to this gateway or to a server in front of it.
    pub(super) is_secure: bool,
}

impl Client {
    /// A connection that the `listener` of this number just accepted. `jitter` is a random number;
    /// it spreads lifetimes.
    pub fn new(
        peer: Option<SocketAddr>,
        listener: u16,
        tls: bool,
        jitter: u32,
        ctx: &Context<'_>,
    ) -> Self {
        let now = ctx.now.instant;
        let phase = if tls { Phase::TlsHandshake } else { Phase::RequestHead(None) };
        ctx.counters.increment(gauge(phase.stage()));
        let lifetime_end = lifetime_end(now, ctx.settings.deadlines.lifetime, jitter);
        let mut client = Client {
            phase,
            dialect: None,
            tls,
            output_pending: false,
            pongs_unsent: 0,
            messages: MessageTypes::Any,
            route: RouteNumber::NONE,
            close_scheduled: lifetime_end.into(),
            close_cause: Cause::Lifetime,
            accepted: now.into(),
            phase_since: now.into(),
            received: now.into(),
            progressed: now.into(),
            frames: TokenBucket::full(now),
            controls: TokenBucket::full(now),
            reader: FrameReader::new(Side::Server),
            pong: None,
            peer: PeerAddress::pack(peer),
            listener: listener as u8,
            peer_is: PeerIs::Client,
            is_visitor: false,
            is_secure: false,
        };
        client.meet_peer(ctx);
        client
    }

    /// Where the client comes from, as far as is known.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer.unpack()
    }

    /// A trusted proxy said where the client comes from.
    pub fn set_peer(&mut self, peer: SocketAddr, ctx: &Context<'_>) {
        self.peer = PeerAddress::pack(Some(peer));
        self.meet_peer(ctx);
    }

    /// There is no room for the client: its request is answered with that, in its dialect.
    pub fn refuse_for_capacity(&mut self) {
        self.close_cause = Cause::OverCapacity;
    }

    /// Whether there was no room for the client from the beginning. A drain that has begun since
    /// is the better reason.
    pub(super) fn is_over_capacity(&self) -> bool {
        self.close_cause == Cause::OverCapacity
    }

    /// Whether the client came over TLS to this gateway.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// How far the connection is.
    pub fn stage(&self) -> Stage {
        self.phase.stage()
    }

    /// Whether the client is authenticated and not closing: it has, or may have, a session.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }

    /// Whether the client has a session, or may have one: frames pass, or will once another
    /// program has decided.
    pub fn holds_session(&self) -> bool {
        self.is_open() || self.awaits_decision() || self.awaits_acceptance()
    }

    /// Whether frames pass between the client and its upstream.
    pub fn relays(&self) -> bool {
        self.is_open() || self.awaits_acceptance()
    }

    /// Whether the client counts against the cap on unauthenticated connections.
    pub fn is_unauthenticated(&self) -> bool {
        !matches!(self.stage(), Stage::Open | Stage::Closing)
    }

    /// Whether the client was let in without an identity, on a route that welcomes visitors.
    pub fn is_visitor(&self) -> bool {
        self.is_visitor
    }

    /// What the worker is to do with the socket.
    pub fn socket_action(&self) -> SocketAction {
        self.phase.socket_action()
    }

    /// How the connection ended, once it has.
    pub fn end(&self) -> Option<End> {
        if let Phase::Ended(ended) = &self.phase { Some(ended.end) } else { None }
    }

    /// The dialect, once a route was chosen.
    pub fn dialect(&self) -> Option<Dialect> {
        self.dialect
    }

    /// The number of the listener that accepted it.
    pub fn listener_number(&self) -> u16 {
        self.listener.into()
    }

    /// Index of the route, once one was chosen and while the settings have it.
    pub fn route(&self, routes: &RouteOrder) -> Option<u16> {
        routes.place(self.route)
    }

    pub(super) fn settings_of_route<'s>(&self, ctx: &Context<'s>) -> Option<&'s Route> {
        self.route(ctx.routes).and_then(|index| ctx.settings.routes.get(usize::from(index)))
    }

    /// A reload changed the order of the routes.
    pub fn renew_route(&mut self, routes: &RouteOrder) {
        self.route = routes.renewed(self.route);
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

    /// What revocations are compared with; of no use before the client is open.
    pub fn mark(&self) -> IdentityFingerprint {
        if let Phase::Open(open) = &self.phase { open.mark } else { IdentityFingerprint::ANONYMOUS }
    }

    /// Whether another program has still to decide about this client, or to agree to it.
    pub fn awaits_decision(&self) -> bool {
        self.pending_decision().is_some() || self.awaits_server()
    }

    /// Whether that is the WebSocket server behind.
    pub fn awaits_server(&self) -> bool {
        let Phase::Authenticating(authenticating) = &self.phase else { return false };
        matches!(authenticating.awaited, Awaited::Server(_))
    }

    pub(super) fn pending_decision(&self) -> Option<PendingDecision> {
        match &self.phase {
            Phase::Authenticating(Authenticating { awaited: Awaited::Decision(it), .. }) => {
                Some(**it)
            }
            _ => None,
        }
    }

    pub(super) fn open_mut(&mut self) -> Option<&mut Open> {
        if let Phase::Open(open) = &mut self.phase { Some(open) } else { None }
    }

    /// The session's backend takes messages up to this: a larger one would cost all its clients
    /// their link, so it costs this client its connection.
    pub fn session_opened(&mut self, message_max: u32) {
        if let Some(open) = self.open_mut() {
            open.backend_message_max = open.backend_message_max.min(message_max);
        }
    }

    /// Closes the connection for `cause` at `at`, unless it ends earlier. A close frame that
    /// waits already comes then at the latest.
    pub fn schedule_close(&mut self, at: Instant, cause: Cause) {
        match &mut self.phase {
            Phase::Ended(Ended { progress: CloseProgress::Delayed(delayed), .. }) => {
                delayed.until = delayed.until.instant().min(at).into();
            }
            Phase::Ended(_) => {}
            _ if at < self.close_scheduled.instant() => {
                self.close_scheduled = at.into();
                self.close_cause = cause;
            }
            _ => {}
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
        match &mut self.phase {
            Phase::Open(open) => open.to_client_unfinished = !last,
            _ => self.pending_acceptance()?.to_client_unfinished = !last,
        }
        Some(websocket::write_header(last, kind.opcode(first), length as u64, None))
    }

    /// Leaves a ping or pong of the server behind in the output's answers. The pong to a ping of
    /// the gateway's own is never asked for.
    pub fn pass_control(&self, opcode: OpCode, payload: &[u8], output: &mut Output) {
        if self.relays() {
            write_frame(opcode, payload, &mut output.answers);
        }
    }

    /// Output was queued for the client where none was.
    pub fn output_queued(&mut self, ctx: &Context<'_>) {
        if !self.output_pending {
            self.output_pending = true;
            self.progressed = ctx.now.instant.into();
        }
    }

    /// A send of the client's output begins: what it waited for a slot before is not the client's.
    pub fn output_begun(&mut self, now: Instant) {
        self.progressed = now.into();
    }

    /// FIN was sent after the last answer.
    pub fn shut_down(&mut self) {
        self.say_last(Next::AwaitFin);
    }

    /// Keeps what later frames need of the route: a reload may move or remove it.
    pub(super) fn set_route(&mut self, index: u16, route: &Route, ctx: &Context<'_>) {
        self.route = ctx.routes.number(index);
        self.messages = route.messages;
    }

    /// The client speaks it from the 101 on, whatever a reload makes of its route.
    pub(super) fn set_dialect(&mut self, dialect: Dialect) {
        self.dialect = Some(dialect);
    }

    /// When the identity is over, as the wall clock says now. From here on the monotonic clock
    /// counts: a step of the wall clock neither lengthens the connection nor cuts it short.
    pub fn set_expiry(&mut self, expires: UnixTime, ctx: &Context<'_>) {
        if let Some(open) = self.open_mut() {
            open.expires = expiry(expires, ctx).into();
        }
    }

    /// Puts a verified identity in the place of the one before.
    pub(super) fn replace_identity(&mut self, identity: &VerifiedIdentity<'_>, ctx: &Context<'_>) {
        if let Some(open) = self.open_mut() {
            open.mark = ctx.revoked.mark(identity);
            open.expires = identity_end(identity, ctx).into();
        }
    }

    /// The one place where a client's phase changes.
    pub(super) fn enter(&mut self, phase: Phase, ctx: &Context<'_>) {
        let (from, to) = (self.stage(), phase.stage());
        if from != to {
            ctx.counters.decrement(gauge(from));
            ctx.counters.increment(gauge(to));
        }
        if let (Some(pending), Phase::Ended(ended)) = (self.pending_decision(), &phase) {
            let outcome = match ended.end.cause {
                Cause::BackendUnavailable => Metric::VerdictsUnavailable,
                Cause::AuthenticationTimedOut => Metric::VerdictsTimedOut,
                _ => Metric::VerdictsWithdrawn,
            };
            pending.count(outcome, ctx);
        }
        if let Phase::Ended(_) = &phase {
            self.pong = None;
        }
        self.phase = phase;
        self.phase_since = ctx.now.instant.into();
    }

    /// Ends the connection, if it has not ended before.
    pub(super) fn end_with(
        &mut self,
        end: (Cause, ClosedBy, Option<u16>),
        standing: Standing,
        progress: CloseProgress,
        ctx: &Context<'_>,
    ) {
        self.end_because(end, None, standing, progress, ctx);
    }

    /// As [`end_with`](Self::end_with), with what the cause was in particular.
    pub(super) fn end_because(
        &mut self,
        (cause, by, code): (Cause, ClosedBy, Option<u16>),
        detail: Option<CloseDetail>,
        standing: Standing,
        progress: CloseProgress,
        ctx: &Context<'_>,
    ) {
        if !matches!(self.phase, Phase::Ended(_)) {
            let end = End { cause, by, code, stage: self.stage(), detail };
            self.enter(Phase::Ended(Ended { end, standing, progress }), ctx);
        }
    }

    /// Sets what follows the last word. [`CloseProgress::Dropped`] is final: what is queued may
    /// be cut short by then, and must not be sent as if it were whole.
    pub(super) fn say_last(&mut self, after: Next) {
        let Phase::Ended(ended) = &mut self.phase else { return };
        match &mut ended.progress {
            CloseProgress::Said { next, .. } => *next = after,
            CloseProgress::Delayed(_) => ended.progress = CloseProgress::said(after),
            CloseProgress::Dropped { .. } => {}
        }
    }

    /// Gives up what is queued for a client that has ended.
    pub(super) fn drop_ended(&mut self, reset: bool) {
        if let Phase::Ended(ended) = &mut self.phase
            && !matches!(ended.progress, CloseProgress::Dropped { .. })
        {
            ended.progress = CloseProgress::Dropped { reset };
        }
    }

    /// The connection leaves the worker: its gauge goes down.
    pub fn leave(&self, ctx: &Context<'_>) {
        ctx.counters.decrement(gauge(self.stage()));
    }
}

/// The lifetime, shortened by up to a tenth so that connections made together part.
fn lifetime_end(now: Instant, lifetime: Option<Duration>, jitter: u32) -> Instant {
    let Some(lifetime) = lifetime else { return Instant::NEVER };
    let tenth = lifetime / 10;
    let cut = tenth.mul_f64(f64::from(jitter) / f64::from(u32::MAX));
    now + lifetime.saturating_sub(cut)
}

/// Appends a whole frame of the gateway's own.
pub(super) fn write_frame(opcode: OpCode, payload: &[u8], answers: &mut Vec<u8>) {
    let header = websocket::write_header(true, opcode, payload.len() as u64, None);
    answers.extend_from_slice(header.as_slice());
    answers.extend_from_slice(payload);
}
