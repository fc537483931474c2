//! The report as text.

use crate::example;
use crate::results::table::*;
use crate::results::{BARE, GATEWAY, Missing};

#[test]
fn a_case_has_a_column_for_each_value_that_a_peer_has() {
    let mut results = example(&[
        ("echo-64", BARE, "server_cpu_us", &[5.0, 4.0, 7.0]),
        ("echo-64", BARE, "rate", &[150_000.0]),
        ("echo-64", GATEWAY, "server_cpu_us", &[6.0]),
    ]);
    results.cases[0].runs[3].foreign = 1.0;
    results.cases[0].runs[0].limit = "the server is saturated".to_owned();
    let rows = case_rows(&results.cases[0]);
    let expected = [
        vec!["", "server CPU each, µs", "rate, /s", "CPU / bare", "limit"],
        vec![BARE, "5.00 (4.00–7.00)", "150k", "1.00", "the server is saturated"],
        vec!["gateway *", "6.00", "–", "1.20", ""],
    ];
    assert_eq!(rows, expected);
}

#[test]
fn the_text_names_what_is_missing_faulty_and_cut_short() {
    let mut results = example(&[("echo-64", GATEWAY, "rate", &[1.0])]);
    results.complete = false;
    results.cases[0].runs[0].faults = vec!["3 answers missing".to_owned()];
    let missing = |what: &str, why: &str| Missing { what: what.into(), why: why.into() };
    results.cases[0].missing.push(missing("bare-ring", "has no TLS"));
    results.cases[0].missing.push(missing("bare-tokio-uring", "has no TLS"));
    results.missing.push(missing("caddy", "install caddy"));
    let text = to_text(&results, None);
    for line in [
        "  gateway round 1 was not clean: 3 answers missing",
        "  bare-ring, bare-tokio-uring: not measured: has no TLS",
        "caddy: not measured: install caddy",
        "Cut short: this is what was measured up to then.",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(!text.contains("NOT QUIET"));
}

#[test]
fn columns_line_up() {
    let rows = [
        vec!["a".to_owned(), "µµµ".to_owned(), "x".to_owned()],
        vec!["bbb".to_owned(), "c".to_owned(), "y".to_owned()],
    ];
    assert_eq!(align(&rows), "  a    µµµ  x\n  bbb  c    y\n");
}
