//! Clients that somebody else decides on: a backend over its link, or an HTTP endpoint.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use portcullis::protocol::cause::Cause;
use portcullis::protocol::link::{Accept, Auth, Close, Kind, Reject, SessionId, features};

use crate::support::{
    Backend, Choices, Client, Config, End, Endpoint, Gateway, Opcode, RawBackend, RawLink, Reply,
    assert_took, response, token, unix_now, wait_until,
};
use crate::tls::certify;

const ORIGIN: &str = "Origin: https://app.example\r\n";

fn deciding() -> Backend {
    Backend::start_at("127.0.0.1:0", Choices { decides: true, ..Choices::default() })
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// What a client is told, as code and reason, after the explanation.
fn refusal(client: &mut Client) -> (u16, String, String) {
    let frame = client.frame().expect("an explanation");
    assert_eq!(frame.opcode, Opcode::Text, "{}", frame.payload.escape_ascii());
    let explanation = String::from_utf8(frame.payload).expect("UTF-8");
    let (code, reason) = client.close_frame();
    (code.expect("a code"), reason, explanation)
}

fn assert_unavailable(row: &str, client: &mut Client) {
    let (code, reason, explanation) = refusal(client);
    assert_eq!((code, reason.as_str()), (1012, "backend_unavailable"), "{row}");
    assert!(explanation.contains("\"reconnect\":true"), "{row}: {explanation}");
}

#[test]
fn a_backend_decides_on_every_carrier() {
    let backend = deciding();
    let all = [
        "authorization",
        "subprotocol",
        "header:x-token",
        "query:token",
        "cookie:session",
        "first-message",
    ];
    let config = Config::bare(backend.address()).asking("all", "backend", &all, "").asking(
        "json",
        "backend",
        &["first-message:payload.token"],
        "",
    );
    let gateway = Gateway::start(&config);
    let protocol = "Sec-WebSocket-Protocol: chat, base64url.bearer.phx.YWNjZXB0X2FkYQ\r\n";
    let json = r#"{"type":"connection_init","payload":{"token":"accept_ada"}}"#;
    // path, fields, first message, what the backend is shown
    let table: &[(&str, String, &str, &[&str])] = &[
        ("/all", bearer("accept_ada"), "", &["Authorization::accept_ada"]),
        ("/all?a=1", protocol.into(), "", &["Subprotocol::accept_ada"]),
        ("/all", "X-Token: accept_ada\r\n".into(), "", &["Header:x-token:accept_ada"]),
        ("/all?token=accept_ada&a=1", String::new(), "", &["Query:token:accept_ada"]),
        (
            "/all",
            format!("{ORIGIN}Cookie: session=accept_ada\r\n"),
            "",
            &["Cookie:session:accept_ada"],
        ),
        (
            "/all?token=q",
            format!("{ORIGIN}X-Token: accept_ada\r\nCookie: session=c\r\n"),
            "",
            &["Header:x-token:accept_ada", "Query:token:q", "Cookie:session:c"],
        ),
        ("/all", String::new(), "accept ada", &["FirstMessage::accept ada"]),
        ("/json", String::new(), json, &["FirstMessage:payload.token:accept_ada"]),
    ];
    for (path, fields, message, shown) in table {
        let mut client = Client::open(gateway.address(), path, fields);
        if !message.is_empty() {
            client.text(message);
        }
        client.echo("hello");
        let (asked, credentials) = backend.asked();
        assert_eq!(credentials, *shown, "{path}");
        let clean = path.replace("token=accept_ada&", "").replace("?token=q", "");
        assert_eq!(asked, clean);
        let identity = backend.opened();
        assert_eq!(identity.subject.as_deref(), Some("ada"), "{path}");
        assert_eq!((identity.path, &identity.claims[..]), (clean, &b"{}"[..]));
        assert_eq!(identity.remote, Some(client.tcp().local_addr().expect("connected")));
    }
    let accepted = "portcullis_verdicts_total{outcome=\"accepted\"}";
    gateway.wait_metric(accepted, |count| count == table.len() as u64);
    gateway.wait_metric("portcullis_verdict_seconds_count", |n| n == 8);
    assert_eq!(gateway.metric("portcullis_verdicts_awaited"), 0);
}

#[test]
fn a_backends_no_is_told_in_the_clients_dialect() {
    let backend = deciding();
    let config = Config::bare(backend.address()).asking("it", "backend", &["authorization"], "");
    let gateway = Gateway::start(&config);
    let table = [
        ("expired", 4401, "token_expired", r#""reconnect":false"#),
        ("forbidden", 4403, "not you", r#""reason":"token_forbidden","reconnect":false"#),
        ("busy_7000", 4429, "rate_limited", r#""reconnect":true,"retry_after_ms":7000"#),
        ("panic", 1012, "backend_unavailable", r#""reconnect":true"#),
    ];
    for (token, code, reason, explanation) in table {
        let mut client = Client::open(gateway.address(), "/it", &bearer(token));
        let told = refusal(&mut client);
        assert_eq!((told.0, told.1.as_str()), (code, reason), "{token}");
        assert!(told.2.contains(explanation), "{token}: {}", told.2);
        client.close(code, "");
        assert_eq!(client.end(), End::Fin);
    }
    assert_eq!(backend.opens(), 0);
    let (client, answer) = Client::ask(gateway.address(), "/it", "");
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    let (code, reason, _) = refusal(&mut { client });
    assert_eq!((code, reason.as_str()), (4401, "token_missing"), "nobody need be asked");
}

#[test]
fn what_a_client_sends_early_flows_in_order_after_the_verdict() {
    let backend = deciding();
    let config = Config::bare(backend.address()).asking("it", "backend", &["first-message"], "");
    let gateway = Gateway::start(&config.limits("first_message_max = \"4KiB\""));
    let mut client = Client::open(gateway.address(), "/it", "");
    client.text("slow 400 accept ada");
    for number in 0..50 {
        client.text(&format!("early {number}"));
    }
    assert!(client.is_quiet_for(Duration::from_millis(200)), "nothing before the verdict");
    for number in 0..50 {
        client.expect(Opcode::Text, format!("early {number}").as_bytes());
    }
    client.echo("late");
    let flood = "x".repeat(3000);
    let mut greedy = Client::open(gateway.address(), "/it", "");
    greedy.text("slow 3000 accept bob");
    for _ in 0..200 {
        greedy.text(&flood);
    }
    // Either its input waits in the kernel, or it was too much at once; never in memory.
    std::thread::sleep(Duration::from_millis(300));
    assert!(gateway.metric("portcullis_stalled_input_bytes") <= 8 * 1024);
}

#[test]
fn a_late_verdict_refuses_and_a_client_that_leaves_is_forgotten() {
    let backend = deciding();
    let config = Config::bare(backend.address())
        .asking("it", "backend", &["authorization"], "timeout = \"500ms\"")
        .asking("long", "backend", &["authorization"], "timeout = \"1m\"")
        .deadlines("authenticate = \"1s\"");
    let gateway = Gateway::start(&config);
    let begun = Instant::now();
    let mut client = Client::open(gateway.address(), "/it", &bearer("slow_1200_accept_ada"));
    assert_unavailable("late", &mut client);
    assert_took("a verdict", begun, Duration::from_millis(500));
    let begun = Instant::now();
    let mut client = Client::open(gateway.address(), "/long", &bearer("never"));
    let (code, reason, _) = refusal(&mut client);
    assert_eq!((code, reason.as_str()), (4408, "authentication_timed_out"));
    assert_took("authentication", begun, Duration::from_secs(1));
    let begun = Instant::now();
    let mut leaving = Client::open(gateway.address(), "/long", &bearer("never"));
    leaving.text("a message that nobody will read");
    drop(leaving);
    gateway.wait_closes("client_gone", 1);
    assert!(begun.elapsed() < Duration::from_secs(3), "not only at a deadline");
    gateway.wait_metric("portcullis_verdicts_awaited", |count| count == 0);
    let count = |outcome: &str| {
        gateway.metric(&format!("portcullis_verdicts_total{{outcome=\"{outcome}\"}}"))
    };
    gateway.wait_metric("portcullis_verdict_seconds_count", |count| count == 3);
    assert_eq!((count("unavailable"), count("timed_out"), count("withdrawn")), (1, 1, 1));
    std::thread::sleep(Duration::from_millis(1000));
    assert_eq!(backend.opens(), 0, "a verdict that came too late opens nothing");
    Client::open(gateway.address(), "/it", &bearer("accept_ada")).echo("still there");
    assert_eq!(gateway.metric("portcullis_link_violations_total"), 0);
}

#[test]
fn without_a_backend_that_can_be_asked_clients_are_refused_for_a_while() {
    let unable = Backend::start();
    let config = Config::bare(unable.address()).asking("it", "backend", &["authorization"], "");
    let gateway = Gateway::start(&config);
    let mut client = Client::open(gateway.address(), "/it", &bearer("accept_ada"));
    assert_unavailable("a backend without the feature", &mut client);
    assert_eq!(unable.opens(), 0);
    gateway.wait_metric("portcullis_verdicts_unasked_total", |count| count == 1);
    let config = Config::bare("127.0.0.1:1").asking("it", "backend", &["authorization"], "");
    let gateway = Gateway::start_alone(&config);
    let mut client = Client::open(gateway.address(), "/it", &bearer("accept_ada"));
    assert_unavailable("no backend", &mut client);
}

fn asked(link: &mut RawLink) -> SessionId {
    let (session, payload) = link.expect(Kind::Auth);
    assert!(Auth::decode(&payload).is_ok());
    session
}

fn accept(subject: &str, session: SessionId) -> Vec<u8> {
    let mut out = Vec::new();
    let accept = Accept { subject, token_id: None, issued_at: None, expires: None, claims: &[] };
    assert!(accept.encode(session, &mut out));
    out
}

fn reject(cause: Cause, session: SessionId) -> Vec<u8> {
    let mut out = Vec::new();
    assert!(Reject::new(cause).encode(session, &mut out));
    out
}

/// What a hostile backend writes after AUTH for a session, and whether it loses the link.
type Hostility = (&'static str, fn(SessionId) -> Vec<u8>, bool);

const HOSTILE: &[Hostility] = &[
    (
        "data before a verdict",
        |id| {
            let mut out = Vec::new();
            portcullis::protocol::link::encode_data(id, 7, b"hello", &mut out);
            out
        },
        true,
    ),
    (
        "credit before a verdict",
        |id| {
            let mut out = Vec::new();
            portcullis::protocol::link::Credit { bytes: 9 }.encode(id, &mut out);
            out
        },
        true,
    ),
    (
        "accept without a subject",
        |id| {
            let mut out = accept("x", id);
            out.truncate(12);
            out[..3].copy_from_slice(&[0, 0, 4]);
            out.extend_from_slice(&[2, 0, 1, b't']);
            out
        },
        true,
    ),
    (
        "an unknown cause",
        |id| {
            let mut out = reject(Cause::TokenExpired, id);
            let end = out.len() - 1;
            out[end] = b'x';
            out
        },
        true,
    ),
    ("accept for another session", |id| accept("ada", SessionId::new(id.slot + 7, 3)), false),
    (
        "accept for another generation",
        |id| accept("ada", SessionId::new(id.slot, id.generation + 1)),
        false,
    ),
    (
        "reject for another session",
        |id| reject(Cause::TokenExpired, SessionId::new(id.slot + 7, 3)),
        false,
    ),
    ("silence", |_| Vec::new(), false),
    (
        "accept that is over already",
        |id| {
            let mut out = Vec::new();
            let expires = Some(portcullis::base::time::UnixTime::from_seconds(1000));
            let accept =
                Accept { subject: "ada", token_id: None, issued_at: None, expires, claims: &[] };
            assert!(accept.encode(id, &mut out));
            out
        },
        false,
    ),
    (
        "a close instead of a verdict",
        |id| {
            let mut out = Vec::new();
            Close {
                by: portcullis::protocol::link::Closer::Backend,
                label: "",
                code: 0,
                reason: "",
            }
            .encode(id, &mut out);
            out
        },
        false,
    ),
];

#[test]
fn a_hostile_backend_accepts_nobody_by_accident() {
    for (row, write, dropped) in HOSTILE {
        let mut backend = RawBackend::listen();
        backend.features = features::VERDICTS;
        let config = Config::bare(&backend.address()).asking(
            "it",
            "backend",
            &["authorization"],
            "timeout = \"700ms\"",
        );
        let gateway = Gateway::start_alone(&config);
        let mut link = backend.accept();
        gateway.wait_ready(1);
        let mut client = Client::open(gateway.address(), "/it", &bearer("t"));
        let session = asked(&mut link);
        link.write(&write(session));
        assert_unavailable(row, &mut client);
        if *dropped {
            assert!(link.is_dropped(), "{row}");
        } else {
            let (closed, _) = link.expect(Kind::Close);
            assert_eq!(closed, session, "{row}");
        }
        gateway.wait_closes("backend_unavailable", 1);
        gateway.wait_metric("portcullis_link_violations_total", |n| n == u64::from(*dropped));
        assert_eq!(gateway.metric("portcullis_sessions_opened_total"), 0, "{row}");
    }
}

#[test]
fn verdicts_that_contradict_themselves_cost_the_link() {
    type Frame = fn(SessionId) -> Vec<u8>;
    let twice: [(&str, [Frame; 2]); 3] = [
        ("accept, accept", [|id| accept("ada", id), |id| accept("bob", id)]),
        ("accept, reject", [|id| accept("ada", id), |id| reject(Cause::TokenExpired, id)]),
        ("reject, accept", [|id| reject(Cause::TokenExpired, id), |id| accept("ada", id)]),
    ];
    for (row, [first, second]) in twice {
        let mut backend = RawBackend::listen();
        backend.features = features::VERDICTS;
        let config =
            Config::bare(&backend.address()).asking("it", "backend", &["authorization"], "");
        let gateway = Gateway::start_alone(&config);
        let mut link = backend.accept();
        gateway.wait_ready(1);
        let mut client = Client::open(gateway.address(), "/it", &bearer("t"));
        let session = asked(&mut link);
        link.write(&[first(session), second(session)].concat());
        if row.starts_with("reject") {
            // The session has ended: its id means nothing now, and that is counted.
            let (code, reason, _) = refusal(&mut client);
            assert_eq!((code, reason.as_str()), (4401, "token_expired"), "{row}");
            gateway.wait_metric("portcullis_link_stale_frames_total", |count| count == 1);
            assert_eq!(gateway.metric("portcullis_sessions_opened_total"), 0);
            link.write(&second(session).repeat(16));
        }
        assert!(link.is_dropped(), "{row}");
        gateway.wait_metric("portcullis_link_violations_total", |count| count == 1);
    }
}

fn http_config(backend: &Backend, endpoint: &str, more: &str) -> Config {
    let carriers =
        ["authorization", "subprotocol", "header:x-token", "query:token", "cookie:session"];
    let more = format!("endpoint = \"{endpoint}\"\n{more}");
    Config::bare(backend.address()).asking("it", "http", &carriers, &more).asking(
        "first",
        "http",
        &["first-message:payload.token"],
        &more,
    )
}

#[test]
fn an_endpoint_sees_what_it_needs_and_accepts() {
    let backend = Backend::start();
    let expires = unix_now() + 600;
    let endpoint = Endpoint::start(move |_| {
        let fields = format!(
            "X-Auth-Subject: ada\r\nX-Auth-Token-Id: t1\r\nX-Auth-Expires: {expires}\r\n\
             X-Auth-Claims: {{\"role\":\"admin\"}}\r\n"
        );
        Reply::status(200, &fields)
    });
    let config = http_config(&backend, &endpoint.url(), "headers = [\"user-agent\"]");
    let gateway = Gateway::start(&config);
    let protocol = "Sec-WebSocket-Protocol: base64url.bearer.phx.c2VzYW1l\r\n";
    let init = r#"{"payload":{"token":"sesame"}}"#;
    let table: &[(&str, String, &str, &str)] = &[
        ("/it", bearer("sesame"), "", "authorization: Bearer sesame"),
        ("/it", protocol.into(), "", "authorization: Bearer sesame"),
        ("/it", "X-Token: sesame\r\n".into(), "", "x-token: sesame"),
        ("/it?token=sesame&a=1", String::new(), "", "authorization: Bearer sesame"),
        ("/it", format!("{ORIGIN}Cookie: a=b; session=sesame\r\n"), "", "cookie: session=sesame"),
        ("/first", String::new(), init, "authorization: Bearer sesame"),
    ];
    for (path, fields, message, expected) in table {
        let fields = format!("{fields}User-Agent: test\r\nX-Other: no\r\n");
        let mut client = Client::open(gateway.address(), path, &fields);
        if !message.is_empty() {
            client.text(message);
        }
        client.echo("hello");
        let identity = backend.opened();
        assert_eq!(identity.subject.as_deref(), Some("ada"), "{path}");
        assert_eq!(identity.token_id.as_deref(), Some("t1"), "{path}");
        assert_eq!(&identity.claims[..], br#"{"role":"admin"}"#, "{path}");
        assert_eq!(identity.expires.map(|at| at.as_seconds()), Some(expires));
        let seen = endpoint.seen().pop().expect("a request").to_ascii_lowercase();
        let has = |line: &str| seen.split("\r\n").any(|other| other == line.to_ascii_lowercase());
        assert!(seen.starts_with("get /verify?by=gate http/1.1\r\n"), "{seen}");
        for line in [
            *expected,
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-proto: http",
            "x-forwarded-host: gate.example",
            "x-original-method: GET",
            "x-forwarded-method: GET",
            "user-agent: test",
        ] {
            assert!(has(line), "{path}: no {line:?} in {seen}");
        }
        let clean = path.replace("token=sesame&", "");
        assert!(has(&format!("x-original-uri: {clean}")), "{seen}");
        assert!(has(&format!("x-forwarded-uri: {clean}")), "{seen}");
        assert!(has(&format!("x-original-url: http://gate.example{clean}")), "{seen}");
        assert_eq!(seen.matches("\r\nuser-agent: ").count(), 1, "{seen}");
        assert!(!seen.contains("\r\naccept: "), "{seen}");
        assert_eq!(has("origin: https://app.example"), fields.contains("Origin"), "{seen}");
        assert_eq!(seen.matches("sesame").count(), 1, "a token goes along once: {seen}");
        assert!(!seen.contains("x-other") && !seen.contains("a=b"), "{seen}");
    }
    assert!(endpoint.connections() <= 2, "connections are kept: {}", endpoint.connections());
}

/// What a server needs for TLS with a certificate that [`certify`] made.
fn serving(folder: &Path, name: &str) -> ServerConfig {
    let file = |ending| folder.join(format!("{name}.{ending}"));
    let certificate = CertificateDer::from_pem_file(file("pem")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(file("key")).expect("a key");
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("known versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("they belong together")
}

#[test]
fn an_endpoint_over_tls_is_asked_only_if_its_certificate_is_good() {
    let backend = Backend::start();
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["127.0.0.1", "b.example"] {
        certify(folder.path(), name);
    }
    let trusting =
        |name: &str| format!("ca_file = {:?}\n", folder.path().join(format!("{name}.pem")));
    // what it serves, whom we trust, whether it is asked
    let table = [
        ("127.0.0.1", trusting("127.0.0.1"), true),
        ("127.0.0.1", trusting("b.example"), false),
        ("127.0.0.1", String::new(), false),
        // Trusted, but for another name.
        ("b.example", trusting("b.example"), false),
    ];
    for (served, trust, good) in table {
        let endpoint =
            Endpoint::start_tls(serving(folder.path(), served), |_| Reply::subject("ada"));
        let gateway = Gateway::start(&http_config(&backend, &endpoint.url(), &trust));
        let mut client = Client::open(gateway.address(), "/it", &bearer("sesame"));
        let row = format!("{served}, {trust}");
        match good {
            true => {
                client.echo("hello");
                assert_eq!(backend.opened().subject.as_deref(), Some("ada"), "{row}");
            }
            false => assert_unavailable(&row, &mut client),
        }
        assert_eq!(endpoint.seen().len(), usize::from(good), "{row}");
        assert!(endpoint.connections() > 0, "{row}");
    }
    // No TLS where TLS is wanted.
    let endpoint = Endpoint::start(|_| Reply::subject("ada"));
    let url = endpoint.url().replace("http://", "https://");
    let gateway = Gateway::start(&http_config(&backend, &url, &trusting("127.0.0.1")));
    let mut client = Client::open(gateway.address(), "/it", &bearer("sesame"));
    assert_unavailable("no TLS", &mut client);
    assert!(endpoint.seen().is_empty());
}

#[test]
fn endpoints_verdicts_one_by_one() {
    let backend = Backend::start();
    let endpoint = Endpoint::start(|head| {
        let token = head.split("Bearer ").nth(1).or_else(|| head.split("bearer ").nth(1));
        let row = token.and_then(|rest| rest.split("\r\n").next()).unwrap_or("");
        http_row(row)
    });
    let more = "timeout = \"600ms\"\ncircuit_failures = 1000\n";
    let gateway = Gateway::start(&http_config(&backend, &endpoint.url(), more));
    for (row, code, reason) in [
        ("401", 4401, "token_bad_signature"),
        ("401-expired", 4401, "token_expired"),
        ("403", 4403, "token_forbidden"),
    ] {
        let mut client = Client::open(gateway.address(), "/it", &bearer(row));
        let told = refusal(&mut client);
        assert_eq!((told.0, told.1.as_str()), (code, reason), "{row}");
        assert!(told.2.contains("\"reconnect\":false"), "{row}: {}", told.2);
    }
    for row in HTTP_BAD {
        let mut client = Client::open(gateway.address(), "/it", &bearer(row));
        assert_unavailable(row, &mut client);
    }
    assert_eq!(backend.opens(), 0, "nobody was accepted");
    assert!(endpoint.seen().iter().all(|head| !head.starts_with("GET /elsewhere")));
    Client::open(gateway.address(), "/it", &bearer("200")).echo("in");
}

/// Answers that decide nothing.
const HTTP_BAD: &[&str] = &[
    "429",
    "500",
    "503",
    "404",
    "302",
    "100",
    "no-subject",
    "two-subjects",
    "not-utf8",
    "subject-and-401",
    "over-already",
    "bad-expiry",
    "no-http",
    "half-head",
    "half-body",
    "long-head",
    "long-body",
    "many-fields",
    "two-lengths",
    "closed",
    "late",
    "never",
];

fn http_row(row: &str) -> Reply {
    let subject = "X-Auth-Subject: ada\r\n";
    let body = |length: usize, sent: usize| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{subject}\r\n");
        [head.into_bytes(), vec![b'x'; sent]].concat()
    };
    let raw = |text: &str| Reply::Last(text.as_bytes().to_vec());
    match row {
        "200" => Reply::subject("ada"),
        "302" => Reply::status(302, "Location: /elsewhere\r\nX-Auth-Subject: ada\r\n"),
        "401-expired" => Reply::status(401, "X-Auth-Reason: token_expired\r\n"),
        "no-subject" => Reply::status(200, ""),
        "two-subjects" => Reply::status(200, "X-Auth-Subject: ada\r\nX-Auth-Subject: ada\r\n"),
        "not-utf8" => {
            let mut bytes = response(200, "X-Auth-Subject: ad?\r\n");
            let at = bytes.iter().position(|b| *b == b'?').expect("there");
            bytes[at] = 0xff;
            Reply::Bytes(bytes)
        }
        "subject-and-401" => Reply::status(401, subject),
        "over-already" => Reply::status(200, &format!("{subject}X-Auth-Expires: 1000\r\n")),
        "bad-expiry" => Reply::status(200, &format!("{subject}X-Auth-Expires: soon\r\n")),
        "no-http" => raw("SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        "half-head" => raw("HTTP/1.1 200 OK\r\nX-Auth-Subject: ada\r\n"),
        "half-body" => Reply::Last(body(100, 50)),
        "long-head" => Reply::status(200, &format!("{subject}X-Fill: {}\r\n", "f".repeat(40_000))),
        "long-body" => Reply::Bytes(body(40_000, 40_000)),
        "many-fields" => Reply::status(200, &format!("{subject}{}", "X-F: f\r\n".repeat(200))),
        "two-lengths" => Reply::status(200, &format!("{subject}Content-Length: 5\r\n")),
        "closed" => Reply::Last(Vec::new()),
        "late" => Reply::After(Duration::from_millis(900), response(200, subject)),
        "never" => Reply::Silence,
        status => Reply::status(status.parse().expect("a status"), subject_unless_no(status)),
    }
}

/// A 401 or 403 names nobody; the rest try to.
fn subject_unless_no(status: &str) -> &'static str {
    if matches!(status, "401" | "403") { "" } else { "X-Auth-Subject: ada\r\n" }
}

#[test]
fn a_dead_endpoint_is_left_alone_and_found_again() {
    let backend = Backend::start();
    let endpoint = Endpoint::start(|_| Reply::subject("ada"));
    let address = endpoint.address;
    let more = "circuit_failures = 3\ncircuit_open_min = \"200ms\"\ncircuit_open_max = \"400ms\"\n";
    let gateway = Gateway::start(&http_config(&backend, &endpoint.url(), more));
    let try_once = || {
        let mut client = Client::open(gateway.address(), "/it", &bearer("t"));
        client.text("hello");
        client.frame().expect("an answer").payload == b"hello"
    };
    assert!(try_once());
    drop(endpoint);
    wait_until("it is dead", || !try_once());
    wait_until("the circuit opens", || {
        assert!(!try_once());
        gateway.metric("portcullis_verdict_circuits{state=\"open\"}") == 1
    });
    let failing = Arc::new(AtomicBool::new(true));
    let sick = failing.clone();
    let endpoint = Endpoint::start_at(address, move |_| {
        if sick.load(Ordering::SeqCst) { Reply::status(500, "") } else { Reply::subject("ada") }
    });
    for _ in 0..100 {
        assert!(!try_once());
    }
    let asked = endpoint.seen().len();
    assert!(asked < 20, "{asked} of 100 questions reached an endpoint that is left alone");
    failing.store(false, Ordering::SeqCst);
    wait_until("it recovers", try_once);
    gateway.wait_metric("portcullis_verdict_circuits{state=\"closed\"}", |count| count == 1);
}

#[test]
fn questions_beyond_the_bounds_are_refused_at_once() {
    let backend = Backend::start();
    let endpoint = Endpoint::start(|_| {
        Reply::After(Duration::from_millis(600), response(200, "X-Auth-Subject: ada\r\n"))
    });
    let more = "in_flight_max = 2\nqueue_max = 2\ntimeout = \"5s\"\n";
    let gateway = Gateway::start(&http_config(&backend, &endpoint.url(), more));
    let mut clients: Vec<Client> =
        (0..8).map(|_| Client::open(gateway.address(), "/it", &bearer("t"))).collect();
    let begun = Instant::now();
    let mut refused = 0;
    for client in &mut clients {
        client.text("hello");
        let frame = client.frame().expect("an answer");
        refused += usize::from(frame.payload != b"hello");
    }
    assert_eq!(refused, 4, "two in flight, two in the queue");
    assert!(begun.elapsed() >= Duration::from_millis(1000), "the queue waited its turn");
    assert_eq!(endpoint.seen().len(), 4);
    let config =
        http_config(&backend, &endpoint.url(), "timeout = \"4s\"").limits("verdicts_max = 3");
    let gateway = Gateway::start(&config);
    let mut clients: Vec<Client> =
        (0..5).map(|_| Client::open(gateway.address(), "/it", &bearer("t"))).collect();
    let mut told = clients.split_off(3);
    for client in &mut told {
        assert_unavailable("over verdicts_max", client);
    }
    for client in &mut clients {
        client.echo("in");
    }
    gateway.wait_metric("portcullis_verdicts_unasked_total", |count| count == 2);
}

#[test]
fn blocks_before_the_one_that_asks_decide_what_is_theirs() {
    let backend = Backend::start();
    let endpoint = Endpoint::start(|_| Reply::subject("bob"));
    let mut config = Config::bare(backend.address()).guarded("own", "authorization", "").asking(
        "it",
        "http",
        &["authorization"],
        &format!("endpoint = \"{}\"", endpoint.url()),
    );
    config.routes = String::new();
    let gateway = Gateway::start(&config.route("/ws", "auth = [\"own\", \"it\"]"));
    let subject = |token: &str| {
        Client::open(gateway.address(), "/ws", &bearer(token)).echo("in");
        backend.opened().subject
    };
    assert_eq!(subject(&token("good")).as_deref(), Some("ada"));
    assert_eq!(endpoint.seen().len(), 0, "the first block knew it");
    assert_eq!(subject("opaque").as_deref(), Some("bob"));
    assert_eq!(subject(&token("forged")).as_deref(), Some("bob"), "signed by somebody else");
    let mut client = Client::open(gateway.address(), "/ws", &bearer(&token("expired")));
    let (code, reason, _) = refusal(&mut client);
    assert_eq!((code, reason.as_str()), (4401, "token_expired"));
    assert_eq!(endpoint.seen().len(), 2, "an expired token of the first block stays its own");
}

#[test]
fn a_reload_changes_the_endpoint_and_judges_who_waits_by_the_same_block() {
    let backend = Backend::start();
    let slow = Endpoint::start(|_| {
        Reply::After(Duration::from_millis(700), response(200, "X-Auth-Subject: old\r\n"))
    });
    let quick = Endpoint::start(|_| Reply::subject("new"));
    let (port, admin) = (crate::support::free_port(), crate::support::free_port());
    let config =
        |endpoint: &Endpoint| http_config(&backend, &endpoint.url(), "").ports(port, admin);
    let gateway =
        Gateway::start_from(&config(&slow), tempfile::tempdir().expect("a temporary folder"));
    gateway.wait_ready(1);
    let mut waiting = Client::open(gateway.address(), "/it", &bearer("t"));
    wait_until("it is asked", || slow.seen().len() == 1);
    gateway.reload(&config(&quick)).expect("taken");
    Client::open(gateway.address(), "/it", &bearer("t")).echo("in");
    assert_eq!(backend.opened().subject.as_deref(), Some("new"));
    waiting.echo("in");
    assert_eq!(backend.opened().subject.as_deref(), Some("old"), "the block has the same name");
    let mut waiting = Client::open(gateway.address(), "/it", &bearer("t"));
    waiting.echo("in");
    gateway.reload(&config(&slow)).expect("taken");
    let mut waiting = Client::open(gateway.address(), "/it", &bearer("t"));
    wait_until("it is asked", || slow.seen().len() == 2);
    let mut renamed = config(&slow);
    renamed.auths = renamed.auths.replace("\"it\"", "\"other\"");
    renamed.routes = renamed.routes.replace("auth = \"it\"", "auth = \"other\"");
    gateway.reload(&renamed).expect("taken");
    let (code, reason, _) = refusal(&mut waiting);
    assert_eq!((code, reason.as_str()), (1001, "going_away"));
}
