//! Many sockets, opened from several threads and addresses.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::thread::scope;

use socket2::{Domain, Socket, Type};

use crate::support::PATIENCE;

const THREADS: usize = 8;
/// Source addresses: each has some 28,000 ports, and none stands out by its share.
const SOURCES: usize = 200;

/// Sockets that stay open until they are dropped.
pub struct PrefixGroup {
    _sockets: Vec<TcpStream>,
}

impl PrefixGroup {
    /// Opens `count` sockets, each as `open` says for its number.
    pub fn open(count: usize, open: impl Fn(usize) -> io::Result<TcpStream> + Sync) -> PrefixGroup {
        let sockets = Mutex::new(Vec::with_capacity(count));
        scope(|threads| {
            for thread in 0..THREADS {
                let (open, sockets) = (&open, &sockets);
                threads.spawn(move || {
                    for number in (thread..count).step_by(THREADS) {
                        let socket = open(number).unwrap_or_else(|e| panic!("{number}: {e}"));
                        sockets.lock().expect("not poisoned").push(socket);
                    }
                });
            }
        });
        PrefixGroup { _sockets: sockets.into_inner().expect("not poisoned") }
    }
}

/// What a client asks of its own socket.
#[derive(Clone, Copy, Default)]
pub struct Shape {
    /// Bytes of its receive buffer, and of a segment that it takes.
    pub small: Option<(usize, u32)>,
}

/// Connects from the address of this number.
pub fn connect(to: SocketAddr, number: usize, shape: Shape) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    if let Some((buffer, segment)) = shape.small {
        socket.set_recv_buffer_size(buffer)?;
        socket.set_tcp_mss(segment)?;
    }
    let source = Ipv4Addr::new(127, 9, 0, (1 + number % SOURCES) as u8);
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect(&to.into())?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Connects, and says this.
pub fn say(to: SocketAddr, number: usize, bytes: &[u8]) -> io::Result<TcpStream> {
    let mut stream = connect(to, number, Shape::default())?;
    stream.write_all(bytes)?;
    Ok(stream)
}

/// Reads the head of a 101, and nothing behind it.
pub fn upgraded(mut stream: TcpStream) -> io::Result<TcpStream> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    match head.starts_with(b"HTTP/1.1 101 ") {
        true => Ok(stream),
        false => Err(io::Error::other(String::from_utf8_lossy(&head).into_owned())),
    }
}
