//! Strict base64url (RFC 4648 §5) without padding, into a caller's buffer.
//!
//! Strict means one text for one value: no padding, no whitespace, no spare bits set. A lenient
//! decoder lets one token be written in several ways, which defeats caches of rejected tokens.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

const STRICT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_encode_padding(false)
    .with_decode_padding_mode(DecodePaddingMode::RequireNone)
    .with_decode_allow_trailing_bits(false);

const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, STRICT);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, STRICT);

/// Decodes `text` into the start of `out` and returns what was written; `None` when the text is
/// not exact base64url or does not fit. Never allocates.
pub fn decode<'o>(text: &[u8], out: &'o mut [u8]) -> Option<&'o [u8]> {
    decode_with(&URL_SAFE, text, out)
}

/// As [`decode`], also for the standard alphabet (`+` and `/`), which phoenix.js uses. One text
/// that mixes the two alphabets is refused.
pub fn decode_either<'o>(text: &[u8], out: &'o mut [u8]) -> Option<&'o [u8]> {
    let standard = text.iter().any(|b| b"+/".contains(b));
    decode_with(if standard { &STANDARD } else { &URL_SAFE }, text, out)
}

/// Appends `bytes` as base64url without padding.
pub fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + encoded_length(bytes.len()), 0);
    encode_into(bytes, &mut out[start..]);
}

/// Writes `bytes` as base64url without padding into the start of `out`, which must have room.
pub fn encode_into<'o>(bytes: &[u8], out: &'o mut [u8]) -> &'o [u8] {
    let length = encoded_length(bytes.len());
    let written = URL_SAFE.encode_slice(bytes, &mut out[..length]);
    assert_eq!(written.ok(), Some(length), "the length is exact");
    &out[..length]
}

/// Characters that `length` bytes take.
pub const fn encoded_length(length: usize) -> usize {
    (length * 4).div_ceil(3)
}

fn decode_with<'o>(engine: &GeneralPurpose, text: &[u8], out: &'o mut [u8]) -> Option<&'o [u8]> {
    // Checked here because the engine's own estimate may be over by a few bytes.
    let length = text.len() / 4 * 3 + [0, 0, 1, 2][text.len() % 4];
    if length > out.len() {
        return None;
    }
    let written = engine.decode_slice(text, out).ok()?;
    assert_eq!(written, length, "a decoded length follows from the text's");
    Some(&out[..written])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_decode_strictly() {
        type Row = (&'static str, Option<&'static [u8]>, Option<&'static [u8]>);
        let table: &[Row] = &[
            ("", Some(b""), Some(b"")),
            ("Zg", Some(b"f"), Some(b"f")),
            ("Zm8", Some(b"fo"), Some(b"fo")),
            ("Zm9v", Some(b"foo"), Some(b"foo")),
            ("Zm9vYmFy", Some(b"foobar"), Some(b"foobar")),
            ("-_-_", Some(b"\xfb\xff\xbf"), Some(b"\xfb\xff\xbf")),
            ("+/+/", None, Some(b"\xfb\xff\xbf")),
            ("-/+_", None, None),
            ("+_", None, None),
            ("Zg==", None, None),
            ("Zg=", None, None),
            ("Zm8=", None, None),
            ("=", None, None),
            ("Zm9v=", None, None),
            // Spare bits: only one spelling of a value is accepted.
            ("Zh", None, None),
            ("Zv", None, None),
            ("Zm9", None, None),
            ("Zm-", None, None),
            ("Zm+", None, None),
            ("Z", None, None),
            ("Zm9vY", None, None),
            ("Zm9v\n", None, None),
            (" Zg", None, None),
            ("Z g", None, None),
            ("Zg.", None, None),
            ("Z\u{e9}", None, None),
            ("Z\0", None, None),
        ];
        for (text, url, either) in table {
            let mut out = [0; 16];
            assert_eq!(decode(text.as_bytes(), &mut out), *url, "{text:?}");
            assert_eq!(decode_either(text.as_bytes(), &mut out), *either, "{text:?}");
        }
    }

    #[test]
    fn the_buffer_must_hold_the_result_and_no_more() {
        for (text, length) in [("Zg", 1), ("Zm8", 2), ("Zm9v", 3), ("Zm9vYg", 4), ("Zm9vYmFy", 6)] {
            let mut out = [0; 6];
            assert!(decode(text.as_bytes(), &mut out[..length]).is_some(), "{text}");
            assert!(decode(text.as_bytes(), &mut out[..length - 1]).is_none(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_encoded_decodes(bytes in proptest::collection::vec(0u8.., 0..80)) {
            let mut text = b"x".to_vec();
            encode(&bytes, &mut text);
            let mut out = [0; 80];
            proptest::prop_assert_eq!(decode(&text[1..], &mut out), Some(bytes.as_slice()));
        }

        #[test]
        fn each_value_has_one_text(text in "[A-Za-z0-9_-]{0,12}") {
            let mut out = [0; 16];
            if let Some(bytes) = decode(text.as_bytes(), &mut out) {
                let mut again = Vec::new();
                encode(bytes, &mut again);
                proptest::prop_assert_eq!(again, text.as_bytes());
            }
        }
    }
}
