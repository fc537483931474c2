//! Which sockets a server on this machine holds, and for how long: asked of the kernel by
//! NETLINK_SOCK_DIAG, which can select by port. /proc/net/tcp is the fallback: it prints every
//! socket of the machine, and takes seconds when there are many.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// NLM_F_REQUEST, NLM_F_DUMP.
const DUMP: u16 = 0x301;
/// ESTABLISHED (1) and CLOSE_WAIT (8), as bits.
const HELD_STATES: u32 = 1 << 1 | 1 << 8;
const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: usize = 56;
const REPLY_BYTES: usize = 72;

/// A socket that the server end holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Held {
    /// The second byte of the client's address: the group of 127.GROUP.x.y.
    group: u8,
    /// The client's address and port, and the kernel's cookie (or the inode, from /proc): tells
    /// reused ports apart.
    identity: ([u8; 4], u16, u64),
}

/// Ages of a server's sockets, as seen from outside.
pub struct SocketWatch {
    port: u16,
    netlink: bool,
    seen: HashMap<Held, Instant>,
}

impl SocketWatch {
    /// A watch on a port of this machine, IPv4 clients only.
    pub fn new(port: u16) -> SocketWatch {
        let netlink = ask_kernel(port).is_ok();
        if !netlink {
            eprintln!("NETLINK_SOCK_DIAG is not available; reading /proc/net/tcp, which is slow");
        }
        SocketWatch { port, netlink, seen: HashMap::new() }
    }

    /// Looks again; gives the number of a group's sockets and the age of the oldest, seconds.
    pub fn look(&mut self, group: u8) -> (usize, f64) {
        let rows = match self.netlink {
            // A look that fails shows nothing new.
            true => match ask_kernel(self.port) {
                Ok(rows) => rows,
                Err(_) => return (self.seen.len(), self.oldest()),
            },
            false => read_proc(self.port),
        };
        let now = Instant::now();
        let mut still = HashMap::with_capacity(self.seen.len());
        for row in rows.into_iter().filter(|row| row.group == group) {
            still.insert(row, *self.seen.get(&row).unwrap_or(&now));
        }
        self.seen = still;
        (self.seen.len(), self.oldest())
    }

    fn oldest(&self) -> f64 {
        self.seen.values().min().map_or(0.0, |since| since.elapsed().as_secs_f64())
    }
}

fn ask_kernel(port: u16) -> io::Result<Vec<Held>> {
    let domain = Domain::from(libc::AF_NETLINK);
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(NETLINK_SOCK_DIAG)))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut rows = Vec::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        socket.send(&dump_request(family, port))?;
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
fn dump_request(family: u8, port: u16) -> Vec<u8> {
    let mut request = Vec::with_capacity(HEADER_BYTES + REQUEST_BYTES);
    request.extend(((HEADER_BYTES + REQUEST_BYTES) as u32).to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(DUMP.to_ne_bytes());
    request.extend([0; 8]); // Sequence and sender: one request at a time.
    request.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    request.extend(HELD_STATES.to_ne_bytes());
    request.extend(port.to_be_bytes());
    request.resize(HEADER_BYTES + REQUEST_BYTES, 0);
    request
}

/// Reads one datagram of answers; true after the last.
fn read_replies(mut bytes: &[u8], port: u16, rows: &mut Vec<Held>) -> io::Result<bool> {
    while let Some(head) = bytes.first_chunk::<HEADER_BYTES>() {
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let kind = u16::from_ne_bytes([head[4], head[5]]);
        let Some(body) = bytes.get(HEADER_BYTES..length) else {
            return Err(io::Error::other("a netlink answer is cut short"));
        };
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => return Err(io::Error::other("the kernel refused the question")),
            SOCK_DIAG_BY_FAMILY => rows.extend(held(body).filter(|_| port_of(body) == port)),
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The local port in a `struct inet_diag_msg`.
fn port_of(body: &[u8]) -> u16 {
    body.get(4..6).map_or(0, |port| u16::from_be_bytes([port[0], port[1]]))
}

fn held(body: &[u8]) -> Option<Held> {
    let body = body.first_chunk::<REPLY_BYTES>()?;
    let remote = &body[24..40];
    let address: [u8; 4] = match body[0] == libc::AF_INET as u8 {
        true => remote[..4].try_into().ok()?,
        // An IPv4 client of an IPv6 listener is ::ffff:a.b.c.d.
        false => remote.strip_prefix(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255])?.try_into().ok()?,
    };
    let cookie = u64::from_ne_bytes(body[44..52].try_into().ok()?);
    let remote_port = u16::from_be_bytes([body[6], body[7]]);
    Some(Held { group: address[1], identity: (address, remote_port, cookie) })
}

fn read_proc(port: u16) -> Vec<Held> {
    let text = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let mut rows = Vec::new();
    for line in text.lines().skip(1) {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (Some(local), Some(remote), Some(state)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        if !matches!(state, "01" | "08") || hex_port(local) != Some(port) {
            continue;
        }
        let inode = words.nth(5).and_then(|word| word.parse().ok()).unwrap_or(0);
        let address = remote.get(..8).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        if let (Some(address), Some(remote_port)) = (address, hex_port(remote)) {
            // Printed as it lies in memory.
            let address = address.to_ne_bytes();
            rows.push(Held { group: address[1], identity: (address, remote_port, inode) });
        }
    }
    rows
}

fn hex_port(address: &str) -> Option<u16> {
    u16::from_str_radix(address.split(':').nth(1)?, 16).ok()
}
