//! `portcullis connect`: a small WebSocket client for a terminal. Lines of standard input become
//! text messages, messages become lines, and a close is put into words.

use std::fmt;
use std::io::{self, BufRead, Read, Write};
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use tungstenite::client::{IntoClientRequest, client};
use tungstenite::handshake::client::Request;
use tungstenite::http::{HeaderName, HeaderValue};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Error as WsError, HandshakeError, Message, WebSocket};

use crate::base::secret::Secret;

/// How long connecting and the handshake may take.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// How long a read waits before the keyboard is looked at again.
const TURN: Duration = Duration::from_millis(20);
/// After the end of the input: how long nothing must come before the client says goodbye.
const QUIET: Duration = Duration::from_secs(1);
/// Lines that may wait to be sent.
const LINES_MAX: usize = 64;

/// Where to connect, and as whom.
pub struct ConnectOptions {
    /// `ws://HOST[:PORT]/PATH` or `wss://…`.
    pub url: String,
    /// Sent as `Authorization: Bearer …`.
    pub token: Option<Secret>,
    /// Sent as `Origin`, to see the answer to a browser's page.
    pub origin: Option<String>,
    /// Further fields of the request, as `NAME: VALUE`.
    pub headers: Vec<String>,
    /// Cookies, as `NAME=VALUE`.
    pub cookies: Vec<String>,
    /// Subprotocols to offer, in order of preference.
    pub subprotocols: Vec<String>,
    /// Take any certificate. Loopback addresses may show any in any case: a program that could
    /// stand in between could read this process.
    pub insecure: bool,
}

/// Why the client could not connect, or was closed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address cannot be used.
    #[error("{reason}; write ws://HOST:PORT/PATH, or wss:// for TLS")]
    Url {
        /// What is wrong with it.
        reason: String,
    },
    /// A part of the request cannot stand in a header field.
    #[error("the {what} cannot be sent; header fields are NAME: VALUE, in visible ASCII")]
    Field {
        /// Which of them.
        what: &'static str,
    },
    /// No program answers there.
    #[error("cannot connect to {address}: {source}\n  is the gateway running?")]
    Unreachable {
        /// Host and port.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// TLS failed, most often over the certificate.
    #[error("TLS to {host} failed: {reason}\n  --insecure takes any certificate, for tests")]
    Tls {
        /// The name that the certificate should have.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// The upgrade was answered over HTTP.
    #[error("refused with HTTP {status}: {body}")]
    Refused {
        /// The status.
        status: u16,
        /// The start of the body.
        body: String,
    },
    /// The connection was closed with an error.
    #[error("{0}")]
    Closed(CloseNote),
    /// The connection ended without a close frame, or against the protocol.
    #[error("the connection was lost: {reason}")]
    Lost {
        /// How.
        reason: String,
    },
}

/// How a connection was closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseNote {
    /// The close code.
    pub code: u16,
    /// The close reason.
    pub reason: String,
    /// What the gateway's explanation said of reconnecting, if it sent one: yes after so many
    /// milliseconds, or not at all.
    pub reconnect: Option<Option<u64>>,
}

impl fmt::Display for CloseNote {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "closed by the gateway: {} {}", self.code, self.reason)?;
        match self.reconnect {
            Some(None) => {
                write!(out, "\n  do not reconnect: the same request would be refused again")
            }
            Some(Some(wait)) => write!(out, "\n  reconnect after {wait} ms or more"),
            None => Ok(()),
        }
    }
}

/// Talks to a gateway over standard input and output until either ends. Returns how the gateway
/// closed, if it did so first.
///
/// # Errors
/// [`ConnectError`]; a close with 1000 or 1001 is none.
pub fn run(options: &ConnectOptions) -> Result<Option<CloseNote>, ConnectError> {
    let (sender, lines) = sync_channel(LINES_MAX);
    // Not joined: it may block in a read without end, and ends with the process.
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    converse(options, &lines, &mut io::stdout())
}

/// [`run`] with any lines and any output.
///
/// # Errors
/// As [`run`].
pub fn converse(
    options: &ConnectOptions,
    lines: &Receiver<String>,
    out: &mut dyn Write,
) -> Result<Option<CloseNote>, ConnectError> {
    let mut socket = open(options)?;
    let patience = socket.get_ref().tcp().set_read_timeout(Some(TURN));
    patience.map_err(|error| lost(&error))?;
    let mut explained = None;
    let mut closed: Option<CloseNote> = None;
    let (mut ended, mut last_heard) = (false, Instant::now());
    loop {
        match lines.try_recv() {
            Ok(line) => send(&mut socket, Message::text(line))?,
            Err(TryRecvError::Disconnected) if !ended => {
                (ended, last_heard) = (true, Instant::now());
            }
            Err(_) if ended && closed.is_none() && last_heard.elapsed() > QUIET => {
                let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
                let _ = socket.close(Some(frame));
                return Ok(None);
            }
            Err(_) => {}
        }
        match socket.read() {
            Ok(Message::Text(text)) => {
                last_heard = Instant::now();
                explained = explanation(&text).or(explained);
                let _ = writeln!(out, "{text}");
            }
            Ok(Message::Binary(bytes)) => {
                let _ = writeln!(out, "({} bytes)", bytes.len());
            }
            Ok(Message::Close(frame)) => {
                closed = Some(note(frame.as_ref(), explained));
            }
            Ok(_) => {}
            Err(WsError::Io(error)) if is_timeout(&error) => {}
            Err(error) => return verdict(closed, &error),
        }
    }
}

fn verdict(closed: Option<CloseNote>, error: &WsError) -> Result<Option<CloseNote>, ConnectError> {
    match closed {
        Some(note) if matches!(note.code, 1000 | 1001) => Ok(Some(note)),
        Some(note) => Err(ConnectError::Closed(note)),
        None => Err(lost(error)),
    }
}

fn lost(error: &dyn fmt::Display) -> ConnectError {
    ConnectError::Lost { reason: error.to_string() }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// A message that cannot be sent because the gateway has closed is not the error to report: the
/// close is, and the next read brings it.
fn send(socket: &mut WebSocket<Stream>, message: Message) -> Result<(), ConnectError> {
    match socket.send(message) {
        Ok(()) => Ok(()),
        Err(WsError::Io(_) | WsError::ConnectionClosed | WsError::AlreadyClosed) => Ok(()),
        Err(WsError::Protocol(_)) => Ok(()),
        Err(error) => Err(lost(&error)),
    }
}

fn note(frame: Option<&CloseFrame>, reconnect: Option<Option<u64>>) -> CloseNote {
    // RFC 6455 §7.1.5: 1005 stands for a close frame without a code.
    let code = frame.map_or(1005, |frame| frame.code.into());
    let reason = frame.map(|frame| frame.reason.to_string()).unwrap_or_default();
    CloseNote { code, reason, reconnect }
}

/// What the gateway's explanation says of reconnecting.
fn explanation(text: &str) -> Option<Option<u64>> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    if value["type"] != "close" {
        return None;
    }
    let wait = value["retry_after_ms"].as_u64().unwrap_or(0);
    value["reconnect"].as_bool().map(|reconnect| reconnect.then_some(wait))
}

fn open(options: &ConnectOptions) -> Result<WebSocket<Stream>, ConnectError> {
    let request = request(options)?;
    let uri = request.uri();
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let is_tls = uri.scheme_str() == Some("wss");
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let tcp = dial(&host, port)?;
    let stream = if is_tls { tls::wrap(&host, tcp, options.insecure)? } else { Stream::Plain(tcp) };
    match client(request, stream) {
        Ok((socket, _)) => Ok(socket),
        Err(HandshakeError::Failure(WsError::Http(response))) => {
            let body = response.body().as_deref().unwrap_or_default();
            let body = String::from_utf8_lossy(&body[..body.len().min(400)]).trim().to_owned();
            Err(ConnectError::Refused { status: response.status().as_u16(), body })
        }
        Err(error) => Err(lost(&error)),
    }
}

fn request(options: &ConnectOptions) -> Result<Request, ConnectError> {
    let wrong = |reason: String| ConnectError::Url { reason };
    let mut request =
        options.url.as_str().into_client_request().map_err(|error| wrong(error.to_string()))?;
    if !matches!(request.uri().scheme_str(), Some("ws" | "wss")) {
        return Err(wrong(format!("{:?} is no WebSocket address", options.url)));
    }
    if let Some(token) = &options.token {
        let field = [b"Bearer ", token.expose()].concat();
        let field = HeaderValue::from_bytes(&field);
        let field = field.map_err(|_| ConnectError::Field { what: "token" })?;
        request.headers_mut().insert("Authorization", field);
    }
    if let Some(origin) = &options.origin {
        let field = HeaderValue::from_str(origin);
        let field = field.map_err(|_| ConnectError::Field { what: "origin" })?;
        request.headers_mut().insert("Origin", field);
    }
    for (name, values) in [
        ("Cookie", options.cookies.join("; ")),
        ("Sec-WebSocket-Protocol", options.subprotocols.join(", ")),
    ] {
        if !values.is_empty() {
            let field = HeaderValue::from_str(&values);
            let what = if name == "Cookie" { "cookie" } else { "subprotocol" };
            let field = field.map_err(|_| ConnectError::Field { what })?;
            request.headers_mut().insert(name, field);
        }
    }
    let of_handshake = request.headers().clone();
    for field in &options.headers {
        let (name, value) = header(field).ok_or(ConnectError::Field { what: "header" })?;
        // What the handshake has already is replaced; the rest may be repeated.
        match of_handshake.contains_key(&name) {
            true => drop(request.headers_mut().insert(name, value)),
            false => drop(request.headers_mut().append(name, value)),
        }
    }
    Ok(request)
}

fn header(field: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = field.split_once(':')?;
    Some((HeaderName::from_str(name).ok()?, HeaderValue::from_str(value.trim()).ok()?))
}

fn dial(host: &str, port: u16) -> Result<TcpStream, ConnectError> {
    let dial = || {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in (host, port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, HANDSHAKE_MAX) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(HANDSHAKE_MAX))?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    let address = format!("{host}:{port}");
    dial().map_err(|source| ConnectError::Unreachable { address, source })
}

/// Whether `host` is this machine.
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A connection, plain or not.
enum Stream {
    Plain(TcpStream),
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, TcpStream>>),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => &tls.sock,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(tcp) => tcp.read(buffer),
            Stream::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(tcp) => tcp.write(bytes),
            Stream::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(tcp) => tcp.flush(),
            Stream::Tls(tls) => tls.flush(),
        }
    }
}

/// TLS with the system's root certificates, or with none on this machine and with `--insecure`.
mod tls {
    use hyper_rustls::ConfigBuilderExt;
    use rustls::crypto::ring;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection};

    use super::*;
    use crate::dev::any_certificate::AnyCertificate;

    pub(super) fn wrap(
        host: &str,
        mut tcp: TcpStream,
        insecure: bool,
    ) -> Result<Stream, ConnectError> {
        let failed = |reason: String| ConnectError::Tls { host: host.to_owned(), reason };
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(error.to_string()))?;
        let config = if insecure || is_loopback(host) {
            config
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
                .with_no_client_auth()
        } else {
            let roots = config.with_native_roots();
            roots.map_err(|error| failed(error.to_string()))?.with_no_client_auth()
        };
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|error| failed(error.to_string()))?;
        let connection = ClientConnection::new(Arc::new(config), name);
        let mut connection = connection.map_err(|error| failed(error.to_string()))?;
        while connection.is_handshaking() {
            connection.complete_io(&mut tcp).map_err(|error| failed(error.to_string()))?;
        }
        Ok(Stream::Tls(Box::new(rustls::StreamOwned::new(connection, tcp))))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::mpsc::channel;
    use std::thread::JoinHandle;

    use super::*;

    fn options(url: String) -> ConnectOptions {
        ConnectOptions {
            url,
            token: Some(Secret::new(b"abc".to_vec())),
            origin: None,
            headers: Vec::new(),
            cookies: Vec::new(),
            subprotocols: Vec::new(),
            insecure: false,
        }
    }

    /// A server that answers every text with `said X`, and `bye` with an explained close.
    fn server() -> (String, JoinHandle<Option<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("ws://{}/chat", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let mut authorization = None;
            #[expect(clippy::result_large_err, reason = "the type is tungstenite's")]
            let look = |request: &Request, response| {
                let field = request.headers().get("authorization");
                authorization = field.map(|field| field.to_str().unwrap().to_owned());
                Ok(response)
            };
            let mut socket = tungstenite::accept_hdr(listener.accept().unwrap().0, look).unwrap();
            while let Ok(message) = socket.read() {
                match message {
                    Message::Text(text) if text == "bye" => {
                        let why = r#"{"type":"close","code":4401,"reason":"r","reconnect":false}"#;
                        socket.send(Message::text(why)).unwrap();
                        let frame = CloseFrame { code: 4401.into(), reason: "r".into() };
                        socket.close(Some(frame)).unwrap();
                    }
                    Message::Text(text) => {
                        socket.send(Message::text(format!("said {text}"))).unwrap();
                    }
                    _ => {}
                }
            }
            authorization
        });
        (url, thread)
    }

    #[test]
    fn lines_go_out_and_messages_come_back_until_the_input_ends() {
        let (url, server) = server();
        let (sender, lines) = channel();
        for line in ["one", "two"] {
            sender.send(line.to_owned()).unwrap();
        }
        drop(sender);
        let mut out = Vec::new();
        assert_eq!(converse(&options(url), &lines, &mut out).unwrap(), None);
        assert_eq!(String::from_utf8(out).unwrap(), "said one\nsaid two\n");
        assert_eq!(server.join().unwrap().as_deref(), Some("Bearer abc"));
    }

    #[test]
    fn an_explained_close_is_an_error_with_its_meaning() {
        let (url, server) = server();
        let (sender, lines) = channel();
        sender.send("bye".to_owned()).unwrap();
        let error = converse(&options(url), &lines, &mut Vec::new()).expect_err("closed");
        let expected = "closed by the gateway: 4401 r\n  do not reconnect: the same request would \
                        be refused again";
        assert_eq!(error.to_string(), expected);
        server.join().unwrap();
    }

    #[test]
    fn fields_of_the_request_are_what_was_asked_for() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let asked = ConnectOptions {
            headers: texts(&["X-Room: 7", "X-Room:8", "Host: other.example"]),
            cookies: texts(&["a=1", "b=2"]),
            subprotocols: texts(&["v2", "v1"]),
            ..options("ws://127.0.0.1:1/chat".into())
        };
        let request = request(&asked).unwrap();
        let all = |name: &str| -> Vec<String> {
            let values = request.headers().get_all(name).iter();
            values.map(|value| value.to_str().unwrap().to_owned()).collect()
        };
        for (name, expected) in [
            ("x-room", &["7", "8"][..]),
            ("host", &["other.example"]),
            ("cookie", &["a=1; b=2"]),
            ("sec-websocket-protocol", &["v2, v1"]),
            ("authorization", &["Bearer abc"]),
        ] {
            assert_eq!(all(name), expected, "{name}");
        }
        for field in ["no colon", "a b: c", ": c", "a: b\r\nc: d"] {
            let asked = ConnectOptions { headers: texts(&[field]), ..options(asked.url.clone()) };
            let error = super::request(&asked).expect_err(field).to_string();
            assert!(error.contains("the header cannot be sent"), "{error}");
        }
    }

    #[test]
    fn a_drain_is_no_error_but_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("ws://{}/", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let mut socket = tungstenite::accept(listener.accept().unwrap().0).unwrap();
            let frame = CloseFrame { code: CloseCode::Away, reason: "drain".into() };
            socket.close(Some(frame)).unwrap();
            while socket.read().is_ok() {}
        });
        let (_sender, lines) = channel();
        let note = converse(&options(url), &lines, &mut Vec::new()).unwrap().expect("a close");
        assert_eq!((note.code, note.reason.as_str()), (1001, "drain"));
        server.join().unwrap();
    }

    /// A name that is not loopback for [`is_loopback`], so that the certificate is verified.
    #[test]
    fn remote_certificates_are_verified_unless_told_otherwise() {
        let tcp = || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let config = crate::sim::tls::server();
            std::thread::spawn(move || {
                let (mut tcp, _) = listener.accept().unwrap();
                let mut server = rustls::ServerConnection::new(config).unwrap();
                while server.is_handshaking() && server.complete_io(&mut tcp).is_ok() {}
            });
            stream
        };
        let refused = tls::wrap("gateway.example", tcp(), false).err().expect("refused");
        assert!(refused.to_string().contains("TLS to gateway.example failed"), "{refused}");
        assert!(refused.to_string().contains("--insecure"), "{refused}");
        assert!(tls::wrap("gateway.example", tcp(), true).is_ok());
    }

    #[test]
    fn an_http_answer_is_shown() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("ws://{}/", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 1024];
            assert!(stream.read(&mut head).unwrap() > 0);
            let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\nno route";
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let (_sender, lines) = channel();
        let error = converse(&options(url), &lines, &mut Vec::new()).expect_err("refused");
        assert!(matches!(error, ConnectError::Refused { status: 404, .. }), "{error}");
        server.join().unwrap();
    }

    #[test]
    fn addresses_that_cannot_be_used() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let table = [
            ("http://127.0.0.1/".to_owned(), "write ws://"),
            ("nonsense".to_owned(), "write ws://"),
            (format!("ws://{closed}/"), "is the gateway running?"),
        ];
        let (_sender, lines) = channel();
        for (url, expected) in table {
            let error = converse(&options(url.clone()), &lines, &mut Vec::new());
            let error = error.expect_err(&url).to_string();
            assert!(error.contains(expected), "{url}: {error}");
        }
        for (host, loopback) in [("localhost", true), ("127.9.9.9", true), ("::1", true)] {
            assert_eq!(is_loopback(host), loopback, "{host}");
        }
        for host in ["example.com", "10.0.0.1", "localhost.example.com", ""] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
