//! Random prompts, made like those of vLLM's client.

use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::super::LoadOptions;
use super::{BenchRequest, Part};
use crate::frontend::{Bos, Detokenizer, SpecialTokens, Tokenizer};

/// Attempts to make a text that has the wanted number of tokens.
const RETRIES: usize = 10;

/// Makes random prompts. Each prompt is a common prefix and a run of consecutive tokens of the vocabulary from a random start. The lengths
/// and the prefix depend only on the seed, the other tokens also on the part.
///
/// # Errors
/// The vocabulary has no ordinary tokens.
pub(super) fn requests(
    options: &LoadOptions,
    tokenizer: &Arc<Tokenizer>,
    part: Part,
) -> Result<Vec<BenchRequest>, String> {
    let mut lengths = SmallRng::seed_from_u64(options.seed);
    let mut random =
        SmallRng::seed_from_u64(options.seed ^ (part.first as u64 + 1).wrapping_mul(0x9e37_79b9));
    let allowed = tokenizer.ordinary();
    if allowed.is_empty() {
        let why = "the model of the server has no tokenizer here, and random prompts are texts";
        return Err(format!("{why}; give the server's tokenizer by --tokenizer"));
    }
    // The tokens that the tokenizer adds.
    let own = tokenizer.encode("", Bos::Add)?.len() as u32;
    let length = |around: u32, random: &mut SmallRng| {
        let spread = f64::from(around) * options.random_range_ratio.clamp(0.0, 1.0);
        let (low, high) = (f64::from(around) - spread, f64::from(around) + spread);
        random.random_range(low.floor() as u32..=high.ceil() as u32).max(1)
    };
    let pick = |random: &mut SmallRng| allowed[random.random_range(0..allowed.len())];
    let mut of_prefix = SmallRng::seed_from_u64(options.seed ^ 0xc033);
    let prefix: Vec<u32> = (0..options.random_prefix_len).map(|_| pick(&mut of_prefix)).collect();
    let mut all = Vec::with_capacity(part.count);
    for index in 0..part.count {
        let wanted = length(options.random_input_len.saturating_sub(own), &mut lengths);
        let output_tokens = length(options.random_output_len, &mut lengths);
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
