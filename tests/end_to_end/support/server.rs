//! A WebSocket server behind the gateway, which does what a test tells it to.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};

use portcullis::protocol::http_upgrade::accept_key;
use tungstenite::protocol::Role;
use tungstenite::{Error, Message, WebSocket};

use super::{PATIENCE, head};

/// A listener whose connections wait for the test.
pub struct Server {
    port: u16,
    connections: Receiver<TcpStream>,
    waiting: Arc<AtomicUsize>,
}

/// A connection whose request head is read.
pub struct Asked<S = TcpStream> {
    pub stream: S,
    pub head: String,
}

impl Server {
    /// Listens on a port of loopback.
    pub fn start() -> Server {
        Server::on(TcpListener::bind("127.0.0.1:0").expect("a port"))
    }

    /// Listens there.
    pub fn on(listener: TcpListener) -> Server {
        let port = listener.local_addr().expect("bound").port();
        let (sender, connections) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let came = Arc::clone(&waiting);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                came.fetch_add(1, Ordering::SeqCst);
                if sender.send(stream).is_err() {
                    return;
                }
            }
        });
        Server { port, connections, waiting }
    }

    /// As an endpoint of a backend.
    pub fn endpoint(&self) -> String {
        format!("ws://127.0.0.1:{}", self.port)
    }

    /// The next connection, unread.
    pub fn connection(&self) -> TcpStream {
        let stream = self.connections.recv_timeout(PATIENCE).expect("the gateway connects");
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.set_nodelay(true).expect("set");
        stream
    }

    /// Whether a connection came that the test has not taken.
    pub fn has_waiting(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// The next connection, with its request.
    pub fn asked(&self) -> Asked {
        Asked::read(self.connection())
    }

    /// The next connection, accepted.
    pub fn accept(&self) -> WebSocket<TcpStream> {
        self.asked().accept("")
    }
}

impl<S: Read + Write> Asked<S> {
    /// Reads a request's head.
    pub fn read(mut stream: S) -> Asked<S> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).expect("a whole head");
            head.push(byte[0]);
        }
        Asked { stream, head: String::from_utf8(head).expect("a head is ASCII") }
    }

    /// A field of the request.
    pub fn field(&self, name: &str) -> Option<&str> {
        head(&self.head, name)
    }

    /// The 101 for this request, with more header lines, each with its CRLF.
    pub fn switching(&self, more: &str) -> String {
        let key = self.field("sec-websocket-key").expect("a key");
        let accept = accept_key(key.as_bytes().try_into().expect("24 characters"));
        let accept = std::str::from_utf8(&accept).expect("base64");
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n{more}\r\n"
        )
    }

    /// Answers with a 101.
    pub fn accept(mut self, more: &str) -> WebSocket<S> {
        let answer = self.switching(more);
        self.answer(&answer);
        WebSocket::from_raw_socket(self.stream, Role::Server, None)
    }

    /// Answers with these bytes.
    pub fn answer(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).expect("the gateway reads");
    }

    /// Whether the gateway has ended the connection, after what it may still send.
    pub fn ended(mut self) -> bool {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).is_ok()
    }
}

/// What comes next from the gateway.
pub fn read<S: Read + Write>(app: &mut WebSocket<S>) -> Message {
    loop {
        match app.read() {
            Err(Error::Io(error)) if error.kind() == ErrorKind::Interrupted => {}
            message => return message.expect("a message"),
        }
    }
}
