//! KV pages in FP8: a pair and one process give the same tokens, and peers with other pages are refused.

use anyhow::{Context, Result};
use integration_tests::client::{ask_all, complete, get_text};
use integration_tests::fixtures::{Prompt, prompts};
use integration_tests::process::{Pair, start_local, start_receiver, start_sender};

const TOKENS: u32 = 24;
const AT_ONCE: usize = 6;
const FP8: &str = "engine.kv_dtype=fp8";

/// The labels of the metric that describes the pages.
fn cache_info(address: &str) -> Result<String> {
    let text = get_text(address, "/metrics")?;
    let line = text.lines().find(|line| line.starts_with("vllm:cache_config_info{"));
    Ok(line.context("the metrics describe the pages")?.to_owned())
}

/// Compares the tokens of a pair with those of one process. Both have these settings.
fn check_pair(settings: &[&str]) -> Result<()> {
    let prompts: Vec<Prompt> = prompts()?.into_iter().step_by(3).collect();
    let (local, alone) = start_local(settings)?;
    let from_one = ask_all(&prompts, AT_ONCE, |prompt| complete(&alone, &prompt.input(), TOKENS))?;
    assert!(cache_info(&alone)?.contains(r#"cache_dtype="fp8""#));
    drop(local);
    let pair = Pair::start(settings)?;
    let from_pair = ask_all(&prompts, AT_ONCE, |prompt| complete(&pair.frontend, &prompt.input(), TOKENS))?;
    let mut like_f32 = 0;
    for ((prompt, alone), answer) in prompts.iter().zip(&from_one).zip(&from_pair) {
        assert_eq!(answer.ids, alone.ids, "{}: the pair differs from one process", prompt.name);
        assert_eq!(answer.timings["disaggregated"], true, "{}: {}", prompt.name, answer.timings);
        let expect = prompt.prompt_ids.len().div_ceil(16) as u64;
        assert_eq!(answer.timings["pages"], expect, "{}: {}", prompt.name, answer.timings);
        like_f32 += answer.ids.iter().zip(&prompt.ids).take_while(|(ours, theirs)| ours == theirs).count();
    }
    // Rounded numbers change some tokens. Wrong ones change nearly all.
    let all = prompts.len() * TOKENS as usize;
    println!(
        "{like_f32} of {all} tokens come before the first one that differs from transformers in float32"
    );
    assert!(like_f32 * 4 > all, "{like_f32} of {all}");
    Ok(())
}

#[test]
fn a_pair_with_pages_in_fp8_gives_the_tokens_of_one_process() -> Result<()> {
    check_pair(&[FP8])
}

#[test]
fn a_pair_with_weights_rows_and_pages_in_fp8_gives_the_tokens_of_one_process() -> Result<()> {
    check_pair(&[FP8, "engine.quantization=fp8"])
}

#[test]
fn a_peer_whose_pages_have_another_format_is_refused() -> Result<()> {
    let check = |of_receiver: &[&str], of_sender: &[&str], words: &[&str]| {
        let receiver = start_receiver(of_receiver)?;
        let mut sender = start_sender(&receiver, of_sender)?;
        let status = sender.wait()?;
        let log = sender.log();
        let line = log.lines().last().context("the sender logs why it ends")?;
        println!("{line}");
        assert!(!status.success() && line.starts_with("error: "), "{log}");
        assert!(words.iter().all(|word| line.contains(word)), "{line:?} does not contain {words:?}");
        anyhow::Ok(())
    };
    let remedy = "give both sides the same engine.kv_dtype";
    check(&[FP8], &[], &["peer's KV element type is f32 and ours is fp8", remedy])?;
    // The page length differs too, and its default depends on the format. The format is named.
    let bf16 = ["engine.kv_dtype=bf16", "engine.page_tokens=32"];
    check(&bf16, &[FP8], &["peer's KV element type is fp8 and ours is bf16", remedy])
}
