//! Model loading, the KV page pool and the compute backends of Baton: tokens in, tokens out.
//!
//! [`open`] reads a GGUF file or a Hugging Face folder, maps a [`KvPool`] and returns an [`Engine`]. One dedicated thread owns it and
//! [`submit`](Engine::submit)s mixed steps of prefill chunks and decode rows. Which page belongs to whom, what
//! runs in which step and with which [`Sampling`] is decided elsewhere; nothing here knows of peers.
//!
//! The CPU backend's results are bit-exact under any batching, chunking, paging, thread count and instruction
//! set: see [`cpu`].

mod batch;
mod checkpoint;
pub mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod dequantise;
mod error;
pub mod gguf;
#[cfg(any(test, feature = "cuda"))]
mod gpu;
pub mod heap;
mod kv;
mod model;
mod populate;
mod safetensors;
pub mod sampling;
mod step;
#[cfg(test)]
mod testing;

#[cfg(feature = "cuda")]
pub use cuda::{CudaEngine, cuda_devices, cuda_pool, peer_copy_seconds};
pub use error::{CudaError, CudaStatus, EngineError, OpenError, Scope};
pub use kv::{KvDtype, KvLayout, KvPool, KvPoolError, PageId};
pub use model::{ComputeDevice, EngineConfig, LoadFormat, ModelInfo};
pub use populate::populate;
pub use safetensors::SafetensorsError;
pub use sampling::{Logprobs, Sample, Sampling, Token, choose};
pub use step::{Chunk, Engine, SampledToken, Step, StepLimits, StepOutput, TokenSource};

/// Loads the model that `config` names and makes it ready to serve. Blocks for about a second per gigabyte of
/// model file on the calling thread; the engine may then be sent to the thread that will own it.
///
/// # Errors
/// [`OpenError`] for a file that is missing, truncated, altered or not supported, and for limits that cannot work.
pub fn open(config: &EngineConfig) -> Result<Box<dyn Engine>, OpenError> {
    open_watched(config, &|_, _| ())
}

/// As [`open`]; `progress` is told, by any of the loading threads, how many of the weights' numbers are loaded, and how many there are.
///
/// # Errors
/// As [`open`].
pub fn open_watched(config: &EngineConfig, progress: Progress<'_>) -> Result<Box<dyn Engine>, OpenError> {
    match config.device {
        ComputeDevice::Cpu => Ok(Box::new(cpu::CpuEngine::open_watched(config, progress)?)),
        #[cfg(feature = "cuda")]
        ComputeDevice::Cuda { ordinal, .. } => Ok(Box::new(CudaEngine::open(config, ordinal, progress)?)),
        #[cfg(not(feature = "cuda"))]
        ComputeDevice::Cuda { .. } => Err(OpenError::NoCuda),
    }
}

/// Hears how far a model is loaded: numbers loaded, numbers in all.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);
