//! The simulated network: connections as pairs of bounded byte pipes, and the clock and event
//! queue that move them. It knows nothing of rings or protocols.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::Ipv4Addr;

use super::check::{Check, ConnId};
use super::faults::{Fault, Faults};
use super::trace::Trace;
use crate::base::random::Random;
use crate::ring::Completion;

/// One microsecond, in nanoseconds.
pub const MICROS: u64 = 1_000;
/// One millisecond, in nanoseconds.
pub const MILLIS: u64 = 1_000_000;
/// One second, in nanoseconds.
pub const SECONDS: u64 = 1_000_000_000;

/// How long an answer may be on its way to the worker, in nanoseconds: longer than any delay, of a
/// worker that is late too.
const ANSWER_TAKES: u64 = SECONDS;

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The worker's.
    Gateway = 0,
    /// The client's or the backend's.
    Remote = 1,
}

impl Side {
    /// The end opposite.
    pub fn other(self) -> Side {
        match self {
            Side::Gateway => Side::Remote,
            Side::Remote => Side::Gateway,
        }
    }
}

/// Who holds the remote end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// A client, by index.
    Client(usize),
    /// A backend, by index.
    Backend(usize),
    /// A test, which reads and writes itself.
    Test,
}

/// Something that will happen.
#[derive(Debug)]
pub enum Event {
    /// Bytes that this side wrote reach the other, if their time has come.
    Arrive(ConnId, Side),
    /// A reset reaches this side.
    Reset(ConnId, Side),
    /// A completion becomes visible to the worker.
    Post(u64, Completion),
    /// The operations on a connection's gateway end are looked at again.
    Poke(ConnId),
    /// A connect is decided.
    Connect(u64),
    /// A connection reaches a listener's backlog.
    Knock(u16, ConnId),
    /// An actor's timer.
    Wake(Party),
    /// The world's own: time to draw misfortunes.
    Mischief,
    /// The world's own: the next entry of the script is due.
    Script,
}

/// One direction of a connection. `held` is `moving` plus `ready`, at most `capacity`.
#[derive(Debug)]
struct Pipe {
    capacity: usize,
    held: usize,
    moving: VecDeque<(u64, Vec<u8>)>,
    ready: VecDeque<u8>,
    arrives_last: u64,
    stalled_until: u64,
    fin_arrives: Option<u64>,
    ended: bool,
}

impl Pipe {
    fn new(capacity: usize) -> Self {
        Pipe {
            capacity,
            held: 0,
            moving: VecDeque::new(),
            ready: VecDeque::new(),
            arrives_last: 0,
            stalled_until: 0,
            fin_arrives: None,
            ended: false,
        }
    }

    fn drop_moving(&mut self) {
        self.moving.clear();
        self.held = self.ready.len();
    }

    fn drop_all(&mut self) {
        self.moving.clear();
        self.ready.clear();
        self.held = 0;
    }
}

/// A connection.
#[derive(Debug)]
pub struct Conn {
    /// Who holds the remote end.
    pub party: Party,
    /// The worker's descriptor, while it has one.
    pub socket: Option<u32>,
    /// When the worker got it.
    pub accepted_at: Option<u64>,
    /// When the worker closed it.
    pub closed_at: Option<u64>,
    /// When the token that was sent on it runs out, in milliseconds since 1970.
    pub token_expires: Option<u64>,
    /// What crosses it is ciphertext.
    pub is_tls: bool,
    /// The adversary's address that it comes from, if it is his.
    pub floods_from: Option<Ipv4Addr>,
    /// The client whose connection to a WebSocket server this is, once the server knows.
    pub client: Option<ConnId>,
    /// When a WebSocket server accepted the client.
    pub answered: Option<u64>,
    /// Something went wrong with the handshake on it that is not the gateway's doing.
    troubled: bool,
    /// Length of the PROXY header in front of what the client says.
    pub proxy_bytes: usize,
    /// By the side that wrote.
    pipes: [Pipe; 2],
    closed: [bool; 2],
    reset: [bool; 2],
}

/// A dead connection: reset, or closed at our own end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dead;

#[derive(Debug)]
struct Scheduled {
    at: u64,
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// Clock, events, connections, randomness, faults, checks and trace of one run.
#[derive(Debug)]
pub struct Net {
    /// The monotonic clock, in nanoseconds.
    pub now: u64,
    /// The wall clock minus the monotonic one, in milliseconds.
    pub wall_offset: u64,
    /// The only source of chance.
    pub random: Random,
    /// What may go wrong.
    pub faults: Faults,
    /// What must hold.
    pub check: Check,
    /// What happened.
    pub trace: Trace,
    /// Ends of connections with news, in order.
    pub news: VecDeque<(ConnId, Side)>,
    /// Set when something must make `enter` return although no completion is there.
    pub woken: bool,
    conns: Vec<Conn>,
    events: BinaryHeap<Reverse<Scheduled>>,
    scheduled: u64,
    latency_max: u64,
    capacity_min: u64,
}

impl Net {
    /// An empty network. `latency_max` is in nanoseconds.
    pub fn new(random: Random, faults: Faults, latency_max: u64, capacity_min: u64) -> Self {
        Net {
            now: SECONDS,
            wall_offset: 1_750_000_000_000,
            random,
            faults,
            check: Check::default(),
            trace: Trace::default(),
            news: VecDeque::new(),
            woken: false,
            conns: Vec::new(),
            events: BinaryHeap::new(),
            scheduled: 0,
            latency_max,
            capacity_min,
        }
    }

    /// The wall clock in milliseconds since 1970.
    pub fn wall_millis(&self) -> u64 {
        self.wall_offset + self.now / MILLIS
    }

    /// Notes a happening now.
    pub fn note(&mut self, what: &'static str, first: u64, second: u64) {
        self.trace.note(self.now, what, first, second);
    }

    /// Whether a fault happens now.
    pub fn fault(&mut self, fault: Fault) -> bool {
        let fires = self.faults.fires(fault, &mut self.random);
        if fires {
            self.trace.note(self.now, Fault::ALL[fault as usize].1, 0, 0);
        }
        fires
    }

    /// Schedules an event; a time in the past means now.
    pub fn schedule(&mut self, at: u64, event: Event) {
        self.scheduled += 1;
        let at = at.max(self.now);
        self.events.push(Reverse(Scheduled { at, order: self.scheduled, event }));
    }

    /// When the next event is due.
    pub fn next_event_at(&self) -> Option<u64> {
        self.events.peek().map(|Reverse(scheduled)| scheduled.at)
    }

    /// The next event that is due by now.
    pub fn due_event(&mut self) -> Option<Event> {
        (self.next_event_at()? <= self.now).then(|| self.events.pop())?.map(|r| r.0.event)
    }

    /// A connection.
    pub fn conn(&self, id: ConnId) -> &Conn {
        &self.conns[id]
    }

    /// A connection.
    pub fn conn_mut(&mut self, id: ConnId) -> &mut Conn {
        &mut self.conns[id]
    }

    /// Number of connections ever made.
    pub fn conns(&self) -> usize {
        self.conns.len()
    }

    /// A new connection. Its pipes hold from `capacity_min` bytes up.
    pub fn new_conn(&mut self, party: Party) -> ConnId {
        let capacity = |random: &mut Random, min: u64| (min + random.below(min * 4)) as usize;
        let pipes = [
            Pipe::new(capacity(&mut self.random, self.capacity_min)),
            Pipe::new(capacity(&mut self.random, self.capacity_min)),
        ];
        self.conns.push(Conn {
            party,
            socket: None,
            accepted_at: None,
            closed_at: None,
            token_expires: None,
            is_tls: false,
            proxy_bytes: 0,
            floods_from: None,
            client: None,
            answered: None,
            troubled: false,
            pipes,
            closed: [false; 2],
            reset: [false; 2],
        });
        self.conns.len() - 1
    }

    /// A client's connection to a listener; it arrives there after the network's delay.
    pub fn dial(&mut self, client: usize, listener: u16) -> ConnId {
        let conn = self.new_conn(Party::Client(client));
        self.note("dial", conn as u64, client as u64);
        let at = self.now + self.latency();
        self.schedule(at, Event::Knock(listener, conn));
        conn
    }

    /// One draw of the network's delay, in nanoseconds.
    pub fn latency(&mut self) -> u64 {
        20 * MICROS + self.random.below(self.latency_max)
    }

    /// How many bytes `side` can write now.
    pub fn room(&self, id: ConnId, side: Side) -> usize {
        let pipe = &self.conns[id].pipes[side as usize];
        pipe.capacity - pipe.held
    }

    /// Writes as much of `bytes` as there is room for.
    pub fn write(&mut self, id: ConnId, side: Side, bytes: &[u8]) -> Result<usize, Dead> {
        let latency = self.latency();
        let now = self.now;
        let conn = &mut self.conns[id];
        if conn.closed[side as usize] || conn.reset[side as usize] {
            return Err(Dead);
        }
        if conn.closed[side.other() as usize] {
            self.schedule(now + latency, Event::Reset(id, side));
            return Ok(bytes.len());
        }
        let pipe = &mut conn.pipes[side as usize];
        if pipe.fin_arrives.is_some() {
            return Err(Dead);
        }
        let taken = bytes.len().min(pipe.capacity - pipe.held);
        if taken == 0 {
            return Ok(0);
        }
        pipe.held += taken;
        pipe.arrives_last = pipe.arrives_last.max(now + latency);
        let at = pipe.arrives_last;
        pipe.moving.push_back((at, bytes[..taken].to_vec()));
        self.schedule(at, Event::Arrive(id, side));
        Ok(taken)
    }

    /// How many bytes `side` can read now.
    pub fn readable(&self, id: ConnId, side: Side) -> usize {
        self.conns[id].pipes[side.other() as usize].ready.len()
    }

    /// Whether `side` has read everything and no more will come.
    pub fn ended(&self, id: ConnId, side: Side) -> bool {
        let pipe = &self.conns[id].pipes[side.other() as usize];
        pipe.ended && pipe.ready.is_empty()
    }

    /// Whether a reset has reached `side`.
    pub fn is_reset(&self, id: ConnId, side: Side) -> bool {
        self.conns[id].reset[side as usize]
    }

    /// Whether `side` has closed its end.
    pub fn is_closed(&self, id: ConnId, side: Side) -> bool {
        self.conns[id].closed[side as usize]
    }

    /// Reads into `into`; returns the number of bytes. The writer learns of the room.
    pub fn read(&mut self, id: ConnId, side: Side, into: &mut [u8]) -> usize {
        let pipe = &mut self.conns[id].pipes[side.other() as usize];
        let count = into.len().min(pipe.ready.len());
        for (place, byte) in into.iter_mut().zip(pipe.ready.drain(..count)) {
            *place = byte;
        }
        pipe.held -= count;
        if count > 0 {
            self.news.push_back((id, side.other()));
        }
        count
    }

    /// Puts bytes back in front of what `side` can read: a planted bug of the kernel's.
    pub fn unread(&mut self, id: ConnId, side: Side, bytes: &[u8]) {
        let pipe = &mut self.conns[id].pipes[side.other() as usize];
        pipe.held += bytes.len();
        pipe.capacity = pipe.capacity.max(pipe.held);
        bytes.iter().rev().for_each(|byte| pipe.ready.push_front(*byte));
    }

    /// Reads up to `max` bytes to the end of `into`.
    pub fn read_vec(&mut self, id: ConnId, side: Side, into: &mut Vec<u8>, max: usize) -> usize {
        let count = max.min(self.readable(id, side));
        let start = into.len();
        into.resize(start + count, 0);
        self.read(id, side, &mut into[start..])
    }

    /// Ends `side`'s direction: FIN follows what was written.
    pub fn shutdown(&mut self, id: ConnId, side: Side) {
        let latency = self.latency();
        let at = self.now + latency;
        let pipe = &mut self.conns[id].pipes[side as usize];
        if pipe.fin_arrives.is_some() {
            return;
        }
        pipe.arrives_last = pipe.arrives_last.max(at);
        pipe.fin_arrives = Some(pipe.arrives_last);
        let at = pipe.arrives_last;
        self.schedule(at, Event::Arrive(id, side));
    }

    /// Closes `side`'s end. With `reset`, or with bytes left unread, the other end gets a reset
    /// and what was on the way to it is lost (as Linux does); otherwise a FIN.
    pub fn close(&mut self, id: ConnId, side: Side, reset: bool) {
        let unread = self.readable(id, side) > 0;
        self.note("end", id as u64, side as u64 * 2 + u64::from(reset || unread));
        let latency = self.latency();
        let at = self.now + latency;
        let conn = &mut self.conns[id];
        if std::mem::replace(&mut conn.closed[side as usize], true) {
            return;
        }
        let in_transit = !conn.pipes[side.other() as usize].moving.is_empty();
        conn.pipes[side.other() as usize].drop_all();
        if conn.reset[side as usize] {
            return;
        }
        if in_transit && !reset && !unread {
            // Bytes on the way will meet a closed socket; the answer follows what was sent.
            let after = conn.pipes[side as usize].arrives_last.max(at + latency);
            self.schedule(after + 1, Event::Reset(id, side.other()));
            return self.shutdown(id, side);
        }
        if reset || unread {
            self.conns[id].pipes[side as usize].drop_moving();
            self.schedule(at, Event::Reset(id, side.other()));
        } else {
            self.shutdown(id, side);
        }
    }

    /// The network kills a connection: both ends see a reset.
    pub fn kill(&mut self, id: ConnId) {
        self.note("kill", id as u64, 0);
        self.trouble(id);
        for side in [Side::Gateway, Side::Remote] {
            let at = self.now + self.latency();
            self.schedule(at, Event::Reset(id, side));
        }
    }

    /// Stops what `side` writes from arriving before `until`.
    pub fn stall(&mut self, id: ConnId, side: Side, until: u64) {
        self.note("stall", id as u64, side as u64);
        self.trouble(id);
        self.conns[id].pipes[side as usize].stalled_until = until;
    }

    /// Something goes wrong with a connection. Its handshake may fail of that, if it is one to a
    /// server, and the answer has not arrived.
    pub fn trouble(&mut self, id: ConnId) {
        let (now, conn) = (self.now, &mut self.conns[id]);
        let underway = conn.answered.is_none_or(|at| now < at + ANSWER_TAKES);
        if matches!(conn.party, Party::Backend(_))
            && underway
            && !std::mem::replace(&mut conn.troubled, true)
        {
            self.check.trouble();
        }
    }

    /// Ends every stall.
    pub fn end_stalls(&mut self) {
        for id in 0..self.conns.len() {
            for side in [Side::Gateway, Side::Remote] {
                self.conns[id].pipes[side as usize].stalled_until = 0;
                self.schedule(self.now, Event::Arrive(id, side));
            }
        }
    }

    /// Handles [`Event::Arrive`].
    pub fn handle_arrive(&mut self, id: ConnId, side: Side) {
        let now = self.now;
        let conn = &mut self.conns[id];
        let receiver_closed = conn.closed[side.other() as usize];
        let receiver_reset = conn.reset[side.other() as usize];
        let pipe = &mut conn.pipes[side as usize];
        if pipe.stalled_until > now {
            let at = pipe.stalled_until;
            return self.schedule(at, Event::Arrive(id, side));
        }
        let mut arrived = false;
        while pipe.moving.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, bytes)) = pipe.moving.pop_front() else { break };
            arrived = true;
            if receiver_closed || receiver_reset {
                pipe.held -= bytes.len();
            } else {
                pipe.ready.extend(bytes);
            }
        }
        let fin = pipe.fin_arrives.is_some_and(|at| at <= now);
        let ends = fin && pipe.moving.is_empty() && !pipe.ended;
        pipe.ended |= ends;
        if receiver_closed && arrived {
            let at = now + self.latency();
            self.schedule(at, Event::Reset(id, side));
        } else if arrived || ends {
            self.news.push_back((id, side.other()));
        }
    }

    /// Handles [`Event::Reset`].
    pub fn handle_reset(&mut self, id: ConnId, side: Side) {
        let loses_unread = self.random.chance(1, 2);
        let conn = &mut self.conns[id];
        if conn.closed[side as usize] || conn.reset[side as usize] {
            return;
        }
        conn.reset[side as usize] = true;
        conn.pipes[side as usize].drop_moving();
        let inbound = &mut conn.pipes[side.other() as usize];
        inbound.drop_moving();
        if loses_unread {
            inbound.drop_all();
        }
        self.note("reset", id as u64, side as u64);
        self.news.push_back((id, side));
    }
}
