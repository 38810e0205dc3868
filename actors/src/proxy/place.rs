//! The proxy's record of one place that prefills (this node or a sender): its waiting prompts, its speed and its failures.

use std::time::{Duration, Instant};

use crate::messages::{PrefillOutcome, PrefillOver};

/// Minimum length of a prompt whose prefill speed is measured. For shorter prompts the fixed cost of a step dominates.
const MEASURED_TOKENS: u32 = 16;

/// First and maximum length of the pause in which a place gets no prompts after a failed prefill. Each further failure in a row doubles the
/// pause. The first pause is long enough for all prompts in progress to fail together. At the longest pause, a place that never
/// recovers costs one recompute per 30 s.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// The pause after one or more failed prefills in a row.
#[derive(Debug)]
struct Failing {
    /// Length of the pause.
    pause: Duration,
    /// End of the pause.
    until: Instant,
}

/// A place that prefills: this node or a sender.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// Tokens of the prompts that were sent here and are not computed yet.
    pub(super) waiting: u64,
    /// Moving average of the prefill time per token, in which the newest prompt has the weight 1/8; `None` before the first
    /// prompt.
    pub(super) micros_per_token: Option<f64>,
    /// Set if prefills have failed since the last one that succeeded.
    failing: Option<Failing>,
}

impl Place {
    /// Time until a prompt of `tokens` tokens that is sent here now would be computed, in microseconds.
    pub(super) fn done_in(&self, tokens: u64, micros_per_token: f64) -> f64 {
        (self.waiting + tokens) as f64 * micros_per_token
    }

    /// True if this place may get prompts now. After a failure it gets none during a pause, and then one at a time until one
    /// succeeds.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.failing.as_ref().is_none_or(|failing| now >= failing.until && self.waiting == 0)
    }

    /// A prefill that was sent here has ended.
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
        // A sample counts as at most twice the average, so that a process that was stopped for a while does not look slow.
        let mixed = |known: f64| known + (now.min(2.0 * known) - known) / 8.0;
        self.micros_per_token = Some(self.micros_per_token.map_or(now, mixed));
    }

    fn failed(&mut self, now: Instant) {
        let pause = match &self.failing {
            // The prompt was sent before the pause began.
            Some(failing) if now < failing.until => return,
            Some(failing) => (2 * failing.pause).min(PAUSE.1),
            None => PAUSE.0,
        };
        self.failing = Some(Failing { pause, until: now + pause });
    }
}
