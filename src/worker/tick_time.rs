//! How long the parts of a worker's turn take, on the wall clock: what makes every client of the
//! worker wait. The clock is read in user space, and only after a part that had something to do.

use std::time::Duration;

use crate::base::time::Instant;
use crate::counters::{Counters, Metric};

/// How long a longest time is shown at least; at most twice as long. So a reader that comes once
/// in this time misses none.
const WINDOW: Duration = Duration::from_secs(60);

/// The parts of a turn. What is not named counts to the part after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// From the return of the ring to the next time that it is entered.
    All,
    /// The control thread's plan, and decisions of HTTP endpoints.
    Commands,
    Timers,
    /// What concerns all connections, and what is given up while memory is short.
    Sweep,
    /// TLS handshakes that were put off.
    DeferredTls,
    /// Sends are filled, operations handed over.
    Flush,
    /// Completions are acted on.
    Completions,
}

impl Phase {
    const ALL: [(Phase, Metric); 7] = [
        (Phase::All, Metric::TickLongest),
        (Phase::Commands, Metric::TickLongestCommands),
        (Phase::Timers, Metric::TickLongestTimers),
        (Phase::Sweep, Metric::TickLongestSweep),
        (Phase::DeferredTls, Metric::TickLongestDeferredTls),
        (Phase::Flush, Metric::TickLongestFlush),
        (Phase::Completions, Metric::TickLongestCompletions),
    ];
}

/// The longest times of the window before and of the one under way.
#[derive(Debug)]
pub(super) struct TickTime {
    window_ends: Instant,
    turn_began: Instant,
    part_began: Instant,
    before: [u64; Phase::ALL.len()],
    longest: [u64; Phase::ALL.len()],
}

impl TickTime {
    pub(super) fn new(now: Instant) -> Self {
        TickTime {
            window_ends: now + WINDOW,
            turn_began: now,
            part_began: now,
            before: [0; Phase::ALL.len()],
            longest: [0; Phase::ALL.len()],
        }
    }

    /// The ring has returned.
    pub(super) fn begin(&mut self, now: Instant) {
        (self.turn_began, self.part_began) = (now, now);
    }

    /// A part is over.
    pub(super) fn end(&mut self, phase: Phase, now: Instant, counters: &Counters) {
        self.note(phase, now.since(self.part_began), counters);
        self.part_began = now;
    }

    /// The ring is about to be entered: the turn is over.
    pub(super) fn end_turn(&mut self, now: Instant, counters: &Counters) {
        self.end(Phase::Flush, now, counters);
        self.note(Phase::All, now.since(self.turn_began), counters);
        if now >= self.window_ends {
            self.window_ends = now + WINDOW;
            self.before = std::mem::take(&mut self.longest);
            for ((_, metric), micros) in Phase::ALL.iter().zip(self.before) {
                counters.set(*metric, micros);
            }
        }
    }

    fn note(&mut self, phase: Phase, took: Duration, counters: &Counters) {
        let index = phase as usize;
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if micros > self.longest[index] {
            self.longest[index] = micros;
            counters.set(Phase::ALL[index].1, micros.max(self.before[index]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_in_their_places() {
        for (index, (phase, _)) in Phase::ALL.iter().enumerate() {
            assert_eq!(*phase as usize, index);
        }
    }

    #[test]
    fn the_longest_is_shown_for_one_to_two_windows() {
        let at = |millis: u64| Instant::from_nanos(millis * 1_000_000);
        let counters = Counters::default();
        let mut time = TickTime::new(at(0));
        let mut turn = |began: u64, timers: u64, flush: u64| {
            time.begin(at(began));
            time.end(Phase::Timers, at(began + timers), &counters);
            time.end_turn(at(began + timers + flush), &counters);
            [Metric::TickLongestTimers, Metric::TickLongestFlush, Metric::TickLongest]
                .map(|metric| counters.value(metric) / 1000)
        };
        assert_eq!(turn(0, 5, 1), [5, 1, 6]);
        assert_eq!(turn(10, 2, 3), [5, 3, 6], "each part has its own");
        assert_eq!(turn(59_990, 1, 1), [5, 3, 6]);
        assert_eq!(turn(60_000, 1, 0), [5, 3, 6], "shown for a window more");
        assert_eq!(turn(61_000, 0, 1), [5, 3, 6]);
        assert_eq!(turn(62_000, 9, 0), [9, 3, 9], "a longer one shows immediately");
        assert_eq!(turn(120_001, 0, 0), [9, 1, 9]);
        assert_eq!(turn(180_001, 0, 0), [0, 0, 0]);
    }
}
