//! Reads frames. It checks everything that a header can tell before it looks at the payload, and
//! passes data on as it arrives: it has no buffer.

use std::ops::Range;

use super::error::FrameError;
use super::frame::{ControlPayload, DataKind, HEADER_MAX, OpCode, is_sendable_close_code};
use crate::protocol::mask::{apply_mask, rotated};
use crate::protocol::utf8::Utf8Validator;

/// Who reads: it decides whether frames must be masked (RFC 6455 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A server: every frame must be masked.
    Server,
    /// A client: no frame may be masked.
    Client,
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
    pub(super) partial: Option<Box<ControlPayload>>,
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
