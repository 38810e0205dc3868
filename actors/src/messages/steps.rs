//! Steps of the engine.

use std::sync::Arc;

use engine::{EngineError, PageId, Sampling, Token, TokenSource};

/// A part of a step: some tokens of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedChunk {
    /// The engine's number for the sequence.
    pub key: u64,
    /// Token ids to compute.
    pub tokens: Vec<u32>,
    /// Where they come from. Of a token that the step in flight samples, `tokens` holds a placeholder.
    pub source: TokenSource,
    /// Position of the first one.
    pub start: u32,
    /// The sequence's page table: shared, since every decode step names it again.
    pub pages: Arc<[PageId]>,
    /// How the token that follows the last one is chosen, if it is.
    pub sample: Option<PlannedSample>,
}

/// How a sequence's next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedSample {
    /// The settings.
    pub how: Arc<Sampling>,
    /// All tokens so far, if the settings look back; else none.
    pub tokens: Vec<u32>,
    /// How many of them are the prompt's.
    pub prompt: u32,
}

/// One step for the engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Never empty.
    pub chunks: Vec<PlannedChunk>,
    /// Pages that a peer has written since the last step.
    pub acquire: Vec<PageId>,
}

/// Engine thread → generator: the oldest step in flight is over.
#[derive(Clone, Debug, PartialEq)]
pub struct StepFinished {
    /// Sampled tokens by the engine's key of their sequence, or the engine's error.
    pub outcome: Result<Vec<(u64, Token)>, EngineError>,
}
