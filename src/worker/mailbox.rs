//! What passes between a worker and the control thread. Both ways are bounded; what does not
//! fit is counted, never waited for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use crate::base::memory_pressure::MemoryPressure;
pub use crate::connection::stage::{ClosedBy, Stage};
use crate::protocol::cause::Cause;
use crate::protocol::dialect::Dialect;
use crate::protocol::revocation::{Revocation, Revoked};
use crate::settings::Settings;

use super::auth_requests::{AuthClient, NoAuthClient};

/// Commands that may wait for one worker.
pub const COMMANDS_MAX: usize = 64;
/// Reports of one worker that may wait for the control thread.
pub const REPORTS_MAX: usize = 4096;

/// What the control thread tells a worker. After sending one it wakes the worker's ring.
pub enum Command {
    /// Use these settings from the next tick on.
    Settings(Arc<Settings>),
    /// How short memory is.
    Memory(MemoryPressure),
    /// Stop accepting, close every client with "going away" spread over `window`, then stop.
    Drain {
        /// Over how long the closes are spread.
        window: Duration,
    },
    /// Let nobody in, and nobody stay, whom these revoke. The first comes before the worker's
    /// first turn, and all have the same key.
    Revoked(Arc<Revoked>),
    /// Stop at once.
    Stop,
    /// Panic, to prove that a panic loses one worker only. Sent by tests alone.
    Panic,
}

/// What a worker tells the control thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A connection ended.
    Closed(CloseRecord),
    /// A link to a backend became ready.
    LinkReady {
        /// Index of the backend in the settings.
        backend: u16,
        /// Index of the endpoint in the backend.
        endpoint: u16,
    },
    /// A link was lost or could not be made.
    LinkDown {
        /// Index of the backend in the settings.
        backend: u16,
        /// Index of the endpoint in the backend.
        endpoint: u16,
        /// Why, for people. Never holds unescaped bytes of the backend's.
        reason: String,
    },
    /// Descriptors or memory ran out on accept; told at most once a second.
    AcceptExhausted,
    /// A backend revoked tokens.
    Revoke(Revocation),
    /// The worker has drained.
    Drained,
}

/// One line of the close log. It holds nothing that a client chose but its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseRecord {
    /// Why.
    pub cause: Cause,
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

/// The worker's end of both mailboxes.
pub struct WorkerMailbox {
    commands: Receiver<Command>,
    reports: SyncSender<Report>,
    decisions: Box<dyn AuthClient>,
}

/// The control thread's end of both mailboxes.
pub struct ControlMailbox {
    commands: SyncSender<Command>,
    reports: Receiver<Report>,
}

/// Makes a pair of connected mailboxes.
pub fn mailboxes() -> (ControlMailbox, WorkerMailbox) {
    let (command_in, command_out) = sync_channel(COMMANDS_MAX);
    let (report_in, report_out) = sync_channel(REPORTS_MAX);
    (
        ControlMailbox { commands: command_in, reports: report_out },
        WorkerMailbox {
            commands: command_out,
            reports: report_in,
            decisions: Box::new(NoAuthClient),
        },
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

    /// The next command, if one waits.
    pub fn command(&self) -> Option<Command> {
        self.commands.try_recv().ok()
    }

    /// Sends a report; false when the control thread is too far behind.
    pub fn report(&self, report: Report) -> bool {
        self.try_report(report).is_ok()
    }

    /// Sends a report that must not be lost.
    ///
    /// # Errors
    /// The report, when the control thread is too far behind: to be tried again.
    pub fn try_report(&self, report: Report) -> Result<(), Report> {
        self.reports.try_send(report).map_err(|error| match error {
            TrySendError::Full(report) | TrySendError::Disconnected(report) => report,
        })
    }
}

impl ControlMailbox {
    /// Sends a command; false when the worker is gone or its mailbox is full.
    pub fn command(&self, command: Command) -> bool {
        match self.commands.try_send(command) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    /// The next report, if one waits.
    pub fn report(&self) -> Option<Report> {
        self.reports.try_recv().ok()
    }
}
