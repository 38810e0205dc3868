//! When the parts of a request before its answers took place.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::traces::RequestTrace;

/// The begin of a request's answers.
#[derive(Clone)]
pub(super) struct Begin {
    /// The arrival of the request's head.
    pub(super) arrived: Instant,
    /// The end of reading it: its body, its tokens, its grammar.
    pub(super) read: Instant,
    /// The end of its wait in the queue.
    pub(super) began: Instant,
    /// Its record, if it is recorded.
    pub(super) trace: Option<Arc<RequestTrace>>,
}

impl Begin {
    /// The time from the arrival of the request until its answers began.
    pub(super) fn waited(&self) -> Duration {
        self.began.saturating_duration_since(self.arrived)
    }
}
