//! Scenario `compare-echo`: the same load on the bare echo, on nginx in front of it, and on a
//! gateway, in turn and pinned, reported as ratios of server CPU per message.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use tempfile::TempDir;

use crate::echo::{self, EchoOutcome, TrafficArgs};
use crate::kernel;
use crate::measure::{verdict, with_children};
use crate::options::LoadArgs;
use crate::report::{Report, span};
use crate::target::{HelloArgs, Target};

/// Options of `compare-echo`.
#[derive(Args, Debug)]
pub struct CompareArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub traffic: TrafficArgs,
    /// Headers, tokens and TLS options for the gateway; other peers get none
    #[command(flatten)]
    pub hello: HelloArgs,
    /// The gateway, which must echo what it gets (through its backend)
    #[arg(long, value_name = "URL", requires = "gateway_pids")]
    pub gateway_url: Option<String>,
    /// Its process; may be repeated. A backend's process is not given: its CPU is not the gateway's
    #[arg(long = "gateway-pid", value_name = "PID", requires = "gateway_url")]
    pub gateway_pids: Vec<u32>,
    /// Rounds; each peer is measured once in each, and the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Core of the server under measurement
    #[arg(long, default_value_t = 0)]
    pub server_core: usize,
    /// Core of the client, and of the echo server behind nginx
    #[arg(long, default_value_t = 1)]
    pub client_core: usize,
    /// Leave the gateway on the cores that it chose
    #[arg(long)]
    pub no_pin_gateway: bool,
    /// The nginx program
    #[arg(long, default_value = "nginx")]
    pub nginx: PathBuf,
}

/// A server that is measured.
struct Peer {
    name: &'static str,
    target: Target,
    pids: Vec<u32>,
    outcomes: Vec<EchoOutcome>,
}

/// A child process that ends with us.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the scenario and reports.
///
/// # Errors
/// When not even the bare echo can be run.
pub fn run(args: &CompareArgs) -> Result<bool, String> {
    let mut peers = Vec::new();
    let mut missing: Vec<(&str, String)> = Vec::new();
    let (echo_server, echo_address) = start_echo(args.server_core)?;
    let url = format!("ws://{echo_address}/");
    let plain = HelloArgs::default();
    peers.push(Peer {
        name: "bare echo",
        target: Target::new(&url, &plain)?,
        pids: vec![echo_server.0.id()],
        outcomes: Vec::new(),
    });
    // Behind nginx stands an echo of its own, on the client's core: nginx has its core alone.
    let (_behind, behind_address) = start_echo(args.client_core)?;
    let nginx = start_nginx(args, behind_address);
    match &nginx {
        Ok(nginx) => peers.push(Peer {
            name: "nginx",
            target: Target::new(&format!("ws://{}/", nginx.address), &plain)?,
            pids: with_children(nginx.server.0.id()),
            outcomes: Vec::new(),
        }),
        Err(error) => missing.push(("nginx", error.clone())),
    }
    match &args.gateway_url {
        Some(url) => peers.push(Peer {
            name: "gateway",
            target: Target::new(url, &args.hello)?,
            pids: args.gateway_pids.clone(),
            outcomes: Vec::new(),
        }),
        None => missing.push(("gateway", "no --gateway-url and --gateway-pid".to_owned())),
    }
    if !args.no_pin_gateway {
        args.gateway_pids.iter().try_for_each(|pid| pin_process(*pid, args.server_core))?;
    }
    let complete = measure_in_turn(args, &mut peers)?;
    report(args, &peers, &missing, complete)
}

/// Fills every peer's outcomes; false when interrupted.
fn measure_in_turn(args: &CompareArgs, peers: &mut [Peer]) -> Result<bool, String> {
    let mut load = args.load.clone();
    if load.cores.is_empty() {
        load.cores = vec![args.client_core];
    }
    let traffic = &args.traffic;
    for round in 1..=args.rounds {
        for peer in peers.iter_mut() {
            eprintln!("round {round} of {}: {}", args.rounds, peer.name);
            let plans = traffic.plans(&load, &peer.target);
            let outcome = echo::measure(plans, &peer.pids, traffic.warm_up, traffic.duration)?;
            if kernel::interrupted() {
                return Ok(false);
            }
            peer.outcomes.push(outcome);
            // Sockets of the last run go before the next one begins.
            std::thread::sleep(Duration::from_millis(300));
        }
    }
    Ok(true)
}

fn report(
    args: &CompareArgs,
    peers: &[Peer],
    missing: &[(&str, String)],
    complete: bool,
) -> Result<bool, String> {
    let mut report = Report::new("compare-echo");
    report.section("compare echo");
    if !complete {
        report.text("note", "the run was cut short; these are the rounds that ended");
    }
    report.count("connections", args.traffic.connections);
    report.count("payload bytes", u64::from(args.traffic.size));
    report.count("rounds", u64::from(args.rounds));
    let mut sound = complete;
    let mut costs: Vec<(&str, f64)> = Vec::new();
    for peer in peers {
        report.section(peer.name);
        sound &= describe(&mut report, peer, args.traffic.connections);
        if let Some(cost) = median(peer.outcomes.iter().filter_map(EchoOutcome::server_micros)) {
            costs.push((peer.name, cost));
        }
    }
    report.section("server CPU per message, ratios of medians");
    for (name, cost) in &costs {
        for (other, base) in costs.iter().filter(|(other, _)| other != name) {
            report.number(&format!("{name} / {other}"), cost / base, "");
        }
    }
    for (name, why) in missing {
        report.text(name, &format!("not measured: {why}"));
    }
    report.publish(args.load.json.as_deref())?;
    Ok(sound)
}

/// Returns whether every run of the peer was without a failure.
fn describe(report: &mut Report, peer: &Peer, connections: u64) -> bool {
    let outcomes = &peer.outcomes;
    report.text("target", &peer.target.url);
    let costs: Vec<f64> = outcomes.iter().filter_map(EchoOutcome::server_micros).collect();
    let Some(middle) = median(costs.iter().copied()) else {
        report.text("result", "not measured");
        return false;
    };
    let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
    let most = costs.iter().copied().fold(0.0, f64::max);
    let value = json!({ "median_us": middle, "runs_us": costs });
    let text = format!("{middle:.2} µs ({least:.2} to {most:.2})");
    report.line("server CPU per message", value, text);
    let rates = outcomes.iter().map(|run| run.messages as f64 / run.seconds);
    report.number("messages per second", median(rates).unwrap_or(0.0), "/s");
    for (label, quantile) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        let at = outcomes
            .iter()
            .map(|run| run.stats.round_trips.value_at_quantile(quantile) as f64 / 1000.0);
        let at = median(at).unwrap_or(0.0);
        report.line(format!("round trip {label}"), json!({ "us": at }), span(at));
    }
    let client = median(outcomes.iter().map(EchoOutcome::client_micros)).unwrap_or(0.0);
    report.number("client CPU per message", client, " µs");
    for (index, run) in outcomes.iter().enumerate() {
        let limit = verdict(run.server.as_ref(), &run.client);
        let (server, client) = (run.server.unwrap_or_default(), run.client);
        let text = format!(
            "server {:.0} %, client {:.0} %: {limit}",
            server.busiest * 100.0,
            client.busiest * 100.0
        );
        report.line(format!("run {}", index + 1), json!(limit), text);
    }
    let mut sound = true;
    for (index, run) in outcomes.iter().enumerate() {
        let stats = &run.stats;
        let clean = stats.failures.is_empty() && stats.error.is_none() && stats.unanswered == 0;
        if !clean || run.opened != connections {
            report.section(format!("{} run {} was not clean", peer.name, index + 1));
            report.count("connections open", run.opened);
            report.count("answers missing", stats.unanswered);
            report.outcomes(stats);
            sound = false;
        }
    }
    sound
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (low, high) =
        (values.get(values.len().checked_sub(1)? / 2)?, values.get(values.len() / 2)?);
    Some((low + high) / 2.0)
}

fn start_echo(core: usize) -> Result<(Server, SocketAddr), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut child = Command::new(program)
        .args(["echo-server", "--listen", "127.0.0.1:0", "--end-with-parent"])
        .args(["--core", &core.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start the bare echo server: {error}"))?;
    let output = child.stdout.take().expect("stdout is piped");
    let server = Server(child);
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).map_err(|error| error.to_string())?;
    let address = line
        .strip_prefix("listening on ws://")
        .and_then(|rest| rest.split('/').next())
        .and_then(|address| address.parse().ok())
        .ok_or_else(|| "the bare echo server did not start; its error is above".to_owned())?;
    Ok((server, address))
}

struct Nginx {
    server: Server,
    address: SocketAddr,
    _directory: TempDir,
}

fn start_nginx(args: &CompareArgs, upstream: SocketAddr) -> Result<Nginx, String> {
    let directory = TempDir::new().map_err(|error| error.to_string())?;
    let address = free_address().map_err(|error| error.to_string())?;
    let path = directory.path().join("nginx.conf");
    let text = nginx_config(directory.path(), address, upstream, args.traffic.connections);
    std::fs::write(&path, text).map_err(|error| error.to_string())?;
    let log = directory.path().join("start.log");
    let errors = std::fs::File::create(&log).map_err(|error| error.to_string())?;
    let child = Command::new(&args.nginx)
        .arg("-e")
        .arg(&log)
        .arg("-p")
        .arg(directory.path())
        .arg("-c")
        .arg(&path)
        .stderr(errors)
        .spawn()
        .map_err(|error| format!("cannot run {} ({error}); install nginx", args.nginx.display()))?;
    let mut server = Server(child);
    let end = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(address).is_err() {
        let ended = matches!(server.0.try_wait(), Ok(Some(_)));
        if ended || Instant::now() > end {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            return Err(format!("nginx did not start: {}", said.trim()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = server.0.id();
    for process in with_children(pid) {
        pin_process(process, args.server_core)?;
    }
    Ok(Nginx { server, address, _directory: directory })
}

fn nginx_config(
    directory: &Path,
    address: SocketAddr,
    upstream: SocketAddr,
    connections: u64,
) -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("  {name}_temp_path {}/{name};\n", directory.display()))
        .collect();
    // Two sockets for each client, and room for what nginx needs for itself.
    let each = (connections * 2 + 1024).min(u64::from(kernel::descriptor_limit()));
    format!(
        "daemon off;\nworker_processes 1;\npid {0}/nginx.pid;\nerror_log {0}/error.log;\n\
         worker_rlimit_nofile {1};\nevents {{ worker_connections {1}; }}\nhttp {{\n\
         \x20 access_log off;\n{temporary}  server {{\n    listen {address} backlog=4096;\n\
         \x20   location / {{\n      proxy_pass http://{upstream};\n\
         \x20     proxy_http_version 1.1;\n      proxy_set_header Upgrade $http_upgrade;\n\
         \x20     proxy_set_header Connection \"upgrade\";\n      proxy_read_timeout 300s;\n\
         \x20   }}\n  }}\n}}\n",
        directory.display(),
        each
    )
}

fn free_address() -> std::io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// Binds every thread of a process to a core.
fn pin_process(pid: u32, core: usize) -> Result<(), String> {
    let wrong = |error: std::io::Error| {
        format!("process {pid}: cannot be bound to core {core}: {error} (or give --no-pin-gateway)")
    };
    for entry in std::fs::read_dir(format!("/proc/{pid}/task")).map_err(wrong)?.flatten() {
        if let Some(thread) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            kernel::pin(thread, core).map_err(wrong)?;
        }
    }
    Ok(())
}
