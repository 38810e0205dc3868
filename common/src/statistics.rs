//! Statistics of measurements.

/// The value below which this share (0 to 1) of `values` lies; 0 without values. Interpolates linearly between two ranks, as numpy
/// does by default.
pub fn quantile(values: impl IntoIterator<Item = f64>, share: f64) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = share.clamp(0.0, 1.0) * sorted.len().saturating_sub(1) as f64;
    let at = |rank: f64| sorted.get(rank as usize).copied().unwrap_or_default();
    let (below, above) = (at(rank.floor()), at(rank.ceil()));
    below + (above - below) * rank.fract()
}

/// The middle value; for an even number of values, the mean of the two middle ones.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

/// The lower quartile, the median and the upper quartile.
pub fn quartiles(values: impl IntoIterator<Item = f64>) -> [f64; 3] {
    let values: Vec<f64> = values.into_iter().collect();
    [0.25, 0.5, 0.75].map(|share| quantile(values.iter().copied(), share))
}

/// The arithmetic mean; 0 without values.
#[must_use]
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// The standard deviation of the values themselves, not of a sample (numpy's default); 0 without values.
#[must_use]
pub fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: Vec<f64> = values.iter().map(|value| (value - mean).powi(2)).collect();
    self::mean(&squares).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_those_of_numpy() {
        for (values, share, expect) in [
            (&[4.0, 1.0, 3.0, 2.0][..], 0.5, 2.5),
            (&[4.0, 1.0, 3.0, 2.0], 0.25, 1.75),
            (&[4.0, 1.0, 3.0, 2.0], 1.0, 4.0),
            (&[7.0], 0.99, 7.0),
            (&[], 0.5, 0.0),
        ] {
            assert_eq!(quantile(values.iter().copied(), share), expect, "{share} of {values:?}");
        }
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(quartiles([4.0, 1.0, 3.0, 2.0]), [1.75, 2.5, 3.25]);
        assert_eq!((mean(&[1.0, 3.0]), deviation(&[1.0, 3.0])), (2.0, 1.0));
        assert_eq!((mean(&[]), deviation(&[])), (0.0, 0.0));
    }
}
