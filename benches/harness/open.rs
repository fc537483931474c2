//! Scenario `open`: connect, upgrade, authenticate, close; again and again.

use std::time::{Duration, Instant};

use clap::Args;

use crate::fleet::{Fleet, merge};
use crate::measure::{CpuSample, CpuUse, verdict};
use crate::options::{LoadArgs, duration, rate};
use crate::plan::{Behaviour, Phase, Plan};
use crate::report::Report;
use crate::stats::Stats;
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

/// What a run of cycles measured.
pub struct OpenOutcome {
    /// Length of the measured window, seconds.
    pub seconds: f64,
    /// Cycles that ended well in it.
    pub finished: u64,
    /// Cycles that failed in it.
    pub failed: u64,
    /// All counts.
    pub stats: Stats,
    /// The server's CPU in the window, if it was watched.
    pub server: Option<CpuUse>,
    /// Ours.
    pub client: CpuUse,
    /// Whether the run reached its end.
    pub complete: bool,
}

impl OpenOutcome {
    /// CPU per cycle, microseconds.
    pub fn micros(&self, used: &CpuUse) -> f64 {
        used.cpu * 1e6 / (self.finished + self.failed).max(1) as f64
    }
}

/// The plans for cycles, `concurrency` at once, or at most with a rate.
pub fn plans(load: &LoadArgs, target: &Target, concurrency: u64, rate: Option<f64>) -> Vec<Plan> {
    let concurrency = match rate {
        Some(_) => concurrency.max(4096),
        None => concurrency,
    };
    let mut plans = load.plans(target, &Behaviour::Cycle, concurrency);
    let threads = plans.len() as f64;
    for plan in &mut plans {
        plan.connects = None;
        plan.connect_rate = rate.map(|rate| rate / threads);
        plan.opening_max = plan.slots;
        plan.sources = if load.sources == 0 { 0 } else { load.sources.max(64) };
    }
    plans
}

/// Warms up and measures.
///
/// # Errors
/// When a thread cannot be made or the server's process is not there.
pub fn measure(
    plans: Vec<Plan>,
    pids: &[u32],
    warm_up: Duration,
    duration: Duration,
) -> Result<OpenOutcome, String> {
    CpuSample::take(pids)?;
    let mine = [std::process::id()];
    let fleet = Fleet::start(plans)?;
    fleet.set_phase(Phase::Warm);
    let warm = fleet.sleep(warm_up);
    let began = Instant::now();
    let before = (fleet.totals(), CpuSample::take(pids)?, CpuSample::take(&mine)?);
    fleet.set_phase(Phase::Measure);
    let complete = warm && fleet.sleep(duration);
    let after = (fleet.totals(), CpuSample::take(pids), CpuSample::take(&mine)?);
    let seconds = began.elapsed().as_secs_f64();
    fleet.set_phase(Phase::Drain);
    fleet.sleep(Duration::from_millis(300));
    let stats = merge(fleet.finish());
    Ok(OpenOutcome {
        seconds,
        finished: after.0.finished - before.0.finished,
        failed: after.0.failed - before.0.failed,
        stats,
        server: match &after.1 {
            Ok(sample) if !pids.is_empty() => Some(before.1.until(sample)),
            _ => None,
        },
        client: before.2.until(&after.2),
        complete,
    })
}

/// Runs the scenario and reports.
///
/// # Errors
/// What is missing, and how to get it.
pub fn run(args: &OpenArgs) -> Result<bool, String> {
    let target = Target::new(&args.target.url, &args.target.hello)?;
    let plans = plans(&args.load, &target, args.concurrency, args.rate);
    let outcome = measure(plans, &args.load.server_pids, args.warm_up, args.duration)?;
    let stats = &outcome.stats;
    let mut report = Report::new("open");
    report.section("open and close");
    report.text("target", &target.url);
    if !outcome.complete {
        report.text("note", "the run was cut short; these are the figures up to then");
    }
    report.number("seconds measured", outcome.seconds, " s");
    report.count("cycles finished", outcome.finished);
    report.count("cycles failed", outcome.failed);
    report.number("cycles per second", outcome.finished as f64 / outcome.seconds, "/s");
    report.latency("intended start to open", &stats.opening);
    report.latency("intended start to closed", &stats.cycle);
    if stats.handshakes > 0 {
        report.count("TLS handshakes", stats.handshakes);
        report.count("TLS handshakes that resumed", stats.resumed);
    }
    if args.rate.is_some() {
        report.latency("own lateness in it", &stats.lateness);
    }
    match &outcome.server {
        Some(used) => {
            report.number("server CPU per cycle", outcome.micros(used), " µs");
            report.cpu("server", used);
        }
        None => report.text("server CPU", "not measured; give --server-pid"),
    }
    report.number("client CPU per cycle", outcome.micros(&outcome.client), " µs");
    report.cpu("client", &outcome.client);
    report.text("limit", &verdict(outcome.server.as_ref(), &outcome.client));
    report.outcomes(stats);
    report.publish(args.load.json.as_deref())?;
    let sound = stats.failures.is_empty() && stats.error.is_none();
    Ok(outcome.complete && sound && outcome.finished > 0)
}
