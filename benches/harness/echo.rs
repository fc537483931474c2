//! Scenario `echo`: messages there and back, each one checked.

use std::time::{Duration, Instant};

use clap::Args;

use crate::fleet::{Fleet, merge};
use crate::measure::{CpuSample, CpuUse, verdict};
use crate::options::{LoadArgs, duration, rate};
use crate::plan::{Behaviour, Phase, Plan};
use crate::report::Report;
use crate::stats::Stats;
use crate::target::{Target, TargetArgs};
use crate::wire;

/// Options of `echo`.
#[derive(Args, Debug)]
pub struct EchoArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub traffic: TrafficArgs,
}

/// What is sent.
#[derive(Args, Clone, Debug)]
pub struct TrafficArgs {
    /// Connections
    #[arg(short = 'n', long, default_value_t = 1000)]
    pub connections: u64,
    /// Payload bytes of a message
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=16 << 20))]
    pub size: u32,
    /// Send text messages instead of binary ones
    #[arg(long)]
    pub text: bool,
    /// Messages on their way per connection, at most [default: 1; with --rate 1024]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub pipeline: Option<u64>,
    /// Messages per second over all connections (open loop); without it each connection sends
    /// its next message when the last came back (closed loop)
    #[arg(long, value_parser = rate)]
    pub rate: Option<f64>,
    /// Time that is measured
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub duration: Duration,
    /// Time before, with load but unmeasured
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
    pub warm_up: Duration,
    /// Connects per second while opening [default: as fast as they are answered]
    #[arg(long, value_parser = rate)]
    pub open_rate: Option<f64>,
}

impl TrafficArgs {
    /// The behaviour that these options describe.
    pub fn behaviour(&self) -> Behaviour {
        Behaviour::Echo {
            size: self.size as usize,
            opcode: if self.text { wire::TEXT } else { wire::BINARY },
            pipeline: self.pipeline.unwrap_or(if self.rate.is_some() { 1024 } else { 1 }),
            rate: self.rate,
        }
    }

    /// The plans for these options.
    pub fn plans(&self, load: &LoadArgs, target: &Target) -> Vec<Plan> {
        let mut plans = load.plans(target, &self.behaviour(), self.connections);
        let threads = plans.len() as f64;
        for plan in &mut plans {
            plan.connect_rate = self.open_rate.map(|rate| rate / threads);
            plan.buffer_bytes = if self.size > 2048 { 16 * 1024 } else { 4096 };
        }
        plans
    }
}

/// What an echo run measured.
pub struct EchoOutcome {
    /// Length of the measured window, seconds.
    pub seconds: f64,
    /// Messages that came back in it.
    pub messages: u64,
    /// Connections that became open.
    pub opened: u64,
    /// All counts.
    pub stats: Stats,
    /// The server's CPU in the window, if it was watched.
    pub server: Option<CpuUse>,
    /// Ours.
    pub client: CpuUse,
    /// Whether the run reached its end.
    pub complete: bool,
}

impl EchoOutcome {
    /// Server CPU per message, microseconds.
    pub fn server_micros(&self) -> Option<f64> {
        self.server.map(|used| used.cpu * 1e6 / self.messages.max(1) as f64)
    }

    /// Client CPU per message, microseconds.
    pub fn client_micros(&self) -> f64 {
        self.client.cpu * 1e6 / self.messages.max(1) as f64
    }
}

/// Opens, warms up, measures, collects the last answers.
///
/// # Errors
/// When a thread cannot be made or the server's process is not there.
pub fn measure(
    plans: Vec<Plan>,
    server_pids: &[u32],
    warm_up: Duration,
    duration: Duration,
) -> Result<EchoOutcome, String> {
    let wanted = plans.iter().filter_map(|plan| plan.connects).sum();
    CpuSample::take(server_pids)?;
    let fleet = Fleet::start(plans)?;
    let mut complete = fleet.await_open(wanted);
    let opened = fleet.totals().opened;
    let mine = [std::process::id()];
    if complete && opened > 0 {
        fleet.set_phase(Phase::Warm);
        complete = fleet.sleep(warm_up);
    }
    let began = Instant::now();
    let before = (fleet.totals().messages, CpuSample::take(server_pids), CpuSample::take(&mine)?);
    if complete && opened > 0 {
        fleet.set_phase(Phase::Measure);
        complete = fleet.sleep(duration);
    }
    let after = (fleet.totals().messages, CpuSample::take(server_pids), CpuSample::take(&mine)?);
    let seconds = began.elapsed().as_secs_f64();
    fleet.set_phase(Phase::Drain);
    await_last(&fleet);
    let server = match (before.1, after.1) {
        (Ok(before), Ok(after)) if !server_pids.is_empty() => Some(before.until(&after)),
        _ => None,
    };
    Ok(EchoOutcome {
        seconds,
        messages: after.0 - before.0,
        opened,
        stats: merge(fleet.finish()),
        server,
        client: before.2.until(&after.2),
        complete,
    })
}

/// Waits until no more messages come back, at most 3 s.
fn await_last(fleet: &Fleet) {
    let mut last = u64::MAX;
    for _ in 0..20 {
        let now = fleet.totals().messages;
        if now == last {
            return;
        }
        last = now;
        std::thread::sleep(Duration::from_millis(150));
    }
}

/// Runs the scenario and reports.
///
/// # Errors
/// What is missing, and how to get it.
pub fn run(args: &EchoArgs) -> Result<bool, String> {
    let target = Target::new(&args.target.url, &args.target.hello)?;
    let traffic = &args.traffic;
    let plans = traffic.plans(&args.load, &target);
    let threads = plans.len();
    let outcome = measure(plans, &args.load.server_pids, traffic.warm_up, traffic.duration)?;
    let mut report = Report::new("echo");
    report.section("echo");
    report.text("target", &target.url);
    report.count("connections open", outcome.opened);
    report.count("connections wanted", traffic.connections);
    report.count("payload bytes", u64::from(traffic.size));
    report.count("load threads", threads as u64);
    let shape = match traffic.rate {
        Some(rate) => format!("open loop, {rate} messages/s intended"),
        None => "closed loop".to_owned(),
    };
    report.text("load", &shape);
    describe(&mut report, &outcome, traffic.rate.is_some());
    report.publish(args.load.json.as_deref())?;
    let sound = outcome.stats.failures.is_empty() && outcome.stats.unanswered == 0;
    let whole = outcome.complete && outcome.opened == traffic.connections;
    Ok(sound && whole && outcome.stats.error.is_none())
}

fn describe(report: &mut Report, outcome: &EchoOutcome, open_loop: bool) {
    report.section("result");
    if !outcome.complete {
        report.text("note", "the run was cut short; these are the figures up to then");
    }
    report.number("seconds measured", outcome.seconds, " s");
    report.count("messages", outcome.messages);
    report.number("messages per second", outcome.messages as f64 / outcome.seconds, "/s");
    let (label, stats) = match open_loop {
        true => ("latency from intended time", &outcome.stats),
        false => ("round trip", &outcome.stats),
    };
    report.latency(label, &stats.round_trips);
    if open_loop {
        report.latency("own lateness in it", &stats.lateness);
    }
    report.latency("time to open", &stats.opening);
    report.count("answers missing", stats.unanswered);
    match (&outcome.server, outcome.server_micros()) {
        (Some(used), Some(micros)) => {
            report.number("server CPU per message", micros, " µs");
            report.cpu("server", used);
        }
        _ => report.text("server CPU", "not measured; give --server-pid"),
    }
    report.number("client CPU per message", outcome.client_micros(), " µs");
    report.cpu("client", &outcome.client);
    report.text("limit", &verdict(outcome.server.as_ref(), &outcome.client));
    report.outcomes(stats);
}
