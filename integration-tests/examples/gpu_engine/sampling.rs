//! Whether the GPU draws what the host draws from the same logits: it must, always.

use anyhow::{Result, ensure};
use engine::{Chunk, CudaEngine, Engine, PageId, Sample, Sampling, Source, choose};

use super::run;

/// Rows of a step.
const ROWS: usize = 48;

/// Settings with every limit alone and beside others, loose and tight. The highest temperature makes thousands of tokens equally probable.
fn settings() -> Vec<Sampling> {
    let mut all = vec![Sampling::GREEDY];
    for temperature in [0.05, 0.7, 1.0, 2.0, 1e6] {
        for top_k in [0, 1, 2, 50, 10_000, u32::MAX] {
            for top_p in [1.0, 0.999, 0.9, 0.3, 1e-6] {
                for min_p in [0.0, 0.02, 1.0] {
                    let seed = all.len() as u64 * 0x1_2345_6789;
                    all.push(Sampling { temperature, top_k, top_p, min_p, seed, ..Sampling::GREEDY });
                }
            }
        }
    }
    all
}

/// Draws with all settings, `times` times each, in steps of many rows and in one beside a prompt; gives how many tokens were compared.
pub(super) fn check(gpu: &mut CudaEngine, times: u64) -> Result<usize> {
    let mut settings: Vec<Sampling> = (0..times)
        .flat_map(|time| settings().into_iter().map(move |how| Sampling { seed: how.seed + time, ..how }))
        .collect();
    let vocabulary = gpu.model().vocabulary;
    let pages: Vec<PageId> = (0..=ROWS as u32).map(PageId).collect();
    let mut compared = 0;
    while !settings.is_empty() {
        let some: Vec<Sampling> = settings.drain(..settings.len().min(ROWS)).collect();
        let tokens: Vec<u32> =
            (0..some.len() as u32).map(|n| (n * 7919 + compared as u32) % vocabulary).collect();
        let row = |n: usize| Chunk {
            sequence: n as u64,
            tokens: &tokens[n..=n],
            source: Source::Sampled,
            start: 0,
            pages: &pages[n..=n],
            sample: Some(Sample { how: &some[n], tokens: &[], prompt: 0 }),
        };
        let mut batch: Vec<Chunk<'_>> = (0..some.len()).map(row).collect();
        let is_last = settings.is_empty();
        if is_last {
            // Prompts are laid out before decode rows.
            let (source, page) = (Source::Prompt, &pages[ROWS..]);
            batch.push(Chunk { sequence: ROWS as u64, source, pages: page, ..row(0) });
            batch.rotate_right(1);
        }
        let output = run(gpu, &batch)?;
        for (n, (chunk, sampled)) in batch.iter().zip(&output.tokens).enumerate() {
            let sample = chunk.sample.unwrap_or(Sample::greedy());
            let right = choose(&mut gpu.logits(n)?, sample, 1);
            ensure!(
                sampled.token == right,
                "the GPU draws {} and the host {} with {:?}",
                sampled.token.id,
                right.id,
                sample.how
            );
            compared += 1;
        }
    }
    Ok(compared)
}
