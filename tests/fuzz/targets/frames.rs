//! WebSocket frames against tungstenite, and what they are made of against the obvious.

use std::io::{self, Cursor, Read, Write};

use portcullis::protocol::mask::{apply_mask, rotated};
use portcullis::protocol::utf8::Utf8Validator;
use portcullis::protocol::websocket::{DataKind, FrameError, FrameLimits, FrameReader, Side, Step};
use tungstenite::protocol::frame::CloseFrame;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

use super::{pieces, with_cuts};

const LIMITS: FrameLimits =
    FrameLimits { message_max: 1 << 16, fragments_max: 100, text: true, binary: true };

/// What a stream holds.
#[derive(Debug, PartialEq)]
enum Event {
    Message(DataKind, Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>, String),
    Error(FrameError),
}

/// Any pieces and any allowance give the same messages; tungstenite reads the same ones, and
/// refuses nothing that we take.
pub fn frames(data: &[u8]) {
    let Some((choice, data)) = data.split_first() else { return };
    let (side, role) = match choice & 1 {
        0 => (Side::Server, Role::Server),
        _ => (Side::Client, Role::Client),
    };
    let (random, bytes) = with_cuts(data);
    let whole = read(side, [bytes].into_iter(), usize::MAX);
    let allowance = 1 + usize::from(*choice >> 1);
    assert_eq!(read(side, pieces(random, bytes), allowance), whole, "by piece and whole");
    let (theirs, refused) = oracle(role, bytes);
    match whole.last() {
        Some(Event::Error(_)) => {}
        // Registered after RFC 6455; the oracle does not know it.
        Some(Event::Close(Some(1014), _)) => {}
        _ => {
            assert!(!refused, "only the oracle refuses this; we read {whole:?}");
            assert_eq!(whole, theirs);
        }
    }
}

fn read<'a>(side: Side, pieces: impl Iterator<Item = &'a [u8]>, allowance: usize) -> Vec<Event> {
    let mut reader = FrameReader::new(side);
    let mut events = Vec::new();
    let mut message = Vec::new();
    for piece in pieces {
        let mut input = piece.to_vec();
        loop {
            let (used, step) = match reader.next(&mut input, allowance, &LIMITS) {
                Ok(found) => found,
                Err(error) => {
                    events.push(Event::Error(error));
                    return events;
                }
            };
            match step {
                Step::NeedMore => {
                    assert_eq!(used, input.len());
                    break;
                }
                Step::Blocked => panic!("the allowance is never zero"),
                Step::Data { range, kind, first, last } => {
                    assert!(range.end <= used && range.len() <= allowance);
                    assert!(!first || message.is_empty());
                    message.extend_from_slice(&input[range]);
                    assert!(message.len() <= LIMITS.message_max as usize);
                    if last {
                        events.push(Event::Message(kind, std::mem::take(&mut message)));
                    }
                }
                Step::Ping(payload) => events.push(Event::Ping(payload.as_slice().to_vec())),
                Step::Pong(payload) => events.push(Event::Pong(payload.as_slice().to_vec())),
                Step::Close { code, reason } => {
                    events.push(Event::Close(code, reason.as_text().to_owned()));
                    return events;
                }
            }
            input.drain(..used);
        }
    }
    events
}

/// The oracle's end of a connection: reads its input, then would block.
struct Pipe(Cursor<Vec<u8>>);

impl Read for Pipe {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.0.read(into)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the oracle reads up to a close frame; the flag says that it refused the stream.
fn oracle(role: Role, stream: &[u8]) -> (Vec<Event>, bool) {
    let mut config = WebSocketConfig::default();
    config.max_message_size = Some(LIMITS.message_max as usize);
    config.max_frame_size = Some(LIMITS.message_max as usize);
    let pipe = Pipe(Cursor::new(stream.to_vec()));
    let mut socket = WebSocket::from_raw_socket(pipe, role, Some(config));
    let mut events = Vec::new();
    loop {
        if matches!(events.last(), Some(Event::Close(..))) {
            return (events, false);
        }
        events.push(match socket.read() {
            Ok(Message::Text(text)) => Event::Message(DataKind::Text, text.as_bytes().to_vec()),
            Ok(Message::Binary(bytes)) => Event::Message(DataKind::Binary, bytes.to_vec()),
            Ok(Message::Ping(bytes)) => Event::Ping(bytes.to_vec()),
            Ok(Message::Pong(bytes)) => Event::Pong(bytes.to_vec()),
            Ok(Message::Close(None)) => Event::Close(None, String::new()),
            Ok(Message::Close(Some(CloseFrame { code, reason }))) => {
                Event::Close(Some(code.into()), reason.to_string())
            }
            Ok(Message::Frame(_)) => unreachable!("never read"),
            Err(Error::Io(_) | Error::ConnectionClosed) => return (events, false),
            Err(_) => return (events, true),
        });
    }
}

/// The validator says what the standard library says, in any pieces.
pub fn utf8(data: &[u8]) {
    let (random, bytes) = with_cuts(data);
    let expected = match std::str::from_utf8(bytes) {
        Ok(_) => Some(true),
        Err(error) if error.error_len().is_none() => Some(false),
        Err(_) => None,
    };
    for pieces in
        [&mut [bytes].into_iter() as &mut dyn Iterator<Item = &[u8]>, &mut pieces(random, bytes)]
    {
        let mut validator = Utf8Validator::default();
        let valid = pieces.map(|piece| validator.push(piece)).all(|result| result.is_ok());
        assert_eq!(valid.then(|| validator.is_complete()), expected);
    }
}

/// Unmasking is an exclusive or, byte by byte, in any pieces.
pub fn mask(data: &[u8]) {
    let Some((key, data)) = data.split_first_chunk::<4>() else { return };
    let (random, bytes) = with_cuts(data);
    let slow: Vec<u8> =
        bytes.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
    let mut fast = bytes.to_vec();
    apply_mask(&mut fast, *key, 0);
    assert_eq!(fast, slow);
    let (mut at, mut turned) = (0, *key);
    for piece in pieces(random, bytes) {
        let mut by_offset = piece.to_vec();
        apply_mask(&mut by_offset, *key, at);
        let mut by_key = piece.to_vec();
        apply_mask(&mut by_key, turned, 0);
        assert_eq!(by_offset, slow[at..at + piece.len()]);
        assert_eq!(by_key, by_offset);
        at += piece.len();
        turned = rotated(turned, piece.len());
    }
}
