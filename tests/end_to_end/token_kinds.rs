//! The kinds of tokens beside JWT, with tokens that other programs made, and the memory of dead
//! ones.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use portcullis::base::secret::Secret;
use portcullis::base::time::UnixTime;
use portcullis::protocol::compact_token::{self, CompactKey, Fields};
use serde_json::Value;

use crate::support::{
    Backend, Client, Config, Gateway, SECRET, free_port, head, mint, request, unix_now,
};

const ORIGIN: &str = "Origin: https://app.example\r\n";

/// Tokens and sessions that Plug.Crypto and Plug made.
fn vectors() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/plug.json");
    serde_json::from_slice(&std::fs::read(path).expect("the vectors are there")).expect("JSON")
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} is a text"))
}

/// Routes of every kind; tokens of 2023 are still good.
fn config(backend: &Backend, vectors: &Value) -> Config {
    let mut config = Config::bare(backend.address());
    let base = text(vectors, "secret_key_base");
    config.auths = format!(
        r#"
[[auth]]
name = "phoenix"
kind = "phoenix"
carriers = ["subprotocol"]
secret_key_base = ["{other}", "{base}"]
salt = "user auth"
max_age = "off"
subject = "user_id"
[[auth]]
name = "brief"
kind = "phoenix"
carriers = ["subprotocol"]
secret_key_base = "{base}"
salt = "user auth"
[[auth]]
name = "session"
kind = "plug-session"
carriers = ["cookie:_app_key"]
secret_key_base = "{base}"
signing_salt = "p4Xf2Qzk"
subject = "user_id"
max_age = "1h"
[[auth]]
name = "compact"
kind = "compact"
carriers = ["authorization"]
keys = [{{ id = "9", secret = "{SECRET}" }}]
"#,
        other = SECRET.repeat(2),
    );
    let closed = "origins = [\"https://app.example\"]\norigin_absent = \"allow\"\n";
    config
        .route("/socket/websocket", "auth = \"phoenix\"")
        .route("/brief", "auth = \"brief\"\ndialect = \"plain\"")
        .route("/live/websocket", &format!("auth = \"session\"\ndialect = \"plain\"\n{closed}"))
        .route("/both", &format!("auth = [\"session\", \"compact\"]\n{closed}"))
        .route("/compact", "auth = \"compact\"")
        .route("/visit", &format!("auth = [\"session\", \"compact\", \"anonymous\"]\n{closed}"))
}

fn explained(code: u16, reason: &str) -> String {
    format!(r#"{{"type":"close","code":{code},"reason":"{reason}","reconnect":false}}"#)
}

/// As phoenix.js 1.8 offers its `authToken`: the standard alphabet without padding.
fn offer(token: &str) -> String {
    let text = STANDARD_NO_PAD.encode(token);
    format!("Sec-WebSocket-Protocol: phoenix, base64url.bearer.phx.{text}\r\n")
}

#[test]
fn phoenix_tokens_open_a_session() {
    let (backend, vectors) = (Backend::start(), vectors());
    let gateway = Gateway::start(&config(&backend, &vectors));
    let rows = vectors["tokens"].as_array().expect("a list");
    // Those of another derivation need a block of their own; the unit tests have them.
    let usual = |row: &&Value| {
        row["digest"] == "sha256" && row["iterations"] == 1000 && row["length"] == 32
    };
    for row in rows.iter().filter(usual).filter(|row| row["subject"].is_string()) {
        let path = "/socket/websocket?vsn=2.0.0";
        let (mut client, answer) = Client::ask(gateway.address(), path, &offer(text(row, "token")));
        assert!(answer.starts_with("HTTP/1.1 101 "), "{row}: {answer}");
        assert_eq!(head(&answer, "sec-websocket-protocol"), Some("phoenix"), "{row}");
        client.echo("hello");
        let identity = backend.opened();
        assert_eq!(identity.subject.as_deref(), Some(text(row, "subject")), "{row}");
        assert_eq!(identity.claims, text(row, "claims"), "{row}");
        assert_eq!(identity.path, path, "{row}");
        assert_eq!((identity.expires, identity.token_id), (None, None), "{row}");
    }
    let token = text(&rows[0], "token");
    let mut client = Client::open(gateway.address(), "/brief", &offer(token));
    client.expect_explained(&explained(4401, "token_expired"), 4401, "token_expired");
    let forged = token.replace("SFMyNTY.", "SFM1MTI.");
    let mut client = Client::open(gateway.address(), "/brief", &offer(&forged));
    let reason = "token_bad_signature";
    client.expect_explained(&explained(4401, reason), 4401, reason);
}

#[test]
fn sessions_need_their_csrf_token_and_an_origin() {
    let (backend, vectors) = (Backend::start(), vectors());
    let gateway = Gateway::start(&config(&backend, &vectors));
    let rows = vectors["sessions"].as_array().expect("a list");
    let csrf = |row: usize, page: usize| rows[row]["csrf"][page].as_str().expect("a text");
    let cookie = |row: usize| format!("Cookie: a=b; _app_key={}\r\n", text(&rows[row], "cookie"));
    let path = |csrf: &str| format!("/live/websocket?_csrf_token={csrf}&vsn=2.0.0&_mounts=0");
    for (row, page) in [(0, 0), (0, 1), (1, 0), (2, 1)] {
        let fields = cookie(row) + ORIGIN;
        let mut client = Client::open(gateway.address(), &path(csrf(row, page)), &fields);
        client.echo("hello");
        let identity = backend.opened();
        assert_eq!(identity.subject.as_deref(), Some(text(&rows[row], "subject")));
        assert_eq!(identity.claims, text(&rows[row], "claims"));
        assert_eq!(identity.path, "/live/websocket?vsn=2.0.0&_mounts=0");
        let left = identity.expires.expect("max_age").as_seconds() - unix_now();
        assert!((3590..=3601).contains(&left), "{left}");
    }
    let forged = cookie(0).replace("SFMyNTY.", "SFMzODQ.");
    let table = [
        (path(csrf(1, 0)), cookie(0) + ORIGIN, 4403, "csrf_mismatch"),
        (path(""), cookie(0) + ORIGIN, 4403, "csrf_mismatch"),
        ("/live/websocket".into(), cookie(0) + ORIGIN, 4403, "csrf_mismatch"),
        (
            format!("{}&_csrf_token={}", path(csrf(0, 0)), csrf(0, 0)),
            cookie(0) + ORIGIN,
            4403,
            "csrf_mismatch",
        ),
        (path(csrf(0, 0)), cookie(0), 4403, "forbidden_origin"),
        (path(csrf(3, 0)), cookie(3) + ORIGIN, 4401, "token_missing"),
        (path(csrf(0, 0)), forged + ORIGIN, 4401, "token_bad_signature"),
        (path(csrf(0, 0)), ORIGIN.into(), 4401, "token_missing"),
    ];
    for (path, fields, code, reason) in table {
        let mut client = Client::open(gateway.address(), &path, &fields);
        client.expect_explained(&explained(code, reason), code, reason);
    }
    // A wrong parameter says nothing against the session itself.
    Client::open(gateway.address(), &path(csrf(0, 0)), &(cookie(0) + ORIGIN)).echo("again");
    gateway.wait_closes("csrf_mismatch", 4);
}

fn compact(subject: &str, issued: u64, expires: u64) -> String {
    let key = CompactKey { id: 9, secret: Secret::new(SECRET.as_bytes().to_vec()) };
    let fields = Fields {
        issued: UnixTime::from_seconds(issued),
        expires: UnixTime::from_seconds(expires),
        subject,
        token_id: "t1",
        claims: b"\x00\xff",
    };
    let token = compact_token::mint(&key, &fields).expect("it fits");
    format!("Authorization: Bearer {token}\r\n")
}

#[test]
fn compact_tokens_and_a_visitors_session() {
    let (backend, vectors) = (Backend::start(), vectors());
    let gateway = Gateway::start(&config(&backend, &vectors));
    let now = unix_now();
    let good = compact("ada", now, now + 60);
    Client::open(gateway.address(), "/compact", &good).echo("hello");
    let identity = backend.opened();
    assert_eq!(identity.subject.as_deref(), Some("ada"));
    assert_eq!(identity.token_id.as_deref(), Some("t1"));
    assert_eq!(&identity.claims[..], b"\x00\xff");
    assert_eq!(identity.expires, Some(UnixTime::from_seconds(now + 60)));
    for (token, code, reason) in [
        (compact("ada", now - 120, now - 60), 4401, "token_expired"),
        (compact("ada", now + 120, now + 160), 4401, "token_not_yet_valid"),
        (good.replace("Bearer AQ", "Bearer Ag"), 4401, "token_malformed"),
    ] {
        let mut client = Client::open(gateway.address(), "/compact", &token);
        client.expect_explained(&explained(code, reason), code, reason);
    }
    // Nobody has logged in to this session, so the next block is asked.
    let visitor = &vectors["sessions"][3];
    let fields = format!("{ORIGIN}Cookie: _app_key={}\r\n{good}", text(visitor, "cookie"));
    Client::open(gateway.address(), "/both", &fields).echo("hello");
    assert_eq!(backend.opened().subject.as_deref(), Some("ada"));
}

#[test]
fn visitors_have_places_of_their_own() {
    let (backend, vectors) = (Backend::start(), vectors());
    let config = config(&backend, &vectors).limits("anonymous_max = 3").workers(1);
    let listeners = config.listeners.clone() + "proxy_protocol = { trusted = [\"127.0.0.0/8\"] }\n";
    let gateway = Gateway::start(&Config { listeners, ..config });
    let rows = vectors["sessions"].as_array().expect("a list");
    let visit = |from: &str, row: Option<usize>| {
        let (query, cookie) = match row {
            Some(row) => (
                format!("?_csrf_token={}", rows[row]["csrf"][0].as_str().expect("a text")),
                format!("Cookie: _app_key={}\r\n", text(&rows[row], "cookie")),
            ),
            None => (String::new(), String::new()),
        };
        let mut client = Client::connect(gateway.address());
        client.write(format!("PROXY TCP4 {from} 192.0.2.1 1 443\r\n").as_bytes());
        client.write(request(&format!("/visit{query}"), &format!("{ORIGIN}{cookie}")).as_bytes());
        assert!(client.head().starts_with("HTTP/1.1 101 "));
        client
    };
    let is_full = |mut client: Client| {
        let (_, message) = client.message();
        let told: Value = serde_json::from_slice(&message).expect("JSON");
        assert_eq!((&told["reason"], &told["reconnect"]), (&"over_capacity".into(), &true.into()));
        assert_eq!(client.close_frame().0, Some(1013));
    };
    // With and without a session in which nobody is logged in.
    let mut first = visit("198.51.100.1", Some(3));
    first.echo("hello");
    let identity = backend.opened();
    assert_eq!((identity.subject, identity.claims.len()), (None, 0));
    let mut second = visit("198.51.100.1", None);
    second.echo("hello");
    let mut third = visit("198.51.100.1", None);
    third.echo("hello");
    gateway.wait_metric("portcullis_visitors", |count| count == 3);
    is_full(visit("198.51.100.1", None));
    // An address with fewer takes the place of the first of those; a user needs none.
    let mut other = visit("198.51.100.2", None);
    other.echo("hello");
    is_full(first);
    visit("198.51.100.1", Some(0)).echo("a user");
    second.echo("still here");
    third.echo("still here");
    gateway.wait_metric("portcullis_visitors_evicted_total", |count| count == 1);
    gateway.wait_metric("portcullis_visitors", |count| count == 3);
    // A place is free when its visitor has gone.
    drop(other);
    gateway.wait_metric("portcullis_visitors", |count| count == 2);
    visit("198.51.100.3", None).echo("hello");
}

const HITS: &str = "portcullis_dead_token_hits_total";

#[test]
fn dead_tokens_are_refused_from_memory_until_the_keys_change() {
    let backend = Backend::start();
    let config = Config::bare(backend.address()).guarded("app", "authorization", "");
    let config = config.ports(free_port(), free_port());
    let gateway = Gateway::start_from(&config, tempfile::tempdir().expect("a folder"));
    let next = "fedcba9876543210fedcba9876543210";
    let now = unix_now();
    let claims = |nbf: u64, exp: u64| format!(r#"{{"sub":"ada","nbf":{nbf},"exp":{exp}}}"#);
    let expired = mint(SECRET, &claims(0, now - 60));
    let foreign = mint(next, &claims(0, now + 600));
    let early = mint(SECRET, &claims(now + 300, now + 600));
    let refuse = |gateway: &Gateway, token: &str, reason: &str| {
        let fields = format!("Authorization: Bearer {token}\r\n");
        let mut client = Client::open(gateway.address(), "/app", &fields);
        client.expect_explained(&explained(4401, reason), 4401, reason);
    };
    let mut hits = 0;
    for (token, reason, remembered) in [
        (&expired, "token_expired", true),
        (&foreign, "token_bad_signature", true),
        (&early, "token_not_yet_valid", false),
    ] {
        for _ in 0..4 {
            refuse(&gateway, token, reason);
        }
        hits += if remembered { 3 } else { 0 };
        gateway.wait_metric(HITS, |count| count == hits);
    }
    // The key that signed the foreign one is rotated in.
    let keys = format!("keys = [{{ secret = \"{SECRET}\" }}");
    let mut changed = config.clone();
    changed.auths = changed.auths.replace(&keys, &format!("{keys}, {{ secret = \"{next}\" }}"));
    assert_ne!(changed.auths, config.auths);
    gateway.wait_ready(1);
    gateway.reload(&changed).expect("a hot change");
    let fields = format!("Authorization: Bearer {foreign}\r\n");
    Client::open(gateway.address(), "/app", &fields).echo("in");
    refuse(&gateway, &expired, "token_expired");
    gateway.wait_metric(HITS, |count| count == hits);
    refuse(&gateway, &expired, "token_expired");
    gateway.wait_metric(HITS, |count| count == hits + 1);
    // Without a memory nothing is counted.
    let gateway = Gateway::start(
        &Config::bare(backend.address())
            .guarded("app", "authorization", "")
            .limits("dead_tokens_max = 0"),
    );
    for _ in 0..3 {
        refuse(&gateway, &expired, "token_expired");
    }
    assert_eq!(gateway.metric(HITS), 0);
}
