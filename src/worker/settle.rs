//! After anything that happened to a connection: session, caps, operations, deadline and end are
//! brought in line with what its client's machine says.

use crate::base::slab::Key;
use crate::base::time::Instant;
use crate::connection::client::SocketAction;
use crate::connection::stage::ClosedBy;
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::link::{Close, Closer};
use crate::ring::Owner;

use super::Core;
use super::auth_requests::Asking;
use super::mailbox::{CloseRecord, Report};
use super::sockets::Reading;

impl Core {
    /// Brings everything about a connection in line with its client's machine: session, caps,
    /// operations, deadline. To be called after each thing that happened to it.
    pub(super) fn settle(&mut self, owner: Key) {
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        connection.touched = false;
        if !self.output.refused_origin.is_empty() {
            self.report_refused_origin(owner);
        }
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        let in_session = connection.client.is_open() || connection.client.awaits_decision();
        if !in_session && connection.session.is_some() {
            self.end_session(owner);
        }
        let Some(connection) = self.connections.entry(owner) else { return };
        if connection.asking() != Asking::NOBODY && !connection.client.awaits_decision() {
            self.stop_asking(owner);
        }
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        if connection.blocked && !in_session {
            // What waits is thrown away frame by frame, so that the client's own close is found.
            return self.resume(owner);
        }
        let paused = connection.blocked && connection.asking() == Asking::NOBODY;
        if paused != connection.counted_paused {
            connection.counted_paused = paused;
            match paused {
                true => self.env.counters.increment(Metric::ReadsPaused),
                false => self.env.counters.decrement(Metric::ReadsPaused),
            }
        }
        self.apply_disposition(owner);
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        if connection.unauthenticated {
            self.recount(owner);
        }
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        if connection.pipe.is_over() {
            return self.remove(owner);
        }
        let unread = !connection.client.takes_input();
        connection.pipe.set_reading(if connection.asking() != Asking::NOBODY || unread {
            Reading::HangupOnly
        } else if connection.blocked {
            Reading::Paused
        } else if connection.cold || connection.client.is_close_delayed() {
            Reading::IdlePoll
        } else {
            Reading::Active
        });
        connection.pipe.reconcile(Owner::Client(owner), &mut self.ops);
        let idle = connection.pipe.can_send();
        if idle && !connection.dirty && !connection.out.is_empty() {
            connection.dirty = true;
            self.dirty.push_back(owner);
        }
        self.schedule_deadline(owner);
    }

    /// Sets a connection's timer, where it has none or one that fires too late.
    pub(super) fn schedule_deadline(&mut self, owner: Key) {
        let Some(connection) = self.connections.entry(owner) else { return };
        if connection.pipe.is_ending() {
            self.wheel.cancel(owner.slot);
            return;
        }
        let deadline = connection.client.next_deadline(&self.env.settings);
        let earlier = |scheduled: Instant| deadline < scheduled;
        if deadline != Instant::NEVER && self.wheel.scheduled(owner.slot).is_none_or(earlier) {
            self.wheel.schedule(owner.slot, deadline);
        }
    }

    fn apply_disposition(&mut self, owner: Key) {
        let Some(connection) = self.connections.entry_mut(owner) else { return };
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
                self.ciphertext.clear();
                connection.transport.close_notify(&mut self.ciphertext);
                let silent = self.ciphertext.is_empty();
                self.queue_ciphertext(owner);
                if silent {
                    self.end_flushed(owner);
                }
            }
            _ => self.end_flushed(owner),
        }
    }

    /// Everything queued is sent, and so the connection ends as its machine wants.
    fn end_flushed(&mut self, owner: Key) {
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        match connection.client.socket_action() {
            SocketAction::CloseWhenFlushed => connection.pipe.end(false),
            SocketAction::ShutdownWhenFlushed => {
                self.shutdowns.push(connection.pipe.socket());
                connection.client.shut_down();
            }
            SocketAction::Stay | SocketAction::AwaitEnd | SocketAction::CloseNow { .. } => {}
        }
    }

    fn end_session(&mut self, owner: Key) {
        let Some(connection) = self.connections.entry_mut(owner) else { return };
        let Some((link, id)) = connection.session.take() else { return };
        let Some(end) = connection.client.end() else {
            unreachable!("a client that is not open has an end")
        };
        let by_client = end.cause == Cause::ClientClosed;
        let reason = if by_client { self.output.reason.as_slice() } else { &[] };
        let close = Close {
            by: match end.by {
                ClosedBy::Client => Closer::Client,
                ClosedBy::Gateway | ClosedBy::Backend => Closer::Gateway,
            },
            label: end.cause.label(),
            code: end.code.unwrap_or(0),
            reason: std::str::from_utf8(reason).unwrap_or_default(),
        };
        self.links.close(link, id, &close);
    }

    /// The descriptor is gone and nothing is in flight: forgets the connection.
    fn remove(&mut self, owner: Key) {
        self.wheel.cancel(owner.slot);
        let Some(mut connection) = self.connections.remove(owner) else { return };
        let queued = connection.out.len() as u32;
        connection.out.clear(&mut self.queues);
        if let Some(stash) = connection.stash_mut() {
            debug_assert_eq!(stash.early, 0, "its question was over before it was");
            stash.queue.clear(&mut self.stashes);
        }
        assert!(!connection.unauthenticated, "whoever is gone is counted no more");
        if connection.counted_paused {
            self.env.counters.decrement(Metric::ReadsPaused);
        }
        let client = &connection.client;
        let Some(end) = client.end() else { unreachable!("a connection that is over has an end") };
        client.leave(&self.env.context());
        self.env.counters.closed(end.cause, end.detail);
        let now = self.env.now.instant;
        let record = CloseRecord {
            connection: self.number_of(owner, client.accepted().as_nanos()),
            subject: self.subjects.take(owner.slot),
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
        let allowed = self.close_lines.take(1, rate, rate, self.env.now.instant);
        if !allowed || !self.mailbox.report(Report::Closed(record)) {
            self.env.counters.increment(Metric::LogLinesDropped);
        }
    }
}
