//! How far a connection came, and who ended it.

/// Who ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedBy {
    /// The client, with a close frame or by going.
    Client,
    /// The backend.
    Backend,
    /// The gateway.
    Gateway,
}

/// How far a connection came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// In the TLS handshake.
    TlsHandshake,
    /// Waiting for the request head.
    RequestHead,
    /// Upgraded, waiting for the first message.
    Authenticating,
    /// Authenticated; a session is open.
    Open,
    /// Refused; an explanation is on its way or the client's close is awaited.
    Refused,
    /// Was open; the closing handshake is under way.
    Closing,
}

impl Stage {
    /// The stage's name in logs and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Stage::TlsHandshake => "tls_handshake",
            Stage::RequestHead => "request_head",
            Stage::Authenticating => "authenticating",
            Stage::Open => "open",
            Stage::Refused => "refused",
            Stage::Closing => "closing",
        }
    }
}
