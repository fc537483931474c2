//! Finds frames, and the status before them, in what crosses the ring seam.

pub(super) const CLOSE: u8 = 8;
pub(super) const PING: u8 = 9;

/// Finds frames in a stream of bytes, masked or not, that comes in any pieces.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    header: Vec<u8>,
    payload: u64,
}

impl Scanner {
    /// Tells opcode and FIN of each frame that ends within `bytes`. An empty frame ends with
    /// its header.
    pub(super) fn scan(&mut self, mut bytes: &[u8], mut tell: impl FnMut(u8, bool)) {
        while !bytes.is_empty() {
            if self.payload == 0 {
                self.header.push(bytes[0]);
                bytes = &bytes[1..];
                match frame_length(&self.header) {
                    Some(length) => self.payload = length,
                    None => continue,
                }
            }
            let taken = self.payload.min(bytes.len() as u64);
            bytes = &bytes[taken as usize..];
            self.payload -= taken;
            if self.payload == 0 {
                tell(self.header[0] & 15, self.header[0] & 0x80 != 0);
                self.header.clear();
            }
        }
    }
}

/// Length of the payload, once the header is whole (RFC 6455 §5.2).
fn frame_length(header: &[u8]) -> Option<u64> {
    let second = *header.get(1)?;
    let extended = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask = if second & 0x80 != 0 { 4 } else { 0 };
    if header.len() < 2 + extended + mask {
        return None;
    }
    let number = header[2..2 + extended].iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
    Some(if extended == 0 { u64::from(second & 0x7f) } else { number })
}

/// What the worker says: a response head, then frames.
#[derive(Debug, Default)]
pub(super) struct Output {
    head: Vec<u8>,
    upgraded: bool,
    frames: Scanner,
}

impl Output {
    /// Tells the opcode of each frame, and returns the status once the head is whole: whether
    /// it is 101.
    pub(super) fn scan(&mut self, bytes: &[u8], mut tell: impl FnMut(u8)) -> Option<bool> {
        if self.upgraded {
            self.frames.scan(bytes, |opcode, _| tell(opcode));
            return None;
        }
        self.head.extend_from_slice(bytes);
        let end = self.head.windows(4).position(|window| window == b"\r\n\r\n")?;
        self.upgraded = self.head.starts_with(b"HTTP/1.1 101 ");
        if self.upgraded {
            let rest = self.head.split_off(end + 4);
            self.frames.scan(&rest, |opcode, _| tell(opcode));
        }
        self.head = Vec::new();
        Some(self.upgraded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(pieces: &[&[u8]]) -> Vec<(u8, bool)> {
        let mut scanner = Scanner::default();
        let mut found = Vec::new();
        for piece in pieces {
            scanner.scan(piece, |opcode, fin| found.push((opcode, fin)));
        }
        found
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let mut bytes =
            b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58\x89\x00\x02\x7e\x01\x00".to_vec();
        bytes.extend([7; 256]);
        bytes.extend(b"\x88\x02\x03\xe8\x80");
        let expected = [(1, true), (PING, true), (2, false), (CLOSE, true)];
        for cut in 0..bytes.len() {
            assert_eq!(frames(&[&bytes[..cut], &bytes[cut..]]), expected, "cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(frames(&single), expected);
    }

    #[test]
    fn the_status_is_told_once() {
        let mut output = Output::default();
        let mut seen = Vec::new();
        assert_eq!(output.scan(b"HTTP/1.1 101 S\r\n", |opcode| seen.push(opcode)), None);
        assert_eq!(output.scan(b"\r\n\x89\x00", |opcode| seen.push(opcode)), Some(true));
        assert_eq!(output.scan(b"\x88\x00", |opcode| seen.push(opcode)), None);
        assert_eq!(seen, [PING, CLOSE]);
        let mut output = Output::default();
        assert_eq!(output.scan(b"HTTP/1.1 408 R\r\n\r\n", |_| {}), Some(false));
    }
}
