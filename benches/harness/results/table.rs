//! Results as text for a terminal.

use std::fmt::Write as _;

use super::baseline::{self, Comparison};
use super::{BARE, Case, METRICS, Results, Summary, figures, grouped, number};

/// The whole report.
pub fn to_text(results: &Results, against: Option<&Comparison>) -> String {
    let mut text = String::new();
    for case in &results.cases {
        let _ = writeln!(text, "\n{} [{}]", case.title, case.id);
        text += &align(&case_rows(case));
        for (what, why) in grouped(&case.missing) {
            let _ = writeln!(text, "  {what}: not measured: {why}");
        }
        for run in case.runs.iter().filter(|run| !run.faults.is_empty()) {
            let faults = run.faults.join("; ");
            let _ = writeln!(text, "  {} round {} was not clean: {faults}", run.peer, run.round);
        }
    }
    let _ = writeln!(text, "\nfigures");
    let rows = figures::rows(results);
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let word = figures::word(row).to_owned();
            vec![row.what.to_owned(), row.figure.to_owned(), word, row.reading.clone()]
        })
        .collect();
    text += &align(&rows);
    if let Some(comparison) = against {
        let _ = writeln!(text, "\nagainst the baseline");
        text += &baseline::to_text(comparison);
    }
    for (what, why) in grouped(&results.missing) {
        let _ = writeln!(text, "\n{what}: not measured: {why}");
    }
    if !results.quiet() {
        let _ = writeln!(
            text,
            "\nNOT QUIET: other programs had cores during runs that are marked with *. Ratios and \
             bytes suffer least; do not quote rates and latencies."
        );
    }
    if !results.complete {
        let _ = writeln!(text, "\nCut short: this is what was measured up to then.");
    }
    text
}

/// A header and a row for each peer; columns that no peer has are left out.
pub fn case_rows(case: &Case) -> Vec<Vec<String>> {
    let peers = case.peers();
    let metrics: Vec<_> = METRICS
        .iter()
        .filter(|metric| peers.iter().any(|peer| case.summary(peer, metric.id).is_some()))
        .collect();
    let cpu = metrics.iter().any(|metric| metric.id == "server_cpu_us") && peers.contains(&BARE);
    let mut header = vec![String::new()];
    header.extend(metrics.iter().map(|metric| match metric.unit {
        "" => metric.label.to_owned(),
        unit => format!("{}, {unit}", metric.label),
    }));
    if cpu {
        header.push("CPU / bare".to_owned());
    }
    header.push("limit".to_owned());
    let mut rows = vec![header];
    for peer in peers {
        let quiet = case.runs.iter().filter(|run| run.peer == peer).all(super::Run::quiet);
        let mut row = vec![if quiet { peer.to_owned() } else { format!("{peer} *") }];
        for metric in &metrics {
            row.push(cell(case.summary(peer, metric.id), metric.id == "server_cpu_us"));
        }
        if cpu {
            row.push(cell(case.ratio(peer, BARE, "server_cpu_us"), false));
        }
        row.push(limits(case, peer));
        rows.push(row);
    }
    rows
}

/// What limited the runs, each thing said once.
fn limits(case: &Case, peer: &str) -> String {
    let mut all: Vec<&str> = Vec::new();
    for run in case.runs.iter().filter(|run| run.peer == peer) {
        if !run.limit.is_empty() && !all.contains(&run.limit.as_str()) {
            all.push(&run.limit);
        }
    }
    all.join("; ")
}

fn cell(summary: Option<Summary>, spread: bool) -> String {
    match summary {
        None => "–".to_owned(),
        Some(s) if spread && s.runs > 1 => {
            format!("{} ({}–{})", number(s.median), number(s.low), number(s.high))
        }
        Some(s) => number(s.median),
    }
}

/// Rows with their columns below each other.
pub fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}", width = *width))
            .collect();
        let _ = writeln!(text, "  {}", cells.join("  ").trim_end());
    }
    text
}
