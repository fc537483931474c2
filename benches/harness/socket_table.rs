//! The kernel's table of TCP sockets: NETLINK_SOCK_DIAG, which can select by port and state.
//! /proc/net/tcp is the fallback: it prints every socket of the machine, and takes seconds when
//! there are many.
//!
//! `tests/silent_sockets` includes this file as well.

use std::fs;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// NLM_F_REQUEST, NLM_F_DUMP.
const DUMP: u16 = 0x301;
const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: usize = 56;
const REPLY_BYTES: usize = 72;

/// Names of the kernel's states by their number (net/tcp_states.h).
const STATES: [&str; 13] = [
    "?",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "SYN_RECV",
];

/// Which states are asked for, as bits by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct States(u32);

impl States {
    /// Connections that a program holds: ESTABLISHED and CLOSE_WAIT.
    pub const HELD: States = States(1 << 1 | 1 << 8);
    /// All but LISTEN and TIME_WAIT, which is nobody's and ends by itself.
    pub const ALIVE: States = States(0x1fff & !(1 | 1 << 6 | 1 << 10));

    fn has(self, state: u8) -> bool {
        self.0 >> state & 1 == 1
    }
}

/// One socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    /// By the kernel's number.
    pub state: u8,
    /// The other end.
    pub peer: (IpAddr, u16),
    /// The kernel's cookie (or the inode, from /proc): tells reused ports apart.
    pub cookie: u64,
}

impl Row {
    /// The state's name.
    pub fn state_name(&self) -> &'static str {
        STATES.get(usize::from(self.state)).copied().unwrap_or("?")
    }
}

/// Whether NETLINK_SOCK_DIAG can be asked.
pub fn has_netlink() -> bool {
    ask_kernel(1, States::HELD).is_ok()
}

/// Every socket of this machine whose local port is `port`, in one of these states.
///
/// # Errors
/// Netlink's own; the dump may also be cut short by a change of the table.
pub fn ask_kernel(port: u16, states: States) -> io::Result<Vec<Row>> {
    let domain = Domain::from(libc::AF_NETLINK);
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(NETLINK_SOCK_DIAG)))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut rows = Vec::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        socket.send(&dump_request(family, port, states))?;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = (&socket).read(&mut buffer)?;
            if read_replies(&buffer[..length], port, &mut rows)? {
                break;
            }
        }
    }
    Ok(rows)
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2` of linux/inet_diag.h.
fn dump_request(family: u8, port: u16, states: States) -> Vec<u8> {
    let mut request = Vec::with_capacity(HEADER_BYTES + REQUEST_BYTES);
    request.extend(((HEADER_BYTES + REQUEST_BYTES) as u32).to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(DUMP.to_ne_bytes());
    request.extend([0; 8]); // Sequence and sender: one request at a time.
    request.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    request.extend(states.0.to_ne_bytes());
    request.extend(port.to_be_bytes());
    request.resize(HEADER_BYTES + REQUEST_BYTES, 0);
    request
}

/// Reads one datagram of answers; true after the last.
fn read_replies(mut bytes: &[u8], port: u16, rows: &mut Vec<Row>) -> io::Result<bool> {
    while let Some(head) = bytes.first_chunk::<HEADER_BYTES>() {
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let kind = u16::from_ne_bytes([head[4], head[5]]);
        let Some(body) = bytes.get(HEADER_BYTES..length) else {
            return Err(io::Error::other("a netlink answer is cut short"));
        };
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => return Err(io::Error::other("the kernel refused the question")),
            SOCK_DIAG_BY_FAMILY => rows.extend(row(body).filter(|_| local_port(body) == port)),
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The local port in a `struct inet_diag_msg`.
fn local_port(body: &[u8]) -> u16 {
    body.get(4..6).map_or(0, |port| u16::from_be_bytes([port[0], port[1]]))
}

fn row(body: &[u8]) -> Option<Row> {
    let body = body.first_chunk::<REPLY_BYTES>()?;
    let remote: [u8; 16] = body[24..40].try_into().ok()?;
    let address = match body[0] == libc::AF_INET as u8 {
        true => IpAddr::V4(Ipv4Addr::new(remote[0], remote[1], remote[2], remote[3])),
        // An IPv4 client of an IPv6 listener is ::ffff:a.b.c.d.
        false => Ipv6Addr::from(remote).to_canonical(),
    };
    let cookie = u64::from_ne_bytes(body[44..52].try_into().ok()?);
    let remote_port = u16::from_be_bytes([body[6], body[7]]);
    Some(Row { state: body[1], peer: (address, remote_port), cookie })
}

/// The same from /proc/net/tcp, IPv4 only.
pub fn read_proc(port: u16, states: States) -> Vec<Row> {
    let text = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let mut rows = Vec::new();
    for line in text.lines().skip(1) {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (Some(local), Some(remote), Some(state)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let Ok(state) = u8::from_str_radix(state, 16) else { continue };
        if !states.has(state) || hex_port(local) != Some(port) {
            continue;
        }
        let cookie = words.nth(5).and_then(|word| word.parse().ok()).unwrap_or(0);
        let address = remote.get(..8).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        if let (Some(address), Some(remote_port)) = (address, hex_port(remote)) {
            // Printed as it lies in memory.
            let address = IpAddr::from(address.to_ne_bytes());
            rows.push(Row { state, peer: (address, remote_port), cookie });
        }
    }
    rows
}

fn hex_port(address: &str) -> Option<u16> {
    u16::from_str_radix(address.split(':').nth(1)?, 16).ok()
}
