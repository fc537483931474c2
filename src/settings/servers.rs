//! `[[backend]]` blocks of `kind = "websocket"`: ordinary WebSocket servers behind the gateway.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use toml::Spanned;

use super::endpoint::Endpoint;
use super::file::RawBackend;
use super::load::{Loader, place, trim_newline};
use super::raw::{TextByName, WordOrTextByName};
use super::routes::{is_token, parse_path};
use super::websocket_backend::{
    ENCODED_SUFFIX, HashKey, IdentityHeader, ServerTls, WebSocketBackend, certificate_name,
};
use super::{Backend, Balance, PathPattern};
use crate::base::circuit::CircuitLimits;
use crate::base::secret::Secret;
use crate::ring::EndpointAddress;

/// Most headers that a backend may set of each sort.
const HEADERS_MAX: usize = 32;
/// Longest value of a header.
const VALUE_BYTES_MAX: usize = 4096;

/// Fields that the gateway writes itself, or that belong to the connection.
const OWN_FIELDS: &[&str] = &[
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "traceparent",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
    "x-request-id",
];

impl Default for WebSocketBackend {
    /// What a block says that says nothing.
    fn default() -> Self {
        let raw = RawBackend::default();
        WebSocketBackend {
            base_path: String::new(),
            hash: None,
            tls: None,
            passes_credentials: raw.credentials() == "pass",
            host: None,
            identity_headers: Vec::new(),
            request_headers: Vec::new(),
            withheld: Arc::default(),
            handshakes_max: raw.handshakes_max(),
            sessions_max: None,
            message_max: None,
            circuit: circuit(&raw),
        }
    }
}

/// Claims and their headers, as presets name them.
fn preset(name: &str) -> &'static [(&'static str, &'static str)] {
    match name {
        "forwarded" => &[
            ("sub", "X-Forwarded-User"),
            ("email", "X-Forwarded-Email"),
            ("groups", "X-Forwarded-Groups"),
            ("preferred_username", "X-Forwarded-Preferred-Username"),
        ],
        "remote" => &[
            ("sub", "Remote-User"),
            ("groups", "Remote-Groups"),
            ("name", "Remote-Name"),
            ("email", "Remote-Email"),
        ],
        _ => &[],
    }
}

/// How the URLs of a backend's endpoints begin and end, beside their addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    is_tls: bool,
    base_path: String,
}

/// A name as servers compare it, some of which take `_` for `-`.
fn folded(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}

fn circuit(raw: &RawBackend) -> CircuitLimits {
    CircuitLimits {
        failures: raw.circuit_failures(),
        open_min: raw.circuit_open_min(),
        open_max: raw.circuit_open_max(),
    }
}

/// TLS of a client that shows no certificate. Servers that speak more than HTTP/1.1 are asked for
/// that.
fn client_config(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("the provider has suites for both versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

impl Loader<'_> {
    /// How endpoints are chosen, and by which value first of all.
    pub(super) fn balance(&mut self, raw: &RawBackend) -> Option<(Balance, Option<HashKey>)> {
        let at = place(&raw.balance, &(0..0));
        let key = match raw.balance() {
            "round-robin" => return Some((Balance::RoundRobin, None)),
            "least-sessions" => return Some((Balance::LeastSessions, None)),
            "hash-subject" => HashKey::Subject,
            "hash-address" => HashKey::Address,
            named => match named.split_once(':') {
                Some(("hash-cookie", name)) => HashKey::Cookie(name.to_owned()),
                Some((_, name)) => HashKey::Query(name.to_owned()),
                None => unreachable!("settings/shape.rs lets no other word through"),
            },
        };
        if raw.kind() == "link" {
            let what = format!("balance = \"{key}\" is for kind = \"websocket\"");
            self.report.error(at, what, "write \"least-sessions\" or \"round-robin\"");
            return None;
        }
        if let HashKey::Cookie(name) | HashKey::Query(name) = &key
            && !is_token(name)
        {
            let what = format!("{name:?} names no cookie and no parameter");
            self.report.error(at, what, "write hash-cookie:NAME or hash-query:NAME");
            return None;
        }
        Some((Balance::LeastSessions, Some(key)))
    }

    /// A backend of `kind = "websocket"`.
    pub(super) fn server(
        &mut self,
        raw: &RawBackend,
        (way, first): (Way, &str),
        hash: Option<HashKey>,
    ) -> Option<WebSocketBackend> {
        let circuit = circuit(raw);
        if circuit.open_max < circuit.open_min {
            let at = place(&raw.circuit_open_max, &place(&raw.circuit_open_min, &(0..0)));
            let what = "circuit_open_max is below circuit_open_min";
            self.report.error(at, what, "the wait begins at the one and doubles up to the other");
        }
        let tls = self.server_tls(raw, way.is_tls);
        let identity_headers = self.identity_headers_for_server(raw);
        let request_headers = self.request_headers(raw, identity_headers.as_deref());
        let host = (!raw.preserve_host()).then(|| self.host_of(raw, first));
        let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Some(WebSocketBackend {
            base_path: way.base_path,
            hash,
            tls: tls?,
            passes_credentials: raw.credentials() == "pass",
            host,
            identity_headers: identity_headers?,
            request_headers: request_headers?,
            withheld: Arc::default(),
            handshakes_max: raw.handshakes_max(),
            sessions_max: super::raw::count(&raw.sessions_max, "").map(count),
            message_max: super::raw::size(&raw.upstream_message_max, "").map(count),
            circuit,
        })
    }

    /// The Host for servers that do not want the client's.
    fn host_of(&mut self, raw: &RawBackend, first: &str) -> String {
        if let Some(name) = &raw.server_name {
            return name.get_ref().clone();
        }
        let several = raw.endpoints.as_ref().filter(|list| list.get_ref().len() > 1);
        if let Some(list) = several {
            let what = "preserve_host = false with several endpoints: which of them is the Host?";
            self.report.error(list.span(), what, "set server_name");
        }
        first.to_owned()
    }

    fn server_tls(&mut self, raw: &RawBackend, is_tls: bool) -> Option<Option<ServerTls>> {
        let roots = raw.ca_file.as_ref().map(|name| self.roots(name));
        if let Some(name) = raw.ca_file.as_ref().filter(|_| !is_tls) {
            let what = "ca_file has no use: no endpoint is wss://";
            self.report.error(name.span(), what, "remove it, or write wss://");
        }
        let mut server_name = None;
        if let Some(name) = &raw.server_name {
            let text = name.get_ref();
            if !is_tls && raw.preserve_host() {
                let what = "server_name has no use: no endpoint is wss://";
                self.report.error(name.span(), what, "remove it, or write preserve_host = false");
            }
            server_name = ServerName::try_from(text.clone()).ok();
            if server_name.is_none() {
                let what = format!("{text:?} is neither a host name nor an IP address");
                self.report.error(name.span(), what, "write app.example.com");
            }
        }
        if !is_tls {
            return Some(None);
        }
        let roots = match roots {
            None => self.system_roots(&place(&raw.endpoints, &(0..0)))?,
            Some(roots) => roots?,
        };
        Some(Some(ServerTls { config: Arc::new(client_config(roots)), server_name }))
    }

    fn system_roots(&mut self, at: &Range<usize>) -> Option<RootCertStore> {
        let roots = self.environment.system_roots();
        if let Err(error) = &roots {
            let what = format!("the system's certificates cannot be read: {error}");
            let fix = "install ca-certificates, or name the issuer's certificate as ca_file";
            self.report.error(at.clone(), what, fix);
        }
        roots.ok()
    }

    fn identity_headers_for_server(&mut self, raw: &RawBackend) -> Option<Vec<IdentityHeader>> {
        let Some(written) = &raw.identity_headers else { return Some(Vec::new()) };
        let table = match written.get_ref() {
            WordOrTextByName::Word(word) => {
                let header = |(claim, name): &(&str, &str)| IdentityHeader::new(claim, name);
                return Some(preset(word).iter().map(header).collect());
            }
            WordOrTextByName::Texts(table) => table,
        };
        let mut headers: Vec<IdentityHeader> = Vec::new();
        let mut failed = self.has_too_many(table, "identity_headers");
        for (claim, name) in table {
            let header = IdentityHeader::new(claim, name.get_ref());
            let taken = headers.iter().flat_map(|other| [&other.name, &other.encoded_name]);
            let is_taken = taken.into_iter().any(|other| folded(other) == folded(&header.name));
            failed |= !self.is_settable(name.get_ref(), is_taken, name);
            if ["authorization", "cookie", "origin"].contains(&folded(name.get_ref()).as_str()) {
                let what = format!("header {:?} is the client's own", name.get_ref());
                self.report.error(name.span(), what, "name another for the identity");
                failed = true;
            }
            headers.push(header);
        }
        (!failed).then_some(headers)
    }

    fn request_headers(
        &mut self,
        raw: &RawBackend,
        identity: Option<&[IdentityHeader]>,
    ) -> Option<Vec<(String, Secret)>> {
        let none = TextByName::new();
        let texts = raw.request_headers.as_ref().unwrap_or(&none);
        let files = raw.request_header_files.as_ref().unwrap_or(&none);
        let mut failed = self.has_too_many(texts, "request_headers");
        failed |= self.has_too_many(files, "request_header_files");
        let mut headers: Vec<(String, Secret)> = Vec::new();
        let all = texts.iter().map(|(name, text)| (name, text, false));
        for (name, text, is_file) in all.chain(files.iter().map(|(name, text)| (name, text, true)))
        {
            let of_identity = identity.unwrap_or_default().iter();
            let taken = of_identity.flat_map(|header| [&header.name, &header.encoded_name]);
            let is_taken = taken
                .chain(headers.iter().map(|(name, _)| name))
                .any(|other| folded(other) == folded(name));
            failed |= !self.is_settable(name, is_taken, text);
            let value = match is_file {
                false => Some(text.get_ref().clone().into_bytes()),
                true => self.contents(text, true).map(|mut bytes| {
                    trim_newline(&mut bytes);
                    bytes
                }),
            };
            let Some(value) = value else {
                failed = true;
                continue;
            };
            if !is_value(&value) {
                // The value itself is not shown: it may be a credential.
                let what = format!("the value of header {name:?} cannot be sent");
                let fix = format!(
                    "it must be 1 to {VALUE_BYTES_MAX} visible ASCII characters, with spaces \
                     between them only"
                );
                self.report.error(text.span(), what, &fix);
                failed = true;
            }
            headers.push((name.clone(), Secret::new(value)));
        }
        (!failed).then_some(headers)
    }

    fn has_too_many(&mut self, table: &TextByName, key: &str) -> bool {
        let Some(text) = table.values().nth(HEADERS_MAX) else { return false };
        let what = format!("{key} has more than {HEADERS_MAX} headers");
        self.report.error(text.span(), what, "remove some");
        true
    }

    /// Whether the gateway may set a header of this name; otherwise that is reported.
    fn is_settable(&mut self, name: &str, is_taken: bool, at: &Spanned<String>) -> bool {
        let own = folded(name);
        let what = if !is_token(name) {
            format!("{name:?} is not a header name")
        } else if OWN_FIELDS.contains(&own.as_str()) || own.starts_with("sec-websocket") {
            format!("header {name:?} is the gateway's own")
        } else if own.ends_with(&folded(ENCODED_SUFFIX)) {
            format!("header {name:?} ends as those do whose values are percent-encoded")
        } else if is_taken {
            format!("header {name:?} is set twice")
        } else {
            return true;
        };
        self.report.error(at.span(), what, "");
        false
    }

    /// An endpoint of `kind = "websocket"`, and what stands for its host.
    pub(super) fn server_endpoint(
        &mut self,
        text: &Spanned<String>,
    ) -> Option<(Endpoint, Way, String)> {
        let (name, at) = (text.get_ref().as_str(), text.span());
        let (is_tls, rest) = match (name.strip_prefix("ws://"), name.strip_prefix("wss://")) {
            (Some(rest), _) => (false, rest),
            (None, Some(rest)) => (true, rest),
            (None, None) => {
                let what = format!("{name:?} does not say how its server is spoken to");
                let fix = "write ws://IP:PORT or ws://NAME:PORT, with the path that all its URLs \
                           begin with, if any, or unix:/PATH";
                self.report.error(at, what, fix);
                return None;
            }
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let base_path = path.strip_suffix('/').unwrap_or(path);
        let proper =
            base_path.is_empty() || matches!(parse_path(base_path), Some(PathPattern::Exact(_)));
        if !proper || authority.contains(['?', '#', '@']) {
            let what = "this is not the URL of a WebSocket server";
            let fix = "write ws://NAME:PORT or ws://NAME:PORT/PATH, without query and user";
            self.report.error(at, what, fix);
            return None;
        }
        let port = if is_tls { 443 } else { 80 };
        let alone = authority.trim_start_matches('[').trim_end_matches(']');
        let endpoint = match alone.parse::<IpAddr>() {
            Ok(ip) => Endpoint::Address(EndpointAddress::Tcp(SocketAddr::new(ip, port))),
            Err(_) if !authority.contains(':') => {
                self.named_address(&format!("{authority}:{port}"), at)?
            }
            Err(_) => self.named_address(authority, at)?,
        };
        if is_tls
            && let Some(name) = endpoint.name()
            && certificate_name(name).is_none()
        {
            let what = format!("no certificate can have the name {:?}", name.host);
            self.report.error(text.span(), what, "write wss://app.internal");
            return None;
        }
        let way = Way { is_tls, base_path: base_path.to_owned() };
        Some((endpoint, way, authority.to_owned()))
    }

    /// Requests to all endpoints of a backend are the same.
    pub(super) fn is_same_way(&mut self, way: &Way, other: &Way, at: &Spanned<String>) -> bool {
        let what = if way.is_tls != other.is_tls {
            "some endpoints of this backend speak TLS and some do not"
        } else if way.base_path != other.base_path {
            "the endpoints of this backend have different paths"
        } else {
            return true;
        };
        let fix = "give all of them the same scheme and path, or make two backends of them";
        self.report.error(at.span(), what, fix);
        false
    }
}

impl Way {
    /// That of a unix socket.
    pub(super) fn unix() -> Way {
        Way { is_tls: false, base_path: String::new() }
    }
}

/// A value that needs no quoting: visible ASCII with spaces inside.
fn is_value(value: &[u8]) -> bool {
    let ends = [value.first(), value.last()];
    (1..=VALUE_BYTES_MAX).contains(&value.len())
        && value.iter().all(|&byte| byte == b' ' || byte.is_ascii_graphic())
        && ends.iter().all(|end| end.is_some_and(|&byte| byte != b' '))
}

/// Tells each backend which names no client may set: those of all backends' identities, since a
/// server may trust them wherever they come from, and its own fixed ones.
pub(super) fn withhold(backends: &mut [Backend]) {
    let servers = || backends.iter().filter_map(|backend| backend.server.as_ref());
    let identities: Vec<String> = servers()
        .flat_map(|server| &server.identity_headers)
        .flat_map(|header| [folded(&header.name), folded(&header.encoded_name)])
        .collect();
    for server in backends.iter_mut().filter_map(|backend| backend.server.as_mut()) {
        let own = server.request_headers.iter().map(|(name, _)| folded(name));
        let mut names: Vec<String> = own.chain(identities.iter().cloned()).collect();
        names.sort_unstable();
        names.dedup();
        server.withheld = names.into();
    }
}
