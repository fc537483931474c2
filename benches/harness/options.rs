//! Options that scenarios share, and the plans that follow from them.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::kernel;
use crate::plan::{Behaviour, Plan};
use crate::target::Target;

/// How the load side runs, and what it watches.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// Load threads; more are made when one ring's table cannot hold the connections
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Cores for load threads, as 1 or 1,2,3; threads take them in turn
    #[arg(long, value_name = "CORES", value_delimiter = ',')]
    pub cores: Vec<usize>,
    /// Source addresses per thread (127.x.y.z), each with about 28,000 ports; 0: the kernel's
    /// own. Only used on IPv4 loopback
    #[arg(long, default_value_t = 4)]
    pub sources: usize,
    /// Process of the server, to measure its CPU and memory; may be repeated
    #[arg(long = "server-pid", value_name = "PID")]
    pub server_pids: Vec<u32>,
    /// Longest time for a connection to become open
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub open_timeout: Duration,
    /// Write the report as JSON to this file, too
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl LoadArgs {
    /// The load of a comparison: one thread, on `core`.
    pub fn quiet(core: Option<usize>) -> LoadArgs {
        LoadArgs {
            threads: 1,
            cores: core.into_iter().collect(),
            sources: 4,
            server_pids: Vec::new(),
            open_timeout: Duration::from_secs(10),
            json: None,
        }
    }

    /// Divides `connections` over threads.
    pub fn plans(&self, target: &Target, behaviour: &Behaviour, connections: u64) -> Vec<Plan> {
        let per_ring = u64::from(kernel::descriptor_limit());
        let threads = (self.threads.max(1) as u64).max(connections.div_ceil(per_ring));
        let threads = threads.min(connections).max(1);
        (0..threads)
            .map(|worker| {
                let share = connections / threads + u64::from(worker < connections % threads);
                Plan {
                    target: target.clone(),
                    behaviour: share_of(behaviour, threads as f64),
                    slots: share as u32,
                    connects: Some(share),
                    connect_rate: None,
                    opening_max: 256,
                    sources: self.sources.min(200),
                    group: 1,
                    worker: worker as usize,
                    core: match self.cores.len() {
                        0 => None,
                        count => Some(self.cores[worker as usize % count]),
                    },
                    open_timeout: self.open_timeout,
                    buffer_bytes: 4096,
                }
            })
            .collect()
    }
}

fn share_of(behaviour: &Behaviour, threads: f64) -> Behaviour {
    match behaviour {
        Behaviour::Echo { size, opcode, pipeline, rate } => Behaviour::Echo {
            size: *size,
            opcode: *opcode,
            pipeline: *pipeline,
            rate: rate.map(|rate| rate / threads),
        },
        other => other.clone(),
    }
}

/// Reads "250ms", "3s", "2m" or a bare number of seconds.
///
/// # Errors
/// Says what is expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let (number, factor) = units
        .into_iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))
        .unwrap_or((text, 1.0));
    let wrong = || format!("{text:?} is not a time; write 250ms, 3s, 2m or 1h");
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * factor).map_err(|_| wrong())
}

/// Reads a positive rate per second.
///
/// # Errors
/// Says what is expected.
pub fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if rate > 0.0 && f64::is_finite(rate) => Ok(rate),
        _ => Err(format!("{text:?} is not a rate; write events per second, above 0")),
    }
}

/// Reads "64KiB", "256MiB", "2GiB" or a bare number of bytes.
///
/// # Errors
/// Says what is expected.
pub fn size(text: &str) -> Result<u64, String> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
    let (number, shift) = units
        .into_iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)))
        .unwrap_or((text, 0));
    let number = number.trim().parse::<u32>().ok().map(u64::from);
    number
        .map(|number| number << shift)
        .ok_or_else(|| format!("{text:?} is not a size; write 64KiB, 256MiB or 2GiB"))
}
