//! `portcullis check`.

use std::fmt::{self, Write as _};
use std::process::ExitCode;

use clap::Args;
use portcullis::ring::EndpointAddress;
use portcullis::settings::admission::{Protection, TIME_TO_AUTHENTICATE, protection};
use portcullis::settings::load::{Loaded, Severity};
use portcullis::settings::units::format_duration;
use portcullis::settings::{Balance, Listener, PathPattern, Settings};

use super::ConfigFile;

/// Reports everything that is wrong with a configuration, at once.
#[derive(Args)]
#[command(after_help = "\
Problems go to stderr, a summary of what was loaded to stdout. Warnings leave the exit code 0.
It reads the keys and certificates that the file names, and needs no root.

Example:
  portcullis check --config config/portcullis.toml && systemctl reload portcullis")]
pub struct Check {
    #[command(flatten)]
    config: ConfigFile,
}

/// Checks, and sums up.
pub fn run(command: &Check) -> ExitCode {
    let file = command.config.path.display();
    match portcullis::server::files::load_file(&command.config.path) {
        Ok(Loaded { settings, warnings, .. }) => {
            warnings.iter().for_each(|warning| eprintln!("{warning}"));
            println!("{file}: good{}", count(warnings.len(), "warning", ", "));
            print!("{}", summary(&settings));
            ExitCode::SUCCESS
        }
        Err(problems) => {
            problems.iter().for_each(|problem| eprintln!("{problem}"));
            let errors = problems.iter().filter(|p| p.severity == Severity::Error).count();
            let warnings = problems.len() - errors;
            let warnings = count(warnings, "warning", " and ");
            eprintln!("{file}:{}{warnings}", count(errors, "error", " "));
            ExitCode::FAILURE
        }
    }
}

/// `3 errors` after `before`; nothing for none.
fn count(number: usize, what: &str, before: &str) -> String {
    match number {
        0 => String::new(),
        1 => format!("{before}1 {what}"),
        _ => format!("{before}{number} {what}s"),
    }
}

/// What was loaded, a line for each part.
fn summary(settings: &Settings) -> String {
    let mut out = String::new();
    write_summary(settings, &mut out).expect("writing to a string does not fail");
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
         {arrivals_per_second} new ones a second get in; {without_eviction} silent ones a second \
         would fill it (each is closed after {})",
        limits.unauthenticated_max,
        format_duration(TIME_TO_AUTHENTICATE),
        format_duration(age),
    )
}

fn write_summary(settings: &Settings, out: &mut String) -> fmt::Result {
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
    for Listener { address, tls, proxy_trusted, .. } in listeners {
        let tls = if tls.is_some() { "TLS" } else { "plain" };
        let networks = proxy_trusted.len();
        let proxy = count(networks, "network", ", PROXY header from ");
        writeln!(out, "  listener  {address} {tls}{proxy}")?;
    }
    for auth in auths {
        writeln!(out, "  auth      {} ({})", auth.name, count(auth.carriers.len(), "carrier", ""))?;
    }
    for route in routes {
        let path = match &route.path {
            PathPattern::Exact(path) => path.clone(),
            PathPattern::Prefix(prefix) => format!("{prefix}*"),
        };
        let names: Vec<_> = route.auths.iter().map(|&i| &*auths[usize::from(i)].name).collect();
        let auth = if names.is_empty() { "nobody asked".into() } else { names.join(", ") };
        let backend = &backends[usize::from(route.backend)].name;
        writeln!(out, "  route     {path} -> {backend} (auth: {auth})")?;
    }
    for backend in backends {
        let balance = match backend.balance {
            Balance::LeastSessions => "least-sessions",
            Balance::RoundRobin => "round-robin",
        };
        let endpoints: Vec<_> = backend.endpoints.iter().map(endpoint).collect();
        let key = if backend.secret.is_some() { "with a secret" } else { "without a secret" };
        let (name, endpoints) = (&backend.name, endpoints.join(" "));
        writeln!(out, "  backend   {name}: {endpoints} ({balance}, {key})")?;
    }
    Ok(())
}

fn endpoint(endpoint: &EndpointAddress) -> String {
    match endpoint {
        EndpointAddress::Tcp(address) => address.to_string(),
        EndpointAddress::Unix(path) => format!("unix:{}", path.display()),
    }
}
