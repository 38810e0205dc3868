//! Products of rows with the model's matrices: our kernels for a few rows, and cublasLt for more.
//!
//! The number format of a matrix decides how: bf16 weights and rows; FP8 weights and bf16 rows; or FP8 weights and rows. A row's result does not depend
//! on the number of rows, to the bit. For the safety of the launches, see [`forward`](super::forward).

use std::ops::Range;
use std::ptr;
use std::sync::Arc;

use half::bf16;

use super::device::{Buffer, CudaDevice, Result, Stream};
use super::gemm::{Factor, Gemm, Input, Matrix, Output, ROWS_SPARE};
use super::kernels::{baton_fp8_products, baton_round_rows, baton_row_products, launch};
use super::stored_matrix::{StoredMatrix, rows_few};
use crate::gpu::arguments::{Fp8Products, RoundRows, RowProducts};
use crate::model::Quantization;

/// The GEMMs' plans, and memory for rounded rows and matrices.
pub(super) struct Products {
    gemm: Gemm,
    /// Memory for a matrix of a layer in bf16, if only the weights are in FP8.
    dequantised: Option<Buffer>,
    /// Memory for rows in FP8, if weights and rows are.
    rounded: Option<RoundedRows>,
}

/// The rows that a matrix multiplies.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    /// Rows in bf16.
    Plain(&'a Buffer),
    /// Rows in FP8.
    Rounded(&'a RoundedRows),
}

/// Memory for rows in FP8.
pub(super) struct RoundedRows {
    /// `[rows][inputs]`, e4m3.
    codes: Buffer,
    /// The scale of each row.
    scales: Buffer,
}

impl Products {
    /// Plans products of up to `rows` rows with the matrices `of_layer`, and with `output`, which is in bf16.
    pub(super) fn new(
        device: &Arc<CudaDevice>,
        quantization: Quantization,
        of_layer: &[Matrix],
        (output, output_rows): (Matrix, usize),
        rows: usize,
    ) -> Result<Self> {
        let of_layer_rows =
            of_layer.iter().map(|matrix| (*matrix, rows_few(quantization, matrix.outputs), rows));
        let of_output = (output, rows_few(Quantization::None, output.outputs), output_rows);
        let all: Vec<_> = of_layer_rows.chain([of_output]).collect();
        let largest = |size: fn(&Matrix) -> usize| of_layer.iter().map(size).max().unwrap_or_default();
        let numbers = largest(|matrix| matrix.outputs * matrix.inputs);
        // Our kernel also reads the rows after the last one, up to the maximum of a call.
        let few =
            of_layer.iter().map(|matrix| rows_few(quantization, matrix.outputs)).max().unwrap_or_default();
        let (rows, inputs) = (rows + few.max(ROWS_SPARE), largest(|matrix| matrix.inputs));
        let dequantised = || Buffer::new(device, numbers * size_of::<bf16>());
        let rounded = || {
            let codes = Buffer::zeroed(device, rows * inputs)?;
            Ok(RoundedRows { codes, scales: Buffer::zeroed(device, rows * size_of::<f32>())? })
        };
        Ok(Self {
            gemm: Gemm::new(device, &all)?,
            dequantised: (quantization == Quantization::Fp8Weights).then(dequantised).transpose()?,
            rounded: quantization.rounds_rows().then(rounded).transpose()?,
        })
    }

    /// The weights for the library.
    fn factor(&self, weights: &StoredMatrix, Matrix { outputs, inputs, .. }: Matrix) -> Factor {
        match (weights, &self.dequantised) {
            (StoredMatrix::Fp8Weights(_), Some(numbers)) => bf16_factor(numbers, outputs * inputs),
            _ => {
                let (numbers, scales) = weights.addresses(outputs, inputs);
                Factor { numbers, scales }
            }
        }
    }

    /// The addresses where a kernel puts the codes and scales of `rows` rows of `inputs` numbers. Null if the matrices of the layers multiply rows in bf16.
    ///
    /// # Panics
    /// If there are too many rows.
    pub(super) fn rounded(&self, rows: usize, inputs: usize) -> (*mut u8, *mut f32) {
        match &self.rounded {
            Some(to) => (to.codes.numbers(0, rows * inputs), to.scales.numbers(0, rows)),
            None => (ptr::null_mut(), ptr::null_mut()),
        }
    }

    /// The rows that a kernel has put into [`rounded`](Self::rounded), or into `plain` if that is null.
    pub(super) fn rows<'a>(&'a self, plain: &'a Buffer) -> Rows<'a> {
        self.rounded.as_ref().map_or(Rows::Plain(plain), Rows::Rounded)
    }

    /// `y = x · weightsᵀ` for the first `rows` rows. Rounds the rows first if the matrix multiplies rows in FP8.
    ///
    /// # Panics
    /// If a buffer is too short.
    pub(super) fn multiply(
        &self,
        x: Rows<'_>,
        weights: &StoredMatrix,
        y: &Buffer,
        rows: usize,
        matrix: Matrix,
        stream: &Stream,
    ) -> Result<()> {
        let x = match (x, &self.rounded) {
            (Rows::Plain(x), Some(rounded)) if matrix.input == Input::Fp8 => {
                rounded.round(x, rows, matrix.inputs, stream)?;
                Rows::Rounded(rounded)
            }
            _ => x,
        };
        // With few rows a product is bound by reading the weights, and our kernels are faster than the library.
        let few = weights.rows_few(matrix.outputs);
        if let Some(all) = self.gemm.rows(matrix, rows).filter(|_| rows > few) {
            return self.multiply_many(x, weights, y, (rows, all), matrix, stream);
        }
        for first in (0..rows).step_by(few) {
            let rows = first..rows.min(first + few);
            match x {
                Rows::Rounded(x) => x.multiply_few(weights, y, rows, matrix, stream)?,
                Rows::Plain(x) => multiply_few(x, weights, y, rows, matrix, stream)?,
            }
        }
        Ok(())
    }

    /// The product through the library, which computes `all` rows.
    fn multiply_many(
        &self,
        x: Rows<'_>,
        weights: &StoredMatrix,
        y: &Buffer,
        (rows, all): (usize, usize),
        matrix: Matrix,
        stream: &Stream,
    ) -> Result<()> {
        let Matrix { outputs, inputs, .. } = matrix;
        let x = match x {
            Rows::Rounded(RoundedRows { codes, scales }) => Factor {
                numbers: codes.numbers::<u8>(0, all * inputs).cast_const().cast(),
                scales: scales.numbers(0, all),
            },
            Rows::Plain(x) => bf16_factor(x, all * inputs),
        };
        if let (StoredMatrix::Fp8Weights(weights), Some(numbers)) = (weights, &self.dequantised) {
            weights.dequantise(numbers, outputs, inputs, stream)?;
        }
        let weights = self.factor(weights, matrix);
        // SAFETY: both factors are in the matrix's format, and `x` has all rows, as just checked.
        unsafe { self.gemm.multiply(stream, x, weights, y, rows, matrix) }
    }
}

impl RoundedRows {
    /// Rounds the first `rows` rows of `x`.
    fn round(&self, x: &Buffer, rows: usize, inputs: usize, stream: &Stream) -> Result<()> {
        let arguments = RoundRows {
            x: x.numbers(0, rows * inputs),
            codes: self.codes.numbers(0, rows * inputs),
            scales: self.scales.numbers(0, rows),
            rows: rows as i32,
            inputs: inputs as i32,
        };
        // SAFETY: see the module's documentation.
        unsafe { launch("baton_round_rows", baton_round_rows, &arguments, stream) }
    }

    /// `y = x · weightsᵀ` for as many rows as one call computes.
    fn multiply_few(
        &self,
        weights: &StoredMatrix,
        y: &Buffer,
        rows: Range<usize>,
        Matrix { outputs, inputs, output, .. }: Matrix,
        stream: &Stream,
    ) -> Result<()> {
        let (first, few) = (rows.start, weights.rows_few(outputs));
        let (weights, output_scales) = weights.addresses(outputs, inputs);
        let arguments = Fp8Products {
            weights: weights.cast(),
            output_scales,
            // The kernel also reads rows after the last one.
            x: self.codes.numbers(first * inputs, few * inputs),
            row_scales: self.scales.numbers(first, rows.len()),
            y: output.numbers(y, first * outputs, rows.len() * outputs),
            wide: i32::from(output == Output::F32),
            rows: rows.len() as i32,
            outputs: outputs as i32,
            inputs: inputs as i32,
        };
        // SAFETY: see the module's documentation.
        unsafe { launch("baton_fp8_products", baton_fp8_products, &arguments, stream) }
    }
}

fn bf16_factor(numbers: &Buffer, count: usize) -> Factor {
    Factor { numbers: numbers.numbers::<bf16>(0, count).cast_const().cast(), scales: ptr::null() }
}

/// `y = x · weightsᵀ` for as many rows in bf16 as one call computes.
fn multiply_few(
    x: &Buffer,
    weights: &StoredMatrix,
    y: &Buffer,
    rows: Range<usize>,
    Matrix { outputs, inputs, output, .. }: Matrix,
    stream: &Stream,
) -> Result<()> {
    let (weights, scales) = weights.addresses(outputs, inputs);
    let arguments = RowProducts {
        weights,
        scales,
        x: x.numbers(rows.start * inputs, rows.len() * inputs),
        y: output.numbers(y, rows.start * outputs, rows.len() * outputs),
        wide: i32::from(output == Output::F32),
        rows: rows.len() as i32,
        outputs: outputs as i32,
        inputs: inputs as i32,
    };
    // SAFETY: see the module's documentation.
    unsafe { launch("baton_row_products", baton_row_products, &arguments, stream) }
}
