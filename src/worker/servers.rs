//! The WebSocket servers of a worker's backends: which of them a client gets, and which of them rest
//! after failures.

use std::time::Duration;

use crate::base::circuit::{Circuit, CircuitLimits, CircuitState, Permit};
use crate::base::random::Random;
use crate::base::time::Instant;
use crate::protocol::cause::Cause;
use crate::ring::EndpointAddress;
use crate::settings::{Balance, Settings};

/// Where the servers' numbers begin in the ring's table of endpoints, behind all links.
const FIRST_ENDPOINT: u16 = 4096;
/// Failures in a row after which a server rests.
const FAILURES: u32 = 3;
/// For how long at first, and at most.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// One server of one backend.
pub(super) struct Server {
    pub(super) backend: u16,
    pub(super) endpoint: u16,
    /// Connections to it, those included that are being made.
    connections: u32,
    circuit: Circuit,
}

/// The servers of one backend: a stretch of the table.
struct Group {
    first: usize,
    count: usize,
    /// Where round robin goes on.
    next: usize,
}

/// All servers of a worker, in the order of the settings.
pub(super) struct ServerTable {
    servers: Vec<Server>,
    groups: Vec<Group>,
}

impl ServerTable {
    /// The servers that the settings name.
    pub(super) fn new(settings: &Settings, random: &mut Random) -> Self {
        let (mut servers, mut groups) = (Vec::new(), Vec::new());
        let limits = CircuitLimits { failures: FAILURES, open_min: REST.0, open_max: REST.1 };
        for (backend, of) in settings.backends.iter().enumerate() {
            let count = if of.server.is_some() { of.endpoints.len() } else { 0 };
            // Workers begin round robin at different servers.
            let next = if count > 0 { random.below(count as u64) as usize } else { 0 };
            groups.push(Group { first: servers.len(), count, next });
            servers.extend((0..count).map(|endpoint| Server {
                backend: backend as u16,
                endpoint: endpoint as u16,
                connections: 0,
                circuit: Circuit::new(limits),
            }));
        }
        ServerTable { servers, groups }
    }

    /// The ring's endpoint table: number and address of every server.
    pub(super) fn addresses(&self, settings: &Settings) -> Vec<(u16, EndpointAddress)> {
        let address = |(number, server): (usize, &Server)| {
            let backend = &settings.backends[usize::from(server.backend)];
            let endpoint = backend.endpoints[usize::from(server.endpoint)].clone();
            (self.endpoint(number as u16), endpoint)
        };
        self.servers.iter().enumerate().map(address).collect()
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
        let servers = &mut self.servers[group.first..group.first + group.count];
        let order = (0..group.count).map(|step| (group.next + step) % group.count);
        let able = order.filter(|index| servers[*index].circuit.may_admit(now));
        let chosen = match settings.backends[usize::from(backend)].balance {
            Balance::RoundRobin => able.into_iter().next(),
            Balance::LeastSessions => able.min_by_key(|index| servers[*index].connections),
        };
        let index = chosen.ok_or(Cause::BackendUnavailable)?;
        let server = &mut servers[index];
        let permit = server.circuit.admit(now).ok_or(Cause::BackendUnavailable)?;
        server.connections += 1;
        group.next = (index + 1) % group.count;
        Ok(((group.first + index) as u16, permit))
    }

    /// A connection to a server is gone.
    pub(super) fn left(&mut self, server: u16) {
        self.servers[usize::from(server)].connections -= 1;
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
        let closed = |server: &&Server| server.circuit.state() == CircuitState::Closed;
        let ready = self.servers.iter().filter(closed).count() as u64;
        (ready, self.servers.len() as u64 - ready)
    }
}
