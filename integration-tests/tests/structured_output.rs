//! Structured output from real processes: one process, and a pair.

use anyhow::{Context as _, Result};
use integration_tests::client::post;
use integration_tests::process::{Pair, Process};
use serde_json::{Value, json};

fn chat(address: &str, fields: Value) -> Result<(u16, Value)> {
    let mut body = json!({
        "messages": [{"role": "user", "content": "Describe a person called Ada who is 36 years old."}],
        "max_tokens": 200,
        "temperature": 0,
    });
    body.as_object_mut()
        .context("it is an object")?
        .extend(fields.as_object().context("it is an object")?.clone());
    post(address, "/v1/chat/completions", &body)
}

/// The text of an answer that has ended by itself.
fn text(answer: &Value) -> Result<String> {
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop", "{answer}");
    Ok(choice["message"]["content"].as_str().context("the answer has a text")?.to_owned())
}

fn person() -> Value {
    let city = json!({"type": "object", "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}}, "required": ["zip"], "additionalProperties": false});
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "city": {"$ref": "#/$defs/city"},
            "children": {"type": "array", "items": {"enum": ["son", "daughter"]}, "maxItems": 2},
        },
        "required": ["name", "age", "city", "children"],
        "additionalProperties": false,
        "$defs": {"city": city},
    })
}

/// Checks the answers of the server at this address. Returns them.
fn answers_follow_their_grammars(address: &str) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    let mut ask = |fields: Value| -> Result<String> {
        let (status, answer) = chat(address, fields)?;
        assert_eq!(status, 200, "{answer}");
        texts.push(text(&answer)?);
        Ok(texts.last().cloned().unwrap_or_default())
    };
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "person", "strict": true, "schema": person()}});
    for temperature in [0.0, 1.5] {
        let answer = ask(json!({"response_format": format, "temperature": temperature, "seed": 3}))?;
        let value: Value = serde_json::from_str(&answer).with_context(|| answer.clone())?;
        let keys: Vec<&String> = value.as_object().context("it is an object")?.keys().collect();
        assert_eq!(keys, ["name", "age", "city", "children"], "{answer}");
        assert!(value["age"].as_u64().is_some_and(|age| age <= 150), "{answer}");
        let zip = value["city"]["zip"].as_str().unwrap_or_default();
        assert!(zip.len() == 5 && zip.bytes().all(|byte| byte.is_ascii_digit()), "{answer}");
        assert!(answer.starts_with("{\"name\": \""), "{answer}");
        assert!(answer.contains(", \"age\": ") && answer.contains(", \"children\": ["), "{answer}");
    }
    let choices = ["a person from Paris", "a person", "a cat"];
    assert!(choices.contains(&&*ask(json!({"guided_choice": choices, "temperature": 2, "seed": 5}))?));
    let date = ask(json!({"structured_outputs": {"regex": "[12][0-9]{3}-[01][0-9]"}}))?;
    assert!(date.len() == 7 && date.as_bytes()[4] == b'-', "{date}");
    assert_eq!(
        ask(json!({"guided_grammar": "start: \"<\" x \">\"\nx: \"a\" | \"b\" \"c\""}))?.find('<'),
        Some(0)
    );
    Ok(texts)
}

#[test]
fn answers_of_one_process_follow_their_grammars() -> Result<()> {
    let local = Process::start(&["--role", "local", "--set", "frontend.port=0"], &[])?;
    let address = local.address("frontend.port")?;
    answers_follow_their_grammars(&address)?;
    let (status, answer) =
        chat(&address, json!({"response_format": {"type": "json_object"}, "max_tokens": 40}))?;
    assert_eq!(status, 200, "{answer}");
    assert!(
        answer["choices"][0]["message"]["content"].as_str().is_some_and(|text| text.starts_with('{')),
        "{answer}"
    );
    // The model has no tokens for these characters.
    let (status, answer) = chat(&address, json!({"guided_regex": "(yes|no)[\u{13}\u{14}]"}))?;
    assert_eq!(status, 200, "{answer}");
    assert!(["yes", "no"].contains(&&*text(&answer)?), "{answer}");
    let (status, answer) = chat(&address, json!({"guided_choice": ["yes", "no\u{13}"]}))?;
    let message = answer["error"]["message"].as_str().unwrap_or_default();
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("guided_choice")), "{answer}");
    assert!(message.contains(r#"the model has no tokens for the string "no\u{13}""#), "{answer}");
    let (status, answer) =
        chat(&address, json!({"guided_json": {"properties": {"a": {"uniqueItems": true}}}}))?;
    let message = answer["error"]["message"].as_str().unwrap_or_default();
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("guided_json")), "{answer}");
    assert!(message.contains("the keyword uniqueItems at #/properties/a is not supported"), "{answer}");
    Ok(())
}

#[test]
fn a_pair_gives_the_answers_of_one_process() -> Result<()> {
    let local = Process::start(&["--role", "local", "--set", "frontend.port=0"], &[])?;
    let expect = answers_follow_their_grammars(&local.address("frontend.port")?)?;
    drop(local);
    let pair = Pair::start(&[])?;
    assert_eq!(answers_follow_their_grammars(&pair.frontend)?, expect);
    Ok(())
}
