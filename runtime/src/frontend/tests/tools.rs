//! Tool calls and reasoning in answers to chats: whole and streamed.

use serde_json::{Value, json};

use super::super::model_text::testing::EOS;
use super::dated;
use super::harness::{Script, Server, Setup};
use super::http::events;

/// A template that shows tools in the format of Hermes, and opens the reasoning if `think` is set.
const TEMPLATE: &str = "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }}:{{ m.content }};\
                        {% endfor %}{% if think %}<think>\n{% endif %}{# </think> #}";

/// A server whose model answers with this text and its end. Each byte is a token. `<tool_call>` and its end are special tokens.
fn says(text: &str) -> Server {
    let special: &[&str] = &["<tool_call>", "</tool_call>"];
    let (mut tokens, mut rest) = (Vec::new(), text);
    while let Some(byte) = rest.as_bytes().first() {
        match special.iter().position(|mark| rest.starts_with(mark)) {
            Some(n) => {
                tokens.push(262 + n as u32);
                rest = &rest[special[n].len()..];
            }
            None => {
                tokens.push(u32::from(*byte));
                rest = rest.get(1..).unwrap_or_else(|| panic!("{rest} is not ASCII"));
            }
        }
    }
    tokens.push(EOS);
    let script = Script::Tokens(tokens);
    Server::start_with(Setup {
        template: Some(TEMPLATE),
        special,
        context_tokens: 4096,
        ..Setup::new(script)
    })
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}})
}

fn body(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "a"}], "tools": [tool("f"), tool("g")]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn post(server: &Server, body: &Value) -> String {
    let (status, text) = server.http.post("/v1/chat/completions", &body.to_string());
    assert_eq!(status, 200, "{text}");
    text
}

/// The first choice of a whole answer.
fn whole(server: &Server, body: &Value) -> Value {
    serde_json::from_str::<Value>(&post(server, body)).unwrap()["choices"][0].clone()
}

/// Adds a delta to a message like openai-python: strings are joined, elements of lists belong together by their index, and a part of a
/// call that repeats a field other than the arguments is an error.
fn accumulate(message: &mut Value, delta: &Value) {
    for (key, value) in delta.as_object().unwrap() {
        match (&mut message[key], value) {
            (known @ Value::Null, value) => *known = value.clone(),
            (Value::String(known), Value::String(more)) => {
                assert!(["content", "reasoning_content", "arguments"].contains(&&**key), "{key} is repeated");
                known.push_str(more);
            }
            (Value::Number(known), Value::Number(same)) => assert_eq!(known, same, "{key}"),
            (known @ Value::Object(_), value) => accumulate(known, value),
            (Value::Array(known), Value::Array(parts)) => {
                for part in parts {
                    let index = part["index"].as_u64().expect("a part of a call has an index") as usize;
                    assert!(index <= known.len(), "calls begin in order");
                    if index == known.len() {
                        known.push(part.clone());
                    } else {
                        accumulate(&mut known[index], part);
                    }
                }
            }
            (known, value) => panic!("{key}: {value} after {known}"),
        }
    }
}

/// The message and the finish reason of a choice of a streamed answer.
fn streamed(server: &Server, body: &Value, choice: u64) -> (Value, Value) {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let (mut message, mut finish) = (json!({}), Value::Null);
    for event in events(&post(server, &body)) {
        let Ok(chunk) = serde_json::from_str::<Value>(&event) else { continue };
        let part = &chunk["choices"][0];
        if part["index"] != choice {
            continue;
        }
        assert_eq!(finish, Value::Null, "nothing follows the finish reason");
        accumulate(&mut message, &part["delta"]);
        finish = part["finish_reason"].clone();
    }
    (message, finish)
}

/// Removes ids and indices, and what whole answers have besides.
fn compared(mut message: Value) -> Value {
    let fields = message.as_object_mut().unwrap();
    fields.remove("refusal");
    if fields.get("tool_calls") == Some(&json!([])) {
        fields.remove("tool_calls");
    }
    for call in fields.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        let call = call.as_object_mut().unwrap();
        call.remove("index");
        let id = call.remove("id").unwrap();
        assert!(id.as_str().unwrap().starts_with("call_"), "{id}");
    }
    message
}

const CALL: &str = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": [1, \"}\"]}}\n</tool_call>";

#[test]
fn a_streamed_call_has_openais_chunks() {
    let server = says("Hm <tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>");
    let text = post(&server, &body(json!({"stream": true})));
    let events = events(&text);
    let parsed: Vec<Value> = events.iter().filter_map(|event| serde_json::from_str(event).ok()).collect();
    let id =
        parsed.iter().find_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"][0]["id"].as_str()).unwrap();
    let created = parsed[0]["created"].clone();
    let chunk = |delta: &str, finish: &str| {
        let chunk = format!(
            r#"{{"id":"chatcmpl-t","object":"chat.completion.chunk","created":CREATED,"model":"m","choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish},"stop_reason":null,"token_ids":null}}]}}"#
        );
        dated(&chunk, &created)
    };
    let first = format!(
        r#"{{"tool_calls":[{{"index":0,"id":"{id}","type":"function","function":{{"name":"f","arguments":""}}}}]}}"#
    );
    let arguments =
        |text: &str| format!(r#"{{"tool_calls":[{{"index":0,"function":{{"arguments":"{text}"}}}}]}}"#);
    let expect = [
        chunk(r#"{"role":"assistant","content":null}"#, "null"),
        chunk(r#"{"content":"H"}"#, "null"),
        chunk(r#"{"content":"m"}"#, "null"),
        chunk(&first, "null"),
        chunk(&arguments("{"), "null"),
        chunk(&arguments("}"), "null"),
        chunk("{}", "\"tool_calls\""),
        "[DONE]".to_owned(),
    ];
    assert_eq!(events, expect);
}

#[test]
fn a_stream_gives_the_message_of_the_whole_answer() {
    let think = json!({"chat_template_kwargs": {"think": true}});
    for (text, fields, finish) in [
        (CALL.to_owned(), json!({}), "tool_calls"),
        (format!("Let me see.\n{CALL}\n{CALL}"), json!({}), "tool_calls"),
        (format!("{CALL}{CALL}"), json!({"parallel_tool_calls": false}), "tool_calls"),
        ("<tool_call>{\"name\": oops}</tool_call>".to_owned(), json!({}), "stop"),
        ("just text\n".to_owned(), json!({}), "stop"),
        (String::new(), json!({}), "stop"),
        (format!("<think>\nwhy\n</think>\n\n{CALL}"), json!({}), "tool_calls"),
        (format!("why\n</think>\n\n{CALL}"), think.clone(), "tool_calls"),
        ("why\n</think>\n\nso".to_owned(), think.clone(), "stop"),
        ("why".to_owned(), think, "stop"),
        (CALL.to_owned(), json!({"tool_choice": "required"}), "tool_calls"),
        // OpenAI and vLLM finish so if the request names the function.
        (CALL.to_owned(), json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}), "stop"),
        // Without the tools, the marks are special tokens, which are left out.
        (CALL.to_owned(), json!({"tool_choice": "none"}), "stop"),
        (CALL.to_owned(), json!({"max_tokens": 40}), "length"),
        // A stop string that cuts a call.
        (CALL.to_owned(), json!({"stop": "\"}\""}), "stop"),
        (format!("{CALL}\n{CALL} "), json!({"stop": "\"}\"", "parallel_tool_calls": false}), "stop"),
        (CALL.to_owned(), json!({"stop": "\n</tool_call>"}), "tool_calls"),
        (format!("{CALL}\nSo"), json!({"stop": "So"}), "tool_calls"),
    ] {
        let server = says(&text);
        let body = body(fields);
        let whole = whole(&server, &body);
        let (message, finish_reason) = streamed(&server, &body, 0);
        assert_eq!(compared(message), compared(whole["message"].clone()), "{text} {body}");
        assert_eq!(
            (&finish_reason, &whole["finish_reason"]),
            (&json!(finish), &json!(finish)),
            "{text} {body}"
        );
    }
}

#[test]
fn a_whole_answer_has_content_reasoning_and_calls() {
    let server = says(&format!("<think>why</think>so\n{CALL}"));
    let choice = whole(&server, &body(json!({})));
    let call = &choice["message"]["tool_calls"][0];
    let expect = format!(
        r#"{{"role":"assistant","reasoning_content":"why","content":"so","refusal":null,"tool_calls":[{{"id":{},"type":"function","function":{{"name":"f","arguments":"{{\"x\": [1, \"}}\"]}}"}}}}]}}"#,
        call["id"]
    );
    assert_eq!(choice["message"].to_string(), expect);
    let choice = whole(&says(CALL), &body(json!({})));
    assert_eq!(choice["message"]["content"], Value::Null);
    let choice = whole(&says(CALL), &body(json!({"tool_choice": "none"})));
    assert_eq!(choice["message"]["tool_calls"], json!([]));
    assert!(choice["message"]["content"].as_str().unwrap().contains("\"name\": \"f\""), "{choice}");
}

#[test]
fn several_answers_have_calls_of_their_own() {
    let server = says(CALL);
    let body = body(json!({"n": 2, "logprobs": true, "stream_options": {"include_usage": true}}));
    let answers: Vec<Value> = (0..2).map(|choice| streamed(&server, &body, choice).0).collect();
    assert_eq!(compared(answers[0].clone()), compared(answers[1].clone()));
    assert_ne!(answers[0]["tool_calls"][0]["id"], answers[1]["tool_calls"][0]["id"]);

    let mut streaming = body.clone();
    streaming["stream"] = json!(true);
    let text = post(&server, &streaming);
    let chunks: Vec<Value> =
        events(&text).iter().filter_map(|event| serde_json::from_str(event).ok()).collect();
    // Every token has its log probability in exactly one chunk, and is counted.
    let told = chunks.iter().filter(|chunk| chunk["choices"][0]["logprobs"].is_object()).count();
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], json!(told));
    assert_eq!(told, 2 * (CALL.len() - "<tool_call></tool_call>".len() + 3));
}

#[test]
fn chats_with_wrong_tools_are_refused() {
    let server = says("a");
    let refused = |fields: Value, field: &str, words: &str| {
        server.http.refused("/v1/chat/completions", &body(fields).to_string(), 400, field, words);
    };
    refused(json!({"tool_choice": "any"}), "tool_choice", "none, auto, required");
    refused(json!({"tools": [tool("f"), tool("f")]}), "tools[1].function.name", "like that of another tool");
    refused(json!({"chat_template_kwargs": {"tools": 1}}), "chat_template_kwargs", "must not set tools");
    refused(json!({"chat_template_kwargs": []}), "chat_template_kwargs", "must be an object");
    refused(
        json!({"continue_final_message": true}),
        "continue_final_message",
        "add_generation_prompt: false",
    );
    let body = json!({"prompt": "a", "tools": [tool("f")]}).to_string();
    server.http.refused("/v1/completions", &body, 400, "tools", "not supported");

    let body = json!({"prompt": "a", "continue_final_message": true}).to_string();
    server.http.refused("/v1/completions", &body, 400, "continue_final_message", "not supported");
}

#[test]
fn forced_calls_and_answers_after_reasoning_have_grammars() {
    let server = says("a");
    let grammar = |fields: Value| {
        post(&server, &body(fields));
        let grammar = server.shared.grammars.lock().unwrap().pop().unwrap();
        grammar.map(|grammar| grammar.source().text().to_owned())
    };
    let schema = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["x"]}}});
    let named = json!({"type": "function", "function": {"name": "g"}});
    assert_eq!(grammar(json!({})), None);
    assert_eq!(grammar(json!({"tool_choice": "none"})), None);
    let required = grammar(json!({"tool_choice": "required"})).unwrap();
    // The reasoning may come first, and the marks are special tokens.
    assert!(required.starts_with("start: reasoned? <[262]> calls\n"), "{required}");
    assert!(required.contains("\ncall: call_0 | call_1\n"), "{required}");
    let one = grammar(json!({"tool_choice": named, "response_format": schema})).unwrap();
    assert!(one.contains("\ncall: call_0\n") && one.contains("\\\"g\\\"") && !one.contains("enum"), "{one}");
    let either = grammar(json!({"response_format": schema})).unwrap();
    assert!(either.starts_with("start: reasoned? (other | <[262]> calls)\n"), "{either}");
    let think = json!({"think": true});
    let after = grammar(json!({"tools": [], "response_format": schema, "chat_template_kwargs": think}));
    assert!(after.unwrap().starts_with("start: thought gap answer\n"));
}

#[test]
fn a_final_message_may_be_continued() {
    let server = says("a");
    let tokens = |fields: Value| {
        let (status, text) = server.http.post("/tokenize", &body(fields).to_string());
        assert_eq!(status, 200, "{text}");
        let tokens = serde_json::from_str::<Value>(&text).unwrap()["tokens"].clone();
        let (_, text) = server.http.post("/detokenize", &json!({"tokens": tokens}).to_string());
        serde_json::from_str::<Value>(&text).unwrap()["prompt"].as_str().unwrap().to_owned()
    };
    let ends = |fields: Value, end: &str| {
        let prompt = tokens(fields);
        assert!(prompt.ends_with(end), "{prompt}");
    };
    ends(json!({}), "user:a;");
    ends(json!({"add_generation_prompt": false, "continue_final_message": true}), "user:a");
    ends(json!({"chat_template_kwargs": {"think": true}}), "user:a;<think>\n");
}
