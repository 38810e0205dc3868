//! Quantiles of measurements.

/// The value below which this share (0 to 1) of `values` lies. Interpolates between neighbours as numpy does. Returns 0 without values.
pub fn quantile(values: impl IntoIterator<Item = f64>, share: f64) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let place = share.clamp(0.0, 1.0) * sorted.len().saturating_sub(1) as f64;
    let at = |place: f64| sorted.get(place as usize).copied().unwrap_or_default();
    let (below, above) = (at(place.floor()), at(place.ceil()));
    below + (above - below) * place.fract()
}

/// The median. Of an even number of values, the mean of the two in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_equal_those_of_numpy() {
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
    }
}
