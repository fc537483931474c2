//! Finds the end of a TLS ClientHello (RFC 8446 §4.1.2, §5.1) without looking into it: what costs
//! a handshake's arithmetic can be distinguished from what costs only memory.

/// Records that a ClientHello may come in. Clients that cut it for middleboxes use a few; each
/// record more is work.
const RECORDS_MAX: u8 = 64;
/// Longest payload of a record that TLS libraries accept (RFC 5246 §6.2.3).
const RECORD_MAX: u16 = 16 * 1024 + 2048;
/// Content types from change_cipher_spec to heartbeat.
const CONTENT_TYPES: std::ops::RangeInclusive<u8> = 20..=24;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hello {
    /// So far a part of a ClientHello.
    Partial,
    /// A whole ClientHello, and perhaps more.
    Whole,
    /// Something else, up to the end of its record where it looks like one; or one in too many
    /// records.
    NotHello,
}

/// How far a ClientHello has come.
#[derive(Clone, Debug, Default)]
pub struct HelloScanner {
    header: [u8; 5],
    header_length: u8,
    /// Bytes of the record under way that are still to come.
    record_left: u16,
    records: u8,
    message: [u8; 4],
    message_length: u8,
    /// Bytes of the message that are still to come, once its header is known.
    left: u32,
    /// The record under way shows that it is none.
    bad: bool,
}

impl HelloScanner {
    /// Takes the next bytes. Not to be called again after another answer than
    /// [`Hello::Partial`].
    pub fn push(&mut self, mut bytes: &[u8]) -> Hello {
        while !bytes.is_empty() {
            let found = if self.record_left == 0 {
                self.push_header(&mut bytes)
            } else {
                self.push_payload(&mut bytes)
            };
            if found != Hello::Partial {
                return found;
            }
        }
        Hello::Partial
    }

    fn push_header(&mut self, bytes: &mut &[u8]) -> Hello {
        fill(&mut self.header, &mut self.header_length, bytes);
        if usize::from(self.header_length) < self.header.len() {
            return Hello::Partial;
        }
        self.header_length = 0;
        let [kind, major, _, high, low] = self.header;
        let length = u16::from_be_bytes([high, low]);
        self.records = self.records.saturating_add(1);
        let looks_like_one = CONTENT_TYPES.contains(&kind) && major == 3 && length <= RECORD_MAX;
        if !looks_like_one || length == 0 || self.records > RECORDS_MAX {
            return Hello::NotHello;
        }
        self.record_left = length;
        self.bad = kind != HANDSHAKE;
        Hello::Partial
    }

    fn push_payload(&mut self, bytes: &mut &[u8]) -> Hello {
        let (mut payload, rest) = bytes.split_at(bytes.len().min(self.record_left.into()));
        *bytes = rest;
        self.record_left -= payload.len() as u16;
        if !self.bad {
            if usize::from(self.message_length) < self.message.len() {
                fill(&mut self.message, &mut self.message_length, &mut payload);
                let [kind, high, middle, low] = self.message;
                self.left = u32::from_be_bytes([0, high, middle, low]);
                self.bad = kind != CLIENT_HELLO;
            }
            let is_known = usize::from(self.message_length) == self.message.len();
            self.left = self.left.saturating_sub(payload.len() as u32);
            if is_known && !self.bad && self.left == 0 {
                return Hello::Whole;
            }
        }
        if self.bad && self.record_left == 0 { Hello::NotHello } else { Hello::Partial }
    }
}

/// Moves bytes to the end of what is filled so far.
fn fill<const LENGTH: usize>(into: &mut [u8; LENGTH], length: &mut u8, bytes: &mut &[u8]) {
    let start = usize::from(*length);
    let count = bytes.len().min(LENGTH - start);
    into[start..start + count].copy_from_slice(&bytes[..count]);
    *bytes = &bytes[count..];
    *length += count as u8;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A handshake message in records of up to `cut` bytes.
    fn records(message: &[u8], cut: usize) -> Vec<u8> {
        let record = |piece: &[u8]| {
            [&[22, 3, 1, (piece.len() >> 8) as u8, piece.len() as u8], piece].concat()
        };
        message.chunks(cut).flat_map(record).collect()
    }

    fn hello(length: usize) -> Vec<u8> {
        let header = [CLIENT_HELLO, (length >> 16) as u8, (length >> 8) as u8, length as u8];
        [&header[..], &vec![7; length]].concat()
    }

    /// What is found, and after how many bytes, when they come in pieces of `size`.
    fn find(bytes: &[u8], size: usize) -> (Hello, usize) {
        let mut scanner = HelloScanner::default();
        let mut taken = 0;
        for piece in bytes.chunks(size) {
            taken += piece.len();
            let found = scanner.push(piece);
            if found != Hello::Partial {
                return (found, taken);
            }
        }
        (Hello::Partial, taken)
    }

    #[test]
    fn the_end_is_found_however_it_is_cut() {
        for length in [0, 1, 300, 16_000, 40_000] {
            for cut in [16_384, 1000, 700] {
                let bytes = records(&hello(length), cut);
                assert_eq!(find(&bytes, 1), (Hello::Whole, bytes.len()), "{length} in {cut}");
                assert_eq!(find(&bytes[..bytes.len() - 1], 1).0, Hello::Partial);
                for size in [2, 5, 4096, usize::MAX] {
                    assert_eq!(find(&bytes, size).0, Hello::Whole, "{length} in {cut} by {size}");
                }
            }
        }
        let small = records(&hello(60), 1);
        assert_eq!(find(&small, 7), (Hello::Whole, small.len()), "64 records");
        assert_eq!(find(&records(&hello(61), 1), 7).0, Hello::NotHello, "65 records");
    }

    #[test]
    fn other_things_are_told_at_the_end_of_their_record() {
        let table: &[(&[u8], usize)] = &[
            (b"GET / HTTP/1.1\r\n", 5),
            (&[22, 2, 0, 0, 9], 5),
            (&[22, 3, 1, 0xff, 0xff], 5),
            (&[22, 3, 1, 0, 0], 5),
            // An alert, and application data.
            (&[21, 3, 3, 0, 2, 1, 0], 7),
            (&[23, 3, 3, 0, 3, 1, 2, 3], 8),
            // Another handshake message.
            (&[22, 3, 3, 0, 5, 2, 0, 0, 1, 9], 10),
            // An alert in the middle of a hello.
            (&[22, 3, 1, 0, 2, 1, 0, 21, 3, 3, 0, 2, 1, 0], 14),
        ];
        for (bytes, end) in table {
            assert_eq!(find(bytes, 1), (Hello::NotHello, *end), "{bytes:?}");
            assert_eq!(find(&bytes[..end - 1], 1).0, Hello::Partial, "{bytes:?}");
        }
    }
}
