//! Cuts a byte stream into frames, however the stream was chunked.

use super::{Frame, FrameHeader, HEADER_BYTES, LinkError};

/// Yields the frames of a byte stream.
///
/// A frame that lies whole in the input is borrowed from it; one that straddles inputs is
/// assembled in a buffer that never holds more than one frame of `frame_max` payload.
///
/// Invariant: `assembly.len() <= HEADER_BYTES + frame_max`.
#[derive(Debug)]
pub struct LinkReader {
    frame_max: u32,
    assembly: Vec<u8>,
    /// The header in `assembly`, once it is whole and checked.
    header: Option<FrameHeader>,
    /// The frame in `assembly` was handed out; the next call drops it.
    is_spent: bool,
}

impl LinkReader {
    /// A reader at the start of a stream, for payloads of at most `frame_max` bytes.
    pub const fn new(frame_max: u32) -> Self {
        LinkReader { frame_max, assembly: Vec::new(), header: None, is_spent: false }
    }

    /// From the next frame on, payloads may have this many bytes: once the handshake is over.
    pub fn set_frame_max(&mut self, frame_max: u32) {
        self.frame_max = frame_max;
    }

    /// Whether a frame has begun and not ended: at the end of the stream, a broken one.
    pub fn is_mid_frame(&self) -> bool {
        !self.assembly.is_empty() && !self.is_spent
    }

    /// Takes the next frame off the front of `input`. `None` when the rest of it is not a
    /// whole frame; all of it is kept then, and `input` is empty.
    ///
    /// # Errors
    /// What is wrong with a header, as soon as its 12 bytes are there; the stream is then
    /// of no more use.
    pub fn next<'f, 'i: 'f>(
        &'f mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Frame<'f>>, LinkError> {
        if self.is_spent {
            self.assembly.clear();
            self.header = None;
            self.is_spent = false;
        }
        if self.assembly.is_empty()
            && let Some((bytes, rest)) = input.split_first_chunk::<HEADER_BYTES>()
        {
            let header = self.check(bytes)?;
            if let Some((payload, rest)) = rest.split_at_checked(header.length as usize) {
                *input = rest;
                return Ok(Some(Frame { header, payload }));
            }
            self.header = Some(header);
        }
        self.assemble(input)
    }

    fn assemble(&mut self, input: &mut &[u8]) -> Result<Option<Frame<'_>>, LinkError> {
        let header = match self.header {
            Some(header) => header,
            None => {
                self.take(input, HEADER_BYTES);
                let Some(bytes) = self.assembly.first_chunk::<HEADER_BYTES>() else {
                    return Ok(None);
                };
                let header = self.check(bytes)?;
                self.header = Some(header);
                header
            }
        };
        let total = HEADER_BYTES + header.length as usize;
        self.take(input, total);
        if self.assembly.len() < total {
            return Ok(None);
        }
        self.is_spent = true;
        Ok(Some(Frame { header, payload: &self.assembly[HEADER_BYTES..] }))
    }

    /// Moves bytes over until `assembly` has `total` of them or the input ends.
    fn take(&mut self, input: &mut &[u8], total: usize) {
        let missing = total - self.assembly.len();
        let (taken, rest) = input.split_at(missing.min(input.len()));
        self.assembly.extend_from_slice(taken);
        *input = rest;
    }

    fn check(&self, bytes: &[u8; HEADER_BYTES]) -> Result<FrameHeader, LinkError> {
        let header = FrameHeader::parse(bytes)?;
        if header.length > self.frame_max {
            return Err(LinkError::FrameTooLarge {
                kind: header.kind,
                length: header.length,
                limit: self.frame_max,
            });
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Kind, SessionId, encode_data, session::Ping};
    use super::*;

    /// Frames, how the stream ended, and whether within a frame.
    type Outcome = (Vec<(FrameHeader, Vec<u8>)>, Result<(), LinkError>, bool);

    /// All frames of `stream`, cut at the given chunk lengths (cycled), and how it ended.
    fn frames(stream: &[u8], chunks: &[usize], frame_max: u32) -> Outcome {
        let mut reader = LinkReader::new(frame_max);
        let mut found = Vec::new();
        let mut rest = stream;
        let mut lengths = chunks.iter().cycle();
        while !rest.is_empty() {
            let length = (*lengths.next().unwrap()).clamp(1, rest.len());
            let (mut chunk, after) = rest.split_at(length);
            rest = after;
            loop {
                match reader.next(&mut chunk) {
                    Ok(Some(frame)) => found.push((frame.header, frame.payload.to_vec())),
                    Ok(None) => break,
                    Err(error) => return (found, Err(error), reader.is_mid_frame()),
                }
            }
            assert!(chunk.is_empty(), "None means that the input was taken");
            assert!(reader.assembly.len() <= HEADER_BYTES + frame_max as usize);
        }
        (found, Ok(()), reader.is_mid_frame())
    }

    #[test]
    fn a_whole_frame_is_borrowed_and_a_broken_one_is_known() {
        let mut stream = Vec::new();
        encode_data(SessionId::new(1, 2), 6, b"abc", &mut stream);
        let mut reader = LinkReader::new(64);
        let mut input = &stream[..];
        let payload = reader.next(&mut input).unwrap().unwrap().payload;
        assert_eq!(payload.as_ptr(), stream[HEADER_BYTES..].as_ptr());
        assert_eq!(reader.assembly.capacity(), 0);
        let (found, end, is_mid_frame) = frames(&stream[..14], &[14], 64);
        assert_eq!((found.len(), end, is_mid_frame), (0, Ok(()), true));
    }

    #[test]
    fn the_limit_is_enforced_when_the_header_is_whole() {
        let header = FrameHeader::data(SessionId::new(0, 0), 6, 65).format();
        let error = LinkError::FrameTooLarge { kind: Kind::Data, length: 65, limit: 64 };
        for chunk in [1, 11, 12] {
            let (found, end, _) = frames(&header, &[chunk], 64);
            assert_eq!((found.len(), end), (0, Err(error)));
        }
    }

    proptest! {
        #[test]
        fn any_chunking_equals_unchunked(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..12),
            chunks in prop::collection::vec(1usize..100, 1..20),
            cut in 0usize..40,
        ) {
            let mut stream = Vec::new();
            for (slot, piece) in pieces.iter().enumerate() {
                encode_data(SessionId::new(slot as u32, 7), 6, piece, &mut stream);
                Ping { opaque: slot as u64 }.encode(&mut stream);
            }
            let kept = stream.len().saturating_sub(cut);
            let whole = frames(&stream[..kept], &[usize::MAX], 80);
            prop_assert_eq!(&frames(&stream[..kept], &chunks, 80), &whole);
            if cut == 0 {
                prop_assert_eq!(whole.0.len(), 2 * pieces.len());
            }
        }

        #[test]
        fn random_bytes_never_panic_whatever_the_chunks(
            stream in prop::collection::vec(any::<u8>(), 0..300),
            kinds in prop::collection::vec(0usize..25, 1..4),
            chunks in prop::collection::vec(1usize..40, 1..20),
        ) {
            let mut stream = stream;
            // Give the header a chance to be valid: a small length, a known kind, no flags.
            for (at, kind) in kinds.iter().enumerate() {
                if let Some(head) = stream.get_mut(at * 40..at * 40 + 5) {
                    let code = Kind::ALL[*kind % Kind::ALL.len()] as u8;
                    head.copy_from_slice(&[0, 0, 28, code, 0]);
                }
            }
            let whole = frames(&stream, &[usize::MAX], 64);
            prop_assert_eq!(&frames(&stream, &chunks, 64).0, &whole.0);
            for (header, payload) in whole.0 {
                prop_assert_eq!(header.length as usize, payload.len());
            }
        }
    }
}
