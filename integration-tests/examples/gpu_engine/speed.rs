//! Measures prompts, the page hash and decode steps of a large model.

use std::time::Instant;

use anyhow::Result;
use engine::{Chunk, CudaEngine, Engine, PageId, PageTable, Sample, Sampling, TokenSource};
use integration_tests::statistics::median;

use super::{pages, prompt, run, run_ahead};

/// What the GPU can do, measured in this run.
struct Limits {
    /// Bytes read per second.
    bandwidth: f64,
    /// Floating-point operations per second in products.
    rate: f64,
}

/// Prints the three tables.
pub(super) fn print(gpu: &mut CudaEngine) -> Result<()> {
    let rate = prompts(gpu)?;
    let bandwidth = page_hash(gpu)?;
    decode(gpu, &Limits { bandwidth, rate })
}

/// Returns the floating-point operations per second of the best prompt's products, as if its attention took no time.
fn prompts(gpu: &mut CudaEngine) -> Result<f64> {
    let (page_tokens, mut rate) = (gpu.kv().layout().page_tokens, 0f64);
    // The models that are measured have an output matrix beside the embedding. A prompt multiplies only its last row with it.
    let embedding = gpu.embedding_parameters();
    let row_operations = 2.0 * gpu.model().parameters.saturating_sub(2 * embedding) as f64;
    let sample = Some(Sample::greedy());
    let prompt = prompt(15_000);
    println!("{:>8} {:>7} {:>10} {:>12}", "prompt", "chunk", "ms", "tokens/s");
    for chunk in [2048, 8192] {
        for length in [1000usize, 5000, 15_000] {
            let table = pages(0, (length as u32).div_ceil(page_tokens) + 1);
            let mut times = Vec::new();
            for _ in 0..4 {
                let began = Instant::now();
                let mut start = 0;
                for part in prompt[..length].chunks(chunk) {
                    let last = start as usize + part.len() == length;
                    let chunk = Chunk {
                        sequence: 1,
                        tokens: part,
                        source: TokenSource::Prompt,
                        start,
                        pages: &table,
                        sample: sample.filter(|_| last),
                        score: None,
                    };
                    run(gpu, &[chunk])?;
                    start += part.len() as u32;
                }
                times.push(began.elapsed().as_secs_f64());
            }
            times.remove(0);
            let time = median(times);
            println!("{length:>8} {chunk:>7} {:>10.2} {:>12.0}", time * 1e3, length as f64 / time);
            rate = rate.max(row_operations * length as f64 / time);
        }
    }
    println!("products of prompts: {:.0} TFLOP/s", rate / 1e12);
    Ok(rate)
}

/// Returns the bytes read per second.
fn page_hash(gpu: &CudaEngine) -> Result<f64> {
    // The hash reads every page once, which measures the read bandwidth.
    let many: Vec<PageId> = (0..gpu.kv().pages().min(1024)).map(PageId).collect();
    gpu.kv().device_contents(&many).map_err(anyhow::Error::msg)?;
    let began = Instant::now();
    gpu.kv().device_contents(&many).map_err(anyhow::Error::msg)?;
    let hash_rate =
        (many.len() as u64 * gpu.kv().layout().page_bytes()) as f64 / began.elapsed().as_secs_f64();
    println!("page hash: {:.2} TB/s", hash_rate / 1e12);
    Ok(hash_rate)
}

/// A step's floor: the products need the weights or the operations, whichever takes longer, and attention reads the keys and values.
fn decode(gpu: &mut CudaEngine, limits: &Limits) -> Result<()> {
    println!(
        "{:>8} {:>8} {:>10} {:>10} {:>14} {:>10} {:>14}",
        "rows", "context", "ms a step", "of floor", "weights TB/s", "drawn, ms", "all, of greedy"
    );
    let layout = gpu.kv().layout().clone();
    let (page_tokens, page_bytes) = (layout.page_tokens, layout.page_bytes());
    let drawn = Sampling { temperature: 0.7, top_k: 50, top_p: 0.95, ..Sampling::GREEDY };
    // Also with penalties, biases and log probabilities.
    let all = Sampling {
        repetition_penalty: 1.1,
        presence_penalty: 0.5,
        frequency_penalty: 0.3,
        logit_bias: (0..20).map(|n| (n * 1009, 1.0)).collect(),
        logprobs: Some(5),
        ..drawn.clone()
    };
    for (rows, context) in [
        (1u32, 1000u32),
        (1, 5000),
        (8, 1000),
        (32, 1000),
        (64, 1000),
        (128, 1000),
        (256, 1000),
        (512, 500),
        (512, 1000),
    ] {
        let each = (context + 64).div_ceil(page_tokens) + 1;
        if rows * each > gpu.kv().pages() {
            continue;
        }
        let tables: Vec<PageTable> =
            (0..rows).map(|n| (0..each).map(|page| PageId(n * each + page)).collect()).collect();
        let [time, drawn, all] = [&Sampling::GREEDY, &drawn, &all].map(|how| {
            let (_, times) = run_ahead(gpu, &tables, (1, context), 40, how)?;
            Ok::<f64, anyhow::Error>(median(times[8..].iter().copied()))
        });
        let (time, drawn, all) = (time?, drawn?, all?);
        let weights = gpu.step_bytes() as f64;
        let operations = 2.0 * (gpu.model().parameters - gpu.embedding_parameters()) as f64 * f64::from(rows);
        let products = (weights / limits.bandwidth).max(operations / limits.rate);
        let kv = f64::from(rows * context) * page_bytes as f64 / f64::from(page_tokens);
        let floor = products + kv / limits.bandwidth;
        println!(
            "{rows:>8} {context:>8} {:>10.3} {:>10.2} {:>14.2} {:>10.3} {:>14.3}",
            time * 1e3,
            time / floor,
            gpu.step_bytes() as f64 / time / 1e12,
            drawn * 1e3,
            all / time
        );
    }
    Ok(())
}
