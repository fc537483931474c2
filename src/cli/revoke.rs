//! `portcullis revoke`: asks a running gateway's admin listener.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{ArgGroup, Args};
use portcullis::base::secret::Secret;
use serde_json::{Map, Value};

use super::token::mint::duration;
use super::{ConfigFile, failed, load};

/// How long the gateway may take; it saves what it is told.
const PATIENCE: Duration = Duration::from_secs(15);

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
the running gateway of this configuration, on gateway.admin.

Examples:
  portcullis revoke --subject alice --lapses-in 24h
  portcullis revoke --subject alice --issued-before now --lapses-in 24h
  portcullis revoke --config c.toml --token-id 6fa1b2 --lapses-in 1h
  portcullis revoke --list
  portcullis revoke --undo 17")]
pub struct Revoke {
    #[command(flatten)]
    config: ConfigFile,
    /// Revoke the tokens of this subject.
    #[arg(long, value_name = "SUBJECT", conflicts_with = "token_id", requires = "lapses_in")]
    subject: Option<String>,
    /// Revoke the token with this id.
    #[arg(long, value_name = "ID", conflicts_with = "issued_before", requires = "lapses_in")]
    token_id: Option<String>,
    /// Only tokens issued before this Unix time in seconds, or `now`.
    #[arg(long, value_name = "TIME", value_parser = unix_time, requires = "lapses_in")]
    issued_before: Option<u64>,
    /// When the revocation expires, as in 30m, 24h.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    lapses_in: Option<Duration>,
    /// List the active revocations as JSON lines.
    #[arg(long, conflicts_with_all = ["subject", "token_id", "issued_before", "lapses_in"])]
    list: bool,
    /// Undo the revocation with this id.
    #[arg(long, value_name = "ID")]
    #[arg(conflicts_with_all = ["subject", "token_id", "issued_before", "lapses_in", "list"])]
    undo: Option<u64>,
}

/// Asks, and tells what was answered.
pub fn run(command: &Revoke) -> ExitCode {
    let settings = match load(command.config.path()) {
        Ok(loaded) => loaded.settings,
        Err(code) => return code,
    };
    let Some(address) = settings.gateway.admin else {
        return failed("gateway.admin is \"off\", so nobody can be asked");
    };
    let admin = Admin { address: reachable(address), token: settings.gateway.admin_token };
    let done = match (command.list, command.undo) {
        (true, _) => list(&admin),
        (false, Some(id)) => admin.ask(&format!("DELETE /revocations/{id}"), "").map(tell),
        (false, None) => admin.ask("POST /revocations", &body(command)).map(tell),
    };
    match done {
        Ok(code) => code,
        Err(error) => failed(format_args!(
            "cannot ask the gateway at {address}: {error}; is it running with this configuration?"
        )),
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
fn list(admin: &Admin) -> io::Result<ExitCode> {
    let mut next = Some("/revocations".to_owned());
    while let Some(path) = next.take() {
        let (status, body) = admin.ask(&format!("GET {path}"), "")?;
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

fn tell((status, body): (u16, String)) -> ExitCode {
    let body = body.trim_end();
    if status == 200 {
        println!("{body}");
        return ExitCode::SUCCESS;
    }
    failed(format_args!("the gateway refuses ({status}): {}", body.escape_debug()))
}

struct Admin {
    address: SocketAddr,
    token: Option<Secret>,
}

impl Admin {
    /// Status and body of one exchange.
    fn ask(&self, line: &str, body: &str) -> io::Result<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut request = format!("{line} HTTP/1.1\r\nHost: {}\r\n", self.address).into_bytes();
        if let Some(token) = &self.token {
            request.extend_from_slice(b"Authorization: Bearer ");
            request.extend_from_slice(token.expose());
            request.extend_from_slice(b"\r\n");
        }
        let length = format!("Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        request.extend_from_slice(length.as_bytes());
        request.extend_from_slice(body.as_bytes());
        stream.write_all(&request)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        match (status, answer.split_once("\r\n\r\n")) {
            (Some(status), Some((_, body))) => Ok((status, body.to_owned())),
            _ => Err(io::Error::other("that is no answer of a gateway's")),
        }
    }
}

/// A listener on every address is asked on loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn unix_time(text: &str) -> Result<u64, String> {
    if text == "now" {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        return Ok(since.map_or(0, |since| since.as_secs()));
    }
    text.parse().map_err(|_| "write a Unix time in whole seconds, or now".to_owned())
}
