//! What the engine's thread tells the watchdog: the step that runs, and an error after which the engine computes nothing.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use engine::EngineError;

use super::step_times::StepTimes;

/// Whether the engine is in a step, since when, for how long it may be, and whether it is lost: for the watchdog. Clones share it.
#[derive(Clone, Debug)]
pub struct EnginePulse {
    steps: Arc<Mutex<Steps>>,
    lost: Arc<OnceLock<String>>,
}

#[derive(Debug)]
struct Steps {
    /// When the step that runs began, and its tokens.
    running: Option<(Instant, u32)>,
    times: StepTimes,
}

impl EnginePulse {
    /// The pulse of an idle engine of which `times` are known.
    pub fn new(times: StepTimes) -> Self {
        Self { steps: Arc::new(Mutex::new(Steps { running: None, times })), lost: Arc::default() }
    }

    fn steps(&self) -> MutexGuard<'_, Steps> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the step that runs has taken, and how long it may take.
    pub fn step(&self, now: Instant) -> Option<(Duration, Duration)> {
        let steps = self.steps();
        let (began, tokens) = steps.running?;
        Some((now.saturating_duration_since(began), steps.times.limit(tokens)))
    }

    /// Why the engine can compute nothing any more, and what to do; `None` while it can.
    pub fn lost(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }

    /// The engine can compute nothing any more.
    pub(crate) fn lose(&self, error: &EngineError) {
        let remedy = "this process cannot use the GPU any more: restart it; if this happens again, check the GPU with nvidia-smi and look for Xid errors in the kernel log";
        // The first error counts.
        let _ = self.lost.set(format!("{error}; {remedy}"));
    }

    /// A step of so many tokens begins.
    pub(crate) fn begin(&self, now: Instant, tokens: u32) {
        self.steps().running = Some((now, tokens));
    }

    /// The step that runs is over.
    pub(crate) fn end(&self, now: Instant) {
        let mut steps = self.steps();
        if let Some((began, tokens)) = steps.running.take() {
            steps.times.measured(tokens, now.saturating_duration_since(began));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_held_against_those_before_it() {
        let (pulse, start) = (EnginePulse::new(StepTimes::new(0, false)), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(pulse.step(at(1000)), None, "an idle engine owes nothing");
        pulse.begin(at(0), 192);
        let step = |age, limit| Some((Duration::from_secs(age), Duration::from_secs(limit)));
        assert_eq!(
            pulse.clone().step(at(150)),
            step(150, 60),
            "nothing is known of a model without parameters"
        );
        pulse.end(at(150));
        assert_eq!(pulse.step(at(151)), None);
        pulse.begin(at(200), 192);
        assert_eq!(pulse.step(at(350)), step(150, 1500));
    }
}
