//! Decodes the references of a schema. A `$ref` is a URI fragment with a JSON pointer: percent-encoded, with `~0` for a tilde and `~1` for a
//! slash inside a step (RFC 6901). The library splits a reference at its slashes and decodes nothing.

use std::collections::{BTreeSet, HashMap};

use actors::grammar::GrammarError;
use serde_json::{Map, Value};

/// Maximum size of the copied schemas.
const COPIED_BYTES_MAX: usize = 256 << 10;

/// Rewrites the references with escapes so that the library finds what they refer to. A reference that leads nowhere stays as it is.
///
/// # Errors
/// The schemas that are referred to by names with slashes are too large: each of them is copied.
pub(super) fn decode(schema: &mut Value) -> Result<(), GrammarError> {
    let mut escaped = BTreeSet::new();
    each_reference(schema, false, &mut |reference| {
        if reference.contains(['~', '%']) {
            escaped.insert(reference.clone());
        }
    });
    if escaped.is_empty() {
        return Ok(());
    }
    let mut home = "x-referenced".to_owned();
    while schema.get(&home).is_some() {
        home.push('_');
    }
    let (mut decoded, mut copies, mut bytes) = (HashMap::new(), Map::new(), 0);
    for reference in escaped {
        let Some(steps) = steps(&reference) else { continue };
        let Some(target) = lookup(schema, &steps) else { continue };
        let mut plain = format!("#/{}", steps.join("/"));
        if steps.iter().any(|step| step.contains('/')) {
            bytes += target.to_string().len();
            if bytes > COPIED_BYTES_MAX {
                let message = format!(
                    "the JSON schema refers with ~1 to schemas of more than {COPIED_BYTES_MAX} bytes in all"
                );
                return Err(GrammarError::TooLarge(message));
            }
            plain = format!("#/{home}/{}", copies.len());
            copies.insert(copies.len().to_string(), target.clone());
        }
        decoded.insert(reference, plain);
    }
    if let (Some(root), false) = (schema.as_object_mut(), copies.is_empty()) {
        root.insert(home, Value::Object(copies));
    }
    each_reference(schema, false, &mut |reference| {
        if let Some(plain) = decoded.get(reference) {
            reference.clone_from(plain);
        }
    });
    Ok(())
}

/// Calls `visit` for each reference in a schema. The keys of the value are names and no keywords if `has_names`.
fn each_reference(value: &mut Value, has_names: bool, visit: &mut impl FnMut(&mut String)) {
    match value {
        Value::Array(list) => list.iter_mut().for_each(|value| each_reference(value, false, visit)),
        Value::Object(object) => {
            for (key, value) in object {
                match (&**key, value) {
                    (_, value) if has_names => each_reference(value, false, visit),
                    ("$ref", Value::String(reference)) => visit(reference),
                    // Instances.
                    ("const" | "enum" | "default" | "examples", _) => {}
                    ("properties" | "patternProperties" | "$defs" | "definitions", schemas) => {
                        each_reference(schemas, true, visit)
                    }
                    (_, value) => each_reference(value, false, visit),
                }
            }
        }
        _ => {}
    }
}

/// The steps of a reference; `None` if it is not a well-formed pointer into the same schema.
fn steps(reference: &str) -> Option<Vec<String>> {
    let mut bytes = Vec::with_capacity(reference.len());
    let mut rest = reference.strip_prefix("#/")?.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        bytes.push(match byte {
            b'%' => {
                let (digits, after) = rest.split_at_checked(2)?;
                rest = after;
                let digits = std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'))?;
                u8::from_str_radix(digits, 16).ok()?
            }
            byte => *byte,
        });
    }
    let pointer = String::from_utf8(bytes).ok()?;
    Some(pointer.split('/').map(|step| step.replace("~1", "/").replace("~0", "~")).collect())
}

fn lookup<'a>(root: &'a Value, steps: &[String]) -> Option<&'a Value> {
    steps.iter().try_fold(root, |place, step| match place {
        Value::Array(list) => list.get(step.parse::<usize>().ok()?),
        place => place.get(step),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn decoded(mut schema: Value) -> Value {
        decode(&mut schema).unwrap();
        schema
    }

    #[test]
    fn pointers_are_decoded() {
        let names = json!({"a~b": {}, "50%": {}, "a b": {}, "é": {}, "~1": {}});
        for (reference, plain) in [
            ("#/$defs/a~0b", "#/$defs/a~b"),
            ("#/$defs/a%7E0b", "#/$defs/a~b"),
            ("#/%24defs/50%25", "#/$defs/50%"),
            ("#/$defs/a%20b", "#/$defs/a b"),
            ("#/$defs/%C3%a9", "#/$defs/é"),
            ("#/$defs/~01", "#/$defs/~1"),
            // These lead nowhere when they are decoded, and the library may know them as they are.
            ("#/$defs/50%", "#/$defs/50%"),
            ("#/$defs/50%+1", "#/$defs/50%+1"),
            ("#/$defs/%ff", "#/$defs/%ff"),
            ("#/$defs/a~1b", "#/$defs/a~1b"),
            ("http://a/%20", "http://a/%20"),
        ] {
            let schema = |reference: &str| json!({"items": [{"$ref": reference}], "$defs": names});
            assert_eq!(decoded(schema(reference)), schema(plain), "{reference}");
        }
    }

    #[test]
    fn schemas_below_names_with_slashes_are_copied() {
        let schema = json!({"$ref": "#/$defs/a~1b", "x-referenced": 1,
            "$defs": {"a/b": {"items": {"$ref": "#/%24defs/a%2Fb/not"}, "not": [{"$ref": "#/$defs/a~1b"}]}}});
        let found = decoded(schema);
        assert_eq!(found["$ref"], "#/x-referenced_/0");
        let inside = |reference: &str| json!([{"$ref": reference}]);
        assert_eq!(found["x-referenced_"]["0"]["items"]["$ref"], "#/%24defs/a%2Fb/not");
        assert_eq!(found["x-referenced_"]["0"]["not"], inside("#/x-referenced_/0"));
        let large = "a".repeat(COPIED_BYTES_MAX);
        let error = decode(&mut json!({"$ref": "#/$defs/~1", "$defs": {"/": {"title": large}}})).unwrap_err();
        assert!(matches!(error, GrammarError::TooLarge(_)), "{error}");
    }

    #[test]
    fn instances_and_names_stay() {
        let reference = json!({"$ref": "#/$defs/a~0b"});
        let schema = json!({"const": reference, "enum": [reference], "properties": {"$ref": {"type": "null"}},
            "$defs": {"a~b": {}, "const": {"default": reference}}});
        assert_eq!(decoded(schema.clone()), schema);
    }
}
