//! Reads the fields of a payload; every read is bounded.

use super::frame::{Kind, LinkError};

/// What is left of a payload; fields are read off its front.
pub(crate) struct Fields<'a> {
    pub(crate) kind: Kind,
    pub(crate) rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn bad(&self, field: &'static str) -> LinkError {
        LinkError::BadField { kind: self.kind, field }
    }

    pub(crate) fn bytes(&mut self, n: usize, field: &'static str) -> Result<&'a [u8], LinkError> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or(self.bad(field))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], LinkError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(self.bad(field))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, LinkError> {
        Ok(u8::from_be_bytes(self.array(field)?))
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, LinkError> {
        Ok(u16::from_be_bytes(self.array(field)?))
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, LinkError> {
        Ok(u32::from_be_bytes(self.array(field)?))
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, LinkError> {
        Ok(u64::from_be_bytes(self.array(field)?))
    }

    /// The rest as text of at most `max` bytes.
    pub(crate) fn text(self, max: usize, field: &'static str) -> Result<&'a str, LinkError> {
        if self.rest.len() > max {
            return Err(self.bad(field));
        }
        simdutf8::basic::from_utf8(self.rest).map_err(|_| self.bad(field))
    }

    pub(crate) fn end(self, field: &'static str) -> Result<(), LinkError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.bad(field)) }
    }
}

/// `text` cut to at most `max` bytes, between characters.
pub fn cut(text: &str, max: usize) -> &str {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
