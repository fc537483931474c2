//! The request head for a WebSocket server: the client's own, without what may not go on, and with
//! what the gateway knows of the client.
//!
//! No field by which a client could claim an address or an identity passes, in whichever case and
//! with `_` for `-`, since some servers read it so: all of these are written here, or by no one.

use std::fmt::Write as _;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::connection::session::SessionIdentity;
use crate::protocol::carrier::{Carrier, redacted_query};
use crate::protocol::compact_json::{self, JsonString, Object, Value};
use crate::protocol::forwarded;
use crate::protocol::host::{Site, split_port};
use crate::protocol::http_upgrade::{UpgradeRequest, is_bearer_entry};
use crate::settings::{
    Forwarded, IdentityClaim, IdentityHeader, Route, Settings, WebSocketBackend,
};

/// Random bytes for one request: 16 for the key, 16 for its id, 8 for its place in a trace.
pub struct ServerNonce(pub [u8; 40]);

impl Default for ServerNonce {
    fn default() -> Self {
        ServerNonce([0; 40])
    }
}

/// Proxies between the client and the nearest one that are named to the server.
const HOPS_MAX: usize = 8;

/// Fields that never pass; lower case. The second part is written here.
const REMOVED: &[&str] = &[
    "content-length",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "x-rewrite-url",
    // Written here.
    "connection",
    "host",
    "traceparent",
    "upgrade",
    "x-request-id",
];

/// Beginnings of names that only the gateway may set; lower case.
const REMOVED_STARTS: &[&str] =
    &["remote-", "sec-websocket-", "x-auth-", "x-authentik-", "x-portcullis-"];

/// Fields that pass under this spelling alone, and that `Connection` cannot take away, since the
/// gateway has judged the client by them.
const JUDGED: &[&str] = &["authorization", "cookie", "origin", SUBPROTOCOLS];

const SUBPROTOCOLS: &str = "sec-websocket-protocol";

/// What a server is asked, and for whom.
pub struct ServerRequest<'a, 'h, 'b> {
    /// The client's request.
    pub request: &'a UpgradeRequest<'h, 'b>,
    /// The settings in force.
    pub settings: &'a Settings,
    /// The request's route.
    pub route: &'a Route,
    /// The route's backend.
    pub server: &'a WebSocketBackend,
    /// Where the client believes to be.
    pub site: Site<'a>,
    /// The client's address.
    pub client: Option<IpAddr>,
    /// The proxies whose word counts, where the request came from one.
    pub proxies: Option<&'a Forwarded>,
    /// The address of that proxy, where it is not the client's.
    pub proxy: Option<IpAddr>,
    /// Who the client is; `None` before that is known, or where no one says so.
    pub identity: Option<&'a SessionIdentity<'a>>,
    /// Random bytes.
    pub nonce: &'a ServerNonce,
}

/// The Sec-WebSocket-Key that [`ServerRequest::write`] makes of random bytes.
pub fn key(nonce: &ServerNonce) -> [u8; 24] {
    let mut key = [0; 24];
    let written = STANDARD.encode_slice(&nonce.0[..16], &mut key);
    assert_eq!(written.ok(), Some(24), "16 bytes are 24 characters");
    key
}

impl ServerRequest<'_, '_, '_> {
    /// Appends the whole head.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"GET ");
        self.write_target(out);
        out.extend_from_slice(b" HTTP/1.1\r\n");
        let host = self.server.host.as_deref().unwrap_or(self.request.host());
        field(out, "Host", host.as_bytes());
        let traced = self.trace();
        for (name, value) in self.request.fields() {
            let is = |own: &str| name.eq_ignore_ascii_case(own);
            if !self.passes(name) || (traced.is_none() && is("tracestate")) {
                continue;
            }
            if self.server.passes_credentials {
                field(out, name, value);
            } else if is("cookie") {
                self.write_cookies(name, value, out);
            } else if is(SUBPROTOCOLS) {
                write_list(out, name, entries(value).filter(|entry| !self.took_entry(entry)), ", ");
            } else {
                field(out, name, value);
            }
        }
        field(out, "Connection", b"Upgrade");
        field(out, "Upgrade", b"websocket");
        field(out, "Sec-WebSocket-Version", b"13");
        field(out, "Sec-WebSocket-Key", &key(self.nonce));
        self.write_forwarded(out);
        self.write_trace(traced, out);
        self.write_identity(out);
        for (name, value) in &self.server.request_headers {
            field(out, name, value.expose());
        }
        out.extend_from_slice(b"\r\n");
    }

    /// The subprotocols that the server is offered, in order.
    pub fn subprotocols(&self) -> impl Iterator<Item = &str> {
        let passes = self.server.passes_credentials;
        self.request.subprotocols().filter(move |own| passes || !self.took_entry(own.as_bytes()))
    }

    /// Base path, path and query, byte for byte but for what the settings take away.
    fn write_target(&self, out: &mut Vec<u8>) {
        let path = self.request.path();
        let rest = path.strip_prefix(self.route.strip_prefix.as_str()).unwrap_or(path);
        out.extend_from_slice(self.server.base_path.as_bytes());
        out.extend_from_slice(rest.as_bytes());
        if rest.is_empty() && self.server.base_path.is_empty() {
            out.push(b'/');
        }
        match self.request.query() {
            Some(query) if self.server.passes_credentials => {
                out.push(b'?');
                out.extend_from_slice(query.as_bytes());
            }
            Some(_) => {
                let auths = self.settings.auths_of(self.route);
                let secrets = auths.flat_map(|auth| auth.secret_parameters());
                redacted_query(self.request, secrets, out);
            }
            None => {}
        }
    }

    /// Whether a field of the client's may go on.
    fn passes(&self, name: &str) -> bool {
        let is = |own: &str| name.eq_ignore_ascii_case(own);
        if JUDGED.iter().any(|own| is(own)) {
            return !self.took(name) && (self.route.passes_cookies || !is("cookie"));
        }
        // A token that the application is to verify again, whatever its field is called.
        if self.server.passes_credentials && self.is_carrier(name) {
            return true;
        }
        let folds_to = |own: &str| is_folded(name, own);
        let starts = |start: &str| name.get(..start.len()).is_some_and(|s| is_folded(s, start));
        let removed = REMOVED.iter().chain(JUDGED).any(|own| folds_to(own))
            || REMOVED_STARTS.iter().any(|start| starts(start))
            || self.server.withheld.iter().any(|own| folds_to(own))
            || forwarded::is_claim(name)
            || self.took(name);
        !removed && !self.is_of_connection(name)
    }

    /// Whether the client's `Connection` lists the field, as one for the gateway alone.
    fn is_of_connection(&self, name: &str) -> bool {
        let mut options = self.request.values("connection").flat_map(entries);
        options.any(|option| option.eq_ignore_ascii_case(name.as_bytes()))
    }

    fn carriers(&self) -> impl Iterator<Item = &Carrier> {
        self.settings.auths_of(self.route).flat_map(|auth| &auth.carriers)
    }

    fn is_carrier(&self, name: &str) -> bool {
        self.carriers().any(
            |carrier| matches!(carrier, Carrier::Header(own) if name.eq_ignore_ascii_case(own)),
        )
    }

    /// Whether the gateway looks for tokens in this field, and keeps them.
    fn took(&self, name: &str) -> bool {
        !self.server.passes_credentials
            && self.carriers().any(|carrier| match carrier {
                Carrier::Authorization => is_folded(name, "authorization"),
                Carrier::Header(own) => is_folded(name, own),
                _ => false,
            })
    }

    fn took_entry(&self, entry: &[u8]) -> bool {
        let is_taken = || self.carriers().any(|carrier| matches!(carrier, Carrier::Subprotocol));
        is_bearer_entry(entry) && is_taken()
    }

    /// The cookies that are left without those that the gateway took.
    fn write_cookies(&self, name: &str, value: &[u8], out: &mut Vec<u8>) {
        let took = |pair: &[u8]| {
            let end = pair.iter().position(|&byte| byte == b'=').unwrap_or(pair.len());
            self.carriers().any(|carrier| {
                matches!(carrier, Carrier::Cookie(own) if own.as_bytes() == pair[..end].trim_ascii())
            })
        };
        let pairs = value.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
        write_list(out, name, pairs.filter(|pair| !pair.is_empty() && !took(pair)), "; ");
    }

    fn write_forwarded(&self, out: &mut Vec<u8>) {
        if let Some(client) = self.client {
            out.extend_from_slice(b"X-Forwarded-For: ");
            write_ip(out, client);
            let (hops, count) = self.hops();
            for hop in hops[..count].iter().rev().flatten().chain(&self.proxy) {
                out.extend_from_slice(b", ");
                write_ip(out, *hop);
            }
            out.extend_from_slice(b"\r\nX-Real-IP: ");
            write_ip(out, client);
            out.extend_from_slice(b"\r\n");
        }
        let (_, port) = split_port(self.site.host);
        let default = if self.site.is_secure { "443" } else { "80" };
        let port = port.or(self.site.port).unwrap_or(default);
        field(out, "X-Forwarded-Proto", self.site.scheme().as_bytes());
        field(out, "X-Forwarded-Host", self.site.host.as_bytes());
        field(out, "X-Forwarded-Port", port.as_bytes());
        out.extend_from_slice(b"X-Request-Id: ");
        write_hex(out, &self.nonce.0[16..32]);
        out.extend_from_slice(b"\r\n");
    }

    /// The trusted proxies in the list that the nearest one sent, from the right, and how many.
    fn hops(&self) -> ([Option<IpAddr>; HOPS_MAX], usize) {
        let mut hops = [None; HOPS_MAX];
        let mut count = 0;
        let Some(proxies) = self.proxies.filter(|own| own.header == forwarded::LIST) else {
            return (hops, count);
        };
        let values = self.request.parts().values(forwarded::LIST);
        let entries = values.rev().flat_map(|value| value.rsplit(|&byte| byte == b','));
        for address in entries.map_while(forwarded::address) {
            let (ip, _) = address;
            if Some(ip) == self.client || !proxies.trusts(ip) || count == HOPS_MAX {
                break;
            }
            hops[count] = Some(ip);
            count += 1;
        }
        (hops, count)
    }

    /// The trace that the client's request belongs to, if it says so properly.
    fn trace(&self) -> Option<&[u8]> {
        forwarded::single(self.request.parts().values("traceparent")).filter(|v| is_trace(v))
    }

    /// `traceparent` of W3C Trace Context: the client's, or one of a new trace.
    fn write_trace(&self, traced: Option<&[u8]>, out: &mut Vec<u8>) {
        if let Some(traced) = traced {
            return field(out, "traceparent", traced);
        }
        out.extend_from_slice(b"traceparent: 00-");
        write_hex(out, &self.nonce.0[16..32]);
        out.push(b'-');
        write_hex(out, &self.nonce.0[32..]);
        out.extend_from_slice(b"-00\r\n");
    }

    fn write_identity(&self, out: &mut Vec<u8>) {
        let Some(identity) = self.identity else { return };
        if identity.subject.is_empty() && identity.claims.is_empty() {
            return;
        }
        let headers = &self.server.identity_headers;
        let needs_claims =
            headers.iter().any(|header| matches!(header.claim, IdentityClaim::Member(_)));
        let claims = match needs_claims {
            true => compact_json::object(identity.claims, compact_json::MEMBERS_MAX).ok(),
            false => None,
        };
        for header in headers {
            if let Some(said) = said(header, identity, claims) {
                said.write(header, out);
            }
        }
    }
}

/// What an identity says of one claim.
#[derive(Clone, Copy)]
enum Said<'t> {
    Text(&'t str),
    Json(JsonString<'t>),
    List(compact_json::Array<'t>),
}

fn said<'t>(
    header: &IdentityHeader,
    identity: &SessionIdentity<'t>,
    claims: Option<Object<'t>>,
) -> Option<Said<'t>> {
    let member = match &header.claim {
        IdentityClaim::Subject => return Some(Said::Text(identity.subject)),
        IdentityClaim::TokenId => return identity.token_id.map(Said::Text),
        IdentityClaim::Member(name) => claims?.member(name).ok()??,
    };
    match member {
        Value::Array(list) => {
            list.elements().all(|item| text(item).is_some()).then_some(Said::List(list))
        }
        single => text(single),
    }
}

/// A value that is one text.
fn text(value: Value<'_>) -> Option<Said<'_>> {
    match value {
        Value::String(string) => Some(Said::Json(string)),
        Value::Number(number) => Some(Said::Text(number)),
        Value::Bool(true) => Some(Said::Text("true")),
        Value::Bool(false) => Some(Said::Text("false")),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

impl Said<'_> {
    /// Calls `each` for all characters, with `None` between the elements of a list.
    fn each(self, each: &mut impl FnMut(Option<char>)) {
        match self {
            Said::Text(text) => text.chars().for_each(|character| each(Some(character))),
            Said::Json(string) => string.chars().for_each(|character| each(Some(character))),
            Said::List(list) => {
                for (index, element) in list.elements().filter_map(text).enumerate() {
                    if index > 0 {
                        each(None);
                    }
                    element.each(each);
                }
            }
        }
    }

    /// Writes the header, percent-encoded and under its other name where the value could be misread:
    /// other bytes than visible ASCII, spaces at an end, a comma within an element of a list.
    fn write(self, header: &IdentityHeader, out: &mut Vec<u8>) {
        let is_list = matches!(self, Said::List(_));
        let (mut plain, mut last, mut any) = (true, None, false);
        self.each(&mut |character| {
            plain &= match (last, character) {
                (None | Some(' '), None) => false,
                (None, Some(' ')) => false,
                (_, Some(',')) => !is_list,
                (_, Some(character)) => character == ' ' || character.is_ascii_graphic(),
                (Some(_), None) => true,
            };
            any |= character.is_some();
            last = character;
        });
        if !any {
            return;
        }
        let plain = plain && last.is_some_and(|last| last != ' ');
        out.extend_from_slice(if plain { &header.name } else { &header.encoded_name }.as_bytes());
        out.extend_from_slice(b": ");
        self.each(&mut |character| {
            let mut bytes = [0; 4];
            match character {
                None => out.push(b','),
                Some(character) if plain => out.push(character as u8),
                Some(character) => {
                    for &byte in character.encode_utf8(&mut bytes).as_bytes() {
                        write_percent(out, byte);
                    }
                }
            }
        });
        out.extend_from_slice(b"\r\n");
    }
}

/// Whether `name` is `own`, which is in lower case, to a server that reads `_` as `-`.
fn is_folded(name: &str, own: &str) -> bool {
    let fold = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    name.len() == own.len() && name.bytes().map(fold).eq(own.bytes().map(fold))
}

/// Version, trace, parent and flags in lower-case hexadecimal (W3C Trace Context §3.2).
fn is_trace(value: &[u8]) -> bool {
    let [a, b, b'-', rest @ ..] = value else { return false };
    let is_hex = |bytes: &[u8]| bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let is_id = |bytes: &[u8]| is_hex(bytes) && bytes.iter().any(|&b| b != b'0');
    let version = [*a, *b];
    let Some((known, more)) = rest.split_at_checked(52) else { return false };
    is_hex(&version)
        && version != *b"ff"
        && is_id(&known[..32])
        && known[32] == b'-'
        && is_id(&known[33..49])
        && known[49] == b'-'
        && is_hex(&known[50..])
        && (more.is_empty()
            || (version != *b"00" && more[0] == b'-' && more.iter().all(u8::is_ascii_graphic)))
}

/// The parts of a list (RFC 9110 §5.6.1), trimmed.
fn entries(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let parts = value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    parts.filter(|part| !part.is_empty())
}

fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// A field of these parts; none without any.
fn write_list<'v>(
    out: &mut Vec<u8>,
    name: &str,
    parts: impl Iterator<Item = &'v [u8]>,
    separator: &str,
) {
    let mut written = false;
    for part in parts {
        match written {
            false => {
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(b": ");
            }
            true => out.extend_from_slice(separator.as_bytes()),
        }
        out.extend_from_slice(part);
        written = true;
    }
    if written {
        out.extend_from_slice(b"\r\n");
    }
}

fn write_ip(out: &mut Vec<u8>, ip: IpAddr) {
    struct Bytes<'a>(&'a mut Vec<u8>);
    impl std::fmt::Write for Bytes<'_> {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.extend_from_slice(text.as_bytes());
            Ok(())
        }
    }
    let written = write!(Bytes(out), "{}", ip.to_canonical());
    debug_assert!(written.is_ok(), "a vector takes all");
}

fn write_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

/// A byte as in RFC 3986 §2.1, with all but the unreserved ones encoded.
fn write_percent(out: &mut Vec<u8>, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
        out.push(byte);
    } else {
        out.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
