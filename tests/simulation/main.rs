//! A whole worker in a simulated world: a fixed set of seeds, the same every time.
//!
//! | variable | meaning |
//! |---|---|
//! | `PORTCULLIS_SEEDS=10000` | that many seeds instead of the usual number |
//! | `PORTCULLIS_SEEDS=forever` | seeds until stopped, from the clock on |
//! | `PORTCULLIS_FIRST=5000` | the first seed |
//! | `PORTCULLIS_SEED=123` | one seed, with the end of its trace |
//! | `PORTCULLIS_UNTIL_FAILURE=1` | ends with the first failure, as it is |
//! | `PORTCULLIS_KEEP=…` | what is left of that seed's world, as a failure prints it |

mod seeds;
mod shrink;

use std::time::{SystemTime, UNIX_EPOCH};

use portcullis::counters::Metric;
use portcullis::sim::faults::Fault;
use portcullis::sim::scenario::Scenario;
use portcullis::sim::{Bug, Keep, Options, Outcome, Simulation, run};

use seeds::{replay, run_seeds};
use shrink::{kind, shrink};

/// Seeds of an ordinary `cargo test`.
const SEEDS: u64 = 120;
/// From this many seeds on, every fault must have fired [`FIRED_MIN`] times.
const SEEDS_MANY: u64 = 10_000;
const FIRED_MIN: u64 = 1000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}")))
}

/// How many seeds are asked for; `None` is forever.
fn seeds_asked() -> Option<u64> {
    match std::env::var("PORTCULLIS_SEEDS") {
        Ok(text) if text == "forever" => None,
        _ => Some(number("PORTCULLIS_SEEDS").unwrap_or(SEEDS)),
    }
}

#[test]
fn every_seed_keeps_every_invariant() {
    if let Some(seed) = number("PORTCULLIS_SEED") {
        let keep = std::env::var("PORTCULLIS_KEEP").unwrap_or_default();
        let keep: Keep = keep.parse().unwrap_or_else(|why| panic!("PORTCULLIS_KEEP: {why}"));
        let outcome = run(seed, &Options { keep, ..Options::default() });
        println!("{outcome:#?}");
        if let Some(failure) = outcome.failure {
            panic!("seed {seed}: {failure}");
        }
        return;
    }
    let asked = seeds_asked();
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |past| past.as_secs());
    // Seeds of one second must not run into those of the next.
    let drawn = if asked.is_none() { clock() << 20 } else { 0 };
    let first = number("PORTCULLIS_FIRST").unwrap_or(drawn);
    if asked.is_none() {
        println!("seeds from {first} on, until stopped");
    }
    let totals = run_seeds(first, asked, &Options::default());
    print!("{}", totals.table());
    if let Some((seed, failure)) = totals.failed.first() {
        let failed: Vec<u64> = totals.failed.iter().map(|(seed, _)| *seed).collect();
        panic!("seeds {failed:?} failed; seed {seed}: {failure}");
    }
    let seeds = totals.seeds;
    let (rarest, least) = totals.rarest();
    assert!(totals.up > seeds * 20, "only {} messages came up", totals.up);
    assert!(totals.completed > seeds, "only {} exchanges were completed", totals.completed);
    assert!(totals.refused > seeds / 4, "only {} clients were refused", totals.refused);
    assert!(totals.deadlines > seeds, "only {} deadlines came due", totals.deadlines);
    if seeds >= SEEDS {
        assert!(least > 0, "{rarest} never happened");
    }
    if seeds >= SEEDS_MANY {
        assert!(least >= FIRED_MIN, "{rarest} fired only {least} times");
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

/// Links that are given up and connect all the same: the backend's answer is quicker than the
/// cancellation, and the socket must be closed without anything else to join.
#[test]
fn connects_that_are_quicker_than_their_cancellation_are_closed() {
    let quiet = Some(Scenario::quiet(1, 1, 64));
    let mut simulation = Simulation::new(1, &Options { quiet, ..Options::default() });
    let count = |simulation: &Simulation, fault: Fault| {
        let world = simulation.world.borrow();
        world.net.faults.counts().find(|(label, _)| *label == fault.label()).map_or(0, |it| it.1)
    };
    let ready = |simulation: &Simulation| simulation.counters.value(Metric::LinksReady);
    {
        let world = &mut *simulation.world.borrow_mut();
        for fault in [Fault::ConnectHung, Fault::CancelRace] {
            world.net.faults.set(fault, 10_000);
        }
        // Now one of the two completions is first, now the other.
        world.net.faults.set(Fault::CompletionDelayed, 5000);
        world.start();
    }
    for _ in 0..20_000 {
        assert!(simulation.turn(), "{:?}", simulation.world.borrow().net.check.failure());
        if count(&simulation, Fault::CancelRace) >= 20 {
            break;
        }
    }
    assert!(count(&simulation, Fault::CancelRace) >= 20, "hardly any connect was given up");
    assert_eq!(ready(&simulation), 0);
    simulation.world.borrow_mut().stop_faults();
    for _ in 0..20_000 {
        if ready(&simulation) == 1 {
            return;
        }
        assert!(simulation.turn(), "{:?}", simulation.world.borrow().net.check.failure());
    }
    panic!("the link does not come back");
}

/// Messages far beyond the window, and nothing else that would wake the worker.
#[test]
fn a_queue_to_a_server_goes_on_as_soon_as_there_is_room() {
    let mut scenario = Scenario::quiet(1, 60, 400_000).with_servers();
    scenario.session_window = 4096;
    scenario.clients[0].window = 1;
    let outcome = run(1, &Options { quiet: Some(scenario), ..Options::default() });
    assert_eq!(outcome.failure, None);
    // Both lives are over soon; the rest is the time that the simulation lets pass itself.
    assert_eq!((outcome.completed, outcome.cut_short, outcome.messages_up), (2, 0, 120));
    assert!(outcome.millis < 14_000, "it took {} ms of simulated time", outcome.millis);
}

/// Seeds of the flood.
const FLOODS: u64 = 6;

fn flood(seed: u64, bug: Option<Bug>) -> Outcome {
    run(seed, &Options { bug, quiet: Some(Scenario::flood(seed)), ..Options::default() })
}

#[test]
fn a_flood_from_few_addresses_hurts_nobody_else() {
    // They take longer than other seeds.
    let seeds = seeds_asked().map_or(FLOODS, |seeds| seeds.min(SEEDS_MANY) / 100).max(FLOODS);
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

/// Each bug with words of the failures that show it for what it is; any of them will do.
const PLANTED: &[(Bug, &[&str])] = &[
    (Bug::RingLosesBuffer, &["away, not"]),
    (Bug::KernelRepeatsInput, &["broke the link protocol", "wrong byte", "twice", "where"]),
    (Bug::KernelDropsByte, &["wrong byte", "reserved bits", "a pong to no ping"]),
    (Bug::BackendDuplicates, &["twice"]),
    (Bug::ClientMisreads, &["echo "]),
    (Bug::CompletionTwice, &["away, not"]),
    (Bug::ClockSticks, &["deadline"]),
    (Bug::RevocationForgotten, &["revoked"]),
    (Bug::BufferKept, &["the worker keeps", "cut short"]),
    // Without free slots a client that reads well is dropped for one that does not.
    (Bug::SlotKept, &["the worker keeps", "cut short"]),
    (Bug::RearmForgotten, &["deadline", "not all is over"]),
    (
        Bug::DescriptorKept,
        &["left open", "not all is over", "linger of socket", "would sleep past"],
    ),
    (Bug::ClosedTwice, &["on closing descriptor"]),
    // Bytes of one frame are in the midst of another.
    (
        Bug::RestOverlaps,
        &["wrong byte", "reserved bits", "a pong to no ping", "server frame masked"],
    ),
    (
        Bug::CancelForgotten,
        &["linger of socket", "not all is over", "would sleep past", "outlives its client's"],
    ),
    (Bug::ReceivesTwice, &["submitted while"]),
    (Bug::Oversleeps, &["deadline would sleep past"]),
    (Bug::NeverSleeps, &["spins"]),
    (Bug::CodeWrong, &["refused with 4402"]),
    (Bug::MessagesSwapped, &["echo "]),
    (Bug::SessionKept, &["sessions still open"]),
    (Bug::CreditForgotten, &["not all is over"]),
    (Bug::MessageLost, &["out of order", "where", "wrong byte"]),
    (Bug::SessionMixedUp, &["for a session that is not open", "in the session of"]),
    (Bug::OpenedTwice, &["still in use", "second OPEN"]),
    (Bug::FrameTooEarly, &["before the server's 101"]),
    // The last message may be the lost one, whose echo its client awaits.
    (Bug::FrameLost, &["where", "no token", "not all is over"]),
    (Bug::FrameDoubled, &["where"]),
    // It stays among the numbers, too.
    (Bug::ServerKept, &["outlives its client's", "portcullis_endpoint_sessions"]),
];

#[test]
fn planted_bugs_are_found() {
    let mut wrong = Vec::new();
    for (bug, told) in PLANTED {
        let options = Options { bug: Some(*bug), ..Options::default() };
        let failed = |seed| Some((seed, run(seed, &options).failure?));
        match (0..SEEDS).find_map(failed) {
            Some((seed, failure)) => {
                let first = failure.lines().next().unwrap_or_default();
                println!("{bug:?}: seed {seed}: {first}");
                if !told.iter().any(|words| first.contains(words)) {
                    wrong.push(format!("{bug:?} was seen as: {first}"));
                }
            }
            None => wrong.push(format!("{bug:?} went unnoticed")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_failure_is_made_smaller_and_replays() {
    let options = Options { bug: Some(Bug::CodeWrong), ..Options::default() };
    let failed = |seed| Some((seed, run(seed, &options).failure?));
    let (seed, failure) = (0..SEEDS).find_map(failed).expect("the bug is seen");
    let shrunk = shrink(seed, &options, &failure);
    let left = shrunk.keep.clients.as_ref().map_or(usize::MAX, Vec::len);
    assert!(left == 1, "{left} clients are left");
    assert!(shrunk.keep.off.contains(&Fault::Reload), "reloads have nothing to do with it");
    // What is printed must lead back to it.
    let command = replay(seed, &shrunk);
    let keep = command.split_once("PORTCULLIS_KEEP=").expect("something was left out").1;
    let keep = keep.split(' ').next().unwrap_or_default().parse().expect("as it is written");
    let again = run(seed, &Options { keep, ..options }).failure.expect("it fails again");
    assert_eq!(again, shrunk.failure);
    assert_eq!((kind(&again), kind(&failure)), ("refused with ".into(), "refused with ".into()));
}
