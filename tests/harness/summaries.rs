//! Statistics, and results in their file.

use crate::example;
use crate::results::*;

#[test]
fn a_summary_is_the_middle_and_the_ends() {
    let cases = [
        (vec![], None),
        (vec![3.0], Some((3.0, 3.0, 3.0))),
        (vec![9.0, 1.0], Some((5.0, 1.0, 9.0))),
        (vec![9.0, 1.0, 2.0], Some((2.0, 1.0, 9.0))),
        (vec![4.0, 3.0, 2.0, 1.0], Some((2.5, 1.0, 4.0))),
        (vec![f64::NAN, 7.0, f64::INFINITY], Some((7.0, 7.0, 7.0))),
    ];
    for (values, expected) in cases {
        let got = Summary::of(&values, true).map(|s| (s.median, s.low, s.high));
        assert_eq!(got, expected, "{values:?}");
    }
}

#[test]
fn a_faulty_run_counts_only_where_no_other_is() {
    let mut results = example(&[("echo-64", "gateway", "rate", &[10.0, 50.0, 12.0])]);
    let case = &mut results.cases[0];
    case.runs[1].faults.push("answers missing".into());
    assert_eq!(case.summary("gateway", "rate").unwrap().median, 11.0);
    case.runs.iter_mut().for_each(|run| run.faults.push("lost".into()));
    assert_eq!(case.summary("gateway", "rate").unwrap().median, 12.0);
    assert!(!results.sound());
}

#[test]
fn a_ratio_needs_both_and_a_divisor() {
    let results = example(&[
        ("echo", "gateway", "server_cpu_us", &[6.0, 9.0, 7.5]),
        ("echo", "bare-ring", "server_cpu_us", &[5.0]),
        ("echo", "idle", "server_cpu_us", &[0.0]),
    ]);
    let case = &results.cases[0];
    let ratio = case.ratio("gateway", "bare-ring", "server_cpu_us").unwrap();
    assert_eq!((ratio.median, ratio.low, ratio.high, ratio.runs), (1.5, 1.2, 1.8, 1));
    assert_eq!(case.ratio("gateway", "nginx", "server_cpu_us"), None);
    assert_eq!(case.ratio("gateway", "idle", "server_cpu_us"), None);
}

#[test]
fn a_busy_neighbour_makes_a_summary_not_quiet() {
    let mut results = example(&[("echo", "gateway", "rate", &[1.0, 1.0])]);
    assert!(results.quiet() && results.cases[0].summary("gateway", "rate").unwrap().quiet);
    results.cases[0].runs[1].foreign = 0.3;
    assert!(!results.quiet() && !results.cases[0].summary("gateway", "rate").unwrap().quiet);
}

#[test]
fn results_survive_their_file_and_others_are_refused() {
    let results = example(&[("echo", "gateway", "rate", &[1.5]), ("open", "x", "rate", &[2.0])]);
    assert_eq!(Results::from_json(&results.to_json()), Ok(results.clone()));
    let newer = Results { format: FORMAT + 1, ..results };
    assert!(Results::from_json(&newer.to_json()).unwrap_err().contains("format 2"));
    assert!(Results::from_json("{}").unwrap_err().contains("not a results.json"));
}

#[test]
fn numbers_and_days_are_for_people() {
    let numbers = [
        (0.0, "0.00"),
        (0.0123, "0.012"),
        (1.234, "1.23"),
        (56.78, "56.8"),
        (4057.3, "4057"),
        (140_161.0, "140k"),
        (-2.5, "-2.50"),
    ];
    numbers.iter().for_each(|(value, text)| assert_eq!(number(*value), *text));
    let days = [
        (0, "1970-01-01"),
        (951_782_399, "2000-02-28"),
        (951_782_400, "2000-02-29"),
        (951_868_800, "2000-03-01"),
        (1_795_305_600, "2026-11-22"),
    ];
    days.iter().for_each(|(seconds, text)| assert_eq!(day(*seconds), *text));
}

#[test]
fn metrics_have_names_of_their_own() {
    for (index, metric) in METRICS.iter().enumerate() {
        let twice = METRICS[index + 1..].iter().any(|other| other.id == metric.id);
        assert!(!twice, "{}", metric.id);
    }
}
