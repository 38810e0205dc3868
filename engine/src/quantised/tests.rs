use half::{bf16, f16};
use proptest::prelude::*;

use super::*;

const SIZES: [usize; 2] = [5, 6];
const BF16: StoredType = StoredType::Float(TensorType::BF16);

/// A matrix `m.weight` of 5 × 6 whose checkpoint also has these tensors.
fn matrix(scheme: Option<[usize; 2]>, scales: &[(&str, StoredType, &[u64])]) -> Result<Fp8Matrix, String> {
    Fp8Matrix::of("m.weight", SIZES, Some(Fp8Scheme { block: scheme }), |name| {
        let found = scales.iter().find(|(scales, ..)| *scales == name);
        found.map(|(_, kind, shape)| (kind, *shape))
    })
}

#[test]
fn the_shape_of_the_scales_decides_which_weights_share_one() {
    let check = |scheme, shape: &[u64], expect| {
        let found = matrix(scheme, &[("m.weight_scale", BF16, shape)]).map(|matrix| matrix.block);
        assert_eq!(found.ok(), expect, "{scheme:?} {shape:?}");
    };
    for scheme in [None, Some([2, 4])] {
        check(scheme, &[], Some(SIZES));
        check(scheme, &[1], Some(SIZES));
        check(scheme, &[5], Some([1, 6]));
        check(scheme, &[5, 1], Some([1, 6]));
        for wrong in [&[0][..], &[6], &[1, 5], &[5, 6], &[2, 3], &[5, 1, 1]] {
            check(scheme, wrong, None);
        }
    }
    check(Some([2, 4]), &[3, 2], Some([2, 4]));
    check(None, &[3, 2], None);
    check(Some([1, 4]), &[5, 2], Some([1, 4]));
    check(Some([128, 128]), &[1, 1], Some([128, 128]));
}

#[test]
fn a_refused_matrix_names_the_tensor_and_a_way_on() {
    let check = |found: Result<Fp8Matrix, String>, expect: &str| assert_eq!(found.unwrap_err(), expect);
    let none = |_: &str| None;
    check(
        Fp8Matrix::of("m.weight", SIZES, None, none),
        "tensor m.weight is F8_E4M3, but config.json has no quantization_config, which says how its scales are stored; use a checkpoint in the format fp8 or compressed-tensors",
    );
    check(
        matrix(None, &[]),
        "tensor m.weight is F8_E4M3, but its scales m.weight_scale (or m.weight_scale_inv) are missing; fetch the model again, or use another checkpoint of it",
    );
    check(
        matrix(None, &[("m.weight_scale", BF16, &[]), ("m.weight_scale_inv", BF16, &[])]),
        "tensor m.weight has two tensors with scales, m.weight_scale and m.weight_scale_inv; fetch the model again, or use another checkpoint of it",
    );
    check(
        matrix(None, &[("m.weight_scale_inv", StoredType::Other("F8_E8M0".to_owned()), &[])]),
        "tensor m.weight_scale_inv is F8_E8M0, but scales are supported only in F32, F16 and BF16; fetch the model again, or use another checkpoint of it",
    );
    check(
        matrix(None, &[("m.weight_scale", BF16, &[4, 1])]),
        "tensor m.weight_scale has shape [4, 1], but the scales of m.weight need [] or [1] for the whole tensor, [5, 1] for outputs; fetch the model again, or use another checkpoint of it",
    );
    check(
        matrix(Some([2, 4]), &[("m.weight_scale", BF16, &[2, 3])]),
        "tensor m.weight_scale has shape [2, 3], but the scales of m.weight need [] or [1] for the whole tensor, [5, 1] for outputs, or [3, 2] for blocks of 2 × 4; fetch the model again, or use another checkpoint of it",
    );
}

#[test]
fn codes_and_scales_out_of_range_are_refused() {
    let matrix = matrix(None, &[("m.weight_scale", StoredType::Float(TensorType::F32), &[5, 1])]).unwrap();
    let numbers = |at: usize, code: u8, scale: f32| {
        let (mut codes, mut scales) = (vec![0; 30], [1.0; 5]);
        (codes[at], scales[3]) = (code, scale);
        let scales: Vec<u8> = scales.iter().flat_map(|scale: &f32| scale.to_le_bytes()).collect();
        matrix.numbers(codes, &scales).map(drop)
    };
    for scale in [f32::MIN_POSITIVE, 1e-45, 1.0, 7.5e35] {
        assert_eq!(numbers(0, 0x7e, scale), Ok(()), "{scale}");
    }
    for (scale, text) in [(0.0, "0"), (-0.0, "-0"), (-1.0, "-1"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        assert_eq!(
            numbers(0, 0, scale).unwrap_err(),
            format!(
                "scale 3 in tensor m.weight_scale is {text}, but the scales of m.weight must be positive numbers up to 7.5e35; fetch the model again, or use another checkpoint of it"
            )
        );
    }
    for code in [0x7f, 0xff] {
        assert_eq!(
            numbers(20, code, 1.0).unwrap_err(),
            "tensor m.weight has a weight that is not a number at output 3, input 2; fetch the model again, or use another checkpoint of it"
        );
    }
}

#[test]
fn scales_of_all_types_are_read() {
    // Code 0x38 is 1, so each weight is its output's scale.
    let check = |kind, bytes: fn(f32) -> Vec<u8>| {
        let matrix = matrix(None, &[("m.weight_scale", StoredType::Float(kind), &[5])]).unwrap();
        let scales = [0.5, 1.0, 1.5, 2.0, 3.0];
        let numbers = matrix.numbers(vec![0x38; 30], &scales.map(bytes).concat()).unwrap();
        let expect: Vec<u8> =
            scales.iter().flat_map(|s| bf16::from_f32(*s).to_le_bytes().repeat(6)).collect();
        assert_eq!(matrix.to_bf16(&numbers), expect, "{kind}");
    };
    check(TensorType::F32, |scale| scale.to_le_bytes().to_vec());
    check(TensorType::F16, |scale| f16::from_f32(scale).to_le_bytes().to_vec());
    check(TensorType::BF16, |scale| bf16::from_f32(scale).to_le_bytes().to_vec());
}

#[test]
fn codes_are_kept_if_all_weights_of_an_output_share_a_scale() {
    let check = |scheme, shape: &[u64], expect: Option<[f32; 5]>| {
        let matrix = matrix(scheme, &[("m.weight_scale", BF16, shape)]).unwrap();
        let scales: Vec<u8> =
            (1..=shape.iter().product()).flat_map(|n| bf16::from_f32(n as f32).to_le_bytes()).collect();
        let codes: Vec<u8> = (0..30).collect();
        let kept = matrix.to_output_codes(matrix.numbers(codes.clone(), &scales).unwrap());
        assert_eq!(matrix.has_output_scales(), expect.is_some(), "{shape:?}");
        assert_eq!(kept, expect.map(|scales| OutputCodes { codes, scales: scales.to_vec() }), "{shape:?}");
    };
    check(None, &[], Some([1.0; 5]));
    check(None, &[1], Some([1.0; 5]));
    check(None, &[5, 1], Some([1.0, 2.0, 3.0, 4.0, 5.0]));
    check(None, &[5], Some([1.0, 2.0, 3.0, 4.0, 5.0]));
    check(Some([2, 4]), &[3, 2], None);
    check(Some([1, 3]), &[5, 2], None);
    // Blocks with all inputs.
    check(Some([2, 6]), &[3, 1], Some([1.0, 1.0, 2.0, 2.0, 3.0]));
}

proptest! {
    /// Every weight is the product of its code and of the scale of its block, also in blocks that are not whole.
    #[test]
    fn a_weight_has_the_scale_of_its_block(
        outputs in 1..20_usize, inputs in 1..20_usize, rows in 1..24_usize, columns in 1..24_usize, seed in 0..u64::MAX,
    ) {
        let mut random = crate::testing::Random(seed);
        let [down, across] = grid([outputs, inputs], [rows, columns]);
        let shape = [down as u64, across as u64];
        let matrix = Fp8Matrix::of("m.weight", [outputs, inputs], Some(Fp8Scheme { block: Some([rows, columns]) }), |name| {
            (name == "m.weight_scale").then_some((&BF16, &shape[..]))
        }).unwrap();
        let codes: Vec<u8> = (0..outputs * inputs).map(|_| random.next() as u8 & !0x40).collect();
        let scales: Vec<f32> = (0..down * across).map(|n| (n + 1) as f32 / 8.0).collect();
        let bytes: Vec<u8> = scales.iter().flat_map(|scale| bf16::from_f32(*scale).to_le_bytes()).collect();
        let numbers = matrix.numbers(codes.clone(), &bytes).unwrap();
        let found = floats(TensorType::BF16, &matrix.to_bf16(&numbers));
        prop_assert_eq!(found.len(), codes.len());
        for (at, (weight, code)) in found.iter().zip(&codes).enumerate() {
            let scale = numbers.scales[at / inputs / rows * across + at % inputs / columns];
            prop_assert_eq!(*weight, e4m3::products(scale)[usize::from(*code)].to_f32(), "at {}", at);
        }
    }
}
