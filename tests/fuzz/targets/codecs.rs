//! Codecs that read a whole text at once, each against a second opinion or its own inverse.

use std::io;
use std::path::Path;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portcullis::base::secret::Secret;
use portcullis::base::time::UnixTime;
use portcullis::protocol::carrier::{Carrier, CarrierScratch, find, redacted_path_and_query};
use portcullis::protocol::client_hello::{Hello, HelloScanner};
use portcullis::protocol::compact_json::{self, MEMBERS_MAX, Value};
use portcullis::protocol::host::{HostPattern, split_port};
use portcullis::protocol::http_upgrade::{
    HeadLimits, HeadScanner, HttpRefusal, NO_FIELDS, Request, parse,
};
use portcullis::protocol::jwt::{Algorithm, JwtKey, JwtOptions, JwtVerifier, TokenScratch, mint};
use portcullis::protocol::origin::OriginPolicy;
use portcullis::protocol::{base64url as ours, forwarded as fields, proxy_header};
use portcullis::settings::load::{Environment, FileContents, load};

use super::{pieces, with_cuts};

/// Any pieces give the same answer, and whatever is taken for a request is one to httparse.
pub fn head(data: &[u8]) {
    let limits = HeadLimits::default();
    let (random, bytes) = with_cuts(data);
    let whole = scan([bytes].into_iter(), &limits);
    assert_eq!(scan(pieces(random, bytes), &limits), whole, "by piece and whole");
    let Ok(Some(end)) = whole else { return };
    let mut fields = NO_FIELDS;
    let Ok(request) = parse(&bytes[..end], &mut fields, &limits) else { return };
    let mut theirs = [httparse::EMPTY_HEADER; 128];
    let mut oracle = httparse::Request::new(&mut theirs);
    let status = oracle.parse(bytes).expect("a request");
    assert_eq!(status, httparse::Status::Complete(end));
    let target = oracle.path.expect("a target");
    match request {
        Request::Plain(request) => {
            let method = if request.is_head { "HEAD" } else { "GET" };
            assert_eq!(oracle.method, Some(method));
            let path = request.parts.path();
            assert!(target.contains(path) || path == "/");
        }
        Request::Upgrade(request) => {
            assert_eq!((oracle.method, oracle.version), (Some("GET"), Some(1)));
            assert!(target.contains(request.path()) || request.path() == "/");
            let fields = request.fields().map(|(name, _)| name);
            assert!(fields.eq(oracle.headers.iter().map(|field| field.name)));
            let hosts = oracle.headers.iter().filter(|f| f.name.eq_ignore_ascii_case("host"));
            assert_eq!(hosts.count(), 1);
        }
    }
}

fn scan<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    limits: &HeadLimits,
) -> Result<Option<usize>, HttpRefusal> {
    let mut scanner = HeadScanner::default();
    let mut before = 0;
    for piece in pieces {
        if let Some(end) = scanner.push(piece, limits)? {
            return Ok(Some(before + end));
        }
        before += piece.len();
        assert!(before <= limits.head_max as usize + piece.len());
    }
    Ok(None)
}

/// A token is found in one place, and is gone from the path that a backend sees.
pub fn carrier(data: &[u8]) {
    let limits = HeadLimits::default();
    let Ok(Some(end)) = scan([data].into_iter(), &limits) else { return };
    let mut fields = NO_FIELDS;
    let Ok(Request::Upgrade(request)) = parse(&data[..end], &mut fields, &limits) else { return };
    let carriers = ["authorization", "subprotocol", "cookie:t", "header:x-token", "query:token"];
    let carriers = carriers.map(|text| Carrier::parse(text).expect("a carrier"));
    let mut redacted = Vec::new();
    redacted_path_and_query(&request, ["token"].into_iter(), &mut redacted);
    let redacted = String::from_utf8(redacted).expect("a target is ASCII");
    let query = redacted.split_once('?').map_or("", |(_, query)| query);
    assert!(query.split('&').all(|parameter| !parameter.starts_with("token=")), "{redacted}");
    let mut scratch = CarrierScratch::new();
    if let Ok(Some(found)) = find(&carriers, &request, &mut scratch) {
        assert!(!found.token().is_empty() && found.carrier() < carriers.len());
    }
}

/// What decodes encodes to the same text again, so each value has one text.
pub fn base64url(data: &[u8]) {
    let mut text = Vec::new();
    ours::encode(data, &mut text);
    assert_eq!(text, URL_SAFE_NO_PAD.encode(data).into_bytes());
    assert_eq!(text.len(), ours::encoded_length(data.len()));
    let mut room = vec![0; data.len() + 3];
    assert_eq!(ours::decode(&text, &mut room), Some(data));
    let decoded = ours::decode(data, &mut room);
    assert_eq!(decoded, URL_SAFE_NO_PAD.decode(data).ok().as_deref());
    let mut small = [0; 5];
    if let Some(decoded) = ours::decode_either(data, &mut small) {
        assert!(decoded.len() <= 5);
    }
}

/// Whatever is taken for an object is one to serde_json, with the same members.
pub fn json(data: &[u8]) {
    let Ok(object) = compact_json::object(data, MEMBERS_MAX) else { return };
    let text = std::str::from_utf8(data).expect("checked");
    let raw: std::collections::HashMap<String, serde::de::IgnoredAny> =
        serde_json::from_str(text).expect("an object");
    assert_eq!(object.members().count(), raw.len());
    let mut scratch = vec![0; data.len()];
    for (name, value) in object.members() {
        let name = name.unescape(&mut scratch).expect("it fits").to_owned();
        assert!(raw.contains_key(&name));
        assert!(matches!(object.member(&name), Ok(Some(_))));
        match value {
            Value::String(string) => drop(string.unescape(&mut scratch).expect("it fits")),
            Value::Array(array) => drop(array.elements().count()),
            Value::Object(inner) => drop(inner.members().count()),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

const NOW: u64 = 1_700_000_000;
const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn key() -> JwtKey {
    JwtKey { id: None, algorithm: Algorithm::HS256, secret: Secret::new(SECRET.into()) }
}

static VERIFIER: LazyLock<JwtVerifier> =
    LazyLock::new(|| JwtVerifier::new(vec![key()], JwtOptions::default()).expect("a good key"));

/// Whom claims name and until when, as serde_json reads them. To it a number beyond a float is no
/// value; in a member that nobody asks for it is JSON all the same.
#[derive(serde::Deserialize)]
struct Claims {
    #[serde(default)]
    sub: serde_json::Value,
    exp: f64,
}

impl Claims {
    /// Whether this is the subject that they name: text, or the digits of an integer. Beyond 64 bits
    /// serde_json has floats only, which no longer tell the digits.
    fn name(&self, subject: &str) -> bool {
        match &self.sub {
            serde_json::Value::Null => subject.is_empty(),
            serde_json::Value::String(text) => text == subject,
            serde_json::Value::Number(number) if number.is_f64() => {
                subject.bytes().all(|b| b.is_ascii_digit() || b == b'-')
            }
            serde_json::Value::Number(number) => number.to_string() == subject,
            _ => false,
        }
    }
}

/// As a token, the input is accepted only if it says so itself in a second reading; as claims, it
/// is signed here, so that the checks behind the MAC are reached.
pub fn jwt(data: &[u8]) {
    let now = UnixTime::from_seconds(NOW);
    let mut scratch = TokenScratch::new();
    if let Ok(identity) = VERIFIER.verify(data, now, &mut scratch) {
        let subject = identity.subject().to_owned();
        let claims = identity.claims().to_vec();
        let (signed, _) = data.split_at(data.iter().rposition(|b| *b == b'.').expect("a dot"));
        let header = signed.split(|b| *b == b'.').next().expect("a header");
        let header = URL_SAFE_NO_PAD.decode(header).expect("base64url");
        let header: serde_json::Value = serde_json::from_slice(&header).expect("JSON");
        assert_eq!(header["alg"], "HS256");
        let claims: Claims = serde_json::from_slice(&claims).expect("claims");
        assert!(claims.name(&subject), "{subject}");
    }
    let token = mint(&key(), data);
    if let Ok(identity) = VERIFIER.verify(token.as_bytes(), now, &mut scratch) {
        let claims: Claims = serde_json::from_slice(data).expect("claims");
        assert!(claims.exp + 10.0 >= NOW as f64);
        assert!(claims.name(identity.subject()), "{}", identity.subject());
        let mut damaged = token.into_bytes();
        let at = damaged.len() - 10;
        damaged[at] = if damaged[at] == b'A' { b'B' } else { b'A' };
        assert!(VERIFIER.verify(&damaged, now, &mut scratch).is_err());
    }
}

/// An allowed origin is a listed one, read with plain string operations.
pub fn origin(data: &[u8]) {
    let list = ["https://app.example.com", "https://*.example.org"].map(str::to_owned);
    let policy = OriginPolicy::parse_list(&list).expect("a good list");
    if policy.allows(data) {
        let text = std::str::from_utf8(data).expect("an origin is ASCII").to_ascii_lowercase();
        let host = text.strip_prefix("https://").expect("https");
        let host = host.strip_suffix(":443").unwrap_or(host);
        let below = host.strip_suffix(".example.org").is_some_and(|label| !label.is_empty());
        assert!(host == "app.example.com" || below, "{text}");
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let _ = OriginPolicy::parse_list(&lines);
    }
}

const PROXY_MAX: usize = 600;

/// Once decided, more bytes change nothing; and what is decided lies within the bytes.
pub fn proxy(data: &[u8]) {
    let mut decided = None;
    for end in 0..=data.len().min(PROXY_MAX + 10) {
        let now = proxy_header::parse(&data[..end], PROXY_MAX);
        match (decided, now) {
            (None, Ok(None)) => assert!(end < PROXY_MAX, "undecided for ever"),
            (None, _) => decided = Some(now),
            (Some(Ok(_)), _) => assert_eq!(decided, Some(now)),
            (Some(Err(_)), _) => assert!(now.is_err()),
        }
        if let Ok(Some((used, _))) = now {
            assert!(used <= end);
        }
    }
}

/// Any pieces give the same answer, and a whole hello is one to a reader that keeps all bytes.
pub fn client_hello(data: &[u8]) {
    let scan = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut scanner = HelloScanner::default();
        let mut answers = pieces.map(|piece| scanner.push(piece));
        answers.find(|answer| *answer != Hello::Partial).unwrap_or(Hello::Partial)
    };
    let (random, bytes) = with_cuts(data);
    let whole = scan(&mut [bytes].into_iter());
    assert_eq!(scan(&mut pieces(random, bytes)), whole, "by piece and whole");
    assert_eq!(scan(&mut bytes.chunks(1)), whole, "by byte and whole");
    assert_eq!(whole == Hello::Whole, begins_with_hello(bytes));
}

fn begins_with_hello(mut bytes: &[u8]) -> bool {
    let mut message = Vec::new();
    for _ in 0..64 {
        let [kind, 3, _, high, low, rest @ ..] = bytes else { return false };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if *kind != 22 || length == 0 || length > 18 * 1024 {
            return false;
        }
        let payload = &rest[..length.min(rest.len())];
        message.extend_from_slice(payload);
        if let [kind, high, middle, low, body @ ..] = &message[..] {
            let announced = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
            if *kind != 1 || body.len() >= announced {
                return *kind == 1;
            }
        }
        bytes = &rest[payload.len()..];
    }
    false
}

/// The list of addresses against one that is joined and read backwards; what is an address, or a
/// host with a port, is so again when it is written anew.
pub fn forwarded(data: &[u8]) {
    let values: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let is_trusted = |ip: std::net::IpAddr| ip.to_string().len().is_multiple_of(2);
    let joined = values.join(&b',');
    let mut slow = None;
    for entry in joined.split(|byte| *byte == b',').rev() {
        let Some(found) = fields::address(entry) else { break };
        slow = Some(found);
        if !is_trusted(found.0) {
            break;
        }
    }
    assert_eq!(fields::client_in_list(values.iter().copied(), is_trusted), slow);
    for value in values {
        if let Some((ip, port)) = fields::address(value) {
            let written = match port {
                Some(port) => std::net::SocketAddr::new(ip, port).to_string(),
                None => ip.to_string(),
            };
            assert_eq!(fields::address(written.as_bytes()), Some((ip, port)));
        }
        let Ok(text) = str::from_utf8(value) else { continue };
        fields::is_claim(text);
        let (host, port) = split_port(text);
        let again = port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        assert_eq!(again, text);
        if let Ok(pattern) = HostPattern::parse(text) {
            assert!(pattern.covers(&pattern), "{text}");
            assert!(text.starts_with("*.") || pattern.matches(text), "{text}");
        }
    }
}

struct Nothing;

impl Environment for Nothing {
    fn read(&self, _: &Path) -> io::Result<FileContents> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn variable(&self, _: &str) -> Option<String> {
        None
    }

    fn unix_seconds(&self) -> u64 {
        NOW
    }
}

/// Any text is settings, or problems that can be told.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match load(text, Path::new("fuzz.toml"), &Nothing) {
        Ok(loaded) => assert!(!loaded.settings.listeners.is_empty()),
        Err(problems) => {
            assert!(!problems.is_empty());
            assert!(problems.iter().all(|problem| !problem.to_string().is_empty()));
        }
    }
}
