//! The counters of the decoder.

use crate::request::{Refused, RequestError, StreamEvent};

/// The decoder's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecoderCounts {
    /// Requests that arrived.
    pub taken: u64,
    /// Prompts recomputed here because their sender was lost, failed or sent something wrong.
    pub recomputes: u64,
    /// Requests that were preempted.
    pub preemptions: u64,
    /// Requests that finished.
    pub finished: u64,
    /// Requests that their client aborted, or that were refused.
    pub aborted: u64,
    /// Requests that missed their deadline.
    pub deadlines_missed: u64,
    /// Requests that could not get their pages because of lost sessions.
    pub denied: u64,
    /// Requests that an engine error ended.
    pub engine_failures: u64,
    /// Requests that a failure of their grammar ended.
    pub grammar_failures: u64,
    /// Requests that were cut because the process ended.
    pub cut_at_the_end: u64,
}

impl DecoderCounts {
    /// Counts the end of a request.
    pub(super) fn end(&mut self, event: &StreamEvent) {
        let count = match event {
            StreamEvent::Finished { .. } | StreamEvent::Token(_) | StreamEvent::Prompt(_) => {
                &mut self.finished
            }
            StreamEvent::Failed(RequestError::Deadline { .. }) => &mut self.deadlines_missed,
            StreamEvent::Failed(RequestError::Engine(_)) => &mut self.engine_failures,
            StreamEvent::Failed(RequestError::Grammar(_)) => &mut self.grammar_failures,
            StreamEvent::Failed(RequestError::ShuttingDown) => &mut self.cut_at_the_end,
            StreamEvent::Failed(RequestError::Refused(Refused::NoRoom { .. })) => &mut self.denied,
            StreamEvent::Failed(RequestError::Aborted | RequestError::Refused(_)) => &mut self.aborted,
        };
        *count += 1;
    }
}
