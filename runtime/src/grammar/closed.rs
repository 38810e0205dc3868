//! Closes the objects of a JSON Schema: an object that names its properties gets no others.
//!
//! In JSON Schema an object may have any further property unless `additionalProperties` says otherwise. A model that may go on after the
//! last named property often does, until its answer is cut. Servers of this kind therefore forbid further properties by default, and so does
//! this one. Every answer still matches the schema as the client wrote it.

use serde_json::{Map, Value};

/// Keywords by which several schemas apply to one object. In a schema with one of them, one part may allow what another part names.
const COMPOSING: [&str; 6] =
    ["allOf", "if", "not", "dependentSchemas", "dependencies", "unevaluatedProperties"];

/// Keywords that leave an object open.
const OPEN: [&str; 4] = ["additionalProperties", "patternProperties", "propertyNames", "minProperties"];

/// Closes all objects of a schema, unless several schemas may apply to one of them.
pub(super) fn close_objects(schema: &mut Value) {
    if !composes(schema) {
        close(schema);
    }
}

/// True if several schemas may apply to one object.
fn composes(schema: &Value) -> bool {
    match schema {
        Value::Object(object) => {
            let refers = ["$ref", "anyOf", "oneOf"].iter().any(|key| object.contains_key(*key));
            COMPOSING.iter().any(|key| object.contains_key(*key))
                || refers && object.contains_key("properties")
                || object.values().any(composes)
        }
        Value::Array(list) => list.iter().any(composes),
        _ => false,
    }
}

fn close(schema: &mut Value) {
    let Value::Object(object) = schema else { return };
    if is_closable(object) {
        object.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
    for (key, value) in object {
        match (key.as_str(), value) {
            ("properties" | "$defs" | "definitions", Value::Object(schemas)) => {
                schemas.values_mut().for_each(close)
            }
            ("anyOf" | "oneOf" | "prefixItems", Value::Array(schemas)) => schemas.iter_mut().for_each(close),
            ("items" | "additionalProperties", schema) => close(schema),
            _ => {}
        }
    }
}

/// True if the object names its properties, all required ones among them, and says nothing about others.
fn is_closable(object: &Map<String, Value>) -> bool {
    let Some(properties) = object.get("properties").and_then(Value::as_object) else { return false };
    let is_named = |name: &Value| name.as_str().is_some_and(|name| properties.contains_key(name));
    let required = object.get("required").and_then(Value::as_array);
    required.is_none_or(|required| required.iter().all(is_named))
        && !OPEN.iter().any(|key| object.contains_key(*key))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn closed(mut schema: Value) -> Value {
        close_objects(&mut schema);
        schema
    }

    #[test]
    fn named_properties_exclude_others_at_every_depth() {
        let inner = json!({"properties": {"b": {"type": "integer"}}, "additionalProperties": false});
        let open = json!({"properties": {"b": {"type": "integer"}}});
        let around = |inner: &Value, outer: Value| {
            let mut schema = json!({"type": "object", "properties": {"a": inner, "l": {"items": inner}}, "$defs": {"d": inner},
                "required": ["a"]});
            if !outer.is_null() {
                schema["additionalProperties"] = outer;
            }
            schema
        };
        assert_eq!(closed(around(&open, Value::Null)), around(&inner, json!(false)));
        assert_eq!(
            closed(around(&open, json!(true))),
            around(&inner, json!(true)),
            "the client's word counts"
        );
        assert_eq!(
            closed(json!({"anyOf": [open, {"type": "null"}]})),
            json!({"anyOf": [inner, {"type": "null"}]})
        );
    }

    #[test]
    fn objects_that_need_other_properties_stay_open() {
        let a = json!({"a": {}});
        for schema in [
            json!({"type": "object"}),
            json!({"properties": a, "required": ["b"]}),
            json!({"properties": a, "patternProperties": {"^x": {}}}),
            json!({"properties": a, "minProperties": 3}),
            json!({"allOf": [{"properties": a}, {"properties": {"b": {}}}]}),
            json!({"properties": a, "anyOf": [{"properties": {"b": {}}}]}),
            json!({"properties": a, "$ref": "#/$defs/d", "$defs": {"d": {"properties": {"b": {}}}}}),
            json!({"const": {"properties": {"x": 1}}}),
        ] {
            assert_eq!(closed(schema.clone()), schema);
        }
    }
}
