//! Folders in FP8 give the tokens of transformers with the same rounded weights, and folders that cannot be read are refused.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use integration_tests::client::complete;
use integration_tests::fp8_folders::{Fp8Model, fp8_models};
use integration_tests::process::{Event, Pair, start_local};
use serde_json::{Map, Value, json};

use super::{check_answers, open};

fn model(name: &str) -> Result<Fp8Model> {
    fp8_models()?.into_iter().find(|model| model.small.name == name).context("no such model")
}

#[test]
fn fp8_folders_give_the_tokens_of_transformers() -> Result<()> {
    for model in fp8_models()? {
        let folder = model.write("fp8")?;
        check_answers(&model.small, folder.path(), &[model.small.prompt.len(), 7])?;
    }
    Ok(())
}

#[test]
fn scales_are_not_parameters() -> Result<()> {
    for model in fp8_models()? {
        let folder = model.write("fp8-count")?;
        assert_eq!(open(folder.path())?.model().parameters, model.weights(), "{}", model.small.name);
    }
    Ok(())
}

#[test]
fn a_pair_serves_fp8_folders() -> Result<()> {
    for name in ["ct-tensor-static-kv", "fp8-block-sharded"] {
        let model = model(name)?;
        let folder = model.write("fp8-pair")?;
        let setting = format!("model={}", folder.path().display());
        let pair = Pair::start(&[&setting, "engine.kv_bytes=4MiB", "ring.bytes=64KiB"])?;
        let answer = complete(&pair.frontend, &json!(model.small.prompt), model.small.ids.len() as u32)?;
        assert_eq!(answer.ids, model.small.ids, "{name}");
        assert_eq!(answer.timings["disaggregated"], true, "{name}");
        // Each of two layers has seven projections and scales of keys and values.
        let ignored = usize::from(name == "ct-tensor-static-kv");
        assert_eq!(pair.sender.count_events(Event::ScalesIgnored), ignored, "{}", pair.sender.log());
        if ignored > 0 {
            pair.receiver.wait_event(Event::ScalesIgnored, &["INFO", "input_scales=14", "kv_scales=4"])?;
        }
        assert_eq!(pair.receiver.count_events(Event::KvScalesIgnored), 0, "pages are not in FP8");
    }
    Ok(())
}

#[test]
fn the_log_says_what_becomes_of_fp8_weights() -> Result<()> {
    const WHAT: [Event; 3] = [Event::CodesKept, Event::CodesBecomeBf16, Event::CodesRounded];
    let (keep, bf16) = ("set engine.quantization to fp8 ", "set engine.quantization to none ");
    for (name, quantization, expect, words) in [
        ("ct-channel-bf16", "none", Event::CodesBecomeBf16, ["INFO", keep]),
        ("ct-channel-bf16", "fp8_weights", Event::CodesRounded, ["WARN", keep]),
        ("ct-channel-bf16", "fp8", Event::CodesKept, ["INFO", "matrices=14"]),
        ("fp8-tensor-static", "fp8", Event::CodesKept, ["INFO", "matrices=14"]),
        ("ct-block", "none", Event::CodesBecomeBf16, ["INFO", "matrices=14"]),
        ("ct-block", "fp8", Event::CodesRounded, ["WARN", bf16]),
        ("ct-tensor-static-kv", "fp8", Event::CodesKept, ["INFO", "matrices=14"]),
    ] {
        let folder = model(name)?.write("fp8-log")?;
        let sets = [
            format!("model={}", folder.path().display()),
            format!("engine.quantization={quantization}"),
            "engine.kv_dtype=fp8".to_owned(),
            "engine.kv_bytes=4MiB".to_owned(),
        ];
        let (process, _) = start_local(&sets.each_ref().map(String::as_str))?;
        process.wait_event(expect, &words)?;
        let found = WHAT.map(|event| process.count_events(event));
        assert_eq!(found, WHAT.map(|event| usize::from(event == expect)), "{}", process.log());
        if name == "ct-tensor-static-kv" {
            process.wait_event(Event::KvScalesIgnored, &["WARN", "kv_scales=4"])?;
        } else {
            assert_eq!(process.count_events(Event::KvScalesIgnored), 0, "{name}");
        }
    }
    Ok(())
}

/// Changes the header and the data of the folder's only file.
fn edit(folder: &Path, change: impl FnOnce(&mut Map<String, Value>, &mut [u8])) -> Result<()> {
    let file = folder.join("model.safetensors");
    let bytes = fs::read(&file)?;
    let (length, rest) = bytes.split_first_chunk().context("a file has a length")?;
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let (mut header, mut data) = (serde_json::from_slice(header)?, data.to_vec());
    change(&mut header, &mut data);
    let header = serde_json::to_vec(&header)?;
    fs::write(file, [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat())?;
    Ok(())
}

/// The first byte of a tensor.
fn start(header: &Map<String, Value>, tensor: &str) -> usize {
    header[tensor]["data_offsets"][0].as_u64().expect("a tensor has offsets") as usize
}

const WEIGHT: &str = "model.layers.1.mlp.up_proj.weight";
const SCALE: &str = "model.layers.1.mlp.up_proj.weight_scale";

#[test]
fn refused_fp8_folders_have_a_reason() -> Result<()> {
    let model = model("ct-channel-bf16")?;
    let check = |change: &dyn Fn(&Path), words: &[&str]| {
        let folder = model.write("fp8-refused").expect("the folder can be written");
        change(folder.path());
        let error = open(folder.path()).err().expect("the folder is refused").to_string();
        for word in words {
            assert!(error.contains(word), "{error:?} does not contain {word:?}");
        }
    };
    let quantization = |value: Value| {
        let config = &model.small.config;
        move |folder: &Path| {
            let mut config = config.clone();
            config["quantization_config"] = value.clone();
            fs::write(folder.join("config.json"), config.to_string()).unwrap();
        }
    };
    check(&quantization(Value::Null), &["is F8_E4M3, but config.json has no quantization_config", "weight"]);
    let gptq = quantization(json!({"quant_method": "gptq", "bits": 4}));
    check(&gptq, &["quant_method gptq", "use an unquantised checkpoint of the model, or one in FP8"]);

    let entry = |tensor: &'static str, key: &'static str, value: Value| {
        move |folder: &Path| edit(folder, |header, _| header[tensor][key] = value.clone()).unwrap()
    };
    check(
        &entry(WEIGHT, "dtype", json!("F8_E5M2")),
        &[WEIGHT, "is F8_E5M2, but only F32, F16, BF16, and F8_E4M3"],
    );
    check(&entry(SCALE, "shape", json!([112, 2])), &[SCALE, "has shape [112, 2]", "[224, 1]"]);
    check(
        &entry(WEIGHT, "shape", json!([160, 224])),
        &[WEIGHT, "dimensions [224, 160], expected [160, 224]"],
    );
    let remove =
        |tensor| move |folder: &Path| edit(folder, |header, _| drop(header.remove(tensor).unwrap())).unwrap();
    check(&remove(SCALE), &[WEIGHT, "is F8_E4M3, but its scales", SCALE, "are missing"]);
    check(&remove(WEIGHT), &[SCALE, "which the forward pass does not use"]);
    let unquantised = |folder: &Path| {
        edit(folder, |header, _| {
            header[WEIGHT]["dtype"] = json!("BF16");
            header[WEIGHT]["shape"] = json!([112, 160]);
        })
        .unwrap();
    };
    check(&unquantised, &["it has scales", SCALE, WEIGHT, "is BF16 and not F8_E4M3"]);

    let nan = |folder: &Path| {
        edit(folder, |header, data| {
            let at = start(header, WEIGHT) + 160 + 2;
            data[at] = 0xff;
        })
        .unwrap();
    };
    check(&nan, &[WEIGHT, "not a number at output 1, input 2"]);
    // Zero, infinity and -1 in BF16.
    for (bits, text) in [(0x0000_u16, "is 0,"), (0x7f80, "is inf,"), (0xbf80, "is -1,")] {
        let scale = move |folder: &Path| {
            edit(folder, |header, data| {
                let at = start(header, SCALE) + 3 * 2;
                data[at..at + 2].copy_from_slice(&bits.to_le_bytes());
            })
            .unwrap();
        };
        check(&scale, &["scale 3 in tensor", SCALE, text]);
    }
    Ok(())
}

/// A file may have more scales than the engine uses, but only beside tensors that it uses.
#[test]
fn unused_scales_belong_to_a_tensor() -> Result<()> {
    let model = model("ct-channel-bf16")?;
    let check = |tensor: &str, expect: bool| -> Result<()> {
        let folder = model.write("fp8-unused")?;
        edit(folder.path(), |header, _| {
            let scale = header[SCALE].clone();
            header.insert(tensor.to_owned(), scale);
        })?;
        match open(folder.path()) {
            Ok(_) => assert!(expect, "{tensor} is accepted"),
            Err(error) => {
                assert!(!expect, "{error}");
                assert!(error.to_string().contains("which the forward pass does not use"), "{error}");
            }
        }
        Ok(())
    };
    check("model.layers.0.mlp.up_proj.input_scale", true)?;
    check("model.layers.0.self_attn.k_scale", true)?;
    check("model.layers.0.self_attn.v_proj.output_scale", true)?;
    check("model.layers.2.mlp.up_proj.input_scale", false)?;
    check("model.layers.2.self_attn.k_scale", false)?;
    check("model.layers.0.mlp.up_proj.weight_zero_point", false)?;
    Ok(())
}
