//! `portcullis dev`.

use std::process::ExitCode;

use clap::Args;
use portcullis::dev::DevOptions;

use super::common::{failed, loopback};

/// Try it out: start a gateway, a backend and a page on loopback addresses.
#[derive(Args)]
#[command(after_help = "\
It makes a certificate and tokens, starts a gateway and an echo-and-chat backend over a real link,
and prints the addresses, a client command to paste and the page to open. Nothing is written to
disk, and nothing can be reached from other machines. Stop it with Ctrl-C.

Example:
  portcullis dev --plain-port 18080")]
pub struct Dev {
    /// Port for ws:// clients.
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    plain_port: u16,
    /// Port for wss:// clients.
    #[arg(long, value_name = "PORT", default_value_t = 8443)]
    tls_port: u16,
    /// Port of the page, the metrics and the health checks.
    #[arg(long, value_name = "PORT", default_value_t = 9464)]
    admin_port: u16,
}

/// Serves until Ctrl-C.
pub fn run(command: &Dev) -> ExitCode {
    let options = DevOptions {
        plain: loopback(command.plain_port),
        tls: loopback(command.tls_port),
        admin: loopback(command.admin_port),
    };
    match portcullis::dev::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error),
    }
}
