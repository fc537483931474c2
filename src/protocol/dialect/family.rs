//! The dialects, and how a client's is recognised.

/// A family of clients with its own reading of close codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Dialect {
    /// A raw WebSocket: the application reads code and reason.
    Plain,
    /// phoenix.js and LiveView, serializer version 2.
    Phoenix,
    /// graphql-ws.
    Graphql,
    /// pusher-js and the servers that speak its protocol.
    Pusher,
    /// centrifuge-js, JSON only.
    Centrifuge,
}

impl Dialect {
    /// Every dialect, in the order of the table's columns.
    pub const ALL: &'static [Dialect] =
        &[Dialect::Plain, Dialect::Phoenix, Dialect::Graphql, Dialect::Pusher, Dialect::Centrifuge];

    /// The name in the configuration and in logs.
    pub const fn name(self) -> &'static str {
        match self {
            Dialect::Plain => "plain",
            Dialect::Phoenix => "phoenix",
            Dialect::Graphql => "graphql-transport-ws",
            Dialect::Pusher => "pusher",
            Dialect::Centrifuge => "centrifuge",
        }
    }

    /// The dialect of this name.
    pub fn from_name(name: &str) -> Option<Dialect> {
        Dialect::ALL.iter().copied().find(|dialect| dialect.name() == name)
    }

    /// The dialect of a client that asked for this: by the subprotocol that it is answered with,
    /// and, as phoenix.js and pusher-js offer none of their own, by what they put into the URL.
    /// centrifuge-js offers none for JSON and has no mark in its URL: its routes must say so.
    pub fn detect(subprotocol: Option<&str>, path: &str, query: Option<&str>) -> Dialect {
        match subprotocol {
            Some("phoenix") => return Dialect::Phoenix,
            Some("graphql-transport-ws") => return Dialect::Graphql,
            Some(_) => return Dialect::Plain,
            None => {}
        }
        let parameters = || query.into_iter().flat_map(|query| query.split('&'));
        let starts = |start: &str| parameters().any(|parameter| parameter.starts_with(start));
        if path.ends_with("/websocket") && starts("vsn=2.") {
            Dialect::Phoenix
        } else if path.contains("/app/") && starts("protocol=") && starts("client=") {
            Dialect::Pusher
        } else {
            Dialect::Plain
        }
    }
}
