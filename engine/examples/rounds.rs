//! Measures prefill and decode in rounds: `rounds MODEL [THREADS]`.
//!
//! Each line of the standard input is a round: prompts separated by semicolons, each of token ids separated by commas. The program
//! computes the prompts one after the other, at most 512 tokens a step, then decodes 64 tokens of all of them at once. It prints
//! the tokens per second of both parts in one line. It computes nothing while it waits for the next line, so another engine can
//! be measured in turns.

use std::io::{BufRead, Write};
use std::time::Instant;

use anyhow::{Context, Result};
use engine::{Chunk, Engine, EngineConfig, PageId, PageTable, Sample, TokenSource};

const DECODED: usize = 64;
const STEP_TOKENS: usize = 512;
const PAGE_TOKENS: usize = 16;

/// A sequence: its pages, its last token, and the number of its tokens whose keys and values are computed.
struct Sequence {
    pages: PageTable,
    last: u32,
    computed: usize,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let model = arguments.get(1).context("usage: rounds MODEL [THREADS]")?;
    let threads = arguments.get(2).map_or(Ok(2), |text| text.parse()).context("THREADS must be a number")?;
    let mut engine = engine::open(&EngineConfig {
        model: model.into(),
        threads,
        kv_bytes: 512 << 20,
        page_tokens: Some(PAGE_TOKENS as u32),
        step_tokens: STEP_TOKENS as u32,
        device: engine::ComputeDevice::Cpu,
        load_format: engine::LoadFormat::Auto,
        quantization: engine::Quantization::None,
        kv_dtype: engine::KvCacheDtype::Auto,
        digests: None,
    })?;
    for line in std::io::stdin().lock().lines() {
        let prompts: Vec<Vec<u32>> = line?.split(';').map(ids).collect::<Result<_>>()?;
        let (prefill, decode) = round(&mut *engine, &prompts)?;
        println!("{prefill:.2} {decode:.2}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn ids(text: &str) -> Result<Vec<u32>> {
    let ids = text.split(',').map(|id| id.trim().parse()).collect::<Result<_, _>>();
    ids.context("a prompt must be token ids separated by commas")
}

/// Returns the tokens per second of the prompts, and of the answers.
fn round(engine: &mut dyn Engine, prompts: &[Vec<u32>]) -> Result<(f64, f64)> {
    // Reversed, because the pages of a busy pool are not in order.
    let mut free = (0..engine.kv().pages()).rev().map(PageId);
    let mut sequences = Vec::new();
    let began = Instant::now();
    for prompt in prompts {
        let count = (prompt.len() + DECODED).div_ceil(PAGE_TOKENS);
        let mut sequence = Sequence { pages: free.by_ref().take(count).collect(), last: 0, computed: 0 };
        for tokens in prompt.chunks(STEP_TOKENS) {
            let chunk = sequence.chunk(0, tokens, TokenSource::Prompt);
            sequence.last = step(engine, &[chunk])?[0];
            sequence.computed += tokens.len();
        }
        sequences.push(sequence);
    }
    let prefilled = began.elapsed().as_secs_f64();
    let began = Instant::now();
    for _ in 0..DECODED {
        let lasts: Vec<[u32; 1]> = sequences.iter().map(|sequence| [sequence.last]).collect();
        let rows = sequences.iter().zip(&lasts).enumerate();
        let batch: Vec<_> =
            rows.map(|(index, (row, last))| row.chunk(index, last, TokenSource::Sampled)).collect();
        let tokens = step(engine, &batch)?;
        for (sequence, token) in sequences.iter_mut().zip(tokens) {
            sequence.last = token;
            sequence.computed += 1;
        }
    }
    let tokens: usize = prompts.iter().map(Vec::len).sum();
    let decoded = (prompts.len() * DECODED) as f64;
    Ok((tokens as f64 / prefilled, decoded / began.elapsed().as_secs_f64()))
}

impl Sequence {
    fn chunk<'a>(&'a self, index: usize, tokens: &'a [u32], source: TokenSource) -> Chunk<'a> {
        Chunk {
            sequence: index as u64,
            tokens,
            source,
            start: self.computed as u32,
            pages: &self.pages,
            sample: Some(Sample::greedy()),
            score: None,
        }
    }
}

/// Runs a step, and returns the sampled token of each row.
fn step(engine: &mut dyn Engine, batch: &[Chunk<'_>]) -> Result<Vec<u32>> {
    let mut step = engine.submit(batch)?;
    let output = engine.poll(&mut step)?.context("the CPU backend computes in submit")?;
    Ok(output.tokens.iter().map(|sampled| sampled.token.id).collect())
}
