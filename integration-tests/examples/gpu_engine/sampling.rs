//! Checks that the GPU and the host sample the same tokens from the same logits.

use anyhow::{Result, ensure};
use engine::{
    Chunk, CudaEngine, Engine, LogitBias, PageId, PageTable, Sample, Sampling, Token, TokenSource, choose,
};

use super::{run, scores};

/// Rows of a step.
const ROWS: usize = 48;

/// How rows are adjusted in turn: settings with penalties and biases for the tokens of [`history`], or none.
fn adjusted(how: Sampling, row: usize, vocabulary: usize) -> Sampling {
    let token = |n: usize| spread(n * 37 % 1009, vocabulary);
    let biases = |count: usize| (0..count).map(|n| (token(n % 700), n as f32 * 0.37 - 9.0)).collect();
    let (repetition_penalty, presence_penalty, frequency_penalty, logit_bias) = match row % 7 {
        1 => (1.3, 0.0, 0.0, LogitBias::NONE),
        2 => (1.0, 0.7, 0.0, biases(3)),
        3 => (1.0, 0.0, 0.3, LogitBias::NONE),
        4 => (0.8, -0.5, 0.25, biases(1024)),
        5 => (1.0, 0.0, 0.0, biases(20)),
        6 => (1.1, 0.1, -0.2, LogitBias::NONE),
        _ => (1.0, 0.0, 0.0, LogitBias::NONE),
    };
    Sampling { repetition_penalty, presence_penalty, frequency_penalty, logit_bias, ..how }
}

/// Some tokens, of which a few occur often. In some rows one occurs more often than is counted.
fn history(row: usize, vocabulary: usize) -> Vec<u32> {
    let often = row % 5;
    if row % 91 == 3 {
        return vec![spread(often, vocabulary); 70_000];
    }
    let token = |n: usize| if n.is_multiple_of(3) { often } else { (n * n + row) * 37 % 1009 };
    (0..row * 131 % 3000).map(|n| spread(token(n), vocabulary)).collect()
}

/// Token `n` of 1,009 tokens that are spread over the vocabulary.
fn spread(n: usize, vocabulary: usize) -> u32 {
    (n * (vocabulary / 1009).max(1)) as u32
}

/// Settings with loose and tight limits, alone and combined. At the highest temperature thousands of tokens have equal probabilities.
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

/// Samples with all settings, `times` times each, in steps of many rows and in one step with a prompt. Rows with penalties, biases and log probabilities
/// are mixed in. Returns how many tokens were compared.
pub(super) fn check(gpu: &mut CudaEngine, times: u64) -> Result<usize> {
    let vocabulary = gpu.model().vocabulary;
    let mut settings: Vec<Sampling> = (0..times)
        .flat_map(|time| settings().into_iter().map(move |how| Sampling { seed: how.seed + time, ..how }))
        .collect();
    settings.iter_mut().step_by(5).for_each(|how| how.logprobs = Some(1));
    settings
        .iter_mut()
        .enumerate()
        .for_each(|(row, how)| *how = adjusted(how.clone(), row, vocabulary as usize));
    let tables: Vec<PageTable> = (0..=ROWS as u32).map(|page| [PageId(page)].into()).collect();
    let mut compared = 0;
    while !settings.is_empty() {
        let some: Vec<Sampling> = settings.drain(..settings.len().min(ROWS)).collect();
        let tokens: Vec<u32> =
            (0..some.len() as u32).map(|n| (n * 7919 + compared as u32) % vocabulary).collect();
        let sequence = compared as u64;
        let row = |n: usize| Chunk {
            sequence: sequence + n as u64,
            tokens: &tokens[n..=n],
            source: TokenSource::Sampled,
            start: 0,
            pages: &tables[n],
            sample: Some(Sample { how: &some[n], tokens: &tokens[n..=n], ..Sample::greedy() }),
            score: None,
        };
        let mut batch: Vec<Chunk<'_>> = (0..some.len()).map(row).collect();
        let is_last = settings.is_empty();
        if is_last {
            // Prompts come before decode rows.
            let (source, pages) = (TokenSource::Prompt, &tables[ROWS]);
            batch.push(Chunk { sequence: u64::MAX, source, pages, ..row(0) });
            batch.rotate_right(1);
        }
        let output = run(gpu, &batch)?;
        for (n, (chunk, sampled)) in batch.iter().zip(&output.tokens).enumerate() {
            let sample = chunk.sample.unwrap_or(Sample::greedy());
            let right = choose(&mut gpu.logits(n)?, sample, None, 1);
            ensure!(
                same(&sampled.token, &right),
                "the GPU samples {:?} and the host {right:?} with {:?}",
                sampled.token,
                sample.how
            );
            compared += 1;
        }
    }
    Ok(compared)
}

/// Samples from made-up rows, with vocabularies that fill all blocks of a cluster or leave some empty. Returns how many tokens were compared.
pub(super) fn check_made_up(gpu: &CudaEngine) -> Result<usize> {
    let mut compared = 0;
    for vocabulary in [1, 2, 7, 8, 9, 75, 1000, 8193, 32_000, 128_256, 393_216] {
        // The host needs milliseconds for a large vocabulary.
        let few = 1 + vocabulary / 8192;
        for settings in settings().chunks(few).filter_map(<[_]>::first).collect::<Vec<_>>().chunks(ROWS) {
            let rows: Vec<Vec<f32>> =
                (compared..).take(settings.len()).map(|row| made_up(row, vocabulary)).collect();
            let masks: Vec<Option<Vec<u32>>> =
                (compared..).take(settings.len()).map(|row| mask(row, vocabulary)).collect();
            let settings: Vec<Sampling> = (compared..)
                .zip(settings)
                .map(|(row, how)| adjusted((**how).clone(), row, vocabulary))
                .collect();
            let tokens: Vec<Vec<u32>> =
                (compared..).take(settings.len()).map(|row| history(row, vocabulary)).collect();
            let sample = |n: usize| {
                let prompt = tokens[n].len() as u32 / 2;
                Sample { how: &settings[n], tokens: &tokens[n], prompt, constrained: masks[n].is_some() }
            };
            let samples: Vec<(Sample<'_>, Option<&[u32]>, u32)> = (0..settings.len())
                .map(|n| (sample(n), masks[n].as_deref(), (compared + n) as u32))
                .collect();
            let found = gpu.draw(&rows.concat(), &samples)?;
            for ((mut logits, (sample, mask, position)), found) in rows.into_iter().zip(samples).zip(found) {
                let right = choose(&mut logits, sample, mask, position).id;
                ensure!(
                    found == right,
                    "of {vocabulary} tokens in row {position} the GPU samples {found} and the host {right} with {sample:?}"
                );
                compared += 1;
            }
        }
    }
    Ok(compared)
}

/// Whether two results are the same token, with the same log probabilities up to rounding.
pub(super) fn same(found: &Token, right: &Token) -> bool {
    found.id == right.id
        && match (&found.logprobs, &right.logprobs) {
            (Some(found), Some(right)) => scores::agree(found, right),
            (found, right) => found == right,
        }
}

/// No mask, or a mask that allows about half of the tokens, a few, or one.
fn mask(row: usize, vocabulary: usize) -> Option<Vec<u32>> {
    let allowed = |token: usize| {
        let bits = (row * 104_729 + token + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
        match row % 4 {
            1 => bits.is_multiple_of(2),
            2 => bits.is_multiple_of(1000),
            _ => false,
        }
    };
    if row.is_multiple_of(4) {
        return None;
    }
    let mut words = vec![0; vocabulary.div_ceil(32)];
    let always = row * 31 % vocabulary;
    for token in (0..vocabulary).filter(|token| *token == always || allowed(*token)) {
        words[token / 32] |= 1 << (token % 32);
    }
    Some(words)
}

/// Logits of many kinds: distributed as those of a model, with ties across blocks, with NaN and with infinities.
fn made_up(row: usize, vocabulary: usize) -> Vec<f32> {
    let noise = |token: usize| {
        let bits = (row * 7_919 + token + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        ((bits ^ bits >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 40) as f32 / (1 << 24) as f32
    };
    // The inverse of a distribution with a long upper tail.
    let peaked = |token| -3.0 * (1e-7 + noise(token)).ln();
    let of_token = |token: usize| match (row % 9, token % 5) {
        (1, _) => 2.5,
        (2, _) => peaked(token).floor(),
        (3, _) => f32::NAN,
        (4, _) => f32::NEG_INFINITY,
        (5, 1) => f32::INFINITY,
        (6, 2) => f32::NAN,
        (6, 3) => f32::NEG_INFINITY,
        (7, _) => noise(token) * 1e-3,
        (8, _) => -1e30 * noise(token),
        _ => peaked(token),
    };
    (0..vocabulary).map(of_token).collect()
}
