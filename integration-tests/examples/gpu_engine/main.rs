//! Checks and measures the CUDA engine alone, on one GPU.
//!
//! ```text
//! cargo build --release --features cuda -p integration-tests --example gpu_engine
//! target/release/examples/gpu_engine [fp8_weights | fp8] [fp8_kv] [CONFIG FOLDER [speed | step ROWS | prefill TOKENS | pages TOKENS | logits TOKENS FILE]]
//! target/release/examples/gpu_engine company SECONDS
//! target/release/examples/gpu_engine failure
//! ```
//! Without arguments it checks small random models of every family with heads of 64 and 128: their logits against those of the CPU engine, their rows in large
//! batches against the same rows alone (bit for bit), tokens sampled on the GPU (with every combination of penalties, biases and masks) and log probabilities against those of the host, and
//! page hashes against those of the CPU. With CONFIG FOLDER (configs/models/llama-3.1-8b) it then checks and measures a model of that shape with random weights.
//!
//! `fp8_weights` in front rounds the weights of all models to FP8, `fp8` also the rows that they multiply, and `fp8_kv` the pages. With pages in FP8, it also compares the pages of a prompt with
//! those of the CPU engine, and checks prompts that are computed in groups. With `fp8`, it also checks a checkpoint in FP8 with the matrices of a large model.
//!
//! - `speed` only measures prompts, the page hash and decode steps.
//! - `step` computes one decode step of ROWS rows, and `prefill` one prompt, for a profiler: `ncu --metrics gpu__time_duration.sum --csv`.
//! - `pages` prints a digest of the pages of a prompt, to compare GPUs.
//! - `logits` writes the last logits of a prompt to FILE, for `gpu/logits.py`.
//! - `company` compares rows of the small models in large batches with the same rows alone, for SECONDS.
//! - `failure` makes the GPU fail for this process and checks the errors of the engine.

mod combinations;
mod company;
mod failure;
mod fp8_pages;
mod kept_codes;
mod masks;
mod modes;
mod sampling;
mod scores;
mod speed;

use std::collections::VecDeque;
use std::hash::Hasher;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use connector::memory::Region;
use connector::page_hash::{PageSeed, finished, page_hash};
use engine::cpu::CpuEngine;
use engine::{
    Chunk, ComputeDevice, CudaEngine, Engine, EngineConfig, LoadFormat, PageId, PageTable, Sample, Sampling,
    Step, StepOutput, TokenSource,
};
use integration_tests::folders::{SmallModel, small_models};
use integration_tests::fp8_folders::fp8_models;
use modes::Modes;

const STEP_TOKENS: u32 = 8192 + 256;

fn config(model: &Path, device: ComputeDevice, load_format: LoadFormat, kv_bytes: u64) -> EngineConfig {
    let (page_tokens, step_tokens) = if kv_bytes == 0 { (None, STEP_TOKENS) } else { (Some(16), 256) };
    EngineConfig {
        model: model.to_owned(),
        threads: 2,
        kv_bytes,
        page_tokens,
        step_tokens,
        device,
        load_format,
        quantization: Modes::current().quantization,
        kv_dtype: Modes::current().kv_dtype,
        digests: None,
    }
}

const GPU: ComputeDevice = ComputeDevice::Cuda { ordinal: 0, memory_utilization: 0.9 };

fn run(engine: &mut dyn Engine, batch: &[Chunk<'_>]) -> Result<StepOutput> {
    let mut step = engine.submit(batch)?;
    loop {
        if let Some(output) = engine.poll(&mut step)? {
            return Ok(output);
        }
    }
}

/// Root mean square of the difference, relative to that of `right`.
fn error(found: &[f32], right: &[f32]) -> f64 {
    let sum = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    let difference = sum(&mut found.iter().zip(right).map(|(a, b)| f64::from(a - b)));
    (difference / sum(&mut right.iter().map(|value| f64::from(*value)))).sqrt()
}

fn pages(first: u32, count: u32) -> PageTable {
    // No two pages are adjacent.
    (0..count)
        .map(|n| PageId(first + n * 2 % count.max(1) + u32::from(n * 2 >= count && count.is_multiple_of(2))))
        .collect()
}

fn head_dim(model: &SmallModel) -> u64 {
    model.config["head_dim"].as_u64().unwrap_or_default()
}

/// Whether the GPU has kernels for the heads of this model.
fn has_kernels(model: &SmallModel) -> bool {
    [64, 128].contains(&head_dim(model))
}

/// Answers the model's prompt greedily in three ways that have to agree. Returns the answer, and the error of the logits after the prompt
/// against the CPU engine.
fn greedy_answer(model: &SmallModel, cpu: &mut CpuEngine, gpu: &mut CudaEngine) -> Result<(Vec<u32>, f64)> {
    let prompt = &model.prompt;
    let table = pages(0, 8);
    let sample = Some(Sample::greedy());
    let whole = Chunk {
        sequence: 1,
        tokens: prompt,
        source: TokenSource::Prompt,
        start: 0,
        pages: &table,
        sample,
        score: None,
    };
    run(cpu, &[whole])?;
    let right = cpu.logits(0).context("sampled")?.to_vec();
    let first = run(gpu, &[whole])?;
    let alone = error(&gpu.logits(0)?, &right);
    if Modes::has_fp8_pages() {
        let (differing, error) = fp8_pages::compare(cpu, gpu, &table, prompt.len())?;
        println!(
            "{}: {:.2} % of the prompt's codes differ from the CPU's, by {error:.4} of all numbers",
            model.name,
            differing * 100.0
        );
    }
    // Greedy decoding uses CUDA graphs.
    let mut answer = vec![first.tokens[0].token.id];
    let mut position = prompt.len() as u32;
    while answer.len() < model.ids.len() {
        let token = [answer[answer.len() - 1]];
        let output = run(
            gpu,
            &[Chunk {
                sequence: 1,
                tokens: &token,
                source: TokenSource::Sampled,
                start: position,
                pages: &table,
                sample,
                score: None,
            }],
        )?;
        answer.push(output.tokens[0].token.id);
        position += 1;
    }
    // The same with a second step in flight.
    let (followed, _) = run_ahead(
        gpu,
        std::slice::from_ref(&table),
        (answer[0], prompt.len() as u32),
        answer.len() - 1,
        &Sampling::GREEDY,
    )?;
    ensure!(
        followed[0] == answer[1..],
        "{}: two steps in flight give {followed:?}, not {answer:?}",
        model.name
    );
    // And with a step that follows a finished step.
    let mut chunk = Chunk {
        sequence: 1,
        tokens: &answer[..1],
        source: TokenSource::Sampled,
        start: prompt.len() as u32,
        pages: &table,
        sample,
        score: None,
    };
    run(gpu, &[chunk])?;
    (chunk.source, chunk.start) = (TokenSource::Follows, chunk.start + 1);
    let late = run(gpu, &[chunk])?;
    ensure!(late.tokens[0].token.id == answer[2], "{}: {late:?} follows {answer:?}", model.name);
    Ok((answer, alone))
}

/// The greedy answer to the model's prompt: that of transformers, or with rounded weights or pages that of the CPU engine.
fn right_ids(model: &SmallModel, cpu: &mut CpuEngine) -> Result<Vec<u32>> {
    if Modes::are_plain() {
        return Ok(model.ids.clone());
    }
    let table = pages(0, 8);
    let (mut answer, mut start) = (Vec::new(), 0);
    while answer.len() < model.ids.len() {
        let last = answer.last().copied();
        let tokens = last.as_ref().map_or(&model.prompt[..], std::slice::from_ref);
        let source = if last.is_some() { TokenSource::Sampled } else { TokenSource::Prompt };
        let chunk = Chunk {
            sequence: 1,
            tokens,
            source,
            start,
            pages: &table,
            sample: Some(Sample::greedy()),
            score: None,
        };
        let output = run(cpu, &[chunk])?;
        start += tokens.len() as u32;
        answer.push(output.tokens[0].token.id);
    }
    Ok(answer)
}

fn check_small_models() -> Result<()> {
    println!(
        "{:<28} {:>5} {:>10} {:>8} {:>22} {:>12}",
        "model", "head", "error", "greedy", "rows alone = in company", "draws = CPU"
    );
    let plain = small_models()?.into_iter().map(|model| anyhow::Ok((model.write("gpu")?, model)));
    let fp8 = fp8_models()?.into_iter().map(|model| anyhow::Ok((model.write("gpu")?, model.small)));
    for written in plain.chain(fp8) {
        let (folder, model) = written?;
        if !has_kernels(&model) {
            continue;
        }
        let head = head_dim(&model);
        let mut cpu = CpuEngine::open(&config(folder.path(), ComputeDevice::Cpu, LoadFormat::Auto, 8 << 20))?;
        let mut gpu =
            CudaEngine::open(&config(folder.path(), GPU, LoadFormat::Auto, 8 << 20), 0, &|_, _| ())?;
        let (answer, alone) = greedy_answer(&model, &mut cpu, &mut gpu)?;
        draws_follow(&mut gpu, &model.name)?;
        if Modes::has_fp8_pages() {
            let grouped = fp8_pages::check_groups(&mut gpu).with_context(|| model.name.clone())?;
            let codes = fp8_pages::check_codes(&gpu)?;
            println!("{}: {grouped} prompts in groups, {codes} numbers rounded as on the CPU", model.name);
        }
        let rows = company::check(&mut gpu, 60, 250).with_context(|| model.name.clone())?;
        let draws = sampling::check(&mut gpu, 4).with_context(|| model.name.clone())?;
        masks::check(&mut gpu).with_context(|| model.name.clone())?;
        combinations::check(&mut gpu).with_context(|| model.name.clone())?;
        scores::check(&mut gpu, 150).with_context(|| model.name.clone())?;
        let right = right_ids(&model, &mut cpu)?;
        let same = answer.iter().zip(&right).take_while(|(a, b)| a == b).count();
        println!(
            "{:<28} {head:>5} {alone:>10.5} {:>8} {rows:>23} {draws:>12}",
            model.name,
            format!("{same}/{}", answer.len())
        );
        hashes(&gpu)?;
    }
    if Modes::rounds_rows() { kept_codes::check() } else { Ok(()) }
}

/// Checks that sampled tokens do not depend on whether the host has seen the token before, in steps that are padded to the rows of a graph.
fn draws_follow(gpu: &mut CudaEngine, name: &str) -> Result<()> {
    const START: u32 = 3;
    let how = Sampling { temperature: 0.9, top_k: 20, top_p: 0.97, seed: 11, ..Sampling::GREEDY };
    let tables: Vec<PageTable> = (0..3).map(|n| pages(n * 4, 4)).collect();
    let (followed, _) = run_ahead(gpu, &tables, (1, START), 30, &how)?;
    let mut answers = vec![vec![1]; tables.len()];
    for position in START..START + 30 {
        let last: Vec<u32> = answers.iter().map(|answer| answer[answer.len() - 1]).collect();
        let rows = last.chunks(1).zip(&tables).enumerate();
        let batch: Vec<Chunk<'_>> = rows
            .map(|(sequence, (tokens, pages))| Chunk {
                sequence: sequence as u64,
                tokens,
                source: TokenSource::Sampled,
                start: position,
                pages,
                sample: Some(Sample { how: &how, ..Sample::greedy() }),
                score: None,
            })
            .collect();
        let output = run(gpu, &batch)?;
        answers.iter_mut().zip(output.tokens).for_each(|(answer, sampled)| answer.push(sampled.token.id));
    }
    let seen: Vec<&[u32]> = answers.iter().map(|answer| &answer[1..]).collect();
    ensure!(
        followed == seen,
        "{name}: sampled with two steps in flight {followed:?}, one at a time {seen:?}"
    );
    Ok(())
}

/// Bytes of a page as a region.
struct Cells(Vec<AtomicU8>);

impl AsRef<[AtomicU8]> for Cells {
    fn as_ref(&self) -> &[AtomicU8] {
        &self.0
    }
}

fn hashes(gpu: &CudaEngine) -> Result<()> {
    let bytes = gpu.kv().layout().page_bytes();
    let some: Vec<PageId> = [0, 3, 21].map(PageId).into();
    let sums = gpu.kv().device_contents(&some).map_err(anyhow::Error::msg)?;
    for (page, sum) in some.iter().zip(sums) {
        let data = gpu.read_page(*page)?;
        let cells: Vec<AtomicU8> = data.into_iter().map(AtomicU8::new).collect();
        let region = Region::shared(Arc::new(Cells(cells)));
        let seed = PageSeed { session: 1, credit: 2, request: 3, place: 4 };
        let right = page_hash(&region, 0, bytes, seed).context("the page lies outside the region")?;
        ensure!(finished(sum, bytes, seed) == right, "page {page:?} has another hash on the GPU");
    }
    Ok(())
}

/// An engine with random weights of a model's shape.
fn open_large(folder: &Path) -> Result<CudaEngine> {
    let began = Instant::now();
    let gpu = CudaEngine::open(&config(folder, GPU, LoadFormat::Dummy { seed: 0 }, 0), 0, &|_, _| ())?;
    println!(
        "\n{} loaded in {:.1} s, {} pages of {} KiB",
        gpu.model().name,
        began.elapsed().as_secs_f64(),
        gpu.kv().pages(),
        gpu.kv().layout().page_bytes() >> 10
    );
    Ok(gpu)
}

fn large_model(folder: &Path) -> Result<()> {
    let mut gpu = open_large(folder)?;
    let rows = company::check(&mut gpu, 140, 8000)?;
    println!("{rows} rows have the same logits alone and in company");
    let draws = sampling::check(&mut gpu, 1)?;
    let made_up = sampling::check_made_up(&gpu)?;
    println!("{} tokens drawn on the GPU are those that the host draws", draws + made_up);
    println!("{} constrained rows sample as the host does", masks::check(&mut gpu)?);
    let combined = combinations::check(&mut gpu)?;
    println!("{combined} tokens with penalties, biases, masks and log probabilities are those of the host");
    masks::cost(&mut gpu, 32, 1000)?;
    println!("{} log probabilities of a prompt are those of the host", scores::check(&mut gpu, 300)?);
    scores::cost(&mut gpu, 1000)?;
    speed::print(&mut gpu)
}

/// Decodes `steps` tokens of every sequence after a token at a position, with two steps in flight. Returns the tokens of each sequence and the
/// seconds between steps.
fn run_ahead(
    gpu: &mut CudaEngine,
    tables: &[PageTable],
    (token, start): (u32, u32),
    steps: usize,
    how: &Sampling,
) -> Result<(Vec<Vec<u32>>, Vec<f64>)> {
    let mut answers = vec![Vec::new(); tables.len()];
    let (mut times, mut running) = (Vec::new(), VecDeque::new());
    let (mut submitted, tokens) = (0, [token]);
    // The device counts the tokens that it samples, so it does not read the history of a step that follows.
    let (end, vocabulary) = (start + steps as u32, gpu.model().vocabulary);
    let history: Vec<u32> = (0..end).map(|n| n.wrapping_mul(7919) % vocabulary).collect();
    let mut last = Instant::now();
    while times.len() < steps {
        if running.len() < 2 && submitted < steps {
            let known = &history[..=start as usize + submitted];
            let chunk = |(sequence, pages)| Chunk {
                sequence,
                tokens: &tokens,
                source: if submitted > 0 { TokenSource::Follows } else { TokenSource::Sampled },
                start: start + submitted as u32,
                pages,
                sample: Some(Sample { how, tokens: known, prompt: start, ..Sample::greedy() }),
                score: None,
            };
            let batch: Vec<Chunk<'_>> = (0..).zip(tables).map(chunk).collect();
            running.push_back(gpu.submit(&batch)?);
            submitted += 1;
            continue;
        }
        let step: &mut Step = running.front_mut().context("no step is running")?;
        if let Some(output) = gpu.poll(step)? {
            running.pop_front();
            times.push(last.elapsed().as_secs_f64());
            last = Instant::now();
            for sampled in output.tokens {
                answers[sampled.sequence as usize].push(sampled.token.id);
            }
        }
    }
    Ok((answers, times))
}

/// Computes one decode step of `rows` rows, each after a thousand tokens.
fn one_step(folder: &Path, rows: usize) -> Result<()> {
    let mut gpu = CudaEngine::open(&config(folder, GPU, LoadFormat::Dummy { seed: 0 }, 0), 0, &|_, _| ())?;
    let pages_of_row = 1001u32.div_ceil(gpu.kv().layout().page_tokens);
    let tables: Vec<_> = (0..rows as u32).map(|row| pages(row * pages_of_row, pages_of_row)).collect();
    let tokens = [1];
    let batch: Vec<_> = tables
        .iter()
        .enumerate()
        .map(|(row, table)| Chunk {
            sequence: row as u64,
            tokens: &tokens,
            source: TokenSource::Sampled,
            start: 1000,
            pages: table,
            sample: Some(Sample::greedy()),
            score: None,
        })
        .collect();
    run(&mut gpu, &batch)?;
    Ok(())
}

/// An engine that has prefilled a prompt of `tokens` tokens, and the pages of the prompt.
fn prefilled(folder: &Path, tokens: usize) -> Result<(CudaEngine, PageTable)> {
    let mut gpu = CudaEngine::open(&config(folder, GPU, LoadFormat::Dummy { seed: 0 }, 0), 0, &|_, _| ())?;
    let page_tokens = gpu.kv().layout().page_tokens as usize;
    let (prompt, table) = (prompt(tokens), pages(0, tokens.div_ceil(page_tokens) as u32));
    let mut start = 0;
    for tokens in prompt.chunks(STEP_TOKENS as usize) {
        let sample = Some(Sample::greedy());
        run(
            &mut gpu,
            &[Chunk {
                sequence: 1,
                tokens,
                source: TokenSource::Prompt,
                start,
                pages: &table,
                sample,
                score: None,
            }],
        )?;
        start += tokens.len() as u32;
    }
    Ok((gpu, table))
}

/// Writes the last logits of a prompt to a file.
fn logits(folder: &Path, tokens: usize, file: &str) -> Result<()> {
    let (gpu, _) = prefilled(folder, tokens)?;
    let bytes: Vec<u8> = gpu.logits(0)?.into_iter().flat_map(f32::to_le_bytes).collect();
    std::fs::write(file, bytes).with_context(|| format!("cannot write {file}"))
}

/// Prints a digest of the full pages of a prompt.
fn digest(folder: &Path, tokens: usize) -> Result<()> {
    let (gpu, table) = prefilled(folder, tokens)?;
    let mut digest = std::hash::DefaultHasher::new();
    let full = tokens / gpu.kv().layout().page_tokens as usize;
    for page in &table[..full] {
        digest.write(&gpu.read_page(*page)?);
    }
    println!("{full} pages: {:016x}", digest.finish());
    Ok(())
}

fn prompt(tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|n| n.wrapping_mul(2_654_435_761) % 128_000).collect()
}

/// Compares rows alone and in large batches on the small models for some seconds. Run under a tool that changes timing, it finds results that
/// depend on timing.
fn repeated_company(seconds: u64) -> Result<()> {
    let (mut checks, mut rows, mut failed) = (0, 0, 0);
    let models: Vec<_> = small_models()?.into_iter().filter(has_kernels).collect();
    let each = Duration::from_secs(seconds) / models.len() as u32;
    for model in &models {
        let folder = model.write("gpu")?;
        let mut gpu =
            CudaEngine::open(&config(folder.path(), GPU, LoadFormat::Auto, 8 << 20), 0, &|_, _| ())?;
        let began = Instant::now();
        while began.elapsed() < each {
            checks += 1;
            match company::check(&mut gpu, 60, 250) {
                Ok(compared) => rows += compared,
                Err(error) if error.is::<company::Differs>() => {
                    failed += 1;
                    eprintln!("{}: {error:#}", model.name);
                }
                Err(error) => return Err(error).context(model.name.clone()),
            }
        }
    }
    println!("{rows} rows in {checks} comparisons, {failed} of which found other logits in company");
    ensure!(failed == 0, "the result of a row depends on its batch");
    Ok(())
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Modes::take(&mut arguments);
    let number = |text: &str| text.parse::<usize>().with_context(|| format!("{text} is not a number"));
    match arguments[..] {
        [] => check_small_models(),
        ["company", seconds] => repeated_company(number(seconds)? as u64),
        ["failure"] => failure::check(),
        [folder] => check_small_models().and_then(|()| large_model(Path::new(folder))),
        [folder, "speed"] => speed::print(&mut open_large(Path::new(folder))?),
        [folder, "step", rows] => one_step(Path::new(folder), number(rows)?),
        [folder, "prefill", tokens] => prefilled(Path::new(folder), number(tokens)?).map(drop),
        [folder, "pages", tokens] => digest(Path::new(folder), number(tokens)?),
        [folder, "logits", tokens, file] => logits(Path::new(folder), number(tokens)?, file),
        _ => bail!(
            "the arguments are: [fp8_weights | fp8] [fp8_kv], and nothing, or company SECONDS, or failure, or CONFIG FOLDER [speed | step ROWS | prefill TOKENS | pages TOKENS | logits TOKENS FILE]"
        ),
    }
}
