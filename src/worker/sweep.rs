//! One sweep over the connections, in bounded parts, for everything that concerns all of them:
//! no turn looks at all connections.
//!
//! What a connection does by itself during a sweep is right already: a new one begins under what
//! holds now, a token is compared with the latest revocations, a route is looked up in the
//! latest order, and the session of a lost link takes nothing. So the sweep only has to come by,
//! and it has come by every connection after as many turns as [`SWEEP_SLOTS`](super::SWEEP_SLOTS)
//! and [`CLOSES_PER_TURN`] make of the slots and of the connections that it closes.

use std::collections::VecDeque;
use std::time::Duration;

use crate::base::laps::{Duties, Laps, Position};
use crate::counters::Metric;
use crate::protocol::cause::Cause;

use super::clients::Connection;
use super::core::{Core, Parts};
use super::reconcile::Reconciled;
use super::sessions::Session;

/// Connections that a sweep closes in one turn: each costs a close frame, and a send, in that
/// turn and the completions of its end in later ones.
pub(super) const CLOSES_PER_TURN: u32 = 512;
/// Over how long the closes of a lost link's clients are spread.
const LOSS_SPREAD: Duration = Duration::from_secs(1);
/// How long a send must have made no progress for its client to be a slow reader.
const SLOW_AFTER: Duration = Duration::from_secs(1);

/// What the sweep does to each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    /// A reload changed the order of the routes.
    Routes,
    /// A reload may have shortened deadlines, under which timers were set.
    Deadlines,
    /// Tokens were revoked.
    Revocations,
    /// Memory is short.
    SlowReaders,
    /// Links were lost, and their sessions with them.
    LostLinks,
    /// A drain has begun: closes are drawn within its window.
    ScheduleDrain,
    /// The window is over.
    Close,
    /// What came after the window is over, too.
    Drop,
}

const DUTIES: usize = Duty::Drop as usize + 1;

/// The sweep, and the lost links whose clients it is looking for.
#[derive(Default)]
pub(super) struct Sweep {
    laps: Laps<DUTIES>,
    /// With the place where the sweep has come by all of the link's clients, in order.
    lost: VecDeque<(u16, Position)>,
}

impl Sweep {
    pub(super) fn begin(&mut self, duty: Duty) {
        self.laps.begin(duty as usize);
    }

    pub(super) fn cancel(&mut self, duty: Duty) {
        self.laps.cancel(duty as usize);
    }

    pub(super) fn does(&self, duty: Duty) -> bool {
        self.laps.is_under_way(duty as usize)
    }

    /// A link was lost that had sessions.
    pub(super) fn begin_lost(&mut self, link: u16) {
        let end = self.laps.begin(Duty::LostLinks as usize);
        self.lost.push_back((link, end));
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.laps.is_any_under_way() || !self.lost.is_empty()
    }
}

impl Core {
    /// Does a turn's part of the sweeps, if any is under way.
    pub(super) fn sweep(&mut self) -> bool {
        if !self.parts.sweep.is_under_way() && !self.parts.links.is_swept() {
            return false;
        }
        let mut slots_left = self.parts.options.sweep_slots;
        let mut closes_left = CLOSES_PER_TURN;
        while slots_left > 0 && closes_left > 0 {
            let slots = self.clients.slots();
            let laps = &mut self.parts.sweep.laps;
            let Some((part, duties)) = laps.advance(slots, slots_left) else { break };
            slots_left -= part.len() as u32;
            for slot in part {
                closes_left -= u32::from(self.sweep_slot(slot, duties));
                if closes_left == 0 {
                    self.parts.sweep.laps.back_to(slot + 1);
                    break;
                }
            }
        }
        self.parts.forget_lost_sessions();
        self.sweep_links();
        true
    }

    /// Whether this closed a client.
    fn sweep_slot(&mut self, slot: u32, duties: Duties) -> bool {
        let Some((key, connection)) = self.clients.slot_mut(slot) else { return false };
        let ends = self.parts.sweep_client(connection, duties);
        if !ends {
            self.parts.schedule_deadline(key, connection);
        } else if self.parts.reconcile(key, connection) == Reconciled::Over {
            self.forget_client(key);
        }
        ends
    }
}

impl Parts {
    /// Whether this closed it.
    fn sweep_client(&mut self, connection: &mut Connection, duties: Duties) -> bool {
        let does = |duty: Duty| duties.has(duty as usize);
        if does(Duty::Routes) {
            // First, so that what follows is said and logged under the route as it is now.
            connection.client.renew_route(&self.env.routes);
        }
        if does(Duty::ScheduleDrain)
            && let Some(drain) = &self.control.drain
        {
            let at = drain.draw(&mut self.random);
            connection.client.schedule_close(at, Cause::GoingAway);
        }
        if does(Duty::LostLinks)
            && matches!(connection.session, Some(Session::Link { link, .. }) if self.links.is_lost(link))
        {
            connection.session = None;
            let at = self.env.now.instant + self.random.duration_below(LOSS_SPREAD);
            connection.client.schedule_close(at, Cause::BackendUnavailable);
        }
        (does(Duty::Revocations) && self.close_if_revoked(connection))
            || (does(Duty::SlowReaders) && self.drop_if_slow(connection))
            || (does(Duty::Close) && self.close_for_drain(connection))
            || (does(Duty::Drop) && self.drop_for_drain(connection))
    }

    pub(super) fn close_if_revoked(&mut self, connection: &mut Connection) -> bool {
        if !self.is_revoked(connection) {
            return false;
        }
        self.env.counters.increment(Metric::RevokedClosed);
        connection.client.close(Cause::TokenRevoked, &self.env.context(), &mut self.scratch.output);
        self.send_answers(connection);
        true
    }

    /// What waits for a client that does not read is what is to be given back, so nothing more
    /// is queued for it, not even an explanation.
    fn drop_if_slow(&mut self, connection: &mut Connection) -> bool {
        let since = self.env.now.instant.since(connection.client.progressed());
        if connection.pipe.is_ending() || connection.unsent() == 0 || since < SLOW_AFTER {
            return false;
        }
        self.env.counters.increment(Metric::MemoryCloses);
        connection.client.drop_silently(Cause::SlowConsumer, &self.env.context());
        true
    }

    /// The scheduled closes were due within this tick of the wheel, or the window is none at
    /// all: those that are left are owed the same answer.
    fn close_for_drain(&mut self, connection: &mut Connection) -> bool {
        let output = &mut self.scratch.output;
        connection.client.close(Cause::GoingAway, &self.env.context(), output);
        self.send_answers(connection);
        true
    }

    fn drop_for_drain(&mut self, connection: &mut Connection) -> bool {
        connection.client.drop_silently(Cause::GoingAway, &self.env.context());
        true
    }

    /// The sweep has come by all clients of the links that were lost first: nothing names their
    /// sessions any more, and they may be connected again.
    fn forget_lost_sessions(&mut self) {
        while let Some((link, end)) = self.sweep.lost.front().copied() {
            if !self.sweep.laps.has_passed(end) && self.sweep.does(Duty::LostLinks) {
                return;
            }
            self.sweep.lost.pop_front();
            self.links.forget_sessions(link, &mut self.agenda);
        }
    }
}
