//! Why a model does not open and why a step is refused. Texts are for the operator: one sentence with the values.

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
        /// What is wrong with it.
        error: GgufError,
    },
    /// The folder's tensors cannot be used.
    #[error("{}: {error}", path.display())]
    Safetensors {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        error: SafetensorsError,
    },
    /// The operating system refused to read a file.
    #[error("{} cannot be read: {error}", path.display())]
    Read {
        /// The file's path.
        path: PathBuf,
        /// What it said.
        error: std::io::Error,
    },
    /// The file is not the one whose checksum lies beside it.
    #[error(
        "{} has sha256 {actual}… but its .sha256 file expects {expected}…: delete the model file and fetch it again",
        path.display()
    )]
    WrongChecksum {
        /// The model's path.
        path: PathBuf,
        /// The first 12 hex digits beside the file.
        expected: String,
        /// The first 12 hex digits of the file as it is.
        actual: String,
    },
    /// The `.sha256` file beside the model does not start with a sha256.
    #[error("{} does not start with 64 hex digits: write the model's sha256 there or delete it", path.display())]
    BadChecksumFile {
        /// The `.sha256` file's path.
        path: PathBuf,
    },
    /// The model is not a Llama.
    #[error("{} has architecture {architecture}, but only llama is supported: choose a Llama", path.display())]
    UnsupportedArchitecture {
        /// The model's path.
        path: PathBuf,
        /// `general.architecture`, or `none`.
        architecture: String,
    },
    /// The model asks for something that the engine does not compute.
    #[error("{} is not supported: {what}", path.display())]
    UnsupportedModel {
        /// The model's path.
        path: PathBuf,
        /// What is asked for and what is supported.
        what: String,
    },
    /// A tensor is stored in a type that no kernel reads.
    #[error(
        "tensor {tensor} of {} is stored as {found}, but only {} are read: choose another file of the model",
        path.display(), TensorType::names()
    )]
    UnsupportedTensorType {
        /// The model's path.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Its type's name.
        found: String,
    },
    /// `page_tokens` is out of bounds.
    #[error("page_tokens is {page_tokens}: set it between 1 and {max}")]
    BadPageTokens {
        /// The value given.
        page_tokens: u32,
        /// The largest that is taken.
        max: u32,
    },
    /// The KV budget holds no page, or too few tokens for any conversation.
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
        /// The smallest budget that is taken.
        min_bytes: u64,
    },
    /// A GPU that the kernels are not compiled for.
    #[error(
        "{name} has compute capability {major}.{minor}, and this build's kernels are for 9.0 (H100, H200): take such a GPU, or set engine.device to cpu"
    )]
    GpuUnsupported {
        /// The GPU's name.
        name: String,
        /// Its compute capability.
        major: i32,
        /// The same.
        minor: i32,
    },
    /// A GPU whose memory is in use.
    #[error(
        "the GPU has {free_mib} MiB free of {total_mib}, and the model with its activations leaves no page of them: end what uses it, or raise engine.gpu_memory_utilization"
    )]
    GpuFull {
        /// Free when the model had been loaded.
        free_mib: u64,
        /// In all.
        total_mib: u64,
    },
    /// `threads` is out of bounds.
    #[error("threads is {threads}: set it between 1 and {max}")]
    BadThreads {
        /// The value given.
        threads: usize,
        /// The largest that is taken.
        max: usize,
    },
    /// `step_tokens` is out of bounds.
    #[error("step_tokens is {step_tokens}: set it between 1 and {max}")]
    BadStepTokens {
        /// The value given.
        step_tokens: u32,
        /// The largest that is taken.
        max: u32,
    },
    /// The operating system gives no memory for the pool.
    #[error(transparent)]
    Pool(#[from] KvPoolError),
    /// The GPU's driver refused.
    #[error("the GPU cannot be used: {0}")]
    Cuda(CudaError),
    /// A GPU is asked for that this build knows nothing of.
    #[error(
        "this build computes on the processor only: build with --features cuda (cargo xtask cuda), or set engine.device to cpu"
    )]
    NoCuda,
    /// Random weights are asked for where there are none.
    #[error(
        "random weights are made on a GPU only: set engine.device to cuda, or engine.load_format to auto"
    )]
    NoDummy,
    /// The operating system gives no thread.
    #[error("worker thread {index} does not start: {error}")]
    Thread {
        /// Which of the workers.
        index: usize,
        /// What the system said.
        error: std::io::Error,
    },
    /// A worker thread panicked while loading; its message is on stderr.
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
            Self::WorkerPanicked => "worker_panicked",
        }
    }
}

/// What an [`EngineError`] has spoiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// This sequence's chunk is at fault. The step was refused before anything was computed: without that chunk it may be submitted again.
    Sequence(u64),
    /// The whole step. Later steps may succeed.
    Step,
    /// The engine: every later step fails too.
    Engine,
}

/// Why an [`Engine`](crate::Engine) refused or failed a step.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineError {
    /// A chunk without tokens.
    #[error("the chunk of sequence {sequence} is empty: give it at least one token")]
    EmptyChunk {
        /// The chunk's sequence.
        sequence: u64,
    },
    /// More tokens than [`StepLimits`](crate::StepLimits) allows.
    #[error("the step has {tokens} tokens, but this engine takes {limit}: split it")]
    TooManyTokens {
        /// Tokens of all chunks.
        tokens: u64,
        /// The engine's limit.
        limit: u32,
    },
    /// A token id that the vocabulary does not have.
    #[error("token {token} of sequence {sequence} is outside the vocabulary of {vocabulary}")]
    TokenOutOfRange {
        /// The chunk's sequence.
        sequence: u64,
        /// The token id.
        token: u32,
        /// Ids below this exist.
        vocabulary: u32,
    },
    /// A position past the model's context.
    #[error("sequence {sequence} would reach {end} tokens, but the model's context is {context_tokens}")]
    ContextExceeded {
        /// The chunk's sequence.
        sequence: u64,
        /// Tokens after this chunk.
        end: u64,
        /// The model's context.
        context_tokens: u32,
    },
    /// A page table that does not reach the chunk's last position.
    #[error("sequence {sequence} needs {needed} pages, but its page table has {given}")]
    TooFewPages {
        /// The chunk's sequence.
        sequence: u64,
        /// Pages that its tokens take.
        needed: u64,
        /// Pages in the table.
        given: u64,
    },
    /// A page that the pool does not have.
    #[error("page {page} is outside the pool of {pages} pages")]
    PageOutOfRange {
        /// The page's number.
        page: u32,
        /// Numbers below this exist.
        pages: u32,
        /// The sequence whose page table has it; `None` in [`Engine::acquire`](crate::Engine::acquire).
        sequence: Option<u64>,
    },
    /// A page that two places of one step would write.
    #[error("page {page} would be written twice in one step, the second time by sequence {sequence}")]
    PageWrittenTwice {
        /// The page's number.
        page: u32,
        /// The sequence of the second chunk.
        sequence: u64,
    },
    /// A chunk that follows a sample that the step before does not take.
    #[error("sequence {sequence} follows a sample that the step before does not take: give the token itself")]
    FollowsNothing {
        /// The chunk's sequence.
        sequence: u64,
    },
    /// A sampled chunk of other than one token.
    #[error(
        "sequence {sequence} gives {tokens} tokens as sampled, where one goes: give more than one as a prompt"
    )]
    ManySampled {
        /// The chunk's sequence.
        sequence: u64,
        /// Tokens of the chunk.
        tokens: usize,
    },
    /// A step polled again after its output was taken.
    #[error("this step has already given its output")]
    StepSpent,
    /// More rows than [`StepLimits`](crate::StepLimits) allows.
    #[error("the step has {rows} rows with logits, but this engine takes {limit}: split it")]
    TooManyRows {
        /// Chunks that [take a row](crate::Chunk::takes_row).
        rows: u64,
        /// The engine's limit.
        limit: u32,
    },
    /// More page table entries than there is memory for on the device.
    #[error("the step's page tables have {entries} entries, but this engine takes {limit}: split it")]
    TooManyPages {
        /// Entries of all chunks' page tables.
        entries: usize,
        /// The engine's limit.
        limit: usize,
    },
    /// The step came before the engine could take it.
    #[error("the engine takes no step now: {0}")]
    NotReady(&'static str),
    /// The GPU failed; the step's results are lost. If the error [is sticky](CudaError::is_sticky), so is the engine.
    #[error("the GPU failed: {0}")]
    Device(CudaError),
    /// A worker thread panicked in this step; its message is on stderr. The engine stays usable.
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
            Self::TooManyRows { .. } => "too_many_rows",
            Self::TooManyPages { .. } => "too_many_pages",
            Self::NotReady(_) => "not_ready",
            Self::Device(_) => "device",
            Self::FollowsNothing { .. } => "follows_nothing",
            Self::ManySampled { .. } => "many_sampled",
            Self::StepSpent => "step_spent",
            Self::WorkerPanicked => "worker_panicked",
        }
    }

    /// What the error has spoiled: the sequence that it belongs to, the whole step, or the engine.
    #[must_use]
    pub fn scope(&self) -> Scope {
        match self {
            Self::EmptyChunk { sequence }
            | Self::TokenOutOfRange { sequence, .. }
            | Self::ContextExceeded { sequence, .. }
            | Self::TooFewPages { sequence, .. }
            | Self::PageOutOfRange { sequence: Some(sequence), .. }
            | Self::PageWrittenTwice { sequence, .. }
            | Self::FollowsNothing { sequence }
            | Self::ManySampled { sequence, .. } => Scope::Sequence(*sequence),
            Self::TooManyTokens { .. }
            | Self::TooManyRows { .. }
            | Self::TooManyPages { .. }
            | Self::PageOutOfRange { sequence: None, .. }
            | Self::NotReady(_)
            | Self::StepSpent
            | Self::WorkerPanicked => Scope::Step,
            Self::Device(error) if error.is_sticky() => Scope::Engine,
            Self::Device(_) => Scope::Step,
        }
    }
}
