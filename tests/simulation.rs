//! A whole worker in a simulated world: a fixed set of seeds, the same every time.
//!
//! `PORTCULLIS_SEED=123 cargo test --test simulation -- --nocapture` replays one seed;
//! `PORTCULLIS_SEEDS=5000` runs that many instead of the usual number.

use std::collections::BTreeMap;

use portcullis::sim::scenario::Scenario;
use portcullis::sim::{Bug, Options, Outcome, run};

/// Seeds of an ordinary `cargo test`.
const SEEDS: u64 = 120;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}")))
}

fn check(seed: u64, outcome: &Outcome) {
    if let Some(failure) = &outcome.failure {
        panic!(
            "seed {seed}: {failure}\nreplay: \
             PORTCULLIS_SEED={seed} cargo test --test simulation -- --nocapture"
        );
    }
}

#[test]
fn every_seed_keeps_every_invariant() {
    if let Some(seed) = number("PORTCULLIS_SEED") {
        let outcome = run(seed, &Options::default());
        println!("{outcome:#?}");
        return check(seed, &outcome);
    }
    let seeds = number("PORTCULLIS_SEEDS").unwrap_or(SEEDS);
    let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
    let mut totals = [0; 7];
    let mut failed = Vec::new();
    for seed in 0..seeds {
        let outcome = run(seed, &Options::default());
        if let Some(failure) = &outcome.failure {
            let first = failure.lines().next().unwrap_or_default();
            println!("seed {seed} FAILED: {first}");
            failed.push(seed);
        }
        for (label, count) in &outcome.faults {
            *faults.entry(label).or_default() += count;
        }
        let Outcome { messages_up, messages_down, completed, refused, sessions, .. } = outcome;
        let Outcome { deadlines, millis, .. } = outcome;
        let numbers = [messages_up, messages_down, completed, refused, sessions, deadlines, millis];
        totals.iter_mut().zip(numbers).for_each(|(total, number)| *total += number);
    }
    let [up, down, completed, refused, sessions, deadlines, millis] = totals;
    let fired: u64 = faults.values().sum();
    println!("{seeds} seeds, {} failed; {} s of simulated time", failed.len(), millis / 1000);
    println!("messages up {up}, down {down}; sessions {sessions}");
    println!("exchanges completed {completed}, clients refused {refused}");
    println!("deadlines that came due {deadlines}; faults fired {fired}");
    for (label, count) in &faults {
        println!("{label:<24}{count:>10}");
    }
    if let Some(seed) = failed.first() {
        println!("failed: {failed:?}");
        check(*seed, &run(*seed, &Options::default()));
    }
    assert!(up > seeds * 20 && completed > seeds && refused > seeds / 4, "the world is too quiet");
    assert!(deadlines > seeds, "only {deadlines} deadlines came due");
    if seeds >= SEEDS {
        for (label, count) in faults {
            assert!(count > 0, "{label} never happened");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 1_000_003] {
        let (first, second) = (run(seed, &Options::default()), run(seed, &Options::default()));
        assert_eq!((first.hash, first.events), (second.hash, second.events), "seed {seed}");
    }
    let other = run(4, &Options::default());
    assert_ne!(run(3, &Options::default()).hash, other.hash, "the hash says nothing");
}

/// Seeds of the flood.
const FLOODS: u64 = 6;

fn flood(seed: u64, bug: Option<Bug>) -> Outcome {
    run(seed, &Options { bug, quiet: Some(Scenario::flood(seed)) })
}

#[test]
fn a_flood_from_few_addresses_hurts_nobody_else() {
    let seeds = number("PORTCULLIS_SEEDS").unwrap_or(FLOODS);
    let (mut dropped, mut evicted, mut completed) = (0, 0, 0);
    for seed in 0..seeds {
        let outcome = flood(seed, None);
        assert_eq!(outcome.failure, None, "seed {seed}");
        dropped += outcome.dropped_early;
        evicted += outcome.evicted;
        completed += outcome.completed;
    }
    println!("{seeds} floods: dropped {dropped}, evicted {evicted}, completed {completed}");
    assert!(dropped > seeds * 100 && evicted > seeds * 10, "dropped {dropped}, evicted {evicted}");
    assert!(completed > seeds * 50, "completed {completed}");
}

#[test]
fn a_flood_that_hurts_is_seen() {
    for (bug, told) in [(Bug::PeersAlike, "cut short"), (Bug::CapIgnored, "of the adversary's")] {
        let found = (0..20).find_map(|seed| flood(seed, Some(bug)).failure);
        let failure = found.unwrap_or_else(|| panic!("{bug:?} went unnoticed"));
        assert!(failure.contains(told), "{bug:?} was seen as: {failure}");
    }
}

#[test]
fn planted_bugs_are_found() {
    for (bug, told) in [
        (Bug::RingLosesBuffer, "away, not"),
        (Bug::KernelRepeatsInput, ""),
        (Bug::KernelDropsByte, ""),
        (Bug::BackendDuplicates, "twice"),
        (Bug::ClientMisreads, "echo"),
        (Bug::CompletionTwice, ""),
        (Bug::ClockSticks, "deadline"),
        (Bug::RevocationForgotten, "revoked"),
    ] {
        let options = Options { bug: Some(bug), ..Options::default() };
        let found = (0..100).find_map(|seed| run(seed, &options).failure);
        let failure = found.unwrap_or_else(|| panic!("{bug:?} went unnoticed"));
        assert!(failure.contains(told), "{bug:?} was seen as: {failure}");
    }
}
