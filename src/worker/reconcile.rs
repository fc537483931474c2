//! After anything that happened to a connection: session, caps, operations, deadline and end are
//! brought in line with what its client's machine says.

use crate::base::slab::Key;
use crate::base::time::Instant;
use crate::connection::client::SocketAction;
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::ring::Owner;

use super::auth_requests::PendingAuth;
use super::clients::Connection;
use super::core::Parts;
use super::mailbox::{CloseRecord, Report};

/// Whether a client's entry is still needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Reconciled {
    Stays,
    /// The descriptor is gone and nothing is in flight.
    Over,
}

impl Parts {
    /// Brings everything about a connection in line with its client's machine: session, caps,
    /// operations, deadline. To be called after each thing that happened to it.
    pub(super) fn reconcile(&mut self, key: Key, connection: &mut Connection) -> Reconciled {
        connection.needs_reconcile = false;
        if !self.scratch.output.refused_origin.is_empty() {
            self.report_refused_origin(connection);
        }
        let in_session = connection.client.holds_session();
        if !in_session {
            self.end_session(connection);
        }
        if connection.pending_auth() != PendingAuth::NONE && !connection.client.awaits_decision() {
            self.end_auth_request(key, connection);
        }
        if connection.blocked && !in_session {
            // What waits is thrown away frame by frame, so that the client's own close is found.
            self.take_backlog(key, connection);
        }
        self.count_paused(connection);
        self.apply_socket_action(connection);
        if connection.counted.is_some() {
            self.recount(key, connection);
        }
        if connection.pipe.is_over() {
            return Reconciled::Over;
        }
        connection.pipe.set_reading(connection.reading());
        connection.pipe.reconcile(Owner::Client(key), &mut self.agenda.ops);
        if connection.pipe.can_send() && !connection.out.is_empty() {
            self.agenda.mark_dirty(Owner::Client(key), &mut connection.dirty);
        }
        self.schedule_deadline(key, connection);
        Reconciled::Stays
    }

    fn count_paused(&mut self, connection: &mut Connection) {
        let paused = connection.blocked && connection.pending_auth() == PendingAuth::NONE;
        if paused != connection.counted_paused {
            connection.counted_paused = paused;
            match paused {
                true => self.env.counters.increment(Metric::ReadsPaused),
                false => self.env.counters.decrement(Metric::ReadsPaused),
            }
        }
    }

    /// Sets a connection's timer, where it has none or one that fires too late.
    pub(super) fn schedule_deadline(&mut self, key: Key, connection: &Connection) {
        let wheel = &mut self.agenda.client_timers;
        if connection.pipe.is_ending() {
            wheel.cancel(key.slot);
            return;
        }
        let deadline = connection.client.next_deadline(&self.env.settings);
        let earlier = |scheduled: Instant| deadline < scheduled;
        if deadline != Instant::NEVER && wheel.scheduled(key.slot).is_none_or(earlier) {
            wheel.schedule(key.slot, deadline);
        }
    }

    fn apply_socket_action(&mut self, connection: &mut Connection) {
        if connection.pipe.is_ending() {
            return;
        }
        let flushed = connection.unsent() == 0;
        match connection.client.socket_action() {
            SocketAction::Stay | SocketAction::AwaitEnd => {}
            SocketAction::CloseNow { reset } => connection.pipe.end(reset),
            SocketAction::CloseWhenFlushed | SocketAction::ShutdownWhenFlushed if !flushed => {}
            _ if !connection.shut_down && !connection.transport.is_plain() => {
                // TLS says goodbye too (RFC 8446 §6.1), then this is looked at again.
                connection.shut_down = true;
                self.scratch.ciphertext.clear();
                connection.transport.close_notify(&mut self.scratch.ciphertext);
                let silent = self.scratch.ciphertext.is_empty();
                self.queue_ciphertext(connection);
                if silent {
                    self.end_flushed(connection);
                }
            }
            _ => self.end_flushed(connection),
        }
    }

    /// Everything queued is sent, and so the connection ends as its machine wants.
    fn end_flushed(&mut self, connection: &mut Connection) {
        match connection.client.socket_action() {
            SocketAction::CloseWhenFlushed => connection.pipe.end(false),
            SocketAction::ShutdownWhenFlushed => {
                self.agenda.shutdowns.push(connection.pipe.socket());
                connection.client.shut_down();
            }
            SocketAction::Stay | SocketAction::AwaitEnd | SocketAction::CloseNow { .. } => {}
        }
    }

    /// Lets go of what a connection held, whose descriptor is gone, and reports its end.
    pub(super) fn forget(&mut self, key: Key, mut connection: Connection) {
        self.agenda.client_timers.cancel(key.slot);
        let queued = connection.out.len() as u32;
        connection.out.clear(&mut self.pools.queues);
        if let Some(backlog) = connection.backlog_mut() {
            debug_assert_eq!(backlog.early, 0, "its auth request was over before it was");
            backlog.queue.clear(&mut self.pools.backlogs);
        }
        assert!(connection.counted.is_none(), "a client that is gone is counted no more");
        if connection.counted_paused {
            self.env.counters.decrement(Metric::ReadsPaused);
        }
        let client = &connection.client;
        let Some(end) = client.end() else { unreachable!("a connection that is over has an end") };
        client.leave(&self.env.context());
        self.env.counters.closed(end.cause, end.detail);
        self.env.count_gone(&connection, end.cause);
        let now = self.env.now.instant;
        let record = CloseRecord {
            connection: self.connection_number(key, &connection),
            subject: self.control.subjects.take(key.slot),
            cause: end.cause,
            detail: end.detail,
            by: end.by,
            stage: end.stage,
            code: end.code,
            dialect: client.dialect(),
            route: client.route(&self.env.routes),
            peer: client.peer(),
            age: now.since(client.accepted()),
            received_ago: now.since(client.received()),
            sent_ago: now.since(client.progressed()),
            queued,
        };
        self.log_close(record);
    }

    fn log_close(&mut self, record: CloseRecord) {
        if record.cause == Cause::HealthCheck {
            // Balancers ask every few seconds; `portcullis_closes_total` has them.
            return;
        }
        let rate = self.env.settings.limits.close_lines_per_second;
        let allowed = self.control.close_lines.take(1, rate, rate, self.env.now.instant);
        if !allowed || !self.control.mailbox.report(Report::Closed(record)) {
            self.env.counters.increment(Metric::LogLinesDropped);
        }
    }
}
