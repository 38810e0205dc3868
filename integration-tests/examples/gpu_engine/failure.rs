//! Checks that an engine whose GPU has failed reports it at every step, and that it can be dropped.

use anyhow::{Context, Result, bail, ensure};
use engine::{Chunk, CudaEngine, Engine, EngineError, LoadFormat, Sample, Scope, TokenSource};
use integration_tests::folders::small_models;

use super::{GPU, config, has_kernels, pages, run};

/// Makes the GPU fail for this process, which cannot use it afterwards.
///
/// # Errors
/// A step succeeds, or fails with an error whose scope is not the engine.
pub(crate) fn check() -> Result<()> {
    let model = small_models()?.into_iter().find(has_kernels).context("no test model has kernels")?;
    let folder = model.write("gpu")?;
    let mut gpu = CudaEngine::open(&config(folder.path(), GPU, LoadFormat::Auto, 8 << 20), 0, &|_, _| ())?;
    let table = pages(0, 8);
    let chunk = Chunk {
        sequence: 1,
        tokens: &model.prompt,
        source: TokenSource::Prompt,
        start: 0,
        pages: &table,
        sample: Some(Sample::greedy()),
        score: None,
    };
    let limits = gpu.limits();
    ensure!(limits.rows <= limits.tokens && limits.rows <= 1024, "{limits:?}");
    run(&mut gpu, &[chunk])?;
    gpu.fail_device()?;
    for step in 0..3 {
        let Err(error) = run(&mut gpu, &[chunk]) else {
            bail!("step {step} succeeds on a GPU that has failed")
        };
        println!("step {step}: {error}");
        let scope = error.downcast_ref::<EngineError>().map(EngineError::scope);
        ensure!(scope == Some(Scope::Engine), "step {step}: {scope:?}");
    }
    drop(gpu);
    println!("the engine has released its GPU");
    Ok(())
}
