use super::*;
use crate::protocol::cause::Cause;

const LIMITS: HeadLimits =
    HeadLimits { head_max: 600, header_fields_max: 12, request_line_max: 300 };

/// Scans `bytes` in pieces of `size`, then parses: what a connection does. `Ok` is a summary.
fn answer(bytes: &[u8], size: usize, limits: &HeadLimits) -> Result<String, HttpRefusal> {
    let mut scanner = HeadScanner::default();
    let mut seen = 0;
    for piece in bytes.chunks(size) {
        match scanner.push(piece, limits)? {
            None => seen += piece.len(),
            Some(end) => {
                seen += end;
                return summary(&bytes[..seen], bytes.len() > seen, limits);
            }
        }
    }
    assert_eq!(scanner.position() as usize, bytes.len());
    Ok("incomplete".into())
}

fn summary(head: &[u8], more: bool, limits: &HeadLimits) -> Result<String, HttpRefusal> {
    let mut fields = NO_FIELDS;
    match parse(head, &mut fields, limits)? {
        Request::PlainGet { path } => Ok(format!("get {path}")),
        Request::Upgrade(_) if more => Err(HttpRefusal::EarlyBytes),
        Request::Upgrade(request) => {
            let query = request.query().map(|query| format!("?{query}")).unwrap_or_default();
            Ok(format!("{} {}{query}", request.host(), request.path()))
        }
    }
}

fn check(bytes: &[u8], limits: &HeadLimits, expected: &Result<&str, (u16, &str)>) {
    for size in [bytes.len().max(1), 1, 7] {
        let got = answer(bytes, size, limits);
        let got = match &got {
            Ok(summary) => Ok(summary.as_str()),
            Err(refusal) => Err((refusal.status(), refusal.label())),
        };
        assert_eq!(&got, expected, "{size} by {size}: {}", bytes.escape_ascii());
    }
}

/// `{K}` and `{U}` stand for what a good request has, so that each row shows what is odd in it.
fn expand(row: &str) -> String {
    row.replace("{U}", "Upgrade: websocket\r\nConnection: Upgrade\r\n")
        .replace("{V}", "Sec-WebSocket-Version: 13\r\n")
        .replace("{K}", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")
        .replace("{G}", "GET /ws HTTP/1.1\r\n")
        .replace("{H}", "Host: a.example\r\n")
}

type Row = (&'static str, Result<&'static str, (u16, &'static str)>);

const LINES: &[Row] = &[
    ("{G}{H}{U}{V}{K}\r\n", Ok("a.example /ws")),
    ("GET / HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Ok("a.example /")),
    ("GET /a/b?x=1&y=%2F HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Ok("a.example /a/b?x=1&y=%2F")),
    ("GET /a? HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Ok("a.example /a?")),
    ("GET /a?b?c|{}[]^` HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Ok("a.example /a?b?c|{}[]^`")),
    ("GET //x/y HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Ok("a.example //x/y")),
    ("GET /.well-known/... HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Ok("a.example /.well-known/...")),
    ("GET /%C3%A9 HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Ok("a.example /%C3%A9")),
    ("GET http://A.example/ws?q HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Ok("a.example /ws?q")),
    ("GET HTTPS://a.example HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Ok("a.example /")),
    ("GET http://a.example?q HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Ok("a.example /?q")),
    ("GET http://b.example/ws HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "host_invalid"))),
    ("GET http://a.example:80/ws HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "host_invalid"))),
    ("GET http://u@a.example/ws HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET ws://a.example/ws HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET http:///ws HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET * HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET ws HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET a.example:80 HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET ?x HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET /ws#top HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET /ws?a#top HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET /ws?a=%zz HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET /ws?a=%2 HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET /ws?a=\"x\" HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET /ws% HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET /ws%0 HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET /ws%g0 HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET /ws%+1 HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET /ws%00 HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET /ws%0d%0a HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET /ws%7f HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET /a\\b HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET /<a> HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET /a/../ws HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET /a/.. HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET /./ws HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET /a/%2e%2E/ws HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET /a/.%2e HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_target"))),
    ("GET  /ws HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_request_line"))),
    ("GET /ws  HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_request_line"))),
    ("GET /ws HTTP/1.1 \r\n{H}{U}{V}{K}\r\n", Err((400, "bad_request_line"))),
    ("GET /w s HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_request_line"))),
    ("GET /ws\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_request_line"))),
    ("GET\r\n\r\n", Err((400, "bad_request_line"))),
    ("GET HTTP/1.1\r\n{H}\r\n", Err((400, "bad_request_line"))),
    (" GET /ws HTTP/1.1\r\n", Err((400, "bad_request_line"))),
    ("\r\n{G}{H}{U}{V}{K}\r\n", Err((400, "bad_request_line"))),
    ("G(T /ws HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_request_line"))),
    ("GET /w\u{e9} HTTP/1.1\r\n", Err((400, "bad_request_line"))),
    ("\u{feff}GET /ws HTTP/1.1\r\n", Err((400, "bad_request_line"))),
    ("GET\t/ws\tHTTP/1.1\r\n", Err((400, "control_byte"))),
    ("GET /w\0s HTTP/1.1\r\n", Err((400, "control_byte"))),
    ("GET /w\x7fs HTTP/1.1\r\n", Err((400, "control_byte"))),
    ("GET /ws\x0b HTTP/1.1\r\n", Err((400, "control_byte"))),
    ("GET /ws HTTP/1.1\n", Err((400, "bare_lf"))),
    ("\n{G}", Err((400, "bare_lf"))),
    ("GET /ws\rHTTP/1.1\r\n", Err((400, "bare_cr"))),
    ("GET /ws HTTP/1.1\r\r\n", Err((400, "bare_cr"))),
    ("POST /ws HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((405, "method_not_allowed"))),
    ("HEAD /ws HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((405, "method_not_allowed"))),
    ("OPTIONS * HTTP/1.1\r\n{H}\r\n", Err((405, "method_not_allowed"))),
    ("get /ws HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((405, "method_not_allowed"))),
    ("GETS /ws HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((405, "method_not_allowed"))),
    ("POST /ws HTTP/1.0\r\n{H}\r\n", Err((405, "method_not_allowed"))),
    ("PRI /ws HTTP/1.1\r\n{H}\r\n", Err((405, "method_not_allowed"))),
    ("PRI * HTTP/1.1\r\n{H}\r\n", Err((405, "method_not_allowed"))),
    ("CONNECT a.example:443 HTTP/1.1\r\n{H}\r\n", Err((400, "connect"))),
    ("CONNECT /ws HTTP/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "connect"))),
    ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Err((400, "http2_preface"))),
    ("PRI * HTTP/2.0", Err((400, "http2_preface"))),
    ("PRI * HTTP/2", Ok("incomplete")),
    ("\x16\x03\x01\x02", Err((400, "tls_on_plain_port"))),
    ("GET /ws HTTP/1.0\r\n{H}{U}{V}{K}\r\n", Err((426, "http_1_0"))),
    ("GET /ws HTTP/0.9\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_version"))),
    ("GET /ws HTTP/1.2\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_version"))),
    ("GET /ws HTTP/2.0\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_version"))),
    ("GET /ws http/1.1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_version"))),
    ("GET /ws HTTP/1.10\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_version"))),
    ("GET /ws HTTP/1,1\r\n{H}{U}{V}{K}\r\n", Err((400, "bad_version"))),
];

const FIELD_ROWS: &[Row] = &[
    ("{G}{H}{U}{V}{K}X: a\n\r\n", Err((400, "bare_lf"))),
    ("{G}{H}{U}{V}{K}\n", Err((400, "bare_lf"))),
    ("{G}{H}X\n: a\r\n", Err((400, "bare_lf"))),
    ("{G}{H}{U}{V}{K}X: a\rb\r\n", Err((400, "bare_cr"))),
    ("{G}{H}{U}{V}{K}\rX", Err((400, "bare_cr"))),
    ("{G}{H}{U}{V}{K}X: a\r\r\n", Err((400, "bare_cr"))),
    ("{G}{H}X: a\r\n b\r\n", Err((400, "obsolete_fold"))),
    ("{G}{H}X: a\r\n\tb\r\n", Err((400, "obsolete_fold"))),
    ("{G}{H}{U}{V}{K} \r\n", Err((400, "obsolete_fold"))),
    ("{G} {H}", Err((400, "leading_whitespace"))),
    ("{G}\t\r\n", Err((400, "leading_whitespace"))),
    ("{G}Host : a.example\r\n", Err((400, "space_before_colon"))),
    ("{G}Host\t: a.example\r\n", Err((400, "space_before_colon"))),
    ("{G}{H}Transfer-Encoding : chunked\r\n", Err((400, "space_before_colon"))),
    ("{G}{H}X: a\0b\r\n", Err((400, "control_byte"))),
    ("{G}{H}X: a\x01b\r\n", Err((400, "control_byte"))),
    ("{G}{H}X: a\x7fb\r\n", Err((400, "control_byte"))),
    ("{G}{H}X\0: a\r\n", Err((400, "control_byte"))),
    ("{G}{H}\x1b[2J: a\r\n", Err((400, "control_byte"))),
    ("{G}{H}: a\r\n", Err((400, "bad_field"))),
    ("{G}{H}X\r\n", Err((400, "bad_field"))),
    ("{G}{H}X(y): a\r\n", Err((400, "bad_field"))),
    ("{G}{H}X\u{e9}: a\r\n", Err((400, "bad_field"))),
    ("{G}{H}X\"y\": a\r\n", Err((400, "bad_field"))),
    ("{G}{H}{U}{V}{K}X: \u{e9} caf\t\u{e9}\r\n\r\n", Ok("a.example /ws")),
    ("{G}{H}{U}{V}{K}X:\r\nY: \t \r\n\r\n", Ok("a.example /ws")),
    ("{G}{U}{V}{K}\r\n", Err((400, "host_missing"))),
    ("{G}{H}{H}{U}{V}{K}\r\n", Err((400, "host_repeated"))),
    ("{G}{H}hOST: b.example\r\n{U}{V}{K}\r\n", Err((400, "host_repeated"))),
    ("{G}Host:\r\n{U}{V}{K}\r\n", Err((400, "host_invalid"))),
    ("{G}Host: a b\r\n{U}{V}{K}\r\n", Err((400, "host_invalid"))),
    ("{G}Host: a.example, b.example\r\n{U}{V}{K}\r\n", Err((400, "host_invalid"))),
    ("{G}Host: u@a.example\r\n{U}{V}{K}\r\n", Err((400, "host_invalid"))),
    ("{G}Host: a.example/ws\r\n{U}{V}{K}\r\n", Err((400, "host_invalid"))),
    ("{G}Host: http://a.example\r\n{U}{V}{K}\r\n", Err((400, "host_invalid"))),
    ("{G}Host: a.example:\r\n{U}{V}{K}\r\n", Err((400, "host_invalid"))),
    ("{G}Host: a.example:0\r\n{U}{V}{K}\r\n", Err((400, "host_invalid"))),
    ("{G}Host: a.example:65536\r\n{U}{V}{K}\r\n", Err((400, "host_invalid"))),
    ("{G}Host: a.example:+80\r\n{U}{V}{K}\r\n", Err((400, "host_invalid"))),
    ("{G}Host: a..example\r\n{U}{V}{K}\r\n", Err((400, "host_invalid"))),
    ("{G}Host: .example\r\n{U}{V}{K}\r\n", Err((400, "host_invalid"))),
    ("{G}Host: [::1\r\n{U}{V}{K}\r\n", Err((400, "host_invalid"))),
    ("{G}Host: ::1\r\n{U}{V}{K}\r\n", Err((400, "host_invalid"))),
    ("{G}Host: [::g]\r\n{U}{V}{K}\r\n", Err((400, "host_invalid"))),
    ("{G}Host: [fe80::1%eth0]\r\n{U}{V}{K}\r\n", Err((400, "host_invalid"))),
    ("{G}Host: \u{e9}.example\r\n{U}{V}{K}\r\n", Err((400, "host_invalid"))),
    ("{G}Host: [::1]:8080\r\n{U}{V}{K}\r\n", Ok("[::1]:8080 /ws")),
    ("{G}Host: [::1]\r\n{U}{V}{K}\r\n", Ok("[::1] /ws")),
    ("{G}Host:127.0.0.1:8080 \r\n{U}{V}{K}\r\n", Ok("127.0.0.1:8080 /ws")),
    ("{G}Host: a_b.example.\r\n{U}{V}{K}\r\n", Ok("a_b.example. /ws")),
    ("{G}{H}{U}{V}{K}Content-Length: 0\r\n\r\n", Err((400, "body_not_allowed"))),
    ("{G}{H}{U}{V}{K}content-length: 5\r\n\r\nhello", Err((400, "body_not_allowed"))),
    ("{G}{H}{U}{V}{K}Transfer-Encoding: chunked\r\n\r\n", Err((400, "body_not_allowed"))),
    ("{G}{H}Content-Length: 3\r\n\r\n", Err((400, "body_not_allowed"))),
    ("{G}{H}{U}{V}{K}Expect: 100-continue\r\n\r\n", Err((417, "expectation_failed"))),
    ("{G}{H}Expect:\r\n\r\n", Err((417, "expectation_failed"))),
    ("{G}{H}{U}{V}{K}Origin: a\r\nOrigin: a\r\n\r\n", Err((400, "origin_repeated"))),
    (
        "{G}{H}{U}{V}{K}Authorization: Bearer a\r\nauthorization: Bearer a\r\n\r\n",
        Err((400, "authorization_repeated")),
    ),
];

const UPGRADE_ROWS: &[Row] = &[
    ("{G}{H}\r\n", Ok("get /ws")),
    ("GET /healthz?x HTTP/1.1\r\n{H}Connection: keep-alive\r\n\r\n", Ok("get /healthz")),
    ("{G}{H}Connection: Upgrade\r\n{V}{K}\r\n", Ok("get /ws")),
    ("{G}{H}Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n", Err((426, "upgrade_required"))),
    ("{G}{H}Upgrade:\r\nConnection: Upgrade\r\n{V}{K}\r\n", Err((426, "upgrade_required"))),
    ("{G}{H}Upgrade: websockets\r\nConnection: Upgrade\r\n\r\n", Err((426, "upgrade_required"))),
    ("{G}{H}Upgrade: websocket/13\r\nConnection: Upgrade\r\n\r\n", Err((426, "upgrade_required"))),
    ("{G}{H}Upgrade: web socket\r\nConnection: Upgrade\r\n\r\n", Err((426, "upgrade_required"))),
    ("{G}{H}Upgrade: h2c, WebSocket\r\nConnection: upgrade\r\n{V}{K}\r\n", Ok("a.example /ws")),
    (
        "{G}{H}Upgrade: h2c\r\nUpgrade: websocket\r\nConnection: upgrade\r\n{V}{K}\r\n",
        Ok("a.example /ws"),
    ),
    (
        "{G}{H}Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n{V}{K}\r\n",
        Ok("a.example /ws"),
    ),
    (
        "{G}{H}Upgrade: websocket\r\nConnection: a\r\nConnection: ,UPGRADE,\r\n{V}{K}\r\n",
        Ok("a.example /ws"),
    ),
    ("{G}{H}Upgrade: websocket\r\n{V}{K}\r\n", Err((400, "connection_not_upgrade"))),
    (
        "{G}{H}Upgrade: websocket\r\nConnection: close\r\n{V}{K}\r\n",
        Err((400, "connection_not_upgrade")),
    ),
    (
        "{G}{H}Upgrade: websocket\r\nConnection: no-upgrade\r\n{V}{K}\r\n",
        Err((400, "connection_not_upgrade")),
    ),
    (
        "{G}{H}Upgrade: websocket\r\nConnection: \"upgrade\"\r\n{V}{K}\r\n",
        Err((400, "connection_not_upgrade")),
    ),
    ("{G}{H}{U}{K}\r\n", Err((426, "version_unsupported"))),
    ("{G}{H}{U}Sec-WebSocket-Version: 8\r\n{K}\r\n", Err((426, "version_unsupported"))),
    ("{G}{H}{U}Sec-WebSocket-Version: 013\r\n{K}\r\n", Err((426, "version_unsupported"))),
    ("{G}{H}{U}Sec-WebSocket-Version: +13\r\n{K}\r\n", Err((426, "version_unsupported"))),
    ("{G}{H}{U}Sec-WebSocket-Version: 13, 8\r\n{K}\r\n", Err((426, "version_unsupported"))),
    ("{G}{H}{U}Sec-WebSocket-Version:\r\n{K}\r\n", Err((426, "version_unsupported"))),
    ("{G}{H}{U}{V}{V}{K}\r\n", Err((400, "version_repeated"))),
    ("{G}{H}{U}{V}Sec-WebSocket-Version: 8\r\n{K}\r\n", Err((400, "version_repeated"))),
    ("{G}{H}{U}{V}\r\n", Err((400, "key_missing"))),
    ("{G}{H}{U}{V}{K}{K}\r\n", Err((400, "key_repeated"))),
    ("{G}{H}{U}{V}Sec-WebSocket-Key:\r\n\r\n", Err((400, "key_invalid"))),
    ("{G}{H}{U}{V}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=\r\n\r\n", Err((400, "key_invalid"))),
    ("{G}{H}{U}{V}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ\r\n\r\n", Err((400, "key_invalid"))),
    ("{G}{H}{U}{V}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZWE=\r\n\r\n", Err((400, "key_invalid"))),
    ("{G}{H}{U}{V}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZWVl\r\n\r\n", Err((400, "key_invalid"))),
    ("{G}{H}{U}{V}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ===\r\n\r\n", Err((400, "key_invalid"))),
    ("{G}{H}{U}{V}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25_ZQ==\r\n\r\n", Err((400, "key_invalid"))),
    ("{G}{H}{U}{V}Sec-WebSocket-Key: dGhlIHNhbXBs SBub25jZQ==\r\n\r\n", Err((400, "key_invalid"))),
    ("{G}{H}{U}{V}Sec-WebSocket-Key: \t+/+/IHNhbXBsZSBub25jZR== \r\n\r\n", Ok("a.example /ws")),
    (
        "{G}{H}{U}{V}{K}Sec-WebSocket-Protocol: a, b\r\nSec-WebSocket-Protocol: c\r\n\r\n",
        Ok("a.example /ws"),
    ),
    ("{G}{H}{U}{V}{K}Sec-WebSocket-Protocol:\r\n\r\n", Ok("a.example /ws")),
    ("{G}{H}{U}{V}{K}Sec-WebSocket-Protocol: a b\r\n\r\n", Err((400, "subprotocol_invalid"))),
    ("{G}{H}{U}{V}{K}Sec-WebSocket-Protocol: a/b\r\n\r\n", Err((400, "subprotocol_invalid"))),
    ("{G}{H}{U}{V}{K}Sec-WebSocket-Protocol: a, a\r\n\r\n", Err((400, "subprotocol_invalid"))),
    ("{G}{H}{U}{V}{K}Sec-WebSocket-Protocol: \u{e9}\r\n\r\n", Err((400, "subprotocol_invalid"))),
    (
        "{G}{H}{U}{V}{K}Sec-WebSocket-Protocol: base64url.bearer.phx.a/b=\r\n\r\n",
        Ok("a.example /ws"),
    ),
    ("{G}{H}{U}{V}{K}Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n", Ok("a.example /ws")),
    ("{G}{H}{U}{V}{K}\r\n\u{81}", Err((400, "early_bytes"))),
    ("{G}{H}{U}{V}{K}\r\nGET /admin HTTP/1.1\r\n{H}\r\n", Err((400, "early_bytes"))),
    ("{G}{H}{U}{V}{K}", Ok("incomplete")),
    ("{G}{H}{U}{V}{K}\r", Ok("incomplete")),
    ("", Ok("incomplete")),
    // The first broken rule counts.
    ("POST /../x HTTP/1.0\r\nContent-Length: 1\r\n\r\n", Err((405, "method_not_allowed"))),
    ("{G}Content-Length: 1\r\nExpect: x\r\n\r\n", Err((400, "host_missing"))),
    ("{G}{H}Content-Length: 1\r\nExpect: x\r\n\r\n", Err((400, "body_not_allowed"))),
    ("{G}{H}Upgrade: h2c\r\nOrigin: a\r\nOrigin: b\r\n\r\n", Err((400, "origin_repeated"))),
    ("{G}{H}Upgrade: websocket\r\n\r\n", Err((400, "connection_not_upgrade"))),
    ("{G}{H}{U}\r\n", Err((426, "version_unsupported"))),
];

#[test]
fn heads_get_their_exact_answer_in_any_pieces() {
    let rows = [LINES, FIELD_ROWS, UPGRADE_ROWS].concat();
    assert!(rows.len() >= 180, "{}", rows.len());
    for (row, expected) in rows {
        check(expand(row).as_bytes(), &LIMITS, &expected);
    }
}

#[test]
fn limits_hold_to_the_byte() {
    let good = expand("{G}{H}{U}{V}{K}");
    let line = |length: usize| format!("GET /{} HTTP/1.1", "a".repeat(length - 14));
    let head = |length: usize| {
        let padding = length - good.len() - "X: \r\n\r\n".len();
        format!("{good}X: {}\r\n\r\n", "a".repeat(padding))
    };
    let fields = |count: usize| format!("{good}{}\r\n", "X: 1\r\n".repeat(count - 5));
    let rest = &good["GET /ws HTTP/1.1".len()..];
    let path = format!("a.example /{}", "a".repeat(286));
    let rows = [
        (format!("{}{rest}\r\n", line(300)), Ok(path.as_str())),
        (format!("{}{rest}\r\n", line(301)), Err((414, "line_too_long"))),
        (line(301), Err((414, "line_too_long"))),
        ("a".repeat(300), Ok("incomplete")),
        ("a".repeat(301), Err((414, "line_too_long"))),
        (head(600), Ok("a.example /ws")),
        (head(601), Err((431, "head_too_large"))),
        (head(700)[..600].into(), Ok("incomplete")),
        (head(700)[..601].into(), Err((431, "head_too_large"))),
        (fields(12), Ok("a.example /ws")),
        (fields(13), Err((431, "too_many_fields"))),
    ];
    for (bytes, expected) in rows {
        check(bytes.as_bytes(), &LIMITS, &expected);
    }
    // The field that is one too many is refused at its first byte.
    let thirteen = fields(13);
    let twelve = good.len() + 7 * "X: 1\r\n".len();
    check(&thirteen.as_bytes()[..twelve], &LIMITS, &Ok("incomplete"));
    check(&thirteen.as_bytes()[..=twelve], &LIMITS, &Err((431, "too_many_fields")));
    // A line limit above the head's: the long line is still the reason.
    let tight = HeadLimits { head_max: 100, ..LIMITS };
    check(line(200).as_bytes(), &tight, &Err((414, "line_too_long")));
    let defaults = HeadLimits::default();
    check("a".repeat(8_001).as_bytes(), &defaults, &Err((414, "line_too_long")));
    check("a".repeat(8_000).as_bytes(), &defaults, &Ok("incomplete"));
}

#[test]
fn too_many_subprotocols_are_refused() {
    let offer = |count: usize| {
        let list: Vec<_> = (0..count).map(|n| n.to_string()).collect();
        expand(&format!(
            "{{G}}{{H}}{{U}}{{V}}{{K}}Sec-WebSocket-Protocol: {}\r\n\r\n",
            list.join(",")
        ))
    };
    let limits = HeadLimits::default();
    check(offer(SUBPROTOCOLS_MAX).as_bytes(), &limits, &Ok("a.example /ws"));
    let refused = Err((400, "subprotocol_invalid"));
    check(offer(SUBPROTOCOLS_MAX + 1).as_bytes(), &limits, &refused);
}

#[test]
fn the_request_tells_what_was_sent() {
    let head = expand(
        "{G}{H}{U}{V}{K}Origin:  https://a.example \r\nX-A: 1\r\nx-a: 2\r\n\
         Sec-WebSocket-Protocol: chat , Base64URL.bearer.phx.YQ,,phoenix\r\n\
         sec-websocket-protocol: last\r\n\r\n",
    );
    let mut fields = NO_FIELDS;
    let parsed = parse(head.as_bytes(), &mut fields, &HeadLimits::default());
    let Ok(Request::Upgrade(request)) = parsed else { panic!("a good request") };
    assert_eq!(request.origin(), Some(b"https://a.example".as_slice()));
    assert_eq!(request.key(), b"dGhlIHNhbXBsZSBub25jZQ==");
    assert_eq!(request.header("X-a"), Some(b"1".as_slice()));
    assert_eq!(request.values("X-A").collect::<Vec<_>>(), [b"1", b"2"]);
    assert_eq!(request.header("absent"), None);
    assert_eq!(request.fields().count(), 10);
    let offered: Vec<_> = request.subprotocols().collect();
    assert_eq!(offered, ["chat", "Base64URL.bearer.phx.YQ", "phoenix", "last"]);
    let answerable: Vec<_> = request.subprotocols_without_bearer().collect();
    assert_eq!(answerable, ["chat", "phoenix", "last"]);
}

#[test]
fn switching_protocols_is_exact() {
    // RFC 6455 §1.3
    let mut out = Vec::new();
    write_switching_protocols(&mut out, b"dGhlIHNhbXBsZSBub25jZQ==", Some("chat"));
    let expected = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
        Sec-WebSocket-Protocol: chat\r\n\r\n";
    assert_eq!(str::from_utf8(&out), Ok(expected));
    for key in
        [b"dGhlIHNhbXBsZSBub25jZQ==", b"AAAAAAAAAAAAAAAAAAAAAA==", b"+/+/IHNhbXBsZSBub25jZR=="]
    {
        let theirs = tungstenite::handshake::derive_accept_key(key);
        assert_eq!(theirs.as_bytes(), accept_key(key));
    }
}

#[test]
fn answers_are_exact() {
    let table: &[(HttpRefusal, &str)] = &[
        (
            HttpRefusal::BareLf,
            "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\
             Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n\
             Content-Length: 66\r\n\r\n\
             bare_lf: A line of the request head ends with LF instead of CRLF.\n",
        ),
        (
            HttpRefusal::VersionUnsupported,
            "HTTP/1.1 426 Upgrade Required\r\nConnection: close, Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n\
             Content-Length: 63\r\n\r\n\
             version_unsupported: Only WebSocket version 13 is supported.\n",
        ),
    ];
    for (refusal, expected) in table {
        let mut out = Vec::new();
        refusal.write(&mut out);
        let (head, body) = expected.split_once("\r\n\r\n").unwrap();
        let got = String::from_utf8(out).unwrap();
        let head = head.rsplit_once(": ").unwrap().0;
        assert_eq!(got, format!("{head}: {}\r\n\r\n{body}", body.len()));
    }
    let status_and_extra = |refusal: HttpRefusal, status: &str, extra: &str| {
        let mut out = Vec::new();
        refusal.write(&mut out);
        let got = String::from_utf8(out).unwrap();
        assert!(got.starts_with(&format!("HTTP/1.1 {status}\r\nConnection: close")), "{got}");
        assert!(got.contains(extra), "{got}");
    };
    let token = |cause| HttpRefusal::for_cause(cause);
    status_and_extra(HttpRefusal::MethodNotAllowed, "405 Method Not Allowed", "\r\nAllow: GET\r\n");
    status_and_extra(HttpRefusal::Http10, "426 Upgrade Required", "\r\nUpgrade: websocket\r\n");
    status_and_extra(
        token(Cause::TokenMissing),
        "401 Unauthorized",
        "\r\nWWW-Authenticate: Bearer\r\n",
    );
    status_and_extra(
        token(Cause::TokenExpired),
        "401 Unauthorized",
        "\r\nWWW-Authenticate: Bearer error=\"invalid_token\", \
         error_description=\"token_expired\"\r\n",
    );
    status_and_extra(token(Cause::ForbiddenOrigin), "403 Forbidden", "\r\n\r\nforbidden_origin: ");
    status_and_extra(
        token(Cause::OverCapacity),
        "503 Service Unavailable",
        "\r\nRetry-After: 5\r\n",
    );
}

#[test]
fn every_answer_is_a_well_formed_response_that_closes() {
    let with_cause = Cause::ALL.iter().map(|&cause| HttpRefusal::for_cause(cause));
    for refusal in HttpRefusal::PLAIN.iter().copied().chain(with_cause) {
        let mut out = Vec::new();
        refusal.write(&mut out);
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut fields);
        let httparse::Status::Complete(end) = response.parse(&out).unwrap() else {
            panic!("incomplete")
        };
        assert_eq!(response.code, Some(refusal.status()));
        let value = |name: &str| {
            let found = response.headers.iter().find(|field| field.name == name);
            found.map(|field| str::from_utf8(field.value).unwrap().to_owned())
        };
        assert_eq!(value("Content-Length"), Some((out.len() - end).to_string()));
        assert!(value("Connection").unwrap().starts_with("close"));
        assert_eq!(value("Upgrade").is_some(), refusal.status() == 426);
        assert!(out[end..].starts_with(refusal.label().as_bytes()));
    }
    let mut out = Vec::new();
    write_ok_health(&mut out);
    assert!(out.starts_with(b"HTTP/1.1 200 OK\r\nConnection: close\r\n"));
    assert!(out.ends_with(b"Content-Length: 3\r\n\r\nok\n"));
}

#[test]
fn labels_are_distinct() {
    let mut labels: Vec<_> = HttpRefusal::PLAIN.iter().map(|refusal| refusal.label()).collect();
    labels.extend(Cause::ALL.iter().map(|cause| cause.label()));
    let count = labels.len();
    labels.sort_unstable();
    labels.dedup();
    assert_eq!(labels.len(), count);
}

proptest::proptest! {
    #[test]
    fn any_bytes_in_any_pieces_get_one_answer(
        bytes in proptest::collection::vec(proptest::sample::select(b"GET /w?:%\r\n\t \0aHost\xe9\x16".to_vec()), 0..80),
        size in 1usize..9,
    ) {
        let mut whole = b"GET /ws HTTP/1.1\r\nHost: a\r\n".to_vec();
        whole.extend_from_slice(&bytes);
        for input in [&bytes, &whole] {
            let expected = answer(input, input.len().max(1), &LIMITS);
            proptest::prop_assert_eq!(&answer(input, size, &LIMITS), &expected);
        }
    }
}
