//! Reads `instructions` and the items of `input` into the messages that a chat template gets.
//!
//! Reasoning, text and calls of one turn of the assistant are separate items. They become one message.

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::super::api_error::ApiError;
use super::super::fields::{Fields, Text, elements, parsed, wrong};
use super::super::messages::arguments;

/// Maximum number of parts of a content.
const PARTS_MAX: usize = 1024;

/// The values of `reasoning.effort`.
const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

const CONTENT: &str = "a string or a list of text parts";

/// Reads `reasoning.effort`.
///
/// # Errors
/// 400 with a sentence that names the field.
pub(in super::super) fn reasoning_effort(fields: &Fields<'_>) -> Result<Option<String>, ApiError> {
    const FIELD: &str = "reasoning.effort";
    let Some(value) = fields.inner("reasoning")?.and_then(|reasoning| reasoning.get("effort")) else {
        return Ok(None);
    };
    let effort = parsed::<Text<'_>>(value).filter(|effort| EFFORTS.contains(&&*effort.0));
    let effort = effort.ok_or_else(|| wrong(FIELD, &format!("one of {}", EFFORTS.join(", ")), value))?;
    Ok(Some(effort.0.into_owned()))
}

/// The messages of a request. `items` are the elements of `input`, or its string. A template that `knows_tools` gets a content of null as
/// it is.
///
/// # Errors
/// 400 with a sentence that names the field.
pub(in super::super) fn input_messages(
    fields: &Fields<'_>,
    items: &[&RawValue],
    knows_tools: bool,
) -> Result<Vec<Value>, ApiError> {
    let mut messages = Messages::default();
    if let Some(text) = fields.text("instructions")? {
        messages.say("system", &text);
    }
    match items {
        [text] if text.get().starts_with('"') => {
            let text = parsed::<Text<'_>>(text).ok_or_else(|| wrong("input", "a string", text))?;
            messages.say("user", &text.0);
        }
        items => {
            items.iter().enumerate().try_for_each(|(n, value)| messages.add(&format!("input[{n}]"), value))?
        }
    }
    Ok(messages.finish(knows_tools))
}

/// The messages so far.
#[derive(Default)]
struct Messages {
    all: Vec<Map<String, Value>>,
}

impl Messages {
    fn say(&mut self, role: &str, text: &str) {
        let mut message = Map::new();
        message.insert("role".to_owned(), Value::from(role));
        message.insert("content".to_owned(), Value::from(text));
        self.all.push(message);
    }

    /// The assistant's message at the end that has no field `name` and none of the fields `before`, or a new one.
    fn turn(&mut self, before: &[&str]) -> &mut Map<String, Value> {
        let is_open = |message: &Map<String, Value>| {
            message["role"] == "assistant" && before.iter().all(|name| !message.contains_key(*name))
        };
        if !self.all.last().is_some_and(is_open) {
            let mut message = Map::new();
            message.insert("role".to_owned(), Value::from("assistant"));
            self.all.push(message);
        }
        let last = self.all.len() - 1;
        &mut self.all[last]
    }

    fn add(&mut self, at: &str, value: &RawValue) -> Result<(), ApiError> {
        let item = parsed::<Fields<'_>>(value).ok_or_else(|| wrong(at, "an object", value))?;
        let field = |name: &str| format!("{at}.{name}");
        let text = |name: &str| {
            let value = item.get(name).unwrap_or(RawValue::NULL);
            let text = parsed::<Text<'_>>(value).map(|text| text.0.into_owned());
            text.ok_or_else(|| wrong(&field(name), "a string", value))
        };
        let of_parts = |name: &str| content(&field(name), item.get(name).unwrap_or(RawValue::NULL));
        let kind = if item.get("type").is_none() { "message".to_owned() } else { text("type")? };
        match &*kind {
            "message" => {
                let content = of_parts("content")?;
                match &*text("role")? {
                    "assistant" => {
                        let turn = self.turn(&["content", "tool_calls"]);
                        turn.insert("content".to_owned(), Value::from(content));
                    }
                    // Chat templates know the older name.
                    "system" | "developer" => self.say("system", &content),
                    "user" => self.say("user", &content),
                    _ => {
                        let value = item.get("role").unwrap_or(RawValue::NULL);
                        return Err(wrong(&field("role"), "user, assistant, system or developer", value));
                    }
                }
            }
            "function_call" => {
                let arguments = arguments(&field("arguments"), Some(&Value::from(text("arguments")?)))?;
                let function = json!({"name": text("name")?, "arguments": arguments});
                let call = json!({"id": text("call_id")?, "type": "function", "function": function});
                let turn = self.turn(&[]);
                let calls = turn.entry("tool_calls").or_insert_with(|| json!([]));
                calls.as_array_mut().into_iter().for_each(|calls| calls.push(call.clone()));
            }
            "function_call_output" => {
                let id = text("call_id")?;
                self.say("tool", &of_parts("output")?);
                if let Some(message) = self.all.last_mut() {
                    message.insert("tool_call_id".to_owned(), Value::from(id));
                }
            }
            "reasoning" => {
                let Some(content) = item.get("content") else { return Ok(()) };
                let reasoning = self::content(&field("content"), content)?;
                if !reasoning.is_empty() {
                    let turn = self.turn(&["reasoning_content", "content", "tool_calls"]);
                    turn.insert("reasoning_content".to_owned(), Value::from(reasoning));
                }
            }
            _ => {
                let message = format!(
                    "{} {kind:?} is not supported; use message, function_call, function_call_output or reasoning",
                    field("type")
                );
                return Err(ApiError::field(&field("type"), message));
            }
        }
        Ok(())
    }

    fn finish(self, knows_tools: bool) -> Vec<Value> {
        let nothing = if knows_tools { Value::Null } else { Value::from("") };
        let full = |mut message: Map<String, Value>| {
            message.entry("content").or_insert_with(|| nothing.clone());
            Value::Object(message)
        };
        self.all.into_iter().map(full).collect()
    }
}

/// The text of a content. Parts are joined with line breaks, as in chats.
fn content(field: &str, value: &RawValue) -> Result<String, ApiError> {
    if let Some(text) = parsed::<Text<'_>>(value) {
        return Ok(text.0.into_owned());
    }
    let parts = elements(value, PARTS_MAX).filter(|parts| !parts.has_more());
    let parts = parts.ok_or_else(|| wrong(field, CONTENT, value))?;
    let part = |(n, value): (usize, &&RawValue)| {
        let part =
            parsed::<Fields<'_>>(value).ok_or_else(|| wrong(&format!("{field}[{n}]"), "an object", value))?;
        let kind = part.get("type").unwrap_or(RawValue::NULL);
        let name = match parsed::<Text<'_>>(kind).as_ref().map(|kind| &*kind.0) {
            Some("input_text" | "output_text" | "text" | "reasoning_text") => "text",
            Some("refusal") => "refusal",
            _ => return Err(wrong(&format!("{field}[{n}].type"), "input_text or output_text", kind)),
        };
        let text = part.get(name).unwrap_or(RawValue::NULL);
        let read = parsed::<Text<'_>>(text).map(|text| text.0.into_owned());
        read.ok_or_else(|| wrong(&format!("{field}[{n}].{name}"), "a string", text))
    };
    let parts: Result<Vec<String>, ApiError> = parts.first.iter().enumerate().map(part).collect();
    Ok(parts?.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &Value) -> Result<String, String> {
        let text = body.to_string();
        let fields = Fields::parse(text.as_bytes()).unwrap();
        let input = fields.get("input").unwrap();
        let items = elements(input, 64).map_or_else(|| vec![input], |items| items.first);
        let messages = input_messages(&fields, &items, true);
        messages.map(|all| Value::from(all).to_string()).map_err(|error| {
            let param = error.param.unwrap_or_default();
            assert!(error.message.starts_with(&param), "{param}: {}", error.message);
            error.message
        })
    }

    #[test]
    fn items_become_messages() {
        let check = |body: Value, expect: Value| assert_eq!(read(&body).unwrap(), expect.to_string());
        check(
            json!({"input": "a", "instructions": "i"}),
            json!([{"role": "system", "content": "i"}, {"role": "user", "content": "a"}]),
        );
        check(
            json!({"input": [{"role": "developer", "content": "d"}, {"type": "message", "role": "user",
                "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}]}),
            json!([{"role": "system", "content": "d"}, {"role": "user", "content": "a\nb"}]),
        );
    }

    #[test]
    fn the_items_of_a_turn_become_one_message() {
        let call = |id: &str, arguments: &str| json!({"type": "function_call", "id": "fc_1", "call_id": id, "name": "f", "arguments": arguments});
        let body = json!({"input": [
            {"role": "user", "content": "a"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "r"}]},
            {"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
            call("1", "{\"z\": 1, \"a\": 2}"), call("2", ""),
            {"type": "function_call_output", "call_id": "1", "output": "x"},
            {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "y"}]},
            {"type": "reasoning", "id": "rs_2", "summary": []},
            call("3", "{}"),
            {"role": "assistant", "content": "c"}, {"role": "assistant", "content": "d"},
        ]});
        let called = |id: &str, arguments: Value| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}});
        let expect = json!([
            {"role": "user", "content": "a"},
            {"role": "assistant", "reasoning_content": "r", "content": "b",
                "tool_calls": [called("1", json!({"z": 1, "a": 2})), called("2", json!({}))]},
            {"role": "tool", "content": "x", "tool_call_id": "1"},
            {"role": "tool", "content": "y", "tool_call_id": "2"},
            {"role": "assistant", "tool_calls": [called("3", json!({}))], "content": null},
            {"role": "assistant", "content": "c"},
            {"role": "assistant", "content": "d"},
        ]);
        assert_eq!(read(&body).unwrap(), expect.to_string());
    }

    #[test]
    fn wrong_items_name_their_field() {
        for (item, words) in [
            (json!(1), "input[0] must be an object"),
            (json!({"content": "a"}), "input[0].role must be a string"),
            (json!({"role": "tool", "content": "a"}), "input[0].role must be user"),
            (json!({"role": "user"}), "input[0].content must be a string or"),
            (
                json!({"role": "user", "content": [{"type": "input_image"}]}),
                "input[0].content[0].type must be",
            ),
            (
                json!({"role": "user", "content": [{"type": "input_text"}]}),
                "input[0].content[0].text must be",
            ),
            (
                json!({"type": "function_call", "call_id": "1", "name": "f", "arguments": "["}),
                "input[0].arguments must",
            ),
            (json!({"type": "function_call", "name": "f", "arguments": "{}"}), "input[0].call_id must be"),
            (json!({"type": "function_call_output", "output": "x"}), "input[0].call_id must be"),
            (
                json!({"type": "item_reference", "id": "x"}),
                "input[0].type \"item_reference\" is not supported",
            ),
            (json!({"type": "reasoning", "content": 1}), "input[0].content must be"),
        ] {
            let error = read(&json!({"input": [item]})).unwrap_err();
            assert!(error.starts_with(words), "{error}");
        }
    }
}
