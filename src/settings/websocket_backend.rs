//! What is known of the WebSocket servers of a backend.

use std::fmt;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::endpoint::{Endpoint, HostPort};
use crate::base::circuit::CircuitLimits;
use crate::base::secret::Secret;
use crate::ring::EndpointAddress;

/// What the name of an identity header has behind it where its value is percent-encoded.
pub const ENCODED_SUFFIX: &str = "-Encoded";

/// Which value of a client chooses its endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The subject of its identity.
    Subject,
    /// Its address.
    Address,
    /// A cookie.
    Cookie(String),
    /// A parameter of the query.
    Query(String),
}

impl fmt::Display for HashKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HashKey::Subject => out.write_str("hash-subject"),
            HashKey::Address => out.write_str("hash-address"),
            HashKey::Cookie(name) => write!(out, "hash-cookie:{name}"),
            HashKey::Query(name) => write!(out, "hash-query:{name}"),
        }
    }
}

/// Servers that know nothing of links, and what they learn of clients. It has no `Debug`:
/// headers may hold credentials.
#[derive(Clone)]
pub struct WebSocketBackend {
    /// What goes in front of each request's path; empty, or without a slash at its end.
    pub base_path: String,
    /// The value that chooses a client's endpoint, where one does.
    pub hash: Option<HashKey>,
    /// How TLS is spoken with `wss://` endpoints; `None` is not.
    pub tls: Option<ServerTls>,
    /// Whether the application gets what the gateway's carriers took.
    pub passes_credentials: bool,
    /// The Host that the application gets; `None` is the client's.
    pub host: Option<String>,
    /// Headers that say who the client is.
    pub identity_headers: Vec<IdentityHeader>,
    /// Headers with a fixed value.
    pub request_headers: Vec<(String, Secret)>,
    /// Names that no client may set, lower case and with `-` for `_`, beside those that never pass.
    pub withheld: Arc<[String]>,
    /// Handshakes of one worker with one endpoint that may await its answer.
    pub handshakes_max: u32,
    /// Connections of one worker to one endpoint; `None` is any number.
    pub sessions_max: Option<u32>,
    /// Largest message of the application; `None` is any.
    pub message_max: Option<u32>,
    /// When an endpoint is left alone after failures.
    pub circuit: CircuitLimits,
}

/// TLS with servers. There is no way to leave the check of their certificates out.
#[derive(Clone)]
pub struct ServerTls {
    /// What connections are made with.
    pub config: Arc<ClientConfig>,
    /// The name that certificates must have; `None` is each endpoint's own.
    pub server_name: Option<ServerName<'static>>,
}

impl ServerTls {
    /// The name that the certificate of this endpoint must have: its own stays that, whatever
    /// address a resolver gives for it.
    pub fn name_of(&self, endpoint: &Endpoint) -> ServerName<'static> {
        match (&self.server_name, endpoint) {
            (Some(name), _) => name.clone(),
            (None, Endpoint::Name(name)) => {
                certificate_name(name).expect("the settings take no other name for wss://")
            }
            (None, Endpoint::Address(EndpointAddress::Tcp(address))) => {
                ServerName::from(address.ip())
            }
            (None, Endpoint::Address(EndpointAddress::Unix(_))) => {
                unreachable!("wss:// names no unix socket")
            }
        }
    }
}

/// A name as certificates and SNI have it, which is without a dot at its end (RFC 6066 §3). Some
/// that a resolver takes are none, as `0x7f000001`.
pub(super) fn certificate_name(name: &HostPort) -> Option<ServerName<'static>> {
    let host = name.host.strip_suffix('.').unwrap_or(&name.host);
    ServerName::try_from(host.to_owned()).ok()
}

/// A header that says something of the client's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityHeader {
    /// What it says.
    pub claim: IdentityClaim,
    /// Its name, as it is written.
    pub name: String,
    /// The name where the value is percent-encoded, since no header could hold it as it is.
    pub encoded_name: String,
}

impl IdentityHeader {
    pub(super) fn new(claim: &str, name: &str) -> Self {
        let claim = match claim {
            "sub" => IdentityClaim::Subject,
            "jti" => IdentityClaim::TokenId,
            other => IdentityClaim::Member(other.to_owned()),
        };
        IdentityHeader {
            claim,
            name: name.to_owned(),
            encoded_name: format!("{name}{ENCODED_SUFFIX}"),
        }
    }
}

/// A part of a verified identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentityClaim {
    /// Whom the token names, whatever its format calls that.
    Subject,
    /// The token's own id.
    TokenId,
    /// A member of the claims: text, a number, or a list of texts.
    Member(String),
}
