//! Clients whose upstream is an ordinary WebSocket server: a connection to it for each, from the
//! dial to the last byte. What comes from one side goes straight into the other's queue.

use crate::base::byte_queue::PoolExhausted;
use crate::base::circuit::Permit;
use crate::base::slab::Key;
use crate::base::time::{Instant, PackedInstant};
use crate::connection::client::End;
use crate::connection::session::Fragment;
use crate::connection::stage::ClosedBy;
use crate::connection::upstream::websocket::handshake::{Fault, Handshake};
use crate::connection::upstream::websocket::relay::Relay;
use crate::connection::upstream::websocket::tls::ServerTls;
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::websocket::{OpCode, is_sendable_close_code};
use crate::ring::Owner;
use crate::settings::Deadlines;

use super::auth_requests::PendingAuth;
use super::clients::Connection;
use super::core::Parts;
use super::servers::Server;
use super::sessions::{Session, reason_of};
use super::sockets::{Pipe, Reading};
use super::upstreams::{Upstream, UpstreamKind, upstream};

/// A server must have had one part in this many of `deadlines.upstream_connect`, the first attempt's
/// half of that halved, for a timeout to count as its failure.
const FAIR_PARTS: u32 = 4;
/// The close code for a server whose client was closed by the gateway (RFC 6455 §7.4.1: policy).
const CLOSED_BY_POLICY: u16 = 1008;
/// The close code for a server whose client is closed because the gateway goes.
const GOING_AWAY: u16 = 1001;

/// The connection to a WebSocket server, for one client.
pub(super) struct WebSocket {
    pub(super) state: State,
    pub(super) relay: Relay,
    /// With a `wss://` server, once the socket is there.
    pub(super) tls: Option<Box<ServerTls>>,
    /// Whose it is, until the session ends.
    pub(super) client: Option<Key>,
    /// Its number in the table of servers.
    pub(super) server: u16,
    /// In the agenda's list of those whose sends are to be filled.
    pub(super) dirty: bool,
    /// The client has more than the queue takes.
    pub(super) client_waits: bool,
    /// When a send last made progress, or output began to wait.
    pub(super) progressed: PackedInstant,
}

pub(super) enum State {
    /// The socket is being connected.
    Connecting(Box<Dial>),
    /// TLS is being agreed on, the request is on its way, or the answer is.
    Handshaking(Box<Dial>),
    /// Frames flow.
    Open,
    /// The last word is queued: the server's end is awaited, until then at most.
    Closing { until: PackedInstant },
    /// The last of TLS is being sent, until then at most: the end follows.
    Parting { until: PackedInstant },
    /// Nothing is awaited but the operations in flight.
    Over,
}

/// A connection that the server has not agreed to.
pub(super) struct Dial {
    pub(super) handshake: Handshake,
    /// What the choice of the server depends on.
    pub(super) affinity: Option<u64>,
    pub(super) permit: Permit,
    /// When this attempt began.
    begun: Instant,
    /// When this attempt has taken too long.
    until: Instant,
    /// When all attempts together have.
    pub(super) at_latest: Instant,
}

impl WebSocket {
    /// When its timer must fire; `NEVER` when there is nothing to wait for.
    pub(super) fn due(&self, deadlines: &Deadlines) -> Instant {
        match &self.state {
            State::Connecting(dial) | State::Handshaking(dial) => dial.until,
            State::Open if self.relay.unsent() > 0 => self.progressed + deadlines.write_stall,
            State::Open | State::Over => Instant::NEVER,
            State::Closing { until } | State::Parting { until } => until.instant(),
        }
    }
}

impl Parts {
    /// The connection to a WebSocket server with this key, which its client's session names.
    pub(super) fn websocket(&mut self, key: Key) -> &mut WebSocket {
        match &mut upstream(&mut self.upstreams, key).kind {
            UpstreamKind::WebSocket(websocket) => websocket,
            UpstreamKind::Link(_) => unreachable!("{key:?} names a link"),
        }
    }

    /// The server that a connection goes to.
    pub(super) fn server_of_websocket(&self, key: Key) -> &Server {
        match self.upstreams.entry(key).map(|upstream| &upstream.kind) {
            Some(UpstreamKind::WebSocket(it)) => self.servers.server(it.server),
            _ => unreachable!("{key:?} names no connection to a server"),
        }
    }

    /// Begins the handshake with a server of `backend` that the client's machine left in the
    /// output, or refuses the client. Until the server agrees nothing of the client's input is
    /// looked at.
    pub(super) fn dial(&mut self, key: Key, connection: &mut Connection, backend: u16) {
        let Some(handshake) = self.scratch.output.handshake.take() else {
            unreachable!("a client that wants a server says what it asks")
        };
        self.random.fill(&mut self.scratch.output.nonce.0);
        if let Some(identity) = self.scratch.output.request.identity() {
            self.control.keep_subject(&self.env.settings, key, identity.subject);
        }
        let now = self.env.now.instant;
        let at_latest = now + self.env.settings.deadlines.upstream_connect;
        let dialled = if self.control.drain.is_some() {
            Err(Cause::GoingAway)
        } else {
            let affinity = self.scratch.output.request.affinity();
            self.connect(handshake, (backend, affinity), None, Some(key), at_latest)
        };
        match dialled {
            Ok(upstream) => {
                connection.session = Some(Session::WebSocket(upstream));
                connection.backlog_or_new().pending_auth = PendingAuth::SERVER;
                connection.blocked = true;
            }
            Err(cause) => {
                let output = &mut self.scratch.output;
                connection.client.refuse(cause, &self.env.context(), output);
            }
        }
        self.send_answers(connection);
    }

    /// Connects to one of a backend's servers, other than the one that has just `failed`.
    pub(super) fn connect(
        &mut self,
        handshake: Handshake,
        (backend, affinity): (u16, Option<u64>),
        failed: Option<u16>,
        client: Option<Key>,
        at_latest: Instant,
    ) -> Result<Key, Cause> {
        let now = self.env.now.instant;
        let (server, permit) =
            self.servers.choose(backend, affinity, failed, &self.env.settings, now)?;
        // Half of what is left is for another server, should this one not answer.
        let until = now + at_latest.since(now) / 2;
        let dial = Dial { handshake, affinity, permit, begun: now, until, at_latest };
        let websocket = WebSocket {
            state: State::Connecting(Box::new(dial)),
            relay: Relay::default(),
            tls: None,
            client,
            server,
            dirty: false,
            client_waits: false,
            progressed: now.into(),
        };
        let key = self.upstreams.insert(Upstream::websocket(websocket));
        let endpoint = self.servers.endpoint(server);
        upstream(&mut self.upstreams, key).socket.connect(key, endpoint, &mut self.agenda.ops);
        self.env.counters.increment(Metric::UpstreamDials);
        self.agenda.upstream_timers.schedule(key.slot, until);
        Ok(key)
    }

    /// When a send to a server last made progress, and whether one is in flight; `None` when the
    /// connection is gone.
    pub(super) fn websocket_progress(&self, key: Key) -> Option<(Instant, bool)> {
        let upstream = self.upstreams.entry(key)?;
        let UpstreamKind::WebSocket(websocket) = &upstream.kind else { return None };
        let is_sending = upstream.socket.pipe().is_some_and(Pipe::is_sending);
        Some((websocket.progressed.instant(), is_sending))
    }

    /// The largest message of a server; any, once a reload has removed it.
    pub(super) fn server_message_max(&self, key: Key) -> u32 {
        let backend = self.server_of_websocket(key).standing.backend();
        let settings =
            |backend: u16| self.env.settings.backends[usize::from(backend)].server.as_ref();
        backend.and_then(settings).and_then(|server| server.message_max).unwrap_or(u32::MAX)
    }

    /// What it says of a server that it did not agree in time. It says nothing if the server
    /// answered others meanwhile, or if there was little time: a stranger's late attempts must not
    /// close it to all.
    pub(super) fn timed_out(&mut self, key: Key) -> Fault {
        let now = self.env.now.instant;
        let enough = self.env.settings.deadlines.upstream_connect / FAIR_PARTS;
        let websocket = self.websocket(key);
        let (begun, since, fault) = match &websocket.state {
            State::Connecting(dial) => (dial.begun, dial.begun, Fault::ConnectTimedOut),
            State::Handshaking(dial) if websocket.relay.unsent() > 0 => {
                // A request that found no send slot has asked the server nothing.
                (dial.begun, now, Fault::AnswerTimedOut)
            }
            State::Handshaking(dial) => {
                (dial.begun, websocket.progressed.instant(), Fault::AnswerTimedOut)
            }
            _ => unreachable!("it has agreed"),
        };
        let server = websocket.server;
        let is_well = self.servers.answered_since(server, begun);
        if is_well || now.since(since) < enough { Fault::Hurried } else { fault }
    }

    /// How many payload bytes the queue to a server takes now. Remembers a client that waits.
    pub(super) fn websocket_allowance(&mut self, key: Key) -> Option<usize> {
        let window = self.env.settings.limits.session_window as usize;
        let websocket = self.websocket(key);
        let allowance = websocket.relay.allowance(window);
        websocket.client_waits |= allowance.is_none();
        allowance
    }

    /// Queues a piece of a client's message for its server; false when there is no room.
    pub(super) fn websocket_data(&mut self, key: Key, fragment: &Fragment<'_>) -> bool {
        let mask = self.mask();
        self.queue(key, |relay, parts| {
            relay.data(fragment, mask, &mut parts.pools.backlogs, &mut parts.scratch.frame)
        })
    }

    /// Queues a client's ping or pong for its server; false when there is no room.
    pub(super) fn websocket_control(&mut self, key: Key, opcode: OpCode) -> bool {
        let mask = self.mask();
        let payload = self.scratch.output.control;
        self.queue(key, |relay, parts| {
            let (pool, room) = (&mut parts.pools.backlogs, &mut parts.scratch.frame);
            relay.control(opcode, payload.as_slice(), mask, pool, room)
        })
    }

    /// A mask that no client can foresee (RFC 6455 §5.3).
    fn mask(&mut self) -> [u8; 4] {
        (self.random.number() as u32).to_ne_bytes()
    }

    fn queue(
        &mut self,
        key: Key,
        push: impl FnOnce(&mut Relay, &mut Parts) -> Result<(), PoolExhausted>,
    ) -> bool {
        let mut relay = std::mem::take(&mut self.websocket(key).relay);
        let queued = push(&mut relay, self);
        self.websocket(key).relay = relay;
        self.mark_websocket(key);
        queued.is_ok()
    }

    /// Has its sends filled at the end of the turn, and its timer set.
    pub(super) fn mark_websocket(&mut self, key: Key) {
        let Parts { upstreams, agenda, env, .. } = self;
        let upstream = upstream(upstreams, key);
        let UpstreamKind::WebSocket(websocket) = &mut upstream.kind else { return };
        let can_send = upstream.socket.pipe_mut().is_some_and(|pipe| pipe.can_send());
        if can_send && websocket.has_output() && !websocket.dirty {
            websocket.progressed = env.now.instant.into();
            agenda.mark_dirty(Owner::Upstream(key), &mut websocket.dirty);
        }
        let due = websocket.due(&env.settings.deadlines);
        let earlier = |scheduled: Instant| due < scheduled;
        if due != Instant::NEVER && agenda.upstream_timers.scheduled(key.slot).is_none_or(earlier) {
            agenda.upstream_timers.schedule(key.slot, due);
        }
    }

    /// A server's kernel took bytes: a client that waits for room goes on once half of it is free.
    pub(super) fn websocket_sent(&mut self, key: Key) {
        let window = self.env.settings.limits.session_window as usize;
        let now = self.env.now.instant;
        let websocket = self.websocket(key);
        websocket.progressed = now.into();
        if websocket.client_waits && websocket.relay.unsent() <= window / 2 {
            websocket.client_waits = false;
            let client = websocket.client;
            self.agenda.woken.extend(client);
        }
    }

    /// Where the server's own messages let clients in, this may be the one.
    pub(super) fn look_for_acceptance(
        &mut self,
        connection: &mut Connection,
        fragment: &Fragment<'_>,
    ) {
        if connection.client.awaits_acceptance() {
            let Fragment { kind, first, last, bytes } = *fragment;
            let ctx = self.env.context();
            if connection.client.server_said(kind, (first, last), bytes, &ctx) {
                self.session_opened(connection);
            }
        }
    }

    /// Reads a server, or stops, by what waits for its client.
    pub(super) fn read_websocket(&mut self, key: Key, unsent: usize) {
        let window = self.env.settings.limits.session_window as usize;
        let Parts { upstreams, agenda, .. } = self;
        let socket = &mut upstream(upstreams, key).socket;
        let Some(pipe) = socket.pipe_mut() else { return };
        let reading = if unsent >= window { Reading::Paused } else { Reading::Active };
        if pipe.set_reading(reading) {
            socket.reconcile(key, &mut agenda.ops);
        }
    }

    /// The client's session is over: what the server hears of it, in its own terms.
    pub(super) fn leave_websocket(&mut self, key: Key, end: &End) {
        let websocket = self.websocket(key);
        websocket.client = None;
        match websocket.state {
            State::Open => {}
            State::Closing { .. } | State::Parting { .. } | State::Over => return,
            State::Connecting(_) | State::Handshaking(_) => {
                self.abandon_dial(key);
                return self.end_websocket(key, false);
            }
        }
        match (end.cause, end.by) {
            // What the client's connection was to the gateway, this one is to the server.
            (Cause::ClientGone, _) => self.end_websocket(key, false),
            (Cause::ClientClosed, _) => {
                let code = end.code.filter(|code| is_sendable_close_code(*code));
                let reason = reason_of(&self.scratch.output, end).to_owned();
                self.close_websocket(key, code, &reason);
            }
            (Cause::GoingAway, _) => self.close_websocket(key, Some(GOING_AWAY), ""),
            (_, ClosedBy::Client | ClosedBy::Backend | ClosedBy::Gateway) => {
                self.close_websocket(key, Some(CLOSED_BY_POLICY), end.cause.label());
            }
        }
    }

    /// Queues the close frame to a server. It has a linger for its own, and its end.
    pub(super) fn close_websocket(&mut self, key: Key, code: Option<u16>, reason: &str) {
        let mask = self.mask();
        self.queue(key, |relay, parts| {
            relay.close(code, reason, mask, &mut parts.pools.backlogs, &mut parts.scratch.frame);
            Ok(())
        });
        let until = self.env.now.instant + self.env.settings.deadlines.linger;
        self.websocket(key).state = State::Closing { until: until.into() };
        // What it still sends is read and dropped, so that its end is found.
        self.read_websocket(key, 0);
        self.mark_websocket(key);
    }

    /// Ends the connection to a server, or the attempt: the entry goes with the last operation.
    pub(super) fn end_websocket(&mut self, key: Key, reset: bool) {
        if !reset && self.part_websocket(key) {
            return;
        }
        let Parts { upstreams, agenda, pools, .. } = self;
        let upstream = upstream(upstreams, key);
        if let UpstreamKind::WebSocket(websocket) = &mut upstream.kind {
            websocket.state = State::Over;
            websocket.tls = None;
            websocket.relay.drop_output(&mut pools.backlogs);
        }
        agenda.upstream_timers.cancel(key.slot);
        upstream.socket.end(reset, key, &mut agenda.ops);
    }

    /// The client left before the server answered, which says nothing about the server.
    fn abandon_dial(&mut self, key: Key) {
        let now = self.env.now.instant;
        let websocket = self.websocket(key);
        let server = websocket.server;
        if let State::Connecting(dial) | State::Handshaking(dial) =
            std::mem::replace(&mut websocket.state, State::Over)
        {
            self.servers.abandoned(server, dial.permit, now);
        }
    }

    /// Removes the entry of a connection of which nothing is left.
    pub(super) fn forget_websocket(&mut self, key: Key) {
        let upstream = upstream(&mut self.upstreams, key);
        let UpstreamKind::WebSocket(websocket) = &upstream.kind else { return };
        if !matches!(websocket.state, State::Over) || upstream.socket.is_busy() {
            return;
        }
        let server = websocket.server;
        self.agenda.upstream_timers.cancel(key.slot);
        self.upstreams.remove(key);
        self.servers.left(server);
    }
}
