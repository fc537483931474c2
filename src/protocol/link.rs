//! The framed link between a gateway worker and a backend: codec of both directions.
//!
//! `docs/link-protocol.md` describes the same bytes for people, `tests/vectors/link.json` for
//! other implementations. Every frame is a 12-byte header and a payload, big endian:
//!
//! ```text
//!  0        3      4       5            8               12
//! | length | kind | flags | generation | slot          | payload …
//!   u24      u8     u8      u24          u32             length bytes
//! ```
//!
//! Nothing here does I/O, reads a clock or keeps a connection's state; [`flow`] holds the
//! arithmetic of credit, and [`reader`] cuts a byte stream into frames.

pub mod decision;
mod fields;
pub mod flow;
mod frame;
pub mod handshake;
pub mod life;
pub mod reader;
pub mod session;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod worked_session_tests;

pub use decision::{Accept, Auth, Credential, CredentialCarrier, Reject};
pub(crate) use fields::Fields;
pub use fields::cut;
pub use flow::{PieceOrder, ReceiveWindow, SendCredit, UnknownSessionFrames, data_cost};
pub(crate) use frame::encode_frame;
pub use frame::{
    CLOSE_REASON_MAX, Frame, FrameHeader, HANDSHAKE_FRAME_MAX, HEADER_BYTES, KEY_MIN, Kind,
    LABEL_MAX, LinkError, PAYLOAD_MAX, REASON_MAX, SessionId, UNKNOWN_SESSION_FRAMES_FORGIVEN_PER,
    UNKNOWN_SESSION_FRAMES_MAX, VERSION, data_flags, encode_data, features,
};
pub use handshake::{Challenge, Hello, Limits, Proof, Ready, RefusalCode, Refused};
pub use life::{Expire, Reauth};
pub use reader::LinkReader;
pub use session::{Close, Closer, Credit, GoAway, Open, OpenHeaders, Ping, Pong};
