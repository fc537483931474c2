//! The JSON Schema of the configuration file, for editors: made from the table of keys.
//!
//! It says what each value may look like and which keys belong together by `kind`. Ranges of
//! sizes and durations stand in descriptions, and rules between keys are left to `check`.

use serde_json::{Map, Value, json};

use super::{Key, NONE, REQUIRED, Reload, SECTIONS, Shape, find, of_section};

/// Where the repository keeps what [`text`] writes, for `#:schema` lines.
const ID: &str = "portcullis.schema.json";

/// A whole number and a unit, as `units.rs` reads them.
const SIZE: &str = "[0-9]+(B|KiB|MiB|GiB)";
const TIME: &str = "[0-9]+(ms|s|m|h)";

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
    let pattern = |pattern: &str| json!({ "type": "string", "pattern": format!("^{pattern}$") });
    let strings = json!({ "type": "array", "items": { "type": "string" } });
    match *shape {
        Shape::Text(_) => json!({ "type": "string" }),
        Shape::Flag => json!({ "type": "boolean" }),
        Shape::Count(min, max) => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Shape::CountOrAuto(min, max) => json!({ "anyOf": [
            { "type": "integer", "minimum": min, "maximum": max },
            { "const": "auto" },
        ] }),
        Shape::Size(..) => pattern(SIZE),
        Shape::SizeOrAuto(..) => pattern(&format!("({SIZE}|auto)")),
        Shape::Time(..) => pattern(TIME),
        Shape::TimeOrOff(..) => pattern(&format!("({TIME}|off)")),
        Shape::Word(words) | Shape::WordOrLater(words, _) => json!({ "enum": words }),
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
