//! The CPU backend: the forward pass on raw pages, with f32 activations and quantised weights.
//!
//! # Guarantees
//! A fixed sequence of IEEE f32 operations over its own inputs computes each key, value and logit. So results are **bit
//! for bit** equal, and tests check this:
//! - for a row alone, and for the same row in a step with any other prefill chunks and decode rows;
//! - for a prompt in one chunk, and in any number of chunks, including single tokens;
//! - for any page table over the same positions, and any `page_tokens`;
//! - for any number of threads;
//! - for AVX-512, AVX2 and scalar kernels, on one architecture with one libm.
//!
//! The sines and cosines of RoPE come from the C library, so two machines with different C libraries may differ in the last
//! bit. Nothing else depends on the library. Weights keep the file's quantisation: `d · q + m` rounds as the format defines.
//!
//! The backend never reads positions past a sequence's last one.
//!
//! # Threads
//! The engine's owner thread computes together with `threads - 1` workers. After a step, workers busy-poll for about
//! 50 microseconds and then sleep.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::Progress;
use crate::batch::{BatchCheck, check_pages};
use crate::checkpoint::Checkpoint;
use crate::error::{EngineError, OpenError};
use crate::kv::{KvPool, PageId};
use crate::model::spec::ModelSpec;
use crate::model::{EngineConfig, LoadFormat, ModelInfo};
use crate::pending::{HostSample, PendingSample, give_masks};
use crate::step::{Chunk, Engine, Step, StepLimits, StepOutput, TokenMask};

mod arena;
mod attention;
mod forward;
mod kernels;
mod linear;
mod matrix;
mod rope;
mod score;
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

/// A model on the CPU. The [module](self) documents the guarantees.
pub struct CpuEngine {
    model: ModelInfo,
    kv: Arc<KvPool>,
    limits: StepLimits,
    batch_check: BatchCheck,
    forward: Forward,
    /// The samples of the last step, while they wait for masks.
    pending: Vec<PendingSample>,
    /// How the host takes each of them.
    of_host: Vec<HostSample>,
}

impl CpuEngine {
    /// Opens the engine on the CPU, as [`open`](crate::open) does.
    ///
    /// # Errors
    /// Those of [`open`](crate::open).
    pub fn open(config: &EngineConfig) -> Result<Self, OpenError> {
        Self::open_watched(config, &|_, _| ())
    }

    /// Opens the engine on the CPU, as [`open_watched`](crate::open_watched) does.
    ///
    /// # Errors
    /// Those of [`open_watched`](crate::open_watched).
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
        let checkpoint = Checkpoint::open(config, progress)?;
        let kv = Arc::new(pool(config, &checkpoint.spec)?);
        let mut threads: Threads<Scratch> =
            Threads::new(config.threads).map_err(|(index, error)| OpenError::Thread { index, error })?;
        let weights = Weights::load(&checkpoint, config.quantization, &mut threads, progress)?;
        let model = checkpoint.info().clone();
        tracing::debug!(
            model = model.name,
            parameters = model.parameters,
            kernels = kernels.name,
            threads = config.threads,
            pages = kv.pages(),
            "model loaded"
        );
        let weights = (weights, config.quantization);
        let forward = Forward::new(checkpoint.spec, weights, threads, kernels, config.step_tokens as usize);
        // A step may sample every row: the memory for logits grows on demand.
        let limits = StepLimits { tokens: config.step_tokens, rows: config.step_tokens };
        Ok(Self {
            model,
            kv,
            limits,
            batch_check: BatchCheck::default(),
            forward,
            pending: Vec::new(),
            of_host: Vec::new(),
        })
    }

    /// The logits of the last step, after bias and penalties: `vocabulary` floats for the `index`-th chunk with
    /// [`Chunk::sample`]. `None` past the last such chunk. For tests.
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
        if !self.pending.is_empty() {
            return Err(EngineError::NotReady("the previous step waits for its masks"));
        }
        self.batch_check.check(batch, &self.model, &self.kv, self.limits, |_| false)?;
        self.forward.run(batch, &self.kv).map_err(|_| EngineError::WorkerPanicked)?;
        if batch.iter().any(Chunk::is_constrained) {
            self.pending = batch.iter().filter_map(PendingSample::of).collect();
            self.of_host = batch.iter().filter_map(HostSample::of).collect();
            return Ok(Step::unfinished());
        }
        let (tokens, scores) = (self.forward.sample(batch), self.forward.take_scores());
        Ok(Step::finished(StepOutput { tokens, scores }))
    }

    fn is_computed(&mut self, _: &Step) -> Result<bool, EngineError> {
        Ok(true)
    }

    fn sample(&mut self, step: &mut Step, masks: &[Option<TokenMask>]) -> Result<(), EngineError> {
        if self.pending.is_empty() {
            return Err(EngineError::NotReady("the step does not wait for masks"));
        }
        give_masks(&mut self.pending, masks, self.model.vocabulary)?;
        let (samples, of_host) = (std::mem::take(&mut self.pending), std::mem::take(&mut self.of_host));
        let (tokens, scores) = (self.forward.sample_pending(&samples, &of_host), self.forward.take_scores());
        step.finish(StepOutput { tokens, scores });
        Ok(())
    }

    fn poll(&mut self, step: &mut Step) -> Result<Option<StepOutput>, EngineError> {
        match step.take() {
            None if self.pending.is_empty() => Err(EngineError::StepSpent),
            output => Ok(output),
        }
    }

    fn acquire(&mut self, pages: &[PageId]) -> Result<(), EngineError> {
        check_pages(pages, &self.kv)?;
        fence(Ordering::Acquire);
        Ok(())
    }
}

fn pool(config: &EngineConfig, spec: &ModelSpec) -> Result<KvPool, OpenError> {
    let layout = spec.kv_layout(config);
    let pages = crate::model::pool_pages(config.kv_bytes, &layout)?;
    Ok(KvPool::new(layout, pages)?)
}
