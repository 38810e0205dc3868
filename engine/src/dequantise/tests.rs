use serde_json::Value;

use super::*;

fn unhex(text: &str) -> Vec<u8> {
    let digit = |place: usize| u8::from_str_radix(&text[place..place + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

#[test]
fn blocks_convert_to_the_numbers_of_llama_cpp() {
    let blocks: Value = serde_json::from_str(include_str!("../../fixtures/blocks.json")).unwrap();
    let kinds = [
        TensorType::Q4_0,
        TensorType::Q4_1,
        TensorType::Q5_0,
        TensorType::Q5_1,
        TensorType::Q8_0,
        TensorType::Q2K,
        TensorType::Q3K,
        TensorType::Q4K,
        TensorType::Q5K,
        TensorType::Q6K,
    ];
    let blocks = blocks.as_array().unwrap();
    assert_eq!(blocks.len(), kinds.len());
    for (kind, block) in kinds.into_iter().zip(blocks) {
        assert_eq!(kind.to_string(), block["name"].as_str().unwrap());
        let expect = unhex(block["floats"].as_str().unwrap());
        let expect: Vec<f32> = expect.as_chunks().0.iter().map(|four| f32::from_be_bytes(*four)).collect();
        assert_eq!(floats(kind, &unhex(block["bytes"].as_str().unwrap())), expect, "{kind}");
    }
}

#[test]
fn sixteen_bit_floats_convert_exactly() {
    let one = [0x00, 0x3c, 0x80, 0x3f];
    assert_eq!(floats(TensorType::F16, &one), [1.0, 1.875]);
    assert_eq!(floats(TensorType::BF16, &one)[1], 1.0);
    assert!(floats(TensorType::Other(99), &one).is_empty());
}
