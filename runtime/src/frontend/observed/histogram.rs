//! A Prometheus histogram that threads update without a lock.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// vLLM's buckets for the time to the first token.
pub(super) const FIRST_TOKEN_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// vLLM's buckets for the time per token.
pub(super) const TOKEN_SECONDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// vLLM's buckets for a whole request.
pub(super) const REQUEST_SECONDS: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];

/// A histogram.
pub(super) struct Histogram {
    bounds: &'static [f64],
    /// One count for each bound, and one for values above all bounds. A count does not include those of lower bounds.
    counts: Vec<AtomicU64>,
    sum_micros: AtomicU64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::default()).collect();
        Self { bounds, counts, sum_micros: AtomicU64::default() }
    }

    /// Adds a value.
    pub(super) fn add(&self, seconds: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_micros.fetch_add((seconds * 1e6).round() as u64, Ordering::Relaxed);
    }

    /// Appends the lines of the histogram to `text`.
    pub(super) fn render(&self, name: &str, help: &str, labels: &str, text: &mut String) {
        let mut total = 0;
        // Writing to a string cannot fail.
        let _ = write!(text, "# HELP vllm:{name} {help}\n# TYPE vllm:{name} histogram\n");
        for (n, count) in self.counts.iter().enumerate() {
            total += count.load(Ordering::Relaxed);
            let bound = self.bounds.get(n).map_or_else(|| "+Inf".to_owned(), f64::to_string);
            let _ = writeln!(text, "vllm:{name}_bucket{{{labels},le=\"{bound}\"}} {total}");
        }
        let sum = self.sum_micros.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = write!(text, "vllm:{name}_sum{{{labels}}} {sum}\nvllm:{name}_count{{{labels}}} {total}\n");
    }
}
