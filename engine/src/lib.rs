//! Model loading, the KV page pool and the compute backends of Baton: tokens in, tokens out.
//!
//! [`open`] reads a GGUF file or a Hugging Face folder, maps a [`KvPool`] and returns an [`Engine`]. One dedicated
//! thread owns the engine and [`submit`](Engine::submit)s mixed steps of prefill chunks and decode rows. The caller
//! allocates pages, schedules steps and chooses the [`Sampling`] settings. This crate knows nothing of peers.
//!
//! The CPU backend's results are bit-identical for any batching, chunking, paging, thread count and instruction set: see
//! [`cpu`].
//!
//! ```no_run
//! use engine::{
//!     Chunk, ComputeDevice, EngineConfig, KvCacheDtype, LoadFormat, PageId, PageTable, Quantization, Sample,
//!     TokenSource,
//! };
//!
//! let mut engine = engine::open(&EngineConfig {
//!     model: "model.gguf".into(),
//!     threads: 4,
//!     kv_bytes: 64 << 20,
//!     page_tokens: Some(16),
//!     step_tokens: 512,
//!     device: ComputeDevice::Cpu,
//!     load_format: LoadFormat::Auto,
//!     quantization: Quantization::None,
//!     kv_dtype: KvCacheDtype::Auto,
//!     digests: None,
//! })?;
//! let mut step = engine.submit(&[Chunk {
//!     sequence: 1,
//!     tokens: &[504, 3575, 282],
//!     source: TokenSource::Prompt,
//!     start: 0,
//!     pages: &PageTable::from([PageId(0)]),
//!     sample: Some(Sample::greedy()),
//!     score: None,
//! }])?;
//! while engine.poll(&mut step)?.is_none() {}
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod batch;
mod checkpoint;
pub mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod dequantise;
mod e4m3;
mod error;
mod families;
mod fp8_rounding;
pub mod gguf;
#[cfg(any(test, feature = "cuda"))]
mod gpu;
mod gpu_room;
pub mod heap;
mod inspect;
mod kv;
mod mapping;
mod model;
mod pending;
mod populate;
mod quantised;
mod safetensors;
pub mod sampling;
mod step;
mod survey;
#[cfg(test)]
mod testing;

use std::path::PathBuf;

#[cfg(feature = "cuda")]
pub use cuda::{CudaEngine, cuda_devices, cuda_pool, peer_copy_seconds};
pub use error::{CudaError, CudaStatus, EngineError, OpenError, Scope};
pub use gpu_room::GpuRoom;
pub use inspect::{InspectedModel, gpu_survey};
pub use kv::{KvDtype, KvLayout, KvPool, KvPoolError, PageId, PageTable};
pub use model::{ComputeDevice, EngineConfig, KvCacheDtype, LoadFormat, ModelInfo, Quantization};
pub use populate::populate;
pub use safetensors::SafetensorsError;
pub use sampling::{LogitBias, Logprobs, Sample, Sampling, Token, choose, logprobs};
pub use step::{
    Chunk, Engine, SampledToken, Score, ScoredChunk, Step, StepLimits, StepOutput, TokenMask, TokenSource,
};
pub use survey::{GpuFacts, GpuPair, GpuSurvey, KERNELS_FOR};

/// Loads the model in `config` and returns an engine that is ready to serve. Blocks the calling thread for about a
/// second per gigabyte of model file. The engine may then move to the thread that will own it.
///
/// # Errors
/// [`OpenError`] if the file is missing, truncated, altered or not supported, or if a limit in `config` is out of range.
pub fn open(config: &EngineConfig) -> Result<Box<dyn Engine>, OpenError> {
    open_watched(config, &|_, _| ())
}

/// Does the same as [`open`], and reports progress. The loading threads call `progress`.
///
/// # Errors
/// Those of [`open`].
pub fn open_watched(config: &EngineConfig, progress: Progress<'_>) -> Result<Box<dyn Engine>, OpenError> {
    match config.device {
        ComputeDevice::Cpu => Ok(Box::new(cpu::CpuEngine::open_watched(config, progress)?)),
        #[cfg(feature = "cuda")]
        ComputeDevice::Cuda { ordinal, .. } => Ok(Box::new(CudaEngine::open(config, ordinal, progress)?)),
        #[cfg(not(feature = "cuda"))]
        ComputeDevice::Cuda { .. } => Err(OpenError::NoCuda),
    }
}

/// Loads cublasLt from the first of these folders that has it, unless the dynamic loader finds one of the same CUDA version. Does nothing in a build without CUDA.
///
/// Call it before an engine opens a GPU.
pub fn load_cublas(folders: &[PathBuf]) {
    #[cfg(feature = "cuda")]
    cuda::load_cublas(folders);
    #[cfg(not(feature = "cuda"))]
    let _ = folders;
}

/// A callback that receives the weights loaded so far and the weights in total, both as a count of numbers. While the files are hashed, before
/// that, it receives 0 of 1 now and then.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);
