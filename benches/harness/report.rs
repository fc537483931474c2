//! One report, as text for people and as JSON for programs.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::measure::CpuUse;
use crate::stats::{Latencies, Stats};

/// Sections of labelled values, in order.
pub struct Report {
    scenario: &'static str,
    sections: Vec<(String, Vec<Line>)>,
}

struct Line {
    label: String,
    value: Value,
    text: String,
}

impl Report {
    /// An empty report.
    pub fn new(scenario: &'static str) -> Report {
        Report { scenario, sections: Vec::new() }
    }

    /// Begins a section.
    pub fn section(&mut self, title: impl Into<String>) {
        self.sections.push((title.into(), Vec::new()));
    }

    /// Adds a value with its own text.
    pub fn line(&mut self, label: impl Into<String>, value: Value, text: impl Into<String>) {
        if self.sections.is_empty() {
            self.section("result");
        }
        let (_, lines) = self.sections.last_mut().expect("a section was begun");
        lines.push(Line { label: label.into(), value, text: text.into() });
    }

    /// Adds a number with a unit.
    pub fn number(&mut self, label: &str, value: f64, unit: &str) {
        let text = match value.abs() {
            v if v >= 1000.0 => format!("{value:.0}{unit}"),
            v if v >= 10.0 => format!("{value:.1}{unit}"),
            _ => format!("{value:.2}{unit}"),
        };
        self.line(label, json!(value), text);
    }

    /// Adds a count.
    pub fn count(&mut self, label: &str, value: u64) {
        self.line(label, json!(value), value.to_string());
    }

    /// Adds a text.
    pub fn text(&mut self, label: &str, value: &str) {
        self.line(label, json!(value), value);
    }

    /// Adds percentiles of spans, in microseconds; says so when there are none.
    pub fn latency(&mut self, label: &str, spans: &Latencies) {
        if spans.is_empty() {
            return self.line(label, Value::Null, "none recorded");
        }
        let micros = |nanoseconds: u64| nanoseconds as f64 / 1000.0;
        let at = |quantile: f64| micros(spans.value_at_quantile(quantile));
        let (p50, p99, p999) = (at(0.5), at(0.99), at(0.999));
        let max = micros(spans.max());
        let value = json!({
            "count": spans.len(), "p50_us": p50, "p99_us": p99, "p99_9_us": p999, "max_us": max,
        });
        let text = format!(
            "p50 {}  p99 {}  p99.9 {}  max {}",
            span(p50),
            span(p99),
            span(p999),
            span(max)
        );
        self.line(label, value, text);
    }

    /// Adds what a side used.
    pub fn cpu(&mut self, side: &str, used: &CpuUse) {
        let value = json!({
            "cpu_seconds": used.cpu, "wall_seconds": used.wall, "busiest_thread": used.busiest,
            "waited_seconds": used.waited,
        });
        let text = format!(
            "{:.2} s in {:.2} s; busiest thread {:.0} % of a core; waited {:.2} s for a core",
            used.cpu,
            used.wall,
            used.busiest * 100.0,
            used.waited
        );
        self.line(format!("{side} CPU"), value, text);
    }

    /// Adds failures, close codes and what the server said instead.
    pub fn outcomes(&mut self, stats: &Stats) {
        if let Some(error) = &stats.error {
            self.text("load thread stopped", error);
        }
        for (kind, count) in &stats.failures {
            self.line(format!("failure: {kind}"), json!(count), count.to_string());
        }
        for (code, (count, reason)) in &stats.closes {
            let value = json!({ "count": count, "reason": reason });
            let text = match reason.is_empty() {
                true => count.to_string(),
                false => format!("{count} ({:?})", reason),
            };
            self.line(format!("close code {code}"), value, text);
        }
        if let Some(sample) = &stats.sample {
            self.text("the server said", sample);
        }
    }

    /// The report as text.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (title, lines) in &self.sections {
            let _ = writeln!(text, "\n{title}");
            let width = lines.iter().map(|line| line.label.len()).max().unwrap_or(0);
            for line in lines {
                let _ = writeln!(text, "  {:width$}  {}", line.label, line.text);
            }
        }
        text
    }

    /// The report as JSON: sections by title, labels with `_` for spaces.
    pub fn to_json(&self) -> Value {
        let key = |label: &str| label.replace(' ', "_").to_lowercase();
        let mut all = Map::new();
        all.insert("scenario".to_owned(), json!(self.scenario));
        for (title, lines) in &self.sections {
            let section: Map<String, Value> =
                lines.iter().map(|line| (key(&line.label), line.value.clone())).collect();
            all.insert(key(title), Value::Object(section));
        }
        Value::Object(all)
    }

    /// Prints the text and writes the JSON file, if one is wanted.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn publish(&self, json: Option<&Path>) -> Result<(), String> {
        print!("{}", self.to_text());
        let Some(path) = json else { return Ok(()) };
        let text = serde_json::to_string_pretty(&self.to_json()).map_err(|e| e.to_string())?;
        std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// Microseconds in a unit that people read.
pub fn span(micros: f64) -> String {
    match micros {
        m if m >= 1_000_000.0 => format!("{:.2} s", m / 1_000_000.0),
        m if m >= 1000.0 => format!("{:.2} ms", m / 1000.0),
        m => format!("{m:.0} µs"),
    }
}

/// Bytes in a unit that people read.
pub fn bytes(value: f64) -> String {
    match value.abs() {
        v if v >= 1024.0 * 1024.0 => format!("{:.1} MiB", value / 1024.0 / 1024.0),
        v if v >= 10.0 * 1024.0 => format!("{:.1} KiB", value / 1024.0),
        _ => format!("{value:.0} B"),
    }
}
