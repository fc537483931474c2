//! The JSON Schema of the configuration file, for editors: made from the table of keys.
//!
//! It says what each value may look like, its range included, and which keys belong together by
//! `kind`. Rules between keys are left to `check`.

use serde_json::{Map, Value, json};

use super::{Key, NONE, REQUIRED, Reload, SECTIONS, Shape, find, of_section};
use crate::settings::units::{SIZES, TIMES};

/// Where the repository keeps what [`text`] writes, for `#:schema` lines.
const ID: &str = "portcullis.schema.json";

/// The schema as a file: JSON Schema, draft 2020-12.
pub fn text() -> String {
    let mut text = serde_json::to_string_pretty(&schema()).expect("JSON of strings and numbers");
    text.push('\n');
    text
}

/// The schema of the whole file.
pub fn schema() -> Value {
    let sections = SECTIONS.iter().map(|(section, list)| {
        let table = table(section);
        let schema = match list {
            true => json!({ "type": "array", "items": table }),
            false => table,
        };
        ((*section).to_owned(), schema)
    });
    let mut properties: Map<String, Value> = sections.collect();
    let needed = ["listener", "route", "backend"];
    for section in needed {
        properties[section]["minItems"] = 1.into();
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": ID,
        "title": "Portcullis configuration",
        "description": "Checked further by: portcullis check --config FILE",
        "type": "object",
        "properties": properties,
        "required": needed,
        "additionalProperties": false,
    })
}

/// A table of this section.
fn table(section: &str) -> Value {
    let properties: Map<String, Value> =
        of_section(section).map(|key| (key.name.to_owned(), value(key))).collect();
    let is_required = |key: &&Key| key.default == REQUIRED;
    let required: Vec<_> = of_section(section).filter(is_required).map(|key| key.name).collect();
    let mut table = json!({
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    });
    if !required.is_empty() {
        table["required"] = json!(required);
    }
    let kinds = kinds(section);
    if !kinds.is_empty() {
        table["allOf"] = kinds.into();
    }
    table
}

/// For each `kind` of a section: what it requires, and what belongs to other kinds.
fn kinds(section: &str) -> Vec<Value> {
    let Some(kind) = find(section, "kind") else { return Vec::new() };
    let (Shape::Word(words) | Shape::WordOrLater(words, _)) = kind.shape else {
        return Vec::new();
    };
    let rule = |word: &&'static str| {
        let others: Map<String, Value> = of_section(section)
            .filter(|key| !key.is_for(word))
            .map(|key| (key.name.to_owned(), false.into()))
            .collect();
        let required: Vec<_> = of_section(section)
            .filter(|key| key.required_for.contains(word))
            .map(|key| key.name)
            .collect();
        if others.is_empty() && required.is_empty() {
            return None;
        }
        let mut condition = json!({ "properties": { "kind": { "const": word } } });
        if kind.default != *word {
            condition["required"] = json!(["kind"]);
        }
        let then = json!({ "properties": others, "required": required });
        Some(json!({ "if": condition, "then": then }))
    };
    words.iter().filter_map(rule).collect()
}

/// What may stand behind a key.
fn value(key: &Key) -> Value {
    let mut schema = shape(&key.shape);
    let reload = match key.reload {
        Reload::Live => "A reload changes it.",
        Reload::RestartRequired(_) => "Only a restart changes it.",
    };
    let plain = |text: &str| text.replace('`', "");
    let mut description = format!("{}\n\nTakes: {}.", key.meaning, plain(&key.shape.describe()));
    if let Some(conformance) = key.conformance {
        description += &format!(" With profile = \"conformance\" the default is {conformance}.");
    }
    schema["description"] = format!("{description} {reload}").into();
    if key.default != REQUIRED && key.default != NONE {
        schema["default"] = default(key);
    }
    schema
}

/// The default as the file would write it.
fn default(key: &Key) -> Value {
    match key.shape {
        Shape::Flag => (key.default == "true").into(),
        Shape::Count(..) | Shape::CountOrAuto(..) => {
            let number: Option<u64> = key.default.replace('_', "").parse().ok();
            number.map_or_else(|| key.default.into(), Value::from)
        }
        // Of the lists that have a default, it is the empty one.
        Shape::List(_) => json!([]),
        _ => key.default.into(),
    }
}

fn shape(shape: &Shape) -> Value {
    let pattern = |pattern: &str| json!({ "type": "string", "pattern": format!("^({pattern})$") });
    let strings = json!({ "type": "array", "items": { "type": "string" } });
    match *shape {
        Shape::Text(_) => json!({ "type": "string" }),
        Shape::Flag => json!({ "type": "boolean" }),
        Shape::Count(min, max) => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Shape::CountOrAuto(min, max) => json!({ "anyOf": [
            { "type": "integer", "minimum": min, "maximum": max },
            { "const": "auto" },
        ] }),
        Shape::Size(min, max) => pattern(&quantities(SIZES, min, max)),
        Shape::SizeOrAuto(min, max) => pattern(&(quantities(SIZES, min, max) + "|auto")),
        Shape::Time(min, max) => pattern(&quantities(TIMES, min, max)),
        Shape::TimeOrOff(min, max) => pattern(&(quantities(TIMES, min, max) + "|off")),
        Shape::Word(words) | Shape::WordOrLater(words, _) => json!({ "enum": words }),
        Shape::WordOrNamed(words, named) => {
            let named = pattern(&format!("({}):.+", named.join("|")));
            json!({ "anyOf": [{ "enum": words }, named] })
        }
        Shape::TextByName(..) => texts(),
        Shape::WordOrTextByName(words, ..) => json!({ "anyOf": [{ "enum": words }, texts()] }),
        Shape::List(_) => strings,
        Shape::TextOrList(_) => json!({ "anyOf": [{ "type": "string" }, strings] }),
        Shape::Path(_) => {
            let step = json!({ "type": ["string", "integer"], "minimum": 0, "maximum": u16::MAX });
            let steps = json!({ "type": "array", "items": step, "minItems": 1 });
            json!({ "anyOf": [{ "type": "string" }, steps] })
        }
        Shape::ListOrWord(_, word) => json!({ "anyOf": [strings, { "const": word }] }),
        Shape::Table(section) => table(section),
        Shape::Tables(section) => json!({ "type": "array", "items": table(section) }),
        Shape::TableOrTables(section) => {
            let table = table(section);
            json!({ "anyOf": [table, { "type": "array", "items": table }] })
        }
        Shape::TablesByName(section, _, names) => json!({
            "type": "object",
            "propertyNames": { "enum": names },
            "additionalProperties": table(section),
        }),
    }
}

fn texts() -> Value {
    json!({ "type": "object", "additionalProperties": { "type": "string" } })
}

/// A pattern for every way to write a quantity of `min` to `max`, as `units.rs` reads them.
fn quantities(units: &[(&str, u64)], min: u64, max: u64) -> String {
    let of_unit = |(unit, scale): &(&str, u64)| {
        let (least, most) = (min.div_ceil(*scale), max / scale);
        (least <= most).then(|| format!("0*({}){unit}", numbers(least, most)))
    };
    units.iter().filter_map(of_unit).collect::<Vec<_>>().join("|")
}

/// A pattern for the whole numbers from `min` to `max`, without leading zeros.
fn numbers(min: u64, max: u64) -> String {
    let mut parts = Vec::new();
    let mut low = min;
    while low <= max {
        // The most numbers from `low` on that differ in their last digits alone.
        let mut free = 0;
        while free < low_zeros(low) && block_end(low, free + 1).is_some_and(|end| end <= max) {
            free += 1;
        }
        let scale = 10_u64.pow(free);
        // As many of such blocks as their common digit has room for.
        let digit = low / scale % 10;
        let blocks = (9 - digit).min((max - low + 1) / scale - 1);
        let lead = if low / scale >= 10 { (low / scale / 10).to_string() } else { String::new() };
        let digits = match blocks {
            0 => digit.to_string(),
            _ => format!("[{digit}-{}]", digit + blocks),
        };
        let tail = match free {
            0 => String::new(),
            _ => format!("[0-9]{{{free}}}"),
        };
        parts.push(lead + &digits + &tail);
        match low.checked_add((blocks + 1) * scale) {
            Some(next) => low = next,
            None => break,
        }
    }
    parts.join("|")
}

/// How many of the last digits of `number` are zeros, the first digit left out.
fn low_zeros(mut number: u64) -> u32 {
    let mut zeros = 0;
    while number >= 10 && number.is_multiple_of(10) {
        number /= 10;
        zeros += 1;
    }
    zeros
}

/// The last number that differs from `low` in its last `free` digits alone, which are zeros.
fn block_end(low: u64, free: u32) -> Option<u64> {
    low.checked_add(10_u64.checked_pow(free)? - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_for_numbers_is_exact() {
        let table: &[(u64, u64, &str)] = &[
            (0, 0, "0"),
            (0, 9, "[0-9]"),
            (3, 12, "[3-9]|1[0-2]"),
            (125, 125, "125"),
            (10, 99, "[1-9][0-9]{1}"),
            (1, 1024, "[1-9]|[1-9][0-9]{1}|[1-9][0-9]{2}|10[0-1][0-9]{1}|102[0-4]"),
        ];
        for (min, max, pattern) in table {
            assert_eq!(numbers(*min, *max), *pattern, "{min} to {max}");
        }
    }
}
