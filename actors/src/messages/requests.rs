//! A request between the proxy, the decoder and the client.

use engine::{Logprobs, Token};

use super::SessionId;
use crate::request::{Generate, RequestId, StreamEvent};

/// Proxy → decoder: run this request.
#[derive(Clone, Debug, PartialEq)]
pub struct Decode {
    /// The request.
    pub generate: Generate,
    /// The session of the sender that prefills the request; `None`: this process prefills it.
    pub prefill_on: Option<SessionId>,
}

/// Decoder → proxy: the prompt of a [`Decode`] no longer waits for its prefill. Sent once for each [`Decode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefillOver {
    /// [`Decode::prefill_on`].
    pub on: Option<SessionId>,
    /// Number of tokens in the prompt.
    pub tokens: u32,
    /// How the wait ended.
    pub outcome: PrefillOutcome,
}

/// How a prompt's wait for its prefill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefillOutcome {
    /// The prompt was prefilled on [`PrefillOver::on`].
    Computed {
        /// Computed tokens: those of the prompt that were not in the prefix cache of the process that prefilled.
        tokens: u32,
        /// The duration of the prefill.
        micros: u64,
    },
    /// The sender reported a failure, was lost, or sent something wrong.
    Failed,
    /// The request ended first, was preempted, was refused, or is prefilled elsewhere. This says nothing about the sender.
    Withdrawn,
}

/// Decoder → streams: the log probabilities of the prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamPrompt {
    /// The request.
    pub request: RequestId,
    /// Those of its tokens except the first, in order.
    pub logprobs: Vec<Logprobs>,
}

/// Decoder → streams: the client's next token.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamToken {
    /// The request.
    pub request: RequestId,
    /// The token.
    pub token: Token,
}

/// Proxy, decoder → streams: the last event of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamEnd {
    /// The request.
    pub request: RequestId,
    /// `Finished` or `Failed`.
    pub event: StreamEvent,
}
