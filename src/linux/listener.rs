//! Listening sockets. Every worker has its own for each address; the kernel spreads new
//! connections over them (SO_REUSEPORT).
#![allow(unsafe_code)] // TCP options that socket2 does not wrap

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// Bytes beyond what TCP may send now that the kernel takes from us. What is in the send buffer
/// and not sent would pass for progress, and take memory, for as long as a client does not read;
/// and a whole send slot should go in one piece.
const NOT_SENT_MAX: libc::c_int = 16 * 1024;

/// A listening TCP socket, for one worker's ring. Dropping it closes it.
#[derive(Debug)]
pub struct ListenerSocket {
    socket: Socket,
    address: SocketAddr,
}

/// Listens on `address` (port 0: one that the kernel chooses) with room for `backlog` finished
/// handshakes; the kernel caps it at `net.core.somaxconn`.
///
/// With `defer_accept` the kernel keeps a connection to itself until the client has sent
/// something, at least for this long (rounded up to seconds; TCP_DEFER_ACCEPT). Accepted
/// sockets inherit TCP_NODELAY, a send buffer of `send_buffer` bytes, and TCP_NOTSENT_LOWAT: a
/// send makes progress when the client takes bytes, and not when the kernel's buffer grows.
///
/// An IPv6 wildcard takes IPv4 clients too, as the operator who writes `[::]` expects: v6only
/// is off. If `0.0.0.0` is listed with the same port as well, both can be bound (SO_REUSEPORT)
/// and the kernel hands IPv4 clients to the IPv4 socket.
///
/// # Errors
/// Those of socket(2), setsockopt(2), bind(2) and listen(2): the address is not of this
/// machine, is in use by another user's process, or the port is privileged.
pub fn listen(
    address: SocketAddr,
    backlog: u32,
    defer_accept: Option<Duration>,
    send_buffer: usize,
) -> io::Result<ListenerSocket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(send_buffer)?;
    set_tcp_option(&socket, libc::TCP_NOTSENT_LOWAT, NOT_SENT_MAX)?;
    if let Some(duration) = defer_accept {
        set_defer_accept(&socket, duration)?;
    }
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    let address = socket
        .local_addr()?
        .as_socket()
        .ok_or_else(|| io::Error::other("the listener has no internet address"))?;
    Ok(ListenerSocket { socket, address })
}

impl ListenerSocket {
    /// Where it listens, with the port that the kernel chose if none was given.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// The descriptor, for accept operations.
    pub(super) fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Ends listening immediately, although accepts in flight still hold the file: they fail, and
    /// connections that wait in the backlog are reset.
    pub(super) fn stop(self) {
        // A listener that is no longer listening has nothing to stop.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

fn set_defer_accept(socket: &Socket, duration: Duration) -> io::Result<()> {
    let rounded = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    let seconds = libc::c_int::try_from(rounded).unwrap_or(libc::c_int::MAX);
    set_tcp_option(socket, libc::TCP_DEFER_ACCEPT, seconds)
}

fn set_tcp_option(socket: &Socket, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the option value is a live c_int of the given size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    const BUFFER: usize = 128 * 1024;

    /// What a client that reads nothing can make the kernel hold: the send buffer, whose
    /// accounting doubles, and not what it would grow to.
    #[test]
    fn the_kernels_memory_for_a_client_that_does_not_read_is_bounded() {
        use std::io::Write;
        let listener = listen(address("127.0.0.1:0"), 16, None, BUFFER).unwrap();
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        client.set_recv_buffer_size(4096).unwrap();
        client.connect(&listener.local_address().into()).unwrap();
        let mut accepted = accept(&listener, Duration::from_secs(5)).unwrap();
        assert!(accepted.send_buffer_size().unwrap() <= 2 * BUFFER);
        accepted.set_nonblocking(true).unwrap();
        let mut taken = 0;
        // Until nothing more is taken for a while, in which the peer's window could grow.
        for _ in 0..20 {
            while let Ok(count) = accepted.write(&[0; 16 * 1024]) {
                taken += count;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!((8 * 1024..128 * 1024).contains(&taken), "{taken} bytes taken");
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn accept(listener: &ListenerSocket, patience: Duration) -> Option<Socket> {
        let deadline = std::time::Instant::now() + patience;
        loop {
            match listener.socket.accept() {
                Ok((socket, _)) => return Some(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if std::time::Instant::now() >= deadline {
                        return None;
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn several_workers_share_a_port_and_sockets_inherit_nodelay() {
        let first = listen(address("127.0.0.1:0"), 16, None, BUFFER).unwrap();
        assert_ne!(first.local_address().port(), 0);
        let second = listen(first.local_address(), 16, None, BUFFER).unwrap();
        assert_eq!(second.local_address(), first.local_address());
        drop(second);
        let _client = TcpStream::connect(first.local_address()).unwrap();
        let accepted = accept(&first, Duration::from_secs(5)).unwrap();
        assert!(accepted.tcp_nodelay().unwrap());
    }

    #[test]
    fn an_ipv6_wildcard_takes_ipv4_clients_unless_an_ipv4_wildcard_does() {
        let six = listen(address("[::]:0"), 16, None, BUFFER).unwrap();
        let port = six.local_address().port();
        let _first = TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(accept(&six, Duration::from_secs(5)).is_some());
        let four =
            listen(SocketAddr::new("0.0.0.0".parse().unwrap(), port), 16, None, BUFFER).unwrap();
        let _second = TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(accept(&four, Duration::from_secs(5)).is_some());
        assert!(accept(&six, Duration::ZERO).is_none());
    }

    #[test]
    fn a_silent_client_is_deferred_until_it_speaks() {
        use std::io::Write;
        let listener =
            listen(address("127.0.0.1:0"), 16, Some(Duration::from_millis(4500)), BUFFER).unwrap();
        let mut client = TcpStream::connect(listener.local_address()).unwrap();
        assert!(accept(&listener, Duration::from_millis(150)).is_none());
        client.write_all(b"x").unwrap();
        assert!(accept(&listener, Duration::from_secs(5)).is_some());
    }

    #[test]
    fn stop_refuses_new_clients_although_the_file_is_held() {
        let listener = listen(address("127.0.0.1:0"), 16, None, BUFFER).unwrap();
        let held = listener.socket.try_clone().unwrap();
        let place = listener.local_address();
        listener.stop();
        let error = TcpStream::connect(place).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        drop(held);
    }

    #[test]
    fn an_address_of_another_machine_is_an_error() {
        let error = listen(address("192.0.2.1:0"), 16, None, BUFFER).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }
}
