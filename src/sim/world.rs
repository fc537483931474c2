//! The simulated world: network, kernel, clients and backends, and the turn of time.

use std::time::Duration;

use super::backend::Backend;
use super::client::{Behaviour, Client};
use super::fake_ring::Memory;
use super::faults::Fault;
use super::kernel::{Answer, Kernel, RingSizes};
use super::net::{ConnId, Event, MICROS, MILLIS, Net, Party, SECONDS, Side};
use super::tokens::{Carriage, Tokens};
use crate::ring::ENTER_WAIT_MAX;

/// Enters in a row that ask for nothing, get nothing and do not wait: a worker that spins.
const IDLE_ENTERS_MAX: u32 = 2000;
/// What a teardown may take beyond its deadline: a turn of the wheel, a few turns of the loop,
/// and the completions held back in them.
const SLACK: u64 = 150 * MILLIS;

/// Deadlines that unauthenticated clients are held to, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// From accept to a whole request head.
    pub request_head: u64,
    /// From the 101 to a verdict.
    pub authenticate: u64,
    /// From the gateway's close frame to the client's.
    pub linger: u64,
}

impl Bounds {
    /// Bounds from the durations of the settings.
    pub fn new(request_head: Duration, authenticate: Duration, linger: Duration) -> Self {
        let nanos = |duration: Duration| duration.as_nanos() as u64;
        Bounds {
            request_head: nanos(request_head),
            authenticate: nanos(authenticate),
            linger: nanos(linger),
        }
    }
}

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
    tokens: Tokens,
    bounds: Bounds,
    sizes: RingSizes,
    idle_enters: u32,
    enters: u64,
}

impl World {
    /// A world without clients and backends.
    pub fn new(net: Net, tokens: Tokens, bounds: Bounds, sizes: RingSizes) -> Self {
        World {
            net,
            kernel: Kernel::new(sizes),
            clients: Vec::new(),
            backends: Vec::new(),
            tokens,
            bounds,
            sizes,
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

    /// What [`Ring::enter`](crate::ring::Ring::enter) does.
    pub fn enter(&mut self, memory: &mut Memory, until: u64) {
        self.enters += 1;
        self.kernel.check_pools(&mut self.net);
        let asked = self.kernel.has_submissions();
        self.kernel.start_submitted(&mut self.net, memory);
        let until = until.min(self.net.now + ENTER_WAIT_MAX.as_nanos() as u64);
        let would_wait = until > self.net.now;
        let mut takes = MICROS + self.net.random.below(20 * MICROS);
        if self.net.fault(Fault::WorkerLate) {
            let late = self.net.random.below(300 * MILLIS);
            self.net.late_total += late;
            takes += late;
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
        self.check_deadlines();
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

    /// Every unauthenticated socket is gone when its stages' deadlines are over.
    fn check_deadlines(&mut self) {
        let Bounds { request_head, authenticate, linger } = self.bounds;
        let open: Vec<ConnId> = self.open_clients();
        for conn in open {
            let entry = self.net.conn(conn);
            let (Party::Client(index), Some(accepted)) = (entry.party, entry.accepted_at) else {
                continue;
            };
            let client = &self.clients[index];
            let bound = match client.behaviour() {
                behaviour if behaviour.is_valid() => continue,
                Behaviour::SilentAtStart | Behaviour::HalfHead | Behaviour::Garbage => {
                    request_head + linger
                }
                _ if client.carriage() == Carriage::FirstMessage => {
                    request_head + authenticate + linger
                }
                _ => request_head + linger,
            };
            let late = self.net.late_total - entry.late_before;
            let age = self.net.now - accepted;
            if age > bound + SLACK + late {
                let state = client.state();
                self.net.check.fail(format!(
                    "unauthenticated for {} ms, {} allowed: {state}",
                    age / MILLIS,
                    (bound + SLACK + late) / MILLIS
                ));
            }
        }
    }
}

fn pick(net: &mut Net, conns: &[ConnId]) -> Option<ConnId> {
    let at = net.random.below(conns.len() as u64) as usize;
    conns.get(at).copied()
}
