//! L4: one core's world. A [`Worker`] owns a ring, a slab of connections, a timer wheel, the
//! links to its backends and a mailbox; nothing it owns is shared with another thread.
//!
//! `Core` is all of that but the ring: it decides, and leaves operations in `core.ops`.
//! The worker moves bytes between the two, so that a slot in flight or a filled buffer is never
//! borrowed across a decision.

mod accept;
pub mod admission;
pub mod auth_requests;
mod clients;
mod control;
mod links;
pub mod mailbox;
mod memory;
mod revocations;
mod settle;
pub mod sockets;
mod sweep;
mod tick_time;
mod trail;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::base::byte_queue::BytePool;
use crate::base::random::Random;
use crate::base::slab::{Key, KeyedSlab};
use crate::base::time::{Instant, Now};
use crate::base::token_bucket::TokenBucket;
use crate::base::wheel::Wheel;
use crate::connection::authenticate::Scratch;
use crate::connection::route_order::RouteOrder;
use crate::connection::{Context, Output};
use crate::counters::{Counters, Metric};
use crate::protocol::rejected_tokens::RejectedTokenCache;
use crate::protocol::revocation::{Hasher, Revocation, Revoked};
use crate::ring::{
    BufferGroup, Completion, ENTER_WAIT_MAX, OpKind, Outcome, Owner, ReceivedBuffer, Ring, Socket,
};
use crate::settings::Settings;

use accept::Acceptor;
use admission::{Admission, Allowance};
use clients::{Connection, Senders};
use control::Drain;
use links::LinkTable;
use mailbox::WorkerMailbox;
use sockets::{Flush, Ops, PipeEvent};
use sweep::Sweep;
use tick_time::{Phase, TickTime};
use trail::Subjects;

/// The resolution of every deadline: one turn of the wheel's lowest level.
pub const WHEEL_TICK: Duration = Duration::from_millis(10);
/// How many slots of a table one turn looks at when all are concerned.
pub const SWEEP_SLOTS: u32 = 8192;
/// Deadlines that one turn acts on; those beyond are due in the next.
const TIMERS_PER_TURN: usize = 1024;

/// What a worker is told once, at its start.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The worker's number, from 0.
    pub index: u16,
    /// This gateway process, drawn at its start.
    pub instance: [u8; 16],
    /// When the process started, in milliseconds since the Unix epoch.
    pub epoch: u64,
    /// Width of the generations in socket and session keys; tests make it tiny.
    pub generation_bits: u32,
    /// How many workers share the limits.
    pub workers: u16,
    /// Most sockets that this worker can have.
    pub descriptors_max: u32,
    /// Most bytes that may be queued for this worker's clients.
    pub queue_bytes_max: u64,
    /// How many slots of a table one turn looks at when all are concerned,
    /// [`SWEEP_SLOTS`] but in tests, which make it tiny.
    pub sweep_slots: u32,
}

/// Whether a worker goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Call [`Worker::tick`] again.
    Continue,
    /// The worker has drained, or was told to stop. Drop it.
    Stopped,
}

/// One thread's share of the gateway.
pub struct Worker<R: Ring> {
    ring: R,
    core: Core,
    time: TickTime,
}

/// All of a worker but its ring.
struct Core {
    env: Environment,
    mailbox: WorkerMailbox,
    random: Random,
    options: WorkerOptions,
    acceptor: Acceptor,
    admission: Admission,
    connections: KeyedSlab<Connection>,
    wheel: Wheel,
    links: LinkTable,
    drain: Option<Drain>,
    stopped: bool,
    close_lines: TokenBucket,
    origin_lines: TokenBucket,
    subjects: Subjects,
    sweep: Sweep,
    /// Settings that wait for the end of a sweep.
    settings_due: Option<Arc<Settings>>,
    /// Revocations of backends that found the control thread's mailbox full.
    revocations_owed: VecDeque<Revocation>,

    /// Bytes queued for clients.
    queues: BytePool,
    /// Input that waits for a backend's credit.
    stashes: BytePool,
    /// How much of that is input of clients that await a decision.
    early_input: usize,
    /// Questions that are out, and the number of the latest to the HTTP service.
    questions: u32,
    question_number: u32,
    /// TLS input beyond this tick's handshake budget, in order of arrival.
    deferred: VecDeque<(Key, ReceivedBuffer)>,
    handshakes: u32,

    /// Left for the ring, in order.
    ops: Ops,
    /// Connections with output and no send in flight.
    dirty: VecDeque<Key>,
    /// Connections that found no receive buffer.
    starved: VecDeque<Key>,
    /// Who sends from which slot.
    senders: Senders,
    /// When send slots may next be taken from clients that read too slowly.
    relief_at: Instant,
    /// Sockets whose sending side is to be shut down.
    shutdowns: Vec<Socket>,

    // Scratch, reused so that nothing is allocated in the steady state.
    output: Output,
    plaintext: Vec<u8>,
    ciphertext: Vec<u8>,
    stash_scratch: Vec<u8>,
    touched: Vec<Key>,
    fired: Vec<u32>,
    woken: Vec<Key>,
}

/// What a tick may look at and nothing in it changes but the clock: a part of its own, so that
/// machines read it while the worker's other parts change.
struct Environment {
    now: Now,
    settings: Arc<Settings>,
    routes: RouteOrder,
    counters: Arc<Counters>,
    /// Drawn in each turn.
    jitter: u32,
    revoked: Arc<Revoked>,
}

impl Environment {
    /// The same for a connection's machine.
    fn context(&self) -> Context<'_> {
        Context {
            now: self.now,
            settings: &self.settings,
            routes: &self.routes,
            counters: &self.counters,
            jitter: self.jitter,
            revoked: &self.revoked,
        }
    }
}

impl<R: Ring> Worker<R> {
    /// A worker on its ring. It accepts from the first [`tick`](Self::tick) on.
    pub fn new(
        mut ring: R,
        settings: Arc<Settings>,
        counters: Arc<Counters>,
        mailbox: WorkerMailbox,
        mut random: Random,
        options: WorkerOptions,
    ) -> Self {
        counters.clear_gauges();
        let now = ring.now();
        let mut dead_key = [0; 16];
        random.fill(&mut dead_key);
        let dead = RejectedTokenCache::new(settings.limits.dead_tokens_max, dead_key);
        let links = LinkTable::new(&settings, &options, now.instant, &mut random);
        for (number, address) in links.addresses(&settings) {
            ring.set_endpoint(number, address);
        }
        let allowance = Allowance::new(&settings.limits, options.workers, options.descriptors_max);
        let chunks = |bytes: u64| u32::try_from(bytes / 1024).unwrap_or(u32::MAX).max(64);
        let core = Core {
            acceptor: Acceptor::new(&settings),
            admission: Admission::new(allowance, now.instant),
            connections: KeyedSlab::new(options.generation_bits),
            wheel: Wheel::new(WHEEL_TICK, now.instant),
            links,
            drain: None,
            stopped: false,
            close_lines: TokenBucket::full(now.instant),
            origin_lines: TokenBucket::full(now.instant),
            subjects: Subjects::default(),
            sweep: Sweep::default(),
            settings_due: None,
            revocations_owed: VecDeque::new(),
            queues: BytePool::new(chunks(options.queue_bytes_max)),
            stashes: BytePool::new(chunks(settings.limits.stalled_input_max)),
            early_input: 0,
            questions: 0,
            question_number: 0,
            deferred: VecDeque::new(),
            handshakes: 0,
            ops: Ops::new(),
            dirty: VecDeque::new(),
            starved: VecDeque::new(),
            senders: Senders::default(),
            relief_at: now.instant,
            shutdowns: Vec::new(),
            output: Output { tokens: Scratch::new(dead), ..Output::default() },
            plaintext: Vec::new(),
            ciphertext: Vec::new(),
            stash_scratch: Vec::new(),
            touched: Vec::new(),
            fired: Vec::new(),
            woken: Vec::new(),
            env: Environment {
                now,
                settings,
                routes: RouteOrder::default(),
                counters,
                jitter: random.number() as u32,
                revoked: Arc::new(Revoked::nothing(Hasher::new(&[0; 32]))),
            },
            mailbox,
            random,
            options,
        };
        Worker { ring, core, time: TickTime::new(now.instant) }
    }

    /// The ring, for a simulation that looks inside.
    pub fn ring(&mut self) -> &mut R {
        &mut self.ring
    }

    /// Number of connections that are not wholly gone.
    pub fn connections(&self) -> usize {
        self.core.connections.len()
    }

    /// Where the clients come from that are open, for a simulation that looks inside.
    pub fn open_clients(&self) -> Vec<SocketAddr> {
        let open = self.core.connections.iter().filter(|(_, c)| c.client.is_open());
        open.filter_map(|(_, connection)| connection.client.peer()).collect()
    }

    /// One turn: commands, timers, deferred input, sends, one `enter`, completions.
    pub fn tick(&mut self) -> Turn {
        let core = &mut self.core;
        core.env.now = self.ring.now();
        core.env.jitter = core.random.number() as u32;
        core.handshakes = 0;
        let commands = core.take_plan() | core.take_decisions();
        self.measure(Phase::Commands, commands);
        let timers = self.core.handle_timers();
        self.measure(Phase::Timers, timers);
        let sweeps = self.core.give_up_memory() | self.core.sweep();
        self.measure(Phase::Sweep, sweeps);
        self.core.report_revocations();
        self.core.advance_accepts();
        let handshakes = self.handle_deferred();
        self.measure(Phase::DeferredTls, handshakes);
        self.feed_starved();
        self.core.advance_drain();
        for listener in self.core.listeners_to_close() {
            self.ring.close_listener(listener);
        }
        if self.core.stopped {
            return Turn::Stopped;
        }
        self.flush();
        let until = self.core.next_wake();
        self.time.end_turn(self.ring.clock(), &self.core.env.counters);
        self.ring.enter(until);
        self.core.env.now = self.ring.now();
        self.time.begin(self.core.env.now.instant);
        self.core.env.counters.increment(Metric::Ticks);
        while let Some(completion) = self.ring.completion() {
            self.core.env.counters.increment(Metric::Completions);
            self.complete(completion);
        }
        self.core.set_gauges(self.ring.buffers(BufferGroup::Client).free);
        self.measure(Phase::Completions, true);
        Turn::Continue
    }

    /// A part of the turn is over; it took time only if it had something to do.
    fn measure(&mut self, phase: Phase, worked: bool) {
        if worked {
            self.time.end(phase, self.ring.clock(), &self.core.env.counters);
        }
    }

    fn complete(&mut self, completion: Completion) {
        let Completion { key, outcome, more } = completion;
        // A cancellation is looked at, and a descriptor is gone, whatever the kernel says of it.
        let outcome = match (key.kind, outcome) {
            (OpKind::Cancel, _) => Outcome::CancelDone,
            (OpKind::Close, _) => Outcome::Closed,
            (_, outcome) => outcome,
        };
        match key.owner {
            Owner::Nobody => self.core.acceptor.unowned_done(),
            Owner::Acceptor(slot) => self.core.accepted(slot, outcome),
            Owner::Client(owner) => self.complete_client(owner, outcome, more),
            Owner::Upstream(owner) => self.complete_link(key.kind, owner, outcome, more),
        }
    }

    fn complete_client(&mut self, owner: Key, outcome: Outcome, more: bool) {
        let core = &mut self.core;
        let Some(connection) = core.connections.entry_mut(owner) else {
            return self.complete_stale(outcome);
        };
        let id = Owner::Client(owner);
        match connection.pipe.complete(id, outcome, more, &mut self.ring, &mut core.ops) {
            PipeEvent::Received(buffer) if core.must_defer(owner) => {
                core.deferred.push_back((owner, buffer));
                core.settle(owner);
            }
            PipeEvent::Received(buffer) => self.input(owner, buffer),
            event => core.client_event(owner, event),
        }
    }

    /// A completion for a connection that is gone: what it holds goes back all the same.
    fn complete_stale(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Closed | Outcome::CancelDone => return,
            Outcome::Received(buffer) => self.ring.give_back(buffer),
            Outcome::Sent { slot, .. } => self.ring.release(slot),
            _ => {}
        }
        self.core.env.counters.increment(Metric::StaleCompletions);
    }

    /// Feeds a filled buffer to its connection and gives it back.
    fn input(&mut self, owner: Key, buffer: ReceivedBuffer) {
        self.core.input(owner, self.ring.received(&buffer));
        self.ring.give_back(buffer);
    }

    /// Goes on with TLS handshakes that were put off, within this tick's budget.
    fn handle_deferred(&mut self) -> bool {
        let any = !self.core.deferred.is_empty();
        for _ in 0..self.core.deferred.len() {
            if self.core.handshakes >= self.core.env.settings.limits.handshakes_per_tick {
                break;
            }
            let Some((owner, buffer)) = self.core.deferred.pop_front() else { break };
            self.input(owner, buffer);
        }
        any
    }

    /// Lets starved connections receive again once a quarter of the buffers is free.
    fn feed_starved(&mut self) {
        if self.core.starved.is_empty() {
            return;
        }
        let count = self.ring.buffers(BufferGroup::Client);
        if count.free < count.total.div_ceil(4) {
            return;
        }
        // No more than there are buffers for: the others would starve again.
        for _ in 0..count.free {
            let Some(owner) = self.core.starved.pop_front() else { return };
            if let Some(connection) = self.core.connections.entry_mut(owner) {
                connection.pipe.feed();
                self.core.settle(owner);
            }
        }
    }

    /// Fills one send for every connection and link that has output and none in flight, and
    /// hands everything queued to the ring.
    fn flush(&mut self) {
        for _ in 0..self.core.dirty.len() {
            let Some(owner) = self.core.dirty.pop_front() else { break };
            if !self.flush_client(owner) {
                // No slot: this one and the rest stay dirty until slots come back.
                self.core.env.counters.increment(Metric::SendStarved);
                self.core.dirty.push_front(owner);
                self.core.drop_stalled();
                break;
            }
        }
        self.flush_links();
        for socket in self.core.shutdowns.drain(..) {
            self.ring.shutdown_write(socket);
        }
        for (key, op) in self.core.ops.drain(..) {
            self.ring.submit(key, op);
        }
    }

    /// False when no send slot was free.
    fn flush_client(&mut self, owner: Key) -> bool {
        let Core { connections, queues, ops, senders, .. } = &mut self.core;
        let Some(connection) = connections.entry_mut(owner) else { return true };
        if !connection.out.is_empty() {
            let Connection { pipe, out, .. } = connection;
            let copy_out = |bytes: &mut [u8]| out.copy_out(queues, bytes);
            match pipe.flush(Owner::Client(owner), &mut self.ring, ops, copy_out) {
                Flush::Sending(slot) => senders.note(slot, owner),
                Flush::Busy => {}
                Flush::NoSlot => return false,
            }
        }
        connection.dirty = false;
        true
    }
}

impl Core {
    /// When the ring must wake at the latest.
    fn next_wake(&mut self) -> Instant {
        let more = !self.deferred.is_empty() || self.has_memory_to_give();
        if more || self.sweep.is_under_way() || self.links.is_swept() {
            return self.env.now.instant;
        }
        let mut until = self.env.now.instant + ENTER_WAIT_MAX;
        until = until.min(self.links.next_deadline());
        until = until.min(self.acceptor.next_deadline());
        if let Some(drain) = &self.drain {
            until = until.min(drain.end);
        }
        until = until.min(self.next_revocation_work());
        until.min(self.wheel.next_expiry().unwrap_or(Instant::NEVER))
    }

    fn set_gauges(&self, buffers_free: u32) {
        self.set_admission_gauges();
        self.env.counters.set(Metric::BuffersFree, u64::from(buffers_free));
        self.env
            .counters
            .set(Metric::QueuedBytes, (self.queues.in_use_bytes() + self.links.unsent()) as u64);
        let (ready, down) = self.links.ready_and_down();
        self.env.counters.set(Metric::LinksReady, ready);
        self.env.counters.set(Metric::LinksDown, down);
        self.env.counters.set(Metric::StalledInputBytes, self.stashes.in_use_bytes() as u64);
    }

    /// Whether any were due.
    fn handle_timers(&mut self) -> bool {
        let now = self.env.now.instant;
        let links = self.handle_link_deadlines();
        if self.wheel.next_expiry().is_none_or(|at| at > now) {
            return links;
        }
        let mut fired = std::mem::take(&mut self.fired);
        self.wheel.expire(now, TIMERS_PER_TURN, &mut fired);
        for slot in fired.drain(..) {
            if let Some(key) = self.connections.key_of(slot) {
                self.client_deadline(key);
            }
        }
        self.fired = fired;
        true
    }
}
