//! Sequences on the engine.

use std::sync::Arc;

use engine::{PageId, Sampling, Token};

use super::SequenceId;
use crate::request::FinishReason;

/// Decoder, prefiller → generator: run a sequence on the engine.
#[derive(Clone, Debug, PartialEq)]
pub struct StartSequence {
    /// Its name.
    pub sequence: SequenceId,
    /// All its tokens so far; at least one more than `resident`.
    pub tokens: Vec<u32>,
    /// How many leading tokens already have their KV in `pages`.
    pub resident: u32,
    /// Page table, long enough for `tokens`; a sequence that reaches its end waits for [`ExtendSequence`].
    pub pages: Vec<PageId>,
    /// How many of `tokens` are the prompt's.
    pub prompt: u32,
    /// How many tokens to sample; at least one.
    pub sample: u32,
    /// How they are chosen.
    pub sampling: Arc<Sampling>,
    /// Continues past an end-of-sequence token.
    pub ignore_eos: bool,
}

/// Decoder → generator: the sequence has more pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtendSequence {
    /// Which.
    pub sequence: SequenceId,
    /// They follow the pages that it has.
    pub pages: Vec<PageId>,
}

/// Decoder, prefiller → generator: end this sequence. Answered by a last [`SequenceAdvanced`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopSequence {
    /// Which.
    pub sequence: SequenceId,
}

/// Generator → decoder, prefiller: a step has advanced this sequence, or it has ended.
///
/// After the event with `ended` set the engine no longer touches the sequence's pages.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceAdvanced {
    /// Which.
    pub sequence: SequenceId,
    /// Leading tokens whose KV is in the pages now.
    pub resident: u32,
    /// The token sampled, if one was.
    pub token: Option<Token>,
    /// Microseconds since the sequence's first step began.
    pub running_micros: u64,
    /// Set on the last event of a sequence.
    pub ended: Option<SequenceEnd>,
}

/// How a sequence ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SequenceEnd {
    /// By itself.
    Finished(FinishReason),
    /// By [`StopSequence`].
    Stopped,
    /// The engine failed.
    Failed(String),
}
