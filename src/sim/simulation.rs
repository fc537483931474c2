//! One run: a worker in a world, from the first connection to the last freed buffer.

use std::cell::RefCell;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::backend::Backend;
use super::backend_link::revocation;
use super::bugs::Bug;
use super::client::Client;
use super::deadlines::Watch;
use super::fake_ring::FakeRing;
use super::faults::{Fault, Faults};
use super::faulty_ring::Careless;
use super::keep::Keep;
use super::kernel::KernelBugs;
use super::net::{Event, MILLIS, Net, SECONDS};
use super::revocations::Revocations;
use super::scenario::{BACKEND_PORT, Scenario, VERDICT_TIMEOUT};
use super::tokens::Tokens;
use super::world::World;
use crate::base::random::Random;
use crate::counters::{Counters, Metric};
use crate::protocol::cause::Cause;
use crate::protocol::revocation::ScopedRevocation;
use crate::ring::Ring;
use crate::settings::Settings;
use crate::worker::mailbox::{
    CloseRecord, ControlMailbox, EndpointPlan, Plan, Report, Stage, WorkerOrder, mailboxes,
};
use crate::worker::{Turn, Worker, WorkerOptions};

mod checks;

/// How long the world runs on without misfortunes before the final connections, in nanoseconds:
/// links come back, idle and stalled clients are closed.
const SETTLE: u64 = 8 * SECONDS;
/// How long the final connections, and then the drain, may take, in nanoseconds.
const FINISH_MAX: u64 = 60 * SECONDS;
/// Least wait before a worker that died is started again, in nanoseconds; at most twice that.
const RESPAWN_MIN: u64 = 100 * MILLIS;
/// How much longer than the connect deadline a client waits for the answer of a server.
const SERVER_GRACE: Duration = Duration::from_millis(500);
/// Turns of the worker in one run: far above what any run needs.
const TICKS_MAX: u64 = 3_000_000;

/// What a run is to be besides its seed.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A bug planted in the world.
    pub bug: Option<Bug>,
    /// No misfortunes at all, and this scenario instead of a drawn one.
    pub quiet: Option<Scenario>,
    /// What is left of the seed's world.
    pub keep: Keep,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The broken invariant with the end of the event trace, if one broke.
    pub failure: Option<String>,
    /// Hash of every event of the run.
    pub hash: u64,
    /// Number of events.
    pub events: u64,
    /// Deadlines that came due and were seen to be kept, or had to be in a queue.
    pub deadlines: u64,
    /// How often each fault fired.
    pub faults: Vec<(&'static str, u64)>,
    /// Messages that backends took from clients.
    pub messages_up: u64,
    /// Messages that clients took from backends.
    pub messages_down: u64,
    /// Clients that exchanged everything and closed in order.
    pub completed: u64,
    /// Clients that were refused, with the right code.
    pub refused: u64,
    /// Honest connections that faults cut short.
    pub cut_short: u64,
    /// Newcomers that were dropped early.
    pub dropped_early: u64,
    /// Connections that gave way to others.
    pub evicted: u64,
    /// Sessions that backends saw.
    pub sessions: u64,
    /// Turns of the worker.
    pub ticks: u64,
    /// Simulated time, in milliseconds.
    pub millis: u64,
}

/// Runs one seed. Prints nothing.
pub fn run(seed: u64, options: &Options) -> Outcome {
    match options.bug.filter(|bug| bug.is_careless()) {
        Some(bug) => {
            played(seed, Simulation::with_ring(seed, options, move |r| Careless::new(r, bug)))
        }
        None => played(seed, Simulation::new(seed, options)),
    }
}

fn played<R: Ring + 'static>(seed: u64, mut simulation: Simulation<R>) -> Outcome {
    let (world, counters) = (simulation.world.clone(), simulation.counters.clone());
    let panicked = catch_unwind(AssertUnwindSafe(|| simulation.play())).is_err();
    if panicked {
        // The worker's state is unknown; its memory goes with the process.
        std::mem::forget(simulation);
    }
    let Ok(mut world) = world.try_borrow_mut() else {
        panic!("seed {seed}: the fake world itself panicked");
    };
    if panicked {
        world.net.check.fail("the worker panicked".into());
    }
    let turned_away = counters.value(Metric::AcceptRefused);
    world.net.faults.note_many(Fault::CapReached, turned_away);
    let value = |metric| counters.value(metric);
    Outcome {
        dropped_early: value(Metric::EarlyDropShare) + value(Metric::EarlyDropPenalty),
        evicted: value(Metric::EvictedOldest) + value(Metric::EvictedRefused),
        ..outcome(&world)
    }
}

/// A worker in a world, to be driven turn by turn.
pub struct Simulation<R: Ring = FakeRing> {
    /// The world that the worker's ring shows.
    pub world: Rc<RefCell<World>>,
    /// The worker under test.
    pub worker: Worker<R>,
    /// The worker's numbers.
    pub counters: Arc<Counters>,
    control: ControlMailbox,
    revocations: Revocations,
    scenario: Scenario,
    /// Those of the moment.
    settings: Arc<Settings>,
    endpoints: Arc<EndpointPlan>,
    wrap: Box<dyn FnMut(FakeRing) -> R>,
    turns: u64,
    draining: bool,
    stopped: bool,
}

impl Simulation<FakeRing> {
    /// A world drawn from `seed`, or the quiet one of the options.
    pub fn new(seed: u64, options: &Options) -> Self {
        Simulation::with_ring(seed, options, |ring| ring)
    }
}

impl<R: Ring + 'static> Simulation<R> {
    /// Likewise, with the ring wrapped by the caller.
    pub fn with_ring(
        seed: u64,
        options: &Options,
        mut wrap: impl FnMut(FakeRing) -> R + 'static,
    ) -> Self {
        let mut random = Random::from_number(seed);
        let (mut scenario, mut faults) = match &options.quiet {
            Some(scenario) => (scenario.clone(), Faults::quiet()),
            None => (Scenario::drawn(&mut random), Faults::drawn(&mut random)),
        };
        options.keep.apply(&mut scenario, &mut faults);
        let tokens = Tokens::new(&mut random);
        let mut settings = scenario.settings(tokens.key());
        if options.bug == Some(Bug::CapIgnored) {
            settings.limits.unauthenticated_max *= 2;
        }
        let worker_seed = random.number();
        let world = world(&scenario, &settings, random, faults, tokens, options.bug);
        let world = Rc::new(RefCell::new(world));
        let counters = Arc::new(Counters::default());
        let settings = Arc::new(settings);
        let forgets = options.bug == Some(Bug::RevocationForgotten);
        let revocations = Revocations::new(forgets, scenario.sweep_turns());
        let endpoints = Arc::new(scenario.endpoints(&[BACKEND_PORT]));
        let (control, mailbox) =
            mailboxes(Plan::new(settings.clone(), endpoints.clone(), revocations.snapshot()));
        let worker = Worker::new(
            wrap(FakeRing::new(world.clone())),
            settings.clone(),
            counters.clone(),
            mailbox,
            Random::from_number(worker_seed),
            worker_options(&scenario),
        );
        Simulation {
            world,
            worker,
            counters,
            control,
            revocations,
            scenario,
            settings,
            endpoints,
            wrap: Box::new(wrap),
            turns: 0,
            draining: false,
            stopped: false,
        }
    }

    /// What a panic does, and then the supervisor (`server/workers.rs`): the worker dies in the
    /// middle of a turn, its ring and sockets with it, and a new one starts over the same world.
    fn lose_worker(&mut self) {
        let takes = self.random_below(8) as u32;
        self.world.borrow_mut().kernel.takes_left = Some(takes);
        if !self.turn() {
            return;
        }
        let (settings, endpoints) = (self.settings.clone(), self.endpoints.clone());
        let (control, mailbox) =
            mailboxes(Plan::new(settings, endpoints, self.revocations.snapshot()));
        let random = {
            let world = &mut *self.world.borrow_mut();
            let wait = RESPAWN_MIN + world.net.random.below(RESPAWN_MIN);
            world.lose_worker(wait);
            Random::from_number(world.net.random.number())
        };
        self.control = control;
        self.worker = Worker::new(
            (self.wrap)(FakeRing::new(self.world.clone())),
            self.settings.clone(),
            self.counters.clone(),
            mailbox,
            random,
            worker_options(&self.scenario),
        );
    }

    fn plan(&self, change: impl FnOnce(&mut Plan)) {
        self.control.publish(self.control.latest().changed(change));
    }

    /// The whole run: misfortunes, recovery, final connections, drain.
    pub fn play(&mut self) {
        self.world.borrow_mut().start();
        let began = self.now();
        let chaos_ends = began + self.scenario.chaos;
        if self.scenario.drains_early {
            self.turn_with_reloads(began + self.scenario.chaos / 2);
            self.world.borrow_mut().net.faults.note(Fault::DrainedEarly);
            self.drain();
        }
        self.turn_with_reloads(chaos_ends);
        self.restore_settings();
        let revoked = self.revocations.clear();
        self.plan(|plan| plan.revoked = revoked);
        self.world.borrow_mut().stop_faults();
        if !self.stopped && !self.scenario.drains_early {
            self.turn_until(chaos_ends + SETTLE, |_| false);
            self.wait_for_quiet("after the faults");
            self.check_held();
            self.world.borrow_mut().begin_finals();
            self.wait_for_quiet("after the final connections");
            self.check_gauges();
            self.drain();
        }
        let end = self.now() + FINISH_MAX;
        self.turn_until(end, |simulation| simulation.stopped);
        self.check_end();
    }

    /// One turn of the worker; false once it has stopped or something is wrong.
    pub fn turn(&mut self) -> bool {
        if self.stopped || self.world.borrow().net.check.failure().is_some() {
            return false;
        }
        self.stopped = self.worker.tick() == Turn::Stopped;
        while let Some(report) = self.control.report() {
            if let Report::Revoke(revocation) = report {
                self.revoke(revocation);
                continue;
            }
            if let Report::ServerRests { .. } = report {
                let server = self.settings.backends[0].server.as_ref();
                let failures = server.map_or(0, |server| server.circuit.failures.into());
                self.world.borrow_mut().net.check.rests(failures);
                continue;
            }
            let Report::Closed(CloseRecord { cause, stage: Stage::Open, .. }) = report else {
                continue;
            };
            if cause == Cause::OverCapacity && self.scenario.floods {
                self.fail("an authenticated client gave way".into());
            }
            let fault = match cause {
                Cause::TokenExpired => Fault::TokenExpired,
                Cause::Lifetime => Fault::LifetimeOver,
                _ => continue,
            };
            self.world.borrow_mut().net.faults.note(fault);
        }
        self.turns += 1;
        if self.turns > TICKS_MAX {
            self.fail("the run takes too many turns".into());
        }
        self.check_bounds();
        if self.scenario.floods {
            self.check_caps();
        }
        if self.scenario.servers {
            self.check_servers();
        }
        let open = self.worker.open_clients();
        let world = &mut *self.world.borrow_mut();
        self.revocations.check(open, self.turns, world);
        true
    }

    /// What the control thread does with a revocation.
    fn revoke(&mut self, revocation: impl Into<ScopedRevocation>) {
        let world = &mut *self.world.borrow_mut();
        let Some(revoked) = self.revocations.take(revocation, self.turns, world) else { return };
        self.control.publish(self.control.latest().changed(|plan| plan.revoked = revoked));
        world.net.note("revoked", 0, 0);
        let now = world.net.now;
        world.net.schedule(now, Event::Script);
    }

    fn now(&self) -> u64 {
        self.world.borrow().net.now
    }

    fn fail(&self, message: String) {
        self.world.borrow_mut().net.check.fail(message);
    }

    fn turn_until(&mut self, end: u64, is_enough: impl Fn(&Self) -> bool) {
        self.world.borrow_mut().net.schedule(end, Event::Script);
        while self.now() < end && !is_enough(self) {
            if !self.turn() {
                return;
            }
        }
    }

    /// Likewise to the end, with other settings now and then.
    fn turn_with_reloads(&mut self, end: u64) {
        while self.now() < end && !self.stopped {
            let step = self.now() + 100 * MILLIS + self.random_below(500 * MILLIS);
            self.turn_until(step.min(end), |_| false);
            // Workers that die while they drain stay dead.
            if !self.draining && self.world.borrow_mut().net.fault(Fault::WorkerPanic) {
                self.lose_worker();
            }
            let revocation = {
                let World { net, .. } = &mut *self.world.borrow_mut();
                let author = net.check.any_open(&mut net.random);
                author.filter(|_| net.fault(Fault::AdminRevoked)).map(|a| revocation(net, a))
            };
            if let Some(revocation) = revocation {
                self.revoke(revocation);
            }
            let settings = {
                let World { net, tokens, .. } = &mut *self.world.borrow_mut();
                if net.check.failure().is_some() {
                    return;
                }
                let other = net.fault(Fault::Reload);
                other.then(|| self.scenario.reloaded(tokens.key(), &mut net.random))
            };
            if let Some((settings, endpoints)) = settings {
                self.reload(settings, endpoints);
            }
        }
    }

    fn restore_settings(&mut self) {
        let settings = self.scenario.restored(self.world.borrow().tokens.key());
        self.reload(settings, self.scenario.endpoints(&[BACKEND_PORT]));
    }

    fn reload(&mut self, settings: Settings, endpoints: EndpointPlan) {
        self.endpoints = Arc::new(endpoints);
        self.settings = Arc::new(settings);
        self.plan(|plan| {
            (plan.settings, plan.endpoints) = (self.settings.clone(), self.endpoints.clone());
        });
        let world = &mut *self.world.borrow_mut();
        let now = world.net.now;
        world.watch.set_deadlines(self.settings.deadlines.clone(), now);
        world.net.note("reload", 0, 0);
        world.net.schedule(now, Event::Script);
    }

    fn random_below(&self, bound: u64) -> u64 {
        self.world.borrow_mut().net.random.below(bound)
    }

    fn drain(&mut self) {
        self.draining = true;
        let window = self.scenario.deadlines.drain;
        self.plan(|plan| plan.order = WorkerOrder::Drain { window });
        let mut world = self.world.borrow_mut();
        world.net.note("drain", 0, 0);
        let now = world.net.now;
        world.watch.drain(now, window.as_nanos() as u64);
        world.net.schedule(now, Event::Script);
    }

    /// Turns until every client is done and its socket gone.
    fn wait_for_quiet(&mut self, when: &str) {
        let end = self.now() + FINISH_MAX;
        let quiet = |simulation: &Self| {
            let world = simulation.world.borrow();
            world.clients.iter().all(Client::is_done) && world.open_clients().is_empty()
        };
        while self.now() < end && !quiet(self) {
            let step = self.now() + 50 * MILLIS;
            self.turn_until(step, |_| false);
            if self.stopped || self.world.borrow().net.check.failure().is_some() {
                break;
            }
        }
        if !quiet(self) {
            let world = self.world.borrow();
            let mut left = String::new();
            for client in world.clients.iter().filter(|client| !client.is_done()) {
                let _ = write!(left, "\n  {}", client.state());
            }
            let open = world.open_clients();
            drop(world);
            self.fail(format!("not all is over {when}: sockets {open:?}{left}"));
        }
        // What was closed last still has frames to exchange with the backends.
        let step = self.now() + SECONDS;
        self.turn_until(step, |_| false);
    }
}

fn worker_options(scenario: &Scenario) -> WorkerOptions {
    WorkerOptions {
        index: 0,
        instance: *b"simulated worker",
        epoch: 1_750_000_000_000,
        generation_bits: scenario.generation_bits,
        workers: 1,
        descriptors_max: 10_000,
        queue_bytes_max: 64 << 20,
        sweep_slots: scenario.sweep_slots,
    }
}

fn world(
    scenario: &Scenario,
    settings: &Settings,
    random: Random,
    faults: Faults,
    tokens: Tokens,
    bug: Option<Bug>,
) -> World {
    let net = Net::new(random, faults, scenario.latency_max, scenario.capacity_min);
    let mut watch = Watch::new(settings.deadlines.clone());
    watch.set_sweep_turns(scenario.sweep_turns());
    let mut world = World::new(net, tokens, watch, scenario.sizes);
    if scenario.asks {
        world.watch.set_verdict(VERDICT_TIMEOUT);
    }
    if scenario.servers {
        world.watch.set_server(scenario.deadlines.upstream_connect + SERVER_GRACE);
    }
    world.pace = scenario.pace;
    for (index, plan) in scenario.clients.iter().enumerate() {
        let mut client = Client::new(index, *plan);
        client.uses_tls = scenario.tls;
        client.judged_elsewhere = scenario.asks;
        client.server_may_rest = scenario.servers;
        client.proxied = scenario.proxy;
        client.may_be_turned_away = scenario.caps != (10_000, 10_000);
        client.misreads = bug == Some(Bug::ClientMisreads);
        world.clients.push(client);
    }
    for (index, plan) in scenario.backends.iter().enumerate() {
        let mut plan = plan.clone();
        plan.duplicates = if bug == Some(Bug::BackendDuplicates) { 20 } else { 0 };
        world.backends.push(Backend::new(index, plan));
    }
    let every = |which: Bug, count: u64| if bug == Some(which) { count } else { 0 };
    world.kernel.bugs = KernelBugs {
        loses_buffer: every(Bug::RingLosesBuffer, 20),
        receives_twice: every(Bug::KernelRepeatsInput, 50),
        drops_sent_byte: every(Bug::KernelDropsByte, 50),
        completes_twice: every(Bug::CompletionTwice, 50),
        peers_alike: bug == Some(Bug::PeersAlike),
    };
    world.kernel.balanced = scenario.proxy;
    world.clock_sticks = bug == Some(Bug::ClockSticks);
    world
}

fn outcome(world: &World) -> Outcome {
    let net = &world.net;
    let failure = net.check.failure().map(|message| {
        let Net { trace, now, .. } = net;
        let at = now / MILLIS;
        format!("{message}\nat {at} ms, after these events:\n{}", trace.tail(60))
    });
    Outcome {
        failure,
        hash: net.trace.hash(),
        events: net.trace.count(),
        deadlines: world.watch.kept,
        faults: net.faults.counts().collect(),
        messages_up: net.check.messages_up,
        messages_down: net.check.messages_down,
        completed: net.check.completed,
        refused: net.check.refused,
        cut_short: net.check.cut_short,
        dropped_early: 0,
        evicted: 0,
        sessions: net.check.sessions,
        ticks: world.enters(),
        millis: net.now / MILLIS,
    }
}
