//! Continues a prompt of token ids greedily and prints the speed: `greedy MODEL 1,9690,198 COUNT [THREADS]`.
//!
//! The environment variable `CHUNK` sets the tokens of a prefill chunk (default 512).

use std::time::Instant;

use anyhow::{Context, Result};
use engine::{Chunk, Engine, EngineConfig, PageId, PageTable, Sample, TokenSource};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let argument = |index: usize| arguments.get(index).context("usage: greedy MODEL IDS COUNT [THREADS]");
    let ids = argument(2)?.split(',').map(|id| id.trim().parse()).collect::<Result<_, _>>();
    let prompt: Vec<u32> = ids.context("IDS must be token ids separated by commas")?;
    let count: usize = argument(3)?.parse().context("COUNT must be a number")?;
    let threads = arguments.get(4).map_or(Ok(2), |text| text.parse()).context("THREADS must be a number")?;
    let chunk_tokens: usize =
        std::env::var("CHUNK").map_or(Ok(512), |text| text.parse()).context("CHUNK must be a number")?;

    let begin = Instant::now();
    let config = EngineConfig {
        model: argument(1)?.into(),
        threads,
        kv_bytes: 512 << 20,
        page_tokens: Some(16),
        step_tokens: chunk_tokens as u32,
        device: engine::ComputeDevice::Cpu,
        load_format: engine::LoadFormat::Auto,
        quantization: engine::Quantization::None,
        kv_dtype: engine::KvCacheDtype::Auto,
        digests: None,
    };
    let mut engine = engine::open(&config)?;
    println!("load {:.2?}", begin.elapsed());

    // Reversed, because the pages of a busy pool are not in order.
    let pages: PageTable = (0..engine.kv().pages()).rev().map(PageId).collect();
    let mut position = 0;
    let mut next = None;
    let begin = Instant::now();
    for tokens in prompt.chunks(chunk_tokens) {
        next = Some(step(&mut *engine, tokens, position, &pages)?);
        position += tokens.len() as u32;
    }
    report("prefill", prompt.len(), begin);

    let mut tokens = Vec::new();
    let begin = Instant::now();
    while let Some(token) = next.take() {
        tokens.push(token);
        if tokens.len() == count || engine.model().eos_tokens.contains(&token) {
            break;
        }
        next = Some(step(&mut *engine, &[token], position, &pages)?);
        position += 1;
    }
    report("decode", tokens.len() - 1, begin);
    println!("{tokens:?}");
    Ok(())
}

fn step(engine: &mut dyn Engine, tokens: &[u32], start: u32, pages: &PageTable) -> Result<u32> {
    let source = if start == 0 { TokenSource::Prompt } else { TokenSource::Sampled };
    let mut step = engine.submit(&[Chunk {
        sequence: 1,
        tokens,
        source,
        start,
        pages,
        sample: Some(Sample::greedy()),
        score: None,
    }])?;
    let output = engine.poll(&mut step)?.context("the CPU backend computes in submit")?;
    Ok(output.tokens[0].token.id)
}

fn report(what: &str, tokens: usize, begin: Instant) {
    let seconds = begin.elapsed().as_secs_f64();
    println!("{what} {tokens} tokens in {seconds:.3} s = {:.1} tokens/s", tokens as f64 / seconds);
}
