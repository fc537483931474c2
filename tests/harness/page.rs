//! The report as a page.

use crate::example;
use crate::results::page::*;
use crate::results::{BARE, GATEWAY, Missing};

#[test]
fn the_page_stands_alone_and_escapes_what_it_was_given() {
    let mut results = example(&[
        ("echo-64-1000", BARE, "server_cpu_us", &[5.0, 6.0]),
        ("echo-64-1000", GATEWAY, "server_cpu_us", &[6.0]),
        ("echo-64-8000", BARE, "server_cpu_us", &[5.5]),
        ("echo-64-8000", GATEWAY, "p50_ms", &[1.0]),
        ("echo-64-8000", GATEWAY, "p99_ms", &[9.0]),
    ]);
    results.machine.processor = "<script>alert(1)</script>".to_owned();
    results.missing.push(Missing { what: "caddy".into(), why: "install \"caddy\"".into() });
    let page = to_html(&results, None);
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;"));
    assert!(page.contains("caddy: not measured: install &quot;caddy&quot;"));
    assert!(page.contains("Server CPU per message over connections"));
    assert!(!page.contains("Server CPU per message over message size"), "one size is no line");
    // Bars for two cases, a line over connections, one latency plot.
    assert_eq!(page.matches("<svg").count(), 4);
    for outside in ["src=", "href=", "url(", "@import"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert_eq!(page.matches("<table").count(), page.matches("</table>").count());
}

#[test]
fn what_a_reader_must_know_first_is_said_first() {
    let mut results = example(&[("echo-64-1000", GATEWAY, "rate", &[5.0])]);
    assert!(!to_html(&results, None).contains("class=\"warn\""));
    results.cases[0].runs[0].foreign = 1.0;
    results.quick = true;
    results.complete = false;
    let page = to_html(&results, None);
    let at = |words: &str| page.find(words).unwrap_or_else(|| panic!("{words}"));
    assert!(at("Not quiet") < at("A quick pass"));
    assert!(at("Cut short") < at("Figures to reach"));
}
