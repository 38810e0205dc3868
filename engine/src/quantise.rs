//! FP8 weights: e4m3 numbers with a power of two for each output.
//!
//! A weight is `code × 2^exponent`, with the exponent of its output (its row of the matrix). The exponent is the smallest one with which the
//! output's largest weight is at most 448, the largest e4m3 number. Such a weight is exact in bf16, so every backend computes with the
//! same numbers. `kernels/fp8.cu` has the same rule.

use half::bf16;

/// The smallest and the largest exponent of an output. Within them, all weights and their factors are normal bf16 numbers.
const EXPONENTS: std::ops::RangeInclusive<i32> = -100..=7;

/// Rounds the weights of one output to the numbers that FP8 weights have.
pub(crate) fn round_output(weights: &mut [f32]) {
    weights.iter_mut().for_each(|weight| *weight = bf16::from_f32(*weight).to_f32());
    let scale = power_of_two(exponent(weights));
    weights.iter_mut().for_each(|weight| *weight = decode(encode(*weight / scale)) * scale);
}

/// The exponent of an output with these weights.
fn exponent(weights: &[f32]) -> i32 {
    let largest = weights.iter().fold(0f32, |largest, weight| largest.max(weight.abs()));
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

/// The code of the nearest e4m3 number, of two the one with an even code. Numbers beyond the largest get its code.
fn encode(number: f32) -> u8 {
    let (sign, bits) = ((number.to_bits() >> 31 << 7) as u8, number.abs().to_bits());
    if number.is_nan() {
        return sign | 0x7f;
    }
    let code = if number.abs() < 0.015_625 {
        // Multiples of 2^-9; eight of them are the smallest number with an exponent.
        (number.abs() * 512.0).round_ties_even() as u32
    } else {
        // Three bits of the mantissa are kept.
        let (kept, rest) = (bits >> 20, bits & 0xf_ffff);
        let rounded = kept + u32::from(rest > 0x8_0000 || rest == 0x8_0000 && kept & 1 == 1);
        (rounded - (120 << 3)).min(0x7e)
    };
    sign | code as u8
}

/// The e4m3 number of a code.
fn decode(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let number = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * power_of_two(exponent - 7),
    };
    if code >> 7 == 1 { -number } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest e4m3 number.
    const LARGEST: f32 = 448.0;

    #[test]
    fn every_code_is_the_code_of_its_number() {
        for code in (0..=u8::MAX).filter(|code| code & 0x7f != 0x7f) {
            assert_eq!(encode(decode(code)), code, "{code:#x}");
        }
        assert_eq!((decode(0x7e), decode(0x01), decode(0x08)), (LARGEST, 1.0 / 512.0, 1.0 / 64.0));
        assert!(decode(0x7f).is_nan() && encode(f32::NAN) == 0x7f);
    }

    #[test]
    fn numbers_between_two_codes_get_the_nearer_or_the_even_one() {
        let positive: Vec<f32> = (0..0x7f).map(decode).collect();
        for (code, pair) in positive.windows(2).enumerate() {
            let middle = (pair[0] + pair[1]) / 2.0;
            let (below, above) = (f32::from_bits(middle.to_bits() - 1), f32::from_bits(middle.to_bits() + 1));
            let even = if code % 2 == 0 { code } else { code + 1 };
            assert_eq!([below, middle, above].map(encode), [code, even, code + 1].map(|code| code as u8));
            assert_eq!(encode(-above), 0x80 | (code + 1) as u8);
        }
        assert_eq!([LARGEST, 500.0, f32::MAX].map(encode), [0x7e; 3]);
    }

    #[test]
    fn the_largest_weight_of_an_output_uses_the_whole_range() {
        for (largest, expect) in [(448.0, 0), (448.1, 1), (224.0, -1), (1.0, -8), (0.0, 0), (1e-38, -100)] {
            assert_eq!(exponent(&[largest, -0.5 * largest, 0.0]), expect, "{largest}");
        }
        assert_eq!(exponent(&[1e9]), 7);
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
