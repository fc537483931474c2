//! The bench harness's pure parts: statistics, figures, comparison with a baseline, the report.
//! A bench without libtest runs no tests of its own, so its files are compiled into this crate.

mod baseline;
mod figures;
mod machine;
#[allow(dead_code)] // What only the harness asks.
#[path = "../../benches/harness/measure.rs"]
mod measure;
mod page;
mod plots;
#[path = "../../benches/harness/results/mod.rs"]
mod results;
mod summaries;
mod table;

use std::collections::BTreeMap;

use results::{Case, FORMAT, Results, Run};

/// A hand-made result: case, peer, metric, and a value for each round.
fn example(runs: &[(&str, &str, &str, &[f64])]) -> Results {
    let mut results = Results { format: FORMAT, complete: true, ..Results::default() };
    for (case, peer, metric, values) in runs {
        if results.case(case).is_none() {
            let scenario = case.split('-').next().unwrap_or_default().to_owned();
            let title = format!("work {case}");
            let id = (*case).to_owned();
            results.cases.push(Case { id, scenario, title, ..Case::default() });
        }
        let case = results.cases.iter_mut().find(|known| known.id == *case).expect("just made");
        for (round, value) in values.iter().enumerate() {
            let known =
                case.runs.iter_mut().find(|run| run.peer == *peer && run.round == round as u32 + 1);
            match known {
                Some(run) => drop(run.values.insert((*metric).to_owned(), *value)),
                None => case.runs.push(Run {
                    peer: (*peer).to_owned(),
                    round: round as u32 + 1,
                    values: BTreeMap::from([((*metric).to_owned(), *value)]),
                    ..Run::default()
                }),
            }
        }
    }
    results
}
