//! Steps of the engine.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use engine::{EngineError, Logprobs, PageId, PageTable, Sampling, Token, TokenSource};

use crate::constraint::Constraint;
use crate::grammar::GrammarError;

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
    /// The sequence's page table.
    pub pages: PageTable,
    /// How the token after the last one is sampled; `None`: it is not sampled.
    pub sample: Option<PlannedSample>,
    /// Prompt tokens whose log probabilities are wanted.
    pub score: Option<PlannedScore>,
}

/// The prompt tokens whose log probabilities a step computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedScore {
    /// The token after each of the chunk's first tokens.
    pub targets: Vec<u32>,
    /// The number of most probable tokens to report at the place of each target.
    pub top: u32,
}

/// How a sequence's next token is sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedSample {
    /// The sampling settings.
    pub how: Arc<Sampling>,
    /// The tokens so far, if the settings depend on them.
    pub history: Option<History>,
    /// Number of leading tokens that are the prompt.
    pub prompt: u32,
    /// The sequence's constraint.
    pub constraint: Option<PlannedConstraint>,
}

/// The tokens of a sequence, which only grow. All planned samples of the sequence share them, so that a step copies none. The generator adds the tokens of
/// a finished step; the engine's thread reads those before the token that it samples.
#[derive(Clone, Debug)]
pub struct History(Arc<RwLock<Vec<u32>>>);

impl History {
    /// A history of these tokens.
    pub fn new(tokens: Vec<u32>) -> Self {
        Self(Arc::new(RwLock::new(tokens)))
    }

    /// Adds the next token.
    pub fn push(&self, token: u32) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(token);
    }

    /// The tokens so far.
    pub fn read(&self) -> RwLockReadGuard<'_, Vec<u32>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialEq for History {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// The constraint of a planned sample.
#[derive(Clone, Debug)]
pub struct PlannedConstraint {
    /// The constraint, shared by all steps of the sequence.
    pub constraint: Arc<Constraint>,
    /// In the sequence's first planned sample: its tokens after the prompt. Later it is empty, because the engine's thread has sampled the
    /// further tokens.
    pub tokens: Vec<u32>,
}

impl PartialEq for PlannedConstraint {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.constraint, &other.constraint) && self.tokens == other.tokens
    }
}

/// One step for the engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunStep {
    /// The chunks; never empty.
    pub chunks: Vec<PlannedChunk>,
    /// Pages that may have been written outside the engine since the last step.
    pub acquire: Vec<PageId>,
}

/// Engine thread → generator: the oldest step in flight has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct StepFinished {
    /// The result of the step, or the engine's error.
    pub outcome: Result<StepResult, EngineError>,
}

/// The result of a step that was computed. Chunks are named by [`PlannedChunk::key`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepResult {
    /// The sampled tokens.
    pub tokens: Vec<(u64, Token)>,
    /// The log probabilities of the targets of [`PlannedChunk::score`].
    pub scores: Vec<(u64, Vec<Logprobs>)>,
    /// Constrained chunks that sampled no token, because their mask was not ready in time. Their last token has to be computed again.
    pub late: Vec<u64>,
    /// Constrained chunks that will never sample a token, because their grammar failed.
    pub refused: Vec<(u64, GrammarError)>,
}
