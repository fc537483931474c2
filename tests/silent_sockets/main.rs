//! 15,000 sockets of each kind that never authenticates, or never reads: none is left a second
//! after its deadline, as the kernel's own table of sockets shows it, and what they took comes
//! back. The deadlines are the defaults.
//!
//! It takes two minutes and most of the descriptors that a process may have, so it is run by
//! itself: `cargo test --test silent_sockets -- --ignored --nocapture` (`tests/run` does).

mod crowd;
mod kinds;
#[allow(dead_code)] // The harness looks at other states.
#[path = "../../benches/harness/socket_table.rs"]
mod socket_table;
#[allow(dead_code, unused_imports)] // Shared with the end-to-end tests.
#[path = "../end_to_end/support/mod.rs"]
mod support;
mod world;

use std::time::{Duration, Instant};

use kinds::Kind;
use world::{Rest, World};

/// Sockets of each kind.
const COUNT: usize = 15_000;
/// How long after its deadline the last socket may still be there.
const LATE: Duration = Duration::from_secs(1);
/// At most so much more when others had the gateway's core while the crowd was opened.
const BEHIND: Duration = Duration::from_secs(2);
/// Between two looks at the kernel's table.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What the process may keep of all crowds together: tables that grew to hold 15,000 entries (some
/// 20 MiB), and what glibc's allocator keeps for the next time: it raises M_TRIM_THRESHOLD, up to
/// 64 MiB, for each of two workers. A leak of 1 KiB for each of the 180,000 connections would be
/// 176 MiB; one of a table's entry shows in the gateway's own gauges, which must be 0.
const KEPT: u64 = 160 << 20;

#[test]
#[ignore = "two minutes and 15,000 sockets: run it alone, as tests/run does"]
fn no_socket_outlives_its_deadline() {
    let limit = portcullis::linux::process::raise_descriptor_limit().expect("a limit");
    let wanted = COUNT as u64 + 1_000;
    assert!(limit >= wanted, "raise the hard limit of open files to {wanted}: it is {limit}");
    let world = World::start();
    let begun = Instant::now();
    let fresh = world.rest();
    println!("at rest: {fresh}");
    // Twice: what leaks does it again, what only grew to its size does not.
    for kind in Kind::ALL.into_iter().chain(Kind::ALL) {
        outlive(&world, kind);
        let rest = world.rest();
        println!("{}: at rest again: {rest}", kind.name());
        assert_returned(kind, &fresh, &rest);
        world.greet();
    }
    println!("all kinds, twice: {:?}", begun.elapsed());
}

/// Opens a crowd, and waits until the kernel shows none of it on the gateway's side.
fn outlive(world: &World, kind: Kind) {
    let before = world.metrics();
    let denied = world.waited();
    let begun = Instant::now();
    let crowd = kind.open(world, COUNT);
    let opened = begun.elapsed();
    // The deadline of the last runs from here.
    let last = kind.last_progress(world);
    // What it could not do while the crowd came, it does late as well.
    let behind = world.denied_since(&denied).min(BEHIND);
    let denied = world.waited();
    let (mut most, mut resident) = (0, 0);
    let (gone, waited) = loop {
        let looked = last.elapsed();
        let rows = world.sockets();
        most = most.max(rows.len());
        resident = resident.max(world.resident());
        // Time in which others had the gateway's core is not the gateway's.
        let waited = behind + world.denied_since(&denied);
        if rows.is_empty() {
            break (looked, waited);
        }
        let late = LATE + waited;
        let allowed = kind.deadline() + late;
        assert!(looked <= allowed, "{} after {looked:?}: {}", kind.name(), World::states(&rows));
        std::thread::sleep(LOOK_EVERY);
    };
    println!(
        "{}: {COUNT} opened in {opened:.1?}, at most {most} seen at once, none {gone:.2?} after \
         the last (allowed: {:?} and {waited:.2?} without a core)",
        kind.name(),
        kind.deadline() + LATE,
    );
    println!("{}: at most {} KiB resident", kind.name(), resident / 1024);
    drop(crowd);
    // Each was ended by its own deadline, not by something else.
    for (series, count) in kind.counts(COUNT) {
        let counted = || world.metric(&series) - support::series_value(&before, &series);
        let mut last = 0;
        support::wait_until(&format!("{series} is {count}, for {}", kind.name()), || {
            last = counted();
            last >= count as u64
        });
        assert_eq!(last, count as u64, "{series} for {}", kind.name());
    }
}

fn assert_returned(kind: Kind, before: &Rest, after: &Rest) {
    assert_eq!(after.descriptors, before.descriptors, "descriptors after {}", kind.name());
    assert_eq!(after.buffers_free, before.buffers_free, "buffers after {}", kind.name());
    assert!(
        after.anonymous <= before.anonymous + KEPT,
        "memory after {}: {before}, then {after}",
        kind.name()
    );
}
