//! `portcullis check`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use portcullis::server::names::resolve_within;
use portcullis::settings::admission::{Protection, TIME_TO_AUTHENTICATE, protection};
use portcullis::settings::endpoint::{Endpoint, HostPort};
use portcullis::settings::load::{Loaded, Problem, Severity};
use portcullis::settings::units::format_duration;
use portcullis::settings::{Listener, PathPattern, Redirect, Route, Settings};

use serde_json::{Value, json};

use super::as_run;
use super::common::{ConfigFile, Format};
use super::doctor::row::{Row, Status};

/// How long the system's resolver may take.
const RESOLVE_MAX: Duration = Duration::from_secs(5);
/// Lookups at one time.
const LOOKUPS: usize = 32;

/// Report everything that is wrong with a configuration.
#[derive(Args)]
#[command(after_help = "\
Problems go to stderr, a summary of the configuration to stdout. It reads the keys and certificates
that the file names, and needs no root.

With --as-run it also tries what `run` needs from this machine: the folders of gateway.close_log and
gateway.revocations_file, the ports (those of a gateway that runs already count as free), privileged
ports, and the limit on open files. Run it as the gateway's user.

Exit codes:
  0  no errors; there may be warnings
  1  errors

Examples:
  portcullis check --config config/portcullis.toml && systemctl reload portcullis
  runuser -u portcullis -- portcullis check --as-run
  portcullis check --format json | jq '.problems[]'")]
pub struct Check {
    #[command(flatten)]
    config: ConfigFile,
    /// Also try what `run` needs from this machine.
    #[arg(long)]
    as_run: bool,
    /// Resolve no name.
    #[arg(long)]
    offline: bool,
    /// How to print the result; json goes to stdout.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// Checks, and sums up.
pub fn run(command: &Check) -> ExitCode {
    let path = command.config.path();
    let (settings, problems) = match portcullis::server::files::load_file(path) {
        Ok(Loaded { settings, warnings, .. }) => (Some(settings), warnings),
        Err(problems) => (None, problems),
    };
    let mut rows = match &settings {
        Some(settings) if command.as_run => as_run::rows(settings),
        _ => Vec::new(),
    };
    let resolved = match &settings {
        Some(settings) if !command.offline => resolve(settings),
        _ => BTreeMap::new(),
    };
    rows.extend(resolved.iter().filter_map(|(name, found)| {
        let finding = format!("{name} does not resolve: {}", found.as_ref().err()?);
        let remedy = "check the name, and the DNS of this machine; the gateway starts, and asks \
                      again every deadlines.resolve_interval (--offline asks nothing)";
        Some(Row::warn("name", finding, remedy))
    }));
    let count = |severity, status| {
        let of_file = problems.iter().filter(|problem| problem.severity == severity).count();
        of_file + rows.iter().filter(|row| row.status == status).count()
    };
    let errors = count(Severity::Error, Status::Fail);
    let warnings = count(Severity::Warning, Status::Warn);
    match command.format {
        Format::Text => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            let file = path.display();
            rows.iter().filter_map(shown_row).for_each(|row| eprintln!("{file}: {row}"));
            match (&settings, errors) {
                (Some(settings), 0) => {
                    println!("{file}: good{}", counted(warnings, "warning", ", "));
                    print!("{}", summary(settings, &resolved));
                }
                _ => {
                    let warnings = counted(warnings, "warning", " and ");
                    eprintln!("{file}:{}{warnings}", counted(errors, "error", " "));
                }
            }
        }
        Format::Json => println!("{}", report(path, &problems, &rows, errors == 0)),
    }
    if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What the names of endpoints stand for, or why that is not known.
type Resolved<'s> = BTreeMap<&'s HostPort, Result<Vec<SocketAddr>, String>>;

/// Asks about every name concurrently.
fn resolve(settings: &Settings) -> Resolved<'_> {
    let endpoints = settings.backends.iter().flat_map(|backend| &backend.endpoints);
    let names: BTreeSet<&HostPort> = endpoints.filter_map(Endpoint::name).collect();
    let names: Vec<&HostPort> = names.into_iter().collect();
    let mut resolved = Resolved::new();
    for some in names.chunks(LOOKUPS) {
        std::thread::scope(|scope| {
            let ask = |name: &'_ HostPort| resolve_within(name, RESOLVE_MAX);
            let asked: Vec<_> =
                some.iter().map(|name| (*name, scope.spawn(move || ask(name)))).collect();
            resolved.extend(asked.into_iter().map(|(name, lookup)| {
                let panicked = |_| Err("the lookup failed".to_owned());
                (name, lookup.join().unwrap_or_else(panicked))
            }));
        });
    }
    resolved
}

/// An endpoint as the summary has it: a name with its addresses.
fn shown_endpoint(endpoint: &Endpoint, resolved: &Resolved<'_>) -> String {
    match endpoint.name().and_then(|name| resolved.get(name)) {
        None => endpoint.to_string(),
        Some(Err(_)) => format!("{endpoint} = nothing"),
        Some(Ok(found)) => {
            let addresses: Vec<_> = found.iter().map(|at| at.ip().to_string()).collect();
            format!("{endpoint} = {}", addresses.join(", "))
        }
    }
}

/// A row of the machine as a problem is shown; `None` when there is none.
fn shown_row(row: &Row) -> Option<String> {
    let severity = severity(row)?;
    Some(format!("{severity}: {}; {}", row.finding, row.remedy))
}

fn severity(row: &Row) -> Option<&'static str> {
    match row.status {
        Status::Fail => Some("error"),
        Status::Warn => Some("warning"),
        Status::Ok | Status::Skipped => None,
    }
}

/// Everything for programs. Problems of the machine have no line and no column.
fn report(path: &Path, problems: &[Problem], rows: &[Row], good: bool) -> Value {
    let of_file = problems.iter().map(|problem| {
        let Problem { file, line, column, severity, code, what, fix } = problem;
        let severity = match severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        json!({
            "file": file, "line": line, "column": column, "severity": severity, "code": code,
            "message": what, "remedy": fix,
        })
    });
    let of_machine = rows.iter().filter_map(|row| {
        Some(json!({
            "file": path.display().to_string(), "line": null, "column": null,
            "severity": severity(row)?, "code": row.check, "message": row.finding,
            "remedy": row.remedy,
        }))
    });
    let problems: Vec<Value> = of_file.chain(of_machine).collect();
    json!({ "file": path.display().to_string(), "good": good, "problems": problems })
}

/// `3 errors` after `before`; nothing for none.
fn counted(number: usize, what: &str, before: &str) -> String {
    match number {
        0 => String::new(),
        1 => format!("{before}1 {what}"),
        _ => format!("{before}{number} {what}s"),
    }
}

/// What was loaded, a line for each part.
fn summary(settings: &Settings, resolved: &Resolved<'_>) -> String {
    let mut out = String::new();
    write_summary(settings, resolved, &mut out).expect("writing to a string does not fail");
    out
}

/// What the cap on unauthenticated connections is good for.
fn write_admission(settings: &Settings, out: &mut String) -> fmt::Result {
    let Settings { limits, deadlines, listeners, .. } = settings;
    let tls = listeners.iter().any(|listener| listener.tls.is_some());
    let Protection { arrivals_per_second, without_eviction, age } =
        protection(limits, deadlines, tls);
    writeln!(
        out,
        "  admission room for {} clients that have not authenticated yet: if they take up to {}, \
         {arrivals_per_second} new ones a second get in; {without_eviction} silent ones a second, \
         each closed after {}, would fill it",
        limits.unauthenticated_max,
        format_duration(TIME_TO_AUTHENTICATE),
        format_duration(age),
    )
}

fn write_summary(settings: &Settings, resolved: &Resolved<'_>, out: &mut String) -> fmt::Result {
    let Settings { gateway, listeners, auths, routes, backends, .. } = settings;
    match gateway.workers {
        Some(workers) => writeln!(out, "  workers   {workers}")?,
        None => writeln!(out, "  workers   one for each core")?,
    }
    write_admission(settings, out)?;
    match gateway.admin {
        Some(address) => writeln!(out, "  admin     http://{address}/")?,
        None => writeln!(out, "  admin     off")?,
    }
    for Listener { address, tls, proxy_trusted, forwarded, redirect, .. } in listeners {
        let tls = if tls.is_some() { "TLS" } else { "plain" };
        let networks = proxy_trusted.len();
        let proxy = counted(networks, "network", ", PROXY header from ");
        let networks = forwarded.as_ref().map_or(0, |proxies| proxies.trusted.len());
        let forwarded = counted(networks, "network", ", X-Forwarded-* from ");
        let redirect = if *redirect == Redirect::Https { ", redirects to https" } else { "" };
        writeln!(out, "  listener  {address} {tls}{proxy}{forwarded}{redirect}")?;
    }
    for auth in auths {
        writeln!(
            out,
            "  auth      {} ({})",
            auth.name,
            counted(auth.carriers.len(), "carrier", "")
        )?;
    }
    for route in routes {
        let path = match &route.path {
            PathPattern::Exact(path) => path.clone(),
            PathPattern::Prefix(prefix) => format!("{prefix}*"),
        };
        let names: Vec<_> = route.auths.iter().map(|&i| &*auths[usize::from(i)].name).collect();
        let visitors = if route.visitors.is_some() { ", then anonymous" } else { "" };
        let auth = if names.is_empty() { "none".into() } else { names.join(", ") + visitors };
        let backend = &backends[usize::from(route.backend)].name;
        let hosts: Vec<_> = route.hosts.iter().map(ToString::to_string).collect();
        let hosts =
            if hosts.is_empty() { String::new() } else { format!(" at {}", hosts.join(", ")) };
        let other =
            near_miss(route, routes).map_or(String::new(), |miss| format!("; 404 for {miss}"));
        writeln!(out, "  route     {path}{hosts} -> {backend} (auth: {auth}{other})")?;
    }
    for backend in backends {
        let hash = backend.server.as_ref().and_then(|server| server.hash.as_ref());
        let balance = hash.map_or_else(|| backend.balance.word().to_owned(), ToString::to_string);
        let endpoints: Vec<_> =
            backend.endpoints.iter().map(|it| shown_endpoint(it, resolved)).collect();
        let key = match (&backend.server, &backend.secret) {
            (Some(_), _) => "WebSocket servers",
            (None, Some(_)) => "with a secret",
            (None, None) => "without a secret",
        };
        let (name, endpoints) = (&backend.name, endpoints.join(" "));
        writeln!(out, "  backend   {name}: {endpoints} ({balance}, {key})")?;
    }
    Ok(())
}

/// The path that differs from the route's by a slash at its end, if no route serves it: paths are
/// compared exactly.
fn near_miss(route: &Route, routes: &[Route]) -> Option<String> {
    let other = match &route.path {
        PathPattern::Exact(path) if path == "/" => return None,
        PathPattern::Exact(path) => {
            path.strip_suffix('/').map_or_else(|| format!("{path}/"), str::to_owned)
        }
        PathPattern::Prefix(prefix) => {
            prefix.strip_suffix('/').filter(|p| !p.is_empty())?.to_owned()
        }
    };
    (!routes.iter().any(|route| route.path.matches(&other))).then_some(other)
}
