//! Names and labels in PromQL, against the one table of metrics.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use portcullis::counters::{Counters, MetricKind};
use portcullis::protocol::cause::Cause;
use portcullis::server::exposition::{ControlNumbers, Exposition, descriptions};

use crate::{dashboard, file};

/// Labels that Prometheus itself puts on every series.
const OF_PROMETHEUS: [&str; 2] = ["instance", "job"];

/// The page that alerts lead to, at an address that the operator replaces.
const RUNBOOK: &str = "https://portcullis.invalid/docs/operating.md";

/// Metrics that the dashboard leaves out.
const NOT_ON_THE_DASHBOARD: [(&str, &str); 2] = [
    ("portcullis_settings_hash", "a hash has no curve; an alert compares it between machines"),
    ("portcullis_settings_loaded_timestamp_seconds", "reloads by outcome show the moment"),
];

/// One use of a metric in an expression.
#[derive(Debug, PartialEq, Eq)]
struct Use {
    name: String,
    /// Label, operator, value.
    selectors: Vec<(String, String, String)>,
}

/// Every use of a metric of ours, found by its prefix.
fn uses(expression: &str) -> Vec<Use> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(start) = rest.find(is_name) {
        let word_end = rest[start..].find(|c| !is_name(c)).map_or(rest.len(), |n| start + n);
        let word = &rest[start..word_end];
        rest = &rest[word_end..];
        if !word.starts_with("portcullis_") && !word.starts_with("process_") {
            continue;
        }
        let mut selectors = Vec::new();
        if let Some(inside) = rest.strip_prefix('{') {
            let (inside, after) = inside.split_once('}').expect("a closed selector");
            selectors = inside.split(',').map(selector).collect();
            rest = after;
        }
        found.push(Use { name: word.to_owned(), selectors });
    }
    found
}

fn selector(text: &str) -> (String, String, String) {
    let at = text.find(['=', '!']).unwrap_or_else(|| panic!("no selector: {text}"));
    let (label, rest) = text.split_at(at);
    let (operator, value) = rest.split_once('"').expect("a quoted value");
    let value = value.strip_suffix('"').expect("a closed quote");
    (label.trim().to_owned(), operator.to_owned(), value.to_owned())
}

/// What is wrong with an expression, in words.
fn faults(expression: &str) -> Vec<String> {
    let words: Vec<&str> = expression.split_whitespace().collect();
    let expression = words.join(" ").replace("( ", "(");
    let mut faults = Vec::new();
    let mut labels: BTreeSet<&str> = OF_PROMETHEUS.into();
    for Use { name, selectors } in uses(&expression) {
        let series: Vec<_> = descriptions().filter(|d| d.name == name).collect();
        if series.is_empty() {
            faults.push(format!("no metric {name}"));
        }
        labels.extend(series.iter().filter_map(|d| Some(d.label?.0)));
        labels.extend(series.iter().flat_map(|d| d.names));
        for (label, operator, value) in selectors {
            let is_name = series.iter().any(|d| d.names.contains(&label.as_str()));
            if OF_PROMETHEUS.contains(&label.as_str()) || is_name {
                continue;
            }
            let values =
                if operator.contains('~') { value.split('|').collect() } else { vec![&*value] };
            for value in values {
                if !series.iter().any(|d| d.label == Some((&label, value))) {
                    faults.push(format!("no series {name}{{{label}={value:?}}}"));
                }
            }
        }
        let counts = expression.contains(&format!("rate({name}"))
            || expression.contains(&format!("increase({name}"));
        let grows = |kind| matches!(kind, MetricKind::Counter | MetricKind::Histogram);
        let total = series.first().is_some_and(|d| grows(d.kind)) || name.ends_with("_total");
        if counts && !total {
            faults.push(format!("the rate of the gauge {name}"));
        }
        if total && !counts {
            faults.push(format!("the bare counter {name}"));
        }
    }
    for after in expression.split("by (").skip(1) {
        let (names, _) = after.split_once(')').expect("a closed list");
        for name in names.split(',').map(str::trim).filter(|name| !labels.contains(name)) {
            faults.push(format!("by ({name}), a label that none of its metrics has"));
        }
    }
    faults
}

/// An alert as the file has it.
#[derive(Debug, Default)]
struct Alert {
    name: String,
    expression: String,
    severity: String,
    summary: String,
    runbook: String,
}

/// Reads the layout that alerts.yml keeps to: one key a line, folded texts indented below.
fn alerts() -> Vec<Alert> {
    let text = file("deploy/prometheus/alerts.yml");
    let mut alerts: Vec<Alert> = Vec::new();
    let mut folded = false;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let trimmed = line.trim_start();
        if let Some(name) = trimmed.strip_prefix("- alert: ") {
            alerts.push(Alert { name: name.into(), ..Alert::default() });
        }
        let Some(alert) = alerts.last_mut() else { continue };
        let depth = line.len() - trimmed.len();
        match trimmed.split_once(": ").unwrap_or((trimmed, "")) {
            ("expr", _) => folded = true,
            _ if folded && depth >= 10 => {
                alert.expression.push_str(trimmed);
                alert.expression.push('\n');
            }
            (key, value) => {
                folded = false;
                match key {
                    "severity" => alert.severity = value.into(),
                    "summary" => alert.summary = value.into(),
                    "runbook_url" => alert.runbook = value.into(),
                    _ => {}
                }
            }
        }
    }
    alerts
}

#[test]
fn faults_are_found() {
    for (expression, expected) in [
        ("portcullis_workers", &[][..]),
        ("portcullis_worker", &["no metric portcullis_worker"]),
        ("portcullis_links{state=\"up\"}", &["no series portcullis_links{state=\"up\"}"]),
        ("portcullis_links{state=~\"ready|up\"}", &["no series portcullis_links{state=\"up\"}"]),
        ("portcullis_links{instance=\"x\",state=\"ready\"}", &[]),
        ("sum by (state, job) (portcullis_links)", &[]),
        ("sum by (route) (rate(portcullis_route_closes_total{route=\"/x\"}[5m]))", &[]),
        (
            "sum by (listener) (portcullis_route_connections{cause=\"idle\"})",
            &[
                "no series portcullis_route_connections{cause=\"idle\"}",
                "by (listener), a label that none of its metrics has",
            ],
        ),
        (
            "sum by (stage) (portcullis_links)",
            &["by (stage), a label that none of its metrics has"],
        ),
        ("rate(portcullis_workers[5m])", &["the rate of the gauge portcullis_workers"]),
        ("portcullis_upgrades_total", &["the bare counter portcullis_upgrades_total"]),
        ("rate(portcullis_upgrades_total[5m])", &[]),
        ("rate(portcullis_verdict_seconds_sum[5m])", &[]),
        (
            "portcullis_verdict_seconds_count",
            &["the bare counter portcullis_verdict_seconds_count"],
        ),
        ("rate(process_cpu_seconds_total[5m]) + process_cpus", &["no metric process_cpus"]),
    ] {
        assert_eq!(faults(expression), expected, "{expression}");
    }
}

#[test]
fn alerts_name_what_exists_and_lead_to_the_runbook() {
    let operating = file("docs/operating.md");
    let headings: Vec<String> = operating
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .map(|heading| format!("{RUNBOOK}#{}", heading.to_lowercase()))
        .collect();
    let alerts = alerts();
    assert_eq!(alerts.len(), file("deploy/prometheus/alerts.yml").matches("alert: ").count());
    assert!(alerts.len() > 15, "{} alerts", alerts.len());
    for alert in &alerts {
        assert_eq!(faults(&alert.expression), [""; 0], "{alert:?}");
        let ours = uses(&alert.expression).len();
        assert!(ours > 0 || alert.expression == "up{job=\"portcullis\"} == 0\n", "{alert:?}");
        assert!(["page", "ticket", "info"].contains(&alert.severity.as_str()), "{alert:?}");
        assert!(alert.summary.len() > 10, "{alert:?}");
        assert_eq!(alert.runbook, format!("{RUNBOOK}#{}", alert.name.to_lowercase()));
        assert!(headings.contains(&alert.runbook), "no heading for {}", alert.name);
    }
    for heading in headings.iter().filter(|heading| heading.contains("#portcullis")) {
        assert!(alerts.iter().any(|alert| alert.runbook == *heading), "{heading}: no such alert");
    }
}

/// By Prometheus's own tool, where it is.
#[test]
fn prometheus_takes_the_rules_and_they_fire_when_they_should() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    for arguments in [["check", "config", "scrape.yml"], ["test", "rules", "alerts_test.yml"]] {
        let tried = Command::new("promtool").args(arguments).current_dir(&folder).output();
        let Ok(output) = tried else {
            eprintln!("no promtool: not tried");
            return;
        };
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {text}");
    }
}

/// The conventions of names, units and types, by Prometheus's own tool, where it is.
#[test]
fn prometheus_finds_nothing_to_say_about_the_metrics() {
    let mut exposition = Exposition::default();
    let block = Counters::default();
    let (listener, route) = (block.listeners.row(&["[::]:443"]), block.routes.row(&["/chat/*"]));
    let _ = block.endpoints.row(&["app", "10.0.0.1:7000"]);
    block.listeners.closed(listener, Cause::TlsFailed);
    block.routes.closed(route, Cause::Idle);
    exposition.publish([&block].into_iter(), &ControlNumbers::default(), &[]);
    let mut page = exposition.render();
    // No listener has TLS here.
    page.push_str(
        "# HELP portcullis_certificate_not_after_seconds Text.\n\
         # TYPE portcullis_certificate_not_after_seconds gauge\n\
         portcullis_certificate_not_after_seconds{listener=\"[::]:443\"} 1\n",
    );
    let command = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = command else {
        eprintln!("no promtool: not tried");
        return;
    };
    child.stdin.take().expect("piped").write_all(page.as_bytes()).expect("read");
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn the_scrape_job_is_the_one_that_alerts_and_dashboard_ask_for() {
    let scrape = file("deploy/prometheus/scrape.yml");
    assert!(scrape.contains("job_name: portcullis\n"), "up{{job=\"portcullis\"}} in alerts.yml");
    assert!(scrape.contains("metrics_path: /metrics\n"));
    assert!(scrape.contains("127.0.0.1:9464"), "the default of gateway.admin");
    assert!(scrape.contains("rule_files:\n  - alerts.yml\n"));
}

#[test]
fn the_dashboard_names_what_exists_and_all_of_it() {
    let mut shown = BTreeSet::new();
    for expression in dashboard::expressions() {
        // Grafana's own variables are not PromQL.
        let plain = expression.replace("$__rate_interval", "5m");
        assert_eq!(faults(&plain), [""; 0], "{expression}");
        assert!(!uses(&plain).is_empty(), "{expression}");
        shown.extend(uses(&plain).into_iter().map(|one| one.name));
    }
    for description in descriptions() {
        let reason = NOT_ON_THE_DASHBOARD.iter().find(|(name, _)| *name == description.name);
        let on = shown.contains(description.name);
        assert!(on || reason.is_some(), "neither shown nor excused: {}", description.name);
        assert!(!on || reason.is_none(), "shown and excused: {}", description.name);
    }
    for (name, _) in NOT_ON_THE_DASHBOARD {
        assert!(descriptions().any(|d| d.name == name), "no longer exists: {name}");
    }
}
