use std::io::{self, Cursor, Read, Write};

use proptest::prelude::*;
use proptest::sample::Index;
use tungstenite::protocol::frame::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error as PeerError, Message as PeerMessage, WebSocket};

use super::*;
use crate::protocol::cause::Cause;
use crate::protocol::mask::apply_mask;

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
                let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
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
