//! Scenario `idle`: many connections that say nothing, and what each costs.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use crate::fleet::{Fleet, merge};
use crate::measure::{self, CpuSample, CpuUse, KernelMemory, Memory, Quiet};
use crate::options::{LoadArgs, duration, rate};
use crate::plan::{Behaviour, Phase, Plan};
use crate::report::{Report, bytes};
use crate::servers::peers::{self, Kind, Peer, Purpose, Tls};
use crate::servers::{Workshop, gateway};
use crate::stats::Stats;
use crate::target::{HelloArgs, Target};

/// Options of `idle`.
#[derive(Args, Debug)]
pub struct IdleArgs {
    /// The server: ws://HOST:PORT/PATH or wss://… Without one, a gateway and its backend are
    /// started for this run, with as many workers as the connections need
    #[arg(value_name = "URL")]
    pub url: Option<String>,
    #[command(flatten)]
    pub hello: HelloArgs,
    #[command(flatten)]
    pub load: LoadArgs,
    /// Connections
    #[arg(short = 'n', long, default_value_t = 10_000)]
    pub connections: u64,
    /// Connects per second while opening
    #[arg(long, default_value = "5000", value_parser = rate)]
    pub open_rate: f64,
    /// Time that they are held, once open [default: 10s; without a URL, a ping for each]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub hold: Option<Duration>,
    /// Without a URL: use the gateway's TLS listener
    #[arg(long, conflicts_with = "url")]
    pub tls: bool,
    /// Without a URL: silence before the gateway pings [default: 25s, longer for many: 8,000
    /// pings per second]
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "url")]
    pub ping_interval: Option<Duration>,
    /// Without a URL: the gateway's program [default: the one that cargo built]
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    pub gateway: Option<PathBuf>,
    /// Open no more once the machine has less memory left than this, MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    pub memory_floor: u64,
}

/// What idle connections took.
pub struct IdleOutcome {
    /// Connections that became open.
    pub opened: u64,
    /// Connections open at the end.
    pub open_now: u64,
    /// Time from the first connect to the last answer, seconds.
    pub opened_in: f64,
    /// The server's memory before the first and after the hold.
    pub memory: (Memory, Memory),
    /// The kernel's, likewise.
    pub kernel: (KernelMemory, KernelMemory),
    /// The server's CPU while they were opened, and at rest.
    pub opening: CpuUse,
    /// See `opening`; `None` when the server was gone.
    pub resting: Option<CpuUse>,
    /// All counts.
    pub stats: Stats,
    /// Whether opening ended early because memory ran low.
    pub out_of_memory: bool,
    /// Whether the run reached its end.
    pub complete: bool,
}

impl IdleOutcome {
    /// Anonymous and resident bytes of the server for each open connection.
    pub fn user_bytes(&self) -> (f64, f64) {
        let (before, after) = &self.memory;
        let each =
            |before: u64, after: u64| (after as f64 - before as f64) / self.open_now.max(1) as f64;
        (each(before.anonymous, after.anonymous), each(before.rss, after.rss))
    }

    /// Bytes of the kernel's socket caches for each open connection, all ends together.
    pub fn kernel_bytes(&self) -> f64 {
        let bytes = self.kernel.1.brought_by(&self.kernel.0, self.open_now);
        bytes as f64 / self.open_now.max(1) as f64
    }
}

/// The plans for `connections` that stay, opened at `rate` in all.
pub fn plans(load: &LoadArgs, target: &Target, connections: u64, rate: f64) -> Vec<Plan> {
    let mut plans = load.plans(target, &Behaviour::Hold, connections);
    let threads = plans.len() as f64;
    for plan in &mut plans {
        plan.connect_rate = Some(rate / threads);
        // Little comes to a connection that is idle.
        plan.buffer_bytes = if target.tls.is_some() { 4096 } else { 1024 };
    }
    plans
}

/// Opens, holds, and looks at the memory.
///
/// # Errors
/// When a thread cannot be made or the server's process is not there.
pub fn measure(
    plans: Vec<Plan>,
    pids: &[u32],
    hold: Duration,
    memory_floor: u64,
) -> Result<IdleOutcome, String> {
    let wanted = plans.iter().filter_map(|plan| plan.connects).sum();
    CpuSample::take(pids)?;
    let before = (measure::memory(pids), measure::kernel_memory());
    let began = (Instant::now(), CpuSample::take(pids)?);
    let fleet = Fleet::start(plans)?;
    let mut out_of_memory = false;
    let complete = fleet.await_open_until(wanted, || {
        out_of_memory = measure::available_memory() < memory_floor;
        out_of_memory
    });
    let opened_in = began.0.elapsed().as_secs_f64();
    // The server may have died meanwhile; what was measured before still counts.
    let opening = CpuSample::take(pids).map(|after| began.1.until(&after)).unwrap_or_default();
    // In the phase of draining, nothing new is begun and pings are answered.
    fleet.set_phase(if out_of_memory { Phase::Drain } else { Phase::Measure });
    let settled = complete && fleet.sleep(Duration::from_secs(1));
    let rest = CpuSample::take(pids);
    let held = settled && fleet.hold(hold);
    let resting = match (rest, CpuSample::take(pids)) {
        (Ok(before), Ok(after)) if !pids.is_empty() => Some(before.until(&after)),
        _ => None,
    };
    let after = (measure::memory(pids), measure::kernel_memory());
    let totals = fleet.totals();
    Ok(IdleOutcome {
        opened: totals.opened,
        open_now: totals.open_now,
        opened_in,
        memory: (before.0, after.0),
        kernel: (before.1, after.1),
        opening,
        resting,
        stats: merge(fleet.finish()),
        out_of_memory,
        complete: held,
    })
}

/// A gateway of our own, and how it is used.
struct Own {
    _workshop: Workshop,
    peer: Peer,
    ping: Duration,
}

/// Pings per second that the default interval allows.
const PINGS_PER_SECOND: u64 = 8000;
const PING_DEFAULT_S: u64 = 25;
/// What the kernel and both programs take for a connection with both ends here, plain: to warn.
const BYTES_EACH: u64 = 11_000;

fn own_gateway(args: &IdleArgs) -> Result<Own, String> {
    let program = args.gateway.clone().unwrap_or_else(crate::servers::built_gateway);
    let workshop = Workshop::new(program, None, None)?;
    let ping_s = match args.ping_interval {
        Some(interval) => interval.as_secs().max(1),
        None => PING_DEFAULT_S.max(args.connections.div_ceil(PINGS_PER_SECOND)),
    };
    let purpose = Purpose { connections: args.connections, ping_s, flooded: false };
    eprintln!(
        "starting a gateway with {} workers; each ring holds at most {} sockets",
        gateway::threads_for(args.connections),
        crate::kernel::descriptor_limit()
    );
    let peer = peers::start(Kind::Gateway, &workshop, &purpose)?;
    Ok(Own { _workshop: workshop, peer, ping: Duration::from_secs(ping_s) })
}

/// Says beforehand what will not suffice.
fn warn(args: &IdleArgs) {
    let (files_max, files) = measure::open_files();
    let sockets = args.connections * 2;
    if files + sockets > files_max {
        eprintln!(
            "warning: {sockets} sockets with both ends here, and fs.file-max is {files_max}: \
             raise it (sysctl -w fs.file-max={})",
            files + sockets + 100_000
        );
    }
    let (need, have) = (args.connections * BYTES_EACH, measure::available_memory());
    let floor = args.memory_floor << 20;
    if need + floor > have {
        let (need, have) = (bytes(need as f64), bytes(have as f64));
        eprintln!("warning: about {need} will be taken, {have} are left: it may stop early");
    }
}

/// Runs the scenario and reports.
///
/// # Errors
/// What is missing, and how to get it.
pub fn run(args: &IdleArgs) -> Result<bool, String> {
    warn(args);
    let (own, target, pids) = match &args.url {
        Some(url) => (None, Target::new(url, &args.hello)?, args.load.server_pids.clone()),
        None => {
            let own = own_gateway(args)?;
            let tls = if args.tls { Tls::Full } else { Tls::Plain };
            let target = own.peer.target(tls, "/echo")?;
            let pids = own.peer.pids();
            (Some(own), target, pids)
        }
    };
    let shortest = own.as_ref().map_or(Duration::from_secs(10), |own| own.ping * 11 / 10);
    let hold = args.hold.unwrap_or(shortest);
    let plans = plans(&args.load, &target, args.connections, args.open_rate);
    let threads = plans.len();
    let known = own.as_ref().map_or_else(|| pids.clone(), |own| own.peer.all_pids());
    let before = Quiet::take(&known);
    let outcome = measure(plans, &pids, hold, args.memory_floor << 20)?;
    let foreign = before.foreign_until(&Quiet::take(&known));

    let mut report = Report::new("idle");
    report.section("idle");
    report.text("target", &target.url);
    report.count("connections wanted", args.connections);
    report.count("load threads, a ring each", threads as u64);
    if let Some(own) = &own {
        report.count("gateway workers", gateway::threads_for(args.connections));
        report.number("ping interval", own.ping.as_secs_f64(), " s");
    }
    let stopped = describe(&mut report, args, &outcome, &pids, foreign);
    report.publish(args.load.json.as_deref())?;
    Ok(outcome.complete && stopped.is_none() && outcome.stats.error.is_none())
}

/// What kept the run from what was wanted, if anything did.
fn what_stopped(args: &IdleArgs, outcome: &IdleOutcome) -> Option<String> {
    let missing = args.connections.saturating_sub(outcome.open_now);
    if outcome.out_of_memory {
        return Some(format!("memory: less than {} MiB were left", args.memory_floor));
    }
    if let Some(error) = &outcome.stats.error {
        return Some(error.clone());
    }
    let worst = outcome.stats.failures.iter().max_by_key(|(_, count)| **count);
    match (worst, missing) {
        (_, 0) => None,
        (Some((kind, count)), _) => Some(format!("{count} times: {kind}")),
        (None, _) => Some("it was interrupted".to_owned()),
    }
}

fn describe(
    report: &mut Report,
    args: &IdleArgs,
    outcome: &IdleOutcome,
    pids: &[u32],
    foreign: f64,
) -> Option<String> {
    let stats = &outcome.stats;
    report.count("connections opened", outcome.opened);
    report.count("connections open at the end", outcome.open_now);
    let stopped = what_stopped(args, outcome);
    report.text("stopped by", stopped.as_deref().unwrap_or("nothing: all are open"));
    if !outcome.complete {
        report.text("note", "the run was cut short; these are the figures up to then");
    }
    report.number("opened in", outcome.opened_in, " s");
    report.number("opened per second", outcome.opened as f64 / outcome.opened_in, "/s");
    report.latency("time to open", &stats.opening);
    report.count("pings answered", stats.pings);
    let others = match foreign > crate::results::FOREIGN_MAX {
        true => format!("{foreign:.2} cores: NOT QUIET, times are worthless, bytes hold"),
        false => format!("{foreign:.2} cores"),
    };
    report.line("others had", json!(foreign), others);
    report.outcomes(stats);
    if pids.is_empty() {
        report.text("server", "not measured; give --server-pid");
    } else {
        report.cpu("server while opening", &outcome.opening);
        let each = outcome.opening.cpu * 1e6 / outcome.opened.max(1) as f64;
        report.number("server CPU per opening", each, " µs");
        if let Some(used) = &outcome.resting {
            report.cpu("server at rest", used);
            let second = used.cpu / used.wall * 100.0;
            report.number("server CPU at rest, of a core", second, " %");
        }
        server_memory(report, outcome.memory.0, outcome.memory.1, outcome.open_now);
    }
    kernel_share(report, &outcome.kernel.0, &outcome.kernel.1, outcome.open_now);
    report.number("socket caches, both ends", outcome.kernel_bytes(), " B each");
    stopped
}

fn server_memory(report: &mut Report, before: Memory, after: Memory, connections: u64) {
    report.section("server memory per open connection");
    let pairs = [
        ("resident", before.rss, after.rss),
        ("proportional", before.pss, after.pss),
        ("anonymous", before.anonymous, after.anonymous),
    ];
    for (name, before, after) in pairs {
        let each = (after as f64 - before as f64) / connections.max(1) as f64;
        let value = json!({ "bytes_each": each, "before": before, "after": after });
        let (from, to) = (bytes(before as f64), bytes(after as f64));
        report.line(name, value, format!("{} each ({from} → {to})", bytes(each)));
    }
}

fn kernel_share(
    report: &mut Report,
    before: &KernelMemory,
    after: &KernelMemory,
    connections: u64,
) {
    report.section("kernel memory of the whole machine per open connection");
    report.text("note", "both ends of each connection when the server runs on this machine");
    let count = connections.max(1) as f64;
    for (name, bytes_after) in &after.general {
        let old = before.general.get(name).copied().unwrap_or(0);
        let each = (*bytes_after as f64 - old as f64) / count;
        report.line(*name, json!(each), bytes(each));
    }
    if after.slabs.is_empty() {
        report.text("slab caches", "not readable: /proc/slabinfo needs root");
        return;
    }
    for (name, grown) in after.growth_since(before).into_iter().take(10) {
        let each = grown as f64 / count;
        if each >= 1.0 {
            report.line(format!("cache {name}"), json!(each), bytes(each));
        }
    }
}
