//! Which messages of an application say that it has let a client in, where its 101 lets everybody
//! in and the client authenticates by messages.

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
    /// Judges a whole text message.
    pub fn judge(&self, message: &[u8]) -> Judgement {
        let is = |pattern: &MessagePattern| match pattern {
            MessagePattern::Prefix(prefix) => message.starts_with(prefix.as_bytes()),
            MessagePattern::Json { .. } => false,
        };
        if self.accepted.iter().any(is) {
            Judgement::Accepts
        } else if self.refused.iter().any(is) {
            Judgement::Refuses
        } else {
            Judgement::Neither
        }
    }
}
