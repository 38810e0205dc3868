//! A Llama in a Hugging Face folder: its `config.json`, and the names and row order of its tensors.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::OpenError;
use crate::model::{HEADS_MAX, LAYERS_MAX, ModelShape, SIZE_MAX, VOCABULARY_MAX, inverse_frequencies};
use crate::safetensors::Safetensors;

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
    rope_theta: Option<f64>,
    /// Written by transformers before version 5.
    rope_scaling: Option<Rope>,
    /// Written by transformers 5 and later. It contains `rope_theta`.
    rope_parameters: Option<Rope>,
    eos_token_id: Option<Value>,
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

    pub(super) fn is_tied(&self) -> bool {
        self.tie_word_embeddings
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

    /// The model's sizes.
    ///
    /// # Errors
    /// The model uses a feature that the forward pass does not support, or a size is out of range.
    pub(super) fn shape(&self, folder: &Path) -> Result<ModelShape, OpenError> {
        let unsupported = |what: String| OpenError::UnsupportedModel { path: folder.to_owned(), what };
        if self.model_type != "llama" {
            return Err(OpenError::UnsupportedArchitecture {
                path: folder.to_owned(),
                architecture: self.model_type.clone(),
            });
        }
        if self.attention_bias || self.mlp_bias {
            return Err(unsupported("it has biases, which are not supported".to_owned()));
        }
        if let Some(other) = self.hidden_act.as_deref().filter(|name| *name != "silu") {
            return Err(unsupported(format!("its activation is {other}, but only silu is supported")));
        }
        let size = |name: &str, value: u64, max: u64| {
            let fits = (1..=max).contains(&value).then_some(value as usize);
            fits.ok_or_else(|| unsupported(format!("{name} is {value}, not between 1 and {max}")))
        };
        let heads = size("num_attention_heads", self.num_attention_heads, HEADS_MAX)?;
        let hidden = size("hidden_size", self.hidden_size, SIZE_MAX)?;
        let kv_heads = self.num_key_value_heads.unwrap_or(self.num_attention_heads);
        let head_dim = self.head_dim.unwrap_or((hidden / heads) as u64);
        let head_dim = size("head_dim", head_dim, HEADS_MAX)?;
        let frequencies = self.frequencies(head_dim).map_err(unsupported)?;
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return Err(unsupported(format!("rms_norm_eps is {}, but must be above 0", self.rms_norm_eps)));
        }
        let shape = ModelShape {
            layers: size("num_hidden_layers", self.num_hidden_layers, LAYERS_MAX)?,
            hidden,
            heads,
            kv_heads: size("num_key_value_heads", kv_heads, HEADS_MAX)?,
            head_dim,
            feed_forward: size("intermediate_size", self.intermediate_size, SIZE_MAX)?,
            vocabulary: size("vocab_size", self.vocab_size, VOCABULARY_MAX)?,
            context_tokens: size("max_position_embeddings", self.max_position_embeddings, SIZE_MAX)? as u32,
            norm_epsilon: self.rms_norm_eps as f32,
            inverse_frequencies: frequencies,
        };
        shape.check().map_err(unsupported)?;
        Ok(shape)
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

/// The Hugging Face name of the tensor whose GGUF name is `name`.
pub(super) fn name_of(name: &str) -> String {
    let Some((layer, part)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        return match name {
            "token_embd.weight" => "model.embed_tokens.weight",
            "output_norm.weight" => "model.norm.weight",
            "output.weight" => "lm_head.weight",
            other => other,
        }
        .to_owned();
    };
    let part = match part {
        "attn_norm.weight" => "input_layernorm.weight",
        "attn_q.weight" => "self_attn.q_proj.weight",
        "attn_k.weight" => "self_attn.k_proj.weight",
        "attn_v.weight" => "self_attn.v_proj.weight",
        "attn_output.weight" => "self_attn.o_proj.weight",
        "ffn_norm.weight" => "post_attention_layernorm.weight",
        "ffn_gate.weight" => "mlp.gate_proj.weight",
        "ffn_up.weight" => "mlp.up_proj.weight",
        "ffn_down.weight" => "mlp.down_proj.weight",
        other => other,
    };
    format!("model.layers.{layer}.{part}")
}

/// Refuses a folder with tensors that the forward pass does not use.
pub(super) fn check_names(tensors: &Safetensors, shape: &ModelShape, folder: &Path) -> Result<(), OpenError> {
    let known: std::collections::HashSet<String> =
        shape.tensor_names().iter().map(|name| name_of(name)).collect();
    // Old files also store RoPE's frequencies, which are computed from the configuration.
    let unknown = |name: &&str| !known.contains(*name) && !name.ends_with("rotary_emb.inv_freq");
    match tensors.names().find(unknown) {
        Some(name) => Err(OpenError::UnsupportedModel {
            path: folder.to_owned(),
            what: format!("it has a tensor {name}, which the forward pass does not use"),
        }),
        None => Ok(()),
    }
}

/// Reorders the rows of queries or keys from Hugging Face's order, where the two rows of a pair are half a head apart, to
/// GGUF's, where they are adjacent.
pub(super) fn interleave_pairs(bytes: &[u8], dimensions: &[u64], head_dim: usize) -> Vec<u8> {
    let rows = dimensions.first().copied().unwrap_or_default() as usize;
    let row_bytes = bytes.len() / rows.max(1);
    let mut out = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let (head, place) = (row / head_dim, row % head_dim);
        let from = head * head_dim + place % 2 * (head_dim / 2) + place / 2;
        out.extend_from_slice(&bytes[from * row_bytes..][..row_bytes]);
    }
    out
}
