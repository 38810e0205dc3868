use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use half::bf16;
use serde_json::json;

use super::*;
use crate::LoadFormat;
use crate::model::tensors::TensorRole::{self, AttentionOutput, Down, Gate, Key, Query, Up, Value};
use crate::testing::Random;

/// The inputs of all matrices.
const INPUTS: usize = 8;

/// The folder of a small model. It is removed when dropped.
struct SmallFolder(PathBuf);

impl Drop for SmallFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The tensors of a file: name, type, shape and bytes.
#[derive(Default)]
struct Tensors(BTreeMap<String, (&'static str, Vec<usize>, Vec<u8>)>);

impl Tensors {
    fn bf16(&mut self, name: &str, shape: &[usize]) {
        let mut random = Random(name.len() as u64);
        let numbers =
            (0..shape.iter().product()).flat_map(|_: usize| bf16::from_f32(random.float()).to_le_bytes());
        self.0.insert(name.to_owned(), ("BF16", shape.to_vec(), numbers.collect()));
    }

    /// A matrix of codes, and scales that are no powers of two.
    fn fp8(&mut self, name: &str, outputs: usize, scales: &[usize]) {
        let mut random = Random(name.len() as u64);
        let codes = (0..outputs * INPUTS).map(|_| random.next() as u8 & !0x40).collect();
        self.0.insert(format!("{name}.weight"), ("F8_E4M3", vec![outputs, INPUTS], codes));
        let numbers = (0..scales.iter().product()).flat_map(|n: usize| (0.3 + 0.1 * n as f32).to_le_bytes());
        self.0.insert(format!("{name}.weight_scale"), ("F32", scales.to_vec(), numbers.collect()));
    }

    /// The bytes of a tensor.
    fn bytes(&self, name: &str) -> &[u8] {
        &self.0[name].2
    }

    fn write(&self, name: &str) -> SmallFolder {
        let folder =
            SmallFolder(std::env::temp_dir().join(format!("baton-fp8-{name}-{}", std::process::id())));
        fs::create_dir_all(&folder.0).unwrap();
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, (kind, shape, bytes)) in &self.0 {
            let offsets = [data.len(), data.len() + bytes.len()];
            header.insert(name.clone(), json!({"dtype": kind, "shape": shape, "data_offsets": offsets}));
            data.extend(bytes);
        }
        let header = serde_json::to_vec(&header).unwrap();
        let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
        fs::write(folder.0.join("model.safetensors"), file).unwrap();
        let config = json!({
            "model_type": "llama", "hidden_size": INPUTS, "intermediate_size": INPUTS, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 4, "max_position_embeddings": 8,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 4]},
        });
        fs::write(folder.0.join("config.json"), config.to_string()).unwrap();
        folder
    }
}

/// Queries have scales for outputs, keys a scale for the tensor, values are in bf16, the gate has scales for blocks and the other factor for outputs.
fn tensors() -> Tensors {
    let mut tensors = Tensors::default();
    tensors.bf16("model.embed_tokens.weight", &[4, INPUTS]);
    tensors.bf16("model.norm.weight", &[INPUTS]);
    let layer = |name: &str| format!("model.layers.0.{name}");
    tensors.bf16(&layer("input_layernorm.weight"), &[INPUTS]);
    tensors.bf16(&layer("post_attention_layernorm.weight"), &[INPUTS]);
    tensors.fp8(&layer("self_attn.q_proj"), 8, &[8, 1]);
    tensors.fp8(&layer("self_attn.k_proj"), 4, &[]);
    tensors.bf16(&layer("self_attn.v_proj.weight"), &[4, INPUTS]);
    tensors.fp8(&layer("self_attn.o_proj"), 8, &[1]);
    tensors.fp8(&layer("mlp.gate_proj"), 8, &[2, 2]);
    tensors.fp8(&layer("mlp.up_proj"), 8, &[8]);
    tensors.bf16(&layer("mlp.down_proj.weight"), &[8, INPUTS]);
    tensors
}

#[test]
fn stacks_have_the_codes_of_the_file_and_rounded_codes_of_other_tensors() {
    let tensors = tensors();
    let folder = tensors.write("stacks");
    let checkpoint = Checkpoint::open_headers(&folder.0, LoadFormat::Auto).unwrap();
    let rows = |roles: &[TensorRole]| -> Vec<TensorRow> {
        checkpoint.tensors.iter().filter(|row| roles.contains(&row.role)).cloned().collect()
    };
    let stacked = |roles: &[TensorRole]| checkpoint.stacked_codes(&rows(roles), Quantization::Fp8).unwrap();
    let codes = |name: &str| tensors.bytes(&format!("model.layers.0.{name}_proj.weight")).to_vec();

    let found = stacked(&[Query, Key, Value]).unwrap();
    assert_eq!((found.codes.len(), found.scales.len()), (16 * INPUTS, 16));
    let in_file = [codes("self_attn.q"), codes("self_attn.k")].concat();
    // RoPE rotates rows 0 and 2, and rows 1 and 3, of each head of four.
    for (place, row) in [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11].into_iter().enumerate() {
        assert_eq!(found.codes[place * INPUTS..][..INPUTS], in_file[row * INPUTS..][..INPUTS], "{place}");
        let scale = if row < 8 { 0.3 + 0.1 * row as f32 } else { 0.3 };
        assert_eq!(found.scales[place], scale, "{place}");
    }
    let of_values = rows(&[Value]);
    let values = floats(checkpoint.require(&of_values[0]).unwrap(), &checkpoint.read(&of_values[0]).unwrap());
    let values = OutputCodes::rounded(&values, INPUTS);
    assert_eq!((&found.codes[12 * INPUTS..], &found.scales[12..]), (&values.codes[..], &values.scales[..]));

    let found = stacked(&[AttentionOutput]).unwrap();
    assert_eq!(found, OutputCodes { codes: codes("self_attn.o"), scales: vec![0.3; 8] });

    let found = stacked(&[Gate, Up]).unwrap();
    assert_eq!(found.codes[8 * INPUTS..], codes("mlp.up"));
    assert_eq!(found.scales[8..], [0, 1, 2, 3, 4, 5, 6, 7].map(|row| 0.3 + 0.1 * row as f32));
    assert!(found.scales[..8].iter().all(|scale| scale.to_bits() << 9 == 0), "powers of two");

    assert_eq!(stacked(&[Down]), None);
    assert_eq!(checkpoint.stacked_codes(&rows(&[Query]), Quantization::Fp8Weights).unwrap(), None);
}

#[test]
fn the_fingerprint_says_whether_codes_are_kept() {
    let folder = tensors().write("fingerprint");
    let checkpoint = Checkpoint::open_headers(&folder.0, LoadFormat::Auto).unwrap();
    let modes = [Quantization::None, Quantization::Fp8Weights, Quantization::Fp8];
    assert_eq!(modes.map(|mode| checkpoint.keeps_codes(mode)), [false, false, true]);
    let (_file, config) = crate::testing::Tiny::USUAL.file();
    let config = EngineConfig { quantization: Quantization::Fp8, ..config };
    assert_ne!(config.fingerprint([7; 32], true), config.fingerprint([7; 32], false));
}
