//! A request between the proxy, the decoder and the client.

use engine::{Logprobs, Token};

use super::SessionId;
use crate::request::{Generate, RequestId, StreamEvent};

/// Proxy → decoder: run this request.
#[derive(Clone, Debug, PartialEq)]
pub struct Decode {
    /// The request.
    pub generate: Generate,
    /// Who prefills it.
    pub placement: Placement,
}

/// Who prefills a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The session of the sender that prefills the request; `None`: this process prefills it.
    pub on: Option<SessionId>,
    /// Tokens of the prompt that the proxy expects to be computed there. The proxy counts them as waiting until [`PrefillOver`].
    pub tokens: u32,
    /// Whether this process may prefill the prompt if the sender does not.
    pub may_fall_back: bool,
}

/// Decoder → proxy: a prompt no longer waits for its prefill. Sent once for each [`Placement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefillOver {
    /// Where it waited.
    pub placement: Placement,
    /// How the wait ended.
    pub outcome: PrefillOutcome,
}

/// Decoder → proxy: all pages of a prompt have landed, and its request decodes here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandOverEnded {
    /// The sender's session.
    pub session: SessionId,
    /// Microseconds from the first token's arrival to the last page's. Zero if the pages came first.
    pub exposed_micros: u64,
}

/// Decoder → proxy: the sender does not prefill this request, and this process may not: choose another sender. The request's [`PrefillOver`]
/// comes before it.
#[derive(Clone, Debug, PartialEq)]
pub struct PlaceAgain {
    /// The request.
    pub generate: Generate,
    /// The senders that have not prefilled it.
    pub tried: Vec<SessionId>,
}

/// Proxy → decoder: the answer to [`PlaceAgain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedAgain {
    /// The request.
    pub request: RequestId,
    /// Who prefills it; `None`: no other sender can.
    pub placement: Option<Placement>,
}

/// How a prompt's wait for its prefill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefillOutcome {
    /// The prompt was prefilled where it was placed.
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
