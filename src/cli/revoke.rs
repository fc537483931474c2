//! `portcullis revoke`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{ArgGroup, Args};
use serde_json::{Map, Value};

use super::admin_client::{AdminClient, Running, tell};
use super::token::mint::duration;

/// Revoke tokens: close their connections and refuse them from now on.
#[derive(Args)]
#[command(group(
    ArgGroup::new("whom")
        .required(true)
        .multiple(true)
        .args(["subject", "token_id", "issued_before", "list", "undo"])
))]
#[command(after_help = "\
Say whose tokens first: --subject, --token-id, --issued-before, or --subject with --issued-before.
Open connections are closed within a second. The gateway refuses the tokens until the revocation
expires: choose --lapses-in so that the last of the tokens has expired by then. The command asks
the running gateway of this configuration, on gateway.admin_socket, or on gateway.admin with its
token.

Examples:
  portcullis revoke --subject alice --lapses-in 24h
  portcullis revoke --subject alice --issued-before now --lapses-in 24h
  portcullis revoke --config c.toml --token-id 6fa1b2 --lapses-in 1h
  portcullis revoke --subject alice --backend chat --lapses-in 24h
  portcullis revoke --list
  portcullis revoke --undo 17")]
pub struct Revoke {
    #[command(flatten)]
    gateway: Running,
    /// Revoke the tokens of this subject.
    #[arg(long, value_name = "SUBJECT", conflicts_with = "token_id", requires = "lapses_in")]
    subject: Option<String>,
    /// Revoke the token with this id.
    #[arg(long, value_name = "ID", conflicts_with = "issued_before", requires = "lapses_in")]
    token_id: Option<String>,
    /// Only tokens issued before this Unix time in seconds, or `now`.
    #[arg(long, value_name = "TIME", value_parser = unix_time, requires = "lapses_in")]
    issued_before: Option<u64>,
    /// Only on the routes that go to this backend.
    #[arg(long, value_name = "NAME", requires = "lapses_in")]
    backend: Option<String>,
    /// When the revocation expires, as in 30m, 24h.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    lapses_in: Option<Duration>,
    /// List the active revocations as JSON lines.
    #[arg(long, conflicts_with_all = ["subject", "token_id", "issued_before", "backend", "lapses_in"])]
    list: bool,
    /// Undo the revocation with this id.
    #[arg(long, value_name = "ID")]
    #[arg(conflicts_with_all = ["subject", "token_id", "issued_before", "backend", "lapses_in", "list"])]
    undo: Option<u64>,
}

/// Asks, and tells what was answered.
pub fn run(command: &Revoke) -> ExitCode {
    match (command.list, command.undo) {
        (true, _) => match command.gateway.client().and_then(|client| list(&client)) {
            Ok(code) | Err(code) => code,
        },
        (false, Some(id)) => command.gateway.ask(&format!("DELETE /revocations/{id}"), ""),
        (false, None) => command.gateway.ask("POST /revocations", &body(command)),
    }
}

fn body(command: &Revoke) -> String {
    let mut body = Map::new();
    for (name, value) in [
        ("subject", command.subject.clone().map(Value::from)),
        ("token_id", command.token_id.clone().map(Value::from)),
        ("issued_before", command.issued_before.map(Value::from)),
        ("backend", command.backend.clone().map(Value::from)),
        ("lapses_in", command.lapses_in.map(|time| time.as_secs().into())),
    ] {
        body.extend(value.map(|value| (name.to_owned(), value)));
    }
    Value::Object(body).to_string()
}

/// Prints entries, page after page.
fn list(client: &AdminClient) -> Result<ExitCode, ExitCode> {
    let mut next = Some("/revocations".to_owned());
    while let Some(path) = next.take() {
        let (status, body) = client.ask(&format!("GET {path}"), "")?;
        let page: Value = match serde_json::from_str(&body) {
            Ok(page) if status == 200 => page,
            _ => return Ok(tell((status, body))),
        };
        for entry in page["revocations"].as_array().into_iter().flatten() {
            println!("{entry}");
        }
        next = page["next"].as_str().map(str::to_owned);
    }
    Ok(ExitCode::SUCCESS)
}

fn unix_time(text: &str) -> Result<u64, String> {
    if text == "now" {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        return Ok(since.map_or(0, |since| since.as_secs()));
    }
    text.parse().map_err(|_| "write a Unix time in whole seconds, or now".to_owned())
}
