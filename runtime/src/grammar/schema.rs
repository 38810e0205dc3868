//! Prepares JSON Schemas for the library. Every schema passes here: that of a response format, those of tools, and those that a client writes
//! into a grammar in Lark. So a schema gives the same language wherever it stands.

use actors::grammar::GrammarError;
use serde_json::{Value, json};

use super::closed::close_objects;
use super::lark_text::LarkText;
use super::limits::{self, Shapes};
use super::references;

/// The key of a schema for the library's options.
const OPTIONS: &str = "x-guidance";

/// The options of a schema that has none of its own. The separators are those that models write most. No other whitespace is allowed, because
/// some models write it without end. `oneOf` is treated as `anyOf`, because the library cannot tell whether two referenced schemas have a
/// common instance.
fn options() -> Value {
    json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": true})
}

/// The prepared schema in this text.
///
/// # Errors
/// The text is not JSON, or the schema uses an unsupported keyword or exceeds a limit.
pub(super) fn parsed(text: &str) -> Result<Value, GrammarError> {
    let mut schema: Value = serde_json::from_str(text)
        .map_err(|error| GrammarError::Invalid(format!("the JSON schema is not valid JSON: {error}")))?;
    prepare(&mut schema, &mut Shapes::default())?;
    Ok(schema)
}

/// The grammar with prepared schemas.
///
/// # Errors
/// A schema uses an unsupported keyword, or the grammar exceeds a limit.
pub(super) fn in_lark(text: &str, grammar: LarkText) -> Result<String, GrammarError> {
    limits::check_levels(grammar.levels)?;
    let (mut out, mut end, mut shapes) = (String::with_capacity(text.len()), 0, Shapes::default());
    for (place, mut schema) in grammar.schemas {
        prepare(&mut schema, &mut shapes)?;
        out += &text[end..place.start];
        out.push(' ');
        out += &schema.to_string();
        end = place.end;
    }
    out += &text[end..];
    Ok(out)
}

/// Decodes the references of a schema, checks it, closes its objects and sets its options. `shapes` counts the schemas of one grammar.
fn prepare(schema: &mut Value, shapes: &mut Shapes) -> Result<(), GrammarError> {
    references::decode(schema)?;
    shapes.check(schema)?;
    close_objects(schema);
    if let Some(object) = schema.as_object_mut() {
        object.entry(OPTIONS).or_insert_with(options);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_in_lark_is_prepared_like_one_alone() {
        let schema = json!({"properties": {"a": {"items": {"properties": {}}}}});
        let alone = parsed(&schema.to_string()).unwrap();
        assert_eq!(alone["properties"]["a"]["items"]["additionalProperties"], json!(false));
        let text = format!("start: a \"%json {{}}\" b\na: %json {schema}\nb: %json\n{schema} \"x\"\n");
        let expect = format!("start: a \"%json {{}}\" b\na: %json {alone}\nb: %json {alone} \"x\"\n");
        assert_eq!(in_lark(&text, LarkText::read(&text)).unwrap(), expect);
    }

    #[test]
    fn a_schema_may_have_options_of_its_own() {
        let text = r#"{"x-guidance":{"whitespace_flexible":true}}"#;
        assert_eq!(parsed(text).unwrap().to_string(), text);
    }
}
