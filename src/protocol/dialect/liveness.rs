//! Checks of liveness: what a client's library sends to learn whether the other side is there, and
//! the answer that satisfies it.

use std::fmt;
use std::io::Write as _;

use super::{Dialect, centrifuge};
use crate::protocol::compact_json::{self, MEMBERS_MAX, Value};

/// Longer messages are no checks of liveness.
pub const MESSAGE_MAX: usize = 256;

impl Dialect {
    /// Appends the answer to `message`, if that is a check of liveness; false if it is not.
    /// WebSocket pings are no business of a dialect's.
    pub fn answer_liveness(self, message: &[u8], out: &mut Vec<u8>) -> bool {
        if message.len() > MESSAGE_MAX {
            return false;
        }
        match self {
            Dialect::Plain => false,
            Dialect::Phoenix => answer_heartbeat(message, out).is_some(),
            Dialect::Graphql => {
                answer_if(is_object_with(message, "type", "ping"), br#"{"type":"pong"}"#, out)
            }
            Dialect::Pusher => answer_if(
                is_object_with(message, "event", "pusher:ping"),
                br#"{"event":"pusher:pong","data":{}}"#,
                out,
            ),
            Dialect::Centrifuge => centrifuge::answer_ping(message, out),
        }
    }
}

impl Dialect {
    /// Whether `message` may come before the first message that the dialect begins with: a check of
    /// liveness, whose answer it appends, or the answer to one.
    pub fn comes_before_first(self, message: &[u8], out: &mut Vec<u8>) -> bool {
        let is_pong = || {
            self == Dialect::Graphql
                && message.len() <= MESSAGE_MAX
                && is_object_with(message, "type", "pong")
        };
        self.answer_liveness(message, out) || is_pong()
    }
}

fn answer_if(is_check: bool, answer: &[u8], out: &mut Vec<u8>) -> bool {
    if is_check {
        out.extend_from_slice(answer);
    }
    is_check
}

fn is_object_with(message: &[u8], name: &str, value: &str) -> bool {
    let object = compact_json::object(message, MEMBERS_MAX);
    object.is_ok_and(|object| is(object.member(name).ok().flatten(), value))
}

fn is(value: Option<Value<'_>>, expected: &str) -> bool {
    value.and_then(Value::string).is_some_and(|string| string.is(expected))
}

/// phoenix.js sends a heartbeat on the topic `phoenix`, as an array (serializer 2) or an object
/// (serializer 1), and takes a missing reply with its `ref` for a dead connection.
fn answer_heartbeat(message: &[u8], out: &mut Vec<u8>) -> Option<()> {
    if let Ok(object) = compact_json::object(message, MEMBERS_MAX) {
        let member = |name| object.member(name).ok().flatten();
        let is_heartbeat = is(member("topic"), "phoenix") && is(member("event"), "heartbeat");
        let reference = Reference::of(member("ref")?).filter(|_| is_heartbeat)?;
        // Writing to a Vec cannot fail.
        let _infallible = write!(
            out,
            r#"{{"topic":"phoenix","event":"phx_reply","ref":{reference},"payload":{{"status":"ok","response":{{}}}}}}"#
        );
        return Some(());
    }
    let wrapped = [br#"{"m":"#, message, b"}"].concat();
    let object = compact_json::object(&wrapped, 1).ok()?;
    let Ok(Some(Value::Array(array))) = object.member("m") else { return None };
    let mut elements = array.elements();
    let mut next = || elements.next();
    let (join, reference, topic, event, _payload) = (next()?, next()?, next(), next(), next()?);
    if elements.next().is_some() || !is(topic, "phoenix") || !is(event, "heartbeat") {
        return None;
    }
    let (join, reference) = (Reference::of(join)?, Reference::of(reference)?);
    let _infallible = write!(
        out,
        r#"[{join},{reference},"phoenix","phx_reply",{{"status":"ok","response":{{}}}}]"#
    );
    Some(())
}

/// A reference as the client wrote it, to be given back.
enum Reference<'t> {
    Null,
    Number(&'t str),
    String(&'t str),
}

impl<'t> Reference<'t> {
    fn of(value: Value<'t>) -> Option<Self> {
        match value {
            Value::Null => Some(Reference::Null),
            Value::Number(text) => Some(Reference::Number(text)),
            Value::String(string) => Some(Reference::String(string.as_written())),
            _ => None,
        }
    }
}

impl fmt::Display for Reference<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Null => out.write_str("null"),
            Reference::Number(text) => out.write_str(text),
            Reference::String(text) => write!(out, "\"{text}\""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_answered_as_the_libraries_expect_and_nothing_else_is() {
        use Dialect::*;
        let long = format!(r#"[null,"{}","phoenix","heartbeat",{{}}]"#, "7".repeat(MESSAGE_MAX));
        let table = [
            (
                Phoenix,
                r#"[null,"5","phoenix","heartbeat",{}]"#,
                r#"[null,"5","phoenix","phx_reply",{"status":"ok","response":{}}]"#,
            ),
            (
                Phoenix,
                r#" [ "1" , 5 , "phoenix" , "heartbeat" , {"a":[]} ] "#,
                r#"["1",5,"phoenix","phx_reply",{"status":"ok","response":{}}]"#,
            ),
            (
                Phoenix,
                r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"5"}"#,
                r#"{"topic":"phoenix","event":"phx_reply","ref":"5","payload":{"status":"ok","response":{}}}"#,
            ),
            (
                Phoenix,
                r#"[null,"\"\u0041","phoenix","heartbeat",{}]"#,
                r#"[null,"\"\u0041","phoenix","phx_reply",{"status":"ok","response":{}}]"#,
            ),
            (Phoenix, r#"[null,"5","phoenix","heartbeat"]"#, ""),
            (Phoenix, r#"[null,"5","phoenix","heartbeat",{},1]"#, ""),
            (Phoenix, r#"[null,"5","phoenix","heartbeat",{}],"x":1"#, ""),
            (Phoenix, r#"[null,{},"phoenix","heartbeat",{}]"#, ""),
            (Phoenix, r#"[null,"5","room:1","heartbeat",{}]"#, ""),
            (Phoenix, r#"["1","5","lv:x","phx_join",{}]"#, ""),
            (Phoenix, r#"{"topic":"phoenix","event":"heartbeat","payload":{}}"#, ""),
            (Phoenix, long.as_str(), ""),
            (Phoenix, "", ""),
            (Graphql, r#"{"type":"ping"}"#, r#"{"type":"pong"}"#),
            (Graphql, r#"{"type":"ping","payload":{"a":1}}"#, r#"{"type":"pong"}"#),
            (Graphql, r#"{"type":"pong"}"#, ""),
            (Graphql, r#"{"type":"subscribe"}"#, ""),
            (
                Pusher,
                r#"{"event":"pusher:ping","data":{}}"#,
                r#"{"event":"pusher:pong","data":{}}"#,
            ),
            (Pusher, r#"{"event":"pusher:subscribe","data":{}}"#, ""),
            (Centrifuge, r#"{"id":3,"ping":{}}"#, r#"{"id":3,"ping":{}}"#),
            (Centrifuge, "{}", ""),
            (Centrifuge, r#"{"id":3,"send":{}}"#, ""),
            (Plain, r#"{"type":"ping"}"#, ""),
        ];
        for (dialect, message, expected) in table {
            let mut out = Vec::new();
            let answered = dialect.answer_liveness(message.as_bytes(), &mut out);
            assert_eq!(String::from_utf8(out.clone()).unwrap(), expected, "{dialect:?} {message}");
            assert_eq!(answered, !expected.is_empty());
            out.clear();
            let ignored = message == r#"{"type":"pong"}"#;
            let before = dialect.comes_before_first(message.as_bytes(), &mut out);
            assert_eq!(before, answered || ignored, "{dialect:?} {message}");
            if answered {
                serde_json::from_str::<serde_json::Value>(expected).expect("JSON");
            }
        }
    }
}
