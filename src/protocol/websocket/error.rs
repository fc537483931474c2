//! The rules of RFC 6455 that a peer can break, and what each costs.

use crate::protocol::cause::Cause;
use crate::protocol::utf8::InvalidUtf8;

/// What the peer did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// RFC 6455 §5.2: RSV bits without an extension that defines them.
    #[error("reserved bits are set")]
    ReservedBits,
    /// RFC 6455 §5.2: opcode 3–7 or 11–15.
    #[error("opcode {0} is reserved")]
    ReservedOpcode(u8),
    /// RFC 6455 §5.5.
    #[error("a control frame is fragmented")]
    FragmentedControl,
    /// RFC 6455 §5.4: a continuation outside a message.
    #[error("a continuation frame without a message to continue")]
    StrayContinuation,
    /// RFC 6455 §5.4: text or binary inside a message.
    #[error("a new message before the last one ended")]
    UnfinishedMessage,
    /// RFC 6455 §5.1, read by a server.
    #[error("the frame is not masked")]
    Unmasked,
    /// RFC 6455 §5.1, read by a client.
    #[error("the frame is masked")]
    Masked,
    /// RFC 6455 §5.5: a control frame of more than 125 bytes.
    #[error("a control frame is longer than 125 bytes")]
    OversizedControl,
    /// RFC 6455 §5.2: a longer form of the length than needed.
    #[error("the payload length is not in its shortest form")]
    NonMinimalLength,
    /// RFC 6455 §5.2: a 64-bit length of 2^63 or more.
    #[error("the top bit of the payload length is set")]
    LengthTopBit,
    /// RFC 6455 §5.5.1: half a close code.
    #[error("a close frame with a payload of one byte")]
    CloseLength,
    /// RFC 6455 §7.4: a code that may not be sent.
    #[error("close code {0} may not be sent")]
    CloseCode(u16),
    /// RFC 6455 §8.1: in a text message or a close reason.
    #[error("text is not UTF-8")]
    InvalidUtf8,
    /// The declared length would make the message too large.
    #[error("the message is too large")]
    TooLarge,
    /// The message has too many frames.
    #[error("the message is cut into too many frames")]
    TooManyFragments,
    /// Text or binary messages are not taken.
    #[error("messages of this type are not taken")]
    UnsupportedType,
}

impl FrameError {
    /// The connection's cause of death.
    pub const fn cause(self) -> Cause {
        match self {
            FrameError::InvalidUtf8 => Cause::InvalidUtf8,
            FrameError::TooLarge | FrameError::TooManyFragments => Cause::TooLarge,
            FrameError::UnsupportedType => Cause::UnsupportedType,
            _ => Cause::ProtocolError,
        }
    }

    /// The close code for it (RFC 6455 §7.4.1).
    pub const fn close_code(self) -> u16 {
        match self {
            FrameError::InvalidUtf8 => 1007,
            FrameError::TooLarge | FrameError::TooManyFragments => 1009,
            FrameError::UnsupportedType => 1003,
            _ => 1002,
        }
    }
}

impl From<InvalidUtf8> for FrameError {
    fn from(_: InvalidUtf8) -> Self {
        FrameError::InvalidUtf8
    }
}
