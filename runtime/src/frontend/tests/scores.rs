//! Log probabilities of prompts: `prompt_logprobs`, and `echo` with `logprobs`.

use serde_json::{Value, json};

use super::super::model_text::testing::EOS;
use super::harness::{Script, Server, Setup};
use super::http::{WAIT, events};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn ask(server: &Server, path: &str, body: &Value) -> Value {
    let (status, text) = server.http.post(path, &body.to_string());
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn prompt_logprobs_have_vllms_format() {
    let server = Server::start(Script::Echo);
    let body = json!({"prompt": ["abc", "de"], "max_tokens": 1, "prompt_logprobs": 1});
    let answer = ask(&server, COMPLETIONS, &body);
    let z = json!({"logprob": -0.25, "rank": 1, "decoded_token": "z"});
    let expect = json!([
        null,
        {"98": {"logprob": -1.0, "rank": 2, "decoded_token": "b"}, "122": z},
        {"99": {"logprob": -2.0, "rank": 3, "decoded_token": "c"}, "122": z},
    ]);
    assert_eq!(answer["choices"][0]["prompt_logprobs"], expect);
    let expect = json!([null, {"101": {"logprob": -1.0, "rank": 2, "decoded_token": "e"}, "122": z}]);
    assert_eq!(answer["choices"][1]["prompt_logprobs"], expect);
    assert_eq!(
        (&answer["choices"][0]["text"], &answer["choices"][0]["logprobs"]),
        (&json!("a"), &Value::Null)
    );
    assert_eq!(server.accepted.recv_timeout(WAIT).unwrap().prompt_logprobs, Some(1));

    let body = json!({"prompt": "a", "max_tokens": 1, "prompt_logprobs": 0});
    assert_eq!(ask(&server, COMPLETIONS, &body)["choices"][0]["prompt_logprobs"], json!([null]));
    for field in [json!({}), json!({"prompt_logprobs": null}), json!({"prompt_logprobs": false})] {
        let mut body = json!({"prompt": "a", "max_tokens": 1});
        body.as_object_mut().unwrap().extend(field.as_object().unwrap().clone());
        assert_eq!(ask(&server, COMPLETIONS, &body)["choices"][0].get("prompt_logprobs"), None);
    }
}

#[test]
fn a_chat_has_prompt_logprobs_in_its_body() {
    let server = Server::start(Script::Tokens(vec![104, EOS]));
    let body = json!({"messages": [{"role": "user", "content": "a"}], "prompt_logprobs": 0, "n": 2});
    let answer = ask(&server, CHAT, &body);
    let listed = answer["prompt_logprobs"].as_array().unwrap();
    assert_eq!((listed.len(), &listed[0]), (20, &Value::Null));
    let last = listed[19].as_object().unwrap();
    assert_eq!(last.values().next().unwrap()["logprob"], json!(-19.0));
    assert!(listed[1..].iter().all(|place| place.as_object().unwrap().len() == 1), "{answer}");
    let mut streamed = body;
    streamed["stream"] = json!(true);
    server.http.refused(CHAT, &streamed.to_string(), 400, "prompt_logprobs", "leave out stream");
}

#[test]
fn echo_with_logprobs_covers_prompt_and_answer() {
    let server = Server::start(Script::Echo);
    let mut body = json!({"prompt": "ab", "max_tokens": 2, "echo": true, "logprobs": 1, "n": 2});
    let expect = json!({
        "text_offset": [0, 1, 2, 3],
        "token_logprobs": [null, -1.0, -0.5, -0.5],
        "tokens": ["a", "b", "a", "b"],
        "top_logprobs": [null, {"z": -0.25, "b": -1.0}, {"a": -0.5}, {"b": -0.5}],
    });
    let answer = ask(&server, COMPLETIONS, &body);
    for index in 0..2 {
        let choice = &answer["choices"][index];
        assert_eq!((&choice["text"], &choice["logprobs"]), (&json!("abab"), &expect));
    }
    assert_eq!(answer["usage"]["completion_tokens"], 4);
    // The list is longer than what `logprobs` asks for.
    body["prompt_logprobs"] = json!(3);
    let answer = ask(&server, COMPLETIONS, &body);
    assert_eq!(answer["choices"][0]["logprobs"], expect);
    assert_eq!(answer["choices"][0]["prompt_logprobs"][1].as_object().unwrap().len(), 4);

    // Streamed, the prompt comes with the first token.
    let body = json!({"prompt": "ab", "max_tokens": 2, "echo": true, "logprobs": 1, "stream": true});
    let (_, text) = server.http.post(COMPLETIONS, &body.to_string());
    let chunk = |n: usize| serde_json::from_str::<Value>(&events(&text)[n]).unwrap()["choices"][0].clone();
    let first = json!({
        "text_offset": [0, 1, 2],
        "token_logprobs": [null, -1.0, -0.5],
        "tokens": ["a", "b", "a"],
        "top_logprobs": [null, {"z": -0.25, "b": -1.0}, {"a": -0.5}],
    });
    assert_eq!((&chunk(0)["text"], &chunk(0)["logprobs"]), (&json!("aba"), &first));
    assert_eq!(chunk(1)["logprobs"]["text_offset"], json!([3]));
    assert_eq!(events(&text)[2], "[DONE]");

    let answer = ask(&server, COMPLETIONS, &json!({"prompt": "ab", "max_tokens": 1, "echo": true}));
    assert_eq!(
        (&answer["choices"][0]["text"], &answer["choices"][0]["logprobs"]),
        (&json!("aba"), &Value::Null)
    );
}

#[test]
fn echo_without_tokens_scores_the_prompt_alone() {
    let server = Server::start(Script::Tokens(vec![EOS]));
    let mut body =
        json!({"prompt": "ab", "max_tokens": 0, "echo": true, "logprobs": 0, "return_token_ids": true});
    let expect = json!({
        "text_offset": [0, 1],
        "token_logprobs": [null, -1.0],
        "tokens": ["a", "b"],
        "top_logprobs": [null, {"b": -1.0}],
    });
    let answer = ask(&server, COMPLETIONS, &body);
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["logprobs"]), (&json!("ab"), &expect));
    assert_eq!((&choice["finish_reason"], &choice["token_ids"]), (&json!("length"), &json!([])));
    assert_eq!(
        (&answer["usage"]["completion_tokens"], &answer["usage"]["total_tokens"]),
        (&json!(0), &json!(2))
    );
    assert_eq!(server.accepted.recv_timeout(WAIT).unwrap().max_tokens, 1, "the decoder samples at least one");

    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let (_, text) = server.http.post(COMPLETIONS, &body.to_string());
    let chunks: Vec<Value> =
        events(&text).iter().filter_map(|event| serde_json::from_str(event).ok()).collect();
    let choice = &chunks[0]["choices"][0];
    assert_eq!((&choice["text"], &choice["logprobs"]), (&json!("ab"), &expect));
    assert_eq!((&choice["finish_reason"], &choice["token_ids"]), (&json!("length"), &json!([])));
    assert_eq!((chunks.len(), &chunks[1]["usage"]["completion_tokens"]), (2, &json!(0)), "{text}");

    let one = json!({"prompt": "a", "max_tokens": 0, "echo": true, "logprobs": 1});
    let answer = ask(&server, COMPLETIONS, &one);
    assert_eq!(answer["choices"][0]["logprobs"]["token_logprobs"], json!([null]));
    server.all_permits_return();
}

#[test]
fn log_probabilities_of_prompts_are_limited_and_count_as_memory() {
    let setup = Setup { context_tokens: 1 << 20, input_bytes: 32 << 20, ..Setup::new(Script::Hold(0)) };
    let server = Server::start_with(setup);
    let prompt = vec![97; 20_000];
    let body = json!({"prompt": prompt, "prompt_logprobs": 20});
    let message = "asks for 420000 log probabilities of prompts (20000 prompt tokens in all answers, 21 for each token)";
    server.http.refused(COMPLETIONS, &body.to_string(), 400, "prompt_logprobs", message);
    let body = json!({"prompt": prompt, "echo": true, "logprobs": 6, "n": 2});
    server.http.refused(COMPLETIONS, &body.to_string(), 400, "logprobs", "at most 262144 are allowed");
    assert_eq!(server.shared.memory.used(), 0);

    // 20,000 places of four entries each.
    let client = server.http.ask(r#", "echo": true, "logprobs": 3"#);
    server.next_request();
    let small = server.shared.memory.used();
    drop(client);
    server.all_permits_return();
    let body = json!({"prompt": prompt, "prompt_logprobs": 3, "max_tokens": 9}).to_string();
    let address = server.listener.local_addr().unwrap();
    let waits = std::thread::spawn(move || super::http::HttpClient::new(address).post(COMPLETIONS, &body));
    let request = server.next_request();
    assert!(server.shared.memory.used() > small + 80_000 * 256, "{}", server.shared.memory.used());
    server.finish(request);
    assert_eq!(waits.join().unwrap().0, 200);
    server.until_used(0..=0);
}

#[test]
fn the_log_probabilities_of_prompts_are_written_on_the_thread_pool() {
    let server = Server::start(Script::Echo);
    let stopped = server.shared.memory.stop_long_work(2);
    let post = |body: Value| {
        let address = server.listener.local_addr().unwrap();
        std::thread::spawn(move || super::http::HttpClient::new(address).post(COMPLETIONS, &body.to_string()))
    };
    let scored = [
        json!({"prompt": "abc", "max_tokens": 1, "prompt_logprobs": 1}),
        json!({"prompt": "abc", "max_tokens": 1, "echo": true, "logprobs": 1, "stream": true}),
    ];
    let mut answers = Vec::new();
    for body in scored {
        answers.push(post(body));
        server.next_request();
        let (status, text) = post(json!({"prompt": "abc", "max_tokens": 9, "stream": true})).join().unwrap();
        assert_eq!((status, events(&text).len()), (200, 10));
        server.next_request();
        assert!(answers.iter().all(|answer| !answer.is_finished()), "no thread of the pool is free");
    }
    drop(stopped);
    answers.into_iter().for_each(|answer| assert_eq!(answer.join().unwrap().0, 200));
}
