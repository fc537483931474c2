//! What one load thread counts, and the few numbers that others may watch while it runs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;

/// Latencies in nanoseconds, three significant digits, up to an hour.
pub type Latencies = Histogram<u64>;

/// An empty histogram.
pub fn latencies() -> Latencies {
    Histogram::new_with_bounds(1000, 3_600_000_000_000, 3).expect("constant bounds are valid")
}

/// Counters that a running load thread publishes once per turn of its loop.
#[derive(Default)]
pub struct Live {
    /// Connections begun.
    pub started: AtomicU64,
    /// Connections that became open.
    pub opened: AtomicU64,
    /// Connections that failed before they were open, or were lost.
    pub failed: AtomicU64,
    /// Those of them that failed before they were open.
    pub unopened: AtomicU64,
    /// Connections that ended as they should.
    pub finished: AtomicU64,
    /// Connections open now.
    pub open_now: AtomicU64,
    /// Messages that came back, whole and equal.
    pub messages: AtomicU64,
}

/// A reading of one or the sum of several [`Live`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// See [`Live`].
    pub started: u64,
    /// See [`Live`].
    pub opened: u64,
    /// See [`Live`].
    pub failed: u64,
    /// See [`Live`].
    pub unopened: u64,
    /// See [`Live`].
    pub finished: u64,
    /// See [`Live`].
    pub open_now: u64,
    /// See [`Live`].
    pub messages: u64,
}

impl Live {
    /// Makes the numbers visible to others.
    pub fn publish(&self, totals: &Totals) {
        self.started.store(totals.started, Ordering::Relaxed);
        self.opened.store(totals.opened, Ordering::Relaxed);
        self.failed.store(totals.failed, Ordering::Relaxed);
        self.unopened.store(totals.unopened, Ordering::Relaxed);
        self.finished.store(totals.finished, Ordering::Relaxed);
        self.open_now.store(totals.open_now, Ordering::Relaxed);
        self.messages.store(totals.messages, Ordering::Relaxed);
    }

    /// Adds the published numbers to `sum`.
    pub fn add_to(&self, sum: &mut Totals) {
        sum.started += self.started.load(Ordering::Relaxed);
        sum.opened += self.opened.load(Ordering::Relaxed);
        sum.failed += self.failed.load(Ordering::Relaxed);
        sum.unopened += self.unopened.load(Ordering::Relaxed);
        sum.finished += self.finished.load(Ordering::Relaxed);
        sum.open_now += self.open_now.load(Ordering::Relaxed);
        sum.messages += self.messages.load(Ordering::Relaxed);
    }
}

/// What happened to one kind of junk connection.
#[derive(Clone)]
pub struct JunkStats {
    /// How many were begun.
    pub started: u64,
    /// From connect to the server's end of it, nanoseconds.
    pub lifetime: Latencies,
    /// Given up by us while the server still held them.
    pub abandoned: u64,
}

/// All that one load thread knows at its end.
pub struct Stats {
    /// The numbers published while running.
    pub totals: Totals,
    /// Message round trips inside the measured window.
    pub round_trips: Latencies,
    /// From intended start to open, inside the measured window.
    pub opening: Latencies,
    /// From intended start to the end of a whole open-and-close cycle.
    pub cycle: Latencies,
    /// How late our own sends and connects left, against the intended times.
    pub lateness: Latencies,
    /// Failures by kind.
    pub failures: BTreeMap<String, u64>,
    /// Close codes received, with the first reason seen for each.
    pub closes: BTreeMap<u16, (u64, String)>,
    /// The first message that was not the expected echo.
    pub sample: Option<String>,
    /// Junk connections by kind.
    pub junk: BTreeMap<&'static str, JunkStats>,
    /// Pings answered.
    pub pings: u64,
    /// TLS handshakes that ended well.
    pub handshakes: u64,
    /// Those of them that resumed an earlier session.
    pub resumed: u64,
    /// Messages still owed by the server at the end.
    pub unanswered: u64,
    /// Why the thread stopped before its time.
    pub error: Option<String>,
}

impl Default for Stats {
    fn default() -> Self {
        Stats {
            totals: Totals::default(),
            round_trips: latencies(),
            opening: latencies(),
            cycle: latencies(),
            lateness: latencies(),
            failures: BTreeMap::new(),
            closes: BTreeMap::new(),
            sample: None,
            junk: BTreeMap::new(),
            pings: 0,
            handshakes: 0,
            resumed: 0,
            unanswered: 0,
            error: None,
        }
    }
}

impl Stats {
    /// Counts a failure.
    pub fn fail(&mut self, kind: &str) {
        self.totals.failed += 1;
        // A server that invents failures must not fill our memory.
        let known = self.failures.contains_key(kind) || self.failures.len() < 100;
        let kind = if known { kind } else { "others" };
        *self.failures.entry(kind.to_owned()).or_default() += 1;
    }

    /// Counts a close frame.
    pub fn close(&mut self, code: u16, reason: &str) {
        let entry = self.closes.entry(code).or_insert_with(|| (0, reason.to_owned()));
        entry.0 += 1;
    }

    /// The counts for a kind of junk.
    pub fn junk(&mut self, kind: &'static str) -> &mut JunkStats {
        self.junk.entry(kind).or_insert_with(|| JunkStats {
            started: 0,
            lifetime: latencies(),
            abandoned: 0,
        })
    }

    /// Adds another thread's counts.
    pub fn merge(&mut self, other: Stats) {
        let (sum, more) = (&mut self.totals, other.totals);
        sum.started += more.started;
        sum.opened += more.opened;
        sum.failed += more.failed;
        sum.unopened += more.unopened;
        sum.finished += more.finished;
        sum.open_now += more.open_now;
        sum.messages += more.messages;
        let pairs = [
            (&mut self.round_trips, &other.round_trips),
            (&mut self.opening, &other.opening),
            (&mut self.cycle, &other.cycle),
            (&mut self.lateness, &other.lateness),
        ];
        for (mine, theirs) in pairs {
            mine.add(theirs).expect("histograms have equal bounds");
        }
        for (kind, count) in other.failures {
            *self.failures.entry(kind).or_default() += count;
        }
        for (code, (count, reason)) in other.closes {
            self.closes.entry(code).or_insert((0, reason)).0 += count;
        }
        for (kind, theirs) in other.junk {
            let mine = self.junk(kind);
            mine.started += theirs.started;
            mine.abandoned += theirs.abandoned;
            mine.lifetime.add(&theirs.lifetime).expect("histograms have equal bounds");
        }
        self.pings += other.pings;
        self.handshakes += other.handshakes;
        self.resumed += other.resumed;
        self.unanswered += other.unanswered;
        self.sample = self.sample.take().or(other.sample);
        self.error = self.error.take().or(other.error);
    }
}

/// Records a span, held inside the histogram's bounds.
pub fn record(histogram: &mut Latencies, nanoseconds: u64) {
    histogram.saturating_record(nanoseconds.max(1));
}
