//! How a `config.json` says that weights are quantised.

use serde_json::Value;

/// How to go on with a checkpoint that is quantised in another way.
const REMEDY: &str = "use an unquantised checkpoint of the model, or one in FP8";

/// The quantisation of a checkpoint in FP8: E4M3 weights with scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fp8Scheme {
    /// The outputs and the inputs that share a scale, in matrices with a scale for each block.
    pub(crate) block: Option<[usize; 2]>,
}

impl Fp8Scheme {
    /// The scheme of a `quantization_config`. The scales of activations and of the KV cache are not part of it.
    ///
    /// # Errors
    /// Another method, other numbers than E4M3, or a transformation of the activations.
    pub(crate) fn of(config: &Value) -> Result<Self, String> {
        match config["quant_method"].as_str() {
            Some("fp8") => fp8(config),
            Some("compressed-tensors") => compressed_tensors(config),
            Some(other) => Err(format!(
                "its quantization_config has quant_method {other}, but only fp8 and compressed-tensors with FP8 weights are supported; {REMEDY}"
            )),
            None => Err(format!(
                "its quantization_config has no quant_method, but only fp8 and compressed-tensors are supported; {REMEDY}"
            )),
        }
    }
}

/// The keys that vLLM and transformers read.
fn fp8(config: &Value) -> Result<Fp8Scheme, String> {
    match config["fmt"].as_str() {
        None | Some("e4m3" | "float8_e4m3fn") => {}
        Some(other) => {
            return Err(format!(
                "its quantization_config has fmt {other}, but only e4m3 is supported; {REMEDY}"
            ));
        }
    }
    Ok(Fp8Scheme { block: block("weight_block_size", &config["weight_block_size"])? })
}

/// The format of the package `compressed-tensors`.
fn compressed_tensors(config: &Value) -> Result<Fp8Scheme, String> {
    check_format("format", &config["format"])?;
    let sparsity = config["sparsity_config"]["format"].as_str().unwrap_or("dense");
    if sparsity != "dense" {
        return Err(format!(
            "its quantization_config has a sparsity_config with format {sparsity}, but only dense weights are supported; {REMEDY}"
        ));
    }
    if config["transform_config"].as_object().is_some_and(|transforms| !transforms.is_empty()) {
        return Err(format!(
            "its quantization_config has a transform_config, but transformed activations are not supported; {REMEDY}"
        ));
    }
    let groups = config["config_groups"].as_object();
    let groups = groups.ok_or_else(|| {
        format!("its quantization_config has no config_groups, which say how weights are stored; {REMEDY}")
    })?;
    let mut blocks = Vec::new();
    for (name, group) in groups {
        if let Some(block) = group_block(&format!("config_groups.{name}"), group)? {
            blocks.push(block);
        }
    }
    blocks.dedup();
    match blocks[..] {
        [] => Ok(Fp8Scheme { block: None }),
        [block] => Ok(Fp8Scheme { block: Some(block) }),
        [[a, b], [c, d], ..] => Err(format!(
            "its config_groups have blocks of {a} × {b} and of {c} × {d}, but only one size is supported; {REMEDY}"
        )),
    }
}

/// Refuses a format of stored weights that has other tensors. `mixed-precision` leaves the format to the groups.
fn check_format(key: &str, format: &Value) -> Result<(), String> {
    match format.as_str() {
        // Weights without quantised activations are naive-quantized.
        Some("float-quantized" | "naive-quantized" | "mixed-precision") => Ok(()),
        other => Err(format!(
            "its quantization_config has {key} {}, but only float-quantized and naive-quantized weights are supported; {REMEDY}",
            other.unwrap_or("null")
        )),
    }
}

/// The block of a group of modules, if they have a scale for each block.
fn group_block(name: &str, group: &Value) -> Result<Option<[usize; 2]>, String> {
    if !group["format"].is_null() {
        check_format(&format!("{name}.format"), &group["format"])?;
    }
    let weights = &group["weights"];
    if group.is_object() && weights.is_null() {
        // Only activations are quantised.
        return Ok(None);
    }
    let (kind, bits) = (weights["type"].as_str().unwrap_or("unknown"), weights["num_bits"].as_u64());
    if kind != "float" || bits != Some(8) {
        let bits = bits.map_or("unknown".to_owned(), |bits| bits.to_string());
        return Err(format!(
            "its {name}.weights have type {kind} and num_bits {bits}, but only float with 8 bits is supported; {REMEDY}"
        ));
    }
    if weights["symmetric"] == false {
        return Err(format!("its {name}.weights have zero points, which are not supported; {REMEDY}"));
    }
    match weights["strategy"].as_str() {
        Some("tensor" | "channel") => Ok(None),
        Some("block") => {
            let key = format!("{name}.weights.block_structure");
            let found = block(&key, &weights["block_structure"])?;
            found.map(Some).ok_or_else(|| format!("its {key} is missing; {REMEDY}"))
        }
        Some("group") => {
            let key = format!("{name}.weights.group_size");
            let size = weights["group_size"].as_u64().filter(|size| *size > 0);
            let size = size.ok_or_else(|| format!("its {key} is not a positive number; {REMEDY}"))?;
            Ok(Some([1, size as usize]))
        }
        other => Err(format!(
            "its {name}.weights have strategy {}, but only tensor, channel, group and block are supported; {REMEDY}",
            other.unwrap_or("null")
        )),
    }
}

/// Two positive numbers: outputs and inputs. Old files of compressed-tensors have text such as `128x128`.
fn block(key: &str, value: &Value) -> Result<Option<[usize; 2]>, String> {
    let sizes: Vec<Option<u64>> = match value {
        Value::Null => return Ok(None),
        Value::Array(sizes) => sizes.iter().map(Value::as_u64).collect(),
        Value::String(text) => text.split('x').map(|size| size.parse().ok()).collect(),
        _ => Vec::new(),
    };
    match sizes[..] {
        [Some(outputs), Some(inputs)] if outputs > 0 && inputs > 0 => {
            Ok(Some([outputs as usize, inputs as usize]))
        }
        _ => Err(format!("its {key} is {value}, but must be two positive numbers; {REMEDY}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(config: &Value, expect: Result<Option<[usize; 2]>, &str>) {
        match (Fp8Scheme::of(config), expect) {
            (Ok(found), Ok(expect)) => assert_eq!(found.block, expect, "{config}"),
            (Err(found), Err(expect)) => {
                assert!(found.contains(expect), "{found:?} does not contain {expect:?}");
                assert!(found.ends_with(REMEDY), "{found:?} does not say how to go on");
            }
            (found, expect) => panic!("{config}: {found:?}, not {expect:?}"),
        }
    }

    #[test]
    fn fp8_has_an_optional_block() {
        check(&json!({"quant_method": "fp8", "activation_scheme": "static"}), Ok(None));
        check(&json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": null}), Ok(None));
        check(&json!({"quant_method": "fp8", "weight_block_size": [128, 64]}), Ok(Some([128, 64])));
        for block in [json!([128]), json!([0, 128]), json!([-1, 128]), json!(128), json!("128")] {
            let expect = "weight_block_size is ";
            check(&json!({"quant_method": "fp8", "weight_block_size": block}), Err(expect));
        }
        check(&json!({"quant_method": "fp8", "fmt": "e5m2"}), Err("fmt e5m2, but only e4m3"));
    }

    #[test]
    fn other_methods_are_refused_by_name() {
        for method in ["gptq", "awq", "bitsandbytes", "modelopt", "fbgemm_fp8", "mxfp4"] {
            check(&json!({"quant_method": method}), Err(&format!("quant_method {method}, but only fp8 and")));
        }
        check(&json!({"bits": 4}), Err("no quant_method"));
        check(&json!({}), Err("no quant_method"));
    }

    /// A `quantization_config` whose only group has these weights.
    fn with(weights: Value) -> Value {
        let group = json!({"targets": ["Linear"], "weights": weights, "input_activations": {"num_bits": 8}});
        json!({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group}})
    }

    fn float(strategy: &str) -> Value {
        json!({"type": "float", "num_bits": 8, "strategy": strategy, "symmetric": true})
    }

    /// `value` with another value at the JSON pointer `at`.
    fn but(mut value: Value, at: &str, new: Value) -> Value {
        let (parent, key) = at.rsplit_once('/').unwrap();
        value.pointer_mut(parent).unwrap()[key] = new;
        value
    }

    #[test]
    fn groups_of_compressed_tensors_have_at_most_one_size_of_blocks() {
        check(&with(float("tensor")), Ok(None));
        check(&with(float("channel")), Ok(None));
        check(&with(Value::Null), Ok(None));
        let block = but(float("block"), "/block_structure", json!([128, 64]));
        check(&with(block.clone()), Ok(Some([128, 64])));
        let text = but(float("block"), "/block_structure", json!("128x64"));
        check(&with(text), Ok(Some([128, 64])));
        let group = but(float("group"), "/group_size", json!(32));
        check(&with(group.clone()), Ok(Some([1, 32])));
        let two =
            |other: Value| but(with(block.clone()), "/config_groups/group_1", json!({"weights": other}));
        check(&two(float("channel")), Ok(Some([128, 64])));
        check(&two(block.clone()), Ok(Some([128, 64])));
        check(&two(group), Err("blocks of 128 × 64 and of 1 × 32"));
    }

    #[test]
    fn other_weights_of_compressed_tensors_are_refused() {
        let weights = |key: &str, value: Value| with(but(float("channel"), &format!("/{key}"), value));
        check(
            &weights("type", json!("int")),
            Err("config_groups.group_0.weights have type int and num_bits 8"),
        );
        check(&weights("num_bits", json!(4)), Err("type float and num_bits 4"));
        check(&with(json!({})), Err("type unknown and num_bits unknown"));
        check(&weights("symmetric", json!(false)), Err("zero points"));
        check(&weights("strategy", json!("tensor_group")), Err("strategy tensor_group"));
        check(&weights("strategy", json!("block")), Err("group_0.weights.block_structure is missing"));
        check(
            &weights("strategy", json!("group")),
            Err("group_0.weights.group_size is not a positive number"),
        );
        let config = |at: &str, value: Value| but(with(float("channel")), at, value);
        for format in ["int-quantized", "pack-quantized", "nvfp4-pack-quantized", "mxfp8-quantized", "dense"]
        {
            check(&config("/format", json!(format)), Err(&format!("has format {format}, but only")));
            let group = config("/config_groups/group_0/format", json!(format));
            check(&group, Err(&format!("config_groups.group_0.format {format}, but only")));
        }
        check(&config("/format", Value::Null), Err("has format null"));
        check(&config("/format", json!("naive-quantized")), Ok(None));
        check(&config("/format", json!("mixed-precision")), Ok(None));
        check(&config("/sparsity_config", json!({"format": "dense"})), Ok(None));
        check(&config("/sparsity_config", json!({"format": "sparse-24-bitmask"})), Err("sparse-24-bitmask"));
        check(&config("/transform_config", json!({})), Ok(None));
        check(&config("/transform_config", json!({"config_groups": {}})), Err("transform_config"));
        check(&config("/config_groups", Value::Null), Err("no config_groups"));
        check(&config("/config_groups/group_0", json!(["Linear"])), Err("type unknown"));
    }
}
