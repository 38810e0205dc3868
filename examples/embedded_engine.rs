//! Uses the engine as a library: continues a prompt greedily, without actors, HTTP or peers.
//!
//! ```text
//! cargo xtask fetch        # the model, once
//! cargo run --release -p examples --example embedded_engine -- "The capital of France is"
//! MODEL=/path/to/file.gguf cargo run --release -p examples --example embedded_engine -- "Once upon a time"
//! ```
//! Prints the model's name, then the prompt followed by up to 32 generated tokens as they are computed, and their number.
//!
//! The engine takes and returns token ids and does not allocate pages; the caller tokenises and allocates. The tokenizer here is built
//! from the vocabulary in the GGUF file and supports byte-level BPE, as in SmolLM2. Baton's frontend supports more kinds.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use engine::gguf::Gguf;
use engine::{
    Chunk, ComputeDevice, Engine, EngineConfig, LoadFormat, PageId, PageTable, Sample, TokenSource,
};
use tokenizers::Tokenizer;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;

const TOKENS_MAX: usize = 32;

/// The file in the variable `MODEL`, or else the model that `cargo xtask fetch` has put into the cache folder.
fn model_path() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let fetched = || Some(cache()?.join("baton/models/SmolLM2-135M-Instruct.Q4_1.gguf"));
    let path = variable("MODEL").or_else(fetched).context("set MODEL to a GGUF file")?;
    ensure!(path.is_file(), "{} does not exist: run `cargo xtask fetch` or set MODEL", path.display());
    Ok(path)
}

fn tokenizer(model: &Gguf) -> Result<Tokenizer> {
    let strings = |key| model.strings(key).with_context(|| format!("the model file has no {key}"));
    let tokens = strings("tokenizer.ggml.tokens")?.into_iter().map(str::to_owned);
    let pair = |merge: &str| merge.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned()));
    let merges = strings("tokenizer.ggml.merges")?.into_iter().filter_map(pair).collect::<Vec<_>>();
    let vocabulary = tokens.zip(0..).collect::<tokenizers::models::bpe::Vocab>();
    let bpe = BPE::builder().vocab_and_merges(vocabulary, merges).build();
    let mut tokenizer = Tokenizer::new(bpe.map_err(anyhow::Error::from_boxed)?);
    let words = [Digits::new(true).into(), ByteLevel::new(false, true, true).into()];
    tokenizer.with_pre_tokenizer(Some(Sequence::new(words.into())));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok(tokenizer)
}

/// Computes `tokens` at the positions from `start` on, and samples the next token.
fn step(engine: &mut dyn Engine, tokens: &[u32], start: u32, pages: &PageTable) -> Result<u32> {
    let source = if start == 0 { TokenSource::Prompt } else { TokenSource::Sampled };
    let sample = Some(Sample::greedy());
    let mut step =
        engine.submit(&[Chunk { sequence: 1, tokens, source, start, pages, sample, score: None }])?;
    let output = engine.poll(&mut step)?.context("the CPU backend computes in submit")?;
    Ok(output.tokens[0].token.id)
}

fn main() -> Result<()> {
    let prompt = std::env::args().nth(1).unwrap_or_else(|| "The capital of France is".to_owned());
    let model = model_path()?;
    let tokenizer = tokenizer(&Gguf::open(&model)?)?;
    let mut engine = engine::open(&EngineConfig {
        model,
        threads: std::thread::available_parallelism()?.get(),
        kv_bytes: 64 << 20,
        page_tokens: Some(16),
        step_tokens: 512,
        device: ComputeDevice::Cpu,
        load_format: LoadFormat::Auto,
        quantization: engine::Quantization::None,
        kv_dtype: engine::KvCacheDtype::Auto,
        digests: None,
    })?;
    println!("model: {}", engine.model().name);

    let encoded = tokenizer.encode(prompt.as_str(), false).map_err(anyhow::Error::from_boxed)?;
    let mut tokens = encoded.get_ids().to_vec();
    let prompt_tokens = tokens.len();
    let room = engine.kv().pages() as usize * engine.kv().layout().page_tokens as usize;
    let room = room.min(engine.model().context_tokens as usize).min(engine.limits().tokens as usize);
    ensure!(prompt_tokens > 0, "the prompt is empty");
    ensure!(prompt_tokens + TOKENS_MAX <= room, "the prompt has {prompt_tokens} tokens: at most {room} fit");
    // This program has one sequence, which gets all pages.
    let pages: PageTable = (0..engine.kv().pages()).map(PageId).collect();

    print!("{prompt}");
    let mut text = tokenizer.decode_stream(false);
    let mut resident = 0;
    while tokens.len() < prompt_tokens + TOKENS_MAX {
        // The first step computes the whole prompt, each later one a single token.
        let next = step(&mut *engine, &tokens[resident..], resident as u32, &pages)?;
        resident = tokens.len();
        if engine.model().eos_tokens.contains(&next) {
            break;
        }
        tokens.push(next);
        print!("{}", text.step(next).map_err(anyhow::Error::from_boxed)?.unwrap_or_default());
        std::io::stdout().flush()?;
    }
    println!("\nprompt tokens: {prompt_tokens}, generated tokens: {}", tokens.len() - prompt_tokens);
    Ok(())
}
