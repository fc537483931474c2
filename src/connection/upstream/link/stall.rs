//! Clients that wait because their backend takes nothing more of them.

use std::time::Duration;

use crate::base::time::Instant;

/// The sessions of a link whose clients' input waits, and since when no credit has come at all.
/// A session that waits while credit comes for others is not the backend's standstill.
#[derive(Default)]
pub(super) struct Stall {
    waiting: u32,
    /// When the first began to wait, or the last credit came; while there are any.
    since: Option<Instant>,
    /// This standstill was reported.
    reported: bool,
}

impl Stall {
    /// A session waits whose flag this is.
    pub(super) fn begin(&mut self, stalled: &mut bool, now: Instant) {
        if !std::mem::replace(stalled, true) {
            self.waiting += 1;
            self.since.get_or_insert(now);
        }
    }

    /// A session may send again, or is closed.
    pub(super) fn end(&mut self, stalled: &mut bool) {
        if std::mem::take(stalled) {
            self.waiting -= 1;
            if self.waiting == 0 {
                *self = Stall::default();
            }
        }
    }

    /// The backend gave credit, for whichever session.
    pub(super) fn credit(&mut self, now: Instant) {
        if let Some(since) = &mut self.since {
            *since = now;
            self.reported = false;
        }
    }

    /// When it is to be reported, if it goes on.
    pub(super) fn deadline(&self, after: Duration) -> Instant {
        match self.since {
            Some(since) if !self.reported => since + after,
            _ => Instant::NEVER,
        }
    }

    /// How many sessions wait in a standstill that is to be reported now: once for each.
    pub(super) fn take_due(&mut self, now: Instant, after: Duration) -> Option<u32> {
        let due = now >= self.deadline(after);
        self.reported |= due;
        due.then_some(self.waiting)
    }
}
