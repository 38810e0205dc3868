//! Measures prompts, the page hash and decode steps of a large model.

use std::time::Instant;

use anyhow::Result;
use engine::{Chunk, CudaEngine, Engine, PageId, Sample, Sampling, TokenSource};
use integration_tests::statistics::median;

use super::{pages, prompt, run, run_ahead};

/// Prints the three tables.
pub(super) fn print(gpu: &mut CudaEngine) -> Result<()> {
    prompts(gpu)?;
    page_hash(gpu)?;
    decode(gpu)
}

fn prompts(gpu: &mut CudaEngine) -> Result<()> {
    let sample = Some(Sample::greedy());
    let prompt = prompt(15_000);
    println!("{:>8} {:>7} {:>10} {:>12}", "prompt", "chunk", "ms", "tokens/s");
    for chunk in [2048, 8192] {
        for length in [1000usize, 5000, 15_000] {
            let table = pages(0, (length as u32).div_ceil(64) + 1);
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
        }
    }
    Ok(())
}

fn page_hash(gpu: &CudaEngine) -> Result<()> {
    // The hash reads every page once, which measures the read bandwidth.
    let many: Vec<PageId> = (0..gpu.kv().pages().min(1024)).map(PageId).collect();
    gpu.kv().device_contents(&many).map_err(anyhow::Error::msg)?;
    let began = Instant::now();
    gpu.kv().device_contents(&many).map_err(anyhow::Error::msg)?;
    let hash_rate =
        (many.len() as u64 * gpu.kv().layout().page_bytes()) as f64 / began.elapsed().as_secs_f64();
    println!("page hash: {:.2} TB/s", hash_rate / 1e12);
    Ok(())
}

fn decode(gpu: &mut CudaEngine) -> Result<()> {
    println!("{:>8} {:>8} {:>10} {:>14} {:>10}", "rows", "context", "ms a step", "weights TB/s", "drawn, ms");
    let drawn = Sampling { temperature: 0.7, top_k: 50, top_p: 0.95, ..Sampling::GREEDY };
    for (rows, context) in [(1u32, 1000u32), (1, 5000), (8, 1000), (32, 1000), (64, 1000)] {
        let each = (context + 64).div_ceil(64) + 1;
        if rows * each > gpu.kv().pages() {
            continue;
        }
        let tables: Vec<Vec<PageId>> =
            (0..rows).map(|n| (0..each).map(|page| PageId(n * each + page)).collect()).collect();
        let [time, drawn] = [&Sampling::GREEDY, &drawn].map(|how| {
            let (_, times) = run_ahead(gpu, &tables, (1, context), 40, how)?;
            Ok::<f64, anyhow::Error>(median(times[8..].iter().copied()))
        });
        let (time, drawn) = (time?, drawn?);
        println!(
            "{rows:>8} {context:>8} {:>10.3} {:>14.2} {:>10.3}",
            time * 1e3,
            gpu.step_bytes() as f64 / time / 1e12,
            drawn * 1e3
        );
    }
    Ok(())
}
