//! Results as one HTML page that needs nothing beside it.

use std::fmt::Write as _;

use super::baseline::{self, Comparison, Judgement};
use super::figures::{self, Verdict};
use super::plots::{self, Line};
use super::{Case, Results, table};

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8884;--soft:#8881}\
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2.2rem;border-bottom:1px solid var(--line)}\
table{border-collapse:collapse;display:block;overflow-x:auto;font-size:.88rem}\
th,td{text-align:left;padding:.25rem .7rem .25rem 0;border-bottom:1px solid var(--line);\
vertical-align:top;font-variant-numeric:tabular-nums}\
.reached{color:#0a7d4d}.not{color:#c2410c}.none{opacity:.7}\
.warn{border-left:4px solid #e69f00;padding:.4rem .8rem;background:var(--soft)}\
svg{max-width:100%;height:auto;background:#fff;border-radius:6px;margin:.6rem 0;display:block}\
@media (prefers-color-scheme:dark){.reached{color:#4ade80}.not{color:#fb923c}}";

/// The page.
pub fn to_html(results: &Results, against: Option<&Comparison>) -> String {
    let mut page = String::new();
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>Portcullis against its peers</title><style>{STYLE}</style></head><body>\
         <h1>Portcullis against its peers</h1>"
    );
    about(&mut page, results);
    figures_table(&mut page, results);
    if let Some(comparison) = against {
        against_table(&mut page, comparison);
    }
    overview(&mut page, results);
    results.cases.iter().for_each(|case| one_case(&mut page, case));
    if !results.missing.is_empty() {
        let _ = write!(page, "<h2>Not measured</h2>");
        missing_list(&mut page, &results.missing);
    }
    page.push_str("</body></html>\n");
    page
}

/// Text as it may stand between tags and in attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

fn about(page: &mut String, results: &Results) {
    let machine = &results.machine;
    let _ = write!(
        page,
        "<p>{}, {} cores of {}, {:.1} GiB, Linux {}. Client and server on loopback: take the \
         ratios, not the microseconds.<br><code>{}</code></p>",
        super::day(results.began_s),
        machine.cores,
        escape(&machine.processor),
        machine.memory as f64 / (1u64 << 30) as f64,
        escape(&machine.kernel),
        escape(&results.command),
    );
    for (peer, version) in &machine.versions {
        let _ = write!(page, "<div class=\"none\">{}: {}</div>", escape(peer), escape(version));
    }
    if !results.quiet() {
        page.push_str(
            "<p class=\"warn\">Not quiet: other programs had cores during the runs that are \
             marked with *. Ratios and bytes suffer least; rates and latencies are not fit to be \
             quoted.</p>",
        );
    }
    if results.quick {
        page.push_str("<p class=\"warn\">A quick pass: short runs, and few of them.</p>");
    }
    if !results.complete {
        page.push_str("<p class=\"warn\">Cut short: this is what was measured up to then.</p>");
    }
}

fn figures_table(page: &mut String, results: &Results) {
    page.push_str(
        "<h2>Figures to reach</h2><table><tr><th>what</th><th>figure</th><th>measured</th>\
         <th></th></tr>",
    );
    for row in figures::rows(results) {
        let class = match row.verdict {
            Verdict::Reached => "reached",
            Verdict::NotReached => "not",
            Verdict::NotMeasured => "none",
        };
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"{class}\">{}</td></tr>",
            escape(row.what),
            escape(row.figure),
            escape(&row.reading),
            figures::word(&row)
        );
    }
    page.push_str("</table>");
}

fn against_table(page: &mut String, comparison: &Comparison) {
    page.push_str(
        "<h2>Against the baseline</h2><table><tr><th>case</th><th>peer</th><th>what</th>\
         <th>then</th><th>now</th><th></th></tr>",
    );
    for change in &comparison.changes {
        let class = match change.judgement {
            Judgement::Worse => "not",
            Judgement::Better => "reached",
            _ => "none",
        };
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td class=\"{class}\">{} ({:+.0} %)</td></tr>",
            escape(&change.case),
            escape(&change.peer),
            escape(&change.what),
            super::number(change.before.median),
            super::number(change.now.median),
            baseline::word(change.judgement),
            baseline::percent(change),
        );
    }
    page.push_str("</table>");
    for gone in &comparison.gone {
        let _ = write!(page, "<p class=\"none\">Not measured now: {}</p>", escape(gone));
    }
}

/// CPU over message sizes and over connections, where there are several of either.
fn overview(page: &mut String, results: &Results) {
    for (number, title, unit) in [(1, "message size", "bytes"), (2, "connections", "connections")] {
        let cases: Vec<(&Case, f64)> = results
            .cases
            .iter()
            .filter(|case| case.scenario == "echo" && belongs(case, number))
            .filter_map(|case| Some((case, part(case, number)?)))
            .collect();
        if cases.len() < 2 {
            continue;
        }
        let mut lines: Vec<Line> = Vec::new();
        for (case, at) in cases {
            for peer in case.peers() {
                let Some(cpu) = case.summary(peer, "server_cpu_us") else { continue };
                let point = (at.log2(), cpu.median);
                match lines.iter_mut().find(|line| line.name == peer) {
                    Some(line) => line.points.push(point),
                    None => lines.push(Line { name: peer.to_owned(), points: vec![point] }),
                }
            }
        }
        for line in &mut lines {
            line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
        }
        let _ = write!(page, "<h2>Server CPU per message over {title}</h2>");
        page.push_str(&plots::over_sizes(unit, "µs", &lines));
    }
}

/// `echo-SIZE-CONNECTIONS` in its parts.
fn part(case: &Case, number: usize) -> Option<f64> {
    case.id.split('-').nth(number)?.parse().ok()
}

/// Whether a case is on the line where only that part changes.
fn belongs(case: &Case, number: usize) -> bool {
    match number {
        1 => part(case, 2) == Some(1000.0),
        _ => part(case, 1) == Some(64.0),
    }
}

fn one_case(page: &mut String, case: &Case) {
    let _ = write!(page, "<h2>{}</h2>", escape(&case.title));
    let bars = |metric: &str| -> Vec<(String, super::Summary)> {
        let peers = case.peers().into_iter();
        peers.filter_map(|peer| Some((peer.to_owned(), case.summary(peer, metric)?))).collect()
    };
    for (metric, unit) in [
        ("server_cpu_us", format!("server CPU per {}, µs", case.event)),
        ("user_bytes", format!("user memory per {}, bytes", case.event)),
        ("kernel_bytes", format!("kernel memory per {}, all ends, bytes", case.event)),
    ] {
        let bars = bars(metric);
        if !bars.is_empty() {
            page.push_str(&plots::bars(&unit, &bars));
        }
    }
    let lines: Vec<Line> = case
        .peers()
        .into_iter()
        .map(|peer| {
            let metrics = ["p50_ms", "p90_ms", "p99_ms", "p999_ms"];
            let heights = metrics.iter().map(|metric| case.summary(peer, metric));
            let points = plots::QUANTILES.iter().zip(heights);
            let points = points.filter_map(|((_, at), height)| Some((*at, height?.median)));
            Line { name: peer.to_owned(), points: points.collect() }
        })
        .filter(|line| line.points.len() > 1)
        .collect();
    if !lines.is_empty() {
        page.push_str(&plots::quantiles("ms", &lines));
    }
    let rows = table::case_rows(case);
    page.push_str("<table>");
    for (index, row) in rows.iter().enumerate() {
        let tag = if index == 0 { "th" } else { "td" };
        page.push_str("<tr>");
        for cell in row {
            let _ = write!(page, "<{tag}>{}</{tag}>", escape(cell));
        }
        page.push_str("</tr>");
    }
    page.push_str("</table>");
    for run in case.runs.iter().filter(|run| !run.faults.is_empty()) {
        let faults = escape(&run.faults.join("; "));
        let _ = write!(
            page,
            "<p class=\"warn\">{}, round {}: {faults}</p>",
            escape(&run.peer),
            run.round
        );
    }
    missing_list(page, &case.missing);
}

fn missing_list(page: &mut String, missing: &[super::Missing]) {
    for (what, why) in super::grouped(missing) {
        let (what, why) = (escape(&what), escape(why));
        let _ = write!(page, "<p class=\"none\">{what}: not measured: {why}</p>");
    }
}
