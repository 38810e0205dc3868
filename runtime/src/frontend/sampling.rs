//! The sampling fields of a request. Their names, ranges and defaults are those of OpenAI and vLLM.

use std::hash::{BuildHasher, Hasher, RandomState};

use connector::frame::LOGIT_BIAS_MAX;
use engine::{LogitBias, Sampling};
use serde_json::value::RawValue;

use super::api_error::ApiError;
use super::fields::{Fields, entries, parsed, wrong};
use super::openai::ApiKind;

/// A lower temperature counts as 0. Dividing logits by it would overflow.
const TEMPERATURE_MIN: f64 = 1e-5;

/// Reads the sampling fields. Without `seed`, the seed is random.
///
/// # Errors
/// 400 with a sentence that names the field.
pub(super) fn sampling(kind: ApiKind, fields: &Fields<'_>, vocabulary: u32) -> Result<Sampling, ApiError> {
    let temperature = fields.number("temperature", "a number of at least 0", 1.0, |t| t >= 0.0)?;
    let top_k = match fields.get("top_k") {
        None => 0,
        // In vLLM, -1 and 0 mean all tokens.
        Some(value) => match parsed::<i64>(value) {
            Some(k @ -1..=0x7fff_ffff) => k.max(0) as u32,
            _ => return Err(wrong("top_k", "a whole number of at least -1", value)),
        },
    };
    let within = |name| fields.number(name, "a number from -2 to 2", 0.0, |p| (-2.0..=2.0).contains(&p));
    Ok(Sampling {
        temperature: if temperature < TEMPERATURE_MIN { 0.0 } else { temperature as f32 },
        top_p: fields.number("top_p", "a number above 0 and up to 1", 1.0, |p| p > 0.0 && p <= 1.0)? as f32,
        top_k,
        min_p: fields.number("min_p", "a number from 0 to 1", 0.0, |p| (0.0..=1.0).contains(&p))? as f32,
        repetition_penalty: fields.number(
            "repetition_penalty",
            "a number above 0 and up to 100",
            1.0,
            |p| p > 0.01 && p <= 100.0,
        )? as f32,
        presence_penalty: within("presence_penalty")? as f32,
        frequency_penalty: within("frequency_penalty")? as f32,
        logit_bias: logit_bias(fields, vocabulary)?,
        logprobs: logprobs(kind, fields)?,
        seed: match fields.get("seed") {
            None => RandomState::new().build_hasher().finish(),
            Some(value) => parsed::<u64>(value)
                .or_else(|| parsed::<i64>(value).map(i64::cast_unsigned))
                .ok_or_else(|| wrong("seed", "a whole number", value))?,
        },
    })
}

/// Number of most probable tokens to report besides the sampled one; `None` if the request does not ask for log probabilities.
fn logprobs(kind: ApiKind, fields: &Fields<'_>) -> Result<Option<u32>, ApiError> {
    let within = |name: &str| match fields.get(name) {
        None => Ok(None),
        Some(value) => {
            let most = Sampling::LOGPROBS_MAX;
            let count = parsed::<u32>(value).filter(|count| *count <= most);
            count.map(Some).ok_or_else(|| wrong(name, &format!("a whole number from 0 to {most}"), value))
        }
    };
    match kind {
        ApiKind::Response => Ok(None),
        ApiKind::Completion => match fields.get("logprobs") {
            Some(value) if value.get() == "false" => Ok(None),
            _ => within("logprobs"),
        },
        ApiKind::Chat => match (fields.flag("logprobs", false)?, within("top_logprobs")?) {
            (true, top) => Ok(Some(top.unwrap_or(0))),
            (false, None | Some(0)) => Ok(None),
            (false, Some(_)) => Err(ApiError::field(
                "top_logprobs",
                "top_logprobs needs logprobs: true; set logprobs or leave out top_logprobs",
            )),
        },
    }
}

/// Reads `logit_bias`: an object `{"token id": bias}`.
fn logit_bias(fields: &Fields<'_>, vocabulary: u32) -> Result<LogitBias, ApiError> {
    let Some(value) = fields.get("logit_bias") else { return Ok(LogitBias::NONE) };
    let expect = "an object of token ids and biases";
    let biases = entries(value, LOGIT_BIAS_MAX).ok_or_else(|| wrong("logit_bias", expect, value))?;
    if biases.has_more() {
        let message = format!("logit_bias has {} tokens; at most {LOGIT_BIAS_MAX} are allowed", biases.count);
        return Err(ApiError::field("logit_bias", message));
    }
    let bias = |(token, bias): (String, &RawValue)| {
        let id = token.parse::<u32>().ok().filter(|id| *id < vocabulary).ok_or_else(|| {
            let message =
                format!("logit_bias has token {token:?}, which is not a token id; the vocabulary has {vocabulary} tokens");
            ApiError::field("logit_bias", message)
        })?;
        let number = parsed::<f64>(bias).filter(|bias| (-100.0..=100.0).contains(bias));
        let name = format!("logit_bias[{id}]");
        Ok((id, number.ok_or_else(|| wrong(&name, "a number from -100 to 100", bias))? as f32))
    };
    biases.first.into_iter().map(bias).collect()
}
