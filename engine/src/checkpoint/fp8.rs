//! The FP8 weights of a checkpoint: which of them keep their codes, and what the log says about them.

#[cfg(any(test, feature = "cuda"))]
use crate::dequantise::floats;
use crate::error::OpenError;
use crate::model::tensors::TensorRow;
use crate::model::{EngineConfig, KvCacheDtype, Quantization};
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

    /// Logs what becomes of the FP8 weights of the layers, and which scales are unused.
    pub(super) fn log_fp8(&self, config: &EngineConfig) {
        let Some(tensors) = self.folder() else { return };
        let fp8 = self.tensors.iter().filter(|row| row.is_quantised() && tensors.is_fp8(row));
        let (kept, changed): (Vec<_>, Vec<_>) =
            fp8.partition(|row| self.keeps_codes_of(row, config.quantization));
        if !kept.is_empty() {
            tracing::info!(matrices = kept.len(), "codes and scales of FP8 weights are used as they are");
        }
        if !changed.is_empty() {
            let can_keep = changed.iter().any(|row| self.keeps_codes_of(row, Quantization::Fp8));
            log_changed(changed.len(), config.quantization, can_keep);
        }
        let unused = tensors.unused_scales();
        if unused.inputs + unused.cache > 0 {
            tracing::info!(
                input_scales = unused.inputs,
                kv_scales = unused.cache,
                "scales of activations and of the KV cache are ignored"
            );
        }
        if unused.cache > 0 && config.kv_dtype == KvCacheDtype::Fp8 {
            tracing::warn!(
                kv_scales = unused.cache,
                "KV pages in FP8 have the scale 1 instead of the checkpoint's scales: set engine.kv_dtype to auto if answers are worse"
            );
        }
    }
}

/// Logs what becomes of FP8 weights whose codes are not used as they are. `can_keep` says whether they would be with [`Quantization::Fp8`].
fn log_changed(matrices: usize, quantization: Quantization, can_keep: bool) {
    match (quantization, can_keep) {
        (Quantization::None, true) => tracing::info!(
            matrices,
            "FP8 weights become bf16: set engine.quantization to fp8 to compute with their codes and scales"
        ),
        (Quantization::None, false) => tracing::info!(matrices, "FP8 weights become bf16"),
        (_, true) => tracing::warn!(
            matrices,
            "FP8 weights are rounded again, to scales that are powers of two: set engine.quantization to fp8 to compute with their codes and scales"
        ),
        (_, false) => tracing::warn!(
            matrices,
            "FP8 weights with scales for blocks are rounded again, to scales for outputs: set engine.quantization to none to compute with them in bf16"
        ),
    }
}

#[cfg(test)]
mod tests;
