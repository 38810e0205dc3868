//! transformers in float32, one process, a pair with a hand-over, and two nodes give the same tokens.

use anyhow::{Result, ensure};
use integration_tests::client::{Answer, ask_all, complete};
use integration_tests::fixtures::{Prompt, prompts, qwen_prompts};
use integration_tests::process::{Nodes, Pair, start_local};

const TOKENS: u32 = 32;
/// Requests at a time. A decode step has a row of each.
const AT_ONCE: usize = 8;

/// Compares with the reference up to its first near tie.
fn check(prompt: &Prompt, answer: &Answer, from: &str) -> Result<()> {
    let name = &prompt.name;
    ensure!(
        answer.prompt_ids == prompt.prompt_ids,
        "{name}: other prompt ids than transformers: {:?}",
        answer.prompt_ids
    );
    ensure!(answer.ids.len() == TOKENS as usize, "{name}: {} tokens came from {from}", answer.ids.len());
    let stable = prompt.stable_tokens();
    ensure!(
        answer.ids[..stable] == prompt.ids[..stable],
        "{name}: {from} gave\n{:?}\nand transformers\n{:?} (compared up to token {stable})",
        answer.ids,
        prompt.ids
    );
    Ok(())
}

#[test]
fn a_pair_and_one_process_give_the_tokens_of_transformers() -> Result<()> {
    let prompts = prompts()?;
    assert_eq!(prompts.len(), 60);
    let (local, alone) = start_local(&[])?;
    let from_one = ask_all(&prompts, AT_ONCE, |prompt| complete(&alone, &prompt.input(), TOKENS))?;
    drop(local);
    let pair = Pair::start(&[])?;
    let from_pair = ask_all(&prompts, AT_ONCE, |prompt| complete(&pair.frontend, &prompt.input(), TOKENS))?;
    let (mut exact, mut pages) = (0, 0);
    for ((prompt, alone), answer) in prompts.iter().zip(&from_one).zip(&from_pair) {
        check(prompt, alone, "one process")?;
        check(prompt, answer, "the pair")?;
        assert_eq!(answer.ids, alone.ids, "{}: the pair differs from one process", prompt.name);
        assert_eq!(answer.timings["disaggregated"], true, "{}: {}", prompt.name, answer.timings);
        assert_eq!(answer.timings["prefill_pid"], pair.sender.pid(), "{}", prompt.name);
        assert_eq!(answer.timings["decode_pid"], pair.receiver.pid(), "{}", prompt.name);
        let expect = prompt.prompt_ids.len().div_ceil(16) as u64;
        assert_eq!(answer.timings["pages"], expect, "{}: {}", prompt.name, answer.timings);
        pages += expect;
        exact += usize::from(answer.ids == prompt.ids);
        for tie in &prompt.near_ties {
            println!("near tie: {} at new token {} (gap {:.1e})", prompt.name, tie.position, tie.gap);
        }
    }
    println!(
        "{exact} of {} prompts equal transformers for all {TOKENS} tokens; {pages} pages handed over",
        prompts.len()
    );
    Ok(())
}

/// Each node decodes half of the prompts while it prefills the other half for its peer.
#[test]
fn two_nodes_prefill_for_each_other_and_give_the_tokens_of_transformers() -> Result<()> {
    let prompts = prompts()?;
    let nodes = Nodes::start(&[])?;
    let ask = |(n, prompt): &(usize, Prompt)| complete(&nodes.frontends[n % 2], &prompt.input(), TOKENS);
    let numbered: Vec<(usize, Prompt)> = prompts.into_iter().enumerate().collect();
    let answers = ask_all(&numbered, AT_ONCE, ask)?;
    for ((n, prompt), answer) in numbered.iter().zip(&answers) {
        check(prompt, answer, "a node")?;
        assert_eq!(answer.timings["disaggregated"], true, "{}: {}", prompt.name, answer.timings);
        assert_eq!(answer.timings["decode_pid"], nodes.nodes[n % 2].pid(), "{}", prompt.name);
        assert_eq!(answer.timings["prefill_pid"], nodes.nodes[(n + 1) % 2].pid(), "{}", prompt.name);
    }
    Ok(())
}

#[test]
fn a_ring_of_one_page_transfers_a_prompt_of_800_tokens() -> Result<()> {
    let prompt = prompts()?.into_iter().max_by_key(|prompt| prompt.prompt_ids.len()).expect("there are 60");
    assert_eq!(prompt.prompt_ids.len(), 800);
    let pair = Pair::start(&["ring.bytes=1"])?;
    let answer = complete(&pair.frontend, &prompt.input(), TOKENS)?;
    check(&prompt, &answer, "the pair")?;
    assert_eq!(answer.timings["pages"], 50, "{}", answer.timings);
    println!("ring of 1 page: {}", answer.timings);
    Ok(())
}

/// A real Qwen2: biases, tokenizer, chat template, and the types of a Q4_K_M file.
#[test]
fn qwen_gives_the_tokens_of_transformers() -> Result<()> {
    let cache = common::cache_folder::locate(|name| std::env::var_os(name)).map_err(anyhow::Error::msg)?;
    let model = cache.join("models/Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf");
    if !model.is_file() {
        println!("skipped: {} does not exist; `cargo xtask fetch --qwen` fetches it", model.display());
        return Ok(());
    }
    let prompts = qwen_prompts()?;
    assert_eq!(prompts.len(), 20);
    let setting = format!("model={}", model.display());
    let (_local, address) = start_local(&[&setting, "engine.kv_bytes=256MiB"])?;
    let answers = ask_all(&prompts, AT_ONCE, |prompt| complete(&address, &prompt.input(), TOKENS))?;
    let mut exact = 0;
    for (prompt, answer) in prompts.iter().zip(&answers) {
        check(prompt, answer, "one process")?;
        exact += usize::from(answer.ids == prompt.ids);
        for tie in &prompt.near_ties {
            println!("near tie: {} at new token {} (gap {:.1e})", prompt.name, tie.position, tie.gap);
        }
    }
    println!("{exact} of {} prompts equal transformers for all {TOKENS} tokens", prompts.len());
    Ok(())
}
