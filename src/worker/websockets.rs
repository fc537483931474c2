//! Clients whose upstream is an ordinary WebSocket server: a connection to it for each, from the
//! dial to the last byte. What comes from one side goes straight into the other's queue.

use crate::base::byte_queue::PoolExhausted;
use crate::base::circuit::Permit;
use crate::base::slab::Key;
use crate::base::time::{Instant, PackedInstant};
use crate::connection::client::End;
use crate::connection::session::Fragment;
use crate::connection::stage::ClosedBy;
use crate::connection::upstream::websocket::handshake::{
    Accepted, Answered, Fault, Handshake, Refused,
};
use crate::connection::upstream::websocket::relay::{FromServer, Relay};
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::websocket::{OpCode, is_sendable_close_code};
use crate::ring::{BufferGroup, Owner, Ring, Socket};
use crate::settings::Deadlines;

use super::Worker;
use super::auth_requests::PendingAuth;
use super::clients::Connection;
use super::core::{Core, Parts};
use super::mailbox::Report;
use super::servers::Server;
use super::sessions::{Session, reason_of};
use super::sockets::{Flush, PipeEvent, Reading};
use super::upstreams::{Upstream, UpstreamKind, upstream};

/// The close code for a server whose client was closed by the gateway (RFC 6455 §7.4.1: policy).
const CLOSED_BY_POLICY: u16 = 1008;
/// The close code for a server whose client is closed because the gateway goes.
const GOING_AWAY: u16 = 1001;
/// The close code for a server that broke the protocol.
const PROTOCOL_ERROR: u16 = 1002;

/// The connection to a WebSocket server, for one client.
pub(super) struct WebSocket {
    state: State,
    relay: Relay,
    /// Whose it is, until the session ends.
    client: Option<Key>,
    /// Its number in the table of servers.
    server: u16,
    /// In the agenda's list of those whose sends are to be filled.
    dirty: bool,
    /// The client has more than the queue takes.
    pub(super) client_waits: bool,
    /// When a send last made progress, or output began to wait.
    progressed: PackedInstant,
}

enum State {
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
struct Dial {
    handshake: Handshake,
    backend: u16,
    permit: Permit,
    /// When this attempt has taken too long.
    until: Instant,
    /// When all attempts together have.
    at_latest: Instant,
}

impl WebSocket {
    /// When its timer must fire; `NEVER` when there is nothing to wait for.
    fn due(&self, deadlines: &Deadlines) -> Instant {
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
    fn connect(
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
    fn mark_websocket(&mut self, key: Key) {
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
    fn websocket_sent(&mut self, key: Key) {
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
    fn look_for_acceptance(&mut self, connection: &mut Connection, fragment: &Fragment<'_>) {
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

    /// The client's session is over: the server is told so, in its own terms.
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
            (Cause::ClientGone, _) => return self.end_websocket(key, false),
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
    fn close_websocket(&mut self, key: Key, code: Option<u16>, reason: &str) {
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
    fn end_websocket(&mut self, key: Key, reset: bool) {
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

impl Core {
    /// The socket to a server is there: the request goes out.
    pub(super) fn websocket_connected(&mut self, key: Key, socket: Socket) {
        let Parts { upstreams, agenda, pools, .. } = &mut self.parts;
        let upstream = upstream(upstreams, key);
        let pipe = upstream.socket.connected(socket, BufferGroup::Client);
        let UpstreamKind::WebSocket(websocket) = &mut upstream.kind else { return };
        match std::mem::replace(&mut websocket.state, State::Over) {
            State::Connecting(dial) => {
                let queued = websocket.relay.request(dial.handshake.request(), &mut pools.backlogs);
                websocket.state = State::Handshaking(dial);
                pipe.reconcile(Owner::Upstream(key), &mut agenda.ops);
                if queued.is_err() {
                    return self.websocket_failed(key, &Fault::NoRoom);
                }
                self.parts.mark_websocket(key);
            }
            // Its client left while it was being connected.
            _ => {
                pipe.end(true);
                pipe.reconcile(Owner::Upstream(key), &mut agenda.ops);
            }
        }
    }

    /// No server agreed in this attempt: another is tried while there is time, or the client is
    /// refused.
    pub(super) fn websocket_failed(&mut self, key: Key, fault: &Fault) {
        let now = self.parts.env.now.instant;
        let jitter = self.parts.random.number() as u32;
        let websocket = self.parts.websocket(key);
        let (server, client) = (websocket.server, websocket.client.take());
        let dial = match std::mem::replace(&mut websocket.state, State::Over) {
            State::Connecting(dial) | State::Handshaking(dial) => dial,
            other => {
                websocket.state = other;
                return self.parts.forget_websocket(key);
            }
        };
        let Dial { handshake, backend, permit, at_latest, .. } = *dial;
        if fault.is_servers() {
            self.parts.env.counters.increment(Metric::UpstreamFailures);
            if self.parts.servers.failed(server, permit, now, jitter) {
                let Server { backend, endpoint, .. } = *self.parts.servers.server(server);
                let reason = fault.to_string();
                let report = Report::ServerRests { backend, endpoint, reason };
                self.parts.control.mailbox.report(report);
            }
        } else {
            self.parts.servers.abandoned(server, permit, now);
        }
        self.parts.end_websocket(key, false);
        self.parts.forget_websocket(key);
        let Some(client) = client else { return };
        // What the server has seen of a request, another may see again: nothing of the client's
        // messages is in it.
        let again = match fault.is_worth_another() && at_latest > now {
            true => self.parts.connect(handshake.again(), backend, Some(client), at_latest).ok(),
            false => None,
        };
        self.with_client(client, |parts, key, connection| match again {
            Some(again) => connection.session = Some(Session::WebSocket(again)),
            None => parts.refused_by_server(key, connection, &Refused::unavailable()),
        });
    }

    /// Something happened to the socket.
    pub(super) fn settle_websocket(&mut self, key: Key) {
        let Parts { upstreams, agenda, .. } = &mut self.parts;
        let Some(upstream) = upstreams.entry_mut(key) else { return };
        upstream.socket.reconcile(key, &mut agenda.ops);
        self.parts.mark_websocket(key);
        self.parts.forget_websocket(key);
    }

    /// The timer of a connection to a server fired.
    pub(super) fn websocket_deadline(&mut self, key: Key) {
        let now = self.parts.env.now.instant;
        let due = {
            let Parts { upstreams, env, .. } = &mut self.parts;
            let UpstreamKind::WebSocket(websocket) = &upstream(upstreams, key).kind else { return };
            websocket.due(&env.settings.deadlines)
        };
        if due > now {
            return self.parts.mark_websocket(key);
        }
        match self.parts.websocket(key).state {
            State::Connecting(_) => self.websocket_failed(key, &Fault::ConnectTimedOut),
            State::Handshaking(_) => {
                // A request that found no send slot has asked the server nothing.
                let unasked = self.parts.websocket(key).relay.unsent() > 0;
                let fault = if unasked { Fault::NoRoom } else { Fault::AnswerTimedOut };
                self.websocket_failed(key, &fault);
            }
            State::Open => {
                self.parts.env.counters.increment(Metric::UpstreamStalls);
                self.websocket_lost(key, Cause::BackendUnavailable);
                self.parts.end_websocket(key, true);
            }
            State::Closing { .. } => self.parts.end_websocket(key, false),
            State::Over => {}
        }
        if self.parts.upstreams.entry(key).is_some() {
            self.parts.forget_websocket(key);
        }
    }

    /// The session of an open client cannot go on.
    fn websocket_lost(&mut self, key: Key, cause: Cause) {
        let Some(client) = self.parts.websocket(key).client.take() else { return };
        self.with_client(client, |parts, _, connection| {
            connection.session = None;
            connection.client.close(cause, &parts.env.context(), &mut parts.scratch.output);
            parts.send_answers(connection);
        });
    }

    /// A server's connection ended, in order or not.
    fn websocket_gone(&mut self, key: Key) {
        match self.parts.websocket(key).state {
            State::Connecting(_) => unreachable!("there is no socket yet"),
            State::Handshaking(_) => return self.websocket_failed(key, &Fault::ClosedEarly),
            State::Open => self.websocket_lost(key, Cause::BackendUnavailable),
            State::Closing { .. } | State::Over => {}
        }
        self.parts.end_websocket(key, false);
    }

    /// Takes bytes from a server.
    fn websocket_input(&mut self, key: Key, input: &mut [u8]) {
        match &mut self.parts.websocket(key).state {
            State::Connecting(_) => unreachable!("there is no socket yet"),
            State::Handshaking(dial) => match dial.handshake.receive(input) {
                (_, Answered::NeedMore) => {}
                (used, Answered::Accepted(accepted)) => {
                    self.websocket_accepted(key, &accepted);
                    if used < input.len() {
                        self.websocket_input(key, &mut input[used..]);
                    }
                }
                (_, Answered::Refused(refused)) => self.websocket_refused(key, &refused),
                (_, Answered::Broken(fault)) => self.websocket_failed(key, &fault),
            },
            State::Open => self.relay_to_client(key, input),
            State::Closing { .. } | State::Over => {}
        }
    }

    /// The handshake is over, and the server is well, whatever it said.
    fn take_dial(&mut self, key: Key, state: State) {
        let websocket = self.parts.websocket(key);
        let server = websocket.server;
        if let State::Handshaking(dial) = std::mem::replace(&mut websocket.state, state) {
            self.parts.servers.answered(server, dial.permit);
        }
        self.parts.agenda.upstream_timers.cancel(key.slot);
    }

    /// The server takes the client.
    fn websocket_accepted(&mut self, key: Key, accepted: &Accepted) {
        self.take_dial(key, State::Open);
        let Some(client) = self.parts.websocket(key).client else { return };
        self.with_client(client, |parts, client, connection| {
            parts.accepted_by_server(client, connection, accepted);
        });
    }

    /// The server does not take the client.
    fn websocket_refused(&mut self, key: Key, refused: &Refused) {
        self.parts.env.counters.increment(Metric::UpstreamRefusals);
        self.take_dial(key, State::Over);
        let client = self.parts.websocket(key).client.take();
        self.parts.end_websocket(key, false);
        if let Some(client) = client {
            self.with_client(client, |parts, client, connection| {
                parts.refused_by_server(client, connection, refused);
            });
        }
    }

    /// Hands a server's frames to its client.
    fn relay_to_client(&mut self, key: Key, input: &mut [u8]) {
        let mut at = 0;
        while at < input.len() {
            let websocket = self.parts.websocket(key);
            let (State::Open, Some(client)) = (&websocket.state, websocket.client) else { break };
            match websocket.relay.receive(&mut input[at..]) {
                Ok((_, FromServer::NeedMore)) => break,
                Ok((used, FromServer::Data { range, kind, first, last })) => {
                    let bytes = &input[at + range.start..at + range.end];
                    at += used;
                    self.make_room(client, bytes.len());
                    let (parts, connection) = self.session_client(client);
                    let fragment = Fragment { kind, first, last, bytes };
                    parts.deliver(client, connection, &fragment, 0);
                    parts.look_for_acceptance(connection, &fragment);
                }
                Ok((used, FromServer::Control(opcode, payload))) => {
                    at += used;
                    let (parts, connection) = self.session_client(client);
                    let output = &mut parts.scratch.output;
                    connection.client.pass_control(opcode, payload.as_slice(), output);
                    parts.send_answers(connection);
                    parts.mark_for_reconcile(client, connection);
                }
                Ok((_, FromServer::Close(code, reason))) => {
                    self.closed_by_server(key, code, reason.as_text());
                    break;
                }
                Err(_) => {
                    self.parts.env.counters.increment(Metric::UpstreamViolations);
                    self.websocket_lost(key, Cause::BackendUnavailable);
                    self.parts.close_websocket(key, Some(PROTOCOL_ERROR), "");
                    break;
                }
            }
        }
        self.reconcile_marked();
        // The client may have left, and the session with it.
        if let Some(client) = self.parts.websocket(key).client
            && let Some(connection) = self.clients.entry(client)
        {
            self.parts.read_websocket(key, connection.unsent());
        }
    }

    /// The server closes: so does the client's connection, and the server hears its own close back
    /// (RFC 6455 §5.5.1), then ends the connection itself.
    fn closed_by_server(&mut self, key: Key, code: Option<u16>, reason: &str) {
        let client = self.parts.websocket(key).client.take();
        let echoed = code.filter(|code| is_sendable_close_code(*code));
        self.parts.close_websocket(key, echoed, "");
        let Some(client) = client else { return };
        self.with_client(client, |parts, _, connection| {
            connection.session = None;
            let ctx = parts.env.context();
            connection.client.close_by_backend(code, reason, &ctx, &mut parts.scratch.output);
            parts.send_answers(connection);
        });
    }
}

impl<R: Ring> Worker<R> {
    /// Something happened to the socket of a connection to a server.
    pub(super) fn websocket_event(&mut self, key: Key, event: PipeEvent) {
        match event {
            PipeEvent::Received(buffer) => {
                self.core.websocket_input(key, self.ring.received(&buffer));
                self.ring.give_back(buffer);
            }
            PipeEvent::Sent => {
                self.core.parts.websocket_sent(key);
                // What the client has goes out in this turn: nothing else need end the sleep.
                self.core.resume_woken();
            }
            PipeEvent::Finished | PipeEvent::Broken => self.core.websocket_gone(key),
            PipeEvent::Starved => {
                let Parts { agenda, env, .. } = &mut self.core.parts;
                env.counters.increment(Metric::ReceiveStarved);
                agenda.starve(Owner::Upstream(key), BufferGroup::Client);
            }
            PipeEvent::Routine => {}
        }
        self.core.settle_websocket(key);
    }

    /// Fills the next send of a connection to a server. False when no slot is free.
    pub(super) fn flush_websocket(&mut self, key: Key) -> bool {
        let Parts { upstreams, agenda, pools, .. } = &mut self.core.parts;
        let upstream = upstream(upstreams, key);
        let UpstreamKind::WebSocket(websocket) = &mut upstream.kind else { return true };
        if let Some(pipe) = upstream.socket.pipe_mut()
            && websocket.relay.unsent() > 0
        {
            let (owner, relay) = (Owner::Upstream(key), &mut websocket.relay);
            let copy = |bytes: &mut [u8]| relay.copy_output(&mut pools.backlogs, bytes);
            if pipe.flush(owner, &mut self.ring, &mut agenda.ops, copy) == Flush::NoSlot {
                return false;
            }
        }
        websocket.dirty = false;
        true
    }
}
