//! The validated, immutable settings snapshot that every worker holds behind an `Arc`.
//!
//! `settings/raw.rs` is what the file says (serde, unknown keys refused); `settings/load.rs`
//! turns it into [`Settings`] or a list of everything that is wrong with it, by the table of
//! `settings/keys.rs`; `settings/reload.rs` says which differences need a restart.

pub mod admission;
mod backends;
mod closes;
mod credentials;
mod external_auth;
pub mod keys;
pub mod load;
pub mod problem;
pub mod raw;
mod reauthenticate;
pub mod reload;
mod routes;
mod shape;
mod tls;
pub mod units;

pub use reauthenticate::PREFIX_MAX;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub use external_auth::HttpAuth;

use crate::base::secret::Secret;
use crate::base::time::UnixTime;
use crate::protocol::carrier::Carrier;
use crate::protocol::cause::Cause;
use crate::protocol::compact_token::CompactVerifier;
use crate::protocol::dialect::{Dialect, Overrides};
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::jwt::JwtVerifier;
use crate::protocol::origin::OriginPolicy;
use crate::protocol::phoenix_token::PhoenixVerifier;
use crate::protocol::plug_session::{CSRF_NAME, SessionVerifier};
use crate::protocol::scratch::TokenScratch;
use crate::ring::EndpointAddress;

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
    /// Shape of log lines.
    pub log_format: LogFormat,
    /// A `tracing` filter, as in `info` or `portcullis=debug`.
    pub log_level: String,
    /// Where close lines go as JSON; `None` is the log.
    pub close_log: Option<std::path::PathBuf>,
    /// Where revocations outlive a restart; `None` is nowhere.
    pub revocations_file: Option<std::path::PathBuf>,
}

/// What accepted sockets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptors {
    /// Direct where the kernel can close them with a reset (Linux 6.7), plain otherwise.
    Auto,
    /// Descriptors of the process: RLIMIT_NOFILE bounds all workers together.
    Plain,
    /// Entries of each ring's own table: RLIMIT_NOFILE bounds each worker.
    Direct,
}

/// Shape of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Pretty on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Pretty,
    /// For machines.
    Json,
}

/// Every limit on what one client, one backend or all of them together may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of all workers together.
    pub connections_max: u32,
    /// Connections not yet authenticated, of all workers together.
    pub unauthenticated_max: u32,
    /// Where early drop begins, in percent of `unauthenticated_max`.
    pub early_drop_start: u8,
    /// The chance of a drop there, in percent; it grows to certainty at the cap.
    pub early_drop_rate: u8,
    /// Unauthenticated connections of one address that early drop leaves alone.
    pub prefix_share: u32,
    /// Failures of one address that are forgotten in a minute.
    pub prefix_failures_per_minute: u32,
    /// Failures of one address at once that are no penalty yet.
    pub prefix_failures_burst: u32,
    /// Most prefixes whose failures are remembered, of all workers together.
    pub prefixes_max: u32,
    /// TLS handshakes that may begin in a second, of all workers together; `None` is a number
    /// for each worker.
    pub tls_handshakes_per_second: Option<u32>,
    /// Connections of one worker; `None` is derived from RLIMIT_NOFILE.
    pub connections_per_worker: Option<u32>,
    /// Memory budget in bytes; `None` is derived from the machine.
    pub memory_max: Option<u64>,
    /// Largest message in either direction, in bytes.
    pub message_max: u32,
    /// Largest message before authentication (first-message tokens), in bytes.
    pub first_message_max: u32,
    /// Largest request head, in bytes (431 above it).
    pub head_max: u32,
    /// Most header fields in a request (431 above it).
    pub header_fields_max: u16,
    /// Longest request line, in bytes (414 above it).
    pub request_line_max: u32,
    /// Longest token, in bytes, before it is even decoded.
    pub token_max: u16,
    /// Refused tokens that one worker remembers; 0 is none.
    pub dead_tokens_max: u32,
    /// Frames that a client may send in a second, on average.
    pub frames_per_second: u32,
    /// Frames that a client may send at once.
    pub frames_burst: u32,
    /// Control frames that a client may send in a second, on average.
    pub controls_per_second: u32,
    /// Control frames that a client may send at once.
    pub controls_burst: u32,
    /// Pongs to one client that may be unsent at one time; at least 1.
    pub pongs_unsent_max: u8,
    /// Most frames that one message may be cut into.
    pub fragments_max: u32,
    /// Bytes in flight to one client that a backend may have without new credit.
    pub session_window: u32,
    /// Bytes in flight on one link, in each direction, without new credit.
    pub link_window: u32,
    /// Bytes of input that may wait in one worker for backends to give credit.
    pub stalled_input_max: u64,
    /// Verdicts of backends and HTTP endpoints that one worker awaits at one time.
    pub verdicts_max: u32,
    /// TLS handshake steps that one worker does in a tick.
    pub handshakes_per_tick: u32,
    /// Receive buffers of one worker for clients (a power of two, at most 32,768).
    pub client_buffers: u16,
    /// Accepts that one worker keeps outstanding on each listener.
    pub accepts: u16,
    /// Close lines in the log per second and worker; the rest is counted.
    pub close_lines_per_second: u32,
    /// Revocations held at one time.
    pub revocations_max: u32,
}

/// Every deadline. A byte never extends one that guards an unauthenticated socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// From accept to the end of the TLS handshake.
    pub tls_handshake: Duration,
    /// From the end of the TLS handshake, or accept, to a whole request head.
    pub request_head: Duration,
    /// From the 101 to a decision.
    pub authenticate: Duration,
    /// From our close frame to the client's.
    pub linger: Duration,
    /// From an open client's broken frame to our close frame, for what its backend still sends.
    pub failure_grace: Duration,
    /// Silence after which the gateway pings.
    pub ping_interval: Duration,
    /// Silence after which the gateway closes.
    pub idle: Duration,
    /// Time without progress of a send.
    pub write_stall: Duration,
    /// Age at which a connection is asked to reconnect, with jitter; `None` is never.
    pub lifetime: Option<Duration>,
    /// How long after `exp` a connection may live on.
    pub expiry_grace: Duration,
    /// Over how long a drain spreads its closes.
    pub drain: Duration,
    /// Connection attempt to a backend, to the end of the handshake.
    pub link_connect: Duration,
    /// Silence on a link after which it is pinged; at three times this it is dead.
    pub link_ping: Duration,
    /// Shortest wait before a backend is tried again.
    pub link_retry_min: Duration,
    /// Longest wait before a backend is tried again.
    pub link_retry_max: Duration,
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
}

/// Whether the kernel keeps silent connections to itself at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeferAccept {
    /// Where the deadlines leave the time.
    Auto,
    /// In any case.
    On,
    /// Never.
    Off,
}

/// TLS on a listener, ready to use.
#[derive(Clone)]
pub struct TlsListener(pub std::sync::Arc<rustls::ServerConfig>);

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
    /// A digest of all that a decision depends on beside the token and the clock: keys and
    /// options. Verdicts are remembered under it, so that none outlives a change of them.
    pub fingerprint: [u8; 16],
}

impl Auth {
    /// Names of query parameters that hold secrets, and are shown to nobody.
    pub fn secret_parameters(&self) -> impl Iterator<Item = &str> + Clone {
        let carried = self.carriers.iter().filter_map(|carrier| match carrier {
            Carrier::Query(name) => Some(name.as_str()),
            _ => None,
        });
        let csrf = matches!(self.kind, AuthKind::PlugSession(_)).then_some(CSRF_NAME);
        carried.chain(csrf)
    }
}

/// What decides on a token.
#[allow(clippy::large_enum_variant, reason = "a few per process")]
pub enum AuthKind {
    /// The route's backend, over its link, within this time.
    Backend(Duration),
    /// An HTTP endpoint.
    Http(std::sync::Arc<HttpAuth>),
    /// JSON Web Tokens with an HMAC.
    Jwt(JwtVerifier),
    /// Tokens of Phoenix.Token.
    Phoenix(PhoenixVerifier),
    /// Signed session cookies of Plug.Session.
    PlugSession(SessionVerifier),
    /// The gateway's own tokens.
    Compact(CompactVerifier),
}

/// Most `[[auth]]` blocks of one route: each may cost a MAC for every token.
pub const ROUTE_AUTHS_MAX: usize = 8;

impl AuthKind {
    /// Judges a token. `csrf` is the query parameter that goes with a session.
    ///
    /// # Errors
    /// Why the token is refused.
    pub fn verify<'s>(
        &self,
        token: &[u8],
        csrf: Option<&[u8]>,
        now: UnixTime,
        scratch: &'s mut TokenScratch,
    ) -> Result<VerifiedIdentity<'s>, Cause> {
        match self {
            AuthKind::Jwt(verifier) => verifier.verify(token, now, scratch),
            AuthKind::Phoenix(verifier) => verifier.verify(token, now, scratch),
            AuthKind::PlugSession(verifier) => verifier.verify(token, csrf, now, scratch),
            AuthKind::Compact(verifier) => verifier.verify(token, now, scratch),
            AuthKind::Backend(_) | AuthKind::Http(_) => {
                unreachable!("somebody else was to be asked")
            }
        }
    }

    /// Whether somebody outside the gateway decides, so that it takes time.
    pub fn is_external(&self) -> bool {
        matches!(self, AuthKind::Backend(_) | AuthKind::Http(_))
    }
}

/// One path that clients may ask for.
pub struct Route {
    /// Which paths.
    pub path: PathPattern,
    /// Which pages may connect.
    pub origins: OriginPolicy,
    /// Whether a request without Origin (not from a browser) may connect.
    pub origin_absent_allowed: bool,
    /// Indices into [`Settings::auths`], in the order in which they are asked, at most
    /// [`ROUTE_AUTHS_MAX`]; empty is `auth = "none"`, written out.
    pub auths: Vec<u16>,
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

/// How the refusal of a token is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refuse {
    /// 101, an explanation, a close code.
    Explain,
    /// 401 or 403.
    Http,
    /// `Explain` to requests with an Origin (browsers), `Http` to the rest.
    Auto,
}

/// Which message types a route takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageTypes {
    /// Both.
    Any,
    /// Text only (binary: 1003).
    Text,
    /// Binary only (text: 1003).
    Binary,
}

/// A group of interchangeable servers behind the gateway.
pub struct Backend {
    /// Its name in the file.
    pub name: String,
    /// Its servers.
    pub endpoints: Vec<EndpointAddress>,
    /// How a new session chooses among them.
    pub balance: Balance,
    /// Key of the mutual authentication; `None` when the file has none.
    pub secret: Option<Secret>,
}

/// How a new session chooses an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// The ready link with the fewest sessions.
    LeastSessions,
    /// One after the other.
    RoundRobin,
}

impl Settings {
    /// The first route, in file order, that matches `path`.
    pub fn route_for(&self, path: &str) -> Option<u16> {
        self.routes.iter().position(|route| route.path.matches(path)).map(|index| index as u16)
    }

    /// The ways to authenticate on `route`, in the order in which they are asked.
    pub fn auths_of(&self, route: &Route) -> impl Iterator<Item = &Auth> + Clone {
        route.auths.iter().map(|&index| &self.auths[usize::from(index)])
    }
}
