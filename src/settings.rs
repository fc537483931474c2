//! The validated, immutable settings snapshot that every worker holds behind an `Arc`.
//!
//! `settings/file.rs` is what the file says (serde, unknown keys refused); `settings/load.rs`
//! turns it into [`Settings`] or a list of everything that is wrong with it, by the table of
//! `settings/keys.rs`; `settings/reload.rs` says which differences need a restart.

pub mod admission;
mod backends;
mod closes;
mod credentials;
pub mod endpoint;
mod external_auth;
mod file;
pub mod keys;
pub mod load;
pub mod problem;
mod raw;
mod reauthenticate;
pub mod reload;
mod routes;
mod secrets;
mod servers;
mod shape;
mod tls;
pub mod units;
mod upstream_auth;
mod websocket_backend;
mod words;

pub use keys::{Deadlines, Limits};
pub use reauthenticate::PREFIX_MAX;
pub use websocket_backend::{
    ENCODED_SUFFIX, HashKey, IdentityClaim, IdentityHeader, ServerTls, WebSocketBackend,
};
pub use words::{
    Balance, DeferAccept, Descriptors, ExternalScheme, LogFormat, MessageTypes, Redirect, Refuse,
    RevokeScope, SecretEncoding,
};

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use rustls::RootCertStore;

use crate::base::circuit::CircuitLimits;
use crate::base::secret::Secret;
use crate::protocol::acceptance::Acceptance;
use crate::protocol::carrier::Carrier;
use crate::protocol::dialect::{Dialect, Overrides};
use crate::protocol::host::HostPattern;
use crate::protocol::http_decision::DecisionHeaders;
use crate::protocol::origin::OriginPolicy;
use crate::protocol::plug_session::CSRF_NAME;
use crate::protocol::verifier::{NoAuthentication, Verifier, VisitorsWelcome};
use endpoint::Endpoint;

/// Everything a worker needs to know, checked.
pub struct Settings {
    /// Process-wide choices.
    pub gateway: Gateway,
    /// Every limit.
    pub limits: Limits,
    /// Every deadline.
    pub deadlines: Deadlines,
    /// Where clients connect; the index is the listener's number.
    pub listeners: Vec<Listener>,
    /// How clients authenticate.
    pub auths: Vec<Auth>,
    /// What clients may ask for.
    pub routes: Vec<Route>,
    /// Where authenticated traffic goes.
    pub backends: Vec<Backend>,
    /// The first 48 bits of the SHA-256 of the text that these are from, to compare machines by:
    /// a metric is a double, which holds no more.
    pub hash: u64,
}

/// Process-wide choices. All cold but the log level.
pub struct Gateway {
    /// Number of worker threads; `None` is one for each core.
    pub workers: Option<u16>,
    /// What accepted sockets are.
    pub descriptors: Descriptors,
    /// The admin listener.
    pub admin: Option<SocketAddr>,
    /// Bearer token that the admin API asks for; required when `admin` is not loopback.
    pub admin_token: Option<Secret>,
    /// The unix socket of the admin API.
    pub admin_socket: Option<std::path::PathBuf>,
    /// Whether the gateway counts as ready while no backend is linked.
    pub ready_without_backend: bool,
    /// How long a drain goes on accepting connections.
    pub drain_delay: Duration,
    /// Shape of log lines.
    pub log_format: LogFormat,
    /// A `tracing` filter, as in `info` or `portcullis=debug`.
    pub log_level: String,
    /// What stands for a client's subject in close lines.
    pub log_subject: LogSubject,
    /// Where close lines go as JSON; `None` is the log.
    pub close_log: Option<std::path::PathBuf>,
    /// Where revocations outlive a restart; `None` is nowhere.
    pub revocations_file: Option<std::path::PathBuf>,
}

/// What stands for a client's subject in close lines.
#[derive(Clone)]
pub enum LogSubject {
    /// Nothing.
    Off,
    /// The subject.
    Plain,
    /// The HMAC-SHA-256 of the subject by this key.
    Hash(Secret),
}

/// One address that clients connect to.
pub struct Listener {
    /// Where to listen.
    pub address: SocketAddr,
    /// Certificates, for TLS; the first is served when SNI names none of them.
    pub tls: Option<TlsListener>,
    /// Whether the kernel keeps silent connections to itself at first (TCP_DEFER_ACCEPT).
    pub defer_accept: DeferAccept,
    /// Networks whose PROXY protocol header is believed (and then required).
    pub proxy_trusted: Vec<Network>,
    /// Proxies whose word on the client counts.
    pub forwarded: Option<Forwarded>,
    /// What clients speak to the outermost server.
    pub external_scheme: ExternalScheme,
    /// What becomes of requests without TLS.
    pub redirect: Redirect,
}

/// Proxies that say who the client is.
pub struct Forwarded {
    /// Their networks.
    pub trusted: Vec<Network>,
    /// The field with the client's address, lower case.
    pub header: String,
}

impl Forwarded {
    /// Whether `peer` is one of these proxies.
    pub fn trusts(&self, peer: std::net::IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(peer))
    }
}

/// TLS on a listener, ready to use.
#[derive(Clone)]
pub struct TlsListener {
    /// What connections are made with.
    pub config: Arc<rustls::ServerConfig>,
    /// When the first of the certificates expires, in seconds since 1970.
    pub not_after_s: u64,
}

/// An address prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// First address.
    pub address: std::net::IpAddr,
    /// Number of leading bits that must match.
    pub prefix: u8,
}

impl Network {
    /// Whether `address` lies in this network. IPv4-mapped IPv6 addresses count as IPv4.
    pub fn contains(&self, address: std::net::IpAddr) -> bool {
        use std::net::IpAddr::{V4, V6};
        match (self.address.to_canonical(), address.to_canonical()) {
            (V4(ours), V4(theirs)) => {
                let shift = 32 - u32::from(self.prefix.min(32));
                (u32::from(ours) ^ u32::from(theirs)).checked_shr(shift).unwrap_or(0) == 0
            }
            (V6(ours), V6(theirs)) => {
                let shift = 128 - u32::from(self.prefix.min(128));
                (u128::from(ours) ^ u128::from(theirs)).checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// One way to authenticate.
pub struct Auth {
    /// Its name in the file.
    pub name: String,
    /// What decides.
    pub kind: AuthKind,
    /// Where tokens are looked for, in this order.
    pub carriers: Vec<Carrier>,
}

impl Auth {
    /// Names of query parameters that hold secrets, and never appear in logs or paths.
    pub fn secret_parameters(&self) -> impl Iterator<Item = &str> + Clone {
        let carried = self.carriers.iter().filter_map(|carrier| match carrier {
            Carrier::Query(name) => Some(name.as_str()),
            _ => None,
        });
        let csrf = self.kind.verifier().is_some_and(Verifier::is_session).then_some(CSRF_NAME);
        carried.chain(csrf)
    }
}

/// What decides on a token.
pub enum AuthKind {
    /// The gateway itself, by the token's signature.
    Token(Arc<Verifier>),
    /// The route's backend, over its link, within this time.
    Backend(Duration),
    /// An HTTP endpoint.
    Http(Arc<HttpAuth>),
    /// The application behind, which is a WebSocket server: by its 101, or by the messages that
    /// these rules are about.
    Upstream(Option<Arc<Acceptance>>),
}

/// An HTTP endpoint that decides who a client is. Every load of the settings makes a new one,
/// with connections and a circuit of its own.
#[derive(Clone)]
pub struct HttpAuth {
    /// Name of the `[[auth]]`.
    pub name: String,
    /// `http://` or `https://` with a host.
    pub endpoint: Uri,
    /// How long a decision may take.
    pub timeout: Duration,
    /// Requests at the endpoint at one time, of all workers together.
    pub in_flight_max: u32,
    /// Questions that wait for room among them.
    pub queue_max: u32,
    /// Most bytes of a response's head, and of its body.
    pub response_max: u32,
    /// Request fields (lower case) that go along.
    pub headers: Vec<String>,
    /// Response fields that are looked at.
    pub identity: DecisionHeaders,
    /// Whose certificates an `https://` endpoint may show; `None` is the system's.
    pub roots: Option<Arc<RootCertStore>>,
    /// When the endpoint is left alone.
    pub circuit: CircuitLimits,
}

/// Most `[[auth]]` blocks of one route: each may cost a MAC for every token.
pub const ROUTE_AUTHS_MAX: usize = 8;

impl AuthKind {
    /// What judges the tokens, where the gateway does.
    pub fn verifier(&self) -> Option<&Verifier> {
        match self {
            AuthKind::Token(verifier) => Some(verifier),
            AuthKind::Backend(_) | AuthKind::Http(_) | AuthKind::Upstream(_) => None,
        }
    }
}

/// One path that clients may ask for.
pub struct Route {
    /// What backends, metrics and the log call it; no other route has this name.
    pub name: String,
    /// Which paths.
    pub path: PathPattern,
    /// The hosts that it serves; empty is every one.
    pub hosts: Vec<HostPattern>,
    /// Which pages may connect.
    pub origins: OriginPolicy,
    /// Whether a request without Origin (not from a browser) may connect.
    pub origin_absent_allowed: bool,
    /// Indices into [`Settings::auths`], in the order in which they are asked, at most
    /// [`ROUTE_AUTHS_MAX`].
    pub auths: Vec<u16>,
    /// The proof that the route says `auth = "none"`, where it does.
    pub no_authentication: Option<NoAuthentication>,
    /// The proof that the route's `auth` ends with "anonymous", where it does.
    pub visitors: Option<VisitorsWelcome>,
    /// Index into [`Settings::backends`].
    pub backend: u16,
    /// How refusals and closes are put; `None` is `auto`: by what the client asks for.
    pub dialect: Option<Dialect>,
    /// What the route says of closes, in place of the dialect's table.
    pub closes: Overrides,
    /// How a refusal of a token is delivered.
    pub refuse: Refuse,
    /// Subprotocols that the route may answer with, in order of preference.
    pub subprotocols: Vec<String>,
    /// Which messages the route takes.
    pub messages: MessageTypes,
    /// Request headers (lower case) that the backend gets with OPEN.
    pub forward_headers: Vec<String>,
    /// A plain GET on this path answers 200 (for load balancers) instead of 426.
    pub health: bool,
    /// What the application's paths do not have of the request's; empty, or without a slash at its
    /// end.
    pub strip_prefix: String,
    /// Whether a WebSocket server gets cookies.
    pub passes_cookies: bool,
    /// Largest message of a client; `None` is what the limits say.
    pub message_max: Option<u32>,
    /// How an open connection presents a fresh token, where it may.
    pub reauthenticate: Option<Arc<Reauthenticate>>,
}

/// Which messages of an open connection are for the gateway, and where their token is.
/// Connections keep it, since a reload may move or remove the route.
#[derive(Debug, PartialEq, Eq)]
pub struct Reauthenticate {
    /// A text message that begins so is the gateway's, whatever follows.
    pub prefix: String,
    /// Where the token is in the message.
    pub token: Carrier,
    /// Names of the route's `[[auth]]` blocks.
    pub auths: Vec<String>,
}

impl Route {
    /// Whether requests for `host` are for this route.
    pub fn serves(&self, host: &str) -> bool {
        self.hosts.is_empty() || self.hosts.iter().any(|pattern| pattern.matches(host))
    }
}

/// A path, or all below one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathPattern {
    /// This path alone.
    Exact(String),
    /// Every path that starts so; from `prefix/*`, kept as `prefix/`.
    Prefix(String),
}

impl PathPattern {
    /// Whether `path` (without query) is meant.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            PathPattern::Exact(exact) => exact == path,
            PathPattern::Prefix(prefix) => path.starts_with(prefix.as_str()),
        }
    }
}

/// A group of interchangeable servers behind the gateway.
pub struct Backend {
    /// Its name in the file.
    pub name: String,
    /// Its servers.
    pub endpoints: Vec<Endpoint>,
    /// How a new session chooses among them.
    pub balance: Balance,
    /// Key of the mutual authentication; `None` when the file has none.
    pub secret: Option<Secret>,
    /// What the backend may revoke; [`RevokeScope::None`] without a secret.
    pub revoke: RevokeScope,
    /// Its endpoints are WebSocket servers.
    pub server: Option<WebSocketBackend>,
}

impl Backend {
    /// Which value of a client chooses its endpoint, where one does.
    pub fn hash_key(&self) -> Option<&HashKey> {
        self.server.as_ref()?.hash.as_ref()
    }
}

impl Settings {
    /// The first route, in file order, that serves `path` at `host`.
    pub fn route_for(&self, host: &str, path: &str) -> Option<u16> {
        let serves = |route: &Route| route.path.matches(path) && route.serves(host);
        self.routes.iter().position(serves).map(|index| index as u16)
    }

    /// Whether any backend is one of WebSocket servers.
    pub fn has_servers(&self) -> bool {
        self.backends.iter().any(|backend| backend.server.is_some())
    }

    /// How many sockets a client takes. One of a WebSocket server behind takes two: where there
    /// are any, the second is kept for every client, so that no dial finds none.
    pub fn sockets_per_client(&self) -> u32 {
        if self.has_servers() { 2 } else { 1 }
    }

    /// The WebSocket servers behind a route, if that is what is behind it.
    pub fn server_of(&self, route: &Route) -> Option<&WebSocketBackend> {
        self.backends[usize::from(route.backend)].server.as_ref()
    }

    /// The messages by which the application behind a route lets clients in, where it does so by
    /// messages.
    pub fn acceptance_of(&self, route: &Route) -> Option<&Arc<Acceptance>> {
        self.auths_of(route).find_map(|auth| match &auth.kind {
            AuthKind::Upstream(acceptance) => acceptance.as_ref(),
            _ => None,
        })
    }

    /// The ways to authenticate on `route`, in the order in which they are asked.
    pub fn auths_of(&self, route: &Route) -> impl Iterator<Item = &Auth> + Clone {
        route.auths.iter().map(|&index| &self.auths[usize::from(index)])
    }
}
