//! What the proxy knows of one place that prefills: what waits there, how fast it has been, and whether its prefills fail.

use std::time::{Duration, Instant};

use crate::messages::{PrefillOutcome, PrefillOver};

/// Prompts shorter than this say more about what a step costs than about how fast it goes.
const MEASURED_TOKENS: u32 = 16;

/// How long a place gets no prompts after a failed prefill, first and longest; doubled by each failure in a row. The first pause is longer than
/// prompts under way take to fail together; at the longest one, a place that never recovers costs one recompute in half a minute.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Failed prefills in a row.
#[derive(Debug)]
struct Failing {
    pause: Duration,
    until: Instant,
}

/// A place that prefills.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// Tokens of the prompts that wait.
    pub(super) waiting: u64,
    /// The newest prompt counts for an eighth; `None` before the first.
    pub(super) micros_a_token: Option<f64>,
    /// Since the last prefill that succeeded.
    failing: Option<Failing>,
}

impl Place {
    /// When a prompt of so many tokens that comes now is done, in microseconds from now.
    pub(super) fn done_in(&self, tokens: u64, micros_a_token: f64) -> f64 {
        (self.waiting + tokens) as f64 * micros_a_token
    }

    /// Whether it gets prompts. After a failure it gets none for a pause, and then one at a time until one succeeds.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.failing.as_ref().is_none_or(|failing| now >= failing.until && self.waiting == 0)
    }

    /// A prompt does not wait any more.
    pub(super) fn over(&mut self, now: Instant, over: &PrefillOver) {
        self.waiting = self.waiting.saturating_sub(u64::from(over.tokens));
        match over.outcome {
            PrefillOutcome::Computed { tokens, micros } => {
                self.failing = None;
                if tokens >= MEASURED_TOKENS {
                    self.measured(micros as f64 / f64::from(tokens));
                }
            }
            PrefillOutcome::Failed => self.failed(now),
            PrefillOutcome::Withdrawn => {}
        }
    }

    fn measured(&mut self, now: f64) {
        // One that was stopped for a while has not become slow.
        let mixed = |known: f64| known + (now.min(2.0 * known) - known) / 8.0;
        self.micros_a_token = Some(self.micros_a_token.map_or(now, mixed));
    }

    fn failed(&mut self, now: Instant) {
        let pause = match &self.failing {
            // It was sent there before the pause began.
            Some(failing) if now < failing.until => return,
            Some(failing) => (2 * failing.pause).min(PAUSE.1),
            None => PAUSE.0,
        };
        self.failing = Some(Failing { pause, until: now + pause });
    }
}
