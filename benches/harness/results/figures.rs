//! The figures that the gateway is to reach, and what a comparison says of each.

use super::{BARE, Case, GATEWAY, Results, Summary, number};

/// What is said of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The median is within it.
    Reached,
    /// It is not.
    NotReached,
    /// There is no measurement.
    NotMeasured,
}

/// A figure and its reading.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What is measured.
    pub what: &'static str,
    /// The figure, in words.
    pub figure: &'static str,
    /// The reading, or how to get one.
    pub reading: String,
    /// The outcome.
    pub verdict: Verdict,
    /// Whether the cores were the run's own.
    pub quiet: bool,
}

enum Source {
    /// A peer's metric divided by another peer's, in one case.
    Ratio(&'static str, &'static str, &'static str),
    /// A peer's metric in one case.
    Value(&'static str, &'static str, &'static str),
    /// Computed by a function.
    Of(fn(&Results) -> Option<Summary>),
    /// Another program's.
    Elsewhere(&'static str),
}

struct Figure {
    what: &'static str,
    figure: &'static str,
    limit: Bound,
    unit: &'static str,
    source: Source,
}

#[derive(Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

use Bound::{AtLeast, AtMost};
use Source::{Elsewhere, Of, Ratio, Value};

const CPU: &str = "server_cpu_us";
const WEBSOCKET: &str = "gateway-websocket";

const FIGURES: &[Figure] = &[
    Figure {
        what: "CPU per relayed message, link, 64 B, 1,000 connections, against the bare echo",
        figure: "≤ 1.3",
        limit: AtMost(1.3),
        unit: "×",
        source: Ratio("echo-64-1000", GATEWAY, BARE),
    },
    Figure {
        what: "the same at 8,000 connections",
        figure: "≤ 1.3",
        limit: AtMost(1.3),
        unit: "×",
        source: Ratio("echo-64-8000", GATEWAY, BARE),
    },
    Figure {
        what: "CPU per relayed message, link, 64 B, 1,000 connections, against nginx",
        figure: "≤ 0.35",
        limit: AtMost(0.35),
        unit: "×",
        source: Ratio("echo-64-1000", GATEWAY, "nginx"),
    },
    Figure {
        what: "the same at 8,000 connections",
        figure: "≤ 0.35",
        limit: AtMost(0.35),
        unit: "×",
        source: Ratio("echo-64-8000", GATEWAY, "nginx"),
    },
    Figure {
        what: "CPU per relayed message, websocket upstream, against nginx",
        figure: "≤ 0.6",
        limit: AtMost(0.6),
        unit: "×",
        source: Ratio("echo-64-1000", WEBSOCKET, "nginx"),
    },
    Figure {
        what: "accept, upgrade, verify HS256, close: CPU",
        figure: "≤ 45 µs",
        limit: AtMost(45.0),
        unit: "µs",
        source: Value("open-64", GATEWAY, CPU),
    },
    Figure {
        what: "the same against the bare echo, which does not verify (45 to 27)",
        figure: "≤ 1.67",
        limit: AtMost(1.67),
        unit: "×",
        source: Ratio("open-64", GATEWAY, BARE),
    },
    Figure {
        what: "the same against HAProxy's proxied upgrade (45 to 104)",
        figure: "≤ 0.43",
        limit: AtMost(0.43),
        unit: "×",
        source: Ratio("open-64", GATEWAY, "haproxy"),
    },
    Figure {
        what: "verification of a 200-byte HS256 token",
        figure: "≤ 1.5 µs",
        limit: AtMost(1.5),
        unit: "µs",
        source: Value("token-accepted", GATEWAY, CPU),
    },
    Figure {
        what: "the same, refused",
        figure: "≤ 1.5 µs",
        limit: AtMost(1.5),
        unit: "µs",
        source: Value("token-refused", GATEWAY, CPU),
    },
    Figure {
        what: "allocations per relayed message, and per token",
        figure: "0",
        limit: AtMost(0.0),
        unit: "",
        source: Elsewhere("cargo test --test zero_alloc_relay --test zero_alloc_token"),
    },
    Figure {
        what: "user memory per idle authenticated connection, plain",
        figure: "≤ 400 B",
        limit: AtMost(400.0),
        unit: "B",
        source: Value("idle-large-plain", GATEWAY, "user_bytes"),
    },
    Figure {
        what: "the same over TLS",
        figure: "≤ 4 KiB",
        limit: AtMost(4096.0),
        unit: "B",
        source: Value("idle-large-tls", GATEWAY, "user_bytes"),
    },
    Figure {
        what: "kernel memory per idle connection, the gateway's end",
        figure: "≤ 4.0 KB",
        limit: AtMost(4000.0),
        unit: "B",
        source: Of(kernel_end),
    },
    Figure {
        what: "connections on one machine of 2 cores and 24 GiB, clients included",
        figure: "1,000,000",
        limit: AtLeast(1_000_000.0),
        unit: "",
        source: Elsewhere("cargo bench --bench harness -- idle --connections 1000000"),
    },
    Figure {
        what: "flood: honest connects that succeeded",
        figure: "≥ 99.9 %",
        limit: AtLeast(99.9),
        unit: "%",
        source: Value("flood", GATEWAY, "success_percent"),
    },
    Figure {
        what: "flood: honest connects, p99",
        figure: "≤ 250 ms",
        limit: AtMost(250.0),
        unit: "ms",
        source: Value("flood", GATEWAY, "p99_ms"),
    },
    Figure {
        what: "flood: established connections lost",
        figure: "0",
        limit: AtMost(0.0),
        unit: "",
        source: Value("flood", GATEWAY, "disconnected"),
    },
    Figure {
        what: "flood: messages lost",
        figure: "0",
        limit: AtMost(0.0),
        unit: "",
        source: Value("flood", GATEWAY, "lost"),
    },
    Figure {
        what: "flood: oldest junk socket",
        figure: "≤ 10.1 s",
        limit: AtMost(10.1),
        unit: "s",
        source: Value("flood", GATEWAY, "oldest_s"),
    },
    Figure {
        what: "flood: back to no junk afterwards",
        figure: "≤ 10 s",
        limit: AtMost(10.0),
        unit: "s",
        source: Value("flood", GATEWAY, "recovered_s"),
    },
    Figure {
        what: "latency added at half load, p99",
        figure: "≤ 1 ms",
        limit: AtMost(1.0),
        unit: "ms",
        source: Of(latency_added_at_half_load),
    },
    Figure {
        what: "latency added where neither side is saturated, p99",
        figure: "≤ 1 ms",
        limit: AtMost(1.0),
        unit: "ms",
        source: Of(latency_added_at_same_rate),
    },
    Figure {
        what: "multicast to 10,000 sessions, CPU per delivery beyond the kernel's send",
        figure: "≤ 1.5 µs",
        limit: AtMost(1.5),
        unit: "µs",
        source: Elsewhere("no scenario: this version's link has no multicast"),
    },
];

/// Every figure with its reading.
pub fn rows(results: &Results) -> Vec<Row> {
    FIGURES.iter().map(|figure| row(figure, results)).collect()
}

fn row(figure: &Figure, results: &Results) -> Row {
    let none = |reading: String| Row {
        what: figure.what,
        figure: figure.figure,
        reading,
        verdict: Verdict::NotMeasured,
        quiet: true,
    };
    let found = match figure.source {
        Elsewhere(how) => return none(how.to_owned()),
        Ratio(case, peer, other) => {
            results.case(case).and_then(|case| case.ratio(peer, other, CPU))
        }
        Value(case, peer, metric) => results.case(case).and_then(|case| case.summary(peer, metric)),
        Of(compute) => compute(results),
    };
    let Some(found) = found else { return none(why_not(figure, results)) };
    if found.median < 0.0 {
        // Differences of noisy readings only: nothing takes less than nothing.
        return none(format!("the machine was not quiet enough: {}", number(found.median)));
    }
    let reached = match figure.limit {
        AtMost(limit) => found.median <= limit,
        AtLeast(limit) => found.median >= limit,
    };
    let mut reading = format!("{} {}", number(found.median), figure.unit).trim().to_owned();
    if found.runs > 1 {
        reading += &format!(" ({} to {})", number(found.low), number(found.high));
    }
    Row {
        what: figure.what,
        figure: figure.figure,
        reading,
        verdict: if reached { Verdict::Reached } else { Verdict::NotReached },
        quiet: found.quiet,
    }
}

/// Names what is missing for a figure.
fn why_not(figure: &Figure, results: &Results) -> String {
    let (case, peers) = match figure.source {
        Ratio(case, peer, other) => (case, vec![peer, other]),
        Value(case, peer, _) => (case, vec![peer]),
        _ => return "the cases that it is made of were not run".to_owned(),
    };
    let here = results.case(case).map(|case| &case.missing);
    for missing in here.into_iter().flatten().chain(&results.missing) {
        if peers.contains(&missing.what.as_str()) {
            return format!("{}: {}", missing.what, missing.why);
        }
    }
    format!("case {case} was not run")
}

/// The gateway's end of a connection in the kernel: both ends, less the client's, which is half
/// of what the bare echo's connections take, because it and the load side use the same calls.
fn kernel_end(results: &Results) -> Option<Summary> {
    let case = results.case("idle-plain")?;
    let both = case.summary(GATEWAY, "kernel_bytes")?;
    let client = case.summary(BARE, "kernel_bytes")?;
    Some(less(both, client, 0.5))
}

fn latency_added_at_half_load(results: &Results) -> Option<Summary> {
    latency_added(results.case("latency-64-1000")?, "bare-ring-same-rate")
}

fn latency_added_at_same_rate(results: &Results) -> Option<Summary> {
    latency_added(results.case("latency-same-rate")?, BARE)
}

/// The gateway's p99, less the bare echo's at the same rate.
fn latency_added(case: &Case, bare: &str) -> Option<Summary> {
    Some(less(case.summary(GATEWAY, "p99_ms")?, case.summary(bare, "p99_ms")?, 1.0))
}

fn less(value: Summary, other: Summary, part: f64) -> Summary {
    let off = other.median * part;
    Summary {
        median: value.median - off,
        low: value.low - off,
        high: value.high - off,
        runs: value.runs.min(other.runs),
        quiet: value.quiet && other.quiet,
    }
}

/// For people.
pub fn word(row: &Row) -> &'static str {
    match (row.verdict, row.quiet) {
        (Verdict::Reached, true) => "reached",
        (Verdict::Reached, false) => "reached (not quiet)",
        (Verdict::NotReached, true) => "NOT reached",
        (Verdict::NotReached, false) => "NOT reached (not quiet)",
        (Verdict::NotMeasured, _) => "not measured",
    }
}
