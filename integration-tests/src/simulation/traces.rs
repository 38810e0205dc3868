//! The traces of requests, and the checks of what senders record for them.

use actors::messages::{PrefillTraced, TRACED_MAX};
use actors::request::{RequestId, Timings};
use connector::frame::TraceContext;

use super::plan::PAGE_TOKENS;
use super::world::World;

/// The trace of a request. Every third request has one.
pub(super) fn trace_of(request: RequestId) -> Option<TraceContext> {
    let id = request.0.to_le_bytes();
    let mut trace = [1; 16];
    trace[..id.len()].copy_from_slice(&id);
    request.0.is_multiple_of(3).then_some(TraceContext { trace, span: id, flags: TraceContext::RECORDED })
}

/// The times of an answer follow each other.
pub(super) fn are_in_order(timings: &Timings) -> bool {
    let Timings { routed_ms, placed_ms, prefilled_ms, first_token_ms, .. } = *timings;
    0.0 <= routed_ms && routed_ms <= placed_ms && placed_ms <= prefilled_ms && prefilled_ms <= first_token_ms
}

impl World {
    /// A process has recorded a prefill.
    pub(super) fn prefill_traced(&mut self, node: usize, traced: &PrefillTraced) {
        let PrefillTraced { request, context, prompt_tokens, came, begun, chunks, .. } = traced;
        let PrefillTraced { sampled, flushed, ended, failure, .. } = traced;
        let listed = |list: &[_]| list.iter().map(|(at, _): &(_, u32)| *at).collect::<Vec<_>>();
        let computed: Vec<_> = [vec![*came], begun.iter().copied().collect(), listed(chunks)].concat();
        let sent: Vec<_> = [vec![*came], begun.iter().copied().collect(), listed(flushed)].concat();
        let follows = |times: &[_]| times.is_sorted() && times.last() <= Some(ended);
        let visible = flushed.last().map_or(0, |(_, pages)| *pages);
        let computed_all =
            sampled.is_some() && chunks.last().is_some_and(|(_, tokens)| tokens == prompt_tokens);
        let is_full = chunks.len().max(flushed.len()) == TRACED_MAX;
        let is_right = trace_of(*request) == Some(*context)
            && follows(&computed)
            && follows(&sent)
            && chunks.is_sorted_by_key(|(_, tokens)| *tokens)
            && (failure.is_some() || computed_all || is_full)
            && visible <= prompt_tokens.div_ceil(PAGE_TOKENS);
        if !is_right {
            self.fail(format!("process {node} records {traced:?}"));
        }
    }
}
