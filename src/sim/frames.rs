//! WebSocket framing as the fake clients speak it: written apart from the gateway's own codec,
//! straight from RFC 6455 §5, so that each checks the other.

/// Opcode of a continuation.
pub const CONTINUATION: u8 = 0;
/// Opcode of a text message.
pub const TEXT: u8 = 1;
/// Opcode of a binary message.
pub const BINARY: u8 = 2;
/// Opcode of a close.
pub const CLOSE: u8 = 8;
/// Opcode of a ping.
pub const PING: u8 = 9;
/// Opcode of a pong.
pub const PONG: u8 = 10;

/// Appends a masked frame, as clients send them.
pub fn encode(opcode: u8, fin: bool, payload: &[u8], key: [u8; 4], out: &mut Vec<u8>) {
    out.push(opcode | if fin { 0x80 } else { 0 });
    match payload.len() {
        short @ 0..126 => out.push(0x80 | short as u8),
        medium @ 126..65_536 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&key);
    out.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
}

/// A frame from the gateway.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// The opcode.
    pub opcode: u8,
    /// The last frame of its message.
    pub fin: bool,
    /// The payload.
    pub payload: Vec<u8>,
}

/// Takes a whole frame off the front of `input`; `None` when more bytes are needed.
///
/// # Errors
/// What a server's frame may never be.
pub fn decode(input: &mut Vec<u8>) -> Result<Option<Frame>, &'static str> {
    let [first, second, ..] = input[..] else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err("reserved bits set");
    }
    if second & 0x80 != 0 {
        return Err("server frame masked");
    }
    let (opcode, fin) = (first & 15, first & 0x80 != 0);
    if !matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG) {
        return Err("reserved opcode");
    }
    let (length, start) = match second {
        126 => {
            let Some(bytes) = input.get(2..4) else { return Ok(None) };
            (usize::from(u16::from_be_bytes([bytes[0], bytes[1]])), 4)
        }
        127 => {
            let Some(bytes) = input.get(2..10) else { return Ok(None) };
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), 10)
        }
        short => (usize::from(short), 2),
    };
    let minimal = match start {
        2 => true,
        4 => length >= 126,
        _ => length >= 65_536,
    };
    if !minimal {
        return Err("length not minimal");
    }
    if opcode >= CLOSE && (length > 125 || !fin) {
        return Err("control frame too long or in pieces");
    }
    let end = start + length;
    if input.len() < end {
        return Ok(None);
    }
    let payload = input[start..end].to_vec();
    input.drain(..end);
    Ok(Some(Frame { opcode, fin, payload }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_frames_are_checked() {
        let frame = |opcode, fin, payload: &[u8]| {
            Ok(Some(Frame { opcode, fin, payload: payload.to_vec() }))
        };
        for (bytes, expected) in [
            (&b"\x81\x05Hello"[..], frame(TEXT, true, b"Hello")),
            (b"\x02\x01x", frame(BINARY, false, b"x")),
            (b"\x88\x02\x03\xe8", frame(CLOSE, true, b"\x03\xe8")),
            (b"\x81\x05Hell", Ok(None)),
            (b"\x81", Ok(None)),
            (b"\xc1\x00", Err("reserved bits set")),
            (b"\x81\x80\0\0\0\0", Err("server frame masked")),
            (b"\x83\x00", Err("reserved opcode")),
            (b"\x81\x7e\x00\x05Hello", Err("length not minimal")),
            (b"\x09\x00", Err("control frame too long or in pieces")),
        ] {
            assert_eq!(decode(&mut bytes.to_vec()), expected, "{bytes:?}");
        }
    }

    #[test]
    fn client_frames_are_those_of_the_rfc() {
        let mut out = Vec::new();
        encode(TEXT, true, b"Hello", [0x37, 0xfa, 0x21, 0x3d], &mut out);
        assert_eq!(out, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", "RFC 6455 section 5.7");
    }
}
