//! A gateway in this process: started, addressed, drained, joined.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::admin::{Admin, Page};
use super::admin_sockets::AdminListeners;
use super::close_log::CloseLog;
use super::control::{Control, ControlRequest, ControlStats, unix_ms};
use super::data_plane::{Beside, LinuxDataPlane};
use super::error::RunError;
use super::exposition::Exposition;
use super::journal;
use super::logs::LogControl;
use super::memory::MemoryWatch;
use super::names::{FIRST_ANSWER_MAX, Names, SystemResolver};
use super::reload::ReloadError;
use super::revocations::RevocationStore;
use super::signals::Signals;
use super::status::{Phase, Status};
use super::takeover::{self, Predecessor};
use super::workers::{DataPlane, Supervisor};
use crate::base::time::UnixTime;
use crate::counters::Metric;
use crate::linux::process::random_seed;
use crate::protocol::revocation::{Hasher, Revoked};
use crate::settings::Settings;

/// How long workers may take to come up.
const START_MAX: Duration = Duration::from_secs(10);
/// How long a gateway that takes over may wait until each worker has a link to a backend.
const LINKED_MAX: Duration = Duration::from_secs(5);
/// How long the other one's admin port may take to become free.
const ADMIN_FREE_MAX: Duration = Duration::from_secs(5);
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
    /// Act on SIGHUP, SIGTERM and SIGINT.
    pub signals: bool,
    /// The way to change the log level.
    pub logs: Option<LogControl>,
    /// A gateway that runs already with the same admin socket drains once this one serves.
    pub takeover: bool,
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
    let predecessor = options.takeover.then(|| Predecessor::find(&settings)).transpose()?.flatten();
    let beside = predecessor.as_ref().map_or(Beside::Nobody, |_| Beside::Predecessor);
    let plane = LinuxDataPlane::bind(&settings, beside)?;
    let (count, listeners) = (plane.workers(), plane.addresses().to_vec());
    let plane = Plane { workers: Arc::new(plane), count, listeners };
    start_beside(predecessor, plane, settings, options)
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
    start_beside(None, plane, settings, options)
}

fn start_beside(
    predecessor: Option<Predecessor>,
    plane: Plane,
    settings: Arc<Settings>,
    options: StartOptions,
) -> Result<GatewayHandle, RunError> {
    let (admin, admin_address) = match predecessor {
        None => AdminListeners::bind(&settings)?,
        // They are still its own.
        Some(_) => (AdminListeners::default(), settings.gateway.admin),
    };
    let listeners = plane.listeners.clone();
    let (requests, requests_out) = mpsc::channel(REQUESTS_MAX);
    let (started, outcome) = sync_channel(1);
    let thread = ControlThread {
        predecessor,
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

/// All that the control thread starts with.
struct ControlThread {
    predecessor: Option<Predecessor>,
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
        let (close_log, signals) = runtime.block_on(self.prepare())?;
        let mut names = Names::new(Arc::new(SystemResolver));
        names.follow(&self.settings, FIRST_ANSWER_MAX);
        let (supervisor, revocations, drains_at) = self.start_work(&names)?;
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
            names,
            memory: MemoryWatch::new(&self.settings.limits),
            admin: self.admin,
            settings: self.settings,
        };
        let page = self.options.page.map(|make| make(&self.plane.listeners));
        runtime.block_on(async move {
            let mut control = control;
            if let Some(socket) = drains_at {
                control.revocations.borrow_mut().forward(takeover::forward_to(socket));
            }
            let (status, exposition) = (control.status.clone(), control.exposition.clone());
            let token = control.settings.gateway.admin_token.clone();
            let page = page.unwrap_or_else(Page::index);
            let revocations = control.revocations.clone();
            let requests = self.requests_in;
            let admin = Admin::new(token, page, status, exposition, revocations, requests);
            serve_admin(&mut control.admin, &admin);
            let listeners = &self.plane.listeners;
            tracing::info!(?listeners, workers = self.plane.count, "serving");
            let _ = started.send(Ok(()));
            control.run(self.requests, signals).await;
        });
        Ok(())
    }

    /// Starts the workers, and takes over from the gateway that runs, if there is one: then also
    /// answers where that one can be asked until it ends.
    fn start_work(
        &mut self,
        names: &Names,
    ) -> Result<(Supervisor, RevocationStore, Option<PathBuf>), RunError> {
        let key = random_seed().map_err(|source| RunError::Random { source })?;
        let hasher = Hasher::new(&key);
        let (workers, count) = (Arc::clone(&self.plane.workers), self.plane.count);
        let settings = Arc::clone(&self.settings);
        let endpoints = Arc::clone(names.plan());
        let start = |revoked| {
            let mut supervisor = Supervisor::new(workers, settings, revoked, count);
            supervisor.set_endpoints(endpoints);
            start_workers(supervisor)
        };
        let Some(predecessor) = self.predecessor.take() else {
            let store = self.open_revocations(hasher)?;
            return Ok((start(store.snapshot())?, store, None));
        };
        let mut supervisor = start(self.read_revocations(hasher.clone())?)?;
        match self.take_over(&predecessor, hasher, &supervisor) {
            Ok((store, socket)) => {
                supervisor.set_revoked(store.snapshot());
                Ok((supervisor, store, Some(socket)))
            }
            Err(error) => {
                stop_workers(supervisor);
                Err(error)
            }
        }
    }

    /// The revocations of the last run, and the file for those of this one.
    fn open_revocations(&self, hasher: Hasher) -> Result<RevocationStore, RunError> {
        let file = self.settings.gateway.revocations_file.clone();
        let max = self.settings.limits.revocations_max as usize;
        let now = UnixTime::from_millis(unix_ms());
        RevocationStore::open(file.clone(), hasher, max, now)
            .map_err(|source| RunError::Revocations { path: file.unwrap_or_default(), source })
    }

    /// The revocations in the file, which another process still writes.
    fn read_revocations(&self, hasher: Hasher) -> Result<Arc<Revoked>, RunError> {
        let Some(path) = self.settings.gateway.revocations_file.clone() else {
            return Ok(Arc::new(Revoked::nothing(hasher)));
        };
        let max = self.settings.limits.revocations_max as usize;
        let now = UnixTime::from_millis(unix_ms());
        let read = journal::load(&path, hasher, max, now);
        let (set, _) = read.map_err(|source| RunError::Revocations { path, source })?;
        Ok(Arc::new(set.snapshot()))
    }

    /// Waits until this gateway can serve as the other one does, has that one make room, and
    /// takes its place. Also answers where the other one can be asked until it ends.
    fn take_over(
        &mut self,
        predecessor: &Predecessor,
        hasher: Hasher,
        supervisor: &Supervisor,
    ) -> Result<(RevocationStore, PathBuf), RunError> {
        let ready = || supervisor.counters().all(|counters| counters.value(Metric::LinksReady) > 0);
        if !wait_until(LINKED_MAX, ready) {
            tracing::warn!("a worker has no link to a backend yet; taking over all the same");
        }
        let socket = predecessor.make_room()?;
        // Its runtime closes the admin port in its own time.
        let mut bound = AdminListeners::bind(&self.settings);
        wait_until(ADMIN_FREE_MAX, || {
            let taken = matches!(
                &bound,
                Err(RunError::Bind { source, .. }) if source.kind() == ErrorKind::AddrInUse
            );
            if taken {
                bound = AdminListeners::bind(&self.settings);
            }
            !taken
        });
        self.admin = bound?.0;
        Ok((self.open_revocations(hasher)?, socket))
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

/// Serves the admin side's listeners. Within the control thread's runtime only.
fn serve_admin(sockets: &mut AdminListeners, admin: &Rc<Admin>) {
    let failed = |error| tracing::error!(%error, "an admin listener cannot be served");
    let (tcp, unix) = sockets.take();
    if let Some(listener) = tcp {
        let served = Rc::clone(admin).serve_tcp(listener);
        let task = async move { served.await.unwrap_or_else(failed) };
        sockets.set_tcp_task(tokio_uring::spawn(task));
    }
    if let Some(listener) = unix {
        let served = Rc::clone(admin).serve_unix(listener);
        tokio_uring::spawn(async move { served.await.unwrap_or_else(failed) });
    }
}

/// Starts all workers, or none.
fn start_workers(mut supervisor: Supervisor) -> Result<Supervisor, RunError> {
    let Err((index, reason)) = supervisor.start(START_MAX) else { return Ok(supervisor) };
    stop_workers(supervisor);
    Err(RunError::Worker { index, reason })
}

fn stop_workers(mut supervisor: Supervisor) {
    supervisor.stop();
    wait_until(Duration::from_secs(2), || {
        supervisor.poll(Instant::now(), |_, _| ());
        supervisor.all_stopped()
    });
}

/// Whether the condition holds within this time.
fn wait_until(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    while !condition() {
        if begun.elapsed() >= patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}
