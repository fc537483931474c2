//! Many seeds at once: one world to a thread, as many threads as there are cores.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use portcullis::sim::{Options, Outcome, run};

use crate::shrink::{Shrunk, shrink};

/// How often a run that goes on for long says how it stands.
const PROGRESS: Duration = Duration::from_secs(10);
/// Failures that are made smaller; of the others only the seed is told.
const SHRUNK_MAX: usize = 3;

/// What came of many seeds.
#[derive(Default)]
pub struct Totals {
    pub seeds: u64,
    pub failed: Vec<(u64, String)>,
    pub faults: BTreeMap<&'static str, u64>,
    pub up: u64,
    pub down: u64,
    pub completed: u64,
    pub refused: u64,
    pub sessions: u64,
    pub deadlines: u64,
    pub millis: u64,
}

impl Totals {
    fn add(&mut self, seed: u64, outcome: Outcome) {
        self.seeds += 1;
        if let Some(failure) = outcome.failure {
            self.failed.push((seed, failure));
        }
        for (label, count) in outcome.faults {
            *self.faults.entry(label).or_default() += count;
        }
        self.up += outcome.messages_up;
        self.down += outcome.messages_down;
        self.completed += outcome.completed;
        self.refused += outcome.refused;
        self.sessions += outcome.sessions;
        self.deadlines += outcome.deadlines;
        self.millis += outcome.millis;
    }

    /// The fault that fired least, and how often.
    pub fn rarest(&self) -> (&'static str, u64) {
        let rarest = self.faults.iter().min_by_key(|(_, count)| **count);
        rarest.map_or(("none", 0), |(label, count)| (*label, *count))
    }

    /// Everything, one line each.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let Totals { seeds, up, down, completed, refused, sessions, deadlines, millis, .. } = self;
        let (failed, simulated) = (self.failed.len(), millis / 1000);
        let fired: u64 = self.faults.values().sum();
        let _ = writeln!(text, "{seeds} seeds, {failed} failed; {simulated} s of simulated time");
        let _ = writeln!(text, "messages up {up}, down {down}; sessions {sessions}");
        let _ = writeln!(text, "exchanges completed {completed}, clients refused {refused}");
        let _ = writeln!(text, "deadlines that came due {deadlines}; faults fired {fired}");
        for (label, count) in &self.faults {
            let _ = writeln!(text, "{label:<24}{count:>10}");
        }
        text
    }
}

/// Runs `count` seeds from `first` on (all there are, if `None`), and tells of failures as they
/// come.
pub fn run_seeds(first: u64, count: Option<u64>, options: &Options) -> Totals {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (totals, next) = (Mutex::new(Totals::default()), AtomicU64::new(0));
    let (shrunk, over, stop) = (Mutex::new(0), AtomicBool::new(false), AtomicBool::new(false));
    let until_failure = std::env::var_os("PORTCULLIS_UNTIL_FAILURE").is_some();
    let begun = Instant::now();
    let work = || {
        loop {
            let index = next.fetch_add(1, Relaxed);
            if count.is_some_and(|count| index >= count) || stop.load(Relaxed) {
                return;
            }
            let seed = first.wrapping_add(index);
            let outcome = run(seed, options);
            // What `tests/mutations/run` wants to know is told by the first failure.
            if let Some(failure) = &outcome.failure {
                println!("seed {seed} FAILED: {}", failure.lines().next().unwrap_or_default());
                let mut shrunk = shrunk.lock().expect("no thread panics");
                if until_failure {
                    stop.store(true, Relaxed);
                } else if count.is_none() || *shrunk < SHRUNK_MAX {
                    *shrunk += 1;
                    tell(seed, &shrink(seed, options, failure));
                }
            }
            totals.lock().expect("no thread panics").add(seed, outcome);
        }
    };
    std::thread::scope(|scope| {
        let told = scope.spawn(|| {
            let mut at = begun;
            while !over.load(Relaxed) {
                std::thread::park_timeout(Duration::from_secs(1));
                if at.elapsed() >= PROGRESS {
                    at = Instant::now();
                    progress(&totals.lock().expect("no thread panics"), begun);
                }
            }
        });
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().for_each(|worker| worker.join().expect("a world panicked"));
        over.store(true, Relaxed);
        told.thread().unpark();
    });
    let mut totals = totals.into_inner().expect("no thread panics");
    totals.failed.sort();
    totals
}

/// A failure, made smaller, with the command that shows it again.
pub fn tell(seed: u64, shrunk: &Shrunk) {
    println!("seed {seed}, made smaller in {} runs: {}", shrunk.runs, shrunk.failure);
    println!("replay: {}", replay(seed, shrunk));
}

/// The command that runs what is left of a seed's world.
pub fn replay(seed: u64, shrunk: &Shrunk) -> String {
    let keep = match shrunk.keep.to_string() {
        empty if empty.is_empty() => String::new(),
        keep => format!("PORTCULLIS_KEEP={keep} "),
    };
    format!("PORTCULLIS_SEED={seed} {keep}cargo test --test simulation -- --nocapture")
}

fn progress(totals: &Totals, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    let (seeds, failed) = (totals.seeds, totals.failed.len());
    let (rarest, least) = totals.rarest();
    let fired: u64 = totals.faults.values().sum();
    println!(
        "{seeds} seeds in {seconds:.0} s, {:.1}/s; {failed} failed; {fired} faults fired, the \
         rarest {rarest}: {least}",
        seeds as f64 / seconds
    );
}
