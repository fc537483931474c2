//! A client of raw bytes, which can say what no library would.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::PATIENCE;

/// Opcodes of RFC 6455 §5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// A frame from the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub fin: bool,
    pub opcode: Opcode,
    pub payload: Vec<u8>,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Fin,
    Reset,
}

/// A byte stream: TCP, or TLS over it.
pub trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

/// A client.
pub struct Client {
    stream: Box<dyn Stream>,
    tcp: TcpStream,
    read: Vec<u8>,
}

/// An upgrade request for `path` with more header lines, each with its CRLF.
pub fn request(path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: gate.example\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
    )
}

/// The value of a field in a response head.
pub fn head<'h>(response: &'h str, name: &str) -> Option<&'h str> {
    let fields = response.split("\r\n").filter_map(|line| line.split_once(": "));
    fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
}

impl Client {
    /// Connects and says nothing.
    pub fn connect(address: SocketAddr) -> Client {
        let tcp = TcpStream::connect(address).expect("the gateway listens");
        Client::over_tcp(tcp)
    }

    pub fn over_tcp(tcp: TcpStream) -> Client {
        tcp.set_nodelay(true).expect("set");
        tcp.set_read_timeout(Some(PATIENCE)).expect("set");
        tcp.set_write_timeout(Some(PATIENCE)).expect("set");
        let stream = Box::new(tcp.try_clone().expect("cloned"));
        Client { stream, tcp, read: Vec::new() }
    }

    /// A client over a TLS stream on this socket.
    pub fn over(stream: impl Stream + 'static, tcp: TcpStream) -> Client {
        Client { stream: Box::new(stream), tcp, read: Vec::new() }
    }

    /// Connects, asks for `path` and reads the answer's head.
    pub fn ask(address: SocketAddr, path: &str, more: &str) -> (Client, String) {
        let mut client = Client::connect(address);
        client.write(request(path, more).as_bytes());
        let head = client.head();
        (client, head)
    }

    /// Connects and is upgraded.
    pub fn open(address: SocketAddr, path: &str, more: &str) -> Client {
        let (client, head) = Client::ask(address, path, more);
        assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
        client
    }

    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Writes bytes; the gateway may have ended the connection already.
    pub fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).and_then(|()| self.stream.flush());
    }

    /// Reads a response head, with its empty line.
    pub fn head(&mut self) -> String {
        loop {
            if let Some(at) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                let head: Vec<u8> = self.read.drain(..at + 4).collect();
                return String::from_utf8(head).expect("a head is ASCII");
            }
            assert!(self.fill().expect("an answer") > 0, "no whole head: {:?}", self.rest());
        }
    }

    /// The head of a 101; `None` when the connection ends instead.
    pub fn try_head(&mut self) -> Option<String> {
        loop {
            if self.read.ends_with(b"\r\n\r\n") {
                return Some(self.head());
            }
            if !self.fill().is_ok_and(|count| count > 0) {
                return None;
            }
        }
    }

    fn rest(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }

    /// Reads more bytes.
    fn fill(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                // The kernel takes down rings that this process made, as a probe does.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => {
                    self.read.extend_from_slice(&buffer[..*outcome.as_ref().unwrap_or(&0)]);
                    return outcome;
                }
            }
        }
    }

    /// Reads everything until the connection ends, and how it ended.
    pub fn drain(&mut self) -> (Vec<u8>, End) {
        loop {
            match self.fill() {
                Ok(0) => return (std::mem::take(&mut self.read), self.end_of_stream()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return (std::mem::take(&mut self.read), self.end_of_stream());
                }
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
                    return (std::mem::take(&mut self.read), End::Reset);
                }
            }
        }
    }

    /// What the end of the stream was. A reset is reported once, and a write may have been told of
    /// it; but only a FIN leaves a peer.
    fn end_of_stream(&self) -> End {
        if self.tcp.peer_addr().is_ok() { End::Fin } else { End::Reset }
    }

    /// How the connection ends, when nothing more comes before that.
    pub fn end(&mut self) -> End {
        let (bytes, end) = self.drain();
        assert!(bytes.is_empty(), "{:?} came before the end", bytes.escape_ascii().to_string());
        end
    }

    /// Whether nothing comes, and the connection stays, for so long.
    pub fn is_quiet_for(&mut self, time: Duration) -> bool {
        self.tcp.set_read_timeout(Some(time)).expect("set");
        let outcome = self.fill();
        self.tcp.set_read_timeout(Some(PATIENCE)).expect("set");
        let kinds = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
        let quiet = outcome.as_ref().is_err_and(|error| kinds.contains(&error.kind()));
        if !quiet || !self.read.is_empty() {
            eprintln!("not quiet: {outcome:?}, {}", self.read.escape_ascii());
        }
        quiet && self.read.is_empty()
    }

    /// The next frame; `None` at the end of the connection.
    pub fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, used)) = parse(&self.read) {
                self.read.drain(..used);
                return Some(frame);
            }
            match self.fill() {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no frame: {error}"),
            }
        }
    }

    /// The next frame, which must be this one, whole.
    pub fn expect(&mut self, opcode: Opcode, payload: &[u8]) {
        let frame = self.frame().expect("a frame");
        let text = frame.payload.escape_ascii().to_string();
        assert_eq!((frame.fin, frame.opcode), (true, opcode), "{text}");
        assert!(frame.payload == payload, "{text} is not {}", payload.escape_ascii());
    }

    /// The next message, put together from its fragments.
    pub fn message(&mut self) -> (Opcode, Vec<u8>) {
        let mut frame = self.frame().expect("a message");
        let (opcode, mut payload) = (frame.opcode, std::mem::take(&mut frame.payload));
        while !frame.fin {
            frame = self.frame().expect("the rest of the message");
            assert_eq!(frame.opcode, Opcode::Continuation);
            payload.append(&mut frame.payload);
        }
        (opcode, payload)
    }

    /// The next frame, which must be a close: its code and reason.
    pub fn close_frame(&mut self) -> (Option<u16>, String) {
        let frame = self.frame().expect("a close frame");
        assert_eq!(frame.opcode, Opcode::Close, "{}", frame.payload.escape_ascii());
        let Some((code, reason)) = frame.payload.split_first_chunk::<2>() else {
            assert!(frame.payload.is_empty());
            return (None, String::new());
        };
        (Some(u16::from_be_bytes(*code)), String::from_utf8(reason.to_vec()).expect("UTF-8"))
    }

    /// The explanation, the close frame, and the end after answering it.
    pub fn expect_explained(&mut self, explanation: &str, code: u16, reason: &str) {
        self.expect(Opcode::Text, explanation.as_bytes());
        assert_eq!(self.close_frame(), (Some(code), reason.to_owned()));
        self.close(code, "");
        assert_eq!(self.end(), End::Fin);
    }

    /// Sends one masked frame.
    pub fn send(&mut self, fin: bool, opcode: Opcode, payload: &[u8]) {
        let bytes = masked(u8::from(fin) << 7 | opcode as u8, payload);
        self.write(&bytes);
    }

    pub fn text(&mut self, text: &str) {
        self.send(true, Opcode::Text, text.as_bytes());
    }

    pub fn close(&mut self, code: u16, reason: &str) {
        let payload = [&code.to_be_bytes()[..], reason.as_bytes()].concat();
        self.send(true, Opcode::Close, &payload);
    }

    /// Sends a text and expects it back.
    pub fn echo(&mut self, text: &str) {
        self.text(text);
        self.expect(Opcode::Text, text.as_bytes());
    }
}

/// A frame whose first byte is `first`, masked, its length in the shortest form.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    bytes.extend_from_slice(&mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// The frame at the start of `bytes`, once it is whole, and its length.
fn parse(bytes: &[u8]) -> Option<(Frame, usize)> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    assert_eq!(second & 0x80, 0, "a server does not mask");
    assert_eq!(first & 0x70, 0, "no extension was agreed on");
    let (length, header) = match second {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10),
        short => (u64::from(short), 2),
    };
    let end = header + length as usize;
    let payload = bytes.get(header..end)?.to_vec();
    let opcode = match first & 0x0f {
        0 => Opcode::Continuation,
        1 => Opcode::Text,
        2 => Opcode::Binary,
        8 => Opcode::Close,
        9 => Opcode::Ping,
        10 => Opcode::Pong,
        other => panic!("opcode {other}"),
    };
    Some((Frame { fin: first & 0x80 != 0, opcode, payload }, end))
}
