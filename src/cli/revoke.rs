//! `portcullis revoke`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Map, Value};

use super::admin_client::{AdminClient, Running, tell};
use super::token::mint::duration;

/// Closes connections whose tokens are void, and keeps their owners out.
#[derive(Args)]
#[command(after_help = "\
Connections that are open are closed within a second, and no token that is meant is let in until
the revocation lapses: best make that no earlier than the last of those tokens does.
The gateway that runs with this configuration is asked on gateway.admin_socket, or on
gateway.admin with its token.

Examples:
  portcullis revoke --config c.toml --subject alice --lapses-in 24h
  portcullis revoke --config c.toml --subject alice --issued-before now --lapses-in 24h
  portcullis revoke --config c.toml --token-id 6fa1b2 --lapses-in 1h
  portcullis revoke --config c.toml --list
  portcullis revoke --config c.toml --undo 17")]
pub struct Revoke {
    #[command(flatten)]
    gateway: Running,
    /// Tokens of this subject.
    #[arg(long, value_name = "SUBJECT", conflicts_with = "token_id")]
    subject: Option<String>,
    /// The token with this id.
    #[arg(long, value_name = "ID", conflicts_with = "issued_before")]
    token_id: Option<String>,
    /// Only tokens made before this Unix time in seconds, or `now`.
    #[arg(long, value_name = "TIME", value_parser = unix_time)]
    issued_before: Option<u64>,
    /// How long this holds, as in 30m, 24h.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    #[arg(required_unless_present_any = ["list", "undo"])]
    lapses_in: Option<Duration>,
    /// Show what is revoked, as JSON lines.
    #[arg(long, conflicts_with_all = ["subject", "token_id", "issued_before", "lapses_in"])]
    list: bool,
    /// Take the revocation with this id back.
    #[arg(long, value_name = "ID")]
    #[arg(conflicts_with_all = ["subject", "token_id", "issued_before", "lapses_in", "list"])]
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
