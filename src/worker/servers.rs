//! The WebSocket servers of a worker's backends: which of them a client gets, and which of them rest
//! after failures.

use std::sync::Arc;
use std::time::Duration;

use crate::base::circuit::{Circuit, CircuitLimits, CircuitState, Permit};
use crate::base::random::Random;
use crate::base::time::Instant;
use crate::protocol::cause::Cause;
use crate::ring::Ring;
use crate::settings::{Balance, Settings};

use super::core::Environment;
use super::endpoint_plan::{Assignment, EndpointPlan, LinkTarget, Place, Standing};

/// Where the servers' numbers begin in the ring's table of endpoints, behind all links.
const FIRST_ENDPOINT: u16 = 4096;
/// Failures in a row after which a server rests.
const FAILURES: u32 = 3;
/// For how long at first, and at most.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// One server of one backend.
pub(super) struct Server {
    pub(super) target: Arc<LinkTarget>,
    pub(super) standing: Standing,
    /// Connections to it, those included that are being made.
    connections: u32,
    circuit: Circuit,
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
}

impl ServerTable {
    /// The servers that the settings name.
    pub(super) fn new(env: &Environment, random: &mut Random) -> Self {
        let mut table = ServerTable::default();
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
        self.take(self.assign(&env.settings, &env.endpoints, env.now.instant), random)
    }

    fn take(&mut self, assignment: Assignment, random: &mut Random) -> bool {
        let Assignment { groups, left } = assignment;
        let mut adopted = Vec::with_capacity(groups.len());
        for (index, places) in groups.into_iter().enumerate() {
            let standing = Standing::Listed { backend: index as u16 };
            let mut servers = Vec::with_capacity(places.len());
            for Place { target, slot } in places {
                let slot = slot.unwrap_or_else(|| self.claim(Arc::new(target)));
                self.servers[usize::from(slot)].standing = standing;
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
    fn claim(&mut self, target: Arc<LinkTarget>) -> u16 {
        let limits = CircuitLimits { failures: FAILURES, open_min: REST.0, open_max: REST.1 };
        let circuit = Circuit::new(limits);
        let server = Server { target, standing: Standing::Free, connections: 0, circuit };
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
            self.free.push(slot);
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

    /// Chooses a server of `backend` for one more connection.
    pub(super) fn choose(
        &mut self,
        backend: u16,
        settings: &Settings,
        now: Instant,
    ) -> Result<(u16, Permit), Cause> {
        let group = &mut self.groups[usize::from(backend)];
        let count = group.servers.len();
        let server = |place: usize| &self.servers[usize::from(group.servers[place])];
        let order = (0..count).map(|step| (group.next + step) % count);
        let able = order.filter(|place| server(*place).circuit.may_admit(now));
        let chosen = match settings.backends[usize::from(backend)].balance {
            Balance::RoundRobin => able.into_iter().next(),
            Balance::LeastSessions => able.min_by_key(|place| server(*place).connections),
        };
        let place = chosen.ok_or(Cause::BackendUnavailable)?;
        let slot = group.servers[place];
        let server = &mut self.servers[usize::from(slot)];
        let permit = server.circuit.admit(now).ok_or(Cause::BackendUnavailable)?;
        server.connections += 1;
        group.next = (place + 1) % count;
        Ok((slot, permit))
    }

    /// A connection to a server is gone.
    pub(super) fn left(&mut self, server: u16) {
        self.servers[usize::from(server)].connections -= 1;
        self.free_if_over(server);
    }

    /// A server answered, whatever it said.
    pub(super) fn answered(&mut self, server: u16, permit: Permit) {
        self.servers[usize::from(server)].circuit.succeeded(permit);
    }

    /// A server failed. Whether it rests now, and did not before.
    pub(super) fn failed(
        &mut self,
        server: u16,
        permit: Permit,
        now: Instant,
        jitter: u32,
    ) -> bool {
        let circuit = &mut self.servers[usize::from(server)].circuit;
        let rested = circuit.state() != CircuitState::Closed;
        circuit.failed(permit, now, jitter);
        !rested && circuit.state() == CircuitState::Open
    }

    /// An attempt was given up for reasons that are not the server's.
    pub(super) fn abandoned(&mut self, server: u16, permit: Permit, now: Instant) {
        self.servers[usize::from(server)].circuit.abandoned(permit, now);
    }

    /// Connections to all of them.
    pub(super) fn connections(&self) -> u64 {
        self.servers.iter().map(|server| u64::from(server.connections)).sum()
    }

    /// Servers that take connections, and those that rest.
    pub(super) fn ready_and_resting(&self) -> (u64, u64) {
        let used = self.servers.iter().filter(|server| server.standing != Standing::Free);
        let closed = |server: &&Server| server.circuit.state() == CircuitState::Closed;
        let ready = used.filter(closed).count();
        (ready as u64, (self.servers.len() - self.free.len() - ready) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::EndpointAddress;
    use crate::settings::endpoint::Endpoint;
    use crate::settings::load::test_settings;
    use crate::settings::{Backend, RevokeScope, WebSocketBackend};

    fn backend(name: &str, ports: &[u16]) -> Backend {
        let tcp =
            |port: &u16| Endpoint::Address(EndpointAddress::Tcp(([127, 0, 0, 1], *port).into()));
        Backend {
            name: name.into(),
            endpoints: ports.iter().map(tcp).collect(),
            balance: Balance::RoundRobin,
            secret: None,
            revoke: RevokeScope::None,
            server: Some(WebSocketBackend {}),
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
            table.take(table.assign(settings, &plan, now), &mut random)
        };
        assert!(!adopt(&mut table, &settings));
        let (of_a, permit) = table.choose(0, &settings, now).expect("a server");
        table.answered(of_a, permit);

        // Another backend has its index now, and it is not there itself.
        settings.backends = vec![backend("b", &[2]), backend("c", &[3])];
        assert!(adopt(&mut table, &settings), "it has a connection");
        assert_eq!(table.server(of_a).standing, Standing::Leaving { since: now });
        assert_eq!(table.server(of_a).target.backend, "a");
        let (of_b, _permit) = table.choose(0, &settings, now).expect("a server");
        let (of_c, _permit) = table.choose(1, &settings, now).expect("a server");
        assert_eq!((&*table.server(of_b).target.backend, table.ready_and_resting()), ("b", (3, 0)));
        assert!(of_c != of_a && of_c != of_b);

        table.left(of_a);
        assert_eq!(
            (table.server(of_a).standing, table.ready_and_resting()),
            (Standing::Free, (2, 0))
        );
        settings.backends.push(backend("d", &[4]));
        assert!(!adopt(&mut table, &settings));
        let (of_d, _permit) = table.choose(2, &settings, now).expect("a server");
        assert_eq!(of_d, of_a, "the slot is used again");
    }
}
