//! What the kernel says about processes and memory.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::time::Instant;

/// CPU time of the threads of some processes at one moment.
pub struct CpuSample {
    at: Instant,
    /// (pid, tid) → nanoseconds on a core, nanoseconds runnable but waiting for one.
    threads: HashMap<(u32, u32), (u64, u64)>,
}

/// What happened between two samples.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuUse {
    /// Time between the samples, seconds.
    pub wall: f64,
    /// CPU time of all threads, seconds.
    pub cpu: f64,
    /// Share of one core that the busiest thread had, 0 to 1.
    pub busiest: f64,
    /// Share of the time that the busiest thread waited for a core that others had.
    pub denied: f64,
    /// Time that all threads waited for a core, seconds.
    pub waited: f64,
}

impl CpuSample {
    /// Reads every thread's schedstat.
    ///
    /// # Errors
    /// Names the process that is not there.
    pub fn take(pids: &[u32]) -> Result<CpuSample, String> {
        let mut threads = HashMap::new();
        for pid in pids {
            let list = fs::read_dir(format!("/proc/{pid}/task"))
                .map_err(|error| format!("process {pid}: {error}; is --server-pid right?"))?;
            for entry in list.flatten() {
                let Some(tid) = entry.file_name().to_str().and_then(|name| name.parse().ok())
                else {
                    continue;
                };
                let Ok(text) = fs::read_to_string(entry.path().join("schedstat")) else {
                    continue;
                };
                let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
                if let (Some(cpu), Some(wait)) = (numbers.next(), numbers.next()) {
                    threads.insert((*pid, tid), (cpu, wait));
                }
            }
        }
        Ok(CpuSample { at: Instant::now(), threads })
    }

    /// What was used from this sample to `later`. Threads that ended in between are missing.
    pub fn until(&self, later: &CpuSample) -> CpuUse {
        let wall = later.at.duration_since(self.at).as_secs_f64().max(1e-9);
        let mut used = CpuUse { wall, ..CpuUse::default() };
        for (thread, (cpu, wait)) in &later.threads {
            let (cpu_before, wait_before) = self.threads.get(thread).copied().unwrap_or((0, 0));
            let cpu = cpu.saturating_sub(cpu_before) as f64 / 1e9;
            let wait = wait.saturating_sub(wait_before) as f64 / 1e9;
            used.cpu += cpu;
            used.waited += wait;
            if cpu / wall > used.busiest {
                used.busiest = cpu / wall;
                used.denied = wait / wall;
            }
        }
        used
    }
}

impl CpuUse {
    /// Whether the busiest thread had no time left: it ran, or wanted to run, nearly always.
    pub fn saturated(&self) -> bool {
        self.busiest + self.denied >= 0.95
    }
}

/// Who limited the rate, and whether others had the cores.
pub fn verdict(server: Option<&CpuUse>, client: &CpuUse) -> String {
    let limit = match (server.map(CpuUse::saturated), client.saturated()) {
        (Some(true), false) => "the server is saturated",
        (Some(true), true) => "BOTH are saturated: give the client a core of its own",
        (Some(false), true) => {
            "the CLIENT is saturated: the rate is the client's; CPU per message still holds"
        }
        (Some(false), false) => "neither is saturated",
        (None, true) => "the CLIENT is saturated (the server was not watched: --server-pid)",
        (None, false) => "the client is not saturated (the server was not watched: --server-pid)",
    };
    let denied = server.map_or(0.0, |used| used.denied).max(client.denied);
    if denied < 0.05 {
        return limit.to_owned();
    }
    let denied = denied * 100.0;
    format!("{limit}; NOT QUIET: a core was busy with something else {denied:.0} % of the time")
}

/// CPU time of the whole machine and of the processes that a run knows, to tell whether others
/// had a part of it.
pub struct Quiet {
    at: Instant,
    busy: f64,
    known: f64,
}

impl Quiet {
    /// A reading. `pids` are all processes whose work belongs to the run; ours is added.
    pub fn take(pids: &[u32]) -> Quiet {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let ours = process_ticks(std::process::id());
        let known: u64 = pids.iter().map(|pid| process_ticks(*pid)).sum();
        let known = (ours + known) as f64 / TICKS;
        Quiet { at: Instant::now(), busy: machine_ticks(&stat) as f64 / TICKS, known }
    }

    /// The cores that others had from this reading to `later`: 0.05 is a twentieth of one core.
    pub fn foreign_until(&self, later: &Quiet) -> f64 {
        let wall = later.at.duration_since(self.at).as_secs_f64().max(1e-9);
        ((later.busy - self.busy - (later.known - self.known)) / wall).max(0.0)
    }
}

/// USER_HZ, which is 100 on every architecture that io_uring runs on.
const TICKS: f64 = 100.0;

/// user, nice, system and steal of the first line of /proc/stat. Interrupts are left out: the
/// network's are our own, and the kernel may count them for nobody.
pub fn machine_ticks(stat: &str) -> u64 {
    let first = stat.lines().next().unwrap_or_default();
    let numbers: Vec<u64> =
        first.split_whitespace().skip(1).map(|word| word.parse().unwrap_or(0)).collect();
    [0, 1, 2, 7].into_iter().filter_map(|field: usize| numbers.get(field)).sum()
}

/// utime and stime of a process, threads that ended included.
fn process_ticks(pid: u32) -> u64 {
    ticks_of(&fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default())
}

/// utime and stime in a line of /proc/PID/stat.
pub fn ticks_of(text: &str) -> u64 {
    // The second field is a name that may hold anything but ends with the last parenthesis.
    let after = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after.split_whitespace().skip(11).take(2);
    ticks.filter_map(|word| word.parse::<u64>().ok()).sum()
}

/// Memory of a process, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Resident.
    pub rss: u64,
    /// Resident, shared pages divided among their users.
    pub pss: u64,
    /// Resident and anonymous: heap and stacks.
    pub anonymous: u64,
}

/// Resident bytes of some processes, cheaply enough to be asked for while they work.
pub fn resident(pids: &[u32]) -> u64 {
    let pages = |pid: &u32| {
        let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
        statm.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0u64)
    };
    pids.iter().map(pages).sum::<u64>() * 4096
}

/// Reads the sum over processes from smaps_rollup, or RSS alone where that may not be read.
/// It walks their page tables: not for use while they are measured.
pub fn memory(pids: &[u32]) -> Memory {
    let mut sum = Memory::default();
    for pid in pids {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        if text.is_empty() {
            sum.rss += resident(&[*pid]);
            continue;
        }
        sum.rss += field(&text, "Rss:");
        sum.pss += field(&text, "Pss:");
        sum.anonymous += field(&text, "Anonymous:");
    }
    sum
}

/// A "Name: n kB" line, in bytes.
fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// Kernel memory of the whole machine, bytes by name.
#[derive(Clone, Debug, Default)]
pub struct KernelMemory {
    /// /proc/meminfo: Slab, SUnreclaim, KernelStack, PageTables.
    pub general: BTreeMap<&'static str, u64>,
    /// /proc/slabinfo: active objects and the size of one. Empty when it may not be read.
    pub slabs: BTreeMap<String, (u64, u64)>,
}

/// Reads the kernel's memory.
pub fn kernel_memory() -> KernelMemory {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let names = ["Slab:", "SUnreclaim:", "KernelStack:", "PageTables:"];
    let general =
        names.into_iter().map(|name| (name.trim_end_matches(':'), field(&meminfo, name))).collect();
    let mut slabs = BTreeMap::new();
    for line in fs::read_to_string("/proc/slabinfo").unwrap_or_default().lines().skip(2) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [name, active, _, size, ..] = words[..] {
            let number = |word: &str| word.parse::<u64>().unwrap_or(0);
            slabs.insert(name.to_owned(), (number(active), number(size)));
        }
    }
    KernelMemory { general, slabs }
}

/// Caches that fill and empty with files and programs, not with sockets.
const OTHERS_CACHES: [&str; 12] = [
    "ext4",
    "xfs",
    "btrfs",
    "jbd2",
    "radix_tree",
    "buffer_head",
    "inode_cache",
    "shmem",
    "proc_",
    "vm_area",
    "anon_vma",
    "maple_node",
];

impl KernelMemory {
    /// The caches that grew most since `before`, in bytes.
    pub fn growth_since(&self, before: &KernelMemory) -> Vec<(String, i64)> {
        let mut grown: Vec<(String, i64)> = self
            .slabs
            .iter()
            .map(|(name, (objects, size))| {
                let old = before.slabs.get(name).map_or(0, |(objects, _)| *objects);
                (name.clone(), (*objects as i64 - old as i64) * *size as i64)
            })
            .collect();
        grown.sort_by_key(|(_, bytes)| -bytes);
        grown
    }

    /// Bytes that `connections` brought: growth of the caches that grew by a number of objects
    /// that fits them, so that what other programs do at the same time is left out.
    pub fn brought_by(&self, before: &KernelMemory, connections: u64) -> u64 {
        let fits = connections / 4..=connections * 16;
        let caches = self.slabs.iter().filter(|(name, _)| {
            // Sockets have an inode cache of their own.
            name.starts_with("sock_") || !OTHERS_CACHES.iter().any(|other| name.contains(other))
        });
        caches
            .map(|(name, (objects, size))| {
                let old = before.slabs.get(name).map_or(0, |(objects, _)| *objects);
                (objects.saturating_sub(old), size)
            })
            .filter(|(objects, _)| *objects > 0 && fits.contains(objects))
            .map(|(objects, size)| objects * size)
            .sum()
    }
}

/// Memory that programs may still take, bytes.
pub fn available_memory() -> u64 {
    field(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable:")
}

/// Open files that the machine may have, and has.
pub fn open_files() -> (u64, u64) {
    let number = |text: &str, at: usize| {
        text.split_whitespace().nth(at).and_then(|word| word.parse().ok()).unwrap_or(0)
    };
    let text = fs::read_to_string("/proc/sys/fs/file-nr").unwrap_or_default();
    (number(&text, 2), number(&text, 0))
}

/// The children of a process, for servers with worker processes.
pub fn with_children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = text.split_whitespace().filter_map(|word| word.parse().ok());
    std::iter::once(pid).chain(children).collect()
}
