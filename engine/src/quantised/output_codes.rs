//! A matrix in FP8 with a scale for each output.

use crate::e4m3;

/// A matrix in E4M3 with a scale for each output. A weight is `e4m3 × scale`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct OutputCodes {
    /// One byte per weight, in row-major order. Rows are outputs.
    pub(crate) codes: Vec<u8>,
    /// One scale per output, positive and finite.
    pub(crate) scales: Vec<f32>,
}

impl OutputCodes {
    /// The weights, each rounded once to f32, in row-major order.
    pub(crate) fn to_floats(&self) -> Vec<f32> {
        let inputs = self.codes.len() / self.scales.len().max(1);
        let outputs = self.codes.chunks_exact(inputs.max(1)).zip(&self.scales);
        outputs.flat_map(|(codes, scale)| codes.iter().map(move |code| e4m3::value(*code) * scale)).collect()
    }

    /// Adds the outputs of another matrix with the same inputs.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn append(&mut self, mut other: Self) {
        self.codes.append(&mut other.codes);
        self.scales.append(&mut other.scales);
    }

    /// Rounds a matrix of `inputs` inputs, as [`fp8_rounding`](crate::fp8_rounding) says.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn rounded(floats: &[f32], inputs: usize) -> Self {
        let mut codes = Vec::with_capacity(floats.len());
        let outputs = floats.chunks_exact(inputs);
        let scales = outputs.map(|output| crate::fp8_rounding::encode_output(output, &mut codes)).collect();
        Self { codes, scales }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fp8_rounding::round_output;

    #[test]
    fn a_weight_is_its_code_times_the_scale_of_its_output() {
        // 0x38 is 1, 0x40 is 2, and 0xb9 is -1.125.
        let mut matrix = OutputCodes { codes: vec![0x38, 0x40, 0xb9, 0x00], scales: vec![0.3, 0.7] };
        assert_eq!(matrix.to_floats(), [0.3, 0.6, -1.125 * 0.7, 0.0]);
        matrix.append(OutputCodes { codes: vec![0x40, 0x38], scales: vec![5.0] });
        assert_eq!(matrix.to_floats(), [0.3, 0.6, -1.125 * 0.7, 0.0, 10.0, 5.0]);
        assert!(OutputCodes::default().to_floats().is_empty());
    }

    #[test]
    fn rounded_codes_are_the_numbers_that_rounding_gives() {
        let mut floats: Vec<f32> = (0..96).map(|n| ((n * 7919 % 97) as f32 - 48.0) * 1.37e-3).collect();
        let found = OutputCodes::rounded(&floats, 32);
        assert_eq!((found.codes.len(), found.scales.len()), (96, 3));
        floats.chunks_exact_mut(32).for_each(round_output);
        assert_eq!(found.to_floats(), floats);
    }
}
