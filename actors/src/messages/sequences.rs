//! Sequences on the engine.

use std::sync::Arc;

use engine::{Logprobs, PageId, Sampling, Token};

use super::SequenceId;
use crate::grammar::CompiledGrammar;
use crate::request::FinishReason;

/// Decoder, prefiller → generator: run a sequence on the engine.
#[derive(Clone, Debug, PartialEq)]
pub struct StartSequence {
    /// The sequence.
    pub sequence: SequenceId,
    /// All tokens so far; at least one more than `resident`.
    pub tokens: Vec<u32>,
    /// Leading tokens whose KV is already in `pages`.
    pub resident: u32,
    /// The page table, long enough for `tokens`. A sequence that has filled its pages waits for [`ExtendSequence`].
    pub pages: Vec<PageId>,
    /// Number of leading tokens that are the prompt.
    pub prompt: u32,
    /// Number of tokens to sample; at least one.
    pub sample: u32,
    /// How tokens are sampled.
    pub sampling: Arc<Sampling>,
    /// The grammar that the tokens after the prompt must match.
    pub grammar: Option<CompiledGrammar>,
    /// Continues after an end-of-sequence token.
    pub ignore_eos: bool,
    /// Reports the log probabilities of the prompt's tokens after `resident`, except its first token, and of this many most probable tokens
    /// at the place of each.
    pub prompt_logprobs: Option<u32>,
    /// [`SequenceBegun`] is wanted.
    pub announce: bool,
}

/// Generator → decoder: the first step that samples a token of this sequence is planned. Sent if [`StartSequence::announce`] is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceBegun {
    /// The sequence.
    pub sequence: SequenceId,
}

/// Decoder → generator: the sequence has more pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtendSequence {
    /// The sequence.
    pub sequence: SequenceId,
    /// The additional pages, in order. They come after the pages that the sequence already has.
    pub pages: Vec<PageId>,
}

/// Decoder, prefiller → generator: end this sequence. Answered by a last [`SequenceAdvanced`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopSequence {
    /// The sequence.
    pub sequence: SequenceId,
}

/// Generator → decoder, prefiller: a step has advanced this sequence, or the sequence has ended.
///
/// After the event with `ended` the engine no longer uses the sequence's pages.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceAdvanced {
    /// The sequence.
    pub sequence: SequenceId,
    /// Leading tokens whose KV is now in the pages.
    pub resident: u32,
    /// The log probabilities of the next prompt tokens, in order, if the sequence asks for them.
    pub prompt_logprobs: Vec<Logprobs>,
    /// The sampled token, if the step sampled one.
    pub token: Option<Token>,
    /// Microseconds since the sequence's first step began.
    pub running_micros: u64,
    /// Set on the last event of a sequence.
    pub ended: Option<SequenceEnd>,
}

/// How a sequence ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SequenceEnd {
    /// The sequence finished.
    Finished(FinishReason),
    /// [`StopSequence`] ended the sequence.
    Stopped,
    /// The engine failed, with this error.
    Failed(String),
    /// The sequence's grammar failed, with this error. The engine works.
    GrammarFailed(String),
}
