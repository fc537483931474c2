//! `portcullis health`.

use std::process::ExitCode;

use clap::Args;

use super::admin_client::Running;

/// Exits 0 if a running gateway does its work, and 1 otherwise: for a container HEALTHCHECK.
#[derive(Args)]
#[command(
    after_help = "Example:\n  portcullis health --config /etc/portcullis/portcullis.toml --ready"
)]
pub struct Health {
    #[command(flatten)]
    gateway: Running,
    /// Ask whether new connections should come here, too.
    #[arg(long)]
    ready: bool,
}

/// Asks /healthz, or /readyz.
pub fn run(command: &Health) -> ExitCode {
    command.gateway.ask(if command.ready { "GET /readyz" } else { "GET /healthz" }, "")
}
