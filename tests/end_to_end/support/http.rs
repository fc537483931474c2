//! An HTTP server that decides on clients, and answers whatever a test wants, byte by byte.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// What the server does with a request.
pub enum Reply {
    /// Writes these bytes and keeps the connection.
    Bytes(Vec<u8>),
    /// Writes these bytes and closes.
    Last(Vec<u8>),
    /// Answers later.
    After(Duration, Vec<u8>),
    /// Says nothing more.
    Silence,
}

impl Reply {
    /// A whole response without a body.
    pub fn status(status: u16, fields: &str) -> Reply {
        Reply::Bytes(response(status, fields))
    }

    /// 200 with this subject.
    pub fn subject(subject: &str) -> Reply {
        Reply::status(200, &format!("X-Auth-Subject: {subject}\r\n"))
    }
}

/// The bytes of a response without a body; each field with its line end.
pub fn response(status: u16, fields: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} Whatever\r\nContent-Length: 0\r\n{fields}\r\n").into_bytes()
}

/// A port of the kernel's choice.
const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

type Decide = Arc<dyn Fn(&str) -> Reply + Send + Sync>;

/// A running server. Dropped, it takes no more connections and its old ones close.
pub struct Endpoint {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
    is_tls: bool,
}

impl Endpoint {
    pub fn start(decide: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Endpoint {
        Endpoint::start_at(ANY, decide)
    }

    pub fn start_at(
        address: SocketAddr,
        decide: impl Fn(&str) -> Reply + Send + Sync + 'static,
    ) -> Endpoint {
        Endpoint::start_with(address, None, decide)
    }

    /// Behind TLS.
    pub fn start_tls(
        tls: ServerConfig,
        decide: impl Fn(&str) -> Reply + Send + Sync + 'static,
    ) -> Endpoint {
        Endpoint::start_with(ANY, Some(Arc::new(tls)), decide)
    }

    fn start_with(
        address: SocketAddr,
        tls: Option<Arc<ServerConfig>>,
        decide: impl Fn(&str) -> Reply + Send + Sync + 'static,
    ) -> Endpoint {
        let listener = TcpListener::bind(address).expect("bound");
        let address = listener.local_addr().expect("bound");
        let endpoint = Endpoint {
            address,
            seen: Arc::default(),
            connections: Arc::default(),
            stopped: Arc::default(),
            is_tls: tls.is_some(),
        };
        let decide: Decide = Arc::new(decide);
        let (seen, stopped) = (endpoint.seen.clone(), endpoint.stopped.clone());
        let connections = endpoint.connections.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { return };
                connections.fetch_add(1, Ordering::SeqCst);
                let (seen, stopped) = (seen.clone(), stopped.clone());
                let decide = decide.clone();
                let tls = tls.clone();
                std::thread::spawn(move || {
                    stream.set_read_timeout(Some(Duration::from_millis(50))).expect("set");
                    match tls {
                        None => serve(stream, &decide, &seen, &stopped),
                        Some(tls) => {
                            let tls = ServerConnection::new(tls).expect("a server");
                            serve(StreamOwned::new(tls, stream), &decide, &seen, &stopped);
                        }
                    }
                });
            }
        });
        endpoint
    }

    /// As settings name it.
    pub fn url(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}/verify?by=gate", self.address)
    }

    /// The heads of all requests so far.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("not poisoned").clone()
    }

    /// How many connections were made to it.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Ends the wait for a connection, so that the listener closes.
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(
    mut stream: impl Read + Write,
    decide: &Decide,
    seen: &Mutex<Vec<String>>,
    stopped: &AtomicBool,
) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while !stopped.load(Ordering::SeqCst) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            // TLS that did not come about, among others.
            Err(_) => return,
        }
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head: Vec<u8> = bytes.drain(..end + 4).collect();
        let head = String::from_utf8_lossy(&head).into_owned();
        seen.lock().expect("not poisoned").push(head.clone());
        match decide(&head) {
            Reply::Bytes(answer) => drop(stream.write_all(&answer)),
            Reply::Last(answer) => {
                drop(stream.write_all(&answer));
                return;
            }
            Reply::After(wait, answer) => {
                std::thread::sleep(wait);
                drop(stream.write_all(&answer));
            }
            Reply::Silence => {}
        }
    }
}
