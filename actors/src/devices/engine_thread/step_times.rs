//! Computes the time limit of an engine step from measured steps. Pure, without a clock.

use std::time::Duration;

/// Minimum time limit of a step, for any engine.
const FLOOR: Duration = Duration::from_secs(60);

/// The limit is this many times the longest step, because contexts grow and other processes compete for the cores.
const MULTIPLE: f64 = 10.0;

/// Assumed number of multiplications per second before the first step: a tenth of the speed of one slow core. A GPU is at least
/// [`GPU_FACTOR`] times as fast.
const WEIGHTS_PER_SECOND: f64 = 1e9;
const GPU_FACTOR: f64 = 1e3;

/// The longest step so far, and an estimate for the time before the first step.
#[derive(Clone, Copy, Debug)]
pub struct StepTimes {
    /// The limit for one token, in seconds, before the first step.
    token_seconds: f64,
    /// The duration of the longest step, and its number of tokens.
    longest: Option<(Duration, u32)>,
}

impl StepTimes {
    /// The estimate for a model with `parameters` parameters, on the CPU or on a GPU.
    pub fn new(parameters: u64, is_on_device: bool) -> Self {
        let speed = WEIGHTS_PER_SECOND * if is_on_device { GPU_FACTOR } else { 1.0 };
        Self { token_seconds: parameters as f64 / speed, longest: None }
    }

    /// A step of `tokens` tokens has ended after `took`.
    pub fn measured(&mut self, tokens: u32, took: Duration) {
        if self.longest.is_none_or(|(longest, _)| took > longest) {
            self.longest = Some((took, tokens.max(1)));
        }
    }

    /// The time limit of a step with `tokens` tokens. It grows in proportion if the step has more tokens than the longest step.
    pub fn limit(&self, tokens: u32) -> Duration {
        let seconds = match self.longest {
            None => self.token_seconds * f64::from(tokens),
            Some((took, of)) => took.as_secs_f64() * MULTIPLE * (f64::from(tokens) / f64::from(of)).max(1.0),
        };
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).max(FLOOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameters of two models.
    const SMALL: u64 = 135_000_000;
    const LARGE: u64 = 8_000_000_000;

    fn check(parameters: u64, on_device: bool, steps: &[(u32, f64)], tokens: u32, expect: u64) {
        let mut times = StepTimes::new(parameters, on_device);
        steps.iter().for_each(|(tokens, took)| times.measured(*tokens, Duration::from_secs_f64(*took)));
        assert_eq!(times.limit(tokens).as_secs(), expect, "{parameters} {on_device} {steps:?} {tokens}");
    }

    #[test]
    fn the_first_step_may_take_as_long_as_on_a_slow_core() {
        check(SMALL, false, &[], 64, 60);
        check(SMALL, false, &[], 1024, 138);
        // A prefill chunk and 64 decode rows take more than a minute on one or two slow cores.
        check(LARGE, false, &[], 128 + 64, 1536);
        check(LARGE, true, &[], 2048 + 64, 60);
        check(u64::MAX, false, &[], u32::MAX, u64::MAX);
    }

    #[test]
    fn later_limits_follow_from_the_longest_step() {
        // The floor applies to a fast engine.
        check(SMALL, false, &[(1, 0.02), (64, 0.5)], 576, 60);
        check(LARGE, true, &[(2112, 0.25), (64, 0.01)], 2112, 60);
        // Ten times the longest step of a slow engine, and more for more tokens.
        check(LARGE, false, &[(192, 150.0)], 192, 1500);
        check(LARGE, false, &[(192, 150.0)], 1, 1500);
        check(LARGE, false, &[(6, 5.0)], 192, 1600);
        // The longest counts, not the last.
        check(LARGE, false, &[(192, 150.0), (1, 1.6), (64, 60.0)], 192, 1500);
        // The limit saturates at the largest duration.
        check(LARGE, false, &[(1, 1e18)], u32::MAX, u64::MAX);
    }
}
