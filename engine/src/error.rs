//! The errors of opening a model and of computing a step. Each text is one sentence for the operator, with the values.

mod cuda;

use std::path::PathBuf;

use crate::gguf::{GgufError, TensorType};
use crate::kv::KvPoolError;
use crate::safetensors::SafetensorsError;

pub use cuda::{CudaError, CudaStatus};

/// Why [`open`](crate::open) failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no file at the model's path.
    #[error(
        "no model file at {}: run `cargo xtask demo` once to fetch the default model, or set model / --model",
        path.display()
    )]
    ModelMissing {
        /// The path that was tried.
        path: PathBuf,
    },
    /// The file is not a GGUF, is truncated or is malformed.
    #[error("{}: {error}", path.display())]
    Gguf {
        /// The model's path.
        path: PathBuf,
        /// The parser's error.
        error: GgufError,
    },
    /// The folder's tensors cannot be used.
    #[error("{}: {error}", path.display())]
    Safetensors {
        /// The folder.
        path: PathBuf,
        /// The parser's error.
        error: SafetensorsError,
    },
    /// The operating system cannot read a file.
    #[error("{} cannot be read: {error}", path.display())]
    Read {
        /// The file's path.
        path: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
    /// The file does not have the checksum in its `.sha256` file.
    #[error(
        "{} has sha256 {actual}… but its .sha256 file expects {expected}…: delete the model file and fetch it again",
        path.display()
    )]
    WrongChecksum {
        /// The model's path.
        path: PathBuf,
        /// The first 12 hex digits in the `.sha256` file.
        expected: String,
        /// The first 12 hex digits of the file's checksum.
        actual: String,
    },
    /// The model's `.sha256` file does not start with a sha256.
    #[error("{} does not start with 64 hex digits: write the model's sha256 there or delete it", path.display())]
    BadChecksumFile {
        /// The `.sha256` file's path.
        path: PathBuf,
    },
    /// The model belongs to none of the supported families.
    #[error(
        "{} has architecture {architecture}, which is not supported: choose a model of one of these families: {families}",
        path.display()
    )]
    UnsupportedArchitecture {
        /// The model's path.
        path: PathBuf,
        /// `general.architecture` of a GGUF file, `model_type` of a folder, or `none`.
        architecture: String,
        /// The names of the supported families.
        families: String,
    },
    /// The model needs something that the engine does not support.
    #[error("{} is not supported: {what}", path.display())]
    UnsupportedModel {
        /// The model's path.
        path: PathBuf,
        /// What the model needs and what is supported.
        what: String,
    },
    /// A tensor has a storage type that the engine does not support.
    #[error(
        "tensor {tensor} of {} is stored as {found}, but only {} are supported: choose another file of the model",
        path.display(), TensorType::names()
    )]
    UnsupportedTensorType {
        /// The model's path.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The name of its type.
        found: String,
    },
    /// `page_tokens` is out of range.
    #[error("page_tokens is {page_tokens}: set it between 1 and {max}")]
    BadPageTokens {
        /// The value given.
        page_tokens: u32,
        /// The largest value allowed.
        max: u32,
    },
    /// `page_tokens` does not suit a GPU.
    #[error("page_tokens is {page_tokens}: set it to a multiple of {of} on a GPU")]
    GpuPageTokens {
        /// The value given.
        page_tokens: u32,
        /// The value must be a multiple of this.
        of: u32,
    },
    /// The KV budget is too small: it does not hold the minimum number of tokens.
    #[error(
        "kv_bytes is {kv_bytes}, which holds {pages} pages of {page_bytes} bytes: set it to at least {min_bytes}"
    )]
    KvTooSmall {
        /// The budget given.
        kv_bytes: u64,
        /// The pages it holds.
        pages: u64,
        /// Bytes of one page.
        page_bytes: u64,
        /// The smallest budget allowed.
        min_bytes: u64,
    },
    /// The kernels are not compiled for this GPU.
    #[error(
        "{name} has compute capability {major}.{minor}, but this build's kernels need 9.0 (H100, H200): use such a GPU, or set engine.device to cpu"
    )]
    GpuUnsupported {
        /// The GPU's name.
        name: String,
        /// The major number of its compute capability.
        major: i32,
        /// The minor number of its compute capability.
        minor: i32,
    },
    /// The GPU has too little free memory for the smallest KV pool.
    #[error(
        "the GPU has {free_mib} MiB free of {total_mib} MiB, which is too little for the activations and a KV pool: stop other processes on the GPU, choose another one by CUDA_VISIBLE_DEVICES, or raise engine.gpu_memory_utilization"
    )]
    GpuFull {
        /// Free memory after the weights were loaded.
        free_mib: u64,
        /// Total memory.
        total_mib: u64,
    },
    /// `threads` is out of range.
    #[error("threads is {threads}: set it between 1 and {max}")]
    BadThreads {
        /// The value given.
        threads: usize,
        /// The largest value allowed.
        max: usize,
    },
    /// `step_tokens` is out of range.
    #[error("step_tokens is {step_tokens}: set it between 1 and {max}")]
    BadStepTokens {
        /// The value given.
        step_tokens: u32,
        /// The largest value allowed.
        max: u32,
    },
    /// The pool cannot be allocated.
    #[error(transparent)]
    Pool(#[from] KvPoolError),
    /// A CUDA call failed.
    #[error("the GPU cannot be used: {0}")]
    Cuda(CudaError),
    /// The configuration asks for a GPU, but the build lacks the feature `cuda`.
    #[error(
        "this build supports only the CPU: build with --features cuda (cargo xtask cuda), or set engine.device to cpu"
    )]
    NoCuda,
    /// The configuration asks for random weights on the CPU.
    #[error(
        "random weights are supported only on a GPU: set engine.device to cuda, or engine.load_format to auto"
    )]
    NoDummy,
    /// The operating system cannot start a thread.
    #[error("worker thread {index} does not start: {error}")]
    Thread {
        /// The worker's index.
        index: usize,
        /// The system's error.
        error: std::io::Error,
    },
    /// The operating system refuses memory for the weights.
    #[error(
        "no memory for {bytes} bytes of weights: {error}; serve a smaller model, or raise the limit of the process's memory"
    )]
    WeightMemory {
        /// The size.
        bytes: u64,
        /// The system's error.
        error: std::io::Error,
    },
    /// A worker thread panicked while loading. Its message is on stderr.
    #[error("a worker thread panicked while loading the model: this is a bug, please report it")]
    WorkerPanicked,
}

impl OpenError {
    /// A short constant name for metrics, logs and JSON.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ModelMissing { .. } => "model_missing",
            Self::Gguf { error, .. } => error.kind(),
            Self::Safetensors { error, .. } => error.kind(),
            Self::Read { .. } => "model_unreadable",
            Self::WrongChecksum { .. } => "wrong_checksum",
            Self::BadChecksumFile { .. } => "bad_checksum_file",
            Self::UnsupportedArchitecture { .. } => "unsupported_architecture",
            Self::UnsupportedModel { .. } => "unsupported_model",
            Self::UnsupportedTensorType { .. } => "unsupported_tensor_type",
            Self::BadPageTokens { .. } => "bad_page_tokens",
            Self::GpuPageTokens { .. } => "gpu_page_tokens",
            Self::KvTooSmall { .. } => "kv_too_small",
            Self::GpuFull { .. } => "gpu_full",
            Self::GpuUnsupported { .. } => "gpu_unsupported",
            Self::BadThreads { .. } => "bad_threads",
            Self::BadStepTokens { .. } => "bad_step_tokens",
            Self::Pool(_) => "kv_pool",
            Self::Cuda(_) => "cuda",
            Self::NoCuda => "no_cuda",
            Self::NoDummy => "no_dummy",
            Self::Thread { .. } => "thread",
            Self::WeightMemory { .. } => "weight_memory",
            Self::WorkerPanicked => "worker_panicked",
        }
    }
}

/// How much an [`EngineError`] affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// This sequence's chunk is at fault. The step was refused before anything was computed. The caller may submit it again
    /// without that chunk.
    Sequence(u64),
    /// The whole step failed. Later steps may succeed.
    Step,
    /// The engine failed. Every later step fails too.
    Engine,
}

/// Why an [`Engine`](crate::Engine) refused or failed a step.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineError {
    /// A chunk has no tokens.
    #[error("the chunk of sequence {sequence} is empty: give it at least one token")]
    EmptyChunk {
        /// The chunk's sequence.
        sequence: u64,
    },
    /// The step has more tokens than [`StepLimits`](crate::StepLimits) allows.
    #[error("the step has {tokens} tokens, but the limit is {limit}: split it")]
    TooManyTokens {
        /// Tokens of all chunks.
        tokens: u64,
        /// The engine's limit.
        limit: u32,
    },
    /// A token id is outside the vocabulary.
    #[error("token {token} of sequence {sequence} is outside the vocabulary of {vocabulary}")]
    TokenOutOfRange {
        /// The chunk's sequence.
        sequence: u64,
        /// The token id.
        token: u32,
        /// The size of the vocabulary.
        vocabulary: u32,
    },
    /// A position is past the model's context.
    #[error("sequence {sequence} would reach {end} tokens, but the model's context is {context_tokens}")]
    ContextExceeded {
        /// The chunk's sequence.
        sequence: u64,
        /// Tokens after this chunk.
        end: u64,
        /// The model's context.
        context_tokens: u32,
    },
    /// A page table does not cover the chunk's last position.
    #[error("sequence {sequence} needs {needed} pages, but its page table has {given}")]
    TooFewPages {
        /// The chunk's sequence.
        sequence: u64,
        /// Pages that its tokens need.
        needed: u64,
        /// Pages in the table.
        given: u64,
    },
    /// A page is outside the pool.
    #[error("page {page} is outside the pool of {pages} pages")]
    PageOutOfRange {
        /// The page's number.
        page: u32,
        /// Pages in the pool.
        pages: u32,
        /// The sequence whose page table has the page. `None` in [`Engine::acquire`](crate::Engine::acquire).
        sequence: Option<u64>,
    },
    /// One step would write a page twice.
    #[error("page {page} would be written twice in one step, the second time by sequence {sequence}")]
    PageWrittenTwice {
        /// The page's number.
        page: u32,
        /// The sequence of the second chunk.
        sequence: u64,
    },
    /// One step has two chunks of a sequence.
    #[error("the step has two chunks of sequence {sequence}: submit the second one in a later step")]
    RepeatedSequence {
        /// The sequence.
        sequence: u64,
    },
    /// A sample [looks back](crate::Sampling::looks_back), but tokens before it are missing.
    #[error(
        "the sample of sequence {sequence} looks back at {needed} tokens, but its history has {given}: pass all tokens before the sample"
    )]
    ShortHistory {
        /// The sequence.
        sequence: u64,
        /// Tokens before the sample. The last is left out if the previous step samples it.
        needed: usize,
        /// Tokens of the history.
        given: usize,
    },
    /// A chunk takes its token from the previous step, but that step does not sample this sequence, or does not count its tokens for the
    /// penalties of this chunk.
    #[error(
        "sequence {sequence} expects its token from the previous step, but that step does not sample or count it: pass the token's id"
    )]
    FollowsNothing {
        /// The chunk's sequence.
        sequence: u64,
    },
    /// A decode chunk has no token or several, and it must have exactly one.
    #[error(
        "the decode chunk of sequence {sequence} has {tokens} tokens, but it must have exactly one: submit more tokens as a prompt"
    )]
    ManySampled {
        /// The chunk's sequence.
        sequence: u64,
        /// Tokens of the chunk.
        tokens: usize,
    },
    /// A chunk asks for log probabilities of too many tokens, or is not a part of a prompt.
    #[error(
        "sequence {sequence} asks for {targets} log probabilities with {tokens} tokens of a step: ask for at most one per prompt token"
    )]
    BadScore {
        /// The sequence.
        sequence: u64,
        /// The targets of its [`Score`](crate::Score).
        targets: usize,
        /// The tokens of its chunk.
        tokens: usize,
    },
    /// [`sample`](crate::Engine::sample) got wrong masks.
    #[error("the masks of the step are wrong: {what}")]
    BadMasks {
        /// What is wrong.
        what: &'static str,
    },
    /// The step was polled again after it had returned its output.
    #[error("this step has already returned its output")]
    StepSpent,
    /// The step has more rows than [`StepLimits`](crate::StepLimits) allows.
    #[error("the step has {rows} rows with logits, but the limit is {limit}: split it")]
    TooManyRows {
        /// The chunks' [rows](crate::Chunk::rows).
        rows: u64,
        /// The engine's limit.
        limit: u32,
    },
    /// The step has more page table entries than the device has memory for.
    #[error("the step's page tables have {entries} entries, but the limit is {limit}: split it")]
    TooManyPages {
        /// Entries of all chunks' page tables.
        entries: usize,
        /// The engine's limit.
        limit: usize,
    },
    /// The step was submitted before the engine could accept it.
    #[error("the engine cannot accept a step now: {0}")]
    NotReady(&'static str),
    /// The GPU failed and the step's results are lost. If the error [is sticky](CudaError::is_sticky), every later step fails
    /// too.
    #[error("the GPU failed: {0}")]
    Device(CudaError),
    /// A worker thread panicked in this step. Its message is on stderr. The engine stays usable.
    #[error("a worker thread panicked: the step's results are lost")]
    WorkerPanicked,
}

impl EngineError {
    /// A short constant name for metrics, logs and JSON.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::EmptyChunk { .. } => "empty_chunk",
            Self::TooManyTokens { .. } => "too_many_tokens",
            Self::TokenOutOfRange { .. } => "token_out_of_range",
            Self::ContextExceeded { .. } => "context_exceeded",
            Self::TooFewPages { .. } => "too_few_pages",
            Self::PageOutOfRange { .. } => "page_out_of_range",
            Self::PageWrittenTwice { .. } => "page_written_twice",
            Self::RepeatedSequence { .. } => "repeated_sequence",
            Self::ShortHistory { .. } => "short_history",
            Self::TooManyRows { .. } => "too_many_rows",
            Self::TooManyPages { .. } => "too_many_pages",
            Self::NotReady(_) => "not_ready",
            Self::Device(_) => "device",
            Self::FollowsNothing { .. } => "follows_nothing",
            Self::ManySampled { .. } => "many_sampled",
            Self::BadMasks { .. } => "bad_masks",
            Self::BadScore { .. } => "bad_score",
            Self::StepSpent => "step_spent",
            Self::WorkerPanicked => "worker_panicked",
        }
    }

    /// How much the error affects: one sequence, the whole step, or the engine.
    #[must_use]
    pub fn scope(&self) -> Scope {
        match self {
            Self::EmptyChunk { sequence }
            | Self::BadScore { sequence, .. }
            | Self::TokenOutOfRange { sequence, .. }
            | Self::ContextExceeded { sequence, .. }
            | Self::TooFewPages { sequence, .. }
            | Self::PageOutOfRange { sequence: Some(sequence), .. }
            | Self::PageWrittenTwice { sequence, .. }
            | Self::RepeatedSequence { sequence }
            | Self::ShortHistory { sequence, .. }
            | Self::FollowsNothing { sequence }
            | Self::ManySampled { sequence, .. } => Scope::Sequence(*sequence),
            Self::TooManyTokens { .. }
            | Self::TooManyRows { .. }
            | Self::TooManyPages { .. }
            | Self::PageOutOfRange { sequence: None, .. }
            | Self::NotReady(_)
            | Self::BadMasks { .. }
            | Self::StepSpent
            | Self::WorkerPanicked => Scope::Step,
            Self::Device(error) if error.is_sticky() => Scope::Engine,
            Self::Device(_) => Scope::Step,
        }
    }
}
