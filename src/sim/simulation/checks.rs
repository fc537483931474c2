//! What must hold in the middle of a run and at its end, as the whole of it shows.

use super::Simulation;
use crate::counters::Metric;
use crate::ring::Ring;
use crate::sim::backend::Backend;
use crate::sim::check::ConnId;
use crate::sim::net::MILLIS;
use crate::sim::numbers::named_adds_up;
use crate::sim::scenario::ACCEPTS;
use crate::worker::WHEEL_TICK;

/// How much later than its client a connection to a server may be closed, in nanoseconds: the
/// longest linger of a reload, a tick of the wheel, and a worker whose thread does not run.
const OUTLIVES_MAX: u64 = 1250 * MILLIS + WHEEL_TICK.as_nanos() as u64 + 400 * MILLIS;

impl<R: Ring + 'static> Simulation<R> {
    /// With no client left, nothing is queued, paused or counted as open.
    pub(super) fn check_gauges(&self) {
        use Metric::*;
        for metric in [
            StageTls,
            StageHead,
            StageAuthenticating,
            StageOpen,
            StageRefused,
            StageClosing,
            ReadsPaused,
            StalledInputBytes,
            QueuedBytes,
        ] {
            let value = self.counters.value(metric);
            if value != 0 {
                self.fail(format!("{metric:?} is {value} with no client left"));
            }
        }
        self.check_held();
        if let Err(why) = named_adds_up(&self.counters) {
            self.fail(why);
        }
        let links = if self.scenario.servers { 0 } else { self.scenario.backends.len() as u64 };
        let (ready, connections) =
            (self.counters.value(LinksReady), self.counters.value(UpstreamConnections));
        if ready != links || connections > 0 {
            self.fail(format!("{ready} links are ready, not {links}; {connections} of servers"));
        }
    }

    /// With no client left, the worker holds no memory of the ring, and backends no session.
    pub(super) fn check_held(&self) {
        let world = self.world.borrow();
        let sessions: usize = world.backends.iter().map(Backend::sessions).sum();
        let (buffers, slots) = world.kernel.held_by_worker();
        drop(world);
        if sessions > 0 {
            self.fail(format!("{sessions} sessions still open at the backends"));
        }
        if buffers + slots > 0 {
            self.fail(format!("the worker keeps {buffers} buffers and {slots} slots"));
        }
    }

    /// Queues stay within their bounds.
    pub(super) fn check_bounds(&self) {
        let sessions = 64;
        let per_client = u64::from(self.scenario.session_window) + 64 * 1024;
        let per_link = u64::from(self.scenario.backends[0].limits.link_window) + 1024 * 1024;
        let links = self.scenario.backends.len() as u64;
        let bound = sessions * per_client + links * per_link;
        let queued = self.counters.value(Metric::QueuedBytes);
        if queued > bound {
            self.fail(format!("{queued} bytes queued, {bound} allowed"));
        }
    }

    /// The adversary never has more open than the cap, but for what is being closed: one for
    /// each accept that may complete in a turn.
    pub(super) fn check_caps(&self) {
        let mut world = self.world.borrow_mut();
        let open = world.open_clients();
        let his = open.iter().filter(|conn| world.net.conn(**conn).floods_from.is_some()).count();
        let most = self.scenario.caps.1 as usize + 4 * ACCEPTS;
        if his > most {
            world.net.check.fail(format!("{his} connections of the adversary's are open"));
        }
    }

    /// What clients can do is no server's failure, and no connection to a server outlives its
    /// client by more than it takes to close it.
    pub(super) fn check_servers(&self) {
        let failures = self.counters.value(Metric::UpstreamFailures);
        let mut world = self.world.borrow_mut();
        world.net.check.failed(failures);
        let net = &world.net;
        let outlives = |conn: &ConnId| {
            let closed = net.conn(*conn).client.and_then(|client| net.conn(client).closed_at);
            closed.is_some_and(|at| net.now > at + OUTLIVES_MAX)
        };
        let kept = world.kernel.open().map(|(_, conn)| conn).find(outlives);
        if let Some(conn) = kept {
            let client = world.net.conn(conn).client;
            let why = format!("connection {conn} to a server outlives its client's, {client:?}");
            world.net.check.fail(why);
        }
    }

    pub(super) fn check_end(&mut self) {
        let world = &mut *self.world.borrow_mut();
        let cut_short = world.net.check.cut_short_honest;
        if self.scenario.floods && cut_short > 0 {
            world.net.check.fail(format!("{cut_short} honest connections were cut short"));
        }
        if world.net.check.failure().is_some() {
            return;
        }
        if !self.stopped {
            return world.net.check.fail("the worker does not stop".into());
        }
        let open: Vec<u32> = world.kernel.open().map(|(socket, _)| socket).collect();
        if !open.is_empty() {
            world.net.check.fail(format!("descriptors {open:?} left open"));
        }
        if world.kernel.is_listening(0) {
            world.net.check.fail("the listener is left open".into());
        }
        if !world.kernel.all_free() || world.kernel.in_flight() > 0 {
            let (buffers, slots) = world.kernel.held_by_worker();
            let flying = world.kernel.in_flight();
            world.net.check.fail(format!(
                "not all came back: {buffers} buffers, {slots} slots, {flying} operations"
            ));
        }
    }
}
