//! Socket addresses as the kernel writes and reads them.
#![allow(unsafe_code)] // reads a sockaddr that the kernel filled in

use std::io;
use std::net::SocketAddr;

use socket2::SockAddr;

use crate::ring::EndpointAddress;

/// Room for the peer address of one accept.
#[derive(Clone, Copy)]
pub(super) struct PeerStorage {
    pub(super) storage: libc::sockaddr_storage,
    pub(super) length: libc::socklen_t,
}

impl PeerStorage {
    const ROOM: libc::socklen_t = size_of::<libc::sockaddr_storage>() as libc::socklen_t;

    /// Empty room.
    pub(super) fn new() -> Self {
        // SAFETY: sockaddr_storage is plain integers, for which all zeroes are a value.
        PeerStorage { storage: unsafe { std::mem::zeroed() }, length: Self::ROOM }
    }

    /// Makes the whole room available again.
    pub(super) fn reset(&mut self) {
        self.length = Self::ROOM;
        self.storage.ss_family = libc::AF_UNSPEC as libc::sa_family_t;
    }

    /// What the kernel wrote; `None` when it is no internet address. An IPv4 client of an IPv6
    /// listener has its IPv4 address here, so that prefixes and logs see one form of it.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        let length = self.length.min(Self::ROOM);
        // SAFETY: the storage is a live sockaddr_storage of which `length` bytes are valid.
        let address = unsafe { SockAddr::new(to_socket2(&self.storage), length) };
        let peer = address.as_socket()?;
        Some(SocketAddr::new(peer.ip().to_canonical(), peer.port()))
    }
}

fn to_socket2(storage: &libc::sockaddr_storage) -> socket2::SockAddrStorage {
    let mut copy = socket2::SockAddrStorage::zeroed();
    assert!(copy.size_of() as usize >= size_of::<libc::sockaddr_storage>());
    // SAFETY: socket2 declares SockAddrStorage to be a transparent sockaddr_storage, and
    // `view_as` checks the size.
    *unsafe { copy.view_as::<libc::sockaddr_storage>() } = *storage;
    copy
}

/// The endpoint in the kernel's form.
///
/// # Errors
/// A unix path that is too long for a socket address (108 bytes).
pub(super) fn encode(endpoint: &EndpointAddress) -> io::Result<SockAddr> {
    match endpoint {
        EndpointAddress::Tcp(address) => Ok(SockAddr::from(*address)),
        EndpointAddress::Unix(path) => SockAddr::unix(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_read_back_in_canonical_form() {
        for (written, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("[2001:db8::1]:443", "[2001:db8::1]:443"),
            ("[::ffff:10.0.0.7]:9", "10.0.0.7:9"),
        ] {
            let address = SockAddr::from(written.parse::<SocketAddr>().unwrap());
            let mut room = PeerStorage::new();
            // SAFETY: both point to address.len() valid bytes, and the room is larger.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    address.as_ptr().cast::<u8>(),
                    (&raw mut room.storage).cast::<u8>(),
                    address.len() as usize,
                );
            }
            room.length = address.len();
            assert_eq!(room.peer(), Some(expected.parse().unwrap()), "{written}");
            room.reset();
            assert_eq!(room.peer(), None);
        }
    }

    #[test]
    fn a_unix_path_that_is_too_long_is_an_error() {
        let endpoint = |length| EndpointAddress::Unix("x".repeat(length).into());
        assert!(encode(&endpoint(100)).is_ok());
        assert!(encode(&endpoint(200)).is_err());
    }
}
