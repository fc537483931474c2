//! A gateway in this process: started, addressed, drained, joined.

use std::cell::RefCell;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::admin::{Admin, Page, listen};
use super::close_log::CloseLog;
use super::control::{Control, ControlRequest, ControlStats, unix_ms};
use super::data_plane::LinuxDataPlane;
use super::error::RunError;
use super::exposition::Exposition;
use super::logs::LogControl;
use super::memory::MemoryWatch;
use super::reload::ReloadError;
use super::revocations::RevocationStore;
use super::signals::Signals;
use super::status::{Phase, Status};
use super::workers::{DataPlane, Supervisor};
use crate::base::time::UnixTime;
use crate::linux::process::random_seed;
use crate::protocol::revocation::Hasher;
use crate::settings::Settings;

/// How long workers may take to come up.
const START_MAX: Duration = Duration::from_secs(10);
/// Orders that may wait for the control thread.
const REQUESTS_MAX: usize = 64;

/// Makes the page once the listeners' addresses are known (in the request of the settings).
pub type PageMaker = Box<dyn FnOnce(&[SocketAddr]) -> Page + Send>;

/// How a gateway is started, beside its settings.
#[derive(Default)]
pub struct StartOptions {
    /// The configuration file, for reloads; without it a reload is refused.
    pub config_path: Option<PathBuf>,
    /// What the admin listener serves at `/`; the list of endpoints by default.
    pub page: Option<PageMaker>,
    /// Obey SIGHUP, SIGTERM and SIGINT.
    pub signals: bool,
    /// The way to change the log level.
    pub logs: Option<LogControl>,
}

/// What runs the workers, and where it listens.
pub struct Plane {
    /// Makes workers.
    pub workers: Arc<dyn DataPlane>,
    /// How many.
    pub count: u16,
    /// The listeners' addresses, in the request of the settings.
    pub listeners: Vec<SocketAddr>,
}

/// A running gateway. Dropping it stops it immediately.
pub struct GatewayHandle {
    listeners: Vec<SocketAddr>,
    admin: Option<SocketAddr>,
    requests: mpsc::Sender<ControlRequest>,
    thread: Option<JoinHandle<()>>,
}

/// Starts a gateway: io_uring is probed, every address bound, every worker up, when this
/// returns.
///
/// # Errors
/// [`RunError`] with what failed, the likely cause and what to do.
pub fn start(settings: Settings, options: StartOptions) -> Result<GatewayHandle, RunError> {
    let settings = Arc::new(settings);
    let plane = LinuxDataPlane::bind(&settings)?;
    let (count, listeners) = (plane.workers(), plane.addresses().to_vec());
    start_on(Plane { workers: Arc::new(plane), count, listeners }, settings, options)
}

/// Starts a gateway on any data plane.
///
/// # Errors
/// As [`start`].
pub fn start_on(
    plane: Plane,
    settings: Arc<Settings>,
    options: StartOptions,
) -> Result<GatewayHandle, RunError> {
    let (admin, admin_address) = AdminListeners::bind(&settings)?;
    let listeners = plane.listeners.clone();
    let (requests, requests_out) = mpsc::channel(REQUESTS_MAX);
    let (started, outcome) = sync_channel(1);
    let thread = ControlThread {
        plane,
        settings,
        options,
        admin,
        requests_in: requests.clone(),
        requests: requests_out,
    };
    let thread = std::thread::Builder::new()
        .name("control".into())
        .spawn(move || thread.run(&started))
        .map_err(|source| RunError::Thread { name: "control".into(), source })?;
    match outcome.recv() {
        Ok(Ok(())) => {
            Ok(GatewayHandle { listeners, admin: admin_address, requests, thread: Some(thread) })
        }
        Ok(Err(error)) => {
            let _ = thread.join();
            Err(error)
        }
        Err(_) => Err(RunError::ControlDied),
    }
}

impl GatewayHandle {
    /// Where clients connect, in the request of the settings' listeners.
    pub fn listeners(&self) -> &[SocketAddr] {
        &self.listeners
    }

    /// Where the admin endpoints are, if the settings have them.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Closes every client within `window` with "going away", then ends. [`join`](Self::join)
    /// waits for it.
    pub fn shutdown(&self, window: Duration) {
        self.request(ControlRequest::Drain { window: Some(window) });
    }

    /// Ends immediately.
    pub fn stop(&self) {
        self.request(ControlRequest::Stop);
    }

    /// Reads the configuration file again and waits for the outcome. Not for use within an
    /// asynchronous runtime: it blocks.
    ///
    /// # Errors
    /// Every problem, for people; the old settings stay.
    pub fn reload(&self) -> Result<Vec<String>, Vec<String>> {
        let (reply, outcome) = sync_channel(1);
        let reply = Box::new(move |result| drop(reply.send(result)));
        self.request(ControlRequest::Reload { reply });
        let ended = ReloadError::Conflict(vec!["the gateway has ended".into()]);
        outcome.recv().unwrap_or(Err(ended)).map_err(ReloadError::into_problems)
    }

    /// Makes a worker panic, to see that only its connections are lost.
    #[doc(hidden)]
    pub fn inject_panic(&self, worker: u16) {
        self.request(ControlRequest::Panic(worker));
    }

    /// Waits until the gateway has ended, after [`shutdown`](Self::shutdown), [`stop`](Self::stop)
    /// or a signal.
    ///
    /// # Errors
    /// [`RunError::ControlDied`] when the control thread panicked.
    pub fn join(mut self) -> Result<(), RunError> {
        let thread = self.thread.take().expect("joined once");
        thread.join().map_err(|_| RunError::ControlDied)
    }

    /// Waits for room rather than losing an request; an ended gateway needs none.
    fn request(&self, mut request: ControlRequest) {
        while let Err(mpsc::error::TrySendError::Full(back)) = self.requests.try_send(request) {
            request = back;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for GatewayHandle {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.request(ControlRequest::Stop);
            let _ = thread.join();
        }
    }
}

/// The admin side's listeners.
struct AdminListeners {
    tcp: Option<TcpListener>,
    unix: Option<UnixListener>,
    /// Removed at the end.
    unix_path: Option<PathBuf>,
}

impl AdminListeners {
    fn bind(settings: &Settings) -> Result<(AdminListeners, Option<SocketAddr>), RunError> {
        let gateway = &settings.gateway;
        let tcp = |address| {
            let bound = listen::bind_tcp(address)
                .and_then(|listener| listener.local_addr().map(|address| (listener, address)));
            bound.map_err(|source| RunError::Bind { what: "gateway.admin".into(), address, source })
        };
        let unix = |path: &PathBuf| {
            listen::bind_unix(path)
                .map_err(|source| RunError::AdminSocket { path: path.clone(), source })
        };
        let (tcp, address) = gateway.admin.map(tcp).transpose()?.unzip();
        let unix = gateway.admin_socket.as_ref().map(unix).transpose()?;
        let unix_path = unix.as_ref().and(gateway.admin_socket.clone());
        Ok((AdminListeners { tcp, unix, unix_path }, address))
    }

    /// Serves both. Within the control thread's runtime only.
    fn serve(&mut self, admin: &Rc<Admin>) {
        let failed = |error| tracing::error!(%error, "an admin listener cannot be served");
        if let Some(listener) = self.tcp.take() {
            let served = Rc::clone(admin).serve_tcp(listener);
            tokio_uring::spawn(async move { served.await.unwrap_or_else(failed) });
        }
        if let Some(listener) = self.unix.take() {
            let served = Rc::clone(admin).serve_unix(listener);
            tokio_uring::spawn(async move { served.await.unwrap_or_else(failed) });
        }
    }
}

impl Drop for AdminListeners {
    fn drop(&mut self) {
        if let Some(path) = &self.unix_path {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// All that the control thread starts with.
struct ControlThread {
    plane: Plane,
    settings: Arc<Settings>,
    options: StartOptions,
    admin: AdminListeners,
    requests_in: mpsc::Sender<ControlRequest>,
    requests: mpsc::Receiver<ControlRequest>,
}

impl ControlThread {
    /// The control thread's whole life. Says once through `started` whether the gateway serves.
    fn run(self, started: &SyncSender<Result<(), RunError>>) {
        if let Err(error) = self.serve(started) {
            let _ = started.send(Err(error));
        }
    }

    fn serve(mut self, started: &SyncSender<Result<(), RunError>>) -> Result<(), RunError> {
        let runtime = tokio_uring::Runtime::new(&tokio_uring::builder())
            .map_err(|source| RunError::Runtime { source })?;
        let revocations = self.open_revocations()?;
        let (close_log, signals) = runtime.block_on(self.prepare())?;
        let workers = Arc::clone(&self.plane.workers);
        let (settings, revoked) = (Arc::clone(&self.settings), revocations.snapshot());
        let supervisor = Supervisor::new(workers, settings, revoked, self.plane.count);
        let supervisor = start_workers(supervisor)?;
        let now = Instant::now();
        let mut status = Status::new(now);
        status.listeners = self.plane.listeners.len();
        status.workers = supervisor.status(now);
        status.phase = Phase::Serving;
        status.ready_without_backend = self.settings.gateway.ready_without_backend;
        let config_path = self.options.config_path;
        let control = Control {
            supervisor,
            stats: ControlStats::new(self.settings.hash, now),
            config_path,
            status: Rc::new(RefCell::new(status)),
            exposition: Rc::new(RefCell::new(Exposition::default())),
            logs: self.options.logs,
            close_log,
            revocations: Rc::new(RefCell::new(revocations)),
            memory: MemoryWatch::new(&self.settings.limits),
            settings: self.settings,
        };
        let page = self.options.page.map(|make| make(&self.plane.listeners));
        runtime.block_on(async {
            let (status, exposition) = (control.status.clone(), control.exposition.clone());
            let token = control.settings.gateway.admin_token.clone();
            let page = page.unwrap_or_else(Page::index);
            let revocations = control.revocations.clone();
            self.admin.serve(&Admin::new(
                token,
                page,
                status,
                exposition,
                revocations,
                self.requests_in,
            ));
            let listeners = &self.plane.listeners;
            tracing::info!(?listeners, workers = self.plane.count, "serving");
            let _ = started.send(Ok(()));
            control.run(self.requests, signals).await;
        });
        Ok(())
    }

    /// The revocations of the last run.
    fn open_revocations(&self) -> Result<RevocationStore, RunError> {
        let key = random_seed().map_err(|source| RunError::Random { source })?;
        let file = self.settings.gateway.revocations_file.clone();
        let max = self.settings.limits.revocations_max as usize;
        let now = UnixTime::from_millis(unix_ms());
        RevocationStore::open(file.clone(), Hasher::new(&key), max, now)
            .map_err(|source| RunError::Revocations { path: file.unwrap_or_default(), source })
    }

    /// Whatever can fail and needs the runtime.
    async fn prepare(&self) -> Result<(Option<CloseLog>, Option<Signals>), RunError> {
        let close_log = match self.settings.gateway.close_log.clone() {
            Some(path) => {
                let opened = CloseLog::open(path.clone()).await;
                Some(opened.map_err(|source| RunError::CloseLog { path, source })?)
            }
            None => None,
        };
        let signals = self.options.signals.then(Signals::watch).transpose();
        Ok((close_log, signals.map_err(|source| RunError::Signals { source })?))
    }
}

/// Starts all workers, or none.
fn start_workers(mut supervisor: Supervisor) -> Result<Supervisor, RunError> {
    let Err((index, reason)) = supervisor.start(START_MAX) else { return Ok(supervisor) };
    supervisor.stop();
    let begun = Instant::now();
    while !supervisor.all_stopped() && begun.elapsed() < Duration::from_secs(2) {
        supervisor.poll(Instant::now(), |_, _| ());
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(RunError::Worker { index, reason })
}
