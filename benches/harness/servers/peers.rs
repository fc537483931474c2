//! The peers of a comparison: what each is, how it is started, how it is reached.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::configs::{self, Wiring};
use super::{Server, Workshop, find_program, free_address, gateway};
use crate::echo;
use crate::options::LoadArgs;
use crate::plan::{Behaviour, Plan};
use crate::target::{HelloArgs, Target};
use crate::wire;

/// Who can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The harness's echo on its own io_uring loop.
    Ring,
    /// The same session on tokio and epoll.
    TokioEpoll,
    /// The same session on tokio-uring.
    TokioUring,
    /// The gateway with a backend on its link.
    Gateway,
    /// The gateway in front of an ordinary WebSocket server.
    GatewayWebsocket,
    /// nginx in front of the echo.
    Nginx,
    /// HAProxy in front of the echo.
    Haproxy,
    /// Caddy in front of the echo.
    Caddy,
    /// lighttpd in front of the echo.
    Lighttpd,
}

impl Kind {
    /// All kinds, in the order of the tables.
    pub const ALL: [Kind; 9] = [
        Kind::Ring,
        Kind::TokioUring,
        Kind::TokioEpoll,
        Kind::Gateway,
        Kind::GatewayWebsocket,
        Kind::Nginx,
        Kind::Haproxy,
        Kind::Caddy,
        Kind::Lighttpd,
    ];

    /// Its name in options, files and tables.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ring => "bare-ring",
            Kind::TokioEpoll => "bare-tokio-epoll",
            Kind::TokioUring => "bare-tokio-uring",
            Kind::Gateway => "gateway",
            Kind::GatewayWebsocket => "gateway-websocket",
            Kind::Nginx => "nginx",
            Kind::Haproxy => "haproxy",
            Kind::Caddy => "caddy",
            Kind::Lighttpd => "lighttpd",
        }
    }

    /// The program of a peer that is not ours, and the Debian package that has it.
    fn program(self) -> Option<(&'static str, &'static str)> {
        match self {
            Kind::Nginx => Some(("nginx", "nginx-light")),
            Kind::Haproxy => Some(("haproxy", "haproxy")),
            Kind::Caddy => Some(("caddy", "caddy")),
            Kind::Lighttpd => Some(("lighttpd", "lighttpd lighttpd-mod-openssl")),
            _ => None,
        }
    }

    /// The program's file.
    ///
    /// # Errors
    /// Names the package to install.
    fn file(self) -> Result<PathBuf, String> {
        let Some((program, package)) = self.program() else {
            return std::env::current_exe().map_err(|error| error.to_string());
        };
        find_program(program).ok_or_else(|| {
            format!(
                "{program} is not on PATH; install {package} (Debian: apt-get install {package})"
            )
        })
    }

    /// Whether it is an echo server of the harness.
    pub fn is_bare(self) -> bool {
        matches!(self, Kind::Ring | Kind::TokioEpoll | Kind::TokioUring)
    }

    /// Whether it ends TLS.
    pub fn has_tls(self) -> bool {
        !self.is_bare()
    }

    /// What it says of its version, in one line.
    pub fn version(self, workshop: &Workshop) -> Option<String> {
        let (file, option) = match self {
            Kind::Gateway => (workshop.program.clone(), "--version"),
            Kind::Caddy => (self.file().ok()?, "version"),
            _ if self.program().is_some() => (self.file().ok()?, "-v"),
            _ => return None,
        };
        let output = Command::new(file).arg(option).output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        text.lines().next().map(|line| line.trim().to_owned())
    }
}

/// How a connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// Not at all.
    Plain,
    /// With a full handshake each time.
    Full,
    /// With tickets of earlier handshakes.
    Resumed,
}

/// What a server is started for.
#[derive(Clone, Copy, Debug)]
pub struct Purpose {
    /// Clients at once, at most.
    pub connections: u64,
    /// Silence before the gateway pings, seconds.
    pub ping_s: u64,
    /// Junk comes: the gateway keeps its default limit on TLS handshakes.
    pub flooded: bool,
}

/// A running server, ready for clients.
pub struct Peer {
    /// What it is.
    pub kind: Kind,
    /// The process under measurement.
    pub server: Server,
    /// Backends and what stands behind it.
    pub support: Vec<Server>,
    pub(super) plain: SocketAddr,
    pub(super) secure: Option<SocketAddr>,
    pub(super) hello: HelloArgs,
}

impl Peer {
    /// How it is reached. `path` is /echo or /count/N.
    ///
    /// # Errors
    /// When it has no TLS and that is wanted.
    pub fn target(&self, tls: Tls, path: &str) -> Result<Target, String> {
        let mut hello = self.hello.clone();
        let url = match tls {
            Tls::Plain => format!("ws://{}{path}", self.plain),
            Tls::Full | Tls::Resumed => {
                hello.insecure = true;
                hello.tls_resume = tls == Tls::Resumed;
                let address = self.secure.ok_or("has no TLS")?;
                format!("wss://{address}{path}")
            }
        };
        Target::new(&url, &hello)
    }

    /// The processes whose CPU and memory are its own.
    pub fn pids(&self) -> Vec<u32> {
        self.server.pids()
    }

    /// All processes that work for it.
    pub fn all_pids(&self) -> Vec<u32> {
        let support = self.support.iter().flat_map(Server::pids);
        self.pids().into_iter().chain(support).collect()
    }

    /// Sends a message until it comes back.
    pub(super) fn await_ready(self) -> Result<Peer, String> {
        let name = self.kind.name();
        for _ in 0..10 {
            let outcome = echo::measure(
                vec![probe(self.target(Tls::Plain, "/echo")?)],
                &[],
                Duration::ZERO,
                Duration::from_millis(100),
            )?;
            if outcome.messages > 0 {
                return Ok(self);
            }
            if crate::kernel::interrupted() {
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Err(format!("{name} started, but no message came back: {}", self.server.said()))
    }
}

/// One connection that exchanges messages.
fn probe(target: Target) -> Plan {
    let behaviour = Behaviour::Echo { size: 8, opcode: wire::BINARY, pipeline: 1, rate: None };
    LoadArgs::quiet(None).plans(&target, &behaviour, 1).remove(0)
}

/// Starts a peer and sees that it answers.
///
/// # Errors
/// What is missing and how to install it, or what the program said.
pub fn start(kind: Kind, workshop: &Workshop, purpose: &Purpose) -> Result<Peer, String> {
    let peer = match kind {
        Kind::Gateway => gateway::start(workshop, purpose, "link")?,
        Kind::GatewayWebsocket => gateway::start(workshop, purpose, "websocket")?,
        _ if kind.is_bare() => {
            let (server, plain) = bare(kind, workshop, workshop.server_core, purpose)?;
            let hello = HelloArgs::default();
            Peer { kind, server, support: Vec::new(), plain, secure: None, hello }
        }
        _ => proxy(kind, workshop, purpose)?,
    };
    peer.await_ready()
}

/// Starts an echo server of the harness.
pub(super) fn bare(
    kind: Kind,
    workshop: &Workshop,
    core: Option<usize>,
    purpose: &Purpose,
) -> Result<(Server, SocketAddr), String> {
    let engine = match kind {
        Kind::TokioEpoll => "tokio-epoll",
        Kind::TokioUring => "tokio-uring",
        _ => "ring",
    };
    let address = free_address()?;
    let mut command = Command::new(std::env::current_exe().map_err(|error| error.to_string())?);
    command.args(["echo-server", "--engine", engine, "--listen", &address.to_string()]);
    let threads = gateway::threads_for(purpose.connections);
    command.args(["--threads", &threads.to_string()]);
    let mut server =
        workshop.spawn(&format!("{}-{}", kind.name(), address.port()), command, core)?;
    server.await_listening(kind.name(), address)?;
    Ok((server, address))
}

fn proxy(kind: Kind, workshop: &Workshop, purpose: &Purpose) -> Result<Peer, String> {
    let program = kind.file()?;
    let (upstream, behind) = bare(Kind::Ring, workshop, workshop.client_core, purpose)?;
    let plain = free_address()?;
    let name = format!("{}-{}", kind.name(), plain.port());
    let wiring = Wiring {
        plain,
        secure: free_address()?,
        upstream: behind,
        folder: workshop.subfolder(&format!("{name}.d"))?,
        certificate: workshop.path("certificate.pem"),
        key: workshop.path("key.pem"),
        bundle: workshop.path("bundle.pem"),
        connections: purpose.connections,
    };
    let (text, file) = match kind {
        Kind::Nginx => (configs::nginx(&wiring), "nginx.conf"),
        Kind::Haproxy => (configs::haproxy(&wiring), "haproxy.cfg"),
        Kind::Caddy => (configs::caddy(&wiring), "Caddyfile"),
        _ => (configs::lighttpd(&wiring), "lighttpd.conf"),
    };
    let config = workshop.write(&format!("{name}.d/{file}"), text.as_bytes())?;
    let mut command = Command::new(program);
    match kind {
        Kind::Nginx => {
            // Started by root, its workers would be somebody who may not enter the folder.
            let who = if is_root() { "user root;" } else { "" };
            command.arg("-e").arg(wiring.folder.join("start.log")).args(["-g", who]);
            command.arg("-p").arg(&wiring.folder).arg("-c").arg(&config)
        }
        Kind::Haproxy => command.arg("-db").arg("-f").arg(&config),
        Kind::Caddy => {
            // One core's worth of Go threads, and no files outside the folder.
            command.env("GOMAXPROCS", "1").env("HOME", &wiring.folder);
            command.env("XDG_DATA_HOME", &wiring.folder).env("XDG_CONFIG_HOME", &wiring.folder);
            command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&config)
        }
        _ => command.arg("-D").arg("-f").arg(&config),
    };
    let mut server = workshop.spawn(&name, command, workshop.server_core)?;
    server.await_listening(kind.name(), plain)?;
    let (secure, hello) = (Some(wiring.secure), HelloArgs::default());
    Ok(Peer { kind, server, support: vec![upstream], plain, secure, hello })
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    line.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0")
}
