//! Plots as SVG.

use crate::results::Summary;
use crate::results::plots::*;

fn summary(median: f64) -> Summary {
    Summary { median, low: median * 0.9, high: median * 1.1, runs: 3, quiet: true }
}

#[test]
fn bars_are_svg_with_every_name_and_grow_with_the_value() {
    let svg = bars("µs", &[("bare".to_owned(), summary(5.0)), ("nginx".to_owned(), summary(20.0))]);
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
    assert!(svg.contains("bare") && svg.contains("nginx") && svg.contains("µs"));
    let widths: Vec<i32> = svg
        .split("<rect ")
        .filter(|rect| rect.contains("fill=\"#0072B2\"") || rect.contains("fill=\"#D55E00\""))
        .map(|rect| {
            let width = rect.split("width=\"").nth(1).expect("a width");
            width.split('"').next().and_then(|w| w.parse().ok()).expect("a number")
        })
        .collect();
    assert_eq!(widths.len(), 2);
    assert!((3..=5).contains(&(widths[1] / widths[0])), "{widths:?}");
}

#[test]
fn every_row_has_a_bar() {
    for count in 1..10 {
        let names: Vec<_> = (0..count).map(|n| (format!("peer {n}"), summary(5.0))).collect();
        let svg = bars("µs", &names);
        let number = |rect: &str, name: &str| -> i32 {
            let value = rect.split(&format!("{name}=\"")).nth(1).expect("there");
            value.split('"').next().and_then(|number| number.parse().ok()).expect("a number")
        };
        // The first is the background.
        let mut tops: Vec<i32> = svg.split("<rect ").skip(2).map(|r| number(r, " y")).collect();
        tops.sort_unstable();
        assert_eq!(tops.len(), count, "{svg}");
        assert!(tops[0] < 30, "nothing stands above the first bar: {tops:?}");
        let steps: Vec<i32> = tops.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(steps.iter().all(|step| (28..45).contains(step)), "{tops:?}");
    }
}

#[test]
fn lines_are_svg_with_a_legend() {
    let line = |name: &str, top: f64| Line {
        name: name.to_owned(),
        points: QUANTILES.iter().map(|(_, at)| (*at, 0.1 + top * at)).collect(),
    };
    let svg = quantiles("ms", &[line("gateway", 1.0), line("haproxy", 10.0)]);
    for word in ["gateway", "haproxy", "p50", "p99.9", "ms"] {
        assert!(svg.contains(word), "{word}: {svg}");
    }
}

#[test]
fn odd_values_still_draw() {
    let one = Line { name: "x".to_owned(), points: vec![(6.0, 0.0)] };
    assert!(over_sizes("bytes", "µs", &[one]).contains("</svg>"));
    assert!(quantiles("ms", &[]).contains("</svg>"));
    assert!(bars("µs", &[]).contains("</svg>"));
}
