//! The Prometheus exposition: the workers' counters, summed, and what the control thread knows
//! of the process.

use metrics::{Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::process::ProcessUse;
use crate::base::circuit::CircuitState;
use crate::counters::{self, Counters, Description, MetricKind};

/// The version that `portcullis_build_info` carries.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `process_cpu_seconds_total` has fractions, which the recorder's counters do not.
const CPU_NAME: &str = "process_cpu_seconds_total";
const CPU_HELP: &str = "Processor time, user and system, in seconds.";

const fn describe(name: &'static str, kind: MetricKind, help: &'static str) -> Description {
    Description { name, label: None, kind, help }
}

const fn circuits(state: &'static str) -> Description {
    Description {
        name: "portcullis_verdict_circuits",
        label: Some(("state", state)),
        kind: MetricKind::Gauge,
        help: "HTTP endpoints for auth decisions, by the state of their circuit breaker.",
    }
}

/// The states in the order in which they are shown.
pub const CIRCUITS: [CircuitState; 3] =
    [CircuitState::Closed, CircuitState::Open, CircuitState::HalfOpen];

const RELOADS_HELP: &str = "Reloads requested, by outcome.";

/// What the control thread itself exposes, in the order of [`ControlNumbers::values`].
const CONTROL: &[Description] = &[
    Description {
        name: "portcullis_build_info",
        label: Some(("version", VERSION)),
        kind: MetricKind::Gauge,
        help: "Always 1; the label is the gateway's version.",
    },
    describe("portcullis_workers", MetricKind::Gauge, "Workers that should run."),
    describe("portcullis_workers_alive", MetricKind::Gauge, "Workers whose loop has run recently."),
    describe("portcullis_worker_panics_total", MetricKind::Counter, "Workers that panicked."),
    Description {
        name: "portcullis_reloads_total",
        label: Some(("result", "ok")),
        kind: MetricKind::Counter,
        help: RELOADS_HELP,
    },
    Description {
        name: "portcullis_reloads_total",
        label: Some(("result", "refused")),
        kind: MetricKind::Counter,
        help: RELOADS_HELP,
    },
    describe(
        "portcullis_settings_hash",
        MetricKind::Gauge,
        "First 48 bits of the SHA-256 of the configuration file in use; 0 without a file.",
    ),
    describe(
        "portcullis_settings_loaded_timestamp_seconds",
        MetricKind::Gauge,
        "When the settings in use were loaded, as a Unix time in seconds.",
    ),
    describe(
        "portcullis_close_log_dropped_total",
        MetricKind::Counter,
        "Lines lost because the close log file was too slow or could not be written.",
    ),
    describe("portcullis_revocations", MetricKind::Gauge, "Revocations held."),
    describe(
        "portcullis_revocations_refused_total",
        MetricKind::Counter,
        "Revocations refused because limits.revocations_max entries were held.",
    ),
    describe(
        "portcullis_revocation_save_failures_total",
        MetricKind::Counter,
        "Attempts to save the revocations that failed.",
    ),
    describe("portcullis_draining", MetricKind::Gauge, "1 from the start of a drain to the end."),
    describe(
        "portcullis_memory_rung",
        MetricKind::Gauge,
        "Memory pressure level: 0 none, 1 new connections are reset, 2 unauthenticated ones \
         too, 3 slow readers too.",
    ),
    describe(
        "portcullis_memory_used_bytes",
        MetricKind::Gauge,
        "Memory that counts against the budget, in bytes.",
    ),
    describe(
        "portcullis_memory_budget_bytes",
        MetricKind::Gauge,
        "The memory budget (limits.memory_max), in bytes.",
    ),
    describe(
        "portcullis_verdict_requests_in_flight",
        MetricKind::Gauge,
        "Auth requests in flight at HTTP endpoints.",
    ),
    circuits("closed"),
    circuits("open"),
    circuits("half_open"),
    describe("process_resident_memory_bytes", MetricKind::Gauge, "Resident memory, in bytes."),
    describe("process_open_fds", MetricKind::Gauge, "Open file descriptors."),
    describe(
        "process_start_time_seconds",
        MetricKind::Gauge,
        "When the process started, as a Unix time in seconds.",
    ),
];

/// Every metric that `/metrics` shows: those of the workers, then those of the control thread.
pub fn descriptions() -> impl Iterator<Item = Description> {
    let cpu = describe(CPU_NAME, MetricKind::Counter, CPU_HELP);
    counters::descriptions().chain(CONTROL.iter().copied()).chain([cpu])
}

/// What the control thread knows; each field is the metric of that name.
#[derive(Clone, Copy, Debug, Default)]
pub struct ControlNumbers {
    /// Workers that should run.
    pub workers: u64,
    /// Workers that do.
    pub workers_alive: u64,
    /// Panics so far.
    pub panics: u64,
    /// Reloads that took effect.
    pub reloads_ok: u64,
    /// Reloads that were refused.
    pub reloads_refused: u64,
    /// Beginning of the configuration file's hash; below 2^48, so exact as a float.
    pub settings_hash: u64,
    /// When the settings were loaded, in seconds since 1970.
    pub settings_loaded: u64,
    /// Lines lost by the close log's file.
    pub close_log_dropped: u64,
    /// Revocations held.
    pub revocations: u64,
    /// Revocations refused for want of room.
    pub revocations_refused: u64,
    /// Saves of the revocations that failed.
    pub revocation_save_failures: u64,
    /// Whether a drain is under way.
    pub draining: bool,
    /// How short memory is.
    pub memory_rung: u64,
    /// Memory that counts against the budget, in bytes.
    pub memory_used: u64,
    /// The budget, in bytes.
    pub memory_budget: u64,
    /// Requests at HTTP endpoints that decide on clients.
    pub verdict_requests: u64,
    /// Such endpoints by the state of their circuit, in the order of [`CIRCUITS`].
    pub circuits: [u64; 3],
    /// What the process uses.
    pub process: ProcessUse,
}

impl ControlNumbers {
    fn values(&self) -> [u64; CONTROL.len()] {
        [
            1,
            self.workers,
            self.workers_alive,
            self.panics,
            self.reloads_ok,
            self.reloads_refused,
            self.settings_hash,
            self.settings_loaded,
            self.close_log_dropped,
            self.revocations,
            self.revocations_refused,
            self.revocation_save_failures,
            u64::from(self.draining),
            self.memory_rung,
            self.memory_used,
            self.memory_budget,
            self.verdict_requests,
            self.circuits[0],
            self.circuits[1],
            self.circuits[2],
            self.process.resident_bytes,
            self.process.open_descriptors,
            self.process.started_unix,
        ]
    }
}

enum Series {
    Counter(metrics::Counter),
    Gauge(metrics::Gauge),
}

impl Series {
    fn put(&self, value: u64) {
        match self {
            Series::Counter(counter) => counter.absolute(value),
            Series::Gauge(gauge) => gauge.set(value as f64),
        }
    }
}

/// A recorder of our own (nothing global, so that several gateways can live in one process) and
/// a handle for every series.
pub struct Exposition {
    handle: PrometheusHandle,
    workers: Vec<Series>,
    control: Vec<Series>,
    cpu_seconds: f64,
}

impl Default for Exposition {
    fn default() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let workers = counters::descriptions().map(|d| register(&recorder, d)).collect();
        let control = CONTROL.iter().map(|d| register(&recorder, *d)).collect();
        Exposition { handle: recorder.handle(), workers, control, cpu_seconds: 0.0 }
    }
}

impl Exposition {
    /// Takes in the numbers of the moment.
    pub fn publish<'a>(
        &mut self,
        blocks: impl Iterator<Item = &'a Counters>,
        control: &ControlNumbers,
    ) {
        for (series, sum) in self.workers.iter().zip(sums(blocks)) {
            series.put(sum);
        }
        for (series, value) in self.control.iter().zip(control.values()) {
            series.put(value);
        }
        self.cpu_seconds = control.process.cpu_seconds;
        self.handle.run_upkeep();
    }

    /// The page for `/metrics`.
    pub fn render(&self) -> String {
        let (mut page, cpu) = (self.handle.render(), self.cpu_seconds);
        page += &format!(
            "\n# HELP {CPU_NAME} {CPU_HELP}\n# TYPE {CPU_NAME} counter\n{CPU_NAME} {cpu}\n"
        );
        in_order(&page)
    }
}

/// The families by name, each with its series by label: the recorder has them in the order of a
/// hash map, another one in each process.
fn in_order(page: &str) -> String {
    let lines = |family: &str| {
        let mut lines: Vec<&str> = family.lines().filter(|line| !line.is_empty()).collect();
        // HELP and TYPE come first: `#` is below every letter.
        lines.sort_unstable();
        lines.join("\n")
    };
    let mut families: Vec<String> =
        page.split("\n\n").map(lines).filter(|family| !family.is_empty()).collect();
    families.sort_unstable();
    families.join("\n\n") + "\n"
}

/// The workers' blocks taken together, in the order of [`counters::descriptions`]: added up,
/// or of each peak the highest.
pub fn sums<'a>(blocks: impl Iterator<Item = &'a Counters>) -> Vec<u64> {
    let mut sums = vec![0u64; counters::descriptions().count()];
    for block in blocks {
        for (sum, (description, value)) in sums.iter_mut().zip(block.all()) {
            *sum = match description.kind {
                MetricKind::Peak => value.max(*sum),
                MetricKind::Counter | MetricKind::Gauge => sum.wrapping_add(value),
            };
        }
    }
    sums
}

fn register(recorder: &PrometheusRecorder, description: Description) -> Series {
    let labels = description.label.map(|(key, value)| Label::from_static_parts(key, value));
    let key = Key::from_parts(description.name, labels.into_iter().collect::<Vec<_>>());
    let name = KeyName::from(description.name);
    let metadata = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));
    match description.kind {
        MetricKind::Counter => {
            recorder.describe_counter(name, None, description.help.into());
            Series::Counter(recorder.register_counter(&key, &metadata))
        }
        MetricKind::Gauge | MetricKind::Peak => {
            recorder.describe_gauge(name, None, description.help.into());
            Series::Gauge(recorder.register_gauge(&key, &metadata))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Metric;
    use crate::protocol::cause::Cause;

    /// The line of a series without its value, as the exposition writes it.
    fn series_name(description: &Description) -> String {
        match description.label {
            Some((key, value)) => format!("{}{{{key}=\"{value}\"}} ", description.name),
            None => format!("{} ", description.name),
        }
    }

    #[test]
    fn the_page_has_every_series_once_with_help_and_type() {
        let mut exposition = Exposition::default();
        exposition.publish([Counters::default()].iter(), &ControlNumbers::default());
        let page = exposition.render();
        for description in descriptions() {
            let series = series_name(&description);
            assert_eq!(
                page.lines().filter(|line| line.starts_with(&series)).count(),
                1,
                "{series}"
            );
            let help = format!("# HELP {} {}", description.name, description.help);
            assert_eq!(page.lines().filter(|line| *line == help).count(), 1, "{help}");
            let kind = match description.kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge | MetricKind::Peak => "gauge",
            };
            let line = format!("# TYPE {} {kind}", description.name);
            assert_eq!(page.lines().filter(|other| *other == line).count(), 1, "{line}");
        }
        let families: Vec<&str> =
            page.lines().filter_map(|line| line.strip_prefix("# HELP ")).collect();
        assert!(families.is_sorted(), "{families:?}");
        for block in page.split("\n\n") {
            let mut lines = block.lines();
            let help = lines.next().and_then(|line| line.strip_prefix("# HELP "));
            let name = help.and_then(|help| help.split(' ').next()).expect("a name");
            assert!(lines.next().is_some_and(|line| line.starts_with(&format!("# TYPE {name} "))));
            assert!(lines.all(|line| line.starts_with(name)), "{block}");
        }
        let series = page.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        assert_eq!(series.count(), descriptions().count(), "nothing that is not described");
    }

    #[test]
    fn blocks_are_summed_and_counters_never_go_back() {
        let (one, two) = (Counters::default(), Counters::default());
        one.add(Metric::Accepted, 2);
        two.add(Metric::Accepted, 40);
        two.set(Metric::StageOpen, 7);
        one.set(Metric::LinkRttMicros, 300);
        two.set(Metric::LinkRttMicros, 200);
        one.set(Metric::UnauthenticatedOldest, 50);
        two.set(Metric::UnauthenticatedOldest, 30);
        two.closed(Cause::Idle);
        let mut exposition = Exposition::default();
        let numbers = ControlNumbers { panics: 3, reloads_refused: 1, ..Default::default() };
        exposition.publish([&one, &two].into_iter(), &numbers);
        let has = |page: &str, line: &str| page.lines().any(|other| other == line);
        for line in [
            "portcullis_connections_accepted_total 42",
            "portcullis_connections{stage=\"open\"} 7",
            "portcullis_closes_total{cause=\"idle\"} 1",
            "portcullis_unauthenticated_oldest_milliseconds 50",
            "portcullis_link_rtt_microseconds 300",
            "portcullis_worker_panics_total 3",
            "portcullis_reloads_total{result=\"refused\"} 1",
            "portcullis_reloads_total{result=\"ok\"} 0",
        ] {
            assert!(has(&exposition.render(), line), "{line}");
        }
        // As if a block had been lost with its worker.
        exposition.publish([&one].into_iter(), &numbers);
        let page = exposition.render();
        assert!(has(&page, "portcullis_connections_accepted_total 42"));
        assert!(has(&page, "portcullis_connections{stage=\"open\"} 0"));
    }

    #[test]
    fn operating_md_lists_every_metric_and_no_other() {
        let doc = include_str!("../../docs/operating.md");
        let listed: Vec<&str> = doc
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next())
            .filter(|name| name.starts_with("portcullis_") || name.starts_with("process_"))
            .collect();
        for description in descriptions() {
            assert!(listed.contains(&description.name), "missing: {}", description.name);
        }
        for name in listed {
            assert!(descriptions().any(|d| d.name == name), "no longer exists: {name}");
        }
    }
}
