//! What a row of the table says.

use std::time::Duration;

use crate::settings::Settings;
use crate::settings::units::{format_duration, format_size};

/// Whether a running gateway takes a new value.
#[derive(Clone, Copy)]
pub enum Reload {
    /// A reload changes it, for what happens from then on.
    Live,
    /// Only a restart changes it: a reload refuses the whole file when this finds that the two
    /// differ.
    RestartRequired(fn(&Settings, &Settings) -> bool),
}

/// What a value may look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A string, checked where it is used; the text says what it holds.
    Text(&'static str),
    /// `true` or `false`.
    Flag,
    /// A whole number in this range, both ends included.
    Count(u64, u64),
    /// A whole number in this range, or `"auto"`.
    CountOrAuto(u64, u64),
    /// A size in this range of bytes.
    Size(u64, u64),
    /// A size in this range of bytes, or `"auto"`.
    SizeOrAuto(u64, u64),
    /// A duration in this range of milliseconds.
    Time(u64, u64),
    /// A duration in this range of milliseconds, or `"off"`.
    TimeOrOff(u64, u64),
    /// One of these words.
    Word(&'static [&'static str]),
    /// One of the first words; the second ones are known, but not in this version.
    WordOrLater(&'static [&'static str], &'static [&'static str]),
    /// One of the first words, or one of the second ones with `:NAME` behind it.
    WordOrNamed(&'static [&'static str], &'static [&'static str]),
    /// Texts by names of any kind; the texts say what the names are, and what they lead to.
    TextByName(&'static str, &'static str),
    /// One of the words, or texts by names of any kind.
    WordOrTextByName(&'static [&'static str], &'static str, &'static str),
    /// Strings; the text says what each holds.
    List(&'static str),
    /// A string, or a list of them; the text says what each holds.
    TextOrList(&'static str),
    /// A name, or a list of names and whole numbers that leads to a part of a token's data; the
    /// text says what it names.
    Path(&'static str),
    /// Strings, or this word instead of them.
    ListOrWord(&'static str, &'static str),
    /// An inline table of this section.
    Table(&'static str),
    /// A list of inline tables of this section.
    Tables(&'static str),
    /// One inline table of this section, or a list of them.
    TableOrTables(&'static str),
    /// A table of tables of this section; the words are the names that they may have, and the
    /// text says what they are.
    TablesByName(&'static str, &'static str, &'static [&'static str]),
}

/// One key of the file.
#[derive(Clone, Copy)]
pub struct Key {
    /// The section it belongs to, as in `limits`, or `gateway.log` for a table within one.
    pub section: &'static str,
    /// Its name in the file.
    pub name: &'static str,
    /// The name with its section, as in `limits.message_max`.
    pub full_name: &'static str,
    /// What its value may look like.
    pub shape: Shape,
    /// The value that it has when it is absent, as it would be written; or [`REQUIRED`], or
    /// [`NONE`].
    pub default: &'static str,
    /// The same under `profile = "conformance"`, where that differs.
    pub conformance: Option<&'static str>,
    /// Whether a reload may change it.
    pub reload: Reload,
    /// The values of `kind` in its section that it may stand beside; empty, together with
    /// `required_for`, is all.
    pub optional_for: &'static [&'static str],
    /// The values of `kind` that it must stand beside.
    pub required_for: &'static [&'static str],
    /// What it means, in a sentence or two.
    pub meaning: &'static str,
}

/// The default of a key that must be there.
pub const REQUIRED: &str = "(required)";

/// The default of a key whose absence means that there is no such thing.
pub const NONE: &str = "(none)";

impl Key {
    /// Whether it may stand beside this value of `kind`.
    pub fn is_for(&self, kind: &str) -> bool {
        let mut kinds = self.kinds().peekable();
        kinds.peek().is_none() || kinds.any(|own| own == kind)
    }

    /// The values of `kind` that it belongs to; none is all.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> {
        self.required_for.iter().chain(self.optional_for).copied()
    }

    /// The key's row in `docs/configuration.md`.
    pub fn row(&self) -> String {
        let Key { name, meaning, shape, .. } = self;
        let default = match self.conformance {
            Some(conformance) => format!("`{}`; conformance `{conformance}`", self.default),
            None if self.default == REQUIRED || self.default == NONE => self.default.to_owned(),
            None => format!("`{}`", self.default),
        };
        let reload = match self.reload {
            Reload::Live => "live",
            Reload::RestartRequired(_) => "**restart**",
        };
        format!("| `{name}` | {meaning} | {} | {default} | {reload} |", shape.describe())
    }
}

impl Shape {
    /// The permitted values in words, for the documentation and for errors.
    pub fn describe(&self) -> String {
        let time = |ms: &u64| format_duration(Duration::from_millis(*ms));
        let quoted = |words: &[&str]| {
            words.iter().map(|word| format!("`\"{word}\"`")).collect::<Vec<_>>().join(", ")
        };
        match self {
            Shape::Text(what) => (*what).to_owned(),
            Shape::Flag => "`true`, `false`".to_owned(),
            Shape::Count(min, max) => format!("{min} to {max}"),
            Shape::CountOrAuto(min, max) => format!("{min} to {max}, or `\"auto\"`"),
            Shape::Size(min, max) => format!("{} to {}", format_size(*min), format_size(*max)),
            Shape::SizeOrAuto(min, max) => {
                format!("{} to {}, or `\"auto\"`", format_size(*min), format_size(*max))
            }
            Shape::Time(min, max) => format!("{} to {}", time(min), time(max)),
            Shape::TimeOrOff(min, max) => {
                format!("{} to {}, or `\"off\"`", time(min), time(max))
            }
            Shape::Word(words) => quoted(words),
            Shape::WordOrLater(words, later) => {
                format!("{} (not in this version: {})", quoted(words), quoted(later))
            }
            Shape::WordOrNamed(words, named) => {
                let named: Vec<_> = named.iter().map(|word| format!("`\"{word}:NAME\"`")).collect();
                format!("{}, {}", quoted(words), named.join(", "))
            }
            Shape::TextByName(name, what) => format!("table of {what} by {name}"),
            Shape::WordOrTextByName(words, name, what) => {
                format!("{}, or a table of {what} by {name}", quoted(words))
            }
            Shape::List(what) => format!("list of {what}"),
            Shape::TextOrList(what) => format!("{what}, or a list of them"),
            Shape::Path(what) => format!("{what}, or a list of names and numbers"),
            Shape::ListOrWord(what, word) => format!("list of {what}, or `\"{word}\"`"),
            Shape::Table(_) => "table, see below".to_owned(),
            Shape::Tables(_) => "list of tables, see below".to_owned(),
            Shape::TableOrTables(_) => "table or list of tables, see below".to_owned(),
            Shape::TablesByName(_, what, _) => format!("table by {what}, see below"),
        }
    }
}
