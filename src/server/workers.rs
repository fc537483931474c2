//! The worker threads: started, joined, and started again when one panics.
//!
//! What a worker thread runs is behind [`DataPlane`], so that supervision is tested with bodies
//! that panic on demand. A worker's block of counters outlives it, so counters never go back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::auth_client::AuthNumbers;
use super::panics;
use crate::base::memory_pressure::MemoryPressure;
use crate::counters::{Counters, Metric};
use crate::protocol::cause::Cause;
use crate::protocol::revocation::Revoked;
use crate::settings::Settings;
use crate::worker::mailbox::{
    ControlMailbox, MemoryNotice, Plan, Report, WorkerMailbox, WorkerOrder, mailboxes,
};

/// One turn of a worker's loop; false when it has stopped for good.
pub type Body = Box<dyn FnMut() -> bool>;
/// Ends a worker's wait for completions, from another thread.
pub type Wake = Box<dyn Fn() + Send>;

/// What a worker is given when it starts.
pub struct WorkerSpawn {
    /// Its number, `0 <= index < workers`.
    pub index: u16,
    /// The settings of the moment.
    pub settings: Arc<Settings>,
    /// Its block of counters, kept from life to life.
    pub counters: Arc<Counters>,
    /// Its end of the mailboxes.
    pub mailbox: WorkerMailbox,
}

/// A worker that is ready to turn.
pub struct WorkerHandle {
    /// Its loop.
    pub body: Body,
    /// The way to wake it.
    pub wake: Wake,
}

/// Makes workers.
pub trait DataPlane: Send + Sync {
    /// Called on the control thread before workers get these settings: what several of them
    /// share is made ready.
    ///
    /// # Errors
    /// Those of starting a thread.
    fn prepare(&self, settings: &Settings) -> std::io::Result<()> {
        let _ = settings;
        Ok(())
    }

    /// What the service that asks HTTP endpoints does at the moment, if there is one.
    fn decisions(&self) -> Option<&AuthNumbers> {
        None
    }

    /// Makes one; called on the worker's own thread. All that it owns dies with the body.
    ///
    /// # Errors
    /// Why it cannot be made, for people.
    fn launch(&self, spawn: WorkerSpawn) -> Result<WorkerHandle, String>;
}

/// Shortest wait before a worker that died is started again.
pub const RESPAWN_MIN: Duration = Duration::from_millis(100);
/// Longest wait before a worker that keeps dying is started again.
pub const RESPAWN_MAX: Duration = Duration::from_secs(5);
/// A worker that lived this long starts from [`RESPAWN_MIN`] again.
const LIFE_GOOD: Duration = Duration::from_secs(30);
/// Reports taken from one worker in one poll, so that a flood of them cannot hold the control
/// thread.
const REPORTS_PER_POLL: usize = 2048;

/// How a worker's thread ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Stopped,
    Failed(String),
    Panicked,
}

enum Event {
    Up { index: u16, wake: Wake },
    Ended { index: u16, end: End },
}

enum State {
    /// The thread runs; `wake` comes when it is up.
    Running { mailbox: ControlMailbox, wake: Option<Wake>, thread: JoinHandle<()>, since: Instant },
    /// It died and is started again at this time.
    Waiting { until: Instant },
    /// It stopped as it was told.
    Stopped,
}

struct Slot {
    state: State,
    counters: Arc<Counters>,
    heartbeat: Arc<AtomicU64>,
    /// Deaths in a row without a good life between them.
    deaths: u32,
    beat: u64,
    beat_at: Instant,
}

/// What can be seen of one worker from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerStatus {
    /// It runs.
    pub up: bool,
    /// It stopped as it was told and will not come back.
    pub stopped: bool,
    /// Time since its loop last turned.
    pub beat_ago: Duration,
    /// Connections it holds, in whatever stage.
    pub connections: u64,
}

/// Owner of all worker threads. Lives on the control thread.
pub struct Supervisor {
    plane: Arc<dyn DataPlane>,
    plan: Arc<Plan>,
    slots: Vec<Slot>,
    events_in: Sender<Event>,
    events: Receiver<Event>,
    panics: u64,
}

impl Supervisor {
    /// A supervisor of `workers` threads, none of them started.
    pub fn new(
        plane: Arc<dyn DataPlane>,
        settings: Arc<Settings>,
        revoked: Arc<Revoked>,
        workers: u16,
    ) -> Self {
        assert!(workers > 0, "a gateway has at least one worker");
        let (events_in, events) = channel();
        let now = Instant::now();
        let slot = |_| Slot {
            state: State::Waiting { until: now },
            counters: Arc::new(Counters::default()),
            heartbeat: Arc::new(AtomicU64::new(0)),
            deaths: 0,
            beat: 0,
            beat_at: now,
        };
        let slots = (0..workers).map(slot).collect();
        let plan = Plan::new(settings, revoked);
        Supervisor { plane, plan, slots, events_in, events, panics: 0 }
    }

    /// Starts every worker and waits until all are up, at most `patience`.
    ///
    /// # Errors
    /// The number of a worker that did not come up, and why.
    pub fn start(&mut self, patience: Duration) -> Result<(), (u16, String)> {
        let begun = Instant::now();
        self.plane.prepare(&self.plan.settings).map_err(|error| (0, error.to_string()))?;
        for index in 0..self.slots.len() {
            self.spawn(index, begun).map_err(|error| (index as u16, error.to_string()))?;
        }
        while let Some(index) = self.slots.iter().position(|slot| !slot.up()) {
            let left = patience.saturating_sub(begun.elapsed());
            match self.events.recv_timeout(left) {
                Ok(Event::Up { index, wake }) => self.up(index, wake),
                Ok(Event::Ended { index, end }) => {
                    self.slots[usize::from(index)].state = State::Stopped;
                    let reason = match end {
                        End::Failed(reason) => reason,
                        End::Panicked => "it panicked; the log says where".to_owned(),
                        End::Stopped => "it stopped before it was ready".to_owned(),
                    };
                    return Err((index, reason));
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err((index as u16, format!("it was not up after {patience:?}")));
                }
            }
        }
        Ok(())
    }

    /// Does what is due: takes in the ends of threads and every waiting report, starts dead
    /// workers again.
    pub fn poll(&mut self, now: Instant, mut on_report: impl FnMut(u16, Report)) {
        for (index, slot) in self.slots.iter().enumerate() {
            slot.take_reports(index as u16, REPORTS_PER_POLL, &mut on_report);
        }
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::Up { index, wake } => self.up(index, wake),
                Event::Ended { index, end } => self.ended(index, end, now, &mut on_report),
            }
        }
        for index in 0..self.slots.len() {
            self.slots[index].look_at_heartbeat(now);
            if matches!(self.slots[index].state, State::Waiting { until } if until <= now) {
                self.respawn(index, now);
            }
        }
    }

    /// Gives every worker, living or yet to live, new settings.
    pub fn set_settings(&mut self, settings: Arc<Settings>) {
        if let Err(error) = self.plane.prepare(&settings) {
            tracing::error!(%error, "cannot start the thread that asks HTTP endpoints");
        }
        self.update(|plan| plan.settings = settings);
    }

    /// Tells every worker, living or yet to live, which tokens are revoked.
    pub fn set_revoked(&mut self, revoked: Arc<Revoked>) {
        self.update(|plan| plan.revoked = revoked);
    }

    /// Tells every worker how short memory is: when that changed, and each time while it is
    /// short, because then there is free memory to give back.
    pub fn set_pressure(&mut self, pressure: MemoryPressure) {
        let MemoryNotice { pressure: before, round } = self.plan.memory;
        if pressure != before || pressure != MemoryPressure::Clear {
            self.update(|plan| plan.memory = MemoryNotice { pressure, round: round + 1 });
        }
    }

    /// Tells every worker to close its clients over `window` and stop. Workers that are dead
    /// stay dead.
    pub fn drain(&mut self, window: Duration) {
        self.order(WorkerOrder::Drain { window });
    }

    /// Tells every worker to stop immediately.
    pub fn stop(&mut self) {
        self.order(WorkerOrder::Stop);
    }

    /// Makes one worker panic. For tests of supervision.
    pub fn inject_panic(&self, index: u16) {
        if let Some(slot) = self.slots.get(usize::from(index)) {
            slot.publish(&self.plan.changed(|plan| plan.order = WorkerOrder::Panic));
        }
    }

    /// Whether every worker has stopped and none will be started.
    pub fn all_stopped(&self) -> bool {
        self.slots.iter().all(|slot| matches!(slot.state, State::Stopped))
    }

    /// How many workers have panicked since the start.
    pub fn panics(&self) -> u64 {
        self.panics
    }

    /// Each worker's block of counters.
    pub fn counters(&self) -> impl Iterator<Item = &Counters> + Clone {
        self.slots.iter().map(|slot| &*slot.counters)
    }

    /// What the service that asks HTTP endpoints does at the moment, if there is one.
    pub fn decisions(&self) -> Option<&AuthNumbers> {
        self.plane.decisions()
    }

    /// How each worker does.
    pub fn status(&self, now: Instant) -> Vec<WorkerStatus> {
        self.slots.iter().map(|slot| slot.status(now)).collect()
    }

    fn order(&mut self, order: WorkerOrder) {
        self.update(|plan| plan.order = order);
        for slot in &mut self.slots {
            if matches!(slot.state, State::Waiting { .. }) {
                slot.state = State::Stopped;
            }
        }
    }

    fn update(&mut self, change: impl FnOnce(&mut Plan)) {
        self.plan = self.plan.changed(change);
        self.slots.iter().for_each(|slot| slot.publish(&self.plan));
    }

    fn up(&mut self, index: u16, wake_new: Wake) {
        let slot = &mut self.slots[usize::from(index)];
        if let State::Running { wake, .. } = &mut slot.state {
            wake_new();
            *wake = Some(wake_new);
        }
    }

    fn ended(&mut self, index: u16, end: End, now: Instant, on: &mut impl FnMut(u16, Report)) {
        let slot = &mut self.slots[usize::from(index)];
        slot.take_reports(index, usize::MAX, on);
        let State::Running { thread, since, .. } =
            std::mem::replace(&mut slot.state, State::Stopped)
        else {
            unreachable!("only a running worker ends");
        };
        // The thread has sent its last word; it only has to return.
        let _ = thread.join();
        if end == End::Panicked {
            self.panics += 1;
        }
        if end == End::Stopped && self.plan.order != WorkerOrder::Serve {
            return;
        }
        let lost = slot.write_off();
        slot.deaths = if now.duration_since(since) >= LIFE_GOOD { 1 } else { slot.deaths + 1 };
        let delay = respawn_delay(slot.deaths);
        let how = match &end {
            End::Panicked => "it panicked",
            End::Failed(reason) => reason.as_str(),
            End::Stopped => "it stopped without being told to",
        };
        if self.plan.order == WorkerOrder::Serve {
            let wait_ms = delay.as_millis() as u64;
            tracing::error!(
                worker = index,
                reason = how,
                connections_lost = lost,
                wait_ms,
                "a worker died and will be started again"
            );
            slot.state = State::Waiting { until: now + delay };
        } else {
            tracing::error!(
                worker = index,
                reason = how,
                connections_lost = lost,
                "a worker died while the gateway stops"
            );
        }
    }

    fn respawn(&mut self, index: usize, now: Instant) {
        match self.spawn(index, now) {
            Ok(()) => tracing::info!(worker = index, "worker started again"),
            Err(error) => {
                tracing::error!(worker = index, %error, "cannot start the worker's thread");
                let slot = &mut self.slots[index];
                slot.deaths += 1;
                slot.state = State::Waiting { until: now + respawn_delay(slot.deaths) };
            }
        }
    }

    fn spawn(&mut self, index: usize, now: Instant) -> std::io::Result<()> {
        let slot = &mut self.slots[index];
        // The plan is there before the worker's first turn: a token that an earlier life refused
        // stays refused.
        let (mailbox, worker_mailbox) = mailboxes(Arc::clone(&self.plan));
        let spawn = WorkerSpawn {
            index: index as u16,
            settings: Arc::clone(&self.plan.settings),
            counters: Arc::clone(&slot.counters),
            mailbox: worker_mailbox,
        };
        let (plane, events) = (Arc::clone(&self.plane), self.events_in.clone());
        let heartbeat = Arc::clone(&slot.heartbeat);
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || live(&*plane, spawn, &events, &heartbeat))?;
        slot.state = State::Running { mailbox, wake: None, thread, since: now };
        slot.beat_at = now;
        Ok(())
    }
}

impl Slot {
    fn up(&self) -> bool {
        matches!(self.state, State::Running { wake: Some(_), .. })
    }

    fn publish(&self, plan: &Arc<Plan>) {
        let State::Running { mailbox, wake, .. } = &self.state else { return };
        mailbox.publish(Arc::clone(plan));
        if let Some(wake) = wake {
            wake();
        }
    }

    fn take_reports(&self, index: u16, most: usize, on_report: &mut impl FnMut(u16, Report)) {
        let State::Running { mailbox, .. } = &self.state else { return };
        for _ in 0..most {
            let Some(report) = mailbox.report() else { return };
            on_report(index, report);
        }
    }

    fn look_at_heartbeat(&mut self, now: Instant) {
        let beat = self.heartbeat.load(Relaxed);
        if beat != self.beat {
            self.beat = beat;
            self.beat_at = now;
        }
    }

    fn connections(&self) -> u64 {
        STAGES.iter().map(|stage| self.counters.value(*stage)).sum()
    }

    fn status(&self, now: Instant) -> WorkerStatus {
        WorkerStatus {
            up: self.up(),
            stopped: matches!(self.state, State::Stopped),
            beat_ago: now.saturating_duration_since(self.beat_at),
            connections: self.connections(),
        }
    }

    /// Accounts for the connections of a dead worker: each ended, by our fault. The block has no
    /// other writer now.
    fn write_off(&self) -> u64 {
        let lost = self.connections();
        for _ in 0..lost {
            self.counters.closed(Cause::Internal, None);
        }
        self.counters.clear_gauges();
        lost
    }
}

/// The gauges that together count a worker's connections.
pub const STAGES: [Metric; 6] = [
    Metric::StageTls,
    Metric::StageHead,
    Metric::StageAuthenticating,
    Metric::StageOpen,
    Metric::StageRefused,
    Metric::StageClosing,
];

/// How long to wait before the start that follows the `deaths`-th death in a row.
pub fn respawn_delay(deaths: u32) -> Duration {
    let doublings = deaths.saturating_sub(1).min(16);
    (RESPAWN_MIN * (1 << doublings)).min(RESPAWN_MAX)
}

/// The whole life of a worker's thread.
fn live(plane: &dyn DataPlane, spawn: WorkerSpawn, events: &Sender<Event>, heartbeat: &AtomicU64) {
    let index = spawn.index;
    panics::watch_this_thread();
    let life = AssertUnwindSafe(|| {
        let WorkerHandle { mut body, wake } = match plane.launch(spawn) {
            Ok(handle) => handle,
            Err(reason) => return End::Failed(reason),
        };
        // The control thread outlives its workers but for an emergency exit.
        let _ = events.send(Event::Up { index, wake });
        while body() {
            // One writer: a load and a store do.
            heartbeat.store(heartbeat.load(Relaxed).wrapping_add(1), Relaxed);
        }
        End::Stopped
    });
    let end = catch_unwind(life).unwrap_or(End::Panicked);
    let _ = events.send(Event::Ended { index, end });
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU32;

    use super::super::testing;
    use super::*;
    use crate::protocol::revocation::Hasher;
    use crate::worker::mailbox::PlanChange;

    /// What the bodies of a fake data plane do: each life of a worker takes the next entry, the
    /// last one forever.
    #[derive(Clone, Copy)]
    enum Life {
        /// Obey commands.
        Obey,
        /// Pretend to hold this many connections, then panic.
        PanicWith(u64),
        /// Refuse to launch.
        Fail,
    }

    struct FakePlane {
        lives: Mutex<Vec<Life>>,
        launches: AtomicU32,
    }

    impl FakePlane {
        fn new(lives: &[Life]) -> Arc<FakePlane> {
            let lives = lives.iter().rev().copied().collect();
            Arc::new(FakePlane { lives: Mutex::new(lives), launches: AtomicU32::new(0) })
        }
    }

    impl DataPlane for FakePlane {
        fn launch(&self, mut spawn: WorkerSpawn) -> Result<WorkerHandle, String> {
            self.launches.fetch_add(1, Relaxed);
            let mut lives = self.lives.lock().unwrap();
            let life = if lives.len() > 1 { lives.pop().unwrap() } else { lives[0] };
            drop(lives);
            if matches!(life, Life::Fail) {
                return Err("the ring is full of eels".into());
            }
            let body = Box::new(move || {
                if let Life::PanicWith(connections) = life {
                    spawn.counters.add(Metric::Accepted, connections);
                    spawn.counters.add(Metric::StageOpen, connections);
                    spawn.mailbox.report(Report::AcceptExhausted);
                    panic!("planted: with\nnewline");
                }
                std::thread::sleep(Duration::from_millis(1));
                let Some(PlanChange { before, now }) = spawn.mailbox.take_plan() else {
                    return true;
                };
                spawn.counters.set(Metric::QueuedBytes, now.settings.limits.message_max.into());
                spawn.counters.set(Metric::BuffersFree, now.memory.pressure as u64);
                if before.map_or(0, |before| before.memory.round) != now.memory.round {
                    spawn.counters.increment(Metric::Ticks);
                }
                match now.order {
                    WorkerOrder::Serve => true,
                    WorkerOrder::Panic => panic!("ordered"),
                    WorkerOrder::Drain { .. } => !spawn.mailbox.report(Report::Drained),
                    WorkerOrder::Stop => false,
                }
            });
            Ok(WorkerHandle { body, wake: Box::new(|| ()) })
        }
    }

    /// Polls until `done`, at most ten seconds.
    fn poll_until(
        supervisor: &mut Supervisor,
        reports: &mut Vec<Report>,
        mut done: impl FnMut(&Supervisor) -> bool,
    ) {
        let begun = Instant::now();
        while !done(supervisor) {
            assert!(begun.elapsed() < Duration::from_secs(10), "it never came to pass");
            supervisor.poll(Instant::now(), |_, report| reports.push(report));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn revoked() -> Arc<Revoked> {
        Arc::new(Revoked::nothing(Hasher::new(&[1; 32])))
    }

    fn started(lives: &[Life], workers: u16) -> (Supervisor, Arc<FakePlane>) {
        let plane = FakePlane::new(lives);
        let settings = Arc::new(testing::settings());
        let mut supervisor = Supervisor::new(plane.clone(), settings, revoked(), workers);
        supervisor.start(Duration::from_secs(5)).unwrap();
        (supervisor, plane)
    }

    #[test]
    fn a_worker_sees_the_latest_plan_once() {
        let (control, mut worker) = mailboxes(Plan::new(Arc::new(testing::settings()), revoked()));
        let first = worker.take_plan().expect("the plan that it starts with");
        assert!(first.before.is_none() && first.now.order == WorkerOrder::Serve);
        assert!(worker.take_plan().is_none());
        let window = Duration::from_secs(9);
        for order in [WorkerOrder::Drain { window }, WorkerOrder::Stop] {
            control.publish(control.latest().changed(|plan| plan.order = order));
        }
        let last = worker.take_plan().expect("a change");
        assert_eq!((last.now.version, last.now.order), (3, WorkerOrder::Stop));
        assert!(Arc::ptr_eq(&last.before.expect("the first"), &first.now));
        assert!(worker.take_plan().is_none());
    }

    #[test]
    fn a_panic_costs_one_worker_its_connections_and_no_counter_goes_back() {
        let (mut supervisor, plane) = started(&[Life::PanicWith(3), Life::Obey], 1);
        let mut reports = Vec::new();
        poll_until(&mut supervisor, &mut reports, |s| s.panics() == 1);
        let counters = Arc::clone(&supervisor.slots[0].counters);
        assert_eq!(counters.value(Metric::Accepted), 3);
        assert_eq!(counters.value(Metric::StageOpen), 0);
        assert_eq!(counters.closes(Cause::Internal), 3);
        assert!(!supervisor.status(Instant::now())[0].up);
        poll_until(&mut supervisor, &mut reports, |s| s.status(Instant::now())[0].up);
        assert_eq!(plane.launches.load(Relaxed), 2);
        assert_eq!(counters.value(Metric::Accepted), 3);
        assert_eq!(reports, [Report::AcceptExhausted], "reports before the panic are not lost");
        supervisor.stop();
        poll_until(&mut supervisor, &mut reports, Supervisor::all_stopped);
    }

    #[test]
    fn the_other_workers_do_not_notice_a_panic() {
        let (mut supervisor, _plane) = started(&[Life::Obey], 3);
        let mut reports = Vec::new();
        supervisor.inject_panic(1);
        poll_until(&mut supervisor, &mut reports, |s| s.panics() == 1);
        let up = supervisor.status(Instant::now()).iter().map(|w| w.up).collect::<Vec<_>>();
        assert_eq!(up, [true, false, true]);
        poll_until(&mut supervisor, &mut reports, |s| {
            s.status(Instant::now()).iter().all(|worker| worker.up)
        });
        supervisor.drain(Duration::ZERO);
        poll_until(&mut supervisor, &mut reports, Supervisor::all_stopped);
        assert_eq!(reports, [Report::Drained, Report::Drained, Report::Drained]);
    }

    #[test]
    fn a_worker_waiting_for_its_next_life_stays_dead_in_a_drain() {
        let (mut supervisor, plane) = started(&[Life::PanicWith(0), Life::Obey], 1);
        let mut reports = Vec::new();
        poll_until(&mut supervisor, &mut reports, |s| s.panics() == 1);
        supervisor.drain(Duration::from_secs(1));
        assert!(supervisor.all_stopped());
        std::thread::sleep(RESPAWN_MIN * 2);
        supervisor.poll(Instant::now(), |_, _| ());
        assert_eq!(plane.launches.load(Relaxed), 1);
    }

    #[test]
    fn new_settings_reach_the_living_and_the_reborn() {
        let (mut supervisor, _plane) = started(&[Life::Obey], 2);
        let mut reports = Vec::new();
        let mut settings = testing::settings();
        settings.limits.message_max = 77;
        supervisor.set_settings(Arc::new(settings));
        poll_until(&mut supervisor, &mut reports, |s| {
            s.counters().all(|counters| counters.value(Metric::QueuedBytes) == 77)
        });
        assert_eq!(supervisor.plan.settings.limits.message_max, 77);
        supervisor.stop();
        poll_until(&mut supervisor, &mut reports, Supervisor::all_stopped);
    }

    #[test]
    fn a_rung_is_told_again_and_again_while_memory_is_short() {
        let (mut supervisor, _plane) = started(&[Life::Obey], 2);
        let mut reports = Vec::new();
        // pressure -> how often each worker was told of one
        let mut told = 0;
        for (pressure, times) in [
            (MemoryPressure::Clear, 0),
            (MemoryPressure::StopAccepting, 1),
            (MemoryPressure::StopAccepting, 1),
            (MemoryPressure::CloseSlowReaders, 1),
            (MemoryPressure::CloseSlowReaders, 1),
            (MemoryPressure::Clear, 1),
        ] {
            told += times;
            supervisor.set_pressure(pressure);
            poll_until(&mut supervisor, &mut reports, |s| {
                let reached = |c: &Counters| c.value(Metric::BuffersFree) == pressure as u64;
                s.counters().all(|c| reached(c) && c.value(Metric::Ticks) == told)
            });
        }
        supervisor.stop();
        poll_until(&mut supervisor, &mut reports, Supervisor::all_stopped);
    }

    #[test]
    fn a_worker_that_cannot_start_is_reported_with_its_reason() {
        let plane = FakePlane::new(&[Life::Fail]);
        let mut supervisor = Supervisor::new(plane, Arc::new(testing::settings()), revoked(), 1);
        let error = supervisor.start(Duration::from_secs(5)).unwrap_err();
        assert_eq!(error, (0, "the ring is full of eels".to_owned()));
        assert!(supervisor.all_stopped());
    }

    #[test]
    fn the_heartbeat_ages_when_the_loop_hangs() {
        let (mut supervisor, _plane) = started(&[Life::Obey], 1);
        let mut reports = Vec::new();
        supervisor.stop();
        poll_until(&mut supervisor, &mut reports, Supervisor::all_stopped);
        let later = Instant::now() + Duration::from_secs(60);
        assert!(supervisor.status(later)[0].beat_ago >= Duration::from_secs(59));
    }

    #[test]
    fn respawn_delays_double_up_to_the_maximum() {
        let millis = |deaths| respawn_delay(deaths).as_millis();
        let table = [(0, 100), (1, 100), (2, 200), (3, 400), (6, 3200), (7, 5000), (4_000, 5000)];
        for (deaths, expected) in table {
            assert_eq!(millis(deaths), expected, "{deaths}");
        }
    }
}
