//! `/v1/responses`, whole and streamed, and the OpenAPI document.

use actors::request::RequestError;
use serde_json::{Value, json};

use super::super::model_text::testing::EOS;
use super::harness::{Script, Server, Setup};

const PATH: &str = "/v1/responses";

/// A template that shows tools in the format of Hermes, and the effort.
const TEMPLATE: &str = "{% if tools %}<tool_call>{{ tools | tojson }}{% endif %}{% if reasoning_effort %}[{{ reasoning_effort }}]{% endif %}\
                        {% for m in messages %}{{ m.role }}:{{ m.content }}{% for c in m.tool_calls %}!{{ c.function.name }}{% endfor %};\
                        {% endfor %}{% if enable_thinking is defined %}off{% endif %}{# </think> #}";

/// A server whose model answers with this text and its end. Each byte is a token.
fn says(text: &str) -> Server {
    let tokens = text.bytes().map(u32::from).chain([EOS]).collect();
    Server::start_with(Setup {
        template: Some(TEMPLATE),
        context_tokens: 4096,
        ..Setup::new(Script::Tokens(tokens))
    })
}

fn tool() -> Value {
    json!({"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}, "strict": false})
}

fn body(more: Value) -> Value {
    let mut body = json!({"input": "a", "tools": [tool()]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn whole(server: &Server, body: &Value) -> Value {
    let (status, text) = server.http.post(PATH, &body.to_string());
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// The events of a streamed response. Checks their framing and their numbers.
fn streamed(server: &Server, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    // The fields that a response repeats must not break the lines of events.
    let (status, text) = server.http.post(PATH, &serde_json::to_string_pretty(&body).unwrap());
    assert_eq!(status, 200, "{text}");
    let event = |(n, frame): (usize, &str)| {
        let (name, data) = frame.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let event: Value = serde_json::from_str(data).unwrap();
        assert_eq!((&event["type"], &event["sequence_number"]), (&json!(name), &json!(n)));
        event
    };
    text.strip_suffix("\n\n").unwrap().split("\n\n").enumerate().map(event).collect()
}

/// Puts a response together from its events, like a client does.
fn assembled(events: &[Value]) -> Value {
    let mut output: Vec<Value> = Vec::new();
    for event in events {
        let kind = event["type"].as_str().unwrap();
        let Some(index) = event["output_index"].as_u64().map(|index| index as usize) else { continue };
        let place = |output: &Vec<Value>| assert_eq!(event["item_id"], output[index]["id"], "{event}");
        match kind {
            "response.output_item.added" => {
                assert_eq!((index, &event["item"]["status"]), (output.len(), &json!("in_progress")));
                output.push(event["item"].clone());
            }
            "response.content_part.added" => {
                place(&output);
                output[index]["content"].as_array_mut().unwrap().push(event["part"].clone());
            }
            "response.content_part.done" => assert_eq!(output[index]["content"][0], event["part"]),
            "response.output_item.done" => {
                output[index]["status"] = event["item"]["status"].clone();
                assert_eq!(output[index], event["item"]);
            }
            _ => {
                place(&output);
                let text = match kind.split('.').nth(1).unwrap() {
                    "function_call_arguments" => &mut output[index]["arguments"],
                    _ => &mut output[index]["content"][0]["text"],
                };
                if let Some(delta) = event["delta"].as_str() {
                    *text = json!(text.as_str().unwrap().to_owned() + delta);
                } else {
                    let done = if event["text"].is_null() { &event["arguments"] } else { &event["text"] };
                    assert_eq!(text, done, "{event}");
                }
            }
        }
    }
    let last = &events[events.len() - 1]["response"];
    assert_eq!(last["output"], json!(output));
    last.clone()
}

/// Removes ids and times.
fn compared(mut response: Value) -> Value {
    response["created_at"] = Value::Null;
    for item in response["output"].as_array_mut().unwrap() {
        assert!(item["id"].as_str().unwrap().len() > 30, "{item}");
        item["id"] = Value::Null;
        item["call_id"] = Value::Null;
    }
    response
}

const CALL: &str = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"}\"}}\n</tool_call>";

#[test]
fn a_stream_gives_the_response_of_the_whole_answer() {
    for (text, fields, kinds, status) in [
        ("hello\n".to_owned(), json!({"tools": []}), "message", "completed"),
        (String::new(), json!({}), "message", "completed"),
        (CALL.to_owned(), json!({}), "function_call", "completed"),
        (
            format!("so {CALL}{CALL} and"),
            json!({}),
            "message function_call function_call message",
            "completed",
        ),
        (
            format!("<think>\nwhy\n</think>\n\nso {CALL}"),
            json!({}),
            "reasoning message function_call",
            "completed",
        ),
        (
            format!("<think>why</think>{CALL}"),
            json!({"parallel_tool_calls": false}),
            "reasoning function_call",
            "completed",
        ),
        (
            CALL.to_owned(),
            json!({"tool_choice": {"type": "function", "name": "f"}}),
            "function_call",
            "completed",
        ),
        (CALL.to_owned(), json!({"max_output_tokens": 50}), "function_call", "incomplete"),
        (
            "hello".to_owned(),
            json!({"max_output_tokens": 3, "metadata": {"a": "b"}}),
            "message",
            "incomplete",
        ),
    ] {
        let server = says(&text);
        let body = body(fields);
        let whole = whole(&server, &body);
        let events = streamed(&server, &body);
        assert_eq!(compared(assembled(&events)), compared(whole.clone()), "{text} {body}");
        let found: Vec<&str> =
            whole["output"].as_array().unwrap().iter().map(|item| item["type"].as_str().unwrap()).collect();
        assert_eq!((found.join(" "), &whole["status"]), (kinds.to_owned(), &json!(status)), "{whole}");
        let types: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
        assert_eq!(types[..2], ["response.created", "response.in_progress"]);
        assert_eq!(types[types.len() - 1], format!("response.{status}"));
        server.all_permits_return();
    }
}

#[test]
fn a_response_has_openais_fields() {
    let server = says("<think>why</think>so");
    let text = json!({"format": {"type": "text"}, "verbosity": "low"});
    let fields =
        json!({"instructions": "i", "metadata": {"a": "b"}, "temperature": 0.5, "text": text, "store": true});
    let mut response = whole(&server, &body(fields));
    assert_eq!(response["id"], "resp_t");
    let created = response["created_at"].clone();
    assert!(created.as_u64().is_some_and(|created| created > 1_700_000_000));
    for (n, kind) in ["rs_", "msg_"].into_iter().enumerate() {
        let id = response["output"][n]["id"].take();
        assert!(id.as_str().unwrap().starts_with(kind));
    }
    // The prompt of the scripted model has one token that is not cached.
    let input = response["usage"]["input_tokens"].as_u64().unwrap();
    let expect = json!({
        "id": "resp_t", "object": "response", "created_at": created, "status": "completed", "background": false,
        "error": null, "incomplete_details": null, "model": "m",
        "output": [
            {"type": "reasoning", "id": null, "status": "completed", "summary": [],
                "content": [{"type": "reasoning_text", "text": "why"}]},
            {"type": "message", "id": null, "status": "completed", "role": "assistant",
                "content": [{"type": "output_text", "text": "so", "annotations": [], "logprobs": []}]},
        ],
        "previous_response_id": null, "store": false, "truncation": "disabled",
        "instructions": "i", "max_output_tokens": null, "metadata": {"a": "b"}, "parallel_tool_calls": true,
        "reasoning": {"effort": null, "summary": null}, "temperature": 0.5, "text": text, "tool_choice": "auto",
        "tools": [tool()], "top_p": 1.0,
        "usage": {
            "input_tokens": input, "input_tokens_details": {"cached_tokens": input - 1, "cache_write_tokens": 0},
            "output_tokens": 21, "output_tokens_details": {"reasoning_tokens": 12}, "total_tokens": input + 21,
        },
    });
    assert_eq!(response, expect);
}

#[test]
fn the_prompt_has_instructions_items_and_effort() {
    let server = Server::start_with(Setup {
        template: Some(TEMPLATE),
        context_tokens: 4096,
        ..Setup::new(Script::Tokens(vec![EOS]))
    });
    let prompt = |fields: Value| {
        let mut body = json!({"input": "a"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        whole(&server, &body);
        let tokens = server.accepted.recv().unwrap().prompt;
        let (_, text) = server.http.post("/detokenize", &json!({"tokens": &*tokens}).to_string());
        serde_json::from_str::<Value>(&text).unwrap()["prompt"].as_str().unwrap().to_owned()
    };
    assert_eq!(prompt(json!({})), "user:a;");
    assert_eq!(prompt(json!({"instructions": "i"})), "system:i;user:a;");
    assert_eq!(prompt(json!({"reasoning": {"effort": "high"}})), "[high]user:a;");
    assert_eq!(prompt(json!({"reasoning": {"effort": "none"}})), "[none]user:a;off");
    let items = json!([
        {"role": "user", "content": "a"},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "x"},
    ]);
    assert_eq!(prompt(json!({"input": items})), "user:a;assistant:None!f;tool:x;");
    let nested = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    let flat = json!({"type": "function", "name": "f", "parameters": {"type": "object"}});
    assert_eq!(
        prompt(json!({"tools": [flat]})),
        format!("<tool_call>[{nested}]user:a;")
            .replace(':', ": ")
            .replace(',', ", ")
            .replace("user: ", "user:")
    );
}

#[test]
fn answers_follow_the_format_of_the_text() {
    let server = says("a");
    let grammar = |fields: Value| {
        whole(&server, &body(fields));
        let grammar = server.shared.grammars.lock().unwrap().pop().unwrap();
        grammar.map(|grammar| grammar.source().text().to_owned())
    };
    assert_eq!(grammar(json!({})), None);
    assert_eq!(grammar(json!({"text": {"format": {"type": "text"}}})), None);
    let schema = json!({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"enum": ["x"]}}}});
    assert!(grammar(schema).unwrap().contains("\"enum\""));
    assert!(grammar(json!({"tool_choice": "required"})).unwrap().contains("call_0"));
}

#[test]
fn a_failure_ends_the_stream() {
    let script = Script::Fail(2, RequestError::Aborted);
    let server = Server::start_with(Setup { context_tokens: 256, ..Setup::new(script) });
    let events = streamed(&server, &json!({"input": "a"}));
    let last = &events[events.len() - 1];
    assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.failed"), &json!("failed")));
    assert_eq!(last["response"]["error"]["code"], "server_error");
    assert_eq!(last["response"]["output"][0]["content"][0]["text"], "aa");
    assert_eq!(assembled(&events)["output"][0]["status"], "incomplete");
    server.all_permits_return();
}

#[test]
fn wrong_requests_for_responses_are_refused() {
    let server = says("a");
    let refused = |fields: Value, field: &str, words: &str| {
        server.http.refused(PATH, &body(fields).to_string(), 400, field, words);
    };
    refused(json!({"input": null}), "input", "input is missing");
    refused(json!({"input": []}), "input", "at least one item");
    refused(json!({"input": [{"type": "item_reference", "id": "a"}]}), "input[0].type", "not supported");
    refused(
        json!({"tools": [{"type": "web_search"}]}),
        "tools[0].type",
        "must be \"function\", not \"web_search\"",
    );
    refused(json!({"tools": [{"type": "function", "name": "a b"}]}), "tools[0].name", "letters");
    refused(json!({"tools": [tool(), tool()]}), "tools[1].name", "like that of another tool");
    refused(json!({"tool_choice": {"type": "function", "name": "g"}}), "tool_choice", "not in tools");
    refused(json!({"tool_choice": {"type": "allowed_tools"}}), "tool_choice", "\"function\"");
    refused(json!({"previous_response_id": "resp_1"}), "previous_response_id", "not supported");
    refused(json!({"conversation": "c"}), "conversation", "not supported");
    refused(json!({"background": true}), "background", "not supported");
    refused(json!({"include": ["reasoning.encrypted_content"]}), "include", "not supported");
    refused(json!({"max_tokens": 1}), "max_tokens", "not a field of /v1/responses");
    refused(json!({"max_output_tokens": 5000}), "max_output_tokens", "ask for at most");
    refused(json!({"metadata": {"a": 1}}), "metadata", "short strings");
    refused(json!({"reasoning": {"effort": "much"}}), "reasoning.effort", "one of none, minimal");
    refused(json!({"text": {"format": {"type": "xml"}}}), "text.format.type", "json_object or json_schema");
    refused(json!({"text": {"format": {"type": "json_schema"}}}), "text.format.schema", "is missing");
    refused(json!({"instructions": 1}), "instructions", "must be a string");
    server.all_permits_return();
}

#[test]
fn the_document_describes_what_the_server_sends() {
    let server = says(CALL);
    let (status, text) = server.http.get("/openapi.json");
    assert_eq!(status, 200);
    let document: Value = serde_json::from_str(&text).unwrap();
    let schemas = &document["components"]["schemas"];
    let mut references = 0;
    for reference in text.split("\"$ref\":\"").skip(1) {
        let name = reference.split('"').next().unwrap().strip_prefix("#/components/schemas/").unwrap();
        assert!(schemas[name].is_object(), "{name}");
        references += 1;
    }
    assert!(references > 50, "{references}");
    let check = |schema: &str, sent: &str| {
        let sent: Value = serde_json::from_str(sent).unwrap();
        let (sent, schema) = (sent.as_object().unwrap(), &schemas[schema]);
        for name in sent.keys() {
            assert!(schema["properties"][name].is_object(), "{name} is not in {schema}");
        }
        for name in schema["required"].as_array().unwrap() {
            assert!(sent.contains_key(name.as_str().unwrap()), "{name} is not sent");
        }
    };
    let post = |path: &str, body: Value| server.http.post(path, &body.to_string()).1;
    let chat = json!([{"role": "user", "content": "a"}]);
    check("Completion", &post("/v1/completions", json!({"prompt": "a", "return_timings": true})));
    check(
        "ChatCompletion",
        &post("/v1/chat/completions", json!({"messages": chat, "return_token_ids": true})),
    );
    check("Response", &post(PATH, body(json!({}))));
    check("OutputItem", &whole(&server, &body(json!({})))["output"][0].to_string());
    check("Tokenized", &post("/tokenize", json!({"prompt": "a"})));
    check("Detokenized", &post("/detokenize", json!({"tokens": [97]})));
    check("Error", &post("/detokenize", json!({})));
    for path in ["/v1/models", "/v1/models/m", "/health", "/version", "/load"] {
        let key = path.replace("/m", "/{model}").replace("/{model}odels", "/models");
        let get =
            &document["paths"][&key]["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        let name = get["$ref"].as_str().unwrap().rsplit('/').next().unwrap();
        check(name, &server.http.get(path).1);
    }
}
