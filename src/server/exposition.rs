//! The Prometheus exposition: the workers' counters, summed, and what the control thread knows
//! of the process.

use std::collections::HashMap;
use std::fmt::{Display, Write as _};

use metrics::{Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::process::ProcessUse;
use crate::base::circuit::CircuitState;
use crate::counters::{self, Counters, Description, MetricKind};
use crate::settings::Listener;

/// The version that `portcullis_build_info` carries.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Not a whole number, so it is not among [`ControlNumbers::values`].
const CPU: Description = describe(
    "process_cpu_seconds_total",
    MetricKind::Counter,
    "Processor time used, user and system, in seconds.",
);

/// A series for each listener with TLS; the label is its address in the settings, so there are
/// no more of them than listeners.
const CERTIFICATES: Description = Description {
    name: "portcullis_certificate_not_after_seconds",
    label: None,
    names: &["listener"],
    kind: MetricKind::Gauge,
    per_unit: 1,
    help: "When the first certificate of a listener expires, as a Unix time in seconds.",
};

const fn describe(name: &'static str, kind: MetricKind, help: &'static str) -> Description {
    Description { name, label: None, names: &[], kind, per_unit: 1, help }
}

const fn circuits(state: &'static str) -> Description {
    Description {
        name: "portcullis_verdict_circuits",
        label: Some(("state", state)),
        names: &[],
        kind: MetricKind::Gauge,
        per_unit: 1,
        help: "HTTP endpoints that decide on clients, by the state of their circuit breaker.",
    }
}

/// The states in the order in which they are shown.
pub const CIRCUITS: [CircuitState; 3] =
    [CircuitState::Closed, CircuitState::Open, CircuitState::HalfOpen];

const RELOADS_HELP: &str = "Reload attempts, by outcome.";

/// What the control thread itself exposes, in the order of [`ControlNumbers::values`].
const CONTROL: &[Description] = &[
    Description {
        name: "portcullis_build_info",
        label: Some(("version", VERSION)),
        names: &[],
        kind: MetricKind::Gauge,
        per_unit: 1,
        help: "Always 1; the label is the gateway's version.",
    },
    describe("portcullis_workers", MetricKind::Gauge, "Workers that should run."),
    describe("portcullis_workers_alive", MetricKind::Gauge, "Workers that run and respond."),
    describe("portcullis_worker_panics_total", MetricKind::Counter, "Workers that panicked."),
    Description {
        name: "portcullis_reloads_total",
        label: Some(("result", "ok")),
        names: &[],
        kind: MetricKind::Counter,
        per_unit: 1,
        help: RELOADS_HELP,
    },
    Description {
        name: "portcullis_reloads_total",
        label: Some(("result", "refused")),
        names: &[],
        kind: MetricKind::Counter,
        per_unit: 1,
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
    describe("portcullis_revocations", MetricKind::Gauge, "Active revocations."),
    describe(
        "portcullis_revocations_refused_total",
        MetricKind::Counter,
        "Revocations refused because limits.revocations_max was reached.",
    ),
    describe(
        "portcullis_revocation_save_failures_total",
        MetricKind::Counter,
        "Failed attempts to save the revocations.",
    ),
    describe("portcullis_draining", MetricKind::Gauge, "1 while the gateway drains, else 0."),
    describe(
        "portcullis_memory_rung",
        MetricKind::Gauge,
        "Memory pressure: 0 none, 1 new connections are reset, 2 unauthenticated ones too, 3 slow readers too.",
    ),
    describe(
        "portcullis_memory_used_bytes",
        MetricKind::Gauge,
        "Memory that counts towards the budget, in bytes.",
    ),
    describe(
        "portcullis_memory_budget_bytes",
        MetricKind::Gauge,
        "The memory budget (limits.memory_max), in bytes.",
    ),
    describe(
        "portcullis_verdict_requests_in_flight",
        MetricKind::Gauge,
        "Requests in flight at HTTP endpoints that decide on clients.",
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

/// Every metric that `/metrics` shows: those of the workers, then those of the control thread, then
/// those that there are for each thing that the settings name.
pub fn descriptions() -> impl Iterator<Item = Description> {
    let whole = counters::descriptions().chain(CONTROL.iter().copied()).chain([CPU]);
    whole.chain([CERTIFICATES]).chain(counters::named_descriptions())
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

/// One series of the tables.
enum Series {
    Counter(metrics::Counter),
    Gauge(metrics::Gauge),
    /// A total that the recorder cannot take over: its histograms count observations one by one,
    /// and its counters have no fractions.
    Own(u64),
}

impl Series {
    /// The series of a metric; `names` are the values of its labels that the settings gave.
    fn register(
        recorder: &PrometheusRecorder,
        description: &Description,
        names: &[String],
    ) -> Series {
        let own = description.label.iter();
        let own = own.map(|(key, value)| Label::from_static_parts(key, value));
        let named = description.names.iter().zip(names);
        let named = named.map(|(key, value)| Label::new(*key, value.clone()));
        let labels: Vec<Label> = named.chain(own).collect();
        let key = Key::from_parts(description.name, labels);
        let name = KeyName::from(description.name);
        let metadata = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));
        match description.kind {
            MetricKind::Counter if description.per_unit == 1 => {
                recorder.describe_counter(name, None, description.help.into());
                Series::Counter(recorder.register_counter(&key, &metadata))
            }
            MetricKind::Gauge | MetricKind::Peak => {
                recorder.describe_gauge(name, None, description.help.into());
                Series::Gauge(recorder.register_gauge(&key, &metadata))
            }
            MetricKind::Counter | MetricKind::Histogram => Series::Own(0),
        }
    }

    fn put(&mut self, value: u64, per_unit: u32) {
        match self {
            Series::Counter(counter) => counter.absolute(value),
            Series::Gauge(gauge) => gauge.set(value as f64 / f64::from(per_unit)),
            // A worker's block can be lost with the worker, and a total never goes back.
            Series::Own(shown) => *shown = value.max(*shown),
        }
    }
}

/// A metric with its own label, and the names in the settings that the series is about.
type NamedKey = (&'static str, Option<&'static str>, Vec<String>);

/// The page of `/metrics`, in the text format of Prometheus: families in one order at each scrape,
/// and nothing global, so that several gateways can live in one process.
pub struct Exposition {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// In the order of the tables: the workers', then the control thread's.
    series: Vec<(Description, Series)>,
    /// Addresses of listeners with TLS, and when their certificates expire.
    certificates: Vec<(String, u64)>,
    cpu_seconds: f64,
}

impl Default for Exposition {
    fn default() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let tables = counters::descriptions().chain(CONTROL.iter().copied());
        let series = tables.map(|d| (d, Series::register(&recorder, &d, &[]))).collect();
        Exposition {
            handle: recorder.handle(),
            recorder,
            series,
            certificates: Vec::new(),
            cpu_seconds: 0.0,
        }
    }
}

impl Exposition {
    /// Takes in the numbers of the moment.
    pub fn publish<'a>(
        &mut self,
        blocks: impl Iterator<Item = &'a Counters> + Clone,
        control: &ControlNumbers,
        listeners: &[Listener],
    ) {
        self.publish_named(blocks.clone());
        let values = sums(blocks).into_iter().chain(control.values());
        for ((description, series), value) in self.series.iter_mut().zip(values) {
            series.put(value, description.per_unit);
        }
        let of = |listener: &Listener| {
            Some((listener.address.to_string(), listener.tls.as_ref()?.not_after_s))
        };
        self.certificates = listeners.iter().filter_map(of).collect();
        self.cpu_seconds = control.process.cpu_seconds;
        self.handle.run_upkeep();
    }

    /// Takes in the numbers of what the settings name. A worker takes new settings when its turn
    /// comes, so the workers' tables differ, and are added up by name.
    fn publish_named<'a>(&mut self, blocks: impl Iterator<Item = &'a Counters>) {
        let mut sums: HashMap<NamedKey, (Description, u64)> = HashMap::new();
        for block in blocks {
            block.each_named(|description, names, value| {
                let label = description.label.map(|(_, value)| value);
                let key = (description.name, label, names.to_vec());
                sums.entry(key).or_insert((description, 0)).1 += value;
            });
        }
        for (key, (description, sum)) in sums {
            // The recorder has a series once, however often it is registered.
            Series::register(&self.recorder, &description, &key.2).put(sum, description.per_unit);
        }
    }

    /// The page for `/metrics`.
    pub fn render(&self) -> String {
        let mut page = Page { text: in_order(&self.handle.render()), family: "" };
        for (description, series) in &self.series {
            let Series::Own(value) = series else { continue };
            match description.per_unit {
                1 => page.series(description, description.label, value),
                per_unit => {
                    page.series(description, description.label, *value as f64 / f64::from(per_unit))
                }
            }
        }
        for (listener, not_after_s) in &self.certificates {
            page.series(&CERTIFICATES, Some(("listener", listener)), not_after_s);
        }
        page.series(&CPU, None, self.cpu_seconds);
        page.text
    }
}

/// The recorder's page with its families, and the series of each, in the order of their names: the
/// recorder's own order differs between scrapes.
fn in_order(rendered: &str) -> String {
    let mut families: Vec<&str> =
        rendered.split("\n\n").map(str::trim).filter(|family| !family.is_empty()).collect();
    families.sort_unstable();
    let mut text = String::with_capacity(rendered.len());
    for family in families {
        let (mut head, mut series): (Vec<&str>, Vec<&str>) =
            family.lines().partition(|line| line.starts_with('#'));
        series.sort_unstable();
        head.append(&mut series);
        for line in head {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// A page as it grows.
struct Page {
    text: String,
    /// The family whose help and type were written last.
    family: &'static str,
}

impl Page {
    fn series(
        &mut self,
        description: &Description,
        label: Option<(&str, &str)>,
        value: impl Display,
    ) {
        let family = description.family();
        if self.family != family {
            let kind = type_name(description.kind);
            self.line(format_args!("# HELP {family} {}", description.help));
            self.line(format_args!("# TYPE {family} {kind}"));
            self.family = family;
        }
        let name = description.name;
        match label {
            Some((key, text)) => {
                // Debug escapes what the format wants escaped: quotes, backslashes, line ends.
                self.line(format_args!("{name}{{{key}={text:?}}} {value}"));
            }
            None => self.line(format_args!("{name} {value}")),
        }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("writing to a string does not fail");
    }
}

fn type_name(kind: MetricKind) -> &'static str {
    match kind {
        MetricKind::Counter => "counter",
        MetricKind::Gauge | MetricKind::Peak => "gauge",
        MetricKind::Histogram => "histogram",
    }
}

/// The workers' blocks taken together, in the order of [`counters::descriptions`]: added up,
/// or of each peak the highest.
pub fn sums<'a>(blocks: impl Iterator<Item = &'a Counters>) -> Vec<u64> {
    let mut sums = vec![0u64; counters::descriptions().count()];
    for block in blocks {
        for (sum, (description, value)) in sums.iter_mut().zip(block.all()) {
            *sum = match description.kind {
                MetricKind::Peak => value.max(*sum),
                _ => sum.wrapping_add(value),
            };
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::{ListenerMetric, Metric, RouteMetric};
    use crate::protocol::cause::Cause;

    /// The line of a series without its value, as the exposition writes it.
    fn series_name(description: &Description) -> String {
        match description.label {
            Some((key, value)) => format!("{}{{{key}=\"{value}\"}} ", description.name),
            None => format!("{} ", description.name),
        }
    }

    /// A listener with TLS whose certificate expires then.
    fn listener(address: &str, not_after_s: u64) -> Listener {
        let mut listener = super::super::testing::settings().listeners.remove(0);
        listener.address = address.parse().unwrap();
        let config = crate::sim::tls::server();
        listener.tls = Some(crate::settings::TlsListener { config, not_after_s });
        listener
    }

    #[test]
    fn the_page_has_every_series_once_with_help_and_type() {
        let mut exposition = Exposition::default();
        exposition.publish([Counters::default()].iter(), &ControlNumbers::default(), &[]);
        let page = exposition.render();
        let whole = || descriptions().filter(|d| d.names.is_empty());
        for description in whole() {
            let series = series_name(&description);
            assert_eq!(
                page.lines().filter(|line| line.starts_with(&series)).count(),
                1,
                "{series}"
            );
            let help = format!("# HELP {} {}", description.family(), description.help);
            assert_eq!(page.lines().filter(|line| *line == help).count(), 1, "{help}");
            let kind = type_name(description.kind);
            let line = format!("# TYPE {} {kind}", description.family());
            assert_eq!(page.lines().filter(|other| *other == line).count(), 1, "{line}");
        }
        let series = page.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        assert_eq!(series.count(), whole().count(), "nothing that is not described");
        assert!(!page.contains(CERTIFICATES.name), "no listener has TLS");
    }

    #[test]
    fn blocks_are_summed_and_counters_never_go_back() {
        let (one, two) = (Counters::default(), Counters::default());
        one.add(Metric::Accepted, 2);
        two.add(Metric::Accepted, 40);
        two.set(Metric::StageOpen, 7);
        one.set(Metric::UnauthenticatedOldest, 50);
        two.set(Metric::UnauthenticatedOldest, 30);
        two.closed(Cause::Idle, None);
        let mut exposition = Exposition::default();
        let numbers = ControlNumbers { panics: 3, reloads_refused: 1, ..Default::default() };
        two.observe(counters::VERDICT_TIME, std::time::Duration::from_millis(30));
        exposition.publish([&one, &two].into_iter(), &numbers, &[]);
        let has = |page: &str, line: &str| page.lines().any(|other| other == line);
        for line in [
            "portcullis_connections_accepted_total 42",
            "portcullis_connections{stage=\"open\"} 7",
            "portcullis_closes_total{cause=\"idle\"} 1",
            "portcullis_unauthenticated_oldest_seconds 0.05",
            "portcullis_verdict_seconds_bucket{le=\"0.025\"} 0",
            "portcullis_verdict_seconds_bucket{le=\"0.1\"} 1",
            "portcullis_verdict_seconds_bucket{le=\"+Inf\"} 1",
            "portcullis_verdict_seconds_sum 0.03",
            "portcullis_verdict_seconds_count 1",
            "portcullis_worker_panics_total 3",
            "portcullis_reloads_total{result=\"refused\"} 1",
            "portcullis_reloads_total{result=\"ok\"} 0",
        ] {
            assert!(has(&exposition.render(), line), "{line}");
        }
        // As if a block had been lost with its worker.
        let listeners = [listener("0.0.0.0:443", 5), listener("[::1]:8443", 6)];
        exposition.publish([&one].into_iter(), &numbers, &listeners);
        let page = exposition.render();
        assert!(has(&page, "portcullis_connections_accepted_total 42"));
        assert!(has(&page, "portcullis_connections{stage=\"open\"} 0"));
        assert!(has(&page, "portcullis_verdict_seconds_count 1"));
        let name = CERTIFICATES.name;
        assert!(has(&page, &format!("{name}{{listener=\"0.0.0.0:443\"}} 5")));
        assert!(has(&page, &format!("{name}{{listener=\"[::1]:8443\"}} 6")));
    }

    #[test]
    fn numbers_by_name_are_added_up_over_the_workers_and_escaped() {
        let (one, two) = (Counters::default(), Counters::default());
        let odd = "a \"b\" \\c\nd";
        // The workers met the names in different orders.
        let (chat, _) = (one.routes.row(&["/chat"]), one.routes.row(&[odd]));
        let (odd_of_two, chat_of_two) = (two.routes.row(&[odd]), two.routes.row(&["/chat"]));
        one.routes.add(chat, RouteMetric::BytesToClients, 40);
        two.routes.add(chat_of_two, RouteMetric::BytesToClients, 2);
        two.routes.closed(odd_of_two, Cause::Idle);
        let listener = one.listeners.row(&["0.0.0.0:443"]);
        one.listeners.add(listener, ListenerMetric::Connections, 3);
        let mut exposition = Exposition::default();
        let numbers = ControlNumbers::default();
        exposition.publish([&one, &two].into_iter(), &numbers, &[]);
        one.listeners.subtract(listener, ListenerMetric::Connections, 1);
        one.routes.add(chat, RouteMetric::BytesToClients, 1);
        exposition.publish([&one, &two].into_iter(), &numbers, &[]);
        let page = exposition.render();
        for line in [
            "portcullis_route_message_bytes_total{route=\"/chat\",direction=\"to_client\"} 43",
            "portcullis_route_message_bytes_total{route=\"/chat\",direction=\"from_client\"} 0",
            r#"portcullis_route_closes_total{route="a \"b\" \\c\nd",cause="idle"} 1"#,
            "portcullis_listener_connections{listener=\"0.0.0.0:443\"} 2",
            "# TYPE portcullis_listener_connections gauge",
            "# TYPE portcullis_route_closes_total counter",
        ] {
            assert!(page.lines().any(|other| other == line), "{line} in {page}");
        }
        assert!(!page.contains("cause=\"idle\",route"), "one order of labels");
        let plain = |d: &Description| d.per_unit == 1 && d.kind != MetricKind::Histogram;
        assert!(
            counters::named_descriptions().all(|d| plain(&d)),
            "the recorder shows all of them"
        );
    }

    #[test]
    fn operating_md_lists_every_metric_and_no_other() {
        let doc = include_str!("../../docs/operating.md");
        let bound = format!("At most {} names of each kind", counters::NAMES_MAX);
        assert!(doc.contains(&bound) && doc.contains(counters::OTHER), "{bound}");
        let listed: Vec<&str> = doc
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next())
            .filter(|name| name.starts_with("portcullis_") || name.starts_with("process_"))
            .collect();
        for description in descriptions() {
            assert!(listed.contains(&description.family()), "missing: {}", description.family());
        }
        for name in listed {
            assert!(descriptions().any(|d| d.family() == name), "no longer exists: {name}");
        }
    }
}
