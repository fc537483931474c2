//! The figures to reach, judged.

use crate::example;
use crate::results::figures::*;
use crate::results::{BARE, GATEWAY, Missing};

const CPU: &str = "server_cpu_us";

fn find<'a>(rows: &'a [Row], what: &str) -> &'a Row {
    rows.iter().find(|row| row.what.contains(what)).expect("a figure of that name")
}

#[test]
fn ratios_are_judged_by_their_medians() {
    for (gateway, verdict) in [(6.5, Verdict::Reached), (6.6, Verdict::NotReached)] {
        let results = example(&[
            ("echo-64-1000", BARE, CPU, &[5.0, 4.0, 6.0]),
            ("echo-64-1000", GATEWAY, CPU, &[gateway, 1.0, 9.0]),
        ]);
        let rows = rows(&results);
        let row = find(&rows, "1,000 connections, against the bare echo");
        assert_eq!(row.verdict, verdict);
        assert!(row.reading.ends_with("× (0.20 to 1.80)"), "{}", row.reading);
        assert_eq!(find(&rows, "against nginx").verdict, Verdict::NotMeasured);
    }
}

#[test]
fn a_lower_bound_is_one() {
    for (value, verdict) in [(99.9, Verdict::Reached), (99.89, Verdict::NotReached)] {
        let results = example(&[("flood", GATEWAY, "success_percent", &[value])]);
        assert_eq!(find(&rows(&results), "that succeeded").verdict, verdict);
    }
}

#[test]
fn the_kernels_share_is_less_the_clients_end() {
    let results = example(&[
        ("idle-plain", GATEWAY, "kernel_bytes", &[9500.0]),
        ("idle-plain", BARE, "kernel_bytes", &[9000.0]),
    ]);
    let rows = rows(&results);
    let row = find(&rows, "the gateway's end");
    assert_eq!((row.reading.as_str(), row.verdict), ("5000 B", Verdict::NotReached));
}

#[test]
fn added_latency_is_the_difference_at_one_rate() {
    let results = example(&[
        ("latency-64-1000", GATEWAY, "p99_ms", &[1.5, 1.6, 1.4]),
        ("latency-64-1000", "bare-ring-same-rate", "p99_ms", &[0.7]),
    ]);
    let rows = rows(&results);
    let row = find(&rows, "latency added");
    assert_eq!((row.reading.as_str(), row.verdict), ("0.80 ms", Verdict::Reached));
}

#[test]
fn less_than_nothing_reaches_no_figure() {
    let results = example(&[
        ("idle-plain", GATEWAY, "kernel_bytes", &[4000.0]),
        ("idle-plain", BARE, "kernel_bytes", &[9000.0]),
    ]);
    let rows = rows(&results);
    let row = find(&rows, "the gateway's end");
    assert_eq!(row.verdict, Verdict::NotMeasured);
    assert_eq!(row.reading, "the machine was not quiet enough: -500");
}

#[test]
fn what_is_missing_is_named_with_its_reason() {
    let mut results = example(&[("echo-64-1000", GATEWAY, CPU, &[5.0])]);
    let why = "install nginx-light".to_owned();
    results.missing.push(Missing { what: "nginx".to_owned(), why });
    let rows = rows(&results);
    assert_eq!(find(&rows, "against nginx").reading, "nginx: install nginx-light");
    assert_eq!(find(&rows, "8,000").reading, "case echo-64-8000 was not run");
}
