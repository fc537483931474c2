//! `portcullis doctor`: whether this machine and these settings go together.

pub(super) mod machine;
pub(super) mod ports;
mod reach;
pub(super) mod row;

use std::process::ExitCode;

use clap::Args;
use portcullis::linux::probe::{kernel_release, probe};
use portcullis::linux::process;
use portcullis::server::files::{SystemEnvironment, load_file};
use portcullis::settings::Settings;
use portcullis::settings::load::{Environment, Problem};
use serde_json::{Value, json};

use super::common::{ConfigFile, Format};
use row::{Row, Status};

/// When a certificate's end is worth a warning, and when it is urgent.
const CERTIFICATE_WARN_S: u64 = 14 * 86_400;
const CERTIFICATE_FAIL_S: u64 = 3 * 86_400;

/// Examine this machine: kernel, io_uring, limits, ports, certificates, clock, backends.
#[derive(Args)]
#[command(after_help = "\
Each row says ok, warn, fail or skip, with a remedy where there is something to do. Without a
configuration, only what needs none is examined. Run it as the gateway's user: limits and
permissions are those of the user that runs it. Nothing is changed.

Exit codes:
  0  no row failed; warnings are not failures
  1  at least one row failed

Examples:
  portcullis doctor
  runuser -u portcullis -- portcullis doctor --config /etc/portcullis/portcullis.toml
  portcullis doctor --format json")]
pub struct Doctor {
    #[command(flatten)]
    config: ConfigFile,
    /// Resolve no name and connect to nothing.
    #[arg(long)]
    offline: bool,
    /// How to print the report.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// Examines, and reports.
pub fn run(command: &Doctor) -> ExitCode {
    let (config_row, settings, warnings) = configuration(&command.config);
    let mut rows = vec![config_row];
    rows.extend(warnings.into_iter().map(|problem| {
        let finding = format!("line {}: {}", problem.line, problem.what);
        Row::warn("configuration", finding, remedy(&problem))
    }));
    rows.extend(examine(settings.as_ref(), command.offline));
    match command.format {
        Format::Text => print_text(&rows),
        Format::Json => println!("{}", report(&rows)),
    }
    match rows.iter().any(|row| row.status == Status::Fail) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

/// Loads the configuration, if there is one.
fn configuration(config: &ConfigFile) -> (Row, Option<Settings>, Vec<Problem>) {
    const CHECK: &str = "configuration";
    let path = config.path();
    let shown = path.display();
    if config.is_default() && !path.exists() {
        let why = format!("there is no {shown}, and no --config: rows that need one are left out");
        return (Row::skipped(CHECK, why), None, Vec::new());
    }
    match load_file(path) {
        Ok(loaded) => {
            let row = Row::ok(CHECK, format!("{shown} can be used"));
            (row, Some(loaded.settings), loaded.warnings)
        }
        Err(problems) => {
            let first = problems.first().map(ToString::to_string).unwrap_or_default();
            let finding = format!("{shown} has {} problems; the first: {first}", problems.len());
            let row = Row::fail(CHECK, finding, format!("portcullis check --config {shown}"));
            (row, None, Vec::new())
        }
    }
}

/// A warning of the configuration always has something to do.
fn remedy(problem: &Problem) -> String {
    match problem.fix.as_str() {
        "" => "docs/configuration.md explains the key".into(),
        fix => fix.into(),
    }
}

fn examine(settings: Option<&Settings>, offline: bool) -> Vec<Row> {
    let read = &machine::read;
    let probed = probe();
    let usable = probed.is_ok();
    let mut rows = vec![
        machine::kernel(&kernel_release()),
        machine::io_uring(&probed),
        machine::io_uring_disabled(read, usable),
        machine::seccomp(read, usable),
        machine::descriptors(process::raise_descriptor_limit(), settings, probed.as_ref().ok()),
        machine::locked_memory(process::locked_memory_limit(), usable),
    ];
    rows.extend(machine::sysctls(read, settings));
    let now_s = SystemEnvironment.unix_seconds();
    rows.push(machine::clock(now_s, process::clock_is_synchronised()));
    if let Some(settings) = settings {
        let ports: Vec<u16> =
            ports::addresses(settings).iter().map(|(_, address)| address.port()).collect();
        rows.push(machine::low_ports(read, &ports));
        rows.extend(ports::rows(settings));
        rows.extend(certificates(settings, now_s));
        rows.extend(reach::rows(settings, offline));
    }
    rows
}

/// A row for each listener with TLS. What is wrong inside a chain is a warning of the
/// configuration.
fn certificates(settings: &Settings, now_s: u64) -> Vec<Row> {
    let listeners = settings.listeners.iter().enumerate();
    let with_tls = listeners.filter_map(|(index, listener)| {
        Some((index, listener.address, listener.tls.as_ref()?.not_after_s))
    });
    with_tls
        .map(|(index, address, not_after_s)| {
            certificate(&format!("listener {index} {address}"), not_after_s, now_s)
        })
        .collect()
}

fn certificate(what: &str, not_after_s: u64, now_s: u64) -> Row {
    const CHECK: &str = "certificate";
    let renew = "renew it, then reload the gateway; deploy/prometheus/alerts.yml warns in time";
    let Some(left) = not_after_s.checked_sub(now_s) else {
        return Row::fail(CHECK, format!("{what}: a certificate has expired"), renew);
    };
    let finding =
        format!("{what}: the first certificate to expire does so in {} days", left / 86_400);
    match left {
        ..CERTIFICATE_FAIL_S => Row::fail(CHECK, finding, renew),
        CERTIFICATE_FAIL_S..CERTIFICATE_WARN_S => Row::warn(CHECK, finding, renew),
        _ => Row::ok(CHECK, finding),
    }
}

fn count(rows: &[Row], status: Status) -> usize {
    rows.iter().filter(|row| row.status == status).count()
}

fn print_text(rows: &[Row]) {
    rows.iter().for_each(|row| print!("{}", row.text()));
    let count = |status| count(rows, status);
    println!(
        "\n{} failed, {} warnings, {} ok",
        count(Status::Fail),
        count(Status::Warn),
        count(Status::Ok)
    );
}

fn report(rows: &[Row]) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "failed": count(rows, Status::Fail),
        "warnings": count(rows, Status::Warn),
        "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_judged_by_the_time_that_is_left() {
        const DAY: u64 = 86_400;
        for (left_days, status) in [
            (90, Status::Ok),
            (14, Status::Ok),
            (13, Status::Warn),
            (3, Status::Warn),
            (2, Status::Fail),
        ] {
            let row = certificate("listener 0", 1_000 + left_days * DAY, 1_000);
            assert_eq!(row.status, status, "{row:?}");
            assert!(row.finding.contains(&format!("{left_days} days")), "{row:?}");
        }
        assert!(certificate("listener 0", 999, 1_000).finding.contains("has expired"));
    }
}
