//! The parts of the frames about a prefill: what a receiver asks for, and what the sender answers.

use serde::{Deserialize, Serialize};

use crate::wire;

/// Maximum number of tokens in one [`Frame::Prefill`](super::Frame::Prefill). The receiver prefills longer prompts itself.
pub const PROMPT_TOKENS_MAX: usize = 250_000;

/// Maximum size of a grammar's source in bytes. The receiver prefills a request with a larger one itself.
pub const GRAMMAR_BYTES_MAX: usize = 256 << 10;
/// Maximum number of grammars that a sender keeps in a session.
pub const GRAMMARS_MAX: u32 = 16;

/// What a grammar is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GrammarKind {
    /// A JSON Schema, as JSON.
    JsonSchema,
    /// A regular expression that the whole answer matches.
    Regex,
    /// A grammar in llguidance's dialect of Lark.
    Lark,
}

/// The sampling parameters for a request's first token, and what else the sender reports. The fields have the names of the HTTP parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FirstToken {
    /// 0 samples greedily.
    pub temperature: f32,
    /// 1 admits all tokens.
    pub top_p: f32,
    /// 0 admits all tokens.
    pub top_k: u32,
    /// 0 admits all tokens.
    pub min_p: f32,
    /// 1 applies no penalty. The penalties that count sampled tokens are not here, because none was sampled yet.
    pub repetition_penalty: f32,
    /// Values added to the logits of these tokens; at most [`LOGIT_BIAS_MAX`] entries.
    #[serde(deserialize_with = "wire::list")]
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the random draw. The draw also depends on the token's position.
    pub seed: u64,
    /// Asks for the token's log probability, and for that many of the most probable tokens.
    pub logprobs: Option<u32>,
    /// Asks for the log probabilities of the prompt's tokens except the first, and for that many of the most probable tokens at the place
    /// of each. Only without resident tokens.
    pub prompt_logprobs: Option<u32>,
}

/// Maximum number of tokens in one [`Frame::PromptLogprobs`](super::Frame::PromptLogprobs).
pub const PROMPT_LOGPROBS_MAX: usize = 1024;

/// Log probabilities (natural logarithm) at one token: the first sampled one, or one of the prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// Log probability of the token.
    pub sampled: f32,
    /// Number of tokens that are at least as probable as this one.
    pub rank: u32,
    /// The most probable tokens with their log probabilities, the most probable first.
    #[serde(deserialize_with = "wire::list")]
    pub top: Vec<(u32, f32)>,
}

/// Maximum number of tokens with a logit bias in one request.
pub const LOGIT_BIAS_MAX: usize = 1024;

/// The reason why a sender did not prefill a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PrefillFault {
    /// The sender does not accept this request, for example because the prompt is too large for its pool. It may accept the next one.
    Refused,
    /// The sender accepted the request and failed, for example by an engine error. Later requests may fail too.
    Failed,
    /// The sender has no room for this request now. It may accept the same request later.
    Busy,
}

/// The trace that a request belongs to, as in the header `traceparent` of the W3C.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceContext {
    /// The id of the trace; not all zero.
    pub trace: [u8; 16],
    /// The id of the span that is the parent of all spans of the prefill; not all zero.
    pub span: [u8; 8],
    /// Bit 0: the trace is recorded.
    pub flags: u8,
}

impl TraceContext {
    /// Bit 0 of the flags: the trace is recorded.
    pub const RECORDED: u8 = 1;

    /// Whether both ids are valid and the trace is recorded.
    pub fn is_recorded(&self) -> bool {
        self.trace != [0; 16] && self.span != [0; 8] && self.flags & Self::RECORDED != 0
    }
}

/// The request that pages belong to, and the place of the first of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageOwner {
    /// The request's number.
    pub request: u64,
    /// Index of the first page in the request's page table. That page holds the tokens from `first_page * page_tokens` on.
    pub first_page: u32,
}
