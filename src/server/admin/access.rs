//! What a request to the admin listener asks for, and whether its sender may have it. No I/O.

use std::net::IpAddr;

use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, ORIGIN, TRANSFER_ENCODING,
};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode, Version};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::base::secret::Secret;

/// Largest request body, in bytes; only a revocation has one.
pub const BODY_MAX: usize = 16 * 1024;

/// Where a request came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// Any process that reaches the TCP listener.
    Tcp,
    /// A process of root or of the gateway's own user, on the unix socket. The kernel vouches for
    /// that, and no web page can open one.
    OwnUser,
}

/// What requests are judged by.
pub struct Access {
    /// The bearer token that TCP requests must carry, if any.
    pub token: Option<Secret>,
    /// Paths of the page and its parts, beside the fixed endpoints.
    pub asset_paths: Vec<String>,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// An orderly end of the gateway.
    Drain,
    /// The same, and room for the gateway that asks.
    Takeover,
    /// The revocations with an id above this.
    Revocations {
        /// 0 for the first ones.
        after: u64,
    },
    /// A new revocation, which the body describes.
    Revoke,
    /// The end of the revocation with this id.
    Unrevoke(u64),
    /// Entry of [`Access::asset_paths`].
    Asset(usize),
}

/// A refused request.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its status.
    pub status: StatusCode,
    /// Why, for people; nothing from the request.
    pub why: &'static str,
    /// The methods for a 405.
    pub allow: &'static str,
}

const fn refuse(status: StatusCode, why: &'static str) -> Refusal {
    Refusal { status, why, allow: "" }
}

const fn bad(why: &'static str) -> Refusal {
    refuse(StatusCode::BAD_REQUEST, why)
}

const fn method(allow: &'static str) -> Refusal {
    Refusal { status: StatusCode::METHOD_NOT_ALLOWED, why: "this takes another method", allow }
}

const NOT_FOUND: Refusal = refuse(StatusCode::NOT_FOUND, "no such path; / lists them");

/// Decides on a request head.
///
/// # Errors
/// [`Refusal`].
pub fn decide(head: &Parts, sender: Sender, access: &Access) -> Result<Action, Refusal> {
    let request = Request { head, sender, access };
    // RFC 9112 §3.2: an HTTP/1.1 request without Host gets 400.
    if request.field(HOST)?.is_none() && head.version == Version::HTTP_11 {
        return Err(bad("no Host"));
    }
    if head.uri.authority().is_some() || !head.uri.path().starts_with('/') {
        return Err(bad("the target must be a path"));
    }
    if request.field(TRANSFER_ENCODING)?.is_some() {
        return Err(bad("a body is taken with Content-Length only"));
    }
    let action = match head.uri.path() {
        "/healthz" => return request.read(Action::Health),
        "/readyz" => return request.read(Action::Ready),
        path => {
            request.authorized()?;
            path
        }
    };
    match action {
        "/metrics" => request.read(Action::Metrics),
        "/live.json" => request.read(Action::Live),
        "/-/reload" => request.post(Action::Reload),
        "/-/drain" => request.post(Action::Drain),
        "/-/takeover" if sender == Sender::Tcp => Err(refuse(
            StatusCode::FORBIDDEN,
            "a takeover is asked for at gateway.admin_socket, by portcullis run --takeover",
        )),
        "/-/takeover" => request.post(Action::Takeover),
        "/revocations" => request.revocations(),
        path => match path.strip_prefix("/revocations/") {
            Some(id) if head.method == Method::DELETE => {
                request.change()?;
                request.no_body()?;
                let none = refuse(StatusCode::NOT_FOUND, "no such revocation");
                id.parse().map(Action::Unrevoke).map_err(|_| none)
            }
            Some(_) => Err(method("DELETE")),
            None => {
                if path.starts_with(SECRETS) {
                    request.not_from_a_page()?;
                }
                let asset = access.asset_paths.iter().position(|other| other == path);
                request.read(Action::Asset(asset.ok_or(NOT_FOUND)?))
            }
        },
    }
}

/// Where assets are that hold secrets, as the demo's tokens. Its own page loads them from loopback by
/// GET, for which browsers send no Origin.
const SECRETS: &str = "/dev/";

struct Request<'a> {
    head: &'a Parts,
    sender: Sender,
    access: &'a Access,
}

impl<'a> Request<'a> {
    /// A field that may come once.
    fn field(&self, name: HeaderName) -> Result<Option<&'a HeaderValue>, Refusal> {
        let mut all = self.head.headers.get_all(name).iter();
        let first = all.next();
        all.next().map_or(Ok(first), |_| Err(bad("a header field came twice")))
    }

    fn authorized(&self) -> Result<(), Refusal> {
        let given = self.field(AUTHORIZATION)?;
        let (Sender::Tcp, Some(token)) = (self.sender, &self.access.token) else { return Ok(()) };
        let given = given.and_then(|value| bearer(value.as_bytes())).unwrap_or_default();
        if same(given, token.expose()) {
            return Ok(());
        }
        Err(refuse(StatusCode::UNAUTHORIZED, "the admin token is missing or wrong"))
    }

    fn read(&self, action: Action) -> Result<Action, Refusal> {
        self.no_body()?;
        let reads = matches!(self.head.method, Method::GET | Method::HEAD);
        if reads { Ok(action) } else { Err(method("GET, HEAD")) }
    }

    fn post(&self, action: Action) -> Result<Action, Refusal> {
        if self.head.method != Method::POST {
            return Err(method("POST"));
        }
        self.change()?;
        self.no_body()?;
        Ok(action)
    }

    /// A list of the revocations, or a new one.
    fn revocations(&self) -> Result<Action, Refusal> {
        if self.head.method == Method::POST {
            self.change()?;
            return match self.body()? {
                0 => Err(bad("a body and its Content-Length are missing")),
                1..=BODY_MAX => Ok(Action::Revoke),
                _ => Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large")),
            };
        }
        self.not_from_a_page()?;
        let after = match self.head.uri.query().and_then(|query| query.strip_prefix("after=")) {
            Some(id) => id.parse().map_err(|_| bad("after is no id"))?,
            None => 0,
        };
        self.read(Action::Revocations { after }).map_err(|refusal| match refusal.allow {
            "" => refusal,
            _ => method("GET, HEAD, POST"),
        })
    }

    /// A change of what the gateway does: any local process and every web page reaches the TCP
    /// listener, so there it takes the token.
    fn change(&self) -> Result<(), Refusal> {
        match self.sender {
            Sender::Tcp if self.access.token.is_none() => Err(refuse(
                StatusCode::FORBIDDEN,
                "changes need the socket gateway.admin_socket, which the command line uses, or \
                 the token of gateway.admin_token_file; without a token this listener only reads",
            )),
            Sender::Tcp | Sender::OwnUser => Ok(()),
        }
    }

    /// Without a token the only guard of the names in the list is that the listener is on
    /// loopback, which a browser on this machine can reach too. A page cannot hide its Origin,
    /// and a page that rebinds a name of its own to loopback cannot hide that name from Host.
    fn not_from_a_page(&self) -> Result<(), Refusal> {
        if self.sender == Sender::OwnUser || self.access.token.is_some() {
            return Ok(());
        }
        if self.head.headers.contains_key(ORIGIN) {
            let why = "a request from a web page (it has an Origin)";
            return Err(refuse(StatusCode::FORBIDDEN, why));
        }
        if !self.field(HOST)?.is_some_and(|host| is_loopback_host(host.as_bytes())) {
            let why = "Host must be localhost or a loopback address";
            return Err(refuse(StatusCode::FORBIDDEN, why));
        }
        Ok(())
    }

    /// The length of the body. RFC 9110 §8.6: digits and nothing else.
    fn body(&self) -> Result<usize, Refusal> {
        let Some(length) = self.field(CONTENT_LENGTH)? else { return Ok(0) };
        let digits = length.as_bytes().iter().all(u8::is_ascii_digit);
        let length = length.to_str().ok().filter(|_| digits).and_then(|text| text.parse().ok());
        length.ok_or(bad("Content-Length is no number"))
    }

    fn no_body(&self) -> Result<(), Refusal> {
        if self.body()? == 0 { Ok(()) } else { Err(bad("a body is not taken here")) }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: &str = "Host: localhost";

    fn access(token: Option<&str>) -> Access {
        let token = token.map(|token| Secret::new(token.as_bytes().to_vec()));
        Access { token, asset_paths: vec!["/".into(), "/app.js".into(), "/dev/t.json".into()] }
    }

    /// The action for a request line and fields separated by `; `, or the status.
    fn outcome(
        line: &str,
        fields: &str,
        sender: Sender,
        token: Option<&str>,
    ) -> Result<Action, u16> {
        let (method, rest) = line.split_once(' ').unwrap();
        let (target, version) = rest.split_once(' ').unwrap_or((rest, "1.1"));
        let mut request = hyper::Request::builder().method(method).uri(target);
        request =
            request.version(if version == "1.0" { Version::HTTP_10 } else { Version::HTTP_11 });
        for field in fields.split("; ").filter(|field| !field.is_empty()) {
            let (name, value) = field.split_once(": ").unwrap();
            request = request.header(name, value);
        }
        let head = request.body(()).unwrap().into_parts().0;
        decide(&head, sender, &access(token)).map_err(|refusal| refusal.status.as_u16())
    }

    #[test]
    fn requests_without_a_token_configured() {
        for (line, fields, expected) in [
            ("GET /metrics", "Host: a", Ok(Action::Metrics)),
            ("HEAD /metrics", "Host: a", Ok(Action::Metrics)),
            ("GET /metrics?x=1", "Host: a", Ok(Action::Metrics)),
            ("GET /healthz 1.0", "", Ok(Action::Health)),
            ("GET /readyz", "host: a", Ok(Action::Ready)),
            ("GET /live.json", "Host: a", Ok(Action::Live)),
            ("GET /", "Host: a", Ok(Action::Asset(0))),
            ("GET /app.js", "Host: a", Ok(Action::Asset(1))),
            ("GET /app.jsx", "Host: a", Err(404)),
            // A page that rebinds its name, or that asks across origins.
            ("GET /dev/t.json", "Host: localhost:9464", Ok(Action::Asset(2))),
            ("GET /dev/t.json", "Host: 127.0.0.1:9464", Ok(Action::Asset(2))),
            ("GET /dev/t.json", "Host: rebound.example:9464", Err(403)),
            ("GET /dev/t.json", "Host: localhost; Origin: https://evil.example", Err(403)),
            ("GET /dev/t.json", "Host: localhost; Origin: null", Err(403)),
            ("GET /dev/else", "Host: localhost", Err(404)),
            ("GET //metrics", "Host: a", Err(404)),
            ("GET /metrics/", "Host: a", Err(404)),
            ("POST /metrics", "Host: a", Err(405)),
            ("DELETE /healthz", "Host: a", Err(405)),
            ("GET /-/reload", LOCAL, Err(405)),
            ("GET /-/drain", LOCAL, Err(405)),
            ("GET /metrics", "", Err(400)),
            ("GET /metrics", "Host: a; Host: a", Err(400)),
            ("GET http://a/metrics", "Host: a", Err(400)),
            ("GET /", "Host: a; Transfer-Encoding: chunked", Err(400)),
            ("GET /healthz", "Host: a; Content-Length: 1", Err(400)),
        ] {
            let found = outcome(line, fields, Sender::Tcp, None);
            assert_eq!(found, expected, "{line:?} {fields:?}");
        }
    }

    #[test]
    fn changes_need_the_token_or_the_socket() {
        const LENGTH: &str = "Host: localhost; Content-Length: 2";
        let changes = [
            ("POST /-/reload", LOCAL, Ok(Action::Reload)),
            ("POST /-/drain", LOCAL, Ok(Action::Drain)),
            ("POST /-/drain", LENGTH, Err(400)),
            ("POST /revocations", LENGTH, Ok(Action::Revoke)),
            ("POST /revocations", "Host: a; Content-Length: 16384", Ok(Action::Revoke)),
            ("POST /revocations", "Host: a; Content-Length: 16385", Err(413)),
            ("POST /revocations", "Host: a; Content-Length: 99999999999999999999999", Err(400)),
            ("POST /revocations", "Host: a; Content-Length: +2", Err(400)),
            ("POST /revocations", "Host: a; Content-Length: 2; Content-Length: 2", Err(400)),
            ("POST /revocations", "Host: a; Transfer-Encoding: chunked", Err(400)),
            ("POST /revocations", LOCAL, Err(400)),
            ("DELETE /revocations/7", LOCAL, Ok(Action::Unrevoke(7))),
            ("DELETE /revocations/7", LENGTH, Err(400)),
            ("DELETE /revocations/x", LOCAL, Err(404)),
            ("DELETE /revocations/", LOCAL, Err(404)),
        ];
        for (line, fields, expected) in changes {
            assert_eq!(outcome(line, fields, Sender::OwnUser, None), expected, "{line} {fields}");
            let given = format!("{fields}; Authorization: Bearer s3cret; Origin: http://a");
            let by_token = outcome(line, &given, Sender::Tcp, Some("s3cret"));
            assert_eq!(by_token, expected, "{line} {fields} with the token");
            for wrong in ["", "; Authorization: Bearer s3cre", "; Authorization: Basic s3cret"] {
                let status =
                    outcome(line, &format!("{fields}{wrong}"), Sender::Tcp, Some("s3cret"));
                assert!(matches!(status, Err(400 | 401)), "{line} {fields} {wrong}: {status:?}");
            }
            let status = outcome(line, fields, Sender::Tcp, None);
            assert!(matches!(status, Err(400 | 403)), "{line} {fields}: {status:?}");
        }
    }

    #[test]
    fn a_takeover_is_for_our_own_user_alone() {
        let line = "POST /-/takeover";
        assert_eq!(outcome(line, LOCAL, Sender::OwnUser, None), Ok(Action::Takeover));
        assert_eq!(outcome("GET /-/takeover", LOCAL, Sender::OwnUser, None), Err(405));
        assert_eq!(outcome(line, LOCAL, Sender::Tcp, None), Err(403));
        let token = format!("{LOCAL}; Authorization: Bearer s3cret");
        assert_eq!(outcome(line, &token, Sender::Tcp, Some("s3cret")), Err(403));
        assert_eq!(outcome(line, LOCAL, Sender::Tcp, Some("s3cret")), Err(401));
    }

    #[test]
    fn the_list_of_revocations_is_not_for_web_pages() {
        let all = Ok(Action::Revocations { after: 0 });
        for (line, fields, expected) in [
            ("GET /revocations", LOCAL, all),
            ("HEAD /revocations", LOCAL, all),
            ("GET /revocations?after=17", LOCAL, Ok(Action::Revocations { after: 17 })),
            ("GET /revocations?after=", LOCAL, Err(400)),
            ("GET /revocations", "Host: localhost; Content-Length: 2", Err(400)),
            ("PUT /revocations", LOCAL, Err(405)),
            ("DELETE /revocations", LOCAL, Err(405)),
            ("GET /revocations/7", LOCAL, Err(405)),
            ("GET /revocations7", LOCAL, Err(404)),
            ("GET /revocations", "Host: LOCALHOST:9464", all),
            ("GET /revocations", "Host: 127.0.0.1:9464", all),
            ("GET /revocations", "Host: 127.9.9.9", all),
            ("GET /revocations", "Host: [::1]:9464", all),
            ("GET /revocations", "Host: [::1]", all),
            ("GET /revocations", "Host: localhost; Origin: null", Err(403)),
            ("GET /revocations", "Host: localhost; Origin: http://localhost", Err(403)),
            ("GET /revocations", "Host: evil.example", Err(403)),
            ("GET /revocations", "Host: localhost.evil.example", Err(403)),
            ("GET /revocations", "Host: 127.0.0.1.evil.example:9464", Err(403)),
            ("GET /revocations", "Host: localhost:x", Err(403)),
            ("GET /revocations", "Host: [::1]x", Err(403)),
            ("GET /revocations", "Host: 10.0.0.1", Err(403)),
        ] {
            let found = outcome(line, fields, Sender::Tcp, None);
            assert_eq!(found, expected, "{line:?} {fields:?}");
        }
    }

    #[test]
    fn with_a_token_only_the_probes_are_open() {
        for (path, field, expected) in [
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
            ("/metrics", "Authorization: Bearer s3cret; Authorization: Bearer x", Err(400)),
            ("/healthz", "X: y", Ok(Action::Health)),
            ("/readyz", "X: y", Ok(Action::Ready)),
        ] {
            let fields = format!("Host: a; {field}");
            let found = outcome(&format!("GET {path}"), &fields, Sender::Tcp, Some("s3cret"));
            assert_eq!(found, expected, "{path} {field:?}");
        }
    }
}
