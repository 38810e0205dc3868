//! The fields of a request that its response repeats.

use std::sync::Arc;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;

use super::super::api_error::ApiError;
use super::super::fields::{Fields, Text, entries, parsed, wrong};

/// Names and defaults of the repeated fields.
const REPEATED: [(&str, &str); 10] = [
    ("instructions", "null"),
    ("max_output_tokens", "null"),
    ("metadata", "{}"),
    ("parallel_tool_calls", "true"),
    ("reasoning", r#"{"effort":null,"summary":null}"#),
    ("temperature", "1.0"),
    ("text", r#"{"format":{"type":"text"}}"#),
    ("tool_choice", r#""auto""#),
    ("tools", "[]"),
    ("top_p", "1.0"),
];

/// Bounds of `metadata`, as in OpenAI: entries, bytes of a name, and bytes of a value.
const METADATA_MAX: (usize, usize, usize) = (16, 256, 2048);

/// The fields of a request that its response repeats, as JSON on one line. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct RepeatedFields(Arc<[(&'static str, Box<RawValue>)]>);

impl RepeatedFields {
    /// Reads the fields. The other readers of the request check all of them but `metadata`.
    ///
    /// # Errors
    /// 400 for wrong `metadata`.
    pub(in super::super) fn read(fields: &Fields<'_>) -> Result<Self, ApiError> {
        if let Some(value) = fields.get("metadata") {
            let (count, name_bytes, value_bytes) = METADATA_MAX;
            let fits = |(name, value): &(String, &RawValue)| {
                let text = parsed::<Text<'_>>(value);
                name.len() <= name_bytes && text.is_some_and(|text| text.0.len() <= value_bytes)
            };
            let known = entries(value, count).filter(|all| !all.has_more() && all.first.iter().all(fits));
            known.ok_or_else(|| wrong("metadata", "an object of at most 16 short strings", value))?;
        }
        let repeated = |(name, default): &(&'static str, &str)| {
            let text = fields.get(name).map_or_else(|| (*default).to_owned(), |value| one_line(value.get()));
            Some((*name, RawValue::from_string(text).ok()?))
        };
        Ok(Self(REPEATED.iter().filter_map(repeated).collect()))
    }

    /// Memory in bytes.
    pub(in super::super) fn bytes(&self) -> usize {
        self.0.iter().map(|(_, value)| size_of::<(&str, Box<RawValue>)>() + value.get().len()).sum()
    }
}

impl Serialize for RepeatedFields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        self.0.iter().try_for_each(|(name, value)| map.serialize_entry(name, value))?;
        map.end()
    }
}

/// JSON without the white space between its values. A line break would end a server-sent event.
fn one_line(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    let keep = |c: &char| {
        let is_space = !in_string && matches!(c, ' ' | '\n' | '\r' | '\t');
        in_string ^= *c == '"' && !escaped;
        escaped = in_string && *c == '\\' && !escaped;
        !is_space
    };
    json.chars().filter(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_kept_in_strings_only() {
        let check = |json: &str, expect: &str| assert_eq!(one_line(json), expect);
        check("{\n \"a b\" : [1,\t2 ] }", r#"{"a b":[1,2]}"#);
        check(r#"{"a\" b\\" : "c \\\" d" }"#, r#"{"a\" b\\":"c \\\" d"}"#);
    }

    #[test]
    fn metadata_is_small() {
        let read = |metadata: &str| {
            let body = format!(r#"{{"metadata": {metadata}}}"#);
            RepeatedFields::read(&Fields::parse(body.as_bytes()).unwrap())
                .map(|_| ())
                .map_err(|error| error.param)
        };
        assert_eq!(read(r#"{"a": "b"}"#), Ok(()));
        let many: Vec<String> = (0..17).map(|n| format!(r#""{n}": "b""#)).collect();
        let long = format!(r#"{{"a": "{}"}}"#, "b".repeat(2049));
        for wrong in ["1", "[]", r#"{"a": 1}"#, &long, &format!("{{{}}}", many.join(","))] {
            assert_eq!(read(wrong), Err(Some("metadata".to_owned())), "{wrong}");
        }
    }
}
