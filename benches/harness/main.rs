//! The bench harness: a load side on io_uring for any WebSocket server, and the bare echo server
//! that others are compared with. `docs/benchmarks.md` says how to read what it prints.

mod compare;
mod connection;
mod echo;
mod echo_server;
mod echo_session;
mod echo_tokio;
mod fleet;
mod flood;
mod idle;
mod kernel;
mod measure;
mod open;
mod options;
mod plan;
mod process;
mod report;
mod results;
mod servers;
#[allow(dead_code)] // Shared with a test that looks at other states.
mod socket_table;
mod sockets;
mod stats;
mod target;
mod tickets;
mod told;
mod wire;
mod worker;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

const EXAMPLES: &str = "\
Examples, after `cargo bench --bench harness --`:
  echo-server --listen 127.0.0.1:9001 --core 0
      the bare echo server; it prints its pid
  echo ws://127.0.0.1:9001/ -n 1000 --cores 1 --server-pid PID
      closed loop: the most messages per second, and CPU per message
  echo ws://127.0.0.1:9001/ -n 1000 --rate 20000 --cores 1 --server-pid PID
      open loop: latency at a given load, measured from the intended times
  idle wss://127.0.0.1:8443/ws --insecure --token-file tokens -n 15000 --server-pid PID
      memory per idle connection
  open ws://127.0.0.1:8080/ws --token-file tokens --server-pid PID
      connect, upgrade, authenticate, close
  flood ws://127.0.0.1:8080/ws --token-file tokens --kinds silent,half-head --rate 5000
      junk connections beside honest ones
  idle --connections 1000000 --open-rate 8000
      starts a gateway by itself: how far this machine goes, and what stops it
  compare --quick
      the gateway, nginx, HAProxy and bare echo servers in turn; writes one HTML page

Exit status: 0 when everything asked for was done without a failure, 1 when not, 2 for errors.
An interrupted run (Ctrl-C) reports what it measured; a second Ctrl-C ends it at once.";

#[derive(Parser)]
#[command(name = "harness", about = "Load and measure WebSocket servers", after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand)]
enum Scenario {
    /// Messages there and back over open connections, each one checked
    Echo(echo::EchoArgs),
    /// Many connections that say nothing: memory per connection
    Idle(Box<idle::IdleArgs>),
    /// Connect, upgrade, authenticate, close, again and again
    Open(open::OpenArgs),
    /// Junk connections beside honest ones
    Flood(Box<flood::FloodArgs>),
    /// The bare echo server that others are compared with
    EchoServer(echo_server::EchoServerArgs),
    /// The gateway's backend in the fan-in
    #[command(hide = true)]
    CountBackend(servers::counter::CountBackendArgs),
    /// The gateway, bare echo servers and other proxies in turn: a table and one HTML page
    Compare(Box<compare::CompareArgs>),
}

fn main() -> ExitCode {
    // `cargo bench` adds --bench to whatever it was given.
    let mut arguments: Vec<_> = std::env::args_os().collect();
    arguments.retain(|argument| argument != "--bench");
    if arguments.len() < 2 {
        let _ = Cli::command().print_help();
        return ExitCode::SUCCESS;
    }
    let cli = Cli::parse_from(arguments);
    kernel::catch_interrupts();
    // Before any file is opened: the tables of direct descriptors are as large as this limit.
    kernel::descriptor_limit();
    let outcome = wire::self_check().and_then(|()| match &cli.scenario {
        Scenario::Echo(args) => echo::run(args),
        Scenario::Idle(args) => idle::run(args),
        Scenario::Open(args) => open::run(args),
        Scenario::Flood(args) => flood::run(args),
        Scenario::EchoServer(args) => echo_server::run(args).map(|()| true),
        Scenario::CountBackend(args) => servers::counter::run(args).map(|()| true),
        Scenario::Compare(args) => compare::run(args),
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}
