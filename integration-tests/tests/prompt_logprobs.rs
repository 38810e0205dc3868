//! Log probabilities of prompts: a pair and one process give the same numbers, and these are the numbers that single tokens have.

use anyhow::{Context, Result, ensure};
use integration_tests::client::post;
use integration_tests::process::Pair;
use serde_json::{Value, json};

const COMPLETIONS: &str = "/v1/completions";

/// Longer than several pages of 16 tokens.
const PROMPT: &str = "The harbour master counted the boats twice, wrote 47 into his book, and asked for more coffee. It was \
    colder than yesterday: the ropes were stiff with ice, and nobody wanted to be the first to leave. At noon a ship from \
    Bergen came in with oranges, two passengers and a letter that had been on its way for eleven years.";

fn ask(address: &str, path: &str, body: &Value) -> Result<Value> {
    let (status, answer) = post(address, path, body)?;
    ensure!(status == 200, "{body}: {status} {answer}");
    Ok(answer)
}

/// A completion of the prompt with its log probabilities in both formats.
fn scored(address: &str) -> Result<Value> {
    let body = json!({"prompt": PROMPT, "max_tokens": 3, "temperature": 0, "echo": true, "logprobs": 2, "prompt_logprobs": 5,
        "return_token_ids": true, "return_timings": true});
    ask(address, COMPLETIONS, &body)
}

/// Compares the numbers at `place` with the log probabilities of a request for one token after the prompt's first `place` tokens. The bias
/// makes the request sample the prompt's own token. Log probabilities do not contain the bias.
fn check_place(address: &str, choice: &Value, ids: &[u32], place: usize) -> Result<()> {
    let own = ids[place].to_string();
    let body = json!({"prompt": ids[..place], "max_tokens": 1, "temperature": 0, "logprobs": 5, "logit_bias": {&own: 100}});
    let single = ask(address, COMPLETIONS, &body)?["choices"][0]["logprobs"].clone();
    let listed = &choice["prompt_logprobs"][place];
    ensure!(single["tokens"][0] == listed[&own]["decoded_token"], "place {place}: {single} {listed}");
    ensure!(single["token_logprobs"][0] == listed[&own]["logprob"], "place {place}: {single} {listed}");
    ensure!(
        single["token_logprobs"][0] == choice["logprobs"]["token_logprobs"][place],
        "place {place}: {single}"
    );
    let listed = listed.as_object().context("no object")?;
    ensure!((5..=6).contains(&listed.len()), "place {place}: {listed:?}");
    for token in listed.values() {
        let text = token["decoded_token"].as_str().context("no text")?;
        ensure!(single["top_logprobs"][0][text] == token["logprob"], "place {place}: {single} {token}");
    }
    Ok(())
}

#[test]
fn prompts_have_the_log_probabilities_of_single_tokens() -> Result<()> {
    let pair = Pair::start(&["engine.prefix_cache=true"])?;
    let local = pair.receiver.address("http.port")?;
    let from_pair = scored(&pair.frontend)?;
    let timings = &from_pair["timings"];
    assert_eq!(timings["prefill_pid"], pair.sender.pid(), "{timings}");
    let choice = &from_pair["choices"][0];
    let ids: Vec<u32> = serde_json::from_value(choice["prompt_token_ids"].clone())?;
    assert!(ids.len() > 64, "{} tokens", ids.len());
    let listed = choice["prompt_logprobs"].as_array().context("no list")?;
    assert_eq!((listed.len(), &listed[0]), (ids.len(), &Value::Null));
    let echoed = &choice["logprobs"];
    assert_eq!(echoed["tokens"].as_array().context("no list")?.len(), ids.len() + 3);
    assert_eq!(echoed["token_logprobs"][0], Value::Null);
    // Every third place, so that all positions in a page occur.
    for place in (1..ids.len()).step_by(3) {
        check_place(&local, choice, &ids, place)?;
    }
    // Now both processes have the prompt in their prefix caches.
    for address in [&pair.frontend, &local, &local] {
        let again = scored(address)?;
        let again = &again["choices"][0];
        assert_eq!(again["prompt_logprobs"], choice["prompt_logprobs"], "{address}");
        assert_eq!((&again["logprobs"], &again["text"]), (echoed, &choice["text"]), "{address}");
    }

    let body = json!({"prompt": PROMPT, "max_tokens": 0, "echo": true, "logprobs": 2});
    let alone = ask(&pair.frontend, COMPLETIONS, &body)?;
    assert_eq!(
        (&alone["choices"][0]["text"], &alone["usage"]["completion_tokens"]),
        (&json!(PROMPT), &json!(0))
    );
    let lists = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];
    for list in lists {
        let expect = &echoed[list].as_array().context("no list")?[..ids.len()];
        assert_eq!(alone["choices"][0]["logprobs"][list].as_array().context("no list")?, expect, "{list}");
    }

    let body = json!({"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1});
    let [chat, chat_alone] =
        [ask(&pair.frontend, "/v1/chat/completions", &body)?, ask(&local, "/v1/chat/completions", &body)?];
    assert_eq!(chat["prompt_logprobs"], chat_alone["prompt_logprobs"]);
    assert_eq!(json!(chat["prompt_logprobs"].as_array().map(Vec::len)), chat["usage"]["prompt_tokens"]);
    Ok(())
}
