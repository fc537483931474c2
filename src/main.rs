//! The `portcullis` program: the command line, and nothing that a test would want to call.

use std::process::ExitCode;

use clap::Parser;

mod cli;

fn main() -> ExitCode {
    cli::run(cli::Arguments::parse())
}
