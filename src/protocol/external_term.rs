//! Erlang's external term format, version 131, as far as tokens and sessions use it.
//!
//! Reading allocates nothing, but for compressed terms. A term is checked as a whole before any
//! of it is looked at: it ends where its bytes end, and it holds nothing that runs (functions).
//! What only the node that wrote it understands (processes, ports, references) and what JSON
//! has no form for is walked over and kept as [`Term::Opaque`]: it may stand beside a subject.

mod inflate;
mod json;
mod path;

use serde_json::Value;

pub use inflate::{INFLATED_MAX, inflated};
pub use json::write_json;
pub use path::{Step, TermPath};

/// First byte of every term.
const VERSION: u8 = 131;

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
    /// What has no counterpart in JSON, and cannot be a subject.
    Opaque(Opaque),
}

/// Terms without a counterpart in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opaque {
    /// A process.
    Pid,
    /// A port.
    Port,
    /// A reference.
    Reference,
    /// Bits that fill no whole number of bytes.
    Bitstring,
    /// A list whose tail is no list.
    ImproperList,
    /// An atom in Latin-1, beyond ASCII.
    Atom,
    /// An integer of more than [`INTEGER_BYTES_MAX`] bytes.
    Integer,
}

impl Opaque {
    /// The kind's name, as JSON shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Opaque::Pid => "pid",
            Opaque::Port => "port",
            Opaque::Reference => "reference",
            Opaque::Bitstring => "bitstring",
            Opaque::ImproperList => "improper_list",
            Opaque::Atom => "atom",
            Opaque::Integer => "integer",
        }
    }
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
    let (term, rest) = split(bytes)?;
    rest.is_empty().then_some(term)
}

impl<'t> Term<'t> {
    fn byte(byte: u8) -> Self {
        Term::Integer(small(false, u32::from(byte)))
    }

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
        let (term, rest) = split(self.bytes)?;
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
        // A big integer may be written as a negative zero, which is zero.
        if self.negative && self.magnitude().iter().any(|byte| *byte != 0) {
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

/// The start of a term: all of it, or how many terms it holds.
enum Head<'t> {
    Leaf(Term<'t>),
    Tuple(u32),
    /// Without its tail.
    List(u32),
    /// Keys and values.
    Map(u32),
}

/// The first term in `bytes` and what follows it.
fn split<'t>(bytes: &'t [u8]) -> Option<(Term<'t>, &'t [u8])> {
    let (head, inside) = head(bytes)?;
    let (count, wrap): (u32, fn(Terms<'t>) -> Term<'t>) = match head {
        Head::Leaf(term) => return Some((term, inside)),
        Head::Tuple(count) => (count, Term::Tuple),
        Head::Map(count) => (count, Term::Map),
        Head::List(count) => (count, Term::List),
    };
    let rest = skip(u64::from(count), inside)?;
    let terms = Terms { count, bytes: &inside[..inside.len() - rest.len()] };
    if !matches!(head, Head::List(_)) {
        return Some((wrap(terms), rest));
    }
    match rest.strip_prefix(b"j") {
        Some(rest) => Some((Term::List(terms), rest)),
        None => Some((Term::Opaque(Opaque::ImproperList), skip(1, rest)?)),
    }
}

/// What follows `count` terms. It keeps a number where others keep a stack, so nesting costs
/// nothing, however deep it is.
fn skip(count: u64, bytes: &[u8]) -> Option<&[u8]> {
    let (mut left, mut rest) = (count, bytes);
    while left > 0 {
        // Each term takes a byte at least, so a count beyond that is refused before it costs.
        if left > rest.len() as u64 {
            return None;
        }
        let (head, after) = head(rest)?;
        left -= 1;
        left += match head {
            Head::Leaf(_) => 0,
            Head::Tuple(count) | Head::Map(count) => u64::from(count),
            Head::List(count) => u64::from(count) + 1,
        };
        rest = after;
    }
    Some(rest)
}

fn head(bytes: &[u8]) -> Option<(Head<'_>, &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (term, rest) = match tag {
        b'a' => {
            let (byte, rest) = rest.split_first()?;
            (Term::byte(*byte), rest)
        }
        b'b' => {
            let (number, rest) = rest.split_first_chunk()?;
            let number = i32::from_be_bytes(*number);
            (Term::Integer(small(number < 0, number.unsigned_abs())), rest)
        }
        b'n' | b'o' => split_big(*tag, rest)?,
        b'F' => {
            let (float, rest) = rest.split_first_chunk()?;
            let float = f64::from_be_bytes(*float);
            (Term::Float(Some(float).filter(|float| float.is_finite())?), rest)
        }
        b'd' | b's' | b'v' | b'w' => split_atom(*tag, rest)?,
        b'm' => {
            let (length, rest) = split_u32(rest)?;
            let (binary, rest) = rest.split_at_checked(length as usize)?;
            (Term::Binary(binary), rest)
        }
        b'k' => {
            let (length, rest) = rest.split_first_chunk()?;
            let (list, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
            (Term::Bytes(list), rest)
        }
        b'j' => (Term::List(Terms { count: 0, bytes: &[] }), rest),
        b'h' => {
            let (count, rest) = rest.split_first()?;
            return Some((Head::Tuple(u32::from(*count)), rest));
        }
        b'i' => {
            let (count, rest) = split_u32(rest)?;
            return Some((Head::Tuple(count), rest));
        }
        b'l' => {
            let (count, rest) = split_u32(rest)?;
            return Some((Head::List(count), rest));
        }
        b't' => {
            let (count, rest) = split_u32(rest)?;
            return Some((Head::Map(count.checked_mul(2)?), rest));
        }
        // Functions (p, q, u), compressed terms within terms, and what later versions may add.
        _ => split_opaque(*tag, rest)?,
    };
    Some((Head::Leaf(term), rest))
}

/// Integers of any size; those that are not read are walked over.
fn split_big(tag: u8, bytes: &[u8]) -> Option<(Term<'_>, &[u8])> {
    let (length, rest) = match tag {
        b'n' => bytes.split_first().map(|(length, rest)| (usize::from(*length), rest))?,
        _ => split_u32(bytes).map(|(length, rest)| (length as usize, rest))?,
    };
    let (sign, rest) = rest.split_first()?;
    let (magnitude, rest) = rest.split_at_checked(length)?;
    if *sign > 1 {
        return None;
    }
    let used = magnitude.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let term = match magnitude.get(..used.min(INTEGER_BYTES_MAX)) {
        Some(magnitude) if used <= INTEGER_BYTES_MAX => {
            let magnitude = Magnitude::Large(magnitude);
            Term::Integer(Integer { negative: *sign == 1, magnitude })
        }
        _ => Term::Opaque(Opaque::Integer),
    };
    Some((term, rest))
}

/// What is walked over: processes, ports, references, bit strings, in all their versions.
fn split_opaque(tag: u8, bytes: &[u8]) -> Option<(Term<'_>, &[u8])> {
    // References: a count of words, then the node, then a creation and the words.
    if let b'r' | b'Z' = tag {
        let (words, rest) = bytes.split_first_chunk()?;
        let words = usize::from(u16::from_be_bytes(*words));
        let creation = if tag == b'r' { 1 } else { 4 };
        let rest = skip_node(rest)?.get(creation + 4 * words..)?;
        return Some((Term::Opaque(Opaque::Reference), rest));
    }
    let (kind, after_node) = match tag {
        b'g' => (Opaque::Pid, 4 + 4 + 1),
        b'X' => (Opaque::Pid, 4 + 4 + 4),
        b'f' => (Opaque::Port, 4 + 1),
        b'Y' => (Opaque::Port, 4 + 4),
        b'x' => (Opaque::Port, 8 + 4),
        b'e' => (Opaque::Reference, 4 + 1),
        b'M' => {
            let (length, rest) = split_u32(bytes)?;
            let (bits, rest) = rest.split_first()?;
            let rest = rest.get(length as usize..)?;
            return (1..=8).contains(bits).then_some((Term::Opaque(Opaque::Bitstring), rest));
        }
        _ => return None,
    };
    Some((Term::Opaque(kind), skip_node(bytes)?.get(after_node..)?))
}

/// What follows the atom that names a node.
fn skip_node(bytes: &[u8]) -> Option<&[u8]> {
    let (tag, rest) = bytes.split_first()?;
    matches!(tag, b'd' | b's' | b'v' | b'w').then(|| split_atom(*tag, rest))?.map(|(_, rest)| rest)
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
        return Some((Term::Opaque(Opaque::Atom), rest));
    }
    Some((Term::Atom(str::from_utf8(name).ok()?), rest))
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
