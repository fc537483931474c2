//! Whether the addresses of the settings can be had, and who has them otherwise.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;

use portcullis::server::data_plane::refuse_if_taken;
use portcullis::settings::Settings;

use super::row::Row;

/// The state of a listening socket in `/proc/net/tcp`.
const LISTENING: &str = "0A";

/// A process that holds a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// Its command's name, without control characters.
    pub name: String,
}

/// Every address that the settings bind, with what it is for.
pub fn addresses(settings: &Settings) -> Vec<(String, SocketAddr)> {
    let listeners = settings.listeners.iter().enumerate();
    let listeners = listeners.map(|(index, l)| (format!("listener {index}"), l.address));
    let admin = settings.gateway.admin.map(|address| ("gateway.admin".to_owned(), address));
    listeners.chain(admin).collect()
}

/// A row for each address: bound for a moment, as `run` would.
pub fn rows(settings: &Settings) -> Vec<Row> {
    let addresses = addresses(settings);
    addresses.iter().map(|(what, address)| row(what, *address, refuse_if_taken(*address))).collect()
}

fn row(what: &str, address: SocketAddr, bound: io::Result<()>) -> Row {
    const CHECK: &str = "port";
    let Err(error) = bound else { return Row::ok(CHECK, format!("{what} {address} is free")) };
    let port = address.port();
    match error.kind() {
        io::ErrorKind::AddrInUse => taken(what, address, holder(address)),
        io::ErrorKind::PermissionDenied if port < 1024 => Row::fail(
            CHECK,
            format!("{what} {address} cannot be bound: ports below 1024 are reserved"),
            "AmbientCapabilities=CAP_NET_BIND_SERVICE in the systemd unit, or a higher port",
        ),
        io::ErrorKind::AddrNotAvailable => Row::fail(
            CHECK,
            format!("{what}: no interface of this machine has the address {}", address.ip()),
            "use an address that `ip address` shows, or 0.0.0.0 for all of them",
        ),
        _ => Row::fail(
            CHECK,
            format!("{what} {address} cannot be bound: {error}"),
            "look for a denial in the audit log, or use another address",
        ),
    }
}

/// The decision on an address that another process has. A gateway that runs already is no fault.
fn taken(what: &str, address: SocketAddr, holder: Option<Holder>) -> Row {
    const CHECK: &str = "port";
    match holder {
        Some(Holder { pid, name }) if name == "portcullis" => {
            Row::ok(CHECK, format!("{what} {address} is held by portcullis (pid {pid})"))
        }
        Some(Holder { pid, name }) => Row::fail(
            CHECK,
            format!("{what} {address} is held by {name} (pid {pid})"),
            "stop that process, or choose another address",
        ),
        None => Row::fail(
            CHECK,
            format!("{what} {address} is held by another process"),
            format!("as root, `ss -ltnp 'sport = :{}'` shows which", address.port()),
        ),
    }
}

/// The process that listens on `address`, as far as this user may see.
fn holder(address: SocketAddr) -> Option<Holder> {
    let inodes: Vec<u64> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| listening(&table, address))
        .collect();
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let descriptors = fs::read_dir(entry.path().join("fd")).ok()?;
        let holds = descriptors.flatten().any(|descriptor| {
            let link = fs::read_link(descriptor.path()).unwrap_or_default();
            links.iter().any(|socket| Path::new(socket) == link)
        });
        holds.then(|| Holder { pid, name: command_name(&entry.path()) })
    })
}

/// A process may call itself anything.
fn command_name(folder: &Path) -> String {
    let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
    name.trim_end().escape_debug().to_string()
}

/// The inodes of sockets that listen where `address` does or would, from `/proc/net/tcp` or
/// `/proc/net/tcp6`.
fn listening(table: &str, address: SocketAddr) -> Vec<u64> {
    let inode = |line: &str| -> Option<u64> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (ip, port) = local_address(fields.get(1)?)?;
        let overlaps = ip == address.ip().to_canonical()
            || ip.is_unspecified()
            || address.ip().is_unspecified();
        let listens = *fields.get(3)? == LISTENING && port == address.port() && overlaps;
        listens.then(|| fields.get(9)?.parse().ok()).flatten()
    };
    table.lines().skip(1).filter_map(inode).collect()
}

/// `0100007F:1F90` is 127.0.0.1:8080: groups of four bytes, each in the machine's order.
fn local_address(text: &str) -> Option<(IpAddr, u16)> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for group in ip.as_bytes().chunks(8) {
        let group = std::str::from_utf8(group).ok().filter(|group| group.len() == 8)?;
        bytes.extend(u32::from_str_radix(group, 16).ok()?.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some((ip.to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::row::Status;
    use super::*;

    #[test]
    fn tables_of_the_kernel() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 41 1
   1: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 42 1
   2: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 43 1
   3: rubbish
";
        for (address, expected) in [
            ("127.0.0.1:8080", vec![41]),
            ("[::]:8080", vec![41]),
            ("127.0.0.2:8080", vec![]),
            ("192.0.2.1:80", vec![43]),
            ("127.0.0.1:81", vec![]),
        ] {
            assert_eq!(listening(table, address.parse().unwrap()), expected, "{address}");
        }
        let mapped = local_address("0000000000000000FFFF00000100007F:0050");
        assert_eq!(mapped, Some(([127, 0, 0, 1].into(), 80)));
        assert_eq!(local_address("00000000000000000000000001000000:0050").unwrap().1, 80);
        for wrong in ["", "0100007F", "01:50", "0100007F:xyz", "é100007:50"] {
            assert_eq!(local_address(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn this_test_is_found_as_the_holder_of_its_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let found = holder(address).expect("this process's own descriptors can be read");
        assert_eq!(found.pid, std::process::id());
        let row = row("listener 0", address, refuse_if_taken(address));
        assert_eq!(row.status, Status::Fail, "{row:?}");
        assert!(row.finding.contains(&format!("(pid {})", found.pid)), "{row:?}");
        drop(listener);
        assert_eq!(super::row("x", address, refuse_if_taken(address)).status, Status::Ok);
    }

    #[test]
    fn who_has_it_decides() {
        let address = "127.0.0.1:8080".parse().unwrap();
        let held = |name: &str| Some(Holder { pid: 7, name: name.into() });
        assert_eq!(taken("x", address, held("portcullis")).status, Status::Ok);
        assert!(taken("x", address, held("nginx")).finding.contains("nginx (pid 7)"));
        assert!(taken("x", address, None).remedy.contains("sport = :8080"));
    }
}
