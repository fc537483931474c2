//! Which pages may connect.

use std::collections::BTreeMap;

use crate::support::{Backend, Client, Config, End, Gateway, head, token};

/// The statuses tell what is allowed; browsers get explanations, see below.
const HTTP: &str = "auth = \"none\"\nrefuse = \"http\"\n";

/// Nothing but the origin is looked at: not the token beside it, good or bad.
#[test]
fn a_page_learns_that_its_origin_is_not_listed_and_nothing_else() {
    let backend = Backend::start();
    let more = "origins = [\"https://app.example\"]\n";
    let auto = format!("{more}refuse = \"auto\"\n");
    let config = Config::bare(backend.address()).guarded("cookie", "cookie:session", more).guarded(
        "auto",
        "cookie:session",
        &auto,
    );
    let gateway = Gateway::start(&config);
    let explained = r#"{"type":"close","code":4403,"reason":"forbidden_origin","reconnect":false}"#;
    for path in ["/cookie", "/auto"] {
        for cookie in [format!("session={}", token("good")), "session=bad".into(), "a=b".into()] {
            let fields = format!("Origin: http://localhost:3000\r\nCookie: {cookie}\r\n");
            let mut client = Client::open(gateway.address(), path, &fields);
            client.expect_explained(explained, 4403, "forbidden_origin");
        }
    }
    assert_eq!(backend.opens(), 0);
    gateway.wait_closes("forbidden_origin", 6);
    for name in ["portcullis_tokens_refused_total", "portcullis_tokens_accepted_total"] {
        assert_eq!(gateway.metric(name), 0, "{name}");
    }
}

#[test]
fn origins_are_compared_exactly() {
    let backend = Backend::start();
    let list = "origins = [\"https://app.example\", \"http://app.example:8080\", \
         \"https://*.wild.example\"]";
    let config = Config::bare(backend.address())
        .route("/list", &format!("{HTTP}{list}\norigin_absent = \"refuse\""))
        .route("/absent", &format!("{HTTP}{list}\norigin_absent = \"allow\""))
        .route("/none", &format!("{HTTP}origins = []\norigin_absent = \"allow\""))
        .route("/any", &format!("{HTTP}origins = \"any\"\norigin_absent = \"refuse\""));
    let gateway = Gateway::start(&config);
    let mut refused = 0;
    for (path, origin, allowed) in [
        ("/list", Some("https://app.example"), true),
        ("/list", Some("http://app.example:8080"), true),
        ("/list", Some("https://a.wild.example"), true),
        ("/list", Some("https://a.b.wild.example"), true),
        ("/list", Some("https://wild.example"), false),
        ("/list", Some("https://evilwild.example"), false),
        ("/list", Some("https://app.example.evil.com"), false),
        ("/list", Some("https://app.example:8443"), false),
        ("/list", Some("http://app.example"), false),
        ("/list", Some("https://APP.example"), false),
        ("/list", Some("https://app.example."), false),
        ("/list", Some("https://u@app.example"), false),
        ("/list", Some("https://app.example/"), false),
        ("/list", Some("null"), false),
        ("/list", Some(""), false),
        ("/list", None, false),
        ("/absent", None, true),
        ("/absent", Some("https://evil.example"), false),
        ("/none", None, true),
        ("/none", Some("https://app.example"), false),
        ("/any", Some("https://whatever.example"), true),
        ("/any", None, false),
    ] {
        let fields = origin.map_or(String::new(), |origin| format!("Origin: {origin}\r\n"));
        let (mut client, answer) = Client::ask(gateway.address(), path, &fields);
        let status = if allowed { "101 Switching Protocols" } else { "403 Forbidden" };
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}\r\n")),
            "{path} {origin:?}: {answer}"
        );
        if allowed {
            client.echo("hello");
            assert_eq!(backend.opened().origin.as_deref(), origin, "{path}");
        } else {
            assert_eq!(head(&answer, "connection"), Some("close"));
            let (body, end) = client.drain();
            assert!(body.starts_with(b"forbidden_origin: "), "{}", body.escape_ascii());
            assert_eq!(end, End::Fin);
            refused += 1;
        }
    }
    assert_eq!(backend.opens(), 0, "no session for the refused");
    gateway.wait_closes("forbidden_origin", refused);
}

/// The pages that may connect to `/cookie` below.
const LISTED: &str = "[\"https://app.example\", \"http://app.example:8080\", \
    \"https://*.wild.example\", \"https://*.ported.example:8443\", \"http://[::1]:3000\", \
    \"https://xn--bcher-kva.example\", \"https://192.0.2.7\"]";

/// Header lines about Origin (without the last CRLF), and the status that they get although the
/// cookie beside them is good.
const TRICKS: &[(&str, u16)] = &[
    // As browsers write the listed ones. Space around a value is not part of it (RFC 9110 §5.5).
    ("Origin: https://app.example", 101),
    ("origin:https://app.example", 101),
    ("ORIGIN: \t https://app.example \t", 101),
    ("Origin: http://app.example:8080", 101),
    ("Origin: https://a.wild.example", 101),
    ("Origin: https://a.b.wild.example", 101),
    ("Origin: https://xn--bcher-kva.wild.example", 101),
    ("Origin: https://a.ported.example:8443", 101),
    ("Origin: http://[::1]:3000", 101),
    ("Origin: https://xn--bcher-kva.example", 101),
    ("Origin: https://192.0.2.7", 101),
    // None, or one that says nothing: sandboxed frames, files, redirects.
    ("X-Nothing: x", 403),
    ("Origin:", 403),
    ("Origin: null", 403),
    ("Origin: NULL", 403),
    ("Origin: undefined", 403),
    ("Origin: file://", 403),
    ("Origin: about:blank", 403),
    ("Origin: data:text/html,x", 403),
    ("Origin: blob:https://app.example/1", 403),
    ("Origin: *", 403),
    ("Origin: any", 403),
    // More than one.
    ("Origin: https://app.example\r\nOrigin: https://app.example", 400),
    ("Origin: https://app.example\r\nOrigin: https://evil.example", 400),
    ("Origin: https://evil.example\r\noRIGIN: https://app.example", 400),
    ("Origin: https://app.example\r\nOrigin:", 400),
    ("Origin: https://app.example https://evil.example", 403),
    ("Origin: https://evil.example https://app.example", 403),
    ("Origin: https://app.example, https://app.example", 403),
    ("Origin: https://app.example,https://evil.example", 403),
    ("Origin: https://app.example;https://evil.example", 403),
    // Other fields are not Origin.
    ("Sec-WebSocket-Origin: https://app.example", 403),
    ("Referer: https://app.example/", 403),
    ("X-Origin: https://app.example", 403),
    // Scheme.
    ("Origin: http://app.example", 403),
    ("Origin: wss://app.example", 403),
    ("Origin: ws://app.example", 403),
    ("Origin: HTTPS://app.example", 403),
    ("Origin: httpsx://app.example", 403),
    ("Origin: xhttps://app.example", 403),
    ("Origin: https:app.example", 403),
    ("Origin: https:/app.example", 403),
    ("Origin: https:///app.example", 403),
    ("Origin: https:\\\\app.example", 403),
    ("Origin: //app.example", 403),
    ("Origin: app.example", 403),
    ("Origin: javascript://app.example", 403),
    ("Origin: chrome-extension://app.example", 403),
    // Port.
    ("Origin: https://app.example:443", 403),
    ("Origin: https://app.example:", 403),
    ("Origin: https://app.example:8443", 403),
    ("Origin: http://app.example:80", 403),
    ("Origin: http://app.example:08080", 403),
    ("Origin: http://app.example:80808", 403),
    ("Origin: http://app.example:8080:8080", 403),
    ("Origin: https://app.example:8080", 403),
    ("Origin: https://a.ported.example", 403),
    ("Origin: https://a.ported.example:18443", 403),
    // Case, dots, and what comes behind an origin.
    ("Origin: https://APP.example", 403),
    ("Origin: https://app.Example", 403),
    ("Origin: https://app.example.", 403),
    ("Origin: https://.app.example", 403),
    ("Origin: https://app..example", 403),
    ("Origin: https://app.example/", 403),
    ("Origin: https://app.example/ws", 403),
    ("Origin: https://app.example?", 403),
    ("Origin: https://app.example#", 403),
    ("Origin: https://app.example\\", 403),
    // User names.
    ("Origin: https://user@app.example", 403),
    ("Origin: https://user:pw@app.example", 403),
    ("Origin: https://app.example@evil.example", 403),
    ("Origin: https://app.example%40evil.example", 403),
    // Longer, shorter and similar names.
    ("Origin: https://app.example.evil.com", 403),
    ("Origin: https://evil-app.example", 403),
    ("Origin: https://evilapp.example", 403),
    ("Origin: https://evil.app.example", 403),
    ("Origin: https://app.exampleevil", 403),
    ("Origin: https://pp.example", 403),
    ("Origin: https://app.exampl", 403),
    ("Origin: https://app_example", 403),
    ("Origin: https://example", 403),
    ("Origin: https://app-example", 403),
    // Encodings, and letters that look alike.
    ("Origin: https://app%2eexample", 403),
    ("Origin: https://%61pp.example", 403),
    ("Origin: https%3a%2f%2fapp.example", 403),
    ("Origin: \"https://app.example\"", 403),
    ("Origin: <https://app.example>", 403),
    ("Origin: https://\u{430}pp.example", 403),
    ("Origin: https://xn--pp-7kc.example", 403),
    ("Origin: https://app\u{3002}example", 403),
    ("Origin: https://app.ex\u{ad}ample", 403),
    ("Origin: https://app.example\u{200b}", 403),
    ("Origin: https://b\u{fc}cher.example", 403),
    ("Origin: https://XN--BCHER-KVA.example", 403),
    // Bytes that no field may hold, or that would hide another.
    ("Origin: https://app.example\0", 400),
    ("Origin: https://evil.example\0https://app.example", 400),
    ("Origin: https://app.example\u{7f}", 400),
    ("Origin: https://evil.example\n https://app.example", 400),
    ("Origin: https://evil.example\r\n https://app.example", 400),
    ("Origin: https://evil.example\rOrigin: https://app.example", 400),
    ("Origin : https://app.example", 400),
    (" Origin: https://app.example", 400),
    // Wildcards stand for whole labels, at least one, and for nothing else.
    ("Origin: https://wild.example", 403),
    ("Origin: https://.wild.example", 403),
    ("Origin: https://a..wild.example", 403),
    ("Origin: https://evilwild.example", 403),
    ("Origin: https://a.evilwild.example", 403),
    ("Origin: https://*.wild.example", 403),
    ("Origin: https://A.wild.example", 403),
    ("Origin: https://a.wild.example.", 403),
    ("Origin: https://a.wild.example:443", 403),
    ("Origin: https://a.wild.example.evil.com", 403),
    ("Origin: http://a.wild.example", 403),
    ("Origin: https://evil.com/.wild.example", 403),
    ("Origin: https://evil.com?.wild.example", 403),
    ("Origin: https://evil.com#.wild.example", 403),
    ("Origin: https://evil.com\\.wild.example", 403),
    ("Origin: https://evil.com:80.wild.example", 403),
    ("Origin: https://evil.com@a.wild.example", 403),
    ("Origin: https://evil.com .wild.example", 403),
    ("Origin: https://evil.com%00.wild.example", 403),
    ("Origin: https://[::1].wild.example", 403),
    ("Origin: https://b\u{fc}cher.wild.example", 403),
    // Addresses.
    ("Origin: http://[0:0:0:0:0:0:0:1]:3000", 403),
    ("Origin: http://[::0001]:3000", 403),
    ("Origin: http://::1:3000", 403),
    ("Origin: http://[::1]", 403),
    ("Origin: http://[::1%25lo]:3000", 403),
    ("Origin: http://[::ffff:127.0.0.1]:3000", 403),
    ("Origin: http://127.0.0.1:3000", 403),
    ("Origin: https://192.0.2.007", 403),
    ("Origin: https://192.0.519", 403),
    ("Origin: https://3221225991", 403),
    ("Origin: https://0xc0000207", 403),
];

#[test]
fn no_trick_with_the_origin_lets_a_cookie_in() {
    let backend = Backend::start();
    let more = format!("origins = {LISTED}\norigin_absent = \"refuse\"\nrefuse = \"http\"");
    let config = Config::bare(backend.address()).guarded("cookie", "cookie:session", &more);
    let gateway = Gateway::start(&config);
    let cookie = format!("Cookie: session={}\r\n", token("good"));
    let allowed = TRICKS.iter().filter(|(_, status)| *status == 101).count();
    let mut counts = BTreeMap::new();
    for &(lines, status) in TRICKS {
        *counts.entry(status).or_insert(0) += 1;
        // The cookie before and after: the order of fields decides nothing.
        for fields in [format!("{cookie}{lines}\r\n"), format!("{lines}\r\n{cookie}")] {
            let (mut client, answer) = Client::ask(gateway.address(), "/cookie", &fields);
            let line = answer.lines().next().unwrap_or_default();
            assert!(line.starts_with(&format!("HTTP/1.1 {status} ")), "{lines:?}: {line}");
            if status == 101 {
                client.echo("hello");
                assert_eq!(backend.opened().subject.as_deref(), Some("ada"), "{lines:?}");
                continue;
            }
            assert_eq!(head(&answer, "connection"), Some("close"), "{lines:?}");
            let (body, end) = client.drain();
            let forbidden = body.starts_with(b"forbidden_origin: ");
            assert_eq!((forbidden, end), (status == 403, End::Fin), "{lines:?}");
        }
    }
    assert_eq!(backend.opens(), 0, "no session for the refused");
    gateway.wait_closes("forbidden_origin", 2 * counts[&403]);
    gateway.wait_closes("bad_request", 2 * counts[&400]);
    // The origin is judged first: of the refused, no token was looked at.
    let accepted = gateway.metric("portcullis_tokens_accepted_total");
    assert_eq!(accepted, 2 * allowed as u64);
    assert_eq!(gateway.metric("portcullis_tokens_refused_total"), 0);
}
