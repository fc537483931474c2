use super::*;
use crate::base::random::Random;

const KEY: &[u8; 24] = b"dGhlIHNhbXBsZSBub25jZQ==";
/// What RFC 6455 §1.3 answers to it.
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

fn offered(list: &[&str]) -> Vec<String> {
    list.iter().map(|own| (*own).to_owned()).collect()
}

/// The answer to `bytes`, which come in pieces that end where `cuts` says, and how many of them are
/// its head.
fn receive(
    bytes: &[u8],
    cuts: impl IntoIterator<Item = usize>,
    offers: &[&str],
) -> (usize, Answered) {
    let offered = offered(offers);
    let mut reader = AnswerReader::default();
    let mut seen = 0;
    for cut in cuts.into_iter().chain([bytes.len()]) {
        let end = cut.clamp(seen, bytes.len());
        let expected = Expected { key: KEY, offered: &offered, head_max: 600 };
        let (used, answered) = reader.receive(&bytes[seen..end], expected);
        assert!(used <= end - seen);
        seen += used;
        match answered {
            Answered::NeedMore => assert_eq!(seen, end, "all of it is used"),
            answered => return (seen, answered),
        }
    }
    (seen, Answered::NeedMore)
}

/// As a line: `+subprotocol cookies`, `-cause status wait`, `!fault`, with `*` where the operator
/// is to be told.
fn line(answered: &Answered) -> String {
    match answered {
        Answered::NeedMore => "more".to_owned(),
        Answered::Accepted(accepted) => {
            let cookies: Vec<_> =
                accepted.cookies().iter().map(|own| own.escape_ascii().to_string()).collect();
            let star = if accepted.advice().is_some() { "*" } else { "" };
            format!("+{}{star} {}", accepted.subprotocol().unwrap_or("-"), cookies.join("|"))
        }
        Answered::Refused(refused) => {
            let wait =
                refused.retry_after.map_or(String::new(), |wait| format!(" {}", wait.as_secs()));
            let star = if refused.advice.is_some() { "*" } else { "" };
            let status = refused.status.expect("every answer has one");
            format!("-{} {status}{wait}{star}", refused.cause.label())
        }
        Answered::Broken(fault) => format!("!{fault:?}"),
    }
}

fn switching(more: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n{more}\r\n"
    )
}

fn refusal(status: &str, more: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{more}\r\n")
}

/// Answers, what was offered, and what they come to.
fn table() -> Vec<(String, &'static [&'static str], &'static str)> {
    let upgrade = |upgrade: &str, connection: &str, accept: &str| {
        format!("HTTP/1.1 101 X\r\n{upgrade}{connection}{accept}\r\n")
    };
    let accept = format!("Sec-WebSocket-Accept: {ACCEPT}\r\n");
    let (up, conn) = ("Upgrade: websocket\r\n", "Connection: Upgrade\r\n");
    vec![
        (switching(""), &[], "+- "),
        (switching("Server: Cowboy\r\n"), &["a"], "+- "),
        (
            upgrade("UPGRADE: WebSocket\r\n", "connection: keep-alive, upgrade\r\n", &accept),
            &[],
            "+- ",
        ),
        (upgrade(up, "Connection: keep-alive\r\nConnection: Upgrade\r\n", &accept), &[], "+- "),
        (format!("HTTP/1.1 101 \r\n{up}{conn}{accept}\r\n"), &[], "+- "),
        (format!("HTTP/1.1 101\r\n{up}{conn}{accept}\r\n"), &[], "+- "),
        (
            switching("Set-Cookie: a=1; HttpOnly\r\nset-cookie:  b=2 \r\n"),
            &[],
            "+- a=1; HttpOnly|b=2",
        ),
        (switching("Sec-WebSocket-Protocol: b\r\n"), &["a", "b"], "+b "),
        (switching("Sec-WebSocket-Protocol:\r\n"), &["a"], "+- "),
        (switching("Sec-WebSocket-Extensions:\r\n"), &[], "+- "),
        (
            switching("Sec-WebSocket-Protocol: base64url.bearer.phx.dG9r\r\n"),
            &["base64url.bearer.phx.dG9r", "phoenix", "x"],
            "+phoenix* ",
        ),
        (
            switching("Sec-WebSocket-Protocol: base64url.bearer.phx.dG9r\r\n"),
            &["base64url.bearer.phx.dG9r"],
            "+-* ",
        ),
        // Wrong 101s.
        (switching("Sec-WebSocket-Protocol: c\r\n"), &["a", "b"], "!Subprotocol"),
        (switching("Sec-WebSocket-Protocol: A\r\n"), &["a"], "!Subprotocol"),
        (switching("Sec-WebSocket-Protocol: a\r\n"), &[], "!Subprotocol"),
        (switching("Sec-WebSocket-Protocol: a, b\r\n"), &["a", "b"], "!Subprotocols"),
        (
            switching("Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: b\r\n"),
            &["a", "b"],
            "!Subprotocols",
        ),
        (switching("Sec-WebSocket-Protocol: base64url.bearer.phx.eA\r\n"), &["a"], "!Subprotocol"),
        (switching("Sec-WebSocket-Extensions: permessage-deflate\r\n"), &[], "!Extension"),
        (
            upgrade(up, conn, "Sec-WebSocket-Accept: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
            &[],
            "!WrongAccept",
        ),
        (upgrade(up, conn, &format!("{accept}{accept}")), &[], "!WrongAccept"),
        (upgrade(up, conn, ""), &[], "!WrongAccept"),
        (upgrade(up, conn, &accept.to_lowercase()), &[], "!WrongAccept"),
        (upgrade("", conn, &accept), &[], "!NotUpgraded"),
        (upgrade(up, "", &accept), &[], "!NotUpgraded"),
        (upgrade(up, "Connection: close\r\n", &accept), &[], "!NotUpgraded"),
        (upgrade("Upgrade: h2c\r\n", conn, &accept), &[], "!NotUpgraded"),
        (upgrade("Upgrade: websocket, h2c\r\n", conn, &accept), &[], "!NotUpgraded"),
        (format!("HTTP/1.0 101 X\r\n{up}{conn}{accept}\r\n"), &[], "!NotUpgraded"),
        // Interim answers.
        (format!("HTTP/1.1 100 Continue\r\n\r\n{}", switching("")), &[], "+- "),
        (
            format!(
                "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 102 P\r\n\r\n{}",
                refusal("403 F", "")
            ),
            &[],
            "-token_forbidden 403",
        ),
        ("HTTP/1.1 100 C\r\n\r\n".repeat(4) + &switching(""), &[], "+- "),
        ("HTTP/1.1 100 C\r\n\r\n".repeat(5), &[], "!Interim"),
        (
            format!("HTTP/1.1 103 E\r\nLink: {}\r\n\r\n{}", "x".repeat(500), switching("")),
            &[],
            "!HeadTooLong",
        ),
        // Refusals.
        (
            refusal("401 Unauthorized", "WWW-Authenticate: Bearer\r\n"),
            &[],
            "-token_bad_signature 401",
        ),
        (refusal("401 U", "X-Auth-Reason: token_expired\r\n"), &[], "-token_expired 401"),
        (refusal("401 U", "X-Auth-Reason: token_forbidden\r\n"), &[], "-token_bad_signature 401"),
        (refusal("401 U", "X-Auth-Reason: idle\r\n"), &[], "-token_bad_signature 401"),
        (
            refusal("401 U", "X-Auth-Reason: token_expired\r\nX-Auth-Reason: token_expired\r\n"),
            &[],
            "-token_bad_signature 401",
        ),
        (refusal("403 Forbidden", "Content-Length: 5\r\n"), &[], "-token_forbidden 403"),
        ("HTTP/1.1 403\r\n\r\n".to_owned(), &[], "-token_forbidden 403"),
        ("HTTP/1.0 403 Access denied\r\n\r\n".to_owned(), &[], "-token_forbidden 403"),
        (refusal("403 F", "X-Auth-Reason: forbidden_origin\r\n"), &[], "-forbidden_origin 403"),
        (refusal("302 Found", "Location: /login\r\n"), &[], "-token_missing 302"),
        (refusal("303 See Other", ""), &[], "-token_missing 303"),
        (
            refusal("307 T", "Location: https://login\r\nX-Auth-Reason: token_revoked\r\n"),
            &[],
            "-token_revoked 307",
        ),
        (
            refusal("301 M", "Location: https://app.example/ws\r\n"),
            &[],
            "-backend_unavailable 301 30*",
        ),
        (refusal("308 P", "Location: /ws/\r\n"), &[], "-backend_unavailable 308 30*"),
        (refusal("200 OK", "Content-Type: text/html\r\n"), &[], "-backend_unavailable 200 30*"),
        (refusal("204 No Content", ""), &[], "-backend_unavailable 204 30*"),
        (refusal("400 Bad Request", ""), &[], "-backend_unavailable 400 30*"),
        (refusal("404 Not Found", "Retry-After: 1\r\n"), &[], "-backend_unavailable 404 30*"),
        (refusal("405 M", ""), &[], "-backend_unavailable 405 30*"),
        (refusal("418 T", ""), &[], "-backend_unavailable 418 30*"),
        (refusal("421 M", ""), &[], "-backend_unavailable 421 30*"),
        (
            refusal("426 Upgrade Required", "Sec-WebSocket-Version: 13\r\n"),
            &[],
            "-backend_unavailable 426 30*",
        ),
        (refusal("429 T", ""), &[], "-backend_unavailable 429"),
        (refusal("429 T", "Retry-After: 7\r\n"), &[], "-backend_unavailable 429 7"),
        (refusal("429 T", "Retry-After: 99999999\r\n"), &[], "-backend_unavailable 429 3600"),
        (refusal("429 T", "Retry-After: 7\r\nRetry-After: 8\r\n"), &[], "-backend_unavailable 429"),
        (refusal("503 S", "Retry-After: 2\r\n"), &[], "-backend_unavailable 503 2"),
        (refusal("503 S", "Retry-After: -2\r\n"), &[], "-backend_unavailable 503"),
        (
            refusal("503 S", "Retry-After: Sat, 28 Nov 2026 06:00:00 GMT\r\n"),
            &[],
            "-backend_unavailable 503",
        ),
        (refusal("500 I", "Retry-After: 2\r\n"), &[], "-backend_unavailable 500"),
        (refusal("502 B", ""), &[], "-backend_unavailable 502"),
        // No answers at all.
        (refusal("600 X", ""), &[], "!Malformed"),
        (refusal("099 X", ""), &[], "!Malformed"),
        ("HTTP/1.1 101 X\nUpgrade: websocket\n\n".to_owned(), &[], "!Malformed"),
        ("HTTP/1.1 200 OK\r\nbad field\r\n\r\n".to_owned(), &[], "!Malformed"),
        ("HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n".to_owned(), &[], "!Malformed"),
        ("HTTP/1.1 abc OK\r\n\r\n".to_owned(), &[], "!Malformed"),
        ("HTTP/2 200 OK\r\n\r\n".to_owned(), &[], "!Malformed"),
        ("HTTP/1.2 200 OK\r\n\r\n".to_owned(), &[], "!Malformed"),
        ("SSH-2.0-OpenSSH_9.2\r\n".to_owned(), &[], "!Malformed"),
        ("\r\n\r\n".to_owned(), &[], "!Malformed"),
        ("\u{15}\u{3}\u{3}\0\u{2}\u{2}\u{16}".to_owned(), &[], "!SpeaksTls"),
        ("\0\0\u{12}\u{4}\0\0\0\0\0".to_owned(), &[], "!SpeaksHttp2"),
        ("\0\0\u{12}\u{1}".to_owned(), &[], "!Malformed"),
        (format!("HTTP/1.1 200 OK\r\n{}", "a: b\r\n".repeat(65)) + "\r\n", &[], "!Malformed"),
        (format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(600)), &[], "!HeadTooLong"),
        // Not whole.
        (String::new(), &[], "more"),
        ("HTTP/1.".to_owned(), &[], "more"),
        ("\u{16}".to_owned(), &[], "more"),
        ("HTTP/1.1 101 X\r\nUpgrade: websocket\r\n".to_owned(), &[], "more"),
        ("HTTP/1.1 100 Continue\r\n\r\n".to_owned(), &[], "more"),
    ]
}

#[test]
fn answers_come_to_this() {
    assert!(table().len() >= 60);
    for (bytes, offers, expected) in table() {
        let (used, answered) = receive(bytes.as_bytes(), [], offers);
        assert_eq!(line(&answered), expected, "{bytes:?}");
        if !matches!(answered, Answered::Broken(_)) {
            assert_eq!(used, bytes.len(), "{bytes:?}");
        }
    }
}

#[test]
fn every_split_gives_the_same_answer() {
    for (bytes, offers, expected) in table() {
        let bytes = bytes.as_bytes();
        for cut in 0..=bytes.len() {
            let (_, answered) = receive(bytes, [cut], offers);
            assert_eq!(line(&answered), expected, "cut at {cut}: {}", bytes.escape_ascii());
        }
        let (_, answered) = receive(bytes, 1..bytes.len(), offers);
        assert_eq!(line(&answered), expected, "byte by byte: {}", bytes.escape_ascii());
    }
}

/// What comes behind a 101 in one segment is frames, none of which the head may swallow.
#[test]
fn frames_behind_a_101_are_left() {
    let answer = switching("Sec-WebSocket-Protocol: a\r\n");
    let bytes = [answer.as_bytes(), b"\x81\x02hi\r\n\r\n"].concat();
    for cut in 0..=bytes.len() {
        let (used, answered) = receive(&bytes, [cut], &["a"]);
        assert_eq!((used, line(&answered).as_str()), (answer.len(), "+a "), "{cut}");
    }
}

#[test]
fn no_status_is_a_failure_of_the_server() {
    for status in 200..600 {
        let bytes = refusal(&status.to_string(), "");
        let (_, answered) = receive(bytes.as_bytes(), [], &[]);
        let Answered::Refused(refused) = answered else { panic!("{status} is no fault") };
        assert!(refused.retry_after.is_none() || refused.advice.is_some());
        let of_client = [401, 403].contains(&status) || (300..400).contains(&status);
        assert!(of_client || refused.cause == Cause::BackendUnavailable, "{status}");
    }
    for fault in [Fault::NoRoom, Fault::NoPorts, Fault::NoDescriptors] {
        assert!(!fault.is_servers() && !fault.is_worth_another(), "{fault}");
    }
    for fault in [Fault::Malformed, Fault::WrongAccept, Fault::SpeaksTls, Fault::AnswerTimedOut] {
        assert!(fault.is_servers() && !fault.is_worth_another(), "{fault}");
    }
    assert!(
        Fault::Connect(String::new()).is_worth_another() && Fault::ClosedEarly.is_worth_another()
    );
}

/// Only a whole and proper 101 accepts, whatever its bytes become.
#[test]
fn a_101_with_any_byte_changed_is_no_other_acceptance() {
    let good = switching("Sec-WebSocket-Protocol: a\r\n");
    let mut random = Random::from_number(7);
    for index in 0..good.len() {
        let mut bytes = good.clone().into_bytes();
        bytes[index] ^= 1 << random.below(8);
        if let (_, Answered::Accepted(accepted)) = receive(&bytes, [], &["a", "b"]) {
            // A changed reason phrase or letter case means nothing.
            assert!(
                [Some("a"), None].contains(&accepted.subprotocol()),
                "{}",
                bytes.escape_ascii()
            );
            let name_at = good.find("Accept: ").unwrap() + 8;
            assert!(!(name_at..name_at + ACCEPT.len()).contains(&index));
        }
    }
}
