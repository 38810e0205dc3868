//! Hugging Face folders: small Llamas of every shape give the tokens of transformers, in any chunks, alone and through a pair.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use engine::{Chunk, Engine, EngineConfig, PageId, Sample, TokenSource};
use integration_tests::client::{complete, get, post};
use integration_tests::folders::llamas;
use integration_tests::process::Pair;
use serde_json::{Value, json};

fn open(model: &Path) -> Result<Box<dyn Engine>, engine::OpenError> {
    engine::open(&EngineConfig {
        model: model.to_owned(),
        threads: 2,
        kv_bytes: 8 << 20,
        page_tokens: 16,
        step_tokens: 64,
        device: engine::ComputeDevice::Cpu,
        load_format: engine::LoadFormat::Auto,
    })
}

/// Computes `tokens` at position `start` and returns the next token.
fn step(engine: &mut dyn Engine, tokens: &[u32], start: u32, pages: &[PageId]) -> Result<u32> {
    let sample = Some(Sample::greedy());
    let mut step =
        engine.submit(&[Chunk { sequence: 1, tokens, source: TokenSource::Prompt, start, pages, sample }])?;
    Ok(engine.poll(&mut step)?.context("a CPU step is complete when `submit` returns")?.tokens[0].token.id)
}

#[test]
fn folders_give_the_tokens_of_transformers() -> Result<()> {
    for llama in llamas()? {
        let folder = llama.write("engine")?;
        let mut engine = open(folder.path())?;
        assert_eq!(engine.model().eos_tokens, [2, 3]);
        let (prompt, expect) = (&llama.prompt, &llama.ids);
        // The pages are not contiguous, and each chunk size has its own pages.
        for (run, chunk) in [prompt.len(), 16, 7, 1].into_iter().enumerate() {
            let pages: Vec<PageId> = [3, 0, 5, 2, 4].map(|page| PageId(page + 6 * run as u32)).to_vec();
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
            assert_eq!(answer, *expect, "{} in chunks of {chunk}", llama.name);
        }
    }
    Ok(())
}

#[test]
fn a_pair_serves_folders() -> Result<()> {
    for llama in llamas()? {
        let folder = llama.write("pair")?;
        let model = format!("model={}", folder.path().display());
        let pair = Pair::start(&[&model, "engine.kv_bytes=4MiB", "ring.bytes=64KiB"])?;
        let answer = complete(&pair.frontend, &json!(llama.prompt), llama.ids.len() as u32)?;
        assert_eq!(answer.ids, llama.ids, "{}", llama.name);
        assert_eq!(answer.timings["disaggregated"], true, "{}", llama.name);
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
    let llama = &llamas()?[3];
    let check = |change: &dyn Fn(&Path), words: &[&str]| {
        let folder = llama.write("refused").expect("the folder can be written");
        change(folder.path());
        let error = open(folder.path()).err().expect("the folder is refused").to_string();
        for word in words {
            assert!(error.contains(word), "{error:?} does not contain {word:?}");
        }
    };
    let config = |key: &'static str, value: Value| {
        move |folder: &Path| {
            let mut config = llama.config.clone();
            config[key] = value.clone();
            fs::write(folder.join("config.json"), config.to_string()).unwrap();
        }
    };
    check(&|folder| fs::remove_file(folder.join("config.json")).unwrap(), &["config.json", "GGUF"]);
    check(&|folder| fs::write(folder.join("config.json"), "{").unwrap(), &["config.json"]);
    check(&config("model_type", json!("mixtral")), &["mixtral", "llama"]);
    check(&config("attention_bias", json!(true)), &["biases"]);
    check(&config("hidden_act", json!("gelu")), &["gelu", "silu"]);
    check(&config("num_key_value_heads", json!(3)), &["4 heads", "3 KV heads"]);
    check(&config("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0})), &["yarn"]);
    check(&config("num_hidden_layers", json!(1)), &["model.layers.1"]);
    check(&config("vocab_size", json!(76)), &["token_embd.weight", "[64, 75]"]);
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
