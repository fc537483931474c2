//! Real faults on the real binary: what becomes of clients in every stage, and what is lost.
//!
//! Gateway and backends are processes of their own, so that they can be killed, stopped, starved
//! and cut off. It takes about a minute, and parts of it want root, so it is run by itself:
//! `cargo test --test faults -- --ignored` (`tests/run` does). What a machine cannot do is NOT
//! RUN, and named at the end; with PORTCULLIS_FAULTS=required it is a failure.

mod backend;
mod backends;
mod clock;
mod cut;
mod descriptors;
mod gateway;
mod memory;
mod report;
mod stages;
#[allow(dead_code, unused_imports)] // Shared with the end-to-end tests.
#[path = "../end_to_end/support/mod.rs"]
mod support;
mod world;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use report::Outcome;

type Fault = (&'static str, fn() -> Outcome);

const FAULTS: &[Fault] = &[
    ("backend_killed", backends::killed),
    ("backend_restarted", backends::restarted),
    ("backend_stopped", backends::stopped),
    ("backend_stopped_briefly", backends::stopped_briefly),
    ("one_backend_of_two_killed", backends::one_of_two_killed),
    ("one_backend_of_two_stopped", backends::one_of_two_stopped),
    ("backend_slowed", cut::slowed),
    ("backend_cut_off", cut::cut_off),
    ("backend_cut_off_briefly", cut::cut_off_briefly),
    ("descriptors_exhausted_plain", descriptors::plain),
    ("descriptors_exhausted_direct", descriptors::direct),
    ("descriptor_cap", descriptors::cap),
    ("memory_cgroup", memory::group),
    ("gateway_killed", gateway::killed),
    ("gateway_killed_while_revoking", gateway::killed_while_revoking),
    ("clock_forwards", clock::forwards),
    ("clock_backwards", clock::backwards),
];

fn main() -> ExitCode {
    // The same program is the backend, in processes that can be killed.
    let words: Vec<String> = std::env::args().collect();
    if let [_, backend, address] = words.as_slice()
        && backend == "backend"
    {
        backend::serve(address);
    }
    let mut arguments = Arguments::from_args();
    // Each fault has processes of its own, and waits for deadlines most of the time.
    arguments.test_threads = arguments.test_threads.or(Some(4));
    let trial = |(name, run): &Fault| {
        let (name, run) = (*name, *run);
        Trial::test(name, move || report::judge(name, run())).with_ignored_flag(true)
    };
    let conclusion = libtest_mimic::run(&arguments, FAULTS.iter().map(trial).collect());
    report::print_summary();
    conclusion.exit_code()
}
