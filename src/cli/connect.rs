//! `portcullis connect`.

use std::process::ExitCode;

use clap::Args;
use portcullis::base::secret::Secret;
use portcullis::dev::connect::{self, ConnectOptions};

use super::failed;

/// Sends lines of standard input as text messages and prints the answers.
#[derive(Args)]
#[command(after_help = "\
At the end of its input it waits until no message has come for a second, then closes. If the gateway
closes first with 1000, or with 1001 (a drain), the exit code is 0. With any other code, the code and
its meaning go to stderr, and the exit code is 1.

Examples:
  portcullis connect ws://127.0.0.1:8080/chat --token \"$TOKEN\"
  echo hello | portcullis connect wss://localhost:8443/echo --token \"$TOKEN\"")]
pub struct Connect {
    /// ws://HOST:PORT/PATH, or wss:// to this machine.
    url: String,
    /// Sent as `Authorization: Bearer …`. Without it the variable PORTCULLIS_TOKEN is used; other
    /// users of the machine can see arguments, but not variables.
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// Sent as `Origin`, as a page's browser would.
    #[arg(long)]
    origin: Option<String>,
}

/// Talks until either side ends.
pub fn run(command: Connect) -> ExitCode {
    let Connect { url, token, origin } = command;
    let token = token.or_else(|| std::env::var("PORTCULLIS_TOKEN").ok());
    let token = token.map(|token| Secret::new(token.into_bytes()));
    match connect::run(&ConnectOptions { url, token, origin }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error),
    }
}
