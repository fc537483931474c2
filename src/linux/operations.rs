//! What the ring remembers of accepts and connects in flight: the addresses that the kernel
//! reads and writes, and what they belong to.
#![allow(unsafe_code)] // reads address storage back from the kernel

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, SockAddr, Socket, Type};

use super::address::{PeerStorage, encode};
use super::memory::Pinned;
use crate::ring::{EndpointAddress, Failure, OpKey};

/// Accept slots are small numbers; this bounds the table against a wrong key.
const ACCEPT_SLOTS_MAX: u32 = 65_536;

/// Accepts in flight, by the slot of their key.
#[derive(Default)]
pub(super) struct Accepts {
    slots: Vec<AcceptSlot>,
}

struct AcceptSlot {
    room: Pinned<PeerStorage>,
    /// The listener of the accept in flight.
    listener: Option<u16>,
}

impl Accepts {
    /// Room for the peer's address of the accept that starts in `slot`; one at a time.
    pub(super) fn start(&mut self, slot: u32, listener: u16) -> *mut PeerStorage {
        assert!(slot < ACCEPT_SLOTS_MAX, "accept slot {slot}");
        while self.slots.len() <= slot as usize {
            let room = Pinned::new(PeerStorage::new());
            self.slots.push(AcceptSlot { room, listener: None });
        }
        let entry = &mut self.slots[slot as usize];
        assert_eq!(entry.listener, None, "accept slot {slot} is in flight");
        entry.listener = Some(listener);
        // SAFETY: no accept is in flight in this slot.
        unsafe { entry.room.value_mut() }.reset();
        entry.room.address()
    }

    /// The accept in `slot` has ended: its listener, and the peer if there is one.
    pub(super) fn finish(&mut self, slot: u32) -> (u16, Option<SocketAddr>) {
        let entry = &mut self.slots[slot as usize];
        let listener = entry.listener.take().expect("an accept ended that was not in flight");
        // SAFETY: the accept has ended, so the kernel no longer writes.
        let peer = unsafe { entry.room.value_mut() }.peer();
        (listener, peer)
    }
}

/// Connects in flight; there are as few as links.
#[derive(Default)]
pub(super) struct Connects {
    list: Vec<ConnectInFlight>,
}

struct ConnectInFlight {
    key: OpKey,
    socket: Socket,
    address: Pinned<SockAddr>,
}

impl Connects {
    /// Opens a socket for `endpoint`; returns it and the address to connect it to.
    pub(super) fn start(
        &mut self,
        key: OpKey,
        endpoint: &EndpointAddress,
    ) -> io::Result<(&Socket, *const SockAddr)> {
        let address = encode(endpoint)?;
        let domain = Domain::from(i32::from(address.family()));
        let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None)?;
        if matches!(endpoint, EndpointAddress::Tcp(_)) {
            socket.set_tcp_nodelay(true)?;
        }
        let address = Pinned::new(address);
        self.list.push(ConnectInFlight { key, socket, address });
        let entry = self.list.last().expect("just pushed");
        Ok((&entry.socket, entry.address.address()))
    }

    /// The connect `key` has ended: its socket, which closes itself when dropped.
    pub(super) fn finish(&mut self, key: OpKey) -> Socket {
        let position = self.list.iter().position(|entry| entry.key == key);
        let position = position.expect("a connect ended that was not in flight");
        self.list.swap_remove(position).socket
    }

    /// Closes the sockets, but keeps the addresses, which the kernel may still read.
    pub(super) fn close_all(&mut self) {
        for entry in self.list.drain(..) {
            drop(entry.socket);
            std::mem::forget(entry.address);
        }
    }
}

/// What a negative result of an accept or connect means.
pub(super) fn open_failure(errno: i32) -> Failure {
    match errno {
        libc::ECANCELED => Failure::Cancelled,
        libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => Failure::Exhausted,
        other => Failure::Errno(other),
    }
}

/// What a negative result of a receive, poll or send means.
pub(super) fn transfer_failure(errno: i32) -> Failure {
    match errno {
        libc::ECANCELED => Failure::Cancelled,
        libc::ENOMEM => Failure::Exhausted,
        libc::ECONNRESET
        | libc::EPIPE
        | libc::ETIMEDOUT
        | libc::ENOTCONN
        | libc::ESHUTDOWN
        | libc::ECONNABORTED
        | libc::ECONNREFUSED
        | libc::EHOSTUNREACH
        | libc::EHOSTDOWN
        | libc::ENETUNREACH
        | libc::ENETDOWN
        | libc::ENETRESET => Failure::Disconnected,
        other => Failure::Errno(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_sorted_by_what_the_worker_does_about_them() {
        for (errno, opening, transfer) in [
            (libc::ECANCELED, Failure::Cancelled, Failure::Cancelled),
            (libc::ENOMEM, Failure::Exhausted, Failure::Exhausted),
            (libc::EMFILE, Failure::Exhausted, Failure::Errno(libc::EMFILE)),
            (libc::ENFILE, Failure::Exhausted, Failure::Errno(libc::ENFILE)),
            (libc::ENOBUFS, Failure::Exhausted, Failure::Errno(libc::ENOBUFS)),
            (libc::ECONNRESET, Failure::Errno(libc::ECONNRESET), Failure::Disconnected),
            (libc::EPIPE, Failure::Errno(libc::EPIPE), Failure::Disconnected),
            (libc::ETIMEDOUT, Failure::Errno(libc::ETIMEDOUT), Failure::Disconnected),
            (libc::EINVAL, Failure::Errno(libc::EINVAL), Failure::Errno(libc::EINVAL)),
        ] {
            assert_eq!((open_failure(errno), transfer_failure(errno)), (opening, transfer));
        }
    }
}
