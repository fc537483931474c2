//! What every machine of a connection is given, and where it leaves what it has to say.

use std::net::{IpAddr, SocketAddr};

use crate::base::time::Now;
use crate::counters::Counters;
use crate::protocol::identity::VerifiedIdentity;
use crate::protocol::revocation::Revoked;
use crate::protocol::websocket::ControlPayload;
use crate::settings::{Route, Settings};

use super::auth_request::HttpAuthRequest;
use super::authenticate;
use super::route_order::RouteOrder;
use super::session::SessionRequest;
use super::upstream::websocket::handshake::Handshake;
use super::upstream::websocket::request::ServerNonce;

/// What a machine may look at while it works.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Both clocks.
    pub now: Now,
    /// The settings in force.
    pub settings: &'a Settings,
    /// Where clients' routes are in the settings.
    pub routes: &'a RouteOrder,
    /// The worker's numbers.
    pub counters: &'a Counters,
    /// A random number; the worker draws another in each turn.
    pub jitter: u32,
    /// Who must not be let in.
    pub revoked: &'a Revoked,
}

impl Context<'_> {
    /// Whether a client of this identity must not be let in to this route.
    pub fn is_revoked(&self, identity: &VerifiedIdentity<'_>, route: &Route) -> bool {
        let backend = &self.settings.backends[usize::from(route.backend)].name;
        self.revoked.is_revoked(identity, backend, self.now.unix)
    }
}

/// Where a machine leaves what it has to say; one for each worker, reused for every call.
#[derive(Default)]
pub struct Output {
    /// Bytes for the client, before encryption.
    pub answers: Vec<u8>,
    /// Who the client is by the word of a trusted proxy, once its request head is read.
    pub forwarded_peer: Option<SocketAddr>,
    /// Room to write an explanation in.
    pub explanation: Vec<u8>,
    /// What the client wants of its upstream, after
    /// [`Step::Authenticated`](super::client::Step::Authenticated) and
    /// [`Step::Ask`](super::client::Step::Ask); after
    /// [`Step::Reauthenticated`](super::client::Step::Reauthenticated) its identity alone.
    pub request: SessionRequest,
    /// What an HTTP endpoint is to be asked, after [`Step::Ask`](super::client::Step::Ask).
    pub http_request: Option<HttpAuthRequest>,
    /// What a WebSocket server is to be asked, after [`Step::Dial`](super::client::Step::Dial).
    pub handshake: Option<Handshake>,
    /// Random bytes for the next handshake with a server; the worker draws others after each.
    pub nonce: ServerNonce,
    /// The proxy that the client came through, where the client's address is by its word.
    pub proxy: Option<IpAddr>,
    /// The payload of a ping or pong, after [`Step::Control`](super::client::Step::Control).
    pub control: ControlPayload,
    /// The client's close reason (UTF-8, at most 123 bytes), after
    /// its close frame.
    pub reason: Vec<u8>,
    /// Bytes of a client's message that were held back, after [`Step::Released`](super::client::Step::Released).
    pub released: Vec<u8>,
    /// Room for the path that goes to an HTTP endpoint.
    pub path: Vec<u8>,
    /// What greets the client once its session is open, after [`Step::Authenticated`](super::client::Step::Authenticated).
    pub connect_ack: Vec<u8>,
    /// What came with the token and is the backend's, as a frame of the client's, after
    /// [`Step::Authenticated`](super::client::Step::Authenticated).
    pub rest: Vec<u8>,
    /// An Origin that its route refuses, or its beginning, for the log; the worker empties it.
    pub refused_origin: Vec<u8>,
    /// Room to decode tokens in.
    pub tokens: authenticate::Scratch,
}
