//! Small random models in FP8, as Hugging Face folders of compressed-tensors and of `quant_method: fp8`. The answers of transformers are in
//! `fixtures/fp8.json`.

use std::fs;

use anyhow::{Result, ensure};
use serde::Deserialize;
use serde_json::{Map, json};
use sha2::{Digest, Sha256};

use crate::folders::{Folder, SmallModel, number, numbers, seed, stored, tensors};

/// A model of `fixtures/fp8.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Fp8Model {
    /// Its configuration, prompt and answer.
    #[serde(flatten)]
    pub small: SmallModel,
    files: Vec<Fp8File>,
    /// Of the contents of all tensors, in the order of the files. `None` for a model that is in no fixture.
    sha256: Option<String>,
}

/// A file of a folder.
#[derive(Clone, Debug, Deserialize)]
struct Fp8File {
    name: String,
    /// Name, type and shape, in the order of the file.
    tensors: Vec<(String, String, Vec<u64>)>,
}

/// All models of the fixture.
///
/// # Errors
/// The fixture cannot be read.
pub fn fp8_models() -> Result<Vec<Fp8Model>> {
    #[derive(Deserialize)]
    struct File {
        models: Vec<Fp8Model>,
    }
    Ok(serde_json::from_str::<File>(include_str!("../fixtures/fp8.json"))?.models)
}

fn is_scale(name: &str) -> bool {
    name.ends_with("_scale") || name.ends_with("_scale_inv")
}

/// The bytes of a tensor, equal to those of `content` in `make_fp8.py`.
fn content(salt: &str, name: &str, dtype: &str, shape: &[u64]) -> Vec<u8> {
    let seed = seed(&format!("{salt}/{name}"));
    let all = 0..shape.iter().product();
    if dtype == "F8_E4M3" {
        let code = |index| match ((number(seed, index) + 1.0) * 128.0) as u8 {
            nan @ (0x7f | 0xff) => nan - 1,
            0x80 => 0,
            code => code,
        };
        return all.map(code).collect();
    }
    if is_scale(name) {
        let scale = |index| (1.0 + number(seed, index) * 0.5) / 1024.0;
        return stored(&all.map(scale).collect::<Vec<f32>>(), dtype);
    }
    stored(&numbers(salt, name, shape), dtype)
}

/// A layer with the matrices of Llama-3.1-8B and with a scale for each output. There is no fixture with its answer.
pub fn wide_fp8_model() -> Fp8Model {
    let config = json!({
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 1, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 75, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0, "tie_word_embeddings": true, "hidden_act": "silu", "eos_token_id": 2,
        "quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    });
    let mut stored = Vec::new();
    for (name, shape) in tensors(&config) {
        if name.ends_with("_proj.weight") {
            stored.push((format!("{name}_scale"), "F32".to_owned(), vec![shape[0], 1]));
            stored.push((name, "F8_E4M3".to_owned(), shape));
        } else {
            stored.push((name, "BF16".to_owned(), shape));
        }
    }
    let files = vec![Fp8File { name: "model.safetensors".to_owned(), tensors: stored }];
    Fp8Model { small: SmallModel::without_answer("wide-fp8", config, (0..40).collect()), files, sha256: None }
}

impl Fp8Model {
    /// The numbers in all tensors that are not scales.
    pub fn weights(&self) -> u64 {
        let tensors = self.files.iter().flat_map(|file| &file.tensors);
        let weights = tensors.filter(|(name, ..)| !is_scale(name));
        weights.map(|(_, _, shape)| shape.iter().product::<u64>()).sum()
    }

    /// Writes the folder of the model. Its tensors are those of the checkpoint that the fixture describes.
    ///
    /// # Errors
    /// A file cannot be written, or a tensor has other contents than the checkpoint's.
    pub fn write(&self, purpose: &str) -> Result<Folder> {
        let folder = self.small.folder(purpose)?;
        self.small.write_texts(&folder)?;
        let (mut digest, mut places) = (Sha256::new(), Map::new());
        for file in &self.files {
            let (mut header, mut data) = (Map::new(), Vec::new());
            header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
            for (name, dtype, shape) in &file.tensors {
                let bytes = content(&self.small.salt, name, dtype, shape);
                let offsets = [data.len(), data.len() + bytes.len()];
                header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
                data.extend(bytes);
                places.insert(name.clone(), json!(file.name));
            }
            digest.update(&data);
            let header = serde_json::to_vec(&header)?;
            let bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
            fs::write(folder.path().join(&file.name), bytes)?;
        }
        if self.files.len() > 1 {
            let index = json!({"weight_map": places}).to_string();
            fs::write(folder.path().join("model.safetensors.index.json"), index)?;
        }
        let found: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let is_right = self.sha256.as_ref().is_none_or(|sha256| *sha256 == found);
        ensure!(is_right, "{} has other tensors than the checkpoint", self.small.name);
        Ok(folder)
    }
}
