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
    /// If it was prefilled there: how many tokens were computed, and in how many microseconds.
    pub computed: Option<(u32, u64)>,
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
