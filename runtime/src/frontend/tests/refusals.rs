//! Requests that are refused or fail: the status, the field and the sentence.

use std::time::Duration;

use actors::counters::Counters;
use actors::request::{Refused, RequestError};
use common::metrics::MetricsText;
use serde_json::{Value, json};

use super::super::{AnswerCounts, Limits, body};
use super::harness::{PERMITS, Script, Server, Setup};
use super::http::{JSON, WAIT, events, read};

/// A refused value: fields of the body besides the prompt, the field that the error names, and words of its sentence.
type Refusal = (Value, &'static str, &'static str);

/// Asks for completions of "a" with these fields. Each must be refused with 400.
fn check_refusals(refusals: &[Refusal]) {
    let server = Server::start(Script::Echo);
    for (fields, field, words) in refusals {
        let mut body = json!({"prompt": "a"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        server.http.refused("/v1/completions", &body.to_string(), 400, field, words);
    }
    check_nothing_is_held(&server);
}

/// No request reached the actor or holds a permit or memory.
fn check_nothing_is_held(server: &Server) {
    assert_eq!((server.shared.admission.running(), server.shared.memory.used()), (0, 0));
    assert!(server.shared.streams.is_empty());
    assert!(server.accepted.try_recv().is_err());
}

#[test]
fn bad_prompts_are_refused() {
    check_refusals(&[
        (json!({"prompt": null}), "prompt", "prompt is missing"),
        (json!({"prompt": ""}), "prompt", "at least one token"),
        (json!({"prompt": []}), "prompt", "at least one token"),
        (json!({"prompt": 5}), "prompt", "must be a string, a list of token ids, or a list of"),
        (json!({"prompt": [1, -1]}), "prompt[1]", "must be a token id, not -1"),
        (json!({"prompt": ["a", ""]}), "prompt[1]", "at least one token"),
        (json!({"prompt": ["a", 5]}), "prompt[1]", "not 5"),
        (json!({"prompt": ["a", "b", "c"]}), "prompt", "asks for 3 answers"),
        (json!({"prompt": [1, 262]}), "prompt", "prompt[1] is token 262, and the vocabulary has 262 tokens"),
        (json!({"prompt": [4294967297u64]}), "prompt", "token 4294967297"),
        (json!({"prompt": "a".repeat(64)}), "prompt", "maximum context length is 64 tokens"),
    ]);
    let server = Server::start(Script::Echo);
    server.http.refused("/v1/completions", r#"{"max_tokens": 1}"#, 400, "prompt", "prompt is missing");
    let other_model = r#"{"prompt": "a", "model": "x"}"#;
    server.http.refused("/v1/completions", other_model, 404, "model", "model \"x\" does not exist");
}

#[test]
fn bad_sampling_fields_are_refused() {
    check_refusals(&[
        (json!({"temperature": -1}), "temperature", "at least 0, not -1"),
        (json!({"top_p": 2}), "top_p", "up to 1, not 2"),
        (json!({"top_k": -2}), "top_k", "at least -1, not -2"),
        (json!({"min_p": 1.5}), "min_p", "from 0 to 1, not 1.5"),
        (json!({"seed": "x"}), "seed", "a whole number"),
        (json!({"repetition_penalty": 0}), "repetition_penalty", "above 0"),
        (json!({"presence_penalty": 3}), "presence_penalty", "from -2 to 2"),
        (json!({"frequency_penalty": "1"}), "frequency_penalty", "not \"1\""),
        (json!({"logit_bias": [1]}), "logit_bias", "an object of token ids"),
        (json!({"logit_bias": {"262": 1}}), "logit_bias", "token \"262\""),
        (json!({"logit_bias": {"1": 101}}), "logit_bias[1]", "from -100 to 100"),
        (json!({"logprobs": 21}), "logprobs", "from 0 to 20, not 21"),
        (json!({"logprobs": true}), "logprobs", "from 0 to 20, not true"),
        (json!({"prompt_logprobs": 21}), "prompt_logprobs", "from 0 to 20, not 21"),
        (json!({"prompt_logprobs": -1}), "prompt_logprobs", "from 0 to 20, not -1"),
        (json!({"prompt_logprobs": true}), "prompt_logprobs", "from 0 to 20, not true"),
        (json!({"prompt_logprobs": 0, "stream": true}), "prompt_logprobs", "not available with stream: true"),
    ]);
}

#[test]
fn bad_limits_and_options_are_refused() {
    let usage = json!({"include_usage": true});
    check_refusals(&[
        (json!({"max_tokens": 0}), "max_tokens", "at least 1, not 0"),
        (json!({"max_tokens": 0, "prompt_logprobs": 1}), "max_tokens", "at least 1, not 0"),
        (json!({"max_tokens": "1"}), "max_tokens", "not \"1\""),
        (json!({"max_tokens": 64}), "max_tokens", "ask for at most 63"),
        (json!({"n": 0}), "n", "at least 1, not 0"),
        (json!({"n": 3}), "n", "request.concurrency is 2; ask for fewer"),
        (json!({"n": 2, "return_timings": true}), "return_timings", "asks for 2"),
        (json!({"best_of": 2}), "best_of", "set it to 1"),
        (json!({"cache_salt": ""}), "cache_salt", "must not be empty"),
        (json!({"cache_salt": 5}), "cache_salt", "a string, not 5"),
        (json!({"suffix": "b"}), "suffix", "not supported yet; leave it out"),
        (json!({"stop": vec!["a".repeat(1024); 5]}), "stop", "5120 bytes in all"),
        (json!({"stop": ["x", ""]}), "stop", "strings of 1 to 1024 bytes, not \"\""),
        (json!({"stop_token_ids": [262]}), "stop_token_ids", "not 262"),
        (json!({"stream": 1}), "stream", "true or false, not 1"),
        (json!({"stream_options": usage}), "stream_options", "needs stream: true"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type", "json_object or json_schema"),
    ]);
}

#[test]
fn bad_messages_are_refused() {
    let server = Server::start(Script::Echo);
    let image = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
    for (messages, field, words) in [
        (Value::Null, "messages", "messages is missing"),
        (json!([]), "messages", "at least one message"),
        (json!([{"content": "a"}]), "messages[0].role", "a role such as"),
        (json!([{"role": "user", "content": 1}]), "messages[0].content", "a list of text parts, not 1"),
        (json!([{"role": "user", "content": image}]), "messages[0].content", "text parts"),
    ] {
        let body = json!({"messages": messages}).to_string();
        server.http.refused("/v1/chat/completions", &body, 400, field, words);
    }
    check_nothing_is_held(&server);
}

#[test]
fn bad_bodies_and_paths_are_refused() {
    let server = Server::start(Script::Echo);
    server.http.refused("/v1/completions", "{", 400, "", "body is not JSON");
    server.http.refused("/v1/completions", "[]", 400, "", "must be a JSON object, not []");
    server.http.refused("/v1/none", "{}", 404, "", "path /v1/none does not exist");
    server.http.refused("/health", "{}", 405, "", "path /health allows GET, not POST");
    let large = " ".repeat(body::BODY_BYTES_MAX + 1);
    server.http.refused("/v1/completions", &large, 413, "", "larger than 8388608 bytes");
    check_nothing_is_held(&server);
}

#[test]
fn bodies_of_other_content_types_are_refused() {
    let server = Server::start(Script::Echo);
    let check = |headers: &[(&str, &str)], expect: u16| {
        let (status, text) = read(server.http.send("/v1/completions", r#"{"prompt": "a"}"#, headers));
        assert_eq!(status, expect, "{headers:?} {text}");
    };
    check(&[("content-type", "application/json; charset=utf-8")], 200);
    check(&[], 200);
    check(&[("content-type", "text/plain")], 415);
    check(&[("content-type", "application/x-www-form-urlencoded")], 415);
}

#[test]
fn refusals_and_early_failures_have_a_status() {
    let check = |script: Script, status: u16, words: &str| {
        let is_refused = matches!(script, Script::Refuse(_));
        let server = Server::start(script);
        for stream in [true, false] {
            let body = json!({"prompt": "a", "stream": stream}).to_string();
            server.http.refused("/v1/completions", &body, status, "", words);
        }
        assert!(server.shared.streams.is_empty());
        assert!(server.aborts.try_recv().is_err(), "there was nothing to abort");
        let mut page = MetricsText::default();
        let load = AnswerCounts { running: 0, waiting: 0 };
        server.shared.observed.write(&mut page, &Counters::default(), load);
        let count = if is_refused && status == 503 { 2 } else { 0 };
        let line = format!("\nbaton_requests_turned_away_total{{status=\"503\"}} {count}\n");
        assert!(page.into_string().contains(&line), "{words}: not {line}");
    };
    check(Script::Refuse(Refused::Busy), 503, "server is busy");
    check(Script::Refuse(Refused::ShuttingDown), 503, "server is draining");
    check(Script::Refuse(Refused::NoPrefiller), 503, "no sender can prefill the prompt now");
    check(Script::Refuse(Refused::TooLargeToSend), 400, "send a shorter one");
    check(
        Script::Refuse(Refused::TooLarge { needed: 3, usable: 2 }),
        400,
        "need 3 pages of KV and a request may use 2",
    );
    // The client's deadline counts from the arrival of the request.
    check(Script::Fail(0, RequestError::Deadline { deadline_ms: 5 }), 504, "deadline of 600000 ms");
    check(Script::Fail(0, RequestError::Engine("x".into())), 500, "engine failed: x");
    check(Script::Fail(0, RequestError::Aborted), 503, "aborted");
}

#[test]
fn a_failure_after_the_first_token_is_an_event() {
    let server = Server::start(Script::Fail(1, RequestError::Engine("x".into())));
    let (status, text) = server.http.post("/v1/completions", r#"{"prompt": "a", "stream": true}"#);
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
fn a_dropped_sink_is_a_failure() {
    let server = Server::start(Script::Forget);
    server.http.refused("/v1/completions", r#"{"prompt": "a"}"#, 503, "", "request was aborted");
}

#[test]
fn the_frontend_gives_up_on_a_silent_decoder_and_tells_it() {
    let limits = Limits { grace: Duration::from_millis(1), ..Limits::default() };
    let deadline = Duration::from_millis(1);
    let server = Server::start_with(Setup { deadline, limits, ..Setup::new(Script::Hold(0)) });
    for stream in [true, false] {
        let body = json!({"prompt": "a", "stream": stream}).to_string();
        server.http.refused("/v1/completions", &body, 504, "", "deadline of 1 ms");
        server.aborts.recv_timeout(WAIT).expect("the decoder is told");
    }
}

#[test]
fn a_full_queue_answers_429() {
    let server = Server::start_with(Setup { queue: 0, ..Setup::new(Script::Hold(0)) });
    let clients: Vec<_> = (0..PERMITS).map(|_| server.http.ask("")).collect();
    for _ in &clients {
        server.next_request();
    }
    let response = server.http.send("/v1/completions", r#"{"prompt": "a"}"#, &[JSON]);
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "1");
    drop(clients);
    server.all_permits_return();
    server.shared.admission.close();
    server.http.refused("/v1/completions", r#"{"prompt": "a"}"#, 503, "", "server is draining");
}
