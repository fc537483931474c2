//! Revocations in a worker: what the control thread says must not be is looked for by the sweep;
//! what a backend revokes goes to the control thread.

use std::sync::Arc;
use std::time::Duration;

use crate::base::time::Instant;
use crate::connection::upstream::link::Failure;
use crate::counters::Metric;
use crate::protocol::revocation::{Revocation, Revoked};

use crate::settings::RevokeScope;

use super::Core;
use super::mailbox::Report;
use super::sweep::Duty;

/// Revocations of backends that may wait for the control thread. A backend that goes on loses
/// its link, so that it knows.
const OWED_MAX: usize = 4096;
/// How soon the control thread is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(10);

impl Core {
    pub(super) fn take_revoked(&mut self, revoked: Arc<Revoked>) {
        self.env.revoked = revoked;
        self.sweep.begin(Duty::Revocations);
    }

    /// A backend revoked something. All its workers must know, and the file, so the control
    /// thread is told; none is ever lost on the way.
    /// One whose block does not allow it, or whose link has proved no key, revokes nothing.
    pub(super) fn revoke(&mut self, link: usize, revocation: Revocation) {
        let backend = &self.env.settings.backends[self.links.backend(link)];
        if backend.revoke == RevokeScope::None || !self.links.proved_key(link) {
            return self.env.counters.increment(Metric::RevocationsIgnored);
        }
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
        if !self.revocations_owed.is_empty() {
            self.env.now.instant + RETRY_EVERY
        } else {
            Instant::NEVER
        }
    }
}
