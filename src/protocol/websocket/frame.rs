//! What frames are made of, and how they are written (RFC 6455 §5.2, §5.5).

use tungstenite::protocol::frame::{FrameHeader, coding};

/// Longest frame header: two bytes, eight of length, four of mask.
pub const HEADER_MAX: usize = 14;
/// Longest payload of a control frame (RFC 6455 §5.5).
pub const CONTROL_MAX: usize = 125;
/// Longest reason in a close frame, in bytes: what the close code leaves of a control frame.
pub const REASON_MAX: usize = CONTROL_MAX - 2;

/// The frame types that RFC 6455 §5.2 defines; the rest are reserved and never get this far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OpCode {
    /// Goes on with a message.
    Continuation = 0,
    /// Begins a text message.
    Text = 1,
    /// Begins a binary message.
    Binary = 2,
    /// Ends the connection.
    Close = 8,
    /// Asks for a pong.
    Ping = 9,
    /// Answers a ping.
    Pong = 10,
}

impl OpCode {
    /// Whether frames of this type may come between those of a message (RFC 6455 §5.5).
    pub const fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }

    pub(super) fn from_bits(bits: u8) -> Option<Self> {
        use coding::{Control, Data};
        match coding::OpCode::from(bits & 0x0f) {
            coding::OpCode::Data(Data::Continue) => Some(OpCode::Continuation),
            coding::OpCode::Data(Data::Text) => Some(OpCode::Text),
            coding::OpCode::Data(Data::Binary) => Some(OpCode::Binary),
            coding::OpCode::Control(Control::Close) => Some(OpCode::Close),
            coding::OpCode::Control(Control::Ping) => Some(OpCode::Ping),
            coding::OpCode::Control(Control::Pong) => Some(OpCode::Pong),
            coding::OpCode::Data(Data::Reserved(_))
            | coding::OpCode::Control(Control::Reserved(_)) => None,
        }
    }
}

/// The two types of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DataKind {
    /// UTF-8.
    Text,
    /// Any bytes.
    Binary,
}

impl DataKind {
    /// The opcode of a message's frame: its own in the first frame, then continuation.
    pub const fn opcode(self, first: bool) -> OpCode {
        match (first, self) {
            (false, _) => OpCode::Continuation,
            (true, DataKind::Text) => OpCode::Text,
            (true, DataKind::Binary) => OpCode::Binary,
        }
    }
}

/// The payload of a control frame, or a close reason: at most [`CONTROL_MAX`] bytes.
#[derive(Clone, Copy)]
pub struct ControlPayload {
    bytes: [u8; CONTROL_MAX],
    length: u8,
}

impl ControlPayload {
    /// A copy of `bytes`, unless they are too many.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut payload = ControlPayload::default();
        payload.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        payload.length = bytes.len() as u8;
        Some(payload)
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// The bytes as text; empty when they are not UTF-8, which no close reason is.
    pub fn as_text(&self) -> &str {
        simdutf8::basic::from_utf8(self.as_slice()).unwrap_or("")
    }

    pub(super) fn extend(&mut self, bytes: &[u8]) {
        let start = usize::from(self.length);
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len() as u8;
    }
}

impl Default for ControlPayload {
    fn default() -> Self {
        ControlPayload { bytes: [0; CONTROL_MAX], length: 0 }
    }
}

impl PartialEq for ControlPayload {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for ControlPayload {}

impl std::fmt::Debug for ControlPayload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ControlPayload(\"{}\")", self.as_slice().escape_ascii())
    }
}

/// Whether a close frame may carry `code`: assigned by RFC 6455 §7.4.1 or its registry for use
/// on the wire, or of the ranges for libraries and applications.
pub const fn is_sendable_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// A frame header ready to send.
#[derive(Clone, Copy, Debug)]
pub struct HeaderBytes {
    bytes: [u8; HEADER_MAX],
    length: u8,
}

impl HeaderBytes {
    /// The header.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// The header of a frame with a payload of `length` bytes. With a `mask`, the payload must be
/// sent through `apply_mask`.
pub fn write_header(fin: bool, opcode: OpCode, length: u64, mask: Option<[u8; 4]>) -> HeaderBytes {
    assert!(length >> 63 == 0, "no frame is this long (RFC 6455 §5.2)");
    let opcode = coding::OpCode::from(opcode as u8);
    let header = FrameHeader { is_final: fin, opcode, mask, ..FrameHeader::default() };
    let mut bytes = [0; HEADER_MAX];
    let mut rest = &mut bytes[..];
    header.format(length, &mut rest).expect("every header fits");
    let length = HEADER_MAX - rest.len();
    HeaderBytes { bytes, length: length as u8 }
}

/// The payload of a close frame. A reason of more than [`REASON_MAX`] bytes is cut between two
/// characters.
pub fn close_payload(code: u16, reason: &str) -> ControlPayload {
    assert!(is_sendable_close_code(code), "close code {code} may not be sent");
    let mut end = reason.len().min(REASON_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let mut payload = ControlPayload::default();
    payload.extend(&code.to_be_bytes());
    payload.extend(&reason.as_bytes()[..end]);
    payload
}
