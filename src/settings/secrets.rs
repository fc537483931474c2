//! How secrets are written, and what in them cannot be seen.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use super::SecretEncoding;

/// The key that is written so; `None` when it is written otherwise.
pub(super) fn decode(encoding: SecretEncoding, written: Vec<u8>) -> Option<Vec<u8>> {
    let text = || -> Vec<u8> {
        let visible: Vec<u8> =
            written.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect();
        let end = visible.iter().rposition(|&b| b != b'=').map_or(0, |last| last + 1);
        visible[..end].to_vec()
    };
    match encoding {
        SecretEncoding::Utf8 => Some(written),
        SecretEncoding::Base64 => STANDARD_NO_PAD.decode(text()).ok(),
        SecretEncoding::Base64Url => URL_SAFE_NO_PAD.decode(text()).ok(),
        SecretEncoding::Hex => {
            let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
            let pair = |pair: &[u8]| Some(digit(&pair[0])? << 4 | digit(pair.get(1)?)?);
            text().chunks(2).map(pair).collect()
        }
    }
}

/// What stands at an end of a secret and cannot be seen there, if the secret is text at all: which
/// end, and what.
pub(super) fn invisible_end(secret: &[u8]) -> Option<(&'static str, String)> {
    let text = std::str::from_utf8(secret).ok()?;
    let ends = [("begins", text.chars().next()?), ("ends", text.chars().next_back()?)];
    let (end, character) = ends.into_iter().find(|(_, c)| is_invisible(*c))?;
    let name = match character {
        '\n' => "a newline".to_owned(),
        '\r' => "a carriage return".to_owned(),
        '\t' => "a tab".to_owned(),
        ' ' => "a space".to_owned(),
        '\0' => "a NUL byte".to_owned(),
        '\u{feff}' => "a byte order mark (U+FEFF)".to_owned(),
        other => format!("the invisible character U+{:04X}", u32::from(other)),
    };
    Some((end, name))
}

/// White space, controls, and the formatting characters that copying brings along.
fn is_invisible(c: char) -> bool {
    c.is_whitespace()
        || c.is_control()
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{2064}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_decoded_as_they_are_written() {
        use SecretEncoding::{Base64, Base64Url, Hex, Utf8};
        let table: &[(SecretEncoding, &str, Option<&[u8]>)] = &[
            (Utf8, " +/8=\n", Some(b" +/8=\n")),
            (Base64, "+/8=", Some(&[0xfb, 0xff])),
            (Base64, "+/8", Some(&[0xfb, 0xff])),
            (Base64, "QUJD\nREVG\r\n Rw==\n", Some(b"ABCDEFG")),
            (Base64, "-_8=", None),
            (Base64, "+/9", None),
            (Base64, "+/8=x", None),
            (Base64Url, "-_8", Some(&[0xfb, 0xff])),
            (Base64Url, "-_8=", Some(&[0xfb, 0xff])),
            (Base64Url, "+/8=", None),
            (Hex, "00fFa1", Some(&[0, 0xff, 0xa1])),
            (Hex, "00 ff\n", Some(&[0, 0xff])),
            (Hex, "00f", None),
            (Hex, "0x00", None),
            (Hex, "", Some(b"")),
        ];
        for (encoding, written, expected) in table {
            let got = decode(*encoding, written.as_bytes().to_vec());
            assert_eq!(got.as_deref(), *expected, "{written:?} as {}", encoding.word());
        }
    }

    #[test]
    fn what_cannot_be_seen_is_named() {
        type Row = (&'static [u8], Option<(&'static str, &'static str)>);
        let table: &[Row] = &[
            (b"secret", None),
            (b"", None),
            (b" secret", Some(("begins", "a space"))),
            (b"secret\r", Some(("ends", "a carriage return"))),
            (b"secret\n", Some(("ends", "a newline"))),
            (b"secret\0", Some(("ends", "a NUL byte"))),
            (b"secret\t", Some(("ends", "a tab"))),
            ("\u{feff}secret".as_bytes(), Some(("begins", "a byte order mark (U+FEFF)"))),
            ("secret\u{200b}".as_bytes(), Some(("ends", "the invisible character U+200B"))),
            ("\u{a0}secret".as_bytes(), Some(("begins", "the invisible character U+00A0"))),
            (b"two words", None),
            // Random bytes are no text.
            (b"\xff\xfe ", None),
        ];
        for (secret, expected) in table {
            let got = invisible_end(secret);
            let got = got.as_ref().map(|(end, what)| (*end, what.as_str()));
            assert_eq!(got, *expected, "{}", secret.escape_ascii());
        }
    }
}
