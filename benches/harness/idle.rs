//! Scenario `idle`: many connections that say nothing, and what each costs.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use crate::fleet::{Fleet, merge};
use crate::measure::{self, CpuSample, KernelMemory, Memory};
use crate::options::{LoadArgs, duration, rate};
use crate::plan::{Behaviour, Phase};
use crate::report::{Report, bytes};
use crate::target::{Target, TargetArgs};

/// Options of `idle`.
#[derive(Args, Debug)]
pub struct IdleArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub load: LoadArgs,
    /// Connections
    #[arg(short = 'n', long, default_value_t = 10_000)]
    pub connections: u64,
    /// Connects per second while opening
    #[arg(long, default_value = "5000", value_parser = rate)]
    pub open_rate: f64,
    /// Time that they are held, once open
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub hold: Duration,
}

/// Runs the scenario and reports.
///
/// # Errors
/// What is missing, and how to get it.
pub fn run(args: &IdleArgs) -> Result<bool, String> {
    let target = Target::new(&args.target.url, &args.target.hello)?;
    let pids = &args.load.server_pids;
    let mut plans = args.load.plans(&target, &Behaviour::Hold, args.connections);
    let threads = plans.len() as f64;
    plans.iter_mut().for_each(|plan| plan.connect_rate = Some(args.open_rate / threads));
    CpuSample::take(pids)?;
    let (memory_before, kernel_before) = (measure::memory(pids), measure::kernel_memory());
    let began = (Instant::now(), CpuSample::take(pids)?);
    let fleet = Fleet::start(plans)?;
    let complete = fleet.await_open(args.connections);
    let opened_in = began.0.elapsed().as_secs_f64();
    let opening = began.1.until(&CpuSample::take(pids)?);
    fleet.set_phase(Phase::Measure);
    let settled = complete && fleet.sleep(Duration::from_secs(1));
    let rest = CpuSample::take(pids)?;
    let held = settled && fleet.sleep(args.hold);
    // The server may have died meanwhile; what was measured before still counts.
    let resting = CpuSample::take(pids).map(|after| rest.until(&after));
    let (memory, kernel) = (measure::memory(pids), measure::kernel_memory());
    let totals = fleet.totals();
    let stats = merge(fleet.finish());

    let mut report = Report::new("idle");
    report.section("idle");
    report.text("target", &target.url);
    report.count("connections wanted", args.connections);
    report.count("connections opened", totals.opened);
    report.count("connections open at the end", totals.open_now);
    if !held {
        report.text("note", "the run was cut short; these are the figures up to then");
    }
    report.number("opened in", opened_in, " s");
    report.latency("time to open", &stats.opening);
    report.count("pings answered", stats.pings);
    report.outcomes(&stats);
    if pids.is_empty() {
        report.text("server", "not measured; give --server-pid");
    } else {
        report.cpu("server while opening", &opening);
        let each = opening.cpu * 1e6 / totals.opened.max(1) as f64;
        report.number("server CPU per opening", each, " µs");
        if let Ok(used) = resting {
            report.cpu("server at rest", &used);
        }
        server_memory(&mut report, memory_before, memory, totals.open_now);
    }
    kernel_share(&mut report, &kernel_before, &kernel, totals.open_now);
    report.publish(args.load.json.as_deref())?;
    Ok(held && stats.error.is_none() && totals.open_now == args.connections)
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
