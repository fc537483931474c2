//! Scenario `open`: connect, upgrade, authenticate, close; again and again.

use std::time::{Duration, Instant};

use clap::Args;

use crate::fleet::{Fleet, merge};
use crate::measure::{CpuSample, verdict};
use crate::options::{LoadArgs, duration, rate};
use crate::plan::{Behaviour, Phase};
use crate::report::Report;
use crate::target::{Target, TargetArgs};

/// Options of `open`.
#[derive(Args, Debug)]
pub struct OpenArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub load: LoadArgs,
    /// Connections at once (closed loop), or at most (with --rate)
    #[arg(short = 'n', long, default_value_t = 64)]
    pub concurrency: u64,
    /// Connects per second (open loop)
    #[arg(long, value_parser = rate)]
    pub rate: Option<f64>,
    /// Time that is measured
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub duration: Duration,
    /// Time before, with load but unmeasured
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub warm_up: Duration,
}

/// Runs the scenario and reports.
///
/// # Errors
/// What is missing, and how to get it.
pub fn run(args: &OpenArgs) -> Result<bool, String> {
    let target = Target::new(&args.target.url, &args.target.hello)?;
    let pids = &args.load.server_pids;
    let concurrency = match args.rate {
        Some(_) => args.concurrency.max(4096),
        None => args.concurrency,
    };
    let mut plans = args.load.plans(&target, &Behaviour::Cycle, concurrency);
    let threads = plans.len() as f64;
    for plan in &mut plans {
        plan.connects = None;
        plan.connect_rate = args.rate.map(|rate| rate / threads);
        plan.opening_max = plan.slots;
        plan.sources = if args.load.sources == 0 { 0 } else { args.load.sources.max(64) };
    }
    CpuSample::take(pids)?;
    let mine = [std::process::id()];
    let fleet = Fleet::start(plans)?;
    fleet.set_phase(Phase::Warm);
    let warm = fleet.sleep(args.warm_up);
    let began = Instant::now();
    let before = (fleet.totals(), CpuSample::take(pids)?, CpuSample::take(&mine)?);
    fleet.set_phase(Phase::Measure);
    let complete = warm && fleet.sleep(args.duration);
    let after = (fleet.totals(), CpuSample::take(pids), CpuSample::take(&mine)?);
    let seconds = began.elapsed().as_secs_f64();
    fleet.set_phase(Phase::Drain);
    fleet.sleep(Duration::from_millis(300));
    let stats = merge(fleet.finish());

    let finished = after.0.finished - before.0.finished;
    let failed = after.0.failed - before.0.failed;
    let client = before.2.until(&after.2);
    let server = match &after.1 {
        Ok(sample) if !pids.is_empty() => Some(before.1.until(sample)),
        _ => None,
    };
    let mut report = Report::new("open");
    report.section("open and close");
    report.text("target", &target.url);
    if !complete {
        report.text("note", "the run was cut short; these are the figures up to then");
    }
    report.number("seconds measured", seconds, " s");
    report.count("cycles finished", finished);
    report.count("cycles failed", failed);
    report.number("cycles per second", finished as f64 / seconds, "/s");
    report.latency("intended start to open", &stats.opening);
    report.latency("intended start to closed", &stats.cycle);
    if args.rate.is_some() {
        report.latency("own lateness in it", &stats.lateness);
    }
    let each = |cpu: f64| cpu * 1e6 / (finished + failed).max(1) as f64;
    match &server {
        Some(used) => {
            report.number("server CPU per cycle", each(used.cpu), " µs");
            report.cpu("server", used);
        }
        None => report.text("server CPU", "not measured; give --server-pid"),
    }
    report.number("client CPU per cycle", each(client.cpu), " µs");
    report.cpu("client", &client);
    report.text("limit", &verdict(server.as_ref(), &client));
    report.outcomes(&stats);
    report.publish(args.load.json.as_deref())?;
    Ok(complete && stats.failures.is_empty() && stats.error.is_none() && finished > 0)
}
