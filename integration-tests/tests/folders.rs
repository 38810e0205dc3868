//! Small models of every family give the tokens of transformers, as folders and GGUF files, in any chunks, alone and through a pair.

#[path = "folders/fp8.rs"]
mod fp8;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use engine::{Chunk, Engine, KvCacheDtype, OpenError, PageId, PageTable, Quantization, Sample, TokenSource};
use integration_tests::client::{complete, get, post};
use integration_tests::folders::{SmallModel, small_models};
use integration_tests::process::Pair;
use integration_tests::small_engine::open_small;
use serde_json::{Value, json};

fn open(model: &Path) -> Result<Box<dyn Engine>, OpenError> {
    open_small(model, Quantization::None, KvCacheDtype::Auto)
}

/// Computes `tokens` at position `start` and returns the next token.
fn step(engine: &mut dyn Engine, tokens: &[u32], start: u32, pages: &PageTable) -> Result<u32> {
    let sample = Some(Sample::greedy());
    let mut step = engine.submit(&[Chunk {
        sequence: 1,
        tokens,
        source: TokenSource::Prompt,
        start,
        pages,
        sample,
        score: None,
    }])?;
    Ok(engine.poll(&mut step)?.context("a CPU step is complete when `submit` returns")?.tokens[0].token.id)
}

/// Compares the greedy answers to the model's prompt in chunks of any size with that of transformers.
fn check_answers(model: &SmallModel, path: &Path, runs: &[usize]) -> Result<()> {
    let mut engine = open(path)?;
    let (prompt, expect) = (&model.prompt, &model.ids);
    // The pages are not contiguous, and each chunk size has its own pages.
    for (run, &chunk) in runs.iter().enumerate() {
        let pages = PageTable::from([3, 0, 5, 2, 4].map(|page| PageId(page + 6 * run as u32)));
        let mut start = 0;
        let mut next = 0;
        for part in prompt.chunks(chunk) {
            next = step(engine.as_mut(), part, start, &pages)?;
            start += part.len() as u32;
        }
        let mut answer = vec![next];
        while answer.len() < expect.len() {
            next = step(engine.as_mut(), &[next], start, &pages)?;
            start += 1;
            answer.push(next);
        }
        assert_eq!(answer, *expect, "{} in chunks of {chunk}", path.display());
    }
    Ok(())
}

#[test]
fn folders_give_the_tokens_of_transformers() -> Result<()> {
    for model in small_models()? {
        let folder = model.write("engine")?;
        assert_eq!(open(folder.path())?.model().eos_tokens, [2, 3]);
        check_answers(&model, folder.path(), &[model.prompt.len(), 16, 7, 1])?;
    }
    Ok(())
}

#[test]
fn gguf_files_give_the_tokens_of_transformers() -> Result<()> {
    // A GGUF file has the computed factors of a RoPE scaling, which are not in the fixture.
    let models = small_models()?.into_iter().filter(|model| model.config["rope_scaling"].is_null());
    for model in models {
        let folder = model.write_gguf("gguf")?;
        check_answers(&model, &folder.path().join("model.gguf"), &[model.prompt.len(), 7])?;
    }
    Ok(())
}

#[test]
fn a_pair_serves_folders() -> Result<()> {
    for model in small_models()? {
        let folder = model.write("pair")?;
        let setting = format!("model={}", folder.path().display());
        let pair = Pair::start(&[&setting, "engine.kv_bytes=4MiB", "ring.bytes=64KiB"])?;
        let answer = complete(&pair.frontend, &json!(model.prompt), model.ids.len() as u32)?;
        assert_eq!(answer.ids, model.ids, "{}", model.name);
        assert_eq!(answer.timings["disaggregated"], true, "{}", model.name);
        let (_, models) = get(&pair.frontend, "/v1/models")?;
        let name = folder.path().file_name().context("the folder has no name")?.to_string_lossy();
        assert_eq!(
            (&models["data"][0]["id"], &models["data"][0]["max_model_len"]),
            (&json!(name), &json!(256))
        );
        let chat = json!({"messages": [{"role": "user", "content": "abc"}], "max_tokens": 1});
        assert_eq!(post(&pair.frontend, "/v1/chat/completions", &chat)?.1["usage"]["prompt_tokens"], 3);
    }
    Ok(())
}

#[test]
fn a_refused_folder_has_a_reason() -> Result<()> {
    let models = small_models()?;
    let model = &models[3];
    let check = |change: &dyn Fn(&Path), words: &[&str]| {
        let folder = model.write("refused").expect("the folder can be written");
        change(folder.path());
        let error = open(folder.path()).err().expect("the folder is refused").to_string();
        for word in words {
            assert!(error.contains(word), "{error:?} does not contain {word:?}");
        }
    };
    let config = |key: &'static str, value: Value| {
        move |folder: &Path| {
            let mut config = model.config.clone();
            config[key] = value.clone();
            fs::write(folder.join("config.json"), config.to_string()).unwrap();
        }
    };
    check(&|folder| fs::remove_file(folder.join("config.json")).unwrap(), &["config.json", "GGUF"]);
    check(&|folder| fs::write(folder.join("config.json"), "{").unwrap(), &["config.json"]);
    check(&config("model_type", json!("mixtral")), &["mixtral", "Llama, Qwen2, Qwen3, Mistral"]);
    check(&config("attention_bias", json!(true)), &["biases"]);
    check(&config("hidden_act", json!("gelu")), &["gelu", "silu"]);
    check(&config("num_key_value_heads", json!(3)), &["4 heads", "3 KV heads"]);
    check(&config("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0})), &["yarn"]);
    check(&config("num_hidden_layers", json!(1)), &["model.layers.1"]);
    check(&config("vocab_size", json!(76)), &["model.embed_tokens.weight", "[64, 75]"]);
    check(&config("model_type", json!("qwen2")), &["self_attn.q_proj.bias is missing"]);
    check(&config("model_type", json!("qwen3")), &["self_attn.q_norm.weight is missing"]);
    let second = "model-00002-of-00002.safetensors";
    check(&|folder| fs::remove_file(folder.join(second)).unwrap(), &[second, "cannot be read"]);
    let cut = |folder: &Path| {
        let bytes = fs::read(folder.join(second)).unwrap();
        fs::write(folder.join(second), &bytes[..bytes.len() - 1]).unwrap();
    };
    check(&cut, &[second, "truncated", "fetch it again"]);
    check(&|folder| fs::write(folder.join(second), [255; 16]).unwrap(), &[second, "malformed"]);
    check(&|folder| fs::write(folder.join(second), b"12").unwrap(), &[second, "truncated"]);
    Ok(())
}

/// transformers gives a Qwen3 without `head_dim` heads of 128. Other families divide the hidden size by the heads.
#[test]
fn a_missing_head_size_is_that_of_the_family() -> Result<()> {
    for name in ["qwen3-gqa2-128-tied", "mha-16"] {
        let model = small_models()?.into_iter().find(|model| model.name == name).context("no such model")?;
        let folder = model.write("head-size")?;
        let mut config = model.config.clone();
        config.as_object_mut().context("an object")?.remove("head_dim").context("it has a head size")?;
        fs::write(folder.path().join("config.json"), config.to_string())?;
        check_answers(&model, folder.path(), &[model.prompt.len()])?;
    }
    Ok(())
}

/// A sliding window shorter than the context is refused. A Qwen's `sliding_window` counts only if `use_sliding_window` is true and a
/// layer uses it.
#[test]
fn sliding_windows_are_refused() -> Result<()> {
    let models = small_models()?;
    let check = |family: &str, change: &[(&str, Value)], expect: Option<&str>| -> Result<()> {
        let model =
            models.iter().find(|model| model.config["model_type"] == family).context("no such model")?;
        let folder = model.write("windows")?;
        let mut config = model.config.clone();
        change.iter().for_each(|(key, value)| config[*key] = value.clone());
        if change.is_empty() {
            config.as_object_mut().context("an object")?.remove("sliding_window");
            config["max_position_embeddings"] = json!(8192);
        }
        fs::write(folder.path().join("config.json"), config.to_string())?;
        let found = open(folder.path()).err().map(|error| error.to_string());
        match (&found, expect) {
            (None, None) => {}
            (Some(error), Some(words)) => {
                assert!(error.contains(words), "{error:?} does not contain {words:?}")
            }
            _ => panic!("{family} {change:?}: {found:?}, not {expect:?}"),
        }
        Ok(())
    };
    let window = |tokens: Value| ("sliding_window", tokens);
    let used = || ("use_sliding_window", json!(true));
    let words = "sliding window has 255 tokens, fewer than its context of 256";
    check("mistral", &[window(json!(255))], Some(words))?;
    check("mistral", &[window(json!(256))], None)?;
    check("mistral", &[window(json!(null))], None)?;
    // transformers gives a file without the key a window of 4,096 tokens.
    check("mistral", &[], Some("sliding window has 4096 tokens, fewer than its context of 8192"))?;
    for family in ["qwen2", "qwen3"] {
        check(family, &[window(json!(255))], None)?;
        check(family, &[window(json!(255)), used()], Some(words))?;
        check(family, &[window(json!(255)), used(), ("max_window_layers", json!(2))], None)?;
        check(family, &[window(json!(null)), used()], None)?;
    }
    check("llama", &[window(json!(255)), used()], None)?;
    Ok(())
}
