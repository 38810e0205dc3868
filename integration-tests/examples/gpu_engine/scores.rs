//! Checks log probabilities of prompt tokens against those that the host computes from the logits of every place, and measures their cost.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use engine::{
    Chunk, CudaEngine, Engine, Logprobs, PageTable, Sample, Sampling, Score, TokenSource, logprobs,
};
use integration_tests::statistics::median;

use super::{pages, run};

/// The most probable tokens that are asked for.
const TOP: u32 = Sampling::LOGPROBS_MAX;

/// The chunk of a prompt from `start` to before `end`. If `scored`, it asks for the log probabilities of the tokens that follow its tokens.
fn chunk<'a>(
    prompt: &'a [u32],
    pages: &'a PageTable,
    (start, end): (usize, usize),
    scored: bool,
) -> Chunk<'a> {
    let score = Score { targets: &prompt[start + 1..(end + 1).min(prompt.len())], top: TOP };
    Chunk {
        sequence: 1,
        tokens: &prompt[start..end],
        source: TokenSource::Prompt,
        start: start as u32,
        pages,
        sample: Some(Sample::greedy()),
        score: scored.then_some(score),
    }
}

/// The log probabilities of a prompt that is computed in chunks of the given lengths and a last one, next to another sequence.
fn scores(
    gpu: &mut CudaEngine,
    prompt: &[u32],
    tables: &[PageTable; 2],
    cuts: &[usize],
) -> Result<Vec<Logprobs>> {
    let (mut start, mut found) = (0, Vec::new());
    for length in cuts.iter().copied().chain([prompt.len()]) {
        let end = (start + length).min(prompt.len());
        if start == end {
            break;
        }
        let of_prompt = chunk(prompt, &tables[0], (start, end), true);
        let other = Chunk { sequence: 2, ..chunk(&prompt[..5], &tables[1], (0, 5), false) };
        let output = run(gpu, &[other, of_prompt])?;
        let targets = output.scores.into_iter().next().context("the step has no scores")?.targets;
        found.extend(targets);
        start = end;
    }
    Ok(found)
}

/// Whether two results are the same tokens with the same log probabilities, up to the rounding of a 32-bit number.
pub(super) fn agree(found: &Logprobs, right: &Logprobs) -> bool {
    let near = |a: f32, b: f32| (a - b).abs() <= 2.0 * f32::EPSILON * b.abs().max(1.0);
    let pairs = || found.top.iter().zip(&right.top);
    found.rank == right.rank
        && found.top.len() == right.top.len()
        && near(found.sampled, right.sampled)
        && pairs().all(|((a, x), (b, y))| a == b && near(*x, *y))
}

/// Compares the log probabilities of a prompt of `length` tokens with those of the logits at each place. Returns how many were compared.
pub(super) fn check(gpu: &mut CudaEngine, length: usize) -> Result<usize> {
    let (vocabulary, page) = (gpu.model().vocabulary, gpu.kv().layout().page_tokens as usize);
    let prompt: Vec<u32> =
        (0..length as u32).map(|n| n.wrapping_mul(2_654_435_761).wrapping_add(7) % vocabulary).collect();
    let count = length.div_ceil(page) as u32;
    let tables = [pages(0, count), pages(2 * count, 1)];
    let mut right = Vec::new();
    for end in 1..length {
        run(gpu, &[chunk(&prompt, &tables[0], (0, end), false)])?;
        right.push(logprobs(&gpu.logits(0)?, prompt[end], TOP));
    }
    // One chunk is longer than the rows that the engine scores at a time.
    for cuts in [&[][..], &[1, 7, 64, 3]] {
        let found = scores(gpu, &prompt, &tables, cuts)?;
        ensure!(found.len() == right.len(), "{} places have scores, not {}", found.len(), right.len());
        for (place, (found, right)) in found.iter().zip(&right).enumerate() {
            ensure!(agree(found, right), "place {place}: the GPU gives {found:?}, the host {right:?}");
        }
    }
    Ok(right.len())
}

/// Prints how much longer a chunk of a prompt takes with log probabilities.
pub(super) fn cost(gpu: &mut CudaEngine, length: usize) -> Result<()> {
    let page = gpu.kv().layout().page_tokens as usize;
    let (prompt, table) = (super::prompt(length), pages(0, length.div_ceil(page) as u32));
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..6 {
        for (times, scored) in times.iter_mut().zip([false, true]) {
            let began = Instant::now();
            run(gpu, &[chunk(&prompt, &table, (0, length), scored)])?;
            times.push(began.elapsed().as_secs_f64());
        }
    }
    let [plain, scored] = times.map(|times| median(times[1..].iter().copied()));
    println!(
        "log probabilities of a chunk of {length} tokens: {:.1} ms, {:.2} times as long as without",
        scored * 1e3,
        scored / plain
    );
    Ok(())
}
