//! What became worse since an earlier run.

use crate::example;
use crate::results::baseline::*;
use crate::results::{BARE, GATEWAY, Results};

const CPU: &str = "server_cpu_us";

fn echo(bare: &[f64], gateway: &[f64]) -> Results {
    example(&[("echo", BARE, CPU, bare), ("echo", GATEWAY, CPU, gateway)])
}

#[test]
fn cpu_is_judged_by_its_ratio_and_by_the_spread() {
    let before = echo(&[5.0, 5.0, 5.0], &[6.0, 6.0, 6.2]);
    let cases = [
        // A machine of half the speed changes nothing.
        (echo(&[10.0, 10.0, 10.0], &[12.0, 12.1, 12.0]), Judgement::Same),
        (echo(&[5.0, 5.0, 5.0], &[8.0, 8.1, 7.9]), Judgement::Worse),
        (echo(&[5.0, 5.0, 5.0], &[4.0, 4.1, 3.9]), Judgement::Better),
        // The median is worse, but one run was as good as before.
        (echo(&[5.0, 5.0, 5.0], &[8.0, 8.1, 6.1]), Judgement::Unsure),
    ];
    for (now, expected) in cases {
        let comparison = compare(&before, &now, 0.1);
        assert_eq!(comparison.changes.len(), 1);
        assert_eq!(comparison.changes[0].judgement, expected, "{}", to_text(&comparison));
        let regressions = comparison.regressions().count();
        assert_eq!(regressions == 1, expected == Judgement::Worse);
    }
}

#[test]
fn a_run_that_was_not_quiet_is_never_called_a_regression() {
    let before = echo(&[5.0], &[6.0]);
    let mut now = echo(&[5.0], &[12.0]);
    assert_eq!(compare(&before, &now, 0.1).changes[0].judgement, Judgement::Worse);
    now.cases[0].runs[1].foreign = 0.9;
    assert_eq!(compare(&before, &now, 0.1).changes[0].judgement, Judgement::Unsure);
}

#[test]
fn memory_is_judged_as_it_is_and_rates_are_not() {
    let idle = |bytes: f64, rate: f64| {
        let runs: [(&str, &str, &str, &[f64]); 3] = [
            ("idle-plain", GATEWAY, "user_bytes", &[bytes]),
            ("idle-plain", GATEWAY, "rate", &[rate]),
            ("idle-plain", "nginx", "user_bytes", &[bytes]),
        ];
        example(&runs)
    };
    let comparison = compare(&idle(400.0, 100.0), &idle(500.0, 1.0), 0.1);
    assert_eq!(comparison.changes.len(), 1);
    assert_eq!(comparison.changes[0].judgement, Judgement::Worse);
    let text = to_text(&comparison);
    assert!(text.contains("WORSE    idle-plain gateway: user memory each, B: 400 → 500 (+25 %)"));
}

#[test]
fn what_is_not_measured_any_more_is_named() {
    let comparison = compare(&echo(&[5.0], &[6.0]), &example(&[]), 0.1);
    assert_eq!(comparison.gone, ["echo: gateway: server CPU each"]);
    assert!(to_text(&comparison).contains("not measured now: echo"));
}

#[test]
fn the_committed_baseline_can_be_read() {
    let text = include_str!("../../benches/baseline.json");
    let baseline = Results::from_json(text).expect("of this format");
    assert!(baseline.complete);
    let comparison = compare(&baseline, &baseline, 0.1);
    assert!(comparison.gone.is_empty());
    assert!(comparison.changes.iter().any(|change| change.case == "echo-64-1000"));
    assert!(comparison.changes.iter().all(|change| change.judgement == Judgement::Same));
}
