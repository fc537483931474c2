//! The handshake of graphql-transport-ws: `connection_init`, answered by `connection_ack`. All
//! that follows is between the client and the backend.

use super::FirstMessage;
use crate::protocol::cause::Cause;
use crate::protocol::compact_json::{self, MEMBERS_MAX, Value};

/// The answer to an accepted `connection_init`.
pub(super) const ACKNOWLEDGED: &str = r#"{"type":"connection_ack"}"#;

/// Any other type before `connection_init` is "Unauthorized" in the protocol's own words, and
/// what is no message at all a bad request; [`super::table`] has the codes.
pub(super) fn first_message(message: &[u8]) -> Result<FirstMessage<'_>, Cause> {
    let object = compact_json::object(message, MEMBERS_MAX).map_err(|_| Cause::TokenMalformed)?;
    match object.member("type") {
        Ok(Some(Value::String(kind))) if kind.is("connection_init") => {
            Ok(FirstMessage { token_in: message, command: None, rest: &[] })
        }
        Ok(Some(Value::String(_))) => Err(Cause::TokenMissing),
        _ => Err(Cause::TokenMalformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connection_init_may_carry_a_token() {
        const BAD: Result<(), Cause> = Err(Cause::TokenMalformed);
        let table = [
            (r#"{"type":"connection_init","payload":{"token":"a"}}"#, Ok(())),
            (r#"{"payload":{"token":"a"},"type":"connection_init"}"#, Ok(())),
            (r#"{"type":"connection_in\u0069t"}"#, Ok(())),
            (r#"{"type":"connection_init"}"#, Ok(())),
            (r#"{"type":"subscribe","payload":{"token":"a"}}"#, Err(Cause::TokenMissing)),
            (r#"{"type":"ping"}"#, Err(Cause::TokenMissing)),
            (r#"{"type":1}"#, BAD),
            (r#"{"payload":{"token":"a"}}"#, BAD),
            (r#"{"type":"connection_init","type":"subscribe"}"#, BAD),
            ("[]", BAD),
            ("", BAD),
            ("eyJ.a.b", BAD),
            (r#"{"type":"connection_init"} {}"#, BAD),
        ];
        for (text, expected) in table {
            let found = first_message(text.as_bytes());
            assert_eq!(found.map(|found| assert_eq!(found.token_in, text.as_bytes())), expected);
        }
    }
}
