//! Against an earlier run: what became worse, what better, and what cannot be told.
//!
//! Only the gateway is judged, the others are its yardsticks. CPU is judged as a multiple of the
//! bare echo's in the same case and run, so that a baseline of one machine serves on another;
//! memory is judged in bytes. Rates and latencies are not judged: they are the machine's hour's.

use super::{BARE, Case, GATEWAY, Judged, METRICS, Results, Summary, number};

/// What is said of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Above the tolerance, and the runs' ranges do not touch.
    Worse,
    /// Below it, likewise.
    Better,
    /// Within the tolerance.
    Same,
    /// Above or below it, but the ranges overlap or a run was not quiet: measure again.
    Unsure,
}

/// One value then and now.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The case.
    pub case: String,
    /// The peer: the gateway in one of its forms.
    pub peer: String,
    /// What is compared, with its unit.
    pub what: String,
    /// The baseline's.
    pub before: Summary,
    /// This run's.
    pub now: Summary,
    /// What to think of it.
    pub judgement: Judgement,
}

/// A comparison with an earlier run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Every value that both have.
    pub changes: Vec<Change>,
    /// What the baseline has and this run has not.
    pub gone: Vec<String>,
}

impl Comparison {
    /// Changes that are worse.
    pub fn regressions(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(|change| change.judgement == Judgement::Worse)
    }
}

/// Compares; `tolerance` is a part, as 0.1 for a tenth.
pub fn compare(before: &Results, now: &Results, tolerance: f64) -> Comparison {
    let mut comparison = Comparison::default();
    for old in &before.cases {
        for peer in old.peers().into_iter().filter(|peer| peer.starts_with(GATEWAY)) {
            for metric in METRICS.iter().filter(|metric| metric.judged != Judged::Not) {
                let value = |case: &Case| match metric.judged {
                    Judged::AgainstBare => case.ratio(peer, BARE, metric.id),
                    _ => case.summary(peer, metric.id),
                };
                let Some(was) = value(old) else { continue };
                let Some(is) = now.case(&old.id).and_then(value) else {
                    comparison.gone.push(format!("{}: {peer}: {}", old.id, metric.label));
                    continue;
                };
                let what = match metric.judged {
                    Judged::AgainstBare => format!("{} / bare echo", metric.label),
                    _ => format!("{}, {}", metric.label, metric.unit),
                };
                comparison.changes.push(Change {
                    case: old.id.clone(),
                    peer: peer.to_owned(),
                    what,
                    before: was,
                    now: is,
                    judgement: judge(&was, &is, tolerance),
                });
            }
        }
    }
    comparison
}

fn judge(before: &Summary, now: &Summary, tolerance: f64) -> Judgement {
    let ratio = now.median / before.median;
    let (worse, better) = (ratio > 1.0 + tolerance, ratio < 1.0 / (1.0 + tolerance));
    let apart = match worse {
        true => now.low > before.high,
        false => now.high < before.low,
    };
    match (worse, better) {
        (false, false) => Judgement::Same,
        _ if !apart || !before.quiet || !now.quiet => Judgement::Unsure,
        (true, _) => Judgement::Worse,
        (false, true) => Judgement::Better,
    }
}

/// The comparison as text, the worst first.
pub fn to_text(comparison: &Comparison) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let order = [Judgement::Worse, Judgement::Unsure, Judgement::Better, Judgement::Same];
    for judgement in order {
        for change in comparison.changes.iter().filter(|c| c.judgement == judgement) {
            let _ = writeln!(
                text,
                "  {:8} {} {}: {}: {} → {} ({:+.0} %)",
                word(judgement),
                change.case,
                change.peer,
                change.what,
                number(change.before.median),
                number(change.now.median),
                percent(change),
            );
        }
    }
    for gone in &comparison.gone {
        let _ = writeln!(text, "  not measured now: {gone}");
    }
    text
}

/// For people.
pub fn word(judgement: Judgement) -> &'static str {
    match judgement {
        Judgement::Worse => "WORSE",
        Judgement::Better => "better",
        Judgement::Same => "same",
        Judgement::Unsure => "unsure",
    }
}

/// The change of the medians.
pub fn percent(change: &Change) -> f64 {
    (change.now.median / change.before.median - 1.0) * 100.0
}
