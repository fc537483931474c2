//! The connections of a worker: between the socket's operations, the transport, the client's
//! machine and its session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::base::byte_queue::ByteQueue;
use crate::base::slab::{Key, KeyedSlab};
use crate::base::time::Instant;
use crate::connection::client::{Client, SocketAction, Step};
use crate::connection::session::Fragment;
use crate::connection::stage::Stage;
use crate::connection::transport::Transport;
use crate::counters::{Counters, Metric};
use crate::protocol::cause::Cause;
use crate::protocol::link::SessionId;
use crate::protocol::proxy_header;
use crate::ring::{BufferGroup, Socket};

use super::Core;
use super::auth_requests::Asking;
use super::links::LinkTable;
use super::sockets::{Pipe, PipeEvent};

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
    /// Link and session, while one is open.
    pub(super) session: Option<(u16, SessionId)>,
    /// What the backend is owed in credit once the output is sent.
    pub(super) owed: u32,
    pub(super) dirty: bool,
    pub(super) touched: bool,
    pub(super) blocked: bool,
    pub(super) counted_paused: bool,
    pub(super) cold: bool,
    /// How many receive buffers of this connection wait in `deferred`.
    pub(super) deferred: u16,
    /// Counted among those who have not authenticated.
    pub(super) unauthenticated: bool,
    pub(super) shut_down: bool,
}

/// What came from a client and cannot be taken yet.
enum Waiting {
    /// At the very start of a connection from a trusted balancer: its PROXY header so far.
    ProxyHeader(Vec<u8>),
    Plaintext(Stash),
}

/// Plaintext that waits, for credit or for a decision. While there is some, later input queues
/// behind it. Invariant: there is a stash only while it is not empty, or a decision is awaited.
#[derive(Default)]
pub(super) struct Stash {
    pub(super) queue: ByteQueue,
    /// How much of it is accounted for as that of an unauthenticated client.
    pub(super) early: u32,
    /// Whose decision the client awaits.
    pub(super) asking: Asking,
}

/// For each send slot the connection that sent from it last: the ones that can give a slot back,
/// without a look at all connections.
#[derive(Default)]
pub(super) struct Senders(Vec<Option<Key>>);

impl Senders {
    /// A connection sends from a slot.
    pub(super) fn note(&mut self, slot: u16, owner: Key) {
        let id = usize::from(slot);
        if id >= self.0.len() {
            self.0.resize(id + 1, None);
        }
        self.0[id] = Some(owner);
    }

    /// Those whose send has made no progress since `instant`, the longest first.
    fn stalled_since(
        &self,
        instant: Instant,
        connections: &KeyedSlab<Connection>,
    ) -> Vec<(Instant, Key)> {
        let senders = self.0.iter().flatten();
        let mut stalled: Vec<_> = senders
            .filter_map(|key| connections.entry(*key).map(|connection| (connection, *key)))
            .filter(|(c, _)| c.pipe.is_sending() && c.client.progressed() <= instant)
            .map(|(connection, key)| (connection.client.progressed(), key))
            .collect();
        // One that has sent from several slots is in several places.
        stalled.sort_unstable();
        stalled.dedup();
        stalled
    }
}

impl Connection {
    pub(super) fn stash(&self) -> Option<&Stash> {
        match self.waiting.as_deref() {
            Some(Waiting::Plaintext(stash)) => Some(stash),
            _ => None,
        }
    }

    pub(super) fn stash_mut(&mut self) -> Option<&mut Stash> {
        match self.waiting.as_deref_mut() {
            Some(Waiting::Plaintext(stash)) => Some(stash),
            _ => None,
        }
    }

    /// The stash, made if there is none. There is no PROXY header under way any more.
    pub(super) fn stash_or_new(&mut self) -> &mut Stash {
        let new = || Box::new(Waiting::Plaintext(Stash::default()));
        match &mut **self.waiting.get_or_insert_with(new) {
            Waiting::Plaintext(stash) => stash,
            Waiting::ProxyHeader(_) => unreachable!("plaintext comes after the PROXY header"),
        }
    }

    pub(super) fn drop_stash(&mut self) {
        self.waiting = None;
    }

    /// Whose decision it awaits.
    pub(super) fn asking(&self) -> Asking {
        self.stash().map_or(Asking::NOBODY, |stash| stash.asking)
    }

    pub(super) fn unsent(&self) -> usize {
        self.out.len() + self.pipe.unsent()
    }
}

impl Core {
    /// Takes in a connection that was just accepted, or turns it away.
    pub(super) fn admit(&mut self, socket: Socket, peer: Option<SocketAddr>, listener_index: u16) {
        let listener = &self.env.settings.listeners[usize::from(listener_index)];
        let trusted = |network: &crate::settings::Network| {
            peer.is_some_and(|peer| network.contains(peer.ip()))
        };
        let proxied = listener.proxy_trusted.iter().any(trusted);
        let forwards = |proxies: &crate::settings::Forwarded| proxies.trusted.iter().any(trusted);
        let shared = proxied || listener.forwarded.as_ref().is_some_and(forwards);
        let waiting = proxied.then(|| Box::new(Waiting::ProxyHeader(Vec::new())));
        // A balancer's own address is nobody's share.
        let counted_as = peer.filter(|_| !shared);
        if !self.may_enter(counted_as) {
            return self.turn_away(socket);
        }
        let listener = &self.env.settings.listeners[usize::from(listener_index)];
        let transport = match &listener.tls {
            None => Transport::Plain,
            Some(tls) => Transport::tls(Arc::clone(&tls.config)),
        };
        let jitter = self.random.number() as u32;
        let tls = !transport.is_plain();
        let mut client = Client::new(peer, listener_index, tls, jitter, &self.env.context());
        if let Some(at) = self.closes_newcomer_at() {
            client.schedule_close(at, Cause::GoingAway);
        }
        let key = self.connections.insert(Connection {
            pipe: Pipe::new(socket, BufferGroup::Client),
            client,
            transport,
            out: ByteQueue::default(),
            waiting,
            session: None,
            owed: 0,
            dirty: false,
            touched: false,
            blocked: false,
            counted_paused: false,
            cold: false,
            deferred: 0,
            unauthenticated: true,
            shut_down: false,
        });
        self.count_in(key, counted_as);
        self.settle(key);
    }

    /// Whether input must wait for a later tick: it belongs to a TLS handshake, and this tick's
    /// share of handshakes is used up, or earlier input of the connection waits already.
    pub(super) fn must_defer(&mut self, owner: Key) -> bool {
        let Some(connection) = self.connections.entry_mut(owner) else { return false };
        let over = self.handshakes >= self.env.settings.limits.handshakes_per_tick;
        let handshaking = connection.client.stage() == Stage::TlsHandshake;
        let defer = connection.deferred > 0 || (over && handshaking);
        connection.deferred += u16::from(defer);
        defer
    }

    /// Takes bytes from the socket, as they came.
    pub(super) fn input(&mut self, owner: Key, bytes: &mut [u8]) {
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        connection.deferred = connection.deferred.saturating_sub(1);
        if connection.pipe.is_ending() {
            // This may have been the receive's last completion, which the end waits for.
            return self.settle(owner);
        }
        if matches!(connection.waiting.as_deref(), Some(Waiting::ProxyHeader(_))) {
            self.proxy_input(owner, bytes);
        } else {
            self.transport_input(owner, bytes);
        }
        self.settle(owner);
    }

    /// Bytes before the client's own: the PROXY header of a trusted balancer.
    fn proxy_input(&mut self, owner: Key, bytes: &[u8]) {
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        let Some(Waiting::ProxyHeader(gathered)) = connection.waiting.as_deref_mut() else {
            return;
        };
        gathered.extend_from_slice(bytes);
        match proxy_header::parse(gathered) {
            Ok(None) => {}
            Ok(Some((used, source))) => {
                let mut gathered = std::mem::take(gathered);
                connection.waiting = None;
                if proxy_header::says_tls(&gathered[..used]) {
                    connection.client.set_external_tls();
                }
                if source.is_none_or(|source| self.peer_told(owner, source)) {
                    self.transport_input(owner, &mut gathered[used..]);
                }
            }
            Err(error) => connection.client.refuse_proxy_header(error, &self.env.context()),
        }
    }

    fn transport_input(&mut self, owner: Key, bytes: &mut [u8]) {
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        if bytes.is_empty() {
            return;
        }
        if connection.transport.is_plain() {
            return self.plain_input(owner, bytes);
        }
        if connection.transport.is_untouched() && !self.may_handshake(owner) {
            return;
        }
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        let handshaking = connection.transport.is_handshaking();
        self.handshakes += u32::from(handshaking);
        let mut plaintext = std::mem::take(&mut self.plaintext);
        plaintext.clear();
        self.ciphertext.clear();
        let result = connection.transport.receive(bytes, &mut plaintext, &mut self.ciphertext);
        self.queue_ciphertext(owner);
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        let ctx = self.env.context();
        match result {
            Err(error) => connection.client.tls_failed(error.fault(), &ctx),
            Ok(received) => {
                if received.handshake_finished_now {
                    connection.client.handshake_finished(&ctx);
                }
                if !plaintext.is_empty() {
                    self.plain_input(owner, &mut plaintext);
                }
                if received.peer_closed {
                    self.peer_finished(owner);
                }
            }
        }
        self.plaintext = plaintext;
    }

    /// Takes plaintext: hands it to the client's machine, or stashes it behind what waits.
    fn plain_input(&mut self, owner: Key, bytes: &mut [u8]) {
        let waits = |c: &Connection| c.blocked || c.stash().is_some();
        if self.connections.entry(owner).is_some_and(waits) {
            return self.stash(owner, bytes);
        }
        let used = self.consume(owner, bytes);
        if used < bytes.len() {
            self.stash(owner, &bytes[used..]);
        }
    }

    /// Feeds the client's machine until the input is used up or the backend gives no credit.
    /// Returns how many bytes were used.
    fn consume(&mut self, owner: Key, bytes: &mut [u8]) -> usize {
        let mut used = 0;
        while used < bytes.len() {
            let Some(connection) = self.connections.entry_mut(owner) else { return bytes.len() };
            if !matches!(connection.client.socket_action(), SocketAction::Stay) {
                return bytes.len();
            }
            if connection.client.awaits_decision() {
                return used;
            }
            let allowance = match connection.session {
                _ if !connection.client.is_open() => Some(usize::MAX),
                Some((link, id)) => self.links.entry(link).link.allowance(id),
                None => None,
            };
            let Some(allowance) = allowance else {
                connection.blocked = true;
                return used;
            };
            let ctx = self.env.context();
            let input = &mut bytes[used..];
            let (count, step) = connection.client.receive(input, allowance, &ctx, &mut self.output);
            if let Some(peer) = self.output.forwarded_peer.take() {
                self.peer_forwarded(owner, peer);
            }
            let Some(connection) = self.connections.entry_mut(owner) else { return bytes.len() };
            match step {
                Step::NeedMore | Step::Handled => {}
                Step::Blocked => {
                    connection.blocked = true;
                    if let Some((link, id)) = connection.session {
                        self.links.entry(link).link.wait(id);
                    }
                    self.send_answers(owner);
                    return used + count;
                }
                Step::Data { range, kind, first, last } => {
                    connection.cold = false;
                    let fragment = Fragment { kind, first, last, bytes: &input[range] };
                    relay(&mut self.links, &self.env.counters, connection.session, &fragment);
                }
                Step::Released { kind, last } => {
                    connection.cold = false;
                    let bytes = &self.output.released;
                    let fragment = Fragment { kind, first: true, last, bytes };
                    relay(&mut self.links, &self.env.counters, connection.session, &fragment);
                }
                Step::Reauthenticated => {
                    connection.cold = false;
                    self.tell_reauthenticated(owner);
                }
                Step::Ask(question) => {
                    self.send_answers(owner);
                    self.ask(owner, question);
                    self.consume_rest(owner);
                }
                Step::Authenticated { backend } => {
                    self.send_answers(owner);
                    self.open_session(owner, backend);
                    self.consume_rest(owner);
                }
            }
            used += count;
            if !self.output.answers.is_empty() {
                self.send_answers(owner);
            }
        }
        used
    }

    /// Takes what came with the token and is the backend's, as if it had come after it.
    fn consume_rest(&mut self, owner: Key) {
        if self.output.rest.is_empty() {
            return;
        }
        let mut rest = std::mem::take(&mut self.output.rest);
        let used = self.consume(owner, &mut rest);
        if used < rest.len() {
            self.stash(owner, &rest[used..]);
        }
        rest.clear();
        self.output.rest = rest;
    }

    /// Tells the backend of a client's fresh token. One that reads so little that it cannot be
    /// told would go on with a client whose time it believes to be over.
    fn tell_reauthenticated(&mut self, owner: Key) {
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        let Some((link, id)) = connection.session else { return };
        if !self.links.entry(link).link.reauthenticated(id, &self.output.request) {
            let ctx = self.env.context();
            connection.client.close(Cause::BackendUnavailable, &ctx, &mut self.output);
        }
    }

    /// Keeps input until the backend gives credit, or a decision. When the room for that is used
    /// up, the connection ends: nothing is lost silently.
    fn stash(&mut self, owner: Key, bytes: &[u8]) {
        let room = self.count_early(owner, bytes.len());
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        let stash = connection.stash_or_new();
        let push = |()| {
            let pushed = stash.queue.push(&mut self.stashes, bytes);
            pushed.map_err(|_| Cause::BackendUnavailable)
        };
        if let Err(cause) = room.and_then(push) {
            let ctx = self.env.context();
            connection.client.close(cause, &ctx, &mut self.output);
            self.send_answers(owner);
        }
    }

    /// The backend gave credit: goes on with what was stashed, and reads again after that.
    pub(super) fn resume(&mut self, owner: Key) {
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        connection.blocked = false;
        let mut scratch = std::mem::take(&mut self.stash_scratch);
        while let Some(connection) = self.connections.entry_mut(owner) {
            let Some(stash) = connection.stash().filter(|_| !connection.blocked) else {
                break;
            };
            scratch.clear();
            scratch.extend_from_slice(stash.queue.front(&self.stashes));
            let used = self.consume(owner, &mut scratch);
            if let Some(connection) = self.connections.entry_mut(owner)
                && let Some(stash) = connection.stash_mut()
            {
                stash.queue.consume(&mut self.stashes, used);
                if stash.queue.is_empty() {
                    connection.drop_stash();
                }
            }
        }
        self.stash_scratch = scratch;
        self.settle(owner);
    }

    /// Sends what the client's machine left in `output.answers`.
    pub(super) fn send_answers(&mut self, owner: Key) {
        if self.output.answers.is_empty() {
            return;
        }
        let answers = std::mem::take(&mut self.output.answers);
        self.send_plaintext(owner, &[&answers]);
        self.output.answers = answers;
        self.output.answers.clear();
    }

    /// Queues plaintext for the client, encrypted where the transport does that.
    pub(super) fn send_plaintext(&mut self, owner: Key, parts: &[&[u8]]) {
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        let mut fits = true;
        if connection.transport.is_plain() {
            for part in parts {
                fits &= connection.out.push(&mut self.queues, part).is_ok();
            }
        } else {
            self.ciphertext.clear();
            fits = connection.transport.send(parts, &mut self.ciphertext).is_ok()
                && connection.out.push(&mut self.queues, &self.ciphertext).is_ok();
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
    pub(super) fn queue_ciphertext(&mut self, owner: Key) {
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        if self.ciphertext.is_empty() {
            return;
        }
        let ctx = self.env.context();
        match connection.out.push(&mut self.queues, &self.ciphertext) {
            Ok(()) => connection.client.output_queued(&ctx),
            Err(_) => connection.client.drop_silently(Cause::OverCapacity, &ctx),
        }
    }

    /// Some of a connection's output was sent.
    fn send_progressed(&mut self, owner: Key) {
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        let unsent = connection.unsent();
        let ctx = self.env.context();
        connection.client.output_sent(unsent == 0, &ctx, &mut self.output);
        // What the backend sent is a part of what is queued, so whatever it is owed beyond the
        // unsent bytes has reached the kernel.
        let delivered = connection.owed.saturating_sub(unsent as u32);
        connection.owed -= delivered;
        if let Some((link, id)) = connection.session
            && delivered > 0
        {
            self.links.delivered(link, id, delivered);
        }
        self.send_answers(owner);
        self.settle(owner);
    }

    /// Acts on what a completion means, but for input.
    pub(super) fn client_event(&mut self, owner: Key, event: PipeEvent) {
        match event {
            PipeEvent::Received(_) => unreachable!("the worker has the ring, and so the bytes"),
            PipeEvent::Sent => return self.send_progressed(owner),
            PipeEvent::Finished => self.peer_finished(owner),
            PipeEvent::Broken => self.peer_gone(owner),
            PipeEvent::Starved => {
                self.env.counters.increment(Metric::ReceiveStarved);
                self.starved.push_back(owner);
            }
            PipeEvent::Routine => {}
        }
        self.settle(owner);
    }

    fn peer_finished(&mut self, owner: Key) {
        if let Some(connection) = self.connections.entry_mut(owner) {
            connection.client.peer_finished(&self.env.context());
        }
    }

    /// No send slot is free. A slot in flight to a client that does not read comes back only at
    /// its write-stall deadline, and by then nobody would have been served; so the clients that
    /// have stalled the longest give theirs up now.
    pub(super) fn drop_stalled(&mut self) {
        if self.env.now.instant < self.relief_at {
            return;
        }
        self.relief_at = self.env.now.instant + RELIEF_EVERY;
        let stalled_since = self.env.now.instant - STALLED_AFTER;
        let mut slow = self.senders.stalled_since(stalled_since, &self.connections);
        slow.truncate(RELIEF_MAX);
        for (_, key) in slow {
            if let Some(connection) = self.connections.entry_mut(key) {
                connection.client.drop_silently(Cause::SlowConsumer, &self.env.context());
            }
            self.settle(key);
        }
    }

    fn peer_gone(&mut self, owner: Key) {
        if let Some(connection) = self.connections.entry_mut(owner) {
            connection.client.peer_gone(&self.env.context());
        }
    }

    pub(super) fn client_deadline(&mut self, owner: Key) {
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        let ctx = self.env.context();
        connection.client.handle_deadline(&ctx, &mut self.output);
        // Whoever was silent for a ping interval waits without a receive from now on.
        let silence = ctx.now.instant.since(connection.client.received());
        if connection.client.is_open() && silence >= ctx.settings.deadlines.ping_interval {
            connection.cold = true;
        }
        self.send_answers(owner);
        self.settle(owner);
    }

    /// Queues a piece of a backend's message for a client; settled later, see `touched`.
    pub(super) fn touch(&mut self, owner: Key) {
        if let Some(connection) = self.connections.entry_mut(owner)
            && !connection.touched
        {
            connection.touched = true;
            self.touched.push(owner);
        }
    }
}

/// Hands a piece of a client's message to its backend.
fn relay(
    links: &mut LinkTable,
    counters: &Counters,
    session: Option<(u16, SessionId)>,
    fragment: &Fragment<'_>,
) {
    counters.add(Metric::BytesFromClients, fragment.bytes.len() as u64);
    counters.add(Metric::MessagesFromClients, u64::from(fragment.last));
    let Some((link, id)) = session else {
        unreachable!("data has an allowance, so there is a session")
    };
    links.data(link, id, fragment);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A million of these must fit beside everything else: 400 bytes each is the figure to
    /// reach, with the wheel's 20 and the slab's 4.
    #[test]
    fn a_connection_is_small() {
        let bytes = size_of::<Connection>();
        assert!(bytes <= 272, "{bytes} bytes");
        println!("connection {bytes}, client {}, pipe {}", size_of::<Client>(), size_of::<Pipe>());
    }
}
