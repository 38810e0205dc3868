//! Small random models in FP8, as Hugging Face folders of compressed-tensors and of `quant_method: fp8`. The answers of transformers are in
//! `fixtures/fp8.json`.

use std::fs;

use anyhow::{Result, ensure};
use serde::Deserialize;
use serde_json::{Map, json};
use sha2::{Digest, Sha256};

use crate::folders::{Folder, SmallModel, number, numbers, stored};

/// A model of `fixtures/fp8.json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Fp8Model {
    /// Its configuration, prompt and answer.
    #[serde(flatten)]
    pub small: SmallModel,
    files: Vec<Fp8File>,
    /// Of the contents of all tensors, in the order of the files.
    sha256: String,
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
    let salted = format!("{salt}/{name}");
    let all = 0..shape.iter().product();
    if dtype == "F8_E4M3" {
        let code = |index| match ((number(&salted, index) + 1.0) * 128.0) as u8 {
            nan @ (0x7f | 0xff) => nan - 1,
            0x80 => 0,
            code => code,
        };
        return all.map(code).collect();
    }
    if is_scale(name) {
        let scale = |index| (1.0 + number(&salted, index) * 0.5) / 1024.0;
        return stored(&all.map(scale).collect::<Vec<f32>>(), dtype);
    }
    stored(&numbers(salt, name, shape), dtype)
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
        ensure!(found == self.sha256, "{} has other tensors than the checkpoint", self.small.name);
        Ok(folder)
    }
}
