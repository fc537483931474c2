//! A set of load threads that are led through the phases of a run.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::kernel;
use crate::plan::{Phase, Plan};
use crate::stats::{Live, Stats, Totals};
use crate::worker::{self, Shared};

/// Running load threads.
pub struct Fleet {
    shared: Arc<Shared>,
    threads: Vec<(Arc<Live>, JoinHandle<Stats>)>,
}

impl Fleet {
    /// Starts a thread per plan.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub fn start(plans: Vec<Plan>) -> Result<Fleet, String> {
        let shared = Shared::new();
        let mut threads = Vec::new();
        for (index, plan) in plans.into_iter().enumerate() {
            let live = Arc::new(Live::default());
            let (mine, watched) = (live.clone(), shared.clone());
            let thread = std::thread::Builder::new()
                .name(format!("load-{}-{index}", plan.group))
                .spawn(move || worker::run(plan, &watched, &mine))
                .map_err(|error| format!("cannot start a load thread: {error}"))?;
            threads.push((live, thread));
        }
        Ok(Fleet { shared, threads })
    }

    /// Moves every thread on.
    pub fn set_phase(&self, phase: Phase) {
        self.shared.set_phase(phase);
    }

    /// The sum of what threads published.
    pub fn totals(&self) -> Totals {
        let mut sum = Totals::default();
        self.threads.iter().for_each(|(live, _)| live.add_to(&mut sum));
        sum
    }

    /// Whether a thread ended by itself: it has an error to tell.
    pub fn broken(&self) -> bool {
        self.threads.iter().any(|(_, thread)| thread.is_finished())
    }

    /// Waits until every one of `wanted` connections is open or has failed. Shows progress.
    /// Returns false when interrupted or broken.
    pub fn await_open(&self, wanted: u64) -> bool {
        self.await_open_until(wanted, || false)
    }

    /// As [`Fleet::await_open`]; ends, as if all were open, once `enough` says so.
    pub fn await_open_until(&self, wanted: u64, mut enough: impl FnMut() -> bool) -> bool {
        let mut shown = Instant::now();
        loop {
            let totals = self.totals();
            if totals.opened + totals.unopened >= wanted {
                return true;
            }
            if kernel::interrupted() || self.broken() {
                return false;
            }
            if shown.elapsed() >= Duration::from_secs(1) {
                shown = Instant::now();
                if enough() {
                    return true;
                }
                eprintln!("  open {} of {wanted}, failed {}", totals.opened, totals.failed);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sleeps; returns false when interrupted or broken before the end.
    pub fn sleep(&self, span: Duration) -> bool {
        let end = Instant::now() + span;
        while Instant::now() < end {
            if kernel::interrupted() || self.broken() {
                return false;
            }
            let left = end.saturating_duration_since(Instant::now());
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
        true
    }

    /// As [`Fleet::sleep`], and shows every ten seconds how many connections are open.
    pub fn hold(&self, span: Duration) -> bool {
        let end = Instant::now() + span;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            if !self.sleep(left.min(Duration::from_secs(10))) {
                return false;
            }
            let left = end.saturating_duration_since(Instant::now()).as_secs();
            if left > 0 {
                eprintln!("  {} open, {left} s to go", self.totals().open_now);
            }
        }
    }

    /// Stops all threads and gives what each counted, in the order of the plans.
    pub fn finish(self) -> Vec<Stats> {
        self.shared.set_phase(Phase::Stop);
        self.threads
            .into_iter()
            .map(|(_, thread)| {
                thread.join().unwrap_or_else(|_| Stats {
                    error: Some("a load thread panicked; see above".to_owned()),
                    ..Stats::default()
                })
            })
            .collect()
    }
}

/// The sum of several threads' counts.
pub fn merge(all: Vec<Stats>) -> Stats {
    let mut sum = Stats::default();
    all.into_iter().for_each(|stats| sum.merge(stats));
    sum
}
