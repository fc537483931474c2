//! Every row of the HTTP upgrade: the exact status line and fields, then the end; and nothing
//! of it reaches a backend.

use std::time::Duration;

use crate::support::{Backend, Client, Config, End, Gateway, Opcode, head, masked, request};

/// What is sent (`{G}` a good request line, `{H}` Host, `{U}` the upgrade's two fields, `{V}`
/// version, `{K}` key), the status, the label in the body, one more field of the answer.
type Row = (&'static str, &'static str, &'static str, &'static str);

const BAD: &str = "400 Bad Request";
const UPGRADE: &str = "426 Upgrade Required";

const ROWS: &[Row] = &[
    (
        "POST /ws HTTP/1.1\r\n{H}{U}{V}{K}\r\n",
        "405 Method Not Allowed",
        "method_not_allowed",
        "Allow: GET",
    ),
    ("HEAD /ws HTTP/1.1\r\n{H}\r\n", "405 Method Not Allowed", "method_not_allowed", "Allow: GET"),
    ("CONNECT a.example:443 HTTP/1.1\r\n{H}\r\n", BAD, "connect", ""),
    ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BAD, "http2_preface", ""),
    ("GET /ws HTTP/1.0\r\n{H}{U}{V}{K}\r\n", UPGRADE, "http_1_0", "Upgrade: websocket"),
    ("GET /ws HTTP/2.0\r\n{H}{U}{V}{K}\r\n", BAD, "bad_version", ""),
    ("GET  /ws HTTP/1.1\r\n{H}{U}{V}{K}\r\n", BAD, "bad_request_line", ""),
    ("GET /a/../ws HTTP/1.1\r\n{H}{U}{V}{K}\r\n", BAD, "bad_target", ""),
    ("{G}{H}\r\n", UPGRADE, "upgrade_required", "Upgrade: websocket"),
    (
        "{G}{H}Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        UPGRADE,
        "upgrade_required",
        "Upgrade: websocket",
    ),
    ("{G}{H}Upgrade: websocket\r\n{V}{K}\r\n", BAD, "connection_not_upgrade", ""),
    (
        "{G}{H}Upgrade: websocket\r\nConnection: no-upgrade\r\n{V}{K}\r\n",
        BAD,
        "connection_not_upgrade",
        "",
    ),
    ("{G}{H}{U}{K}\r\n", UPGRADE, "version_unsupported", "Sec-WebSocket-Version: 13"),
    (
        "{G}{H}{U}Sec-WebSocket-Version: 8\r\n{K}\r\n",
        UPGRADE,
        "version_unsupported",
        "Sec-WebSocket-Version: 13",
    ),
    ("{G}{H}{U}{V}{V}{K}\r\n", BAD, "version_repeated", ""),
    ("{G}{H}{U}{V}\r\n", BAD, "key_missing", ""),
    ("{G}{H}{U}{V}{K}{K}\r\n", BAD, "key_repeated", ""),
    ("{G}{H}{U}{V}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZWE=\r\n\r\n", BAD, "key_invalid", ""),
    ("{G}{U}{V}{K}\r\n", BAD, "host_missing", ""),
    ("{G}{H}{H}{U}{V}{K}\r\n", BAD, "host_repeated", ""),
    ("{G}Host: a/b\r\n{U}{V}{K}\r\n", BAD, "host_invalid", ""),
    ("{G}{H}{U}{V}{K}Origin: a\r\nOrigin: a\r\n\r\n", BAD, "origin_repeated", ""),
    (
        "{G}{H}{U}{V}{K}Authorization: x\r\nAuthorization: y\r\n\r\n",
        BAD,
        "authorization_repeated",
        "",
    ),
    ("{G}{H}{U}{V}{K}Content-Length: 0\r\n\r\n", BAD, "body_not_allowed", ""),
    ("{G}{H}{U}{V}{K}Transfer-Encoding: chunked\r\n\r\n", BAD, "body_not_allowed", ""),
    (
        "{G}{H}{U}{V}{K}Expect: 100-continue\r\n\r\n",
        "417 Expectation Failed",
        "expectation_failed",
        "",
    ),
    ("GET /ws HTTP/1.1\n{H}{U}{V}{K}\r\n", BAD, "bare_lf", ""),
    ("{G}{H}X: a\rb\r\n{U}{V}{K}\r\n", BAD, "bare_cr", ""),
    ("{G}{H}X: a\r\n b\r\n{U}{V}{K}\r\n", BAD, "obsolete_fold", ""),
    ("{G}{H}X : a\r\n{U}{V}{K}\r\n", BAD, "space_before_colon", ""),
    ("{G}{H}X: a\0b\r\n{U}{V}{K}\r\n", BAD, "control_byte", ""),
    ("{G} {H}{U}{V}{K}\r\n", BAD, "leading_whitespace", ""),
    ("{G}{H}no colon here\r\n{U}{V}{K}\r\n", BAD, "space_before_colon", ""),
    ("{G}{H}{U}{V}{K}Sec-WebSocket-Protocol: a, a\r\n\r\n", BAD, "subprotocol_invalid", ""),
    ("GET /other HTTP/1.1\r\n{H}{U}{V}{K}\r\n", "404 Not Found", "not_found", ""),
    ("GET /other HTTP/1.1\r\n{H}\r\n", "404 Not Found", "not_found", ""),
    ("GET /ws/ HTTP/1.1\r\n{H}{U}{V}{K}\r\n", "404 Not Found", "not_found", ""),
    ("\x16\x03\x01\x02\x00\x01\x00\x01", BAD, "tls_on_plain_port", ""),
];

fn expand(row: &str) -> String {
    row.replace("{U}", "Upgrade: websocket\r\nConnection: Upgrade\r\n")
        .replace("{V}", "Sec-WebSocket-Version: 13\r\n")
        .replace("{K}", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")
        .replace("{G}", "GET /ws HTTP/1.1\r\n")
        .replace("{H}", "Host: a.example\r\n")
}

/// The limits' rows, and bytes after the head, which a text cannot hold.
fn long_rows() -> Vec<(Vec<u8>, &'static str, &'static str, &'static str)> {
    let good = expand("{G}{H}{U}{V}{K}");
    let line = format!("GET /{} HTTP/1.1\r\n", "a".repeat(8_000));
    let large = format!("{good}X: {}\r\n\r\n", "a".repeat(8 * 1024));
    let fields = format!("{good}{}\r\n", "X: 1\r\n".repeat(60));
    let blind = [format!("{good}\r\n").as_bytes(), &masked(0x81, b"first")].concat();
    let second = format!("{good}\r\nGET /ws HTTP/1.1\r\n");
    vec![
        (line.into_bytes(), "414 URI Too Long", "line_too_long", ""),
        (large.into_bytes(), "431 Request Header Fields Too Large", "head_too_large", ""),
        (fields.into_bytes(), "431 Request Header Fields Too Large", "too_many_fields", ""),
        (blind, BAD, "early_bytes", ""),
        (second.into_bytes(), BAD, "early_bytes", ""),
    ]
}

fn check(gateway: &Gateway, sent: &[u8], drip: bool, row: (&str, &str, &str)) {
    let (status, label, field) = row;
    let mut client = Client::connect(gateway.address());
    if drip {
        sent.chunks(1).for_each(|byte| client.write(byte));
    } else {
        client.write(sent);
    }
    let what = sent.escape_ascii().to_string();
    let answer = client.head();
    assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{what}\n{answer}");
    let connection = head(&answer, "connection").expect("the field");
    assert!(connection == "close" || status == UPGRADE && connection == "close, Upgrade", "{what}");
    assert!(answer.contains(&format!("\r\n{field}")), "{what}: no {field} in\n{answer}");
    assert_eq!(head(&answer, "cache-control"), Some("no-store"), "{what}");
    let (body, end) = client.drain();
    let body = String::from_utf8(body).expect("text");
    assert!(body.starts_with(&format!("{label}: ")), "{what}: {body}");
    assert_eq!(head(&answer, "content-length"), Some(body.len().to_string().as_str()), "{what}");
    assert_eq!(end, End::Fin, "{what}");
}

#[test]
fn every_bad_head_gets_its_answer_and_nothing_reaches_a_backend() {
    let backend = Backend::start();
    let gateway = Gateway::start(&Config::to(backend.address()));
    let plain = ROWS.iter().map(|&(sent, s, l, f)| (expand(sent).into_bytes(), s, l, f));
    let rows: Vec<_> = plain.chain(long_rows()).collect();
    for (sent, status, label, field) in &rows {
        check(&gateway, sent, false, (status, label, field));
        // Dripped, the early bytes come after the 101, where they are welcome.
        if *label != "early_bytes" {
            check(&gateway, sent, true, (status, label, field));
        }
    }
    let seen = backend.seen();
    assert!(seen.is_empty(), "{seen:?}");
    let mut client = Client::open(gateway.address(), "/ws", "");
    client.echo("now");
    assert_eq!(backend.opens(), 1);
    let sent = rows.iter().filter(|row| row.2 != "early_bytes").count() + rows.len();
    gateway.wait_closes("bad_request", sent as u64);
}

#[test]
fn a_good_head_is_answered_exactly_whole_or_dripped() {
    let backend = Backend::start();
    let gateway = Gateway::start(&Config::to(backend.address()));
    let expected = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    let asked = request("/ws", "Sec-WebSocket-Extensions: permessage-deflate\r\n");
    for size in [asked.len(), 1, 7] {
        let mut client = Client::connect(gateway.address());
        asked.as_bytes().chunks(size).for_each(|piece| client.write(piece));
        assert_eq!(client.head(), expected, "{size} by {size}");
        client.echo("hello");
    }
}

#[test]
fn a_client_that_half_closes_after_a_bad_head_still_gets_its_answer() {
    let backend = Backend::start();
    let gateway = Gateway::start(&Config::to(backend.address()));
    for _ in 0..20 {
        let mut client = Client::connect(gateway.address());
        client.write(b"POST /ws HTTP/1.1\r\n\r\n");
        client.tcp().shutdown(std::net::Shutdown::Write).expect("shut down");
        assert!(client.head().starts_with("HTTP/1.1 405 "));
    }
}

#[test]
fn load_balancers_are_answered_where_the_route_says_so() {
    let backend = Backend::start();
    let config = Config::to(backend.address()).route("/lb", "auth = \"none\"\nhealth = true");
    let gateway = Gateway::start(&config);
    let mut client = Client::connect(gateway.address());
    client.write(b"GET /lb?x HTTP/1.1\r\nHost: a.example\r\n\r\n");
    let answer = client.head();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\nConnection: close\r\n"), "{answer}");
    assert_eq!(client.drain(), (b"ok\n".to_vec(), End::Fin));
    gateway.wait_closes("health_check", 1);
}

#[test]
fn subprotocols_are_chosen_by_the_route_and_never_a_bearer() {
    let backend = Backend::start();
    let config = Config::to(backend.address())
        .route("/two", "auth = \"none\"\nsubprotocols = [\"v2\", \"v1\"]");
    let gateway = Gateway::start(&config);
    // Path and offer -> what is answered with.
    let table = [
        ("/ws", "chat, other", Some("chat")),
        ("/ws", "base64url.bearer.phx.YQ, phoenix", Some("phoenix")),
        ("/ws", "base64url.bearer.phx.YQ", None),
        ("/two", "v1, v2", Some("v2")),
        ("/two", "v1", Some("v1")),
        ("/two", "v3", None),
        ("/two", "BASE64URL.bearer.x.YQ, V1, v1", Some("v1")),
    ];
    for (path, offer, expected) in table {
        let fields = format!("Sec-WebSocket-Protocol: {offer}\r\n");
        let (mut client, answer) = Client::ask(gateway.address(), path, &fields);
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert_eq!(head(&answer, "sec-websocket-protocol"), expected, "{offer}");
        client.echo("hello");
        assert_eq!(backend.opened().subprotocol.as_deref(), expected, "{offer}");
    }
}

#[test]
fn a_client_may_speak_right_after_the_101() {
    let backend = Backend::start();
    let gateway = Gateway::start(&Config::to(backend.address()));
    let mut client = Client::open(gateway.address(), "/ws", "");
    let burst: Vec<u8> = (0..100).flat_map(|n: u32| masked(0x82, &n.to_be_bytes())).collect();
    client.write(&burst);
    for number in 0..100_u32 {
        client.expect(Opcode::Binary, &number.to_be_bytes());
    }
    assert!(client.is_quiet_for(Duration::from_millis(50)));
}

#[test]
fn a_refused_client_that_leaves_at_once_takes_no_other_with_it() {
    let backend = Backend::start();
    let gateway = Gateway::start(&Config::to(backend.address()));
    for round in 0..500 {
        let (refused, answer) = Client::ask(gateway.address(), "/nowhere", "");
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        // The end of this one is still under way when the next one gets its descriptor.
        drop(refused);
        let (mut client, answer) = Client::ask(gateway.address(), "/ws", "");
        assert!(answer.starts_with("HTTP/1.1 101 "), "{round}: {answer}");
        client.echo("hello");
    }
}
