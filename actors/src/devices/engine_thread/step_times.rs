//! How long a step of the engine may take, from those that were measured: pure.

use std::time::Duration;

/// No step is called stuck before this, however fast the engine is.
const FLOOR: Duration = Duration::from_secs(60);

/// How many times as long as the longest step another one may take: contexts grow, and other processes take the cores.
const MULTIPLE: f64 = 10.0;

/// Weights that the slowest machine multiplies in a second, while no step has been measured: a tenth of what one slow core does alone. A GPU
/// is at least a thousand times as fast.
const WEIGHTS_A_SECOND: f64 = 1e9;
const GPU_FACTOR: f64 = 1e3;

/// The longest step so far, or what is known of the engine before the first.
#[derive(Clone, Copy, Debug)]
pub struct StepTimes {
    /// Seconds that a token may take while no step has been measured.
    token_seconds: f64,
    /// The longest step: how long it took, and its tokens.
    longest: Option<(Duration, u32)>,
}

impl StepTimes {
    /// Of a model with so many parameters, on the processor or on a GPU.
    pub fn new(parameters: u64, is_on_device: bool) -> Self {
        let speed = WEIGHTS_A_SECOND * if is_on_device { GPU_FACTOR } else { 1.0 };
        Self { token_seconds: parameters as f64 / speed, longest: None }
    }

    /// A step of so many tokens is over.
    pub fn measured(&mut self, tokens: u32, took: Duration) {
        if self.longest.is_none_or(|(longest, _)| took > longest) {
            self.longest = Some((took, tokens.max(1)));
        }
    }

    /// How long a step of so many tokens may take. One that has more tokens than the longest may take longer in proportion.
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

    /// Parameters of the two models below.
    const SMALL: u64 = 135_000_000;
    const LARGE: u64 = 8_000_000_000;

    fn check(parameters: u64, on_device: bool, steps: &[(u32, f64)], tokens: u32, expect: u64) {
        let mut times = StepTimes::new(parameters, on_device);
        steps.iter().for_each(|(tokens, took)| times.measured(*tokens, Duration::from_secs_f64(*took)));
        assert_eq!(times.limit(tokens).as_secs(), expect, "{parameters} {on_device} {steps:?} {tokens}");
    }

    #[test]
    fn the_first_step_may_take_as_long_as_its_model_takes_a_slow_core() {
        check(SMALL, false, &[], 64, 60);
        check(SMALL, false, &[], 1024, 138);
        // A prompt's chunk and 64 decode rows, which take more than a minute on one or two slow cores.
        check(LARGE, false, &[], 128 + 64, 1536);
        check(LARGE, true, &[], 2048 + 64, 60);
        check(u64::MAX, false, &[], u32::MAX, u64::MAX);
    }

    #[test]
    fn later_steps_are_held_against_the_longest() {
        // An engine that is fast: the floor.
        check(SMALL, false, &[(1, 0.02), (64, 0.5)], 576, 60);
        check(LARGE, true, &[(2112, 0.25), (64, 0.01)], 2112, 60);
        // One step of a slow one: ten times as long, and more for more tokens.
        check(LARGE, false, &[(192, 150.0)], 192, 1500);
        check(LARGE, false, &[(192, 150.0)], 1, 1500);
        check(LARGE, false, &[(6, 5.0)], 192, 1600);
        // The longest counts, not the last.
        check(LARGE, false, &[(192, 150.0), (1, 1.6), (64, 60.0)], 192, 1500);
        // Nothing is longer than the largest duration.
        check(LARGE, false, &[(1, 1e18)], u32::MAX, u64::MAX);
    }
}
