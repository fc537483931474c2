//! From text to [`RawSettings`], by the table of keys: syntax, names, types, ranges, words.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeArray, DeString, DeTable, DeValue};

use super::file::RawSettings;
use super::keys::{self, Key, REQUIRED, Shape};
use super::problem::{Report, did_you_mean};
use super::units::{parse_duration, parse_size};

/// Reads the file's text. `None` when its syntax is broken: the rest could only be guessed.
pub(super) fn parse(text: &str, report: &mut Report<'_>) -> Option<RawSettings> {
    let (mut document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty()
        && let Some(at) = yaml_at(text)
    {
        let fix = "write TOML: [section] above its keys, and key = value";
        report.error(at..at, "this looks like YAML", fix);
        return None;
    }
    for error in &errors {
        let what = error.message().lines().next().unwrap_or("not TOML").to_owned();
        report.error(error.span().unwrap_or(0..0), what, "");
    }
    if !errors.is_empty() {
        return None;
    }
    retain(document.get_mut(), |name, value| {
        let span = name.span();
        match keys::SECTIONS.iter().find(|(section, _)| *section == name.get_ref().as_ref()) {
            Some((section, list)) => check_section(section, *list, span, value, report),
            None => unknown_section(name.get_ref(), span, report),
        }
    });
    match RawSettings::deserialize(toml::de::Deserializer::from(document)) {
        Ok(raw) => Some(raw),
        // Unreachable as long as the table of keys and the raw types agree; a test sees to it.
        Err(error) => {
            report.error(error.span().unwrap_or(0..0), error.message(), "");
            None
        }
    }
}

/// Where a text whose syntax is broken says `key:` like YAML, before any line of TOML.
fn yaml_at(text: &str) -> Option<usize> {
    let is_key = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let code = line.trim_start_matches('\u{feff}').trim();
        if code == "---" {
            return Some(at);
        }
        if !code.is_empty() && !code.starts_with('#') {
            let (key, value) = code.split_once(':')?;
            let yaml = value.is_empty() || value.starts_with(' ');
            return (yaml && !key.is_empty() && key.chars().all(is_key)).then_some(at);
        }
        at += line.len();
    }
    None
}

/// Whether a value of the file's top level can stay.
fn check_section(
    section: &'static str,
    list: bool,
    name_span: Range<usize>,
    value: &mut Spanned<DeValue<'_>>,
    report: &mut Report<'_>,
) -> bool {
    let span = value.span();
    match (value.get_mut(), list) {
        (DeValue::Table(table), false) => check_table(section, span, table, report),
        (DeValue::Array(array), true) => {
            for element in array.iter_mut() {
                let span = element.span();
                match element.get_mut() {
                    DeValue::Table(table) => check_table(section, span, table, report),
                    _ => {
                        let what = format!("\"{section}\" must hold tables");
                        report.error(span, what, &format!("write [[{section}]]"));
                        return false;
                    }
                }
            }
        }
        (_, false) => {
            let what = format!("\"{section}\" must be a table");
            report.error(name_span, what, &format!("write [{section}]"));
            return false;
        }
        (_, true) => {
            let what = format!("\"{section}\" must be a list of tables");
            report.error(name_span, what, &format!("write [[{section}]]"));
            return false;
        }
    }
    true
}

fn unknown_section(name: &str, span: Range<usize>, report: &mut Report<'_>) -> bool {
    let sections = keys::SECTIONS.iter().map(|(section, _)| *section);
    let fix = did_you_mean(name, sections).or_else(|| {
        let key = keys::all().find(|key| key.name == name)?;
        Some(format!("a key of that name belongs in {}", title(key.section)))
    });
    let known = "sections are gateway, limits, deadlines, listener, auth, route and backend";
    report.error(span, format!("unknown key \"{name}\""), &fix.unwrap_or(known.to_owned()));
    false
}

/// Removes what cannot stay from a table, and reports it and what is missing.
fn check_table(
    section: &'static str,
    span: Range<usize>,
    table: &mut DeTable<'_>,
    report: &mut Report<'_>,
) {
    report_missing(section, span, table, report);
    let kind = kind_of(section, table);
    retain(table, |name, value| match keys::find(section, name.get_ref()) {
        Some(key) if kind.is_some_and(|kind| !key.is_for(kind)) => {
            report_other_kind(key, kind.unwrap_or_default(), name.span(), report);
            false
        }
        Some(key) => check_value(key, value, report),
        None => {
            let names = keys::of_section(section).map(|key| key.name);
            let fix = known_mistake(section, name.get_ref())
                .or_else(|| did_you_mean(name.get_ref(), names))
                .unwrap_or_else(|| elsewhere(name));
            let what = format!("unknown key \"{}\" in {}", name.get_ref(), title(section));
            report.error(name.span(), what, &fix).code = "unknown_key";
            false
        }
    });
}

/// Keeps the entries that `keep` says yes to.
fn retain<'i>(
    table: &mut DeTable<'i>,
    mut keep: impl FnMut(&Spanned<DeString<'i>>, &mut Spanned<DeValue<'i>>) -> bool,
) {
    for (name, mut value) in std::mem::replace(table, DeTable::new()) {
        if keep(&name, &mut value) {
            table.insert(name, value);
        }
    }
}

fn report_missing(
    section: &'static str,
    span: Range<usize>,
    table: &DeTable<'_>,
    report: &mut Report<'_>,
) {
    let kind = kind_of(section, table);
    let of_kind = |key: &Key| kind.is_some_and(|kind| key.required_for.contains(&kind));
    for key in keys::of_section(section) {
        if table.contains_key(key.name) || (key.default != REQUIRED && !of_kind(key)) {
            continue;
        }
        let what = format!("\"{}\" is missing from {}", key.name, title(section));
        let fix = match (section, key.name) {
            ("route", "auth") => {
                "name an [[auth]], or write auth = \"none\" if anybody may connect".to_owned()
            }
            ("route", "origins") => {
                "list the pages that may connect; [] refuses every page".to_owned()
            }
            ("auth", "endpoint") => {
                "kind = \"http\" asks it: endpoint = \"http://127.0.0.1:9000/verify\"".to_owned()
            }
            ("auth", "carriers") => {
                "list where its tokens are: carriers = [\"authorization\"]".to_owned()
            }
            _ => wanted(&key.shape),
        };
        report.error(span.clone(), what, &fix).code = "missing_key";
    }
}

/// The kind that a block says it is, or is by default, if there is such a kind.
fn kind_of(section: &str, table: &DeTable<'_>) -> Option<&'static str> {
    let key = keys::find(section, "kind")?;
    let (Shape::Word(words) | Shape::WordOrLater(words, _)) = key.shape else { return None };
    let written = table.get("kind").map(|kind| kind.get_ref().as_str());
    let kind = written.unwrap_or(Some(key.default));
    words.iter().copied().find(|word| kind == Some(word))
}

fn report_other_kind(key: &Key, kind: &str, at: Range<usize>, report: &mut Report<'_>) {
    let kinds: Vec<_> = key.kinds().map(|kind| format!("\"{kind}\"")).collect();
    let what = format!("\"{}\" means nothing to kind = \"{kind}\"", key.name);
    let fix = format!("it belongs to kind = {}", kinds.join(" and "));
    report.error(at, what, &fix).code = "unknown_key";
}

/// What those who write this key here have in mind.
fn known_mistake(section: &str, name: &str) -> Option<String> {
    if let Some((top, list)) = keys::SECTIONS.iter().find(|(top, _)| *top == name) {
        let open = if *list { "[[" } else { "[" };
        let close = if *list { "]]" } else { "]" };
        return Some(format!("it is a section of its own: write {open}{top}{close}"));
    }
    let is_key_set = ["jwks", "jwks_url", "jwks_uri", "jwks_file", "discovery"].contains(&name);
    (section == "auth" && is_key_set).then(|| KEY_SETS.to_owned())
}

/// For those who want their identity provider's keys.
const KEY_SETS: &str = "this version verifies HMAC only (HS256, HS384, HS512) and fetches no key \
                        sets; for RS256 and the like let an HTTP endpoint decide: kind = \"http\"";

/// Where a key that is unknown here would be known.
fn elsewhere(name: &Spanned<DeString<'_>>) -> String {
    let name = name.get_ref().as_ref();
    match keys::all().find(|key| key.name == name) {
        Some(key) => format!("a key of that name belongs in {}", title(key.section)),
        None => "docs/configuration.md lists every key".to_owned(),
    }
}

/// A section as people write it.
pub(super) fn title(section: &str) -> String {
    match section.split_once('.') {
        Some((outer, inner)) => format!("\"{inner}\" of {}", title(outer)),
        None => match keys::SECTIONS.iter().find(|(name, _)| *name == section) {
            Some((_, true)) => format!("[[{section}]]"),
            _ => format!("[{section}]"),
        },
    }
}

/// Whether a value has the shape that its key asks for; reports it otherwise.
fn check_value(key: &Key, value: &mut Spanned<DeValue<'_>>, report: &mut Report<'_>) -> bool {
    let span = value.span();
    let decision = match key.shape {
        Shape::Table(section) => match value.get_mut() {
            DeValue::Table(table) => {
                check_table(section, span.clone(), table, report);
                return true;
            }
            _ => Err(String::new()),
        },
        Shape::TableOrTables(section) => {
            if value.get_ref().is_table() {
                wrap(value);
            }
            return check_tables(key, section, value, report);
        }
        Shape::Tables(section) => return check_tables(key, section, value, report),
        Shape::TablesByName(section, what, names) => match value.get_mut() {
            DeValue::Table(table) => {
                check_names(section, (what, names), table, report);
                return true;
            }
            _ => Err(String::new()),
        },
        Shape::TextByName(..) => check_texts(value.get_ref()),
        Shape::WordOrTextByName(words, ..) => match value.get_ref() {
            DeValue::String(word) => check_word(Some(word), words, &[]),
            other => check_texts(other),
        },
        Shape::List(_) => check_strings(value.get_ref()),
        Shape::TextOrList(_) => {
            if value.get_ref().is_str() {
                wrap(value);
            }
            check_strings(value.get_ref())
        }
        Shape::Path(_) => {
            if value.get_ref().is_str() {
                wrap(value);
            }
            check_path(value.get_ref())
        }
        Shape::ListOrWord(_, word) if value.get_ref().as_str() == Some(word) => Ok(()),
        Shape::ListOrWord(_, word) if value.get_ref().as_str() == Some("*") => {
            Err(format!("write {} = \"{word}\"", key.name))
        }
        Shape::ListOrWord(_, word) => check_strings(value.get_ref()).map_err(|fix| match fix {
            fix if fix.is_empty() => fix,
            fix => format!("{fix}, or \"{word}\""),
        }),
        Shape::Text(_) => value.get_ref().is_str().then_some(()).ok_or_else(String::new),
        Shape::Flag => value.get_ref().is_bool().then_some(()).ok_or_else(String::new),
        _ => check_scalar(key, value.get_ref()),
    };
    let Err(fix) = decision else { return true };
    let is = match value.get_ref() {
        _ if matches!(key.name, "secret" | "secret_key_base") => "not text".to_owned(),
        _ if key.name == "request_headers" => "not a table of texts".to_owned(),
        value => shown(value),
    };
    let what = format!("\"{}\" in {} is {is}", key.name, title(key.section));
    let fix = if fix.is_empty() { wanted(&key.shape) } else { fix };
    report.error(span, what, &fix);
    false
}

/// A single table is a list of one.
fn wrap(value: &mut Spanned<DeValue<'_>>) {
    let single = value.clone();
    let mut list = DeArray::new();
    list.push(single);
    *value.get_mut() = DeValue::Array(list);
}

fn check_tables(
    key: &Key,
    section: &'static str,
    value: &mut Spanned<DeValue<'_>>,
    report: &mut Report<'_>,
) -> bool {
    let span = value.span();
    if let DeValue::Array(array) = value.get_mut()
        && array.iter().all(|element| element.get_ref().is_table())
    {
        for element in array.iter_mut() {
            let span = element.span();
            if let DeValue::Table(table) = element.get_mut() {
                check_table(section, span, table, report);
            }
        }
        return true;
    }
    let what = format!("\"{}\" in {} must hold tables", key.name, title(key.section));
    report.error(span, what, &wanted(&key.shape));
    false
}

/// Removes what cannot stay from a table of tables.
fn check_names(
    section: &'static str,
    (what, names): (&str, &[&str]),
    table: &mut DeTable<'_>,
    report: &mut Report<'_>,
) {
    retain(table, |name, value| {
        let text = name.get_ref().as_ref();
        if !names.contains(&text) {
            let fix = did_you_mean(text, names.iter().copied())
                .unwrap_or_else(|| format!("names are the {}", what.replace('`', "")));
            let what = format!("unknown name \"{text}\" in {}", title(section));
            report.error(name.span(), what, &fix);
            return false;
        }
        let span = value.span();
        match value.get_mut() {
            DeValue::Table(table) => check_table(section, span, table, report),
            _ => {
                let what = format!("\"{text}\" in {} must be a table", title(section));
                report.error(span, what, "write it in braces, as in { code = 4000 }");
                return false;
            }
        }
        true
    });
}

fn check_strings(value: &DeValue<'_>) -> Result<(), String> {
    let all_strings = |array: &DeArray<'_>| array.iter().all(|element| element.get_ref().is_str());
    match value {
        DeValue::Array(array) if all_strings(array) => Ok(()),
        // Short ones only, as in `shown`.
        DeValue::String(text) if text.len() <= 24 => {
            Err(format!("it takes a list: write [{text:?}]"))
        }
        DeValue::String(_) => Err("it takes a list: put [ ] around the text".to_owned()),
        _ => Err(String::new()),
    }
}

fn check_texts(value: &DeValue<'_>) -> Result<(), String> {
    let all_texts =
        |table: &DeTable<'_>| table.iter().all(|(_, element)| element.get_ref().is_str());
    value.as_table().is_some_and(all_texts).then_some(()).ok_or_else(String::new)
}

/// Names, and numbers that are indexes.
fn check_path(value: &DeValue<'_>) -> Result<(), String> {
    let is_step = |step: &DeValue<'_>| {
        step.is_str() || whole_number(step).is_some_and(|index| index <= u64::from(u16::MAX))
    };
    let all_steps =
        |array: &DeArray<'_>| !array.is_empty() && array.iter().all(|step| is_step(step.get_ref()));
    value.as_array().is_some_and(all_steps).then_some(()).ok_or_else(String::new)
}

/// Numbers, sizes, durations and words. The error is the fix; empty for the usual one.
fn check_scalar(key: &Key, value: &DeValue<'_>) -> Result<(), String> {
    let word = value.as_str();
    let within = |number: Option<u64>, min: u64, max: u64| match number {
        Some(number) if (min..=max).contains(&number) => Ok(()),
        _ => Err(String::new()),
    };
    match key.shape {
        Shape::CountOrAuto(..) | Shape::SizeOrAuto(..) if word == Some("auto") => Ok(()),
        Shape::TimeOrOff(..) if word == Some("off") => Ok(()),
        Shape::Count(min, max) | Shape::CountOrAuto(min, max) => {
            within(whole_number(value), min, max)
        }
        Shape::Size(min, max) | Shape::SizeOrAuto(min, max) => {
            within(word.and_then(parse_size), min, max)
        }
        Shape::Time(min, max) | Shape::TimeOrOff(min, max) => {
            within(word.and_then(parse_duration).map(|time| time.as_millis() as u64), min, max)
        }
        Shape::Word(words) => check_word(word, words, &[]),
        Shape::WordOrLater(words, later) => check_word(word, words, later),
        Shape::WordOrNamed(words, named) => {
            let is_named = |(kind, name): (&str, &str)| named.contains(&kind) && !name.is_empty();
            match word.and_then(|word| word.split_once(':')) {
                Some(split) if is_named(split) => Ok(()),
                Some(_) => Err(String::new()),
                None => check_word(word, words, &[]),
            }
        }
        _ => unreachable!("shapes with parts are checked by check_value"),
    }
}

fn whole_number(value: &DeValue<'_>) -> Option<u64> {
    let integer = value.as_integer()?;
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn check_word(word: Option<&str>, words: &[&str], later: &[&str]) -> Result<(), String> {
    let Some(word) = word else { return Err(String::new()) };
    if words.contains(&word) {
        return Ok(());
    }
    let permitted = words.iter().map(|w| format!("\"{w}\"")).collect::<Vec<_>>().join(", ");
    let asymmetric = ["RS", "PS", "ES"].iter().any(|kind| word.starts_with(kind));
    if words.contains(&"HS256") && (asymmetric || word == "EdDSA") {
        return Err(KEY_SETS.to_owned());
    }
    if later.contains(&word) {
        return Err(format!("that is known, but not in this version, which has {permitted}"));
    }
    Err(did_you_mean(word, words.iter().chain(later).copied())
        .unwrap_or_else(|| format!("it must be one of {permitted}")))
}

/// A value as an error shows it. Only short plain ones are repeated: it might be a secret.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) if text.len() <= 24 => format!("{text:?}"),
        DeValue::Integer(integer) if integer.as_str().len() <= 24 => integer.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        other => match other.type_str() {
            kind @ ("integer" | "array") => format!("an {kind}"),
            kind => format!("a {kind}"),
        },
    }
}

/// What a key takes, as the usual fix.
fn wanted(shape: &Shape) -> String {
    let described = shape.describe().replace('`', "");
    match shape {
        Shape::Size(..) | Shape::SizeOrAuto(..) => {
            format!("write a size in quotes, as in \"64KiB\", from {described}")
        }
        Shape::Time(..) | Shape::TimeOrOff(..) => {
            format!("write a duration in quotes, as in \"3s\" or \"250ms\", from {described}")
        }
        Shape::Count(..) | Shape::CountOrAuto(..) => {
            format!("write a whole number without quotes, from {described}")
        }
        Shape::Table(section)
        | Shape::Tables(section)
        | Shape::TableOrTables(section)
        | Shape::TablesByName(section, ..) => {
            let names: Vec<_> = keys::of_section(section).map(|key| key.name).collect();
            let table = format!("{{ … }} with the keys {}", names.join(", "));
            match shape {
                Shape::Tables(_) => format!("write a list of tables, [{{ … }}], each {table}"),
                _ => format!("write {table}"),
            }
        }
        _ => format!("it takes: {described}"),
    }
}
