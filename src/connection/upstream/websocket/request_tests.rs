use proptest::prelude::*;

use super::*;
use crate::protocol::http_upgrade::{self, FIELDS, HeadLimits, Request};
use crate::settings::load::test_settings_of;

/// How a request comes, and to which settings.
#[derive(Clone, Copy)]
struct Setup {
    carriers: &'static str,
    backend: &'static str,
    route: &'static str,
    target: &'static str,
    host: &'static str,
    client: Option<&'static str>,
    proxy: Option<&'static str>,
    is_secure: bool,
    identity: Option<(&'static str, Option<&'static str>, &'static str)>,
}

const PLAIN: Setup = Setup {
    carriers: r#""authorization""#,
    backend: "",
    route: "",
    target: "/ws",
    host: "app.example",
    client: Some("203.0.113.7"),
    proxy: None,
    is_secure: true,
    identity: None,
};

const STRIP: Setup = Setup { backend: "credentials = \"strip\"", ..PLAIN };
const ADA: Setup = Setup { identity: Some(("ada", Some("t1"), CLAIMS)), ..PLAIN };
const CLAIMS: &str = r#"{"sub":"x","email":"a@b.c","name":"Ada L.","groups":["a","b c"],"n":7,
    "ok":true,"nil":null,"map":{"a":1},"deep":[["a"]],"odd":"Adä","cut":"a\r\nX: y","esc":"a\u0062",
    "edge":" a","comma":["a,admin","b"],"empty":"","none":[],"pct":"100%","nul":"a\u0000",
    "preferred_username":"ada"}"#;

const KEY: &str = "AAECAwQFBgcICQoLDA0ODw==";
const ID: &str = "101112131415161718191a1b1c1d1e1f";
/// What every request ends with whose client is `PLAIN`'s.
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\n";
const FORWARDED: &str = "X-Forwarded-For: 203.0.113.7\r\nX-Real-IP: 203.0.113.7\r\n\
                         X-Forwarded-Proto: https\r\nX-Forwarded-Host: app.example\r\n\
                         X-Forwarded-Port: 443\r\n";
const REQUEST_ID: &str = "X-Request-Id: 101112131415161718191a1b1c1d1e1f\r\n";
const TRACE: &str = "traceparent: 00-101112131415161718191a1b1c1d1e1f-2021222324252627-00\r\n";

fn settings(setup: &Setup) -> Settings {
    let Setup { carriers, backend, route, .. } = setup;
    let endpoints = match backend.contains("endpoints") {
        true => "",
        false => "endpoints = [\"ws://10.9.9.9:4000\"]",
    };
    let path = if route.contains("path =") { "" } else { "path = \"/*\"" };
    test_settings_of(&format!(
        "[[listener]]\naddress = \"127.0.0.1:8080\"\nforwarded = {{ trusted = [\"10.0.0.0/8\"] }}\n\
         [[auth]]\nname = \"app\"\nkind = \"jwt\"\ncarriers = [{carriers}]\n\
         keys = [{{ secret = \"0123456789abcdef0123456789abcdef\" }}]\n\
         [[route]]\n{path}\norigins = [\"https://app.example\"]\norigin_absent = \"allow\"\n\
         auth = \"app\"\nbackend = \"main\"\n{route}\n\
         [[backend]]\nname = \"main\"\nkind = \"websocket\"\n{endpoints}\n{backend}\n"
    ))
}

fn nonce() -> ServerNonce {
    ServerNonce(std::array::from_fn(|index| index as u8))
}

/// The head for the server; `None` when the client's is no upgrade.
fn sent_by(setup: &Setup, settings: &Settings, head: &[u8]) -> Option<Vec<u8>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let limits = HeadLimits { head_max: 65_536, header_fields_max: 128, request_line_max: 8_000 };
    let mut scanner = http_upgrade::HeadScanner::default();
    if scanner.push(head, &limits) != Ok(Some(head.len())) {
        return None;
    }
    let Ok(Request::Upgrade(request)) = http_upgrade::parse(head, &mut fields, &limits) else {
        return None;
    };
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let claims = setup.identity.map(|(_, _, claims)| claims.as_bytes());
    let identity = setup.identity.map(|(subject, token_id, _)| SessionIdentity {
        subject,
        token_id,
        expires: None,
        claims: claims.unwrap_or_default(),
    });
    let route = &settings.routes[0];
    let proxy = setup.proxy.map(ip);
    let forwarded = request.parts().forwarded_host().filter(|_| proxy.is_some());
    let port = request.parts().forwarded_port().filter(|_| proxy.is_some());
    let mut out = Vec::new();
    ServerRequest {
        request: &request,
        settings,
        route,
        server: settings.server_of(route).expect("a WebSocket server"),
        site: Site { is_secure: setup.is_secure, host: forwarded.unwrap_or(request.host()), port },
        client: setup.client.map(ip),
        proxies: settings.listeners[0].forwarded.as_ref().filter(|_| proxy.is_some()),
        proxy,
        identity: identity.as_ref(),
        nonce: &nonce(),
    }
    .write(&mut out);
    Some(out)
}

fn head(setup: &Setup, lines: &str) -> String {
    let Setup { target, host, .. } = setup;
    format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n"
    )
}

fn sent(setup: &Setup, lines: &str) -> String {
    let head = head(setup, lines);
    let out = sent_by(setup, &settings(setup), head.as_bytes()).expect("an upgrade");
    String::from_utf8(out).expect("text")
}

/// The whole head, where only the client's own fields differ.
fn passing(lines: &str) -> String {
    format!(
        "GET /ws HTTP/1.1\r\nHost: app.example\r\n{lines}{UPGRADE}{FORWARDED}{REQUEST_ID}{TRACE}\r\n"
    )
}

#[test]
fn what_passes_and_what_does_not() {
    assert_eq!(String::from_utf8_lossy(&key(&nonce())), KEY);
    // What the client's fields are, and what of them the server gets.
    let table: &[(&Setup, &str, &str)] = &[
        (&PLAIN, "", ""),
        (&PLAIN, "Origin: https://app.example\r\n", "Origin: https://app.example\r\n"),
        (&PLAIN, "User-Agent:  a b \r\nACCEPT: x\r\n", "User-Agent: a b\r\nACCEPT: x\r\n"),
        (&PLAIN, "X-Own: 1\r\nx-own: 2\r\n", "X-Own: 1\r\nx-own: 2\r\n"),
        (&PLAIN, "X-Empty:\r\n", "X-Empty: \r\n"),
        (&PLAIN, "X_Own: 1\r\n", "X_Own: 1\r\n"),
        (&PLAIN, "Cookie: a=1; b=2\r\n", "Cookie: a=1; b=2\r\n"),
        (&PLAIN, "Authorization: Bearer t\r\n", "Authorization: Bearer t\r\n"),
        (&PLAIN, "Accept-Encoding: gzip\r\n", "Accept-Encoding: gzip\r\n"),
        (&PLAIN, "tracestate: a=b\r\n", ""),
        (&PLAIN, "baggage: a=b\r\n", "baggage: a=b\r\n"),
        // Between two neighbours only.
        (&PLAIN, "Keep-Alive: 5\r\nTE: trailers\r\nTrailer: x\r\nTrailers: x\r\n", ""),
        (&PLAIN, "Proxy: http://evil\r\nProxy-Connection: keep-alive\r\n", ""),
        (&PLAIN, "Proxy-Authorization: Basic x\r\nProxy-Authenticate: x\r\n", ""),
        (&PLAIN, "HTTP2-Settings: AAMAAABk\r\nHttp2_Settings: x\r\n", ""),
        (&PLAIN, "Content-Length: 0\r\nContent_Length: 5\r\n", ""),
        (&PLAIN, "Transfer_Encoding: chunked\r\n", ""),
        (&PLAIN, "Connection: x-own, close\r\nX-Own: 1\r\nX-Other: 2\r\n", "X-Other: 2\r\n"),
        (&PLAIN, "Connection: cookie, origin\r\nCookie: a=1\r\n", "Cookie: a=1\r\n"),
        (
            &PLAIN,
            "Connection: Origin, Authorization\r\nOrigin: https://app.example\r\n\
             Authorization: Basic x\r\n",
            "Origin: https://app.example\r\nAuthorization: Basic x\r\n",
        ),
        (&PLAIN, "Connection: host, sec-websocket-key, x-forwarded-for\r\n", ""),
        // What only the gateway may say.
        (&PLAIN, "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: http\r\n", ""),
        (&PLAIN, "x_forwarded_for: 1.2.3.4\r\nX_FORWARDED-Host: evil\r\n", ""),
        (&PLAIN, "X-Forwarded-User: root\r\nX-Forwarded-Anything: x\r\n", ""),
        (&PLAIN, "X-Real-IP: 1.2.3.4\r\nX_Real_IP: 1.2.3.4\r\n", ""),
        (&PLAIN, "X-Request-Id: mine\r\nx_request_id: mine\r\n", ""),
        (&PLAIN, "X-Original-URL: /admin\r\nX-Rewrite-URL: /admin\r\n", ""),
        (&PLAIN, "X-Auth-Request-User: root\r\nX-Auth-Subject: root\r\n", ""),
        (&PLAIN, "X-authentik-username: root\r\nX_Authentik_Uid: 0\r\n", ""),
        (&PLAIN, "Remote-User: root\r\nREMOTE_USER: root\r\nRemote_Groups: x\r\n", ""),
        (&PLAIN, "X-Portcullis-Jwt-Assertion: x\r\n", ""),
        (&PLAIN, "Forwarded: for=1.2.3.4\r\nX-Client-IP: 1.2.3.4\r\n", ""),
        (&PLAIN, "CF-Connecting-IP: 1.2.3.4\r\nTrue-Client-IP: 1.2.3.4\r\n", ""),
        (&PLAIN, "Sec-WebSocket-Extensions: permessage-deflate\r\n", ""),
        (&PLAIN, "Sec_WebSocket_Key: x\r\nSec-WebSocket-Accept: x\r\n", ""),
        (&PLAIN, "Sec_WebSocket_Protocol: x\r\nUser_Agent: x\r\n", "User_Agent: x\r\n"),
        (
            &PLAIN,
            "Ho_st: x\r\nCook_ie: x\r\nOrig_in: y\r\n",
            "Ho_st: x\r\nCook_ie: x\r\nOrig_in: y\r\n",
        ),
        (&PLAIN, "X-Remote-User: root\r\n", "X-Remote-User: root\r\n"),
        // Subprotocols, whole and in their order.
        (&PLAIN, "Sec-WebSocket-Protocol: a, b\r\n", "Sec-WebSocket-Protocol: a, b\r\n"),
        (
            &PLAIN,
            "Sec-WebSocket-Protocol: phoenix, base64url.bearer.phx.dG9r\r\n",
            "Sec-WebSocket-Protocol: phoenix, base64url.bearer.phx.dG9r\r\n",
        ),
        (
            &PLAIN,
            "sec-websocket-protocol: a\r\nsec-websocket-protocol: b\r\n",
            "sec-websocket-protocol: a\r\nsec-websocket-protocol: b\r\n",
        ),
        // Credentials that the gateway keeps.
        (&STRIP, "Authorization: Bearer t\r\nX-Own: 1\r\n", "X-Own: 1\r\n"),
        (&STRIP, "Cookie: a=1;b=2\r\n", "Cookie: a=1; b=2\r\n"),
        (
            &STRIP,
            "Sec-WebSocket-Protocol: a, base64url.bearer.phx.dG9r\r\n",
            "Sec-WebSocket-Protocol: a, base64url.bearer.phx.dG9r\r\n",
        ),
        (
            &Setup { carriers: r#""subprotocol""#, ..STRIP },
            "Sec-WebSocket-Protocol: a,base64url.bearer.phx.dG9r ,b\r\nAuthorization: x\r\n",
            "Sec-WebSocket-Protocol: a, b\r\nAuthorization: x\r\n",
        ),
        (
            &Setup { carriers: r#""subprotocol""#, ..STRIP },
            "Sec-WebSocket-Protocol: Base64URL.Bearer.phx.dG9r\r\n",
            "",
        ),
        (
            &Setup { carriers: r#""cookie:sid""#, ..STRIP },
            "Cookie: a=1; sid=secret; b=2; sid=again\r\nCookie: sid=x\r\nCookie: c\r\n",
            "Cookie: a=1; b=2\r\nCookie: c\r\n",
        ),
        (
            &Setup { carriers: r#""header:X-Token""#, ..STRIP },
            "x-token: t\r\nX_Token: t\r\nX-Tokens: t\r\n",
            "X-Tokens: t\r\n",
        ),
        (
            &Setup { carriers: r#""header:x-auth-token""#, ..PLAIN },
            "X-Auth-Token: t\r\n",
            "X-Auth-Token: t\r\n",
        ),
        (&Setup { carriers: r#""header:x-auth-token""#, ..PLAIN }, "X_Auth_Token: t\r\n", ""),
        (&Setup { carriers: r#""header:x-auth-token""#, ..STRIP }, "X-Auth-Token: t\r\n", ""),
        (&Setup { route: "cookies = \"strip\"", ..PLAIN }, "Cookie: a=1\r\nX: y\r\n", "X: y\r\n"),
    ];
    for (setup, lines, expected) in table {
        assert_eq!(sent(setup, lines), passing(expected), "{lines}");
    }
}

#[test]
fn targets_and_hosts() {
    let base = "endpoints = [\"ws://10.9.9.9:4000/base\"]";
    let below = "path = \"/app/*\"\nstrip_prefix = \"/app\"";
    let exact = "path = \"/app\"\nstrip_prefix = \"/app\"";
    let at = |target, route, backend| Setup { target, route, backend, ..PLAIN };
    let strip_query = |target| Setup { target, carriers: r#""query:token""#, ..STRIP };
    let table: &[(Setup, &str)] = &[
        (at("/", "", ""), "/"),
        (at("/a/b%2Fc;x=1?", "", ""), "/a/b%2Fc;x=1?"),
        (at("/a?b=c&&d=%20?e", "", ""), "/a?b=c&&d=%20?e"),
        (at("/a?token=t&vsn=2.0.0", "", ""), "/a?token=t&vsn=2.0.0"),
        (at("http://app.example/a?b", "", ""), "/a?b"),
        (at("https://app.example?b", "", ""), "/?b"),
        (at("/a", "", base), "/base/a"),
        (at("/", "", base), "/base/"),
        (at("/app/ws?x", below, ""), "/ws?x"),
        (at("/app/ws", below, base), "/base/ws"),
        (at("/app/", below, ""), "/"),
        (at("/app?x", exact, ""), "/?x"),
        (at("/app", exact, base), "/base"),
        (strip_query("/a?x=1&token=t&y=2"), "/a?x=1&y=2"),
        (strip_query("/a?token=t"), "/a"),
        (strip_query("/a?tok%65n=t&tokens=1"), "/a?tokens=1"),
        (strip_query("/a"), "/a"),
    ];
    for (setup, expected) in table {
        let sent = sent(setup, "");
        let line = sent.lines().next().unwrap();
        assert_eq!(line, format!("GET {expected} HTTP/1.1"), "{}", setup.target);
    }
    let host = |host, backend| sent(&Setup { host, backend, ..PLAIN }, "");
    assert!(host("App.Example:8443", "").contains("\r\nHost: App.Example:8443\r\n"));
    let own = host("app.example", "preserve_host = false");
    assert!(own.contains("\r\nHost: 10.9.9.9:4000\r\n") && !own.contains("Host: app.example\r\nC"));
    assert!(own.contains("\r\nX-Forwarded-Host: app.example\r\n"));
    let named = host("app.example", "preserve_host = false\nserver_name = \"app.internal\"");
    assert!(named.contains("\r\nHost: app.internal\r\n"), "{named}");
    let unix = host("app.example", "preserve_host = false\nendpoints = [\"unix:/run/x\"]");
    assert!(unix.contains("\r\nHost: localhost\r\n"), "{unix}");
}

#[test]
fn where_a_client_comes_from() {
    let proxied = Setup { proxy: Some("10.0.0.1"), ..PLAIN };
    // For, Proto, Host and Port.
    let table: &[(Setup, &str, &str)] = &[
        (PLAIN, "", "203.0.113.7|https|app.example|443"),
        (Setup { is_secure: false, ..PLAIN }, "", "203.0.113.7|http|app.example|80"),
        (
            Setup { host: "app.example:8443", ..PLAIN },
            "",
            "203.0.113.7|https|app.example:8443|8443",
        ),
        (Setup { host: "[::1]:81", ..PLAIN }, "", "203.0.113.7|https|[::1]:81|81"),
        (Setup { host: "[::1]", ..PLAIN }, "", "203.0.113.7|https|[::1]|443"),
        (Setup { client: Some("2001:db8::1"), ..PLAIN }, "", "2001:db8::1|https|app.example|443"),
        (
            Setup { client: Some("::ffff:192.0.2.1"), ..PLAIN },
            "",
            "192.0.2.1|https|app.example|443",
        ),
        (Setup { client: None, ..PLAIN }, "", "|https|app.example|443"),
        (
            PLAIN,
            "X-Forwarded-Port: 99\r\nX-Forwarded-Host: evil\r\n",
            "203.0.113.7|https|app.example|443",
        ),
        (
            proxied,
            "X-Forwarded-For: 203.0.113.7\r\n",
            "203.0.113.7, 10.0.0.1|https|app.example|443",
        ),
        (
            proxied,
            "X-Forwarded-For: 6.6.6.6, 203.0.113.7:99\r\nX-Forwarded-For: 10.0.0.3, 10.0.0.2\r\n\
             X-Forwarded-Host: www.example\r\nX-Forwarded-Port: 8443\r\n",
            "203.0.113.7, 10.0.0.3, 10.0.0.2, 10.0.0.1|https|www.example|8443",
        ),
        (
            proxied,
            "X-Forwarded-For: 203.0.113.7, [fd00::1]\r\nX-Forwarded-Host: a.example:1\r\n\
             X-Forwarded-Port: 2\r\n",
            "203.0.113.7, 10.0.0.1|https|a.example:1|1",
        ),
        (
            proxied,
            "X-Forwarded-For: 203.0.113.7, x\r\n",
            "203.0.113.7, 10.0.0.1|https|app.example|443",
        ),
    ];
    for (setup, lines, expected) in table {
        let sent = sent(setup, lines);
        let value = |name: &str| {
            let mut found = sent.lines().filter_map(|line| line.strip_prefix(name));
            let value = found.next().unwrap_or_default();
            assert_eq!(found.next(), None, "{name} comes once in {sent}");
            value.to_owned()
        };
        let names = [
            "X-Forwarded-For: ",
            "X-Forwarded-Proto: ",
            "X-Forwarded-Host: ",
            "X-Forwarded-Port: ",
        ];
        assert_eq!(names.map(value).join("|"), *expected, "{lines}");
        let ip = expected.split([',', '|']).next().unwrap_or_default();
        assert_eq!(value("X-Real-IP: "), ip);
    }
    let many = "10.0.0.9, ".repeat(60);
    let sent = sent(&proxied, &format!("X-Forwarded-For: 203.0.113.7, {many}10.0.0.8\r\n"));
    let kept = "203.0.113.7, 10.0.0.9, 10.0.0.9, 10.0.0.9, 10.0.0.9, 10.0.0.9, 10.0.0.9, 10.0.0.9, \
                10.0.0.8, 10.0.0.1\r\n";
    assert!(sent.contains(&format!("X-Forwarded-For: {kept}")), "{sent}");
}

#[test]
fn traces_go_on_where_they_are_proper() {
    let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let made = format!("00-{ID}-2021222324252627-00");
    let table: &[(String, &str)] = &[
        (format!("traceparent: {good}\r\n"), good),
        (format!("TraceParent: {good}\r\ntracestate: a=b\r\n"), good),
        (
            format!("traceparent: 01{}-more\r\n", &good[2..]),
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        ),
        (format!("traceparent: {good}-more\r\n"), &made),
        (format!("traceparent: {good}\r\ntraceparent: {good}\r\n"), &made),
        (format!("traceparent: ff{}\r\n", &good[2..]), &made),
        (format!("traceparent: {}\r\n", good.to_uppercase()), &made),
        ("traceparent: 00-00000000000000000000000000000000-b7ad6b7169203331-01\r\n".into(), &made),
        ("traceparent: 00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01\r\n".into(), &made),
        ("traceparent: \r\n".into(), &made),
        (format!("trace_parent: {good}\r\ntracestate: a=b\r\n"), &made),
    ];
    for (lines, expected) in table {
        let sent = sent(&PLAIN, lines);
        assert_eq!(sent.matches("traceparent: ").count(), 1, "{sent}");
        assert!(sent.contains(&format!("traceparent: {expected}\r\n")), "{sent}");
        assert_eq!(sent.contains("tracestate"), lines.contains("tracestate") && *expected == good);
    }
}

#[test]
fn who_a_client_is() {
    let with = |backend| Setup { backend, ..ADA };
    let one = |text: &'static str| -> Setup { with(text) };
    let table: &[(Setup, &str)] = &[
        (ADA, ""),
        (
            with("identity_headers = \"forwarded\""),
            "X-Forwarded-User: ada\r\nX-Forwarded-Email: a@b.c\r\nX-Forwarded-Groups: a,b c\r\n\
             X-Forwarded-Preferred-Username: ada\r\n",
        ),
        (
            with("identity_headers = \"remote\""),
            "Remote-User: ada\r\nRemote-Groups: a,b c\r\nRemote-Name: Ada L.\r\nRemote-Email: a@b.c\r\n",
        ),
        (Setup { identity: None, ..with("identity_headers = \"remote\"") }, ""),
        (Setup { identity: Some(("", None, "")), ..with("identity_headers = \"remote\"") }, ""),
        (
            Setup {
                identity: Some(("7", None, "not JSON")),
                ..with("identity_headers = \"remote\"")
            },
            "Remote-User: 7\r\n",
        ),
        (
            Setup {
                identity: Some(("a\r\nX: y", None, "")),
                ..with("identity_headers = \"remote\"")
            },
            "Remote-User-Encoded: a%0D%0AX%3A%20y\r\n",
        ),
        (
            Setup { identity: Some((" admin", None, "")), ..with("identity_headers = \"remote\"") },
            "Remote-User-Encoded: %20admin\r\n",
        ),
        (one("identity_headers = { jti = \"X-Id\" }"), "X-Id: t1\r\n"),
        (one("identity_headers = { n = \"X-N\", ok = \"X-Ok\" }"), "X-N: 7\r\nX-Ok: true\r\n"),
        (
            one(
                "identity_headers = { nil = \"X-A\", map = \"X-B\", deep = \"X-C\", gone = \"X-D\" }",
            ),
            "",
        ),
        (one("identity_headers = { odd = \"X-Odd\" }"), "X-Odd-Encoded: Ad%C3%A4\r\n"),
        (one("identity_headers = { cut = \"X-Cut\" }"), "X-Cut-Encoded: a%0D%0AX%3A%20y\r\n"),
        (one("identity_headers = { esc = \"X-Esc\" }"), "X-Esc: ab\r\n"),
        (one("identity_headers = { edge = \"X-Edge\" }"), "X-Edge-Encoded: %20a\r\n"),
        (one("identity_headers = { comma = \"X-G\" }"), "X-G-Encoded: a%2Cadmin,b\r\n"),
        (one("identity_headers = { empty = \"X-E\", none = \"X-N\" }"), ""),
        (one("identity_headers = { pct = \"X-P\" }"), "X-P: 100%\r\n"),
        (one("identity_headers = { nul = \"X-P\" }"), "X-P-Encoded: a%00\r\n"),
        (
            one("request_headers = { X-Gate = \"a b\", Authorization = \"Basic x\" }"),
            "Authorization: Basic x\r\nX-Gate: a b\r\n",
        ),
    ];
    for (setup, expected) in table {
        let forged = "remote-user: root\r\nX_User: root\r\nX-Id: 0\r\nX-N: 0\r\nX-Odd_Encoded: 0\r\n\
                      X-Gate: 0\r\nx_gate: 0\r\nX-Forwarded-User-Encoded: 0\r\n";
        let sent = sent(setup, forged);
        let (_, identity) = sent.split_once(TRACE).expect("before the identity");
        assert_eq!(identity, format!("{expected}\r\n"), "{}", setup.backend);
        for name in ["X-Id", "X-N", "X-Gate", "X-Odd-Encoded", "Remote-User"] {
            if expected.contains(&format!("{name}: ")) {
                let lower = sent.to_ascii_lowercase().replace('_', "-");
                let name = format!("\n{}: ", name.to_ascii_lowercase());
                assert_eq!(lower.matches(&name).count(), 1, "{name} in {sent}");
            }
        }
    }
}

/// What other backends trust is no client's to say, even where this one does not set it.
#[test]
fn identities_of_all_backends_are_withheld_everywhere() {
    let text = "endpoints = [\"ws://10.9.9.9:1\"]\n[[backend]]\nname = \"other\"\nkind = \"websocket\"\n\
                endpoints = [\"ws://10.9.9.8:1\"]\nidentity_headers = { sub = \"X-Who\" }\n\
                request_headers = { X-Fixed = \"1\" }";
    let setup = Setup { backend: text, ..PLAIN };
    let sent = sent(&setup, "X-Who: root\r\nx_who_encoded: root\r\nX-Fixed: 2\r\n");
    assert_eq!(sent, passing("X-Fixed: 2\r\n"));
}

const FIELD_NAMES: &[&str] = &[
    "Cookie",
    "Origin",
    "X-Forwarded-For",
    "X_Forwarded_For",
    "x-real-ip",
    "Remote-User",
    "REMOTE_USER",
    "X-User",
    "x_user",
    "X-User-Encoded",
    "Connection",
    "TE",
    "X-Request-Id",
    "traceparent",
    "Sec-WebSocket-Extensions",
    "Sec-WebSocket-Protocol",
    "sec_websocket_key",
    "Forwarded",
    "X-Auth-Subject",
    "X-Original-URL",
    "X-Any",
    "Authorization",
    "Proxy",
    "X-Gate",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever the client's head holds, the server reads one request, with one of each field that
    /// the gateway sets, and none of those that no client may set.
    #[test]
    fn the_server_reads_one_request(
        fields in proptest::collection::vec(
            (0..FIELD_NAMES.len(), "[ -~\\t\u{e9}]{0,24}"), 0..12
        ),
        subject in "\\PC{0,12}|[\r\n\0-\u{ff}]{0,12}",
        strip in any::<bool>(),
    ) {
        let lines: String =
            fields.iter().map(|(name, value)| format!("{}: {value}\r\n", FIELD_NAMES[*name])).collect();
        let identity = format!("identity_headers = {{ sub = \"X-User\" }}\n\
                                request_headers = {{ X-Gate = \"1\" }}\ncredentials = \"{}\"",
                               if strip { "strip" } else { "pass" });
        let setup = Setup {
            backend: Box::leak(identity.into_boxed_str()),
            identity: Some((Box::leak(subject.clone().into_boxed_str()), None, "{}")),
            ..PLAIN
        };
        let head = head(&setup, &lines);
        let Some(out) = sent_by(&setup, &settings(&setup), head.as_bytes()) else { return Ok(()) };
        let mut parsed = [httparse::EMPTY_HEADER; 128];
        let mut request = httparse::Request::new(&mut parsed);
        let status = request.parse(&out).expect("a proper head");
        prop_assert_eq!(status, httparse::Status::Complete(out.len()));
        prop_assert_eq!(request.method, Some("GET"));
        prop_assert_eq!(request.path, Some("/ws"));
        let folded: Vec<String> =
            request.headers.iter().map(|f| f.name.to_ascii_lowercase().replace('_', "-")).collect();
        let count = |name: &str| folded.iter().filter(|own| *own == name).count();
        for name in ["host", "connection", "upgrade", "sec-websocket-key", "sec-websocket-version",
                     "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host",
                     "x-forwarded-port", "x-real-ip", "x-request-id", "traceparent", "x-gate"] {
            prop_assert_eq!(count(name), 1, "{}", name);
        }
        prop_assert_eq!(count("x-user") + count("x-user-encoded"), usize::from(!subject.is_empty()));
        for name in ["te", "expect", "transfer-encoding", "content-length", "forwarded", "proxy",
                     "x-auth-subject", "x-original-url", "remote-user", "sec-websocket-extensions"] {
            prop_assert_eq!(count(name), 0, "{}", name);
        }
        let written = request.headers.iter().find(|f| f.name.starts_with("X-User"));
        if let Some(user) = written {
            prop_assert!(user.value.iter().all(|b| (b' '..=b'~').contains(b)));
        }
    }
}
