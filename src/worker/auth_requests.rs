//! Auth requests: a backend or the HTTP service decides about a client. They are bounded in number
//! and withdrawn when their client leaves.

use crate::base::byte_queue::CHUNK_BYTES;
use crate::base::slab::Key;
use crate::connection::auth_request::{AuthRequest, HttpAuthRequest};
use crate::connection::client::{RejectHint, Step};
use crate::connection::upstream::websocket::handshake::{Accepted, Refused};
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::http_decision::HttpDecision;
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::link::Reject;

use super::clients::Connection;
use super::core::{Core, Parts};
use super::links::refusal;
use super::sessions::Session;

/// One part in this many of `limits.stalled_input_max` may be input of clients that await a
/// decision: they cannot take the room of those that are authenticated.
const EARLY_PARTS: u64 = 4;

/// Names an auth request to the HTTP service. The number keeps a late decision from being taken
/// for that of a later request about the same connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AuthRequestId {
    /// The connection.
    pub owner: Key,
    /// Which of the worker's requests it is.
    pub number: u32,
}

/// A worker's way to the HTTP service. It never blocks.
pub trait AuthClient: Send {
    /// Sends a request; false when there is no room, or no service.
    fn ask(&mut self, id: AuthRequestId, http_request: HttpAuthRequest) -> bool;

    /// The decision on this request is no longer wanted; it may come all the same.
    fn withdraw(&mut self, id: AuthRequestId);

    /// The next decision, if one has come.
    fn decision(&mut self) -> Option<(AuthRequestId, HttpDecision)>;
}

/// Where there is no HTTP service.
pub struct NoAuthClient;

impl AuthClient for NoAuthClient {
    fn ask(&mut self, _: AuthRequestId, _: HttpAuthRequest) -> bool {
        false
    }

    fn withdraw(&mut self, _: AuthRequestId) {}

    fn decision(&mut self) -> Option<(AuthRequestId, HttpDecision)> {
        None
    }
}

/// The decision that a client awaits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PendingAuth(u32);

impl PendingAuth {
    /// None.
    pub(super) const NONE: PendingAuth = PendingAuth(0);
    /// That of the backend whose link has its session, halfway open.
    const BACKEND: PendingAuth = PendingAuth(u32::MAX);
    /// That of the WebSocket server behind, whose connection is the session.
    pub(super) const SERVER: PendingAuth = PendingAuth(u32::MAX - 1);
}

/// The auth requests of a worker.
#[derive(Default)]
pub(super) struct AuthRequests {
    /// Those that await a decision.
    pending: u32,
    /// The number of the latest to the HTTP service.
    number: u32,
}

impl Core {
    /// Acts on the decisions that the HTTP service has sent. Whether there were any.
    pub(super) fn take_decisions(&mut self) -> bool {
        let mut any = false;
        while let Some((id, decision)) = self.parts.control.mailbox.decisions().decision() {
            any = true;
            // The client may have left, or await another decision by now.
            self.with_client(id.owner, |parts, key, connection| {
                if connection.pending_auth() == PendingAuth(id.number) {
                    parts.http_decision(key, connection, &decision);
                }
            });
        }
        any
    }
}

impl Parts {
    /// Sends the auth request that the client's machine left in the output, or refuses the
    /// client. Until the decision nothing of the client's input is looked at.
    pub(super) fn ask(&mut self, key: Key, connection: &mut Connection, request: AuthRequest) {
        let draining = self.control.drain.is_some();
        let room = self.auth_requests.pending < self.env.settings.limits.verdicts_max && !draining;
        let asked = match request {
            AuthRequest::Backend(backend) if room => self.ask_backend(key, connection, backend),
            AuthRequest::Http if room => self.ask_http(key).ok_or(Cause::BackendUnavailable),
            _ => Err(Cause::BackendUnavailable),
        };
        self.scratch.output.http_request = None;
        match asked {
            Ok(pending_auth) => {
                connection.backlog_or_new().pending_auth = pending_auth;
                connection.blocked = true;
                self.count_auth_requests(self.auth_requests.pending + 1);
            }
            Err(cause) => {
                let cause = if draining { Cause::GoingAway } else { cause };
                let output = &mut self.scratch.output;
                connection.client.unasked(cause, &self.env.context(), output);
                self.send_answers(connection);
            }
        }
    }

    fn count_auth_requests(&mut self, pending: u32) {
        self.auth_requests.pending = pending;
        self.env.counters.set(Metric::VerdictsAwaited, u64::from(pending));
    }

    fn ask_backend(
        &mut self,
        key: Key,
        connection: &mut Connection,
        backend: u16,
    ) -> Result<PendingAuth, Cause> {
        let balance = self.env.settings.backends[usize::from(backend)].balance;
        let chosen = self.links.choose_to_ask(backend, balance);
        let link = chosen.ok_or(Cause::BackendUnavailable)?;
        let number = self.connection_number(key, connection);
        self.scratch.output.request.set_connection(number);
        let entry = self.links.entry(link, &mut self.agenda);
        let id = entry.link.ask(key, &self.scratch.output.request).map_err(refusal)?;
        connection.session = Some(Session::Link { link, id });
        Ok(PendingAuth::BACKEND)
    }

    fn ask_http(&mut self, owner: Key) -> Option<PendingAuth> {
        let http_request = self.scratch.output.http_request.take()?;
        // 0 and the two greatest numbers mean something else.
        let number = self.auth_requests.number % (u32::MAX - 2) + 1;
        self.auth_requests.number = number;
        let sent =
            self.control.mailbox.decisions().ask(AuthRequestId { owner, number }, http_request);
        sent.then_some(PendingAuth(number))
    }

    /// A connection's auth request is over, whatever became of it.
    pub(super) fn end_auth_request(&mut self, owner: Key, connection: &mut Connection) {
        let Some(backlog) = connection.backlog_mut() else { return };
        let pending = std::mem::take(&mut backlog.pending_auth);
        if pending == PendingAuth::NONE {
            return;
        }
        self.pools.early_input -= std::mem::take(&mut backlog.early) as usize;
        if backlog.queue.is_empty() {
            connection.drop_backlog();
        }
        if pending == PendingAuth::SERVER {
            return;
        }
        if pending != PendingAuth::BACKEND {
            let id = AuthRequestId { owner, number: pending.0 };
            self.control.mailbox.decisions().withdraw(id);
        }
        self.count_auth_requests(self.auth_requests.pending - 1);
    }

    fn http_decision(&mut self, key: Key, connection: &mut Connection, decision: &HttpDecision) {
        let ctx = self.env.context();
        match decision {
            HttpDecision::Accepted(voucher) => {
                let identity = voucher.identity();
                let output = &mut self.scratch.output;
                let step = connection.client.accept(&identity, &ctx, output);
                self.send_answers(connection);
                match step {
                    Step::Authenticated { backend } => self.open_session(key, connection, backend),
                    Step::Dial { backend } => {
                        self.end_auth_request(key, connection);
                        return self.dial(key, connection, backend);
                    }
                    _ => {}
                }
            }
            HttpDecision::Refused(cause) => {
                self.rejected(connection, *cause, &RejectHint::default());
            }
            HttpDecision::Undecided(why) => {
                let hint = RejectHint { retry_after: why.retry_after(), ..RejectHint::default() };
                self.rejected(connection, Cause::BackendUnavailable, &hint);
            }
        }
        self.decision_taken(key, connection);
    }

    /// A backend says who a client is: the session that was halfway open is open.
    pub(super) fn accepted_by_backend(
        &mut self,
        key: Key,
        connection: &mut Connection,
        link: u16,
        identity: &VerifiedIdentity<'_>,
    ) {
        let ctx = self.env.context();
        let output = &mut self.scratch.output;
        match connection.client.accept(identity, &ctx, output) {
            Step::Authenticated { backend: now } if Some(now) == self.links.backend(link) => {
                assert!(connection.session.is_some(), "it was asked through its session");
                self.control.keep_subject(&self.env.settings, key, identity.subject());
                connection.client.session_opened(self.link_message_max(link));
                self.session_opened(connection);
            }
            // A reload gave the route to another backend, which this decision does not bind, or
            // removed the endpoint.
            Step::Authenticated { .. } | Step::Dial { .. } => {
                output.handshake = None;
                connection.client.refuse(Cause::GoingAway, &ctx, output);
            }
            _ => {}
        }
        self.send_answers(connection);
        self.decision_taken(key, connection);
    }

    /// A backend turns a client away.
    pub(super) fn rejected_by_backend(
        &mut self,
        key: Key,
        connection: &mut Connection,
        reject: &Reject<'_>,
    ) {
        connection.session = None;
        let wait = u64::from(reject.retry_after_ms);
        let retry_after = (wait > 0).then(|| std::time::Duration::from_millis(wait));
        self.rejected(
            connection,
            reject.cause,
            &RejectHint { retry_after, message: reject.message },
        );
        self.decision_taken(key, connection);
    }

    /// The WebSocket server behind takes a client.
    pub(super) fn accepted_by_server(
        &mut self,
        key: Key,
        connection: &mut Connection,
        backend: Option<u16>,
        accepted: &Accepted,
    ) {
        let ctx = self.env.context();
        let output = &mut self.scratch.output;
        let is_open = connection.client.server_accepted(backend, accepted, &ctx, output);
        if is_open && self.has_room_for(connection) {
            self.session_opened(connection);
        } else if is_open {
            let (ctx, output) = (self.env.context(), &mut self.scratch.output);
            connection.client.refuse(Cause::OverCapacity, &ctx, output);
        }
        self.send_answers(connection);
        self.decision_taken(key, connection);
    }

    /// It does not, or there is none.
    pub(super) fn refused_by_server(
        &mut self,
        key: Key,
        connection: &mut Connection,
        refused: &Refused,
    ) {
        connection.session = None;
        connection.client.server_refused(refused, &self.env.context(), &mut self.scratch.output);
        self.send_answers(connection);
        self.decision_taken(key, connection);
    }

    fn rejected(&mut self, connection: &mut Connection, cause: Cause, hint: &RejectHint<'_>) {
        let output = &mut self.scratch.output;
        connection.client.reject(cause, hint, &self.env.context(), output);
        self.send_answers(connection);
    }

    /// What the client sent meanwhile is looked at now: messages of a session, or, after a
    /// refusal, perhaps the client's close.
    fn decision_taken(&mut self, key: Key, connection: &mut Connection) {
        self.end_auth_request(key, connection);
        self.take_backlog(key, connection);
    }

    /// Accounts for `bytes` more of a client that awaits a decision: it may leave as much as one
    /// first message has, and all such clients together a part of all that may wait.
    ///
    /// # Errors
    /// Why it may not.
    pub(super) fn count_early(
        &mut self,
        connection: &mut Connection,
        bytes: usize,
    ) -> Result<(), Cause> {
        let Some(backlog) = connection.backlog_mut() else { return Ok(()) };
        if backlog.pending_auth == PendingAuth::NONE {
            return Ok(());
        }
        let limits = &self.env.settings.limits;
        let waits = backlog.queue.len() + bytes;
        if waits > limits.first_message_max as usize {
            return Err(Cause::TooLarge);
        }
        // A queue takes whole chunks.
        let room = waits.next_multiple_of(CHUNK_BYTES);
        let together = self.pools.early_input - backlog.early as usize + room;
        if together as u64 > limits.stalled_input_max / EARLY_PARTS {
            return Err(Cause::OverCapacity);
        }
        self.pools.early_input = together;
        backlog.early = room as u32;
        Ok(())
    }
}
