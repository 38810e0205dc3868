//! The CPU backend: a Llama's forward pass on raw pages, with f32 activations and quantised weights.
//!
//! # What is guaranteed
//! Every output of the backend, a key, a value or a logit, is computed by one fixed sequence of IEEE f32
//! operations over its own inputs. So these are equal **bit for bit**, and tested to be:
//! - a row alone and the same row in a step with any other prefill chunks and decode rows;
//! - a prompt in one chunk and in any number of chunks, single tokens included;
//! - any page table over the same positions, and any `page_tokens`;
//! - any number of threads;
//! - AVX-512, AVX2 and scalar kernels, on one architecture with one libm.
//!
//! Two machines may differ in the last bit of RoPE's sines and cosines when their C libraries do; nothing else
//! depends on the library. Weights are the file's own: `d · q + m` rounds as the format defines it.
//!
//! What lies in pages past a sequence's last position is never read.
//!
//! # Threads
//! The engine's owner computes with `threads - 1` workers, which sleep between steps.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::Progress;
use crate::batch;
use crate::checkpoint::Checkpoint;
use crate::error::{EngineError, OpenError};
use crate::kv::{KvDtype, KvLayout, KvPool, PageId};
use crate::model::{EngineConfig, LoadFormat, ModelInfo, ModelShape};
use crate::step::{Chunk, Engine, Step, StepLimits, StepOutput};

mod attention;
mod forward;
mod kernels;
mod linear;
mod matrix;
mod rope;
mod scratch;
mod sync;
#[cfg(test)]
mod tests;
mod threads;
mod weights;

use forward::Forward;
use kernels::Kernels;
use scratch::Scratch;
use threads::Threads;
use weights::Weights;

/// A Llama on the CPU. See the [module](self) for what its results guarantee.
pub struct CpuEngine {
    model: ModelInfo,
    kv: Arc<KvPool>,
    limits: StepLimits,
    forward: Forward,
}

impl CpuEngine {
    /// As [`open`](crate::open).
    ///
    /// # Errors
    /// As there.
    pub fn open(config: &EngineConfig) -> Result<Self, OpenError> {
        Self::open_watched(config, &|_, _| ())
    }

    /// As [`open_watched`](crate::open_watched).
    ///
    /// # Errors
    /// As there.
    pub fn open_watched(config: &EngineConfig, progress: Progress<'_>) -> Result<Self, OpenError> {
        Self::open_with(config, Kernels::choose(), progress)
    }

    fn open_with(
        config: &EngineConfig,
        kernels: &'static Kernels,
        progress: Progress<'_>,
    ) -> Result<Self, OpenError> {
        crate::model::check_limits(config)?;
        if config.load_format != LoadFormat::Auto {
            return Err(OpenError::NoDummy);
        }
        let path: &Path = &config.model;
        let checkpoint = Checkpoint::open_as(path, config.load_format)?;
        let kv = Arc::new(pool(config, &checkpoint.shape)?);
        let mut threads: Threads<Scratch> =
            Threads::new(config.threads).map_err(|(index, error)| OpenError::Thread { index, error })?;
        let weights = Weights::load(&checkpoint, &mut threads, progress)?;
        let model = checkpoint.info();
        tracing::debug!(
            model = model.name,
            parameters = model.parameters,
            kernels = kernels.name,
            threads = config.threads,
            pages = kv.pages(),
            "model loaded"
        );
        let shape = checkpoint.shape;
        let forward = Forward::new(shape, weights, threads, kernels, config.step_tokens as usize);
        // Memory for logits grows with the rows of a step.
        let limits = StepLimits { tokens: config.step_tokens, rows: config.step_tokens };
        Ok(Self { model, kv, limits, forward })
    }

    /// The logits of the last step, after bias and penalties: `vocabulary` floats for the `index`-th chunk with [`Chunk::sample`]; `None`
    /// past the last such chunk. For tests.
    #[doc(hidden)]
    #[must_use]
    pub fn logits(&self, index: usize) -> Option<&[f32]> {
        self.forward.logits(index)
    }
}

impl Engine for CpuEngine {
    fn model(&self) -> &ModelInfo {
        &self.model
    }

    fn kv(&self) -> &Arc<KvPool> {
        &self.kv
    }

    fn limits(&self) -> StepLimits {
        self.limits
    }

    fn submit(&mut self, batch: &[Chunk<'_>]) -> Result<Step, EngineError> {
        batch::check(batch, &self.model, &self.kv, self.limits, |_| false)?;
        let tokens = self.forward.run(batch, &self.kv).map_err(|_| EngineError::WorkerPanicked)?;
        Ok(Step::finished(StepOutput { tokens }))
    }

    fn poll(&mut self, step: &mut Step) -> Result<Option<StepOutput>, EngineError> {
        step.output.take().map(Some).ok_or(EngineError::StepSpent)
    }

    fn acquire(&mut self, pages: &[PageId]) -> Result<(), EngineError> {
        batch::check_pages(pages, &self.kv, None)?;
        fence(Ordering::Acquire);
        Ok(())
    }
}

fn pool(config: &EngineConfig, shape: &ModelShape) -> Result<KvPool, OpenError> {
    let layout = KvLayout {
        layers: shape.layers as u32,
        kv_heads: shape.kv_heads as u32,
        head_dim: shape.head_dim as u32,
        page_tokens: config.page_tokens,
        dtype: KvDtype::F32,
    };
    let page_bytes = layout.page_bytes();
    let pages = config.kv_bytes / page_bytes;
    let min_bytes = crate::model::POOL_TOKENS_MIN.div_ceil(u64::from(config.page_tokens)) * page_bytes;
    if config.kv_bytes < min_bytes {
        return Err(OpenError::KvTooSmall { kv_bytes: config.kv_bytes, pages, page_bytes, min_bytes });
    }
    Ok(KvPool::new(layout, u32::try_from(pages).unwrap_or(u32::MAX))?)
}
