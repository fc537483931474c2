//! A strict JSON scanner (RFC 8259) that allocates nothing: for token headers, claims, and the
//! JSON of first messages.
//!
//! [`object`] checks a whole text before anything is read from it: UTF-8, grammar, escapes
//! (lone surrogates are refused), nesting up to [`DEPTH_MAX`], and that no two members of the
//! outer object have the same name, however they are escaped. What it returns are spans of the
//! text.

use JsonError as Error;

/// Deepest nesting of objects and arrays, the outer object included.
pub const DEPTH_MAX: usize = 16;

/// Most members of the outer object.
pub const MEMBERS_MAX: usize = 128;

/// What is wrong with a JSON text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not UTF-8.
    #[error("the text is not UTF-8")]
    Utf8,
    /// Not JSON, or not an object, or not an object alone.
    #[error("the text is not one JSON object")]
    Syntax,
    /// A bad escape, a lone surrogate or a bare control character in a string.
    #[error("a string in the text is malformed")]
    BadString,
    /// Nested deeper than [`DEPTH_MAX`].
    #[error("the text is nested too deeply")]
    TooDeep,
    /// Two members with one name.
    #[error("a member appears twice")]
    Repeated,
    /// More members than allowed.
    #[error("the object has too many members")]
    TooManyMembers,
    /// A string does not fit the scratch buffer.
    #[error("a string is too long")]
    TooLong,
}

/// A checked object: a span of a checked text, from `{` to `}`.
#[derive(Clone, Copy)]
pub struct Object<'t> {
    text: &'t str,
}

/// A value of a checked text.
#[derive(Clone, Copy)]
pub enum Value<'t> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number, as written.
    Number(&'t str),
    /// A string.
    String(JsonString<'t>),
    /// An array.
    Array(Array<'t>),
    /// An object.
    Object(Object<'t>),
}

/// A checked string, as written between its quotes.
#[derive(Clone, Copy)]
pub struct JsonString<'t> {
    raw: &'t str,
}

/// A checked array: a span of a checked text, from `[` to `]`.
#[derive(Clone, Copy)]
pub struct Array<'t> {
    text: &'t str,
}

/// Checks a whole text that must be one object with at most `members_max` members
/// (itself at most [`MEMBERS_MAX`]).
///
/// # Errors
/// What is wrong; see [`JsonError`].
pub fn object(text: &[u8], members_max: usize) -> Result<Object<'_>, JsonError> {
    let text = simdutf8::basic::from_utf8(text).map_err(|_| Error::Utf8)?;
    let mut scanner = Scanner { text, at: 0 };
    scanner.whitespace();
    let start = scanner.at;
    if scanner.peek() != Some(b'{') {
        return Err(Error::Syntax);
    }
    scanner.value(1)?;
    let object = Object { text: &text[start..scanner.at] };
    scanner.whitespace();
    if scanner.at != text.len() {
        return Err(Error::Syntax);
    }
    refuse_repeated(object, members_max.min(MEMBERS_MAX))?;
    Ok(object)
}

/// Checks a whole text that may be any value. Members of its objects are compared when they are
/// looked up.
///
/// # Errors
/// What is wrong; see [`JsonError`].
pub fn value(text: &[u8]) -> Result<Value<'_>, JsonError> {
    let text = simdutf8::basic::from_utf8(text).map_err(|_| Error::Utf8)?;
    let mut scanner = Scanner { text, at: 0 };
    scanner.whitespace();
    let value = scanner.value(1)?;
    scanner.whitespace();
    if scanner.at != text.len() {
        return Err(Error::Syntax);
    }
    Ok(value)
}

/// The string at a path of member names in a whole JSON text, unescaped into `scratch` when it
/// must be; `None` when there is no such member, or it is not a string.
///
/// # Errors
/// What is wrong with the text. A member on the path that appears twice is an error at any depth.
pub fn string_at<'t>(
    text: &'t [u8],
    path: &[String],
    scratch: &'t mut [u8],
) -> Result<Option<&'t str>, JsonError> {
    let mut object = object(text, MEMBERS_MAX)?;
    let Some((last, parents)) = path.split_last() else { return Ok(None) };
    for name in parents {
        match object.member(name)? {
            Some(Value::Object(inner)) => object = inner,
            _ => return Ok(None),
        }
    }
    match object.member(last)? {
        Some(Value::String(string)) => string.unescape(scratch).map(Some),
        _ => Ok(None),
    }
}

impl<'t> Object<'t> {
    /// The members in order.
    pub fn members(self) -> impl Iterator<Item = (JsonString<'t>, Value<'t>)> + use<'t> {
        let mut scanner = Scanner { text: self.text, at: 1 };
        std::iter::from_fn(move || {
            scanner.separator();
            if scanner.peek() != Some(b'"') {
                return None;
            }
            let name = scanner.string().ok()?;
            scanner.separator();
            scanner.value(1).ok().map(|value| (name, value))
        })
    }

    /// The member of this name.
    ///
    /// # Errors
    /// [`JsonError::Repeated`] when there are two of them (in a nested object; the outer one was
    /// checked).
    pub fn member(self, name: &str) -> Result<Option<Value<'t>>, JsonError> {
        let mut found = None;
        for (candidate, value) in self.members() {
            if candidate.is(name) && found.replace(value).is_some() {
                return Err(Error::Repeated);
            }
        }
        Ok(found)
    }
}

impl<'t> Array<'t> {
    /// The elements in order.
    pub fn elements(self) -> impl Iterator<Item = Value<'t>> + use<'t> {
        let mut scanner = Scanner { text: self.text, at: 1 };
        std::iter::from_fn(move || {
            scanner.separator();
            if scanner.peek() == Some(b']') { None } else { scanner.value(1).ok() }
        })
    }
}

impl<'t> Value<'t> {
    /// The value as a whole number of 0 or more, written without fraction and exponent, and at
    /// most 2^53 so that every JSON library reads the same one (RFC 8259 §6).
    pub fn whole_number(self) -> Option<u64> {
        let Value::Number(text) = self else { return None };
        text.parse().ok().filter(|&number: &u64| number <= 1 << 53)
    }

    /// The value as a NumericDate (RFC 7519 §2), which may be any number: of 0 or more, floored to
    /// whole seconds, and at most 2^53.
    pub fn numeric_date(self) -> Option<u64> {
        let Value::Number(text) = self else { return None };
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = || whole.bytes().chain(fraction.bytes());
        let point = i64::try_from(whole.len()).ok()? + i64::from(exponent);
        // 2^53 has 16 digits: what has more zeros behind its digits is refused without counting.
        let point = usize::try_from(point.max(0)).ok().filter(|&at| at <= mantissa.len() + 16)?;
        if !digits().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        digits().chain(std::iter::repeat(b'0')).take(point).try_fold(0, |number: u64, digit| {
            Some(number * 10 + u64::from(digit - b'0')).filter(|&number| number <= 1 << 53)
        })
    }

    /// An integer as its decimal text, which JSON writes in one way only, but for `-0`.
    pub fn integer_text(self) -> Option<JsonString<'t>> {
        let Value::Number(raw) = self else { return None };
        let digits = raw.strip_prefix('-').unwrap_or(raw);
        let integer = digits.bytes().all(|byte| byte.is_ascii_digit()) && raw != "-0";
        integer.then_some(JsonString { raw })
    }

    /// The string, when it is one.
    pub fn string(self) -> Option<JsonString<'t>> {
        if let Value::String(string) = self { Some(string) } else { None }
    }
}

impl<'t> JsonString<'t> {
    /// Whether the string, unescaped, is `other`.
    pub fn is(self, other: &str) -> bool {
        self.raw == other
            || (self.raw.as_bytes().contains(&b'\\') && self.chars().eq(other.chars()))
    }

    /// The string as it is written between its quotes, escapes and all.
    pub const fn as_written(self) -> &'t str {
        self.raw
    }

    /// The string unescaped: a span of the text, or of `scratch` when it has escapes.
    ///
    /// # Errors
    /// [`JsonError::TooLong`] when `scratch` cannot hold it.
    pub fn unescape<'s>(self, scratch: &'s mut [u8]) -> Result<&'s str, JsonError>
    where
        't: 's,
    {
        if !self.raw.as_bytes().contains(&b'\\') {
            return Ok(self.raw);
        }
        let mut length = 0;
        for character in self.chars() {
            let room = &mut scratch[length..];
            if room.len() < character.len_utf8() {
                return Err(Error::TooLong);
            }
            length += character.encode_utf8(room).len();
        }
        str::from_utf8(&scratch[..length]).map_err(|_| Error::Utf8)
    }

    /// FNV-1a over the unescaped characters.
    fn hash(self) -> u64 {
        self.chars().fold(0xcbf2_9ce4_8422_2325, |hash, character| {
            (hash ^ u64::from(u32::from(character))).wrapping_mul(0x0100_0000_01b3)
        })
    }

    /// The characters, unescaped. The string was checked, so that no escape is bad.
    pub fn chars(self) -> impl Iterator<Item = char> + use<'t> {
        let mut rest = self.raw;
        std::iter::from_fn(move || {
            let (character, length) = match rest.as_bytes() {
                [b'\\', ..] => unescape_one(rest.as_bytes())?,
                _ => rest.chars().next().map(|character| (character, character.len_utf8()))?,
            };
            rest = &rest[length..];
            Some(character)
        })
    }
}

/// Looks at a checked or unchecked text. Invariant: `at <= text.len()`, on a character boundary.
struct Scanner<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Scanner<'t> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn whitespace(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// Skips what may stand between the parts of a checked object or array.
    fn separator(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r' | b',' | b':') = self.peek() {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Result<(), Error> {
        if self.peek() != Some(byte) {
            return Err(Error::Syntax);
        }
        self.at += 1;
        Ok(())
    }

    /// One value. Recursion is bounded by [`DEPTH_MAX`]; `depth` is that of this value if it
    /// nests.
    fn value(&mut self, depth: usize) -> Result<Value<'t>, Error> {
        let start = self.at;
        match self.peek().ok_or(Error::Syntax)? {
            b'{' => {
                self.nest(depth, b'}', |scanner| {
                    scanner.string()?;
                    scanner.whitespace();
                    scanner.expect(b':')?;
                    scanner.whitespace();
                    scanner.value(depth + 1).map(|_| ())
                })?;
                Ok(Value::Object(Object { text: &self.text[start..self.at] }))
            }
            b'[' => {
                self.nest(depth, b']', |scanner| scanner.value(depth + 1).map(|_| ()))?;
                Ok(Value::Array(Array { text: &self.text[start..self.at] }))
            }
            b'"' => self.string().map(Value::String),
            b'-' | b'0'..=b'9' => self.number().map(Value::Number),
            b't' => self.word("true").map(|()| Value::Bool(true)),
            b'f' => self.word("false").map(|()| Value::Bool(false)),
            b'n' => self.word("null").map(|()| Value::Null),
            _ => Err(Error::Syntax),
        }
    }

    /// The inside of an object or array, from its opening to its closing byte.
    fn nest(
        &mut self,
        depth: usize,
        close: u8,
        mut item: impl FnMut(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(Error::TooDeep);
        }
        self.at += 1;
        self.whitespace();
        if self.peek() == Some(close) {
            self.at += 1;
            return Ok(());
        }
        loop {
            item(self)?;
            self.whitespace();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(byte) if byte == close => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(Error::Syntax),
            }
            self.whitespace();
        }
    }

    fn string(&mut self) -> Result<JsonString<'t>, Error> {
        self.expect(b'"')?;
        let start = self.at;
        loop {
            match self.peek().ok_or(Error::Syntax)? {
                b'"' => {
                    let raw = &self.text[start..self.at];
                    self.at += 1;
                    return Ok(JsonString { raw });
                }
                b'\\' => {
                    let rest = &self.text.as_bytes()[self.at..];
                    self.at += unescape_one(rest).ok_or(Error::BadString)?.1;
                }
                0..0x20 => return Err(Error::BadString),
                _ => self.at += 1,
            }
        }
    }

    fn number(&mut self) -> Result<&'t str, Error> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(&self.text[start..self.at])
    }

    fn digits(&mut self) -> Result<(), Error> {
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at > start { Ok(()) } else { Err(Error::Syntax) }
    }

    fn word(&mut self, word: &str) -> Result<(), Error> {
        if !self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            return Err(Error::Syntax);
        }
        self.at += word.len();
        Ok(())
    }
}

/// The character that an escape at the start of `text` stands for, and the escape's length.
fn unescape_one(text: &[u8]) -> Option<(char, usize)> {
    let character = match *text.get(1)? {
        escaped @ (b'"' | b'\\' | b'/') => char::from(escaped),
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => return unescape_unicode(text),
        _ => return None,
    };
    Some((character, 2))
}

/// `\uXXXX`, or two of them for a surrogate pair. Lone surrogates are no characters.
fn unescape_unicode(text: &[u8]) -> Option<(char, usize)> {
    let unit = |at: usize| {
        let (b"\\u", digits) = text.get(at..at + 6)?.split_at(2) else { return None };
        digits.iter().try_fold(0, |sum, &b| Some(sum * 16 + char::from(b).to_digit(16)?))
    };
    let first = unit(0)?;
    if !(0xd800..0xdc00).contains(&first) {
        return char::from_u32(first).map(|character| (character, 6));
    }
    let second = unit(6).filter(|unit| (0xdc00..0xe000).contains(unit))?;
    let code = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
    char::from_u32(code).map(|character| (character, 12))
}

/// Compares each name with all before it, by a hash first: any client can send the texts, and names
/// with long common starts must not cost a comparison for every pair.
fn refuse_repeated(object: Object<'_>, members_max: usize) -> Result<(), Error> {
    let mut seen = [(0, JsonString { raw: "" }); MEMBERS_MAX];
    for (count, (name, _)) in object.members().enumerate() {
        if count >= members_max {
            return Err(Error::TooManyMembers);
        }
        let hash = name.hash();
        let same = |(other_hash, other): &(u64, JsonString<'_>)| {
            *other_hash == hash && other.chars().eq(name.chars())
        };
        if seen[..count].iter().any(same) {
            return Err(Error::Repeated);
        }
        seen[count] = (hash, name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_judged_exactly() {
        let deep =
            |depth: usize| format!("{{\"a\":{}0{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        let many = |count: usize| {
            let members: Vec<_> = (0..count).map(|n| format!("\"{n}\":0")).collect();
            format!("{{{}}}", members.join(","))
        };
        let (deep_16, deep_17, deep_4000) = (deep(16), deep(17), deep(4000));
        let (eight, nine) = (many(8), many(9));
        let table: &[(&[u8], Result<(), JsonError>)] = &[
            (b"{}", Ok(())),
            (b" \t\r\n{ } \n", Ok(())),
            (br#"{"a":1,"b":[1,-0,2.5,1e3,1E-3,0.1e+9,true,false,null,"x",{"c":{}}]}"#, Ok(())),
            (br#"{"":"\"\\\/\b\f\n\r\t\u00e9\uD83D\uDE00"}"#, Ok(())),
            (br#"{"a":{"b":1,"b":2}}"#, Ok(())),
            (b"", Err(Error::Syntax)),
            (b"[]", Err(Error::Syntax)),
            (b"null", Err(Error::Syntax)),
            (b"{", Err(Error::Syntax)),
            (b"{}}", Err(Error::Syntax)),
            (b"{}{}", Err(Error::Syntax)),
            (b"{} x", Err(Error::Syntax)),
            (b"{}\0", Err(Error::Syntax)),
            (b"{\x0b}", Err(Error::Syntax)),
            (b"{a:1}", Err(Error::Syntax)),
            (b"{'a':1}", Err(Error::Syntax)),
            (br#"{"a"}"#, Err(Error::Syntax)),
            (br#"{"a":}"#, Err(Error::Syntax)),
            (br#"{"a":1,}"#, Err(Error::Syntax)),
            (br#"{,"a":1}"#, Err(Error::Syntax)),
            (br#"{"a":1 "b":2}"#, Err(Error::Syntax)),
            (br#"{"a":1,,"b":2}"#, Err(Error::Syntax)),
            (br#"{"a"::1}"#, Err(Error::Syntax)),
            (br#"{"a":[1,]}"#, Err(Error::Syntax)),
            (br#"{"a":[1}"#, Err(Error::Syntax)),
            (br#"{"a":01}"#, Err(Error::Syntax)),
            (br#"{"a":+1}"#, Err(Error::Syntax)),
            (br#"{"a":-}"#, Err(Error::Syntax)),
            (br#"{"a":.5}"#, Err(Error::Syntax)),
            (br#"{"a":1.}"#, Err(Error::Syntax)),
            (br#"{"a":1e}"#, Err(Error::Syntax)),
            (br#"{"a":0x1}"#, Err(Error::Syntax)),
            (br#"{"a":NaN}"#, Err(Error::Syntax)),
            (br#"{"a":tru}"#, Err(Error::Syntax)),
            (br#"{"a":True}"#, Err(Error::Syntax)),
            (br#"{"a":"x}"#, Err(Error::Syntax)),
            (b"{} // x", Err(Error::Syntax)),
            (b"\xef\xbb\xbf{}", Err(Error::Syntax)),
            (b"{\"a\":\"\n\"}", Err(Error::BadString)),
            (b"{\"a\":\"\x00\"}", Err(Error::BadString)),
            (br#"{"a":"\x"}"#, Err(Error::BadString)),
            (br#"{"a":"\u12"}"#, Err(Error::BadString)),
            (br#"{"a":"\u+123"}"#, Err(Error::BadString)),
            (br#"{"a":"\ud83d"}"#, Err(Error::BadString)),
            (br#"{"a":"\ud83dx"}"#, Err(Error::BadString)),
            (br#"{"a":"\ud83d\u0041"}"#, Err(Error::BadString)),
            (br#"{"a":"\ude00"}"#, Err(Error::BadString)),
            (br#"{"a":"\ude00\ud83d"}"#, Err(Error::BadString)),
            (b"{\"a\":\"\xff\"}", Err(Error::Utf8)),
            (b"{\"a\":\"\xed\xa0\x80\"}", Err(Error::Utf8)),
            (b"{\"a\":\"\xc0\x80\"}", Err(Error::Utf8)),
            (br#"{"a":1,"a":1}"#, Err(Error::Repeated)),
            (br#"{"a":1,"\u0061":2}"#, Err(Error::Repeated)),
            (br#"{"\ud83d\ude00":1,"\uD83D\uDE00":2}"#, Err(Error::Repeated)),
            ("{\"\\u00e9\":1,\"\u{e9}\":2}".as_bytes(), Err(Error::Repeated)),
            (br#"{"a":1,"b":2,"":3,"":4}"#, Err(Error::Repeated)),
            (deep_16.as_bytes(), Ok(())),
            (deep_17.as_bytes(), Err(Error::TooDeep)),
            (deep_4000.as_bytes(), Err(Error::TooDeep)),
            (eight.as_bytes(), Ok(())),
            (nine.as_bytes(), Err(Error::TooManyMembers)),
        ];
        for (text, expected) in table {
            let got = object(text, 8).map(|_| ());
            assert_eq!(got, *expected, "{}", text.escape_ascii());
        }
        assert!(object(many(128).as_bytes(), usize::MAX).is_ok());
        assert!(object(many(129).as_bytes(), usize::MAX).is_err());
    }

    #[test]
    fn whole_numbers_are_whole() {
        let table: &[(&str, Option<u64>)] = &[
            ("0", Some(0)),
            ("1700000000", Some(1_700_000_000)),
            ("9007199254740992", Some(1 << 53)),
            ("9007199254740993", None),
            ("18446744073709551616", None),
            ("-1", None),
            ("-0", None),
            ("1.0", None),
            ("1e9", None),
            ("\"1\"", None),
            ("true", None),
            ("null", None),
        ];
        for (text, expected) in table {
            let text = format!("{{\"exp\" : {text} }}");
            let value = object(text.as_bytes(), 1).unwrap().member("exp").unwrap().unwrap();
            assert_eq!(value.whole_number(), *expected, "{text}");
        }
    }

    #[test]
    fn strings_are_found_at_their_path() {
        let path = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
        let found = |text: &'static str| Ok(Some(text));
        type Row = (&'static str, &'static str, Result<Option<&'static str>, JsonError>);
        let table: &[Row] = &[
            (r#"{"token":"x"}"#, "token", found("x")),
            (r#"{"token":""}"#, "token", found("")),
            (r#"{"t\u006fken":"a\n\u00e9"}"#, "token", found("a\n\u{e9}")),
            (r#"{"a":[{"token":"y"}],"payload":{"token":"x"}}"#, "payload.token", found("x")),
            (r#"{"payload":{"token":"x","token":"y"}}"#, "payload.token", Err(Error::Repeated)),
            (r#"{"payload":{"a":1,"a":2,"token":"y"}}"#, "payload.token", found("y")),
            (r#"{"payload":["token","x"]}"#, "payload.token", Ok(None)),
            (r#"{"token":1}"#, "token", Ok(None)),
            (r#"{"Token":"x"}"#, "token", Ok(None)),
            ("{}", "token", Ok(None)),
            ("[]", "token", Err(Error::Syntax)),
            (r#"{"token":"\u00e9\u00e9\u00e9\u00e9\u00e9"}"#, "token", Err(Error::TooLong)),
        ];
        for (text, at, expected) in table {
            let mut scratch = [0; 8];
            assert_eq!(string_at(text.as_bytes(), &path(at), &mut scratch), *expected, "{text}");
        }
    }

    /// Members in order, as an independent parser reads them.
    struct Members(Vec<(String, serde_json::Value)>);

    impl<'de> serde::Deserialize<'de> for Members {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = Members;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(
                    self,
                    mut map: A,
                ) -> Result<Members, A::Error> {
                    let mut members = Vec::new();
                    while let Some(member) = map.next_entry()? {
                        members.push(member);
                    }
                    Ok(Members(members))
                }
            }
            from.deserialize_map(Visitor)
        }
    }

    fn depth(value: &serde_json::Value) -> usize {
        match value {
            serde_json::Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
            serde_json::Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
            _ => 0,
        }
    }

    fn agrees(text: &[u8]) {
        let expected = serde_json::from_slice::<Members>(text).ok().filter(|members| {
            let mut names: Vec<_> = members.0.iter().map(|(name, _)| name).collect();
            names.sort_unstable();
            let all = names.len();
            names.dedup();
            let deep = members.0.iter().map(|(_, value)| depth(value)).max().unwrap_or(0);
            names.len() == all && all <= MEMBERS_MAX && deep < DEPTH_MAX
        });
        let got = object(text, MEMBERS_MAX).ok();
        assert_eq!(got.is_some(), expected.is_some(), "{}", text.escape_ascii());
        let (Some(got), Some(expected)) = (got, expected) else { return };
        assert_eq!(got.members().count(), expected.0.len());
        for ((name, value), (expected_name, expected_value)) in got.members().zip(&expected.0) {
            assert!(name.is(expected_name));
            if let Some(expected) = expected_value.as_str() {
                let mut scratch = [0; 512];
                assert_eq!(value.string().unwrap().unescape(&mut scratch), Ok(expected));
            }
            let small = expected_value.as_u64().filter(|&number| number <= 1 << 53);
            assert_eq!(value.whole_number(), small, "{expected_value}");
        }
    }

    #[test]
    fn numeric_dates_are_floored_exactly() {
        let table: &[(&str, Option<u64>)] = &[
            ("0", Some(0)),
            ("1795837543", Some(1_795_837_543)),
            ("1795837543.0", Some(1_795_837_543)),
            ("1795837543.999999999999999999999", Some(1_795_837_543)),
            ("1.9e9", Some(1_900_000_000)),
            ("1.9E+9", Some(1_900_000_000)),
            ("17958375435e-1", Some(1_795_837_543)),
            ("1795.837543e6", Some(1_795_837_543)),
            ("0.0017958375439e12", Some(1_795_837_543)),
            ("0.9", Some(0)),
            ("5e-2147483648", Some(0)),
            ("9007199254740992", Some(1 << 53)),
            ("9007199254740992.9", Some(1 << 53)),
            ("9007199254740993", None),
            ("9.007199254740993e15", None),
            ("1e16", None),
            ("1e100", None),
            ("1e2147483647", None),
            ("1e99999999999", None),
            ("0e2147483647", None),
            ("-1", None),
            ("-0", None),
            ("-1.5e9", None),
            ("\"1795837543\"", None),
            ("true", None),
            ("null", None),
        ];
        for (text, expected) in table {
            let text = format!("{{\"a\":{text}}}");
            let value = object(text.as_bytes(), 1).unwrap().members().next().unwrap().1;
            assert_eq!(value.numeric_date(), *expected, "{text}");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(1500))]
        #[test]
        fn pieces_of_json_are_judged_as_serde_json_does(
            pieces in proptest::collection::vec(proptest::sample::select(vec![
                "{", "}", "[", "]", ",", ":", "\"", "\"a\":", "\"b\":1", "\"c\":\"d\"", ",", " ",
                "\n", "1", "-", "0", ".5", "e3", "true", "null", "\\", "\\n", "\\u0061",
                "\\ud83d", "\\ude00", "\u{e9}", "\t", "{}", "[]", "\"\"",
            ]), 0..14),
        ) {
            agrees(pieces.concat().as_bytes());
            agrees(format!("{{{}}}", pieces.concat()).as_bytes());
            agrees(format!("{{\"k\":\"{}\"}}", pieces.concat()).as_bytes());
            agrees(format!("{{\"k\":[{}]}}", pieces.concat()).as_bytes());
        }

        #[test]
        fn a_damaged_text_is_judged_as_serde_json_does(at in 0usize..94, byte in 0u8..) {
            let good = br#"{"sub":"u-1","exp":1700000000,"aud":["a","b"],"x":{"y":[null,-1.5e3,"\ud83d\ude00"]},
    "z":true}"#;
            let mut text = good.to_vec();
            agrees(&text);
            text[at] = byte;
            agrees(&text);
        }
    }
}
