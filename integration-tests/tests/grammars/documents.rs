//! Random JSON schemas, instances of them, and changed instances.

use common::splitmix::SplitMix64;
use serde_json::{Map, Value, json};

fn below(random: &mut SplitMix64, most: u64) -> u64 {
    random.draw() % most
}

const NAMES: [&str; 8] = ["name", "age", "the address", "é", "x\"y", "items", "ID", "a_long_property_name"];
const WORDS: [&str; 8] = ["red", "dark blue", "42", "", "naïve", "\"quoted\"", "日本", "a/b\\c"];

/// A schema whose objects and lists are nested to this depth.
pub(super) fn schema(random: &mut SplitMix64, depth: u64) -> Value {
    match below(random, if depth == 0 { 7 } else { 11 }) {
        0 => json!({"type": "boolean"}),
        1 => json!({"type": "null"}),
        2 => json!({"type": "integer", "minimum": -5, "maximum": 1000}),
        3 => json!({"type": "number", "minimum": -1000, "maximum": 1e6}),
        4 => json!({"type": "string", "maxLength": 20}),
        5 => json!({"enum": [WORDS[below(random, 8) as usize], WORDS[below(random, 8) as usize], 7, null]}),
        6 => json!({"type": "string", "pattern": "^[a-c]{2,4}-[0-9]+$"}),
        7 => json!({"type": "array", "items": schema(random, depth - 1), "minItems": 1, "maxItems": 3}),
        8 => json!({"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 20}, {"type": "integer"}]}),
        _ => {
            let first = below(random, 8) as usize;
            let names: Vec<&str> = (0..below(random, 5) as usize).map(|n| NAMES[(first + n) % 8]).collect();
            let required: Vec<&str> = names.iter().copied().filter(|_| below(random, 3) > 0).collect();
            let properties: Map<String, Value> =
                names.iter().map(|name| ((*name).to_owned(), schema(random, depth - 1))).collect();
            json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
        }
    }
}

fn text(random: &mut SplitMix64, most: u64) -> String {
    let letters: Vec<char> = "abc XYZ019.,:{}[]\"\\/\n\t\u{1}éß日本😀'-_<|>".chars().collect();
    (0..below(random, most + 1)).map(|_| letters[below(random, letters.len() as u64) as usize]).collect()
}

/// A random instance of a schema.
pub(super) fn instance(schema: &Value, random: &mut SplitMix64) -> Value {
    if let Some(values) = schema["enum"].as_array() {
        return values[below(random, values.len() as u64) as usize].clone();
    }
    if let Some(schemas) = schema["anyOf"].as_array() {
        return instance(&schemas[below(random, schemas.len() as u64) as usize], random);
    }
    match schema["type"].as_str().unwrap_or_default() {
        "boolean" => json!(below(random, 2) == 0),
        "null" => Value::Null,
        "integer" => json!(below(random, 1006) as i64 - 5),
        "number" => json!((below(random, 2_000_001) as f64 - 1e6) / 1000.0),
        "string" if schema.get("pattern").is_some() => {
            let letters =
                (0..2 + below(random, 3)).map(|_| "abc".as_bytes()[below(random, 3) as usize] as char);
            json!(letters.collect::<String>() + "-" + &below(random, 100_000).to_string())
        }
        "string" => json!(text(random, 20)),
        "array" => (0..1 + below(random, 3)).map(|_| instance(&schema["items"], random)).collect(),
        _ => {
            let properties = schema["properties"].as_object().into_iter().flatten();
            let required = |name: &str| {
                schema["required"].as_array().is_some_and(|all| all.iter().any(|one| one == name))
            };
            let mut object = Map::new();
            for (name, schema) in properties {
                if required(name) || below(random, 2) == 0 {
                    object.insert(name.clone(), instance(schema, random));
                }
            }
            Value::Object(object)
        }
    }
}

/// The instance with one change, which may leave it valid.
pub(super) fn mutant(instance: &Value, random: &mut SplitMix64) -> Value {
    match instance {
        Value::Object(object) if !object.is_empty() && below(random, 4) > 0 => {
            let mut object = object.clone();
            let key =
                object.keys().nth(below(random, object.len() as u64) as usize).cloned().unwrap_or_default();
            if below(random, 2) == 0 {
                object.shift_remove(&key);
            } else if let Some(value) = object.get_mut(&key) {
                *value = mutant(value, random);
            }
            Value::Object(object)
        }
        Value::Object(object) => {
            let mut object = object.clone();
            object.insert("another".to_owned(), json!(1));
            Value::Object(object)
        }
        Value::Array(list) if below(random, 2) == 0 => {
            list.iter().cloned().chain([json!(1), json!({}), json!([])]).collect()
        }
        Value::String(text) => json!(format!("{text}{text}xxxxxxxxxxxxxxxxxxxxxxxxx")),
        Value::Number(_) => json!(1001.5),
        Value::Bool(_) => json!("true"),
        _ => json!([[]]),
    }
}

/// Whether the value is an instance. Knows the keywords of [`schema`], and the order of properties.
pub(super) fn is_valid(schema: &Value, value: &Value) -> bool {
    if let Some(values) = schema["enum"].as_array() {
        return values.contains(value);
    }
    if let Some(schemas) = schema["anyOf"].as_array() {
        return schemas.iter().any(|schema| is_valid(schema, value));
    }
    match (schema["type"].as_str().unwrap_or_default(), value) {
        ("boolean", Value::Bool(_)) | ("null", Value::Null) => true,
        (kind @ ("number" | "integer"), Value::Number(number)) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            let within = |key: &str, otherwise| schema[key].as_f64().unwrap_or(otherwise);
            (kind == "number" || number.fract() == 0.0)
                && number >= within("minimum", f64::MIN)
                && number <= within("maximum", f64::MAX)
        }
        ("string", Value::String(text)) if schema.get("pattern").is_some() => {
            let parts = text.split_once('-').map(|(letters, digits)| {
                (2..=4).contains(&letters.len())
                    && letters.bytes().all(|byte| (b'a'..=b'c').contains(&byte))
                    && !digits.is_empty()
                    && digits.bytes().all(|byte| byte.is_ascii_digit())
            });
            parts.unwrap_or(false)
        }
        ("string", Value::String(text)) => text.chars().count() <= 20,
        ("array", Value::Array(list)) => {
            (1..=3).contains(&list.len()) && list.iter().all(|item| is_valid(&schema["items"], item))
        }
        ("object", Value::Object(object)) => {
            let known: Vec<&String> =
                schema["properties"].as_object().into_iter().flat_map(Map::keys).collect();
            let places: Vec<_> =
                object.keys().map(|key| known.iter().position(|name| *name == key)).collect();
            places.iter().all(Option::is_some)
                && places.is_sorted()
                && schema["required"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .all(|name| name.as_str().is_some_and(|name| object.contains_key(name)))
                && object.iter().all(|(key, value)| is_valid(&schema["properties"][key], value))
        }
        _ => false,
    }
}

/// The text of a document with the separators of answers.
pub(super) fn written(value: &Value) -> String {
    let joined = |parts: Vec<String>| parts.join(", ");
    match value {
        Value::Array(list) => format!("[{}]", joined(list.iter().map(written).collect())),
        Value::Object(object) => {
            let part = |(key, value): (&String, &Value)| format!("{}: {}", json!(key), written(value));
            format!("{{{}}}", joined(object.iter().map(part).collect()))
        }
        other => other.to_string(),
    }
}
