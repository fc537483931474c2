//! What the kernel offers and permits, judged from its own files.

use std::io;

use portcullis::linux::probe::{Probe, ProbeError, version};
use portcullis::linux::process;
use portcullis::server::data_plane::{BACKLOG, descriptor_mode, descriptors_wanted};
use portcullis::settings::Settings;

use super::row::Row;

/// The oldest kernel that works, and the oldest that has everything.
const KERNEL_MIN: (u32, u32) = (6, 1);
const KERNEL_BEST: (u32, u32) = (6, 12);
/// Descriptors below which a gateway without a configuration is warned of.
const DESCRIPTORS_USUAL: u64 = 65_536;
/// Local ports that links and HTTP endpoints may need.
const LOCAL_PORTS_MIN: u64 = 10_000;
/// Kernel memory of a connection whose both directions have a page in flight.
const CONNECTION_BYTES: u64 = 2 * 4096;
/// 2025-01-01; this version is younger.
const CLOCK_MIN_S: u64 = 1_735_689_600;
/// 2100-01-01.
const CLOCK_MAX_S: u64 = 4_102_444_800;

/// Reads one of the kernel's files; `None` when there is none. Tests give their own.
pub type Read<'r> = &'r dyn Fn(&str) -> Option<String>;

/// The files of this machine.
pub fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// The kernel's age.
pub fn kernel(release: &str) -> Row {
    let found = format!("Linux {release}");
    match version(release) {
        None => Row::warn("kernel", format!("{found}: not a version"), "use Linux 6.1 or later"),
        Some(old) if old < KERNEL_MIN => {
            let remedy = "run Linux 6.1 or later; 6.12 or later is recommended";
            Row::fail("kernel", format!("{found} is older than 6.1"), remedy)
        }
        Some(usable) if usable < KERNEL_BEST => {
            let finding = format!("{found} works; 6.12 waits for several completions at a time");
            Row::warn("kernel", finding, "run Linux 6.12 or later for less CPU per message")
        }
        Some(_) => Row::ok("kernel", found),
    }
}

/// What the ring that was made can do, or why none could be made.
pub fn io_uring(probe: &Result<Probe, ProbeError>) -> Row {
    let probe = match probe {
        Ok(probe) => probe,
        Err(error) => return Row::fail("io_uring", error.finding(), error.remedy()),
    };
    let features = probe.features();
    let names = |wanted: bool| -> Vec<&str> {
        features.iter().filter(|(_, is)| *is == wanted).map(|(name, _)| *name).collect()
    };
    match names(false).as_slice() {
        [] => Row::ok("io_uring", format!("usable: {}", names(true).join(", "))),
        missing => {
            let finding = format!("usable, without: {}", missing.join(", "));
            Row::warn("io_uring", finding, "a newer kernel has them (6.12 has all)")
        }
    }
}

/// `kernel.io_uring_disabled`. `usable` is whether this process could make a ring.
pub fn io_uring_disabled(read: Read<'_>, usable: bool) -> Row {
    const CHECK: &str = "io_uring_disabled";
    let enable = "sysctl -w kernel.io_uring_disabled=0, and deploy/99-portcullis.conf to keep it";
    let text = read("/proc/sys/kernel/io_uring_disabled");
    match text.as_deref().map(str::trim) {
        None => Row::ok(CHECK, "this kernel has no such switch"),
        Some("0") => Row::ok(CHECK, "0: every process may use io_uring"),
        Some("1") if usable => {
            let finding = "1: only root and the group kernel.io_uring_group may use io_uring";
            let remedy = format!("make sure that the gateway's user is in that group, or {enable}");
            Row::warn(CHECK, finding, remedy)
        }
        Some(value) => Row::fail(CHECK, format!("{value}: io_uring is switched off"), enable),
    }
}

/// The limit on open files. The gateway raises its soft limit to the hard one, and so does this.
pub fn descriptors(
    limit: io::Result<u64>,
    settings: Option<&Settings>,
    probe: Option<&Probe>,
) -> Row {
    const CHECK: &str = "open_files";
    let limit = match limit {
        Ok(limit) => limit,
        Err(error) => return Row::skipped(CHECK, format!("RLIMIT_NOFILE: {error}")),
    };
    let raise = |to: u64| {
        format!(
            "allow {to}: LimitNOFILE={to} in the systemd unit, --ulimit nofile={to}:{to} for \
             docker run, ulimit -n {to} in a shell"
        )
    };
    let Some(settings) = settings else {
        let finding = format!("RLIMIT_NOFILE is {limit}");
        return match limit < DESCRIPTORS_USUAL {
            true => Row::warn(CHECK, finding, raise(1 << 20)),
            false => Row::ok(CHECK, finding),
        };
    };
    let mode = probe.map(|probe| descriptor_mode(settings.gateway.descriptors, probe));
    let Some(Ok(mode)) = mode else {
        return Row::skipped(CHECK, "depends on io_uring, which cannot be used");
    };
    let workers = workers(settings);
    let needed = descriptors_wanted(settings, workers, mode);
    let max = settings.limits.connections_max;
    if limit < needed {
        let finding = format!(
            "RLIMIT_NOFILE is {limit}; limits.connections_max = {max} with {workers} workers \
             needs {needed}"
        );
        let remedy = format!("{}; or lower limits.connections_max", raise(needed));
        return Row::warn(CHECK, finding, remedy);
    }
    Row::ok(CHECK, format!("RLIMIT_NOFILE is {limit}; the settings need {needed}"))
}

/// How many workers these settings start here.
fn workers(settings: &Settings) -> u16 {
    let cores = u16::try_from(process::core_count()).unwrap_or(u16::MAX);
    settings.gateway.workers.unwrap_or(cores).max(1)
}

/// The limit on locked memory. `usable` is whether this process could register its buffers.
pub fn locked_memory(limit: io::Result<Option<u64>>, usable: bool) -> Row {
    const CHECK: &str = "locked_memory";
    match limit {
        Err(error) => Row::skipped(CHECK, format!("RLIMIT_MEMLOCK: {error}")),
        Ok(None) => Row::ok(CHECK, "RLIMIT_MEMLOCK is unlimited"),
        Ok(Some(bytes)) if usable => {
            let finding = format!("RLIMIT_MEMLOCK is {} KiB, and a ring fits", bytes / 1024);
            Row::ok(CHECK, finding)
        }
        Ok(Some(bytes)) => {
            let finding =
                format!("RLIMIT_MEMLOCK is {} KiB, and no ring can be made", bytes / 1024);
            let remedy = "LimitMEMLOCK=infinity in the systemd unit, or --ulimit memlock=-1 for \
                          docker run";
            Row::warn(CHECK, finding, remedy)
        }
    }
}

/// A kernel setting that must be at least so much.
struct Least {
    name: &'static str,
    least: u64,
    /// What happens below it.
    why: &'static str,
}

const LEAST: [Least; 4] = [
    Least {
        name: "net.core.somaxconn",
        least: BACKLOG as u64,
        why: "the kernel drops connections of a burst beyond it",
    },
    Least {
        name: "net.ipv4.tcp_max_syn_backlog",
        least: BACKLOG as u64,
        why: "beyond it the kernel answers with SYN cookies, which lose TCP options",
    },
    Least {
        name: "net.ipv4.tcp_migrate_req",
        least: 1,
        why: "without it, connections that wait for a worker that ends are reset, as in a restart",
    },
    Least {
        name: "net.core.netdev_max_backlog",
        least: 1000,
        why: "packets of a burst beyond it are dropped before TCP sees them",
    },
];

/// Every kernel setting that matters, against the settings' needs.
pub fn sysctls(read: Read<'_>, settings: Option<&Settings>) -> Vec<Row> {
    let number = |name: &str, index: usize| -> Option<u64> {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        read(&path)?.split_whitespace().nth(index)?.parse().ok()
    };
    let keep = "and deploy/99-portcullis.conf in /etc/sysctl.d to keep it";
    let mut rows: Vec<Row> = LEAST
        .iter()
        .map(|Least { name, least, why }| match number(name, 0) {
            None => Row::skipped("sysctl", format!("{name} cannot be read")),
            Some(value) if value < *least => {
                let finding = format!("{name} is {value}: {why}");
                Row::warn("sysctl", finding, format!("sysctl -w {name}={least}, {keep}"))
            }
            Some(value) => Row::ok("sysctl", format!("{name} is {value}")),
        })
        .collect();
    let name = "net.ipv4.ip_local_port_range";
    rows.push(match (number(name, 0), number(name, 1)) {
        (Some(first), Some(last)) if (last + 1).saturating_sub(first) >= LOCAL_PORTS_MIN => {
            let ports = last + 1 - first;
            Row::ok("sysctl", format!("{name} has {ports} ports for connections to one address"))
        }
        (Some(first), Some(last)) => {
            let ports = (last + 1).saturating_sub(first);
            let finding =
                format!("{name} has {ports} ports: connections to one backend address end there");
            Row::warn("sysctl", finding, format!("sysctl -w {name}=\"15000 64999\", {keep}"))
        }
        _ => Row::skipped("sysctl", format!("{name} cannot be read")),
    });
    rows.extend(settings.map(|settings| tcp_memory(number("net.ipv4.tcp_mem", 1), settings)));
    let files = settings.and_then(|settings| open_files(number("fs.file-max", 0), settings));
    rows.extend(files);
    rows
}

/// Whether the kernel's memory for TCP is enough for all connections with a page in flight.
fn tcp_memory(pages: Option<u64>, settings: &Settings) -> Row {
    let Some(pages) = pages else {
        return Row::skipped("sysctl", "net.ipv4.tcp_mem cannot be read");
    };
    let (has, connections) =
        (pages.saturating_mul(process::page_size()), settings.limits.connections_max);
    let needs = u64::from(connections) * CONNECTION_BYTES;
    let mib = |bytes: u64| bytes >> 20;
    let finding = format!("net.ipv4.tcp_mem begins to save at {} MiB", mib(has));
    if has >= needs {
        return Row::ok("sysctl", finding);
    }
    let finding = format!(
        "{finding}; {connections} connections with a page in flight each way need {}: all of \
         them would slow down",
        mib(needs)
    );
    let least = needs / process::page_size();
    let remedy = format!(
        "sysctl -w net.ipv4.tcp_mem=\"{} {least} {}\" if the machine has that memory, or lower \
         limits.connections_max",
        least / 3 * 2,
        least / 3 * 4
    );
    Row::warn("sysctl", finding, remedy)
}

/// Connections are open files of the machine, whatever the process's own limit. Only too few
/// are worth a row.
fn open_files(max: Option<u64>, settings: &Settings) -> Option<Row> {
    let (max, needed) = (max?, u64::from(settings.limits.connections_max));
    let remedy = format!("sysctl -w fs.file-max={}", needed.saturating_mul(2));
    let finding = format!("fs.file-max is {max}: limits.connections_max = {needed} is above it");
    (max < needed).then(|| Row::warn("sysctl", finding, remedy))
}

/// Whether a filter of system calls is on this process. `usable` is whether it lets io_uring
/// through.
pub fn seccomp(read: Read<'_>, usable: bool) -> Row {
    const CHECK: &str = "seccomp";
    match status_field(read, "Seccomp:").as_deref() {
        Some("0") => Row::ok(CHECK, "no filter on this process"),
        Some("2") if usable => Row::ok(CHECK, "a filter that lets io_uring through"),
        Some("2") => {
            let remedy = "use deploy/seccomp.json: docker run --security-opt \
                          seccomp=deploy/seccomp.json; deploy/README.md has Kubernetes and systemd";
            Row::fail(CHECK, "a filter is on, and io_uring is refused", remedy)
        }
        Some(mode) => Row::warn(CHECK, format!("mode {mode}"), "expected 0 (off) or 2 (filter)"),
        None => Row::skipped(CHECK, "/proc/self/status has no such line"),
    }
}

/// Whether this process may bind ports below 1024, if any is asked for.
pub fn low_ports(read: Read<'_>, ports: &[u16]) -> Row {
    const CHECK: &str = "low_ports";
    const CAP_NET_BIND_SERVICE: u32 = 10;
    let first_free = read("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .and_then(|text| text.trim().parse::<u16>().ok())
        .unwrap_or(1024);
    let low: Vec<String> = ports
        .iter()
        .filter(|port| **port != 0 && **port < first_free)
        .map(u16::to_string)
        .collect();
    if low.is_empty() {
        return Row::ok(CHECK, "the settings need no privileged port");
    }
    let capabilities = status_field(read, "CapEff:")
        .and_then(|text| u64::from_str_radix(&text, 16).ok())
        .unwrap_or(0);
    let low = low.join(", ");
    if capabilities & (1 << CAP_NET_BIND_SERVICE) != 0 {
        return Row::ok(CHECK, format!("CAP_NET_BIND_SERVICE allows port {low}"));
    }
    let finding = format!("port {low} needs CAP_NET_BIND_SERVICE, which this process has not");
    let remedy = format!(
        "AmbientCapabilities=CAP_NET_BIND_SERVICE in the systemd unit (deploy/portcullis.service \
         has it), or sysctl -w net.ipv4.ip_unprivileged_port_start={low}"
    );
    Row::fail(CHECK, finding, remedy)
}

/// The rest of a line of `/proc/self/status`.
fn status_field(read: Read<'_>, name: &str) -> Option<String> {
    let text = read("/proc/self/status")?;
    text.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim().to_owned())
}

/// The wall clock, by which tokens and certificates are judged.
pub fn clock(unix_s: u64, synchronised: io::Result<bool>) -> Row {
    const CHECK: &str = "clock";
    let remedy = "run an NTP client: timedatectl set-ntp true, or chrony";
    if !(CLOCK_MIN_S..CLOCK_MAX_S).contains(&unix_s) {
        let finding = format!("it says {}", portcullis::server::logs::rfc3339(unix_s * 1000));
        return Row::fail(CHECK, format!("{finding}: every token would be judged wrong"), remedy);
    }
    match synchronised {
        Ok(true) => Row::ok(CHECK, "synchronised"),
        Ok(false) => {
            let finding = "not synchronised, as the kernel knows: tokens are judged by this clock";
            Row::warn(CHECK, finding, remedy)
        }
        Err(error) => {
            Row::skipped(CHECK, format!("plausible; the kernel does not say more: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::Status::{self, Fail, Ok as Good, Skipped, Warn};
    use super::*;

    /// Files of a machine, by path.
    fn files<'f>(table: &'f [(&'f str, &'f str)]) -> impl Fn(&str) -> Option<String> + 'f {
        move |path| table.iter().find(|(name, _)| *name == path).map(|(_, text)| text.to_string())
    }

    fn expect(row: &Row, status: Status, parts: &[&str]) {
        assert_eq!(row.status, status, "{row:?}");
        let text = row.text();
        parts.iter().for_each(|part| assert!(text.contains(part), "{part} is not in {text}"));
        // Whatever is wrong has a remedy.
        assert_eq!(row.remedy.is_empty(), row.status < Warn, "{row:?}");
    }

    #[test]
    fn kernels() {
        for (release, status, part) in [
            ("6.18.1", Good, "Linux 6.18.1"),
            ("6.12.0-amd64", Good, "6.12"),
            ("6.11.9", Warn, "6.12 or later"),
            ("6.1.0-21-amd64", Warn, "6.12 or later"),
            ("5.15.0", Fail, "older than 6.1"),
            ("?", Warn, "not a version"),
        ] {
            expect(&kernel(release), status, &[part]);
        }
    }

    #[test]
    fn the_switch_of_io_uring() {
        let path = "/proc/sys/kernel/io_uring_disabled";
        for (text, usable, status, part) in [
            ("0\n", true, Good, "every process"),
            ("1\n", true, Warn, "group"),
            ("1\n", false, Fail, "sysctl -w kernel.io_uring_disabled=0"),
            ("2\n", false, Fail, "99-portcullis.conf"),
        ] {
            expect(&io_uring_disabled(&files(&[(path, text)]), usable), status, &[part]);
        }
        expect(&io_uring_disabled(&files(&[]), true), Good, &["no such switch"]);
    }

    #[test]
    fn kernel_settings_below_their_least_say_why_and_what_to_do() {
        let table = [
            ("/proc/sys/net/core/somaxconn", "128\n"),
            ("/proc/sys/net/ipv4/tcp_max_syn_backlog", "16384\n"),
            ("/proc/sys/net/ipv4/tcp_migrate_req", "0\n"),
            ("/proc/sys/net/ipv4/ip_local_port_range", "60000\t60999\n"),
        ];
        let rows = sysctls(&files(&table), None);
        assert_eq!(rows.len(), 5);
        expect(&rows[0], Warn, &["somaxconn is 128", "burst", "sysctl -w net.core.somaxconn=4096"]);
        expect(&rows[1], Good, &["16384"]);
        expect(&rows[2], Warn, &["tcp_migrate_req is 0", "restart"]);
        expect(&rows[3], Skipped, &["netdev_max_backlog cannot be read"]);
        expect(&rows[4], Warn, &["1000 ports", "15000 64999"]);
    }

    #[test]
    fn filters_and_capabilities() {
        let status = |text| [("/proc/self/status", text)];
        let filtered = status("Name:\tx\nSeccomp:\t2\n");
        expect(&seccomp(&files(&filtered), true), Good, &["lets io_uring through"]);
        expect(&seccomp(&files(&filtered), false), Fail, &["deploy/seccomp.json"]);
        expect(&seccomp(&files(&status("Seccomp:\t0\n")), true), Good, &["no filter"]);
        expect(&seccomp(&files(&[]), true), Skipped, &[]);

        let none = status("CapEff:\t0000000000000000\n");
        expect(&low_ports(&files(&none), &[8443, 0]), Good, &["no privileged port"]);
        expect(&low_ports(&files(&none), &[443, 8443]), Fail, &["port 443 needs", "Ambient"]);
        let able = status("CapEff:\t0000000000000400\n");
        expect(&low_ports(&files(&able), &[443]), Good, &["CAP_NET_BIND_SERVICE"]);
        let start = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
        let table = [("/proc/self/status", none[0].1), (start, "80\n")];
        expect(&low_ports(&files(&table), &[443]), Good, &["no privileged port"]);
        expect(&low_ports(&files(&table), &[79]), Fail, &["port 79"]);
    }

    #[test]
    fn clocks() {
        expect(&clock(1_795_837_543, Ok(true)), Good, &["synchronised"]);
        expect(&clock(1_795_837_543, Ok(false)), Warn, &["not synchronised", "NTP"]);
        let refused = io::Error::from(io::ErrorKind::PermissionDenied);
        expect(&clock(1_795_837_543, Err(refused)), Skipped, &["plausible"]);
        for wrong in [0, 1_000_000_000, 5_000_000_000] {
            expect(&clock(wrong, Ok(true)), Fail, &["NTP", "it says"]);
        }
    }

    #[test]
    fn limits_without_settings() {
        expect(&descriptors(Ok(1024), None, None), Warn, &["is 1024", "LimitNOFILE=1048576"]);
        expect(&descriptors(Ok(1 << 20), None, None), Good, &["1048576"]);
        expect(&locked_memory(Ok(None), true), Good, &["unlimited"]);
        expect(&locked_memory(Ok(Some(65_536)), true), Good, &["64 KiB"]);
        expect(&locked_memory(Ok(Some(65_536)), false), Warn, &["LimitMEMLOCK=infinity"]);
    }
}
