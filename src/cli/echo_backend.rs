//! `portcullis echo-backend`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use portcullis::base::secret::Secret;

use super::common::failed;

/// Run a backend that echoes every message.
#[derive(Args)]
#[command(after_help = "\
It speaks the framed link of docs/link-protocol.md. With --secret-file the gateway's [[backend]]
must name the same secret.

Examples:
  portcullis echo-backend --listen 127.0.0.1:7000
  portcullis echo-backend --listen unix:/run/app/link.sock --secret-file keys/link")]
pub struct EchoBackend {
    /// `IP:PORT`, or `unix:/PATH`.
    #[arg(long, value_name = "ADDR")]
    listen: String,
    /// File with the link's secret; one newline at its end is not part of it.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

/// Serves until it is stopped.
pub fn run(command: &EchoBackend) -> ExitCode {
    let secret = match command.secret_file.as_deref().map(Secret::from_file).transpose() {
        Ok(secret) => secret,
        Err(error) => return failed(error),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(format_args!("cannot start: {error}")),
    };
    eprintln!("echo backend on {}; stop it with Ctrl-C", command.listen);
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = portcullis::backend::echo::run(&command.listen, secret) => outcome,
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error),
    }
}
