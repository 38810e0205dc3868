//! What clients get: whole answers and streams.

use actors::request::CacheSalt;
use serde_json::{Value, json};

use super::super::model_text::testing::EOS;
use super::dated;
use super::harness::{Script, Server};
use super::http::{WAIT, events};

fn check_events(server: &Server, path: &str, body: Value, expect: &[&str]) {
    let (status, text) = server.http.post(path, &body.to_string());
    assert_eq!(status, 200, "{text}");
    let events = events(&text);
    let created = serde_json::from_str::<Value>(&events[0]).unwrap()["created"].clone();
    let expect: Vec<String> = expect.iter().map(|event| dated(event, &created)).collect();
    assert_eq!(events, expect);
}

/// The choices of a whole answer.
fn choices(server: &Server, path: &str, body: Value) -> Value {
    let (status, text) = server.http.post(path, &body.to_string());
    assert_eq!(status, 200, "{text}");
    serde_json::from_str::<Value>(&text).unwrap()["choices"].clone()
}

/// The chunks of a streamed answer, without the end mark.
fn chunks(body: &str) -> Vec<Value> {
    events(body).iter().filter_map(|event| serde_json::from_str(event).ok()).collect()
}

#[test]
fn a_streamed_completion_has_vllms_chunks() {
    let server = Server::start(Script::Echo);
    let body = json!({"model": "m", "prompt": "hi", "max_tokens": 2, "stream": true, "temperature": 0,
        "repetition_penalty": 1.0, "logprobs": null, "stream_options": {"include_usage": true}});
    check_events(
        &server,
        "/v1/completions",
        body,
        &[
            r#"{"id":"cmpl-t","object":"text_completion","created":CREATED,"model":"m","choices":[{"index":0,"text":"h","logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null,"weight_versions":null}],"kv_transfer_params":null}"#,
            r#"{"id":"cmpl-t","object":"text_completion","created":CREATED,"model":"m","choices":[{"index":0,"text":"i","logprobs":null,"finish_reason":"length","stop_reason":null,"prompt_token_ids":null,"token_ids":null,"weight_versions":null}],"kv_transfer_params":null}"#,
            r#"{"id":"cmpl-t","object":"text_completion","created":CREATED,"model":"m","choices":[],"usage":{"prompt_tokens":2,"total_tokens":4,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}}}"#,
            "[DONE]",
        ],
    );
}

#[test]
fn a_streamed_completion_has_token_ids_if_asked() {
    let server = Server::start(Script::Echo);
    // The end-of-sequence token ends the answer. It is counted and has no text.
    let body = json!({"prompt": [97, EOS], "stream": true, "return_token_ids": true,
        "stream_options": {"continuous_usage_stats": true}});
    check_events(
        &server,
        "/v1/completions",
        body,
        &[
            r#"{"id":"cmpl-t","object":"text_completion","created":CREATED,"model":"m","choices":[{"index":0,"text":"a","logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":[97,257],"token_ids":[97],"weight_versions":null}],"usage":{"prompt_tokens":2,"total_tokens":3,"completion_tokens":1},"kv_transfer_params":null}"#,
            r#"{"id":"cmpl-t","object":"text_completion","created":CREATED,"model":"m","choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"stop","stop_reason":null,"prompt_token_ids":null,"token_ids":[257],"weight_versions":null}],"usage":{"prompt_tokens":2,"total_tokens":4,"completion_tokens":2},"kv_transfer_params":null}"#,
            "[DONE]",
        ],
    );
}

#[test]
fn a_streamed_chat_has_vllms_chunks() {
    let server = Server::start(Script::Tokens(vec![0xC3, 0xBC]));
    let body = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
        "max_completion_tokens": 2, "stream": true, "stream_options": {"include_usage": true}});
    // The prompt has 13 bytes of roles and newlines, the special tokens of two turns, and one character of content.
    check_events(
        &server,
        "/v1/chat/completions",
        body,
        &[
            r#"{"id":"chatcmpl-t","object":"chat.completion.chunk","created":CREATED,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null,"stop_reason":null,"token_ids":null}]}"#,
            r#"{"id":"chatcmpl-t","object":"chat.completion.chunk","created":CREATED,"model":"m","choices":[{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":null,"stop_reason":null,"token_ids":null}]}"#,
            r#"{"id":"chatcmpl-t","object":"chat.completion.chunk","created":CREATED,"model":"m","choices":[{"index":0,"delta":{"content":"ü"},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}]}"#,
            r#"{"id":"chatcmpl-t","object":"chat.completion.chunk","created":CREATED,"model":"m","choices":[],"usage":{"prompt_tokens":20,"total_tokens":22,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":19}}}"#,
            "[DONE]",
        ],
    );
}

#[test]
fn whole_answers_have_vllms_fields() {
    let server = Server::start(Script::Echo);
    let (status, text) = server
        .http
        .post("/v1/completions", r#"{"prompt": ["hi"], "max_tokens": 3, "return_token_ids": true}"#);
    assert_eq!(status, 200, "{text}");
    let created = serde_json::from_str::<Value>(&text).unwrap()["created"].clone();
    assert_eq!(
        text,
        dated(
            r#"{"id":"cmpl-t","object":"text_completion","created":CREATED,"model":"m","choices":[{"index":0,"text":"hih","logprobs":null,"finish_reason":"length","stop_reason":null,"prompt_token_ids":[104,105],"token_ids":[104,105,104],"weight_versions":null}],"system_fingerprint":null,"usage":{"prompt_tokens":2,"total_tokens":5,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":1}},"kv_transfer_params":null}"#,
            &created
        )
    );

    let server = Server::start(Script::Tokens(vec![104, EOS]));
    let (status, text) =
        server.http.post("/v1/chat/completions", r#"{"messages": [{"role": "user", "content": "a"}]}"#);
    assert_eq!(status, 200, "{text}");
    let created = serde_json::from_str::<Value>(&text).unwrap()["created"].clone();
    assert_eq!(
        text,
        dated(
            r#"{"id":"chatcmpl-t","object":"chat.completion","created":CREATED,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"h","refusal":null,"tool_calls":[]},"logprobs":null,"finish_reason":"stop","stop_reason":null,"token_ids":null}],"system_fingerprint":null,"usage":{"prompt_tokens":20,"total_tokens":22,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":19}},"prompt_token_ids":null,"kv_transfer_params":null}"#,
            &created
        )
    );
}

#[test]
fn defaults_and_limits_of_max_tokens() {
    let server = Server::start(Script::Echo);
    let check = |path: &str, body: &str, expect: u64| {
        let (status, text) = server.http.post(path, body);
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(expect)), "{text}");
    };
    check("/v1/completions", r#"{"prompt": "a"}"#, 16);
    check("/v1/completions", &json!({"prompt": "a".repeat(60)}).to_string(), 4);
    check("/v1/completions", r#"{"prompt": "a", "max_tokens": 63}"#, 63);
    let chat = r#"{"messages": [{"role": "user", "content": "a"}], "ignore_eos": true}"#;
    check("/v1/chat/completions", chat, 64 - 20);
    check("/v1/completions", &json!({"prompt": [EOS], "max_tokens": 3}).to_string(), 1);
    check("/v1/completions", &json!({"prompt": [EOS], "max_tokens": 3, "ignore_eos": true}).to_string(), 3);
}

#[test]
fn timings_are_sent_if_asked() {
    let server = Server::start(Script::Echo);
    let (_, text) =
        server.http.post("/v1/completions", r#"{"prompt": "hi", "max_tokens": 3, "return_timings": true}"#);
    let timings = serde_json::from_str::<Value>(&text).unwrap()["timings"].clone();
    assert_eq!(
        (&timings["prompt_tokens"], &timings["handover_gigabytes_per_second"]),
        (&json!(2), &json!(2.0)),
        "{text}"
    );
    assert_eq!(timings["tokens_per_s"], json!(200.0), "{text}");
    for options in [Value::Null, json!({"include_usage": true})] {
        let body = json!({"prompt": "hi", "stream": true, "return_timings": true, "stream_options": options});
        let (_, text) = server.http.post("/v1/completions", &body.to_string());
        let events = events(&text);
        let with: Vec<usize> = (0..events.len()).filter(|n| events[*n].contains("\"timings\"")).collect();
        assert_eq!(with, [events.len() - 2], "{text}");
    }
}

#[test]
fn stop_strings_end_an_answer_early() {
    let server = Server::start(Script::Echo);
    let check = |fields: Value, text: &str, finish: &str, stop: Value, tokens: u64| {
        let mut body = json!({"prompt": "abcdef", "max_tokens": 5});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let (status, answer) = server.http.post("/v1/completions", &body.to_string());
        assert_eq!(status, 200, "{answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let choice = &answer["choices"][0];
        let found = (&choice["text"], &choice["finish_reason"], &choice["stop_reason"]);
        assert_eq!(found, (&json!(text), &json!(finish), &stop), "{fields}");
        assert_eq!(answer["usage"]["completion_tokens"], tokens, "{fields}");
        // The same as a stream.
        body["stream"] = json!(true);
        let (_, streamed) = server.http.post("/v1/completions", &body.to_string());
        let chunks = chunks(&streamed);
        let pieces: Vec<&str> = chunks.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
        assert_eq!((pieces.concat(), pieces.len() as u64), (text.to_owned(), tokens), "{streamed}");
        let last = &chunks[chunks.len() - 1]["choices"][0];
        assert_eq!((&last["finish_reason"], &last["stop_reason"]), (&json!(finish), &stop), "{streamed}");
    };
    check(json!({"stop": "cd"}), "ab", "stop", json!("cd"), 4);
    check(json!({"stop": ["x", "cd"], "include_stop_str_in_output": true}), "abcd", "stop", json!("cd"), 4);
    check(json!({"stop": "dx"}), "abcde", "length", Value::Null, 5);
    check(json!({"stop": "ef"}), "abcde", "length", Value::Null, 5);
    check(json!({"stop": "de"}), "abc", "stop", json!("de"), 5);
    check(json!({"stop_token_ids": [99]}), "ab", "stop", json!(99), 3);
}

#[test]
fn a_stop_string_aborts_the_request() {
    let server = Server::start(Script::Hold(3));
    let body = json!({"prompt": "x", "max_tokens": 60, "stop": "aa", "return_timings": true});
    let (_, text) = server.http.post("/v1/completions", &body.to_string());
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["choices"][0]["stop_reason"], "aa");
    assert_eq!(answer["timings"]["completion_tokens"], 2, "tokens after the stop string are not counted");
    let request = server.next_request();
    assert_eq!(server.aborts.recv_timeout(WAIT), Ok(request));
    server.all_permits_return();
}

#[test]
fn several_answers_to_several_prompts() {
    let server = Server::start(Script::Echo);
    let all = choices(&server, "/v1/completions", json!({"prompt": ["ab", [99]], "max_tokens": 2}));
    let texts: Vec<(&Value, &Value)> =
        all.as_array().unwrap().iter().map(|choice| (&choice["index"], &choice["text"])).collect();
    assert_eq!(texts, [(&json!(0), &json!("ab")), (&json!(1), &json!("cc"))]);
    let all =
        choices(&server, "/v1/completions", json!({"prompt": "ab", "n": 2, "echo": true, "max_tokens": 1}));
    assert_eq!((&all[0]["text"], &all[1]["text"]), (&json!("aba"), &json!("aba")));

    let body = json!({"messages": [{"role": "user", "content": "a"}], "n": 2, "max_tokens": 2, "stream": true,
        "stream_options": {"include_usage": true}});
    let (_, text) = server.http.post("/v1/chat/completions", &body.to_string());
    let chunks = chunks(&text);
    for index in 0..2 {
        let of: Vec<&Value> =
            chunks.iter().map(|c| &c["choices"][0]).filter(|choice| choice["index"] == index).collect();
        assert_eq!(of.len(), 3, "a role and two tokens: {text}");
        assert_eq!(
            (&of[0]["delta"]["role"], &of[2]["finish_reason"]),
            (&json!("assistant"), &json!("length"))
        );
    }
    let usage = &chunks[chunks.len() - 1]["usage"];
    let expect = json!({"prompt_tokens": 20, "total_tokens": 24, "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 19}});
    assert_eq!(*usage, expect, "the prompt counts once: {text}");
    let body = json!({"prompt": ["ab", "cde"], "max_tokens": 1});
    let (_, text) = server.http.post("/v1/completions", &body.to_string());
    let usage = serde_json::from_str::<Value>(&text).unwrap()["usage"].clone();
    assert_eq!(usage["prompt_tokens_details"], json!({"cached_tokens": 3}), "{text}");
    server.all_permits_return();
}

#[test]
fn logprobs_are_sent_if_asked() {
    let server = Server::start(Script::Echo);
    let all = choices(&server, "/v1/completions", json!({"prompt": "ab", "max_tokens": 2, "logprobs": 1}));
    let expect = json!({"text_offset": [0, 1], "token_logprobs": [-0.5, -0.5], "tokens": ["a", "b"],
        "top_logprobs": [{"a": -0.5}, {"b": -0.5}]});
    assert_eq!(all[0]["logprobs"], expect);
    let body = json!({"prompt": "ab", "max_tokens": 2, "logprobs": 1, "stream": true});
    let (_, text) = server.http.post("/v1/completions", &body.to_string());
    let last: Value = serde_json::from_str(&events(&text)[1]).unwrap();
    assert_eq!(last["choices"][0]["logprobs"]["text_offset"], json!([1]), "{text}");

    let chat = json!([{"role": "user", "content": "a"}]);
    let path = "/v1/chat/completions";
    let all = choices(
        &server,
        path,
        json!({"messages": chat, "max_tokens": 1, "logprobs": true, "top_logprobs": 1}),
    );
    let token = &all[0]["logprobs"]["content"][0];
    assert_eq!((&token["logprob"], &token["top_logprobs"][0]["logprob"]), (&json!(-0.5), &json!(-0.5)));
    let all = choices(&server, path, json!({"messages": chat, "max_tokens": 1, "logprobs": false}));
    assert_eq!(all[0]["logprobs"], Value::Null);
    let body = json!({"messages": chat, "top_logprobs": 1}).to_string();
    server.http.refused(path, &body, 400, "top_logprobs", "needs logprobs: true");
}

#[test]
fn harmless_fields_are_accepted() {
    let server = Server::start(Script::Echo);
    let body = json!({"prompt": "a", "max_tokens": 1, "temperature": 0.0, "top_p": 0.9, "top_k": -1, "min_p": 0,
        "n": 1, "best_of": 1, "seed": 7, "stop": [], "logprobs": false, "echo": false, "logit_bias": {},
        "user": "u", "never_heard_of": {"a": 1}, "response_format": {"type": "text"}, "stream_options": null});
    let (status, text) = server.http.post("/v1/completions", &body.to_string());
    assert_eq!(status, 200, "{text}");
}

#[test]
fn requests_carry_their_cache_salt() {
    let server = Server::start(Script::Echo);
    let salt = |salt: Value| {
        let body = json!({"prompt": "a", "max_tokens": 1, "cache_salt": salt});
        assert_eq!(server.http.post("/v1/completions", &body.to_string()).0, 200);
        let chat =
            json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "cache_salt": salt});
        assert_eq!(server.http.post("/v1/chat/completions", &chat.to_string()).0, 200);
        [(); 2].map(|()| server.accepted.recv_timeout(WAIT).unwrap().salt)
    };
    assert_eq!(salt(json!("tenant")), [Some(CacheSalt::of("tenant")); 2]);
    assert_eq!(salt(Value::Null), [None; 2]);
}
