//! What clients of each dialect say first, what gives their dialect away, and what they are told.

use std::time::Duration;

use portcullis::protocol::cause::Cause;
use portcullis::protocol::compact_json::{self, MEMBERS_MAX};
use portcullis::protocol::dialect::{ConnectAck, Dialect, Override, Overrides, centrifuge};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

/// The first messages of every dialect against serde_json, and explanations that are JSON with
/// any words in them.
pub fn dialect(data: &[u8]) {
    for dialect in Dialect::ALL {
        first_message(*dialect, data);
    }
    if let Ok(object) = object(data) {
        assert_eq!(centrifuge::refresh(data), command(object, "refresh"));
    }
    let text = String::from_utf8_lossy(data);
    detect(&text);
    explain(&text, data.first().copied().unwrap_or_default());
}

/// The object that a text is. We are stricter about what is one (members that are there twice,
/// depth), and say so by an empty one; a number beyond a float is no value to serde_json.
fn object(text: &[u8]) -> Result<Map<String, Value>, ()> {
    if compact_json::object(text, MEMBERS_MAX).is_err() {
        return Ok(Map::new());
    }
    serde_json::from_slice::<IgnoredAny>(text).expect("an object");
    serde_json::from_slice(text).map_err(|_| ())
}

/// The number of a command of this name.
fn command(object: Map<String, Value>, name: &str) -> Option<u32> {
    object.get(name)?.as_object()?;
    let id = u32::try_from(object.get("id")?.as_u64()?).ok()?;
    (id > 0).then_some(id)
}

fn first_message(dialect: Dialect, data: &[u8]) {
    let found = dialect.first_message(data);
    match dialect {
        Dialect::Graphql => {
            let Ok(object) = object(data) else { return };
            let expected = match object.get("type").and_then(Value::as_str) {
                Some("connection_init") => Ok(()),
                Some(_) => Err(Cause::TokenMissing),
                None => Err(Cause::TokenMalformed),
            };
            assert_eq!(found.map(|found| assert_eq!(found.token_in, data)), expected);
        }
        Dialect::Centrifuge => {
            let mut lines = data.splitn(2, |byte| *byte == b'\n');
            let line = lines.next().unwrap_or_default();
            let Ok(object) = object(line) else { return };
            match (command(object, "connect"), found) {
                (Some(id), Ok(found)) => {
                    assert_eq!((found.command, found.token_in), (Some(id), line));
                    assert_eq!(found.rest, lines.next().unwrap_or_default());
                }
                (None, Err(Cause::TokenMalformed)) => {}
                (expected, found) => panic!("{expected:?}, but {found:?}"),
            }
        }
        Dialect::Plain | Dialect::Phoenix | Dialect::Pusher => {
            let found = found.expect("any message");
            assert_eq!((found.token_in, found.command, found.rest), (data, None, &[][..]));
        }
    }
}

/// The text is a subprotocol, or a target.
fn detect(text: &str) {
    let by_subprotocol = Dialect::detect(Some(text), "/app/x/websocket", Some("vsn=2.0.0"));
    let expected = match text {
        "phoenix" => Dialect::Phoenix,
        "graphql-transport-ws" => Dialect::Graphql,
        _ => Dialect::Plain,
    };
    assert_eq!(by_subprotocol, expected);
    let (path, query) = match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    };
    let marked = format!("&{}", query.unwrap_or_default());
    let expected = if path.ends_with("/websocket") && marked.contains("&vsn=2.") {
        Dialect::Phoenix
    } else if path.contains("/app/")
        && ["&protocol=", "&client="].iter().all(|m| marked.contains(m))
    {
        Dialect::Pusher
    } else {
        Dialect::Plain
    };
    assert_eq!(Dialect::detect(None, path, query), expected, "{text}");
}

fn explain(words: &str, choice: u8) {
    let cause = Cause::ALL[usize::from(choice) % Cause::ALL.len()];
    let said = Override { reason: Some(words.to_owned()), ..Override::default() };
    let overrides = Overrides(vec![(cause, said)]);
    for dialect in Dialect::ALL {
        let answer = overrides.answer(*dialect, cause);
        assert_eq!((answer.reason, answer.cause), (words, cause));
        let mut out = Vec::new();
        dialect.write_explanation(&answer, Some(u32::MAX), &mut out);
        let told: Value = match (dialect, out.is_empty()) {
            (Dialect::Graphql, true) => continue,
            _ => serde_json::from_slice(&out).expect("JSON"),
        };
        let reason = match dialect {
            Dialect::Plain => &told["reason"],
            Dialect::Phoenix => &told[4]["reason"],
            Dialect::Pusher => &told["data"]["message"],
            _ => &told["error"]["message"],
        };
        assert_eq!(reason.as_str(), Some(words));
    }
    let number = words.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31) + u64::from(byte));
    let connect_ack = ConnectAck {
        command: Some(number as u32),
        client: u128::from(number) << 40,
        expires_in: (choice & 1 == 1).then(|| Duration::from_millis(number >> 8)),
        ping_interval: Duration::from_millis(number >> 40),
    };
    for dialect in [Dialect::Graphql, Dialect::Centrifuge] {
        let mut out = Vec::new();
        dialect.write_welcome(&connect_ack, &mut out);
        serde_json::from_slice::<Value>(&out).expect("JSON");
    }
    let mut out = Vec::new();
    centrifuge::write_refreshed(number as u32, connect_ack.expires_in, &mut out);
    serde_json::from_slice::<Value>(&out).expect("JSON");
}
