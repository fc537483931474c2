//! The kernel's half of the fake ring: descriptors, operations in flight, buffer pools and the
//! completion queue. The bytes of buffers and slots are the [`FakeRing`](super::fake_ring)'s.
//!
//! Rules that no worker may break are checked here: one receive and one send in flight on a
//! socket, no key in use twice, nothing on a closed descriptor, no close while an operation's
//! last completion has not been taken, each buffer and slot given back exactly once.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};

use super::fake_ring::Memory;
use super::faults::Fault;
use super::net::{ConnId, Event, MICROS, MILLIS, Net, Party, SECONDS, Side};
use crate::ring::{
    BufferCount, BufferGroup, Completion, EndpointAddress, Failure, Op, OpKey, OpKind, Outcome,
    ReceivedBuffer, SendSlot, Socket,
};

/// Shots of one multishot receive in one pass, as in Linux.
const SHOTS_MAX: u32 = 32;
/// ECONNABORTED.
const ABORTED: i32 = 103;
/// ECONNREFUSED.
const REFUSED: i32 = 111;
/// ETIMEDOUT.
const TIMED_OUT: i32 = 110;
/// EBADF.
const BAD_DESCRIPTOR: i32 = 9;
/// EINVAL.
const INVALID: i32 = 22;

/// Sizes of one run's ring.
#[derive(Clone, Copy, Debug)]
pub struct RingSizes {
    /// Receive buffers, clients and links.
    pub buffers: [u16; 2],
    /// Send slots, clients and links.
    pub slots: [u16; 2],
    /// Descriptors that may be open concurrently.
    pub descriptors: usize,
    /// Whether a closed descriptor's number is given out again. Without, a use after close is
    /// always seen; with it, confusion of old and new is.
    pub reuse_descriptors: bool,
    /// Listeners, by number.
    pub listeners: u16,
}

/// Bugs that the fake kernel can be told to have, to prove that the checks see them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelBugs {
    /// Every Nth buffer given back is lost; 0 is never.
    pub loses_buffer: u64,
    /// Every Nth received buffer is filled, but the bytes stay readable; 0 is never.
    pub receives_twice: u64,
    /// Every Nth send loses its last byte; 0 is never.
    pub drops_sent_byte: u64,
    /// Every Nth receive's completion is delivered twice; 0 is never.
    pub completes_twice: u64,
    /// Every client's address is the same.
    pub peers_alike: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Free,
    InFlight,
    Worker,
}

#[derive(Debug)]
struct Pool {
    places: Vec<Place>,
    free: Vec<u16>,
}

impl Pool {
    fn new(count: u16) -> Self {
        Pool { places: vec![Place::Free; count.into()], free: (0..count).rev().collect() }
    }

    fn take(&mut self, place: Place) -> Option<u16> {
        let id = self.free.pop()?;
        debug_assert_eq!(self.places[id as usize], Place::Free);
        self.places[id as usize] = place;
        Some(id)
    }

    fn count(&self, place: Place) -> usize {
        self.places.iter().filter(|p| **p == place).count()
    }
}

/// What an operation in flight is about.
#[derive(Debug)]
enum Work {
    Accept { listener: u16 },
    Receive { socket: u32, group: BufferGroup, multi: bool },
    Poll { socket: u32, hangup: bool },
    Send { socket: u32, slot: Option<SendSlot>, next: u32, start: u32, end: u32, held_until: u64 },
    Connect { endpoint: u16 },
    Close,
    Cancel,
}

#[derive(Debug)]
struct Pending {
    key: OpKey,
    work: Work,
    /// The last completion is made, though perhaps not yet visible.
    finished: bool,
    posts_last: u64,
}

#[derive(Debug)]
struct Descriptor {
    conn: ConnId,
    receive: Option<u64>,
    poll: Option<u64>,
    send: Option<u64>,
    closing: bool,
}

#[derive(Debug)]
struct FakeListener {
    open: bool,
    backlog: VecDeque<ConnId>,
    accepts: VecDeque<u64>,
}

/// How a connect to an address ends; decided by the world, which knows the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The backend with this index listens.
    Listens(usize),
    /// No backend does.
    Refuses,
}

/// The state described above.
#[derive(Debug)]
pub struct Kernel {
    /// What the fake kernel does wrong on purpose.
    pub bugs: KernelBugs,
    /// Clients come through a load balancer.
    pub balanced: bool,
    sizes: RingSizes,
    submitted: VecDeque<(u64, Option<Op>)>,
    /// Completions that may still be taken before the worker dies in the middle of a turn.
    pub takes_left: Option<u32>,
    ops: BTreeMap<u64, Pending>,
    keys: BTreeMap<u64, u64>,
    ops_made: u64,
    descriptors: BTreeMap<u32, Descriptor>,
    descriptor_next: u32,
    listeners: Vec<FakeListener>,
    endpoints: BTreeMap<u16, EndpointAddress>,
    queue: VecDeque<(u64, Completion)>,
    buffers: [Pool; 2],
    slots: [Pool; 2],
    given_back: u64,
    received: u64,
    sent: u64,
}

impl Kernel {
    /// A kernel with nothing open but the listeners.
    pub fn new(sizes: RingSizes) -> Self {
        let listener =
            || FakeListener { open: true, backlog: VecDeque::new(), accepts: VecDeque::new() };
        Kernel {
            bugs: KernelBugs::default(),
            balanced: false,
            submitted: VecDeque::new(),
            takes_left: None,
            ops: BTreeMap::new(),
            keys: BTreeMap::new(),
            ops_made: 0,
            descriptors: BTreeMap::new(),
            descriptor_next: 3,
            listeners: (0..sizes.listeners).map(|_| listener()).collect(),
            endpoints: BTreeMap::new(),
            queue: VecDeque::new(),
            buffers: sizes.buffers.map(Pool::new),
            slots: sizes.slots.map(Pool::new),
            given_back: 0,
            received: 0,
            sent: 0,
            sizes,
        }
    }

    /// Puts an entry into the endpoint table.
    pub fn set_endpoint(&mut self, endpoint: u16, address: EndpointAddress) {
        self.endpoints.insert(endpoint, address);
    }

    /// The address that a connect in flight is for.
    pub fn connect_address(&self, op: u64) -> Option<&EndpointAddress> {
        match self.ops.get(&op)?.work {
            Work::Connect { endpoint } => self.endpoints.get(&endpoint),
            _ => None,
        }
    }

    /// Queues an operation, and checks that it may be asked for now.
    pub fn submit(&mut self, net: &mut Net, key: OpKey, op: Op) {
        self.ops_made += 1;
        let id = self.ops_made;
        net.note(op_name(&op), key.to_bits(), op_socket(&op).map_or(u64::MAX, u64::from));
        // Cancellations may share a key, and so may closes of connections that were turned away:
        // nothing ever has to tell them apart.
        if !matches!(key.kind, OpKind::Cancel | OpKind::Close)
            && let Some(earlier) = self.keys.insert(key.to_bits(), id)
        {
            net.check.fail(format!("key {key:?} submitted while operation {earlier} has it"));
        }
        if let Some(socket) = op_socket(&op) {
            self.check_socket(net, id, socket, &op);
        }
        let work = match &op {
            Op::Accept { listener } => Work::Accept { listener: *listener },
            Op::ReceiveMultishot { socket, group } => {
                Work::Receive { socket: socket.0, group: *group, multi: true }
            }
            Op::ReceiveOnce { socket, group } => {
                Work::Receive { socket: socket.0, group: *group, multi: false }
            }
            Op::PollReadable { socket } => Work::Poll { socket: socket.0, hangup: false },
            Op::PollHangup { socket } => Work::Poll { socket: socket.0, hangup: true },
            Op::Send { socket, start, end, slot } => {
                let place = &mut self.slots[slot.group() as usize].places[slot.id() as usize];
                if std::mem::replace(place, Place::InFlight) != Place::Worker {
                    net.check.fail(format!("slot {slot:?} sent while not the worker's"));
                }
                if start >= end {
                    net.check.fail(format!("empty send {start}..{end}"));
                }
                let (socket, next) = (socket.0, *start);
                Work::Send { socket, slot: None, next, start: next, end: *end, held_until: 0 }
            }
            Op::Connect { endpoint } => Work::Connect { endpoint: *endpoint },
            Op::Close { .. } => Work::Close,
            Op::Cancel { .. } => Work::Cancel,
        };
        self.ops.insert(id, Pending { key, work, finished: false, posts_last: 0 });
        self.submitted.push_back((id, Some(op)));
    }

    fn check_socket(&mut self, net: &mut Net, id: u64, socket: u32, op: &Op) {
        let Some(descriptor) = self.descriptors.get_mut(&socket) else {
            return net.check.fail(format!("{} on closed descriptor {socket}", op_name(op)));
        };
        if descriptor.closing {
            return net.check.fail(format!("{} on closing descriptor {socket}", op_name(op)));
        }
        let place = match op {
            Op::ReceiveMultishot { .. } | Op::ReceiveOnce { .. } => &mut descriptor.receive,
            Op::PollReadable { .. } | Op::PollHangup { .. } => &mut descriptor.poll,
            Op::Send { .. } => &mut descriptor.send,
            Op::Close { .. } => {
                let flying = [descriptor.receive, descriptor.poll, descriptor.send];
                if flying.iter().any(Option::is_some) {
                    net.check.fail(format!("close of {socket} with {flying:?} in flight"));
                }
                descriptor.closing = true;
                return;
            }
            _ => return,
        };
        if place.replace(id).is_some() {
            net.check.fail(format!("two of {} in flight on {socket}", op_name(op)));
        }
    }

    /// Starts everything queued, in order.
    pub fn start_submitted(&mut self, net: &mut Net, memory: &mut Memory) {
        while let Some((id, op)) = self.submitted.pop_front() {
            let Some(op) = op else { continue };
            self.start(net, memory, id, op);
        }
    }

    fn start(&mut self, net: &mut Net, memory: &mut Memory, id: u64, op: Op) {
        match op {
            Op::Accept { listener } => self.start_accept(net, id, listener),
            Op::ReceiveMultishot { socket, .. } | Op::ReceiveOnce { socket, .. } => {
                self.progress_receive(net, memory, socket.0);
            }
            Op::PollReadable { socket } | Op::PollHangup { socket } => {
                self.progress_poll(net, socket.0);
            }
            Op::Send { socket, slot, .. } => {
                let pending = net.fault(Fault::SendPending);
                let until = if pending { net.now + net.random.below(5 * MILLIS) } else { 0 };
                if let Some(Pending { work: Work::Send { slot: at, held_until, .. }, .. }) =
                    self.ops.get_mut(&id)
                {
                    *at = Some(slot);
                    *held_until = until;
                }
                let conn = self.descriptors.get(&socket.0).map(|d| d.conn);
                if let (true, Some(conn)) = (pending, conn) {
                    net.schedule(until, Event::Poke(conn));
                }
                self.progress_send(net, memory, socket.0);
            }
            Op::Connect { .. } => self.start_connect(net, id),
            Op::Close { socket, reset } => self.start_close(net, id, socket.0, reset),
            Op::Cancel { target } => self.start_cancel(net, memory, id, target),
        }
    }

    fn start_accept(&mut self, net: &mut Net, id: u64, listener: u16) {
        match self.listeners.get_mut(listener as usize) {
            Some(entry) if entry.open => {
                entry.accepts.push_back(id);
                self.progress_accepts(net, listener);
            }
            _ => self.finish(net, id, Outcome::Failed(Failure::Errno(BAD_DESCRIPTOR))),
        }
    }

    /// A connection reaches a listener.
    pub fn knock(&mut self, net: &mut Net, listener: u16, conn: ConnId) {
        match self.listeners.get_mut(listener as usize) {
            Some(entry) if entry.open => {
                entry.backlog.push_back(conn);
                self.progress_accepts(net, listener);
            }
            _ => net.close(conn, Side::Gateway, true),
        }
    }

    fn progress_accepts(&mut self, net: &mut Net, listener: u16) {
        loop {
            let entry = &mut self.listeners[listener as usize];
            if entry.backlog.is_empty() || entry.accepts.is_empty() {
                return;
            }
            let Some(id) = entry.accepts.pop_front() else { return };
            if self.descriptors.len() >= self.sizes.descriptors || net.fault(Fault::AcceptExhausted)
            {
                self.finish(net, id, Outcome::Failed(Failure::Exhausted));
                continue;
            }
            let Some(conn) = self.listeners[listener as usize].backlog.pop_front() else { return };
            if net.fault(Fault::AcceptAborted) {
                net.close(conn, Side::Gateway, true);
                self.finish(net, id, Outcome::Failed(Failure::Errno(ABORTED)));
                continue;
            }
            let socket = self.open_descriptor(net, conn);
            let now = net.now;
            let entry = net.conn_mut(conn);
            entry.accepted_at = Some(now);
            let peer = match entry.party {
                Party::Client(index) => {
                    let [_, _, high, low] = (index as u32).to_be_bytes();
                    let own = Ipv4Addr::new(10, 0, high, low);
                    // Behind a balancer only the PROXY header tells.
                    let source = entry.floods_from.filter(|_| !self.balanced).unwrap_or(own);
                    let source = if self.bugs.peers_alike { [10, 0, 0, 0].into() } else { source };
                    let port = 1024 + (conn % 60_000) as u16;
                    Some(SocketAddr::from((source, port)))
                }
                Party::Backend(_) | Party::Test => None,
            };
            self.finish(net, id, Outcome::Accepted { socket: Socket(socket), peer });
        }
    }

    fn open_descriptor(&mut self, net: &mut Net, conn: ConnId) -> u32 {
        let socket = if self.sizes.reuse_descriptors {
            (3..).find(|number| !self.descriptors.contains_key(number)).unwrap_or(u32::MAX)
        } else {
            self.descriptor_next += 1;
            self.descriptor_next
        };
        let descriptor = Descriptor { conn, receive: None, poll: None, send: None, closing: false };
        self.descriptors.insert(socket, descriptor);
        net.conn_mut(conn).socket = Some(socket);
        socket
    }

    /// Sends FIN after everything sent so far.
    pub fn shutdown_write(&mut self, net: &mut Net, socket: Socket) {
        net.note("> shutdown", u64::from(socket.0), 0);
        match self.descriptors.get(&socket.0) {
            Some(descriptor) if descriptor.closing => {
                net.check.fail(format!("shutdown of closing descriptor {}", socket.0));
            }
            Some(descriptor) if descriptor.send.is_some() => {
                net.check.fail(format!("shutdown of {} with a send in flight", socket.0));
            }
            Some(descriptor) => net.shutdown(descriptor.conn, Side::Gateway),
            None => net.check.fail(format!("shutdown of closed descriptor {}", socket.0)),
        }
    }

    /// Closes a listener; accepts outstanding fail, connections in its backlog are reset.
    pub fn close_listener(&mut self, net: &mut Net, listener: u16) {
        let Some(entry) = self.listeners.get_mut(listener as usize) else {
            return net.check.fail(format!("no listener {listener}"));
        };
        if !std::mem::replace(&mut entry.open, false) {
            return net.check.fail(format!("listener {listener} closed twice"));
        }
        let accepts = std::mem::take(&mut entry.accepts);
        let backlog = std::mem::take(&mut entry.backlog);
        for conn in backlog {
            net.close(conn, Side::Gateway, true);
        }
        for id in accepts {
            let failure = match net.random.below(2) {
                0 => Failure::Cancelled,
                _ => Failure::Errno(INVALID),
            };
            self.finish(net, id, Outcome::Failed(failure));
        }
    }

    fn start_connect(&mut self, net: &mut Net, id: u64) {
        let delay = if net.fault(Fault::ConnectHung) {
            130 * SECONDS
        } else if net.fault(Fault::ConnectSlow) {
            net.random.below(3 * SECONDS)
        } else {
            net.latency()
        };
        net.schedule(net.now + delay, Event::Connect(id));
    }

    /// A connect is decided.
    pub fn decide_connect(&mut self, net: &mut Net, id: u64, answer: Answer) {
        let live =
            |pending: &Pending| !pending.finished && matches!(pending.work, Work::Connect { .. });
        if !self.ops.get(&id).is_some_and(live) {
            return;
        }
        if self.descriptors.len() >= self.sizes.descriptors || net.fault(Fault::ConnectExhausted) {
            return self.finish(net, id, Outcome::Failed(Failure::Exhausted));
        }
        let backend = match answer {
            Answer::Listens(backend) if !net.fault(Fault::ConnectRefused) => backend,
            _ => {
                let refused = net.random.chance(3, 4);
                let errno = if refused { REFUSED } else { TIMED_OUT };
                return self.finish(net, id, Outcome::Failed(Failure::Errno(errno)));
            }
        };
        let conn = net.new_conn(Party::Backend(backend));
        net.note("connected", conn as u64, backend as u64);
        net.conn_mut(conn).accepted_at = Some(net.now);
        let socket = self.open_descriptor(net, conn);
        net.news.push_back((conn, Side::Remote));
        self.finish(net, id, Outcome::Connected(Socket(socket)));
    }

    fn start_close(&mut self, net: &mut Net, id: u64, socket: u32, reset: bool) {
        if let Some(descriptor) = self.descriptors.remove(&socket) {
            self.let_go(net, descriptor.conn, reset);
        }
        self.finish(net, id, Outcome::Closed);
    }

    fn start_cancel(&mut self, net: &mut Net, memory: &mut Memory, id: u64, target: OpKey) {
        let found = self.keys.get(&target.to_bits()).copied();
        let live = found.filter(|target| self.ops.get(target).is_some_and(|op| !op.finished));
        let Some(found) = live else {
            return self.finish(net, id, Outcome::Failed(Failure::NotFound));
        };
        if net.fault(Fault::CancelRace) && self.complete_first(net, memory, found) {
            return self.finish(net, id, Outcome::Failed(Failure::NotFound));
        }
        let first = net.random.chance(1, 2);
        if first {
            self.finish(net, id, Outcome::CancelDone);
        }
        self.cancel_work(net, found);
        if !first {
            self.finish(net, id, Outcome::CancelDone);
        }
    }

    /// The target of a cancel gets a last chance; true when that ended it.
    fn complete_first(&mut self, net: &mut Net, memory: &mut Memory, id: u64) -> bool {
        let Some(pending) = self.ops.get_mut(&id) else { return false };
        match &mut pending.work {
            Work::Receive { socket, .. } => {
                let socket = *socket;
                self.progress_receive(net, memory, socket);
            }
            Work::Poll { socket, .. } => {
                let socket = *socket;
                self.progress_poll(net, socket);
            }
            Work::Send { socket, held_until, .. } => {
                *held_until = 0;
                let socket = *socket;
                self.progress_send(net, memory, socket);
            }
            // It is decided now, by the world.
            Work::Connect { .. } => {
                net.schedule(net.now, Event::Connect(id));
                return true;
            }
            Work::Close | Work::Accept { .. } | Work::Cancel => {}
        }
        self.ops.get(&id).is_none_or(|op| op.finished)
    }

    fn cancel_work(&mut self, net: &mut Net, id: u64) {
        let Some(pending) = self.ops.get_mut(&id) else { return };
        match &mut pending.work {
            Work::Accept { listener } => {
                let listener = *listener as usize;
                self.listeners[listener].accepts.retain(|accept| *accept != id);
                self.finish(net, id, Outcome::Failed(Failure::Cancelled));
            }
            Work::Send { slot, next, start, .. } => {
                let done = *next - *start;
                let Some(slot) = slot.take() else { return };
                let result = if done > 0 { Ok(done) } else { Err(Failure::Cancelled) };
                self.finish(net, id, Outcome::Sent { slot, result });
            }
            Work::Receive { .. } | Work::Poll { .. } | Work::Connect { .. } => {
                self.finish(net, id, Outcome::Failed(Failure::Cancelled));
            }
            Work::Close | Work::Cancel => {}
        }
    }

    /// Looks again at every operation on a connection's gateway end.
    pub fn poke(&mut self, net: &mut Net, memory: &mut Memory, conn: ConnId) {
        let Some(socket) = net.conn(conn).socket else { return };
        self.progress_receive(net, memory, socket);
        self.progress_poll(net, socket);
        self.progress_send(net, memory, socket);
    }

    fn live(&self, op: Option<u64>) -> Option<(u64, &Pending)> {
        let id = op?;
        let pending = self.ops.get(&id)?;
        let started = !self.submitted.iter().any(|(waiting, _)| *waiting == id);
        (!pending.finished && started).then_some((id, pending))
    }

    fn progress_receive(&mut self, net: &mut Net, memory: &mut Memory, socket: u32) {
        let Some(descriptor) = self.descriptors.get(&socket) else { return };
        let conn = descriptor.conn;
        for _ in 0..SHOTS_MAX {
            let Some(descriptor) = self.descriptors.get(&socket) else { return };
            let Some((id, pending)) = self.live(descriptor.receive) else { return };
            let Work::Receive { group, multi, .. } = pending.work else { return };
            let readable = net.readable(conn, Side::Gateway);
            if readable > 0 {
                let Some(buffer) = self.buffers[group as usize].take(Place::InFlight) else {
                    net.faults.note(Fault::NoBuffers);
                    return self.finish(net, id, Outcome::Failed(Failure::NoBuffers));
                };
                let more = multi && !net.fault(Fault::MultishotEnded);
                self.shot(net, memory, id, conn, (group, buffer), more);
                continue;
            }
            let outcome = if net.is_reset(conn, Side::Gateway) {
                Outcome::Failed(Failure::Disconnected)
            } else if net.ended(conn, Side::Gateway) {
                Outcome::EndOfStream
            } else {
                return;
            };
            return self.finish(net, id, outcome);
        }
        net.schedule(net.now + 10 * MICROS, Event::Poke(conn));
    }

    /// One buffer's worth of a receive.
    fn shot(
        &mut self,
        net: &mut Net,
        memory: &mut Memory,
        id: u64,
        conn: ConnId,
        (group, buffer): (BufferGroup, u16),
        more: bool,
    ) {
        self.received += 1;
        let bytes = memory.buffer(group, buffer);
        let short = net.fault(Fault::ReceiveShort);
        let most = if short { 1 + net.random.below(16) as usize } else { bytes.len() };
        let most = most.min(bytes.len());
        let count = net.read(conn, Side::Gateway, &mut bytes[..most]);
        if planted(self.bugs.receives_twice, self.received) {
            net.unread(conn, Side::Gateway, &bytes[..count]);
        }
        if !net.conn(conn).is_tls {
            net.trace.note_bytes(&bytes[..count]);
        }
        let received = ReceivedBuffer::of_ring(group, buffer, count as u32);
        if planted(self.bugs.completes_twice, self.received) {
            let again = ReceivedBuffer::of_ring(group, buffer, count as u32);
            self.post(net, id, Outcome::Received(again), true);
        }
        self.post(net, id, Outcome::Received(received), more);
    }

    fn progress_poll(&mut self, net: &mut Net, socket: u32) {
        let Some(descriptor) = self.descriptors.get(&socket) else { return };
        let conn = descriptor.conn;
        let Some((id, pending)) = self.live(descriptor.poll) else { return };
        let hangup = matches!(pending.work, Work::Poll { hangup: true, .. });
        let readable = (!hangup && net.readable(conn, Side::Gateway) > 0)
            || net.ended(conn, Side::Gateway)
            || net.is_reset(conn, Side::Gateway);
        if readable {
            self.finish(net, id, Outcome::Readable);
        }
    }

    fn progress_send(&mut self, net: &mut Net, memory: &mut Memory, socket: u32) {
        let Some(descriptor) = self.descriptors.get(&socket) else { return };
        let conn = descriptor.conn;
        let Some((id, _)) = self.live(descriptor.send) else { return };
        let drops = planted(self.bugs.drops_sent_byte, self.sent + 1);
        let Some(pending) = self.ops.get_mut(&id) else { return };
        let Work::Send { slot, next, start, end, held_until, .. } = &mut pending.work else {
            return;
        };
        if *held_until > net.now {
            return;
        }
        if net.fault(Fault::SendReset) {
            net.kill(conn);
        }
        let Some(held) = slot.as_ref() else { return };
        let all = &memory.slot(held)[*next as usize..*end as usize];
        // A fault may end the send early, so only part of it is even offered.
        let short = net.fault(Fault::SendShort);
        let offered =
            if short { 1 + net.random.below(all.len() as u64) as usize } else { all.len() };
        let written = match net.write(conn, Side::Gateway, &all[..offered - usize::from(drops)]) {
            Ok(count) => Ok(count + usize::from(drops && count + 1 == offered)),
            Err(dead) => Err(dead),
        };
        let result = match written {
            Ok(count) => {
                if !net.conn(conn).is_tls {
                    net.trace.note_bytes(&all[..count]);
                }
                *next += count as u32;
                if *next < *end && !(short && count > 0) {
                    return;
                }
                Ok(*next - *start)
            }
            Err(_) if *next > *start => Ok(*next - *start),
            Err(_) => Err(Failure::Disconnected),
        };
        let Some(slot) = slot.take() else { return };
        self.sent += 1;
        self.finish(net, id, Outcome::Sent { slot, result });
    }

    fn finish(&mut self, net: &mut Net, id: u64, outcome: Outcome) {
        self.post(net, id, outcome, false);
    }

    /// Makes a completion; faults decide when it becomes visible.
    fn post(&mut self, net: &mut Net, id: u64, outcome: Outcome, more: bool) {
        let delay =
            if net.fault(Fault::CompletionDelayed) { net.random.below(5 * MILLIS) } else { 0 };
        let Some(pending) = self.ops.get_mut(&id) else { return };
        assert!(!pending.finished, "the fake kernel completed an operation twice");
        pending.finished = !more;
        let at = (net.now + delay).max(pending.posts_last);
        let waits = at > net.now || pending.posts_last > net.now;
        pending.posts_last = at;
        let completion = Completion { key: pending.key, outcome, more };
        if waits {
            net.schedule(at, Event::Post(id, completion));
        } else {
            self.make_visible(net, id, completion);
        }
    }

    /// Adds a completion to the queue, perhaps in front of other operations' completions.
    pub fn make_visible(&mut self, net: &mut Net, id: u64, completion: Completion) {
        if !self.ops.contains_key(&id) {
            // It belonged to a ring that is gone.
            return;
        }
        let mut place = self.queue.len();
        if net.fault(Fault::CompletionReordered) {
            let own = self.queue.iter().rposition(|(op, _)| *op == id).map_or(0, |at| at + 1);
            place = own + net.random.below((place - own + 1) as u64) as usize;
        }
        self.queue.insert(place, (id, completion));
    }

    /// The ring is closed and its owner dead: nothing is in flight any more, its descriptors and
    /// listeners are closed, and buffers and slots are those of the next ring.
    pub fn end_ring(&mut self, net: &mut Net) {
        self.takes_left = None;
        self.submitted.clear();
        self.ops.clear();
        self.keys.clear();
        self.queue.clear();
        self.buffers = self.sizes.buffers.map(Pool::new);
        self.slots = self.sizes.slots.map(Pool::new);
        for (_, descriptor) in std::mem::take(&mut self.descriptors) {
            self.let_go(net, descriptor.conn, false);
        }
        for listener in &mut self.listeners {
            listener.open = false;
            listener.accepts.clear();
            for conn in std::mem::take(&mut listener.backlog) {
                net.close(conn, Side::Gateway, true);
            }
        }
    }

    /// Listeners take connections again, for a new ring.
    pub fn bind_listeners(&mut self) {
        self.listeners.iter_mut().for_each(|listener| listener.open = true);
    }

    fn let_go(&mut self, net: &mut Net, conn: ConnId, reset: bool) {
        let now = net.now;
        let entry = net.conn_mut(conn);
        entry.socket = None;
        entry.closed_at = Some(now);
        net.close(conn, Side::Gateway, reset);
    }

    /// Whether a completion can be taken.
    pub fn has_completion(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether the worker has asked for anything since the last enter.
    pub fn has_submissions(&self) -> bool {
        !self.submitted.is_empty()
    }

    /// Hands the next completion to the worker.
    pub fn completion(&mut self, net: &mut Net) -> Option<Completion> {
        if let Some(left) = &mut self.takes_left {
            *left = left.checked_sub(1)?;
        }
        let (id, completion) = self.queue.pop_front()?;
        // A last completion shows as a one in front.
        let last = u64::from(!completion.more) << 32;
        let detail = outcome_detail(&completion.outcome) | last;
        net.note(outcome_name(&completion.outcome), completion.key.to_bits(), detail);
        match &completion.outcome {
            Outcome::Received(buffer) => {
                self.buffers[buffer.group() as usize].places[buffer.id() as usize] = Place::Worker;
            }
            Outcome::Sent { slot, .. } => {
                self.slots[slot.group() as usize].places[slot.id() as usize] = Place::Worker;
            }
            _ => {}
        }
        if !completion.more {
            self.retire(id);
        }
        Some(completion)
    }

    fn retire(&mut self, id: u64) {
        let Some(pending) = self.ops.remove(&id) else { return };
        if self.keys.get(&pending.key.to_bits()) == Some(&id) {
            self.keys.remove(&pending.key.to_bits());
        }
        let socket = match pending.work {
            Work::Receive { socket, .. }
            | Work::Poll { socket, .. }
            | Work::Send { socket, .. } => socket,
            _ => return,
        };
        let Some(descriptor) = self.descriptors.get_mut(&socket) else { return };
        for place in [&mut descriptor.receive, &mut descriptor.poll, &mut descriptor.send] {
            if *place == Some(id) {
                *place = None;
            }
        }
    }

    /// Checks that the worker may touch a receive buffer.
    pub fn check_buffer(&mut self, net: &mut Net, buffer: &ReceivedBuffer) {
        let place = self.buffers[buffer.group() as usize].places.get(buffer.id() as usize);
        if place != Some(&Place::Worker) {
            net.check.fail(format!("{buffer:?} used while {place:?}"));
        }
    }

    /// Checks that the worker may touch a send slot.
    pub fn check_slot(&mut self, net: &mut Net, slot: &SendSlot) {
        let place = self.slots[slot.group() as usize].places.get(slot.id() as usize);
        if place != Some(&Place::Worker) {
            net.check.fail(format!("{slot:?} used while {place:?}"));
        }
    }

    /// Takes a receive buffer back.
    pub fn give_back(&mut self, net: &mut Net, buffer: ReceivedBuffer) {
        self.check_buffer(net, &buffer);
        self.given_back += 1;
        let pool = &mut self.buffers[buffer.group() as usize];
        pool.places[buffer.id() as usize] = Place::Free;
        if !planted(self.bugs.loses_buffer, self.given_back) {
            pool.free.push(buffer.id());
        }
    }

    /// Takes a send slot from its pool.
    pub fn take_slot(&mut self, group: BufferGroup) -> Option<SendSlot> {
        let id = self.slots[group as usize].take(Place::Worker)?;
        Some(SendSlot::of_ring(group, id))
    }

    /// Takes a send slot back.
    pub fn release(&mut self, net: &mut Net, slot: SendSlot) {
        self.check_slot(net, &slot);
        let pool = &mut self.slots[slot.group() as usize];
        pool.places[slot.id() as usize] = Place::Free;
        pool.free.push(slot.id());
    }

    /// How full a receive pool is.
    pub fn buffer_count(&self, group: BufferGroup) -> BufferCount {
        let pool = &self.buffers[group as usize];
        BufferCount { total: pool.places.len() as u32, free: pool.free.len() as u32 }
    }

    /// Checks `free + held + in flight = total` in all four pools.
    pub fn check_pools(&self, net: &mut Net) {
        for (name, pools) in [("buffers", &self.buffers), ("slots", &self.slots)] {
            for (group, pool) in pools.iter().enumerate() {
                let away = pool.count(Place::InFlight) + pool.count(Place::Worker);
                let (free, total) = (pool.free.len(), pool.places.len());
                if free + away != total {
                    net.check.fail(format!(
                        "{name} of group {group}: {free} free + {away} away, not {total}"
                    ));
                }
            }
        }
    }

    /// How many buffers and slots the worker holds, in that order.
    pub fn held_by_worker(&self) -> (usize, usize) {
        let held = |pools: &[Pool; 2]| pools.iter().map(|pool| pool.count(Place::Worker)).sum();
        (held(&self.buffers), held(&self.slots))
    }

    /// Descriptors open now, with the connection of each.
    pub fn open(&self) -> impl Iterator<Item = (u32, ConnId)> + '_ {
        self.descriptors.iter().map(|(socket, descriptor)| (*socket, descriptor.conn))
    }

    /// The connection of an open descriptor.
    pub fn conn_of(&self, socket: u32) -> Option<ConnId> {
        self.descriptors.get(&socket).map(|descriptor| descriptor.conn)
    }

    /// Number of operations whose last completion the worker has not taken.
    pub fn in_flight(&self) -> usize {
        self.ops.len()
    }

    /// Whether any buffer or slot is away from its pool.
    pub fn all_free(&self) -> bool {
        let full = |pools: &[Pool; 2]| pools.iter().all(|p| p.free.len() == p.places.len());
        full(&self.buffers) && full(&self.slots)
    }

    /// Whether the listener still takes connections.
    pub fn is_listening(&self, listener: u16) -> bool {
        self.listeners[listener as usize].open
    }
}

fn planted(every: u64, count: u64) -> bool {
    every > 0 && count.is_multiple_of(every)
}

fn op_socket(op: &Op) -> Option<u32> {
    match op {
        Op::ReceiveMultishot { socket, .. }
        | Op::ReceiveOnce { socket, .. }
        | Op::PollReadable { socket }
        | Op::PollHangup { socket }
        | Op::Send { socket, .. }
        | Op::Close { socket, .. } => Some(socket.0),
        Op::Accept { .. } | Op::Connect { .. } | Op::Cancel { .. } => None,
    }
}

fn op_name(op: &Op) -> &'static str {
    match op {
        Op::Accept { .. } => "> accept",
        Op::ReceiveMultishot { .. } => "> receive multi",
        Op::ReceiveOnce { .. } => "> receive once",
        Op::PollReadable { .. } => "> poll",
        Op::PollHangup { .. } => "> poll for hangup",
        Op::Send { .. } => "> send",
        Op::Connect { .. } => "> connect",
        Op::Close { .. } => "> close",
        Op::Cancel { .. } => "> cancel",
    }
}

fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Accepted { .. } => "< accepted",
        Outcome::Received(_) => "< received",
        Outcome::EndOfStream => "< end of stream",
        Outcome::Readable => "< readable",
        Outcome::Sent { result: Ok(_), .. } => "< sent",
        Outcome::Sent { result: Err(_), .. } => "< send failed",
        Outcome::Connected(_) => "< connected",
        Outcome::Closed => "< closed",
        Outcome::CancelDone => "< cancel done",
        Outcome::Failed(Failure::Cancelled) => "< cancelled",
        Outcome::Failed(Failure::NoBuffers) => "< no buffers",
        Outcome::Failed(Failure::Exhausted) => "< exhausted",
        Outcome::Failed(Failure::Disconnected) => "< disconnected",
        Outcome::Failed(Failure::NotFound) => "< not found",
        Outcome::Failed(Failure::Errno(_)) => "< errno",
    }
}

fn outcome_detail(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Accepted { socket, .. } | Outcome::Connected(socket) => socket.0.into(),
        Outcome::Received(buffer) => buffer.length().into(),
        Outcome::Sent { result: Ok(count), .. } => (*count).into(),
        Outcome::Failed(Failure::Errno(number)) => *number as u64,
        _ => 0,
    }
}
