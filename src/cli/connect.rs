//! `portcullis connect`.

use std::process::ExitCode;

use clap::Args;
use portcullis::base::secret::Secret;
use portcullis::dev::connect::{self, ConnectOptions};

use super::common::failed;

/// Talk to a gateway from a terminal: lines of standard input go out as text messages, messages
/// come back as lines.
#[derive(Args)]
#[command(after_help = "\
At the end of its input it waits until no message has come for a second, then closes. If the gateway
closes first, the code and its meaning go to stderr; the exit code is 0 after 1000 and 1001 (a drain),
and 1 after any other.

Over wss:// the gateway's certificate is verified with the system's root certificates, except on
loopback addresses.

Examples:
  portcullis connect ws://127.0.0.1:8080/chat --token \"$TOKEN\"
  echo hello | portcullis connect wss://localhost:8443/echo --token \"$TOKEN\"
  portcullis connect wss://gw.example.com/chat --cookie \"_app_key=$SESSION\" --origin https://example.com")]
pub struct Connect {
    /// ws://HOST:PORT/PATH, or wss:// for TLS.
    url: String,
    /// Sent as `Authorization: Bearer …`. Without it the variable PORTCULLIS_TOKEN is used; other
    /// users of the machine can see arguments, but not variables.
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// Sent as `Origin`, as a page's browser would.
    #[arg(long)]
    origin: Option<String>,
    /// A further header field; may be repeated.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// A cookie; may be repeated.
    #[arg(long = "cookie", value_name = "NAME=VALUE")]
    cookies: Vec<String>,
    /// A subprotocol to offer; may be repeated, the preferred first.
    #[arg(long = "subprotocol", value_name = "NAME")]
    subprotocols: Vec<String>,
    /// Do not verify the gateway's certificate. For tests.
    #[arg(long)]
    insecure: bool,
}

/// Talks until either side ends.
pub fn run(command: Connect) -> ExitCode {
    let Connect { url, token, origin, headers, cookies, subprotocols, insecure } = command;
    let token = token.or_else(|| std::env::var("PORTCULLIS_TOKEN").ok());
    let token = token.map(|token| Secret::new(token.into_bytes()));
    let options = ConnectOptions { url, token, origin, headers, cookies, subprotocols, insecure };
    match connect::run(&options) {
        Ok(note) => {
            note.iter().for_each(|note| eprintln!("portcullis: {note}"));
            ExitCode::SUCCESS
        }
        Err(error) => failed(error),
    }
}
