//! WebSocket framing as the fake clients and servers speak it: written apart from the gateway's own codec,
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

/// Appends a frame without a mask, as servers send them.
pub fn encode_plain(opcode: u8, fin: bool, payload: &[u8], out: &mut Vec<u8>) {
    out.push(opcode | if fin { 0x80 } else { 0 });
    match payload.len() {
        short @ 0..126 => out.push(short as u8),
        medium @ 126..65_536 => {
            out.push(126);
            out.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            out.push(127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
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

/// Takes a whole frame of a server's off the front of `input`; `None` when more bytes are needed.
///
/// # Errors
/// What a server's frame may never be.
pub fn decode(input: &mut Vec<u8>) -> Result<Option<Frame>, &'static str> {
    decode_from(input, false)
}

/// Takes a whole frame of a client's off the front of `input`; `None` when more bytes are needed.
///
/// # Errors
/// What a client's frame may never be.
pub fn decode_masked(input: &mut Vec<u8>) -> Result<Option<Frame>, &'static str> {
    decode_from(input, true)
}

fn decode_from(input: &mut Vec<u8>, masked: bool) -> Result<Option<Frame>, &'static str> {
    let [first, second, ..] = input[..] else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err("reserved bits set");
    }
    match (second & 0x80 != 0, masked) {
        (true, false) => return Err("server frame masked"),
        (false, true) => return Err("client frame not masked"),
        _ => {}
    }
    let (opcode, fin) = (first & 15, first & 0x80 != 0);
    if !matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG) {
        return Err("reserved opcode");
    }
    let (length, start) = match second & 0x7f {
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
    let mask_end = start + if masked { 4 } else { 0 };
    let end = mask_end + length;
    if input.len() < end {
        return Ok(None);
    }
    let mut payload = input[mask_end..end].to_vec();
    if masked {
        let mask = [input[start], input[start + 1], input[start + 2], input[start + 3]];
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    }
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
    fn client_frames_are_checked_as_strictly() {
        let hello = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        let frame = Frame { opcode: TEXT, fin: true, payload: b"Hello".to_vec() };
        assert_eq!(decode_masked(&mut hello.to_vec()), Ok(Some(frame)), "RFC 6455 section 5.7");
        for cut in 0..hello.len() {
            assert_eq!(decode_masked(&mut hello[..cut].to_vec()), Ok(None));
        }
        for (bytes, expected) in [
            (&b"\x81\x05Hello"[..], "client frame not masked"),
            (b"\xc1\x80\0\0\0\0", "reserved bits set"),
            (b"\x83\x80\0\0\0\0", "reserved opcode"),
            (b"\x81\xfe\x00\x05\0\0\0\0Hello", "length not minimal"),
            (b"\x09\x80\0\0\0\0", "control frame too long or in pieces"),
        ] {
            assert_eq!(decode_masked(&mut bytes.to_vec()), Err(expected), "{bytes:?}");
        }
        for length in [0, 125, 126, 65_535, 65_536] {
            let (payload, mut out) = (vec![7; length], Vec::new());
            encode_plain(BINARY, true, &payload, &mut out);
            let frame = Frame { opcode: BINARY, fin: true, payload };
            assert_eq!(decode(&mut out), Ok(Some(frame)), "{length} bytes");
        }
    }

    #[test]
    fn client_frames_are_those_of_the_rfc() {
        let mut out = Vec::new();
        encode(TEXT, true, b"Hello", [0x37, 0xfa, 0x21, 0x3d], &mut out);
        assert_eq!(out, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", "RFC 6455 section 5.7");
    }
}
