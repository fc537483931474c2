//! `portcullis run`.

use std::process::ExitCode;

use clap::Args;

use super::{ConfigFile, failed, load_or_tell};

/// Starts the gateway.
#[derive(Args)]
#[command(after_help = "\
Signals:
  SIGHUP           read the configuration again; all of it is taken, or nothing
  SIGTERM, SIGINT  drain: take no more connections, close the others over deadlines.drain, exit 0

Example:
  portcullis run --config /etc/portcullis/portcullis.toml")]
pub struct Run {
    #[command(flatten)]
    config: ConfigFile,
}

/// Serves until the gateway was drained.
pub fn run(command: &Run) -> ExitCode {
    let loaded = match load_or_tell(&command.config.path) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    // The gateway verifies tokens and makes none: their keys do not stay in memory.
    drop(loaded.issuing);
    match portcullis::server::run(&command.config.path, loaded.settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error),
    }
}
