//! What the kernel says of this process, read from /proc.

use std::fs;

/// The kernel's USER_HZ: the unit of the times in /proc/self/stat, 100 on every architecture
/// that the gateway runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// What this process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessUse {
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// Open file descriptors.
    pub open_descriptors: u64,
    /// When it started, in seconds since 1970.
    pub started_unix: u64,
    /// Processor time, user and system, in seconds.
    pub cpu_seconds: f64,
}

/// Reads all of it; what cannot be read stays zero.
pub fn read() -> ProcessUse {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let stat = parse_stat(&text("/proc/self/stat")).unwrap_or_default();
    let booted = number_after(&text("/proc/stat"), "btime ").unwrap_or(0);
    let resident_kib = number_after(&text("/proc/self/status"), "VmRSS:").unwrap_or(0);
    // The directory is open while it is counted.
    let descriptors = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
    ProcessUse {
        resident_bytes: resident_kib * 1024,
        open_descriptors: descriptors.saturating_sub(1),
        started_unix: booted + (stat.start_ticks as f64 / TICKS_PER_SECOND) as u64,
        cpu_seconds: stat.cpu_ticks as f64 / TICKS_PER_SECOND,
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    start_ticks: u64,
}

/// proc_pid_stat(5): fields 14 and 15 are utime and stime, 22 is starttime. The second is the
/// name in parentheses, which may itself hold spaces and parentheses.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Stat { cpu_ticks: field(14)? + field(15)?, start_ticks: field(22)? })
}

/// The number that follows `label` at the start of a line.
fn number_after(text: &str, label: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(label))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines() {
        let line = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 3 0 9900 1 2 3";
        assert_eq!(parse_stat(line), Some(Stat { cpu_ticks: 300, start_ticks: 9900 }));
        assert_eq!(parse_stat("7 (x) S 1 2"), None);
        assert_eq!(parse_stat(""), None);
        assert_eq!(number_after("Name:\tx\nVmRSS:\t  1234 kB\n", "VmRSS:"), Some(1234));
        assert_eq!(number_after("Name:\tx\n", "VmRSS:"), None);
    }

    #[test]
    fn this_process_has_all_four() {
        let used = read();
        assert!(used.resident_bytes > 1 << 20, "{used:?}");
        assert!(used.open_descriptors >= 3, "{used:?}");
        assert!(used.started_unix > 1_600_000_000, "{used:?}");
        assert!(used.cpu_seconds >= 0.0, "{used:?}");
    }
}
