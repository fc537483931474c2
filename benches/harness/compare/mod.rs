//! Scenario `compare`: the same work on the gateway, on bare echo servers and on other proxies,
//! in turn and pinned, as medians with their spread, ratios and figures, in one HTML page.

mod cases;
mod conduct;
mod estimate;
mod runs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;

use self::conduct::Conductor;
use crate::options::duration;
use crate::results::baseline::{self, Comparison};
use crate::results::{FORMAT, Machine, Missing, Results, page, table};
use crate::servers::peers::Kind;
use crate::servers::{Workshop, built_gateway};

const TEACH: &str = "\
It starts everything itself, with generated settings in a temporary folder: the gateway and its
backends, echo servers on a bare ring, on tokio-uring and on tokio, and whichever of nginx,
HAProxy, Caddy and lighttpd are on PATH (Debian: apt-get install nginx-light haproxy caddy
lighttpd lighttpd-mod-openssl). A peer that is not there is named as not measured.

The server under measurement has one core, everything else (load, backends, what stands behind
the proxies) the other. In each round every peer has its turn; the median of the rounds counts.

Scenarios (--cases takes them, or the name of a single case):
  echo      messages there and back, closed loop: CPU per message and rate
  latency   open loop at half of the peer's own rate, and at one rate for all, from the
            intended times
  open      connect, upgrade, authenticate, close
  tls-open  the same over TLS, with full handshakes and with tickets
  fan-in    messages that are counted, not echoed
  token     verification alone
  idle      memory of idle connections, of the process and of the kernel
  flood     junk beside honest clients

Examples, after `cargo bench --bench harness --`:
  compare --quick                                   a few minutes: does everything work?
  compare                                           everything, in about 25 minutes
  compare --minutes 60                              the same with longer runs
  compare --cases echo --peers bare-ring,gateway,nginx --rounds 5
  compare --against benches/baseline.json           what became worse since then
  cp target/compare/results.json benches/baseline.json   a new baseline

Results are in target/compare: report.html (one page that needs nothing else), results.json.
They are written after each run, so an interrupted comparison (Ctrl-C) keeps what it has.

Exit status: 0; 1 when a run had a fault, was cut short, or --against found something worse;
2 for errors. A figure that is not reached does not change it.";

/// Options of `compare`.
#[derive(Args, Debug)]
#[command(after_help = TEACH)]
pub struct CompareArgs {
    /// A short pass: few cases, one round, seconds each
    #[arg(long)]
    pub quick: bool,
    /// Only these scenarios or cases
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub cases: Vec<String>,
    /// Only these peers: bare-ring, bare-tokio-uring, bare-tokio-epoll, gateway,
    /// gateway-websocket, nginx, haproxy, caddy, lighttpd. bare-ring is what ratios are against
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub peers: Vec<String>,
    /// Rounds [default: 3; with --quick 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: Option<u32>,
    /// About how long everything may take: runs are 2 to 5 s long, as fits. It is said at the
    /// start when even 2 s take longer
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=1440))]
    pub minutes: u32,
    /// Time that each run is measured [default: as --minutes allows; with --quick 2s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Core of the server under measurement
    #[arg(long, default_value_t = 0)]
    pub server_core: usize,
    /// Core of the load, of backends, and of what stands behind proxies
    #[arg(long, default_value_t = 1)]
    pub client_core: usize,
    /// The gateway's program [default: the one that cargo built]
    #[arg(long, value_name = "FILE")]
    pub gateway: Option<PathBuf>,
    /// Folder for report.html and results.json
    #[arg(long, value_name = "FOLDER", default_value = "target/compare")]
    pub out: PathBuf,
    /// Judge the gateway against an earlier results.json
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
    /// What --against lets pass, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 10.0)]
    pub tolerance: f64,
}

/// Runs the scenario and reports.
///
/// # Errors
/// When an option names nothing, or the folder cannot be written.
pub fn run(args: &CompareArgs) -> Result<bool, String> {
    let kinds = kinds(&args.peers)?;
    let specs = cases::chosen(cases::all(args.quick), &args.cases)?;
    let before = args.against.as_deref().map(read_baseline).transpose()?;
    if args.server_core == args.client_core {
        eprintln!("warning: server and client share core {}; rates mean little", args.server_core);
    }
    std::fs::create_dir_all(&args.out)
        .map_err(|error| format!("--out {}: {error}", args.out.display()))?;
    let program = args.gateway.clone().unwrap_or_else(built_gateway);
    let workshop = Workshop::new(program, Some(args.server_core), Some(args.client_core))?;
    let results = Results {
        format: FORMAT,
        began_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        command: command_line(),
        machine: machine(&workshop, &kinds),
        quick: args.quick,
        ..Results::default()
    };
    let mut conductor = Conductor::new(args, &workshop, kinds, results);
    conductor.run(&specs)?;
    let ending = conductor.ending();
    let results = conductor.into_results();
    let comparison =
        before.map(|before| baseline::compare(&before, &results, args.tolerance / 100.0));
    print!("{}", table::to_text(&results, comparison.as_ref()));
    save(&args.out, &results, comparison.as_ref())?;
    println!("\nwritten: {0}/report.html, {0}/results.json", args.out.display());
    println!("{ending}");
    let worse = comparison.is_some_and(|comparison| comparison.regressions().next().is_some());
    Ok(results.sound() && !worse)
}

/// Writes both files, each in one step, so that an end at any time leaves whole ones.
fn save(folder: &Path, results: &Results, against: Option<&Comparison>) -> Result<(), String> {
    let files =
        [("results.json", results.to_json()), ("report.html", page::to_html(results, against))];
    for (name, text) in files {
        let (path, fresh) = (folder.join(name), folder.join(format!("{name}.new")));
        std::fs::write(&fresh, text)
            .and_then(|()| std::fs::rename(&fresh, &path))
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

fn read_baseline(path: &Path) -> Result<Results, String> {
    let wrong = |error: String| format!("--against {}: {error}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    Results::from_json(&text).map_err(wrong)
}

fn kinds(names: &[String]) -> Result<Vec<Kind>, String> {
    let known = |name: &str| Kind::ALL.into_iter().find(|kind| kind.name() == name);
    if let Some(unknown) = names.iter().find(|name| known(name).is_none()) {
        let all: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        return Err(format!("--peers: there is no {unknown:?}; there are {}", all.join(", ")));
    }
    let wanted = |kind: &Kind| names.is_empty() || names.iter().any(|name| name == kind.name());
    Ok(Kind::ALL.into_iter().filter(wanted).collect())
}

/// The options, without the program's own path.
fn command_line() -> String {
    let options: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    format!("cargo bench --bench harness -- {}", options.join(" "))
}

fn machine(workshop: &Workshop, kinds: &[Kind]) -> Machine {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or("", |(_, value)| value).trim().to_owned()
    };
    let kib = after(&read("/proc/meminfo"), "MemTotal");
    let kib: u64 = kib.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
    let versions = kinds
        .iter()
        .filter_map(|kind| Some((kind.name().to_owned(), kind.version(workshop)?)))
        .collect::<BTreeMap<_, _>>();
    Machine {
        processor: after(&read("/proc/cpuinfo"), "model name"),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        memory: kib * 1024,
        versions,
    }
}

fn missing(what: &str, why: impl Into<String>) -> Missing {
    Missing { what: what.to_owned(), why: why.into() }
}
