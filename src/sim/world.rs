//! The simulated world: network, kernel, clients and backends, and the turn of time.

use std::time::Duration;

use super::backend::Backend;
use super::check::ConnId;
use super::client::Client;
use super::deadlines::Watch;
use super::faults::Fault;
use super::kernel::{Answer, Kernel};
use super::memory::Memory;
use super::memory::RingSizes;
use super::net::{Event, MICROS, MILLIS, Net, Party, SECONDS, Side};
use super::tokens::{Carriage, Tokens};
use super::watched::Facts;
use crate::protocol::jwt::JwtOptions;
use crate::ring::{Completion, ENTER_WAIT_MAX, Op, OpKey, Outcome};

/// Enters in a row that ask for nothing, get nothing and do not wait: a worker that spins.
const IDLE_ENTERS_MAX: u32 = 2000;
/// The world of one run.
#[derive(Debug)]
pub struct World {
    /// Clock, connections, faults, checks.
    pub net: Net,
    /// The ring's other half.
    pub kernel: Kernel,
    /// Every client.
    pub clients: Vec<Client>,
    /// Every backend.
    pub backends: Vec<Backend>,
    /// Whether deadlines are kept.
    pub watch: Watch,
    /// The keys of the clients' tokens.
    pub tokens: Tokens,
    sizes: RingSizes,
    /// How long the close frames of refused tokens wait at least.
    pub pace: Duration,
    /// A planted bug: the clock that the worker reads stands still now and then.
    pub clock_sticks: bool,
    idle_enters: u32,
    enters: u64,
}

impl World {
    /// A world without clients and backends.
    pub fn new(net: Net, tokens: Tokens, watch: Watch, sizes: RingSizes) -> Self {
        World {
            net,
            kernel: Kernel::new(sizes),
            clients: Vec::new(),
            backends: Vec::new(),
            watch,
            tokens,
            sizes,
            pace: Duration::ZERO,
            clock_sticks: false,
            idle_enters: 0,
            enters: 0,
        }
    }

    /// Sizes of the ring.
    pub fn sizes(&self) -> RingSizes {
        self.sizes
    }

    /// Number of times the worker entered the kernel.
    pub fn enters(&self) -> u64 {
        self.enters
    }

    /// Lets clients begin and misfortunes happen.
    pub fn start(&mut self) {
        for index in 0..self.clients.len() {
            self.clients[index].step(&mut self.net, &self.tokens);
        }
        self.net.schedule(self.net.now, Event::Mischief);
    }

    /// No more misfortunes: stalls end, backends come back, clients begin no new connections.
    pub fn stop_faults(&mut self) {
        self.net.note("faults stop", 0, 0);
        self.net.faults.stop();
        self.net.end_stalls();
        for backend in &mut self.backends {
            backend.recover(&mut self.net);
        }
        for client in &mut self.clients {
            client.end_lives();
        }
    }

    /// Every client makes one more connection; the honest ones must succeed.
    pub fn begin_finals(&mut self) {
        for client in self.clients.iter_mut().filter(|client| client.is_done()) {
            client.begin_final(&mut self.net);
        }
    }

    /// Client connections that the worker has not closed.
    pub fn open_clients(&self) -> Vec<ConnId> {
        let is_client = |conn: &ConnId| matches!(self.net.conn(*conn).party, Party::Client(_));
        self.kernel.open().map(|(_, conn)| conn).filter(is_client).collect()
    }

    /// The worker's thread dies with all that it owned. For `nanos` nanoseconds no worker serves;
    /// then its listeners are bound again, for a ring that is yet to be made.
    pub fn lose_worker(&mut self, nanos: u64) {
        self.kernel.end_ring(&mut self.net);
        self.watch.worker_died();
        self.idle_enters = 0;
        // No operation is in flight, so no byte of it is touched.
        let mut memory = Memory::new(self.sizes);
        self.advance(&mut memory, self.net.now + nanos);
        self.kernel.bind_listeners();
    }

    /// The monotonic clock as the worker reads it.
    pub fn clock(&self) -> u64 {
        let now = self.net.now;
        // Not so long that the worker, which keeps asking, would be seen to spin.
        let stuck = now % (250 * MILLIS);
        if self.clock_sticks && stuck < 18 * MILLIS { now - stuck } else { now }
    }

    /// What [`Ring::submit`](crate::ring::Ring::submit) does.
    pub fn submit(&mut self, memory: &mut Memory, key: OpKey, op: Op) {
        let bytes = match &op {
            Op::Send { slot, start, end, .. } => &memory.slot(slot)[*start as usize..*end as usize],
            _ => &[],
        };
        self.watch.submitted(key, &op, bytes, self.net.now);
        self.kernel.submit(&mut self.net, key, op);
    }

    /// What [`Ring::completion`](crate::ring::Ring::completion) does.
    pub fn completion(&mut self, memory: &mut Memory) -> Option<Completion> {
        let completion = self.kernel.completion(&mut self.net)?;
        let now = self.net.now;
        let mut bytes = &[][..];
        let mut expires = None;
        match &completion.outcome {
            Outcome::Accepted { socket, .. } => self.watch_client(*socket),
            Outcome::Received(buffer) => {
                bytes = &memory.buffer(buffer.group(), buffer.id())[..buffer.length() as usize];
                let socket = self.watch.socket_of(completion.key.owner);
                let conn = socket.and_then(|socket| self.kernel.conn_of(socket));
                let at = conn.and_then(|conn| self.net.conn(conn).token_expires);
                expires = at.map(|at| now + millis_left(at, self.net.wall_millis()) * MILLIS);
            }
            _ => {}
        }
        self.watch.completed(&completion, bytes, expires, now);
        Some(completion)
    }

    fn watch_client(&mut self, socket: crate::ring::Socket) {
        let Some(conn) = self.kernel.conn_of(socket.0) else { return };
        let entry = self.net.conn(conn);
        let Party::Client(index) = entry.party else { return };
        let client = &self.clients[index];
        let facts = Facts {
            client: index,
            is_valid: client.behaviour().is_valid(),
            first_message: client.carriage() == Carriage::FirstMessage,
            proxy_bytes: entry.proxy_bytes,
            is_tls: entry.is_tls,
            pace: self.pace,
        };
        self.watch.accepted(socket, facts, self.net.now);
    }

    /// What [`Ring::enter`](crate::ring::Ring::enter) does.
    pub fn enter(&mut self, memory: &mut Memory, until: u64) {
        self.enters += 1;
        self.kernel.check_pools(&mut self.net);
        if let Err(missed) = self.watch.check(self.net.now, until) {
            self.net.check.fail(missed);
        }
        let asked = self.kernel.has_submissions();
        self.kernel.start_submitted(&mut self.net, memory);
        let until = until.min(self.net.now + ENTER_WAIT_MAX.as_nanos() as u64);
        let would_wait = until > self.net.now;
        let mut takes = MICROS + self.net.random.below(20 * MICROS);
        if self.net.fault(Fault::WorkerLate) {
            takes += self.net.random.below(300 * MILLIS);
        }
        self.advance(memory, self.net.now + takes);
        self.net.woken |= self.net.fault(Fault::SpuriousWake);
        while !self.kernel.has_completion() && !self.net.woken && self.net.now < until {
            let next = self.net.next_event_at().map_or(until, |at| at.min(until));
            self.advance(memory, next);
        }
        let idle = !asked && !would_wait && !self.kernel.has_completion() && !self.net.woken;
        self.idle_enters = if idle { self.idle_enters + 1 } else { 0 };
        if self.idle_enters > IDLE_ENTERS_MAX {
            self.net.check.fail("the worker spins: it neither waits nor asks for anything".into());
        }
        self.net.woken = false;
    }

    /// Lets everything happen that is due by `until`.
    fn advance(&mut self, memory: &mut Memory, until: u64) {
        self.tell_news(memory);
        while let Some(at) = self.net.next_event_at().filter(|at| *at <= until) {
            self.net.now = self.net.now.max(at);
            if let Some(event) = self.net.due_event() {
                self.handle(memory, event);
                self.tell_news(memory);
            }
        }
        self.net.now = self.net.now.max(until);
    }

    fn tell_news(&mut self, memory: &mut Memory) {
        while let Some((conn, side)) = self.net.news.pop_front() {
            match (side, self.net.conn(conn).party) {
                (Side::Gateway, _) => self.kernel.poke(&mut self.net, memory, conn),
                (Side::Remote, Party::Client(index)) => {
                    self.clients[index].step(&mut self.net, &self.tokens);
                }
                (Side::Remote, Party::Backend(index)) => {
                    self.backends[index].step(&mut self.net, Some(conn));
                }
                (Side::Remote, Party::Test) => {}
            }
        }
    }

    fn handle(&mut self, memory: &mut Memory, event: Event) {
        let net = &mut self.net;
        match event {
            Event::Arrive(conn, side) => net.handle_arrive(conn, side),
            Event::Reset(conn, side) => net.handle_reset(conn, side),
            Event::Post(op, completion) => self.kernel.make_visible(net, op, completion),
            Event::Poke(conn) => self.kernel.poke(net, memory, conn),
            Event::Connect(op) => {
                let address = self.kernel.connect_address(op);
                let found = self.backends.iter().position(|backend| {
                    Some(&backend.plan.address) == address && backend.is_listening(net.now)
                });
                let answer = found.map_or(Answer::Refuses, Answer::Listens);
                self.kernel.decide_connect(net, op, answer);
            }
            Event::Knock(listener, conn) => self.kernel.knock(net, listener, conn),
            Event::Wake(Party::Client(index)) => self.clients[index].step(net, &self.tokens),
            Event::Wake(Party::Backend(index)) => self.backends[index].step(net, None),
            Event::Wake(Party::Test) => {}
            Event::Mischief => self.mischief(),
            Event::Script => net.woken = true,
        }
    }

    fn mischief(&mut self) {
        let net = &mut self.net;
        let next = net.now + MILLIS + net.random.below(10 * MILLIS);
        net.schedule(next, Event::Mischief);
        net.woken |= net.fault(Fault::SpuriousWake);
        if net.fault(Fault::WallJump) {
            let jump = net.random.below(600_000);
            let back = net.random.chance(1, 2);
            net.wall_offset = if back { net.wall_offset - jump } else { net.wall_offset + jump };
        }
        let is_link = |net: &Net, conn: ConnId| matches!(net.conn(conn).party, Party::Backend(_));
        let all: Vec<ConnId> = self.kernel.open().map(|(_, conn)| conn).collect();
        let (links, clients): (Vec<ConnId>, Vec<ConnId>) =
            all.into_iter().partition(|conn| is_link(net, *conn));
        for (conns, fault) in [(&clients, Fault::ClientReset), (&links, Fault::LinkReset)] {
            if let Some(conn) = pick(net, conns)
                && net.fault(fault)
            {
                net.kill(conn);
            }
        }
        let of = if net.random.chance(1, 4) { &links } else { &clients };
        if let Some(conn) = pick(net, of)
            && net.fault(Fault::PipeStalled)
        {
            let side = if net.random.chance(1, 2) { Side::Gateway } else { Side::Remote };
            let until = net.now + net.random.below(3 * SECONDS);
            net.stall(conn, side, until);
        }
        for backend in &mut self.backends {
            backend.mischief(&mut self.net);
        }
    }
}

/// How long a token that ends `at` lets its client stay, read on a wall clock that says `wall`;
/// both in milliseconds. One that is let in by leeway alone ends with the leeway.
fn millis_left(at: u64, wall: u64) -> u64 {
    let leeway = JwtOptions::default().leeway.as_millis() as u64;
    let ends = if at > wall { at } else { at + leeway };
    ends.saturating_sub(wall)
}

fn pick(net: &mut Net, conns: &[ConnId]) -> Option<ConnId> {
    let at = net.random.below(conns.len() as u64) as usize;
    conns.get(at).copied()
}
