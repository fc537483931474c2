//! The control loop: signals, requests, reports, the once-a-second sums, reload and drain.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::Receiver;
use tokio::time::MissedTickBehavior;

use super::admin_sockets::AdminListeners;
use super::auth_client::AuthNumbers;
use super::close_log::CloseLog;
use super::exposition::{self, CIRCUITS, ControlNumbers, Exposition};
use super::files;
use super::logs::{self, CloseLine, LogControl};
use super::memory::MemoryWatch;
use super::names::{FIRST_ANSWER_MAX, Names};
use super::process::{self, ProcessUse};
use super::reload::{self, ReloadError, ReloadOutcome};
use super::revocations::RevocationStore;
use super::signals::{Signal, Signals};
use super::status::{Phase, Status};
use super::workers::Supervisor;
use crate::base::memory_pressure::MemoryPressure;
use crate::base::time::UnixTime;
use crate::linux::process::return_freed_memory;
use crate::settings::Settings;
use crate::settings::load::{Problem, Severity};
use crate::settings::reload::restart_required;
use crate::worker::mailbox::Report;

/// How often reports are taken in and dead workers looked after.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How often counters are summed.
const SUM_INTERVAL: Duration = Duration::from_secs(1);
/// How often /proc is read: counting a great many descriptors takes a while.
const PROCESS_INTERVAL: Duration = Duration::from_secs(5);
/// How long workers may take beyond the drain window.
const DRAIN_GRACE: Duration = Duration::from_secs(5);
/// At the end, how long the last revocations may take to be saved.
const FINISH_MAX: Duration = Duration::from_secs(2);
/// How long the last revocations may take to be saved before another gateway is refused.
const TAKEOVER_SAVE_MAX: Duration = Duration::from_secs(5);
/// How long workers may take to stop immediately.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Something that the gateway is asked to do from outside the control loop.
pub enum ControlRequest {
    /// Read the configuration file again.
    Reload {
        /// Called with the outcome.
        reply: Box<dyn FnOnce(ReloadOutcome) + Send>,
    },
    /// Close every client within this time, then end.
    Drain {
        /// Over how long the closes are spread; `None` is the settings' `deadlines.drain`.
        window: Option<Duration>,
    },
    /// Give up admin port and revocations file to another gateway, then drain.
    Takeover {
        /// Called with the place where this gateway can be asked from then on, or with why not.
        reply: TakeoverReply,
    },
    /// End immediately.
    Stop,
    /// Make one worker panic; for tests of supervision.
    Panic(u16),
}

/// Takes what became of a takeover.
pub type TakeoverReply = Box<dyn FnOnce(Result<PathBuf, String>) + Send>;

/// Everything that the control loop owns.
pub struct Control {
    /// The workers.
    pub supervisor: Supervisor,
    /// The settings in use.
    pub settings: Arc<Settings>,
    /// Where they came from, for a reload.
    pub config_path: Option<PathBuf>,
    /// What the admin endpoints show.
    pub status: Rc<RefCell<Status>>,
    /// What `/metrics` shows.
    pub exposition: Rc<RefCell<Exposition>>,
    /// The way to change the log level, when logging is the gateway's own.
    pub logs: Option<LogControl>,
    /// The file of the close log, if there is one.
    pub close_log: Option<CloseLog>,
    /// Who must not be let in.
    pub revocations: Rc<RefCell<RevocationStore>>,
    /// The admin side's listeners.
    pub admin: AdminListeners,
    /// What the names of endpoints stand for.
    pub names: Names,
    /// What is measured of the memory.
    pub memory: MemoryWatch,
    /// Bookkeeping.
    pub stats: ControlStats,
}

/// Numbers and times that the control loop keeps.
pub struct ControlStats {
    reloads_ok: u64,
    reloads_refused: u64,
    settings_hash: u64,
    settings_loaded: u64,
    /// Refused revocations that were told of.
    revocations_refused: u64,
    process: ProcessUse,
    process_at: Option<Instant>,
    summed_at: Instant,
    /// When the workers are to begin a drain, and its window.
    drain_at: Option<(Instant, Duration)>,
    /// A takeover that waits for the last revocations to be saved, and since when.
    takeover: Option<(TakeoverReply, Instant)>,
    /// When a drain is cut short by a stop, and when a stop is given up.
    stop_at: Option<Instant>,
    abandon_at: Option<Instant>,
}

impl ControlStats {
    /// Fresh stats for a gateway that starts at `now` with the settings of this hash.
    pub fn new(settings_hash: u64, now: Instant) -> ControlStats {
        ControlStats {
            reloads_ok: 0,
            reloads_refused: 0,
            settings_hash,
            settings_loaded: unix_ms() / 1000,
            revocations_refused: 0,
            process: ProcessUse::default(),
            process_at: None,
            summed_at: now,
            drain_at: None,
            takeover: None,
            stop_at: None,
            abandon_at: None,
        }
    }
}

impl Control {
    /// Runs until every worker has stopped after a request or a signal to end.
    pub async fn run(
        mut self,
        mut requests: Receiver<ControlRequest>,
        mut signals: Option<Signals>,
    ) {
        let mut tick = tokio::time::interval(POLL_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.sum(Instant::now());
        while !self.ended(Instant::now()) {
            tokio::select! {
                _ = tick.tick() => self.poll(Instant::now()),
                signal = Signals::next(&mut signals) => self.handle_signal(signal),
                Some(request) = requests.recv() => self.handle(request),
            }
        }
        self.poll(Instant::now());
        self.sum(Instant::now());
        finish(&self.revocations).await;
        if let Some(close_log) = self.close_log.take() {
            close_log.finish().await;
        }
        tracing::info!("stopped");
    }

    fn handle(&mut self, request: ControlRequest) {
        match request {
            ControlRequest::Reload { reply } => reply(self.reload()),
            ControlRequest::Drain { window } => {
                self.drain(window.unwrap_or(self.settings.deadlines.drain));
            }
            ControlRequest::Takeover { reply } => self.take_over(reply),
            ControlRequest::Stop => self.stop(),
            ControlRequest::Panic(worker) => self.supervisor.inject_panic(worker),
        }
    }

    fn handle_signal(&mut self, signal: Signal) {
        match signal {
            Signal::Reload => drop(self.reload()),
            Signal::Reopen => self.reopen_files(),
            Signal::End => self.end(self.settings.deadlines.drain),
            Signal::Ignored(number) => tracing::info!(number, "signal ignored"),
        }
    }

    fn reopen_files(&self) {
        if let Some(close_log) = &self.close_log {
            tracing::info!("reopening the close log");
            close_log.reopen();
        }
    }

    /// The first request to end drains, the second stops.
    fn end(&mut self, window: Duration) {
        if self.phase() == Phase::Serving { self.drain(window) } else { self.stop() }
    }

    fn drain(&mut self, window: Duration) {
        self.drain_after(self.settings.gateway.drain_delay, window);
    }

    /// Says so on `/readyz` now, and has the workers drain after the delay.
    fn drain_after(&mut self, delay: Duration, window: Duration) {
        if self.phase() != Phase::Serving {
            return;
        }
        let (delay_ms, window_ms) = (delay.as_millis() as u64, window.as_millis() as u64);
        tracing::info!(delay_ms, window_ms, "draining");
        self.status.borrow_mut().phase = Phase::Draining;
        let now = Instant::now();
        self.stats.drain_at = Some((now + delay, window));
        self.stats.stop_at = Some(now + delay + window + DRAIN_GRACE);
        self.begin_due_drain(now);
    }

    fn begin_due_drain(&mut self, now: Instant) {
        if let Some((_, window)) = self.stats.drain_at.take_if(|(at, _)| *at <= now) {
            self.supervisor.drain(window);
        }
    }

    fn take_over(&mut self, reply: TakeoverReply) {
        if self.phase() != Phase::Serving || self.stats.takeover.is_some() {
            return reply(Err("the gateway is ending already".into()));
        }
        self.stats.takeover = Some((reply, Instant::now()));
        self.advance_takeover(Instant::now());
    }

    /// Makes room for another gateway as soon as the file of revocations says all that this one
    /// knows: from then on the other one writes it.
    fn advance_takeover(&mut self, now: Instant) {
        let Some((reply, since)) = self.stats.takeover.take() else { return };
        if self.phase() != Phase::Serving {
            return reply(Err("the gateway is ending already".into()));
        }
        if !self.revocations.borrow().can_give_up_file() {
            if now.duration_since(since) >= TAKEOVER_SAVE_MAX {
                return reply(Err("the revocations cannot be saved; the log says why".into()));
            }
            self.stats.takeover = Some((reply, since));
            return;
        }
        let socket = self.admin.give_up();
        if let Ok(socket) = &socket {
            self.revocations.borrow_mut().give_up_file();
            tracing::info!(socket = %socket.display(), "another gateway takes over");
            // The other one answers on the admin port: no load balancer need be waited for.
            self.drain_after(Duration::ZERO, self.settings.deadlines.drain);
        }
        reply(socket);
    }

    fn stop(&mut self) {
        if self.phase() == Phase::Stopping {
            return;
        }
        tracing::info!("stopping immediately");
        self.status.borrow_mut().phase = Phase::Stopping;
        self.stats.abandon_at = Some(Instant::now() + STOP_GRACE);
        self.supervisor.stop();
    }

    fn ended(&self, now: Instant) -> bool {
        if !matches!(self.phase(), Phase::Draining | Phase::Stopping) {
            return false;
        }
        let abandoned = self.stats.abandon_at.is_some_and(|at| at <= now);
        if abandoned {
            tracing::error!("a worker did not stop in time and is abandoned");
        }
        abandoned || self.supervisor.all_stopped()
    }

    fn poll(&mut self, now: Instant) {
        let (settings, close_log) = (&self.settings, self.close_log.as_ref());
        let mut revocations = self.revocations.borrow_mut();
        self.supervisor.poll(now, |worker, report| match report {
            Report::Revoke(revocation) => {
                // A refusal is counted, and told of once a second.
                let _ = revocations.insert(revocation, UnixTime::from_millis(unix_ms()));
            }
            report => take(worker, &report, settings, close_log),
        });
        if let Some(revoked) = revocations.take_update() {
            self.supervisor.set_revoked(revoked);
        }
        revocations.advance(now);
        drop(revocations);
        if self.names.advance(now) {
            self.supervisor.set_endpoints(Arc::clone(self.names.plan()));
        }
        self.advance_takeover(now);
        self.begin_due_drain(now);
        if self.phase() == Phase::Draining && self.stats.stop_at.is_some_and(|at| at <= now) {
            tracing::warn!("the drain took too long");
            self.stop();
        }
        let mut status = self.status.borrow_mut();
        status.workers = self.supervisor.status(now);
        status.panics = self.supervisor.panics();
        drop(status);
        if now.duration_since(self.stats.summed_at) >= SUM_INTERVAL {
            self.sum(now);
        }
    }

    fn sum(&mut self, now: Instant) {
        self.look_at_memory();
        let stats = &mut self.stats;
        if stats.process_at.is_none_or(|at| now.duration_since(at) >= PROCESS_INTERVAL) {
            stats.process = process::read();
            stats.process_at = Some(now);
        }
        let elapsed = now.duration_since(stats.summed_at);
        stats.summed_at = now;
        let mut revocations = self.revocations.borrow_mut();
        revocations.lapse(UnixTime::from_millis(unix_ms()));
        let refused = revocations.refused();
        if refused > stats.revocations_refused {
            tracing::error!(
                refused = refused - stats.revocations_refused,
                "revocations refused: raise limits.revocations_max, or have entries lapse earlier"
            );
            stats.revocations_refused = refused;
        }
        let mut status = self.status.borrow_mut();
        status.workers = self.supervisor.status(now);
        status.take_sums(exposition::sums(self.supervisor.counters()), elapsed);
        let decisions = self.supervisor.decisions();
        let numbers = ControlNumbers {
            workers: status.workers.len() as u64,
            workers_alive: status.workers_alive() as u64,
            panics: self.supervisor.panics(),
            reloads_ok: stats.reloads_ok,
            reloads_refused: stats.reloads_refused,
            settings_hash: stats.settings_hash,
            settings_loaded: stats.settings_loaded,
            close_log_dropped: self.close_log.as_ref().map_or(0, CloseLog::dropped),
            revocations: revocations.held() as u64,
            revocations_refused: refused,
            revocation_save_failures: revocations.save_failures(),
            resolve_failures: self.names.failures(),
            draining: status.phase == Phase::Draining,
            memory_rung: self.memory.pressure() as u64,
            memory_used: self.memory.used(),
            memory_budget: self.memory.budget(),
            verdict_requests: decisions.map_or(0, AuthNumbers::in_flight),
            circuits: CIRCUITS.map(|state| decisions.map_or(0, |v| v.circuits(state))),
            process: stats.process,
        };
        let listeners = &self.settings.listeners;
        self.exposition.borrow_mut().publish(self.supervisor.counters(), &numbers, listeners);
    }

    fn look_at_memory(&mut self) {
        let before = self.memory.pressure();
        let pressure = self.memory.look();
        if pressure != MemoryPressure::Clear {
            // Otherwise what clients held stays resident after they gave it up, and no
            // client is ever accepted again.
            return_freed_memory();
        }
        if pressure != before {
            let (used, budget) = (self.memory.used(), self.memory.budget());
            tracing::warn!(?pressure, ?before, used, budget, "memory pressure changed");
        }
        self.status.borrow_mut().memory_short = pressure != MemoryPressure::Clear;
        self.supervisor.set_pressure(pressure);
    }

    fn reload(&mut self) -> ReloadOutcome {
        let outcome = self.try_reload();
        match &outcome {
            Ok(warnings) => {
                self.stats.reloads_ok += 1;
                tracing::info!(warnings = warnings.len(), "settings reloaded");
                for warning in warnings {
                    tracing::warn!(warning, "reload");
                }
            }
            Err(error) => {
                let problems = error.problems();
                self.stats.reloads_refused += 1;
                tracing::error!(problems = problems.len(), "reload refused; the old settings stay");
                for problem in problems {
                    tracing::error!(problem, "reload");
                }
            }
        }
        outcome
    }

    fn try_reload(&mut self) -> ReloadOutcome {
        // Rotation of the close log rides on SIGHUP, whatever the file says.
        self.reopen_files();
        let refuse = |why: &str| Err(ReloadError::Conflict(vec![why.to_owned()]));
        if self.phase() != Phase::Serving {
            return refuse("the gateway is ending");
        }
        let Some(path) = self.config_path.clone() else {
            return refuse("the settings of this gateway came from no file");
        };
        // Warnings are for a file that takes effect; `check` shows all of a broken one.
        let errors = |problems: Vec<Problem>| {
            problems.into_iter().filter(|p| p.severity == Severity::Error).collect()
        };
        let loaded = files::load_file(&path)
            .map(|loaded| (loaded.settings, loaded.warnings))
            .map_err(errors);
        let changes = |new: &Settings| restart_required(&self.settings, new);
        let (settings, warnings) = reload::judge(loaded, changes)?;
        if let Some(logs) = &self.logs
            && let Err(error) = logs.set_level(&settings.gateway.log_level)
        {
            return Err(ReloadError::Invalid(vec![error.to_string()]));
        }
        self.revocations.borrow_mut().set_max(settings.limits.revocations_max as usize);
        self.settings = Arc::new(settings);
        self.names.follow(&self.settings, FIRST_ANSWER_MAX);
        let endpoints = Arc::clone(self.names.plan());
        self.supervisor.set_settings(Arc::clone(&self.settings), endpoints);
        self.status.borrow_mut().ready_without_backend =
            self.settings.gateway.ready_without_backend;
        self.stats.settings_hash = self.settings.hash;
        self.stats.settings_loaded = unix_ms() / 1000;
        Ok(warnings)
    }

    fn phase(&self) -> Phase {
        self.status.borrow().phase
    }
}

/// One worker's report becomes a line.
fn take(worker: u16, report: &Report, settings: &Settings, close_log: Option<&CloseLog>) {
    match report {
        Report::Closed(record) => {
            let line = CloseLine::new(worker, record, settings);
            match close_log {
                Some(file) => file.append(line.json(unix_ms())),
                None => line.trace(),
            }
        }
        Report::LinkReady { target } => {
            let (backend, endpoint) = (&*target.backend, target.endpoint());
            tracing::info!(worker, backend, endpoint, "link ready");
        }
        Report::LinkDown { target, reason } => {
            let (backend, endpoint) = (&*target.backend, target.endpoint());
            tracing::warn!(worker, backend, endpoint, reason, "link down");
        }
        Report::ServerRests { target, reason } => {
            let (backend, endpoint) = (&*target.backend, target.endpoint());
            tracing::warn!(worker, backend, endpoint, reason, "WebSocket server rests");
        }
        Report::ServerAnswered { target, status, advice } => {
            let (backend, endpoint) = (&*target.backend, target.endpoint());
            tracing::warn!(worker, backend, endpoint, status, advice, "odd answer of a server");
        }
        Report::LinkWarning { target, warning } => {
            let (backend, endpoint) = (&*target.backend, target.endpoint());
            tracing::warn!(worker, backend, endpoint, reason = %warning, "link in trouble");
        }
        Report::OriginRefused { route, peer, origin } => {
            let route = route.and_then(|index| settings.routes.get(usize::from(index)));
            tracing::warn!(
                worker,
                route = route.map(|route| route.name.as_str()),
                peer = peer.as_ref().map(tracing::field::display),
                origin = logs::escaped(origin),
                "Origin refused: if this page is yours, add it to the route's origins"
            );
        }
        Report::AcceptExhausted => tracing::error!(
            worker,
            "out of descriptors or memory on accept; see \"Limits\" in docs/operating.md"
        ),
        Report::Revoke(_) => unreachable!("the store takes these"),
        Report::Drained => tracing::info!(worker, "drained"),
    }
}

/// Lets the last revocations reach their file. Only admin connections still use the store
/// by now, and they wait.
async fn finish(revocations: &RefCell<RevocationStore>) {
    let deadline = Instant::now() + FINISH_MAX;
    while !revocations.borrow().is_saved() && Instant::now() < deadline {
        revocations.borrow_mut().advance(Instant::now());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The wall clock, in milliseconds since 1970.
pub(super) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
