//! Samples the next token from logits. All backends give the same token for the same logits, settings, tokens and seed.
//!
//! If a mask is given, only the tokens that it allows take part in all that follows. The order of the operations is vLLM's: logit bias, then penalties. If the temperature is 0, the largest logit wins.
//! Otherwise temperature, `min_p`, `top_k` and `top_p` apply, and a draw selects one of the remaining tokens in the order
//! of their ids.
//!
//! The result is reproducible in every process, batch, attempt, machine and device, for three reasons. The draw is a
//! function of seed and position. Probabilities are summed as integers, so the order of the sum does not matter. `exp` is
//! our own. `kernels/sample.cu` has the same algorithm for the GPU.

use std::cmp::Ordering;

use common::splitmix::{STEP, mix};

mod logit_bias;

pub use logit_bias::LogitBias;

/// The sampling settings of a sequence. The default is greedy.
///
/// Equal logits, seed and position give the same token on every backend:
///
/// ```
/// use engine::{Sample, Sampling, choose};
///
/// let logits = [1.0, 3.0, 2.0, -1.0];
/// assert_eq!(choose(&mut logits.clone(), Sample::greedy(), None, 5).id, 1);
/// assert_eq!(choose(&mut logits.clone(), Sample::greedy(), Some(&[0b1101]), 5).id, 2, "a mask excludes token 1");
///
/// let how = Sampling { temperature: 0.7, top_k: 2, seed: 42, ..Sampling::GREEDY };
/// let sample = Sample { how: &how, ..Sample::greedy() };
/// let token = choose(&mut logits.clone(), sample, None, 5);
/// assert!([1, 2].contains(&token.id), "top_k leaves the two most probable tokens");
/// assert_eq!(choose(&mut logits.clone(), sample, None, 5), token);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits. 0 selects the largest logit. At least 0.
    pub temperature: f32,
    /// Keeps the fewest most probable tokens whose probabilities sum to at least this. Above 0; 1 keeps all tokens.
    pub top_p: f32,
    /// Keeps this many of the most probable tokens. 0 keeps all tokens.
    pub top_k: u32,
    /// Removes tokens that are less probable than this fraction of the most probable token. 0 to 1.
    pub min_p: f32,
    /// Divides the positive logits, and multiplies the negative logits, of tokens that occur in the prompt or the output.
    /// Above 0; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of each token in the output.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token for each time that it occurs in the output, up to 32,767 times.
    pub frequency_penalty: f32,
    /// Added to the logits before penalties.
    pub logit_bias: LogitBias,
    /// The seed of the draws. A draw is a function of the seed and the position.
    pub seed: u64,
    /// Requests the log probabilities of the sampled token and of this many most probable tokens. At most
    /// [`LOGPROBS_MAX`](Self::LOGPROBS_MAX).
    pub logprobs: Option<u32>,
}

/// The largest number of times that the frequency penalty counts a token. The CPU and the GPU use the same limit.
pub(crate) const COUNT_MAX: u32 = 0x7FFF;

impl Sampling {
    /// Maximum number of tokens for which a request may ask log probabilities.
    pub const LOGPROBS_MAX: u32 = 20;

    /// Selects the largest logit, and the lowest id among equal logits.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        logit_bias: LogitBias::NONE,
        seed: 0,
        logprobs: None,
    };

    /// True if sampling needs the earlier tokens of the sequence.
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
    /// The token's id.
    pub id: u32,
    /// The log probabilities, if [`Sampling::logprobs`] requests them.
    pub logprobs: Option<Box<Logprobs>>,
}

impl From<u32> for Token {
    fn from(id: u32) -> Self {
        Self { id, logprobs: None }
    }
}

/// Natural logarithms of the model's own probabilities: of the raw logits, before bias, penalties and temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// The log probability of the sampled token.
    pub sampled: f32,
    /// The number of tokens that are at least as probable as the sampled token, including itself.
    pub rank: u32,
    /// The most probable tokens with their log probabilities, the most probable first.
    pub top: Vec<(u32, f32)>,
}

/// The settings and the history for sampling the token after a chunk.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// The settings.
    pub how: &'a Sampling,
    /// All tokens of the sequence so far. May be empty if the settings do not [look back](Sampling::looks_back). If the last token is sampled by
    /// the previous step ([`TokenSource::Follows`](crate::TokenSource::Follows)), it may be missing.
    pub tokens: &'a [u32],
    /// The number of prompt tokens at the start of `tokens`.
    pub prompt: u32,
    /// A mask restricts the tokens. It is given after the step was submitted, by [`Engine::sample`](crate::Engine::sample).
    pub constrained: bool,
}

impl Sample<'_> {
    /// Greedy sampling: selects the largest logit.
    pub fn greedy() -> Self {
        static GREEDY: Sampling = Sampling::GREEDY;
        Sample { how: &GREEDY, tokens: &[], prompt: 0, constrained: false }
    }
}

/// Samples the token that follows `position` tokens. `logits` has one number for each token id, at least one. Bias and
/// penalties change it in place. `mask` has a bit for each token that is allowed (bit `t % 32` of word `t / 32`), at least one
/// for a token of the vocabulary; without it, all are.
pub fn choose(logits: &mut [f32], sample: Sample<'_>, mask: Option<&[u32]>, position: u32) -> Token {
    let how = sample.how;
    let requested = how.logprobs.map(|top| (top, logits.to_vec()));
    let id = choose_id(logits, sample, mask, position);
    Token { id, logprobs: requested.map(|(top, raw)| Box::new(logprobs(&raw, id, top))) }
}

/// The log probabilities of `sampled` and of the `top` most probable tokens.
pub fn logprobs(logits: &[f32], sampled: u32, top: u32) -> Logprobs {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    let logprob = |id: u32| {
        let logit = logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        (f64::from(logit - max) - total.ln()) as f32
    };
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let top = (top as usize).min(ids.len());
    if top > 0 && top < ids.len() {
        ids.select_nth_unstable_by(top - 1, by_logit);
    }
    ids.truncate(top);
    ids.sort_unstable_by(by_logit);
    let own = logits.get(sampled as usize).copied().unwrap_or(f32::NEG_INFINITY);
    Logprobs {
        sampled: logprob(sampled),
        rank: logits.iter().filter(|logit| **logit >= own).count() as u32,
        top: ids.into_iter().map(|id| (id, logprob(id))).collect(),
    }
}

fn choose_id(logits: &mut [f32], sample: Sample<'_>, mask: Option<&[u32]>, position: u32) -> u32 {
    let how = sample.how;
    for &(token, bias) in how.logit_bias.iter() {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    if how.looks_back() {
        penalise(logits, sample);
    }
    let best = match mask {
        None => argmax(logits),
        Some(mask) => argmax_allowed(logits, mask),
    };
    if how.temperature <= 0.0 {
        return best;
    }
    let max = logits[best as usize];
    let candidates = candidates(logits, how, mask, max);
    let total: u64 = candidates.iter().map(|candidate| candidate.units()).sum();
    let mut rest = share(draw(how.seed, position), total);
    for candidate in &candidates {
        match rest.checked_sub(candidate.units()) {
            Some(left) => rest = left,
            None => return candidate.token,
        }
    }
    // There is no candidate: every logit is NaN.
    best
}

fn penalise(logits: &mut [f32], sample: Sample<'_>) {
    let how = sample.how;
    let mut counts: std::collections::HashMap<u32, u32> = std::collections::HashMap::new();
    for (place, token) in sample.tokens.iter().enumerate() {
        *counts.entry(*token).or_default() += u32::from(place >= sample.prompt as usize);
    }
    // The map has each token once, so its order does not matter.
    for (token, sampled) in counts {
        let Some(logit) = logits.get_mut(token as usize) else { continue };
        *logit = if *logit > 0.0 { *logit / how.repetition_penalty } else { *logit * how.repetition_penalty };
        if sampled > 0 {
            let counted = sampled.min(COUNT_MAX);
            *logit -= how.presence_penalty + how.frequency_penalty * counted as f32;
        }
    }
}

/// A token that may be drawn. Its weight is its probability divided by that of the most probable token.
#[derive(Clone, Copy)]
struct Candidate {
    token: u32,
    weight: f32,
}

impl Candidate {
    /// The weight as a fixed-point number. The most probable token has [`UNITS`] units.
    fn units(self) -> u64 {
        units(self.weight)
    }

    /// Orders the more probable token first, and the lower id first among equals.
    fn before(&self, other: &Self) -> Ordering {
        other.weight.total_cmp(&self.weight).then(self.token.cmp(&other.token))
    }
}

/// The tokens that may be drawn, sorted by id. `max` is the largest logit of an allowed token.
fn candidates(logits: &[f32], how: &Sampling, mask: Option<&[u32]>, max: f32) -> Vec<Candidate> {
    // If the largest logit is infinite, its tokens have all the weight.
    let weight = |logit: f32| if logit == max { 1.0 } else { exp((logit - max) / how.temperature) };
    let mut kept: Vec<Candidate> = (0..)
        .zip(logits)
        .filter(|(token, _)| mask.is_none_or(|mask| allows(mask, *token)))
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
        // All tokens below `min_units` together have fewer units than `top_p` removes. So `top_p` removes them all, and
        // they need no sorting.
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

/// The units of a weight of 1. Even if every token of the largest vocabulary has this weight, the sum fits 64 bits. A
/// token with less than one unit, about 30 logits below the largest, is never drawn.
const UNITS: f32 = (1u64 << 44) as f32;
const TWO_POW_64: f64 = 18_446_744_073_709_551_616.0;

/// A weight between 0 and 1 in units, rounded down. 0 for NaN.
fn units(weight: f32) -> u64 {
    (weight * UNITS) as u64
}

/// `total · fraction / 2^64`, rounded down.
fn share(fraction: u64, total: u64) -> u64 {
    ((u128::from(fraction) * u128::from(total)) >> 64) as u64
}

/// e to the power of `x`, for `x` of at most 0. The bits are the same on every machine and device, because each operation
/// is rounded individually. The result is 0 from -31 downwards, where a weight has no unit. The polynomial is from Cephes
/// (Stephen Moshier).
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

/// 64 random bits for a seed and a position. `kernels/sample.cu` has the same function.
fn draw(seed: u64, position: u32) -> u64 {
    mix(mix(seed.wrapping_add(STEP)) ^ (u64::from(position) + 1).wrapping_mul(STEP))
}

/// True if the mask allows the token.
fn allows(mask: &[u32], token: u32) -> bool {
    mask[token as usize / 32] >> (token % 32) & 1 == 1
}

/// The allowed token with the largest logit, and the lowest token among equals. NaN is less than every number. 0 if the mask allows
/// no token.
fn argmax_allowed(logits: &[f32], mask: &[u32]) -> u32 {
    let mut best: Option<u32> = None;
    for (word, bits) in mask.iter().enumerate() {
        let mut bits = *bits;
        while bits != 0 {
            let token = word as u32 * 32 + bits.trailing_zeros();
            bits &= bits - 1;
            let Some(&logit) = logits.get(token as usize) else { break };
            let is_better = best.is_none_or(|best| {
                let most = logits[best as usize];
                logit > most || (most.is_nan() && !logit.is_nan())
            });
            if is_better {
                best = Some(token);
            }
        }
    }
    best.unwrap_or_default()
}

/// The index of the largest logit, and the lowest index among equals. 0 if all logits are NaN.
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
