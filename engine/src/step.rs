//! What an engine does: the [`Engine`] trait and the plain data of one step.

use std::sync::Arc;

use crate::error::EngineError;
use crate::kv::{KvPool, PageId};
use crate::model::ModelInfo;
use crate::sampling::{Sample, Token};

/// One sequence's share of a step: a range of a prompt, or the one token of a decode row.
///
/// The chunk's `tokens` take the positions `start..start + tokens.len()`. Their keys and values are written into
/// the sequence's pages, and they attend over positions `0..start + tokens.len()`, causally.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// The caller's name for the sequence; it comes back in [`SampledToken`] and means nothing else here.
    pub sequence: u64,
    /// Token ids, at least one, each below [`ModelInfo::vocabulary`].
    pub tokens: &'a [u32],
    /// Where they come from.
    pub source: TokenSource,
    /// Position of the first token; `start + tokens.len()` is at most [`ModelInfo::context_tokens`].
    pub start: u32,
    /// The sequence's page table from position 0. Must cover `start + tokens.len()` tokens. Positions before
    /// `start` must hold what an earlier step, or a peer, has written.
    pub pages: &'a [PageId],
    /// Whether, and how, to choose the token that follows the chunk's last position.
    pub sample: Option<Sample<'a>>,
}

impl Chunk<'_> {
    /// Tokens up to the chunk's last one, which its last row attends to.
    #[must_use]
    pub fn end(&self) -> usize {
        self.start as usize + self.tokens.len()
    }

    /// True if the chunk counts against [`StepLimits::rows`]: it is a decode row, or a token is sampled after it.
    #[must_use]
    pub fn takes_row(&self) -> bool {
        self.sample.is_some() || self.source != TokenSource::Prompt
    }
}

/// Where the tokens of a chunk come from. Prompts and sampled tokens may be computed by other kernels, which round otherwise: so the caller
/// says what they are, and their number does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenSource {
    /// A prompt.
    #[default]
    Prompt,
    /// The one token was sampled before, here or by a peer: a decode row.
    Sampled,
    /// The one token is what the step before samples for this sequence with [plain](crate::Sampling::is_plain) settings; [`Chunk::tokens`] holds a
    /// number that nobody reads. Only for an engine that [runs ahead](Engine::runs_ahead).
    Follows,
}

/// A token chosen after the last position of a chunk.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// [`Chunk::sequence`].
    pub sequence: u64,
    /// The token.
    pub token: Token,
}

/// What a finished step gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// One for each chunk with [`Chunk::sample`], in the batch's order.
    pub tokens: Vec<SampledToken>,
}

/// The most an engine takes in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// Tokens of all chunks together, at least 1.
    pub tokens: u32,
    /// Chunks that [take a row](Chunk::takes_row): an engine has memory for the logits of this many rows. At least 1.
    pub rows: u32,
}

/// A submitted step, to be [polled](Engine::poll) until it gives its output.
#[derive(Debug)]
pub struct Step {
    pub(crate) output: Option<StepOutput>,
}

impl Step {
    /// A step whose output is there: what an engine that computes in [`Engine::submit`] returns.
    #[must_use]
    pub fn finished(output: StepOutput) -> Self {
        Self { output: Some(output) }
    }

    /// The output, once.
    pub fn take(&mut self) -> Option<StepOutput> {
        self.output.take()
    }
}

/// A loaded model with its KV pool. One dedicated thread owns it: every method is called there.
///
/// The engine does not allocate pages: it writes where a chunk's page table says. Until a step has given its
/// output nobody else may write the pages it names, and nobody may read the positions it writes.
pub trait Engine: Send {
    /// The loaded model.
    fn model(&self) -> &ModelInfo;

    /// The pool that pages live in. Shared with whoever moves pages to and from peers.
    fn kv(&self) -> &Arc<KvPool>;

    /// The most that one [`submit`](Engine::submit) takes.
    fn limits(&self) -> StepLimits;

    /// True if steps run on another device: a second one may be submitted while one runs, chunks of it may [follow](TokenSource::Follows) samples
    /// that nobody has seen yet, and the owner's thread may wait awake between steps. Steps are polled in the order of their submission.
    fn runs_ahead(&self) -> bool {
        false
    }

    /// Starts one mixed step of any number of prefill chunks and decode rows, at most one of each sequence. An
    /// empty batch is a step without output. The CPU backend computes here and returns when the step is done.
    ///
    /// # Errors
    /// A batch that names tokens, positions or pages out of bounds, or the same page to be written by two
    /// chunks, is refused as a whole before anything is written. [`EngineError::scope`] names the sequence at fault, if there is one: the
    /// others may be submitted again. After a refused step no chunk may [follow](TokenSource::Follows) it.
    /// [`EngineError::WorkerPanicked`] comes after the fact: the positions of this step then hold undefined values; earlier ones are
    /// intact.
    fn submit(&mut self, batch: &[Chunk<'_>]) -> Result<Step, EngineError>;

    /// The step's output, once; `None` while the step still runs. Never blocks.
    ///
    /// # Errors
    /// [`EngineError::StepSpent`] when the step has given its output before.
    fn poll(&mut self, step: &mut Step) -> Result<Option<StepOutput>, EngineError>;

    /// Orders what others have written into `pages` before the steps submitted after this call. On the CPU an
    /// acquire fence: the writer's completion must have been observed by this thread, or passed on to it.
    ///
    /// # Errors
    /// [`EngineError::PageOutOfRange`] for a page that the pool does not have.
    fn acquire(&mut self, pages: &[PageId]) -> Result<(), EngineError>;
}
