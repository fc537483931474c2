//! How much memory the process uses, of how much it may, and so what must be given up.

use std::fs;
use std::path::PathBuf;

use crate::base::memory_pressure::MemoryPressure;
use crate::linux::process::{self, MemoryTotal};
use crate::settings::Limits;

/// The machine's memory when it cannot be read, in bytes.
const MEMORY_ASSUMED: u64 = 1 << 30;

/// Looks at the memory once a second.
///
/// Used is what is resident. Where a control group's limit is the budget, used is what counts
/// against that limit too, when it is more: the kernel's part of every socket does.
#[derive(Debug)]
pub struct MemoryWatch {
    budget: u64,
    /// The folder of the control group whose limit is the budget.
    group: Option<PathBuf>,
    used: u64,
    pressure: MemoryPressure,
}

impl MemoryWatch {
    /// A watch with the settings' budget, or the machine's.
    pub fn new(limits: &Limits) -> Self {
        let total = match limits.memory_max {
            Some(bytes) => MemoryTotal { bytes, group: None },
            None => total_memory(),
        };
        MemoryWatch {
            budget: total.bytes,
            group: total.group,
            used: 0,
            pressure: MemoryPressure::Clear,
        }
    }

    /// Measures; says which pressure holds from now on.
    pub fn look(&mut self) -> MemoryPressure {
        let text = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
        let resident = parse_resident(&text("/proc/self/statm".into()), process::page_size());
        let group = self.group.as_ref().map_or(0, |folder| {
            parse_group(&text(folder.join("memory.current")), &text(folder.join("memory.stat")))
        });
        self.used = resident.max(group);
        self.pressure = self.pressure.next(self.used, self.budget);
        self.pressure
    }

    /// Bytes that were used at the last look.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes that may be used.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// The pressure that holds.
    pub fn pressure(&self) -> MemoryPressure {
        self.pressure
    }
}

/// The machine's memory, or its control group's; a guess when neither can be read.
pub fn total_memory() -> MemoryTotal {
    process::memory_total().unwrap_or(MemoryTotal { bytes: MEMORY_ASSUMED, group: None })
}

/// proc_pid_statm(5): the second field is the resident set, in pages.
fn parse_resident(statm: &str, page: u64) -> u64 {
    let pages = statm.split_ascii_whitespace().nth(1).and_then(|field| field.parse::<u64>().ok());
    pages.unwrap_or(0) * page
}

/// What a group uses and cannot do without: not the files that it read once.
fn parse_group(current: &str, stat: &str) -> u64 {
    let current: u64 = current.trim().parse().unwrap_or(0);
    let files = stat.lines().find_map(|line| line.strip_prefix("inactive_file "));
    current.saturating_sub(files.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes() {
        assert_eq!(parse_resident("2000 300 50 1 0 400 0\n", 4096), 300 * 4096);
        assert_eq!(parse_resident("", 4096), 0);
        assert_eq!(parse_group("5000\n", "anon 10\ninactive_file 2000\nactive_file 7\n"), 3000);
        assert_eq!(parse_group("5000\n", ""), 5000);
        assert_eq!(parse_group("", "inactive_file 2000\n"), 0);
    }

    #[test]
    fn this_process_is_within_a_large_budget_and_not_within_a_small_one() {
        let mut limits = super::super::testing::settings().limits;
        limits.memory_max = Some(1 << 45);
        let mut watch = MemoryWatch::new(&limits);
        assert_eq!(watch.look(), MemoryPressure::Clear);
        assert!(watch.used() > 1 << 20, "{watch:?}");
        limits.memory_max = Some(1 << 20);
        assert_eq!(MemoryWatch::new(&limits).look(), MemoryPressure::CloseSlowReaders);
    }
}
