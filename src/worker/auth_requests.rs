//! Questions about clients that somebody else decides: put to a backend's link or to the HTTP
//! service, kept in number, withdrawn when their client leaves, and their decisions.

use crate::base::byte_queue::CHUNK_BYTES;
use crate::base::slab::Key;
use crate::connection::auth_request::{AuthRequest, HttpAuthRequest};
use crate::connection::client::{RejectHint, Step};
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::http_decision::HttpDecision;
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::link::Reject;

use super::Core;
use super::links::refusal;

/// One part in this many of `limits.stalled_input_max` may be input of clients that await a
/// decision: they cannot take the room of those that are authenticated.
const EARLY_PARTS: u64 = 4;

/// Names a question to the HTTP service. The number keeps a late decision from being taken for
/// that of a later question about the same connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AuthRequestId {
    /// The connection.
    pub owner: Key,
    /// Which of the worker's questions it is.
    pub number: u32,
}

/// A worker's way to the HTTP service. It never blocks.
pub trait AuthClient: Send {
    /// Hands a question over; false when there is no room, or no service.
    fn ask(&mut self, ticket: AuthRequestId, http_request: HttpAuthRequest) -> bool;

    /// The decision on this question is no longer wanted; it may come all the same.
    fn withdraw(&mut self, ticket: AuthRequestId);

    /// The next decision, if one has come.
    fn decision(&mut self) -> Option<(AuthRequestId, HttpDecision)>;
}

/// Where there is no HTTP service: nobody decides.
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

/// Whom a connection's question was put to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Asking(u32);

impl Asking {
    /// No question is out.
    pub(super) const NOBODY: Asking = Asking(0);
    /// The backend whose link has its session, halfway open.
    const BACKEND: Asking = Asking(u32::MAX);
}

impl Core {
    /// Puts the question that the client's machine left in the output, or refuses the client.
    /// Until the decision nothing of the client's input is looked at.
    pub(super) fn ask(&mut self, owner: Key, question: AuthRequest) {
        let room = self.questions < self.env.settings.limits.verdicts_max && self.drain.is_none();
        let asking = match question {
            AuthRequest::Backend(backend) if room => self.ask_backend(owner, backend),
            AuthRequest::Http if room => self.ask_http(owner).ok_or(Cause::BackendUnavailable),
            _ => Err(Cause::BackendUnavailable),
        };
        self.output.http_request = None;
        let draining = self.drain.is_some();
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        match asking {
            Ok(asking) => {
                connection.stash_or_new().asking = asking;
                connection.blocked = true;
                self.questions += 1;
                self.env.counters.set(Metric::VerdictsAwaited, u64::from(self.questions));
            }
            Err(cause) => {
                let cause = if draining { Cause::GoingAway } else { cause };
                connection.client.unasked(cause, &self.env.context(), &mut self.output);
                self.send_answers(owner);
            }
        }
    }

    fn ask_backend(&mut self, owner: Key, backend: u16) -> Result<Asking, Cause> {
        let balance = self.env.settings.backends[usize::from(backend)].balance;
        let chosen = self.links.choose_to_ask(backend, balance);
        let link = chosen.ok_or(Cause::BackendUnavailable)?;
        self.output.request.set_connection(self.connection_number(owner));
        let asked = self.links.entry(link).link.ask(owner, &self.output.request);
        let id = asked.map_err(refusal)?;
        let connection = self.connections.entry_mut(owner);
        connection.expect("its question was just composed").session = Some((link, id));
        Ok(Asking::BACKEND)
    }

    fn ask_http(&mut self, owner: Key) -> Option<Asking> {
        let http_request = self.output.http_request.take()?;
        // 0 and the greatest number mean something else.
        self.question_number = self.question_number % (u32::MAX - 1) + 1;
        let ticket = AuthRequestId { owner, number: self.question_number };
        self.mailbox.decisions().ask(ticket, http_request).then_some(Asking(ticket.number))
    }

    /// A connection's question is over, whatever became of it.
    pub(super) fn stop_asking(&mut self, owner: Key) {
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        let Some(stash) = connection.stash_mut() else { return };
        let asking = std::mem::take(&mut stash.asking);
        if asking == Asking::NOBODY {
            return;
        }
        self.early_input -= std::mem::take(&mut stash.early) as usize;
        if stash.queue.is_empty() {
            connection.drop_stash();
        }
        if asking != Asking::BACKEND {
            self.mailbox.decisions().withdraw(AuthRequestId { owner, number: asking.0 });
        }
        self.questions -= 1;
        self.env.counters.set(Metric::VerdictsAwaited, u64::from(self.questions));
    }

    /// Acts on the decisions that the HTTP service has sent. Whether there were any.
    pub(super) fn take_decisions(&mut self) -> bool {
        let mut any = false;
        while let Some((ticket, decision)) = self.mailbox.decisions().decision() {
            any = true;
            let Some(connection) = self.connections.entry(ticket.owner) else { continue };
            if connection.asking() == Asking(ticket.number) {
                self.http_decision(ticket.owner, &decision);
            }
        }
        any
    }

    fn http_decision(&mut self, owner: Key, decision: &HttpDecision) {
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        let ctx = self.env.context();
        match decision {
            HttpDecision::Accepted(voucher) => {
                let identity = voucher.identity();
                let step = connection.client.accept(&identity, &ctx, &mut self.output);
                self.send_answers(owner);
                if let Step::Authenticated { backend } = step {
                    self.open_session(owner, backend);
                }
            }
            HttpDecision::Refused(cause) => self.rejected(owner, *cause, &RejectHint::default()),
            HttpDecision::Undecided(why) => {
                let advice = RejectHint { retry_after: why.retry_after(), ..RejectHint::default() };
                self.rejected(owner, Cause::BackendUnavailable, &advice);
            }
        }
        self.decision_taken(owner);
    }

    /// A backend says who a client is: the session that was halfway open is open.
    pub(super) fn accepted_by_backend(
        &mut self,
        owner: Key,
        backend: u16,
        identity: &VerifiedIdentity<'_>,
    ) {
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        let ctx = self.env.context();
        match connection.client.accept(identity, &ctx, &mut self.output) {
            Step::Authenticated { backend: now } if now == backend => {
                if let Some((link, _)) = connection.session {
                    let message_max = self.links.entry(link).link.message_max();
                    connection.client.session_opened(message_max);
                    self.env.counters.increment(Metric::SessionsOpened);
                    self.keep_subject(owner, identity.subject());
                    self.output.answers.append(&mut self.output.connect_ack);
                }
            }
            // A reload gave the route to another backend, which this decision does not bind.
            Step::Authenticated { .. } => {
                connection.client.refuse(Cause::GoingAway, &ctx, &mut self.output);
            }
            _ => {}
        }
        self.send_answers(owner);
        self.decision_taken(owner);
    }

    /// A backend turns a client away.
    pub(super) fn rejected_by_backend(&mut self, owner: Key, reject: &Reject<'_>) {
        if let Some(connection) = self.connections.entry_mut(owner) {
            connection.session = None;
        }
        let wait = u64::from(reject.retry_after_ms);
        let retry_after = (wait > 0).then(|| std::time::Duration::from_millis(wait));
        let advice = RejectHint { retry_after, message: reject.message };
        self.rejected(owner, reject.cause, &advice);
        self.decision_taken(owner);
    }

    fn rejected(&mut self, owner: Key, cause: Cause, advice: &RejectHint<'_>) {
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        connection.client.reject(cause, advice, &self.env.context(), &mut self.output);
        self.send_answers(owner);
    }

    /// What the client sent meanwhile is looked at now: messages of a session, or, after a
    /// refusal, perhaps the client's close.
    fn decision_taken(&mut self, owner: Key) {
        self.stop_asking(owner);
        self.resume(owner);
    }

    /// Accounts for `bytes` more of a client that awaits a decision: it may leave as much as one
    /// first message has, and all such clients together a part of all that may wait.
    ///
    /// # Errors
    /// Why it may not.
    pub(super) fn count_early(&mut self, owner: Key, bytes: usize) -> Result<(), Cause> {
        let Some(connection) = self.connections.entry_mut(owner) else { return Ok(()) };
        let Some(stash) = connection.stash_mut() else { return Ok(()) };
        if stash.asking == Asking::NOBODY {
            return Ok(());
        }
        let limits = &self.env.settings.limits;
        let waits = stash.queue.len() + bytes;
        if waits > limits.first_message_max as usize {
            return Err(Cause::TooLarge);
        }
        // A queue takes whole chunks.
        let room = waits.next_multiple_of(CHUNK_BYTES);
        let together = self.early_input - stash.early as usize + room;
        if together as u64 > limits.stalled_input_max / EARLY_PARTS {
            return Err(Cause::OverCapacity);
        }
        self.early_input = together;
        stash.early = room as u32;
        Ok(())
    }
}
