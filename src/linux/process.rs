//! What the process may use of the machine: descriptors, memory, cores, randomness.
#![allow(unsafe_code)] // geteuid, getrlimit, setrlimit, scheduler affinity, getrandom, adjtimex

use std::io;
use std::path::{Path, PathBuf};

/// The user that the process acts as.
pub fn effective_user() -> u32 {
    // SAFETY: it reads a number of the process and cannot fail.
    unsafe { libc::geteuid() }
}

/// The current soft limit on open descriptors (RLIMIT_NOFILE).
///
/// # Errors
/// Those of getrlimit(2).
pub fn descriptor_limit() -> io::Result<u64> {
    Ok(limit(libc::RLIMIT_NOFILE)?.rlim_cur)
}

/// The soft limit on locked memory in bytes (RLIMIT_MEMLOCK); `None` is unlimited.
///
/// # Errors
/// Those of getrlimit(2).
pub fn locked_memory_limit() -> io::Result<Option<u64>> {
    let bytes = limit(libc::RLIMIT_MEMLOCK)?.rlim_cur;
    Ok((bytes != libc::RLIM_INFINITY).then_some(bytes))
}

/// Whether the kernel counts its clock as synchronised (adjtimex(2) without STA_UNSYNC).
///
/// # Errors
/// Those of adjtimex(2); a sandbox may refuse even the reading of it.
pub fn clock_is_synchronised() -> io::Result<bool> {
    // SAFETY: timex is made of integers, for which all zeroes are a value; no mode asks for a
    // change.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `state` is live and writable.
    if unsafe { libc::adjtimex(&mut state) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(state.status & libc::STA_UNSYNC == 0)
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Raises the soft limit on open descriptors to the hard limit, and returns it.
///
/// # Errors
/// Those of getrlimit(2) and setrlimit(2).
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = limit(libc::RLIMIT_NOFILE)?;
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` is a valid rlimit that outlives the call.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

#[cfg(target_env = "gnu")]
type Resource = libc::__rlimit_resource_t;
#[cfg(not(target_env = "gnu"))]
type Resource = libc::c_int;

fn limit(resource: Resource) -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit that outlives the call.
    if unsafe { libc::getrlimit(resource, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit)
}

/// The memory that the process may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryTotal {
    /// In bytes.
    pub bytes: u64,
    /// The folder of the control group that sets the limit; `None` when it is the machine's.
    pub group: Option<PathBuf>,
}

/// The memory that the process may use: the machine's, or the smallest limit of its control
/// group (cgroup v2) and the groups above.
///
/// # Errors
/// When `/proc/meminfo` cannot be read or has no MemTotal.
pub fn memory_total() -> io::Result<MemoryTotal> {
    let machine = parse_mem_total(&std::fs::read_to_string("/proc/meminfo")?)
        .ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal"))?;
    let group = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = group_limit(&group, |path| std::fs::read_to_string(path).ok());
    Ok(match limit {
        Some((bytes, folder)) if bytes < machine => MemoryTotal { bytes, group: Some(folder) },
        _ => MemoryTotal { bytes: machine, group: None },
    })
}

fn parse_mem_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The smallest `memory.max` from the process' own group up to the root. `groups` is the text
/// of `/proc/self/cgroup`.
fn group_limit(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<(u64, PathBuf)> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let mut folder: PathBuf = root.join(own);
    let mut smallest: Option<(u64, PathBuf)> = None;
    loop {
        let text = read(&folder.join("memory.max"));
        // "max" is no limit, and no number.
        if let Some(limit) = text.and_then(|text| text.trim().parse::<u64>().ok())
            && smallest.as_ref().is_none_or(|(so_far, _)| limit < *so_far)
        {
            smallest = Some((limit, folder.clone()));
        }
        if folder == root || !folder.pop() {
            return smallest;
        }
    }
}

/// Returns memory that was freed, but that the allocator keeps for the next time, to the system.
/// Nothing but glibc keeps so much.
pub fn return_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the arenas' locks itself, and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes of a page of memory.
pub fn page_size() -> u64 {
    // SAFETY: sysconf only reads; the name is one that Linux knows.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

/// How many threads can run concurrently: the allowed cores, fewer with a CPU quota.
pub fn core_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Binds the calling thread to one of its allowed cores, the `index`-th modulo their number,
/// and returns the core's number.
///
/// # Errors
/// Those of sched_getaffinity(2) and sched_setaffinity(2).
pub fn pin_to_core(index: usize) -> io::Result<usize> {
    let allowed = allowed_cores()?;
    let core = *allowed
        .get(index % allowed.len().max(1))
        .ok_or_else(|| io::Error::other("no core is allowed"))?;
    // SAFETY: cpu_set_t is an array of integers, for which all zeroes are a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `core` is below CPU_SETSIZE, as it came out of such a set.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: the set is live and its size is the one given; 0 is the calling thread.
    if unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(core)
}

fn allowed_cores() -> io::Result<Vec<usize>> {
    // SAFETY: cpu_set_t is an array of integers, for which all zeroes are a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is live and writable, and its size is the one given.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let cores = 0..libc::CPU_SETSIZE as usize;
    // SAFETY: every index is below CPU_SETSIZE.
    Ok(cores.filter(|core| unsafe { libc::CPU_ISSET(*core, &set) }).collect())
}

/// 32 bytes from the kernel's random generator, for the seeds that everything below takes as
/// arguments.
///
/// # Errors
/// Those of getrandom(2).
pub fn random_seed() -> io::Result<[u8; 32]> {
    let mut seed = [0; 32];
    let mut filled = 0;
    while filled < seed.len() {
        let rest = &mut seed[filled..];
        // SAFETY: the pointer and length are those of a live, writable slice.
        let count = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(count) {
            Ok(count) => filled += count,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mem_total_is_read_from_meminfo() {
        for (text, expected) in [
            ("MemTotal:       24682416 kB\nMemFree: 1 kB\n", Some(24_682_416 * 1024)),
            ("MemFree: 1 kB\nMemTotal: 5 kB", Some(5120)),
            ("MemTotal: many kB", None),
            ("", None),
        ] {
            assert_eq!(parse_mem_total(text), expected, "{text:?}");
        }
        assert!(memory_total().unwrap().bytes > 16 << 20);
    }

    #[test]
    fn the_smallest_group_limit_on_the_way_up_counts() {
        let read = |files: &'static [(&str, &str)]| {
            move |path: &Path| {
                let found = files.iter().find(|(name, _)| Path::new(name) == path);
                found.map(|(_, text)| text.to_string())
            }
        };
        let own = "/sys/fs/cgroup/a/b/memory.max";
        let above = "/sys/fs/cgroup/a/memory.max";
        let both: &'static [(&str, &str)] = Box::leak(Box::new([(own, "900\n"), (above, "400\n")]));
        let max: &'static [(&str, &str)] = Box::leak(Box::new([(own, "max\n"), (above, "70\n")]));
        for (groups, files, expected) in [
            ("0::/a/b\n", both, Some((400, "/sys/fs/cgroup/a"))),
            ("1:memory:/x\n0::/a/b\n", max, Some((70, "/sys/fs/cgroup/a"))),
            ("0::/\n", both, None),
            ("1:memory:/a/b\n", both, None),
            ("", both, None),
        ] {
            let expected = expected.map(|(limit, folder)| (limit, PathBuf::from(folder)));
            assert_eq!(group_limit(groups, read(files)), expected, "{groups:?}");
        }
    }

    #[test]
    fn the_soft_descriptor_limit_reaches_the_hard_one() {
        let raised = raise_descriptor_limit().unwrap();
        assert_eq!(raised, limit(libc::RLIMIT_NOFILE).unwrap().rlim_max);
        assert_eq!(descriptor_limit().unwrap(), raised);
    }

    #[test]
    fn a_thread_is_pinned_to_one_allowed_core() {
        let allowed = allowed_cores().unwrap();
        for index in [0, 1, allowed.len(), 1000] {
            let expected = allowed[index % allowed.len()];
            // Each in a thread of its own: a pinned thread is allowed one core only.
            let (core, after) =
                std::thread::spawn(move || (pin_to_core(index).unwrap(), allowed_cores().unwrap()))
                    .join()
                    .unwrap();
            assert_eq!((core, after), (expected, vec![expected]));
        }
        assert!(core_count() >= 1 && core_count() <= allowed.len());
    }

    #[test]
    fn seeds_differ() {
        let (first, second) = (random_seed().unwrap(), random_seed().unwrap());
        assert_ne!(first, second);
        assert_ne!(first[16..], [0; 16]);
    }
}
