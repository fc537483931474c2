//! The handshake that a dialect begins with, where it comes a second time: it carries a token, which
//! is the gateway's to judge, so a backend never gets it.

use super::{Dialect, centrifuge, graphql};

impl Dialect {
    /// Whether a whole message begins the dialect's handshake.
    pub fn is_handshake(self, message: &[u8]) -> bool {
        match self {
            // Looks for the word first: reading JSON costs more than a message's way through.
            Dialect::Graphql => {
                let named = |part: &[u8]| part.ends_with(b"connection");
                message.split(|&b| b == b'_').any(named) && graphql::first_message(message).is_ok()
            }
            Dialect::Centrifuge => {
                message.split(|&b| b == b'"').any(|part| part == b"connect")
                    && message.split(|&b| b == b'\n').any(centrifuge::is_connect)
            }
            Dialect::Plain | Dialect::Phoenix | Dialect::Pusher => false,
        }
    }

    /// How its libraries begin that message, for one that comes in pieces; empty where the dialect
    /// has no handshake. The token is behind it.
    pub const fn handshake_prefix(self) -> &'static [u8] {
        match self {
            Dialect::Graphql => br#"{"type":"connection_init""#,
            Dialect::Centrifuge => br#"{"connect":"#,
            Dialect::Plain | Dialect::Phoenix | Dialect::Pusher => b"",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes_are_told_from_all_else() {
        use Dialect::*;
        let table = [
            (Graphql, r#"{"type":"connection_init"}"#, true),
            (Graphql, r#"{"type":"connection_init","payload":{"token":"a"}}"#, true),
            (Graphql, r#" { "payload" : {"token":"a"} , "type" : "connection_init" } "#, true),
            (
                Graphql,
                r#"{"id":"1","type":"subscribe","payload":{"query":"{ __typename }"}}"#,
                false,
            ),
            (Graphql, r#"{"id":"1","type":"next","payload":"connection_init"}"#, false),
            (Graphql, r#"{"type":"connection_ack"}"#, false),
            (Graphql, "connection_init", false),
            (Centrifuge, r#"{"connect":{"token":"a"},"id":7}"#, true),
            (Centrifuge, r#"{"id":7,"connect":{}}"#, true),
            (Centrifuge, "{\"subscribe\":{},\"id\":2}\n{\"connect\":{},\"id\":3}", true),
            (Centrifuge, r#"{"id":7,"rpc":{"data":{"connect":{}}}}"#, false),
            (Centrifuge, r#"{"id":7,"refresh":{"token":"a"}}"#, false),
            (Centrifuge, "{}", false),
            (Plain, r#"{"type":"connection_init"}"#, false),
            (Phoenix, r#"{"type":"connection_init"}"#, false),
            (Pusher, r#"{"connect":{},"id":1}"#, false),
        ];
        for (dialect, message, expected) in table {
            assert_eq!(dialect.is_handshake(message.as_bytes()), expected, "{dialect:?} {message}");
        }
    }
}
