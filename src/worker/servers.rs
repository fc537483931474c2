//! The WebSocket servers of a worker's backends: which of them a client gets, and which of them rest
//! after failures.

use std::sync::Arc;

use crate::base::circuit::{Circuit, CircuitLimits, CircuitState, Permit};
use crate::base::random::Random;
use crate::base::rendezvous;
use crate::base::time::Instant;
use crate::counters::{Counters, EndpointMetric, Row};
use crate::protocol::cause::Cause;
use crate::ring::Ring;
use crate::settings::{Balance, Settings, WebSocketBackend};

use super::core::Environment;
use super::endpoint_plan::{Assignment, EndpointPlan, LinkTarget, Place, Standing};

/// Where the servers' numbers begin in the ring's table of endpoints, behind all links.
const FIRST_ENDPOINT: u16 = 4096;

/// One server of one backend.
pub(super) struct Server {
    pub(super) target: Arc<LinkTarget>,
    pub(super) standing: Standing,
    /// Connections to it, those included that are being made.
    connections: u32,
    /// Those of them whose handshake is under way.
    handshakes: u32,
    /// Of its address, for balance by hash.
    name: u64,
    circuit: Circuit,
    /// When it last answered a handshake, whatever it said.
    answered: Option<Instant>,
    row: Row<EndpointMetric>,
}

impl Server {
    /// Whether it gets no clients after failures, but perhaps one to try it.
    fn rests(&self) -> bool {
        self.circuit.state() != CircuitState::Closed
    }
}

/// The servers of one backend.
struct Group {
    servers: Vec<u16>,
    /// Where round robin goes on.
    next: usize,
}

/// All servers of a worker, in slots that are used again.
#[derive(Default)]
pub(super) struct ServerTable {
    servers: Vec<Server>,
    /// In the order of the settings' backends.
    groups: Vec<Group>,
    /// Slots of no endpoint.
    free: Vec<u16>,
    /// Slots whose address the ring has to get.
    claimed: Vec<u16>,
    /// Of all servers.
    connections: u64,
    /// Servers that take connections, and those that rest, as far as nothing `changed` since.
    counted: (u64, u64),
    changed: bool,
    counters: Arc<Counters>,
}

impl Server {
    /// Whether one more connection is within the backend's bounds.
    fn has_room(&self, backend: Option<&WebSocketBackend>) -> bool {
        backend.is_some_and(|backend| {
            self.handshakes < backend.handshakes_max
                && backend.sessions_max.is_none_or(|most| self.connections < most)
        })
    }
}

impl ServerTable {
    /// The servers that the settings name.
    pub(super) fn new(env: &Environment, random: &mut Random) -> Self {
        let counters = Arc::clone(&env.counters);
        let mut table = ServerTable { counters, ..ServerTable::default() };
        table.adopt(env, random);
        table
    }

    fn assign(&self, settings: &Settings, plan: &EndpointPlan, now: Instant) -> Assignment {
        let servers = self.servers.iter().enumerate();
        let listed = servers.filter(|(_, server)| server.standing.backend().is_some());
        let listed = listed.map(|(slot, server)| (slot as u16, &*server.target));
        Assignment::new(listed, settings, plan, |backend| backend.server.is_some(), now)
    }

    /// Whether there are slots for the servers that these settings add.
    pub(super) fn has_room(&self, settings: &Settings, plan: &EndpointPlan) -> bool {
        let assignment = self.assign(settings, plan, Instant::NEVER);
        assignment.fits(self.servers.len(), self.free.len())
    }

    /// Gives every server its slot. Whether the clients of one are to be closed.
    pub(super) fn adopt(&mut self, env: &Environment, random: &mut Random) -> bool {
        let assignment = self.assign(&env.settings, &env.endpoints, env.now.instant);
        self.take(assignment, &env.settings, random)
    }

    fn take(&mut self, assignment: Assignment, settings: &Settings, random: &mut Random) -> bool {
        self.changed = true;
        let Assignment { groups, left } = assignment;
        let mut adopted = Vec::with_capacity(groups.len());
        for (index, places) in groups.into_iter().enumerate() {
            let standing = Standing::Listed { backend: index as u16 };
            let limits = settings.backends[index].server.as_ref().map(|server| server.circuit);
            let mut servers = Vec::with_capacity(places.len());
            for Place { target, slot } in places {
                let limits = limits.expect("only servers have places here");
                let slot = slot.unwrap_or_else(|| self.claim(target, limits));
                let server = &mut self.servers[usize::from(slot)];
                server.standing = standing;
                server.circuit.set_limits(limits);
                servers.push(slot);
            }
            // Workers begin round robin at different servers.
            let count = servers.len();
            let next = if count > 0 { random.below(count as u64) as usize } else { 0 };
            adopted.push(Group { servers, next });
        }
        self.groups = adopted;
        left.into_iter().fold(false, |any, (slot, standing)| self.retire(slot, standing) | any)
    }

    /// A server takes no new connection. Whether its clients are to be closed.
    fn retire(&mut self, slot: u16, standing: Standing) -> bool {
        let server = &mut self.servers[usize::from(slot)];
        server.standing = standing;
        let closes = server.connections > 0 && matches!(standing, Standing::Leaving { .. });
        self.free_if_over(slot);
        closes
    }

    /// Has those leave that are there only for their clients. Whether there are any.
    pub(super) fn clear_retired(&mut self, leaving: Standing) -> bool {
        let is_retired = |table: &Self, slot: &u16| {
            matches!(table.server(*slot).standing, Standing::Retired { .. })
        };
        let slots = 0..self.servers.len() as u16;
        let retired: Vec<u16> = slots.filter(|slot| is_retired(self, slot)).collect();
        retired.into_iter().fold(false, |any, slot| self.retire(slot, leaving) | any)
    }

    /// A slot for a server that has none.
    fn claim(&mut self, target: LinkTarget, limits: CircuitLimits) -> u16 {
        let names = [&*target.backend, &*target.configured.to_string()];
        let server = Server {
            name: rendezvous::hash(target.address.to_string().as_bytes()),
            row: self.counters.endpoints.row(&names),
            target: Arc::new(target),
            standing: Standing::Free,
            connections: 0,
            handshakes: 0,
            circuit: Circuit::new(limits),
            answered: None,
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.servers[usize::from(slot)] = server;
                slot
            }
            None => {
                self.servers.push(server);
                self.servers.len() as u16 - 1
            }
        };
        self.claimed.push(slot);
        slot
    }

    /// Whether its endpoint was removed, and its last connection is over: another may have the slot.
    fn free_if_over(&mut self, slot: u16) {
        let server = &mut self.servers[usize::from(slot)];
        if server.standing.is_ending() && server.connections == 0 {
            server.standing = Standing::Free;
            if server.rests() {
                self.counters.endpoints.subtract(server.row, EndpointMetric::Resting, 1);
            }
            self.free.push(slot);
            self.changed = true;
        }
    }

    /// Tells the ring where new servers are, before it is asked to connect to them.
    pub(super) fn give_addresses(&mut self, ring: &mut impl Ring) {
        for slot in std::mem::take(&mut self.claimed) {
            let address = self.server(slot).target.address.clone();
            ring.set_endpoint(self.endpoint(slot), address);
        }
    }

    /// A server's number in the ring's endpoint table.
    pub(super) fn endpoint(&self, server: u16) -> u16 {
        FIRST_ENDPOINT + server
    }

    /// The server with this number.
    pub(super) fn server(&self, server: u16) -> &Server {
        &self.servers[usize::from(server)]
    }

    /// Chooses a server of `backend` for one more connection, other than the one that has just
    /// `failed`; `affinity` is what that depends on where the settings say so.
    ///
    /// # Errors
    /// Why none takes one more.
    pub(super) fn choose(
        &mut self,
        backend: u16,
        affinity: Option<u64>,
        failed: Option<u16>,
        settings: &Settings,
        now: Instant,
    ) -> Result<(u16, Permit), Cause> {
        let group = &mut self.groups[usize::from(backend)];
        let count = group.servers.len();
        let server = |place: usize| &self.servers[usize::from(group.servers[place])];
        let order = (0..count).map(|step| (group.next + step) % count);
        let backend = &settings.backends[usize::from(backend)];
        let well = |place: &usize| {
            failed != Some(group.servers[*place]) && server(*place).circuit.may_admit(now)
        };
        let has_room = |place: &usize| server(*place).has_room(backend.server.as_ref());
        let mut able = order.clone().filter(well).filter(has_room);
        let chosen = match (backend.hash_key().and(affinity), backend.balance) {
            // One that is full has the next place take its values, as one that rests does.
            (Some(value), _) => {
                rendezvous::choose(value, able.map(|place| (place, server(place).name)))
            }
            (None, Balance::RoundRobin) => able.next(),
            (None, Balance::LeastSessions) => able.min_by_key(|place| server(*place).connections),
        };
        let Some(place) = chosen else {
            let full = order.clone().any(|place| well(&place));
            return Err(if full { Cause::OverCapacity } else { Cause::BackendUnavailable });
        };
        let slot = group.servers[place];
        let server = &mut self.servers[usize::from(slot)];
        let permit = server.circuit.admit(now).ok_or(Cause::BackendUnavailable)?;
        server.connections += 1;
        server.handshakes += 1;
        self.connections += 1;
        self.changed = true;
        self.counters.endpoints.increment(server.row, EndpointMetric::Sessions);
        group.next = (place + 1) % count;
        Ok((slot, permit))
    }

    /// A connection to a server is gone.
    pub(super) fn left(&mut self, server: u16) {
        let slot = server;
        let server = &mut self.servers[usize::from(slot)];
        server.connections -= 1;
        self.connections -= 1;
        self.counters.endpoints.subtract(server.row, EndpointMetric::Sessions, 1);
        self.free_if_over(slot);
    }

    /// A server answered, whatever it said.
    pub(super) fn answered(&mut self, server: u16, permit: Permit, now: Instant) {
        self.changed = true;
        let server = &mut self.servers[usize::from(server)];
        server.answered = Some(now);
        server.handshakes -= 1;
        let rested = server.rests();
        server.circuit.succeeded(permit);
        if rested && !server.rests() {
            self.counters.endpoints.subtract(server.row, EndpointMetric::Resting, 1);
        }
    }

    /// Whether a server has answered a handshake since then.
    pub(super) fn answered_since(&self, server: u16, then: Instant) -> bool {
        self.server(server).answered.is_some_and(|at| at >= then)
    }

    /// A server took a client.
    pub(super) fn accepted(&self, server: u16) {
        self.counters.endpoints.increment(self.server(server).row, EndpointMetric::Connects);
    }

    /// A server failed. Whether it rests now, and did not before.
    pub(super) fn failed(
        &mut self,
        server: u16,
        permit: Permit,
        now: Instant,
        jitter: u32,
    ) -> bool {
        self.changed = true;
        let server = &mut self.servers[usize::from(server)];
        server.handshakes -= 1;
        let rested = server.rests();
        server.circuit.failed(permit, now, jitter);
        let rests = !rested && server.rests();
        self.counters.endpoints.increment(server.row, EndpointMetric::Failures);
        self.counters.endpoints.add(server.row, EndpointMetric::Resting, u64::from(rests));
        rests
    }

    /// An attempt was given up for reasons that are not the server's.
    pub(super) fn abandoned(&mut self, server: u16, permit: Permit, now: Instant) {
        self.changed = true;
        let server = &mut self.servers[usize::from(server)];
        server.handshakes -= 1;
        server.circuit.abandoned(permit, now);
    }

    /// Connections to all of them.
    pub(super) fn connections(&self) -> u64 {
        self.connections
    }

    /// Servers that take connections, and those that rest.
    pub(super) fn ready_and_resting(&mut self) -> (u64, u64) {
        if !std::mem::take(&mut self.changed) {
            return self.counted;
        }
        let used = self.servers.iter().filter(|server| server.standing != Standing::Free);
        let ready = used.filter(|server| !server.rests()).count();
        self.counted = (ready as u64, (self.servers.len() - self.free.len() - ready) as u64);
        self.counted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::EndpointAddress;
    use crate::settings::endpoint::Endpoint;
    use crate::settings::load::test_settings;
    use crate::settings::{Backend, RevokeScope};

    fn backend(name: &str, ports: &[u16]) -> Backend {
        let tcp =
            |port: &u16| Endpoint::Address(EndpointAddress::Tcp(([127, 0, 0, 1], *port).into()));
        Backend {
            name: name.into(),
            endpoints: ports.iter().map(tcp).collect(),
            balance: Balance::RoundRobin,
            secret: None,
            revoke: RevokeScope::None,
            server: Some(WebSocketBackend::default()),
        }
    }

    #[test]
    fn a_removed_server_keeps_its_slot_until_its_last_connection_is_over() {
        let now = Instant::from_nanos(1);
        let mut random = Random::from_seed([1; 32]);
        let mut settings = test_settings();
        settings.backends = vec![backend("a", &[1]), backend("b", &[2])];
        let mut table = ServerTable::default();
        let plan = EndpointPlan::default();
        let mut adopt = |table: &mut ServerTable, settings: &Settings| {
            table.take(table.assign(settings, &plan, now), settings, &mut random)
        };
        assert!(!adopt(&mut table, &settings));
        let (of_a, permit) = table.choose(0, None, None, &settings, now).expect("a server");
        table.answered(of_a, permit, now);

        // Another backend has its index now, and it is not there itself.
        settings.backends = vec![backend("b", &[2]), backend("c", &[3])];
        assert!(adopt(&mut table, &settings), "it has a connection");
        assert_eq!(table.server(of_a).standing, Standing::Leaving { since: now });
        assert_eq!(table.server(of_a).target.backend, "a");
        let (of_b, _permit) = table.choose(0, None, None, &settings, now).expect("a server");
        let (of_c, _permit) = table.choose(1, None, None, &settings, now).expect("a server");
        assert_eq!(table.ready_and_resting(), (3, 0));
        assert_eq!(table.server(of_b).target.backend, "b");
        assert!(of_c != of_a && of_c != of_b);

        let counted = |table: &ServerTable, backend: &str, metric| {
            let port = u32::from(backend.as_bytes()[0] - b'a' + 1);
            table.counters.endpoints.value(&[backend, &format!("127.0.0.1:{port}")], metric)
        };
        assert_eq!(counted(&table, "a", EndpointMetric::Sessions), 1);
        table.left(of_a);
        assert_eq!(
            (table.server(of_a).standing, table.ready_and_resting()),
            (Standing::Free, (2, 0))
        );
        for _ in 0..WebSocketBackend::default().circuit.failures {
            let (of_c, permit) = table.choose(1, None, None, &settings, now).expect("a server");
            table.failed(of_c, permit, now, 0);
            table.left(of_c);
        }
        assert_eq!(counted(&table, "c", EndpointMetric::Failures), 3);
        assert_eq!(counted(&table, "c", EndpointMetric::Resting), 1);
        settings.backends.push(backend("d", &[4]));
        assert!(!adopt(&mut table, &settings));
        let (of_d, _permit) = table.choose(2, None, None, &settings, now).expect("a server");
        assert_eq!(of_d, of_a, "the slot is used again");
        assert_eq!(counted(&table, "a", EndpointMetric::Sessions), 0);
        assert_eq!(counted(&table, "d", EndpointMetric::Sessions), 1);
        // One that rests is removed, and does not rest for good in the metrics.
        table.left(of_c);
        settings.backends.remove(1);
        adopt(&mut table, &settings);
        assert_eq!(counted(&table, "c", EndpointMetric::Resting), 0);
    }
}
