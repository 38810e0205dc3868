//! The tensors of a Hugging Face folder: floats as they are stored, and FP8 weights with their scales as bf16 or as codes.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::OpenError;
use crate::gguf::TensorType;
use crate::model::tensors::TensorRow;
use crate::quantised::{Companion, Fp8Matrix, Fp8Numbers, Fp8Scheme, OutputCodes, without_scheme};
use crate::safetensors::{Safetensors, SafetensorsError, StoredType};

/// The open files of a folder, and how its weights are quantised.
#[derive(Debug)]
pub(super) struct FolderTensors {
    path: PathBuf,
    files: Safetensors,
    /// `None` if `config.json` has no `quantization_config`.
    scheme: Option<Fp8Scheme>,
    unused: UnusedScales,
}

/// How many scales of a folder are unused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct UnusedScales {
    /// Of the rows that matrices multiply. Baton computes these scales for each row.
    pub(super) inputs: usize,
    /// Of queries, keys and values.
    pub(super) cache: usize,
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
        let folder = Self { path: path.to_owned(), files, scheme, unused: UnusedScales::default() };
        let unused = folder.check().map_err(unsupported)?;
        Ok(Self { unused, ..folder })
    }

    /// Checks the types of all tensors, and counts the unused scales.
    fn check(&self) -> Result<UnusedScales, String> {
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
        let mut unused = UnusedScales::default();
        for name in names {
            match self.companion(name) {
                Some(Companion::Scales(weight)) if self.kind_of(&weight) != Some(&StoredType::E4M3) => {
                    let kind = self.kind_of(&weight).map(ToString::to_string).unwrap_or_default();
                    return Err(format!(
                        "it has scales {name}, but {weight} is {kind} and not F8_E4M3; use an unquantised checkpoint of the model, or one in FP8"
                    ));
                }
                Some(Companion::Inputs) => unused.inputs += 1,
                Some(Companion::Cache) => unused.cache += 1,
                Some(Companion::Scales(_)) | None => {}
            }
        }
        Ok(unused)
    }

    /// How many scales are unused.
    pub(super) fn unused_scales(&self) -> UnusedScales {
        self.unused
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
        if !self.is_fp8(row) {
            return self.bytes(&row.hugging_face);
        }
        let (matrix, numbers) = self.fp8(row)?;
        Ok(matrix.to_bf16(&numbers))
    }

    /// True if a tensor is in FP8.
    pub(super) fn is_fp8(&self, row: &TensorRow) -> bool {
        self.kind_of(&row.hugging_face) == Some(&StoredType::E4M3)
    }

    /// True if [`output_codes`](Self::output_codes) returns codes for a tensor whose [`kind`](Self::kind) is supported.
    pub(super) fn has_output_codes(&self, row: &TensorRow) -> bool {
        self.is_fp8(row) && self.matrix(row).is_ok_and(|matrix| matrix.has_output_scales())
    }

    /// The codes of a tensor in FP8 whose scales are for outputs or for the whole tensor. `None` for other tensors.
    pub(super) fn output_codes(&self, row: &TensorRow) -> Result<Option<OutputCodes>, OpenError> {
        if !self.has_output_codes(row) {
            return Ok(None);
        }
        let (matrix, numbers) = self.fp8(row)?;
        Ok(matrix.to_output_codes(numbers))
    }

    /// The numbers of a tensor in FP8.
    fn fp8(&self, row: &TensorRow) -> Result<(Fp8Matrix, Fp8Numbers), OpenError> {
        let unsupported = |what| OpenError::UnsupportedModel { path: self.path.clone(), what };
        let matrix = self.matrix(row).map_err(unsupported)?;
        let (codes, scales) = (self.bytes(&row.hugging_face)?, self.bytes(&matrix.scales)?);
        let numbers = matrix.numbers(codes, &scales).map_err(unsupported)?;
        Ok((matrix, numbers))
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>, OpenError> {
        self.files.read(name).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: SafetensorsError) -> OpenError {
        OpenError::Safetensors { path: self.path.clone(), error }
    }
}
