//! One line in the log for each request that was taken.

use actors::request::{FinishReason, RequestError, RequestId, Timings};
use tracing::{info, warn};

use super::response::Head;

/// Says how a request ended.
pub(super) fn log_end(head: &Head, request: RequestId, end: &Result<(FinishReason, &Timings), RequestError>) {
    let id = &*head.id;
    match end {
        Ok((reason, timings)) => info!(
            %request,
            id,
            prompt_tokens = timings.prompt_tokens,
            completion_tokens = timings.completion_tokens,
            finish = if *reason == FinishReason::Stop { "stop" } else { "length" },
            disaggregated = timings.disaggregated,
            first_token_ms = timings.first_token_ms.round(),
            decode_ms = timings.decode_ms.round(),
            "request finished"
        ),
        Err(error) => warn!(%request, id, kind = error.kind(), %error, "request failed"),
    }
}
