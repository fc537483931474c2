//! What a worker has besides its ring, in parts.
//!
//! [`Core`] is the table of clients beside [`Parts`]: so a client is looked up once for whatever
//! happens to it, and handed down while all other parts change, its upstream among them. That is
//! why upstreams have a table of their own: what a client sends goes straight into theirs.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::base::byte_queue::BytePool;
use crate::base::random::Random;
use crate::base::slab::{Key, KeyedSlab};
use crate::base::time::{Instant, Now};
use crate::base::token_bucket::TokenBucket;
use crate::connection::route_order::RouteOrder;
use crate::connection::{Context, Output};
use crate::counters::Counters;
use crate::protocol::revocation::{Revoked, ScopedRevocation};
use crate::settings::Settings;

use super::WorkerOptions;
use super::accept::Acceptor;
use super::admission::Admission;
use super::auth_requests::AuthRequests;
use super::clients::Connection;
use super::control::Drain;
use super::endpoint_plan::EndpointPlan;
use super::links::LinkTable;
use super::mailbox::WorkerMailbox;
use super::reconcile::Reconciled;
use super::rows::Rows;
use super::servers::ServerTable;
use super::sockets::Agenda;
use super::sweep::Sweep;
use super::trail::Subjects;
use super::upstreams::Upstream;

/// All of a worker but its ring. What concerns several sockets is done here.
pub(super) struct Core {
    pub(super) clients: KeyedSlab<Connection>,
    pub(super) parts: Parts,
}

/// All of that but the clients. What concerns one client is done here: the caller has found it.
pub(super) struct Parts {
    pub(super) env: Environment,
    pub(super) agenda: Agenda,
    pub(super) upstreams: KeyedSlab<Upstream>,
    pub(super) links: LinkTable,
    pub(super) servers: ServerTable,
    pub(super) acceptor: Acceptor,
    pub(super) admission: Admission,
    pub(super) auth_requests: AuthRequests,
    pub(super) pools: Pools,
    pub(super) handshakes: Handshakes,
    pub(super) control: Control,
    pub(super) sweep: Sweep,
    pub(super) scratch: Scratch,
    pub(super) random: Random,
    pub(super) options: WorkerOptions,
}

/// What a turn may look at and nothing in it changes but the clock: a part of its own, so that
/// machines read it while the worker's other parts change.
pub(super) struct Environment {
    pub(super) now: Now,
    pub(super) settings: Arc<Settings>,
    pub(super) endpoints: Arc<EndpointPlan>,
    pub(super) routes: RouteOrder,
    pub(super) counters: Arc<Counters>,
    pub(super) rows: Rows,
    /// Drawn in each turn.
    pub(super) jitter: u32,
    pub(super) revoked: Arc<Revoked>,
}

impl Environment {
    /// The same for a connection's machine.
    pub(super) fn context(&self) -> Context<'_> {
        Context {
            now: self.now,
            settings: &self.settings,
            routes: &self.routes,
            counters: &self.counters,
            jitter: self.jitter,
            revoked: &self.revoked,
        }
    }
}

/// The bounded memory of what waits.
pub(super) struct Pools {
    /// Bytes queued for clients.
    pub(super) queues: BytePool,
    /// Input that waits for an upstream's credit, or for a decision.
    pub(super) backlogs: BytePool,
    /// How much of that is input of clients that await a decision.
    pub(super) early_input: usize,
}

impl Pools {
    /// Pools of so many bytes at most for what waits to be sent, and for what waits for credit.
    pub(super) fn new(queues: u64, backlogs: u64) -> Self {
        let chunks = |bytes: u64| u32::try_from(bytes / 1024).unwrap_or(u32::MAX).max(64);
        let [queues, backlogs] = [queues, backlogs].map(|bytes| BytePool::new(chunks(bytes)));
        Pools { queues, backlogs, early_input: 0 }
    }
}

/// The turn's budget of TLS handshakes.
#[derive(Default)]
pub(super) struct Handshakes {
    /// Those of this turn.
    pub(super) done: u32,
    /// Clients with input beyond the budget, in order of arrival.
    pub(super) deferred: VecDeque<Key>,
}

/// What passes between the worker and the control thread.
pub(super) struct Control {
    pub(super) mailbox: WorkerMailbox,
    /// Settings, and what their names stand for, that wait for the end of a sweep.
    pub(super) settings_due: Option<(Arc<Settings>, Arc<EndpointPlan>)>,
    pub(super) drain: Option<Drain>,
    pub(super) stopped: bool,
    /// Bounds the lines of the close log.
    pub(super) close_lines: TokenBucket,
    /// Bounds the lines about refused Origins.
    pub(super) origin_lines: TokenBucket,
    /// Lines about answers of servers that point to a wrong configuration.
    pub(super) advice_lines: TokenBucket,
    /// Those that the close log is to have.
    pub(super) subjects: Subjects,
    /// Revocations of backends that found the control thread's mailbox full.
    pub(super) revocations_waiting: VecDeque<ScopedRevocation>,
    /// When send slots may next be taken from clients that read too slowly.
    pub(super) relief_at: Instant,
}

/// Memory that is reused, so that nothing is allocated in the steady state.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) output: Output,
    pub(super) plaintext: Vec<u8>,
    pub(super) ciphertext: Vec<u8>,
    pub(super) backlog: Vec<u8>,
    /// A frame for a WebSocket server, masked.
    pub(super) frame: Vec<u8>,
    pub(super) fired: Vec<u32>,
}

impl Core {
    /// Finds a client, acts on it, and brings all that depends on it in line. False when the
    /// client has left.
    pub(super) fn with_client(
        &mut self,
        key: Key,
        act: impl FnOnce(&mut Parts, Key, &mut Connection),
    ) -> bool {
        let Some(connection) = self.clients.entry_mut(key) else { return false };
        act(&mut self.parts, key, connection);
        if self.parts.reconcile(key, connection) == Reconciled::Over {
            self.forget_client(key);
        }
        true
    }

    /// Likewise for a client whose session is open: it cannot have left.
    pub(super) fn with_session_client(
        &mut self,
        key: Key,
        act: impl FnOnce(&mut Parts, Key, &mut Connection),
    ) {
        let found = self.with_client(key, act);
        assert!(found, "a client ends its session before it leaves");
    }

    /// A client's descriptor is gone and nothing is in flight.
    pub(super) fn forget_client(&mut self, key: Key) {
        let Some(connection) = self.clients.remove(key) else {
            unreachable!("{key:?} names no client")
        };
        self.parts.forget(key, connection);
    }
}
