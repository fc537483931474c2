//! `portcullis --version`.

use std::process::ExitCode;

/// The version, and what the running kernel's io_uring can do.
pub fn run() -> ExitCode {
    println!("portcullis {}", env!("CARGO_PKG_VERSION"));
    match portcullis::linux::probe::probe() {
        Ok(probe) => println!("{probe}"),
        Err(error) => println!("io_uring cannot be used here: {error}"),
    }
    ExitCode::SUCCESS
}
