//! A weight matrix on the device, in bf16 or in FP8.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use half::bf16;

use super::device::{Buffer, CudaDevice, Result, Stream};
use super::kernels::{
    baton_dequantise_rows, baton_fp8_products_max, baton_quantise_rows, baton_row_products_max, launch,
};
use crate::gpu::arguments::{DequantiseRows, QuantiseRows};
use crate::model::Quantization;

/// A matrix, or a vector, of weights. A matrix is `[outputs][inputs]`.
pub(super) enum StoredMatrix {
    Bf16(Buffer),
    /// FP8 weights that multiply rows in bf16, in the format of `kernels/fp8.cuh`.
    Fp8Weights(RoundedMatrix),
    /// FP8 weights that multiply rows in FP8: the codes of an output are one after the other.
    Fp8(RoundedMatrix),
}

/// FP8 weights.
pub(super) struct RoundedMatrix {
    /// `[outputs][inputs / 4]`, with four codes each.
    words: Buffer,
    /// The scale of each output: a power of two if the engine has rounded the weights.
    scales: Buffer,
}

/// The most rows that one call of our kernel multiplies with a matrix of `outputs` outputs and this rounding.
pub(super) fn rows_few(quantization: Quantization, outputs: usize) -> usize {
    let rows = match quantization {
        Quantization::None => baton_row_products_max(0),
        Quantization::Fp8Weights => baton_row_products_max(1),
        Quantization::Fp8 => baton_fp8_products_max(outputs as i32),
    };
    rows as usize
}

impl StoredMatrix {
    /// Bytes on the device.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Bf16(numbers) => numbers.bytes(),
            Self::Fp8Weights(rounded) | Self::Fp8(rounded) => rounded.words.bytes() + rounded.scales.bytes(),
        }
    }

    /// The most rows that one call of our kernel multiplies with these weights of `outputs` outputs.
    pub(super) fn rows_few(&self, outputs: usize) -> usize {
        let quantization = match self {
            Self::Bf16(_) => Quantization::None,
            Self::Fp8Weights(_) => Quantization::Fp8Weights,
            Self::Fp8(_) => Quantization::Fp8,
        };
        rows_few(quantization, outputs)
    }

    /// The addresses of the weights and, in FP8, of the scales of their outputs.
    ///
    /// # Panics
    /// If the matrix is smaller.
    pub(super) fn addresses(&self, outputs: usize, inputs: usize) -> (*const c_void, *const f32) {
        match self {
            Self::Bf16(numbers) => {
                (numbers.numbers::<bf16>(0, outputs * inputs).cast_const().cast(), ptr::null())
            }
            Self::Fp8Weights(RoundedMatrix { words, scales })
            | Self::Fp8(RoundedMatrix { words, scales }) => (
                words.numbers::<u32>(0, outputs * inputs / 4).cast_const().cast(),
                scales.numbers::<f32>(0, outputs).cast_const(),
            ),
        }
    }

    /// The numbers of a tensor that is not in FP8.
    ///
    /// # Panics
    /// If it is.
    pub(super) fn bf16(&self) -> &Buffer {
        match self {
            Self::Bf16(numbers) => numbers,
            _ => panic!("only matrices of layers are in FP8"),
        }
    }

    /// The numbers of a tensor that is never in FP8.
    ///
    /// # Panics
    /// If it is.
    pub(super) fn into_bf16(self) -> Buffer {
        match self {
            Self::Bf16(numbers) => numbers,
            _ => panic!("only matrices of layers are in FP8"),
        }
    }
}

impl RoundedMatrix {
    /// A matrix of [`StoredMatrix::Fp8`] with these codes, one after the other for each output, and these scales of outputs.
    pub(super) fn plain(device: &Arc<CudaDevice>, codes: &[u8], scales: &[f32]) -> Result<Self> {
        Ok(Self { words: Buffer::of(device, codes)?, scales: Buffer::of(device, scales)? })
    }

    /// Rounds a matrix in bf16. The codes of an output are one after the other if `is_plain`. Waits for the kernel.
    ///
    /// # Panics
    /// If the buffer is too short.
    pub(super) fn of(
        numbers: &Buffer,
        (outputs, inputs): (usize, usize),
        is_plain: bool,
        stream: &Stream,
    ) -> Result<Self> {
        let words = Buffer::new(stream.device(), outputs * inputs)?;
        let scales = Buffer::new(stream.device(), outputs * size_of::<f32>())?;
        let arguments = QuantiseRows {
            weights: numbers.numbers::<bf16>(0, outputs * inputs),
            words: words.numbers(0, outputs * inputs / 4),
            scales: scales.numbers(0, outputs),
            outputs: outputs as i32,
            inputs: inputs as i32,
            plain: i32::from(is_plain),
        };
        // SAFETY: the buffers have the sizes in the arguments, as just checked, and live until the wait below.
        unsafe { launch("baton_quantise_rows", baton_quantise_rows, &arguments, stream)? };
        stream.wait()?;
        Ok(Self { words, scales })
    }

    /// Writes a matrix of [`StoredMatrix::Fp8Weights`] in bf16 to `numbers`, in stream order.
    ///
    /// # Panics
    /// If a buffer is too short.
    pub(super) fn dequantise(
        &self,
        numbers: &Buffer,
        outputs: usize,
        inputs: usize,
        stream: &Stream,
    ) -> Result<()> {
        let arguments = DequantiseRows {
            words: self.words.numbers(0, outputs * inputs / 4),
            scales: self.scales.numbers(0, outputs),
            weights: numbers.numbers(0, outputs * inputs),
            outputs: outputs as i32,
            inputs: inputs as i32,
        };
        // SAFETY: the buffers have the sizes in the arguments, as just checked. The engine waits for the stream before it frees memory.
        unsafe { launch("baton_dequantise_rows", baton_dequantise_rows, &arguments, stream) }
    }
}
