//! One load thread: a ring, its connections, and the schedule of connects and messages.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::connection::{Connection, Context, Stage};
use crate::kernel::{self, Event, Ring};
use crate::plan::{Behaviour, JunkKind, Phase, Plan};
use crate::stats::{Live, Stats, record};

/// How long a closed connection may take to end TCP.
const DRAIN_TIMEOUT_NS: u64 = 5_000_000_000;
/// Longest sleep; bounds how late a change of phase is seen.
const SLEEP_MAX_NS: u64 = 20_000_000;
/// Sends' memory kept for reuse.
const POOL_MAX: usize = 4096;

/// What threads of a run share.
pub struct Shared {
    /// When the harness began; all times count from here.
    pub epoch: Instant,
    phase: AtomicU8,
}

impl Shared {
    /// A run in its first phase.
    pub fn new() -> Arc<Shared> {
        Arc::new(Shared { epoch: Instant::now(), phase: AtomicU8::new(0) })
    }

    /// Moves the run on.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    fn phase(&self) -> Phase {
        Phase::from_number(self.phase.load(Ordering::Relaxed))
    }

    /// Nanoseconds since the run began.
    pub fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }
}

/// Runs a plan until the phase is `Stop`.
pub fn run(plan: Plan, shared: &Shared, live: &Live) -> Stats {
    match Worker::new(plan, shared, live) {
        Ok(mut worker) => {
            let outcome = worker.run();
            let mut stats = worker.finish();
            stats.error = outcome.err().map(|error| format!("the ring failed: {error}"));
            stats
        }
        Err(error) => Stats { error: Some(error), ..Stats::default() },
    }
}

struct Worker<'a> {
    ring: Ring,
    connections: Vec<Connection>,
    context: Context,
    shared: &'a Shared,
    live: &'a Live,
    free: Vec<u32>,
    /// Slots whose connection is open, for the schedule of messages.
    open: Vec<u32>,
    opening: u32,
    /// (deadline, slot, number) of connections that must become open, in order.
    open_deadlines: VecDeque<(u64, u32, u64)>,
    /// The same of connections that must end.
    drain_deadlines: VecDeque<(u64, u32, u64)>,
    /// Junk in order of age.
    junk_order: VecDeque<(u32, u64)>,
    schedule_began: u64,
    connects_due: u64,
    messages_began: u64,
    messages_sent: u64,
    next_open: usize,
}

impl<'a> Worker<'a> {
    fn new(plan: Plan, shared: &'a Shared, live: &'a Live) -> Result<Worker<'a>, String> {
        if let Some(core) = plan.core {
            kernel::pin(0, core).map_err(|error| format!("cannot run on core {core}: {error}"))?;
        }
        kernel::precise_timers();
        let ring = Ring::new(plan.slots, plan.buffer_bytes)?;
        Ok(Worker {
            ring,
            connections: (0..plan.slots).map(|_| Connection::default()).collect(),
            free: (0..plan.slots).rev().collect(),
            context: Context::new(plan),
            shared,
            live,
            open: Vec::new(),
            opening: 0,
            open_deadlines: VecDeque::new(),
            drain_deadlines: VecDeque::new(),
            junk_order: VecDeque::new(),
            schedule_began: shared.now(),
            connects_due: 0,
            messages_began: 0,
            messages_sent: 0,
            next_open: 0,
        })
    }

    fn run(&mut self) -> std::io::Result<()> {
        loop {
            let phase = self.shared.phase();
            self.context.now = self.shared.now();
            if phase != self.context.phase {
                self.enter_phase(phase);
            }
            if phase == Phase::Stop {
                return Ok(());
            }
            let mut wake = self.context.now + SLEEP_MAX_NS;
            if phase < Phase::Drain {
                wake = wake.min(self.start_connects());
                wake = wake.min(self.send_due());
            }
            wake = wake.min(self.expire());
            self.live.publish(&self.context.stats.totals);
            self.context.now = self.shared.now();
            let sleep = wake.saturating_sub(self.context.now);
            self.ring.wait(Duration::from_nanos(sleep))?;
            self.context.now = self.shared.now();
            while let Some(event) = self.ring.next_event() {
                self.handle(event);
            }
        }
    }

    fn finish(self) -> Stats {
        let mut stats = self.context.stats;
        stats.unanswered = self.connections.iter().map(Connection::outstanding).sum();
        self.live.publish(&stats.totals);
        stats
    }

    fn enter_phase(&mut self, phase: Phase) {
        let before = std::mem::replace(&mut self.context.phase, phase);
        if before >= Phase::Warm || phase < Phase::Warm || phase > Phase::Measure {
            return;
        }
        self.messages_began = self.context.now;
        for slot in self.open.clone() {
            self.begin_messages(slot);
            self.flush(slot);
        }
    }

    /// Begins what is due; returns when the next is.
    fn start_connects(&mut self) -> u64 {
        let plan = &self.context.plan;
        let limit = plan.connects.unwrap_or(u64::MAX);
        let (rate, opening_max) = (plan.connect_rate, plan.opening_max);
        let junk = matches!(plan.behaviour, Behaviour::Junk(_));
        loop {
            let started = self.context.stats.totals.started;
            if started >= limit || (self.opening >= opening_max && !junk) {
                return u64::MAX;
            }
            let mut intended = self.context.now;
            if let Some(rate) = rate {
                intended = self.schedule_began + (self.connects_due as f64 / rate * 1e9) as u64;
                if intended > self.context.now {
                    return intended;
                }
            }
            let Some(slot) = self.free.pop() else {
                if junk {
                    self.abandon_oldest();
                }
                return u64::MAX;
            };
            self.connects_due += 1;
            self.start(slot, intended);
        }
    }

    fn start(&mut self, slot: u32, intended: u64) {
        let context = &mut self.context;
        let number = context.stats.totals.started;
        context.stats.totals.started += 1;
        let plan = &context.plan;
        let source = match plan.sources {
            0 => None,
            count => plan.target.source(plan.group, plan.worker, number as usize % count),
        };
        if plan.connect_rate.is_some() && context.phase == Phase::Measure {
            record(&mut context.stats.lateness, context.now - intended);
        }
        let junk = choose_junk(&plan.behaviour, number);
        let deadline = context.now + plan.open_timeout.as_nanos() as u64;
        self.connections[slot as usize].restart(number, intended, context.now, junk);
        self.ring.connect(slot, source, context.plan.target.address, junk.is_some());
        match junk {
            Some(kind) => {
                context.stats.junk(kind.name()).started += 1;
                self.junk_order.push_back((slot, number));
            }
            None => {
                self.opening += 1;
                self.open_deadlines.push_back((deadline, slot, number));
            }
        }
    }

    /// Makes room for new junk, as an attacker out of sockets would.
    fn abandon_oldest(&mut self) {
        for _ in 0..64 {
            let Some((slot, number)) = self.junk_order.pop_front() else { return };
            let connection = &self.connections[slot as usize];
            if connection.number != number || connection.stage == Stage::Closing {
                continue;
            }
            let kind = connection.junk.expect("only junk is in the queue").name();
            self.context.stats.junk(kind).abandoned += 1;
            self.close(slot);
        }
    }

    /// Sends the messages that are due; returns when the next one is.
    fn send_due(&mut self) -> u64 {
        let Behaviour::Echo { rate: Some(rate), .. } = self.context.plan.behaviour else {
            return u64::MAX;
        };
        if self.context.phase < Phase::Warm || self.open.is_empty() {
            return u64::MAX;
        }
        loop {
            let due = self.messages_began + (self.messages_sent as f64 / rate * 1e9) as u64;
            if due > self.context.now {
                return due;
            }
            self.messages_sent += 1;
            self.next_open = (self.next_open + 1) % self.open.len();
            let slot = self.open[self.next_open];
            self.connections[slot as usize].queue_message(due, &mut self.context);
            self.flush(slot);
        }
    }

    /// Ends what took too long; returns when to look again.
    fn expire(&mut self) -> u64 {
        let now = self.context.now;
        while let Some(&(deadline, slot, number)) = self.open_deadlines.front() {
            let connection = &self.connections[slot as usize];
            let stage = connection.stage;
            let waiting = matches!(
                stage,
                Stage::Connecting | Stage::Tls | Stage::Upgrading | Stage::FirstMessageInfo
            );
            if waiting && connection.number == number {
                if deadline > now {
                    break;
                }
                let kind = format!("no answer in time ({stage:?})").to_lowercase();
                self.lose(slot, kind.into());
            }
            self.open_deadlines.pop_front();
        }
        while let Some(&(deadline, slot, number)) = self.drain_deadlines.front() {
            let connection = &self.connections[slot as usize];
            if connection.stage == Stage::Draining && connection.number == number {
                if deadline > now {
                    break;
                }
                self.note("TCP left open 5 s after the close frame");
                self.close(slot);
            }
            self.drain_deadlines.pop_front();
        }
        let heads = [self.open_deadlines.front(), self.drain_deadlines.front()];
        heads.into_iter().flatten().map(|entry| entry.0).min().unwrap_or(u64::MAX)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Connected { slot }
                if self.connections[slot as usize].junk == Some(JunkKind::Reset) =>
            {
                self.close(slot);
            }
            Event::Connected { slot } => {
                self.ring.receive(slot);
                let connection = &mut self.connections[slot as usize];
                let outcome = connection.connected(&mut self.context);
                self.settle(slot, Stage::Connecting, outcome);
            }
            Event::ConnectFailed { slot, step, errno } => {
                self.lose(slot, format!("{step}: {}", errno_name(errno)).into());
            }
            Event::Received { slot, buffer } => {
                self.context.now = self.shared.now();
                let connection = &mut self.connections[slot as usize];
                let before = connection.stage;
                let bytes = self.ring.bytes(&buffer);
                let outcome = connection.receive(bytes, &mut self.context);
                self.ring.give_back(buffer);
                self.settle(slot, before, outcome);
                if self.connections[slot as usize].ended_by_tls() {
                    self.close(slot);
                }
            }
            Event::ReceiveEnded { slot, errno } => self.ended(slot, errno),
            Event::Sent { slot, mut data } => {
                data.clear();
                if self.context.pool.len() < POOL_MAX {
                    self.context.pool.push(data);
                }
                self.flush(slot);
            }
            Event::SendFailed { slot, errno } => match self.connections[slot as usize].stage {
                // The end of receiving tells more.
                Stage::Draining => {}
                _ => self.lose(slot, format!("send: {}", errno_name(errno)).into()),
            },
            Event::Closed { slot } => {
                self.connections[slot as usize].stage = Stage::Free;
                self.free.push(slot);
            }
            Event::Accepted { .. } | Event::AcceptFailed { .. } => {
                unreachable!("load threads have no listener")
            }
        }
    }

    /// Acts on what bytes did to a connection.
    fn settle(&mut self, slot: u32, before: Stage, outcome: Result<(), Cow<'static, str>>) {
        let after = self.connections[slot as usize].stage;
        if self.connections[slot as usize].junk.is_none() {
            match after {
                Stage::Draining if before < Stage::Open => self.not_opened(),
                Stage::Open if before < Stage::Open => self.opened(slot),
                _ => {}
            }
            if after == Stage::Draining && before != Stage::Draining {
                self.leave_open(slot);
                let deadline = self.context.now + DRAIN_TIMEOUT_NS;
                let number = self.connections[slot as usize].number;
                self.drain_deadlines.push_back((deadline, slot, number));
            }
        }
        if let Err(kind) = outcome {
            return self.lose(slot, kind);
        }
        self.flush(slot);
    }

    fn opened(&mut self, slot: u32) {
        self.opening -= 1;
        let context = &mut self.context;
        let connection = &mut self.connections[slot as usize];
        context.stats.totals.opened += 1;
        context.stats.totals.open_now += 1;
        let cycle = matches!(context.plan.behaviour, Behaviour::Cycle);
        if !cycle || context.phase == Phase::Measure {
            let span = context.now.saturating_sub(connection.intended);
            record(&mut context.stats.opening, span);
        }
        connection.place = self.open.len();
        self.open.push(slot);
        if cycle {
            connection.send_close(context);
        } else if context.phase >= Phase::Warm {
            self.begin_messages(slot);
        }
    }

    fn not_opened(&mut self) {
        self.opening -= 1;
        self.context.stats.totals.unopened += 1;
    }

    fn begin_messages(&mut self, slot: u32) {
        if let Behaviour::FanIn { .. } = self.context.plan.behaviour {
            self.connections[slot as usize].send_batch(&mut self.context);
        }
        if let Behaviour::Echo { pipeline, rate: None, .. } = self.context.plan.behaviour {
            for _ in 0..pipeline {
                let now = self.context.now;
                self.connections[slot as usize].queue_message(now, &mut self.context);
            }
        }
    }

    /// Takes a connection off the list of open ones.
    fn leave_open(&mut self, slot: u32) {
        let place = self.connections[slot as usize].place;
        if self.open.get(place) != Some(&slot) {
            return;
        }
        self.open.swap_remove(place);
        if let Some(moved) = self.open.get(place) {
            self.connections[*moved as usize].place = place;
        }
        self.context.stats.totals.open_now -= 1;
    }

    fn ended(&mut self, slot: u32, errno: i32) {
        let stage = self.connections[slot as usize].stage;
        let how = if errno == 0 { "ended".into() } else { errno_name(errno) };
        match stage {
            Stage::Draining => self.close(slot),
            Stage::Open => self.lose(slot, format!("{how}, no close frame (1006)").into()),
            stage => {
                let kind = format!("{how} by the server while {stage:?}").to_lowercase();
                self.lose(slot, kind.into());
            }
        }
    }

    /// Counts a failure and closes.
    fn lose(&mut self, slot: u32, kind: Cow<'static, str>) {
        let connection = &self.connections[slot as usize];
        match connection.junk {
            Some(junk) => {
                let span = self.context.now - connection.begun;
                record(&mut self.context.stats.junk(junk.name()).lifetime, span);
            }
            None => {
                if connection.stage < Stage::Open {
                    self.not_opened();
                }
                self.context.stats.fail(&kind);
            }
        }
        self.close(slot);
    }

    /// Counts something odd that is no failure of its own.
    fn note(&mut self, kind: &str) {
        *self.context.stats.failures.entry(kind.to_owned()).or_default() += 1;
    }

    fn close(&mut self, slot: u32) {
        self.leave_open(slot);
        self.connections[slot as usize].stage = Stage::Closing;
        self.ring.close(slot);
    }

    fn flush(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        let busy = matches!(connection.stage, Stage::Free | Stage::Closing);
        if !busy && !connection.out.is_empty() && !self.ring.is_sending(slot) {
            self.ring.send(slot, std::mem::take(&mut connection.out));
        }
    }
}

/// Spreads kinds over connections by their shares, evenly for any count.
fn choose_junk(behaviour: &Behaviour, number: u64) -> Option<JunkKind> {
    let Behaviour::Junk(shares) = behaviour else { return None };
    // Golden-ratio steps visit the unit interval evenly.
    let mut at = (number as f64 * 0.618_033_988_749_895).fract();
    for (kind, share) in shares {
        if at < *share {
            return Some(*kind);
        }
        at -= share;
    }
    shares.last().map(|(kind, _)| *kind)
}

/// An errno as people know it.
pub fn errno_name(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    let hint = match errno {
        libc::EADDRNOTAVAIL => "; out of source ports: raise --sources",
        libc::EINVAL => "; IORING_OP_BIND needs Linux 6.11: try --sources 0",
        libc::ENFILE => "; raise sysctl fs.file-max",
        _ => "",
    };
    format!("{}{hint}", text.split(" (os").next().unwrap_or_default())
}
