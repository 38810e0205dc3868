//! Checks that the logits of a row are bit-identical whatever else is in the batch.

use anyhow::{Result, ensure};
use engine::{Chunk, CudaEngine, Engine, PageId, PageTable, Sample, TokenSource};

use super::run;

/// A sequence and its results alone in a batch.
struct Known {
    prompt: Vec<u32>,
    /// The token sampled after the prompt.
    token: [u32; 1],
    /// Logits after the prompt, and after that token.
    prefilled: Vec<u32>,
    decoded: Vec<u32>,
    /// Pages for the steps with other sequences.
    pages: PageTable,
}

impl Known {
    fn chunk(&self, sequence: usize, range: std::ops::Range<usize>) -> Chunk<'_> {
        Chunk {
            sequence: sequence as u64,
            tokens: &self.prompt[range.clone()],
            source: TokenSource::Prompt,
            start: range.start as u32,
            pages: &self.pages,
            sample: (range.end == self.prompt.len()).then(Sample::greedy),
            score: None,
        }
    }

    fn row(&self, sequence: usize) -> Chunk<'_> {
        Chunk {
            sequence: sequence as u64,
            tokens: &self.token,
            source: TokenSource::Sampled,
            start: self.prompt.len() as u32,
            pages: &self.pages,
            sample: Some(Sample::greedy()),
            score: None,
        }
    }
}

/// Pseudo-random numbers (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % most
    }
}

/// Computes prompts of up to `longest` tokens of `count` sequences and one more token of each: first alone, then in other chunks together with
/// other sequences, then as decode rows of steps of many sizes, with and without a prompt. Returns how many rows were compared.
///
/// # Errors
/// A row [`Differs`], or the engine fails.
pub(super) fn check(gpu: &mut CudaEngine, count: usize, longest: usize) -> Result<usize> {
    let mut random = Random(88_172_645_463_325_252);
    let known = compute_alone(gpu, &mut random, count, longest)?;
    ensure!(known.len() > 8, "the pool has room for {} sequences", known.len());
    Ok(check_chunks(gpu, &mut random, &known, longest)? + check_decode_rows(gpu, &mut random, &known)?)
}

/// Computes sequences one at a time, as many of `count` as the pool has room for.
fn compute_alone(
    gpu: &mut CudaEngine,
    random: &mut Random,
    count: usize,
    longest: usize,
) -> Result<Vec<Known>> {
    let page_tokens = gpu.kv().layout().page_tokens as usize;
    let vocabulary = gpu.model().vocabulary as usize;
    // Sequences that run alone use the same pages.
    let each = longest / page_tokens + 1;
    let alone: PageTable = (0..each as u32).map(PageId).collect();
    let mut free: Vec<PageId> = (each as u32..gpu.kv().pages()).rev().map(PageId).collect();
    let mut known = Vec::new();
    while known.len() < count {
        // Short and long prompts are equally frequent.
        let most = longest >> random.below(4);
        let prompt: Vec<u32> = (0..=random.below(most)).map(|_| random.below(vocabulary) as u32).collect();
        let needed = prompt.len() / page_tokens + 1;
        if free.len() < needed {
            break;
        }
        // The pages are not contiguous.
        let pages = (0..needed).map(|_| free.swap_remove(random.below(free.len()))).collect();
        let mut one = Known { prompt, token: [0], prefilled: Vec::new(), decoded: Vec::new(), pages };
        let output = run(gpu, &[Chunk { pages: &alone, ..one.chunk(0, 0..one.prompt.len()) }])?;
        one.token = [output.tokens[0].token.id];
        one.prefilled = bits(gpu, 0)?;
        run(gpu, &[Chunk { pages: &alone, ..one.row(0) }])?;
        one.decoded = bits(gpu, 0)?;
        known.push(one);
    }
    Ok(known)
}

/// Computes the prompts again in chunks together with other sequences.
fn check_chunks(gpu: &mut CudaEngine, random: &mut Random, known: &[Known], longest: usize) -> Result<usize> {
    let mut compared = 0;
    let limit = gpu.limits().tokens as usize;
    let mut done = vec![0; known.len()];
    while done.iter().zip(known).any(|(done, one)| *done < one.prompt.len()) {
        // Some batches have a few tokens of every sequence, so that one multiprocessor has tiles of several sequences.
        let everyone = random.below(4) == 0;
        let (mut room, most) =
            if everyone { (limit, 4) } else { (limit.min(1 + random.below(longest)), longest / 2) };
        let mut batch = Vec::new();
        for (index, one) in known.iter().enumerate() {
            let left = one.prompt.len() - done[index];
            let take = left.min(1 + random.below(most)).min(room);
            if take > 0 && (everyone || random.below(3) == 0) {
                batch.push(one.chunk(index, done[index]..done[index] + take));
                (done[index], room) = (done[index] + take, room - take);
            }
        }
        let output = run(gpu, &batch)?;
        for (row, sampled) in output.tokens.iter().enumerate() {
            let one = &known[sampled.sequence as usize];
            same(&bits(gpu, row)?, &one.prefilled, || {
                let chunks: Vec<_> = batch.iter().map(|chunk| (chunk.start, chunk.tokens.len())).collect();
                format!(
                    "a prompt of {} tokens, in row {row} of chunks that start at and have {chunks:?}",
                    one.prompt.len()
                )
            })?;
            compared += 1;
        }
    }
    Ok(compared)
}

/// Decodes one token of each sequence in steps of many sizes, with and without a prompt.
fn check_decode_rows(gpu: &mut CudaEngine, random: &mut Random, known: &[Known]) -> Result<usize> {
    let (mut compared, limit) = (0, gpu.limits().tokens as usize);
    let sizes = [2, 3, 5, 8, 9, 16, 17, 24, 31, 33, 50, 64, 90, 128].into_iter();
    for size in sizes.filter(|size| *size < known.len()).chain([known.len()]) {
        let first = random.below(known.len());
        let chosen: Vec<usize> = (first..first + size).map(|n| n % known.len()).collect();
        let mut batch: Vec<Chunk<'_>> = chosen.iter().map(|index| known[*index].row(*index)).collect();
        for with_prompt in [false, true] {
            // The prompt comes first and replaces the row of its sequence.
            if with_prompt {
                let (index, one) = (chosen[0], &known[chosen[0]]);
                batch[0] = one.chunk(index, 0..one.prompt.len());
                if one.prompt.len() + batch.len() > limit {
                    continue;
                }
            }
            run(gpu, &batch)?;
            for (row, index) in chosen.iter().enumerate() {
                let one = &known[*index];
                let right = if with_prompt && row == 0 { &one.prefilled } else { &one.decoded };
                same(&bits(gpu, row)?, right, || {
                    let beside = if with_prompt { ", with a prompt" } else { "" };
                    format!("row {row} of {size}, after {} tokens{beside}", one.prompt.len())
                })?;
                compared += 1;
            }
        }
    }
    Ok(compared)
}

/// A row has other logits in a larger batch than alone.
#[derive(Debug, thiserror::Error)]
#[error("{row} has other logits than alone; the largest difference is {widest}")]
pub(super) struct Differs {
    row: String,
    widest: f32,
}

/// Fails if the logits differ.
fn same(found: &[u32], right: &[u32], which: impl Fn() -> String) -> Result<(), Differs> {
    let apart = found.iter().zip(right).filter(|(a, b)| a != b);
    let widest =
        apart.clone().map(|(a, b)| (f32::from_bits(*a) - f32::from_bits(*b)).abs()).fold(0.0, f32::max);
    if apart.count() > 0 || found.len() != right.len() {
        return Err(Differs { row: which(), widest });
    }
    Ok(())
}

fn bits(gpu: &CudaEngine, row: usize) -> Result<Vec<u32>> {
    Ok(gpu.logits(row)?.into_iter().map(f32::to_bits).collect())
}
