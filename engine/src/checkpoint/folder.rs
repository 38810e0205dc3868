//! The specification of a model in a Hugging Face folder, from its `config.json`.

use std::path::Path;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::error::OpenError;
use crate::families::{Family, WindowRule};
use crate::model::spec::{
    AttentionSpec, HEADS_MAX, LAYERS_MAX, ModelSpec, SIZE_MAX, VOCABULARY_MAX, inverse_frequencies,
};

/// The fields of `config.json` that the engine uses.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    model_type: String,
    hidden_size: u64,
    intermediate_size: u64,
    num_hidden_layers: u64,
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    vocab_size: u64,
    max_position_embeddings: u64,
    rms_norm_eps: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    hidden_act: Option<String>,
    /// The outer option is `None` if the file does not have the key.
    #[serde(default, deserialize_with = "given")]
    sliding_window: Option<Option<u64>>,
    #[serde(default)]
    use_sliding_window: bool,
    max_window_layers: Option<u64>,
    rope_theta: Option<f64>,
    /// Written by transformers before version 5.
    rope_scaling: Option<Rope>,
    /// Written by transformers 5 and later. It contains `rope_theta`.
    rope_parameters: Option<Rope>,
    eos_token_id: Option<Value>,
    quantization_config: Option<Value>,
    /// `eos_token_id` of `generation_config.json`.
    #[serde(skip)]
    generation_eos: Option<Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Rope {
    rope_type: Option<String>,
    /// The old name of `rope_type`.
    r#type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

fn given<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<u64>>, D::Error> {
    Deserialize::deserialize(value).map(Some)
}

impl Config {
    pub(super) fn read(folder: &Path) -> Result<Self, OpenError> {
        let path = folder.join("config.json");
        let text = std::fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => OpenError::UnsupportedModel {
                path: folder.to_owned(),
                what: "it has no config.json; set model to a GGUF file or to a folder in Hugging Face format"
                    .to_owned(),
            },
            _ => OpenError::Read { path: path.clone(), error },
        })?;
        let unsupported = |what: String| OpenError::UnsupportedModel { path: path.clone(), what };
        let mut config: Self =
            serde_json::from_slice(&text).map_err(|error| unsupported(error.to_string()))?;
        let generation = std::fs::read(folder.join("generation_config.json")).ok();
        let generation = generation.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        config.generation_eos = generation.and_then(|value| value.get("eos_token_id").cloned());
        Ok(config)
    }

    pub(super) fn model_type(&self) -> &str {
        &self.model_type
    }

    /// How the weights are quantised. `None` if they are not.
    pub(super) fn quantization(&self) -> Option<&Value> {
        self.quantization_config.as_ref()
    }

    /// Tokens that end a sequence. The JSON value is one token or a list.
    pub(super) fn eos_tokens(&self, vocabulary: usize) -> Vec<u32> {
        let known = |value: &Value| value.as_u64().filter(|id| *id < vocabulary as u64).map(|id| id as u32);
        match self.generation_eos.as_ref().filter(|value| !value.is_null()).or(self.eos_token_id.as_ref()) {
            Some(Value::Array(ids)) => ids.iter().filter_map(known).collect(),
            Some(one) => known(one).into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// The specification of the model.
    ///
    /// # Errors
    /// The model uses a feature that the forward pass does not compute, or a size is out of range.
    pub(super) fn spec(&self, family: &Family) -> Result<ModelSpec, String> {
        if (self.attention_bias && !family.bias) || self.mlp_bias {
            return Err(format!("it has biases that a {} does not have", family.name));
        }
        if let Some(other) = self.hidden_act.as_deref().filter(|name| *name != "silu") {
            return Err(format!("its activation is {other}, but only silu is supported"));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return Err(format!("rms_norm_eps is {}, but must be above 0", self.rms_norm_eps));
        }
        let size = |name: &str, value: u64, max: u64| {
            let fits = (1..=max).contains(&value).then_some(value as usize);
            fits.ok_or_else(|| format!("{name} is {value}, not between 1 and {max}"))
        };
        let heads = size("num_attention_heads", self.num_attention_heads, HEADS_MAX)?;
        let hidden = size("hidden_size", self.hidden_size, SIZE_MAX)?;
        let kv_heads = self.num_key_value_heads.unwrap_or(self.num_attention_heads);
        let head_dim = self.head_dim.or(family.head_dim).unwrap_or((hidden / heads) as u64);
        let head_dim = size("head_dim", head_dim, HEADS_MAX)?;
        let spec = ModelSpec {
            layers: size("num_hidden_layers", self.num_hidden_layers, LAYERS_MAX)?,
            hidden,
            attention: AttentionSpec {
                heads,
                kv_heads: size("num_key_value_heads", kv_heads, HEADS_MAX)?,
                head_dim,
                bias: family.bias,
                qk_norm: family.qk_norm,
                window: self.window(family.window),
            },
            feed_forward: size("intermediate_size", self.intermediate_size, SIZE_MAX)?,
            vocabulary: size("vocab_size", self.vocab_size, VOCABULARY_MAX)?,
            context_tokens: size("max_position_embeddings", self.max_position_embeddings, SIZE_MAX)? as u32,
            norm_epsilon: self.rms_norm_eps as f32,
            inverse_frequencies: self.frequencies(head_dim)?,
            tied: self.tie_word_embeddings,
        };
        spec.check()?;
        Ok(spec)
    }

    /// The sliding window, if a layer has one.
    fn window(&self, rule: WindowRule) -> Option<u64> {
        let used = self.use_sliding_window && self.max_window_layers.unwrap_or(0) < self.num_hidden_layers;
        match rule {
            WindowRule::OrAbsent(absent) => self.sliding_window.unwrap_or(Some(absent)),
            WindowRule::IfUsed(absent) if used => self.sliding_window.unwrap_or(Some(absent)),
            WindowRule::IfUsed(_) | WindowRule::Never => None,
        }
    }

    /// RoPE's inverse frequencies, with Llama 3.1's scaling if the configuration has it.
    fn frequencies(&self, head_dim: usize) -> Result<Vec<f32>, String> {
        let rope = self.rope_parameters.clone().or_else(|| self.rope_scaling.clone()).unwrap_or_default();
        let theta = rope.rope_theta.or(self.rope_theta).unwrap_or(10_000.0);
        if !(theta.is_finite() && theta > 0.0) {
            return Err(format!("rope_theta is {theta}, but must be above 0"));
        }
        let plain = inverse_frequencies(theta as f32, head_dim);
        match rope.rope_type.as_deref().or(rope.r#type.as_deref()) {
            None | Some("default") => Ok(plain),
            Some("llama3") => {
                let (Some(factor), Some(low), Some(high), Some(original)) = (
                    rope.factor,
                    rope.low_freq_factor,
                    rope.high_freq_factor,
                    rope.original_max_position_embeddings,
                ) else {
                    return Err("its llama3 RoPE scaling lacks one of its four parameters".to_owned());
                };
                let all = [factor, low, high, original];
                if all.iter().any(|n| !(n.is_finite() && *n > 0.0)) || high <= low {
                    return Err("its llama3 RoPE scaling has parameters out of range".to_owned());
                }
                let [factor, low, high, original] = [factor, low, high, original].map(|n| n as f32);
                Ok(plain.into_iter().map(|f| llama3(f, factor, low, high, original)).collect())
            }
            Some(other) => Err(format!("it uses RoPE scaling {other}, which is not supported")),
        }
    }
}

/// Llama 3.1's scaling of one inverse frequency, with the same operations as transformers' `_compute_llama3_parameters`.
/// Long wavelengths are stretched by `factor`, short ones stay unchanged, and those in between are interpolated.
fn llama3(frequency: f32, factor: f32, low: f32, high: f32, original: f32) -> f32 {
    let wave = 2.0 * std::f32::consts::PI / frequency;
    if wave > original / low {
        return frequency / factor;
    }
    if wave < original / high {
        return frequency;
    }
    let smooth = (original / wave - low) / (high - low);
    (1.0 - smooth) * frequency / factor + smooth * frequency
}
