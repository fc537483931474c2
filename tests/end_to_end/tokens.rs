//! Every carrier with every kind of token, and the exact answer.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::support::{
    Backend, Client, Config, End, Event, Gateway, Opcode, SECRET, head, mint, token, unix_now,
};

const ORIGIN: &str = "Origin: https://app.example\r\n";

/// Kind of token, close code, reason.
const REFUSALS: &[(&str, u16, &str)] = &[
    ("expired", 4401, "token_expired"),
    ("forged", 4401, "token_bad_signature"),
    ("malformed", 4401, "token_malformed"),
    ("early", 4401, "token_not_yet_valid"),
    ("foreign", 4403, "token_forbidden"),
];

/// Every carrier: its route's name, and how settings write it.
const CARRIERS: &[(&str, &str)] = &[
    ("authorization", "authorization"),
    ("subprotocol", "subprotocol"),
    ("cookie", "cookie:session"),
    ("header", "header:x-token"),
    ("query", "query:token"),
    ("first", "first-message"),
    ("json", "first-message:payload.token"),
];

fn config(backend: &Backend, more: &str) -> Config {
    let mut config = Config::bare(backend.address());
    for (name, carrier) in CARRIERS {
        let closed = match *name {
            "cookie" => "origins = [\"https://app.example\"]\norigin_absent = \"refuse\"\n",
            _ => "",
        };
        config = config.guarded(name, carrier, &format!("{closed}{more}"));
    }
    config
}

/// How each carrier is used: a name for the row, the path, fields, and the first message.
fn carried(token: &str) -> Vec<(&'static str, String, String, Option<String>)> {
    let offer = |engine: &dyn Fn(&str) -> String, kind: &str| {
        format!("Sec-WebSocket-Protocol: chat, base64url.bearer.{kind}.{}\r\n", engine(token))
    };
    let (standard, url) =
        (|t: &str| STANDARD_NO_PAD.encode(t), |t: &str| URL_SAFE_NO_PAD.encode(t));
    let json = format!(r#"{{"type":"init","payload":{{"x":1,"token":"{token}"}}}}"#);
    let path = |name: &str| format!("/{name}");
    let none = String::new;
    vec![
        (
            "authorization",
            path("authorization"),
            format!("Authorization: Bearer {token}\r\n"),
            None,
        ),
        ("phx, standard", path("subprotocol"), offer(&standard, "phx"), None),
        ("phx, url", path("subprotocol"), offer(&url, "phx"), None),
        ("auth., standard", path("subprotocol"), offer(&standard, "authorization"), None),
        ("auth., url", path("subprotocol"), offer(&url, "authorization"), None),
        ("cookie", path("cookie"), format!("{ORIGIN}Cookie: a=b; session={token}; c=d\r\n"), None),
        ("header", path("header"), format!("X-Token: {token}\r\n"), None),
        ("query", format!("/query?a=1&token={token}&b=2"), none(), None),
        ("first", path("first"), none(), Some(token.to_owned())),
        ("json", path("json"), none(), Some(json)),
    ]
}

fn explained(code: u16, reason: &str) -> String {
    format!(r#"{{"type":"close","code":{code},"reason":"{reason}","reconnect":false}}"#)
}

#[test]
fn good_tokens_open_a_session_by_every_carrier() {
    let backend = Backend::start();
    let gateway = Gateway::start(&config(&backend, ""));
    for (row, path, fields, message) in carried(&token("good")) {
        let (mut client, answer) = Client::ask(gateway.address(), &path, &fields);
        assert!(answer.starts_with("HTTP/1.1 101 "), "{row}: {answer}");
        assert!(!answer.contains("bearer"), "{row}: {answer}");
        let offered = fields.contains("chat");
        assert_eq!(head(&answer, "sec-websocket-protocol"), offered.then_some("chat"), "{row}");
        if let Some(message) = &message {
            client.text(message);
        }
        client.echo("hello");
        let identity = backend.opened();
        assert_eq!(identity.subject.as_deref(), Some("ada"), "{row}");
        assert_eq!(identity.token_id.as_deref(), Some("t1"), "{row}");
        let path = if row == "query" { "/query?a=1&b=2" } else { path.as_str() };
        assert_eq!(identity.path, path, "{row}");
        let claims: serde_json::Value = serde_json::from_slice(&identity.claims).expect("JSON");
        assert_eq!(claims["sub"], "ada", "{row}");
        let expires = claims["exp"].as_u64().expect("a number") * 1000;
        assert_eq!(identity.expires.map(|at| at.as_millis()), Some(expires), "{row}");
        let local = client.tcp().local_addr().expect("connected");
        assert_eq!(identity.remote, Some(local), "{row}");
    }
}

#[test]
fn a_cookie_counts_only_beside_an_origin() {
    let backend = Backend::start();
    let more = "origins = [\"https://app.example\"]\norigin_absent = \"allow\"\n";
    let carriers = "header:x-token\", \"cookie:session";
    let config = Config::bare(backend.address()).guarded("both", carriers, more);
    let gateway = Gateway::start(&config);
    let good = token("good");
    for fields in [
        format!("X-Token: {good}\r\n"),
        format!("{ORIGIN}Cookie: session={good}\r\n"),
        format!("X-Token: {good}\r\nCookie: session={good}\r\n"),
    ] {
        Client::open(gateway.address(), "/both", &fields).echo("in");
    }
    let cookie = format!("Cookie: session={good}\r\n");
    let mut client = Client::open(gateway.address(), "/both", &cookie);
    client.expect_explained(&explained(4403, "forbidden_origin"), 4403, "forbidden_origin");
}

#[test]
fn bad_tokens_are_explained_by_every_carrier() {
    let backend = Backend::start();
    let gateway = Gateway::start(&config(&backend, ""));
    let mut refused = 0;
    for (kind, code, reason) in REFUSALS {
        for (row, path, fields, message) in carried(&token(kind)) {
            let mut client = Client::open(gateway.address(), &path, &fields);
            if let Some(message) = &message {
                client.text(message);
            }
            eprintln!("{kind} by {row}");
            client.expect_explained(&explained(*code, reason), *code, reason);
            refused += 1;
        }
    }
    // No token at all.
    for (path, fields, message) in [
        ("/authorization", "", None),
        ("/authorization", "Authorization: Basic YTpi\r\n", None),
        ("/subprotocol", "Sec-WebSocket-Protocol: chat\r\n", None),
        ("/cookie", "Origin: https://app.example\r\nCookie: other=1\r\n", None),
        ("/header", "X-Other: 1\r\n", None),
        ("/query?tokens=1", "", None),
        ("/first", "", Some("")),
        ("/json", "", Some("{}")),
        ("/json", "", Some(r#"{"payload":{"token":7}}"#)),
    ] {
        let mut client = Client::open(gateway.address(), path, fields);
        if let Some(message) = message {
            client.text(message);
        }
        eprintln!("{path} {fields} {message:?}");
        let reason = "token_missing";
        client.expect_explained(&explained(4401, reason), 4401, reason);
        refused += 1;
    }
    assert!(backend.seen().is_empty());
    gateway.wait_metric("portcullis_tokens_refused_total", |count| count == refused);
    gateway.wait_closes("token_expired", 10);
    gateway.wait_closes("token_forbidden", 10);
}

#[test]
fn broken_carriers_are_malformed_tokens() {
    let backend = Backend::start();
    let gateway = Gateway::start(&config(&backend, ""));
    let good = token("good");
    let url = URL_SAFE_NO_PAD.encode(&good);
    const MALFORMED: (u16, &str) = (4401, "token_malformed");
    const TWICE: (u16, &str) = (4400, "token_repeated");
    let table = [
        ("/authorization", "Authorization: Bearer\r\n".to_owned(), MALFORMED),
        ("/authorization", format!("Authorization: Bearer {good} x\r\n"), MALFORMED),
        ("/subprotocol", "Sec-WebSocket-Protocol: base64url.bearer.phx.!!!\r\n".into(), MALFORMED),
        ("/subprotocol", "Sec-WebSocket-Protocol: base64url.bearer.phx.\r\n".into(), MALFORMED),
        (
            "/subprotocol",
            format!("Sec-WebSocket-Protocol: base64url.bearer.other.{url}\r\n"),
            MALFORMED,
        ),
        (
            "/subprotocol",
            format!(
                "Sec-WebSocket-Protocol: base64url.bearer.phx.{url}, \
                 base64url.bearer.authorization.{url}\r\n"
            ),
            TWICE,
        ),
        ("/cookie", format!("{ORIGIN}Cookie: session={good}; session={good}\r\n"), TWICE),
        ("/header", format!("X-Token: {good}\r\nX-Token: {good}\r\n"), TWICE),
        ("/query?token=a&token=b", String::new(), TWICE),
        ("/authorization", format!("Authorization: Bearer {}\r\n", "a".repeat(4097)), MALFORMED),
        ("/authorization", format!("Authorization: Bearer {good}=\r\n"), MALFORMED),
    ];
    for (path, fields, (code, reason)) in table {
        eprintln!("{path} {fields}");
        let mut client = Client::open(gateway.address(), path, &fields);
        client.expect_explained(&explained(code, reason), code, reason);
    }
    assert!(backend.seen().is_empty());
}

#[test]
fn refusals_over_http_where_the_route_says_so() {
    let backend = Backend::start();
    let gateway = Gateway::start(&config(&backend, "refuse = \"http\""));
    let mut rows: Vec<(&str, u16, &str)> = REFUSALS.to_vec();
    rows.push(("none", 4401, "token_missing"));
    for (kind, code, reason) in rows {
        let fields = match kind {
            "none" => String::new(),
            _ => format!("Authorization: Bearer {}\r\n", token(kind)),
        };
        let (mut client, answer) = Client::ask(gateway.address(), "/authorization", &fields);
        let status = if code == 4403 { "403 Forbidden" } else { "401 Unauthorized" };
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{kind}: {answer}");
        let challenge = match (code, kind) {
            (4403, _) => None,
            (_, "none") => Some("Bearer".to_owned()),
            _ => Some(format!("Bearer error=\"invalid_token\", error_description=\"{reason}\"")),
        };
        assert_eq!(head(&answer, "www-authenticate"), challenge.as_deref(), "{kind}");
        assert_eq!(head(&answer, "connection"), Some("close"), "{kind}");
        let (body, end) = client.drain();
        assert!(body.starts_with(reason.as_bytes()), "{kind}: {}", body.escape_ascii());
        assert_eq!(end, End::Fin);
    }
    // After the 101 there is no HTTP to answer with.
    let mut client = Client::open(gateway.address(), "/first", "");
    client.text(&token("forged"));
    let reason = "token_bad_signature";
    client.expect_explained(&explained(4401, reason), 4401, reason);
}

#[test]
fn auto_explains_to_browsers_and_answers_programs_over_http() {
    let backend = Backend::start();
    let gateway = Gateway::start(&config(&backend, "refuse = \"auto\""));
    let fields = format!("Authorization: Bearer {}\r\n", token("expired"));
    let (_, answer) = Client::ask(gateway.address(), "/authorization", &fields);
    assert!(answer.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{answer}");
    let mut client = Client::open(gateway.address(), "/authorization", &(fields + ORIGIN));
    client.expect_explained(&explained(4401, "token_expired"), 4401, "token_expired");
}

#[test]
fn audience_issuer_and_leeway_are_judged() {
    let backend = Backend::start();
    let mut config = Config::bare(backend.address()).guarded("a", "authorization", "");
    config.auths += "issuer = \"me\"\naudience = \"chat\"\nleeway = \"20s\"\n";
    let gateway = Gateway::start(&config);
    let now = unix_now();
    let (soon, past) = (now + 600, now - 30);
    let table = [
        (format!(r#""iss":"me","aud":"chat","exp":{soon}"#), None),
        (format!(r#""iss":"me","aud":["x","chat"],"exp":{soon}"#), None),
        (format!(r#""iss":"me","aud":"chat","nbf":{},"exp":{soon}"#, now + 10), None),
        (format!(r#""iss":"you","aud":"chat","exp":{soon}"#), Some((4403, "token_forbidden"))),
        (format!(r#""aud":"chat","exp":{soon}"#), Some((4403, "token_forbidden"))),
        (format!(r#""iss":"me","exp":{soon}"#), Some((4403, "token_forbidden"))),
        (format!(r#""iss":"me","aud":["x"],"exp":{soon}"#), Some((4403, "token_forbidden"))),
        (format!(r#""iss":"me","aud":"chat","exp":{past}"#), Some((4401, "token_expired"))),
        (r#""iss":"me","aud":"chat""#.to_owned(), Some((4401, "token_malformed"))),
    ];
    for (claims, refused) in table {
        eprintln!("{claims}");
        let token = mint(SECRET, &format!(r#"{{"sub":"ada",{claims}}}"#));
        let fields = format!("Authorization: Bearer {token}\r\n");
        let mut client = Client::open(gateway.address(), "/a", &fields);
        match refused {
            None => client.echo("hello"),
            Some((code, reason)) => {
                client.expect_explained(&explained(code, reason), code, reason);
            }
        }
    }
}

#[test]
fn a_token_that_names_no_subject_is_forbidden_unless_another_claim_does() {
    let backend = Backend::start();
    let mut config = Config::bare(backend.address()).guarded("usual", "authorization", "");
    config = config.guarded("mapped", "authorization", "");
    config.auths += "subject = [\"user\", \"id\"]\n";
    let gateway = Gateway::start(&config);
    let soon = unix_now() + 600;
    for (path, claims, subject) in [
        ("/usual", r#""sub":"ada""#, Some("ada")),
        ("/usual", r#""sub":42"#, Some("42")),
        ("/usual", r#""user":{"id":"ada"}"#, None),
        ("/usual", r#""sub":"" "#, None),
        ("/usual", r#""sub":null"#, None),
        ("/mapped", r#""user":{"id":"ada"}"#, Some("ada")),
        ("/mapped", r#""sub":"eve","user":{"id":7}"#, Some("7")),
        ("/mapped", r#""sub":"eve""#, None),
    ] {
        let token = mint(SECRET, &format!(r#"{{{claims},"exp":{soon}}}"#));
        let fields = format!("Authorization: Bearer {token}\r\n");
        let mut client = Client::open(gateway.address(), path, &fields);
        match subject {
            Some(subject) => {
                client.echo("in");
                assert_eq!(backend.opened().subject.as_deref(), Some(subject), "{path} {claims}");
            }
            None => {
                let forbidden = explained(4403, "token_forbidden");
                client.expect_explained(&forbidden, 4403, "token_forbidden");
            }
        }
    }
}

#[test]
fn tokens_up_to_token_max_come_by_every_carrier() {
    let backend = Backend::start();
    let limits = "head_max = \"64KiB\"\nrequest_line_max = \"32KiB\"\n\
                  first_message_max = \"32KiB\"\ntoken_max = \"16KiB\"";
    let gateway = Gateway::start(&config(&backend, "").limits(limits));
    let sized = |roles: usize| {
        let roles = "x".repeat(roles);
        let claims = format!(r#"{{"sub":"ada","exp":{},"roles":"{roles}"}}"#, unix_now() + 600);
        mint(SECRET, &claims)
    };
    let largest = (12_000..12_288).rev().map(sized).find(|token| token.len() <= 16_384);
    let largest = largest.expect("one fits");
    assert!(largest.len() > 16_380, "{}", largest.len());
    for (row, path, fields, message) in carried(&largest) {
        let (mut client, answer) = Client::ask(gateway.address(), &path, &fields);
        assert!(answer.starts_with("HTTP/1.1 101 "), "{row}: {answer}");
        if let Some(message) = &message {
            client.text(message);
        }
        client.echo("hello");
        let identity = backend.opened();
        assert_eq!(identity.subject.as_deref(), Some("ada"), "{row}");
        assert!(identity.claims.len() > 12_000, "{row}: {}", identity.claims.len());
    }
    for (row, path, fields, message) in carried(&sized(12_290)) {
        let (mut client, answer) = Client::ask(gateway.address(), &path, &fields);
        assert!(answer.starts_with("HTTP/1.1 101 "), "{row}: {answer}");
        if let Some(message) = &message {
            client.text(message);
        }
        client.expect_explained(&explained(4401, "token_malformed"), 4401, "token_malformed");
    }
}

#[test]
fn a_first_message_may_be_fragmented_and_pinged_around_but_not_too_large() {
    let backend = Backend::start();
    let config = config(&backend, "").limits("first_message_max = \"1KiB\"\ntoken_max = \"1KiB\"");
    let gateway = Gateway::start(&config);
    let good = token("good");
    let mut client = Client::open(gateway.address(), "/first", "");
    client.send(true, Opcode::Ping, b"a");
    client.expect(Opcode::Pong, b"a");
    client.send(false, Opcode::Text, &good.as_bytes()[..20]);
    client.send(true, Opcode::Ping, b"b");
    client.expect(Opcode::Pong, b"b");
    client.send(true, Opcode::Continuation, &good.as_bytes()[20..]);
    client.echo("in");
    // Nothing of what came before the decision is forwarded.
    let seen = backend.seen();
    let [Event::Open(identity), Event::Message(message)] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!((identity.subject.as_deref(), message.as_text()), (Some("ada"), Some("in")));
    let mut client = Client::open(gateway.address(), "/first", "");
    client.send(true, Opcode::Binary, good.as_bytes());
    client.echo("binary is taken too");
    let mut client = Client::open(gateway.address(), "/first", "");
    client.text(&"a".repeat(1025));
    assert_eq!(client.close_frame(), (Some(1009), "too_large".into()));
    assert_eq!(client.end(), End::Fin);
    // Messages right behind the token wait for it, and arrive in order.
    let mut client = Client::open(gateway.address(), "/first", "");
    let mut burst = crate::support::masked(0x81, good.as_bytes());
    burst.extend((0..50_u8).flat_map(|n| crate::support::masked(0x82, &[n])));
    client.write(&burst);
    for number in 0..50_u8 {
        client.expect(Opcode::Binary, &[number]);
    }
}

#[test]
fn what_a_refused_client_still_says_goes_nowhere() {
    let backend = Backend::start();
    let gateway = Gateway::start(&config(&backend, ""));
    let mut client = Client::open(gateway.address(), "/first", "");
    let mut burst = crate::support::masked(0x81, token("forged").as_bytes());
    burst.extend(crate::support::masked(0x81, token("good").as_bytes()));
    burst.extend(crate::support::masked(0x81, b"let me in"));
    client.write(&burst);
    let reason = "token_bad_signature";
    client.expect_explained(&explained(4401, reason), 4401, reason);
    assert!(backend.seen().is_empty());
}
