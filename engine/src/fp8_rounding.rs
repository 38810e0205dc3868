//! Rounding to FP8 weights: e4m3 numbers with a power of two for each output. Rounding to FP8 rows: e4m3 numbers with a scale for each row.
//!
//! A rounded weight is `code × 2^exponent`, with the exponent of its output (its row of the matrix). The exponent is the smallest one with which the
//! output's largest weight is at most 448, the largest e4m3 number. Such a weight is exact in bf16, so every backend computes with the
//! same numbers. Exponents end at 7, so weights beyond ±57,344, which no model has, become that. `kernels/fp8.cu` has the same rule.
//!
//! A number of a row is `code × scale`. The scale is the row's largest magnitude divided by 448. `kernels/rounding.cuh` has the same rule.

use half::bf16;

use crate::e4m3::{encode, value};

/// The smallest and the largest exponent of an output. Within them, all weights and their factors are normal bf16 numbers.
const EXPONENTS: std::ops::RangeInclusive<i32> = -100..=7;

/// Rounds the weights of one output to the numbers that FP8 weights have.
pub(crate) fn round_output(weights: &mut [f32]) {
    let mut codes = Vec::with_capacity(weights.len());
    let scale = encode_output(weights, &mut codes);
    weights.iter_mut().zip(codes).for_each(|(weight, code)| *weight = value(code) * scale);
}

/// Rounds the weights of one output, and adds their codes to `codes`. Returns the scale of the output.
pub(crate) fn encode_output(weights: &[f32], codes: &mut Vec<u8>) -> f32 {
    let weights: Vec<f32> = weights.iter().map(|weight| bf16::from_f32(*weight).to_f32()).collect();
    let scale = power_of_two(exponent(&weights));
    codes.extend(weights.iter().map(|weight| encode(weight / scale)));
    scale
}

/// Rounds a row to the numbers that FP8 rows have.
pub(crate) fn round_row(row: &mut [f32]) {
    let scale = match largest(row) / 448.0 {
        0.0 => 1.0,
        scale => scale,
    };
    row.iter_mut().for_each(|number| *number = value(encode(*number / scale)) * scale);
}

fn largest(numbers: &[f32]) -> f32 {
    numbers.iter().fold(0f32, |largest, number| largest.max(number.abs()))
}

/// The exponent of an output with these weights.
fn exponent(weights: &[f32]) -> i32 {
    let largest = largest(weights);
    if largest == 0.0 {
        return 0;
    }
    // `largest` is mantissa × 2^power with a mantissa from 1 to below 2, and 448 is 1.75 × 2^8.
    let power = (largest.to_bits() >> 23) as i32 - 127;
    let mantissa = f32::from_bits(largest.to_bits() & 0x7f_ffff | 0x3f80_0000);
    let exponent = if mantissa <= 1.75 { power - 8 } else { power - 7 };
    exponent.clamp(*EXPONENTS.start(), *EXPONENTS.end())
}

fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_weight_of_an_output_uses_the_whole_range() {
        for (largest, expect) in [(448.0, 0), (448.1, 1), (224.0, -1), (1.0, -8), (0.0, 0), (1e-38, -100)] {
            assert_eq!(exponent(&[largest, -0.5 * largest, 0.0]), expect, "{largest}");
        }
        assert_eq!(exponent(&[1e9]), 7);
    }

    #[test]
    fn the_largest_number_of_a_row_stays_and_the_others_change_by_at_most_a_sixteenth() {
        let mut row: Vec<f32> = (0..1000).map(|n| ((n * 7919 % 1000) as f32 - 499.5) * 1.37e-2).collect();
        let before = row.clone();
        round_row(&mut row);
        assert_ne!(row, before);
        let scale = largest(&before) / 448.0;
        assert!((largest(&row) - largest(&before)).abs() <= 1e-6 * largest(&before));
        for (rounded, number) in row.iter().zip(&before) {
            assert!(
                (rounded - number).abs() <= number.abs() / 16.0 + scale / 1024.0,
                "{number} became {rounded}"
            );
        }
        let mut zeros = [0.0; 8];
        round_row(&mut zeros);
        assert_eq!(zeros, [0.0; 8]);
    }

    #[test]
    fn rounded_weights_are_bf16_numbers_and_stay() {
        let mut weights: Vec<f32> = (0..1000).map(|n| ((n * 7919 % 1000) as f32 - 500.0) * 1.37e-4).collect();
        let before = weights.clone();
        round_output(&mut weights);
        for (rounded, weight) in weights.iter().zip(&before) {
            assert_eq!(bf16::from_f32(*rounded).to_f32(), *rounded);
            assert!((rounded - weight).abs() <= weight.abs() / 16.0 + 1e-6, "{weight} became {rounded}");
        }
        let again = weights.clone();
        round_output(&mut weights);
        assert_eq!(weights, again);
    }
}
