//! WebSocket frames (RFC 6455 §5), both directions. The reader checks everything that a header
//! can tell before it looks at the payload, and passes data on as it arrives: it has no buffer.

use std::ops::Range;

use tungstenite::protocol::frame::{FrameHeader, coding};

use super::cause::Cause;
use super::mask::{apply_mask, rotated};
use super::utf8::{InvalidUtf8, Utf8Validator};

/// Longest frame header: two bytes, eight of length, four of mask.
pub const HEADER_MAX: usize = 14;
/// Longest payload of a control frame (RFC 6455 §5.5).
pub const CONTROL_MAX: usize = 125;
/// Longest reason in a close frame, in bytes: what the close code leaves of a control frame.
pub const REASON_MAX: usize = CONTROL_MAX - 2;

/// Who reads: it decides whether frames must be masked (RFC 6455 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A server: every frame must be masked.
    Server,
    /// A client: no frame may be masked.
    Client,
}

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

    fn from_bits(bits: u8) -> Option<Self> {
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

/// What a peer may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// Largest message, in payload bytes of all its frames.
    pub message_max: u32,
    /// Most frames that one message may be cut into.
    pub fragments_max: u32,
    /// Whether text messages are taken.
    pub text: bool,
    /// Whether binary messages are taken.
    pub binary: bool,
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

    fn extend(&mut self, bytes: &[u8]) {
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

/// What the next piece of input was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// All input was taken; nothing more is known before more arrives.
    NeedMore,
    /// The input goes on with message data, and the allowance is zero.
    Blocked,
    /// A piece of a message.
    Data {
        /// Where in the input the piece lies, unmasked. Empty only when the first and only
        /// frame, or the last frame, of the message is empty.
        range: Range<usize>,
        /// The message's type.
        kind: DataKind,
        /// The piece begins the message.
        first: bool,
        /// The piece ends the message.
        last: bool,
    },
    /// A ping, to be answered with the same payload.
    Ping(ControlPayload),
    /// A pong.
    Pong(ControlPayload),
    /// A close frame. Whatever follows it is thrown away.
    Close {
        /// Its code; `None` when the payload was empty.
        code: Option<u16>,
        /// Its reason: checked UTF-8.
        reason: ControlPayload,
    },
}

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

/// Whether a close frame may carry `code`: assigned by RFC 6455 §7.4.1 or its registry for use
/// on the wire, or of the ranges for libraries and applications.
pub const fn is_sendable_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Where the reader is in the stream of frames.
#[derive(Clone, Copy, Debug)]
enum State {
    /// In a header of which `length < HEADER_MAX` bytes are here.
    Header { bytes: [u8; HEADER_MAX], length: u8 },
    /// In a data payload of which `left > 0` bytes are missing; `key` is turned to the next one.
    Data { left: u32, key: [u8; 4], last_frame: bool },
    /// In a control payload of which `left > 0` bytes are missing.
    Control { opcode: OpCode, left: u8, key: [u8; 4] },
    /// After a close frame or an error.
    Ended,
}

const BETWEEN_FRAMES: State = State::Header { bytes: [0; HEADER_MAX], length: 0 };

/// The message in progress.
#[derive(Clone, Copy, Debug)]
struct Message {
    kind: DataKind,
    /// No piece was passed on yet.
    first: bool,
    /// Payload bytes of its frames so far, declared ones included. At most `message_max`.
    bytes: u32,
    /// Frames so far.
    fragments: u32,
    utf8: Utf8Validator,
}

/// A checked header.
#[derive(Clone, Copy, Debug)]
struct Header {
    last_frame: bool,
    opcode: OpCode,
    length: u32,
    key: [u8; 4],
    /// Bytes of the header itself.
    size: usize,
}

/// Reads the frames of one direction of one connection.
#[derive(Debug)]
pub struct FrameReader {
    side: Side,
    state: State,
    message: Option<Message>,
    /// Exists only while a control payload is incomplete.
    partial: Option<Box<ControlPayload>>,
    frames_seen: u16,
    controls_seen: u16,
}

const _: () = assert!(size_of::<FrameReader>() <= 56);

impl FrameReader {
    /// A reader at the beginning of the stream, right after the handshake.
    pub fn new(side: Side) -> Self {
        FrameReader {
            side,
            state: BETWEEN_FRAMES,
            message: None,
            partial: None,
            frames_seen: 0,
            controls_seen: 0,
        }
    }

    /// Takes input up to and including the next step; returns how many bytes it took. Message
    /// data is unmasked in place, at most `data_allowance` bytes of it.
    ///
    /// Call it until it says [`Step::NeedMore`] (all is taken) or [`Step::Blocked`] (the rest
    /// must be presented again, unchanged). After an error or a close frame, all further input
    /// is taken and thrown away.
    pub fn next(
        &mut self,
        input: &mut [u8],
        data_allowance: usize,
        limits: &FrameLimits,
    ) -> Result<(usize, Step), FrameError> {
        let result = self.advance(input, data_allowance, limits);
        if matches!(result, Err(_) | Ok((_, Step::Close { .. }))) {
            self.state = State::Ended;
            self.message = None;
            self.partial = None;
        }
        result
    }

    /// Whether a message has begun and not ended.
    pub fn in_message(&self) -> bool {
        self.message.is_some()
    }

    /// Frames of all kinds begun since the last call; stops counting at 65,535.
    pub fn frames_seen(&mut self) -> u32 {
        std::mem::take(&mut self.frames_seen).into()
    }

    /// Control frames begun since the last call; stops counting at 65,535.
    pub fn controls_seen(&mut self) -> u32 {
        std::mem::take(&mut self.controls_seen).into()
    }

    fn advance(
        &mut self,
        input: &mut [u8],
        data_allowance: usize,
        limits: &FrameLimits,
    ) -> Result<(usize, Step), FrameError> {
        let mut taken = 0;
        loop {
            match self.state {
                State::Ended => return Ok((input.len(), Step::NeedMore)),
                State::Header { .. } => {
                    let (count, header) = self.take_header(&input[taken..], limits)?;
                    taken += count;
                    let Some(header) = header else { return Ok((taken, Step::NeedMore)) };
                    if let Some(step) = self.begin_frame(header, taken)? {
                        return Ok((taken, step));
                    }
                }
                State::Data { left, key, last_frame } => {
                    let count = (input.len() - taken).min(left as usize);
                    if count == 0 {
                        return Ok((taken, Step::NeedMore));
                    }
                    let count = count.min(data_allowance);
                    if count == 0 {
                        return Ok((taken, Step::Blocked));
                    }
                    let range = taken..taken + count;
                    let piece = &mut input[range.clone()];
                    if self.side == Side::Server {
                        apply_mask(piece, key, 0);
                    }
                    let left = left - count as u32;
                    self.state = if left == 0 {
                        BETWEEN_FRAMES
                    } else {
                        State::Data { left, key: rotated(key, count), last_frame }
                    };
                    let (kind, first) = self.pass_on(piece, last_frame && left == 0)?;
                    let last = last_frame && left == 0;
                    return Ok((range.end, Step::Data { range, kind, first, last }));
                }
                State::Control { opcode, left, key } => {
                    let count = (input.len() - taken).min(usize::from(left));
                    let piece = &mut input[taken..taken + count];
                    taken += count;
                    let step = self.take_control(opcode, left, key, piece)?;
                    return Ok((taken, step.unwrap_or(Step::NeedMore)));
                }
            }
        }
    }

    /// Takes header bytes; gives the header when it is whole, and an error as soon as the bytes
    /// there are show one.
    fn take_header(
        &mut self,
        input: &[u8],
        limits: &FrameLimits,
    ) -> Result<(usize, Option<Header>), FrameError> {
        let State::Header { mut bytes, length } = self.state else {
            unreachable!("only called between payloads");
        };
        let mut have = usize::from(length);
        if have == 0 {
            if let Some(header) = self.check_header(input, limits)? {
                return Ok((header.size, Some(header)));
            }
            bytes[..input.len()].copy_from_slice(input);
            self.state = State::Header { bytes, length: input.len() as u8 };
            return Ok((input.len(), None));
        }
        for (index, byte) in input.iter().enumerate() {
            bytes[have] = *byte;
            have += 1;
            if let Some(header) = self.check_header(&bytes[..have], limits)? {
                return Ok((index + 1, Some(header)));
            }
        }
        self.state = State::Header { bytes, length: have as u8 };
        Ok((input.len(), None))
    }

    /// Every check that needs no payload. `None` when `bytes` end inside the header.
    fn check_header(
        &self,
        bytes: &[u8],
        limits: &FrameLimits,
    ) -> Result<Option<Header>, FrameError> {
        let Some(first) = bytes.first() else { return Ok(None) };
        let last_frame = first & 0x80 != 0;
        if first & 0x70 != 0 {
            return Err(FrameError::ReservedBits);
        }
        let bits = first & 0x0f;
        let opcode = OpCode::from_bits(bits).ok_or(FrameError::ReservedOpcode(bits))?;
        self.check_opcode(opcode, last_frame, limits)?;
        let Some(second) = bytes.get(1) else { return Ok(None) };
        match (second & 0x80 != 0, self.side) {
            (false, Side::Server) => return Err(FrameError::Unmasked),
            (true, Side::Client) => return Err(FrameError::Masked),
            _ => {}
        }
        match (second & 0x7f, opcode) {
            (126.., _) if opcode.is_control() => return Err(FrameError::OversizedControl),
            (1, OpCode::Close) => return Err(FrameError::CloseLength),
            _ => {}
        }
        let Some((length, mut size)) = declared_length(bytes)? else { return Ok(None) };
        let so_far = self.message.map_or(0, |message| message.bytes);
        let room = u64::from(limits.message_max.saturating_sub(so_far));
        if !opcode.is_control() && length > room {
            return Err(FrameError::TooLarge);
        }
        let mut key = [0; 4];
        if self.side == Side::Server {
            let Some(bytes) = bytes.get(size..size + 4) else { return Ok(None) };
            key.copy_from_slice(bytes);
            size += 4;
        }
        Ok(Some(Header { last_frame, opcode, length: length as u32, key, size }))
    }

    fn check_opcode(
        &self,
        opcode: OpCode,
        last_frame: bool,
        limits: &FrameLimits,
    ) -> Result<(), FrameError> {
        match (opcode, self.message) {
            (OpCode::Close | OpCode::Ping | OpCode::Pong, _) if !last_frame => {
                Err(FrameError::FragmentedControl)
            }
            (OpCode::Close | OpCode::Ping | OpCode::Pong, _) => Ok(()),
            (OpCode::Continuation, None) => Err(FrameError::StrayContinuation),
            (OpCode::Continuation, Some(message)) if message.fragments >= limits.fragments_max => {
                Err(FrameError::TooManyFragments)
            }
            (OpCode::Continuation, Some(_)) => Ok(()),
            (OpCode::Text | OpCode::Binary, Some(_)) => Err(FrameError::UnfinishedMessage),
            (OpCode::Text, None) if !limits.text => Err(FrameError::UnsupportedType),
            (OpCode::Binary, None) if !limits.binary => Err(FrameError::UnsupportedType),
            (OpCode::Text | OpCode::Binary, None) => Ok(()),
        }
    }

    /// Enters the frame's payload. A frame without one may be a step by itself; `at` is where
    /// in the input its header ends.
    fn begin_frame(&mut self, header: Header, at: usize) -> Result<Option<Step>, FrameError> {
        let Header { last_frame, opcode, length, key, .. } = header;
        self.frames_seen = self.frames_seen.saturating_add(1);
        self.state = BETWEEN_FRAMES;
        if opcode.is_control() {
            self.controls_seen = self.controls_seen.saturating_add(1);
            if length == 0 {
                return finished_control(opcode, ControlPayload::default()).map(Some);
            }
            self.state = State::Control { opcode, left: length as u8, key };
            return Ok(None);
        }
        let kind = if opcode == OpCode::Text { DataKind::Text } else { DataKind::Binary };
        let message = self.message.get_or_insert(Message {
            kind,
            first: true,
            bytes: 0,
            fragments: 0,
            utf8: Utf8Validator::default(),
        });
        message.bytes += length;
        message.fragments = message.fragments.saturating_add(1);
        if length > 0 {
            self.state = State::Data { left: length, key, last_frame };
            return Ok(None);
        }
        if !last_frame {
            return Ok(None);
        }
        let (kind, first) = self.pass_on(&[], true)?;
        Ok(Some(Step::Data { range: at..at, kind, first, last: true }))
    }

    /// Accounts for an unmasked piece of the message: its kind, and whether it is the first.
    fn pass_on(&mut self, piece: &[u8], last: bool) -> Result<(DataKind, bool), FrameError> {
        let Some(message) = &mut self.message else {
            unreachable!("data frames are only begun inside a message");
        };
        if message.kind == DataKind::Text {
            message.utf8.push(piece)?;
            if last && !message.utf8.is_complete() {
                return Err(FrameError::InvalidUtf8);
            }
        }
        let result = (message.kind, std::mem::replace(&mut message.first, false));
        if last {
            self.message = None;
        }
        Ok(result)
    }

    /// Takes a piece of a control payload; `None` while more is missing.
    fn take_control(
        &mut self,
        opcode: OpCode,
        left: u8,
        key: [u8; 4],
        piece: &mut [u8],
    ) -> Result<Option<Step>, FrameError> {
        if self.side == Side::Server {
            apply_mask(piece, key, 0);
        }
        let left = left - piece.len() as u8;
        if left == 0 {
            let mut payload = self.partial.take().map_or_else(Default::default, |partial| *partial);
            payload.extend(piece);
            self.state = BETWEEN_FRAMES;
            return finished_control(opcode, payload).map(Some);
        }
        if !piece.is_empty() {
            let partial = self.partial.get_or_insert_default();
            partial.extend(piece);
            if opcode == OpCode::Close {
                check_close(partial.as_slice(), false)?;
            }
            self.state = State::Control { opcode, left, key: rotated(key, piece.len()) };
        }
        Ok(None)
    }
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
/// sent through [`apply_mask`].
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

/// The payload length and where in the header it ends; `None` when `bytes` end before that.
/// `bytes` holds at least two.
fn declared_length(bytes: &[u8]) -> Result<Option<(u64, usize)>, FrameError> {
    let (length, size, least) = match bytes[1] & 0x7f {
        126 => {
            let Some(bytes) = bytes[2..].first_chunk() else { return Ok(None) };
            (u64::from(u16::from_be_bytes(*bytes)), 4, 126)
        }
        127 => {
            let Some(bytes) = bytes[2..].first_chunk() else { return Ok(None) };
            (u64::from_be_bytes(*bytes), 10, 1 << 16)
        }
        short => (u64::from(short), 2, 0),
    };
    if length < least {
        return Err(FrameError::NonMinimalLength);
    }
    if length >> 63 != 0 {
        return Err(FrameError::LengthTopBit);
    }
    Ok(Some((length, size)))
}

/// The step that a whole control frame is.
fn finished_control(opcode: OpCode, payload: ControlPayload) -> Result<Step, FrameError> {
    match opcode {
        OpCode::Ping => Ok(Step::Ping(payload)),
        OpCode::Pong => Ok(Step::Pong(payload)),
        OpCode::Close => {
            let code = check_close(payload.as_slice(), true)?;
            let mut reason = ControlPayload::default();
            reason.extend(payload.as_slice().get(2..).unwrap_or_default());
            Ok(Step::Close { code, reason })
        }
        OpCode::Continuation | OpCode::Text | OpCode::Binary => {
            unreachable!("only called for control frames")
        }
    }
}

/// Checks a close payload, or the beginning of one (RFC 6455 §5.5.1, §7.4, §8.1).
fn check_close(payload: &[u8], whole: bool) -> Result<Option<u16>, FrameError> {
    let Some((code, reason)) = payload.split_first_chunk() else { return Ok(None) };
    let code = u16::from_be_bytes(*code);
    if !is_sendable_close_code(code) {
        return Err(FrameError::CloseCode(code));
    }
    let mut utf8 = Utf8Validator::default();
    utf8.push(reason)?;
    if whole && !utf8.is_complete() {
        return Err(FrameError::InvalidUtf8);
    }
    Ok(Some(code))
}

#[cfg(test)]
mod tests {
    use std::io::{self, Cursor, Read, Write};

    use proptest::prelude::*;
    use proptest::sample::Index;
    use tungstenite::protocol::frame::CloseFrame;
    use tungstenite::protocol::frame::coding::CloseCode;
    use tungstenite::protocol::{Role, WebSocketConfig};
    use tungstenite::{Error as PeerError, Message as PeerMessage, WebSocket};

    use super::*;

    const LIMITS: FrameLimits =
        FrameLimits { message_max: 1 << 20, fragments_max: 1000, text: true, binary: true };
    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    /// What a whole stream was, however it was cut.
    #[derive(Debug, PartialEq)]
    enum Event {
        Message(DataKind, Vec<u8>),
        Ping(Vec<u8>),
        Pong(Vec<u8>),
        Close(Option<u16>, String),
        Error(FrameError),
    }

    #[derive(Debug, PartialEq)]
    struct Transcript {
        events: Vec<Event>,
        frames: u32,
        controls: u32,
    }

    /// Reads `stream` in inputs of the given sizes (the last is repeated), with an allowance of
    /// `allowance` for every call.
    fn read(
        side: Side,
        limits: &FrameLimits,
        stream: &[u8],
        sizes: &[usize],
        allowance: usize,
    ) -> Transcript {
        let mut reader = FrameReader::new(side);
        let mut events = Vec::new();
        let mut unfinished: Option<(DataKind, Vec<u8>)> = None;
        let (mut frames, mut controls) = (0, 0);
        let mut stream = stream;
        let mut sizes = sizes.iter();
        let mut size = stream.len();
        'stream: while !stream.is_empty() {
            size = sizes.next().copied().unwrap_or(size).clamp(1, stream.len());
            let (now, later) = stream.split_at(size);
            stream = later;
            let mut input = now.to_vec();
            loop {
                let result = reader.next(&mut input, allowance, limits);
                frames += reader.frames_seen();
                controls += reader.controls_seen();
                let (count, step) = match result {
                    Ok(result) => result,
                    Err(error) => {
                        events.push(Event::Error(error));
                        break 'stream;
                    }
                };
                match step {
                    Step::NeedMore => {
                        assert_eq!(count, input.len());
                        break;
                    }
                    Step::Blocked => panic!("the allowance is never zero"),
                    Step::Data { range, kind, first, last } => {
                        assert_eq!(range.end, count);
                        assert!(range.len() <= allowance);
                        assert!(!range.is_empty() || last, "an empty piece in the middle");
                        assert_eq!(first, unfinished.is_none());
                        let message = unfinished.get_or_insert((kind, Vec::new()));
                        message.1.extend_from_slice(&input[range]);
                        assert_eq!(reader.in_message(), !last);
                        if last {
                            let (kind, bytes) = unfinished.take().expect("just inserted");
                            events.push(Event::Message(kind, bytes));
                        }
                    }
                    Step::Ping(payload) => events.push(Event::Ping(payload.as_slice().to_vec())),
                    Step::Pong(payload) => events.push(Event::Pong(payload.as_slice().to_vec())),
                    Step::Close { code, reason } => {
                        events.push(Event::Close(code, reason.as_text().to_owned()));
                    }
                }
                input.drain(..count);
            }
        }
        Transcript { events, frames, controls }
    }

    fn frame(fin: bool, opcode: OpCode, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
        let header = write_header(fin, opcode, payload.len() as u64, mask);
        let mut bytes = [header.as_slice(), payload].concat();
        if let Some(key) = mask {
            apply_mask(&mut bytes[header.as_slice().len()..], key, 0);
        }
        bytes
    }

    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let opcode = OpCode::from_bits(first).expect("a frame type");
        frame(first & 0x80 != 0, opcode, payload, Some(KEY))
    }

    /// The error of a stream that a server reads, whole and byte by byte.
    fn error_of(limits: &FrameLimits, stream: &[u8]) -> Option<FrameError> {
        let whole = read(Side::Server, limits, stream, &[], usize::MAX);
        assert_eq!(read(Side::Server, limits, stream, &[1], 1), whole, "{stream:x?}");
        match whole.events.last() {
            Some(Event::Error(error)) => Some(*error),
            _ => None,
        }
    }

    #[test]
    fn headers_are_refused_before_their_payload() {
        use FrameError::*;
        let table: &[(&[u8], FrameError)] = &[
            (&[0xc1], ReservedBits),
            (&[0xa1], ReservedBits),
            (&[0x91], ReservedBits),
            (&[0x83], ReservedOpcode(3)),
            (&[0x87], ReservedOpcode(7)),
            (&[0x8b], ReservedOpcode(11)),
            (&[0x0f], ReservedOpcode(15)),
            (&[0x09], FragmentedControl),
            (&[0x08], FragmentedControl),
            (&[0x80], StrayContinuation),
            (&[0x00], StrayContinuation),
            (&[0x81, 0x05], Unmasked),
            (&[0x89, 0x00], Unmasked),
            (&[0x89, 0xfe], OversizedControl),
            (&[0x8a, 0xff], OversizedControl),
            (&[0x88, 0x81], CloseLength),
            (&[0x82, 0xfe, 0, 125], NonMinimalLength),
            (&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff], NonMinimalLength),
            (&[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], LengthTopBit),
            (&[0x82, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 1], TooLarge),
            (&[0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], TooLarge),
        ];
        for (bytes, error) in table {
            assert_eq!(error_of(&LIMITS, bytes), Some(*error), "{bytes:x?}");
            let shorter = &bytes[..bytes.len() - 1];
            assert_eq!(error_of(&LIMITS, shorter), None, "{shorter:x?} shows nothing yet");
        }
        let mut reader = FrameReader::new(Side::Client);
        assert_eq!(reader.next(&mut [0x81, 0x80], 9, &LIMITS), Err(Masked));
    }

    #[test]
    fn sequences_that_break_a_rule() {
        use FrameError::*;
        let small = FrameLimits { message_max: 10, fragments_max: 3, text: true, binary: true };
        let text = FrameLimits { binary: false, ..small };
        let binary = FrameLimits { text: false, ..small };
        let begun = |second: &[u8]| [masked(0x01, b"abc"), second.to_vec()].concat();
        let table: Vec<(FrameLimits, Vec<u8>, Option<FrameError>)> = vec![
            (small, begun(&[0x81]), Some(UnfinishedMessage)),
            (small, begun(&[0x02]), Some(UnfinishedMessage)),
            (small, begun(&masked(0x80, b"1234567")), None),
            (small, begun(&[0x80, 0x88]), Some(TooLarge)),
            (
                small,
                [begun(&[]), masked(0, b""), masked(0, b""), vec![0]].concat(),
                Some(TooManyFragments),
            ),
            (small, [begun(&[]), masked(0, b""), masked(0x80, b"")].concat(), None),
            (small, begun(&masked(0x89, &[7; 125])), None),
            (text, vec![0x82], Some(UnsupportedType)),
            (text, masked(0x81, b"a"), None),
            (binary, vec![0x01], Some(UnsupportedType)),
            (binary, masked(0x82, b"\xff"), None),
            (small, masked(0x81, b"a\xff"), Some(InvalidUtf8)),
            (small, masked(0x81, b"a\xe2\x82"), Some(InvalidUtf8)),
            (small, masked(0x01, b"a\xe2\x82"), None),
            (small, [masked(0x01, b"a\xe2\x82"), masked(0x80, b"\xac")].concat(), None),
            (small, [masked(0x01, b"a\xe2\x82"), masked(0x80, b"")].concat(), Some(InvalidUtf8)),
            (small, masked(0x01, b"\xf4\x90"), Some(InvalidUtf8)),
        ];
        for (limits, stream, error) in table {
            assert_eq!(error_of(&limits, &stream), error, "{stream:x?}");
        }
    }

    #[test]
    fn bad_text_is_found_before_its_frame_is_whole() {
        let mut frame = masked(0x81, &[&b"ok \xed\xa0"[..], &[b'x'; 100]].concat());
        let mut reader = FrameReader::new(Side::Server);
        let step = reader.next(&mut frame[..10], 999, &LIMITS).map(|(count, _)| count);
        assert_eq!(step, Ok(10));
        assert_eq!(reader.next(&mut frame[10..11], 999, &LIMITS), Err(FrameError::InvalidUtf8));
        let ended = reader.next(&mut frame[11..], 999, &LIMITS);
        assert_eq!(ended, Ok((100, Step::NeedMore)), "the rest is thrown away");

        let mut close = masked(0x88, &[&[0x03, 0xe8, 0xc0][..], &[b'x'; 50]].concat());
        let mut reader = FrameReader::new(Side::Server);
        assert_eq!(reader.next(&mut close[..8], 0, &LIMITS), Ok((8, Step::NeedMore)));
        assert_eq!(reader.next(&mut close[8..9], 0, &LIMITS), Err(FrameError::InvalidUtf8));
    }

    #[test]
    fn close_codes() {
        // 1014 was registered after RFC 6455 ("bad gateway"); the oracle does not know it.
        let allowed = |code: u16| code == 1014 || CloseCode::from(code).is_allowed();
        for code in 0..=u16::MAX {
            let expected = allowed(code);
            assert_eq!(is_sendable_close_code(code), expected, "{code}");
            let stream = masked(0x88, &code.to_be_bytes());
            let error = (!expected).then_some(FrameError::CloseCode(code));
            assert_eq!(error_of(&LIMITS, &stream), error);
        }
        let whole = |payload: &[u8]| {
            let events = read(Side::Server, &LIMITS, &masked(0x88, payload), &[3], 1).events;
            events.into_iter().next().expect("one event")
        };
        assert_eq!(whole(b""), Event::Close(None, String::new()));
        assert_eq!(whole(b"\x03\xe9bye \xc3\xbc"), Event::Close(Some(1001), "bye ü".into()));
        assert_eq!(whole(b"\x03\xe9\xff"), Event::Error(FrameError::InvalidUtf8));
        assert_eq!(whole(b"\x03\xe9\xc3"), Event::Error(FrameError::InvalidUtf8));
    }

    #[test]
    fn every_error_has_the_close_code_of_the_rfc() {
        let table = [
            (FrameError::Unmasked, Cause::ProtocolError, 1002),
            (FrameError::CloseCode(5), Cause::ProtocolError, 1002),
            (FrameError::InvalidUtf8, Cause::InvalidUtf8, 1007),
            (FrameError::TooLarge, Cause::TooLarge, 1009),
            (FrameError::TooManyFragments, Cause::TooLarge, 1009),
            (FrameError::UnsupportedType, Cause::UnsupportedType, 1003),
        ];
        for (error, cause, code) in table {
            assert_eq!((error.cause(), error.close_code()), (cause, code));
        }
    }

    #[test]
    fn data_waits_for_its_allowance_and_control_does_not() {
        let stream =
            [masked(0x02, b"abcdef"), masked(0x89, b"hi"), masked(0x80, b""), masked(0x81, b"")];
        let mut input = stream.concat();
        let mut reader = FrameReader::new(Side::Server);
        let data = |range, kind, first, last| Step::Data { range, kind, first, last };
        let mut step = |at: &mut usize, allowance| {
            let (count, step) = reader.next(&mut input[*at..], allowance, &LIMITS).expect("valid");
            *at += count;
            step
        };
        let mut at = 0;
        assert_eq!(step(&mut at, 0), Step::Blocked);
        assert_eq!(at, 6, "the header is taken");
        assert_eq!(step(&mut at, 0), Step::Blocked);
        assert_eq!(step(&mut at, 4), data(0..4, DataKind::Binary, true, false));
        assert_eq!(step(&mut at, 0), Step::Blocked);
        assert_eq!(step(&mut at, 4), data(0..2, DataKind::Binary, false, false));
        assert_eq!(step(&mut at, 0), Step::Ping(ControlPayload::new(b"hi").expect("short")));
        assert_eq!(step(&mut at, 0), data(6..6, DataKind::Binary, false, true));
        assert_eq!(step(&mut at, 0), data(6..6, DataKind::Text, true, true));
        assert_eq!(step(&mut at, 0), Step::NeedMore);
        assert_eq!(&input[6..12], b"abcdef", "unmasked in place");
        assert_eq!((reader.frames_seen(), reader.controls_seen()), (4, 1));
        assert_eq!((reader.frames_seen(), reader.controls_seen()), (0, 0));
    }

    #[test]
    fn a_control_payload_is_kept_only_while_it_is_incomplete() {
        let mut ping = masked(0x89, &[5; 20]);
        let mut reader = FrameReader::new(Side::Server);
        assert_eq!(reader.next(&mut ping[..16], 0, &LIMITS), Ok((16, Step::NeedMore)));
        assert!(reader.partial.is_some());
        let payload = ControlPayload::new(&[5; 20]).expect("short");
        assert_eq!(reader.next(&mut ping[16..], 0, &LIMITS), Ok((10, Step::Ping(payload))));
        assert!(reader.partial.is_none());
    }

    #[test]
    fn headers_have_the_shortest_length() {
        let table: &[(u64, &[u8])] = &[
            (0, &[0x82, 0]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (65_535, &[0x82, 126, 0xff, 0xff]),
            (65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ];
        for (length, expected) in table {
            let header = write_header(true, DataKind::Binary.opcode(true), *length, None);
            assert_eq!(header.as_slice(), *expected);
        }
        let header = write_header(false, DataKind::Text.opcode(false), 1 << 40, Some(KEY));
        let expected = [0x00, 0xff, 0, 0, 1, 0, 0, 0, 0, 0, 0x37, 0xfa, 0x21, 0x3d];
        assert_eq!(header.as_slice(), expected);
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let reason = format!("{}é and more", "x".repeat(122));
        let payload = close_payload(4401, &reason);
        assert_eq!(payload.as_slice(), [&4401u16.to_be_bytes()[..], &[b'x'; 122]].concat());
        assert_eq!(close_payload(1000, "ok").as_slice(), b"\x03\xe8ok");
        assert_eq!(close_payload(1000, &"y".repeat(123)).as_slice().len(), 125);
    }

    /// The oracle's end of a connection: reads `input`, then would block.
    struct Pipe {
        input: Cursor<Vec<u8>>,
        output: Vec<u8>,
    }

    impl Read for Pipe {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            match self.input.read(into)? {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                count => Ok(count),
            }
        }
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.output.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn oracle(role: Role, input: &[u8]) -> WebSocket<Pipe> {
        let pipe = Pipe { input: Cursor::new(input.to_vec()), output: Vec::new() };
        let mut config = WebSocketConfig::default();
        config.max_message_size = Some(1 << 20);
        config.max_frame_size = Some(1 << 20);
        WebSocket::from_raw_socket(pipe, role, Some(config))
    }

    /// What the oracle reads up to a close frame; the flag says that it refused the stream.
    fn oracle_reads(role: Role, stream: &[u8]) -> (Vec<Event>, bool) {
        let mut socket = oracle(role, stream);
        let mut events = Vec::new();
        loop {
            if matches!(events.last(), Some(Event::Close(..))) {
                return (events, false);
            }
            match socket.read() {
                Ok(PeerMessage::Text(text)) => {
                    events.push(Event::Message(DataKind::Text, text.as_bytes().to_vec()));
                }
                Ok(PeerMessage::Binary(bytes)) => {
                    events.push(Event::Message(DataKind::Binary, bytes.to_vec()));
                }
                Ok(PeerMessage::Ping(bytes)) => events.push(Event::Ping(bytes.to_vec())),
                Ok(PeerMessage::Pong(bytes)) => events.push(Event::Pong(bytes.to_vec())),
                Ok(PeerMessage::Close(None)) => events.push(Event::Close(None, String::new())),
                Ok(PeerMessage::Close(Some(CloseFrame { code, reason }))) => {
                    events.push(Event::Close(Some(code.into()), reason.to_string()));
                }
                Ok(PeerMessage::Frame(_)) => unreachable!("never read"),
                Err(PeerError::Io(_) | PeerError::ConnectionClosed) => return (events, false),
                Err(_) => return (events, true),
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Item {
        Message(DataKind, Vec<u8>, Vec<Index>),
        Ping(Vec<u8>),
        Pong(Vec<u8>),
    }

    fn item() -> impl Strategy<Value = Item> {
        let cuts = || prop::collection::vec(any::<Index>(), 0..4);
        let short = || prop::collection::vec(any::<u8>(), 0..126);
        let long = prop_oneof![4 => 0..300usize, 1 => 65_000..66_000usize];
        let binary = (any::<u8>(), long).prop_map(|(seed, length)| {
            (0..length).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
        });
        let text = prop::collection::vec(any::<char>(), 0..90)
            .prop_map(|chars| chars.into_iter().collect::<String>().into_bytes());
        prop_oneof![
            (binary, cuts()).prop_map(|(b, cuts)| Item::Message(DataKind::Binary, b, cuts)),
            (text, cuts()).prop_map(|(t, cuts)| Item::Message(DataKind::Text, t, cuts)),
            short().prop_map(Item::Ping),
            short().prop_map(Item::Pong),
        ]
    }

    fn events_of(items: &[Item]) -> Vec<Event> {
        let event = |item: &Item| match item.clone() {
            Item::Message(kind, bytes, _) => Event::Message(kind, bytes),
            Item::Ping(bytes) => Event::Ping(bytes),
            Item::Pong(bytes) => Event::Pong(bytes),
        };
        items.iter().map(event).collect()
    }

    /// The items as frames, messages cut where they ask for it; then a close frame.
    fn encode(items: &[Item], mask: Option<[u8; 4]>) -> Vec<u8> {
        let mut stream = Vec::new();
        for item in items {
            match item {
                Item::Ping(bytes) => {
                    stream.extend(frame(true, OpCode::Ping, bytes, mask));
                }
                Item::Pong(bytes) => {
                    stream.extend(frame(true, OpCode::Pong, bytes, mask));
                }
                Item::Message(kind, bytes, cuts) => {
                    let mut cuts: Vec<_> =
                        cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
                    cuts.push(0);
                    cuts.sort_unstable();
                    let ends = cuts.iter().skip(1).copied().chain([bytes.len()]);
                    for (number, (start, end)) in cuts.iter().zip(ends).enumerate() {
                        let opcode = kind.opcode(number == 0);
                        let fin = number + 1 == cuts.len();
                        stream.extend(frame(fin, opcode, &bytes[*start..end], mask));
                    }
                }
            }
        }
        let close = close_payload(4000, "done");
        stream.extend(frame(true, OpCode::Close, close.as_slice(), mask));
        stream
    }

    /// (our side, the oracle's role when it reads what we would read, mask of the stream)
    const DIRECTIONS: [(Side, Role, Option<[u8; 4]>); 2] =
        [(Side::Server, Role::Server, Some(KEY)), (Side::Client, Role::Client, None)];

    proptest! {
        #[test]
        fn the_oracle_reads_what_we_write_and_so_do_we(
            items in prop::collection::vec(item(), 0..8),
            sizes in prop::collection::vec(1..400usize, 1..6),
            allowance in 1..5000usize,
        ) {
            let mut expected = events_of(&items);
            expected.push(Event::Close(Some(4000), "done".into()));
            for (side, role, mask) in DIRECTIONS {
                let stream = encode(&items, mask);
                let (events, refused) = oracle_reads(role, &stream);
                prop_assert!(!refused);
                prop_assert_eq!(&events, &expected);
                let whole = read(side, &LIMITS, &stream, &[], usize::MAX);
                prop_assert_eq!(&whole.events, &expected);
                prop_assert_eq!(read(side, &LIMITS, &stream, &sizes, allowance), whole);
            }
        }

        #[test]
        fn we_read_what_the_oracle_writes(items in prop::collection::vec(item(), 0..8)) {
            for (side, role) in [(Side::Server, Role::Client), (Side::Client, Role::Server)] {
                let mut socket = oracle(role, b"");
                for item in &items {
                    let message = match item.clone() {
                        Item::Message(DataKind::Text, bytes, _) => {
                            PeerMessage::text(String::from_utf8(bytes).expect("text"))
                        }
                        Item::Message(DataKind::Binary, bytes, _) => PeerMessage::binary(bytes),
                        Item::Ping(bytes) => PeerMessage::Ping(bytes.into()),
                        Item::Pong(bytes) => PeerMessage::Pong(bytes.into()),
                    };
                    socket.send(message).expect("the pipe takes everything");
                }
                let transcript = read(side, &LIMITS, &socket.get_ref().output, &[], usize::MAX);
                prop_assert_eq!(transcript.events, events_of(&items));
                prop_assert_eq!(transcript.frames, items.len() as u32);
            }
        }

        #[test]
        fn what_the_oracle_refuses_we_refuse_and_chunking_never_matters(
            items in prop::collection::vec(item(), 1..5),
            damage in prop::collection::vec((any::<Index>(), any::<u8>()), 1..4),
            near_start in any::<bool>(),
            sizes in prop::collection::vec(1..200usize, 1..6),
            allowance in 1..5000usize,
        ) {
            for (side, role, mask) in DIRECTIONS {
                let mut stream = encode(&items, mask);
                for (index, byte) in &damage {
                    let within = if near_start { stream.len().min(16) } else { stream.len() };
                    stream[index.index(within)] = *byte;
                }
                let (events, refused) = oracle_reads(role, &stream);
                let whole = read(side, &LIMITS, &stream, &[], usize::MAX);
                let failed = matches!(whole.events.last(), Some(Event::Error(_)));
                prop_assert!(failed || !refused, "only the oracle refuses {:x?}", stream);
                if !failed {
                    prop_assert_eq!(&whole.events, &events);
                }
                prop_assert_eq!(read(side, &LIMITS, &stream, &sizes, allowance), whole);
            }
        }
    }
}
