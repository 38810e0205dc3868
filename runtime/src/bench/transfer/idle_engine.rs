//! An engine that computes nothing, so that only the hand-over of a request takes time.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context, Result};
use engine::{
    Chunk, Engine, EngineError, KvDtype, KvLayout, KvPool, ModelInfo, PageId, SampledToken, Step, StepLimits,
    StepOutput,
};

use crate::config::DeviceSetting;

/// An engine that finishes any prompt at once, samples token 0, and reports each step that samples.
pub(super) struct IdleEngine {
    pool: Arc<KvPool>,
    model: ModelInfo,
    asked: Box<dyn Fn() + Send>,
}

impl IdleEngine {
    /// An engine with `pages` pages of `page_bytes` bytes with different contents. It calls `asked` for each step that samples.
    pub(super) fn new(
        device: DeviceSetting,
        page_bytes: u64,
        pages: u32,
        asked: Box<dyn Fn() + Send>,
    ) -> Result<Self> {
        let (dtype, page_tokens) = match device {
            DeviceSetting::Cpu => (KvDtype::F32, 16),
            DeviceSetting::Cuda => (KvDtype::Bf16, 64),
        };
        let head_dim = (page_bytes / (2 * u64::from(page_tokens) * dtype.bytes())) as u32;
        let layout = KvLayout { layers: 1, kv_heads: 1, head_dim, page_tokens, dtype };
        let pool = match device {
            DeviceSetting::Cpu => {
                KvPool::new(layout, pages).context("cannot allocate the pool of --pages and --page-kib")?
            }
            DeviceSetting::Cuda => on_gpu(layout, pages)?,
        };
        // The system maps memory that was never written to one page of zeros, which is faster than real memory.
        for (place, cell) in pool.cells().unwrap_or_default().iter().enumerate() {
            cell.store((place ^ (place >> 11)) as u8, Ordering::Relaxed);
        }
        let context_tokens = pages * page_tokens;
        let model = ModelInfo {
            name: "none".to_owned(),
            path: PathBuf::new(),
            fingerprint: [0; 32],
            context_tokens,
            vocabulary: 2,
            eos_tokens: Vec::new(),
            parameters: 0,
        };
        Ok(Self { pool: Arc::new(pool), model, asked })
    }

    /// The page pool.
    pub(super) fn pool(&self) -> Arc<KvPool> {
        Arc::clone(&self.pool)
    }

    /// Length of the longest prompt.
    pub(super) fn step_tokens(&self) -> u32 {
        self.model.context_tokens
    }
}

#[cfg(feature = "cuda")]
fn on_gpu(layout: KvLayout, pages: u32) -> Result<KvPool> {
    Ok(engine::cuda_pool(layout, pages, 0)?)
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_: KvLayout, _: u32) -> Result<KvPool> {
    anyhow::bail!("this build has no GPU support; build it with `cargo xtask cuda`")
}

impl Engine for IdleEngine {
    fn model(&self) -> &ModelInfo {
        &self.model
    }

    fn kv(&self) -> &Arc<KvPool> {
        &self.pool
    }

    fn limits(&self) -> StepLimits {
        StepLimits { tokens: self.step_tokens(), rows: self.step_tokens() }
    }

    fn submit(&mut self, batch: &[Chunk<'_>]) -> Result<Step, EngineError> {
        let sampled = batch.iter().filter(|chunk| chunk.sample.is_some());
        let tokens: Vec<SampledToken> =
            sampled.map(|chunk| SampledToken { sequence: chunk.sequence, token: 0.into() }).collect();
        if !tokens.is_empty() {
            (self.asked)();
        }
        Ok(Step::finished(StepOutput { tokens, ..StepOutput::default() }))
    }

    fn poll(&mut self, step: &mut Step) -> Result<Option<StepOutput>, EngineError> {
        step.take().map(Some).ok_or(EngineError::StepSpent)
    }

    fn acquire(&mut self, _: &[PageId]) -> Result<(), EngineError> {
        fence(Ordering::Acquire);
        Ok(())
    }
}
