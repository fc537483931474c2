//! Finds the end of a request head while it arrives, looking at each byte once.

use super::refusal::HttpRefusal;

/// The part of the HTTP/2 preface that no HTTP/1 request line can be (RFC 9113 §3.4).
const PREFACE: &[u8; 14] = b"PRI * HTTP/2.0";

const TOKEN: u8 = 1;
const VALUE: u8 = 2;
const LINE: u8 = 4;

/// What each byte may be part of: a token (RFC 9110 §5.6.2), a field value, the request line.
const CLASSES: [u8; 256] = classes();

/// Whether `byte` may be part of a token (RFC 9110 §5.6.2).
pub(super) const fn is_token(byte: u8) -> bool {
    CLASSES[byte as usize] & TOKEN != 0
}

/// Room for header fields; `header_fields_max` is at most this.
pub const FIELDS: usize = 128;

/// Limits on a request head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes of the whole head, the final CRLF included.
    pub head_max: u32,
    /// Header fields, at most [`FIELDS`].
    pub header_fields_max: u16,
    /// Bytes of the request line, its CRLF not included.
    pub request_line_max: u32,
}

impl Default for HeadLimits {
    fn default() -> Self {
        HeadLimits { head_max: 8 * 1024, header_fields_max: 64, request_line_max: 8_000 }
    }
}

/// How far a request head was looked at. It holds no bytes, so a head that drips in byte by byte
/// costs no more than one that arrives whole.
///
/// Invariant: `position` counts the bytes of the head so far and is at most `head_max`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadScanner {
    position: u32,
    fields: u16,
    preface: u8,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    RequestLine,
    /// A CR ended a line; LF must follow.
    LineEnd,
    FieldStart,
    Name,
    Value,
    /// A CR where a field could start; LF ends the head.
    HeadEnd,
    Done,
}

impl HeadScanner {
    /// Looks at the next `bytes` of the head. `Some(end)` when the head ends within them: the
    /// first `end` bytes are its last ones. Must not be called again after that, or after an
    /// error.
    ///
    /// # Errors
    /// The refusal, at the first byte that makes the head unacceptable.
    pub fn push(
        &mut self,
        bytes: &[u8],
        limits: &HeadLimits,
    ) -> Result<Option<usize>, HttpRefusal> {
        assert!(self.state != State::Done, "the head was complete");
        for (index, &byte) in bytes.iter().enumerate() {
            if self.position >= limits.head_max && self.state != State::RequestLine {
                return Err(HttpRefusal::HeadTooLarge);
            }
            self.state = self.step(byte, limits)?;
            self.position += 1;
            if self.state == State::Done {
                return Ok(Some(index + 1));
            }
        }
        Ok(None)
    }

    /// Bytes of the head seen so far.
    pub const fn position(&self) -> u32 {
        self.position
    }

    fn step(&mut self, byte: u8, limits: &HeadLimits) -> Result<State, HttpRefusal> {
        let class = CLASSES[byte as usize];
        match self.state {
            State::RequestLine => self.request_line(byte, class, limits),
            State::LineEnd if byte == b'\n' => Ok(State::FieldStart),
            State::HeadEnd if byte == b'\n' => Ok(State::Done),
            State::LineEnd | State::HeadEnd => Err(HttpRefusal::BareCr),
            State::FieldStart => self.field_start(byte, class, limits),
            State::Name if class & TOKEN != 0 => Ok(State::Name),
            State::Name => match byte {
                b':' => Ok(State::Value),
                b' ' | b'\t' => Err(HttpRefusal::SpaceBeforeColon),
                _ => Err(unexpected(byte, HttpRefusal::BadField)),
            },
            State::Value if class & VALUE != 0 => Ok(State::Value),
            State::Value if byte == b'\r' => Ok(State::LineEnd),
            State::Value => Err(unexpected(byte, HttpRefusal::ControlByte)),
            State::Done => unreachable!("push stops at the end"),
        }
    }

    fn request_line(
        &mut self,
        byte: u8,
        class: u8,
        limits: &HeadLimits,
    ) -> Result<State, HttpRefusal> {
        if byte == b'\r' && self.position > 0 {
            return Ok(State::LineEnd);
        }
        if self.position >= limits.request_line_max.min(limits.head_max) {
            return Err(HttpRefusal::LineTooLong);
        }
        if self.position == 0 {
            match byte {
                0x16 => return Err(HttpRefusal::TlsOnPlainPort),
                // RFC 9112 §2.2 lets a server skip an empty line, for clients that send one
                // after a body. Here nothing can precede the first request.
                b'\r' | b' ' => return Err(HttpRefusal::BadRequestLine),
                _ => {}
            }
        }
        if class & LINE == 0 {
            return Err(unexpected(byte, HttpRefusal::BadRequestLine));
        }
        if u32::from(self.preface) == self.position && self.position < PREFACE.len() as u32 {
            if byte == PREFACE[self.position as usize] {
                self.preface += 1;
            }
            if self.preface as usize == PREFACE.len() {
                return Err(HttpRefusal::Http2Preface);
            }
        }
        Ok(State::RequestLine)
    }

    fn field_start(
        &mut self,
        byte: u8,
        class: u8,
        limits: &HeadLimits,
    ) -> Result<State, HttpRefusal> {
        match byte {
            b'\r' => Ok(State::HeadEnd),
            b' ' | b'\t' if self.fields == 0 => Err(HttpRefusal::LeadingWhitespace),
            b' ' | b'\t' => Err(HttpRefusal::ObsoleteFold),
            _ if class & TOKEN == 0 => Err(unexpected(byte, HttpRefusal::BadField)),
            _ if self.fields >= limits.header_fields_max => Err(HttpRefusal::TooManyFields),
            _ => {
                self.fields += 1;
                Ok(State::Name)
            }
        }
    }
}

/// The refusal for a byte that fits nowhere: line ends and controls by name, else `otherwise`.
fn unexpected(byte: u8, otherwise: HttpRefusal) -> HttpRefusal {
    match byte {
        b'\n' => HttpRefusal::BareLf,
        // A CR in a field name is a line without a colon, not a stray CR.
        b'\r' => otherwise,
        0..=0x1f | 0x7f => HttpRefusal::ControlByte,
        _ => otherwise,
    }
}

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        let symbol = matches!(
            b,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        );
        if b.is_ascii_alphanumeric() || symbol {
            table[byte] |= TOKEN;
        }
        if b == b'\t' || (b >= 0x20 && b != 0x7f) {
            table[byte] |= VALUE;
        }
        if b >= 0x20 && b < 0x7f {
            table[byte] |= LINE;
        }
        byte += 1;
    }
    table
}
