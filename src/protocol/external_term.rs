//! Erlang's external term format, version 131, as far as tokens and sessions use it.
//!
//! Reading allocates nothing. A term is checked as a whole before any of it is looked at: its
//! depth is bounded, it ends where its bytes end, and it holds nothing that runs or that only
//! the node that wrote it could understand (functions, processes, references). Compressed terms
//! are refused: a few bytes could stand for gigabytes.

mod json;

use serde_json::Value;

pub use json::write_json;

/// First byte of every term.
const VERSION: u8 = 131;

/// How deep tuples, lists and maps may be nested.
pub const DEPTH_MAX: usize = 16;

/// Longest integer that is read, in bytes of its magnitude: what a SMALL_BIG_EXT can hold.
pub const INTEGER_BYTES_MAX: usize = 255;

/// A term. What it holds was checked already.
#[derive(Clone, Copy)]
pub enum Term<'t> {
    /// An integer of any size.
    Integer(Integer<'t>),
    /// A float; always finite.
    Float(f64),
    /// An atom.
    Atom(&'t str),
    /// A binary, which is also what Elixir's strings are.
    Binary(&'t [u8]),
    /// A list of integers under 256 (STRING_EXT).
    Bytes(&'t [u8]),
    /// A tuple.
    Tuple(Terms<'t>),
    /// A proper list.
    List(Terms<'t>),
    /// A map, its keys and values taking turns.
    Map(Terms<'t>),
}

/// An integer.
#[derive(Clone, Copy)]
pub struct Integer<'t> {
    negative: bool,
    /// Least significant byte first, without zeros at the end.
    magnitude: Magnitude<'t>,
}

#[derive(Clone, Copy)]
enum Magnitude<'t> {
    Small([u8; 4]),
    Large(&'t [u8]),
}

/// Terms in a row.
#[derive(Clone, Copy)]
pub struct Terms<'t> {
    count: u32,
    bytes: &'t [u8],
}

/// Reads a whole term; `None` when it is not one, or not one that is read here.
pub fn read(bytes: &[u8]) -> Option<Term<'_>> {
    let (&VERSION, bytes) = bytes.split_first()? else { return None };
    let (term, rest) = split(bytes, 0)?;
    rest.is_empty().then_some(term)
}

impl<'t> Term<'t> {
    /// The text of a binary that is UTF-8.
    pub fn text(self) -> Option<&'t str> {
        match self {
            Term::Binary(bytes) => str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// Whether this names `key` in a map: a binary or an atom of this text.
    pub fn names(self, key: &str) -> bool {
        match self {
            Term::Binary(bytes) => bytes == key.as_bytes(),
            Term::Atom(name) => name == key,
            _ => false,
        }
    }
}

impl<'t> Terms<'t> {
    /// How many there are; in a map, keys and values are counted apart.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Keys and values, of a map.
    pub fn pairs(self) -> impl Iterator<Item = (Term<'t>, Term<'t>)> {
        let mut terms = self;
        std::iter::from_fn(move || Some((terms.next()?, terms.next()?)))
    }

    /// The value of the one key of this name, of a map; two of the same name are none.
    pub fn value(self, key: &str) -> Option<Term<'t>> {
        let mut values = self.pairs().filter(|(name, _)| name.names(key)).map(|(_, value)| value);
        let first = values.next()?;
        values.next().is_none().then_some(first)
    }
}

impl<'t> Iterator for Terms<'t> {
    type Item = Term<'t>;

    fn next(&mut self) -> Option<Term<'t>> {
        self.count = self.count.checked_sub(1)?;
        // The bytes were walked when the term around them was read, so they split again.
        let (term, rest) = split(self.bytes, 0)?;
        self.bytes = rest;
        Some(term)
    }
}

impl Integer<'_> {
    /// The value, or the nearest that an `i64` can hold.
    pub fn saturated(&self) -> i64 {
        let magnitude = self.magnitude();
        let mut value: i64 = 0;
        for (index, byte) in magnitude.iter().enumerate() {
            let beyond = index >= 8 || (index == 7 && *byte >= 0x80);
            if beyond && *byte != 0 {
                return if self.negative { i64::MIN } else { i64::MAX };
            }
            if index < 8 {
                value |= i64::from(*byte) << (8 * index);
            }
        }
        if self.negative { -value } else { value }
    }

    /// Writes the decimal digits, with a sign where it is negative; `None` when `out` is too
    /// short.
    pub fn write_decimal<'o>(&self, out: &'o mut [u8]) -> Option<&'o str> {
        const BILLION: u64 = 1_000_000_000;
        let mut words = [0_u32; INTEGER_BYTES_MAX.div_ceil(4)];
        for (index, byte) in self.magnitude().iter().enumerate() {
            words[index / 4] |= u32::from(*byte) << (8 * (index % 4));
        }
        let mut used = words.len();
        let mut at = out.len();
        let mut put = |digit: u64, out: &mut [u8]| {
            at = at.checked_sub(1)?;
            out[at] = b'0' + digit as u8;
            Some(())
        };
        loop {
            while used > 0 && words[used - 1] == 0 {
                used -= 1;
            }
            let mut remainder = 0;
            for word in words[..used].iter_mut().rev() {
                let value = (remainder << 32) | u64::from(*word);
                *word = (value / BILLION) as u32;
                remainder = value % BILLION;
            }
            let more = words[..used].iter().any(|word| *word != 0);
            for _ in 0..9 {
                put(remainder % 10, out)?;
                remainder /= 10;
                if !more && remainder == 0 {
                    break;
                }
            }
            if !more {
                break;
            }
        }
        if self.negative {
            at = at.checked_sub(1)?;
            out[at] = b'-';
        }
        let length = out.len() - at;
        out.copy_within(at.., 0);
        str::from_utf8(&out[..length]).ok()
    }

    fn magnitude(&self) -> &[u8] {
        match &self.magnitude {
            Magnitude::Small(bytes) => bytes,
            Magnitude::Large(bytes) => bytes,
        }
    }
}

/// A whole number, or another JSON value, as Elixir would write it: text as a binary, an object
/// as a map with binary keys.
pub fn encode(value: &Value, out: &mut Vec<u8>) {
    out.push(VERSION);
    encode_bare(value, out);
}

/// The tuple `{data, signed, max_age}`, as Phoenix.Token signs it.
pub fn encode_signed(data: &Value, signed_ms: i64, max_age_s: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(&[VERSION, b'h', 3]);
    encode_bare(data, out);
    encode_integer(signed_ms, out);
    encode_integer(max_age_s, out);
}

fn encode_bare(value: &Value, out: &mut Vec<u8>) {
    let atom = |name: &str, out: &mut Vec<u8>| {
        out.extend_from_slice(&[b'w', name.len() as u8]);
        out.extend_from_slice(name.as_bytes());
    };
    let binary = |text: &str, out: &mut Vec<u8>| {
        out.push(b'm');
        encode_length(text.len(), out);
        out.extend_from_slice(text.as_bytes());
    };
    match value {
        Value::Null => atom("nil", out),
        Value::Bool(true) => atom("true", out),
        Value::Bool(false) => atom("false", out),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => encode_integer(integer, out),
            None => {
                out.push(b'F');
                out.extend_from_slice(&number.as_f64().unwrap_or_default().to_be_bytes());
            }
        },
        Value::String(text) => binary(text, out),
        Value::Array(items) => {
            if !items.is_empty() {
                out.push(b'l');
                encode_length(items.len(), out);
                items.iter().for_each(|item| encode_bare(item, out));
            }
            out.push(b'j');
        }
        Value::Object(members) => {
            out.push(b't');
            encode_length(members.len(), out);
            for (name, value) in members {
                binary(name, out);
                encode_bare(value, out);
            }
        }
    }
}

fn encode_length(length: usize, out: &mut Vec<u8>) {
    let length = u32::try_from(length).expect("what is minted is far below 4 GiB");
    out.extend_from_slice(&length.to_be_bytes());
}

fn encode_integer(integer: i64, out: &mut Vec<u8>) {
    if let Ok(small) = u8::try_from(integer) {
        out.extend_from_slice(&[b'a', small]);
    } else if let Ok(medium) = i32::try_from(integer) {
        out.push(b'b');
        out.extend_from_slice(&medium.to_be_bytes());
    } else {
        let magnitude = integer.unsigned_abs().to_le_bytes();
        let length = magnitude.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        out.extend_from_slice(&[b'n', length as u8, u8::from(integer < 0)]);
        out.extend_from_slice(&magnitude[..length]);
    }
}

/// The first term in `bytes` and what follows it.
fn split(bytes: &[u8], depth: usize) -> Option<(Term<'_>, &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    match tag {
        b'a' => {
            let (byte, rest) = rest.split_first()?;
            Some((Term::Integer(small(false, u32::from(*byte))), rest))
        }
        b'b' => {
            let (number, rest) = rest.split_first_chunk()?;
            let number = i32::from_be_bytes(*number);
            Some((Term::Integer(small(number < 0, number.unsigned_abs())), rest))
        }
        b'n' => {
            let ([length, sign], rest) = rest.split_first_chunk()?;
            let (magnitude, rest) = rest.split_at_checked(usize::from(*length))?;
            let magnitude = Magnitude::Large(magnitude);
            (*sign <= 1)
                .then_some((Term::Integer(Integer { negative: *sign == 1, magnitude }), rest))
        }
        b'F' => {
            let (float, rest) = rest.split_first_chunk()?;
            let float = f64::from_be_bytes(*float);
            float.is_finite().then_some((Term::Float(float), rest))
        }
        b'd' | b's' | b'v' | b'w' => split_atom(*tag, rest),
        b'm' => {
            let (length, rest) = split_u32(rest)?;
            let (binary, rest) = rest.split_at_checked(length as usize)?;
            Some((Term::Binary(binary), rest))
        }
        b'k' => {
            let (length, rest) = rest.split_first_chunk()?;
            let (list, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
            Some((Term::Bytes(list), rest))
        }
        b'h' => {
            let (count, rest) = rest.split_first()?;
            let (terms, rest) = split_terms(u32::from(*count), rest, depth)?;
            Some((Term::Tuple(terms), rest))
        }
        b'i' => {
            let (count, rest) = split_u32(rest)?;
            let (terms, rest) = split_terms(count, rest, depth)?;
            Some((Term::Tuple(terms), rest))
        }
        b'j' => Some((Term::List(Terms { count: 0, bytes: &[] }), rest)),
        b'l' => {
            let (count, rest) = split_u32(rest)?;
            let (terms, rest) = split_terms(count, rest, depth)?;
            // Another tail would make it an improper list, which has no counterpart in JSON.
            Some((Term::List(terms), rest.strip_prefix(b"j")?))
        }
        b't' => {
            let (count, rest) = split_u32(rest)?;
            let (terms, rest) = split_terms(count.checked_mul(2)?, rest, depth)?;
            Some((Term::Map(terms), rest))
        }
        // 80 (compressed), functions, processes, ports, references, bit strings, floats as text,
        // integers of more than 255 bytes, and what later versions may add.
        _ => None,
    }
}

fn split_atom(tag: u8, bytes: &[u8]) -> Option<(Term<'_>, &[u8])> {
    let long = matches!(tag, b'd' | b'v');
    let (length, rest) = match long {
        true => bytes
            .split_first_chunk()
            .map(|(length, rest)| (usize::from(u16::from_be_bytes(*length)), rest))?,
        false => bytes.split_first().map(|(length, rest)| (usize::from(*length), rest))?,
    };
    let (name, rest) = rest.split_at_checked(length)?;
    let latin = matches!(tag, b'd' | b's');
    // Latin-1 above ASCII is not UTF-8; no Elixir name is written so.
    if latin && !name.is_ascii() {
        return None;
    }
    Some((Term::Atom(str::from_utf8(name).ok()?), rest))
}

/// `count` terms, walked to their end.
fn split_terms(count: u32, bytes: &[u8], depth: usize) -> Option<(Terms<'_>, &[u8])> {
    // Each term takes a byte at least, so a count beyond that is refused before it costs.
    if depth == DEPTH_MAX || count as usize > bytes.len() {
        return None;
    }
    let mut rest = bytes;
    for _ in 0..count {
        (_, rest) = split(rest, depth + 1)?;
    }
    Some((Terms { count, bytes: &bytes[..bytes.len() - rest.len()] }, rest))
}

fn split_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u32::from_be_bytes(*number), rest))
}

fn small(negative: bool, magnitude: u32) -> Integer<'static> {
    Integer { negative, magnitude: Magnitude::Small(magnitude.to_le_bytes()) }
}

#[cfg(test)]
mod tests;
