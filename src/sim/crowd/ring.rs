//! The ring of a [`Crowd`](super::Crowd): clients that connect, send their request and fall
//! silent, and backends that accept the link and say nothing more.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use crate::base::time::{Instant, Now, UnixTime};
use crate::protocol::link::{Challenge, Limits, Proof, Ready};
use crate::ring::{
    BufferCount, BufferGroup, Completion, EndpointAddress, Failure, Op, OpKey, OpKind, Outcome,
    Owner, ReceivedBuffer, Ring, SendSlot, Socket,
};
use crate::sim::memory::{Memory, RingSizes};

/// What an enter takes while there is something to do.
const ENTER_TAKES: Duration = Duration::from_micros(100);

/// One socket of the worker's.
#[derive(Default)]
struct State {
    receive: Option<OpKey>,
    polls: bool,
    send: Option<(OpKey, SendSlot, u32)>,
    /// It is a client with the first of the requests.
    first: bool,
    /// What the peer has sent and the worker has not read.
    input: Vec<u8>,
}

/// A ring in memory that costs as little as it can: a turn's time is the worker's.
pub struct CrowdRing {
    now: Now,
    memory: Memory,
    buffers: [Vec<u16>; 2],
    slots: [Vec<u16>; 2],
    sizes: RingSizes,
    done: VecDeque<Completion>,
    accepts: Vec<OpKey>,
    sockets: Vec<Option<State>>,
    /// Sockets of clients and of links, by their owners' slots.
    of_owner: [Vec<u32>; 2],
    links: Vec<Option<u32>>,
    /// Requests of clients that are to connect, in turn.
    heads: Vec<Vec<u8>>,
    coming: u32,
    came: u32,
    /// Clients that have connected: their address, and what they send how long after the accept.
    arrived: VecDeque<(SocketAddr, Duration, Vec<u8>)>,
    /// What clients send later, in the order of the times.
    later: VecDeque<(Instant, u32, Vec<u8>)>,
    /// Time does not jump beyond this.
    pub wake: Instant,
    /// Clients read nothing: what is sent to them stays in flight.
    pub stalls: bool,
    /// Only those with the first of the requests.
    pub stalls_half: bool,
    /// Sends to clients.
    pub sends: u64,
}

impl CrowdRing {
    /// A ring over no connections.
    pub fn new(sizes: RingSizes, unix: UnixTime) -> Self {
        let ids = |counts: [u16; 2]| counts.map(|count| (0..count).collect());
        CrowdRing {
            now: Now { instant: Instant::from_nanos(1_000_000_000), unix },
            memory: Memory::new(sizes),
            buffers: ids(sizes.buffers),
            slots: ids(sizes.slots),
            sizes,
            done: VecDeque::new(),
            accepts: Vec::new(),
            sockets: Vec::new(),
            of_owner: [Vec::new(), Vec::new()],
            links: Vec::new(),
            heads: Vec::new(),
            coming: 0,
            came: 0,
            arrived: VecDeque::new(),
            later: VecDeque::new(),
            wake: Instant::NEVER,
            stalls: false,
            stalls_half: false,
            sends: 0,
        }
    }

    /// So many clients connect, with these requests in turn.
    pub fn connect(&mut self, clients: u32, heads: Vec<Vec<u8>>) {
        self.coming = clients;
        self.heads = heads;
    }

    /// A client connects, and sends this so long after it was accepted, the same for all clients.
    #[cfg(test)]
    pub fn arrive(&mut self, peer: SocketAddr, after: Duration, input: Vec<u8>) {
        self.arrived.push_back((peer, after, input));
    }

    /// A backend says something over its link.
    #[cfg(test)]
    pub fn say(&mut self, endpoint: usize, bytes: &[u8]) {
        let socket = self.links[endpoint].expect("the link is connected");
        let state = self.sockets[socket as usize].as_mut().expect("it is open");
        state.input.extend_from_slice(bytes);
        let key = state.receive.take().expect("links are read");
        self.receive(key, socket, BufferGroup::Link);
    }

    /// The connection of a link is lost.
    pub fn lose_link(&mut self, endpoint: usize) {
        let socket = self.links[endpoint].take().expect("the link is connected");
        let state = self.sockets[socket as usize].as_mut().expect("it is open");
        let key = state.receive.take().expect("links are read");
        self.complete(key, Outcome::Failed(Failure::Disconnected));
    }

    fn complete(&mut self, key: OpKey, outcome: Outcome) {
        self.done.push_back(Completion { key, outcome, more: false });
    }

    fn socket(&mut self, input: Vec<u8>) -> Socket {
        self.sockets.push(Some(State { input, ..State::default() }));
        Socket(self.sockets.len() as u32 - 1)
    }

    fn state(&mut self, socket: u32) -> Option<&mut State> {
        self.sockets.get_mut(socket as usize)?.as_mut()
    }

    /// Remembers whose socket it is, for cancellations.
    fn note_owner(&mut self, key: OpKey, socket: u32) {
        let table = &mut self.of_owner[usize::from(matches!(key.owner, Owner::Upstream(_)))];
        let slot = key.owner.key().slot as usize;
        if slot >= table.len() {
            table.resize(slot + 1, u32::MAX);
        }
        table[slot] = socket;
    }

    fn accept(&mut self) {
        while !self.arrived.is_empty()
            && let Some(key) = self.accepts.pop()
            && let Some((peer, after, input)) = self.arrived.pop_front()
        {
            let socket = self.socket(Vec::new());
            if !input.is_empty() {
                self.later.push_back((self.now.instant + after, socket.0, input));
            }
            self.complete(key, Outcome::Accepted { socket, peer: Some(peer) });
        }
        while self.coming > 0
            && let Some(key) = self.accepts.pop()
        {
            self.coming -= 1;
            let head = self.heads[self.came as usize % self.heads.len()].clone();
            // The address says which of the heads it was.
            let [_, a, b, c] = self.came.to_be_bytes();
            let port = 1024 + (self.came as usize % self.heads.len()) as u16;
            self.came += 1;
            let socket = self.socket(head);
            self.sockets[socket.0 as usize].as_mut().expect("it was made").first = port == 1024;
            let peer = Some(SocketAddr::from(([10, a, b, c], port)));
            self.complete(key, Outcome::Accepted { socket, peer });
        }
    }

    /// Delivers input that waits to a receive.
    fn receive(&mut self, key: OpKey, socket: u32, group: BufferGroup) {
        let Some(state) = self.sockets[socket as usize].as_mut() else { return };
        state.polls = false;
        if state.input.is_empty() {
            state.receive = Some(key);
            return;
        }
        let Some(id) = self.buffers[group as usize].pop() else {
            return self.complete(key, Outcome::Failed(Failure::NoBuffers));
        };
        let input = std::mem::take(&mut state.input);
        state.receive = (key.kind == OpKind::Receive).then_some(key);
        self.memory.buffer(group, id)[..input.len()].copy_from_slice(&input);
        let buffer = ReceivedBuffer::of_ring(group, id, input.len() as u32);
        self.done.push_back(Completion { key, outcome: Outcome::Received(buffer), more: true });
    }

    /// What clients have sent by now goes to the receives that wait for it.
    fn deliver_later(&mut self) {
        while self.later.front().is_some_and(|(at, ..)| *at <= self.now.instant)
            && let Some((_, socket, input)) = self.later.pop_front()
        {
            let Some(state) = self.sockets[socket as usize].as_mut() else { continue };
            state.input = input;
            if let Some(key) = state.receive.take_if(|key| key.kind == OpKind::Receive) {
                self.receive(key, socket, BufferGroup::Client);
            }
        }
    }

    fn cancel(&mut self, key: OpKey, target: OpKey) {
        if let Some(at) = self.accepts.iter().position(|accept| *accept == target) {
            self.accepts.swap_remove(at);
            self.complete(target, Outcome::Failed(Failure::Cancelled));
        }
        let table = &self.of_owner[usize::from(matches!(target.owner, Owner::Upstream(_)))];
        let socket = table.get(target.owner.key().slot as usize).copied().unwrap_or(u32::MAX);
        if let Some(state) = self.state(socket) {
            if state.receive == Some(target) {
                state.receive = None;
                self.complete(target, Outcome::Failed(Failure::Cancelled));
            } else if let Some((send, slot, _)) = state.send.take_if(|(send, ..)| *send == target) {
                let result = Err(Failure::Cancelled);
                self.complete(send, Outcome::Sent { slot, result });
            }
        }
        self.complete(key, Outcome::CancelDone);
    }
}

impl Ring for CrowdRing {
    fn now(&self) -> Now {
        self.now
    }

    fn clock(&self) -> Instant {
        self.now.instant
    }

    fn set_endpoint(&mut self, endpoint: u16, _: EndpointAddress) {
        let needed = usize::from(endpoint) + 1;
        if self.links.len() < needed {
            self.links.resize(needed, None);
        }
    }

    fn submit(&mut self, key: OpKey, op: Op) {
        match op {
            Op::Accept { .. } => self.accepts.push(key),
            Op::ReceiveMultishot { socket, group } | Op::ReceiveOnce { socket, group } => {
                self.note_owner(key, socket.0);
                self.receive(key, socket.0, group);
            }
            Op::PollReadable { socket } | Op::PollHangup { socket } => {
                self.note_owner(key, socket.0);
                if let Some(state) = self.state(socket.0) {
                    (state.receive, state.polls) = (Some(key), true);
                }
            }
            Op::Send { socket, slot, start, end } => {
                self.note_owner(key, socket.0);
                self.sends += u64::from(slot.group() == BufferGroup::Client);
                let first = self.state(socket.0).is_some_and(|state| state.first);
                let stalls = self.stalls && (first || !self.stalls_half);
                if stalls && slot.group() == BufferGroup::Client {
                    if let Some(state) = self.state(socket.0) {
                        state.send = Some((key, slot, end - start));
                    }
                } else {
                    self.complete(key, Outcome::Sent { slot, result: Ok(end - start) });
                }
            }
            Op::Connect { endpoint } => {
                let limits = Limits {
                    frame_max: 1 << 20,
                    message_max: 1 << 20,
                    session_window: 1 << 16,
                    link_window: 1 << 24,
                    sessions_max: 1 << 20,
                };
                let proof = Proof::Absent;
                let (instance, nonce) = ([2; 16], [3; 32]);
                let mut answer = Vec::new();
                Challenge { version: 1, features: 0, instance, nonce, limits, proof }
                    .encode(&mut answer);
                Ready.encode(&mut answer);
                let socket = self.socket(answer);
                self.links[usize::from(endpoint)] = Some(socket.0);
                self.complete(key, Outcome::Connected(socket));
            }
            Op::Close { socket, .. } => {
                if let Some(place) = self.sockets.get_mut(socket.0 as usize) {
                    let state = place.take();
                    let idle = state.is_some_and(|s| s.receive.is_none() && s.send.is_none());
                    assert!(idle, "closed with operations in flight");
                }
                self.complete(key, Outcome::Closed);
            }
            Op::Cancel { target } => self.cancel(key, target),
        }
    }

    fn enter(&mut self, until: Instant) {
        self.accept();
        let later = self.later.front().map_or(Instant::NEVER, |(at, ..)| *at);
        let until = until.min(self.wake).min(later);
        let idle = self.done.is_empty() && until > self.now.instant + ENTER_TAKES;
        let next = if idle { until } else { self.now.instant + ENTER_TAKES };
        let passed = next.since(self.now.instant);
        self.now.instant = next;
        self.now.unix = self.now.unix.later(passed);
        self.deliver_later();
    }

    fn completion(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    fn received(&mut self, buffer: &ReceivedBuffer) -> &mut [u8] {
        &mut self.memory.buffer(buffer.group(), buffer.id())[..buffer.length() as usize]
    }

    fn give_back(&mut self, buffer: ReceivedBuffer) {
        self.buffers[buffer.group() as usize].push(buffer.id());
    }

    fn buffers(&self, group: BufferGroup) -> BufferCount {
        BufferCount {
            total: self.sizes.buffers[group as usize].into(),
            free: self.buffers[group as usize].len() as u32,
        }
    }

    fn send_slot(&mut self, group: BufferGroup) -> Option<SendSlot> {
        self.slots[group as usize].pop().map(|id| SendSlot::of_ring(group, id))
    }

    fn slot_bytes(&mut self, slot: &SendSlot) -> &mut [u8] {
        self.memory.slot(slot)
    }

    fn release(&mut self, slot: SendSlot) {
        self.slots[slot.group() as usize].push(slot.id());
    }

    fn shutdown_write(&mut self, _: Socket) {}

    fn close_listener(&mut self, _: u16) {}
}
