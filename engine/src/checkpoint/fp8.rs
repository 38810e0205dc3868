//! The FP8 weights of a checkpoint: which of them keep their codes.

#[cfg(any(test, feature = "cuda"))]
use crate::dequantise::floats;
use crate::error::OpenError;
use crate::model::Quantization;
use crate::model::tensors::TensorRow;
use crate::quantised::OutputCodes;

use super::{Checkpoint, CheckpointFiles, FolderTensors};

impl Checkpoint {
    fn folder(&self) -> Option<&FolderTensors> {
        match &self.files {
            CheckpointFiles::Folder(tensors) => Some(tensors),
            CheckpointFiles::Gguf(_) | CheckpointFiles::ConfigOnly => None,
        }
    }

    /// True if the engine uses codes of the checkpoint as they are.
    pub(crate) fn keeps_codes(&self, quantization: Quantization) -> bool {
        self.tensors.iter().any(|row| self.keeps_codes_of(row, quantization))
    }

    fn keeps_codes_of(&self, row: &TensorRow, quantization: Quantization) -> bool {
        let is_kept = |tensors: &FolderTensors| tensors.has_output_codes(row);
        quantization.keeps_codes() && row.is_quantised() && self.folder().is_some_and(is_kept)
    }

    /// The codes and scales of a matrix whose codes the engine uses as they are. `None` for other tensors. Rows that RoPE rotates together are adjacent.
    pub(crate) fn kept_codes(
        &self,
        row: &TensorRow,
        quantization: Quantization,
    ) -> Result<Option<OutputCodes>, OpenError> {
        let Some(tensors) = self.folder().filter(|_| self.keeps_codes_of(row, quantization)) else {
            return Ok(None);
        };
        let Some(OutputCodes { codes, scales }) = tensors.output_codes(row)? else { return Ok(None) };
        let scales: Vec<u8> = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
        let scales = self.in_pairs(row, scales);
        Ok(Some(OutputCodes {
            codes: self.in_pairs(row, codes),
            scales: scales.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
        }))
    }

    /// The codes and scales of matrices with the same inputs, one after the other, if the engine uses those of one of them as they are. The others are
    /// rounded.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn stacked_codes(
        &self,
        rows: &[TensorRow],
        quantization: Quantization,
    ) -> Result<Option<OutputCodes>, OpenError> {
        if !rows.iter().any(|row| self.keeps_codes_of(row, quantization)) {
            return Ok(None);
        }
        let mut stacked = OutputCodes::default();
        for row in rows {
            stacked.append(match self.kept_codes(row, quantization)? {
                Some(kept) => kept,
                None => {
                    OutputCodes::rounded(&floats(self.require(row)?, &self.read(row)?), row.dimensions[0])
                }
            });
        }
        Ok(Some(stacked))
    }

    /// Logs which scales are unused.
    pub(super) fn log_fp8(&self) {
        let Some(tensors) = self.folder() else { return };
        let unused = tensors.unused_scales();
        if unused.inputs + unused.cache > 0 {
            tracing::info!(
                input_scales = unused.inputs,
                kv_scales = unused.cache,
                "scales of activations and of the KV cache are ignored"
            );
        }
    }
}

#[cfg(test)]
mod tests;
