//! How long one turn of a worker with 200,000 connections takes, in processor time of its
//! thread, when something concerns all of them: `cargo bench --bench ticks`. Fails when a turn
//! takes more than 20 ms. `docs/benchmarks.md` has the figures.

use std::process::ExitCode;
use std::time::Duration;

use portcullis::linux::clock::thread_cpu;
use portcullis::sim::crowd::{Crowd, Happening};
use portcullis::worker::SWEEP_SLOTS;

const CONNECTIONS: u32 = 200_000;
const TURN_MAX: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    // `cargo bench` passes `--bench`.
    let number = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let connections = number.unwrap_or(CONNECTIONS);
    println!("{connections} connections, turns of one worker, processor time of its thread");
    println!("| what happens | turns | longest | all together | time of the world |");
    println!("|---|---|---|---|---|");
    let mut too_long = false;
    for happening in Happening::ALL {
        let took = Crowd::new(connections, SWEEP_SLOTS, thread_cpu).happen(happening);
        let millis = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
        println!(
            "| {happening:?} | {} | {} | {} | {:.1} s |",
            took.turns,
            millis(took.longest),
            millis(took.total),
            took.world.as_secs_f64()
        );
        too_long |= took.longest > TURN_MAX;
    }
    if too_long {
        eprintln!("a turn took more than {TURN_MAX:?}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
