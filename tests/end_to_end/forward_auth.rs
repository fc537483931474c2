//! Forward-auth services as they are deployed: stand-ins that keep the documented contracts of
//! Authelia, oauth2-proxy and authentik.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::support::{Backend, Client, Config, Endpoint, Gateway, Opcode, Reply};

const ORIGIN: &str = "Origin: https://app.example\r\n";

/// A request head, as a service looks at it.
struct Asked<'a>(&'a str);

impl Asked<'_> {
    fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.0.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
        fields.find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The user whom the cookie of this name stands for.
    fn user(&self, cookie: &str) -> Option<&str> {
        let cookies = self.field("cookie")?.split("; ");
        cookies.filter_map(|pair| pair.split_once('=')).find(|(n, _)| *n == cookie).map(|p| p.1)
    }

    fn wants_html(&self) -> bool {
        let accept = self.field("accept");
        accept.is_some_and(|accept| accept.contains("text/html") || accept.starts_with("*/*"))
    }
}

/// `/api/authz/forward-auth`. The real one also asks for https, which these tests do without.
fn authelia_forward_auth(head: &str) -> Reply {
    let asked = Asked(head);
    let needed = ["x-forwarded-method", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-uri"];
    let method = asked.field("x-forwarded-method").unwrap_or_default();
    if needed.iter().any(|name| asked.field(name).is_none()) || method != "GET" {
        return Reply::status(400, "");
    }
    match asked.user("authelia_session") {
        Some("ada") => Reply::status(200, "Remote-User: ada\r\nRemote-Groups: staff,admins\r\n"),
        Some("bob") => Reply::status(403, ""),
        Some("elsewhere") => Reply::status(400, ""),
        Some("bypassed") => Reply::status(200, ""),
        _ if asked.wants_html() => Reply::status(302, "Location: https://auth.example/\r\n"),
        _ => Reply::status(401, ""),
    }
}

/// `/api/authz/auth-request`.
fn authelia_auth_request(head: &str) -> Reply {
    let asked = Asked(head);
    if asked.field("x-original-url") != Some("http://gate.example/it?a=1")
        || asked.field("x-original-method") != Some("GET")
    {
        return Reply::status(400, "");
    }
    match asked.user("authelia_session") {
        Some("ada") => Reply::status(200, "Remote-User: ada\r\n"),
        Some("bob") => Reply::status(403, ""),
        _ => Reply::status(401, "Location: https://auth.example/\r\n"),
    }
}

/// `/oauth2/auth` with `--set-xauthrequest`.
fn oauth2_proxy(head: &str) -> Reply {
    match Asked(head).user("_oauth2_proxy") {
        Some("ada") => Reply::status(202, "X-Auth-Request-User: ada\r\n"),
        Some("bob") => Reply::status(403, ""),
        _ => Reply::status(401, ""),
    }
}

/// `/outpost.goauthentik.io/auth/nginx`.
fn authentik_nginx(head: &str) -> Reply {
    let asked = Asked(head);
    match (asked.field("x-original-url"), asked.user("authentik_proxy")) {
        (None, _) => Reply::status(500, ""),
        (_, Some("ada")) => Reply::status(200, "X-authentik-username: ada\r\n"),
        _ => Reply::status(401, ""),
    }
}

/// `/outpost.goauthentik.io/auth/traefik`: redirects those who are not signed in.
fn authentik_traefik(head: &str) -> Reply {
    let asked = Asked(head);
    let needed = ["x-forwarded-proto", "x-forwarded-host", "x-forwarded-uri"];
    if needed.iter().any(|name| asked.field(name).is_none()) {
        return Reply::status(400, "");
    }
    match asked.user("authentik_proxy") {
        Some("ada") => Reply::status(200, "X-authentik-username: ada\r\n"),
        _ => Reply::status(302, "Location: https://auth.example/start\r\n"),
    }
}

fn config(backend: &Backend, endpoint: &Endpoint, cookie: &str, subject: &str) -> Config {
    let more = format!(
        "endpoint = \"{}\"\nidentity = {{ subject = \"{subject}\" }}\ncircuit_failures = 2\n",
        endpoint.url()
    );
    Config::bare(backend.address()).asking("it", "http", &[&format!("cookie:{cookie}")], &more)
}

/// Nothing for a client that is let in, or the code and reason that it is closed with.
fn outcome(gateway: &Gateway, cookie: &str, value: &str) -> Option<(u16, String)> {
    let fields = format!("{ORIGIN}Cookie: {cookie}={value}\r\n");
    let mut client = Client::open(gateway.address(), "/it?a=1", &fields);
    client.text("hello");
    let frame = client.frame().expect("an answer");
    assert_eq!(frame.opcode, Opcode::Text);
    if frame.payload == b"hello" {
        return None;
    }
    let (code, reason) = client.close_frame();
    Some((code.expect("a code"), reason))
}

#[test]
fn services_work_by_configuration_alone() {
    let backend = Backend::start();
    type Service = fn(&str) -> Reply;
    let (missing, bad) = ((4401, "token_missing"), (4401, "token_bad_signature"));
    let forbidden = (4403, "token_forbidden");
    type Case<'a> = (Service, &'a str, &'a str, &'a [(&'a str, (u16, &'a str))]);
    let services: [Case<'_>; 5] = [
        (
            authelia_forward_auth,
            "authelia_session",
            "Remote-User",
            // Without `Accept: */*`, which would have it redirect.
            &[("nobody", bad), ("bob", forbidden)],
        ),
        (
            authelia_auth_request,
            "authelia_session",
            "Remote-User",
            &[("nobody", bad), ("bob", forbidden)],
        ),
        (
            oauth2_proxy,
            "_oauth2_proxy",
            "X-Auth-Request-User",
            &[("nobody", bad), ("bob", forbidden)],
        ),
        (authentik_nginx, "authentik_proxy", "X-authentik-username", &[("nobody", bad)]),
        (authentik_traefik, "authentik_proxy", "X-authentik-username", &[("nobody", missing)]),
    ];
    for (number, (service, cookie, subject, refused)) in services.into_iter().enumerate() {
        let endpoint = Endpoint::start(service);
        let gateway = Gateway::start(&config(&backend, &endpoint, cookie, subject));
        assert_eq!(outcome(&gateway, cookie, "ada"), None, "{number}");
        assert_eq!(backend.opened().subject.as_deref(), Some("ada"), "{number}");
        for (user, (code, reason)) in refused {
            let told = outcome(&gateway, cookie, user).expect("a refusal");
            assert_eq!((told.0, told.1.as_str()), (*code, *reason), "{number} {user}");
        }
    }
}

/// An attacker's nonsense is answered by 400, a name without an identity by an empty 200: neither
/// keeps others out.
#[test]
fn no_client_can_have_the_service_left_alone() {
    let backend = Backend::start();
    let endpoint = Endpoint::start(authelia_forward_auth);
    let cookie = "authelia_session";
    let gateway = Gateway::start(&config(&backend, &endpoint, cookie, "Remote-User"));
    for round in 0..6 {
        for nonsense in ["elsewhere", "bypassed"] {
            let told = outcome(&gateway, cookie, nonsense).expect("a refusal");
            assert_eq!(told.1, "backend_unavailable", "{round} {nonsense}");
        }
        assert_eq!(outcome(&gateway, cookie, "ada"), None, "{round}");
    }
    gateway.wait_metric("portcullis_verdict_circuits{state=\"closed\"}", |count| count == 1);
}

#[test]
fn answers_below_500_and_busy_ones_leave_the_circuit_closed() {
    let backend = Backend::start();
    let status = Arc::new(AtomicU16::new(0));
    let now = Arc::clone(&status);
    let endpoint = Endpoint::start(move |head| {
        if Asked(head).user("s") == Some("ada") {
            return Reply::status(200, "X-Auth-Subject: ada\r\n");
        }
        Reply::status(now.load(Ordering::SeqCst), "Retry-After: 7\r\n")
    });
    let gateway = Gateway::start(&config(&backend, &endpoint, "s", "X-Auth-Subject"));
    for answer in [301, 308, 400, 404, 405, 413, 422, 426, 429, 431, 503] {
        status.store(answer, Ordering::SeqCst);
        for _ in 0..3 {
            let told = outcome(&gateway, "s", "x").expect("a refusal");
            assert_eq!((told.0, told.1.as_str()), (1012, "backend_unavailable"), "{answer}");
        }
        assert_eq!(outcome(&gateway, "s", "ada"), None, "{answer}");
    }
    // 429 and 503 say when to come again.
    status.store(429, Ordering::SeqCst);
    let mut client = Client::open(gateway.address(), "/it", &format!("{ORIGIN}Cookie: s=x\r\n"));
    let told = String::from_utf8(client.frame().expect("an explanation").payload).expect("UTF-8");
    assert!(told.contains("\"retry_after_ms\":7000"), "{told}");
}
