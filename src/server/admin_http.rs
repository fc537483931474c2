//! HTTP/1.1 of the admin listener without any I/O: bytes to request, request to action, answer
//! to bytes.

use std::net::IpAddr;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::base::secret::Secret;

/// Largest request head, in bytes.
pub const HEAD_MAX: usize = 8 * 1024;
/// Largest request body, in bytes; only a revocation has one.
pub const BODY_MAX: usize = 16 * 1024;
/// Most header fields of a request.
pub const FIELDS_MAX: usize = 64;

/// Finds the end of a request head as bytes arrive, looking at each byte once.
#[derive(Debug, Default)]
pub struct HeadScanner {
    scanned: usize,
}

/// What the bytes so far amount to.
#[derive(Debug, PartialEq, Eq)]
pub enum Scan {
    /// No whole head yet.
    Partial,
    /// A whole head of this many bytes.
    Whole(usize),
    /// An answer with this status, at once.
    Refused(Status),
}

impl HeadScanner {
    /// Looks at what was added to `bytes` since the last call.
    pub fn scan(&mut self, bytes: &[u8]) -> Scan {
        while let Some(offset) = bytes[self.scanned..].iter().position(|byte| *byte == b'\n') {
            let end = self.scanned + offset + 1;
            if end > HEAD_MAX {
                return Scan::Refused(Status::HeadTooLarge);
            }
            // RFC 9112 §2.2 lets a recipient take a bare LF; this one does not.
            if !bytes[..end].ends_with(b"\r\n") {
                return Scan::Refused(Status::BadRequest);
            }
            if bytes[..end].ends_with(b"\r\n\r\n") {
                return Scan::Whole(end);
            }
            self.scanned = end;
        }
        self.scanned = bytes.len();
        if bytes.len() > HEAD_MAX { Scan::Refused(Status::HeadTooLarge) } else { Scan::Partial }
    }
}

/// The statuses that the admin listener answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 200
    Ok,
    /// 400: not HTTP as it should be.
    BadRequest,
    /// 401: the token is missing or wrong.
    Unauthorized,
    /// 403: a web page may be behind this.
    Forbidden,
    /// 404: no such path.
    NotFound,
    /// 405: another method is wanted.
    MethodNotAllowed,
    /// 408: the head took too long.
    RequestTimeout,
    /// 422: the configuration file was refused.
    Unprocessable,
    /// 413: the body is too large.
    ContentTooLarge,
    /// 431: the head is too large.
    HeadTooLarge,
    /// 503: not healthy, not ready.
    Unavailable,
    /// 507: no room for what was asked.
    InsufficientStorage,
}

impl Status {
    /// Number and phrase.
    pub fn line(self) -> (u16, &'static str) {
        match self {
            Status::Ok => (200, "OK"),
            Status::BadRequest => (400, "Bad Request"),
            Status::Unauthorized => (401, "Unauthorized"),
            Status::Forbidden => (403, "Forbidden"),
            Status::NotFound => (404, "Not Found"),
            Status::MethodNotAllowed => (405, "Method Not Allowed"),
            Status::RequestTimeout => (408, "Request Timeout"),
            Status::Unprocessable => (422, "Unprocessable Content"),
            Status::ContentTooLarge => (413, "Content Too Large"),
            Status::HeadTooLarge => (431, "Request Header Fields Too Large"),
            Status::Unavailable => (503, "Service Unavailable"),
            Status::InsufficientStorage => (507, "Insufficient Storage"),
        }
    }
}

/// Who may ask for what.
pub struct Access {
    /// The bearer token to ask for, if any.
    pub token: Option<Secret>,
    /// Paths of the page and its parts, beside the fixed endpoints.
    pub asset_paths: Vec<String>,
}

/// What a request is answered with.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// The exposition.
    Metrics,
    /// Liveness.
    Health,
    /// Readiness.
    Ready,
    /// The numbers for the live page.
    Live,
    /// A reload of the configuration file.
    Reload,
    /// The revocations with an id above this.
    Revocations {
        /// 0 for the first ones.
        after: u64,
    },
    /// A revocation, which the body of this many bytes describes.
    Revoke {
        /// Length of the body, `1 <= body <= BODY_MAX`.
        body: usize,
    },
    /// The end of the revocation with this id.
    Unrevoke(u64),
    /// Entry of [`Access::asset_paths`].
    Asset(usize),
    /// An error.
    Refuse(Refusal),
}

/// An error answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its status.
    pub status: Status,
    /// Why, for people; nothing from the request.
    pub why: &'static str,
    /// The methods for a 405.
    pub allow: &'static str,
}

/// An action, and whether the answer goes out without its body (HEAD).
#[derive(Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// The request was HEAD.
    pub head_only: bool,
}

struct Request<'a> {
    method: &'a str,
    path: &'a str,
    host: Option<&'a [u8]>,
    authorization: Option<&'a [u8]>,
    has_origin: bool,
    query: &'a str,
    /// Length of the body.
    body: usize,
}

/// Decides on a whole request head.
pub fn decide(head: &[u8], access: &Access) -> Decision {
    match parse(head) {
        Ok(request) => {
            let action = route(&request, access).unwrap_or_else(Action::Refuse);
            Decision { action, head_only: request.method == "HEAD" }
        }
        Err(refusal) => Decision { action: Action::Refuse(refusal), head_only: false },
    }
}

fn refuse(status: Status, why: &'static str) -> Refusal {
    Refusal { status, why, allow: "" }
}

fn parse(head: &[u8]) -> Result<Request<'_>, Refusal> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => {
            return Err(refuse(Status::BadRequest, "not an HTTP/1.1 request"));
        }
        Err(httparse::Error::TooManyHeaders) => {
            return Err(refuse(Status::HeadTooLarge, "too many header fields"));
        }
        Err(_) => return Err(refuse(Status::BadRequest, "not an HTTP/1.1 request")),
    }
    let once = |name: &str| -> Result<Option<&[u8]>, Refusal> {
        let mut all = request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        let first = all.next().map(|field| field.value);
        match all.next() {
            Some(_) => Err(refuse(Status::BadRequest, "a header field came twice")),
            None => Ok(first),
        }
    };
    let host = once("host")?;
    // RFC 9112 §3.2: an HTTP/1.1 request without Host gets 400.
    if host.is_none() && request.version == Some(1) {
        return Err(refuse(Status::BadRequest, "no Host"));
    }
    if once("transfer-encoding")?.is_some() {
        return Err(refuse(Status::BadRequest, "a body is taken with Content-Length only"));
    }
    let body = match once("content-length")?.map(body_length) {
        None => 0,
        Some(length) => length.ok_or(refuse(Status::BadRequest, "Content-Length is no number"))?,
    };
    let target = request.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if !path.starts_with('/') {
        return Err(refuse(Status::BadRequest, "the target must be a path"));
    }
    Ok(Request {
        method: request.method.unwrap_or_default(),
        path,
        host,
        authorization: once("authorization")?,
        has_origin: once("origin")?.is_some(),
        query,
        body,
    })
}

fn route(request: &Request<'_>, access: &Access) -> Result<Action, Refusal> {
    let open = match request.path {
        "/healthz" => Some(Action::Health),
        "/readyz" => Some(Action::Ready),
        _ => None,
    };
    if let Some(action) = open {
        no_body(request)?;
        return readable(request, action);
    }
    if let Some(token) = &access.token {
        let given = request.authorization.and_then(bearer).unwrap_or_default();
        if !same(given, token.expose()) {
            return Err(refuse(Status::Unauthorized, "the admin token is missing or wrong"));
        }
    }
    if request.path == "/revocations" || request.path.starts_with("/revocations/") {
        not_from_a_page(request, access)?;
        return revocations(request);
    }
    no_body(request)?;
    match request.path {
        "/metrics" => readable(request, Action::Metrics),
        "/live.json" => readable(request, Action::Live),
        "/-/reload" => {
            if request.method != "POST" {
                let why = "a reload is asked for with POST";
                return Err(Refusal { status: Status::MethodNotAllowed, why, allow: "POST" });
            }
            not_from_a_page(request, access)?;
            Ok(Action::Reload)
        }
        path => {
            let asset = access.asset_paths.iter().position(|other| other == path);
            let asset = asset.ok_or(refuse(Status::NotFound, "no such path; / lists them"))?;
            readable(request, Action::Asset(asset))
        }
    }
}

/// The admin API of the revocations: a list, a new one, the end of one.
fn revocations(request: &Request<'_>) -> Result<Action, Refusal> {
    let Some(id) = request.path.strip_prefix("/revocations/") else {
        if request.method == "POST" {
            return match request.body {
                0 => Err(refuse(Status::BadRequest, "a body and its Content-Length are missing")),
                1..=BODY_MAX => Ok(Action::Revoke { body: request.body }),
                _ => Err(refuse(Status::ContentTooLarge, "the body is too large")),
            };
        }
        no_body(request)?;
        let after = match request.query.strip_prefix("after=") {
            Some(id) => id.parse().map_err(|_| refuse(Status::BadRequest, "after is no id"))?,
            None => 0,
        };
        let mut action = readable(request, Action::Revocations { after });
        if let Err(refusal) = &mut action {
            refusal.allow = "GET, HEAD, POST";
        }
        return action;
    };
    no_body(request)?;
    if request.method != "DELETE" {
        let why = "a revocation is taken back with DELETE";
        return Err(Refusal { status: Status::MethodNotAllowed, why, allow: "DELETE" });
    }
    let id = id.parse().map_err(|_| refuse(Status::NotFound, "no such revocation"))?;
    Ok(Action::Unrevoke(id))
}

/// RFC 9110 §8.6: digits and nothing else.
fn body_length(value: &[u8]) -> Option<usize> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
}

/// A body that is not read must not become the next request.
fn no_body(request: &Request<'_>) -> Result<(), Refusal> {
    match request.body {
        0 => Ok(()),
        _ => Err(refuse(Status::BadRequest, "a body is not taken here")),
    }
}

/// GET and HEAD read; anything else is a 405.
fn readable(request: &Request<'_>, action: Action) -> Result<Action, Refusal> {
    if matches!(request.method, "GET" | "HEAD") {
        return Ok(action);
    }
    let why = "this is only read";
    Err(Refusal { status: Status::MethodNotAllowed, why, allow: "GET, HEAD" })
}

/// Without a token the only guard is that the listener is on loopback, which a browser on this
/// machine can reach too. A page cannot hide its Origin on POST, and a page that rebinds a name
/// of its own to loopback cannot hide that name from Host.
fn not_from_a_page(request: &Request<'_>, access: &Access) -> Result<(), Refusal> {
    if access.token.is_some() {
        return Ok(());
    }
    if request.has_origin {
        return Err(refuse(Status::Forbidden, "a request from a web page (it has an Origin)"));
    }
    if !request.host.is_some_and(is_loopback_host) {
        return Err(refuse(Status::Forbidden, "Host must be localhost or a loopback address"));
    }
    Ok(())
}

fn is_loopback_host(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, after)) if after.is_empty() || is_port(after) => name,
            _ => return false,
        },
        None => match host.find(':') {
            Some(colon) if is_port(&host[colon..]) => &host[..colon],
            Some(_) => return false,
            None => host,
        },
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
}

/// The token of an `Authorization: Bearer` value; the scheme in any case (RFC 9110 §11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token.trim_ascii())
}

/// Compares in a time that depends on neither: digests of equal length are compared.
fn same(given: &[u8], expected: &[u8]) -> bool {
    let digest = |bytes: &[u8]| -> [u8; 32] { Sha256::digest(bytes).into() };
    bool::from(digest(given).ct_eq(&digest(expected)))
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: Status,
    /// Media type of the body.
    pub content_type: &'static str,
    /// The body.
    pub body: Vec<u8>,
    /// Further fields, each with its CRLF.
    pub fields: String,
}

impl Answer {
    /// A line of text.
    pub fn text(status: Status, text: impl Into<String>) -> Answer {
        let body = format!("{}\n", text.into()).into_bytes();
        Answer { status, content_type: "text/plain; charset=utf-8", body, fields: String::new() }
    }

    /// The answer to a request that is refused.
    pub fn refusal(refusal: &Refusal) -> Answer {
        let mut answer = Answer::text(refusal.status, refusal.why);
        if refusal.status == Status::Unauthorized {
            answer.fields.push_str("WWW-Authenticate: Bearer realm=\"portcullis admin\"\r\n");
        }
        if refusal.status == Status::MethodNotAllowed {
            answer.fields.push_str(&format!("Allow: {}\r\n", refusal.allow));
        }
        answer
    }

    /// The bytes to send; without the body for HEAD, but with its length (RFC 9110 §9.3.2).
    pub fn into_bytes(self, head_only: bool) -> Vec<u8> {
        let (code, phrase) = self.status.line();
        let mut bytes = format!(
            "HTTP/1.1 {code} {phrase}\r\nContent-Type: {}\r\nContent-Length: {}\r\n\
             Connection: close\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
             Cross-Origin-Resource-Policy: same-origin\r\n{}\r\n",
            self.content_type,
            self.body.len(),
            self.fields,
        )
        .into_bytes();
        if !head_only {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(token: Option<&str>) -> Access {
        let token = token.map(|token| Secret::new(token.as_bytes().to_vec()));
        Access { token, asset_paths: vec!["/".into(), "/app.js".into()] }
    }

    /// The whole way from bytes to a status, or `None` for an action that answers by itself.
    fn outcome(input: &str, access: &Access) -> Result<Action, u16> {
        let end = match HeadScanner::default().scan(input.as_bytes()) {
            Scan::Whole(end) => end,
            Scan::Refused(status) => return Err(status.line().0),
            Scan::Partial => return Err(0),
        };
        match decide(&input.as_bytes()[..end], access).action {
            Action::Refuse(refusal) => Err(refusal.status.line().0),
            action => Ok(action),
        }
    }

    #[test]
    fn requests_without_a_token_configured() {
        let many = "X: y\r\n".repeat(FIELDS_MAX);
        let large = "X: ".to_owned() + &"y".repeat(HEAD_MAX) + "\r\n";
        let table: Vec<(String, Result<Action, u16>)> = [
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", Ok(Action::Metrics)),
            ("HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n", Ok(Action::Metrics)),
            ("GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n", Ok(Action::Metrics)),
            ("GET /healthz HTTP/1.0\r\n\r\n", Ok(Action::Health)),
            ("GET /readyz HTTP/1.1\r\nhost: a\r\n\r\n", Ok(Action::Ready)),
            ("GET /live.json HTTP/1.1\r\nHost: a\r\n\r\n", Ok(Action::Live)),
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Ok(Action::Asset(0))),
            ("GET /app.js HTTP/1.1\r\nHost: a\r\n\r\n", Ok(Action::Asset(1))),
            ("GET /app.jsx HTTP/1.1\r\nHost: a\r\n\r\n", Err(404)),
            ("GET //metrics HTTP/1.1\r\nHost: a\r\n\r\n", Err(404)),
            ("GET /metrics/ HTTP/1.1\r\nHost: a\r\n\r\n", Err(404)),
            ("POST /metrics HTTP/1.1\r\nHost: a\r\n\r\n", Err(405)),
            ("DELETE /healthz HTTP/1.1\r\nHost: a\r\n\r\n", Err(405)),
            ("GET /-/reload HTTP/1.1\r\nHost: localhost\r\n\r\n", Err(405)),
            ("GET /metrics HTTP/1.1\r\n\r\n", Err(400)),
            ("GET /metrics HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Err(400)),
            ("GET /metrics HTTP/2.0\r\nHost: a\r\n\r\n", Err(400)),
            ("GET http://a/metrics HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
            ("GET /metrics HTTP/1.1\r\nHost : a\r\n\r\n", Err(400)),
            ("GET /metrics HTTP/1.1\nHost: a\n\n", Err(400)),
            ("GET /metrics HTTP/1.1\r\nHost: a\n\r\n", Err(400)),
            ("\r\n\r\n", Err(400)),
            ("\u{16}\u{3}\u{1}\r\n\r\n", Err(400)),
            ("POST /-/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n", Err(400)),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", Err(400)),
            ("GET / HTTP/1.1\r\nHost: a", Err(0)),
        ]
        .map(|(input, expected)| (input.to_owned(), expected))
        .into_iter()
        .chain([
            (format!("GET / HTTP/1.1\r\n{many}Host: a\r\n\r\n"), Err(431)),
            (format!("GET / HTTP/1.1\r\nHost: a\r\n{large}\r\n"), Err(431)),
            ("x".repeat(HEAD_MAX + 1), Err(431)),
            ("x".repeat(HEAD_MAX), Err(0)),
        ])
        .collect();
        for (input, expected) in table {
            assert_eq!(outcome(&input, &access(None)), expected, "{input:?}");
        }
    }

    #[test]
    fn revocations_are_listed_made_and_ended() {
        let body = |body| Ok(Action::Revoke { body });
        let table = [
            ("GET /revocations", "", Ok(Action::Revocations { after: 0 })),
            ("HEAD /revocations", "", Ok(Action::Revocations { after: 0 })),
            ("GET /revocations?after=17", "", Ok(Action::Revocations { after: 17 })),
            ("GET /revocations?after=", "", Err(400)),
            ("GET /revocations", "Content-Length: 2\r\n", Err(400)),
            ("POST /revocations", "Content-Length: 2\r\n", body(2)),
            ("POST /revocations", "Content-Length: 16384\r\n", body(16_384)),
            ("POST /revocations", "Content-Length: 16385\r\n", Err(413)),
            ("POST /revocations", "Content-Length: 99999999999999999999999\r\n", Err(400)),
            ("POST /revocations", "Content-Length: +2\r\n", Err(400)),
            ("POST /revocations", "Content-Length: 2\r\nContent-Length: 2\r\n", Err(400)),
            ("POST /revocations", "Transfer-Encoding: chunked\r\n", Err(400)),
            ("POST /revocations", "", Err(400)),
            ("POST /revocations", "Content-Length: 2\r\nOrigin: http://localhost\r\n", Err(403)),
            ("GET /revocations", "Origin: null\r\n", Err(403)),
            ("PUT /revocations", "", Err(405)),
            ("DELETE /revocations", "", Err(405)),
            ("DELETE /revocations/7", "", Ok(Action::Unrevoke(7))),
            ("DELETE /revocations/7", "Origin: null\r\n", Err(403)),
            ("DELETE /revocations/7", "Content-Length: 1\r\n", Err(400)),
            ("DELETE /revocations/x", "", Err(404)),
            ("DELETE /revocations/", "", Err(404)),
            ("GET /revocations/7", "", Err(405)),
            ("GET /revocations7", "", Err(404)),
        ];
        for (line, fields, expected) in table {
            let input = format!("{line} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
            assert_eq!(outcome(&input, &access(None)), expected, "{line} {fields:?}");
            // With a token, nobody without it gets as far, not even to a body.
            let status = outcome(&input, &access(Some("s3cret"))).unwrap_err();
            assert!(matches!(status, 400 | 401), "{line} {fields:?}: {status}");
        }
        let rebound = "GET /revocations HTTP/1.1\r\nHost: evil.example\r\n\r\n";
        assert_eq!(outcome(rebound, &access(None)), Err(403));
    }

    #[test]
    fn a_web_page_cannot_reload() {
        let table = [
            ("Host: localhost", Ok(Action::Reload)),
            ("Host: LOCALHOST:9464", Ok(Action::Reload)),
            ("Host: 127.0.0.1:9464", Ok(Action::Reload)),
            ("Host: 127.9.9.9", Ok(Action::Reload)),
            ("Host: [::1]:9464", Ok(Action::Reload)),
            ("Host: [::1]", Ok(Action::Reload)),
            ("Host: localhost\r\nContent-Length: 0", Ok(Action::Reload)),
            ("Host: localhost\r\nOrigin: http://localhost", Err(403)),
            ("Host: localhost\r\nOrigin: null", Err(403)),
            ("Host: evil.example", Err(403)),
            ("Host: localhost.evil.example", Err(403)),
            ("Host: 127.0.0.1.evil.example:9464", Err(403)),
            ("Host: localhost:x", Err(403)),
            ("Host: [::1]x", Err(403)),
            ("Host: 10.0.0.1", Err(403)),
            ("Host: ", Err(403)),
        ];
        for (fields, expected) in table {
            let input = format!("POST /-/reload HTTP/1.1\r\n{fields}\r\n\r\n");
            assert_eq!(outcome(&input, &access(None)), expected, "{fields:?}");
        }
        // Whoever has the token may come from anywhere.
        let fields = "Host: gateway.internal\r\nOrigin: http://a\r\nAuthorization: Bearer s3cret";
        let input = format!("POST /-/reload HTTP/1.1\r\n{fields}\r\n\r\n");
        assert_eq!(outcome(&input, &access(Some("s3cret"))), Ok(Action::Reload));
    }

    #[test]
    fn with_a_token_only_the_probes_are_open() {
        let table = [
            ("/metrics", "Authorization: Bearer s3cret", Ok(Action::Metrics)),
            ("/metrics", "authorization: bearer  s3cret", Ok(Action::Metrics)),
            ("/", "Authorization: Bearer s3cret", Ok(Action::Asset(0))),
            ("/metrics", "Authorization: Bearer s3cre", Err(401)),
            ("/metrics", "Authorization: Bearer s3crets", Err(401)),
            ("/metrics", "Authorization: Bearer ", Err(401)),
            ("/metrics", "Authorization: Basic s3cret", Err(401)),
            ("/metrics", "X: y", Err(401)),
            ("/nothing", "X: y", Err(401)),
            ("/nothing", "Authorization: Bearer s3cret", Err(404)),
            ("/metrics", "Authorization: Bearer s3cret\r\nAuthorization: Bearer x", Err(400)),
            ("/healthz", "X: y", Ok(Action::Health)),
            ("/readyz", "X: y", Ok(Action::Ready)),
        ];
        for (path, field, expected) in table {
            let input = format!("GET {path} HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
            assert_eq!(outcome(&input, &access(Some("s3cret"))), expected, "{path} {field:?}");
        }
    }

    #[test]
    fn any_chunking_finds_the_same_end() {
        let input = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nand more";
        for step in 1..input.len() {
            let mut scanner = HeadScanner::default();
            let mut end = 0;
            let scan = loop {
                end = (end + step).min(input.len());
                let scan = scanner.scan(&input[..end]);
                if scan != Scan::Partial || end == input.len() {
                    break scan;
                }
            };
            assert_eq!(scan, Scan::Whole(input.len() - b"and more".len()), "step {step}");
        }
    }

    #[test]
    fn answers_are_exact() {
        let decision = decide(b"PUT /metrics HTTP/1.1\r\nHost: a\r\n\r\n", &access(None));
        let Action::Refuse(refusal) = decision.action else { panic!("{decision:?}") };
        let bytes = Answer::refusal(&refusal).into_bytes(false);
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            "HTTP/1.1 405 Method Not Allowed\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: 18\r\nConnection: close\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\nCross-Origin-Resource-Policy: same-origin\r\n\
             Allow: GET, HEAD\r\n\r\nthis is only read\n"
        );
        let head = Answer::text(Status::Ok, "ok").into_bytes(true);
        let head = String::from_utf8(head).unwrap();
        assert!(head.contains("Content-Length: 3\r\n") && head.ends_with("\r\n\r\n"), "{head:?}");
        let refusal = refuse(Status::Unauthorized, "no");
        let text = String::from_utf8(Answer::refusal(&refusal).into_bytes(false)).unwrap();
        assert!(text.contains("\r\nWWW-Authenticate: Bearer "), "{text:?}");
    }
}
