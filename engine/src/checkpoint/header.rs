//! The specification of a model in a GGUF file, from the file's header.

use crate::dequantise::floats;
use crate::families::Family;
use crate::gguf::Gguf;
use crate::model::spec::{
    AttentionSpec, HEADS_MAX, LAYERS_MAX, ModelSpec, SIZE_MAX, VOCABULARY_MAX, inverse_frequencies,
};
use crate::model::tensors::{TensorRole, gguf_name};

/// The tensor of factors that divide RoPE's inverse frequencies.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// The keys of one architecture.
struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// The number at a key, if the file has the key.
    fn given(&self, key: &str) -> Option<u64> {
        self.gguf.u64(&self.name(key))
    }

    fn size(&self, key: &str, max: u64) -> Result<usize, String> {
        let size = self.given(key).filter(|size| (1..=max).contains(size)).map(|size| size as usize);
        size.ok_or_else(|| format!("{} is missing or not between 1 and {max}", self.name(key)))
    }

    fn size_or(&self, key: &str, max: u64, fallback: usize) -> Result<usize, String> {
        self.given(key).map_or(Ok(fallback), |_| self.size(key, max))
    }

    fn float(&self, key: &str, fallback: Option<f32>) -> Result<f32, String> {
        let value = self.gguf.f32(&self.name(key)).or(fallback);
        let value = value.filter(|value| value.is_finite() && *value > 0.0);
        value.ok_or_else(|| format!("{} is missing or not positive", self.name(key)))
    }
}

/// Reads the specification. Fails if the model uses a feature that the forward pass does not compute.
pub(super) fn spec(gguf: &Gguf, architecture: &str, family: &Family) -> Result<ModelSpec, String> {
    let keys = Keys { gguf, architecture };
    let hidden = keys.size("embedding_length", SIZE_MAX)?;
    let heads = keys.size("attention.head_count", HEADS_MAX)?;
    let head_dim = keys.size_or("attention.key_length", HEADS_MAX, hidden / heads)?;
    for key in ["rope.dimension_count", "attention.value_length"] {
        if let Some(value) = keys.given(key).filter(|&value| value != head_dim as u64) {
            let key = keys.name(key);
            return Err(format!("{key} is {value}, but it must be the head size, {head_dim}"));
        }
    }
    let spec = ModelSpec {
        layers: keys.size("block_count", LAYERS_MAX)?,
        hidden,
        attention: AttentionSpec {
            heads,
            kv_heads: keys.size_or("attention.head_count_kv", HEADS_MAX, heads)?,
            head_dim,
            bias: family.bias,
            qk_norm: family.qk_norm,
            window: keys.given("attention.sliding_window").filter(|&window| window > 0),
        },
        feed_forward: keys.size("feed_forward_length", SIZE_MAX)?,
        vocabulary: vocabulary(gguf)?,
        context_tokens: keys.size("context_length", SIZE_MAX)? as u32,
        norm_epsilon: keys.float("attention.layer_norm_rms_epsilon", None)?,
        inverse_frequencies: frequencies(&keys, head_dim)?,
        tied: !gguf.tensors().contains_key(gguf_name(TensorRole::Output)),
    };
    spec.check()?;
    Ok(spec)
}

/// The size of the vocabulary: the rows of the embedding.
fn vocabulary(gguf: &Gguf) -> Result<usize, String> {
    let name = gguf_name(TensorRole::Embedding);
    let rows = gguf.tensors().get(name).and_then(|tensor| tensor.dimensions.get(1)).copied();
    let rows = rows.filter(|rows| (1..=VOCABULARY_MAX).contains(rows)).map(|rows| rows as usize);
    rows.ok_or_else(|| format!("{name} is missing or does not have between 1 and {VOCABULARY_MAX} rows"))
}

/// RoPE's inverse frequencies. Of Llama 3.1's scaling the file has the computed factors; other scalings are refused.
fn frequencies(keys: &Keys<'_>, head_dim: usize) -> Result<Vec<f32>, String> {
    let scaling = keys.gguf.str(&keys.name("rope.scaling.type"));
    if let Some(scaling) = scaling.filter(|&scaling| scaling != "none") {
        return Err(format!("it uses RoPE scaling {scaling}, which is not supported"));
    }
    let mut frequencies = inverse_frequencies(keys.float("rope.freq_base", Some(10_000.0))?, head_dim);
    let Some(tensor) = keys.gguf.tensors().get(ROPE_FACTORS) else { return Ok(frequencies) };
    let bytes = keys.gguf.read(ROPE_FACTORS).map_err(|error| error.to_string())?;
    let factors = floats(tensor.kind, &bytes);
    if factors.len() != frequencies.len()
        || factors.iter().any(|factor| !(factor.is_finite() && *factor > 0.0))
    {
        return Err(format!("{ROPE_FACTORS} does not have {} positive numbers", frequencies.len()));
    }
    frequencies.iter_mut().zip(factors).for_each(|(frequency, factor)| *frequency /= factor);
    Ok(frequencies)
}

/// Tokens that end a sequence.
pub(super) fn eos_tokens(gguf: &Gguf, vocabulary: usize) -> Vec<u32> {
    let mut tokens: Vec<u32> = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"]
        .iter()
        .filter_map(|key| u32::try_from(gguf.u64(key)?).ok())
        .filter(|&token| (token as usize) < vocabulary)
        .collect();
    tokens.dedup();
    tokens
}
