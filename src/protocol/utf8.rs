//! UTF-8 validation of text that arrives in pieces (RFC 3629, RFC 6455 §8.1).

/// The text is not UTF-8, and no further byte could make it so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not UTF-8")]
pub struct InvalidUtf8;

/// Checks text piece by piece; a character may be cut anywhere. Fails with the first byte after
/// which the text can no longer be UTF-8.
///
/// Invariant: `needed` continuation bytes are missing from the character begun, at most three;
/// the next of them lies in `lowest..=highest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Utf8Validator {
    needed: u8,
    lowest: u8,
    highest: u8,
}

impl Default for Utf8Validator {
    fn default() -> Self {
        Utf8Validator { needed: 0, lowest: 0x80, highest: 0xbf }
    }
}

impl Utf8Validator {
    /// Takes the next piece of the text. After an error the state is of no use.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), InvalidUtf8> {
        let mut rest = piece;
        while self.needed > 0 {
            let Some((byte, after)) = rest.split_first() else { return Ok(()) };
            self.step(*byte)?;
            rest = after;
        }
        let Err(error) = simdutf8::compat::from_utf8(rest) else { return Ok(()) };
        if error.error_len().is_some() {
            return Err(InvalidUtf8);
        }
        // What is left is the beginning of one character.
        rest[error.valid_up_to()..].iter().try_for_each(|byte| self.step(*byte))
    }

    /// Whether the text may end here: no character is incomplete.
    pub fn is_complete(&self) -> bool {
        self.needed == 0
    }

    /// Table 3-7 of the Unicode standard: which byte may follow which.
    fn step(&mut self, byte: u8) -> Result<(), InvalidUtf8> {
        if self.needed > 0 {
            if byte < self.lowest || byte > self.highest {
                return Err(InvalidUtf8);
            }
            *self = Utf8Validator { needed: self.needed - 1, ..Utf8Validator::default() };
            return Ok(());
        }
        let (needed, lowest, highest) = match byte {
            0x00..=0x7f => (0, 0x80, 0xbf),
            0xc2..=0xdf => (1, 0x80, 0xbf),
            0xe0 => (2, 0xa0, 0xbf),
            0xed => (2, 0x80, 0x9f),
            0xe1..=0xef => (2, 0x80, 0xbf),
            0xf0 => (3, 0x90, 0xbf),
            0xf1..=0xf3 => (3, 0x80, 0xbf),
            0xf4 => (3, 0x80, 0x8f),
            _ => return Err(InvalidUtf8),
        };
        *self = Utf8Validator { needed, lowest, highest };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq)]
    enum Decision {
        Invalid,
        Complete,
        Incomplete,
    }

    fn validate<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Decision {
        let mut validator = Utf8Validator::default();
        for piece in pieces {
            if validator.push(piece).is_err() {
                return Decision::Invalid;
            }
        }
        if validator.is_complete() { Decision::Complete } else { Decision::Incomplete }
    }

    fn standard(bytes: &[u8]) -> Decision {
        match std::str::from_utf8(bytes) {
            Ok(_) => Decision::Complete,
            Err(error) if error.error_len().is_some() => Decision::Invalid,
            Err(_) => Decision::Incomplete,
        }
    }

    #[test]
    fn all_sequences_of_two_bytes_and_of_the_edges_of_four() {
        for first in 0..=255u8 {
            for second in 0..=255u8 {
                let bytes = [first, second];
                assert_eq!(validate(bytes.chunks(1)), standard(&bytes), "{bytes:x?}");
                assert_eq!(validate(bytes.chunks(2)), standard(&bytes), "{bytes:x?}");
            }
        }
        let leads = [0xc1, 0xc2, 0xdf, 0xe0, 0xe1, 0xec, 0xed, 0xee, 0xef, 0xf0, 0xf1, 0xf4, 0xf5];
        let edges = [0x00, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xff];
        for lead in leads {
            for a in edges {
                for (b, c) in edges.iter().flat_map(|b| edges.iter().map(move |c| (*b, *c))) {
                    let bytes = [lead, a, b, c];
                    for size in 1..=4 {
                        assert_eq!(validate(bytes.chunks(size)), standard(&bytes), "{bytes:x?}");
                    }
                }
            }
        }
    }

    /// Mostly valid text, with a few bytes changed.
    fn nearly_text() -> impl Strategy<Value = Vec<u8>> {
        let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
        (prop::collection::vec(any::<char>(), 0..120), damage).prop_map(|(text, damage)| {
            let mut bytes = text.into_iter().collect::<String>().into_bytes();
            for (index, byte) in damage {
                if !bytes.is_empty() {
                    let at = index.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn agrees_with_the_standard_library_after_every_byte(bytes in nearly_text()) {
            for end in 0..=bytes.len() {
                let prefix = &bytes[..end];
                prop_assert_eq!(validate(prefix.chunks(1)), standard(prefix));
            }
        }

        #[test]
        fn any_chunking_is_the_same(bytes in nearly_text(), size in 1..70usize) {
            prop_assert_eq!(validate(bytes.chunks(size)), standard(&bytes));
        }
    }
}
