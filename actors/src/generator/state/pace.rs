//! How many prompt tokens a step may have while other sequences decode.
//!
//! A step that mixes prompts with decode rows delays the next token of every row. The pace limits the prompt tokens of such a step so that it
//! takes about as long as the bound. It predicts the time of a step as `rows + tokens × per_token`: `rows` is the average time of steps without
//! prompts, and `per_token` is the average of what is left, divided by the prompt tokens. Both follow the measured steps, so they follow
//! longer contexts, more rows and slower clocks too.

use std::time::Duration;

use crate::messages::DecodeSteps;

/// Minimum number of prompt tokens in a step. Prompts make progress even if no step keeps the bound. A step of 64 tokens reads the weights once,
/// like a step of one token.
const TOKENS_MIN: u32 = 64;

/// A step is planned to take this share of the bound. The rest is for steps that take longer than predicted, up to a tenth on a GPU, and for the
/// time between steps.
const PLANNED_SHARE: f64 = 0.9;

/// Weight of a new measurement that is longer than the average, and of one that is shorter. A step that takes longer than the bound is worse
/// than one that has too few tokens.
const WEIGHTS: (f64, f64) = (0.5, 0.25);

/// Number of steps without prompts whose average duration is compared with [`DecodeSteps::least_micros`].
const WINDOW: u32 = 16;

/// The part of the difference by which the lowest average rises to that of a window with few rows.
const LEAST_RISES: f64 = 1.0 / 16.0;

/// A moving average of durations in microseconds, or of other quantities.
#[derive(Clone, Copy, Debug, Default)]
struct Average(Option<f64>);

impl Average {
    /// Adds a sample. A sample counts as at most twice the average, so that one pause of the process does not look like a slow engine.
    fn add(&mut self, sample: f64) {
        let mixed = |known: f64| {
            let sample = sample.min((2.0 * known).max(1e-3));
            known + (sample - known) * if sample > known { WEIGHTS.0 } else { WEIGHTS.1 }
        };
        self.0 = Some(self.0.map_or(sample, mixed));
    }
}

/// The measured times of steps, and the bound.
#[derive(Debug)]
pub(super) struct Pace {
    /// The time that a step is planned for, in microseconds.
    bound: Option<f64>,
    /// Maximum number of prompt tokens in a step.
    chunk_tokens: u32,
    /// Time of a step without prompts.
    rows: Average,
    /// Number of rows of a step without prompts.
    row_count: Average,
    /// The number of steps in the window so far, their rows, and their time.
    window: (u32, u32, f64),
    /// The lowest average of a window. It rises slowly while one or two rows take longer, because their contexts are longer.
    least: Option<f64>,
    /// Time that a prompt token adds to a step.
    per_token: Average,
    /// No step with enough prompt tokens is measured yet, so `per_token` is too high.
    is_rough: bool,
    /// Time of a step without decode rows, for each of its prompt tokens. Such steps have more tokens, so each token takes less time.
    per_token_alone: Average,
}

impl Pace {
    /// A pace that keeps `bound`, for steps with at most `chunk_tokens` prompt tokens; `None`: only `chunk_tokens` limits them.
    pub(super) fn new(bound: Option<Duration>, chunk_tokens: u32) -> Self {
        let bound = bound.map(|bound| bound.as_secs_f64() * 1e6 * PLANNED_SHARE);
        Self {
            bound,
            chunk_tokens,
            rows: Average::default(),
            row_count: Average::default(),
            window: (0, 0, 0.0),
            least: None,
            per_token: Average::default(),
            is_rough: true,
            per_token_alone: Average::default(),
        }
    }

    /// A step with this many prompt tokens and this many rows of sequences that decode took `micros`.
    pub(super) fn measured(&mut self, prompt_tokens: u32, rows: u32, micros: u64) {
        let micros = micros as f64;
        if prompt_tokens == 0 {
            return self.decoded(rows, micros);
        }
        // A step with few prompt tokens takes nearly as long as one with none, so it does not show what a token costs.
        let is_short = prompt_tokens < TOKENS_MIN.min(self.chunk_tokens);
        if is_short && self.per_token.0.is_some() {
            return;
        }
        if self.is_rough && !is_short {
            (self.per_token, self.is_rough) = (Average::default(), false);
        }
        if rows == 0 && !is_short {
            self.per_token_alone.add(micros / f64::from(prompt_tokens));
        }
        let rows = if rows > 0 { self.rows.0.unwrap_or(0.0) } else { 0.0 };
        // The average of the rows may be too high for this step. At least half of the step's time counts for its prompts.
        self.per_token.add((micros - rows).max(micros / 2.0) / f64::from(prompt_tokens));
    }

    /// A step without prompts has computed this many rows.
    fn decoded(&mut self, rows: u32, micros: f64) {
        self.rows.add(micros);
        self.row_count.add(f64::from(rows));
        self.window = (self.window.0 + 1, self.window.1.saturating_add(rows), self.window.2 + micros);
        let (WINDOW, all_rows, all_micros) = self.window else { return };
        let average = all_micros / f64::from(WINDOW);
        let rise = if all_rows <= 2 * WINDOW { LEAST_RISES } else { 0.0 };
        self.least =
            Some(self.least.map_or(average, |least| average.min(least + (average - least).max(0.0) * rise)));
        self.window = (0, 0, 0.0);
    }

    /// The steps without prompts, if enough were measured.
    pub(super) fn decode_steps(&self) -> Option<DecodeSteps> {
        // The conversions saturate.
        Some(DecodeSteps {
            rows: self.row_count.0?.ceil() as u32,
            micros: self.rows.0? as u32,
            least_micros: self.least? as u32,
        })
    }

    /// Nanoseconds per prompt token of long prompts, if a step with enough prompt tokens was measured. `has_rows`: other sequences decode in the same steps.
    pub(super) fn nanos_per_token(&self, has_rows: bool) -> Option<u32> {
        if self.is_rough {
            return None;
        }
        let beside_rows =
            |per_token: f64| per_token + self.rows.0.unwrap_or(0.0) / f64::from(self.prompt_tokens().max(1));
        let micros = match (has_rows, self.per_token_alone.0) {
            (false, Some(alone)) => alone,
            (false, None) => self.per_token.0?,
            (true, _) => beside_rows(self.per_token.0?),
        };
        // The conversion saturates.
        Some(((micros * 1e3) as u32).max(1))
    }

    /// Maximum number of prompt tokens in a step that has decode rows.
    pub(super) fn prompt_tokens(&self) -> u32 {
        let Some(bound) = self.bound else { return self.chunk_tokens };
        let room = (bound - self.rows.0.unwrap_or(0.0)).max(0.0);
        let tokens = self.per_token.0.map_or(0.0, |per_token| room / per_token.max(1e-3));
        // The conversion saturates.
        (tokens as u32).max(TOKENS_MIN).min(self.chunk_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_millis(25);

    /// Runs steps on an engine whose steps take `5 ms + fixed + per_token × tokens`, and returns the prompt tokens and times of the steps.
    fn steps(pace: &mut Pace, fixed: f64, per_token: f64, count: usize) -> Vec<(u32, f64)> {
        let run = |_| {
            let tokens = pace.prompt_tokens().min(2048);
            let micros = 5_000.0 + fixed + per_token * f64::from(tokens);
            pace.measured(tokens, 1, micros as u64);
            (tokens, micros)
        };
        (0..count).map(run).collect()
    }

    #[test]
    fn steps_settle_at_the_bound_and_follow_a_slower_engine() {
        let mut pace = Pace::new(Some(BOUND), 2048);
        assert_eq!(pace.prompt_tokens(), TOKENS_MIN, "nothing is measured yet");
        pace.measured(2048, 0, 43_000);
        pace.measured(0, 1, 5_000);
        assert!((780..900).contains(&pace.prompt_tokens()), "{}", pace.prompt_tokens());
        for (fixed, per_token) in [(0.0, 21.0), (3_000.0, 21.0), (0.0, 40.0), (0.0, 10.0)] {
            let times = steps(&mut pace, fixed, per_token, 100);
            let (tokens, last) = times[99];
            assert!((21_600.0..=23_000.0).contains(&last), "{fixed} {per_token}: {tokens} tokens, {last} us");
            let late = times[5..].iter().filter(|(_, micros)| *micros > 27_000.0).count();
            assert_eq!(late, 0, "{fixed} {per_token}: {times:?}");
        }
    }

    #[test]
    fn prompts_make_progress_under_a_bound_that_no_step_keeps() {
        let mut pace = Pace::new(Some(Duration::from_millis(1)), 2048);
        pace.measured(0, 1, 5_000);
        assert!(steps(&mut pace, 0.0, 20.0, 50).iter().all(|(tokens, _)| *tokens == TOKENS_MIN));
    }

    #[test]
    fn one_slow_step_does_not_stop_prompts() {
        let mut pace = Pace::new(Some(BOUND), 2048);
        pace.measured(0, 1, 5_000);
        steps(&mut pace, 0.0, 20.0, 20);
        let before = pace.prompt_tokens();
        pace.measured(before, 1, 3_000_000);
        assert!(pace.prompt_tokens() > before / 2, "{} of {before}", pace.prompt_tokens());
        steps(&mut pace, 0.0, 20.0, 40);
        assert!(pace.prompt_tokens() > before * 9 / 10);
    }

    #[test]
    fn steps_with_few_prompt_tokens_do_not_slow_long_prompts() {
        let mut pace = Pace::new(Some(BOUND), 2048);
        pace.measured(0, 1, 5_000);
        steps(&mut pace, 0.0, 20.0, 20);
        let before = pace.prompt_tokens();
        for _ in 0..100 {
            pace.measured(20, 1, 5_400);
        }
        assert_eq!(pace.prompt_tokens(), before);
        let mut small = Pace::new(Some(BOUND), 32);
        (0..50).for_each(|step| small.measured(32, 0, if step == 0 { 64_000 } else { 3_200 }));
        assert!(
            small.nanos_per_token(false).is_some_and(|nanos| nanos < 101_000),
            "chunks of 32 tokens are measured"
        );
    }

    #[test]
    fn prompts_are_slower_beside_rows() {
        let mut pace = Pace::new(Some(BOUND), 2048);
        assert_eq!(pace.nanos_per_token(false), None);
        pace.measured(0, 1, 5_000);
        steps(&mut pace, 0.0, 20.0, 50);
        assert!(pace.nanos_per_token(false).is_some_and(|nanos| nanos.abs_diff(20_000) < 100));
        // A step of 22.5 ms has 875 prompt tokens.
        assert!(pace.nanos_per_token(true).is_some_and(|nanos| nanos.abs_diff(25_714) < 200));
    }

    #[test]
    fn steps_beside_rows_do_not_change_the_speed_of_prompts_alone() {
        let mut pace = Pace::new(Some(BOUND), 2048);
        (0..20).for_each(|_| pace.measured(2048, 0, 43_000));
        let alone = pace.nanos_per_token(false);
        pace.measured(0, 100, 15_000);
        (0..50).for_each(|_| pace.measured(200, 100, 25_000));
        assert_eq!(pace.nanos_per_token(false), alone);
        assert!(pace.nanos_per_token(true) > alone);
    }

    #[test]
    fn the_shortest_steps_are_found_over_windows() {
        let mut pace = Pace::new(Some(BOUND), 2048);
        // One step returned late, so that the next one seems short.
        (0..8).for_each(|_| [8_000, 1_000].into_iter().for_each(|micros| pace.measured(0, 1, micros)));
        let steps = pace.decode_steps().expect("16 steps are measured");
        assert_eq!((steps.rows, steps.least_micros), (1, 4_500));
        (0..40).for_each(|_| pace.measured(0, 30, 7_000));
        let steps = pace.decode_steps().expect("16 steps are measured");
        assert!(steps.rows >= 29 && steps.micros.abs_diff(7_000) < 100, "{steps:?}");
        assert_eq!(steps.least_micros, 4_500);
        // Single rows with long contexts take longer.
        (0..2000).for_each(|_| pace.measured(0, 1, 8_000));
        assert!(pace.decode_steps().is_some_and(|steps| steps.least_micros > 7_500));
        pace.measured(0, 1, 4_000);
    }

    #[test]
    fn a_short_prompt_does_not_show_the_speed() {
        let mut pace = Pace::new(Some(BOUND), 2048);
        pace.measured(10, 0, 5_000);
        assert_eq!(pace.nanos_per_token(false), None);
        pace.measured(2048, 0, 43_000);
        assert!(pace.nanos_per_token(false).is_some_and(|nanos| nanos < 22_000));
        assert!(
            pace.nanos_per_token(true).is_some_and(|nanos| nanos < 40_000),
            "the first measurement is forgotten"
        );
    }

    #[test]
    fn without_a_bound_steps_are_not_limited() {
        let mut pace = Pace::new(None, 512);
        pace.measured(64, 1, u64::MAX);
        assert_eq!(pace.prompt_tokens(), 512);
    }
}
