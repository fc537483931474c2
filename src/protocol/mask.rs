//! Masking of WebSocket payloads (RFC 6455 §5.3), in place.

/// Applies the mask `key` to `bytes`, which begin `offset` bytes into the frame's payload. The
/// operation is its own inverse. Only `offset % 4` matters.
pub fn apply_mask(bytes: &mut [u8], key: [u8; 4], offset: usize) {
    let key = rotated(key, offset);
    // Eight bytes at a time without dependence between them: compilers make vector code of it.
    let word = u64::from(u32::from_ne_bytes(key));
    let word = word << 32 | word;
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for bytes in words {
        *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

/// The key as seen by a piece of payload that begins `offset` bytes in.
pub fn rotated(key: [u8; 4], offset: usize) -> [u8; 4] {
    let mut key = key;
    key.rotate_left(offset % 4);
    key
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn obvious(bytes: &[u8], key: [u8; 4], offset: usize) -> Vec<u8> {
        bytes.iter().enumerate().map(|(i, byte)| byte ^ key[(offset + i) % 4]).collect()
    }

    #[test]
    fn every_short_length_alignment_and_offset() {
        let payload: Vec<u8> = (0..100u8).collect();
        let key = [0x37, 0xfa, 0x21, 0x3d];
        for start in 0..9 {
            for end in start..payload.len() {
                for offset in [0, 1, 2, 3, 4, 5, usize::MAX] {
                    let mut bytes = payload.clone();
                    apply_mask(&mut bytes[start..end], key, offset);
                    assert_eq!(bytes[..start], payload[..start]);
                    let expected = obvious(&payload[start..end], key, offset % 4);
                    assert_eq!(bytes[start..end], expected);
                    assert_eq!(bytes[end..], payload[end..]);
                }
            }
        }
    }

    #[test]
    fn the_example_of_rfc_6455_section_5_7() {
        let mut bytes = [0x7f, 0x9f, 0x4d, 0x51, 0x58];
        apply_mask(&mut bytes, [0x37, 0xfa, 0x21, 0x3d], 0);
        assert_eq!(&bytes, b"Hello");
    }

    proptest! {
        #[test]
        fn equals_the_obvious_version_in_any_two_pieces(
            bytes in prop::collection::vec(any::<u8>(), 0..5000),
            key: [u8; 4],
            cut: prop::sample::Index,
        ) {
            let expected = obvious(&bytes, key, 0);
            let mut masked = bytes.clone();
            let cut = cut.index(bytes.len() + 1);
            let (front, back) = masked.split_at_mut(cut);
            apply_mask(back, key, cut);
            apply_mask(front, key, 0);
            prop_assert_eq!(masked, expected);
        }
    }
}
