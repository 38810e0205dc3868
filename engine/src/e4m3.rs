//! The numbers of the format E4M3 (`float8_e4m3fn`), and their products with a scale.
//!
//! E4M3 has a sign, four bits of exponent with bias 7, and three bits of mantissa. It has no infinities. Micikevicius et al. 2022, "FP8 formats
//! for deep learning", table 1. The tests compare all codes with PyTorch.

use half::bf16;

/// The value of each code.
const VALUES: [f32; 256] = values();

/// The largest scale for which the product with every code is a finite bf16.
pub(crate) const SCALE_MAX: f32 = 7.5e35;

const fn values() -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        values[code] = value_of(code as u8);
        code += 1;
    }
    values
}

const fn value_of(code: u8) -> f32 {
    let (exponent, mantissa) = (code as u32 >> 3 & 15, code as u32 & 7);
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        // Subnormal: mantissa · 2^-9.
        (0, _) => mantissa as f32 / 512.0,
        // The exponent of a float has bias 127.
        _ => f32::from_bits((exponent + 120) << 23 | mantissa << 20),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The number of a code.
pub(crate) fn value(code: u8) -> f32 {
    VALUES[usize::from(code)]
}

/// The code of the nearest e4m3 number, of two the one with an even code. Numbers beyond the largest get its code. What is not a number gets 0x7f, as
/// from the GPU's `cvt.rn.satfinite.e4m3x2.f32`.
pub(crate) fn encode(number: f32) -> u8 {
    let (sign, bits) = ((number.to_bits() >> 31 << 7) as u8, number.abs().to_bits());
    if number.is_nan() {
        return 0x7f;
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

/// The position of the first code that is not a number.
pub(crate) fn nan_position(codes: &[u8]) -> Option<usize> {
    codes.iter().position(|code| code & 0x7f == 0x7f)
}

/// The product of each code and `scale`: in f32, then rounded to bf16.
pub(crate) fn products(scale: f32) -> [bf16; 256] {
    VALUES.map(|value| bf16::from_f32(value * scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest e4m3 number.
    const LARGEST: f32 = 448.0;

    #[test]
    fn every_code_is_the_code_of_its_number() {
        for code in (0..=u8::MAX).filter(|code| code & 0x7f != 0x7f) {
            assert_eq!(encode(value(code)), code, "{code:#x}");
        }
        assert_eq!((value(0x7e), value(0x01), value(0x08)), (LARGEST, 1.0 / 512.0, 1.0 / 64.0));
        assert!(value(0x7f).is_nan() && [f32::NAN, -f32::NAN].map(encode) == [0x7f; 2]);
    }

    #[test]
    fn numbers_between_two_codes_get_the_nearer_or_the_even_one() {
        let positive: Vec<f32> = (0..0x7f).map(value).collect();
        for (code, pair) in positive.windows(2).enumerate() {
            let middle = (pair[0] + pair[1]) / 2.0;
            let (below, above) = (f32::from_bits(middle.to_bits() - 1), f32::from_bits(middle.to_bits() + 1));
            let even = if code % 2 == 0 { code } else { code + 1 };
            assert_eq!([below, middle, above].map(encode), [code, even, code + 1].map(|code| code as u8));
            assert_eq!(encode(-above), 0x80 | (code + 1) as u8);
        }
        assert_eq!([LARGEST, 500.0, f32::MAX].map(encode), [0x7e; 3]);
    }

    /// The values of `torch.float8_e4m3fn`, as `make_fp8.py` writes them.
    #[test]
    fn all_codes_have_the_values_of_pytorch() {
        let expect: Vec<String> = serde_json::from_str(include_str!("../fixtures/e4m3.json")).unwrap();
        assert_eq!(expect.len(), 256);
        for (code, expect) in expect.iter().enumerate() {
            let (found, expect) = (VALUES[code], f32::from_bits(u32::from_str_radix(expect, 16).unwrap()));
            let same = found.to_bits() == expect.to_bits() || found.is_nan() && expect.is_nan();
            assert!(same, "code {code:#04x} is {found}, not {expect}");
            assert_eq!(found.is_nan(), nan_position(&[code as u8]).is_some(), "{code:#04x}");
        }
    }

    #[test]
    fn products_are_rounded_to_nearest_even_and_finite_up_to_the_largest_scale() {
        // 0x38 is 1 and 0x39 is 1.125.
        let check = |code: usize, scale: f32, expect: f32| {
            assert_eq!(products(scale)[code].to_f32(), expect, "{code:#04x} times {scale}");
        };
        check(0x38, 1.0 + 1.0 / 256.0, 1.0);
        check(0x38, 1.0 + 3.0 / 256.0, 1.0 + 4.0 / 256.0);
        check(0x39, 1.0 + 1.0 / 256.0, 1.125 + 2.0 / 256.0);
        check(0x80, 1.0, 0.0);
        assert!(products(1.0)[0x80].is_sign_negative());
        let finite = |code: u8, product: &bf16| product.is_finite() || code & 0x7f == 0x7f;
        assert!((0..=255).zip(&products(SCALE_MAX)).all(|(code, product)| finite(code, product)));
        assert!(!products(SCALE_MAX * 1.02)[0x7e].is_finite());
    }
}
