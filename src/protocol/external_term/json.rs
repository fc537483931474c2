//! A term as JSON, for backends that know no Erlang.
//!
//! Everything that JSON can say is said; the rest is left out and marked, so that data beside
//! the subject never locks its user out. The mark is a member [`MARK`]: as the only member of an
//! object it stands for a value and names the kind; in a map it counts the pairs left out.

use std::io::{Cursor, Write as _};

use super::{Term, Terms};
use crate::protocol::base64url;

/// Name of the member that stands for what has no JSON.
pub const MARK: &str = "$unsupported";

/// Most pairs of a map that are rendered: looking for repeated names is quadratic.
const PAIRS_MAX: usize = 256;

/// How deep values are rendered.
pub const DEPTH_MAX: usize = 16;

/// Longest name of a member that is made from a number.
const NUMBER_MAX: usize = 640;

/// Writes `term` as JSON into the start of `out`: binaries as text (those that are not UTF-8 as
/// `{"base64url":"…"}`), atoms as text but for `nil`, `true` and `false`, tuples as arrays, maps
/// as objects without the member `omit`.
///
/// What has no JSON is marked: `{"$unsupported":"pid"}` and so on for processes, ports,
/// references, bit strings, improper lists, atoms that are not UTF-8, integers beyond 255 bytes,
/// and `nesting` for what lies deeper than `DEPTH_MAX`. Of a map are left out, and counted in
/// a last member `"$unsupported":N`: pairs whose key is no text, atom or integer, pairs whose
/// keys are the same when written out, a pair that is called like the mark, and pairs beyond
/// 256. Data that does not fit `out` is `{"$unsupported":"size"}` as a whole.
pub fn write_json<'o>(term: Term<'_>, omit: Option<&str>, out: &'o mut [u8]) -> &'o [u8] {
    let mut writer = Cursor::new(&mut *out);
    let fits = write_term(term, omit, 0, &mut writer).is_some();
    let length = match fits {
        true => writer.position() as usize,
        false => {
            writer.set_position(0);
            let marked = mark("size", &mut writer).is_some();
            if marked { writer.position() as usize } else { 0 }
        }
    };
    &out[..length]
}

type Writer<'w, 'o> = &'w mut Cursor<&'o mut [u8]>;

fn write_term(term: Term<'_>, omit: Option<&str>, depth: usize, out: Writer<'_, '_>) -> Option<()> {
    match term {
        Term::Integer(integer) => {
            let mut digits = [0; NUMBER_MAX];
            put(out, integer.write_decimal(&mut digits)?.as_bytes())
        }
        // The shortest text that reads back as the same number; never "NaN" or "inf", which a
        // term cannot hold.
        Term::Float(float) => write!(out, "{float:?}").ok(),
        Term::Atom("nil") => put(out, b"null"),
        Term::Atom(name @ ("true" | "false")) => put(out, name.as_bytes()),
        Term::Atom(name) => write_text(name, out),
        Term::Binary(bytes) => match str::from_utf8(bytes) {
            Ok(text) => write_text(text, out),
            Err(_) => write_base64(bytes, out),
        },
        Term::Bytes(bytes) => {
            put(out, b"[")?;
            for (index, byte) in bytes.iter().enumerate() {
                let comma = if index == 0 { "" } else { "," };
                write!(out, "{comma}{byte}").ok()?;
            }
            put(out, b"]")
        }
        Term::Tuple(terms) | Term::List(terms) if terms.is_empty() => put(out, b"[]"),
        Term::Map(pairs) if pairs.is_empty() => put(out, b"{}"),
        Term::Tuple(_) | Term::List(_) | Term::Map(_) if depth == DEPTH_MAX => mark("nesting", out),
        Term::Tuple(terms) | Term::List(terms) => {
            put(out, b"[")?;
            for (index, term) in terms.enumerate() {
                if index > 0 {
                    put(out, b",")?;
                }
                write_term(term, None, depth + 1, out)?;
            }
            put(out, b"]")
        }
        Term::Map(pairs) => write_map(pairs, omit, depth, out),
        Term::Opaque(kind) => mark(kind.name(), out),
    }
}

fn write_map(
    pairs: Terms<'_>,
    omit: Option<&str>,
    depth: usize,
    out: Writer<'_, '_>,
) -> Option<()> {
    let count = pairs.len() / 2;
    let mut left_out = count.saturating_sub(PAIRS_MAX);
    let mut first = true;
    put(out, b"{")?;
    for (index, (key, value)) in pairs.pairs().take(PAIRS_MAX).enumerate() {
        if omit.is_some_and(|omit| key.names(omit)) {
            continue;
        }
        let is_repeated = || {
            let others = pairs.pairs().take(PAIRS_MAX).enumerate().filter(|(at, _)| *at != index);
            others.into_iter().any(|(_, (other, _))| same_name(other, key))
        };
        if !has_name(key) || key.names(MARK) || is_repeated() {
            left_out += 1;
            continue;
        }
        if !first {
            put(out, b",")?;
        }
        first = false;
        write_name(key, out)?;
        put(out, b":")?;
        write_term(value, None, depth + 1, out)?;
    }
    if left_out > 0 {
        let comma = if first { "" } else { "," };
        write!(out, "{comma}\"{MARK}\":{left_out}").ok()?;
    }
    put(out, b"}")
}

fn mark(kind: &str, out: Writer<'_, '_>) -> Option<()> {
    write!(out, "{{\"{MARK}\":\"{kind}\"}}").ok()
}

fn has_name(key: Term<'_>) -> bool {
    match key {
        Term::Atom(_) | Term::Integer(_) => true,
        Term::Binary(bytes) => str::from_utf8(bytes).is_ok(),
        _ => false,
    }
}

fn write_name(key: Term<'_>, out: Writer<'_, '_>) -> Option<()> {
    match key {
        Term::Atom(name) => write_text(name, out),
        Term::Binary(bytes) => write_text(str::from_utf8(bytes).ok()?, out),
        Term::Integer(integer) => {
            let mut digits = [0; NUMBER_MAX];
            write_text(integer.write_decimal(&mut digits)?, out)
        }
        _ => None,
    }
}

/// Whether two keys would be written alike.
fn same_name(one: Term<'_>, other: Term<'_>) -> bool {
    let text = |key| match key {
        Term::Atom(name) => Some(name.as_bytes()),
        Term::Binary(bytes) => Some(bytes),
        _ => None,
    };
    let is_number = |key: Term<'_>, text: &[u8]| match key {
        Term::Integer(integer) => {
            let mut digits = [0; NUMBER_MAX];
            integer.write_decimal(&mut digits).is_some_and(|digits| digits.as_bytes() == text)
        }
        _ => false,
    };
    match (text(one), text(other)) {
        (Some(one), Some(other)) => one == other,
        (Some(text), None) => is_number(other, text),
        (None, Some(text)) => is_number(one, text),
        (None, None) => match (one, other) {
            // One number may be written in several ways.
            (Term::Integer(one), Term::Integer(other)) => {
                let (mut ours, mut theirs) = ([0; NUMBER_MAX], [0; NUMBER_MAX]);
                one.write_decimal(&mut ours) == other.write_decimal(&mut theirs)
            }
            _ => false,
        },
    }
}

/// RFC 8259 §7.
fn write_text(text: &str, out: Writer<'_, '_>) -> Option<()> {
    put(out, b"\"")?;
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c < ' ' || c == '"' || c == '\\') {
        put(out, &rest.as_bytes()[..at])?;
        let special = rest.as_bytes()[at];
        match special {
            b'"' | b'\\' => put(out, &[b'\\', special])?,
            control => write!(out, "\\u{control:04x}").ok()?,
        }
        rest = &rest[at + 1..];
    }
    put(out, rest.as_bytes())?;
    put(out, b"\"")
}

fn write_base64(bytes: &[u8], out: Writer<'_, '_>) -> Option<()> {
    put(out, br#"{"base64url":""#)?;
    for chunk in bytes.chunks(48) {
        let mut text = [0; 64];
        put(out, base64url::encode_into(chunk, &mut text))?;
    }
    put(out, br#""}"#)
}

fn put(out: Writer<'_, '_>, bytes: &[u8]) -> Option<()> {
    out.write_all(bytes).ok()
}
