//! The tensors of a Hugging Face folder: floats as they are stored, and FP8 weights with their scales as bf16.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::OpenError;
use crate::gguf::TensorType;
use crate::model::tensors::TensorRow;
use crate::quantised::{Companion, Fp8Matrix, Fp8Scheme, without_scheme};
use crate::safetensors::{Safetensors, SafetensorsError, StoredType};

/// The open files of a folder, and how its weights are quantised.
#[derive(Debug)]
pub(super) struct FolderTensors {
    path: PathBuf,
    files: Safetensors,
    /// `None` if `config.json` has no `quantization_config`.
    scheme: Option<Fp8Scheme>,
}

impl FolderTensors {
    /// Opens the files of the folder `path`, whose `config.json` has this `quantization_config`.
    ///
    /// # Errors
    /// The quantisation is not supported, a file cannot be read, a tensor has an unsupported type, or scales belong to a weight that is not in FP8.
    pub(super) fn open(path: &Path, quantization: Option<&Value>) -> Result<Self, OpenError> {
        let unsupported = |what| OpenError::UnsupportedModel { path: path.to_owned(), what };
        let scheme = quantization.map(Fp8Scheme::of).transpose().map_err(unsupported)?;
        let files = Safetensors::open(path)
            .map_err(|error| OpenError::Safetensors { path: path.to_owned(), error })?;
        let folder = Self { path: path.to_owned(), files, scheme };
        folder.check().map_err(unsupported)?;
        Ok(folder)
    }

    /// Checks the types of all tensors, and logs which scales are unused.
    fn check(&self) -> Result<(), String> {
        let mut names: Vec<&str> = self.files.names().collect();
        names.sort_unstable();
        for name in &names {
            if let Some(StoredType::Other(_)) = self.kind_of(name)
                && (name.ends_with(".weight") || name.ends_with(".bias"))
            {
                return Err(self.unread(name));
            }
            if self.scheme.is_none() && self.kind_of(name) == Some(&StoredType::E4M3) {
                return Err(without_scheme(name));
            }
        }
        let (mut inputs, mut cache) = (0, 0);
        for name in names {
            match self.companion(name) {
                Some(Companion::Scales(weight)) if self.kind_of(&weight) != Some(&StoredType::E4M3) => {
                    let kind = self.kind_of(&weight).map(ToString::to_string).unwrap_or_default();
                    return Err(format!(
                        "it has scales {name}, but {weight} is {kind} and not F8_E4M3; use an unquantised checkpoint of the model, or one in FP8"
                    ));
                }
                Some(Companion::Inputs) => inputs += 1,
                Some(Companion::Cache) => cache += 1,
                Some(Companion::Scales(_)) | None => {}
            }
        }
        if inputs + cache > 0 {
            tracing::info!(
                input_scales = inputs,
                kv_scales = cache,
                "scales of activations and of the KV cache are ignored: only the weights are in FP8"
            );
        }
        Ok(())
    }

    fn kind_of(&self, name: &str) -> Option<&StoredType> {
        self.files.get(name).map(|stored| &stored.kind)
    }

    /// Why a tensor of an unsupported type is refused.
    fn unread(&self, name: &str) -> String {
        let kind = self.kind_of(name).map(ToString::to_string).unwrap_or_default();
        format!(
            "tensor {name} is {kind}, but only F32, F16, BF16, and F8_E4M3 with scales are supported; use an unquantised checkpoint of the model, or one in FP8"
        )
    }

    /// The use of a tensor that belongs to another one. Folders without a scheme have no such tensors.
    fn companion(&self, name: &str) -> Option<Companion> {
        self.scheme?;
        Companion::of(name, |other| self.files.get(other).is_some())
    }

    /// The names of the tensors, without those that belong to a quantised weight.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.files.names().filter(|name| self.companion(name).is_none())
    }

    /// The files, in the order of their names.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.files.paths(&self.path)
    }

    /// The dimensions of a tensor, the contiguous one first. `None` if no file has it.
    pub(super) fn dimensions(&self, row: &TensorRow) -> Option<Vec<u64>> {
        let stored = self.files.get(&row.hugging_face)?;
        Some(stored.dimensions.iter().rev().copied().collect())
    }

    /// The type in which [`read`](Self::read) returns a tensor that has the row's dimensions.
    ///
    /// # Errors
    /// No file has the tensor, its type is unsupported, or its scales are missing or do not fit.
    pub(super) fn kind(&self, row: &TensorRow) -> Result<TensorType, String> {
        match self.kind_of(&row.hugging_face) {
            Some(StoredType::Float(kind)) => Ok(*kind),
            Some(StoredType::E4M3) => self.matrix(row).map(|_| TensorType::BF16),
            Some(StoredType::Other(_)) => Err(self.unread(&row.hugging_face)),
            None => Err(format!("tensor {} is missing", row.hugging_face)),
        }
    }

    /// A tensor in FP8, with its scales.
    fn matrix(&self, row: &TensorRow) -> Result<Fp8Matrix, String> {
        let name = &row.hugging_face;
        let [inputs, outputs] = row.dimensions[..] else {
            return Err(format!(
                "tensor {name} is a vector in F8_E4M3, but vectors must be in F32, F16 or BF16; use another checkpoint of the model"
            ));
        };
        Fp8Matrix::of(name, [outputs, inputs], self.scheme, |name| {
            self.files.get(name).map(|stored| (&stored.kind, &stored.dimensions[..]))
        })
    }

    /// The bytes of a tensor, in the type that [`kind`](Self::kind) returns.
    pub(super) fn read(&self, row: &TensorRow) -> Result<Vec<u8>, OpenError> {
        let bytes = |name: &str| self.files.read(name).map_err(|error| self.failed(error));
        let name = &row.hugging_face;
        if self.kind_of(name) != Some(&StoredType::E4M3) {
            return bytes(name);
        }
        let unsupported = |what| OpenError::UnsupportedModel { path: self.path.clone(), what };
        let matrix = self.matrix(row).map_err(unsupported)?;
        let numbers = matrix.numbers(bytes(name)?, &bytes(&matrix.scales)?).map_err(unsupported)?;
        Ok(matrix.to_bf16(&numbers))
    }

    fn failed(&self, error: SafetensorsError) -> OpenError {
        OpenError::Safetensors { path: self.path.clone(), error }
    }
}
