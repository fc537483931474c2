//! Where a client may carry its token.

/// Where a client may carry its token, as configured in `auth.carriers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// `Authorization: Bearer TOKEN`.
    Authorization,
    /// `Sec-WebSocket-Protocol: …, base64url.bearer.phx.TOKEN64` (or `.authorization.`).
    Subprotocol,
    /// A cookie with this name.
    Cookie(String),
    /// A header field with this name, lower case.
    Header(String),
    /// A query parameter with this name.
    Query(String),
    /// The first message is the token, as it stands.
    FirstMessage,
    /// The first message is JSON; the token is the string at this path of member names.
    FirstMessageJson(Vec<String>),
}
