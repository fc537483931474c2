//! The client's and the bare server's share of RFC 6455, small enough to cost next to nothing:
//! message patterns, frame headers, an incremental frame reader, the two upgrade heads.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use sha1::{Digest, Sha1};

/// Opcode of a text frame.
pub const TEXT: u8 = 1;
/// Opcode of a binary frame.
pub const BINARY: u8 = 2;
/// Opcode of a close frame.
pub const CLOSE: u8 = 8;
/// Opcode of a ping frame.
pub const PING: u8 = 9;
/// Opcode of a pong frame.
pub const PONG: u8 = 10;

/// Eight bytes of a message's pattern, all of them printable ASCII or DEL, so that the same
/// pattern is valid as text.
fn pattern_word(seed: u64, index: u64) -> u64 {
    let mixed =
        (seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    ((mixed ^ (mixed >> 31)) & 0x3f3f_3f3f_3f3f_3f3f) | 0x4040_4040_4040_4040
}

/// The seed of message `sequence` of one connection.
pub fn pattern_seed(connection: u64, sequence: u64) -> u64 {
    (connection << 32 | (sequence & 0xffff_ffff)).wrapping_mul(0xc4ce_b9fe_1a85_ec53)
}

/// Whether `bytes` is what the pattern of `seed` holds at `offset`.
pub fn pattern_matches(bytes: &[u8], seed: u64, offset: usize) -> bool {
    let lead = (8 - offset % 8) % 8;
    let (head, rest) = bytes.split_at(lead.min(bytes.len()));
    let byte = |at: usize| pattern_word(seed, (at / 8) as u64).to_le_bytes()[at % 8];
    if !head.iter().enumerate().all(|(i, b)| *b == byte(offset + i)) {
        return false;
    }
    let mut index = ((offset + lead) / 8) as u64;
    let mut words = rest.chunks_exact(8);
    for word in words.by_ref() {
        if word != pattern_word(seed, index).to_le_bytes() {
            return false;
        }
        index += 1;
    }
    let tail = words.remainder();
    *tail == pattern_word(seed, index).to_le_bytes()[..tail.len()]
}

/// Appends a masked frame that carries the pattern of `seed`.
pub fn encode_pattern(out: &mut Vec<u8>, opcode: u8, seed: u64, length: usize, mask: u32) {
    encode_header(out, opcode, length, Some(mask));
    let wide = u64::from(mask) << 32 | u64::from(mask);
    for index in 0..(length / 8) as u64 {
        out.extend_from_slice(&(pattern_word(seed, index) ^ wide).to_le_bytes());
    }
    let last = (pattern_word(seed, (length / 8) as u64) ^ wide).to_le_bytes();
    out.extend_from_slice(&last[..length % 8]);
}

/// Appends a masked frame that carries `payload`.
pub fn encode_masked(out: &mut Vec<u8>, opcode: u8, payload: &[u8], mask: u32) {
    encode_header(out, opcode, payload.len(), Some(mask));
    let start = out.len();
    out.extend_from_slice(payload);
    unmask(&mut out[start..], mask, 0);
}

/// Appends the header of a whole message (FIN set), RFC 6455 §5.2. The mask is the key's four
/// bytes read as little-endian.
pub fn encode_header(out: &mut Vec<u8>, opcode: u8, length: usize, mask: Option<u32>) {
    let bit = if mask.is_some() { 0x80 } else { 0 };
    out.push(0x80 | opcode);
    match length {
        0..=125 => out.push(bit | length as u8),
        126..=0xffff => {
            out.push(bit | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            out.push(bit | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    if let Some(mask) = mask {
        out.extend_from_slice(&mask.to_le_bytes());
    }
}

/// Applies a mask to bytes that begin `offset` bytes into their frame.
pub fn unmask(bytes: &mut [u8], mask: u32, offset: usize) {
    let mask = mask.rotate_right(8 * (offset as u32 % 4));
    let wide = u64::from(mask) << 32 | u64::from(mask);
    let mut words = bytes.chunks_exact_mut(8);
    for word in words.by_ref() {
        let value = u64::from_le_bytes((&*word).try_into().expect("eight bytes")) ^ wide;
        word.copy_from_slice(&value.to_le_bytes());
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(wide.to_le_bytes()) {
        *byte ^= key;
    }
}

/// A piece of a frame's payload, as it arrived.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The frame's opcode; 0 for a continuation.
    pub opcode: u8,
    /// Whether the frame is the last of its message.
    pub fin: bool,
    /// Whether this piece begins the frame.
    pub begins: bool,
    /// Whether this piece ends the frame.
    pub ends: bool,
    /// The frame's payload length.
    pub length: u64,
    /// The mask, turned so that it fits the start of `bytes`; 0 when unmasked.
    pub mask: u32,
    /// The payload, still masked.
    pub bytes: &'a [u8],
}

/// Reads frames from any chunking of a stream, keeping nothing but a partial header.
#[derive(Default)]
pub struct FrameReader {
    header: [u8; 14],
    have: u8,
    in_payload: bool,
    remaining: u64,
    length: u64,
    mask: u32,
}

impl FrameReader {
    /// Takes the next piece off the front of `input`; `None` when more bytes are needed.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Option<Piece<'a>> {
        let begins = !self.in_payload;
        if begins {
            if !self.read_header(input) {
                return None;
            }
        } else if input.is_empty() {
            return None;
        }
        let take = self.remaining.min(input.len() as u64) as usize;
        let (bytes, rest) = input.split_at(take);
        *input = rest;
        let done = self.length - self.remaining;
        self.remaining -= take as u64;
        let ends = self.remaining == 0;
        self.in_payload = !ends;
        Some(Piece {
            opcode: self.header[0] & 0x0f,
            fin: self.header[0] & 0x80 != 0,
            begins,
            ends,
            length: self.length,
            mask: self.mask.rotate_right(8 * (done % 4) as u32),
            bytes,
        })
    }

    fn read_header(&mut self, input: &mut &[u8]) -> bool {
        loop {
            let need = self.header_length();
            let have = usize::from(self.have);
            let take = (need - have).min(input.len());
            self.header[have..have + take].copy_from_slice(&input[..take]);
            *input = &input[take..];
            self.have += take as u8;
            if have + take < need {
                return false;
            }
            if self.header_length() == need {
                break;
            }
        }
        let header = &self.header;
        let (length, at) = match header[1] & 0x7f {
            126 => (u64::from(u16::from_be_bytes([header[2], header[3]])), 4),
            127 => (u64::from_be_bytes(header[2..10].try_into().expect("eight bytes")), 10),
            short => (u64::from(short), 2),
        };
        self.mask = if header[1] & 0x80 != 0 {
            u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"))
        } else {
            0
        };
        self.length = length;
        self.remaining = length;
        self.have = 0;
        true
    }

    fn header_length(&self) -> usize {
        if self.have < 2 {
            return 2;
        }
        let extended = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + extended + if self.header[1] & 0x80 != 0 { 4 } else { 0 }
    }
}

/// The code and reason of a close frame's payload; 1005 when it carries none (§7.1.5).
pub fn close_code(payload: &[u8]) -> (u16, String) {
    match payload {
        [high, low, reason @ ..] => {
            (u16::from_be_bytes([*high, *low]), String::from_utf8_lossy(reason).into_owned())
        }
        _ => (1005, String::new()),
    }
}

/// The answer to a `Sec-WebSocket-Key` (§4.2.2).
pub fn accept_key(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finalize())
}

/// A client's upgrade request.
pub fn upgrade_request(authority: &str, path: &str, key: &str, headers: &[String]) -> Vec<u8> {
    let mut head = format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
    );
    for header in headers {
        let _ = write!(head, "{header}\r\n");
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// A token in the shape of an HS256 JWT, told apart by `salt`, with a signature that no key made.
pub fn unsigned_token(salt: (u64, u64)) -> String {
    let mut signature = [0x5a; 32];
    signature[..8].copy_from_slice(&salt.0.to_le_bytes());
    signature[8..16].copy_from_slice(&salt.1.to_le_bytes());
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let claims = URL_SAFE_NO_PAD.encode(r#"{"sub":"nobody","exp":1900000000}"#);
    format!("{header}.{claims}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// Where a head ends, one past its blank line.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// Checks a server's answer to an upgrade. The error is the kind of failure for the report.
pub fn check_response(head: &[u8], accept: &str) -> Result<(), String> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut fields);
    match response.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        _ => return Err("answer is not HTTP".to_owned()),
    }
    let code = response.code.unwrap_or(0);
    if code != 101 {
        return Err(format!("HTTP {code}"));
    }
    let given = response
        .headers
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case("sec-websocket-accept"))
        .map(|field| field.value);
    match given {
        Some(value) if value == accept.as_bytes() => Ok(()),
        _ => Err("wrong Sec-WebSocket-Accept".to_owned()),
    }
}

/// Refuses to measure with codecs that do not agree with each other or with RFC 6455's own
/// examples; a wrong reader would call every server wrong. Takes well under a millisecond.
pub fn self_check() -> Result<(), String> {
    let fail = |what: &str| Err(format!("the harness's own codec is wrong: {what}"));
    if accept_key("dGhlIHNhbXBsZSBub25jZQ==") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
        return fail("accept key (RFC 6455 section 1.3)");
    }
    let mut hello = Vec::new();
    encode_masked(&mut hello, TEXT, b"Hello", u32::from_le_bytes([0x37, 0xfa, 0x21, 0x3d]));
    if hello != [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58] {
        return fail("masked frame (RFC 6455 section 5.7)");
    }
    for length in [0, 1, 7, 8, 64, 125, 126, 300, 65_535, 65_536] {
        let (seed, mask) = (pattern_seed(7, length as u64), 0xa1b2_c3d4);
        let mut stream = Vec::new();
        encode_pattern(&mut stream, BINARY, seed, length, mask);
        for chunk in [1, 3, 14, 1000, stream.len()] {
            if !pattern_survives(&stream, chunk, seed, length) {
                return fail(&format!("{length} bytes in pieces of {chunk}"));
            }
        }
    }
    let mut spoiled = Vec::new();
    encode_pattern(&mut spoiled, BINARY, pattern_seed(7, 64), 64, 0);
    spoiled[40] ^= 1;
    if pattern_survives(&spoiled, spoiled.len(), pattern_seed(7, 64), 64) {
        return fail("a spoiled payload passes");
    }
    Ok(())
}

fn pattern_survives(stream: &[u8], chunk: usize, seed: u64, length: usize) -> bool {
    let mut reader = FrameReader::default();
    let (mut seen, mut ended) = (0, false);
    for mut input in stream.chunks(chunk) {
        while let Some(piece) = reader.next(&mut input) {
            let mut bytes = piece.bytes.to_vec();
            unmask(&mut bytes, piece.mask, 0);
            if ended || piece.opcode != BINARY || !pattern_matches(&bytes, seed, seen) {
                return false;
            }
            seen += bytes.len();
            ended = piece.ends;
        }
    }
    ended && seen == length
}
