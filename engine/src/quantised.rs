//! Weights in FP8: which tensors are E4M3 with which scales, and their numbers.
//!
//! The decisions are pure: names and shapes of tensors in, an [`Fp8Matrix`] out. Readers get bf16 ([`Fp8Matrix::to_bf16`]): a weight is
//! `bf16(e4m3 × scale)`, with the product in f32. If all weights of an output share a scale, readers can also get the codes as they are
//! ([`Fp8Matrix::to_output_codes`]).

mod companion;
mod output_codes;
mod scheme;

pub(crate) use companion::Companion;
pub(crate) use output_codes::OutputCodes;
pub(crate) use scheme::Fp8Scheme;

use crate::dequantise::floats;
use crate::e4m3;
use crate::gguf::TensorType;
use crate::safetensors::StoredType;

/// How to go on with a folder that contradicts itself.
const REMEDY: &str = "fetch the model again, or use another checkpoint of it";

/// A weight matrix in E4M3, as the headers of the files describe it. Rows are outputs, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fp8Matrix {
    /// The name of the tensor.
    name: String,
    outputs: usize,
    inputs: usize,
    /// The outputs and the inputs that share a scale. The last blocks may be smaller.
    block: [usize; 2],
    /// The name of the tensor with the scales: one for each block, in row-major order.
    pub(crate) scales: String,
    scale_type: TensorType,
}

/// The numbers of a matrix in E4M3. No code is NaN, and each scale is positive and finite.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fp8Numbers {
    /// One byte per weight, in row-major order.
    codes: Vec<u8>,
    /// One scale per block, in row-major order.
    scales: Vec<f32>,
}

impl Fp8Matrix {
    /// The matrix `name` of `[outputs, inputs]`. `stored` gives the type and the shape of a tensor of the checkpoint.
    ///
    /// # Errors
    /// The checkpoint has no scheme, or its scales are missing or have another type or shape.
    pub(crate) fn of<'a>(
        name: &str,
        [outputs, inputs]: [usize; 2],
        scheme: Option<Fp8Scheme>,
        stored: impl Fn(&str) -> Option<(&'a StoredType, &'a [u64])>,
    ) -> Result<Self, String> {
        let scheme = scheme.ok_or_else(|| without_scheme(name))?;
        let names = companion::scale_names(name);
        let mut found = names.iter().filter_map(|scales| Some((scales, stored(scales)?)));
        let (scales, (kind, shape)) = found.next().ok_or_else(|| {
            let [usual, inverse] = &names;
            format!("tensor {name} is F8_E4M3, but its scales {usual} (or {inverse}) are missing; {REMEDY}")
        })?;
        if let Some((other, _)) = found.next() {
            return Err(format!("tensor {name} has two tensors with scales, {scales} and {other}; {REMEDY}"));
        }
        let StoredType::Float(scale_type) = *kind else {
            return Err(format!(
                "tensor {scales} is {kind}, but scales are supported only in F32, F16 and BF16; {REMEDY}"
            ));
        };
        let block = block_of(shape, [outputs, inputs], scheme.block).ok_or_else(|| {
            let blocks = scheme.block.map(|block| {
                let [rows, columns] = grid([outputs, inputs], block);
                format!(", or [{rows}, {columns}] for blocks of {} × {}", block[0], block[1])
            });
            format!(
                "tensor {scales} has shape {shape:?}, but the scales of {name} need [] or [1] for the whole tensor, [{outputs}, 1] for outputs{}; {REMEDY}",
                blocks.unwrap_or_default()
            )
        })?;
        Ok(Self { name: name.to_owned(), outputs, inputs, block, scales: scales.clone(), scale_type })
    }

    /// The numbers of the matrix, from the bytes of its tensor and of its scales.
    ///
    /// # Errors
    /// A code is not a number, or a scale is out of range.
    pub(crate) fn numbers(&self, codes: Vec<u8>, scales: &[u8]) -> Result<Fp8Numbers, String> {
        let name = &self.name;
        if let Some(position) = e4m3::nan_position(&codes) {
            let (output, input) = (position / self.inputs, position % self.inputs);
            return Err(format!(
                "tensor {name} has a weight that is not a number at output {output}, input {input}; {REMEDY}"
            ));
        }
        let scales = floats(self.scale_type, scales);
        let is_valid = |scale: &f32| *scale > 0.0 && *scale <= e4m3::SCALE_MAX;
        match scales.iter().position(|scale| !is_valid(scale)) {
            Some(index) => Err(format!(
                "scale {index} in tensor {} is {}, but the scales of {name} must be positive numbers up to {:e}; {REMEDY}",
                self.scales,
                scales[index],
                e4m3::SCALE_MAX
            )),
            None => Ok(Fp8Numbers { codes, scales }),
        }
    }

    /// Whether all weights of an output share a scale: there is one for each output, for some outputs, or for the whole matrix.
    pub(crate) fn has_output_scales(&self) -> bool {
        self.block[1] >= self.inputs
    }

    /// The codes as they are, and the scale of each output. `None` unless all weights of an output share a scale.
    pub(crate) fn to_output_codes(&self, numbers: Fp8Numbers) -> Option<OutputCodes> {
        let scale = |output: usize| numbers.scales[output / self.block[0]];
        let scales = self.has_output_scales().then(|| (0..self.outputs).map(scale).collect())?;
        Some(OutputCodes { codes: numbers.codes, scales })
    }

    /// The weights in bf16, as bytes.
    pub(crate) fn to_bf16(&self, numbers: &Fp8Numbers) -> Vec<u8> {
        let mut out = vec![0; 2 * numbers.codes.len()];
        let [_, columns] = grid([self.outputs, self.inputs], self.block);
        let [rows_each, inputs_each] = self.block;
        for (index, scale) in numbers.scales.iter().enumerate() {
            let (row, column) = (index / columns * rows_each, index % columns * inputs_each);
            let width = inputs_each.min(self.inputs - column);
            // One product for each code, because most blocks have more weights than there are codes.
            let products = e4m3::products(*scale).map(|product| product.to_le_bytes());
            for output in row..self.outputs.min(row + rows_each) {
                let from = output * self.inputs + column;
                let to = &mut out[2 * from..][..2 * width];
                for (to, code) in to.as_chunks_mut().0.iter_mut().zip(&numbers.codes[from..][..width]) {
                    *to = products[usize::from(*code)];
                }
            }
        }
        out
    }
}

/// Why a tensor in E4M3 is refused if `config.json` has no `quantization_config`.
pub(crate) fn without_scheme(name: &str) -> String {
    format!(
        "tensor {name} is F8_E4M3, but config.json has no quantization_config, which says how its scales are stored; use a checkpoint in the format fp8 or compressed-tensors"
    )
}

/// Blocks along outputs and inputs.
fn grid(sizes: [usize; 2], block: [usize; 2]) -> [usize; 2] {
    [sizes[0].div_ceil(block[0]), sizes[1].div_ceil(block[1])]
}

/// The outputs and the inputs that share a scale, if there are scales of `shape`. `None` for a wrong shape. The shape decides, because the
/// matrices of a checkpoint may have scales of different kinds.
fn block_of(shape: &[u64], sizes: [usize; 2], block: Option<[usize; 2]>) -> Option<[usize; 2]> {
    let [outputs, inputs] = sizes;
    let is_grid = |block: &[usize; 2]| grid(sizes, *block).map(|count| count as u64) == *shape;
    match shape {
        _ if block.is_some_and(|block| is_grid(&block)) => block,
        [] | [1] => Some(sizes),
        [count] | [count, 1] if *count == outputs as u64 => Some([1, inputs]),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
