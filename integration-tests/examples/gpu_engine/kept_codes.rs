//! A checkpoint in FP8 with the matrices of a large model, whose codes and scales the engine uses as they are.
//!
//! The scales of outputs are no powers of two, so the order in which a sum is multiplied by the scales of its row and of its output can change the last bit. The kernel
//! for few rows and cublasLt's for many have to agree.

use anyhow::{Context, Result};
use engine::cpu::CpuEngine;
use engine::{Chunk, ComputeDevice, CudaEngine, LoadFormat, Sample, TokenSource};
use integration_tests::fp8_folders::wide_fp8_model;

use super::{GPU, company, config, error, pages, run};

/// Bytes for pages.
const KV_BYTES: u64 = 64 << 20;

/// Compares the logits after a prompt with those of the CPU engine, and rows in large batches with the same rows alone.
///
/// # Errors
/// A row differs, or an engine fails.
pub(super) fn check() -> Result<()> {
    let model = wide_fp8_model();
    let folder = model.write("gpu")?;
    let mut gpu = CudaEngine::open(&config(folder.path(), GPU, LoadFormat::Auto, KV_BYTES), 0, &|_, _| ())?;
    let mut cpu = CpuEngine::open(&config(folder.path(), ComputeDevice::Cpu, LoadFormat::Auto, KV_BYTES))?;
    let table = pages(0, 8);
    let chunk = Chunk {
        sequence: 1,
        tokens: &model.small.prompt,
        source: TokenSource::Prompt,
        start: 0,
        pages: &table,
        sample: Some(Sample::greedy()),
        score: None,
    };
    run(&mut cpu, &[chunk])?;
    run(&mut gpu, &[chunk])?;
    let apart = error(&gpu.logits(0)?, cpu.logits(0).context("sampled")?);
    let rows = company::check(&mut gpu, 140, 250).context("a checkpoint's codes and scales")?;
    println!(
        "codes and scales of a checkpoint with the matrices of Llama-3.1-8B: error {apart:.5}, {rows} rows alone = in company"
    );
    Ok(())
}
