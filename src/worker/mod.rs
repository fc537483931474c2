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
mod core;
mod endpoint_plan;
mod endpoints;
mod handshakes;
mod links;
pub mod mailbox;
mod memory;
mod reconcile;
mod revocations;
mod rows;
mod servers;
mod sessions;
pub mod sockets;
mod sweep;
mod tick_time;
mod trail;
mod upstreams;
mod websocket_events;
mod websocket_io;
mod websockets;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::base::random::Random;
use crate::base::slab::{Key, KeyedSlab};
use crate::base::time::Instant;
use crate::base::token_bucket::TokenBucket;
use crate::connection::client::Client;
use crate::connection::route_order::RouteOrder;
use crate::connection::upstream::websocket::request::ServerNonce;
use crate::connection::{Output, authenticate};
use crate::counters::{Counters, Metric};
use crate::protocol::rejected_tokens::RejectedTokenCache;
use crate::protocol::revocation::{Hasher, Revoked};
use crate::ring::{BufferGroup, Completion, ENTER_WAIT_MAX, OpKind, Outcome, Owner, Ring};
use crate::settings::Settings;

use self::core::{Control, Core, Environment, Handshakes, Parts, Pools, Scratch};
use accept::Acceptor;
use admission::{Admission, Allowance};
use auth_requests::AuthRequests;
use clients::Connection;
use links::LinkTable;
use mailbox::WorkerMailbox;
use reconcile::Reconciled;
use rows::Rows;
use servers::ServerTable;
use sockets::{Agenda, Flush, PipeEvent};
use sweep::Sweep;
use tick_time::{Phase, TickTime};
use trail::Subjects;

/// The resolution of every deadline: one turn of the wheel's lowest level.
pub const WHEEL_TICK: Duration = Duration::from_millis(10);
/// How many slots of a table one turn looks at when all are concerned.
pub const SWEEP_SLOTS: u32 = 8192;
/// Deadlines that one turn acts on; those beyond are due in the next.
const TIMERS_PER_TURN: usize = 1024;

/// What does not change over the life of a worker.
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
        let mut upstreams = KeyedSlab::new(options.generation_bits);
        let env = Environment {
            now,
            rows: Rows::new(&counters, &settings),
            settings: Arc::clone(&settings),
            endpoints: mailbox.endpoints(),
            routes: RouteOrder::default(),
            counters,
            jitter: 0,
            revoked: Arc::new(Revoked::nothing(Hasher::new(&[0; 32]))),
        };
        let mut links = LinkTable::new(&env, &options, &mut random, &mut upstreams);
        let mut servers = ServerTable::new(&env, &mut random);
        links.give_addresses(&mut ring);
        servers.give_addresses(&mut ring);
        let sockets_max = options.descriptors_max / settings.sockets_per_client();
        let allowance = Allowance::new(&settings.limits, options.workers, sockets_max);
        let parts = Parts {
            agenda: Agenda::new(WHEEL_TICK, now.instant),
            upstreams,
            links,
            servers,
            acceptor: Acceptor::new(&settings),
            admission: Admission::new(allowance, now.instant),
            auth_requests: AuthRequests::default(),
            pools: Pools::new(options.queue_bytes_max, settings.limits.stalled_input_max),
            handshakes: Handshakes::default(),
            control: Control {
                mailbox,
                settings_due: None,
                drain: None,
                stopped: false,
                close_lines: TokenBucket::full(now.instant),
                origin_lines: TokenBucket::full(now.instant),
                advice_lines: TokenBucket::full(now.instant),
                subjects: Subjects::default(),
                revocations_waiting: VecDeque::new(),
                relief_at: now.instant,
            },
            sweep: Sweep::default(),
            scratch: Scratch {
                output: Output {
                    tokens: authenticate::Scratch::new(dead),
                    nonce: first_nonce(&settings, &mut random),
                    ..Output::default()
                },
                ..Scratch::default()
            },
            env,
            random,
            options,
        };
        let clients = KeyedSlab::new(parts.options.generation_bits);
        Worker { ring, core: Core { clients, parts }, time: TickTime::new(now.instant) }
    }

    /// The ring, for a simulation that looks inside.
    pub fn ring(&mut self) -> &mut R {
        &mut self.ring
    }

    /// Number of connections that are not wholly gone.
    pub fn connections(&self) -> usize {
        self.core.clients.len()
    }

    /// Where the clients come from that are open, for a simulation that looks inside.
    pub fn open_clients(&self) -> Vec<SocketAddr> {
        let clients = self.core.clients.iter().map(|(_, connection)| &connection.client);
        clients.filter(|client| client.is_open()).filter_map(Client::peer).collect()
    }

    /// One turn: commands, timers, deferred input, sends, one `enter`, completions.
    pub fn tick(&mut self) -> Turn {
        let core = &mut self.core;
        core.parts.env.now = self.ring.now();
        core.parts.env.jitter = core.parts.random.number() as u32;
        core.parts.handshakes.done = 0;
        let commands = core.take_plan() | core.take_decisions();
        self.core.parts.links.give_addresses(&mut self.ring);
        self.core.parts.servers.give_addresses(&mut self.ring);
        self.measure(Phase::Commands, commands);
        let timers = self.core.handle_timers();
        self.measure(Phase::Timers, timers);
        let sweeps = self.core.give_up_memory() | self.core.sweep();
        self.measure(Phase::Sweep, sweeps);
        self.core.parts.report_revocations();
        self.core.parts.advance_accepts();
        let handshakes = self.core.handle_deferred();
        self.measure(Phase::DeferredTls, handshakes);
        self.feed_starved();
        self.core.close_ousted();
        self.core.advance_drain();
        let listeners = self.core.parts.listeners_to_close();
        if !listeners.is_empty() {
            // What came since the last look is in the accepts now, and no longer in a backlog.
            self.flush();
            self.ring.enter(self.core.parts.env.now.instant);
        }
        for listener in listeners {
            self.ring.close_listener(listener);
        }
        if self.core.parts.control.stopped {
            return Turn::Stopped;
        }
        self.flush();
        let until = self.core.parts.next_wake();
        self.time.end_turn(self.ring.clock(), &self.core.parts.env.counters);
        self.ring.enter(until);
        self.core.parts.env.now = self.ring.now();
        self.time.begin(self.core.parts.env.now.instant);
        self.core.parts.env.counters.increment(Metric::Ticks);
        while let Some(completion) = self.ring.completion() {
            self.core.parts.env.counters.increment(Metric::Completions);
            self.complete(completion);
        }
        self.core.parts.set_gauges(self.ring.buffers(BufferGroup::Client).free);
        self.measure(Phase::Completions, true);
        Turn::Continue
    }

    /// A part of the turn is over; it took time only if it had something to do.
    fn measure(&mut self, phase: Phase, worked: bool) {
        if worked {
            self.time.end(phase, self.ring.clock(), &self.core.parts.env.counters);
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
            Owner::Nobody => self.core.parts.acceptor.unowned_done(),
            Owner::Acceptor(slot) => self.core.accepted(slot, outcome),
            Owner::Client(client) => self.complete_client(client, outcome, more),
            Owner::Upstream(_) => self.complete_upstream(key, outcome, more),
        }
    }

    fn complete_client(&mut self, key: Key, outcome: Outcome, more: bool) {
        // For what the gateway itself answers.
        self.core.make_room(key, 0);
        let Core { clients, parts } = &mut self.core;
        let Some(connection) = clients.entry_mut(key) else {
            return self.complete_stale(outcome);
        };
        let (owner, ops) = (Owner::Client(key), &mut parts.agenda.ops);
        match connection.pipe.complete(owner, outcome, more, &mut self.ring, ops) {
            PipeEvent::Received(buffer) => {
                parts.input(key, connection, self.ring.received(&buffer));
                self.ring.give_back(buffer);
            }
            event => parts.client_event(key, connection, event),
        }
        if parts.reconcile(key, connection) == Reconciled::Over {
            self.core.forget_client(key);
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
        self.core.parts.env.counters.increment(Metric::StaleCompletions);
    }

    /// Lets sockets that found no buffer receive again once a quarter of their pool is free.
    fn feed_starved(&mut self) {
        for group in [BufferGroup::Client, BufferGroup::Link] {
            if !self.core.parts.agenda.is_any_starved(group) {
                continue;
            }
            let count = self.ring.buffers(group);
            if count.free < count.total.div_ceil(4) {
                continue;
            }
            // No more than there are buffers for: the others would starve again.
            for _ in 0..count.free {
                let Some(owner) = self.core.parts.agenda.next_starved(group) else { break };
                self.core.feed(owner);
            }
        }
    }

    /// Fills one send for every socket that has output and none in flight, and hands everything
    /// queued to the ring.
    fn flush(&mut self) {
        let mut dirty = self.core.parts.agenda.take_dirty();
        // Once a pool has no slot, its sockets stay dirty until slots come back.
        let mut clients_starve = false;
        let mut links_starve = false;
        dirty.retain(|owner| match *owner {
            Owner::Client(key) => {
                clients_starve = clients_starve || !self.flush_client(key);
                clients_starve
            }
            Owner::Upstream(key) => {
                let starved = self.flush_upstream(key);
                clients_starve |= starved == Some(BufferGroup::Client);
                links_starve |= starved == Some(BufferGroup::Link);
                starved.is_some()
            }
            Owner::Nobody | Owner::Acceptor(_) => unreachable!("{owner:?} sends nothing"),
        });
        self.core.parts.agenda.keep_dirty(dirty);
        let starved = u64::from(clients_starve) + u64::from(links_starve);
        self.core.parts.env.counters.add(Metric::SendStarved, starved);
        if clients_starve {
            self.core.drop_stalled();
        }
        self.core.resume_woken();
        let agenda = &mut self.core.parts.agenda;
        for socket in agenda.shutdowns.drain(..) {
            self.ring.shutdown_write(socket);
        }
        for (key, op) in agenda.ops.drain(..) {
            self.ring.submit(key, op);
        }
    }

    /// False when no send slot was free.
    fn flush_client(&mut self, key: Key) -> bool {
        let Core { clients, parts: Parts { pools, agenda, env, .. } } = &mut self.core;
        // It may have left since it had output.
        let Some(connection) = clients.entry_mut(key) else { return true };
        let Connection { pipe, out, client, .. } = connection;
        if !out.is_empty() {
            let copy_out = |bytes: &mut [u8]| out.copy_out(&mut pools.queues, bytes);
            match pipe.flush(Owner::Client(key), &mut self.ring, &mut agenda.ops, copy_out) {
                Flush::Sending(slot) => {
                    client.output_begun(env.now.instant);
                    agenda.note_sender(slot, Owner::Client(key));
                }
                Flush::Busy => {}
                Flush::NoSlot => return false,
                Flush::Nothing => unreachable!("a client's output is made already"),
            }
        }
        connection.dirty = false;
        true
    }
}

/// For the first handshake with a WebSocket server, where there are any.
fn first_nonce(settings: &Settings, random: &mut Random) -> ServerNonce {
    let mut nonce = ServerNonce::default();
    if settings.has_servers() {
        random.fill(&mut nonce.0);
    }
    nonce
}

impl Core {
    /// Acts on the timers that are due. Whether there were any.
    fn handle_timers(&mut self) -> bool {
        let now = self.parts.env.now.instant;
        if self.parts.agenda.next_timer() > now {
            return false;
        }
        let mut fired = std::mem::take(&mut self.parts.scratch.fired);
        self.parts.agenda.client_timers.expire(now, TIMERS_PER_TURN, &mut fired);
        for slot in fired.drain(..) {
            // Another timer's client may have taken this one's with it.
            let Some((key, connection)) = self.clients.slot_mut(slot) else { continue };
            self.parts.client_deadline(connection);
            if self.parts.reconcile(key, connection) == Reconciled::Over {
                self.forget_client(key);
            }
        }
        self.parts.agenda.upstream_timers.expire(now, TIMERS_PER_TURN, &mut fired);
        for slot in fired.drain(..) {
            self.upstream_deadline(slot);
        }
        self.parts.scratch.fired = fired;
        true
    }

    /// Receive buffers are free again: a socket that found none may try again.
    fn feed(&mut self, owner: Owner) {
        // It may have left meanwhile.
        match owner {
            Owner::Client(key) => {
                self.with_client(key, |_, _, connection| connection.pipe.feed());
            }
            Owner::Upstream(key) => {
                let Parts { upstreams, agenda, .. } = &mut self.parts;
                if let Some(upstream) = upstreams.entry_mut(key) {
                    upstream.socket.feed(key, &mut agenda.ops);
                }
            }
            Owner::Nobody | Owner::Acceptor(_) => unreachable!("{owner:?} receives nothing"),
        }
    }
}

impl Parts {
    /// When the ring must wake at the latest.
    fn next_wake(&self) -> Instant {
        let now = self.env.now.instant;
        let more = !self.handshakes.deferred.is_empty() || self.has_memory_to_give();
        if more || self.sweep.is_under_way() || self.links.is_swept() {
            return now;
        }
        let drain = self.control.drain.as_ref().map_or(Instant::NEVER, |drain| drain.end);
        (now + ENTER_WAIT_MAX)
            .min(self.acceptor.next_deadline())
            .min(drain)
            .min(self.next_revocation_work())
            .min(self.agenda.next_timer())
    }

    fn set_gauges(&mut self, buffers_free: u32) {
        self.set_admission_gauges();
        let counters = &self.env.counters;
        let queued = self.pools.queues.in_use_bytes() + self.links.unsent();
        counters.set(Metric::BuffersFree, u64::from(buffers_free));
        counters.set(Metric::QueuedBytes, queued as u64);
        let (ready, down) = self.links.ready_and_down();
        counters.set(Metric::LinksReady, ready);
        counters.set(Metric::LinksDown, down);
        let (ready, resting) = self.servers.ready_and_resting();
        counters.set(Metric::UpstreamsReady, ready);
        counters.set(Metric::UpstreamsResting, resting);
        counters.set(Metric::UpstreamConnections, self.servers.connections());
        counters.set(Metric::StalledInputBytes, self.pools.backlogs.in_use_bytes() as u64);
    }
}
