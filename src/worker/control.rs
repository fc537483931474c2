//! The control thread's plan, and the drain.

use std::sync::Arc;
use std::time::Duration;

use crate::base::random::Random;
use crate::base::time::Instant;
use crate::settings::{Route, Settings};

use super::WorkerOptions;
use super::admission::Allowance;
use super::core::{Core, Parts};
use super::mailbox::{PlanChange, Report, WorkerOrder};
use super::rows::Rows;
use super::sweep::Duty;

/// How long after the drain's window the last bytes and closes may take.
const DRAIN_REST: Duration = Duration::from_secs(2);
/// How long after that the kernel may take to end what was in flight.
const DRAIN_JOIN: Duration = Duration::from_secs(1);

/// A drain under way.
pub(super) struct Drain {
    began: Instant,
    /// When the next step comes.
    pub(super) end: Instant,
    step: Step,
    listeners_closed: bool,
}

impl Drain {
    /// When a connection is to be closed: at random within the window, however late the sweep
    /// comes by.
    pub(super) fn draw(&self, random: &mut Random) -> Instant {
        self.began + random.duration_below(self.end.since(self.began))
    }

    /// The step that is over by `now`, if one is. The next one's end counts from where this one
    /// was to end: a late turn must not make the whole drain longer than was promised.
    fn advance(&mut self, now: Instant) -> Option<Step> {
        if self.end > now {
            return None;
        }
        let over = self.step;
        (self.end, self.step) = match over {
            Step::Window => (self.end + DRAIN_REST, Step::Rest),
            Step::Rest => (self.end + DRAIN_JOIN, Step::Join),
            Step::Join => (self.end, Step::Join),
        };
        Some(over)
    }
}

/// What a drain does until its `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Closes come at their drawn times.
    Window,
    /// Every client has been sent its close, and may answer.
    Rest,
    /// Those that were left are dropped; their operations are being joined.
    Join,
}

/// What a turn took of the settings and endpoints that are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Nothing,
    /// All of it: the endpoints are to be adopted.
    Plan,
    /// There are no slots for its endpoints yet.
    NoRoom,
}

impl Core {
    /// Takes in the latest plan, if it is a new one. Revocations first: no token may pass by new
    /// settings before.
    pub(super) fn take_plan(&mut self) -> bool {
        let change = self.parts.control.mailbox.take_plan();
        let worked = change.is_some() || self.parts.control.settings_due.is_some();
        if let Some(PlanChange { before, now }) = change {
            let before = before.as_deref();
            if before.is_none_or(|before| !Arc::ptr_eq(&before.revoked, &now.revoked)) {
                self.parts.take_revoked(Arc::clone(&now.revoked));
            }
            let (settings, endpoints) = (Arc::clone(&now.settings), Arc::clone(&now.endpoints));
            self.parts.control.settings_due = Some((settings, endpoints));
            if before.is_none_or(|before| before.memory != now.memory) {
                self.parts.set_pressure(now.memory.pressure);
            }
            match now.order {
                WorkerOrder::Serve => {}
                WorkerOrder::Drain { window } => self.parts.begin_drain(window),
                WorkerOrder::Stop => self.parts.control.stopped = true,
                WorkerOrder::Panic => panic!("told to panic"),
            }
        }
        match self.parts.take_settings() {
            Taken::Nothing => {}
            Taken::Plan => self.take_endpoints(),
            Taken::NoRoom => self.clear_retired(),
        }
        worked
    }

    /// Takes a drain to its next step when that is due.
    pub(super) fn advance_drain(&mut self) {
        let Parts { control, sweep, links, servers, agenda, env, acceptor, .. } = &mut self.parts;
        let Some(drain) = &mut control.drain else { return };
        match drain.advance(env.now.instant) {
            Some(Step::Window) => {
                sweep.cancel(Duty::ScheduleDrain);
                sweep.begin(Duty::Close);
            }
            Some(Step::Rest) => {
                sweep.cancel(Duty::Close);
                sweep.begin(Duty::Drop);
            }
            Some(Step::Join) => control.stopped = true,
            None => {}
        }
        if self.clients.is_empty() && drain.listeners_closed && acceptor.is_over() {
            links.end();
            control.stopped |= links.is_over(agenda) && servers.connections() == 0;
        }
        if control.stopped {
            control.mailbox.report(Report::Drained);
        }
    }
}

impl Parts {
    /// New settings hold for the connections that are there, too: a timer that was set under
    /// longer deadlines would fire too late.
    fn take_settings(&mut self) -> Taken {
        // Clients know their route by its place in one of the two latest orders, so one change of
        // the order must have reached all of them before the next.
        if self.sweep.does(Duty::Routes) {
            return Taken::Nothing;
        }
        let Some((settings, endpoints)) = self.control.settings_due.take() else {
            return Taken::Nothing;
        };
        let is_old = Arc::ptr_eq(&self.env.settings, &settings);
        if is_old && Arc::ptr_eq(&self.env.endpoints, &endpoints) {
            return Taken::Nothing;
        }
        // Links that earlier reloads removed give their slots back by the end of their window.
        if !self.links.has_room(&settings, &endpoints)
            || !self.servers.has_room(&settings, &endpoints)
        {
            self.control.settings_due = Some((settings, endpoints));
            return Taken::NoRoom;
        }
        self.env.endpoints = endpoints;
        if is_old {
            return Taken::Plan;
        }
        let same = settings.deadlines == self.env.settings.deadlines;
        self.move_routes(&settings);
        self.env.rows = Rows::new(&self.env.counters, &settings);
        self.env.settings = settings;
        let WorkerOptions { workers, descriptors_max, .. } = self.options;
        let settings = &self.env.settings;
        let clients_max = descriptors_max / settings.sockets_per_client();
        self.admission.allowance = Allowance::new(&settings.limits, workers, clients_max);
        if !same {
            self.links.deadlines_changed();
            self.sweep.begin(Duty::Deadlines);
        }
        Taken::Plan
    }

    /// Connections know their route by its number, and the new settings may have it elsewhere.
    fn move_routes(&mut self, settings: &Settings) {
        let (old, new) = (&self.env.settings.routes, &settings.routes);
        if old.iter().map(|route| &route.name).eq(new.iter().map(|route| &route.name)) {
            return;
        }
        // A route that was given another name is known by its path.
        let named = |old: &Route| new.iter().position(|route| route.name == old.name);
        let at = |old: &Route| new.iter().position(|route| route.path == old.path);
        let place = |old: &Route| named(old).or_else(|| at(old)).map(|place| place as u16);
        let moved = old.iter().map(place).collect();
        self.env.routes = self.env.routes.changed(moved);
        self.sweep.begin(Duty::Routes);
    }

    fn begin_drain(&mut self, window: Duration) {
        if self.control.drain.is_some() {
            return;
        }
        let began = self.env.now.instant;
        let end = began + window;
        self.control.drain =
            Some(Drain { began, end, step: Step::Window, listeners_closed: false });
        self.acceptor.stop(began);
        self.links.announce_drain();
        self.sweep.begin(Duty::ScheduleDrain);
    }

    /// The listeners, once, when a drain has taken what waited in their backlogs.
    pub(super) fn listeners_to_close(&mut self) -> std::ops::Range<u16> {
        let Some(drain) = &mut self.control.drain else { return 0..0 };
        if !self.acceptor.closes_listeners(self.env.now.instant) {
            return 0..0;
        }
        drain.listeners_closed = true;
        0..self.env.settings.listeners.len() as u16
    }

    /// When a connection that comes in a drain is to be closed.
    pub(super) fn closes_newcomer_at(&mut self) -> Option<Instant> {
        let Drain { end, step, .. } = self.control.drain.as_ref()?;
        let left = end.since(self.env.now.instant);
        let within = if *step == Step::Window { left } else { Duration::ZERO };
        Some(self.env.now.instant + self.random.duration_below(within))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_turns_do_not_lengthen_a_drain() {
        let millis = |millis: u64| Instant::from_nanos(millis * 1_000_000);
        let (began, end) = (millis(0), millis(2000));
        let mut drain = Drain { began, end, step: Step::Window, listeners_closed: false };
        let turns = [
            (1999, None, 2000),
            // A turn that comes 185 ms late.
            (2185, Some(Step::Window), 4000),
            (2186, None, 4000),
            (4300, Some(Step::Rest), 5000),
            (4999, None, 5000),
            (5000, Some(Step::Join), 5000),
        ];
        for (now, over, end) in turns {
            assert_eq!(drain.advance(millis(now)), over, "at {now} ms");
            assert_eq!(drain.end, millis(end), "at {now} ms");
        }
    }
}
