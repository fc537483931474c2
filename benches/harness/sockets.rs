//! Which sockets a server on this machine holds, and for how long.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use crate::socket_table::{self, Row, States};

/// Ages of a server's sockets, as seen from outside.
pub struct SocketWatch {
    port: u16,
    netlink: bool,
    seen: HashMap<Row, Instant>,
}

impl SocketWatch {
    /// A watch on a port of this machine, IPv4 clients only.
    pub fn new(port: u16) -> SocketWatch {
        let netlink = socket_table::has_netlink();
        if !netlink {
            eprintln!("NETLINK_SOCK_DIAG is not available; reading /proc/net/tcp, which is slow");
        }
        SocketWatch { port, netlink, seen: HashMap::new() }
    }

    /// Looks again; gives the number of a group's sockets (clients of 127.GROUP.x.y) and the age
    /// of the oldest, seconds.
    pub fn look(&mut self, group: u8) -> (usize, f64) {
        let rows = match self.netlink {
            // A look that fails shows nothing new.
            true => match socket_table::ask_kernel(self.port, States::HELD) {
                Ok(rows) => rows,
                Err(_) => return (self.seen.len(), self.oldest()),
            },
            false => socket_table::read_proc(self.port, States::HELD),
        };
        let now = Instant::now();
        let mut still = HashMap::with_capacity(self.seen.len());
        for mut row in rows.into_iter().filter(|row| is_of(row.peer.0, group)) {
            // A socket keeps its age when its peer has closed.
            row.state = 0;
            still.insert(row, *self.seen.get(&row).unwrap_or(&now));
        }
        self.seen = still;
        (self.seen.len(), self.oldest())
    }

    fn oldest(&self) -> f64 {
        self.seen.values().min().map_or(0.0, |since| since.elapsed().as_secs_f64())
    }
}

fn is_of(address: IpAddr, group: u8) -> bool {
    matches!(address, IpAddr::V4(address) if address.octets()[1] == group)
}
