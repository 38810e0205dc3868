//! Steps of the engine.

use std::sync::Arc;

use engine::{EngineError, PageId, Sampling, Token, TokenSource};

/// A part of a step: some tokens of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedChunk {
    /// The number by which the engine knows the sequence.
    pub key: u64,
    /// Token ids to compute.
    pub tokens: Vec<u32>,
    /// Where the tokens come from. For a token that the step in flight samples, `tokens` holds a placeholder.
    pub source: TokenSource,
    /// Position of the first token.
    pub start: u32,
    /// The sequence's page table. It is shared, because every decode step contains it.
    pub pages: Arc<[PageId]>,
    /// How the token after the last one is sampled; `None`: it is not sampled.
    pub sample: Option<PlannedSample>,
}

/// How a sequence's next token is sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedSample {
    /// The sampling settings.
    pub how: Arc<Sampling>,
    /// All tokens so far, if the settings depend on them; else empty.
    pub tokens: Vec<u32>,
    /// Number of leading tokens that are the prompt.
    pub prompt: u32,
}

/// One step for the engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The chunks; never empty.
    pub chunks: Vec<PlannedChunk>,
    /// Pages that may have been written outside the engine since the last step.
    pub acquire: Vec<PageId>,
}

/// Engine thread → generator: the oldest step in flight has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct StepFinished {
    /// The sampled tokens by [`PlannedChunk::key`], or the engine's error.
    pub outcome: Result<Vec<(u64, Token)>, EngineError>,
}
