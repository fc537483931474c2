//! What a key of the configuration file may hold as it is written: shapes, no meaning. Nothing is
//! required here, so that the checks of meaning can go on and find the rest.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Visitor};
use toml::Spanned;

use super::units::{parse_duration, parse_size};

/// A string and its place.
pub type Text = Option<Spanned<String>>;
/// A whole number or a word, and its place.
pub type Number = Option<Spanned<CountOrWord>>;
/// Strings and their places.
pub type List = Option<Spanned<Vec<Spanned<String>>>>;

/// Steps to a part of a token's data, and their places.
pub type Path = Option<Spanned<Vec<Spanned<CountOrWord>>>>;

/// What is written, or else the default.
pub(super) fn text<'t>(value: &'t Text, default: &'t str) -> &'t str {
    value.as_ref().map_or(default, |text| text.get_ref())
}

/// A whole number; `None` is the word `auto`.
pub(super) fn count(value: &Number, default: &str) -> Option<u64> {
    match value.as_ref().map(Spanned::get_ref) {
        Some(CountOrWord::Count(count)) => Some(*count),
        Some(CountOrWord::Word(_)) => None,
        None => default.replace('_', "").parse().ok(),
    }
}

/// A size in bytes; `None` is the word `auto`.
pub(super) fn size(value: &Text, default: &str) -> Option<u64> {
    parse_size(text(value, default))
}

/// A duration; `None` is the word `off`.
pub(super) fn time(value: &Text, default: &str) -> Option<Duration> {
    parse_duration(text(value, default))
}

/// A whole number, or a word such as `auto`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CountOrWord {
    /// The number.
    Count(u64),
    /// The word.
    Word(String),
}

impl<'de> Deserialize<'de> for CountOrWord {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = CountOrWord;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a whole number or a word")
            }

            fn visit_i64<E: de::Error>(self, count: i64) -> Result<CountOrWord, E> {
                u64::try_from(count).map(CountOrWord::Count).map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, count: u64) -> Result<CountOrWord, E> {
                Ok(CountOrWord::Count(count))
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<CountOrWord, E> {
                Ok(CountOrWord::Word(word.to_owned()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Texts by name, and their places.
pub type TextByName = BTreeMap<String, Spanned<String>>;

/// Texts by name, or a word instead of them.
#[derive(Clone, Debug)]
pub enum WordOrTextByName {
    /// The word.
    Word(String),
    /// The texts.
    Texts(TextByName),
}

impl<'de> Deserialize<'de> for WordOrTextByName {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = WordOrTextByName;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a word or a table")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<WordOrTextByName, E> {
                Ok(WordOrTextByName::Word(word.to_owned()))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let map = de::value::MapAccessDeserializer::new(map);
                TextByName::deserialize(map).map(WordOrTextByName::Texts)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// Strings, or a word instead of them.
#[derive(Clone, Debug)]
pub enum ListOrWord {
    /// The strings.
    List(Vec<Spanned<String>>),
    /// The word; there is only one.
    Word,
}

impl<'de> Deserialize<'de> for ListOrWord {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = ListOrWord;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a list or a word")
            }

            fn visit_str<E: de::Error>(self, _word: &str) -> Result<ListOrWord, E> {
                Ok(ListOrWord::Word)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<ListOrWord, A::Error> {
                let list = de::value::SeqAccessDeserializer::new(list);
                Vec::deserialize(list).map(ListOrWord::List)
            }
        }
        deserializer.deserialize_any(Either)
    }
}
