//! What a comparison measured: kept as JSON, summed up as medians with their spread, judged
//! against the figures to reach and against an earlier run, shown as text and as one page.
//!
//! Nothing here touches a socket, a process or a clock, so `tests/harness.rs` tests it all.

pub mod baseline;
pub mod figures;
pub mod page;
pub mod plots;
pub mod table;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Raised when an older file would be misread.
pub const FORMAT: u32 = 1;
/// The peer that the others' CPU is divided by.
pub const BARE: &str = "bare-ring";
/// The gateway over its framed link.
pub const GATEWAY: &str = "gateway";
/// With more than this part of a core in others' hands a run is not quiet.
pub const FOREIGN_MAX: f64 = 0.10;

/// Everything of one comparison.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`FORMAT`] of the program that wrote it.
    pub format: u32,
    /// When it began, seconds since 1970.
    pub began_s: u64,
    /// The options that were given.
    pub command: String,
    /// What it ran on.
    pub machine: Machine,
    /// Short runs: fit to see that everything works, hardly to be quoted.
    pub quick: bool,
    /// Whether it reached its end; otherwise it holds what was measured before.
    pub complete: bool,
    /// What was measured, in order.
    pub cases: Vec<Case>,
    /// Peers that could not be measured at all, and how to remedy that.
    pub missing: Vec<Missing>,
}

/// What it ran on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// Cores that may be used.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
    /// Memory, bytes.
    pub memory: u64,
    /// Versions of the peers, by name.
    pub versions: BTreeMap<String, String>,
}

/// Something that was not measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// The peer, or a part of the work.
    pub what: String,
    /// Why not, and what to do.
    pub why: String,
}

/// One kind of work, given to several peers in turn.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// For files and options, as `echo-64-1000`.
    pub id: String,
    /// The scenario that it belongs to, as `echo`.
    pub scenario: String,
    /// For people.
    pub title: String,
    /// What an event is: "message", "connection". CPU is divided by these.
    pub event: String,
    /// Every measurement.
    pub runs: Vec<Run>,
    /// Peers that this case leaves out, and why.
    pub missing: Vec<Missing>,
}

/// One peer in one round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Who was measured.
    pub peer: String,
    /// Counts from 1.
    pub round: u32,
    /// By the names of [`METRICS`].
    pub values: BTreeMap<String, f64>,
    /// Which side was saturated.
    pub limit: String,
    /// Cores that other programs had meanwhile.
    pub foreign: f64,
    /// What went wrong; empty when nothing did.
    pub faults: Vec<String>,
}

/// How a value is judged against an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// Divided by the bare echo's of the same case: holds on another machine, too.
    AgainstBare,
    /// As it is: bytes are the same everywhere.
    AsItIs,
    /// Shown only: it depends on the machine's hour.
    Not,
}

/// A named value.
pub struct Metric {
    /// Its name in files.
    pub id: &'static str,
    /// For people.
    pub label: &'static str,
    /// Behind the number.
    pub unit: &'static str,
    /// Whether and how a baseline judges it.
    pub judged: Judged,
}

const fn metric(
    id: &'static str,
    label: &'static str,
    unit: &'static str,
    judged: Judged,
) -> Metric {
    Metric { id, label, unit, judged }
}

/// Every value that a run may have, in the order of the tables.
pub const METRICS: &[Metric] = &[
    metric("server_cpu_us", "server CPU each", "µs", Judged::AgainstBare),
    metric("rate", "rate", "/s", Judged::Not),
    metric("p50_ms", "p50", "ms", Judged::Not),
    metric("p90_ms", "p90", "ms", Judged::Not),
    metric("p99_ms", "p99", "ms", Judged::Not),
    metric("p999_ms", "p99.9", "ms", Judged::Not),
    metric("late_p99_ms", "own lateness p99", "ms", Judged::Not),
    metric("user_bytes", "user memory each", "B", Judged::AsItIs),
    metric("resident_bytes", "resident each", "B", Judged::Not),
    metric("kernel_bytes", "kernel memory each, all ends", "B", Judged::Not),
    metric("rest_cpu_us", "CPU at rest, each and second", "µs", Judged::Not),
    metric("resumed_percent", "sessions resumed", "%", Judged::Not),
    metric("connections", "connections", "", Judged::Not),
    metric("success_percent", "honest connects that succeeded", "%", Judged::Not),
    metric("disconnected", "established that were lost", "", Judged::Not),
    metric("lost", "messages lost", "", Judged::Not),
    metric("oldest_s", "oldest junk socket", "s", Judged::Not),
    metric("recovered_s", "junk gone after", "s", Judged::Not),
    metric("junk_rate", "junk connects", "/s", Judged::Not),
    metric("peak_bytes", "resident at most", "B", Judged::Not),
    metric("server_busy", "busiest server thread", "%", Judged::Not),
    metric("client_busy", "busiest client thread", "%", Judged::Not),
    metric("client_cpu_us", "client CPU each", "µs", Judged::Not),
];

/// A peer's value in a case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The middle of the runs.
    pub median: f64,
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
    /// How many runs.
    pub runs: usize,
    /// Whether no run had much of its cores taken by others.
    pub quiet: bool,
}

impl Summary {
    /// Sums values up; `None` for none.
    pub fn of(values: &[f64], quiet: bool) -> Option<Summary> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        };
        Some(Summary { median, low, high, runs: sorted.len(), quiet })
    }
}

impl Run {
    /// Whether other programs left the cores alone.
    pub fn quiet(&self) -> bool {
        self.foreign <= FOREIGN_MAX
    }
}

impl Case {
    /// Peers in the order in which they were first measured.
    pub fn peers(&self) -> Vec<&str> {
        let mut peers: Vec<&str> = Vec::new();
        for run in &self.runs {
            if !peers.contains(&run.peer.as_str()) {
                peers.push(&run.peer);
            }
        }
        peers
    }

    /// A peer's value over all runs that had no fault; faulty ones count only if no other is.
    pub fn summary(&self, peer: &str, metric: &str) -> Option<Summary> {
        let of = |sound: bool| {
            let runs = self.runs.iter().filter(|run| run.peer == peer);
            let runs: Vec<&Run> = runs.filter(|run| !sound || run.faults.is_empty()).collect();
            let values: Vec<f64> =
                runs.iter().filter_map(|run| run.values.get(metric).copied()).collect();
            Summary::of(&values, runs.iter().all(|run| run.quiet()))
        };
        of(true).or_else(|| of(false))
    }

    /// A peer's median divided by another's; the spread is that of the first over the
    /// other's median.
    pub fn ratio(&self, peer: &str, other: &str, metric: &str) -> Option<Summary> {
        let (mine, theirs) = (self.summary(peer, metric)?, self.summary(other, metric)?);
        if theirs.median <= 0.0 {
            return None;
        }
        let by = theirs.median;
        Some(Summary {
            median: mine.median / by,
            low: mine.low / by,
            high: mine.high / by,
            runs: mine.runs.min(theirs.runs),
            quiet: mine.quiet && theirs.quiet,
        })
    }
}

impl Results {
    /// A case by its name.
    pub fn case(&self, id: &str) -> Option<&Case> {
        self.cases.iter().find(|case| case.id == id)
    }

    /// Whether no run had a fault.
    pub fn sound(&self) -> bool {
        self.complete && self.runs().all(|run| run.faults.is_empty())
    }

    /// Whether no run had much of its cores taken by others.
    pub fn quiet(&self) -> bool {
        self.runs().all(Run::quiet)
    }

    fn runs(&self) -> impl Iterator<Item = &Run> {
        self.cases.iter().flat_map(|case| &case.runs)
    }

    /// As it is kept.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and finite numbers") + "\n"
    }

    /// Reads what [`Results::to_json`] wrote.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn from_json(text: &str) -> Result<Results, String> {
        let results: Results = serde_json::from_str(text)
            .map_err(|error| format!("not a results.json of this harness: {error}"))?;
        match results.format {
            FORMAT => Ok(results),
            other => Err(format!("written in format {other}; this harness reads {FORMAT}")),
        }
    }
}

/// Reasons, each with all that it holds for.
pub fn grouped(missing: &[Missing]) -> Vec<(String, &str)> {
    let mut groups: Vec<(String, &str)> = Vec::new();
    for one in missing {
        match groups.iter_mut().find(|(_, why)| *why == one.why) {
            Some((whats, _)) => *whats += &format!(", {}", one.what),
            None => groups.push((one.what.clone(), &one.why)),
        }
    }
    groups
}

/// A value for people: three significant digits or more.
pub fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 100_000.0 => format!("{:.0}k", value / 1000.0),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The day of a time in seconds since 1970, as 2026-11-22 (UTC). By Howard Hinnant's
/// `civil_from_days`.
pub fn day(seconds: u64) -> String {
    let days = (seconds / 86_400) as i64 + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{:02}", of_year - (153 * shifted + 2) / 5 + 1)
}
