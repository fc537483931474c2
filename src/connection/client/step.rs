//! What a client's machine wants of the worker.

use std::ops::Range;

use crate::connection::auth_request::AuthRequest;
use crate::protocol::websocket::{DataKind, OpCode};

/// What a call to [`Client::receive`](super::Client::receive) came to. Bytes that were not
/// consumed come again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// All input is used up.
    NeedMore,
    /// The next bytes are payload, and the allowance is used up.
    Blocked,
    /// Something was handled that concerns the client alone.
    Handled,
    /// A piece of a message, unmasked, in `input[range]`.
    Data {
        /// Where the piece is.
        range: Range<usize>,
        /// Text or binary.
        kind: DataKind,
        /// The message begins with this piece.
        first: bool,
        /// The message ends with this piece.
        last: bool,
    },
    /// The buffered prefix of a message that turned out to be the backend's, in
    /// [`Output::released`](crate::connection::Output::released). The message begins with it.
    Released {
        /// Text or binary.
        kind: DataKind,
        /// The message ends with this piece.
        last: bool,
    },
    /// A ping or a pong for the server behind, in
    /// [`Output::control`](crate::connection::Output::control).
    Control(OpCode),
    /// The client presented a fresh token; [`Output::request`](crate::connection::Output::request)
    /// holds its identity.
    Reauthenticated,
    /// A backend or an endpoint decides who the client is. Nothing more is to be fed until
    /// [`Client::accept`](super::Client::accept), or until the client is refused.
    Ask(AuthRequest),
    /// The identity is verified; [`Output::request`](crate::connection::Output::request) says
    /// what the client wants.
    Authenticated {
        /// Index of the backend that gets the session.
        backend: u16,
    },
    /// A WebSocket server is to be asked whether it takes the client:
    /// [`Output::handshake`](crate::connection::Output::handshake) says with what. Nothing more is
    /// to be fed until [`Client::server_accepted`](super::Client::server_accepted), or until the
    /// client is refused.
    Dial {
        /// Index of the backend whose server it is.
        backend: u16,
    },
}

/// What the worker is to do with the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketAction {
    /// Keep it.
    Stay,
    /// Send FIN once everything queued is sent, then wait for the client's end or the deadline.
    ShutdownWhenFlushed,
    /// FIN is sent: wait for the client's end or the deadline, and throw away what comes.
    AwaitEnd,
    /// Close once everything queued is sent.
    CloseWhenFlushed,
    /// Close, whatever is queued.
    CloseNow {
        /// With RST.
        reset: bool,
    },
}
