//! `portcullis drain`.

use std::process::ExitCode;

use clap::Args;

use super::admin_client::Running;

/// Has a running gateway close its clients over deadlines.drain, then end. Does not wait for it.
#[derive(Args)]
#[command(after_help = "Example:\n  portcullis drain --config /etc/portcullis/portcullis.toml")]
pub struct Drain {
    #[command(flatten)]
    gateway: Running,
}

/// Asks; the gateway answers immediately.
pub fn run(command: &Drain) -> ExitCode {
    command.gateway.ask("POST /-/drain", "")
}
