//! The order of a comparison: servers started, each case given to each peer in turn, everything
//! kept as soon as it is measured.

use std::time::{Duration, Instant};

use clap::Parser;

use super::cases::{MANY, Spec, Work};
use super::estimate::{self, Estimate, OPEN_RATE, WARM_UP};
use super::{CompareArgs, missing, runs, save};
use crate::flood::{self, FloodArgs};
use crate::kernel;
use crate::measure::Quiet;
use crate::options::LoadArgs;
use crate::plan::{Behaviour, Plan};
use crate::results::{Case, Results, Run};
use crate::servers::Workshop;
use crate::servers::gateway::COUNT_BATCH;
use crate::servers::peers::{self, Kind, Peer, Purpose, Tls};
use crate::{echo, idle, open, wire};

/// Silence before the gateway pings, its default: not within a run.
const PING_S: u64 = 25;
/// Memory that the machine keeps, bytes.
const MEMORY_FLOOR: u64 = 1 << 30;
/// With fewer resumed handshakes, in percent, a run says nothing about them.
const RESUMED_LEAST: f64 = 90.0;
/// Between two runs, so that the sockets of one are gone before the next.
const PAUSE: Duration = Duration::from_millis(400);
/// The flood of the figures: 20,000 junk connects a second in equal parts, and 2,000 that finish TLS.
const FLOOD: &str = "--kinds silent,reset,garbage,half-head,bad-token,tls-then-silent=2000 \
                     --rate 20000 --honest 100 --established 1000 --established-rate 1000";
/// The pseudo-peer of the latency case: the bare echo at the gateway's rate.
const SAME_RATE: &str = "bare-ring-same-rate";

/// Leads a comparison.
pub struct Conductor<'a> {
    args: &'a CompareArgs,
    workshop: &'a Workshop,
    kinds: Vec<Kind>,
    results: Results,
    /// Servers of the cases that do not start their own.
    running: Vec<Peer>,
    began: Instant,
    /// Of each run.
    measured: Duration,
    /// Turns that are over, and all.
    done: usize,
    total: usize,
    /// The same in seconds as they were estimated.
    done_s: f64,
    total_s: f64,
}

/// What one turn gave: a run, or the reason why there is none.
type Turn = Result<Run, String>;

impl<'a> Conductor<'a> {
    /// A comparison with nothing measured yet.
    pub fn new(
        args: &'a CompareArgs,
        workshop: &'a Workshop,
        kinds: Vec<Kind>,
        results: Results,
    ) -> Conductor<'a> {
        let running = Vec::new();
        Conductor {
            args,
            workshop,
            kinds,
            results,
            running,
            began: Instant::now(),
            measured: Duration::ZERO,
            done: 0,
            total: 0,
            done_s: 0.0,
            total_s: 0.0,
        }
    }

    /// How it ended, in a sentence.
    pub fn ending(&self) -> String {
        let (done, total) = (self.done, self.total);
        let took = estimate::minutes(self.began.elapsed().as_secs_f64());
        match self.results.complete {
            true => format!("All {total} runs are done, in {took}."),
            false => format!(
                "Interrupted after {took}: the {done} of {total} runs that were finished are kept."
            ),
        }
    }

    /// What was measured.
    pub fn into_results(self) -> Results {
        self.results
    }

    /// Runs every case.
    ///
    /// # Errors
    /// When the results cannot be written. A peer's failure is part of the results.
    pub fn run(&mut self, specs: &[Spec]) -> Result<(), String> {
        let shared =
            |spec: &&Spec| !spec.work.is_fresh() && !matches!(spec.work, Work::Token { .. });
        if specs.iter().any(|spec| shared(&spec)) {
            self.start_all();
        }
        if kernel::interrupted() {
            return Ok(());
        }
        self.plan(specs);
        for spec in specs {
            if spec.work.is_fresh() {
                // They would have a share of the machine's memory, and nothing to do.
                self.running.clear();
            }
            self.results.cases.push(spec.case());
            self.leave_out(spec);
            let goes_on = self.run_case(spec)?;
            save(&self.args.out, &self.results, None)?;
            if !goes_on {
                return Ok(());
            }
        }
        self.results.complete = true;
        Ok(())
    }

    fn rounds(&self) -> u32 {
        self.args.rounds.unwrap_or(if self.args.quick { 1 } else { 3 })
    }

    /// Chooses how long runs are, and says how long all of them will take.
    fn plan(&mut self, specs: &[Spec]) {
        let estimate = Estimate::of(specs, &self.kinds, self.rounds());
        self.measured = match self.args.duration {
            Some(duration) => duration,
            None if self.args.quick => Duration::from_secs(2),
            None => estimate.measured_within(Duration::from_secs(60) * self.args.minutes),
        };
        self.total = estimate.turns;
        self.total_s = estimate.total(self.measured).as_secs_f64();
        self.began = Instant::now();
        eprintln!(
            "{} runs, {} rounds where nothing else is said, {:.1} s measured in each: about {}",
            self.total,
            self.rounds(),
            self.measured.as_secs_f64(),
            estimate::minutes(self.total_s),
        );
    }

    fn start_all(&mut self) {
        let purpose = Purpose { connections: MANY, ping_s: PING_S, flooded: false };
        for kind in self.kinds.clone() {
            eprintln!("starting {}", kind.name());
            let started = peers::start(kind, self.workshop, &purpose);
            if kernel::interrupted() {
                return;
            }
            match started {
                Ok(peer) => self.running.push(peer),
                Err(why) => self.give_up(kind, why),
            }
        }
    }

    /// Takes a peer off the list, with the reason.
    fn give_up(&mut self, kind: Kind, why: String) {
        eprintln!("{}: not measured: {why}", kind.name());
        self.results.missing.push(missing(kind.name(), why));
        self.kinds.retain(|other| *other != kind);
    }

    fn leave_out(&mut self, spec: &Spec) {
        let out: Vec<_> = self
            .kinds
            .iter()
            .filter_map(|kind| Some(missing(kind.name(), spec.work.leaves_out(*kind)?)))
            .collect();
        self.case().missing.extend(out);
    }

    /// The case that is being filled.
    fn case(&mut self) -> &mut Case {
        self.results.cases.last_mut().expect("a case was begun")
    }

    /// Returns false when interrupted.
    fn run_case(&mut self, spec: &Spec) -> Result<bool, String> {
        let mut kinds = self.kinds.clone();
        kinds.retain(|kind| spec.work.leaves_out(*kind).is_none());
        let rounds = spec.work.rounds(self.rounds());
        for round in 1..=rounds {
            for kind in kinds.clone() {
                self.progress(spec, kind.name(), round, rounds);
                let turn = self.turn(spec, kind);
                if kernel::interrupted() {
                    return Ok(false);
                }
                self.done += 1;
                self.done_s += estimate::of_turn(&spec.work, self.measured);
                if !self.keep(kind.name(), round, turn) {
                    kinds.retain(|other| *other != kind);
                    self.skip(spec, rounds - round);
                }
                save(&self.args.out, &self.results, None)?;
                std::thread::sleep(PAUSE);
            }
            if let Work::Latency { size, connections, rate: None } = spec.work {
                let turn = self.latency_at_gateways_rate(size, connections);
                if kernel::interrupted() {
                    return Ok(false);
                }
                if let Some(turn) = turn {
                    self.keep(SAME_RATE, round, turn);
                }
            }
        }
        Ok(true)
    }

    /// A peer will not have its turns in the rounds that are left.
    fn skip(&mut self, spec: &Spec, rounds: u32) {
        self.total -= rounds as usize;
        self.total_s -= estimate::of_turn(&spec.work, self.measured) * f64::from(rounds);
    }

    /// Returns false when the peer cannot do this case.
    fn keep(&mut self, peer: &str, round: u32, turn: Turn) -> bool {
        match turn {
            Ok(run) => {
                for fault in &run.faults {
                    eprintln!("    fault: {fault}");
                }
                self.case().runs.push(Run { peer: peer.to_owned(), round, ..run });
                true
            }
            Err(why) => {
                eprintln!("    not measured: {why}");
                self.case().missing.push(missing(peer, why));
                false
            }
        }
    }

    fn progress(&self, spec: &Spec, peer: &str, round: u32, rounds: u32) {
        let left = match self.done {
            0 => String::new(),
            _ => {
                let pace = self.began.elapsed().as_secs_f64() / self.done_s.max(0.1);
                let left = estimate::minutes(pace * (self.total_s - self.done_s).max(0.0));
                format!(", about {left} left")
            }
        };
        let (at, of) = (self.done + 1, self.total);
        eprintln!("[{at}/{of}{left}] {}: {peer}, round {round} of {rounds}", spec.id);
    }

    fn turn(&self, spec: &Spec, kind: Kind) -> Turn {
        match spec.work {
            Work::Echo { size, connections } => {
                self.echo(self.peer(kind)?, size, connections, None)
            }
            Work::Latency { size, connections, rate } => {
                let half = || self.half_rate(kind.name(), size, connections);
                let rate = rate.map_or_else(half, Ok)?;
                self.echo(self.peer(kind)?, size, connections, Some(rate))
            }
            Work::FanIn { size, connections } => self.fan_in(self.peer(kind)?, size, connections),
            Work::Open { concurrency, tls } => self.open(self.peer(kind)?, concurrency, tls),
            Work::Token { accepted } => {
                let before = Quiet::take(&[]);
                let mut run = runs::of_tokens(accepted, self.measured)?;
                run.foreign = before.foreign_until(&Quiet::take(&[]));
                Ok(run)
            }
            Work::Idle { connections, tls, hold } => self.idle(kind, connections, tls, hold),
            Work::Flood { duration } => self.flood(kind, duration),
        }
    }

    fn peer(&self, kind: Kind) -> Result<&Peer, String> {
        self.running.iter().find(|peer| peer.kind == kind).ok_or_else(|| "is not running".into())
    }

    fn load(&self) -> LoadArgs {
        LoadArgs::quiet(self.workshop.client_core)
    }

    /// Measures with `pids` known, and says what others had meanwhile.
    fn watched(&self, peer: &Peer, measure: impl FnOnce(&[u32]) -> Turn) -> Turn {
        let known = peer.all_pids();
        let before = Quiet::take(&known);
        let mut run = measure(&peer.pids()).map_err(|error| {
            let said = peer.server.said();
            if said.is_empty() { error } else { format!("{error}; it said: {said}") }
        })?;
        run.foreign = before.foreign_until(&Quiet::take(&known));
        Ok(run)
    }

    fn echo(&self, peer: &Peer, size: u32, connections: u64, rate: Option<f64>) -> Turn {
        let target = peer.target(Tls::Plain, "/echo")?;
        let pipeline = if rate.is_some() { 1024 } else { 1 };
        let behaviour =
            Behaviour::Echo { size: size as usize, opcode: wire::BINARY, pipeline, rate };
        let plans = large_buffers(self.load().plans(&target, &behaviour, connections), size);
        self.traffic(peer, plans, connections)
    }

    fn fan_in(&self, peer: &Peer, size: u32, connections: u64) -> Turn {
        let target = peer.target(Tls::Plain, &format!("/count/{COUNT_BATCH}"))?;
        let behaviour = Behaviour::FanIn { size: size as usize, batch: COUNT_BATCH };
        self.traffic(peer, self.load().plans(&target, &behaviour, connections), connections)
    }

    fn traffic(&self, peer: &Peer, plans: Vec<Plan>, connections: u64) -> Turn {
        let warm_up = self.measured / WARM_UP;
        self.watched(peer, |pids| {
            let outcome = echo::measure(plans, pids, warm_up, self.measured)?;
            Ok(runs::of_echo(&outcome, connections))
        })
    }

    fn open(&self, peer: &Peer, concurrency: u64, tls: Tls) -> Turn {
        let target = peer.target(tls, "/echo")?;
        let plans = open::plans(&self.load(), &target, concurrency, None);
        self.watched(peer, |pids| {
            let outcome = open::measure(plans, pids, self.measured / WARM_UP, self.measured)?;
            let mut run = runs::of_open(&outcome);
            let resumed = run.values.get("resumed_percent").copied().unwrap_or(0.0);
            if tls == Tls::Resumed && resumed < RESUMED_LEAST {
                run.faults.push(format!("only {resumed:.0} % of the handshakes were resumed"));
            }
            Ok(run)
        })
    }

    /// Half of what a peer reached in the closed loop; measures that first where it was not.
    fn half_rate(&self, peer: &str, size: u32, connections: u64) -> Result<f64, String> {
        let known = self
            .results
            .case(&format!("echo-{size}-{connections}"))
            .and_then(|case| case.summary(peer, "rate"));
        let rate = match known {
            Some(summary) => summary.median,
            None => {
                let peer = self.running.iter().find(|running| running.kind.name() == peer);
                let peer = peer.ok_or("is not running")?;
                let run = self.echo(peer, size, connections, None)?;
                run.values.get("rate").copied().unwrap_or(0.0)
            }
        };
        match rate > 0.0 {
            true => Ok(rate / 2.0),
            false => Err("its rate in the closed loop is not known".to_owned()),
        }
    }

    /// The bare echo at the gateway's rate: what the figure of added latency is against.
    fn latency_at_gateways_rate(&self, size: u32, connections: u64) -> Option<Turn> {
        let bare = self.peer(Kind::Ring).ok()?;
        self.peer(Kind::Gateway).ok()?;
        let rate = self.half_rate(Kind::Gateway.name(), size, connections);
        Some(rate.and_then(|rate| self.echo(bare, size, connections, Some(rate))))
    }

    fn idle(&self, kind: Kind, connections: u64, tls: Tls, hold: Duration) -> Turn {
        // The gateway waits for a connection that was silent for a ping interval with less of the
        // kernel's memory; all of them shall have been when the memory is looked at.
        let ping_s = (hold.as_secs() / 2).max(1);
        let purpose = Purpose { connections, ping_s, flooded: false };
        let peer = peers::start(kind, self.workshop, &purpose)?;
        let plans = idle::plans(&self.load(), &peer.target(tls, "/echo")?, connections, OPEN_RATE);
        self.watched(&peer, |pids| {
            let outcome = idle::measure(plans, pids, hold, MEMORY_FLOOR)?;
            Ok(runs::of_idle(&outcome, connections))
        })
    }

    fn flood(&self, kind: Kind, duration: Duration) -> Turn {
        let peer = peers::start(
            kind,
            self.workshop,
            &Purpose { connections: MANY, ping_s: PING_S, flooded: true },
        )?;
        let (url, junk) =
            (peer.target(Tls::Plain, "/echo")?.url, peer.target(Tls::Full, "/echo")?.url);
        let mut words = vec!["flood".to_owned(), url, "--insecure".into()];
        words.extend(FLOOD.split(' ').map(str::to_owned));
        let mut option = |name: &str, value: String| words.extend([format!("--{name}"), value]);
        option("junk-tls-url", junk);
        option("duration", format!("{}s", duration.as_secs()));
        if let Some(core) = self.workshop.client_core {
            option("cores", core.to_string());
        }
        for pid in peer.pids() {
            option("server-pid", pid.to_string());
        }
        if kind == Kind::Gateway {
            option("token-file", self.workshop.path("tokens").display().to_string());
        }
        let command = FloodCommand::try_parse_from(words).map_err(|error| error.to_string())?;
        self.watched(&peer, |_| {
            let (report, _) = flood::measure(&command.flood)?;
            Ok(runs::of_flood(&report.to_json()))
        })
    }
}

/// The flood's options, from words as on the command line.
#[derive(Parser)]
struct FloodCommand {
    #[command(flatten)]
    flood: FloodArgs,
}

fn large_buffers(mut plans: Vec<Plan>, size: u32) -> Vec<Plan> {
    for plan in &mut plans {
        plan.buffer_bytes = if size > 2048 { 16 * 1024 } else { 4096 };
    }
    plans
}
