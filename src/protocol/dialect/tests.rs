//! The table against what the clients do, and the exact bytes of every message.

use super::*;
use crate::protocol::websocket::is_sendable_close_code;

#[test]
fn plain_codes_are_exact() {
    let table = [
        (Cause::TokenMissing, 4401),
        (Cause::BadSignature, 4401),
        (Cause::TokenExpired, 4401),
        (Cause::TokenForbidden, 4403),
        (Cause::ForbiddenOrigin, 4403),
        (Cause::AuthenticationTimedOut, 4408),
        (Cause::RateLimited, 4429),
        (Cause::OverCapacity, 1013),
        (Cause::BackendUnavailable, 1012),
        (Cause::GoingAway, 1001),
        (Cause::ProtocolError, 1002),
        (Cause::UnsupportedType, 1003),
        (Cause::InvalidUtf8, 1007),
        (Cause::TooLarge, 1009),
        (Cause::Internal, 1011),
    ];
    for (cause, code) in table {
        assert_eq!(Dialect::Plain.answer(cause).code, code, "{cause:?}");
    }
}

#[test]
fn every_answer_may_be_sent() {
    for dialect in Dialect::ALL {
        assert_eq!(Dialect::from_name(dialect.name()), Some(*dialect));
        for cause in Cause::ALL {
            let answer = dialect.answer(*cause);
            assert!(is_sendable_close_code(answer.code), "{cause:?}");
            assert!(answer.reason.len() <= REASON_MAX);
            assert_eq!(answer.reconnect, answer.retry_after.is_some(), "{cause:?}");
        }
    }
}

/// What the client's library does with a close code; from its source.
#[derive(Debug, PartialEq)]
enum Does {
    Stops,
    ComesBack,
}

fn library_does(dialect: Dialect, code: u16) -> Option<Does> {
    let stops = match dialect {
        // The application decides.
        Dialect::Plain => return None,
        // Until 1.8.15; later ones come back whatever the code, unless the application stops.
        Dialect::Phoenix => code == 1000,
        Dialect::Graphql => match code {
            4004 | 4005 | 4400 | 4401 | 4406 | 4409 | 4429 | 4500 => true,
            1000 | 1001 | 1005 | 1006 | 1012 | 1013 | 1014 => false,
            1002..2000 => true,
            _ => false,
        },
        Dialect::Pusher => matches!(code, 4001..=4099 | 4300..),
        Dialect::Centrifuge => code == 1009 || matches!(code, 3500..=3999 | 4500..=4999),
    };
    Some(if stops { Does::Stops } else { Does::ComesBack })
}

#[test]
fn libraries_do_what_the_table_promises() {
    for &dialect in Dialect::ALL {
        for &cause in Cause::ALL {
            let answer = dialect.answer(cause);
            let Some(does) = library_does(dialect, answer.code) else { continue };
            let expected = if answer.reconnect { Does::ComesBack } else { Does::Stops };
            // A broken frame is answered with the protocol's own code, whatever the library
            // makes of it; where the other side closes, it has its own reasons.
            let own = matches!(answer.code, 1000 | 1002 | 1003 | 1007 | 1009);
            let broken = !answer.explain && !answer.reconnect && own;
            if !broken && !is_silent(cause) {
                assert_eq!(does, expected, "{cause:?} in {dialect:?}");
            }
        }
    }
}

#[test]
fn a_dead_token_is_retried_only_by_who_gets_another() {
    use Cause::*;
    let refreshes = [Dialect::Graphql, Dialect::Centrifuge];
    let dead = [TokenMissing, TokenMalformed, BadSignature, TokenExpired, TokenRevoked];
    for &dialect in Dialect::ALL {
        for cause in dead {
            let expected = cause == TokenExpired && refreshes.contains(&dialect);
            assert_eq!(dialect.answer(cause).reconnect, expected, "{cause:?} in {dialect:?}");
        }
    }
}

/// phoenix.js starts at 10 ms again after each open, so that whatever would happen again and
/// again must be paced. What happens once need not be.
#[test]
fn phoenix_cannot_be_made_to_spin() {
    use Cause::*;
    let once = [Lifetime, GoingAway, BackendClosed, ClientClosed, Idle, SlowConsumer];
    for &cause in Cause::ALL {
        let answer = Dialect::Phoenix.answer(cause);
        let paced = !answer.pace.is_zero();
        assert_eq!(paced, !is_silent(cause) && !once.contains(&cause), "{cause:?}");
        if paced && answer.reconnect {
            assert_eq!(answer.retry_after, Some(answer.pace), "{cause:?}");
        }
    }
}

fn explained(dialect: Dialect, cause: Cause, command: Option<u32>) -> String {
    let mut out = Vec::new();
    dialect.write_explanation(&dialect.answer(cause), command, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn explanations_are_exact() {
    use Dialect::*;
    let table = [
        (
            Plain,
            Cause::TokenExpired,
            r#"{"type":"close","code":4401,"reason":"token_expired","reconnect":false}"#,
        ),
        (
            Plain,
            Cause::Idle,
            r#"{"type":"close","code":4408,"reason":"idle","reconnect":true,"retry_after_ms":1000}"#,
        ),
        (
            Phoenix,
            Cause::TokenExpired,
            r#"[null,null,"phoenix","phx_error",{"reason":"token_expired","code":1000,"reconnect":false}]"#,
        ),
        (
            Phoenix,
            Cause::OverCapacity,
            r#"[null,null,"phoenix","phx_error",{"reason":"over_capacity","code":1013,"reconnect":true,"retry_after_ms":5000}]"#,
        ),
        (
            Pusher,
            Cause::BadSignature,
            r#"{"event":"pusher:error","data":{"code":4009,"message":"token_bad_signature"}}"#,
        ),
        (
            Pusher,
            Cause::OverCapacity,
            r#"{"event":"pusher:error","data":{"code":4100,"message":"over_capacity"}}"#,
        ),
        (Graphql, Cause::TokenExpired, ""),
        (Centrifuge, Cause::TokenExpired, ""),
    ];
    for (dialect, cause, expected) in table {
        assert_eq!(explained(dialect, cause, None), expected, "{cause:?} in {dialect:?}");
    }
    assert_eq!(
        explained(Centrifuge, Cause::TokenExpired, Some(4)),
        r#"{"id":4,"error":{"code":109,"message":"token_expired"}}"#
    );
}

/// Where each dialect keeps the reason.
fn reason_of(dialect: Dialect, message: &serde_json::Value) -> &serde_json::Value {
    match dialect {
        Dialect::Plain => &message["reason"],
        Dialect::Phoenix => &message[4]["reason"],
        Dialect::Pusher => &message["data"]["message"],
        Dialect::Graphql | Dialect::Centrifuge => &message["error"]["message"],
    }
}

#[test]
fn every_explanation_is_json_whatever_the_reason() {
    let awkward = "\" \\ \n \u{0} \u{1f} é \u{2028} </script>";
    for &dialect in Dialect::ALL {
        for cause in Cause::ALL {
            for reason in [cause.label(), awkward] {
                let answer = Answer { reason, ..dialect.answer(*cause) };
                let mut out = Vec::new();
                dialect.write_explanation(&answer, Some(1), &mut out);
                if out.is_empty() {
                    continue;
                }
                let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
                assert_eq!(reason_of(dialect, &value), reason);
            }
        }
    }
}

#[test]
fn a_route_has_the_last_word() {
    let said = Override {
        code: Some(4999),
        reason: Some("come later".into()),
        retry_after: Some(Duration::from_secs(7)),
        pace: Some(Duration::from_secs(2)),
        ..Override::default()
    };
    let overrides = Overrides(vec![(Cause::TokenExpired, said)]);
    assert_eq!(
        overrides.answer(Dialect::Plain, Cause::TokenExpired),
        Answer {
            cause: Cause::TokenExpired,
            code: 4999,
            reason: "come later",
            reconnect: true,
            retry_after: Some(Duration::from_secs(7)),
            explain: true,
            pace: Duration::from_secs(2),
        }
    );
    let other = overrides.answer(Dialect::Plain, Cause::BadSignature);
    assert_eq!(other, Dialect::Plain.answer(Cause::BadSignature));

    let terminal = Override { reconnect: Some(false), ..Override::default() };
    let overrides = Overrides(vec![(Cause::OverCapacity, terminal)]);
    let answer = overrides.answer(Dialect::Plain, Cause::OverCapacity);
    assert_eq!((answer.reconnect, answer.retry_after), (false, None));

    let connect_ack = Override { reconnect: Some(true), ..Override::default() };
    let overrides = Overrides(vec![(Cause::TokenExpired, connect_ack)]);
    let answer = overrides.answer(Dialect::Plain, Cause::TokenExpired);
    assert_eq!((answer.reconnect, answer.retry_after), (true, Some(Duration::from_secs(1))));
}

#[test]
fn dialects_are_detected() {
    use Dialect::*;
    let table = [
        (None, "/ws", None, Plain),
        (Some("chat"), "/ws", None, Plain),
        (Some("phoenix"), "/ws", None, Phoenix),
        (Some("graphql-transport-ws"), "/ws", None, Graphql),
        // The older protocol of subscriptions-transport-ws.
        (Some("graphql-ws"), "/ws", None, Plain),
        (None, "/socket/websocket", Some("vsn=2.0.0"), Phoenix),
        (None, "/live/websocket", Some("_csrf_token=x&vsn=2.0.0"), Phoenix),
        // The first serializer has another shape of message.
        (None, "/socket/websocket", Some("vsn=1.0.0"), Plain),
        (None, "/socket", Some("vsn=2.0.0"), Plain),
        (None, "/app/KEY", Some("protocol=7&client=js&version=8.6.0&flash=false"), Pusher),
        (None, "/app/KEY", None, Plain),
        (Some("chat"), "/app/KEY", Some("protocol=7&client=js"), Plain),
    ];
    for (subprotocol, path, query, expected) in table {
        assert_eq!(Dialect::detect(subprotocol, path, query), expected, "{path} {query:?}");
    }
}
