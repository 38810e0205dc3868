//! Small random models of every family, as Hugging Face folders and as GGUF files. The answers of transformers are in
//! `fixtures/models.json`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use common::splitmix::{STEP, mix};
use half::{bf16, f16};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// A model of `fixtures/models.json`. Its salt determines its weights.
#[derive(Clone, Debug, Deserialize)]
pub struct SmallModel {
    /// The model's name.
    pub name: String,
    /// The model's `config.json`.
    pub config: Value,
    /// Token ids.
    pub prompt: Vec<u32>,
    /// The greedy answer of transformers in float32.
    pub ids: Vec<u32>,
    pub(crate) dtype: String,
    shards: usize,
    pub(crate) salt: String,
}

/// All models of the fixture.
///
/// # Errors
/// The fixture cannot be read.
pub fn small_models() -> Result<Vec<SmallModel>> {
    #[derive(Deserialize)]
    struct File {
        models: Vec<SmallModel>,
    }
    Ok(serde_json::from_str::<File>(include_str!("../fixtures/models.json"))?.models)
}

/// A folder that is removed when this value is dropped.
#[derive(Debug)]
pub struct Folder(pub(crate) PathBuf);

impl Folder {
    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The seed of the numbers of a name.
pub(crate) fn seed(name: &str) -> u64 {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv)
}

/// A number between -1 and 1, equal to that of `numbers` in `make_models.py`.
pub(crate) fn number(seed: u64, index: u64) -> f32 {
    (mix(seed.wrapping_add((index + 1).wrapping_mul(STEP))) >> 40) as f32 / (1u32 << 23) as f32 - 1.0
}

/// The numbers of a tensor, equal to those of `tensor` in `make_models.py` before they are stored.
pub(crate) fn numbers(salt: &str, name: &str, shape: &[u64]) -> Vec<f32> {
    let seed = seed(&format!("{salt}/{name}"));
    let (mean, scale) = match shape {
        _ if name.ends_with(".bias") => (0.0, 0.5),
        _ if name.ends_with("q_norm.weight") || name.ends_with("k_norm.weight") => (1.0, 0.5),
        [_] => (1.0, 0.125),
        _ => (0.0, 2f32.powi(1 - shape[1].ilog2() as i32 / 2)),
    };
    (0..shape.iter().product()).map(|index| mean + number(seed, index) * scale).collect()
}

/// The number that a file in `dtype` has for `value`.
pub(crate) fn rounded(value: f32, dtype: &str) -> f32 {
    match dtype {
        "F32" => value,
        "F16" => f16::from_f32(value).to_f32(),
        _ => bf16::from_f32(value).to_f32(),
    }
}

/// The bytes of numbers in a file in `dtype`.
pub(crate) fn stored(numbers: &[f32], dtype: &str) -> Vec<u8> {
    let store = |value: &f32| match dtype {
        "F32" => value.to_le_bytes().to_vec(),
        "F16" => f16::from_f32(*value).to_le_bytes().to_vec(),
        _ => bf16::from_f32(*value).to_le_bytes().to_vec(),
    };
    numbers.iter().flat_map(store).collect()
}

/// Names and shapes of the tensors in transformers.
pub(crate) fn tensors(config: &Value) -> Vec<(String, Vec<u64>)> {
    let size = |key: &str| config[key].as_u64().unwrap_or_default();
    let (hidden, feed, vocabulary) = (size("hidden_size"), size("intermediate_size"), size("vocab_size"));
    let head = config["head_dim"].as_u64().unwrap_or(hidden / size("num_attention_heads"));
    let (query, key) = (size("num_attention_heads") * head, size("num_key_value_heads") * head);
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if config["tie_word_embeddings"] == false {
        all.push(("lm_head.weight".to_owned(), vec![vocabulary, hidden]));
    }
    for layer in 0..size("num_hidden_layers") {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![query, hidden]),
            ("self_attn.k_proj", vec![key, hidden]),
            ("self_attn.v_proj", vec![key, hidden]),
            ("self_attn.o_proj", vec![hidden, query]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![feed, hidden]),
            ("mlp.up_proj", vec![feed, hidden]),
            ("mlp.down_proj", vec![hidden, feed]),
        ] {
            all.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
        let vectors = match config["model_type"].as_str() {
            Some("qwen2") => vec![("q_proj.bias", query), ("k_proj.bias", key), ("v_proj.bias", key)],
            Some("qwen3") => vec![("q_norm.weight", head), ("k_norm.weight", head)],
            _ => Vec::new(),
        };
        for (name, size) in vectors {
            all.push((format!("model.layers.{layer}.self_attn.{name}"), vec![size]));
        }
    }
    all
}

fn safetensors(entries: &[(String, Vec<u64>)], salt: &str, dtype: &str) -> Result<Vec<u8>> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    for (name, shape) in entries {
        let bytes = stored(&numbers(salt, name, shape), dtype);
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend(bytes);
    }
    let header = serde_json::to_vec(&header)?;
    Ok([&(header.len() as u64).to_le_bytes()[..], &header, &data].concat())
}

impl SmallModel {
    /// A model that is in no fixture.
    pub(crate) fn without_answer(name: &str, config: Value, prompt: Vec<u32>) -> Self {
        let (dtype, salt) = ("BF16".to_owned(), name.to_owned());
        Self { name: name.to_owned(), config, prompt, ids: Vec::new(), dtype, shards: 1, salt }
    }

    /// An empty folder.
    pub(crate) fn folder(&self, purpose: &str) -> Result<Folder> {
        let name = format!("baton-{purpose}-{}-{}", std::process::id(), self.name);
        let folder = Folder(std::env::temp_dir().join(name));
        fs::create_dir_all(&folder.0)?;
        Ok(folder)
    }

    /// Writes the configuration, the tokenizer and the chat template.
    pub(crate) fn write_texts(&self, folder: &Folder) -> Result<()> {
        let put = |name: &str, text: String| fs::write(folder.0.join(name), text);
        put("config.json", self.config.to_string())?;
        put("tokenizer.json", tokenizer().to_string())?;
        let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
        put("tokenizer_config.json", json!({"chat_template": template}).to_string())?;
        Ok(())
    }

    /// Writes the folder of the model.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, purpose: &str) -> Result<Folder> {
        let folder = self.folder(purpose)?;
        self.write_texts(&folder)?;
        let put = |name: &str, bytes: &[u8]| fs::write(folder.0.join(name), bytes);
        let all = tensors(&self.config);
        let mut places = Map::new();
        for (n, part) in all.chunks(all.len().div_ceil(self.shards)).enumerate() {
            let file = match self.shards {
                1 => "model.safetensors".to_owned(),
                shards => format!("model-{:05}-of-{shards:05}.safetensors", n + 1),
            };
            put(&file, &safetensors(part, &self.salt, &self.dtype)?)?;
            places.extend(part.iter().map(|(name, _)| (name.clone(), json!(file))));
        }
        if self.shards > 1 {
            put("model.safetensors.index.json", json!({"weight_map": places}).to_string().as_bytes())?;
        }
        Ok(folder)
    }
}

/// A byte-level tokenizer with as many characters as the models have tokens.
fn tokenizer() -> Value {
    let vocabulary: Map<String, Value> =
        (b'!'..).take(75).enumerate().map(|(id, byte)| (char::from(byte).to_string(), json!(id))).collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [], "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    })
}
