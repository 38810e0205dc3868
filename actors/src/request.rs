//! A request from the frontend, and its events.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use actix::Message;
use connector::frame::TraceContext;
use engine::{Logprobs, Sampling, Token};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::grammar::CompiledGrammar;

/// A request's id in one process. The process that admits the request chooses it, and every frame about the request carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// Isolates prefix caches: two requests share cached pages only if both have the same salt or none.
///
/// It is a hash, so that a salt of any length has the same size in messages, frames and the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheSalt(pub [u8; 32]);

impl CacheSalt {
    /// The salt of a client's text.
    pub fn of(text: &str) -> Self {
        Self(Sha256::new().chain_update(b"baton cache salt").chain_update(text).finalize().into())
    }
}

/// Where a request may be prefilled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// By a sender if one is connected, else on this node.
    Auto,
    /// On this node.
    Local,
    /// By the process with the first of these HTTP addresses that belongs to a connected sender or to this node. If none does, as
    /// [`Auto`](Self::Auto).
    On(Arc<[SocketAddr]>),
}

/// Asks for tokens. The frontend sends it to the proxy, and the proxy to the decoder.
///
/// The frontend opens the request's stream in [`Streams`](crate::streams::Streams) before it sends this. Every request, even a
/// [`Refused`] one, gets exactly one final event there.
#[derive(Clone, Debug, PartialEq, Message)]
#[rtype(result = "()")]
pub struct Generate {
    /// The request's id, unique in this process.
    pub request: RequestId,
    /// Prompt token ids; at least one. The prompt and `max_tokens` together fit the model's context.
    pub prompt: Arc<[u32]>,
    /// Number of tokens to sample; at least one.
    pub max_tokens: u32,
    /// How tokens are sampled.
    pub sampling: Arc<Sampling>,
    /// The grammar that the answer must match.
    pub grammar: Option<CompiledGrammar>,
    /// The request shares cached pages only with requests of the same salt.
    pub salt: Option<CacheSalt>,
    /// Continues after an end-of-sequence token.
    pub ignore_eos: bool,
    /// Asks for the log probabilities of the prompt's tokens except the first, and of this many most probable tokens at the place of each.
    /// The request then reads nothing from the prefix cache.
    pub prompt_logprobs: Option<u32>,
    /// When the request was sent. The times of [`Timings`] count from then on.
    pub sent: Instant,
    /// When the request must have ended.
    pub deadline: Instant,
    /// Where it may be prefilled.
    pub route: Route,
    /// The trace that the request belongs to, and the span of its prefill. `None` if it is not recorded.
    pub trace: Option<TraceContext>,
}

/// Ends a request before its last token. Never refused; a request that has ended is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct AbortRequest {
    /// The request.
    pub request: RequestId,
    /// How the request ends.
    pub outcome: AbortOutcome,
}

impl AbortRequest {
    /// The client is gone.
    pub fn cancelled(request: RequestId) -> Self {
        Self { request, outcome: AbortOutcome::Cancelled }
    }

    /// The client needs no more than the first `tokens` tokens.
    pub fn completed(request: RequestId, tokens: u32) -> Self {
        Self { request, outcome: AbortOutcome::Completed { tokens } }
    }
}

/// How an aborted request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbortOutcome {
    /// The client is gone: the request fails with [`RequestError::Aborted`].
    Cancelled,
    /// The client needs no more tokens, for example because it found a stop string: the request finishes with [`FinishReason::Stop`].
    Completed {
        /// Tokens that count as the answer.
        tokens: u32,
    },
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// The request can never fit this node's page pool.
    #[error(
        "prompt and max_tokens need {needed} pages of KV and a request may use {usable}; send a shorter prompt, a smaller max_tokens, or raise engine.kv_bytes"
    )]
    TooLarge {
        /// Pages the request needs.
        needed: u32,
        /// Pages of the pool that requests may use; the ring's pages are excluded.
        usable: u32,
    },
    /// The request does not fit while pages of lost sessions are quarantined.
    #[error(
        "the request needs {needed} pages of KV and {usable} are left while pages of lost senders are quarantined; retry later or send it to another replica"
    )]
    NoRoom {
        /// Pages the request needs.
        needed: u32,
        /// Pages that a request may use now.
        usable: u32,
    },
    /// The prompt may not be prefilled on this node, and no sender can prefill it now.
    #[error("no sender can prefill the prompt now, and frontend.local is never; retry later")]
    NoPrefiller,
    /// The prompt may not be prefilled on this node, and is too large for a sender.
    #[error(
        "the prompt or its grammar is too large to send to a sender, and frontend.local is never; send a shorter one"
    )]
    TooLargeToSend,
    /// The process is draining.
    #[error("server is draining; send the request to another replica")]
    ShuttingDown,
    /// A queue is full.
    #[error("server is busy; retry after a second")]
    Busy,
}

impl Refused {
    /// One word for metrics, logs and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::NoRoom { .. } => "no_room",
            Self::NoPrefiller => "no_prefiller",
            Self::TooLargeToSend => "too_large_to_send",
            Self::ShuttingDown => "shutting_down",
            Self::Busy => "busy",
        }
    }
}

/// An event of a request: the prompt's log probabilities, if asked for, and tokens, then exactly one `Finished` or `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum StreamEvent {
    /// The log probabilities of the prompt's tokens except the first, in order. Comes once, before the first token, if the request asks
    /// for them.
    Prompt(Vec<Logprobs>),
    /// One sampled token, which may be an end-of-sequence token.
    Token(Token),
    /// The last event of a request that succeeded.
    Finished {
        /// Why the request ended.
        reason: FinishReason,
        /// How long the parts of the request took. Boxed, so that the many token events stay small.
        timings: Box<Timings>,
    },
    /// The last event of a request that failed.
    Failed(RequestError),
}

/// Why a request finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// An end-of-sequence token was sampled, or the client found a stop string.
    Stop,
    /// `max_tokens` were sampled.
    Length,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The request was refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The deadline passed.
    #[error(
        "request missed its deadline of {deadline_ms} ms; raise request.deadline or ask for fewer tokens"
    )]
    Deadline {
        /// The time that the request was allowed.
        deadline_ms: u64,
    },
    /// The engine failed.
    #[error("engine failed: {0}")]
    Engine(String),
    /// The grammar of the answer failed.
    #[error("{0}")]
    Grammar(String),
    /// The client is gone.
    #[error("request was aborted")]
    Aborted,
    /// The process ended first.
    #[error("server ended before the request did; send the request to another replica")]
    ShuttingDown,
}

impl RequestError {
    /// One word for metrics, logs and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Refused(refused) => refused.kind(),
            Self::Deadline { .. } => "deadline",
            Self::Engine(_) => "engine",
            Self::Grammar(_) => "grammar",
            Self::Aborted => "aborted",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

/// How long the parts of a request took, and what was transferred for it. Durations are in milliseconds.
///
/// Four times follow each other: `routed_ms`, `placed_ms`, `prefilled_ms`, `first_token_ms`. All of them count from [`Generate::sent`]. If a
/// request was placed again, its last placement counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// True if another process prefilled the prompt.
    pub disaggregated: bool,
    /// The id of the process that prefilled.
    pub prefill_pid: u32,
    /// The id of the process that decoded.
    pub decode_pid: u32,
    /// Tokens in the prompt.
    pub prompt_tokens: u32,
    /// Leading tokens of the prompt whose KV was in this process's prefix cache.
    pub resident_tokens: u32,
    /// Leading tokens of the prompt that no process computed for this request, because the process that prefilled it had their KV in
    /// its prefix cache.
    pub cached_tokens: u32,
    /// Tokens sampled.
    pub completion_tokens: u32,
    /// From the first prefill step's start to the first token's sampling, in the prefilling process.
    pub prefill_ms: f64,
    /// KV pages transferred from the sender.
    pub pages: u32,
    /// Bytes of those pages.
    pub bytes: u64,
    /// From the first put posted to the last flush, in the prefilling process.
    pub transfer_ms: f64,
    /// From the first token's arrival to the adoption of the last page: the delay that the hand-over adds. Zero if no page was transferred.
    pub exposed_ms: f64,
    /// To the decoder, which the proxy tells where the prompt is prefilled.
    pub routed_ms: f64,
    /// To the moment when the request had its pages, so that its prefill could begin.
    pub placed_ms: f64,
    /// To the first token, at its arrival from the process that prefilled.
    pub prefilled_ms: f64,
    /// To the delivery of the first token.
    pub first_token_ms: f64,
    /// From the first token to the last.
    pub decode_ms: f64,
}
