//! The connections of a worker: between the socket's operations, the transport, the client's
//! machine and its session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::base::byte_queue::{ByteQueue, CHUNK_BYTES};
use crate::base::slab::Key;
use crate::connection::client::{Client, SocketAction, Step};
use crate::connection::session::Fragment;
use crate::connection::transport::Transport;
use crate::counters::{ListenerMetric, Metric, RouteMetric, Row};
use crate::protocol::cause::Cause;
use crate::protocol::proxy_header;
use crate::ring::{BufferGroup, Owner, Socket};

use super::admission::Place;
use super::auth_requests::PendingAuth;
use super::core::{Core, Parts};
use super::rows::Way;
use super::sessions::Session;
use super::sockets::{Pipe, PipeEvent, Reading};

/// Room for output beyond the bytes themselves that must be there before a client is dealt with.
const ROOM_SPARE: usize = 2 * CHUNK_BYTES;
/// How often send slots are taken from stalled clients, when there are none.
const RELIEF_EVERY: Duration = Duration::from_millis(100);
/// How long a send must have made no progress for that.
const STALLED_AFTER: Duration = Duration::from_secs(1);
/// How many clients lose their slot, and so their connection, at a time.
const RELIEF_MAX: usize = 64;

/// One client's connection and all that belongs to it.
pub(super) struct Connection {
    pub(super) pipe: Pipe,
    pub(super) client: Client,
    pub(super) transport: Transport,
    /// Bytes to send, encrypted already.
    pub(super) out: ByteQueue,
    /// Boxed: few connections ever wait.
    waiting: Option<Box<Waiting>>,
    /// While one is open, or its upstream has still to agree.
    pub(super) session: Option<Session>,
    /// Credit that goes back to the upstream once the output is sent.
    pub(super) credit_owed: u32,
    /// In the agenda's list of those whose sends are to be filled.
    pub(super) dirty: bool,
    /// In the agenda's list of those that are to be reconciled.
    pub(super) needs_reconcile: bool,
    /// No input is taken: it waits for credit, or for a decision.
    pub(super) blocked: bool,
    pub(super) counted_paused: bool,
    /// It was silent for a ping interval, and so waits without a receive.
    pub(super) idle: bool,
    /// Its TLS handshake goes on in a later turn: it is in the list of those that are deferred,
    /// and is not read.
    pub(super) parked: bool,
    /// Where it is counted, while it has not authenticated.
    pub(super) counted: Option<Place>,
    /// Where its route is counted, once a session was opened.
    pub(super) row: Option<Row<RouteMetric>>,
    pub(super) shut_down: bool,
}

/// What came from a client and cannot be taken yet.
enum Waiting {
    /// At the very start of a connection from a trusted balancer: its PROXY header so far.
    ProxyHeader(Vec<u8>),
    Plaintext(Backlog),
}

/// Plaintext that waits, for credit or for a decision. While there is some, later input queues
/// behind it. Invariant: there is one only while it is not empty, or a decision is awaited.
#[derive(Default)]
pub(super) struct Backlog {
    pub(super) queue: ByteQueue,
    /// How much of it is accounted for as that of an unauthenticated client.
    pub(super) early: u32,
    /// The decision that the client awaits.
    pub(super) pending_auth: PendingAuth,
}

impl Connection {
    pub(super) fn backlog(&self) -> Option<&Backlog> {
        match self.waiting.as_deref() {
            Some(Waiting::Plaintext(backlog)) => Some(backlog),
            _ => None,
        }
    }

    pub(super) fn backlog_mut(&mut self) -> Option<&mut Backlog> {
        match self.waiting.as_deref_mut() {
            Some(Waiting::Plaintext(backlog)) => Some(backlog),
            _ => None,
        }
    }

    /// The backlog, made if there is none. There is no PROXY header under way any more.
    pub(super) fn backlog_or_new(&mut self) -> &mut Backlog {
        let new = || Box::new(Waiting::Plaintext(Backlog::default()));
        match &mut **self.waiting.get_or_insert_with(new) {
            Waiting::Plaintext(backlog) => backlog,
            Waiting::ProxyHeader(_) => unreachable!("plaintext comes after the PROXY header"),
        }
    }

    pub(super) fn drop_backlog(&mut self) {
        self.waiting = None;
    }

    /// The decision that it awaits.
    pub(super) fn pending_auth(&self) -> PendingAuth {
        self.backlog().map_or(PendingAuth::NONE, |backlog| backlog.pending_auth)
    }

    /// How its socket should be read now.
    pub(super) fn reading(&self) -> Reading {
        let unread = self.parked || !self.client.takes_input();
        if self.pending_auth() != PendingAuth::NONE || unread {
            Reading::HangupOnly
        } else if self.blocked {
            Reading::Paused
        } else if self.idle || self.client.is_close_delayed() {
            Reading::IdlePoll
        } else {
            Reading::Active
        }
    }

    pub(super) fn unsent(&self) -> usize {
        self.out.len() + self.pipe.unsent()
    }
}

impl Core {
    /// Takes in a connection that was just accepted, or turns it away.
    pub(super) fn admit(&mut self, socket: Socket, peer: Option<SocketAddr>, listener_index: u16) {
        let listener = &self.parts.env.settings.listeners[usize::from(listener_index)];
        let trusted = |network: &crate::settings::Network| {
            peer.is_some_and(|peer| network.contains(peer.ip()))
        };
        let proxied = listener.proxy_trusted.iter().any(trusted);
        let forwards = |proxies: &crate::settings::Forwarded| proxies.trusted.iter().any(trusted);
        let shared = proxied || listener.forwarded.as_ref().is_some_and(forwards);
        let waiting = proxied.then(|| Box::new(Waiting::ProxyHeader(Vec::new())));
        // A balancer's own address is no client's share.
        let counted_as = peer.filter(|_| !shared);
        let Some(place) = self.place_for(counted_as) else {
            self.parts.env.count_at_listener(listener_index, ListenerMetric::Refused);
            return self.parts.turn_away(socket);
        };
        let Parts { env, random, .. } = &mut self.parts;
        env.count_at_listener(listener_index, ListenerMetric::Connections);
        let transport = match &env.settings.listeners[usize::from(listener_index)].tls {
            None => Transport::Plain,
            Some(tls) => Transport::tls(Arc::clone(&tls.config)),
        };
        let jitter = random.number() as u32;
        let tls = !transport.is_plain();
        let mut client = Client::new(peer, listener_index, tls, jitter, &env.context());
        if place == Place::Explanation {
            client.refuse_for_capacity();
        }
        if let Some(at) = self.parts.closes_newcomer_at() {
            client.schedule_close(at, Cause::GoingAway);
        }
        let key = self.clients.insert(Connection {
            pipe: Pipe::new(socket, BufferGroup::Client),
            client,
            transport,
            out: ByteQueue::default(),
            waiting,
            session: None,
            credit_owed: 0,
            dirty: false,
            needs_reconcile: false,
            blocked: false,
            counted_paused: false,
            idle: false,
            parked: false,
            counted: Some(place),
            row: None,
            shut_down: false,
        });
        self.with_client(key, |parts, key, _| parts.count_in(key, place, counted_as));
    }

    /// No send slot is free. A slot in flight to a client that does not read comes back only at
    /// its write-stall deadline, and by then no client would have been served; so the clients
    /// that have stalled the longest give theirs up now.
    pub(super) fn drop_stalled(&mut self) {
        let now = self.parts.env.now.instant;
        if now < self.parts.control.relief_at {
            return;
        }
        self.parts.control.relief_at = now + RELIEF_EVERY;
        let stalled = |sender: Owner| {
            let (progressed, is_sending) = match sender {
                Owner::Client(key) => {
                    let connection = self.clients.entry(key)?;
                    (connection.client.progressed(), connection.pipe.is_sending())
                }
                _ => self.parts.websocket_progress(sender.key())?,
            };
            let stalled = is_sending && progressed <= now - STALLED_AFTER;
            stalled.then_some((progressed, sender))
        };
        let mut slow: Vec<_> = self.parts.agenda.senders().filter_map(stalled).collect();
        slow.sort_unstable();
        slow.dedup();
        slow.truncate(RELIEF_MAX);
        for (_, sender) in slow {
            match sender {
                Owner::Client(key) => {
                    self.with_client(key, |parts, _, connection| {
                        connection.client.drop_silently(Cause::SlowConsumer, &parts.env.context());
                    });
                }
                _ => self.drop_stalled_websocket(sender.key()),
            }
        }
    }

    /// Sees to it that there is room for so many more bytes of output of a client. While there is
    /// not, the client that holds the most, of those that do not read, gives its part up and its
    /// connection: not the one to which something is said next. What is in a send slot goes with
    /// the socket.
    pub(super) fn make_room(&mut self, key: Key, bytes: usize) {
        // Frame headers, TLS records, and the chunks that are begun.
        let needed = bytes + bytes / 256 + ROOM_SPARE;
        while self.parts.pools.queues.free_bytes() < needed {
            let own = self.clients.entry(key).map_or(0, |connection| connection.out.len());
            let queued = |sender: Owner| {
                let Owner::Client(sender) = sender else { return None };
                let connection = self.clients.entry(sender)?;
                let queued = connection.out.len();
                let heavier = connection.pipe.is_sending() && queued > own && sender != key;
                heavier.then_some((queued, sender))
            };
            let Some((_, heaviest)) = self.parts.agenda.senders().filter_map(queued).max() else {
                return;
            };
            self.with_client(heaviest, |parts, _, connection| {
                connection.client.drop_silently(Cause::SlowConsumer, &parts.env.context());
                connection.out.clear(&mut parts.pools.queues);
            });
        }
    }

    /// Reconciles every client that an upstream's input concerned, each once.
    pub(super) fn reconcile_marked(&mut self) {
        let mut marked = std::mem::take(&mut self.parts.agenda.needs_reconcile);
        for key in marked.drain(..) {
            self.with_client(key, |_, _, _| {});
        }
        self.parts.agenda.needs_reconcile = marked;
    }

    /// Goes on with the clients that waited for room or credit on a link. They may have left.
    pub(super) fn resume_woken(&mut self) {
        let mut woken = std::mem::take(&mut self.parts.agenda.woken);
        for key in woken.drain(..) {
            self.with_client(key, Parts::take_backlog);
        }
        self.parts.agenda.woken = woken;
    }
}

impl Parts {
    /// Acts on what a completion means, but for input.
    pub(super) fn client_event(&mut self, key: Key, connection: &mut Connection, event: PipeEvent) {
        match event {
            PipeEvent::Received(_) => unreachable!("the worker has the ring, and so the bytes"),
            PipeEvent::Sent => self.send_progressed(connection),
            PipeEvent::Finished => connection.client.peer_finished(&self.env.context()),
            PipeEvent::Broken => connection.client.peer_gone(&self.env.context()),
            PipeEvent::Starved => {
                self.env.counters.increment(Metric::ReceiveStarved);
                self.agenda.starve(Owner::Client(key), BufferGroup::Client);
            }
            PipeEvent::Routine => {}
        }
    }

    /// Takes bytes from the socket, as they came.
    pub(super) fn input(&mut self, key: Key, connection: &mut Connection, bytes: &mut [u8]) {
        if connection.pipe.is_ending() {
            // This may have been the receive's last completion, which the end waits for.
            return;
        }
        match connection.waiting.as_deref_mut() {
            Some(Waiting::ProxyHeader(header)) => {
                header.extend_from_slice(bytes);
                self.proxy_input(key, connection);
            }
            _ => self.transport_input(key, connection, bytes),
        }
    }

    /// Looks at the PROXY header of a trusted balancer, which comes before the client's bytes.
    fn proxy_input(&mut self, key: Key, connection: &mut Connection) {
        let Some(Waiting::ProxyHeader(header)) = connection.waiting.as_deref_mut() else {
            unreachable!("the caller has found its beginning")
        };
        let max = self.env.settings.limits.proxy_header_max as usize;
        match proxy_header::parse(header, max) {
            Ok(None) => {}
            Ok(Some((used, source))) => {
                let mut bytes = std::mem::take(header);
                connection.waiting = None;
                if proxy_header::says_tls(&bytes[..used]) {
                    connection.client.set_external_tls();
                }
                if source.is_none_or(|source| self.set_peer(key, connection, source)) {
                    self.transport_input(key, connection, &mut bytes[used..]);
                }
            }
            Err(error) => connection.client.refuse_proxy_header(error, &self.env.context()),
        }
    }

    fn transport_input(&mut self, key: Key, connection: &mut Connection, bytes: &mut [u8]) {
        if bytes.is_empty() {
            return;
        }
        if connection.transport.is_plain() {
            return self.plain_input(key, connection, bytes);
        }
        if connection.transport.is_handshaking() {
            return self.handshake_input(key, connection, bytes);
        }
        self.tls_input(key, connection, bytes);
    }

    /// Takes plaintext: hands it to the client's machine, or keeps it behind what waits.
    pub(super) fn plain_input(&mut self, key: Key, connection: &mut Connection, bytes: &mut [u8]) {
        if connection.blocked || connection.backlog().is_some() {
            return self.keep(connection, bytes);
        }
        let used = self.consume(key, connection, bytes);
        if used < bytes.len() {
            self.keep(connection, &bytes[used..]);
        }
    }

    /// Feeds the client's machine until the input is used up or the backend gives no credit.
    /// Returns how many bytes were used.
    fn consume(&mut self, key: Key, connection: &mut Connection, bytes: &mut [u8]) -> usize {
        let mut used = 0;
        while used < bytes.len() {
            if !matches!(connection.client.socket_action(), SocketAction::Stay) {
                return bytes.len();
            }
            if connection.client.awaits_decision() {
                return used;
            }
            let Some(allowance) = self.allowance(connection) else {
                connection.blocked = true;
                return used;
            };
            let ctx = self.env.context();
            let output = &mut self.scratch.output;
            let input = &mut bytes[used..];
            let (count, step) = connection.client.receive(input, allowance, &ctx, output);
            used += count;
            if let Some(peer) = output.forwarded_peer.take() {
                self.peer_forwarded(key, connection, peer);
            }
            match step {
                Step::NeedMore | Step::Handled => {}
                Step::Blocked => {
                    connection.blocked = true;
                    if let Some(session) = connection.session {
                        self.await_room(session);
                    }
                    self.send_answers(connection);
                    return used;
                }
                Step::Data { range, kind, first, last } => {
                    let fragment = Fragment { kind, first, last, bytes: &input[range] };
                    self.relay(connection, &fragment);
                }
                Step::Released { kind, last } => {
                    let bytes = std::mem::take(&mut self.scratch.output.released);
                    self.relay(connection, &Fragment { kind, first: true, last, bytes: &bytes });
                    self.scratch.output.released = bytes;
                }
                Step::Control(opcode) => {
                    connection.idle = false;
                    self.relay_control(connection, opcode);
                }
                Step::Reauthenticated => {
                    connection.idle = false;
                    self.relay_reauthentication(connection);
                }
                Step::Ask(question) => {
                    self.send_answers(connection);
                    self.ask(key, connection, question);
                    self.consume_trailing(key, connection);
                }
                Step::Authenticated { backend } => {
                    self.send_answers(connection);
                    self.open_session(key, connection, backend);
                    self.consume_trailing(key, connection);
                }
                Step::Dial { backend } => {
                    self.send_answers(connection);
                    self.dial(key, connection, backend);
                    self.consume_trailing(key, connection);
                }
            }
            if !self.scratch.output.answers.is_empty() {
                self.send_answers(connection);
            }
        }
        used
    }

    /// Takes what came with the token and is the upstream's, as if it had come after it.
    fn consume_trailing(&mut self, key: Key, connection: &mut Connection) {
        if self.scratch.output.rest.is_empty() {
            return;
        }
        let mut trailing = std::mem::take(&mut self.scratch.output.rest);
        let used = self.consume(key, connection, &mut trailing);
        if used < trailing.len() {
            self.keep(connection, &trailing[used..]);
        }
        trailing.clear();
        self.scratch.output.rest = trailing;
    }

    /// Keeps input until the upstream gives credit, or a decision. When the room for that is used
    /// up, the connection ends: nothing is lost silently.
    fn keep(&mut self, connection: &mut Connection, bytes: &[u8]) {
        let room = self.count_early(connection, bytes.len());
        let backlog = connection.backlog_or_new();
        let push = |()| {
            let pushed = backlog.queue.push(&mut self.pools.backlogs, bytes);
            pushed.map_err(|_| Cause::BackendUnavailable)
        };
        if let Err(cause) = room.and_then(push) {
            let ctx = self.env.context();
            connection.client.close(cause, &ctx, &mut self.scratch.output);
            self.send_answers(connection);
        }
    }

    /// The upstream gave credit, or a decision was taken: goes on with what was kept. Input is
    /// read again after that.
    pub(super) fn take_backlog(&mut self, key: Key, connection: &mut Connection) {
        connection.blocked = false;
        let mut bytes = std::mem::take(&mut self.scratch.backlog);
        while !connection.blocked
            && let Some(backlog) = connection.backlog()
        {
            bytes.clear();
            bytes.extend_from_slice(backlog.queue.front(&self.pools.backlogs));
            let used = self.consume(key, connection, &mut bytes);
            if let Some(backlog) = connection.backlog_mut() {
                backlog.queue.consume(&mut self.pools.backlogs, used);
                if backlog.queue.is_empty() {
                    connection.drop_backlog();
                }
            }
        }
        self.scratch.backlog = bytes;
    }

    /// Sends what the client's machine left in the output's answers.
    pub(super) fn send_answers(&mut self, connection: &mut Connection) {
        if self.scratch.output.answers.is_empty() {
            return;
        }
        let answers = std::mem::take(&mut self.scratch.output.answers);
        self.send_plaintext(connection, &[&answers]);
        self.scratch.output.answers = answers;
        self.scratch.output.answers.clear();
    }

    /// Queues plaintext for the client, encrypted where the transport does that.
    fn send_plaintext(&mut self, connection: &mut Connection, parts: &[&[u8]]) {
        let queues = &mut self.pools.queues;
        let mut fits = true;
        if connection.transport.is_plain() {
            for part in parts {
                fits &= connection.out.push(queues, part).is_ok();
            }
        } else {
            let ciphertext = &mut self.scratch.ciphertext;
            ciphertext.clear();
            fits = connection.transport.send(parts, ciphertext).is_ok()
                && connection.out.push(queues, ciphertext).is_ok();
        }
        let ctx = self.env.context();
        if fits {
            connection.client.output_queued(&ctx);
        } else {
            // The worker's room for slow readers is used up. What is queued is cut short, so
            // the connection cannot go on.
            connection.client.drop_silently(Cause::SlowConsumer, &ctx);
        }
    }

    /// Queues what TLS itself has to say.
    pub(super) fn queue_ciphertext(&mut self, connection: &mut Connection) {
        if self.scratch.ciphertext.is_empty() {
            return;
        }
        let ctx = self.env.context();
        match connection.out.push(&mut self.pools.queues, &self.scratch.ciphertext) {
            Ok(()) => connection.client.output_queued(&ctx),
            Err(_) => connection.client.drop_silently(Cause::OverCapacity, &ctx),
        }
    }

    /// Some of a connection's output was sent.
    fn send_progressed(&mut self, connection: &mut Connection) {
        let unsent = connection.unsent();
        let ctx = self.env.context();
        connection.client.output_sent(unsent == 0, &ctx, &mut self.scratch.output);
        self.output_delivered(connection);
        self.send_answers(connection);
    }

    /// A client's timer fired.
    pub(super) fn client_deadline(&mut self, connection: &mut Connection) {
        let ctx = self.env.context();
        connection.client.handle_deadline(&ctx, &mut self.scratch.output);
        let silence = ctx.now.instant.since(connection.client.received());
        if connection.client.is_open() && silence >= ctx.settings.deadlines.ping_interval {
            connection.idle = true;
        }
        self.send_answers(connection);
    }

    /// Queues a piece of an upstream's message for its client.
    pub(super) fn deliver(
        &mut self,
        key: Key,
        connection: &mut Connection,
        fragment: &Fragment<'_>,
        cost: u32,
    ) {
        let Fragment { kind, first, last, bytes } = *fragment;
        let Some(header) = connection.client.data_header(kind, first, last, bytes.len()) else {
            return;
        };
        connection.credit_owed += cost;
        self.env.counters.add(Metric::BytesToClients, bytes.len() as u64);
        self.env.counters.add(Metric::MessagesToClients, u64::from(last));
        self.env.count_fragment(connection, Way::ToClient, bytes.len(), last);
        self.send_plaintext(connection, &[header.as_slice(), bytes]);
        self.mark_for_reconcile(key, connection);
    }

    /// Has a client reconciled when all of an upstream's input was looked at, and not for each
    /// piece of it.
    pub(super) fn mark_for_reconcile(&mut self, key: Key, connection: &mut Connection) {
        if !std::mem::replace(&mut connection.needs_reconcile, true) {
            self.agenda.needs_reconcile.push(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A million of these must fit beside everything else: 400 bytes each is the figure to
    /// reach, with the wheel's 20 and the slab's 4.
    #[test]
    fn a_connection_is_small() {
        let bytes = size_of::<Option<Connection>>();
        assert!(bytes <= 272, "{bytes} bytes");
        println!("connection {bytes}, client {}, pipe {}", size_of::<Client>(), size_of::<Pipe>());
    }
}
