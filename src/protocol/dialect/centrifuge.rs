//! What centrifuge-js says and wants to hear around its token, in JSON: the `connect` command
//! and its reply, the `refresh` command and its reply, and errors. A frame may hold several
//! commands, one a line; the other commands are between the client and the backend.

use std::io::Write as _;
use std::time::Duration;

use super::answer::{Answer, ConnectAck, Escaped, FirstMessage};
use crate::protocol::cause::Cause;
use crate::protocol::compact_json::{self, MEMBERS_MAX, Object, Value};

/// The server's ping: centrifuge-js gives a connection up on which it has heard nothing for the
/// promised interval and ten seconds more, and WebSocket pings do not reach its code.
pub const PING: &str = "{}";

/// The error of a token whose time is over: the client gets another and tries again.
const TOKEN_EXPIRED: u16 = 109;

/// How long before its token runs out a client is to send another, at most. A short token's
/// last quarter is left for it.
const REFRESH_LEAD_MAX: Duration = Duration::from_secs(30);

pub(super) fn first_message(message: &[u8]) -> Result<FirstMessage<'_>, Cause> {
    let end = message.iter().position(|&b| b == b'\n');
    let (line, rest) = match end {
        Some(end) => (&message[..end], &message[end + 1..]),
        None => (message, &[][..]),
    };
    let (id, _) = command(line, "connect").ok_or(Cause::TokenMalformed)?;
    Ok(FirstMessage { token_in: line, command: Some(id), rest })
}

/// The number of a `refresh` command, which brings a fresh token at `refresh.token`; `None` for
/// every other message.
pub fn refresh(line: &[u8]) -> Option<u32> {
    command(line, "refresh").map(|(id, _)| id)
}

/// Whether a line is a `connect` command.
pub(super) fn is_connect(line: &[u8]) -> bool {
    command(line, "connect").is_some()
}

/// Appends the reply to a `ping` command; false if `line` is none. (The `{}` with which a client
/// answers our ping wants no reply.)
pub(super) fn answer_ping(line: &[u8], out: &mut Vec<u8>) -> bool {
    let Some((id, _)) = command(line, "ping") else { return false };
    let _infallible = write!(out, r#"{{"id":{id},"ping":{{}}}}"#);
    true
}

/// Number and body of a command of this name.
fn command<'t>(line: &'t [u8], name: &str) -> Option<(u32, Object<'t>)> {
    let object = compact_json::object(line, MEMBERS_MAX).ok()?;
    let id = object.member("id").ok()??.whole_number()?;
    let Ok(Some(Value::Object(body))) = object.member(name) else { return None };
    // 0 marks a message that is no reply.
    u32::try_from(id).ok().filter(|&id| id > 0).map(|id| (id, body))
}

/// Appends the reply to an accepted `connect`.
pub(super) fn write_connected(connect_ack: &ConnectAck, out: &mut Vec<u8>) {
    let ConnectAck { command, client, expires_in, ping_interval } = connect_ack;
    let id = command.unwrap_or(0);
    let ping = ping_interval.as_secs().max(1);
    // Writing to a Vec cannot fail.
    let _infallible =
        write!(out, r#"{{"id":{id},"connect":{{"client":"{client:032x}","ping":{ping}"#);
    write_expiry(*expires_in, out);
    out.extend_from_slice(b"}}");
}

/// Appends the reply to an accepted `refresh`.
pub fn write_refreshed(id: u32, expires_in: Option<Duration>, out: &mut Vec<u8>) {
    let _infallible = write!(out, r#"{{"id":{id},"refresh":{{"#);
    let start = out.len();
    write_expiry(expires_in, out);
    if out.len() > start {
        // The comma that separates it from the members of other replies.
        out.remove(start);
    }
    out.extend_from_slice(b"}}");
}

/// The client asks for another token `ttl` seconds later, so that the connection is still there
/// when it comes.
fn write_expiry(expires_in: Option<Duration>, out: &mut Vec<u8>) {
    if let Some(left) = expires_in {
        let ttl = (left - (left / 4).min(REFRESH_LEAD_MAX)).as_secs().max(1);
        let _infallible = write!(out, r#","expires":true,"ttl":{ttl}"#);
    }
}

/// Appends the reply that refuses a command. A temporary error is tried again.
pub fn write_error(id: u32, answer: &Answer<'_>, out: &mut Vec<u8>) {
    let expired = answer.cause == Cause::TokenExpired;
    let code = if expired { TOKEN_EXPIRED } else { answer.code };
    let reason = Escaped(answer.reason);
    let _infallible = write!(out, r#"{{"id":{id},"error":{{"code":{code},"message":"{reason}""#);
    if answer.reconnect && !expired {
        out.extend_from_slice(br#","temporary":true"#);
    }
    out.extend_from_slice(b"}}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::dialect::Dialect;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        for line in out.split(|&b| b == b'\n') {
            serde_json::from_slice::<serde_json::Value>(line).expect("JSON");
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn first_messages_are_taken_apart() {
        const BAD: Result<(u32, &str), Cause> = Err(Cause::TokenMalformed);
        let table = [
            (r#"{"connect":{"token":"a","name":"js"},"id":1}"#, Ok((1, ""))),
            (r#"{"id":7,"connect":{}}"#, Ok((7, ""))),
            (
                "{\"connect\":{},\"id\":1}\n{\"subscribe\":{},\"id\":2}\n{\"send\":{}}",
                Ok((1, "{\"subscribe\":{},\"id\":2}\n{\"send\":{}}")),
            ),
            ("{\"connect\":{},\"id\":1}\n", Ok((1, ""))),
            (r#"{"connect":{}}"#, BAD),
            (r#"{"connect":{},"id":0}"#, BAD),
            (r#"{"connect":{},"id":-1}"#, BAD),
            (r#"{"connect":{},"id":1.5}"#, BAD),
            (r#"{"connect":{},"id":4294967296}"#, BAD),
            (r#"{"connect":{},"id":"1"}"#, BAD),
            (r#"{"connect":"x","id":1}"#, BAD),
            (r#"{"subscribe":{},"id":1}"#, BAD),
            ("\n{\"connect\":{},\"id\":1}", BAD),
            ("", BAD),
            ("\x08\x01\x12\x05", BAD),
        ];
        for (message, expected) in table {
            let found = first_message(message.as_bytes());
            let found = found
                .map(|found| (found.command.unwrap(), std::str::from_utf8(found.rest).unwrap()));
            assert_eq!(found, expected, "{message:?}");
        }
    }

    #[test]
    fn refreshes_are_told_apart() {
        let table = [
            (r#"{"refresh":{"token":"a"},"id":3}"#, Some(3)),
            (r#"{"id":3,"refresh":{}}"#, Some(3)),
            (r#"{"refresh":{"token":"a"}}"#, None),
            (r#"{"sub_refresh":{"token":"a"},"id":3}"#, None),
            ("{}", None),
        ];
        for (line, expected) in table {
            assert_eq!(refresh(line.as_bytes()), expected, "{line}");
        }
    }

    #[test]
    fn replies_are_exact() {
        let connect_ack = |seconds: Option<u64>| ConnectAck {
            command: Some(1),
            client: 0xab,
            expires_in: seconds.map(Duration::from_secs),
            ping_interval: Duration::from_secs(25),
        };
        let client = "000000000000000000000000000000ab";
        let ttls = [(3600, 3570), (40, 30), (4, 3), (1, 1), (0, 1)];
        for (left, ttl) in ttls {
            assert_eq!(
                text(|out| write_connected(&connect_ack(Some(left)), out)),
                format!(
                    r#"{{"id":1,"connect":{{"client":"{client}","ping":25,"expires":true,"ttl":{ttl}}}}}"#
                )
            );
            assert_eq!(
                text(|out| write_refreshed(9, Some(Duration::from_secs(left)), out)),
                format!(r#"{{"id":9,"refresh":{{"expires":true,"ttl":{ttl}}}}}"#)
            );
        }
        assert_eq!(
            text(|out| write_connected(&connect_ack(None), out)),
            format!(r#"{{"id":1,"connect":{{"client":"{client}","ping":25}}}}"#)
        );
        assert_eq!(text(|out| write_refreshed(9, None, out)), r#"{"id":9,"refresh":{}}"#);
    }

    #[test]
    fn errors_are_exact() {
        let table = [
            (Cause::TokenExpired, r#"{"id":1,"error":{"code":109,"message":"token_expired"}}"#),
            (
                Cause::BadSignature,
                r#"{"id":1,"error":{"code":3500,"message":"token_bad_signature"}}"#,
            ),
            (
                Cause::BackendUnavailable,
                r#"{"id":1,"error":{"code":3004,"message":"backend_unavailable","temporary":true}}"#,
            ),
        ];
        for (cause, expected) in table {
            let answer = Dialect::Centrifuge.answer(cause);
            assert_eq!(text(|out| write_error(1, &answer, out)), expected);
        }
    }
}
