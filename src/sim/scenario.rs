//! What a seed means: the settings, the sizes of the ring, the clients, the backends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::backend_link::BackendPlan;
use super::behaviour::Behaviour;
use super::behaviour::Plan;
use super::memory::RingSizes;
use super::net::{MILLIS, SECONDS};
use super::tls;
use super::tokens::{Carriage, ORIGIN, REAUTHENTICATE, TokenKind};
use crate::base::random::Random;
use crate::base::secret::Secret;
use crate::protocol::carrier::Carrier;
use crate::protocol::cause::Cause;
use crate::protocol::dialect::{Override, Overrides};
use crate::protocol::jwt::{Algorithm, JwtKey, JwtOptions, JwtVerifier};
use crate::protocol::link::Limits as LinkLimits;
use crate::protocol::origin::OriginPolicy;
use crate::protocol::verifier::{TokenFormat, Verifier};
use crate::ring::EndpointAddress;
use crate::settings::endpoint::{Endpoint, HostPort};
use crate::settings::{
    Auth, AuthKind, Backend, Balance, Deadlines, DeferAccept, Descriptors, ExternalScheme, Gateway,
    Limits, Listener, LogFormat, LogSubject, MessageTypes, Network, PathPattern, Reauthenticate,
    Redirect, Refuse, RevokeScope, Route, Settings, TlsListener, WebSocketBackend,
};
use crate::worker::mailbox::EndpointPlan;

/// Least send slots where backends are WebSocket servers: those of all clients and their servers.
const SERVER_SLOTS: u16 = 64;
/// Least descriptors there.
const SERVER_DESCRIPTORS: usize = 100;
/// Accepts that the worker keeps outstanding.
pub const ACCEPTS: usize = 4;

/// How long a decision may take where backends decide.
pub const VERDICT_TIMEOUT: Duration = Duration::from_secs(2);

/// What one run looks like.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Longest network delay, in nanoseconds.
    pub latency_max: u64,
    /// Least capacity of a connection's pipe, in bytes.
    pub capacity_min: u64,
    /// Sizes of the ring.
    pub sizes: RingSizes,
    /// Width of the worker's generations.
    pub generation_bits: u32,
    /// Slots that the worker's sweep looks at in one turn.
    pub sweep_slots: u32,
    /// Largest message, in bytes.
    pub message_max: u32,
    /// Session window of both sides of the links, in bytes.
    pub session_window: u32,
    /// Link window of both sides, in bytes.
    pub link_window: u32,
    /// Deadlines of the settings.
    pub deadlines: Deadlines,
    /// How endpoints are chosen.
    pub balance: Balance,
    /// Key of the links.
    pub link_secret: Option<Vec<u8>>,
    /// Backends, which are the endpoints of one `[[backend]]`.
    pub backends: Vec<BackendPlan>,
    /// Clients.
    pub clients: Vec<Plan>,
    /// How long misfortunes happen, in nanoseconds.
    pub chaos: u64,
    /// The worker's caps: connections, and those not authenticated.
    pub caps: (u32, u32),
    /// The listener trusts its clients' PROXY headers, and so asks for them.
    pub proxy: bool,
    /// An adversary floods, and no honest client may notice.
    pub floods: bool,
    /// The listener speaks TLS.
    pub tls: bool,
    /// Backends decide on clients, instead of the gateway.
    pub asks: bool,
    /// The backends are ordinary WebSocket servers, each with a connection for each client.
    pub servers: bool,
    /// Drain in the middle of them, instead of after they stopped.
    pub drains_early: bool,
    /// How long the close frames of refused tokens wait at least.
    pub pace: Duration,
}

/// Where no backend listens.
const ABSENT_PORT: u16 = 7999;
/// Where the first backend listens.
pub const BACKEND_PORT: u16 = 7000;

impl Scenario {
    /// Draws a scenario with misfortunes.
    // Long because: the order of the draws is what a seed means.
    pub fn drawn(random: &mut Random) -> Self {
        let pick = |random: &mut Random, values: &[u64]| {
            values[random.below(values.len() as u64) as usize]
        };
        let generation_bits = pick(random, &[1, 2, 3, 24]) as u32;
        let session_window = pick(random, &[4096, 8192, 65_536]) as u32;
        let link_window = pick(random, &[65_536, 262_144, 4_194_304]) as u32;
        let message_max = pick(random, &[4096, 20_000, 100_000]) as u32;
        let sizes = RingSizes {
            buffers: [pick(random, &[2, 4, 16, 64]) as u16, pick(random, &[2, 4, 8]) as u16],
            slots: [pick(random, &[2, 4, 16, 64]) as u16, pick(random, &[2, 3, 4]) as u16],
            descriptors: pick(random, &[12, 24, 100]) as usize,
            reuse_descriptors: random.chance(1, 2),
            listeners: 1,
        };
        let link_secret = random.chance(1, 2).then(|| b"a key for links, 32 bytes long..".to_vec());
        let limits = LinkLimits {
            frame_max: pick(random, &[16_384, 65_536]) as u32,
            message_max: 1 << 20,
            session_window: pick(random, &[4096, 16_384, 65_536]) as u32,
            link_window: pick(random, &[65_536, 1 << 20]) as u32,
            sessions_max: 1000,
        };
        let backends = (0..1 + random.below(3))
            .map(|index| BackendPlan {
                address: backend_address(index),
                secret: link_secret.clone(),
                limits,
                echo_delay: pick(random, &[0, MILLIS, 50 * MILLIS]),
                push_rate: pick(random, &[0, 10, 50]),
                speaks_of_the_dead: generation_bits == 24,
                duplicates: 0,
                serves: false,
            })
            .collect();
        let chaos = 2 * SECONDS + random.below(4 * SECONDS);
        let clients = (0..4 + random.below(24)).map(|_| plan(random, chaos, message_max)).collect();
        let balance =
            if random.chance(1, 2) { Balance::LeastSessions } else { Balance::RoundRobin };
        let mut scenario = Scenario {
            latency_max: pick(random, &[50_000, MILLIS, 20 * MILLIS]),
            capacity_min: pick(random, &[600, 4096, 65_536]),
            sizes,
            generation_bits,
            // From a number that is drawn anyway, so that the seeds keep their worlds.
            sweep_slots: [1, 3, 8, 8192][(chaos % 4) as usize],
            message_max,
            session_window,
            link_window,
            deadlines: Deadlines {
                lifetime: random.chance(1, 3).then(|| Duration::from_millis(1500)),
                ..deadlines()
            },
            balance,
            link_secret,
            backends,
            clients,
            chaos,
            caps: match random.below(4) {
                0 => (2 + random.below(8) as u32, 10_000),
                1 => (10_000, 1 + random.below(4) as u32),
                _ => (10_000, 10_000),
            },
            proxy: random.chance(1, 4),
            floods: false,
            tls: random.chance(1, 6),
            asks: random.chance(1, 3),
            servers: false,
            drains_early: random.chance(1, 6),
            pace: Duration::from_millis(pick(random, &[0, 0, 400, 2_000])),
        };
        // From a number that is drawn anyway, so that the other seeds keep their worlds.
        if !scenario.asks && (chaos / 4) % 8 < 3 {
            scenario = scenario.with_servers();
        }
        scenario
    }

    /// Makes the backends ordinary WebSocket servers.
    pub fn with_servers(mut self) -> Self {
        self.servers = true;
        // They share the clients' send slots, and each client takes two descriptors: where these are
        // few, those that seem stalled give way, and honest ones may be among them.
        self.sizes.slots[0] = self.sizes.slots[0].max(SERVER_SLOTS);
        self.sizes.descriptors = self.sizes.descriptors.max(SERVER_DESCRIPTORS);
        self.link_secret = None;
        for plan in &mut self.backends {
            plan.serves = true;
        }
        self
    }

    /// In how many turns the worker's sweep comes by every connection, from the turn that begins
    /// it on. No more slots are ever in use than there are descriptors.
    pub fn sweep_turns(&self) -> u64 {
        1 + (self.sizes.descriptors as u64).div_ceil(self.sweep_slots.into())
    }

    /// A scenario in which nothing goes wrong: `clients` honest ones, `messages` each.
    pub fn quiet(clients: usize, messages: u32, size: usize) -> Self {
        let limits = LinkLimits::default();
        let plan = |index: usize| Plan {
            behaviour: Behaviour::Honest,
            carriage: Carriage::Authorization,
            messages,
            size_max: size,
            window: 4,
            pause: 0,
            lives: 1,
            begins: SECONDS + index as u64 * MILLIS,
            brief: false,
            floods_from: None,
        };
        Scenario {
            latency_max: 50_000,
            capacity_min: 65_536,
            sizes: RingSizes {
                buffers: [256, 16],
                slots: [64, 4],
                descriptors: 10_000,
                reuse_descriptors: true,
                listeners: 1,
            },
            generation_bits: 24,
            sweep_slots: 8192,
            message_max: 1 << 20,
            session_window: 65_536,
            link_window: 4 << 20,
            deadlines: deadlines(),
            balance: Balance::LeastSessions,
            link_secret: Some(b"a key for links, 32 bytes long..".to_vec()),
            backends: vec![BackendPlan {
                address: backend_address(0),
                secret: Some(b"a key for links, 32 bytes long..".to_vec()),
                limits,
                echo_delay: 0,
                push_rate: 0,
                speaks_of_the_dead: false,
                duplicates: 0,
                serves: false,
            }],
            clients: (0..clients).map(plan).collect(),
            chaos: SECONDS,
            caps: (10_000, 10_000),
            proxy: false,
            floods: false,
            tls: false,
            asks: false,
            servers: false,
            drains_early: false,
            pace: Duration::ZERO,
        }
    }

    /// The worker's settings.
    pub fn settings(&self, token_key: &[u8]) -> Settings {
        Settings {
            gateway: Gateway {
                workers: Some(1),
                admin: None,
                admin_token: None,
                log_format: LogFormat::Auto,
                log_level: "info".into(),
                ready_without_backend: true,
                drain_delay: Duration::ZERO,
                log_subject: LogSubject::Off,
                admin_socket: None,
                close_log: None,
                revocations_file: None,
                descriptors: Descriptors::Auto,
            },
            limits: self.limits(),
            deadlines: self.deadlines.clone(),
            listeners: vec![Listener {
                address: ([127, 0, 0, 1], 8080).into(),
                tls: self.tls.then(|| TlsListener { config: tls::server(), not_after_s: u64::MAX }),
                defer_accept: DeferAccept::Auto,
                proxy_trusted: self.proxy.then(clients_network).into_iter().collect(),
                forwarded: None,
                external_scheme: ExternalScheme::Auto,
                redirect: Redirect::Off,
            }],
            auths: vec![
                self.auth("heads", token_key, head_carriers()),
                self.auth("messages", token_key, vec![Carrier::FirstMessage]),
            ],
            routes: vec![route("/ws", 0, self.pace), route("/first", 1, self.pace)],
            hash: 0,
            backends: vec![Backend {
                name: "main".into(),
                endpoints: self.backends.iter().map(|plan| endpoint(&plan.address)).collect(),
                balance: self.balance,
                secret: self.link_secret.clone().map(Secret::new),
                // Every client's route goes to this backend.
                revoke: if self.asks { RevokeScope::OwnRoutes } else { RevokeScope::All },
                server: self.servers.then(WebSocketBackend::default),
            }],
        }
    }

    /// What the name of the first backend stands for.
    pub fn endpoints(&self, ports: &[u16]) -> EndpointPlan {
        let found = ports.iter().map(|port| ([127, 0, 0, 1], *port).into()).collect();
        EndpointPlan { addresses: [(name(), found)].into() }
    }

    /// The name stands for the backend, for that and for nothing, or for nothing.
    fn other_endpoints(&self, random: &mut Random) -> EndpointPlan {
        let answers: [&[u16]; 3] = [&[BACKEND_PORT], &[BACKEND_PORT, ABSENT_PORT], &[ABSENT_PORT]];
        self.endpoints(answers[random.below(answers.len() as u64) as usize])
    }

    /// Other settings that a reload may bring in place of [`settings`](Self::settings): hot
    /// limits and deadlines, and the order of the routes.
    pub fn reloaded(&self, token_key: &[u8], random: &mut Random) -> (Settings, EndpointPlan) {
        let mut settings = self.settings(token_key);
        let limits = &mut settings.limits;
        // Never smaller: a link keeps what its handshake said, and the final connections
        // need more.
        limits.message_max = [self.message_max, 200_000][random.below(2) as usize];
        limits.head_max = [8192, 8192, 400][random.below(3) as usize];
        limits.frames_burst = [1_000_000, 1_000_000, 3][random.below(3) as usize];
        limits.frames_per_second = limits.frames_burst;
        for backend in &mut settings.backends {
            // The others' links and sessions know nothing of it.
            let places = backend.endpoints.len() as u64;
            backend.endpoints.rotate_left(random.below(places) as usize);
            if places > 1 && random.chance(1, 4) {
                backend.endpoints.pop();
            }
            if random.chance(1, 3) {
                let at = random.below(backend.endpoints.len() as u64 + 1) as usize;
                let absent = EndpointAddress::Unix("/run/absent.sock".into());
                backend.endpoints.insert(at, Endpoint::Address(absent));
            }
        }
        let deadlines = &mut settings.deadlines;
        for deadline in [
            &mut deadlines.request_head,
            &mut deadlines.authenticate,
            &mut deadlines.linger,
            &mut deadlines.ping_interval,
            &mut deadlines.write_stall,
        ] {
            // From a quarter to five quarters, to the millisecond.
            let quarter = deadline.as_millis() as u64 / 4;
            *deadline = Duration::from_millis(quarter + random.below(4 * quarter));
        }
        let more = Duration::from_millis(1 + random.below(5000));
        deadlines.idle = deadlines.ping_interval + more;
        deadlines.lifetime =
            random.chance(1, 3).then(|| Duration::from_millis(500 + random.below(3000)));
        if random.chance(1, 2) {
            settings.routes.reverse();
        }
        (settings, self.other_endpoints(random))
    }

    /// The settings in which the final connections must succeed: they come in one burst, so the
    /// caps make room for them.
    pub fn restored(&self, token_key: &[u8]) -> Settings {
        let mut settings = self.settings(token_key);
        settings.limits.connections_max = 10_000;
        settings.limits.unauthenticated_max = 10_000;
        settings.deadlines.lifetime = None;
        settings
    }

    fn auth(&self, name: &str, key: &[u8], carriers: Vec<Carrier>) -> Auth {
        let secret = Secret::new(key.to_vec());
        let key = JwtKey { id: None, algorithm: Algorithm::HS256, secret };
        let verifier = JwtVerifier::new(vec![key], JwtOptions::default());
        let kind = if self.asks {
            AuthKind::Backend(VERDICT_TIMEOUT)
        } else {
            let verifier = verifier.expect("one HS256 key of 256 bits is a valid table");
            AuthKind::Token(Arc::new(Verifier::new(TokenFormat::Jwt(verifier), [0; 16])))
        };
        Auth { name: name.into(), kind, carriers }
    }

    fn limits(&self) -> Limits {
        Limits {
            connections_max: self.caps.0,
            unauthenticated_max: self.caps.1,
            anonymous_max: 10_000,
            explain_reserve: 256,
            client_send_buffer: 128 * 1024,
            early_drop_start: 80,
            early_drop_rate: 30,
            prefix_share: 4,
            prefix_failures_per_minute: 60,
            prefix_failures_burst: 120,
            prefixes_max: 65_536,
            tls_handshakes_per_second: None,
            connections_per_worker: None,
            memory_max: None,
            message_max: self.message_max,
            // A client that is asked about may have sent all its messages already.
            first_message_max: if self.asks || self.servers { 1 << 20 } else { 4096 },
            proxy_header_max: 4096,
            first_messages_max: 8,
            upstream_head_max: 16 << 10,
            head_max: 8192,
            header_fields_max: 64,
            request_line_max: 8000,
            token_max: 2048,
            dead_tokens_max: 1024,
            frames_per_second: 1_000_000,
            frames_burst: 1_000_000,
            controls_per_second: 1_000_000,
            controls_burst: 1_000_000,
            pongs_unsent_max: 1,
            fragments_max: 64,
            session_window: self.session_window,
            link_window: self.link_window,
            link_output_max: (2 * self.link_window).max(1 << 20),
            stalled_input_max: 16 << 20,
            verdicts_max: 1000,
            handshakes_per_tick: 16,
            client_buffers: self.sizes.buffers[0],
            accepts: ACCEPTS as u16,
            close_lines_per_second: 100,
            revocations_max: 100,
        }
    }
}

/// The first backend has a name, the others their address.
fn endpoint(address: &EndpointAddress) -> Endpoint {
    match address {
        EndpointAddress::Tcp(_) => Endpoint::Name(name()),
        EndpointAddress::Unix(_) => Endpoint::Address(address.clone()),
    }
}

fn name() -> HostPort {
    HostPort { host: "app".into(), port: BACKEND_PORT }
}

fn backend_address(index: u64) -> EndpointAddress {
    match index {
        0 => EndpointAddress::Tcp(([127, 0, 0, 1], BACKEND_PORT).into()),
        _ => EndpointAddress::Unix(PathBuf::from(format!("/run/app{index}.sock"))),
    }
}

/// Where the simulated clients come from.
fn clients_network() -> Network {
    Network { address: [10, 0, 0, 0].into(), prefix: 8 }
}

fn deadlines() -> Deadlines {
    Deadlines {
        tls_handshake: Duration::from_secs(3),
        request_head: Duration::from_secs(2),
        authenticate: Duration::from_secs(3),
        linger: Duration::from_secs(1),
        failure_grace: Duration::ZERO,
        ping_interval: Duration::from_secs(5),
        idle: Duration::from_secs(12),
        write_stall: Duration::from_secs(6),
        lifetime: None,
        expiry_grace: Duration::ZERO,
        drain: Duration::from_secs(2),
        link_connect: Duration::from_secs(2),
        upstream_connect: Duration::from_secs(2),
        link_ping: Duration::from_secs(2),
        resolve_interval: Duration::from_secs(15),
        link_stall: Duration::from_secs(3),
        link_retry_min: Duration::from_millis(50),
        link_retry_max: Duration::from_secs(1),
    }
}

fn head_carriers() -> Vec<Carrier> {
    vec![
        Carrier::Authorization,
        Carrier::Subprotocol,
        Carrier::Cookie("session".into()),
        Carrier::Header("x-token".into()),
        Carrier::Query("token".into()),
    ]
}

/// Refusals that may wait. Not what ends connections that are open: a token that expired, or a
/// fresh one of another user.
pub(super) const PACED: &[Cause] =
    &[Cause::TokenMissing, Cause::TokenMalformed, Cause::BadSignature, Cause::TokenNotYetValid];

fn route(path: &str, auth: u16, pace: Duration) -> Route {
    let said = Override { pace: Some(pace), ..Override::default() };
    Route {
        name: path.into(),
        path: PathPattern::Exact(path.into()),
        hosts: Vec::new(),
        origins: OriginPolicy::parse_list(&[ORIGIN.to_owned()]).expect("the origin is exact"),
        origin_absent_allowed: true,
        auths: vec![auth],
        no_authentication: None,
        visitors: None,
        backend: 0,
        dialect: None,
        closes: Overrides(PACED.iter().map(|cause| (*cause, said.clone())).collect()),
        refuse: Refuse::Explain,
        subprotocols: vec!["chat".into()],
        messages: MessageTypes::Any,
        forward_headers: vec!["user-agent".into()],
        health: false,
        strip_prefix: String::new(),
        passes_cookies: true,
        message_max: None,
        reauthenticate: Some(Arc::new(Reauthenticate {
            prefix: REAUTHENTICATE.into(),
            token: Carrier::FirstMessageJson(vec!["token".into()]),
            auths: vec![["heads", "messages"][usize::from(auth)].into()],
        })),
    }
}

fn plan(random: &mut Random, chaos: u64, message_max: u32) -> Plan {
    use Behaviour::*;
    let bad = TokenKind::BAD[random.below(TokenKind::BAD.len() as u64) as usize];
    let behaviour = match random.below(24) {
        0..=6 => Honest,
        7..=8 => Fragmenter,
        9..=10 => Pinger,
        11..=12 => SlowReader,
        13..=14 => Refused(bad),
        15 => Lingerer(bad),
        16 => SilentAtStart,
        17 => HalfHead,
        18 => SilentAfterUpgrade,
        19 => SilentWhenOpen,
        20 => NeverReads,
        21 => Dropper(random.chance(1, 2)),
        22 => HalfCloser,
        _ => {
            if random.chance(1, 2) {
                Garbage
            } else {
                FrameBreaker
            }
        }
    };
    let carriage = match behaviour {
        SilentAfterUpgrade => Carriage::FirstMessage,
        _ => Carriage::ALL[random.below(Carriage::ALL.len() as u64) as usize],
    };
    let slow = behaviour == SlowReader;
    Plan {
        behaviour,
        carriage,
        messages: 1 + random.below(if slow { 8 } else { 60 }) as u32,
        size_max: if slow { 4000 } else { message_max as usize },
        window: 1 + random.below(16) as u32,
        pause: random.below(30 * MILLIS),
        lives: 1 + random.below(4) as u16,
        begins: SECONDS + random.below(chaos / 2),
        brief: random.chance(1, 4),
        floods_from: None,
    }
}
