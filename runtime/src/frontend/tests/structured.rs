//! Structured output: the grammars that reach the proxy, and grammars that cannot be compiled.

use std::time::Duration;

use actors::grammar::GrammarSource;
use serde_json::json;

use super::harness::{Script, Server, Setup};

#[test]
fn every_answer_gets_the_grammar_of_its_request() {
    let server = Server::start(Script::Echo);
    let schema = json!({"type": "object", "properties": {"b": {}, "a": {}}});
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}});
    let body = json!({"prompt": "a", "n": 2, "response_format": format}).to_string();
    assert_eq!(server.http.post("/v1/completions", &body).0, 200);
    let messages = json!([{"role": "user", "content": "a"}]);
    let chat = json!({"messages": messages, "response_format": format}).to_string();
    assert_eq!(server.http.post("/v1/chat/completions", &chat).0, 200);
    assert_eq!(server.http.post("/v1/completions", r#"{"prompt": "a"}"#).0, 200);
    let grammars = server.shared.grammars.lock().unwrap();
    let sources: Vec<_> =
        grammars.iter().map(|grammar| grammar.as_ref().map(|it| (**it.source()).clone())).collect();
    // The properties keep their order.
    let source = Some(GrammarSource::JsonSchema(schema.to_string()));
    assert_eq!(sources, [source.clone(), source.clone(), source, None]);
    assert!(schema.to_string().find("\"b\"") < schema.to_string().find("\"a\""));
}

/// As in vLLM, the other settings of an answer apply besides its grammar.
#[test]
fn a_grammar_combines_with_the_other_settings() {
    let server = Server::start(Script::Tokens(vec![97, 98]));
    for fields in [
        json!({"ignore_eos": true}),
        json!({"min_tokens": 0}),
        json!({"echo": true}),
        json!({"stop": "b"}),
        json!({"stop_token_ids": [98]}),
        json!({"logit_bias": {"97": -100}}),
        json!({"stream": true}),
        json!({"repetition_penalty": 1.5, "logprobs": 2}),
    ] {
        let mut body = json!({"prompt": "a", "max_tokens": 4, "guided_regex": "[ab]+"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let (status, text) = server.http.post("/v1/completions", &body.to_string());
        assert_eq!(status, 200, "{fields}: {text}");
        let grammar = server.shared.grammars.lock().unwrap().pop().unwrap();
        assert_eq!(grammar.unwrap().source().text(), "[ab]+", "{fields}");
    }
}

#[test]
fn a_grammar_that_cannot_be_compiled_is_refused_and_costs_its_request_only() {
    let server = Server::start(Script::Echo);
    for (regex, status, words) in [
        ("bad", 400, "guided_regex cannot be used: it is bad"),
        ("busy", 503, "all threads compile"),
        ("panic", 500, "the grammar library failed on this grammar: on purpose"),
    ] {
        for stream in [true, false] {
            let body = json!({"prompt": "a", "guided_regex": regex, "stream": stream}).to_string();
            server.http.refused("/v1/completions", &body, status, "guided_regex", words);
        }
        server.all_permits_return();
        server.until_used(0..=0);
        assert_eq!(server.http.post("/v1/completions", r#"{"prompt": "a", "guided_regex": "a"}"#).0, 200);
    }
}

#[test]
fn a_slow_compilation_costs_its_request_the_deadline_and_delays_no_other() {
    let deadline = Duration::from_secs(2);
    let server = Server::start_with(Setup { deadline, ..Setup::new(Script::Echo) });
    let mut slow = server.http.ask(r#", "guided_regex": "slow""#);
    assert_eq!(server.http.post("/v1/completions", r#"{"prompt": "a", "guided_regex": "a"}"#).0, 200);
    assert_eq!(server.http.post("/v1/completions", r#"{"prompt": "a"}"#).0, 200);
    let response = slow.until("HTTP/1.1 ");
    assert!(response.starts_with("HTTP/1.1 504"), "{response}");
}
