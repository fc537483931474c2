//! A term as JSON, for backends that know no Erlang.

use std::io::{Cursor, Write as _};

use crate::protocol::base64url;
use crate::protocol::external_term::Term;

/// Most pairs of a map that is rendered: looking for repeated names is quadratic.
const PAIRS_MAX: usize = 256;

/// Longest name of a member that is made from a number.
const NUMBER_MAX: usize = 640;

/// Writes `term` as JSON into the start of `out`: binaries as text (those that are not UTF-8 as
/// `{"base64url":"…"}`), atoms as text but for `nil`, `true` and `false`, tuples as arrays, maps
/// as objects without the member `omit`.
///
/// `None` when it does not fit, or has no JSON: a map whose keys are not text, atoms or
/// integers, or are the same when written out.
pub fn write_json<'o>(term: Term<'_>, omit: Option<&str>, out: &'o mut [u8]) -> Option<&'o [u8]> {
    let mut writer = Cursor::new(&mut *out);
    write_term(term, omit, &mut writer)?;
    let length = writer.position() as usize;
    Some(&out[..length])
}

type Writer<'w, 'o> = &'w mut Cursor<&'o mut [u8]>;

fn write_term(term: Term<'_>, omit: Option<&str>, out: Writer<'_, '_>) -> Option<()> {
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
        Term::Tuple(terms) | Term::List(terms) => {
            put(out, b"[")?;
            for (index, term) in terms.enumerate() {
                if index > 0 {
                    put(out, b",")?;
                }
                write_term(term, None, out)?;
            }
            put(out, b"]")
        }
        Term::Map(pairs) => {
            if pairs.len() / 2 > PAIRS_MAX {
                return None;
            }
            put(out, b"{")?;
            let mut first = true;
            for (index, (key, value)) in pairs.pairs().enumerate() {
                if pairs.pairs().take(index).any(|(earlier, _)| same_name(earlier, key)) {
                    return None;
                }
                if omit.is_some_and(|omit| key.names(omit)) {
                    continue;
                }
                if !first {
                    put(out, b",")?;
                }
                first = false;
                write_name(key, out)?;
                put(out, b":")?;
                write_term(value, None, out)?;
            }
            put(out, b"}")
        }
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
        // Integers of one map are different.
        (None, None) => false,
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
