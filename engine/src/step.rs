//! The [`Engine`] trait and the plain data of one step.

use std::sync::Arc;

use crate::error::EngineError;
use crate::kv::{KvPool, PageId, PageTable};
use crate::model::ModelInfo;
use crate::sampling::{Logprobs, Sample, Token};

/// The tokens that may be sampled: bit `t % 32` of word `t / 32` is set if token `t` may. It has a word for every 32 tokens of the
/// vocabulary, rounded up. At least one bit is set. Clones share the words.
pub type TokenMask = Arc<[u32]>;

/// The part of a step that belongs to one sequence: a range of a prompt, or the single token of a decode row.
///
/// The chunk's `tokens` have the positions `start..start + tokens.len()`. The step writes their keys and values into the
/// sequence's pages. They attend causally to positions `0..start + tokens.len()`.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// The caller's id of the sequence. The engine returns it in [`SampledToken`]. Do not use an id for two sequences: the engine keeps the token counts
    /// of a sequence under its id. The next chunk of a sequence contains the last sampled token, or repeats the last position.
    pub sequence: u64,
    /// Token ids, at least one, each below [`ModelInfo::vocabulary`].
    pub tokens: &'a [u32],
    /// Where the tokens come from.
    pub source: TokenSource,
    /// Position of the first token; `start + tokens.len()` is at most [`ModelInfo::context_tokens`].
    pub start: u32,
    /// The sequence's page table from position 0. It must cover `start + tokens.len()` tokens. Positions before `start`
    /// must hold keys and values that an earlier step or a peer has written.
    pub pages: &'a PageTable,
    /// How to sample the token after the chunk's last position. `None` samples no token.
    pub sample: Option<Sample<'a>>,
    /// Prompt tokens whose log probabilities are wanted. Only for a chunk of a prompt.
    pub score: Option<Score<'a>>,
}

/// Asks for the log probabilities of prompt tokens: of the token that follows each of the chunk's first tokens.
#[derive(Clone, Copy, Debug)]
pub struct Score<'a> {
    /// Target `i` is the token after token `i` of the chunk. At most as many as the chunk has tokens; each below
    /// [`ModelInfo::vocabulary`].
    pub targets: &'a [u32],
    /// The number of most probable tokens to report besides each target. At most
    /// [`Sampling::LOGPROBS_MAX`](crate::Sampling::LOGPROBS_MAX).
    pub top: u32,
}

impl Chunk<'_> {
    /// Tokens of the sequence up to and including this chunk: the context of the chunk's last row.
    #[must_use]
    pub fn end(&self) -> usize {
        self.start as usize + self.tokens.len()
    }

    /// True if a mask restricts the token that is sampled after the chunk.
    #[must_use]
    pub fn is_constrained(&self) -> bool {
        self.sample.is_some_and(|sample| sample.constrained)
    }

    /// The rows that the chunk counts against [`StepLimits::rows`]: one if it is a decode row or the step samples a token after
    /// it, and one for each target of its score.
    #[must_use]
    pub fn rows(&self) -> usize {
        let last = self.sample.is_some() || self.source != TokenSource::Prompt;
        usize::from(last) + self.score.map_or(0, |score| score.targets.len())
    }
}

/// Where the tokens of a chunk come from.
///
/// A backend may use different kernels for prompts and for sampled tokens, and these kernels may round differently. So
/// the caller states the source; the number of tokens does not decide it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenSource {
    /// The tokens are a range of a prompt.
    #[default]
    Prompt,
    /// The single token was sampled earlier, by this engine or a peer: a decode row.
    Sampled,
    /// The single token is sampled by the previous step, which may still run. [`Chunk::tokens`] holds a placeholder. Only for an engine that
    /// [runs ahead](Engine::runs_ahead). The previous step must have taken the sample: if it is constrained, it must have got its mask. If this
    /// chunk's sample [looks back](crate::Sampling::looks_back), the previous step's sample of the sequence must look back too.
    Follows,
}

/// The token that a step sampled after the last position of a chunk.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// [`Chunk::sequence`].
    pub sequence: u64,
    /// The token.
    pub token: Token,
}

/// The output of a finished step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// One token for each chunk with [`Chunk::sample`], in the batch's order. Samples that [got no mask](Engine::sample) are left
    /// out.
    pub tokens: Vec<SampledToken>,
    /// The scores of the chunks with [`Chunk::score`], in the batch's order.
    pub scores: Vec<ScoredChunk>,
}

/// The log probabilities of the targets of a chunk's [`Score`].
#[derive(Clone, Debug, PartialEq)]
pub struct ScoredChunk {
    /// [`Chunk::sequence`].
    pub sequence: u64,
    /// For each target: its log probability, its rank, and the most probable tokens at its place.
    pub targets: Vec<Logprobs>,
}

/// The limits of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// Maximum number of tokens of all chunks together. At least 1.
    pub tokens: u32,
    /// Maximum number of [rows](Chunk::rows) whose logits a step computes. At least 1.
    pub rows: u32,
}

/// A submitted step. The caller [polls](Engine::poll) it until it returns its output.
#[derive(Debug)]
pub struct Step {
    pub(crate) output: Option<StepOutput>,
}

impl Step {
    /// A step that has no output yet.
    #[must_use]
    pub fn unfinished() -> Self {
        Self { output: None }
    }

    /// Sets the output.
    pub fn finish(&mut self, output: StepOutput) {
        self.output = Some(output);
    }

    /// A finished step with this output. An engine that computes in [`Engine::submit`] returns it.
    #[must_use]
    pub fn finished(output: StepOutput) -> Self {
        Self { output: Some(output) }
    }

    /// Takes the output. Returns `None` if the step has not finished or its output was already taken.
    pub fn take(&mut self) -> Option<StepOutput> {
        self.output.take()
    }
}

/// A loaded model with its KV pool. One dedicated thread owns the engine and calls all its methods.
///
/// The engine does not allocate pages. It writes to the pages in each chunk's page table. Until a step has returned its
/// output, no other code may write the pages of the step or read the positions that it writes.
pub trait Engine: Send {
    /// The loaded model.
    fn model(&self) -> &ModelInfo;

    /// The pool of KV pages. The code that moves pages to and from peers shares it.
    fn kv(&self) -> &Arc<KvPool>;

    /// The limits of one [`submit`](Engine::submit).
    fn limits(&self) -> StepLimits;

    /// True if steps run asynchronously on another device. Then the caller may submit a second step while one runs, and
    /// its chunks may take tokens that the host has not read from the running step ([`TokenSource::Follows`]). The owner
    /// thread may busy-poll between steps. The caller polls steps in the order of their submission.
    fn runs_ahead(&self) -> bool {
        false
    }

    /// Takes the samples of the step that was submitted last, if some of them are [constrained](crate::Sample::constrained). Such a
    /// step takes no sample before this call, and no other step may be submitted before it.
    ///
    /// `masks` has one entry for each constrained sample, in the batch's order. A sample whose entry is `None` is not taken: the
    /// output has no token for it. The caller may compute its position again with a later step.
    ///
    /// # Errors
    /// [`EngineError::BadMasks`] if the number of entries or a length is wrong, or if a mask allows no token. The step then
    /// still waits for its masks. [`EngineError::NotReady`] if the step does not wait for masks. The default method always returns this:
    /// it is for an engine that ignores constraints, such as a test double.
    fn sample(&mut self, step: &mut Step, masks: &[Option<TokenMask>]) -> Result<(), EngineError> {
        let _ = (step, masks);
        Err(EngineError::NotReady("the step does not wait for masks"))
    }

    /// True if the logits of the step that was submitted last are computed, so that a mask that is still missing would delay
    /// the other samples of the step.
    ///
    /// # Errors
    /// The device's errors.
    fn is_computed(&mut self, step: &Step) -> Result<bool, EngineError> {
        let _ = step;
        Ok(true)
    }

    /// Starts one mixed step of any number of prefill chunks and decode rows, at most one per sequence. An empty batch is
    /// a step without output. The CPU backend computes the whole step in this call.
    ///
    /// # Errors
    /// The engine refuses the whole batch before it writes anything if a token, position or page is out of bounds, if
    /// two chunks have the same sequence or would write the same page, or if a sample lacks tokens that it looks back at.
    /// [`EngineError::scope`] names the sequence at fault, if there is one; the
    /// caller may submit the other chunks again. After a refused step no chunk may have the source
    /// [`TokenSource::Follows`].
    /// [`EngineError::WorkerPanicked`] occurs during the step: the positions of this step then hold undefined values.
    /// Earlier positions are intact.
    fn submit(&mut self, batch: &[Chunk<'_>]) -> Result<Step, EngineError>;

    /// Returns the step's output once, and `None` while the step still runs. Never blocks on the device.
    ///
    /// # Errors
    /// [`EngineError::StepSpent`] if the step has already returned its output.
    fn poll(&mut self, step: &mut Step) -> Result<Option<StepOutput>, EngineError>;

    /// Makes writes of other threads and peers to `pages` visible to the steps submitted after this call. On the CPU this
    /// is an acquire fence. This thread must have observed the writer's completion, or received it from a thread that did.
    ///
    /// # Errors
    /// [`EngineError::PageOutOfRange`] if the pool does not have the page.
    fn acquire(&mut self, pages: &[PageId]) -> Result<(), EngineError>;
}
