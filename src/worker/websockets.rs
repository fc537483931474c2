//! Clients whose upstream is an ordinary WebSocket server: a connection to it for each, from the
//! dial to the last byte. What comes from one side goes straight into the other's queue.

use crate::base::byte_queue::PoolExhausted;
use crate::base::circuit::Permit;
use crate::base::slab::Key;
use crate::base::time::{Instant, PackedInstant};
use crate::connection::client::End;
use crate::connection::session::Fragment;
use crate::connection::stage::ClosedBy;
use crate::connection::upstream::websocket::handshake::Handshake;
use crate::connection::upstream::websocket::relay::Relay;
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::websocket::{OpCode, is_sendable_close_code};
use crate::ring::Owner;
use crate::settings::Deadlines;

use super::auth_requests::PendingAuth;
use super::clients::Connection;
use super::core::Parts;
use super::sessions::{Session, reason_of};
use super::sockets::Reading;
use super::upstreams::{Upstream, UpstreamKind, upstream};

/// The close code for a server whose client was closed by the gateway (RFC 6455 §7.4.1: policy).
const CLOSED_BY_POLICY: u16 = 1008;
/// The close code for a server whose client is closed because the gateway goes.
const GOING_AWAY: u16 = 1001;

/// The connection to a WebSocket server, for one client.
pub(super) struct WebSocket {
    pub(super) state: State,
    pub(super) relay: Relay,
    /// Whose it is, until the session ends.
    pub(super) client: Option<Key>,
    /// Its number in the table of servers.
    pub(super) server: u16,
    /// In the agenda's list of those whose sends are to be filled.
    pub(super) dirty: bool,
    /// The client has more than the queue takes.
    pub(super) client_waits: bool,
    /// When a send last made progress, or output began to wait.
    progressed: PackedInstant,
}

pub(super) enum State {
    /// The socket is being connected.
    Connecting(Box<Dial>),
    /// The request is on its way, or the answer is.
    Handshaking(Box<Dial>),
    /// Frames flow.
    Open,
    /// The last word is queued: the server's end is awaited, until then at most.
    Closing { until: PackedInstant },
    /// Nothing is awaited but the operations in flight.
    Over,
}

/// A connection that the server has not agreed to.
pub(super) struct Dial {
    pub(super) handshake: Handshake,
    pub(super) backend: u16,
    pub(super) permit: Permit,
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
            State::Closing { until } => until.instant(),
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

    /// Index of the backend of a connection's server.
    pub(super) fn backend_of_websocket(&self, key: Key) -> u16 {
        match self.upstreams.entry(key).map(|upstream| &upstream.kind) {
            Some(UpstreamKind::WebSocket(it)) => self.servers.server(it.server).backend,
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
        self.random.fill(&mut self.scratch.output.nonce);
        if let Some(identity) = self.scratch.output.request.identity() {
            self.control.keep_subject(&self.env.settings, key, identity.subject);
        }
        let now = self.env.now.instant;
        let at_latest = now + self.env.settings.deadlines.upstream_connect;
        let dialled = if self.control.drain.is_some() {
            Err(Cause::GoingAway)
        } else {
            self.connect(handshake, backend, Some(key), at_latest)
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

    /// Connects to one of a backend's servers.
    pub(super) fn connect(
        &mut self,
        handshake: Handshake,
        backend: u16,
        client: Option<Key>,
        at_latest: Instant,
    ) -> Result<Key, Cause> {
        let now = self.env.now.instant;
        let (server, permit) = self.servers.choose(backend, &self.env.settings, now)?;
        // Half of what is left is for another server, should this one not answer.
        let until = now + at_latest.since(now) / 2;
        let dial = Dial { handshake, backend, permit, until, at_latest };
        let websocket = WebSocket {
            state: State::Connecting(Box::new(dial)),
            relay: Relay::default(),
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

    /// How many payload bytes the queue to a server takes now.
    pub(super) fn websocket_allowance(&mut self, key: Key) -> Option<usize> {
        let window = self.env.settings.limits.session_window as usize;
        self.websocket(key).relay.allowance(window)
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
        if can_send && websocket.relay.unsent() > 0 && !websocket.dirty {
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
                self.session_opened(connection, u32::MAX);
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
            State::Closing { .. } | State::Over => return,
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
        let Parts { upstreams, agenda, pools, .. } = self;
        let upstream = upstream(upstreams, key);
        if let UpstreamKind::WebSocket(websocket) = &mut upstream.kind {
            websocket.state = State::Over;
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
