//! `portcullis status`.

use std::process::ExitCode;

use clap::Args;

use super::admin_client::Running;

/// Shows what a running gateway does.
#[derive(Args)]
#[command(after_help = "Example:\n  portcullis status --config /etc/portcullis/portcullis.toml")]
pub struct Status {
    #[command(flatten)]
    gateway: Running,
}

/// Prints the live numbers, a line for each.
pub fn run(command: &Status) -> ExitCode {
    let asked = command.gateway.client().and_then(|client| client.ask("GET /live.json", ""));
    let (status, body) = match asked {
        Ok(answer) => answer,
        Err(code) => return code,
    };
    match serde_json::from_str::<serde_json::Value>(&body) {
        Ok(live) if status == 200 => super::admin_client::tell((200, format!("{live:#}"))),
        _ => super::admin_client::tell((status, body)),
    }
}
