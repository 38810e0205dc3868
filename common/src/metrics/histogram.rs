//! A histogram that threads update without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// Largest addition to a sum: 1e6 seconds. The sum wraps after 18 million such values.
const UNITS_MAX: u64 = 1_000_000_000_000;

/// Counts of values by their sizes, and the sum of the values. Values are at least 0.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One count for each bound, and one for values above all bounds. A count does not include those of lower bounds.
    counts: Vec<AtomicU64>,
    /// The sum, in units of `1 / per_unit`.
    sum: AtomicU64,
    per_unit: f64,
}

impl Histogram {
    /// A histogram of durations in seconds. The sum is exact to a microsecond per value.
    pub fn seconds(bounds: &'static [f64]) -> Self {
        Self::new(bounds, 1e6)
    }

    /// A histogram of whole numbers.
    pub fn whole(bounds: &'static [f64]) -> Self {
        Self::new(bounds, 1.0)
    }

    /// `bounds` are the upper bounds of the buckets, in ascending order.
    fn new(bounds: &'static [f64], per_unit: f64) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::default()).collect();
        Self { bounds, counts, sum: AtomicU64::default(), per_unit }
    }

    /// Adds a value: a binary search and two atomic additions. Values may come from peers, so the sum takes at most `UNITS_MAX` of each.
    pub fn add(&self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        // The conversion of a negative value is 0.
        let units = (value * self.per_unit).round() as u64;
        self.sum.fetch_add(units.min(UNITS_MAX), Ordering::Relaxed);
    }

    /// The upper bound of each bucket (`None`: no bound) and the number of values in it.
    pub(super) fn buckets(&self) -> impl Iterator<Item = (Option<f64>, u64)> {
        let bounds = self.bounds.iter().copied().map(Some).chain([None]);
        bounds.zip(self.counts.iter().map(|count| count.load(Ordering::Relaxed)))
    }

    /// The sum of all values.
    pub(super) fn sum(&self) -> f64 {
        self.sum.load(Ordering::Relaxed) as f64 / self.per_unit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_cannot_be_right_does_not_spoil_the_sum() {
        let histogram = Histogram::seconds(&[1.0]);
        [f64::INFINITY, 1e300, f64::NAN, -1.0, 0.5].into_iter().for_each(|value| histogram.add(value));
        assert_eq!(histogram.sum(), 2e6 + 0.5);
        assert_eq!(histogram.buckets().map(|(_, count)| count).sum::<u64>(), 5);
    }
}
