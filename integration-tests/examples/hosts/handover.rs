//! A long prompt, some of whose pages have landed and others have not when its prefiller stops.

use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration_tests::client::{complete, metrics, post_with};
use integration_tests::deadline::STATE_WITHIN;
use serde_json::{Value, json};

/// Tokens of the prompt: 24 pages, which the prefiller computes in three chunks.
const PROMPT: u32 = 384;
/// Tokens of the answer.
const TOKENS: u32 = 4;

/// The prompt and its answer.
#[derive(Clone)]
pub(crate) struct Handover {
    prompt: Value,
    expect: Vec<u32>,
}

/// The request for the prompt.
pub(crate) struct Begun {
    answer: JoinHandle<Result<Vec<u32>>>,
    expect: Vec<u32>,
}

impl Handover {
    /// Makes the prompt, and has the node at `address` prefill and decode it.
    pub(crate) fn new(address: &str) -> Result<Self> {
        let ids: Vec<u32> = (0..PROMPT).map(|token| 1000 + token * 11 % 20_000).collect();
        let prompt = json!(ids);
        let expect = complete(address, &prompt, TOKENS)?.ids;
        Ok(Self { prompt, expect })
    }

    /// Sends the prompt to the node `decodes`, which has the node `prefills` prefill it. Returns when the first pages have landed and others
    /// have not.
    pub(crate) fn begin(&self, decodes: &str, prefills: &str) -> Result<Begun> {
        let until = Instant::now() + STATE_WITHIN;
        loop {
            let adopted = || metrics(decodes)?.get("baton_pages_adopted_total");
            let before = adopted()?;
            let answer = self.ask(decodes, prefills);
            while !answer.is_finished() {
                // Prompts of the other clients have at most four pages.
                let expected = metrics(decodes)?.get("baton_pages_reserved")?;
                if adopted()? > before + 4 && expected > 4 {
                    return Ok(Begun { answer, expect: self.expect.clone() });
                }
                sleep(Duration::from_millis(5));
            }
            let ids = answer.join().ok().context("the client has panicked")??;
            ensure!(ids == self.expect, "{ids:?} instead of {:?}", self.expect);
            if Instant::now() > until {
                bail!("no page of a prompt that {prefills} prefills for {decodes} was seen to be expected");
            }
        }
    }

    fn ask(&self, decodes: &str, prefills: &str) -> JoinHandle<Result<Vec<u32>>> {
        let body = json!({
            "prompt": self.prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": true, "return_token_ids": true,
        });
        let (decodes, prefills) = (decodes.to_owned(), prefills.to_owned());
        spawn(move || {
            let headers = [("x-prefiller-host-port", prefills.as_str())];
            let (status, answer) = post_with(&decodes, "/v1/completions", &headers, &body)?;
            ensure!(status == 200, "{decodes} answered {status}: {answer}");
            Ok(serde_json::from_value(answer["choices"][0]["token_ids"].clone())?)
        })
    }
}

impl Begun {
    /// Waits for the answer, which another node than the prefiller completes. True if it is right.
    pub(crate) fn finish(self) -> Result<bool> {
        let ids = self.answer.join().ok().context("the client has panicked")??;
        Ok(ids == self.expect)
    }
}
