//! The numbered messages that clients and backends exchange. Each can be rebuilt from its first
//! bytes, so its reader checks every byte.

/// Which connection of which client a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Author {
    /// The client's index.
    pub client: u16,
    /// Which of its connections.
    pub life: u16,
}

impl Author {
    /// The subject of this connection's token.
    pub fn subject(self) -> String {
        format!("c{}-{}", self.client, self.life)
    }

    /// Reads a subject.
    pub fn from_subject(subject: &str) -> Option<Author> {
        let (client, life) = subject.strip_prefix('c')?.split_once('-')?;
        Some(Author { client: client.parse().ok()?, life: life.parse().ok()? })
    }
}

/// Which of the two number series a message is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Series {
    /// The client's, sent up and echoed.
    Echo,
    /// The backend's own.
    Push,
}

/// Length of the part that says which message it is, in bytes.
pub const PREFIX_BYTES: usize = 21;

/// The message `number` of a series, `size` bytes long (at least [`PREFIX_BYTES`]).
pub fn build(series: Series, author: Author, number: u32, size: usize) -> Vec<u8> {
    let letter = if series == Series::Echo { 'E' } else { 'P' };
    let Author { client, life } = author;
    let mut bytes = format!("{letter}:{client:04x}:{life:04x}:{number:08x}:").into_bytes();
    let size = size.max(PREFIX_BYTES);
    bytes.reserve(size - PREFIX_BYTES);
    if number % 4 == 3 {
        // Characters of every UTF-8 length, so that any cut falls within one sooner or later.
        let unit = "é√😀a".as_bytes();
        while bytes.len() + unit.len() <= size {
            bytes.extend_from_slice(unit);
        }
    }
    let mut filler = number.wrapping_mul(7).wrapping_add(u32::from(client));
    while bytes.len() < size {
        bytes.push(b'a' + (filler % 26) as u8);
        filler = filler.wrapping_add(1);
    }
    bytes
}

/// Which message this is, if every byte of it is as it should be.
pub fn parse(bytes: &[u8]) -> Option<(Series, Author, u32)> {
    let prefix = std::str::from_utf8(bytes.get(..PREFIX_BYTES)?).ok()?;
    let mut parts = prefix.split(':');
    let series = match parts.next()? {
        "E" => Series::Echo,
        "P" => Series::Push,
        _ => return None,
    };
    let client = u16::from_str_radix(parts.next()?, 16).ok()?;
    let life = u16::from_str_radix(parts.next()?, 16).ok()?;
    let number = u32::from_str_radix(parts.next()?, 16).ok()?;
    let author = Author { client, life };
    (build(series, author, number, bytes.len()) == bytes).then_some((series, author, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_message_counts() {
        let author = Author { client: 3, life: 0x1234 };
        assert_eq!(Author::from_subject(&author.subject()), Some(author));
        for number in 0..8 {
            let message = build(Series::Echo, author, number, 64);
            assert_eq!(message.len(), 64);
            assert!(std::str::from_utf8(&message).is_ok());
            assert_eq!(parse(&message), Some((Series::Echo, author, number)));
            for at in 0..message.len() {
                let mut other = message.clone();
                other[at] ^= 1;
                assert_ne!(parse(&other), Some((Series::Echo, author, number)), "byte {at}");
            }
            assert_eq!(parse(&message[..20]), None);
        }
    }
}
