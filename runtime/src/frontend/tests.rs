mod clients;
mod harness;
mod queue;

use actors::request::{Refused, RequestError};
use serde_json::{Value, json};

use super::model_text::testing::EOS;
use super::*;
use harness::{Script, Server, Setup, WAIT};

/// `created` differs from run to run.
fn dated(text: &str, created: &Value) -> String {
    text.replace("CREATED", &created.to_string())
}

/// The data of each event; panics on any other framing.
fn events(body: &str) -> Vec<&str> {
    let body = body.strip_suffix("\n\n").expect("the last event is closed");
    body.split("\n\n").map(|event| event.strip_prefix("data: ").expect("every event is data")).collect()
}

fn check_events(server: &Server, path: &str, body: Value, expect: &[&str]) {
    let (status, text) = server.post(path, &body.to_string());
    assert_eq!(status, 200, "{text}");
    let events = events(&text);
    let created = serde_json::from_str::<Value>(events[0]).unwrap()["created"].clone();
    let expect: Vec<String> = expect.iter().map(|event| dated(event, &created)).collect();
    assert_eq!(events, expect);
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
            r#"{"id":"cmpl-t","object":"text_completion","created":CREATED,"model":"m","choices":[],"usage":{"prompt_tokens":2,"total_tokens":4,"completion_tokens":2}}"#,
            "[DONE]",
        ],
    );
}

#[test]
fn a_streamed_completion_shows_ids_where_asked() {
    let server = Server::start(Script::Echo);
    // The eos token ends the answer, is counted, and has no text.
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
    // 13 bytes of roles and newlines, two turns of special tokens, one character of content.
    check_events(
        &server,
        "/v1/chat/completions",
        body,
        &[
            r#"{"id":"chatcmpl-t","object":"chat.completion.chunk","created":CREATED,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null,"stop_reason":null,"token_ids":null}]}"#,
            r#"{"id":"chatcmpl-t","object":"chat.completion.chunk","created":CREATED,"model":"m","choices":[{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":null,"stop_reason":null,"token_ids":null}]}"#,
            r#"{"id":"chatcmpl-t","object":"chat.completion.chunk","created":CREATED,"model":"m","choices":[{"index":0,"delta":{"content":"ü"},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null}]}"#,
            r#"{"id":"chatcmpl-t","object":"chat.completion.chunk","created":CREATED,"model":"m","choices":[],"usage":{"prompt_tokens":20,"total_tokens":22,"completion_tokens":2}}"#,
            "[DONE]",
        ],
    );
}

#[test]
fn whole_answers() {
    let server = Server::start(Script::Echo);
    let (status, text) =
        server.post("/v1/completions", r#"{"prompt": ["hi"], "max_tokens": 3, "return_token_ids": true}"#);
    assert_eq!(status, 200, "{text}");
    let created = serde_json::from_str::<Value>(&text).unwrap()["created"].clone();
    assert_eq!(
        text,
        dated(
            r#"{"id":"cmpl-t","object":"text_completion","created":CREATED,"model":"m","choices":[{"index":0,"text":"hih","logprobs":null,"finish_reason":"length","stop_reason":null,"prompt_token_ids":[104,105],"token_ids":[104,105,104],"weight_versions":null}],"system_fingerprint":null,"usage":{"prompt_tokens":2,"total_tokens":5,"completion_tokens":3},"kv_transfer_params":null}"#,
            &created
        )
    );

    let server = Server::start(Script::Tokens(vec![104, EOS]));
    let (status, text) =
        server.post("/v1/chat/completions", r#"{"messages": [{"role": "user", "content": "a"}]}"#);
    assert_eq!(status, 200, "{text}");
    let created = serde_json::from_str::<Value>(&text).unwrap()["created"].clone();
    assert_eq!(
        text,
        dated(
            r#"{"id":"chatcmpl-t","object":"chat.completion","created":CREATED,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"h","refusal":null,"tool_calls":[]},"logprobs":null,"finish_reason":"stop","stop_reason":null,"token_ids":null}],"system_fingerprint":null,"usage":{"prompt_tokens":20,"total_tokens":22,"completion_tokens":2},"prompt_token_ids":null,"kv_transfer_params":null}"#,
            &created
        )
    );
}

#[test]
fn defaults_and_limits_of_max_tokens() {
    let server = Server::start(Script::Echo);
    let check = |path: &str, body: &str, expect: u64| {
        let (status, text) = server.post(path, body);
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
fn timings_come_where_they_are_asked_for() {
    let server = Server::start(Script::Echo);
    let (_, text) =
        server.post("/v1/completions", r#"{"prompt": "hi", "max_tokens": 3, "return_timings": true}"#);
    let timings = serde_json::from_str::<Value>(&text).unwrap()["timings"].clone();
    assert_eq!(
        (&timings["prompt_tokens"], &timings["handover_gigabytes_per_second"]),
        (&json!(2), &json!(2.0)),
        "{text}"
    );
    assert_eq!(timings["tokens_per_s"], json!(200.0), "{text}");
    for options in [Value::Null, json!({"include_usage": true})] {
        let body = json!({"prompt": "hi", "stream": true, "return_timings": true, "stream_options": options});
        let (_, text) = server.post("/v1/completions", &body.to_string());
        let events = events(&text);
        let with: Vec<usize> = (0..events.len()).filter(|n| events[*n].contains("\"timings\"")).collect();
        assert_eq!(with, [events.len() - 2], "{text}");
    }
}

#[test]
fn bad_requests_are_refused_by_name() {
    let server = Server::start(Script::Echo);
    let completion = |body: Value, status: u16, field: &str, words: &str| {
        server.refused("/v1/completions", &body.to_string(), status, field, words);
    };
    completion(json!({"max_tokens": 1}), 400, "prompt", "prompt is missing");
    completion(json!({"prompt": null}), 400, "prompt", "prompt is missing");
    completion(json!({"prompt": ""}), 400, "prompt", "at least one token");
    completion(json!({"prompt": []}), 400, "prompt", "at least one token");
    completion(json!({"prompt": 5}), 400, "prompt", "must be a string, a list of token ids, or a list of");
    completion(json!({"prompt": [1, -1]}), 400, "prompt[1]", "must be a token id, not -1");
    completion(json!({"prompt": ["a", ""]}), 400, "prompt[1]", "at least one token");
    completion(json!({"prompt": ["a", 5]}), 400, "prompt[1]", "not 5");
    completion(json!({"prompt": ["a", "b", "c"]}), 400, "prompt", "asks for 3 answers");
    completion(
        json!({"prompt": [1, 262]}),
        400,
        "prompt",
        "prompt[1] is token 262, and the vocabulary has 262 tokens",
    );
    completion(json!({"prompt": [4294967297u64]}), 400, "prompt", "token 4294967297");
    completion(json!({"prompt": "a", "model": "x"}), 404, "model", "model \"x\" does not exist");
    completion(json!({"prompt": "a", "max_tokens": 0}), 400, "max_tokens", "at least 1, not 0");
    completion(json!({"prompt": "a", "max_tokens": "1"}), 400, "max_tokens", "not \"1\"");
    completion(json!({"prompt": "a", "max_tokens": 64}), 400, "max_tokens", "ask for at most 63");
    completion(json!({"prompt": "a".repeat(64)}), 400, "prompt", "maximum context length is 64 tokens");
    completion(json!({"prompt": "a", "temperature": -1}), 400, "temperature", "at least 0, not -1");
    completion(json!({"prompt": "a", "top_k": -2}), 400, "top_k", "at least -1, not -2");
    completion(json!({"prompt": "a", "min_p": 1.5}), 400, "min_p", "from 0 to 1, not 1.5");
    completion(json!({"prompt": "a", "repetition_penalty": 0}), 400, "repetition_penalty", "above 0");
    completion(json!({"prompt": "a", "presence_penalty": 3}), 400, "presence_penalty", "from -2 to 2");
    completion(json!({"prompt": "a", "frequency_penalty": "1"}), 400, "frequency_penalty", "not \"1\"");
    completion(json!({"prompt": "a", "logit_bias": [1]}), 400, "logit_bias", "an object of token ids");
    completion(json!({"prompt": "a", "logit_bias": {"262": 1}}), 400, "logit_bias", "token \"262\"");
    completion(json!({"prompt": "a", "logit_bias": {"1": 101}}), 400, "logit_bias[1]", "from -100 to 100");
    completion(json!({"prompt": "a", "suffix": "b"}), 400, "suffix", "not supported yet; leave it out");
    completion(json!({"prompt": "a", "n": 0}), 400, "n", "at least 1, not 0");
    completion(json!({"prompt": "a", "n": 3}), 400, "n", "request.concurrency is 2; ask for fewer");
    completion(json!({"prompt": "a", "stop": vec!["a".repeat(1024); 5]}), 400, "stop", "5120 bytes in all");
    completion(
        json!({"prompt": "a", "stop": ["x", ""]}),
        400,
        "stop",
        "strings of 1 to 1024 bytes, not \"\"",
    );
    completion(json!({"prompt": "a", "stop_token_ids": [262]}), 400, "stop_token_ids", "not 262");
    completion(json!({"prompt": "a", "logprobs": 21}), 400, "logprobs", "from 0 to 20, not 21");
    completion(json!({"prompt": "a", "logprobs": true}), 400, "logprobs", "from 0 to 20, not true");
    completion(json!({"prompt": "a", "logprobs": 1, "echo": true}), 400, "logprobs", "leave out echo");
    completion(json!({"prompt": "a", "best_of": 2}), 400, "best_of", "set it to 1");
    completion(json!({"prompt": "a", "n": 2, "return_timings": true}), 400, "return_timings", "asks for 2");
    completion(json!({"prompt": "a", "top_p": 2}), 400, "top_p", "up to 1, not 2");
    completion(json!({"prompt": "a", "seed": "x"}), 400, "seed", "a whole number");
    completion(json!({"prompt": "a", "stream": 1}), 400, "stream", "true or false, not 1");
    let options = json!({"include_usage": true});
    completion(
        json!({"prompt": "a", "stream_options": options}),
        400,
        "stream_options",
        "needs stream: true",
    );
    completion(
        json!({"prompt": "a", "response_format": {"type": "json_object"}}),
        400,
        "response_format",
        "text",
    );

    let chat = |messages: Value, field: &str, words: &str| {
        let body = json!({"messages": messages}).to_string();
        server.refused("/v1/chat/completions", &body, 400, field, words);
    };
    chat(Value::Null, "messages", "messages is missing");
    chat(json!([]), "messages", "at least one message");
    chat(json!([{"content": "a"}]), "messages[0].role", "a role such as");
    chat(json!([{"role": "user", "content": 1}]), "messages[0].content", "a list of text parts, not 1");
    let image = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
    chat(json!([{"role": "user", "content": image}]), "messages[0].content", "text parts");

    server.refused("/v1/completions", "{", 400, "", "body is not JSON");
    server.refused("/v1/completions", "[]", 400, "", "must be a JSON object, not []");
    server.refused("/v1/none", "{}", 404, "", "path /v1/none does not exist");
    server.refused("/health", "{}", 405, "", "path /health allows GET, not POST");
    let large = " ".repeat(body::BODY_BYTES_MAX + 1);
    server.refused("/v1/completions", &large, 413, "", "larger than 8388608 bytes");
    // Nothing of this reached the actor, or holds a permit or memory.
    assert_eq!((server.admission.running(), server.memory.used()), (0, 0));
    assert!(server.streams.is_empty());
}

/// The choices of a whole answer.
fn choices(server: &Server, path: &str, body: Value) -> Value {
    let (status, text) = server.post(path, &body.to_string());
    assert_eq!(status, 200, "{text}");
    serde_json::from_str::<Value>(&text).unwrap()["choices"].clone()
}

#[test]
fn stop_strings_end_an_answer_early() {
    let server = Server::start(Script::Echo);
    let check = |fields: Value, text: &str, finish: &str, stop: Value, tokens: u64| {
        let mut body = json!({"prompt": "abcdef", "max_tokens": 5});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let (status, answer) = server.post("/v1/completions", &body.to_string());
        assert_eq!(status, 200, "{answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let choice = &answer["choices"][0];
        let found = (&choice["text"], &choice["finish_reason"], &choice["stop_reason"]);
        assert_eq!(found, (&json!(text), &json!(finish), &stop), "{fields}");
        assert_eq!(answer["usage"]["completion_tokens"], tokens, "{fields}");
        // The same in pieces.
        body["stream"] = json!(true);
        let (_, streamed) = server.post("/v1/completions", &body.to_string());
        let chunks: Vec<Value> =
            events(&streamed).iter().filter_map(|event| serde_json::from_str(event).ok()).collect();
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
fn whoever_computes_hears_of_a_stop() {
    let server = Server::start(Script::Hold(3));
    let body = json!({"prompt": "x", "max_tokens": 60, "stop": "aa", "return_timings": true});
    let (_, text) = server.post("/v1/completions", &body.to_string());
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["choices"][0]["stop_reason"], "aa");
    assert_eq!(answer["timings"]["completion_tokens"], 2, "what came after it is not counted");
    let request = server.accepted.recv_timeout(WAIT).unwrap();
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
    let (_, text) = server.post("/v1/chat/completions", &body.to_string());
    let chunks: Vec<Value> =
        events(&text).iter().filter_map(|event| serde_json::from_str(event).ok()).collect();
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
    assert_eq!(*usage, json!({"prompt_tokens": 20, "total_tokens": 24, "completion_tokens": 4}), "{text}");
    server.all_permits_return();
}

#[test]
fn probabilities_come_where_they_are_asked_for() {
    let server = Server::start(Script::Echo);
    let all = choices(&server, "/v1/completions", json!({"prompt": "ab", "max_tokens": 2, "logprobs": 1}));
    let expect = json!({"text_offset": [0, 1], "token_logprobs": [-0.5, -0.5], "tokens": ["a", "b"],
        "top_logprobs": [{"a": -0.5}, {"b": -0.5}]});
    assert_eq!(all[0]["logprobs"], expect);
    let body = json!({"prompt": "ab", "max_tokens": 2, "logprobs": 1, "stream": true});
    let (_, text) = server.post("/v1/completions", &body.to_string());
    let last: Value = serde_json::from_str(events(&text)[1]).unwrap();
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
    server.refused(path, &body, 400, "top_logprobs", "needs logprobs: true");
}

#[test]
fn harmless_fields_are_taken() {
    let server = Server::start(Script::Echo);
    let body = json!({"prompt": "a", "max_tokens": 1, "temperature": 0.0, "top_p": 0.9, "top_k": -1, "min_p": 0,
        "n": 1, "best_of": 1, "seed": 7, "stop": [], "logprobs": false, "echo": false, "logit_bias": {},
        "user": "u", "never_heard_of": {"a": 1}, "response_format": {"type": "text"}, "stream_options": null});
    let (status, text) = server.post("/v1/completions", &body.to_string());
    assert_eq!(status, 200, "{text}");
}

#[test]
fn content_types() {
    let server = Server::start(Script::Echo);
    for (content_type, expect) in [
        (Some("application/json; charset=utf-8"), 200),
        (None, 200),
        (Some("text/plain"), 415),
        (Some("application/x-www-form-urlencoded"), 415),
    ] {
        let (status, text) = server.post_as("/v1/completions", r#"{"prompt": "a"}"#, content_type);
        assert_eq!(status, expect, "{content_type:?} {text}");
    }
}

#[test]
fn refusals_and_early_failures_have_a_status() {
    let check = |script: Script, status: u16, words: &str| {
        let server = Server::start(script);
        for stream in [true, false] {
            let body = json!({"prompt": "a", "stream": stream}).to_string();
            server.refused("/v1/completions", &body, status, "", words);
        }
        assert!(server.streams.is_empty());
        assert!(server.aborts.try_recv().is_err(), "there was nothing to abort");
    };
    check(Script::Refuse(Refused::Busy), 503, "server is busy");
    check(Script::Refuse(Refused::ShuttingDown), 503, "shutting down");
    check(
        Script::Refuse(Refused::TooLarge { needed: 3, usable: 2 }),
        400,
        "need 3 pages of KV and a request may have 2",
    );
    // The client's time began before the request ran.
    check(Script::Fail(0, RequestError::Deadline { deadline_ms: 5 }), 504, "deadline of 600000 ms");
    check(Script::Fail(0, RequestError::Engine("x".into())), 500, "engine failed: x");
    check(Script::Fail(0, RequestError::Aborted), 503, "aborted");
}

#[test]
fn a_failure_in_the_midst_ends_the_stream_with_an_error() {
    let server = Server::start(Script::Fail(1, RequestError::Engine("x".into())));
    let (status, text) = server.post("/v1/completions", r#"{"prompt": "a", "stream": true}"#);
    assert_eq!(status, 200);
    let events = events(&text);
    assert_eq!(events.len(), 3, "{text}");
    assert_eq!(
        events[1],
        r#"{"error":{"message":"engine failed: x","type":"InternalServerError","param":null,"code":500}}"#
    );
    assert_eq!(events[2], "[DONE]");
}

#[test]
fn a_dropped_sink_is_a_failure_too() {
    let server = Server::start(Script::Forget);
    server.refused("/v1/completions", r#"{"prompt": "a"}"#, 503, "", "request was aborted");
}

#[test]
fn a_silent_decoder_is_given_up_and_told() {
    let limits = Limits { grace: Duration::from_millis(1), ..Limits::default() };
    let deadline = Duration::from_millis(1);
    let server = Server::start_with(Setup { deadline, limits, ..Setup::new(Script::Hold(0)) });
    for stream in [true, false] {
        let body = json!({"prompt": "a", "stream": stream}).to_string();
        server.refused("/v1/completions", &body, 504, "", "deadline of 1 ms");
        server.aborts.recv_timeout(WAIT).expect("the decoder hears of it");
    }
}

#[test]
fn a_full_house_answers_429() {
    let server = Server::start_with(Setup { queue: 0, ..Setup::new(Script::Hold(0)) });
    let clients: Vec<_> = (0..harness::PERMITS).map(|_| server.ask("")).collect();
    for _ in &clients {
        server.accepted.recv_timeout(WAIT).expect("the request arrives");
    }
    let response = server.send("/v1/completions", r#"{"prompt": "a"}"#, Some("application/json"));
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "1");
    drop(clients);
    server.all_permits_return();
    server.admission.close();
    server.refused("/v1/completions", r#"{"prompt": "a"}"#, 503, "", "shutting down");
}

#[test]
fn texts_become_tokens_and_back() {
    let server = Server::start(Script::Echo);
    let check = |path: &str, body: Value, expect: Value| {
        let (status, text) = server.post(path, &body.to_string());
        assert_eq!((status, serde_json::from_str::<Value>(&text).unwrap()), (200, expect), "{body}");
    };
    let tokens = json!({"count": 2, "max_model_len": 64, "tokens": [97, 260], "token_strs": null});
    check("/tokenize", json!({"model": "m", "prompt": "a he", "add_special_tokens": false}), tokens);
    let named = json!({"count": 1, "max_model_len": 64, "tokens": [258], "token_strs": ["he"]});
    check("/tokenize", json!({"prompt": "he", "return_token_strs": true}), named);
    check("/detokenize", json!({"tokens": [97, 260, EOS]}), json!({"prompt": "a he<|im_end|>"}));
    let (_, text) = server.post("/tokenize", r#"{"messages": [{"role": "user", "content": "a"}]}"#);
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["count"], 20, "{text}");
    server.refused("/tokenize", "{}", 400, "prompt", "prompt is missing");
    server.refused("/tokenize", r#"{"prompt": "a", "model": "x"}"#, 404, "model", "does not exist");
    server.refused("/detokenize", r#"{"tokens": [262]}"#, 400, "tokens", "tokens[0] is token 262");
    server.all_permits_return();
}

#[test]
fn what_probes_ask() {
    let server = Server::start(Script::Hold(0));
    assert_eq!(server.get("/ping"), (200, String::new()));
    assert_eq!(server.post("/ping", "").0, 200);
    assert_eq!(server.get("/version"), (200, format!(r#"{{"version":"{}"}}"#, env!("CARGO_PKG_VERSION"))));
    assert_eq!(server.get("/load"), (200, r#"{"server_load":0,"running":0,"waiting":0}"#.to_owned()));
    let client = server.ask("");
    server.accepted.recv_timeout(WAIT).expect("the request arrives");
    assert_eq!(server.get("/load"), (200, r#"{"server_load":1,"running":1,"waiting":0}"#.to_owned()));
    drop(client);
    *server.down.lock().unwrap() = Some("x".to_owned());
    assert_eq!(server.get("/ping").0, 503);
}

#[test]
fn one_model_is_shown_by_name() {
    let server = Server::start(Script::Echo);
    let (status, text) = server.get("/v1/models/m");
    assert_eq!((status, &serde_json::from_str::<Value>(&text).unwrap()["id"]), (200, &json!("m")));
    let (status, text) = server.get("/v1/models/org/other");
    assert_eq!(status, 404);
    assert!(text.contains("org/other"), "{text}");
}

#[test]
fn a_key_is_asked_for() {
    let server = Server::start_with(Setup { api_key: Some("k1".to_owned()), ..Setup::new(Script::Echo) });
    let ask = |key: Option<&str>| server.post_with_key("/v1/completions", r#"{"prompt": "a"}"#, key);
    for key in [None, Some("k2"), Some("k"), Some("")] {
        assert_eq!(ask(key), (401, r#"{"error":"Unauthorized"}"#.to_owned()), "{key:?}");
    }
    assert_eq!(ask(Some("k1")).0, 200);
    assert_eq!(server.get("/v1/models").0, 401);
    assert_eq!(server.get("/v1/none").0, 401);
    for open in ["/health", "/ping", "/version", "/load", "/metrics"] {
        assert_eq!(server.get(open).0, 200, "{open}");
    }
}

#[test]
fn metrics_are_text() {
    let server = Server::start(Script::Echo);
    assert_eq!(server.get("/metrics"), (200, "baton_pages 1\n".to_owned()));
}

#[test]
fn models_and_health() {
    let server = Server::start(Script::Echo);
    let (status, text) = server.get("/v1/models");
    let created = serde_json::from_str::<Value>(&text).unwrap()["data"][0]["created"].clone();
    assert_eq!(status, 200);
    assert_eq!(
        text,
        dated(
            r#"{"object":"list","data":[{"id":"m","object":"model","created":CREATED,"owned_by":"baton","root":"/m/m.gguf","parent":null,"max_model_len":64,"permission":[]}]}"#,
            &created
        )
    );
    let pid = std::process::id();
    let (status, text) = server.get("/health");
    assert_eq!(
        (status, text),
        (200, format!(r#"{{"status":"ok","role":"local","pid":{pid},"peers":0,"live_requests":0}}"#))
    );
    *server.down.lock().unwrap() = Some("engine stopped".to_owned());
    let (status, text) = server.get("/health");
    let expect = format!(
        r#"{{"status":"down","reason":"engine stopped","role":"local","pid":{pid},"peers":0,"live_requests":0}}"#
    );
    assert_eq!((status, text), (503, expect));
}

#[test]
fn a_port_in_use_names_the_key() {
    let taken = bind("frontend.port", "127.0.0.1", 0).unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = bind("http.port", "127.0.0.1", port).unwrap_err();
    let expect = format!("http port {port} on 127.0.0.1 is in use; stop the other process or set http.port");
    assert_eq!((error.to_string(), error.kind()), (expect, "in_use"));
    let error = bind("link.port", "192.0.2.1", 0).unwrap_err();
    assert!(error.to_string().starts_with("cannot listen on 192.0.2.1:0 (link.port): "), "{error}");
}

#[test]
fn accepted_sockets_send_at_once_and_notice_a_gone_client() {
    let check = |socket: SockRef<'_>| {
        assert!(socket.tcp_nodelay().unwrap(), "the second token of a kept connection would wait 40 ms");
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(30)));
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(10));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
    };
    let server = Server::start(Script::Echo);
    check(SockRef::from(&server.listener));
    // Accepted sockets inherit the options.
    let listener = bind("frontend.port", "127.0.0.1", 0).unwrap();
    prepare(&listener, &Limits::default()).unwrap();
    let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    check(SockRef::from(&accepted));
}
