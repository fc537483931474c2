//! The gateway in a process of its own, and what can be seen of it from outside.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use portcullis::backend::{Backend as Library, Message, Session};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::socket_table::{self, Row, States};
use crate::support::{
    Child, Client, Config, PATIENCE, admin_get, free_port, series_value, token, wait_until,
};

/// How long a backend must get nothing out before it counts as stuck.
const STUCK: Duration = Duration::from_secs(2);

/// A gateway, its backend, and how they looked at rest.
pub struct World {
    child: Child,
    pub backend: Backend,
    pub plain: SocketAddr,
    pub tls: SocketAddr,
    netlink: bool,
    _certificate: tempfile::TempDir,
}

/// What is compared before and after.
#[derive(Clone, Copy, Debug)]
pub struct Rest {
    /// Anonymous memory of the process, bytes.
    pub anonymous: u64,
    /// Entries of /proc/PID/fd. Clients' sockets are the ring's own, and not among them.
    pub descriptors: usize,
    /// Receive buffers that the kernel may fill.
    pub buffers_free: u64,
}

impl fmt::Display for Rest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rest { anonymous, descriptors, buffers_free } = self;
        let kib = anonymous / 1024;
        write!(out, "{kib} KiB, {descriptors} descriptors, {buffers_free} buffers free")
    }
}

impl World {
    pub fn start() -> World {
        let backend = Backend::start();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let made = rcgen::generate_simple_self_signed(["gate.example".to_owned()]).expect("made");
        let (certificate, key) = (folder.path().join("a.pem"), folder.path().join("a.key"));
        fs::write(&certificate, made.cert.pem()).expect("written");
        fs::write(&key, made.signing_key.serialize_pem()).expect("written");
        let port = free_port();
        let config = Config::bare(&backend.address)
            .workers(2)
            .guarded("first", "first-message", "")
            .guarded("header", "header:x-token", "")
            .limits(
                "session_window = \"4KiB\"\nunauthenticated_max = 100_000\n\
                 tls_handshakes_per_second = 100_000",
            );
        let listeners = config.listeners.clone()
            + &format!(
                "[[listener]]\naddress = \"127.0.0.1:{port}\"\n\
                 tls = {{ certificate = {certificate:?}, key = {key:?} }}\n"
            );
        let child = Child::start(Config { listeners, ..config }, "");
        wait_until("both links are up", || {
            series_value(&child.get("/metrics").1, "portcullis_links{state=\"ready\"}") == 2
        });
        let (plain, tls) = (child.address, SocketAddr::from(([127, 0, 0, 1], port)));
        let netlink = socket_table::has_netlink();
        let world = World { child, backend, plain, tls, netlink, _certificate: folder };
        // What is made at the first use is there before anything is measured.
        world.greet();
        world
    }

    /// An honest client is served.
    pub fn greet(&self) {
        let fields = format!("X-Token: {}\r\n", token("good"));
        let mut client = Client::open(self.plain, "/header", &fields);
        client.echo("hello");
        client.close(1000, "");
        client.close_frame();
        client.end();
    }

    /// A whole ClientHello.
    pub fn client_hello(&self) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from("gate.example").expect("a name");
        let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut hello = Vec::new();
        client.write_tls(&mut hello).expect("written");
        hello
    }

    pub fn metrics(&self) -> String {
        admin_get(self.child.admin, "/metrics").1
    }

    pub fn metric(&self, series: &str) -> u64 {
        series_value(&self.metrics(), series)
    }

    /// Every socket of the gateway's listeners that the kernel has, whoever holds it.
    pub fn sockets(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for port in [self.plain.port(), self.tls.port()] {
            if !self.netlink {
                rows.extend(socket_table::read_proc(port, States::ALIVE));
                continue;
            }
            // A dump that the kernel cut short is asked for again.
            let begun = Instant::now();
            rows.extend(loop {
                match socket_table::ask_kernel(port, States::ALIVE) {
                    Ok(rows) => break rows,
                    Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
                }
            });
        }
        rows
    }

    /// How many are in which state.
    pub fn states(rows: &[Row]) -> String {
        let mut counts = BTreeMap::new();
        rows.iter().for_each(|row| *counts.entry(row.state_name()).or_insert(0) += 1);
        format!("{counts:?}")
    }

    /// How long each of the gateway's threads waited for a core that others had.
    pub fn waited(&self) -> BTreeMap<OsString, Duration> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("it runs");
        let waited = tasks.flatten().filter_map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            let waited = text.split(' ').nth(1)?.parse().ok().map(Duration::from_nanos)?;
            Some((task.file_name(), waited))
        });
        waited.collect()
    }

    /// How long the one that waited longest has waited since then.
    pub fn denied_since(&self, before: &BTreeMap<OsString, Duration>) -> Duration {
        let now = self.waited();
        let more = |(task, waited): (&OsString, &Duration)| {
            waited.saturating_sub(before.get(task).copied().unwrap_or_default())
        };
        now.iter().map(more).max().unwrap_or_default()
    }

    /// Resident bytes of the process.
    pub fn resident(&self) -> u64 {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.child.id()));
        let statm = statm.expect("it runs");
        let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
        pages.expect("a number") * 4096
    }

    /// Waits until the gateway has nothing to do, and looks at what it holds then.
    pub fn rest(&self) -> Rest {
        wait_until("no connection, no bytes that wait", || {
            let page = self.metrics();
            let stages =
                ["tls_handshake", "request_head", "authenticating", "open", "refused", "closing"];
            let gauge = |name: &str| series_value(&page, name);
            let open: u64 = stages
                .map(|s| gauge(&format!("portcullis_connections{{stage=\"{s}\"}}")))
                .iter()
                .sum();
            let waiting = ["queued_bytes", "stalled_input_bytes", "reads_paused"];
            open + waiting.map(|w| gauge(&format!("portcullis_{w}"))).iter().sum::<u64>() == 0
        });
        assert_eq!(self.metric("portcullis_worker_panics_total"), 0);
        let folder = format!("/proc/{}", self.child.id());
        // A question to the admin listener is a descriptor for a moment: the least of a few looks.
        let looks = (0..10).map(|_| {
            std::thread::sleep(Duration::from_millis(20));
            fs::read_dir(format!("{folder}/fd")).expect("it runs").count()
        });
        let descriptors = looks.min().expect("ten looks");
        let rollup = fs::read_to_string(format!("{folder}/smaps_rollup")).expect("it runs");
        let anonymous = rollup
            .lines()
            .find_map(|line| line.strip_prefix("Anonymous:")?.trim().strip_suffix(" kB"))
            .and_then(|kib| kib.parse::<u64>().ok());
        let buffers_free = self.metric("portcullis_receive_buffers_free");
        Rest { anonymous: anonymous.expect("a number") * 1024, descriptors, buffers_free }
    }
}

/// A backend that echoes; told `flood`, it sends for as long as anything goes out.
pub struct Backend {
    pub address: String,
    /// Milliseconds since the start at which a message last went out.
    sent: Arc<AtomicU64>,
}

static BEGUN: OnceLock<Instant> = OnceLock::new();

impl Backend {
    fn start() -> Backend {
        let begun = *BEGUN.get_or_init(Instant::now);
        let sent = Arc::new(AtomicU64::new(0));
        let progress = Arc::clone(&sent);
        let (bound, address) = channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async move {
                let mut library = Library::bind("127.0.0.1:0").await.expect("it listens");
                bound.send(library.address().to_owned()).expect("somebody waits");
                while let Some(session) = library.accept().await {
                    tokio::spawn(serve(session, Arc::clone(&progress), begun));
                }
            });
        });
        let address = address.recv_timeout(PATIENCE).expect("the backend is up");
        Backend { address, sent }
    }

    /// Waits until nothing goes out any more; returns when it stopped.
    pub fn wait_until_stuck(&self) -> Instant {
        let begun = *BEGUN.get().expect("started");
        loop {
            let sent = begun + Duration::from_millis(self.sent.load(Ordering::Relaxed));
            if sent.elapsed() >= STUCK {
                return sent;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

async fn serve(mut session: Session, sent: Arc<AtomicU64>, begun: Instant) {
    while let Some(message) = session.next().await {
        if message.as_text() != Some("flood") {
            let _ = session.send(message).await;
            continue;
        }
        let piece = Message::binary(vec![b'f'; 2000]);
        while session.send(piece.clone()).await.is_ok() {
            sent.store(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
        }
    }
}
