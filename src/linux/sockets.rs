//! Which sockets are open: so that none is used after its close, each is closed once, and a
//! ring that is dropped closes all.
#![allow(unsafe_code)] // close and setsockopt on bare descriptors

use std::io;
use std::os::fd::RawFd;

use crate::ring::Socket;

/// Set in the number of a direct descriptor; descriptors of the process never have it.
const DIRECT_BIT: u32 = 1 << 31;

/// Makes close(2) throw undelivered bytes away and send RST.
pub(super) static ABORT: libc::linger = libc::linger { l_onoff: 1, l_linger: 0 };

/// What an operation names: a descriptor of the process, or an entry of the ring's own table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Plain(RawFd),
    Direct(u32),
}

impl Target {
    /// How a socket's number is to be read.
    pub(super) fn of(socket: Socket) -> Target {
        match socket.0 & DIRECT_BIT {
            0 => Target::Plain(socket.0 as RawFd),
            _ => Target::Direct(socket.0 & !DIRECT_BIT),
        }
    }

    /// The socket's number.
    pub(super) fn socket(self) -> Socket {
        match self {
            Target::Plain(descriptor) => {
                Socket(u32::try_from(descriptor).expect("an open descriptor is not negative"))
            }
            Target::Direct(index) => Socket(index | DIRECT_BIT),
        }
    }
}

/// One bit for each open socket.
#[derive(Debug, Default)]
pub(super) struct SocketTable {
    plain: Vec<u64>,
    direct: Vec<u64>,
    open: u32,
}

impl SocketTable {
    /// Number of open sockets.
    pub(super) fn open(&self) -> u32 {
        self.open
    }

    /// Notes that the kernel has opened `target`.
    pub(super) fn add(&mut self, target: Target) -> Socket {
        let (words, index) = self.place(target);
        if index / 64 >= words.len() {
            words.resize(index / 64 + 1, 0);
        }
        let word = &mut words[index / 64];
        assert_eq!(*word >> (index % 64) & 1, 0, "{target:?} was opened twice");
        *word |= 1 << (index % 64);
        self.open += 1;
        target.socket()
    }

    /// What to name in an operation on `socket`, which must be open: its number may belong to
    /// another ring by now.
    pub(super) fn target(&self, socket: Socket) -> Target {
        let target = Target::of(socket);
        let (words, index) = match target {
            Target::Plain(descriptor) => (&self.plain, descriptor as usize),
            Target::Direct(index) => (&self.direct, index as usize),
        };
        let word = words.get(index / 64).copied().unwrap_or(0);
        assert_eq!(word >> (index % 64) & 1, 1, "{target:?} is not open");
        target
    }

    /// Notes that `socket`, which must be open, is about to be closed.
    pub(super) fn remove(&mut self, socket: Socket) -> Target {
        let target = self.target(socket);
        let (words, index) = self.place(target);
        words[index / 64] &= !(1 << (index % 64));
        self.open -= 1;
        target
    }

    /// Closes every descriptor of the process that is left, and forgets the others.
    pub(super) fn close_all(&mut self) {
        for (position, word) in std::mem::take(&mut self.plain).into_iter().enumerate() {
            for bit in (0..64).filter(|bit| word >> bit & 1 == 1) {
                // SAFETY: the descriptor came from an accept or connect of this ring, which
                // alone may close it and has not.
                unsafe { libc::close((position * 64 + bit) as RawFd) };
            }
        }
        *self = SocketTable::default();
    }

    fn place(&mut self, target: Target) -> (&mut Vec<u64>, usize) {
        match target {
            Target::Plain(descriptor) => (&mut self.plain, descriptor as usize),
            Target::Direct(index) => (&mut self.direct, index as usize),
        }
    }
}

/// Makes the close of `descriptor` send RST.
pub(super) fn abort_on_close(descriptor: RawFd) -> io::Result<()> {
    // SAFETY: ABORT is a `static` linger, and its size is the one given.
    let result = unsafe {
        libc::setsockopt(
            descriptor,
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const ABORT).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends FIN after everything sent so far. A peer that is gone already needs none.
pub(super) fn shutdown_write(descriptor: RawFd) {
    // SAFETY: takes no memory; the descriptor is a socket that this ring holds open.
    unsafe { libc::shutdown(descriptor, libc::SHUT_WR) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_number_are_told_apart() {
        for (target, number) in [
            (Target::Plain(0), 0),
            (Target::Plain(1_000_000), 1_000_000),
            (Target::Direct(0), 0x8000_0000),
            (Target::Direct(77), 0x8000_004d),
        ] {
            assert_eq!(target.socket(), Socket(number));
            assert_eq!(Target::of(Socket(number)), target);
        }
    }

    #[test]
    fn sockets_are_counted_and_their_numbers_reused() {
        let mut table = SocketTable::default();
        let plain = table.add(Target::Plain(200));
        let direct = table.add(Target::Direct(200));
        assert_eq!((table.open(), table.target(plain)), (2, Target::Plain(200)));
        assert_eq!(table.remove(plain), Target::Plain(200));
        assert_eq!(table.add(Target::Plain(200)), plain);
        assert_eq!(table.remove(direct), Target::Direct(200));
        assert_eq!(table.remove(plain), Target::Plain(200));
        assert_eq!(table.open(), 0);
    }

    #[test]
    #[should_panic(expected = "Plain(7) is not open")]
    fn a_socket_is_closed_once() {
        let mut table = SocketTable::default();
        let socket = table.add(Target::Plain(7));
        table.remove(socket);
        table.remove(socket);
    }
}
