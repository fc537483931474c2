//! The HTTP/1.1 request that asks for a WebSocket, and the answers to it (RFC 9112, RFC 9110,
//! RFC 6455 §4.2).
//!
//! [`HeadScanner`] finds the end of the head while it arrives and refuses bad bytes immediately;
//! [`parse`] then judges the whole head without allocating. What is refused is one closed set,
//! [`HttpRefusal`].

mod parts;
mod refusal;
mod scanner;
#[cfg(test)]
mod tests;

use base64::Engine as _;
use httparse::Header;
use sha1::{Digest as _, Sha1};

use crate::protocol::host::split_port;

pub use parts::RequestParts;
pub(in crate::protocol) use parts::trim;
use parts::{Target, is_host};
pub use refusal::HttpRefusal;
use refusal::write_body;
use scanner::is_token;
pub use scanner::{FIELDS, HeadLimits, HeadScanner};

/// Most subprotocols that a client may offer.
pub const SUBPROTOCOLS_MAX: usize = 32;

/// Start of an offered subprotocol that is not one, but carries a token.
pub const BEARER_PREFIX: &str = "base64url.bearer.";

/// An empty array for [`parse`].
pub const NO_FIELDS: [Header<'static>; FIELDS] = [httparse::EMPTY_HEADER; FIELDS];

/// A request head that broke no rule.
#[allow(clippy::large_enum_variant, reason = "lives on the stack for one call")]
pub enum Request<'h, 'b> {
    /// A proper WebSocket upgrade.
    Upgrade(UpgradeRequest<'h, 'b>),
    /// A GET or HEAD, in HTTP/1.1 or HTTP/1.0, that asks for no WebSocket: a load balancer's
    /// health check on routes that answer it.
    Plain(PlainRequest<'h, 'b>),
}

/// A request that asks for no WebSocket.
#[derive(Clone, Copy)]
pub struct PlainRequest<'h, 'b> {
    /// What it asks for.
    pub parts: RequestParts<'h, 'b>,
    /// Whether the answer must have no content (RFC 9110 §9.3.2).
    pub is_head: bool,
    /// The answer of a route that has no other.
    pub refusal: HttpRefusal,
}

/// A WebSocket upgrade whose HTTP side is in order. Origin, token and route are still to judge.
/// It has no `Debug`: its fields hold tokens and cookies.
#[derive(Clone, Copy)]
pub struct UpgradeRequest<'h, 'b> {
    parts: RequestParts<'h, 'b>,
    origin: Option<&'b [u8]>,
    key: &'b [u8; 24],
}

impl<'h, 'b> UpgradeRequest<'h, 'b> {
    /// What it has in common with others.
    pub fn parts(&self) -> &RequestParts<'h, 'b> {
        &self.parts
    }

    /// The path as sent (percent-encoded), starting with `/`, without dot segments.
    pub fn path(&self) -> &'b str {
        self.parts.path()
    }

    /// The query as sent, without `?`; `None` when there is no `?`.
    pub fn query(&self) -> Option<&'b str> {
        self.parts.query()
    }

    /// Host and, when given, port.
    pub fn host(&self) -> &'b str {
        self.parts.host
    }

    /// The one Origin field, trimmed; it may be empty or nonsense.
    pub fn origin(&self) -> Option<&'b [u8]> {
        self.origin
    }

    /// The Sec-WebSocket-Key: 24 characters, base64 of 16 bytes.
    pub fn key(&self) -> &'b [u8; 24] {
        self.key
    }

    /// All header fields as name and trimmed value, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> + use<'h, 'b> {
        self.parts.fields.iter().map(|field| (field.name, trim(field.value)))
    }

    /// Trimmed values of all fields called `name`, in any case, in order.
    pub fn values<'n>(&self, name: &'n str) -> impl Iterator<Item = &'b [u8]> + use<'h, 'b, 'n> {
        self.parts.values(name)
    }

    /// The trimmed value of the first field called `name`, in any case.
    pub fn header(&self, name: &str) -> Option<&'b [u8]> {
        self.values(name).next()
    }

    /// What Sec-WebSocket-Protocol offers, in the client's order, entries with tokens included.
    /// Entries are visible ASCII, unique, and at most [`SUBPROTOCOLS_MAX`].
    pub fn subprotocols(&self) -> impl Iterator<Item = &'b str> + use<'h, 'b> {
        offered(self.parts.fields)
    }

    /// The offered subprotocols that may be answered: never one that carries a token.
    pub fn subprotocols_without_bearer(&self) -> impl Iterator<Item = &'b str> + use<'h, 'b> {
        self.subprotocols().filter(|entry| !carries_token(entry))
    }
}

/// Judges a whole head, as [`HeadScanner`] delimited it, without allocating.
///
/// The target may be in origin-form, or in absolute-form, which RFC 9112 §3.2.2 makes every
/// server accept, with `http` or `https`, or with `ws` or `wss`, as libraries behind proxies
/// write it. Its authority must then equal Host, default ports left aside: so no two parties can
/// read different hosts from one request, whichever of the two they look at.
///
/// # Errors
/// The refusal to answer with. When several rules are broken, the first in this order counts:
/// request line, target, Host, content, Expect, repeated fields, method and HTTP version, Upgrade,
/// Connection, WebSocket version, key, subprotocols.
pub fn parse<'h, 'b>(
    head: &'b [u8],
    fields: &'h mut [Header<'b>; FIELDS],
    limits: &HeadLimits,
) -> Result<Request<'h, 'b>, HttpRefusal> {
    let line_end = head.iter().position(|&b| b == b'\r').ok_or(HttpRefusal::BadRequestLine)?;
    let (line, rest) = head.split_at(line_end);
    let rest = rest.strip_prefix(b"\r\n").ok_or(HttpRefusal::BareCr)?;
    let RequestLine { is_head, is_http10, target } = parse_request_line(line)?;
    let fields = parse_fields(rest, fields, limits)?;
    let known = Known::collect(fields);
    // HTTP/1.0 knows no Host: balancers' checks come without.
    let host = match known.host.value {
        None if is_http10 && target.authority.is_none() => "",
        _ => judge_host(&known.host, &target)?,
    };
    if known.has_content() {
        return Err(HttpRefusal::BodyNotAllowed);
    }
    if known.expect {
        return Err(HttpRefusal::ExpectationFailed);
    }
    let origin = known.origin.at_most_once(HttpRefusal::OriginRepeated)?;
    known.authorization.at_most_once(HttpRefusal::AuthorizationRepeated)?;
    let refusal = match (is_head, is_http10) {
        (true, _) => Some(HttpRefusal::MethodNotAllowed),
        (false, true) => Some(HttpRefusal::Http10),
        (false, false) => None,
    };
    if !known.upgrade_websocket && known.key.value.is_none() {
        let refusal = refusal.unwrap_or(HttpRefusal::UpgradeRequired);
        let parts = RequestParts { target, host, fields };
        return Ok(Request::Plain(PlainRequest { parts, is_head, refusal }));
    }
    // A client that wants a WebSocket must not take the answer to a health check for its own.
    if let Some(refusal) = refusal {
        return Err(refusal);
    }
    if !known.upgrade {
        return Err(HttpRefusal::UpgradeMissing);
    }
    if !known.upgrade_websocket {
        return Err(HttpRefusal::UpgradeRequired);
    }
    if !known.connection_upgrade {
        return Err(HttpRefusal::ConnectionNotUpgrade);
    }
    if known.version.at_most_once(HttpRefusal::VersionRepeated)? != Some(b"13") {
        return Err(HttpRefusal::VersionUnsupported);
    }
    let key = known.key.at_most_once(HttpRefusal::KeyRepeated)?.ok_or(HttpRefusal::KeyMissing)?;
    let key = judge_key(key)?;
    judge_subprotocols(fields)?;
    let parts = RequestParts { target, host, fields };
    Ok(Request::Upgrade(UpgradeRequest { parts, origin, key }))
}

/// Appends the 101 for this key (RFC 6455 §4.2.2). `subprotocol` must be one that the client
/// offered, and never one that carries a token. `cookies` are the values of Set-Cookie fields.
pub fn write_switching_protocols(
    out: &mut Vec<u8>,
    key: &[u8; 24],
    subprotocol: Option<&str>,
    cookies: &[Vec<u8>],
) {
    out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\n");
    out.extend_from_slice(b"Upgrade: websocket\r\nConnection: Upgrade\r\n");
    out.extend_from_slice(b"Sec-WebSocket-Accept: ");
    out.extend_from_slice(&accept_key(key));
    if let Some(subprotocol) = subprotocol {
        assert!(!carries_token(subprotocol), "a token must never be echoed");
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(subprotocol.as_bytes());
    }
    for cookie in cookies {
        out.extend_from_slice(b"\r\nSet-Cookie: ");
        out.extend_from_slice(cookie);
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// Appends a whole 200 for a load balancer's health check; the answer to HEAD has the same fields
/// and no content (RFC 9110 §9.3.2).
pub fn write_ok_health(out: &mut Vec<u8>, is_head: bool) {
    const CONTENT: &str = "ok\n";
    out.extend_from_slice(b"HTTP/1.1 200 OK\r\nConnection: close\r\n");
    write_body(out, &[CONTENT]);
    if is_head {
        out.truncate(out.len() - CONTENT.len());
    }
}

/// The hosts of a head that was refused with [`HttpRefusal::HostDiffers`]: the target's and Host's.
/// Both are valid, so they may be shown.
pub fn differing_hosts(head: &[u8]) -> Option<(&str, &str)> {
    let mut fields = NO_FIELDS;
    let line_end = head.iter().position(|&b| b == b'\r')?;
    let target = parse_request_line(&head[..line_end]).ok()?.target;
    let rest = head[line_end..].strip_prefix(b"\r\n")?;
    let limits = HeadLimits { header_fields_max: FIELDS as u16, ..HeadLimits::default() };
    let host = Known::collect(parse_fields(rest, &mut fields, &limits).ok()?).host.value?;
    let host = str::from_utf8(host).ok().filter(|host| is_host(host))?;
    Some((target.authority?.0, host))
}

/// The Sec-WebSocket-Accept value for a key (RFC 6455 §4.2.2, step 5.4).
pub fn accept_key(key: &[u8; 24]) -> [u8; 28] {
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let mut accept = [0; 28];
    let written =
        base64::engine::general_purpose::STANDARD.encode_slice(hash.finalize(), &mut accept);
    assert_eq!(written.ok(), Some(28), "20 bytes are 28 characters");
    accept
}

/// Whether an offered subprotocol, as the client sent it, is a token in disguise.
pub fn is_bearer_entry(entry: &[u8]) -> bool {
    str::from_utf8(entry).is_ok_and(carries_token)
}

/// Whether an offered subprotocol is a token in disguise.
pub(in crate::protocol) fn carries_token(entry: &str) -> bool {
    let start = entry.as_bytes().get(..BEARER_PREFIX.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(BEARER_PREFIX.as_bytes()))
}

struct RequestLine<'b> {
    is_head: bool,
    is_http10: bool,
    target: Target<'b>,
}

fn parse_request_line(line: &[u8]) -> Result<RequestLine<'_>, HttpRefusal> {
    let line = str::from_utf8(line).map_err(|_| HttpRefusal::BadRequestLine)?;
    let mut parts = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(HttpRefusal::BadRequestLine);
    };
    if method.is_empty() || target.is_empty() || !method.bytes().all(is_token) {
        return Err(HttpRefusal::BadRequestLine);
    }
    let is_head = match method {
        "GET" => false,
        "HEAD" => true,
        "CONNECT" => return Err(HttpRefusal::Connect),
        _ => return Err(HttpRefusal::MethodNotAllowed),
    };
    let is_http10 = match version {
        "HTTP/1.1" => false,
        "HTTP/1.0" => true,
        _ => return Err(HttpRefusal::BadVersion),
    };
    Ok(RequestLine { is_head, is_http10, target: parse_target(target)? })
}

/// RFC 9112 §3.2, origin-form and absolute-form. Characters that browsers leave bare in a query
/// although RFC 3986 has them encoded (such as `|` and `{`) pass; those they always encode do not.
fn parse_target(target: &str) -> Result<Target<'_>, HttpRefusal> {
    let (authority, path_and_query) = if target.starts_with('/') {
        (None, target)
    } else {
        let (scheme, rest) = target.split_once("://").ok_or(HttpRefusal::BadTarget)?;
        let is = |name: &str| scheme.eq_ignore_ascii_case(name);
        let port = match () {
            () if is("http") || is("ws") => "80",
            () if is("https") || is("wss") => "443",
            () => return Err(HttpRefusal::BadTarget),
        };
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if !is_host(authority) {
            return Err(HttpRefusal::BadTarget);
        }
        (Some((authority, port)), rest)
    };
    let (path, query) = match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path_and_query, None),
    };
    let path = if path.is_empty() { "/" } else { path };
    if is_path(path) && query.is_none_or(is_query) {
        Ok(Target { path, query, authority })
    } else {
        Err(HttpRefusal::BadTarget)
    }
}

/// Clean percent-encoding, no encoded controls, no dot segments: browsers send none, and a
/// server behind the gateway may resolve them to another route than the one that was judged.
fn is_path(path: &str) -> bool {
    let bytes = path.as_bytes();
    let clean = (0..bytes.len()).all(|at| match bytes[at] {
        b'%' => matches!(percent_byte(&bytes[at..]), Some(0x20..=0x7e | 0x80..)),
        b'#' | b'"' | b'<' | b'>' | b'\\' => false,
        byte => byte.is_ascii_graphic(),
    });
    clean && segments(bytes).all(|segment| !is_dot_segment(segment))
}

/// The parts of a path between slashes, where what decodes to a slash or a backslash is one too:
/// such a segment may be resolved behind the gateway.
fn segments(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(path);
    std::iter::from_fn(move || {
        let bytes = rest?;
        for at in 0..bytes.len() {
            let used = match (bytes[at], percent_byte(&bytes[at..])) {
                (b'/', _) => 1,
                (_, Some(b'/' | b'\\')) => 3,
                _ => continue,
            };
            rest = Some(&bytes[at + used..]);
            return Some(&bytes[..at]);
        }
        rest.take()
    })
}

fn is_dot_segment(segment: &[u8]) -> bool {
    let mut dots = 0;
    let mut rest = segment;
    while !rest.is_empty() {
        if let [b'.', tail @ ..] = rest {
            rest = tail;
        } else if percent_byte(rest) == Some(b'.') {
            rest = &rest[3..];
        } else {
            return false;
        }
        dots += 1;
    }
    dots == 1 || dots == 2
}

fn is_query(query: &str) -> bool {
    let bytes = query.as_bytes();
    (0..bytes.len()).all(|at| match bytes[at] {
        b'%' => percent_byte(&bytes[at..]).is_some(),
        b'#' | b'"' | b'<' | b'>' => false,
        byte => byte.is_ascii_graphic(),
    })
}

/// The byte that a leading `%XY` stands for (RFC 3986 §2.1).
pub(in crate::protocol) fn percent_byte(bytes: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = bytes else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}

fn parse_fields<'h, 'b>(
    bytes: &'b [u8],
    fields: &'h mut [Header<'b>; FIELDS],
    limits: &HeadLimits,
) -> Result<&'h [Header<'b>], HttpRefusal> {
    let room = usize::from(limits.header_fields_max).min(FIELDS);
    match httparse::parse_headers(bytes, &mut fields[..room]) {
        Ok(httparse::Status::Complete((used, fields))) if used == bytes.len() => Ok(fields),
        Ok(_) => Err(HttpRefusal::BadField),
        Err(httparse::Error::TooManyHeaders) => Err(HttpRefusal::TooManyFields),
        Err(httparse::Error::HeaderValue) => Err(HttpRefusal::ControlByte),
        Err(_) => Err(HttpRefusal::BadField),
    }
}

/// A field that may appear once.
#[derive(Clone, Copy, Default)]
struct Once<'b> {
    value: Option<&'b [u8]>,
    repeated: bool,
}

impl<'b> Once<'b> {
    fn see(&mut self, value: &'b [u8]) {
        self.repeated |= self.value.is_some();
        self.value = Some(trim(value));
    }

    fn at_most_once(self, refusal: HttpRefusal) -> Result<Option<&'b [u8]>, HttpRefusal> {
        if self.repeated { Err(refusal) } else { Ok(self.value) }
    }
}

/// The fields that decide, collected in one pass.
#[derive(Default)]
struct Known<'b> {
    host: Once<'b>,
    origin: Once<'b>,
    authorization: Once<'b>,
    version: Once<'b>,
    key: Once<'b>,
    content_length: Once<'b>,
    transfer_encoding: bool,
    expect: bool,
    upgrade: bool,
    upgrade_websocket: bool,
    connection_upgrade: bool,
}

impl<'b> Known<'b> {
    fn collect(fields: &[Header<'b>]) -> Self {
        let mut known = Known::default();
        for field in fields {
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            match field.name.len() {
                4 if is("host") => known.host.see(field.value),
                6 if is("origin") => known.origin.see(field.value),
                6 if is("expect") => known.expect = true,
                7 if is("upgrade") => {
                    known.upgrade = true;
                    known.upgrade_websocket |= lists(field.value, "websocket");
                }
                10 if is("connection") => {
                    known.connection_upgrade |= lists(field.value, "upgrade");
                }
                13 if is("authorization") => known.authorization.see(field.value),
                14 if is("content-length") => known.content_length.see(field.value),
                17 if is("sec-websocket-key") => known.key.see(field.value),
                17 if is("transfer-encoding") => known.transfer_encoding = true,
                21 if is("sec-websocket-version") => known.version.see(field.value),
                _ => {}
            }
        }
        known
    }

    /// Whether the request has content, or says it in a way that another party could read so. A
    /// single length of `0` is no content (RFC 9110 §8.6), and many clients always send it.
    fn has_content(&self) -> bool {
        let Once { value, repeated } = self.content_length;
        self.transfer_encoding || repeated || value.is_some_and(|length| length != b"0")
    }
}

/// Whether a comma-separated field value contains `token`, in any case (RFC 9110 §5.6.1).
fn lists(value: &[u8], token: &str) -> bool {
    value.split(|&b| b == b',').any(|entry| trim(entry).eq_ignore_ascii_case(token.as_bytes()))
}

fn judge_host<'b>(host: &Once<'b>, target: &Target<'_>) -> Result<&'b str, HttpRefusal> {
    let host = host.at_most_once(HttpRefusal::HostRepeated)?.ok_or(HttpRefusal::HostMissing)?;
    let host = str::from_utf8(host).ok().filter(|host| is_host(host));
    let host = host.ok_or(HttpRefusal::HostInvalid)?;
    match target.authority {
        Some((authority, port)) if !same_host(authority, host, port) => {
            Err(HttpRefusal::HostDiffers)
        }
        _ => Ok(host),
    }
}

/// Whether two valid hosts are one, where `default` is the port of the one without.
fn same_host(one: &str, other: &str, default: &str) -> bool {
    let ((one, one_port), (other, other_port)) = (split_port(one), split_port(other));
    one.eq_ignore_ascii_case(other) && one_port.unwrap_or(default) == other_port.unwrap_or(default)
}

/// 22 characters and `==` are 16 bytes, whatever the four spare bits are: the key guards nothing
/// (RFC 6455 §10.8), and RFC 6455 §4.2.1 only counts its decoded bytes.
fn judge_key(key: &[u8]) -> Result<&[u8; 24], HttpRefusal> {
    let key: &[u8; 24] = key.try_into().map_err(|_| HttpRefusal::KeyInvalid)?;
    let alphabet = |b: &u8| b.is_ascii_alphanumeric() || b"+/".contains(b);
    if key.ends_with(b"==") && key[..22].iter().all(alphabet) {
        Ok(key)
    } else {
        Err(HttpRefusal::KeyInvalid)
    }
}

/// Entries of all Sec-WebSocket-Protocol fields, empty ones skipped (RFC 9110 §5.6.1.2).
fn offered<'h, 'b>(fields: &'h [Header<'b>]) -> impl Iterator<Item = &'b str> + use<'h, 'b> {
    let is_offer = |field: &&Header<'b>| field.name.eq_ignore_ascii_case("sec-websocket-protocol");
    fields
        .iter()
        .filter(is_offer)
        .flat_map(|field| field.value.split(|&b| b == b','))
        .map(trim)
        .filter(|entry| !entry.is_empty())
        .filter_map(|entry| str::from_utf8(entry).ok())
}

/// RFC 6455 §4.1: tokens, all different. An entry that carries a token may also hold the
/// characters of standard base64: how it is encoded is for the token's own checks.
fn judge_subprotocols(fields: &[Header<'_>]) -> Result<(), HttpRefusal> {
    let mut seen = [""; SUBPROTOCOLS_MAX];
    let mut count = 0;
    for field in fields {
        if !field.value.is_ascii() && field.name.eq_ignore_ascii_case("sec-websocket-protocol") {
            return Err(HttpRefusal::SubprotocolInvalid);
        }
    }
    for entry in offered(fields) {
        let bearer = carries_token(entry);
        let valid = entry.bytes().all(|b| is_token(b) || (bearer && b"/=".contains(&b)));
        if !valid || count == SUBPROTOCOLS_MAX || seen[..count].contains(&entry) {
            return Err(HttpRefusal::SubprotocolInvalid);
        }
        seen[count] = entry;
        count += 1;
    }
    Ok(())
}
