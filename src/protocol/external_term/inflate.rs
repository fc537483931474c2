//! Compressed terms: `<<131, 80, Size:32, Zlib/binary>>`, as `:erlang.term_to_binary(_, [:compressed])`
//! writes them.

use miniz_oxide::inflate::decompress_slice_iter_to_slice;

use super::VERSION;

/// Tag of a compressed term; it stands only at the start.
const COMPRESSED: u8 = 80;

/// Longest term after it was inflated, in bytes.
pub const INFLATED_MAX: usize = 64 * 1024;

/// Most bytes that one byte of deflate can stand for (a match of 258 bytes in two bits).
const RATIO_MAX: usize = 1032;

/// The term in `bytes`, ready for [`read`](super::read): as it came, or inflated into `room`.
/// Only the second allocates, at most [`INFLATED_MAX`]. Call it for bytes whose MAC was verified.
///
/// `None` when a compressed term says that it is larger than that or than its bytes can hold,
/// or is not what it says.
pub fn inflated<'b>(bytes: &'b [u8], room: &'b mut Vec<u8>) -> Option<&'b [u8]> {
    let Some(compressed) = bytes.strip_prefix(&[VERSION, COMPRESSED]) else { return Some(bytes) };
    let (size, compressed) = compressed.split_first_chunk()?;
    let size = usize::try_from(u32::from_be_bytes(*size)).ok()?;
    if size > INFLATED_MAX.min(compressed.len().saturating_mul(RATIO_MAX)) {
        return None;
    }
    room.clear();
    room.resize(1 + size, 0);
    room[0] = VERSION;
    let written = decompress_slice_iter_to_slice(
        &mut room[1..],
        std::iter::once(compressed),
        true,
        // The Adler-32 of the end is checked.
        false,
    );
    (written.ok()? == size).then_some(&room[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// zlib of `bytes` in stored blocks: what a compressor may always write.
    fn stored(bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![0x78, 0x01];
        let mut blocks = bytes.chunks(0xffff).peekable();
        while let Some(block) = blocks.next() {
            let length = block.len() as u16;
            out.push(u8::from(blocks.peek().is_none()));
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(&(!length).to_le_bytes());
            out.extend_from_slice(block);
        }
        let (mut low, mut high) = (1_u32, 0_u32);
        for byte in bytes {
            low = (low + u32::from(*byte)) % 65_521;
            high = (high + low) % 65_521;
        }
        out.extend_from_slice(&(high << 16 | low).to_be_bytes());
        out
    }

    fn term(size: usize, zlib: &[u8]) -> Vec<u8> {
        let size = u32::try_from(size).unwrap().to_be_bytes();
        [&[VERSION, COMPRESSED][..], &size, zlib].concat()
    }

    #[test]
    fn compressed_terms_are_inflated_exactly_and_with_a_bound() {
        let bytes: Vec<u8> = (0..INFLATED_MAX + 1).map(|index| index as u8).collect();
        let zlib = |length: usize| stored(&bytes[..length]);
        let cut = |mut zlib: Vec<u8>| {
            zlib.pop();
            zlib
        };
        let wrong_sum = |mut zlib: Vec<u8>| {
            *zlib.last_mut().unwrap() ^= 1;
            zlib
        };
        let table: Vec<(&str, Vec<u8>, Option<usize>)> = vec![
            ("small", term(5, &zlib(5)), Some(5)),
            ("largest", term(INFLATED_MAX, &zlib(INFLATED_MAX)), Some(INFLATED_MAX)),
            ("too large", term(INFLATED_MAX + 1, &zlib(INFLATED_MAX + 1)), None),
            ("says too little", term(4, &zlib(5)), None),
            ("says too much", term(6, &zlib(5)), None),
            ("says more than its bytes can hold", term(60_000, &zlib(5)), None),
            ("4 GiB", [&[VERSION, COMPRESSED][..], &[255; 4], &zlib(5)].concat(), None),
            ("cut", term(5, &cut(zlib(5))), None),
            ("damaged", term(5, &wrong_sum(zlib(5))), None),
            ("no zlib", term(5, b"hello"), None),
            ("nothing", vec![VERSION, COMPRESSED], None),
        ];
        for (name, bytes_in, expected) in table {
            let mut room = Vec::new();
            let got = inflated(&bytes_in, &mut room);
            let expected = expected.map(|length| [&[VERSION][..], &bytes[..length]].concat());
            assert_eq!(got, expected.as_deref(), "{name}");
            assert!(room.capacity() <= 2 * INFLATED_MAX, "{name}");
        }
        // What is not compressed is left where it lies.
        let mut room = Vec::new();
        assert_eq!(inflated(b"\x83a\x01", &mut room), Some(&b"\x83a\x01"[..]));
        assert_eq!(room.capacity(), 0);
    }

    #[test]
    fn a_bomb_stops_at_its_declared_size() {
        // zlib of 60,000 zeros, by zlib itself: 84 bytes for 60,000.
        let bomb = miniz_oxide::deflate::compress_to_vec_zlib(&[0; 60_000], 9);
        let mut room = Vec::new();
        assert!(inflated(&term(60_000, &bomb), &mut room).is_some());
        assert!(inflated(&term(59_999, &bomb), &mut room).is_none());
        assert!(room.len() <= 60_000);
    }
}
