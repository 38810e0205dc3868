//! Requests with a common prefix share pages, and the tokens do not change: one request after the other and 32 at once, with a pool that has
//! room for all and with a pool that preempts some.

use anyhow::{Context, Result, ensure};
use integration_tests::client::{Metrics, ask_all, complete, metrics, post};
use integration_tests::deadline::STATE_WITHIN;
use integration_tests::fixtures::{Prompt, prompts};
use integration_tests::process::{Pair, until};
use serde_json::json;

const TOKENS: u32 = 32;

/// Prompts of up to 200 tokens whose answers have no near tie.
fn prompts_without_ties() -> Result<Vec<Prompt>> {
    let mut prompts = prompts()?;
    prompts.retain(|prompt| prompt.near_ties.is_empty() && prompt.prompt_ids.len() <= 200);
    ensure!(prompts.len() >= 16, "{} prompts", prompts.len());
    Ok(prompts)
}

fn check(address: &str, prompt: &Prompt) -> Result<()> {
    let answer = complete(address, &prompt.input(), TOKENS)?;
    ensure!(answer.ids == prompt.ids, "{}: {:?}, {}", prompt.name, answer.ids, answer.timings);
    Ok(())
}

/// Asks for 32 prompts, all at the same moment.
fn check_at_once(address: &str, prompts: &[Prompt]) -> Result<()> {
    let places: Vec<usize> = (0..32).map(|n| n * 7 % prompts.len()).collect();
    ask_all(&places, places.len(), |place| check(address, &prompts[*place])).map(drop)
}

fn count(metrics: &Metrics, name: &str) -> Result<u64> {
    metrics.get(name).with_context(|| format!("{metrics}"))
}

#[test]
fn shared_pages_change_no_token() -> Result<()> {
    let prompts = prompts_without_ties()?;
    let pair = Pair::start(&["engine.prefix_cache=true"])?;
    let resident = || count(&metrics(&pair.frontend)?, "baton_pages_resident_total");
    prompts.iter().try_for_each(|prompt| check(&pair.frontend, prompt))?;
    let first = resident()?;
    ask_all(&prompts, 8, |prompt| check(&pair.frontend, prompt))?;
    let full_pages: usize = prompts.iter().map(|prompt| (prompt.prompt_ids.len() - 1) / 16).sum();
    assert_eq!(resident()? - first, full_pages as u64, "every full page of a prompt is found again");
    check_at_once(&pair.frontend, &prompts)?;
    let sender = pair.sender.address("http.port")?;
    assert!(count(&metrics(&sender)?, "baton_pages_cached")? > 0, "the sender keeps computed pages");
    Ok(())
}

/// The sender keeps the pages of a salt as well as the receiver does, and `usage` counts what either of them did not compute.
#[test]
fn usage_counts_cached_tokens_of_the_same_salt_only() -> Result<()> {
    let pair = Pair::start(&["engine.prefix_cache=true"])?;
    let prompt: Vec<u32> = (100..200).collect();
    let cached = |address: &str, salt: &str| {
        let body = json!({"prompt": prompt, "max_tokens": 2, "cache_salt": salt});
        let (status, answer) = post(address, "/v1/completions", &body)?;
        ensure!(status == 200, "{answer}");
        let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
        cached.with_context(|| answer.to_string())
    };
    let (frontend, sender) = (&pair.frontend, pair.sender.address("http.port")?);
    assert_eq!([cached(frontend, "a")?, cached(frontend, "a")?], [0, 96], "the receiver has six pages");
    assert_eq!(cached(frontend, "b")?, 0);
    assert_eq!([cached(&sender, "c")?, cached(frontend, "c")?], [0, 96], "the sender has six pages");
    Ok(())
}

#[test]
fn chunk_sizes_change_no_token() -> Result<()> {
    let prompts = prompts_without_ties()?;
    for (chunk, cache) in [("16", "false"), ("512", "true")] {
        let sets = [format!("engine.prefill_chunk_tokens={chunk}"), format!("engine.prefix_cache={cache}")];
        let pair = Pair::start(&[&sets[0], &sets[1]])?;
        check_at_once(&pair.frontend, &prompts).with_context(|| format!("in chunks of {chunk}"))?;
    }
    Ok(())
}

#[test]
fn preempted_requests_resume_with_the_same_tokens() -> Result<()> {
    let prompts = prompts_without_ties()?;
    // Six requests of up to 200 tokens that grow by 300 have 31 pages each, of which they share 11. The pool of 85 pages holds three of them.
    let pair = Pair::start(&["engine.prefix_cache=true", "ring.bytes=3MiB", "engine.kv_bytes=60MiB"])?;
    let frontend = &*pair.frontend;
    let longest =
        prompts.iter().max_by_key(|prompt| prompt.prompt_ids.len()).context("there are no prompts")?;
    let local = pair.receiver.address("http.port")?;
    let expect = complete(&local, &longest.input(), 300)?.ids;
    ensure!(expect[..TOKENS as usize] == longest.ids[..], "one process alone gives other tokens");
    for answer in ask_all(&[longest; 6], 6, |prompt| complete(frontend, &prompt.input(), 300))? {
        ensure!(answer.ids == expect, "the pair gives other tokens: {}", answer.timings);
    }
    let after = metrics(frontend)?;
    assert!(count(&after, "baton_preemptions_total")? > 0, "{after}");
    // A client has its last token slightly before its pages are free.
    until("every page is free", STATE_WITHIN, || Ok(count(&metrics(frontend)?, "baton_pages_live")? == 0))?;
    Ok(())
}
