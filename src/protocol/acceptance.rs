//! Which messages of an application say that it has let a client in, where its 101 lets every client
//! in and the client authenticates by messages.

use super::compact_json::{self, JsonString, Value};
use super::websocket::DataKind;

/// Largest message that is looked at: a larger one neither accepts nor refuses.
pub const MESSAGE_MAX: usize = 64 * 1024;

/// A protocol whose messages accept and refuse clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// Phoenix channels, serializer version 2: the join of a topic.
    Phoenix,
    /// Rails' ActionCable: the subscription of a channel.
    ActionCable,
    /// graphql-ws.
    GraphqlTransportWs,
    /// subscriptions-transport-ws, the older one.
    GraphqlWs,
    /// Pusher: a private channel, or a user's sign-in.
    Pusher,
    /// Socket.IO over engine.io 4: a namespace.
    SocketIo,
    /// SignalR with JSON: the first message behind the handshake's answer.
    SignalR,
    /// Home Assistant.
    HomeAssistant,
    /// STOMP over WebSocket.
    Stomp,
}

impl Preset {
    /// The names in the configuration.
    pub const NAMES: &'static [&'static str] = &[
        "phoenix",
        "actioncable",
        "graphql-transport-ws",
        "graphql-ws",
        "pusher",
        "socket.io",
        "signalr",
        "home-assistant",
        "stomp",
    ];

    const ALL: [Preset; 9] = [
        Preset::Phoenix,
        Preset::ActionCable,
        Preset::GraphqlTransportWs,
        Preset::GraphqlWs,
        Preset::Pusher,
        Preset::SocketIo,
        Preset::SignalR,
        Preset::HomeAssistant,
        Preset::Stomp,
    ];

    /// The preset of this name.
    pub fn from_name(name: &str) -> Option<Preset> {
        let at = Preset::NAMES.iter().position(|known| *known == name)?;
        Some(Preset::ALL[at])
    }

    /// Whether the topics are to be listed whose join accepts: a join of a public one proves
    /// nothing.
    pub const fn needs_topics(self) -> bool {
        matches!(self, Preset::Phoenix | Preset::ActionCable)
    }

    /// Whether topics may be listed.
    pub const fn takes_topics(self) -> bool {
        matches!(self, Preset::Phoenix | Preset::ActionCable | Preset::Pusher)
    }
}

/// What one message must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessagePattern {
    /// JSON that has a value there.
    Json {
        /// Names of members, and indexes of elements.
        path: Vec<String>,
        /// What the value is; `None` is any.
        equals: Option<String>,
    },
    /// It begins so.
    Prefix(String),
}

/// Topics, or all that begin so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicPattern {
    /// This one alone.
    Exact(String),
    /// Every one that begins so, from `room:*`; `*` is all.
    Prefix(String),
}

impl TopicPattern {
    /// Reads a topic as configured.
    pub fn parse(text: &str) -> TopicPattern {
        match text.strip_suffix('*') {
            Some(prefix) => TopicPattern::Prefix(prefix.to_owned()),
            None => TopicPattern::Exact(text.to_owned()),
        }
    }
}

/// Which messages of an application accept a client, and which refuse it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptance {
    /// The protocol that is spoken.
    pub preset: Option<Preset>,
    /// What accepts, in place of the preset's messages.
    pub accepted: Vec<MessagePattern>,
    /// What refuses, beside the preset's messages.
    pub refused: Vec<MessagePattern>,
    /// The topics whose join accepts; empty where the preset needs none.
    pub topics: Vec<TopicPattern>,
}

/// What a message says of the client that it goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The client is in.
    Accepts,
    /// It is not.
    Refuses,
    /// Nothing.
    Neither,
}

impl Acceptance {
    /// Judges a whole text message of the application, without allocating. What is neither JSON nor
    /// what a pattern wants says nothing. Of a message that would accept and refuse, the refusal
    /// counts.
    pub fn judge(&self, message: &[u8]) -> Judgement {
        if message.len() > MESSAGE_MAX {
            return Judgement::Neither;
        }
        let json = compact_json::value(message).ok();
        let is = |pattern: &MessagePattern| pattern.is(message, json);
        let of_preset = match self.preset {
            Some(preset) => self.by_preset(preset, message, json),
            None => Judgement::Neither,
        };
        if of_preset == Judgement::Refuses || self.refused.iter().any(is) {
            return Judgement::Refuses;
        }
        let accepts = match self.accepted.is_empty() {
            true => of_preset == Judgement::Accepts,
            false => self.accepted.iter().any(is),
        };
        if accepts { Judgement::Accepts } else { Judgement::Neither }
    }

    /// Whether a client may send this whole message before it is accepted: not one that an
    /// application answers as if it accepted it. Phoenix answers `ok` to `phx_leave` of a topic that
    /// was never joined; it could come as a binary message, too, and no client joins by those.
    pub fn permits(&self, kind: DataKind, message: &[u8]) -> bool {
        if self.preset != Some(Preset::Phoenix) || !self.accepted.is_empty() {
            return true;
        }
        if kind == DataKind::Binary {
            return false;
        }
        let Ok(Value::Array(parts)) = compact_json::value(message) else { return false };
        let mut parts = parts.elements();
        let event = parts.nth(3).and_then(Value::string);
        event.is_some_and(|event| !event.is("phx_leave"))
    }

    fn by_preset(&self, preset: Preset, message: &[u8], json: Option<Value<'_>>) -> Judgement {
        use Judgement::{Accepts, Neither, Refuses};
        let accepts = |is: bool| if is { Accepts } else { Neither };
        let refuses = |is: bool| if is { Refuses } else { Neither };
        let text = |name: &str| json.and_then(|json| at(json, &[name])).and_then(Value::string);
        let kind = |name: &str| text("type").is_some_and(|kind| kind.is(name));
        match preset {
            Preset::Phoenix => self.by_phoenix(json),
            Preset::ActionCable if kind("confirm_subscription") => {
                accepts(text("identifier").is_some_and(|channel| self.is_topic(channel)))
            }
            Preset::ActionCable => refuses(kind("reject_subscription") || kind("disconnect")),
            Preset::GraphqlTransportWs | Preset::GraphqlWs if kind("connection_ack") => Accepts,
            Preset::GraphqlTransportWs | Preset::GraphqlWs => refuses(kind("connection_error")),
            Preset::Pusher => self.by_pusher(json),
            Preset::SocketIo => by_socket_io(message),
            Preset::SignalR => by_signalr(message),
            Preset::HomeAssistant if kind("auth_ok") => Accepts,
            Preset::HomeAssistant => refuses(kind("auth_invalid")),
            Preset::Stomp => by_stomp(message),
        }
    }

    /// `[join_ref, ref, topic, "phx_reply", {"status": "ok", …}]`.
    fn by_phoenix(&self, json: Option<Value<'_>>) -> Judgement {
        let Some(Value::Array(parts)) = json else { return Judgement::Neither };
        let mut parts = parts.elements().skip(2);
        let topic = parts.next().and_then(Value::string);
        let event = parts.next().and_then(Value::string);
        let status = parts.next().and_then(|payload| at(payload, &["status"]));
        let (Some(topic), Some(event), None) = (topic, event, parts.next()) else {
            return Judgement::Neither;
        };
        let Some(status) = status.and_then(Value::string).filter(|_| event.is("phx_reply")) else {
            return Judgement::Neither;
        };
        // Heartbeats are answered to every client.
        if topic.is("phoenix") {
            Judgement::Neither
        } else if status.is("error") {
            Judgement::Refuses
        } else if status.is("ok") && self.is_topic(topic) {
            Judgement::Accepts
        } else {
            Judgement::Neither
        }
    }

    /// A private channel, or a user's sign-in: anyone may subscribe to a public one.
    fn by_pusher(&self, json: Option<Value<'_>>) -> Judgement {
        let text = |name: &str| json.and_then(|json| at(json, &[name])).and_then(Value::string);
        let Some(event) = text("event") else { return Judgement::Neither };
        let is_private = |channel: JsonString<'_>| {
            ["private-", "presence-"].iter().any(|start| starts(channel, start))
        };
        if event.is("pusher:signin_success") {
            Judgement::Accepts
        } else if event.is("pusher_internal:subscription_succeeded") {
            let is_proof = |channel: JsonString<'_>| {
                is_private(channel) && (self.topics.is_empty() || self.is_topic(channel))
            };
            match text("channel").is_some_and(is_proof) {
                true => Judgement::Accepts,
                false => Judgement::Neither,
            }
        } else if event.is("pusher:subscription_error") || event.is("pusher:error") {
            Judgement::Refuses
        } else {
            Judgement::Neither
        }
    }

    fn is_topic(&self, topic: JsonString<'_>) -> bool {
        self.topics.iter().any(|pattern| match pattern {
            TopicPattern::Exact(own) => topic.is(own),
            TopicPattern::Prefix(own) => starts(topic, own),
        })
    }
}

impl MessagePattern {
    fn is(&self, message: &[u8], json: Option<Value<'_>>) -> bool {
        match self {
            MessagePattern::Prefix(prefix) => message.starts_with(prefix.as_bytes()),
            MessagePattern::Json { path, equals } => {
                let found = json.and_then(|json| at(json, path));
                match (found, equals) {
                    (found, None) => found.is_some(),
                    (Some(Value::String(text)), Some(equals)) => text.is(equals),
                    (Some(Value::Number(number)), Some(equals)) => number == equals,
                    (Some(Value::Bool(is)), Some(equals)) => {
                        equals == if is { "true" } else { "false" }
                    }
                    (Some(Value::Null), Some(equals)) => equals == "null",
                    (Some(Value::Array(_) | Value::Object(_)) | None, Some(_)) => false,
                }
            }
        }
    }
}

/// The value at the end of a path: names of members, and indexes of elements. A member that is
/// there twice is none.
fn at<'t>(json: Value<'t>, path: &[impl AsRef<str>]) -> Option<Value<'t>> {
    path.iter().try_fold(json, |value, step| match value {
        Value::Object(object) => object.member(step.as_ref()).ok()?,
        Value::Array(list) => list.elements().nth(step.as_ref().parse().ok()?),
        _ => None,
    })
}

fn starts(text: JsonString<'_>, start: &str) -> bool {
    let mut characters = text.chars();
    start.chars().all(|own| characters.next() == Some(own))
}

/// A namespace's CONNECT of engine.io 4, which brings a `sid`; a bare `40` of engine.io 3 proves
/// nothing. `44` is a CONNECT_ERROR.
fn by_socket_io(message: &[u8]) -> Judgement {
    let Some((b"4", [kind, rest @ ..])) = message.split_at_checked(1) else {
        return Judgement::Neither;
    };
    // `/NAMESPACE,` in front of the data.
    let data = match rest {
        [b'/', ..] => {
            rest.iter().position(|&byte| byte == b',').map_or(&[][..], |at| &rest[at + 1..])
        }
        _ => rest,
    };
    let sid = || compact_json::value(data).ok().and_then(|json| at(json, &["sid"]));
    match kind {
        b'0' if sid().is_some_and(|sid| matches!(sid, Value::String(_))) => Judgement::Accepts,
        b'4' => Judgement::Refuses,
        _ => Judgement::Neither,
    }
}

/// Messages end with RS. `{}` only agrees on a protocol, and a hub that refuses sends a close
/// (type 7) behind it: the first other message accepts.
fn by_signalr(message: &[u8]) -> Judgement {
    const RECORD_SEPARATOR: u8 = 0x1e;
    let mut judgement = Judgement::Neither;
    for record in message.split(|&byte| byte == RECORD_SEPARATOR).filter(|part| !part.is_empty()) {
        let Ok(json) = compact_json::value(record) else { return Judgement::Neither };
        let kind = at(json, &["type"]).and_then(Value::whole_number);
        match kind {
            Some(7) => return Judgement::Refuses,
            Some(1..=6) => judgement = Judgement::Accepts,
            _ if at(json, &["error"]).is_some() => return Judgement::Refuses,
            _ => {}
        }
    }
    if message.last() == Some(&RECORD_SEPARATOR) { judgement } else { Judgement::Neither }
}

/// CONNECTED comes for anonymous clients too: `user-name` shows whom the broker has let in.
fn by_stomp(message: &[u8]) -> Judgement {
    let mut lines = message.split(|&byte| byte == b'\n');
    let line = |line: &[u8]| line.strip_suffix(b"\r").unwrap_or(line).len();
    let Some(first) = lines.next() else { return Judgement::Neither };
    let command = &first[..line(first)];
    let mut headers = lines.map(|own| &own[..line(own)]).take_while(|own| !own.is_empty());
    match command {
        b"CONNECTED" => {
            let is_user = |header: &[u8]| {
                header.strip_prefix(b"user-name:").is_some_and(|name| !name.is_empty())
            };
            if headers.any(is_user) { Judgement::Accepts } else { Judgement::Neither }
        }
        b"ERROR" => Judgement::Refuses,
        _ => Judgement::Neither,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preset(name: &str, topics: &[&str]) -> Acceptance {
        Acceptance {
            preset: Some(Preset::from_name(name).expect("a preset")),
            accepted: Vec::new(),
            refused: Vec::new(),
            topics: topics.iter().map(|topic| TopicPattern::parse(topic)).collect(),
        }
    }

    fn json(path: &str, equals: Option<&str>) -> MessagePattern {
        let path = path.split('.').map(str::to_owned).collect();
        MessagePattern::Json { path, equals: equals.map(str::to_owned) }
    }

    #[test]
    fn every_preset_has_its_name() {
        assert_eq!(Preset::NAMES.len(), Preset::ALL.len());
        assert_eq!(Preset::from_name("stomp"), Some(Preset::Stomp));
        assert_eq!(Preset::from_name("phoenix"), Some(Preset::Phoenix));
        assert_eq!(Preset::from_name("mqtt"), None);
    }

    #[test]
    fn presets() {
        use Judgement::{Accepts, Neither, Refuses};
        let table: &[(&str, &str, Judgement)] = &[
            ("phoenix", r#"["1","1","room:1","phx_reply",{"status":"ok","response":{}}]"#, Accepts),
            (
                "phoenix",
                r#" [null, "2", "room:x", "phx_reply", {"response":{}, "status":"ok"}] "#,
                Accepts,
            ),
            ("phoenix", r#"["1","1","lobby","phx_reply",{"status":"ok","response":{}}]"#, Neither),
            (
                "phoenix",
                r#"[null,"1","phoenix","phx_reply",{"status":"ok","response":{}}]"#,
                Neither,
            ),
            (
                "phoenix",
                r#"["1","1","room:1","phx_reply",{"status":"error","response":{}}]"#,
                Refuses,
            ),
            ("phoenix", r#"["1","1","room:1","phx_error",{"status":"ok"}]"#, Neither),
            (
                "phoenix",
                r#"["1","1","room:1","phx_reply",{"status":"ok","status":"error"}]"#,
                Neither,
            ),
            ("phoenix", r#"["1","1","room:1","phx_reply",{"status":"ok"},1]"#, Neither),
            ("phoenix", r#"["1",null,"room:1","new_msg",{"status":"ok"}]"#, Neither),
            ("phoenix", r#"["1","1","room:1","phx_reply",{"status":"ok"}"#, Neither),
            (
                "phoenix",
                r#"{"topic":"room:1","event":"phx_reply","payload":{"status":"ok"}}"#,
                Neither,
            ),
            ("actioncable", r#"{"identifier":"room:1","type":"confirm_subscription"}"#, Accepts),
            ("actioncable", r#"{"identifier":"other","type":"confirm_subscription"}"#, Neither),
            ("actioncable", r#"{"type":"welcome"}"#, Neither),
            ("actioncable", r#"{"type":"ping","message":1}"#, Neither),
            ("actioncable", r#"{"identifier":"room:1","type":"reject_subscription"}"#, Refuses),
            ("actioncable", r#"{"type":"disconnect","reason":"unauthorized"}"#, Refuses),
            ("graphql-transport-ws", r#"{"type":"connection_ack"}"#, Accepts),
            ("graphql-transport-ws", r#"{"type":"ping"}"#, Neither),
            ("graphql-transport-ws", r#"{"payload":{"type":"connection_ack"}}"#, Neither),
            ("graphql-ws", r#"{"type":"connection_ack","payload":{}}"#, Accepts),
            ("graphql-ws", r#"{"type":"ka"}"#, Neither),
            ("graphql-ws", r#"{"type":"connection_error","payload":{}}"#, Refuses),
            ("pusher", r#"{"event":"pusher:connection_established","data":"{}"}"#, Neither),
            (
                "pusher",
                r#"{"event":"pusher_internal:subscription_succeeded","channel":"room:1"}"#,
                Neither,
            ),
            (
                "pusher",
                r#"{"event":"pusher_internal:subscription_succeeded","channel":"private-a"}"#,
                Neither,
            ),
            ("pusher", r#"{"event":"pusher:signin_success","data":"{}"}"#, Accepts),
            ("pusher", r#"{"event":"pusher:error","data":{"code":4009}}"#, Refuses),
            ("socket.io", r#"0{"sid":"x","upgrades":[]}"#, Neither),
            ("socket.io", r#"40{"sid":"abc"}"#, Accepts),
            ("socket.io", r#"40/admin,{"sid":"abc"}"#, Accepts),
            ("socket.io", "40", Neither),
            ("socket.io", "40/admin,", Neither),
            ("socket.io", "40/admin", Neither),
            ("socket.io", r#"42["sid",{"sid":"x"}]"#, Neither),
            ("socket.io", r#"44{"message":"token_expired"}"#, Refuses),
            ("socket.io", r#"44/admin,{"message":"no"}"#, Refuses),
            ("socket.io", "4", Neither),
            ("signalr", "{}\u{1e}", Neither),
            ("signalr", "{\"type\":6}\u{1e}", Accepts),
            ("signalr", "{}\u{1e}{\"type\":1,\"target\":\"x\"}\u{1e}", Accepts),
            ("signalr", "{}\u{1e}{\"type\":7,\"error\":\"x\"}\u{1e}", Refuses),
            ("signalr", "{\"error\":\"x\"}\u{1e}", Refuses),
            ("signalr", "{\"type\":6}", Neither),
            ("home-assistant", r#"{"type":"auth_required","ha_version":"x"}"#, Neither),
            ("home-assistant", r#"{"type":"auth_ok","ha_version":"x"}"#, Accepts),
            ("home-assistant", r#"{"type":"auth_invalid","message":"x"}"#, Refuses),
            ("stomp", "CONNECTED\nversion:1.2\nuser-name:ada\n\n\0", Accepts),
            ("stomp", "CONNECTED\r\nversion:1.2\r\nuser-name:ada\r\n\r\n\0", Accepts),
            ("stomp", "CONNECTED\nversion:1.2\n\nuser-name:ada\0", Neither),
            ("stomp", "CONNECTED\nuser-name:\n\n\0", Neither),
            ("stomp", "ERROR\nmessage:x\n\n\0", Refuses),
            ("stomp", "\n", Neither),
        ];
        for (name, message, expected) in table {
            let rules = preset(name, &["room:*"]);
            assert_eq!(rules.judge(message.as_bytes()), *expected, "{name}: {message}");
        }
        let any = preset("pusher", &[]);
        let private =
            br#"{"event":"pusher_internal:subscription_succeeded","channel":"private-a"}"#;
        assert_eq!(any.judge(private), Accepts);
        assert_eq!(
            preset("phoenix", &["*"]).judge(br#"["1","1","a","phx_reply",{"status":"ok"}]"#),
            Accepts
        );
        let escaped = br#"["1","1","r\u006fom:1","phx_reply",{"status":"ok"}]"#;
        assert_eq!(preset("phoenix", &["room:*"]).judge(escaped), Accepts);
        assert_eq!(preset("phoenix", &["room:1"]).judge(escaped), Accepts);
    }

    #[test]
    fn patterns_of_ones_own() {
        use Judgement::{Accepts, Neither, Refuses};
        let rules = Acceptance {
            preset: None,
            accepted: vec![
                json("4.status", Some("ok")),
                MessagePattern::Prefix("CONNECTED".into()),
                json("n", Some("7")),
                json("ok", Some("true")),
                json("nil", Some("null")),
                json("there", None),
            ],
            refused: vec![json("type", Some("auth_invalid")), MessagePattern::Prefix("NO".into())],
            topics: Vec::new(),
        };
        let table: &[(&str, Judgement)] = &[
            (r#"[1,2,3,4,{"status":"ok"}]"#, Accepts),
            (r#"[1,2,3,4,{"status":"okay"}]"#, Neither),
            (r#"[1,2,3,{"status":"ok"}]"#, Neither),
            (r#"{"4":{"status":"ok"}}"#, Accepts),
            ("CONNECTED", Accepts),
            (" CONNECTED", Neither),
            (r#"{"n":7}"#, Accepts),
            (r#"{"n":7.0}"#, Neither),
            (r#"{"n":"7"}"#, Accepts),
            (r#"{"ok":true}"#, Accepts),
            (r#"{"ok":false}"#, Neither),
            (r#"{"nil":null}"#, Accepts),
            (r#"{"there":{}}"#, Accepts),
            (r#"{"there":1,"type":"auth_invalid"}"#, Refuses),
            (r#"{"there":1,"there":2}"#, Neither),
            (r#"{"there":1} x"#, Neither),
            ("NO", Refuses),
            ("", Neither),
        ];
        for (message, expected) in table {
            assert_eq!(rules.judge(message.as_bytes()), *expected, "{message}");
        }
        let long = format!("CONNECTED{}", " ".repeat(MESSAGE_MAX));
        assert_eq!(rules.judge(long.as_bytes()), Neither);
        // One's own messages accept in place of the preset's, whose refusals stay.
        let both = Acceptance { preset: Some(Preset::HomeAssistant), ..rules };
        assert_eq!(both.judge(br#"{"type":"auth_ok"}"#), Neither);
        assert_eq!(both.judge(br#"{"type":"auth_invalid"}"#), Refuses);
    }

    #[test]
    fn what_is_answered_as_if_it_accepted_is_not_permitted() {
        let rules = preset("phoenix", &["room:*"]);
        let table = [
            (r#"["1","1","room:1","phx_join",{"token":"t"}]"#, true),
            (r#"[null,"1","phoenix","heartbeat",{}]"#, true),
            (r#"["1","1","room:1","phx_leave",{}]"#, false),
            (r#"["1","1","room:1","phx_\u006ceave",{}]"#, false),
            (r#"{"topic":"room:1","event":"phx_leave"}"#, false),
            ("nonsense", false),
            (r#"["1","1","room:1"]"#, false),
        ];
        for (message, expected) in table {
            assert_eq!(rules.permits(DataKind::Text, message.as_bytes()), expected, "{message}");
        }
        assert!(preset("stomp", &[]).permits(DataKind::Binary, b"anything"));
        assert!(!rules.permits(DataKind::Binary, b"\0"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_judged(message in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            for name in Preset::NAMES {
                let rules = preset(name, &["*"]);
                proptest::prop_assert!(rules.judge(&message) != Judgement::Accepts || message.len() > 2);
                rules.permits(DataKind::Text, &message);
            }
        }
    }
}
