//! Random prompts and arrival times, made like those of vLLM's client.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Gamma};

use super::ServeOptions;
use crate::frontend::{Bos, Detokenizer, SpecialTokens, Tokenizer};
use std::sync::Arc;

/// Attempts to make a text that has the wanted number of tokens.
const RETRIES: usize = 10;

/// One request of the benchmark.
#[derive(Clone, Debug)]
pub(super) struct BenchRequest {
    pub(super) prompt: String,
    pub(super) prompt_tokens: u32,
    pub(super) output_tokens: u32,
}

/// Makes random prompts. Each prompt is a common prefix and a run of consecutive tokens of the vocabulary from a random start.
///
/// # Errors
/// The vocabulary has no ordinary tokens.
pub(super) fn random(
    options: &ServeOptions,
    tokenizer: &Arc<Tokenizer>,
) -> Result<Vec<BenchRequest>, String> {
    let mut random = SmallRng::seed_from_u64(options.seed);
    let allowed = tokenizer.ordinary();
    if allowed.is_empty() {
        return Err("the tokenizer has no ordinary tokens".to_owned());
    }
    let own = tokenizer.encode("", Bos::Add)?.len() as u32;
    let length = |around: u32, random: &mut SmallRng| {
        let spread = f64::from(around) * options.random_range_ratio.clamp(0.0, 1.0);
        let (low, high) = (f64::from(around) - spread, f64::from(around) + spread);
        random.random_range(low.floor() as u32..=high.ceil() as u32).max(1)
    };
    let pick = |random: &mut SmallRng| allowed[random.random_range(0..allowed.len())];
    let prefix: Vec<u32> = (0..options.random_prefix_len).map(|_| pick(&mut random)).collect();
    let mut all = Vec::with_capacity(options.num_prompts);
    for index in 0..options.num_prompts {
        let wanted = length(options.random_input_len.saturating_sub(own), &mut random);
        let output_tokens = length(options.random_output_len, &mut random);
        let offset: usize = random.random_range(0..allowed.len());
        let inner = (0..wanted as usize).map(|place| allowed[(offset + index + place) % allowed.len()]);
        let tokens: Vec<u32> = prefix.iter().copied().chain(inner).collect();
        let (prompt, prompt_tokens) = settle(tokenizer, tokens, || pick(&mut random))?;
        all.push(BenchRequest { prompt, prompt_tokens: prompt_tokens + own, output_tokens });
    }
    Ok(all)
}

/// Makes a text that has as many tokens as `tokens`, or about as many after [`RETRIES`] attempts. An attempt converts the tokens to text
/// and back, and then cuts off or adds tokens.
fn settle(
    tokenizer: &Arc<Tokenizer>,
    mut tokens: Vec<u32>,
    mut pick: impl FnMut() -> u32,
) -> Result<(String, u32), String> {
    let wanted = tokens.len();
    for _ in 0..RETRIES {
        let text = Detokenizer::text(tokenizer, &tokens, SpecialTokens::Show);
        let back = tokenizer.encode(&text, Bos::Omit)?;
        if back.len() == wanted {
            return Ok((text, wanted as u32));
        }
        tokens = back;
        tokens.truncate(wanted);
        tokens.extend((tokens.len()..wanted).map(|_| pick()));
    }
    let text = Detokenizer::text(tokenizer, &tokens, SpecialTokens::Show);
    let count = tokenizer.encode(&text, Bos::Omit)?.len();
    Ok((text, count as u32))
}

/// The time of each request in seconds. The waits are gamma-distributed and scaled so that the last request is sent at `count / rate`.
pub(super) fn arrivals(count: usize, rate: f64, burstiness: f64, seed: u64) -> Vec<f64> {
    if rate.is_infinite() || count == 0 {
        return vec![0.0; count];
    }
    let mut random = SmallRng::seed_from_u64(seed ^ 0xa441);
    let gamma = Gamma::new(burstiness, 1.0 / (rate * burstiness)).ok();
    let mut at = 0.0;
    let times: Vec<f64> = (0..count)
        .map(|_| {
            at += gamma.as_ref().map_or(1.0 / rate, |gamma| gamma.sample(&mut random));
            at
        })
        .collect();
    let scale = count as f64 / rate / at;
    times.into_iter().map(|time| time * scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_have_the_wanted_rate_and_burstiness() {
        assert_eq!(arrivals(3, f64::INFINITY, 1.0, 1), [0.0; 3]);
        for burstiness in [0.5, 1.0, 100.0, f64::INFINITY] {
            let times = arrivals(400, 2.0, burstiness, 1);
            assert!((times[399] - 200.0).abs() < 1e-9, "{burstiness}");
            assert!(times.is_sorted());
            let waits: Vec<f64> = times.windows(2).map(|two| two[1] - two[0]).collect();
            let mean = waits.iter().sum::<f64>() / waits.len() as f64;
            let variance = waits.iter().map(|wait| (wait - mean).powi(2)).sum::<f64>() / waits.len() as f64;
            let expect = 1.0 / burstiness.sqrt();
            // A coefficient of variation of 400 waits is off by less than a third.
            assert!((variance.sqrt() / mean - expect).abs() <= 0.33 * expect + 1e-9, "{burstiness}");
        }
    }
}
