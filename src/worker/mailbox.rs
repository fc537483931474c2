//! What passes between a worker and the control thread: the latest plan one way, a bounded queue
//! of reports the other. What does not fit is counted, never waited for.

use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::base::memory_pressure::MemoryPressure;
pub use crate::connection::stage::{ClosedBy, Stage};
pub use crate::connection::upstream::link::Warning;
use crate::protocol::cause::Cause;
use crate::protocol::close_detail::CloseDetail;
use crate::protocol::dialect::Dialect;
use crate::protocol::revocation::{Revoked, ScopedRevocation};
use crate::settings::Settings;

use super::auth_requests::{AuthClient, NoAuthClient};
pub use super::endpoint_plan::{EndpointPlan, LinkTarget};

/// Reports of one worker that may wait for the control thread.
pub const REPORTS_MAX: usize = 4096;

/// What a worker works by. The control thread publishes a new one with each change, and wakes the
/// worker's ring; the worker takes the latest at the start of a turn and may miss those between.
#[derive(Clone)]
pub struct Plan {
    /// Grows with each change.
    pub version: u64,
    /// The settings.
    pub settings: Arc<Settings>,
    /// What the names of their endpoints stand for.
    pub endpoints: Arc<EndpointPlan>,
    /// The tokens that are revoked. All plans of a process have the same key.
    pub revoked: Arc<Revoked>,
    /// How short memory is.
    pub memory: MemoryNotice,
    /// What to do.
    pub order: WorkerOrder,
}

/// How short memory is, and how often that was measured while it was short: each time there is
/// free memory to give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryNotice {
    /// How short.
    pub pressure: MemoryPressure,
    /// Which measurement.
    pub round: u64,
}

/// What a worker is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerOrder {
    /// Serve.
    Serve,
    /// Stop accepting, close every client with "going away" spread over `window`, then stop.
    Drain {
        /// Over how long the closes are spread.
        window: Duration,
    },
    /// Stop immediately.
    Stop,
    /// Panic, to prove that a panic loses one worker only. Given by tests alone.
    Panic,
}

impl Plan {
    /// The first plan.
    pub fn new(
        settings: Arc<Settings>,
        endpoints: Arc<EndpointPlan>,
        revoked: Arc<Revoked>,
    ) -> Arc<Plan> {
        let memory = MemoryNotice { pressure: MemoryPressure::Clear, round: 0 };
        let order = WorkerOrder::Serve;
        Arc::new(Plan { version: 1, settings, endpoints, revoked, memory, order })
    }

    /// The next plan.
    #[must_use]
    pub fn changed(&self, change: impl FnOnce(&mut Plan)) -> Arc<Plan> {
        let mut plan = self.clone();
        change(&mut plan);
        plan.version += 1;
        Arc::new(plan)
    }
}

/// A plan that the worker has not seen, and the one that it worked by before.
pub struct PlanChange {
    /// `None` in the first turn.
    pub before: Option<Arc<Plan>>,
    /// The latest.
    pub now: Arc<Plan>,
}

/// Where a worker finds the latest plan: its turns look at the version alone.
struct PlanSlot {
    version: AtomicU64,
    plan: Mutex<Arc<Plan>>,
}

impl PlanSlot {
    fn plan(&self) -> MutexGuard<'_, Arc<Plan>> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a worker tells the control thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A connection ended.
    Closed(CloseRecord),
    /// A link to a backend became ready.
    LinkReady {
        /// Where it goes.
        target: Arc<LinkTarget>,
    },
    /// A link was lost or could not be made.
    LinkDown {
        /// Where it goes.
        target: Arc<LinkTarget>,
        /// Why, for people. Never holds unescaped bytes of the backend's.
        reason: String,
    },
    /// Handshakes with a WebSocket server failed in a row: it gets no more for a while.
    ServerRests {
        /// Which.
        target: Arc<LinkTarget>,
        /// What was wrong last, for people. Never holds unescaped bytes of the server's.
        reason: String,
    },
    /// A WebSocket server's answer points to a wrong configuration; told a few times a second at
    /// most.
    ServerAnswered {
        /// Which server.
        target: Arc<LinkTarget>,
        /// With what.
        status: u16,
        /// The likely cause, for people.
        advice: &'static str,
    },
    /// A link goes on, but people should know something of it.
    LinkWarning {
        /// Where it goes.
        target: Arc<LinkTarget>,
        /// What.
        warning: Warning,
    },
    /// A route does not list the Origin of a page; told a few times a second at most.
    OriginRefused {
        /// Index of the route in the settings.
        route: Option<u16>,
        /// The client's address.
        peer: Option<SocketAddr>,
        /// The Origin as the client sent it, not escaped; a long one is cut.
        origin: String,
    },
    /// Descriptors or memory ran out on accept; told at most once a second.
    AcceptExhausted,
    /// A backend revoked tokens.
    Revoke(ScopedRevocation),
    /// The worker has drained.
    Drained,
}

/// One line of the close log. It holds nothing that a client chose but its address, and its subject
/// where the settings ask for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseRecord {
    /// The connection's number, which a backend gets with OPEN or AUTH.
    pub connection: u64,
    /// What stands for the client's subject, not escaped.
    pub subject: Option<Box<str>>,
    /// Why.
    pub cause: Cause,
    /// What it was in particular, where the cause has many reasons.
    pub detail: Option<CloseDetail>,
    /// Who ended it.
    pub by: ClosedBy,
    /// The furthest stage reached before the end began.
    pub stage: Stage,
    /// The close code that went to the client, or came from it.
    pub code: Option<u16>,
    /// The dialect, once a route was chosen.
    pub dialect: Option<Dialect>,
    /// Index of the route, once one was chosen.
    pub route: Option<u16>,
    /// The client's address.
    pub peer: Option<SocketAddr>,
    /// From accept to the end.
    pub age: Duration,
    /// Since the last byte from the client.
    pub received_ago: Duration,
    /// Since a send last made progress.
    pub sent_ago: Duration,
    /// Bytes that were still queued for the client.
    pub queued: u32,
}

/// The worker's end.
pub struct WorkerMailbox {
    slot: Arc<PlanSlot>,
    seen: Option<Arc<Plan>>,
    reports: SyncSender<Report>,
    decisions: Box<dyn AuthClient>,
}

/// The control thread's end.
pub struct ControlMailbox {
    slot: Arc<PlanSlot>,
    reports: Receiver<Report>,
}

/// Makes a pair of connected ends; the worker begins with this plan.
pub fn mailboxes(plan: Arc<Plan>) -> (ControlMailbox, WorkerMailbox) {
    let (report_in, report_out) = sync_channel(REPORTS_MAX);
    let slot = PlanSlot { version: AtomicU64::new(plan.version), plan: Mutex::new(plan) };
    let slot = Arc::new(slot);
    (
        ControlMailbox { slot: Arc::clone(&slot), reports: report_out },
        WorkerMailbox { slot, seen: None, reports: report_in, decisions: Box::new(NoAuthClient) },
    )
}

impl WorkerMailbox {
    /// The same mailbox with a way to the HTTP service that decides on clients.
    pub fn with_auth_client(self, decisions: Box<dyn AuthClient>) -> Self {
        WorkerMailbox { decisions, ..self }
    }

    /// The way to the HTTP service.
    pub fn decisions(&mut self) -> &mut dyn AuthClient {
        &mut *self.decisions
    }

    /// What the names of endpoints stand for in the latest plan.
    pub fn endpoints(&self) -> Arc<EndpointPlan> {
        Arc::clone(&self.slot.plan().endpoints)
    }

    /// The latest plan, when it is not the one that the last call gave.
    pub fn take_plan(&mut self) -> Option<PlanChange> {
        let latest = self.slot.version.load(Acquire);
        if self.seen.as_ref().is_some_and(|seen| seen.version == latest) {
            return None;
        }
        let now = Arc::clone(&self.slot.plan());
        Some(PlanChange { before: self.seen.replace(Arc::clone(&now)), now })
    }

    /// Sends a report; false when the control thread is too far behind.
    pub fn report(&self, report: Report) -> bool {
        self.try_report(report).is_ok()
    }

    /// Sends a report that must not be lost.
    ///
    /// # Errors
    /// The report, when the control thread is too far behind: to be tried again.
    #[expect(clippy::result_large_err, reason = "the report itself comes back, to be tried again")]
    pub fn try_report(&self, report: Report) -> Result<(), Report> {
        self.reports.try_send(report).map_err(|error| match error {
            TrySendError::Full(report) | TrySendError::Disconnected(report) => report,
        })
    }
}

impl ControlMailbox {
    /// Gives the worker a new plan in place of the last.
    pub fn publish(&self, plan: Arc<Plan>) {
        let version = plan.version;
        *self.slot.plan() = plan;
        self.slot.version.store(version, Release);
    }

    /// The plan that was published last.
    pub fn latest(&self) -> Arc<Plan> {
        Arc::clone(&self.slot.plan())
    }

    /// The next report, if one waits.
    pub fn report(&self) -> Option<Report> {
        self.reports.try_recv().ok()
    }
}
