//! The bench harness's pure parts: statistics, figures, comparison with a baseline, the report.
//! A bench without libtest runs no tests of its own, so its files are compiled into this crate.
#![allow(dead_code)] // What only the harness calls.

#[path = "../benches/harness/results/mod.rs"]
mod results;
