//! Revocations in a worker: what the control thread says must not be is looked for among the
//! open connections; what a backend revokes goes to the control thread.

use std::sync::Arc;
use std::time::Duration;

use crate::base::time::Instant;
use crate::connection::link::Failure;
use crate::counters::Metric;
use crate::protocol::cause::Cause;
use crate::protocol::revocation::{Revocation, Revoked};

use super::mailbox::Report;
use super::{Core, context};

/// Slots looked at in one turn, so that nobody waits long for a worker that sweeps. Even with a
/// million connections a sweep is over within 123 turns.
const SWEEP_SLOTS: u32 = 8192;
/// Revocations of backends that may wait for the control thread. A backend that goes on loses
/// its link, so that it knows.
const OWED_MAX: usize = 4096;
/// How soon the control thread is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(10);

/// A look at every connection, in parts. However many revocations come meanwhile, one more sweep
/// after this one meets them all.
#[derive(Default)]
pub(super) struct Sweep {
    /// The next slot to look at; `None` when no sweep is under way.
    slot: Option<u32>,
    /// Revocations came since it began.
    again: bool,
}

impl Core {
    pub(super) fn take_revoked(&mut self, revoked: Arc<Revoked>) {
        self.revoked = revoked;
        self.sweep.again = self.sweep.slot.is_some();
        self.sweep.slot.get_or_insert(0);
    }

    /// Closes the open connections of a part of the slab that are revoked.
    pub(super) fn sweep_revoked(&mut self) {
        let Some(begin) = self.sweep.slot else { return };
        let slots = self.connections.slots();
        let end = slots.min(begin.saturating_add(SWEEP_SLOTS));
        for slot in begin..end {
            let Some(key) = self.connections.key_of(slot) else { continue };
            let Some(connection) = self.connections.entry_mut(key) else { continue };
            let client = &mut connection.client;
            if !client.is_open() || !self.revoked.holds(client.mark(), self.now.unix) {
                continue;
            }
            self.counters.increment(Metric::RevokedClosed);
            client.close(Cause::TokenRevoked, &context!(self), &mut self.output);
            self.send_answers(key);
            self.settle(key);
        }
        self.sweep.slot = match self.sweep.again {
            _ if end < slots => Some(end),
            true => Some(0),
            false => None,
        };
        self.sweep.again &= end < slots;
    }

    /// A backend revoked something. All its workers must know, and the file, so the control
    /// thread is told; none is ever lost on the way.
    pub(super) fn revoke(&mut self, link: usize, revocation: Revocation) {
        if self.revocations_owed.len() >= OWED_MAX {
            return self.fail_link(link, &Failure::TooManyRevocations);
        }
        self.revocations_owed.push_back(revocation);
        self.report_revocations();
    }

    /// Hands the control thread as many as it takes.
    pub(super) fn report_revocations(&mut self) {
        while let Some(revocation) = self.revocations_owed.pop_front() {
            match self.mailbox.try_report(Report::Revoke(revocation)) {
                Ok(()) => {}
                Err(Report::Revoke(revocation)) => {
                    return self.revocations_owed.push_front(revocation);
                }
                Err(_) => unreachable!("what comes back is what was sent"),
            }
        }
    }

    /// When there is more to do here.
    pub(super) fn next_revocation_work(&self) -> Instant {
        if self.sweep.slot.is_some() {
            self.now.instant
        } else if !self.revocations_owed.is_empty() {
            self.now.instant + RETRY_EVERY
        } else {
            Instant::NEVER
        }
    }
}
