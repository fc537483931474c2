use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::base::random::Random;
use crate::protocol::cause::Cause;

use self::vectors::Expected;

/// Requests and answers, shared with the end-to-end tests.
#[path = "../../../tests/vectors/heads.rs"]
mod vectors;

const LIMITS: HeadLimits =
    HeadLimits { head_max: 600, header_fields_max: 12, request_line_max: 300 };

/// Scans `bytes` in pieces that end where `cuts` says, then parses: what a connection does. `Ok`
/// is a summary.
fn answer(
    bytes: &[u8],
    cuts: impl IntoIterator<Item = usize>,
    limits: &HeadLimits,
) -> Result<String, HttpRefusal> {
    let mut scanner = HeadScanner::default();
    let mut seen = 0;
    for cut in cuts.into_iter().chain([bytes.len()]) {
        let end = cut.clamp(seen, bytes.len());
        if let Some(used) = scanner.push(&bytes[seen..end], limits)? {
            return summary(&bytes[..seen + used], limits);
        }
        seen = end;
    }
    assert_eq!(scanner.position() as usize, bytes.len());
    Ok("incomplete".into())
}

fn summary(head: &[u8], limits: &HeadLimits) -> Result<String, HttpRefusal> {
    let mut fields = NO_FIELDS;
    match parse(head, &mut fields, limits)? {
        Request::Plain(PlainRequest { parts, is_head, refusal }) => {
            let path = parts.path();
            let method = if is_head { "head" } else { "get" };
            Ok(format!("{method} {path} {}", refusal.label()))
        }
        Request::Upgrade(request) => {
            let query = request.query().map(|query| format!("?{query}")).unwrap_or_default();
            Ok(format!("{} {}{query}", request.host(), request.path()))
        }
    }
}

/// Where pieces of `size` end.
fn every(size: usize) -> impl Iterator<Item = usize> {
    (1..20_000 / size).map(move |count| count * size)
}

fn check(bytes: &[u8], limits: &HeadLimits, expected: &Result<&str, (u16, &str)>) {
    let judge = |got: Result<String, HttpRefusal>, how: &str| {
        let got = match &got {
            Ok(summary) => Ok(summary.as_str()),
            Err(refusal) => Err((refusal.status(), refusal.label())),
        };
        assert_eq!(&got, expected, "{how}: {}", bytes.escape_ascii());
    };
    judge(answer(bytes, [], limits), "whole");
    judge(answer(bytes, every(1), limits), "byte by byte");
    for seed in 0..8 {
        let mut random = Random::from_number(seed);
        let mut at = 0;
        let cuts = std::iter::from_fn(|| {
            at += 1 + random.below(40) as usize;
            (at < bytes.len()).then_some(at)
        });
        judge(answer(bytes, cuts, limits), &format!("seed {seed}"));
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

#[test]
fn heads_get_their_exact_answer_in_any_pieces() {
    let limits = HeadLimits::default();
    let mut refused = 0;
    let mut labels = BTreeSet::new();
    for case in vectors::cases() {
        let target;
        let expected = match case.expected {
            // What follows a good head and what is routed are not for the parser to judge.
            Expected::Refused(400, "early_bytes") => Ok("a.example /ws"),
            Expected::Refused(404, _) => continue,
            Expected::Refused(status, label) => Err((status, label)),
            Expected::Upgrade { host, target: path } => {
                target = format!("{host} {path}");
                Ok(target.as_str())
            }
            Expected::Plain { method, path, label } => {
                target = format!("{method} {path} {label}");
                labels.insert(label);
                Ok(target.as_str())
            }
            Expected::Incomplete => Ok("incomplete"),
        };
        if let Expected::Refused(_, label) = case.expected {
            refused += 1;
            labels.insert(label);
        }
        println!("tests/vectors/heads.txt:{}", case.line);
        check(&case.bytes, &limits, &expected);
    }
    assert!(refused >= 215, "{refused}");
    for refusal in HttpRefusal::PLAIN {
        // What the routes and listeners decide.
        let elsewhere = [
            HttpRefusal::Redirected,
            HttpRefusal::NotFound,
            HttpRefusal::NotFoundSlash,
            HttpRefusal::NotFoundHost,
            HttpRefusal::HeadTimedOut,
        ];
        let elsewhere = elsewhere.contains(refusal);
        assert!(elsewhere || labels.contains(refusal.label()), "no case: {refusal:?}");
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
    write_switching_protocols(&mut out, b"dGhlIHNhbXBsZSBub25jZQ==", Some("chat"), &[]);
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
    let table = vectors::answers();
    assert_eq!(table.len(), HttpRefusal::PLAIN.len());
    for (refusal, expected) in HttpRefusal::PLAIN.iter().zip(table) {
        let mut out = Vec::new();
        refusal.write(&mut out);
        assert_eq!(String::from_utf8(out), Ok(expected.bytes));
        assert_eq!(refusal.label(), expected.label);
    }
    let status_and_extra = |refusal: HttpRefusal, status: &str, extra: &str| {
        let mut out = Vec::new();
        refusal.write(&mut out);
        let got = String::from_utf8(out).unwrap();
        assert!(got.starts_with(&format!("HTTP/1.1 {status}\r\nConnection: close")), "{got}");
        assert!(got.contains(extra), "{got}");
    };
    let token = |cause| HttpRefusal::for_cause(cause);
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
    for (cause, wait_ms, status, seconds) in [
        (Cause::OverCapacity, 5000, "503 Service Unavailable", 5),
        (Cause::TokenNotYetValid, 2001, "401 Unauthorized", 3),
        (Cause::TokenNotYetValid, 0, "401 Unauthorized", 0),
    ] {
        let (mut out, wait) = (Vec::new(), Duration::from_millis(wait_ms));
        token(cause).write_with(&[], Some(wait), &mut out);
        let got = String::from_utf8(out).unwrap();
        assert!(got.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{got}");
        assert!(got.contains(&format!("\r\nRetry-After: {seconds}\r\n")), "{got}");
    }
    status_and_extra(token(Cause::OverCapacity), "503 Service Unavailable", "over_capacity: ");
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
    write_ok_health(&mut out, false);
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
            let expected = answer(input, [], &LIMITS);
            proptest::prop_assert_eq!(&answer(input, every(size), &LIMITS), &expected);
        }
    }
}
