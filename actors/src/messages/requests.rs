//! A request between proxy, decoder and its client.

use engine::Token;

use super::SessionId;
use crate::request::{Generate, RequestId, StreamEvent};

/// Proxy → decoder: run this request, prefilled by `prefill_on` or here.
#[derive(Clone, Debug, PartialEq)]
pub struct Decode {
    /// The request.
    pub generate: Generate,
    /// The session whose sender prefills; `None`: this process.
    pub prefill_on: Option<SessionId>,
}

/// Decoder → proxy: the prompt of a [`Decode`] no longer waits for its prefill. Sent once for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefillOver {
    /// [`Decode::prefill_on`].
    pub on: Option<SessionId>,
    /// Tokens of the prompt.
    pub tokens: u32,
    /// How its wait ended.
    pub outcome: PrefillOutcome,
}

/// How a prompt's wait for its prefill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefillOutcome {
    /// It was prefilled where the proxy sent it.
    Computed {
        /// Tokens that were computed: those of the prompt that were not resident.
        tokens: u32,
        /// How long that took.
        micros: u64,
    },
    /// The sender failed: it said so, was lost, or sent something wrong.
    Failed,
    /// The request ended first, gave its pages back, was refused or is prefilled elsewhere: nothing about the place.
    Withdrawn,
}

/// Decoder → streams: the client's next token.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamToken {
    /// Whose.
    pub request: RequestId,
    /// The token.
    pub token: Token,
}

/// Proxy, decoder → streams: the last event of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamEnd {
    /// Whose.
    pub request: RequestId,
    /// `Finished` or `Failed`.
    pub event: StreamEvent,
}
