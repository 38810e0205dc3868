//! What happened to a prompt of a peer, and when, for traces.

use std::time::Instant;

use connector::frame::TraceContext;

use super::SessionId;
use crate::request::RequestId;

/// Maximum number of entries in each list of a [`PrefillTraced`]. Later chunks and flushes are not listed.
pub const TRACED_MAX: usize = 128;

/// Prefiller → exporter of traces: a prefill of a trace has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct PrefillTraced {
    /// The trace, and the span that the prefill belongs to.
    pub context: TraceContext,
    /// The receiver's session.
    pub session: SessionId,
    /// The receiver's number for the request.
    pub request: RequestId,
    /// Tokens in the prompt.
    pub prompt_tokens: u32,
    /// Leading tokens whose KV the receiver had.
    pub resident_tokens: u32,
    /// Leading tokens whose KV this process had in its prefix cache; 0 before it got pages.
    pub cached_tokens: u32,
    /// When the prompt came.
    pub came: Instant,
    /// When it got pages and was given to the engine.
    pub begun: Option<Instant>,
    /// After each step with a part of the prompt: the time, and the leading tokens whose KV was computed by then. At most [`TRACED_MAX`].
    pub chunks: Vec<(Instant, u32)>,
    /// When the first token was sampled.
    pub sampled: Option<Instant>,
    /// Microseconds from the start of the first step with a part of the prompt to the first token; 0 before that.
    pub running_micros: u64,
    /// After each flush: the time, and the pages of the prompt that were visible at the receiver by then. At most [`TRACED_MAX`].
    pub flushed: Vec<(Instant, u32)>,
    /// The last flush, also if it is not listed.
    pub last_flush: Option<Instant>,
    /// When no put used the prompt's pages any more.
    pub ended: Instant,
    /// Why the prefill did not succeed, in one word. `None` if all pages are visible at the receiver, or if the receiver needed only the
    /// first token.
    pub failure: Option<&'static str>,
}

impl PrefillTraced {
    /// The record of a prefill that has just come.
    pub(crate) fn new(
        came: Instant,
        context: TraceContext,
        (session, request): (SessionId, RequestId),
        prompt_tokens: u32,
        resident_tokens: u32,
    ) -> Self {
        Self {
            context,
            session,
            request,
            prompt_tokens,
            resident_tokens,
            cached_tokens: 0,
            came,
            begun: None,
            chunks: Vec::new(),
            sampled: None,
            running_micros: 0,
            flushed: Vec::new(),
            last_flush: None,
            ended: came,
            failure: None,
        }
    }
}
