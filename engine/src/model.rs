//! The engine's configuration, and the description of a model.

pub(crate) mod spec;
pub(crate) mod tensors;

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::error::OpenError;
use crate::kv::KvLayout;

const THREADS_MAX: usize = 256;
const PAGE_TOKENS_MAX: u32 = 4096;
/// A page on a GPU has a multiple of this many positions, as `kernels/decode.cu` needs.
const GPU_PAGE_TOKENS_OF: u32 = 16;
const STEP_TOKENS_MAX: u32 = 65_536;
/// Minimum size of the pool, in tokens. A chat template alone takes about as many.
pub(crate) const POOL_TOKENS_MIN: u64 = 32;

/// The model to open and the resources to use.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// A GGUF file, or a folder in Hugging Face format. If the file `<model>.sha256` exists, the GGUF file must have that
    /// checksum.
    pub model: PathBuf,
    /// Threads that compute, including the calling thread. 1 to 256.
    pub threads: usize,
    /// Bytes for keys and values, rounded down to whole pages. Must hold at least 32 tokens. On a GPU, 0 takes the memory
    /// that remains of the engine's share.
    pub kv_bytes: u64,
    /// Positions in a page, 1 to 4096. Peers that exchange pages must have the same value. `None`: 16 on a CPU; on a GPU a power of two from 16 to 256
    /// that makes pages of about 8 MiB.
    pub page_tokens: Option<u32>,
    /// Maximum number of tokens in one step, 1 to 65536. Activations take about 30 × hidden size bytes per token.
    pub step_tokens: u32,
    /// The device that computes.
    pub device: ComputeDevice,
    /// Where the weights come from.
    pub load_format: LoadFormat,
    /// The numbers that the weights are rounded to. Peers that exchange pages must have the same value.
    pub quantization: Quantization,
    /// The numbers that keys and values are rounded to. Peers that exchange pages must have the same format.
    pub kv_dtype: KvCacheDtype,
    /// A JSON file that keeps the SHA-256 of the model's files from one start to the next. It is made if it does not exist. Several processes may
    /// use it at once. `None` keeps none, so every start reads all files.
    pub digests: Option<PathBuf>,
}

/// The device that an engine computes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ComputeDevice {
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU. Needs the feature `cuda`.
    Cuda {
        /// The CUDA ordinal of the device.
        ordinal: u32,
        /// The fraction of device memory for weights, activations and pages together, above 0 and up to 1.
        memory_utilization: f32,
    },
}

/// The numbers that weights are rounded to when a model is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantization {
    /// The weights stay as they are. A GPU computes with them in bf16.
    #[default]
    None,
    /// The matrices of the layers become e4m3 numbers with a power of two for each output. Embedding, output matrix and norms stay. Activations are not
    /// rounded. On a GPU the matrices take one byte a weight.
    Fp8Weights,
    /// The matrices of the layers are those of [`Fp8Weights`](Self::Fp8Weights), but matrices that a checkpoint has in FP8 with scales for outputs or for
    /// the whole matrix keep their codes and scales. The rows that the matrices multiply become e4m3 numbers too, with a scale for each row. On a GPU
    /// prompts and large steps take less time than in bf16.
    Fp8,
}

impl Quantization {
    /// Whether the matrices of the layers are rounded.
    pub(crate) fn rounds_weights(self) -> bool {
        self != Self::None
    }

    /// Whether matrices of the layers that a checkpoint has in FP8 keep their codes and scales, if all weights of an output share a scale. Products of
    /// rows in bf16 need scales that are powers of two, so that the result does not depend on the number of rows.
    pub(crate) fn keeps_codes(self) -> bool {
        self == Self::Fp8
    }

    /// Whether the rows that the matrices of the layers multiply are rounded.
    pub(crate) fn rounds_rows(self) -> bool {
        self == Self::Fp8
    }
}

/// The number format of keys and values in the pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvCacheDtype {
    /// That of the activations: 32-bit floats on a CPU and bf16 on a GPU.
    #[default]
    Auto,
    /// bf16.
    Bf16,
    /// [`KvDtype::Fp8`](crate::KvDtype::Fp8).
    Fp8,
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFormat {
    /// Loads the weights from the model's files.
    Auto,
    /// Makes random weights with the sizes in a folder's `config.json`. On a GPU only.
    Dummy {
        /// Equal seeds make equal weights on every machine.
        seed: u64,
    },
}

impl EngineConfig {
    /// The fingerprint of the loaded weights, made from that of the model's files. It covers the seed of random weights, the rounding, and whether
    /// the engine uses codes of the checkpoint as they are.
    pub(crate) fn fingerprint(&self, files: [u8; 32], keeps_codes: bool) -> [u8; 32] {
        let with = |before: [u8; 32], more: &[u8]| {
            Sha256::new().chain_update(before).chain_update(more).finalize().into()
        };
        let loaded = match self.load_format {
            LoadFormat::Auto => files,
            LoadFormat::Dummy { seed } => with(files, &seed.to_le_bytes()),
        };
        match self.quantization {
            Quantization::None => loaded,
            Quantization::Fp8Weights => with(loaded, b"e4m3 weights with a power of two for each output"),
            Quantization::Fp8 if keeps_codes => with(
                loaded,
                b"e4m3 weights with the scales of the checkpoint, or else with a power of two for each output, e4m3 rows with a scale for each row",
            ),
            Quantization::Fp8 => with(
                loaded,
                b"e4m3 weights with a power of two for each output, e4m3 rows with a scale for each row",
            ),
        }
    }
}

/// The number of pages that fit in `kv_bytes`. Refuses a pool of fewer than [`POOL_TOKENS_MIN`] tokens.
pub(crate) fn pool_pages(kv_bytes: u64, layout: &KvLayout) -> Result<u32, OpenError> {
    let page_bytes = layout.page_bytes();
    let pages = kv_bytes / page_bytes;
    let min_bytes = POOL_TOKENS_MIN.div_ceil(u64::from(layout.page_tokens)) * page_bytes;
    if kv_bytes < min_bytes {
        return Err(OpenError::KvTooSmall { kv_bytes, pages, page_bytes, min_bytes });
    }
    Ok(u32::try_from(pages).unwrap_or(u32::MAX))
}

/// Refuses limits that are out of range.
pub(crate) fn check_limits(config: &EngineConfig) -> Result<(), OpenError> {
    let EngineConfig { threads, page_tokens, step_tokens, .. } = *config;
    if let Some(page_tokens) = page_tokens.filter(|tokens| !(1..=PAGE_TOKENS_MAX).contains(tokens)) {
        return Err(OpenError::BadPageTokens { page_tokens, max: PAGE_TOKENS_MAX });
    }
    let is_gpu = matches!(config.device, ComputeDevice::Cuda { .. });
    if let Some(page_tokens) =
        page_tokens.filter(|tokens| is_gpu && !tokens.is_multiple_of(GPU_PAGE_TOKENS_OF))
    {
        return Err(OpenError::GpuPageTokens { page_tokens, of: GPU_PAGE_TOKENS_OF });
    }
    if !(1..=THREADS_MAX).contains(&threads) {
        return Err(OpenError::BadThreads { threads, max: THREADS_MAX });
    }
    if !(1..=STEP_TOKENS_MAX).contains(&step_tokens) {
        return Err(OpenError::BadStepTokens { step_tokens, max: STEP_TOKENS_MAX });
    }
    Ok(())
}

/// The loaded model.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// `general.name` of the GGUF file, or the stem of the file's name.
    pub name: String,
    /// The path of the file or folder.
    pub path: PathBuf,
    /// The sha256 of the model's files. Two engines with equal fingerprints have the same weights.
    pub fingerprint: [u8; 32],
    /// Maximum number of tokens in a sequence.
    pub context_tokens: u32,
    /// The size of the vocabulary. Token ids are below this.
    pub vocabulary: u32,
    /// Tokens that end a sequence. May be empty.
    pub eos_tokens: Vec<u32>,
    /// Parameters in all tensors. A tied output counts once.
    pub parameters: u64,
}
