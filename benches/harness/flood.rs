//! Scenario `flood`: junk connections beside honest ones, and who suffers.
//!
//! Groups with source addresses of their own: honest open-and-close cycles (127.1.x.x), junk
//! (127.2.x.x, and 127.4.x.x to a TLS listener), established connections that exchange messages
//! (127.3.x.x). Before the flood the honest group runs alone, so that its latency has something to
//! be compared with.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use crate::fleet::{Fleet, merge};
use crate::measure::{self, CpuSample, CpuUse};
use crate::options::{LoadArgs, duration, rate, size};
use crate::plan::{Behaviour, JunkKind, Phase, Plan};
use crate::report::{Report, bytes};
use crate::sockets::SocketWatch;
use crate::stats::{Stats, Totals};
use crate::target::{HelloArgs, Target, TargetArgs};
use crate::told::CloseDetails;
use crate::{kernel, wire};

const HONEST: u8 = 1;
const JUNK: u8 = 2;
const ESTABLISHED: u8 = 3;
/// Junk of the TLS listener: 127.4.x.x.
const TLS_JUNK: u8 = 4;
/// How long after the flood the server is given to get rid of the junk.
const RECOVERY_MAX: Duration = Duration::from_secs(20);

/// Options of `flood`.
#[derive(Args, Debug)]
pub struct FloodArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub load: LoadArgs,
    /// Where junk goes [default: the URL]; tokens and headers never go with it
    #[arg(long, value_name = "URL")]
    pub junk_url: Option<String>,
    /// Where tls-then-silent goes (wss://…) [default: the junk URL]
    #[arg(long, value_name = "URL")]
    pub junk_tls_url: Option<String>,
    /// Kinds of junk, each with its own rate if given: silent=20000,tls-then-silent=2000.
    /// Kinds: silent, reset, half-head, garbage, bad-token, dead-token, upgrade-silent,
    /// tls-then-silent
    #[arg(long, value_delimiter = ',', default_value = "silent,half-head,garbage")]
    pub kinds: Vec<String>,
    /// Junk connects per second, divided among the kinds without a rate of their own
    #[arg(long, default_value = "1000", value_parser = rate)]
    pub rate: f64,
    /// Load threads for junk [default: as for the rest]
    #[arg(long)]
    pub junk_threads: Option<usize>,
    /// Junk connections open at once, at most; beyond it the oldest is abandoned
    #[arg(long, default_value_t = 60_000)]
    pub junk_open_max: u64,
    /// A gateway's /metrics, as HOST:PORT: its own word on age, drops and evictions
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<String>,
    /// Resident memory that the server must not pass, as 256MiB; part of the exit status
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory_bound: Option<u64>,
    /// Honest connects per second
    #[arg(long, default_value = "50", value_parser = rate)]
    pub honest: f64,
    /// Where honest connections go [default: the URL]
    #[arg(long, value_name = "URL")]
    pub honest_url: Option<String>,
    /// Established connections that exchange messages throughout
    #[arg(long, default_value_t = 100)]
    pub established: u64,
    /// Their messages per second, over all of them
    #[arg(long, default_value = "100", value_parser = rate)]
    pub established_rate: f64,
    /// They and honest connections only open; no echo is expected from the server
    #[arg(long)]
    pub no_echo: bool,
    /// Time of the flood
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = duration)]
    pub duration: Duration,
    /// Time before, without junk
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub before: Duration,
}

/// Junk that goes to one address.
struct Junk {
    group: u8,
    target: Target,
    shares: Vec<(JunkKind, f64)>,
    rate: f64,
}

/// What was seen of the server while junk came in and after.
#[derive(Default)]
struct Watch {
    oldest: f64,
    most: usize,
    memory_before: u64,
    memory_most: u64,
    memory_after: u64,
    recovered_after: Option<f64>,
    left: usize,
    /// The longest time between two looks.
    pause: Duration,
    told: Option<CloseDetails>,
}

/// Runs the scenario and reports.
///
/// # Errors
/// What is missing, and how to get it.
pub fn run(args: &FloodArgs) -> Result<bool, String> {
    let (report, good) = measure(args)?;
    report.publish(args.load.json.as_deref())?;
    Ok(good)
}

/// Runs the scenario; the report, and whether all was as it should be.
///
/// # Errors
/// What is missing, and how to get it.
pub fn measure(args: &FloodArgs) -> Result<(Report, bool), String> {
    let hello = &args.target.hello;
    let main = Target::new(&args.target.url, hello)?;
    let honest = match &args.honest_url {
        Some(url) => Target::new(url, hello)?,
        None => main.clone(),
    };
    let junk = junk(args)?;
    let pids = &args.load.server_pids;
    CpuSample::take(pids)?;
    let told = args.metrics.as_deref().map(CloseDetails::begin).transpose()?;
    let memory_before = measure::resident(pids);
    let mut watch = Watch { memory_before, told, ..Watch::default() };

    eprintln!("opening {} established connections", args.established);
    let established = Fleet::start(established_plans(args, &main))?;
    let mut complete = established.await_open(args.established);
    let opened = established.totals();
    established.set_phase(Phase::Measure);
    eprintln!("honest connections alone for {:?}", args.before);
    let fleet = Fleet::start(vec![honest_plan(args, &honest)])?;
    fleet.set_phase(Phase::Measure);
    complete = complete && fleet.sleep(args.before);
    let calm = end_honest(fleet);

    let rate: f64 = junk.iter().map(|junk| junk.rate).sum();
    eprintln!("flood for {:?}: {rate:.0} junk connects/s", args.duration);
    let before = (CpuSample::take(pids)?, CpuSample::take(&[std::process::id()])?);
    let honest_fleet = Fleet::start(vec![honest_plan(args, &honest)])?;
    honest_fleet.set_phase(Phase::Measure);
    let junk_fleet = Fleet::start(junk_plans(args, &junk))?;
    let watched = |junk: &Junk| (junk.group, SocketWatch::new(junk.target.address.port()));
    let mut sockets = junk.iter().map(watched).collect::<Vec<_>>();
    complete = complete && observe(args, &junk_fleet, &mut sockets, &mut watch);
    let server = CpuSample::take(pids).map(|after| before.0.until(&after));
    let client = before.1.until(&CpuSample::take(&[std::process::id()])?);
    junk_fleet.set_phase(Phase::Drain);
    let stormy = end_honest(honest_fleet);
    if complete {
        recover(args, &mut sockets, &mut watch);
    }
    established.set_phase(Phase::Drain);
    established.sleep(Duration::from_millis(500));
    let kept = established.totals();
    let groups = Groups {
        opened,
        kept,
        calm,
        stormy,
        established: merge(established.finish()),
        junk: merge(junk_fleet.finish()),
    };
    let server = server.ok().filter(|_| !pids.is_empty());
    Ok(report(args, &junk, &groups, &watch, &Costs { server, client, complete }))
}

struct Groups {
    opened: Totals,
    kept: Totals,
    calm: Stats,
    stormy: Stats,
    established: Stats,
    junk: Stats,
}

fn junk(args: &FloodArgs) -> Result<Vec<Junk>, String> {
    let hello = HelloArgs {
        insecure: args.target.hello.insecure,
        ca: args.target.hello.ca.clone(),
        i_own_this_host: args.target.hello.i_own_this_host,
        ..HelloArgs::default()
    };
    let mut kinds = Vec::new();
    for entry in &args.kinds {
        let (name, own) = match entry.split_once('=') {
            Some((name, own)) => (name, Some(rate(own)?)),
            None => (entry.as_str(), None),
        };
        kinds.push((name.parse::<JunkKind>()?, own));
    }
    let without = kinds.iter().filter(|(_, own)| own.is_none()).count().max(1) as f64;
    let rates: Vec<(JunkKind, f64)> =
        kinds.iter().map(|(kind, own)| (*kind, own.unwrap_or(args.rate / without))).collect();
    let junk_url = args.junk_url.as_deref().unwrap_or(&args.target.url);
    let tls_url = args.junk_tls_url.as_deref().unwrap_or(junk_url);
    let (tls, plain): (Vec<_>, Vec<_>) =
        rates.into_iter().partition(|(kind, _)| *kind == JunkKind::TlsThenSilent);
    let mut groups = Vec::new();
    for (group, url, rates) in [(JUNK, junk_url, plain), (TLS_JUNK, tls_url, tls)] {
        if rates.is_empty() {
            continue;
        }
        let target = Target::new(url, &hello)?;
        if group == TLS_JUNK && target.tls.is_none() {
            let reason = "tls-then-silent needs a wss:// target: give --junk-tls-url wss://…";
            return Err(reason.to_owned());
        }
        let rate = rates.iter().map(|(_, rate)| rate).sum();
        let shares = rates.into_iter().map(|(kind, own)| (kind, own / rate)).collect();
        groups.push(Junk { group, target, shares, rate });
    }
    Ok(groups)
}

fn junk_plans(args: &FloodArgs, groups: &[Junk]) -> Vec<Plan> {
    let all: f64 = groups.iter().map(|junk| junk.rate).sum();
    let mut plans = Vec::new();
    for junk in groups {
        let behaviour = Behaviour::Junk(junk.shares.clone());
        let open_max = (args.junk_open_max as f64 * junk.rate / all).max(1.0) as u64;
        let threads = args.junk_threads.unwrap_or(args.load.threads);
        let load = LoadArgs { threads, ..args.load.clone() };
        let mut own = load.plans(&junk.target, &behaviour, open_max);
        let threads = own.len() as f64;
        for plan in &mut own {
            plan.connects = None;
            plan.connect_rate = Some(junk.rate / threads);
            plan.group = junk.group;
            plan.sources = if args.load.sources == 0 { 0 } else { args.load.sources.max(64) };
        }
        plans.append(&mut own);
    }
    plans
}

fn honest_plan(args: &FloodArgs, target: &Target) -> Plan {
    let load = LoadArgs { threads: 1, ..args.load.clone() };
    // Room for every connection of the longest wait that still counts.
    let slots = (args.honest * args.load.open_timeout.as_secs_f64()) as u64 + 64;
    let slots = slots.min(u64::from(kernel::descriptor_limit()));
    let mut plan = load.plans(target, &Behaviour::Cycle, slots).remove(0);
    plan.connects = None;
    plan.connect_rate = Some(args.honest);
    plan.opening_max = plan.slots;
    plan.group = HONEST;
    plan
}

fn established_plans(args: &FloodArgs, target: &Target) -> Vec<Plan> {
    let behaviour = match args.no_echo {
        true => Behaviour::Hold,
        false => Behaviour::Echo {
            size: 64,
            opcode: wire::TEXT,
            pipeline: 64,
            rate: Some(args.established_rate),
        },
    };
    let load = LoadArgs { threads: 1, ..args.load.clone() };
    let mut plans = load.plans(target, &behaviour, args.established.max(1));
    for plan in &mut plans {
        plan.group = ESTABLISHED;
        if args.established == 0 {
            plan.connects = Some(0);
        }
    }
    plans
}

/// Lets the honest connections under way end, then stops the group.
fn end_honest(fleet: Fleet) -> Stats {
    let begun = fleet.totals();
    fleet.set_phase(Phase::Drain);
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end && !kernel::interrupted() {
        let now = fleet.totals();
        if now.finished + now.failed >= begun.started {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    merge(fleet.finish())
}

/// Looks at every junk socket that the server holds; gives their number and the oldest's age.
fn look(sockets: &mut [(u8, SocketWatch)], watch: &mut Watch) -> usize {
    let mut held = 0;
    for (group, sockets) in sockets {
        let (count, oldest) = sockets.look(*group);
        held += count;
        watch.oldest = watch.oldest.max(oldest);
    }
    watch.most = watch.most.max(held);
    if let Some(told) = &mut watch.told {
        told.look();
    }
    held
}

fn observe(
    args: &FloodArgs,
    junk: &Fleet,
    sockets: &mut [(u8, SocketWatch)],
    watch: &mut Watch,
) -> bool {
    let end = Instant::now() + args.duration;
    let mut shown = Instant::now();
    while Instant::now() < end {
        let began = Instant::now();
        let count = look(sockets, watch);
        // Looking costs the kernel's time: no more than a tenth of a core, while it is possible.
        let pause = (began.elapsed() * 9).clamp(Duration::from_millis(250), Duration::from_secs(2));
        watch.pause = watch.pause.max(pause + began.elapsed());
        let resident = measure::resident(&args.load.server_pids);
        watch.memory_most = watch.memory_most.max(resident);
        if shown.elapsed() >= Duration::from_secs(2) {
            shown = Instant::now();
            eprintln!(
                "  junk begun {}, held by the server {count}, oldest {:.1} s",
                junk.totals().started,
                watch.oldest
            );
        }
        if !junk.sleep(pause) {
            return false;
        }
    }
    true
}

/// Watches the junk that is left, which we keep open, until the server has ended all of it.
fn recover(args: &FloodArgs, sockets: &mut [(u8, SocketWatch)], watch: &mut Watch) {
    let began = Instant::now();
    loop {
        let count = look(sockets, watch);
        watch.left = count;
        watch.memory_after = measure::resident(&args.load.server_pids);
        if count == 0 {
            watch.recovered_after = Some(began.elapsed().as_secs_f64());
            return;
        }
        if began.elapsed() > RECOVERY_MAX || kernel::interrupted() {
            return;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// What is reported beside the groups' own counts.
struct Costs {
    server: Option<CpuUse>,
    client: CpuUse,
    complete: bool,
}

fn report(
    args: &FloodArgs,
    junk: &[Junk],
    groups: &Groups,
    watch: &Watch,
    costs: &Costs,
) -> (Report, bool) {
    let mut report = Report::new("flood");
    junk_section(&mut report, junk, groups, costs);
    let in_bound = server_section(&mut report, args, watch, costs);
    honest_section(&mut report, "honest connections before the flood", &groups.calm);
    honest_section(&mut report, "honest connections during the flood", &groups.stormy);
    let lost = established_section(&mut report, groups);
    let all = [&groups.junk, &groups.calm, &groups.stormy, &groups.established];
    let broken = all.iter().any(|stats| stats.error.is_some());
    let served = groups.stormy.totals.failed == 0;
    (report, costs.complete && !broken && !lost && in_bound && served)
}

fn junk_section(report: &mut Report, junk: &[Junk], groups: &Groups, costs: &Costs) {
    report.section("flood");
    if !costs.complete {
        report.text("note", "the run was cut short; these are the figures up to then");
    }
    let targets: Vec<&str> = junk.iter().map(|junk| junk.target.url.as_str()).collect();
    report.text("target of junk", &targets.join(", "));
    let began = groups.junk.totals.started;
    report.count("junk connects begun", began);
    let intended = junk.iter().map(|junk| junk.rate).sum();
    report.number("junk connects per second intended", intended, "/s");
    let reached = began as f64 / costs.client.wall;
    report.number("junk connects per second reached", reached, "/s");
    for (kind, stats) in &groups.junk.junk {
        report.count(&format!("{kind} begun"), stats.started);
        report.latency(&format!("{kind} ended by the server after"), &stats.lifetime);
        report.count(&format!("{kind} abandoned by us"), stats.abandoned);
    }
    for (code, (count, _)) in &groups.junk.closes {
        report.count(&format!("junk close code {code}"), *count);
    }
    if let Some(error) = &groups.junk.error {
        report.text("load thread stopped", error);
    }
}

/// Returns whether the server's memory stayed in the bound that was given.
fn server_section(report: &mut Report, args: &FloodArgs, watch: &Watch, costs: &Costs) -> bool {
    report.section("server");
    report.text("limit", &measure::verdict(costs.server.as_ref(), &costs.client));
    report.count("junk sockets held at most", watch.most as u64);
    let (oldest, pause) = (watch.oldest, watch.pause.as_secs_f64());
    let text = format!("{oldest:.1} s or up to {pause:.2} s more, as the kernel lists them");
    report.line("oldest junk socket", json!({ "seconds": oldest, "late": pause }), text);
    match watch.recovered_after {
        Some(after) => report.number("no junk socket left after", after, " s"),
        None => report.count("junk sockets left at the end", watch.left as u64),
    }
    if let Some(told) = &watch.told {
        told.report(report);
    }
    report.cpu("client", &costs.client);
    let Some(used) = &costs.server else {
        report.text("server CPU and memory", "not measured; give --server-pid");
        return true;
    };
    report.cpu("server", used);
    let steps = [watch.memory_before, watch.memory_most, watch.memory_after];
    let [from, most, to] = steps.map(|value| bytes(value as f64));
    report.line("server resident", json!(steps), format!("{from} → {most} → {to}"));
    let Some(bound) = args.memory_bound else { return true };
    let kept = watch.memory_most <= bound;
    let verdict = if kept { "kept" } else { "PASSED" };
    let text = format!("{} ({verdict})", bytes(bound as f64));
    report.line("memory bound", json!({ "bytes": bound, "kept": kept }), text);
    kept
}

fn honest_section(report: &mut Report, title: &str, stats: &Stats) {
    report.section(title);
    let totals = stats.totals;
    let pending = totals.started.saturating_sub(totals.finished + totals.failed);
    report.count("begun", totals.started);
    let share = 100.0 * totals.finished as f64 / totals.started.max(1) as f64;
    report.line("succeeded", json!(totals.finished), format!("{} ({share:.3} %)", totals.finished));
    report.count("failed", totals.failed);
    report.count("unfinished at the end", pending);
    report.latency("intended start to open", &stats.opening);
    report.latency("own lateness in it", &stats.lateness);
    report.outcomes(stats);
}

/// Returns whether anything was lost.
fn established_section(report: &mut Report, groups: &Groups) -> bool {
    report.section("established connections");
    let disconnected = groups.opened.open_now.saturating_sub(groups.kept.open_now);
    report.count("opened", groups.opened.opened);
    report.count("disconnected", disconnected);
    report.count("messages answered", groups.established.totals.messages);
    report.count("messages lost", groups.established.unanswered);
    report.latency("latency from intended time", &groups.established.round_trips);
    report.outcomes(&groups.established);
    disconnected > 0 || groups.established.unanswered > 0
}
