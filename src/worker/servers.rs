//! The WebSocket servers of a worker's backends: which of them a client gets, and which of them rest
//! after failures.

use crate::base::circuit::{Circuit, CircuitState, Permit};
use crate::base::random::Random;
use crate::base::rendezvous;
use crate::base::time::Instant;
use crate::protocol::cause::Cause;
use crate::ring::EndpointAddress;
use crate::settings::{Balance, Settings, WebSocketBackend};

/// Where the servers' numbers begin in the ring's table of endpoints, behind all links.
const FIRST_ENDPOINT: u16 = 4096;

/// One server of one backend.
pub(super) struct Server {
    pub(super) backend: u16,
    pub(super) endpoint: u16,
    /// Connections to it, those included that are being made.
    connections: u32,
    /// Those of them whose handshake is under way.
    handshakes: u32,
    /// Of its address, for balance by hash.
    name: u64,
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
    pub(super) fn new(settings: &Settings, random: &mut Random) -> Self {
        let (mut servers, mut groups) = (Vec::new(), Vec::new());
        for (backend, of) in settings.backends.iter().enumerate() {
            let Some(settings) = &of.server else {
                groups.push(Group { first: servers.len(), count: 0, next: 0 });
                continue;
            };
            let count = of.endpoints.len();
            // Workers begin round robin at different servers.
            let next = random.below(count as u64) as usize;
            groups.push(Group { first: servers.len(), count, next });
            servers.extend((0..count).map(|endpoint| Server {
                backend: backend as u16,
                endpoint: endpoint as u16,
                connections: 0,
                handshakes: 0,
                name: rendezvous::hash(of.endpoints[endpoint].to_string().as_bytes()),
                circuit: Circuit::new(settings.circuit),
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
        let servers = &mut self.servers[group.first..group.first + group.count];
        let order = (0..group.count).map(|step| (group.next + step) % group.count);
        let backend = &settings.backends[usize::from(backend)];
        let well = |index: &usize| {
            let has_failed = failed == Some((group.first + index) as u16);
            !has_failed && servers[*index].circuit.may_admit(now)
        };
        let has_room = |index: &usize| servers[*index].has_room(backend.server.as_ref());
        let mut able = order.clone().filter(well).filter(has_room);
        let chosen = match (backend.hash_key().and(affinity), backend.balance) {
            // One that is full has the next place take its values, as one that rests does.
            (Some(value), _) => {
                rendezvous::choose(value, able.map(|index| (index, servers[index].name)))
            }
            (None, Balance::RoundRobin) => able.next(),
            (None, Balance::LeastSessions) => able.min_by_key(|index| servers[*index].connections),
        };
        let Some(index) = chosen else {
            let full = order.clone().any(|index| well(&index));
            return Err(if full { Cause::OverCapacity } else { Cause::BackendUnavailable });
        };
        let server = &mut servers[index];
        let permit = server.circuit.admit(now).ok_or(Cause::BackendUnavailable)?;
        server.connections += 1;
        server.handshakes += 1;
        group.next = (index + 1) % group.count;
        Ok(((group.first + index) as u16, permit))
    }

    /// A connection to a server is gone.
    pub(super) fn left(&mut self, server: u16) {
        self.servers[usize::from(server)].connections -= 1;
    }

    /// A server answered, whatever it said.
    pub(super) fn answered(&mut self, server: u16, permit: Permit) {
        let server = &mut self.servers[usize::from(server)];
        server.handshakes -= 1;
        server.circuit.succeeded(permit);
    }

    /// A server failed. Whether it rests now, and did not before.
    pub(super) fn failed(
        &mut self,
        server: u16,
        permit: Permit,
        now: Instant,
        jitter: u32,
    ) -> bool {
        let server = &mut self.servers[usize::from(server)];
        server.handshakes -= 1;
        let circuit = &mut server.circuit;
        let rested = circuit.state() != CircuitState::Closed;
        circuit.failed(permit, now, jitter);
        !rested && circuit.state() == CircuitState::Open
    }

    /// An attempt was given up for reasons that are not the server's.
    pub(super) fn abandoned(&mut self, server: u16, permit: Permit, now: Instant) {
        let server = &mut self.servers[usize::from(server)];
        server.handshakes -= 1;
        server.circuit.abandoned(permit, now);
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
