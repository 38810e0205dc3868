//! Chooses the rates of a sweep.

use std::collections::VecDeque;

/// Two rates nearer than this factor are not bisected: the number of requests does not tell them apart.
const NEAR: f64 = 1.02;

/// The rates until one misses the target, in rising order.
#[derive(Debug)]
pub(super) struct Rising(VecDeque<f64>);

impl Rising {
    pub(super) fn list(rates: &[f64]) -> Self {
        Self(rates.iter().copied().collect())
    }

    /// `from`, and each rate times `factor`, up to `highest`.
    pub(super) fn by_factor(from: f64, factor: f64, highest: f64) -> Self {
        let rates = std::iter::successors(Some(from), |rate| Some(rate * factor));
        // Products of factors round.
        Self(rates.take_while(|rate| *rate <= highest * (1.0 + 1e-9)).collect())
    }
}

/// A sweep: rates rise until one misses the target twice; then the plan halves the distance between the rates around the knee.
#[derive(Debug)]
pub(super) struct SweepPlan {
    rising: Rising,
    /// Percentage of requests that must be good.
    wanted: f64,
    bisections: u32,
    /// The highest rate that met the target, below the lowest that missed it.
    met: Option<f64>,
    missed: Option<f64>,
    /// A rate that missed the target once while rates rose.
    doubtful: Option<f64>,
}

impl SweepPlan {
    pub(super) fn new(rising: Rising, wanted: f64, bisections: u32) -> Self {
        Self { rising, wanted, bisections, met: None, missed: None, doubtful: None }
    }

    /// The next rate to measure; `None` at the end. The same rate as before is measured once more.
    pub(super) fn next(&mut self) -> Option<f64> {
        if self.missed.is_none() && self.doubtful.is_some() {
            return self.doubtful;
        }
        match (self.met, self.missed) {
            (_, None) => self.rising.0.pop_front(),
            (Some(met), Some(missed)) if self.bisections > 0 && missed / met >= NEAR => {
                self.bisections -= 1;
                Some(0.5 * (met + missed))
            }
            _ => None,
        }
    }

    /// True if `rate` missed the target once and is measured again.
    pub(super) fn repeats(&self, rate: f64) -> bool {
        self.doubtful == Some(rate)
    }

    /// Notes the percentage of good requests in all measurements at a rate.
    pub(super) fn measured(&mut self, rate: f64, good_percent: f64) {
        let is_first = self.doubtful.take().is_none();
        if good_percent >= self.wanted {
            self.met = Some(rate);
        } else if self.missed.is_none() && is_first {
            self.doubtful = Some(rate);
        } else {
            self.missed = Some(rate);
        }
    }
}

/// The rate at which `wanted` percent of the requests are good. `points` are rates and percentages. Interpolates linearly between the lowest
/// rate that missed the target and the highest one below it that met the target; `None` if there is no such pair.
pub(super) fn goodput(points: &[(f64, f64)], wanted: f64) -> Option<f64> {
    let by_rate = |a: &&(f64, f64), b: &&(f64, f64)| a.0.total_cmp(&b.0);
    let missed = points.iter().filter(|point| point.1 < wanted).min_by(by_rate)?;
    let met = points.iter().filter(|point| point.1 >= wanted && point.0 < missed.0).max_by(by_rate)?;
    Some(met.0 + (missed.0 - met.0) * (met.1 - wanted) / (met.1 - missed.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a sweep of a server that meets the target up to a knee. Returns the measured rates.
    fn sweep(rising: Rising, bisections: u32, knee: f64) -> Vec<f64> {
        let mut plan = SweepPlan::new(rising, 90.0, bisections);
        let mut rates = Vec::new();
        while let Some(rate) = plan.next() {
            plan.measured(rate, if rate <= knee { 95.0 } else { 50.0 });
            rates.push(rate);
            assert!(rates.len() < 100, "the sweep does not end");
        }
        rates
    }

    #[test]
    fn rates_rise_and_then_close_in_on_the_knee() {
        let doubled = || Rising::by_factor(1.0, 2.0, 64.0);
        assert_eq!(sweep(doubled(), 3, 5.2), [1.0, 2.0, 4.0, 8.0, 8.0, 6.0, 5.0, 5.5]);
        assert_eq!(sweep(doubled(), 0, 5.2), [1.0, 2.0, 4.0, 8.0, 8.0]);
        assert_eq!(sweep(doubled(), 3, 1e9), [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]);
        assert_eq!(sweep(doubled(), 3, 0.5), [1.0, 1.0], "no lower rate met the target");
        assert_eq!(sweep(Rising::list(&[1.0, 3.0, 9.0]), 1, 2.0), [1.0, 3.0, 3.0, 2.0]);
        assert_eq!(
            sweep(Rising::list(&[1.0, 1.03125]), 9, 1.0),
            [1.0, 1.03125, 1.03125, 1.015_625],
            "near enough"
        );
        assert!(sweep(Rising::list(&[]), 3, 1.0).is_empty());
        assert_eq!(Rising::by_factor(0.1, 1.1, 0.1 * 1.1f64.powi(20)).0.len(), 21);
    }

    #[test]
    fn rates_rise_further_if_the_second_measurement_is_good() {
        let mut plan = SweepPlan::new(Rising::list(&[1.0, 2.0]), 90.0, 3);
        for (rate, good) in [(1.0, 80.0), (1.0, 90.0), (2.0, 95.0)] {
            assert_eq!(plan.next(), Some(rate));
            plan.measured(rate, good);
        }
        assert_eq!(plan.next(), None);
    }

    #[test]
    fn goodput_is_interpolated_around_the_knee() {
        for (points, expect) in [
            (&[(1.0, 100.0), (2.0, 95.0), (4.0, 85.0), (8.0, 0.0)][..], Some(3.0)),
            (&[(4.0, 80.0), (1.0, 90.0)], Some(1.0)),
            // A rate above one that missed the target does not count.
            (&[(1.0, 100.0), (2.0, 80.0), (3.0, 95.0)], Some(1.5)),
            (&[(1.0, 100.0), (2.0, 99.0)], None),
            (&[(1.0, 10.0)], None),
            (&[], None),
        ] {
            assert_eq!(goodput(points, 90.0), expect, "{points:?}");
        }
    }
}
