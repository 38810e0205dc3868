//! The CPU engine computes the FP8 recipes of `docs/models.md` as an emulation in PyTorch does: `fixtures/fp8_emulation.py`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use engine::{
    Chunk, Engine, KvCacheDtype, PageId, PageTable, Quantization, Sample, Score, StepOutput, TokenSource,
};
use integration_tests::client::post;
use integration_tests::folders::small_models;
use integration_tests::fp8_folders::fp8_models;
use integration_tests::process::start_local;
use integration_tests::small_engine::open_small;
use serde::Deserialize;
use serde_json::{Value, json};

/// The names of the emulation for the settings of the engine.
const RECIPES: [(&str, Quantization, KvCacheDtype); 5] = [
    ("none", Quantization::None, KvCacheDtype::Auto),
    ("fp8_weights", Quantization::Fp8Weights, KvCacheDtype::Auto),
    ("fp8", Quantization::Fp8, KvCacheDtype::Auto),
    ("fp8_pages", Quantization::None, KvCacheDtype::Fp8),
    ("fp8_and_pages", Quantization::Fp8, KvCacheDtype::Fp8),
];

/// The largest RMS of the differences of a prompt's log probabilities. Without rounding, those of the engine and of transformers differ as much.
const RMS_MAX: f64 = 1e-5;

/// A model of `fixtures/fp8_emulation.json`.
#[derive(Debug, Deserialize)]
struct Emulated {
    name: String,
    answers: BTreeMap<String, EmulatedAnswer>,
}

/// What the emulation of a recipe computes.
#[derive(Debug, Deserialize)]
struct EmulatedAnswer {
    prompt: Vec<u32>,
    ids: Vec<u32>,
    /// Of the tokens of the prompt after the first.
    logprobs: Vec<f64>,
}

fn emulated() -> Result<Vec<Emulated>> {
    #[derive(Deserialize)]
    struct File {
        models: Vec<Emulated>,
    }
    Ok(serde_json::from_str::<File>(include_str!("../fixtures/fp8_emulation.json"))?.models)
}

/// Computes `tokens` at position `start`. The log probabilities are those of the `targets`.
fn step(
    engine: &mut dyn Engine,
    (tokens, start): (&[u32], usize),
    targets: &[u32],
    pages: &PageTable,
) -> Result<StepOutput> {
    let (start, score) = (start as u32, Some(Score { targets, top: 0 }));
    let (sequence, source, sample) = (1, TokenSource::Prompt, Some(Sample::greedy()));
    let chunk = Chunk { sequence, tokens, source, start, pages, sample, score };
    let mut step = engine.submit(&[chunk])?;
    engine.poll(&mut step)?.context("a CPU step is complete when `submit` returns")
}

/// The log probabilities of the prompt after its first token, and the greedy answer.
fn answer(
    engine: &mut dyn Engine,
    prompt: &[u32],
    (count, chunk): (usize, usize),
) -> Result<(Vec<f64>, Vec<u32>)> {
    let pages = PageTable::from([3, 0, 5, 2].map(PageId));
    let (mut logprobs, mut ids) = (Vec::new(), prompt.to_vec());
    for (start, part) in (0..).step_by(chunk).zip(prompt.chunks(chunk)) {
        let targets = &prompt[start + 1..prompt.len().min(start + part.len() + 1)];
        let output = step(engine, (part, start), targets, &pages)?;
        logprobs.extend(output.scores[0].targets.iter().map(|target| f64::from(target.sampled)));
        if start + part.len() == prompt.len() {
            ids.push(output.tokens[0].token.id);
        }
    }
    while ids.len() < prompt.len() + count {
        let start = ids.len() - 1;
        ids.push(step(engine, (&ids[start..], start), &[], &pages)?.tokens[0].token.id);
    }
    Ok((logprobs, ids.split_off(prompt.len())))
}

/// The root of the mean of the squared differences.
fn rms(found: &[f64], expect: &[f64]) -> f64 {
    assert_eq!(found.len(), expect.len());
    let squares: f64 = found.iter().zip(expect).map(|(found, expect)| (found - expect).powi(2)).sum();
    (squares / found.len() as f64).sqrt()
}

/// Compares all recipes. Returns the largest RMS.
fn check(model: &Emulated, folder: &Path) -> Result<f64> {
    let mut largest = 0f64;
    for (name, quantization, kv_dtype) in RECIPES {
        let expect = model.answers.get(name).with_context(|| format!("{}: no {name}", model.name))?;
        let mut engine = open_small(folder, quantization, kv_dtype)?;
        for chunk in [expect.prompt.len(), 7] {
            let (logprobs, ids) = answer(engine.as_mut(), &expect.prompt, (expect.ids.len(), chunk))?;
            let error = rms(&logprobs, &expect.logprobs);
            assert_eq!(ids, expect.ids, "{}, {name}, in chunks of {chunk}", model.name);
            assert!(error < RMS_MAX, "{}, {name}, in chunks of {chunk}: RMS {error:.1e}", model.name);
            largest = largest.max(error);
        }
    }
    Ok(largest)
}

#[test]
fn small_models_give_the_tokens_of_the_emulation() -> Result<()> {
    let emulated: BTreeMap<String, Emulated> =
        emulated()?.into_iter().map(|model| (model.name.clone(), model)).collect();
    let of = |name: &str| emulated.get(name).with_context(|| format!("no emulation of {name}"));
    let (plain, fp8) = (small_models()?, fp8_models()?);
    assert_eq!(plain.len() + fp8.len(), emulated.len(), "fixtures/make_fp8_emulation.py makes the answers");
    let mut largest = 0f64;
    for model in plain {
        largest = largest.max(check(of(&model.name)?, model.write("emulation")?.path())?);
    }
    for model in fp8 {
        largest = largest.max(check(of(&model.small.name)?, model.write("emulation")?.path())?);
    }
    println!("largest RMS of the log probabilities of a prompt: {largest:.1e}");
    Ok(())
}

/// The largest relative difference of the perplexities of a window. PyTorch in bf16 is five times as far from float32.
const PERPLEXITY_MAX: f64 = 1e-4;

/// Windows of the text that the test scores.
const WINDOWS: usize = 2;

/// Lines of the text that contain these windows.
const LINES: usize = 20;

/// The token ids of the windows, cut as `peers/fp8_perplexity.py` does.
fn windows(address: &str, lengths: &[usize]) -> Result<Vec<Vec<u32>>> {
    let file = include_str!("../fixtures/news_from_nowhere.txt");
    let (_, text) = file.split_once("\n\n").context("the text comes after an empty line")?;
    let text: String = text.split_inclusive('\n').take(LINES).collect();
    let (status, answer) = post(address, "/tokenize", &json!({"prompt": text}))?;
    ensure!(status == 200, "{status} {answer}");
    let ids: Vec<u32> = serde_json::from_value(answer["tokens"].clone())?;
    ensure!(ids.len() >= lengths.iter().sum(), "{} tokens", ids.len());
    let mut rest = ids.as_slice();
    Ok(lengths.iter().map(|length| rest.split_off(..*length).unwrap_or_default().to_vec()).collect())
}

/// The sum of the log probabilities of the tokens after the first.
fn sum(address: &str, window: &[u32]) -> Result<f64> {
    let body = json!({"prompt": window, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0});
    let (status, answer) = post(address, "/v1/completions", &body)?;
    ensure!(status == 200, "{status} {answer}");
    let listed = answer["choices"][0]["prompt_logprobs"].as_array().context("no log probabilities")?;
    ensure!(listed.len() == window.len(), "{} log probabilities", listed.len());
    let of = |(token, listed): (&u32, &Value)| listed[token.to_string()]["logprob"].as_f64();
    let numbers = window.iter().zip(listed).skip(1).map(|pair| of(pair).context("no log probability"));
    numbers.sum()
}

/// Recipes that round activations are left out: the order of sums alone changes their perplexity by more (docs/models.md).
#[test]
fn smollm2_has_the_perplexity_of_the_emulation() -> Result<()> {
    #[derive(Deserialize)]
    struct File {
        tokens: Vec<usize>,
        sums: BTreeMap<String, Vec<f64>>,
    }
    let file: File = serde_json::from_str(include_str!("../fixtures/fp8_perplexity.json"))?;
    let lengths = &file.tokens[..WINDOWS];
    let perplexity = |sum: f64, length: usize| (-sum / (length - 1) as f64).exp();
    for name in ["none", "fp8_weights"] {
        let (_process, address) = start_local(&[&format!("engine.quantization={name}")])?;
        for (window, expect) in windows(&address, lengths)?.iter().zip(&file.sums[name]) {
            let found = perplexity(sum(&address, window)?, window.len());
            let expect = perplexity(*expect, window.len());
            println!("{name}: perplexity {found:.4}, emulation {expect:.4}");
            assert!((found / expect - 1.0).abs() < PERPLEXITY_MAX, "{name}: {found} and {expect}");
        }
    }
    Ok(())
}
