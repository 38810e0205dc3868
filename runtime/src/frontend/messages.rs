//! Reads the messages of a chat into the values that a chat template gets.
//!
//! A message keeps the fields that templates read, in the client's order. The other fields are dropped. As in vLLM, the text parts of a
//! content are joined with line breaks, and the arguments of a tool call, which OpenAI sends as JSON in a string, become an object.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::api_error::ApiError;
use super::fields::{Fields, Text, elements, parsed, wrong};

/// Maximum number of tool calls in a message.
const CALLS_MAX: usize = 128;

/// The names under which clients send the reasoning of an earlier answer. Templates read the first.
const REASONING: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

/// Reads message `n`. A template that `knows_tools` gets a content of null as it is; another template gets an empty string, because
/// it expects a string.
///
/// # Errors
/// 400 with a sentence that names the field.
pub(super) fn message(n: usize, value: &RawValue, knows_tools: bool) -> Result<Value, ApiError> {
    let at = |name: &str| format!("messages[{n}].{name}");
    let fields = parsed::<Fields<'_>>(value);
    let fields = fields.ok_or_else(|| wrong(&format!("messages[{n}]"), "an object", value))?;
    let mut message = Map::new();
    for (name, value) in fields.iter() {
        let kept = match name {
            "role" => Some(("role", Value::from(role(&at(name), value)?))),
            "content" => Some(("content", Value::from(content(&at(name), value)?))),
            "name" | "tool_call_id" => Some((name, Value::from(text(&at(name), value)?))),
            "tool_calls" => Some((name, tool_calls(&at(name), value)?)),
            name if REASONING.contains(&name) && !message.contains_key(REASONING[0]) => {
                Some((REASONING[0], Value::from(text(&at(name), value)?)))
            }
            _ => None,
        };
        if let Some((name, value)) = kept {
            message.insert(name.to_owned(), value);
        }
    }
    if !message.contains_key("role") {
        return Err(wrong(&at("role"), ROLE, RawValue::NULL));
    }
    if !message.contains_key("content") {
        if message["role"] != "assistant" {
            return Err(wrong(&at("content"), CONTENT, RawValue::NULL));
        }
        let nothing = if knows_tools { Value::Null } else { Value::from("") };
        message.insert("content".to_owned(), nothing);
    }
    Ok(Value::Object(message))
}

const ROLE: &str = "a role such as system, user, assistant or tool";
const CONTENT: &str = "a string or a list of text parts";

fn role(field: &str, value: &RawValue) -> Result<String, ApiError> {
    let role = parsed::<Text<'_>>(value).filter(|role| !role.0.is_empty());
    role.map(|role| role.0.into_owned()).ok_or_else(|| wrong(field, ROLE, value))
}

fn text(field: &str, value: &RawValue) -> Result<String, ApiError> {
    let text = parsed::<Text<'_>>(value).map(|text| text.0.into_owned());
    text.ok_or_else(|| wrong(field, "a string", value))
}

fn content(field: &str, value: &RawValue) -> Result<String, ApiError> {
    match parsed::<Text<'_>>(value) {
        Some(text) => Ok(text.0.into_owned()),
        None => parsed::<Parts>(value).map(|parts| parts.0).ok_or_else(|| wrong(field, CONTENT, value)),
    }
}

/// The text of a message that is given as a list of parts. The parts are joined with line breaks, as in vLLM for templates that
/// expect a string.
struct Parts(String);

impl<'a> Deserialize<'a> for Parts {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Part<'a> {
            #[serde(borrow, rename = "type")]
            kind: Option<Text<'a>>,
            #[serde(borrow)]
            text: Text<'a>,
        }

        struct Lines;

        impl<'a> Visitor<'a> for Lines {
            type Value = Parts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of text parts")
            }

            fn visit_seq<S: SeqAccess<'a>>(self, mut parts: S) -> Result<Parts, S::Error> {
                let (mut lines, mut between) = (String::new(), "");
                while let Some(part) = parts.next_element::<Part<'a>>()? {
                    if part.kind.is_some_and(|kind| kind.0 != "text") {
                        return Err(S::Error::custom("the type of a part is not text"));
                    }
                    lines += between;
                    lines += &part.text.0;
                    between = "\n";
                }
                Ok(Parts(lines))
            }
        }

        deserializer.deserialize_seq(Lines)
    }
}

/// The calls of an earlier answer, with their arguments as objects.
fn tool_calls(field: &str, value: &RawValue) -> Result<Value, ApiError> {
    let calls = elements(value, CALLS_MAX).filter(|calls| !calls.has_more());
    let calls = calls.ok_or_else(|| wrong(field, "a list of at most 128 tool calls", value))?;
    let call = |(k, value): (usize, &&RawValue)| {
        let field = format!("{field}[{k}]");
        let mut call: Map<String, Value> =
            parsed(value).ok_or_else(|| wrong(&field, "an object with a function", value))?;
        let function = call.get_mut("function").and_then(Value::as_object_mut);
        let function = function.filter(|function| function.get("name").is_some_and(Value::is_string));
        let function =
            function.ok_or_else(|| wrong(&field, "an object with a function that has a name", value))?;
        let field = format!("{field}.function.arguments");
        let arguments = arguments(&field, function.get("arguments"))?;
        function.insert("arguments".to_owned(), Value::Object(arguments));
        Ok(Value::Object(call))
    };
    calls.first.iter().enumerate().map(call).collect()
}

/// The arguments of a call. OpenAI sends them as JSON in a string.
///
/// # Errors
/// 400 if they are not an object.
pub(super) fn arguments(field: &str, value: Option<&Value>) -> Result<Map<String, Value>, ApiError> {
    let arguments = match value {
        None | Some(Value::Null) => Some(Map::new()),
        Some(Value::Object(arguments)) => Some(arguments.clone()),
        Some(Value::String(text)) if text.trim().is_empty() => Some(Map::new()),
        Some(Value::String(text)) => serde_json::from_str(text).ok(),
        Some(_) => None,
    };
    arguments.ok_or_else(|| ApiError::field(field, format!("{field} must be a JSON object in a string")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(message_json: &Value, knows_tools: bool) -> Result<String, String> {
        let text = message_json.to_string();
        let read = message(0, serde_json::from_str(&text).unwrap(), knows_tools);
        read.map(|value| value.to_string())
            .map_err(|error| format!("{}: {}", error.param.unwrap_or_default(), error.message))
    }

    #[test]
    fn messages_keep_their_order_and_lose_unknown_fields() {
        let check = |message: Value, expect: &str| assert_eq!(read(&message, true).unwrap(), expect);
        check(
            json!({"content": "a", "x": 1, "name": "n", "role": "user"}),
            r#"{"content":"a","name":"n","role":"user"}"#,
        );
        check(
            json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}),
            r#"{"role":"user","content":"a\nb"}"#,
        );
        check(
            json!({"role": "tool", "tool_call_id": "1", "content": "{}"}),
            r#"{"role":"tool","tool_call_id":"1","content":"{}"}"#,
        );
        check(
            json!({"role": "assistant", "reasoning": "r", "content": "a"}),
            r#"{"role":"assistant","reasoning_content":"r","content":"a"}"#,
        );
    }

    #[test]
    fn arguments_become_objects_in_the_order_of_their_keys() {
        let said = |arguments: Value| {
            json!({"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"arguments": arguments, "name": "f"}}]})
        };
        let expect = |arguments: &str, content: &str| {
            format!(
                r#"{{"role":"assistant","tool_calls":[{{"id":"1","type":"function","function":{{"arguments":{arguments},"name":"f"}}}}],"content":{content}}}"#
            )
        };
        let wrote = json!("{\"z\": 1, \"a\": \"ü\"}");
        assert_eq!(read(&said(wrote.clone()), true).unwrap(), expect(r#"{"z":1,"a":"ü"}"#, "null"));
        assert_eq!(read(&said(wrote), false).unwrap(), expect(r#"{"z":1,"a":"ü"}"#, "\"\""));
        assert_eq!(read(&said(json!("")), true).unwrap(), expect("{}", "null"));
        assert_eq!(read(&said(json!({"b": 1})), true).unwrap(), expect(r#"{"b":1}"#, "null"));
        for wrong in [json!("[1]"), json!("{"), json!(1)] {
            let error = read(&said(wrong), true).unwrap_err();
            assert_eq!(
                error,
                "messages[0].tool_calls[0].function.arguments: messages[0].tool_calls[0].function.arguments must be a JSON object in a string"
            );
        }
    }

    #[test]
    fn wrong_messages_name_their_field() {
        for (message, field) in [
            (json!("a"), "messages[0]: "),
            (json!({"content": "a"}), "messages[0].role: "),
            (json!({"role": "", "content": "a"}), "messages[0].role: "),
            (json!({"role": "user"}), "messages[0].content: "),
            (json!({"role": "user", "content": [{"type": "image_url"}]}), "messages[0].content: "),
            (json!({"role": "tool", "content": "a", "tool_call_id": 1}), "messages[0].tool_call_id: "),
            (json!({"role": "assistant", "tool_calls": {}}), "messages[0].tool_calls: "),
            (json!({"role": "assistant", "tool_calls": [{"id": "a"}]}), "messages[0].tool_calls[0]: "),
        ] {
            let error = read(&message, true).unwrap_err();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
