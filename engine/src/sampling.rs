//! From logits to the next token: the same for every backend, a function of logits, settings, tokens so far and seed.
//!
//! In this order, as vLLM has it: bias; penalties for tokens that occur; then the largest logit if the temperature is 0, else
//! temperature, `min_p`, `top_k`, `top_p`, and a draw from what is left, in the order of ids. The draw is a counter function of seed and position,
//! probabilities are added up as whole numbers, whose sum does not depend on the order, and `exp` is our own: so it does not matter in which
//! process, batch or attempt a token is sampled, nor on which machine or device. A GPU has the same in `kernels/sample.cu`.

use std::cmp::Ordering;

use common::splitmix::{STEP, mix};

/// How a sequence's tokens are chosen. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the largest. At least 0.
    pub temperature: f32,
    /// Of the most probable tokens, as many as it takes to have this probability; above 0, 1 for all.
    pub top_p: f32,
    /// Of the most probable tokens, this many; 0 for all.
    pub top_k: u32,
    /// Tokens less probable than this times the most probable one are left out; 0 to 1.
    pub min_p: f32,
    /// Logits of tokens that occur, in the prompt too, are divided by it if they are positive, else multiplied; 1 changes nothing. Above 0.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that were sampled.
    pub presence_penalty: f32,
    /// Subtracted for each time that a token was sampled.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// What draws depend on, beside the position.
    pub seed: u64,
    /// Says how probable the token was, and which this many were the most probable; at most [`LOGPROBS_MAX`](Self::LOGPROBS_MAX).
    pub logprobs: Option<u32>,
}

impl Sampling {
    /// Most alternatives whose probabilities are told.
    pub const LOGPROBS_MAX: u32 = 20;

    /// The largest logit, the lowest id among equals.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        logit_bias: Vec::new(),
        seed: 0,
        logprobs: None,
    };

    /// True if the token follows from logits, temperature, limits, seed and position alone, and no more is told about it: whoever has the
    /// logits can draw it, and a step can go on from it before anybody has seen it.
    pub fn is_plain(&self) -> bool {
        !self.looks_back() && self.logit_bias.is_empty() && self.logprobs.is_none()
    }

    /// True if the tokens so far matter: whoever samples has to have them.
    pub fn looks_back(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self::GREEDY
    }
}

/// A sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// How probable it was, if that was asked for.
    pub logprobs: Option<Box<Logprobs>>,
}

impl From<u32> for Token {
    fn from(id: u32) -> Self {
        Self { id, logprobs: None }
    }
}

/// Natural logarithms of probabilities as the model gives them: of the logits as they are, whatever the settings make of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// The sampled token's.
    pub sampled: f32,
    /// How many tokens are at least as probable as the sampled one, itself included.
    pub rank: u32,
    /// Tokens and theirs, the most probable first.
    pub top: Vec<(u32, f32)>,
}

/// What a chunk's last position is sampled with.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// The settings.
    pub how: &'a Sampling,
    /// All tokens before the one to be sampled, if the settings [look back](Sampling::looks_back); else it may be empty.
    pub tokens: &'a [u32],
    /// How many of them are the prompt's.
    pub prompt: u32,
}

impl Sample<'_> {
    /// The largest logit.
    pub fn greedy() -> Self {
        static GREEDY: Sampling = Sampling::GREEDY;
        Sample { how: &GREEDY, tokens: &[], prompt: 0 }
    }
}

/// The token that follows `position` tokens. `logits` has one number for each token id, at least one, and is changed.
pub fn choose(logits: &mut [f32], sample: Sample<'_>, position: u32) -> Token {
    let how = sample.how;
    let told = how.logprobs.map(|top| (top, logits.to_vec()));
    let id = chosen(logits, sample, position);
    Token { id, logprobs: told.map(|(top, raw)| Box::new(logprobs(&raw, id, top))) }
}

/// What the model thinks of `sampled`, and of the `top` most probable tokens.
fn logprobs(logits: &[f32], sampled: u32, top: u32) -> Logprobs {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    let logprob = |id: u32| {
        let logit = logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        (f64::from(logit - max) - total.ln()) as f32
    };
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let first = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let top = (top as usize).min(ids.len());
    if top > 0 && top < ids.len() {
        ids.select_nth_unstable_by(top - 1, first);
    }
    ids.truncate(top);
    ids.sort_unstable_by(first);
    let own = logits.get(sampled as usize).copied().unwrap_or(f32::NEG_INFINITY);
    Logprobs {
        sampled: logprob(sampled),
        rank: logits.iter().filter(|logit| **logit >= own).count() as u32,
        top: ids.into_iter().map(|id| (id, logprob(id))).collect(),
    }
}

fn chosen(logits: &mut [f32], sample: Sample<'_>, position: u32) -> u32 {
    let how = sample.how;
    for &(token, bias) in &how.logit_bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    if how.looks_back() {
        penalise(logits, sample);
    }
    if how.temperature <= 0.0 {
        return argmax(logits);
    }
    let kept = kept(logits, how);
    let total: u64 = kept.iter().map(|candidate| candidate.units()).sum();
    let mut rest = share(draw(how.seed, position), total);
    for candidate in &kept {
        match rest.checked_sub(candidate.units()) {
            Some(left) => rest = left,
            None => return candidate.token,
        }
    }
    // No logit is a number.
    argmax(logits)
}

fn penalise(logits: &mut [f32], sample: Sample<'_>) {
    let how = sample.how;
    let mut counts: std::collections::HashMap<u32, u32> = std::collections::HashMap::new();
    for (place, token) in sample.tokens.iter().enumerate() {
        *counts.entry(*token).or_default() += u32::from(place >= sample.prompt as usize);
    }
    // Each token once, so the map's order does not matter.
    for (token, sampled) in counts {
        let Some(logit) = logits.get_mut(token as usize) else { continue };
        *logit = if *logit > 0.0 { *logit / how.repetition_penalty } else { *logit * how.repetition_penalty };
        if sampled > 0 {
            *logit -= how.presence_penalty + how.frequency_penalty * sampled as f32;
        }
    }
}

/// A token that may be drawn, and its probability over the most probable one's.
#[derive(Clone, Copy)]
struct Candidate {
    token: u32,
    weight: f32,
}

impl Candidate {
    /// The weight in [`UNITS`] of the most probable token's.
    fn units(self) -> u64 {
        units(self.weight)
    }

    /// The more probable one first, the lower id among equals.
    fn before(&self, other: &Self) -> Ordering {
        other.weight.total_cmp(&self.weight).then(self.token.cmp(&other.token))
    }
}

/// Tokens that may be drawn, by id.
fn kept(logits: &[f32], how: &Sampling) -> Vec<Candidate> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // A most probable token of infinite logit has all of the weight.
    let weight = |logit: f32| if logit == max { 1.0 } else { exp((logit - max) / how.temperature) };
    let mut kept: Vec<Candidate> = (0..)
        .zip(logits)
        .map(|(token, logit)| Candidate { token, weight: weight(*logit) })
        .filter(|candidate| candidate.units() > 0 && candidate.weight >= how.min_p)
        .collect();
    let top_k = how.top_k as usize;
    if top_k > 0 && top_k < kept.len() {
        kept.select_nth_unstable_by(top_k - 1, Candidate::before);
        kept.truncate(top_k);
    }
    if how.top_p < 1.0 {
        let total: u64 = kept.iter().map(|candidate| candidate.units()).sum();
        let wanted = share((f64::from(how.top_p) * TWO_POW_64) as u64, total);
        // All tokens below this together have less than what is not wanted, so none of them is among the first: they need no sorting.
        let min_units = (total - wanted) / kept.len().max(1) as u64;
        kept.retain(|candidate| candidate.units() >= min_units);
        kept.sort_unstable_by(Candidate::before);
        let mut sum = 0;
        let enough = kept.iter().position(|candidate| {
            sum += candidate.units();
            sum >= wanted
        });
        kept.truncate(enough.map_or(kept.len(), |last| last + 1));
    }
    kept.sort_unstable_by_key(|candidate| candidate.token);
    kept
}

/// Of the most probable token's weight, how many parts are counted. The largest vocabulary of that weight has a sum of 64 bits, and what has
/// less than one part is never drawn: it is 30 logits below.
const UNITS: f32 = (1u64 << 44) as f32;
const TWO_POW_64: f64 = 18_446_744_073_709_551_616.0;

/// A weight of 0 to 1 in units, rounded down; nothing if it is not a number.
fn units(weight: f32) -> u64 {
    (weight * UNITS) as u64
}

/// That many 2^64ths of `total`, rounded down.
fn share(of_two_pow_64: u64, total: u64) -> u64 {
    ((u128::from(of_two_pow_64) * u128::from(total)) >> 64) as u64
}

/// e to the power of `x`, which is at most 0, with the same bits on every machine and device: each operation here is rounded by itself. Below
/// -31, where there is no unit left, it is 0. The polynomial is Cephes's (Stephen Moshier).
fn exp(x: f32) -> f32 {
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    const POLYNOMIAL: [f32; 6] =
        [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    if x.is_nan() || x <= -31.0 {
        return 0.0;
    }
    let power = (x * std::f32::consts::LOG2_E).round_ties_even();
    let rest = (x - power * LN_2.0) - power * LN_2.1;
    let sum = POLYNOMIAL.iter().copied().reduce(|sum, factor| sum * rest + factor).unwrap_or_default();
    let scale = f32::from_bits(((power as i32 + 127) as u32) << 23);
    ((sum * (rest * rest) + rest) + 1.0) * scale
}

/// 64 bits for each seed and position. `kernels/sample.cu` has the same.
fn draw(seed: u64, position: u32) -> u64 {
    mix(mix(seed.wrapping_add(STEP)) ^ (u64::from(position) + 1).wrapping_mul(STEP))
}

/// The index of the largest, the lowest among equals; 0 when there is no number among them.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (whole, tail) = logits.as_chunks::<16>();
    for chunk in whole {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
        }
    }
    let max = lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    logits.iter().position(|&logit| logit == max).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests;
