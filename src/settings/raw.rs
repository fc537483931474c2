//! The configuration file as it is written: shapes, no meaning.
//!
//! `settings/shape.rs` makes a [`RawSettings`] of a text: it has reported and left out whatever
//! is unknown, of a wrong type or out of range, so that the checks of meaning can go on and find
//! the rest. Nothing is required here, for the same reason.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{self, Visitor};
use toml::Spanned;

/// The whole file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawSettings {
    /// `[gateway]`.
    pub gateway: RawGateway,
    /// `[limits]`.
    pub limits: RawLimits,
    /// `[deadlines]`.
    pub deadlines: RawDeadlines,
    /// `[[listener]]`, in order.
    pub listener: Vec<Spanned<RawListener>>,
    /// `[[auth]]`, in order.
    pub auth: Vec<Spanned<RawAuth>>,
    /// `[[route]]`, in order.
    pub route: Vec<Spanned<RawRoute>>,
    /// `[[backend]]`, in order.
    pub backend: Vec<Spanned<RawBackend>>,
}

/// A string and its place.
pub type Text = Option<Spanned<String>>;
/// A whole number or a word, and its place.
pub type Number = Option<Spanned<CountOrWord>>;
/// Strings and their places.
pub type List = Option<Spanned<Vec<Spanned<String>>>>;

macro_rules! raw_table {
    ($( #[$doc:meta] $name:ident { $( $field:ident: $kind:ty, )* } )*) => { $(
        #[$doc]
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name { $(
            #[doc = concat!("The key `", stringify!($field), "`.")]
            pub $field: $kind,
        )* }
    )* };
}

raw_table! {
    /// `[gateway]`.
    RawGateway {
        workers: Number, descriptors: Text, admin: Text, admin_token_file: Text, admin_socket: Text,
        log: RawLog, close_log: Text, revocations_file: Text,
    }
    /// `log` in `[gateway]`.
    RawLog { format: Text, level: Text, }
    /// `[limits]`.
    RawLimits {
        profile: Text, connections_max: Number, unauthenticated_max: Number,
        early_drop_start: Number, early_drop_rate: Number, prefix_share: Number,
        prefix_failures_per_minute: Number, prefix_failures_burst: Number, prefixes_max: Number,
        tls_handshakes_per_second: Number,
        connections_per_worker: Number, memory_max: Text, message_max: Text,
        first_message_max: Text, head_max: Text, header_fields_max: Number,
        request_line_max: Text, token_max: Text, dead_tokens_max: Number, frames_per_second: Number,
        frames_burst: Number, controls_per_second: Number, controls_burst: Number,
        pongs_unsent_max: Number, fragments_max: Number, session_window: Text, link_window: Text,
        stalled_input_max: Text, verdicts_max: Number, handshakes_per_tick: Number,
        client_buffers: Number, accepts: Number, close_lines_per_second: Number,
        revocations_max: Number,
    }
    /// `[deadlines]`.
    RawDeadlines {
        tls_handshake: Text, request_head: Text, authenticate: Text, linger: Text,
        failure_grace: Text, ping_interval: Text, idle: Text, write_stall: Text, lifetime: Text, expiry_grace: Text,
        drain: Text, link_connect: Text, link_ping: Text, link_retry_min: Text,
        link_retry_max: Text,
    }
    /// A `[[listener]]`.
    RawListener {
        address: Text, tls: Option<Spanned<Vec<Spanned<RawCertificate>>>>,
        proxy_protocol: Option<RawProxy>, defer_accept: Text,
    }
    /// `tls` in a `[[listener]]`.
    RawCertificate { certificate: Text, key: Text, }
    /// `proxy_protocol` in a `[[listener]]`.
    RawProxy { trusted: List, }
    /// An `[[auth]]`.
    RawAuth {
        name: Text, kind: Text, carriers: List, keys: Option<Spanned<Vec<Spanned<RawKey>>>>,
        issuer: Text, audience: Text, leeway: Text, lifetime_max: Text,
        secret_key_base_file: List, secret_key_base: List, salt: Text, signing_salt: Text,
        max_age: Text, subject: Text, csrf: Option<bool>, iterations: Number, length: Number,
        digest: Text,
        endpoint: Text, timeout: Text, in_flight_max: Number, queue_max: Number,
        response_max: Text, headers: List, identity: Option<RawVerdictHeaders>, ca_file: Text,
        circuit_failures: Number, circuit_open_min: Text, circuit_open_max: Text,
    }
    /// `identity` in an `[[auth]]`.
    RawVerdictHeaders {
        subject: Text, token_id: Text, expires: Text, issued_at: Text, claims: Text, reason: Text,
    }
    /// One of `keys` in an `[[auth]]`.
    RawKey { id: Text, algorithm: Text, secret_file: Text, secret: Text, }
    /// A `[[route]]`.
    RawRoute {
        path: Text, origins: Option<Spanned<ListOrWord>>, origin_absent: Text, auth: List,
        backend: Text, dialect: Text, refuse: Text, subprotocols: List, messages: Text,
        forward_headers: List, health: Option<bool>, reauthenticate: Option<RawReauthenticate>,
        closes: BTreeMap<String, Spanned<RawClose>>,
    }
    /// One of `closes` in a `[[route]]`.
    RawClose {
        code: Number, reason: Text, reconnect: Option<bool>, retry_after: Text, pace: Text,
        message: Option<bool>,
    }
    /// `reauthenticate` in a `[[route]]`.
    RawReauthenticate { prefix: Text, token: Text, }
    /// A `[[backend]]`.
    RawBackend {
        name: Text, kind: Text, endpoints: List, balance: Text, secret_file: Text, secret: Text,
    }
}

/// A whole number, or a word such as `auto`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CountOrWord {
    /// The number.
    Count(u64),
    /// The word.
    Word(String),
}

impl<'de> Deserialize<'de> for CountOrWord {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = CountOrWord;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a whole number or a word")
            }

            fn visit_i64<E: de::Error>(self, count: i64) -> Result<CountOrWord, E> {
                u64::try_from(count).map(CountOrWord::Count).map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, count: u64) -> Result<CountOrWord, E> {
                Ok(CountOrWord::Count(count))
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<CountOrWord, E> {
                Ok(CountOrWord::Word(word.to_owned()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Strings, or a word instead of them.
#[derive(Clone, Debug)]
pub enum ListOrWord {
    /// The strings.
    List(Vec<Spanned<String>>),
    /// The word.
    Word(String),
}

impl<'de> Deserialize<'de> for ListOrWord {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = ListOrWord;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a list or a word")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<ListOrWord, E> {
                Ok(ListOrWord::Word(word.to_owned()))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<ListOrWord, A::Error> {
                let list = de::value::SeqAccessDeserializer::new(list);
                Vec::deserialize(list).map(ListOrWord::List)
            }
        }
        deserializer.deserialize_any(Either)
    }
}
