//! `portcullis reload`.

use std::process::ExitCode;

use clap::Args;

use super::admin_client::Running;

/// Has a running gateway read its configuration again, and waits for the outcome.
#[derive(Args)]
#[command(after_help = "Example:\n  portcullis reload --config /etc/portcullis/portcullis.toml")]
pub struct Reload {
    #[command(flatten)]
    gateway: Running,
}

/// Asks, and tells every warning or problem.
pub fn run(command: &Reload) -> ExitCode {
    command.gateway.ask("POST /-/reload", "")
}
