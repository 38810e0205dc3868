//! With the same seed, one process and a pair sample the same tokens.

use anyhow::{Context, Result, ensure};
use integration_tests::client::post;
use integration_tests::process::Pair;
use serde_json::{Value, json};

const TOKENS: u32 = 24;

/// The token ids of the answer to a prompt with these settings.
fn ask(address: &str, prompt: &str, settings: &Value) -> Result<Vec<u32>> {
    let mut body =
        json!({"prompt": prompt, "max_tokens": TOKENS, "ignore_eos": true, "return_token_ids": true});
    let fields = body.as_object_mut().context("the body is not an object")?;
    fields.extend(settings.as_object().context("the settings are not an object")?.clone());
    let (status, answer) = post(address, "/v1/completions", &body)?;
    ensure!(status == 200, "{settings}: {status} {answer}");
    Ok(serde_json::from_value(answer["choices"][0]["token_ids"].clone())?)
}

#[test]
fn a_seed_gives_the_same_tokens_in_every_process() -> Result<()> {
    let pair = Pair::start(&[])?;
    let local = pair.receiver.address("http.port")?;
    let mut answers = Vec::new();
    for (n, settings) in [
        json!({"temperature": 0}),
        json!({"temperature": 0.8, "seed": 1}),
        json!({"temperature": 0.8, "seed": 2}),
        json!({"seed": 1, "top_p": 0.9, "top_k": 40, "min_p": 0.01}),
        json!({"seed": 1, "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2}),
        // Only these two tokens remain, each with a probability of one half.
        json!({"seed": 3, "logit_bias": {"100": 100, "200": 100}, "top_k": 2, "temperature": 2}),
    ]
    .into_iter()
    .enumerate()
    {
        // Each prompt is new, so that its pages are transferred.
        let prompt =
            format!("Story number {n}. The old lighthouse keeper climbed the stairs once more and saw");
        let handed_over = ask(&pair.frontend, &prompt, &settings)?;
        assert_eq!(handed_over.len(), TOKENS as usize);
        assert_eq!(ask(&local, &prompt, &settings)?, handed_over, "{settings}");
        answers.push(handed_over);
    }
    let prompt = "Story number 1. The old lighthouse keeper climbed the stairs once more and saw";
    let other_seed = ask(&pair.frontend, prompt, &json!({"temperature": 0.8, "seed": 2}))?;
    assert_ne!(answers[1], other_seed);
    let unseeded = || ask(&pair.frontend, prompt, &json!({"temperature": 1}));
    assert_ne!(unseeded()?, unseeded()?, "without a seed, the server draws one");
    let biased = answers.last().context("there are no answers")?;
    assert!(biased.iter().all(|token| [100, 200].contains(token)), "{biased:?}");
    assert!(biased.contains(&100) && biased.contains(&200), "{biased:?}");
    Ok(())
}
