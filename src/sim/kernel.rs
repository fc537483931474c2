//! The kernel's half of the fake ring: descriptors, operations in flight, buffer pools and the
//! completion queue. The bytes of buffers and slots are the [`FakeRing`](super::fake_ring)'s.
//!
//! Rules that no worker may break are checked here: one receive and one send in flight on a
//! socket, no key in use twice, nothing on a closed descriptor, no close while an operation's
//! last completion has not been taken, each buffer and slot given back exactly once.

use std::collections::{BTreeMap, VecDeque};

use super::check::ConnId;
use super::faults::Fault;
use super::memory::{Memory, RingSizes};
use super::net::{Event, MILLIS, Net, Party, SECONDS, Side};
use crate::ring::{
    BufferGroup, Completion, EndpointAddress, Failure, Op, OpKey, OpKind, Outcome, SendSlot, Socket,
};

mod accounts;
mod cancel;
mod names;
mod pools;
mod progress;

use names::{op_name, op_socket, outcome_detail, outcome_name};
use pools::{Place, Pool};

/// ECONNREFUSED.
const REFUSED: i32 = 111;
/// ETIMEDOUT.
const TIMED_OUT: i32 = 110;
/// EBADF.
const BAD_DESCRIPTOR: i32 = 9;
/// EINVAL.
const INVALID: i32 = 22;

/// Where the worker's numbers of WebSocket servers begin among its endpoints.
const FIRST_SERVER: u16 = 4096;
/// A connect that takes longer may be given up in time for another one, in nanoseconds.
const CONNECT_LATE: u64 = 50 * MILLIS;

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
        if delay >= CONNECT_LATE {
            self.connect_trouble(net, id);
        }
        net.schedule(net.now + delay, Event::Connect(id));
    }

    /// A connect to a server may fail, or does, and no client can have caused it.
    fn connect_trouble(&self, net: &mut Net, id: u64) {
        if let Some(Pending { work: Work::Connect { endpoint }, .. }) = self.ops.get(&id)
            && *endpoint >= FIRST_SERVER
        {
            net.check.trouble();
        }
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
                self.connect_trouble(net, id);
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

    /// Whether the listener still takes connections.
    pub fn is_listening(&self, listener: u16) -> bool {
        self.listeners[listener as usize].open
    }
}

fn planted(every: u64, count: u64) -> bool {
    every > 0 && count.is_multiple_of(every)
}
