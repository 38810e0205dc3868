//! The figures of one rate.

use common::statistics::quantile;
use serde_json::{Value, json};

use super::super::client::RequestOutcome;
use super::super::results::tpot;

/// The figures of one rate.
pub(super) struct RateFigures {
    /// Requests per second as planned.
    rate: f64,
    /// Requests per second as sent.
    pub(super) arrived: f64,
    requests: usize,
    failed: usize,
    good: usize,
    /// Of all requests that succeeded, in milliseconds.
    ttft_ms: Vec<f64>,
    itl_ms: Vec<f64>,
    tpot_ms: Vec<f64>,
    tokens_per_second: f64,
}

impl RateFigures {
    /// The head of the table. Latencies are in milliseconds.
    pub(super) const HEAD: &str = "  rate  arrived  requests  failed   good   TTFT p50     p90     p99   TPOT p50   gap p50     p99  tokens/s";

    /// The figures of requests that took `duration` seconds. The limits are those of a good request, in milliseconds.
    pub(super) fn new(rate: f64, outputs: &[RequestOutcome], duration: f64, (ttft, gap): (f64, f64)) -> Self {
        let succeeded = || outputs.iter().filter(|output| output.is_good());
        let is_good = |output: &&RequestOutcome| output.ttft * 1e3 <= ttft && own_gap_ms(output) <= gap;
        let last = outputs.iter().map(|output| output.start).fold(0.0, f64::max);
        let tokens: u64 = succeeded().map(|output| u64::from(output.output_tokens)).sum();
        Self {
            rate,
            arrived: if last > 0.0 { outputs.len() as f64 / last } else { rate },
            requests: outputs.len(),
            failed: outputs.len() - succeeded().count(),
            good: succeeded().filter(is_good).count(),
            ttft_ms: succeeded().map(|output| output.ttft * 1e3).collect(),
            itl_ms: succeeded().flat_map(|output| &output.itls).map(|gap| gap * 1e3).collect(),
            tpot_ms: succeeded().filter_map(tpot).map(|seconds| seconds * 1e3).collect(),
            tokens_per_second: tokens as f64 / duration,
        }
    }

    /// Of all requests, also of those that failed.
    pub(super) fn good_percent(&self) -> f64 {
        100.0 * self.good as f64 / self.requests.max(1) as f64
    }

    /// The row of the table.
    pub(super) fn row(&self) -> String {
        let of = |values: &[f64], share: f64| quantile(values.iter().copied(), share);
        format!(
            "{:6.2}  {:7.2}  {:8}  {:6}  {:5.1} %  {:8.0}  {:6.0}  {:6.0}   {:8.1}  {:8.1}  {:6.1}  {:8.0}",
            self.rate,
            self.arrived,
            self.requests,
            self.failed,
            self.good_percent(),
            of(&self.ttft_ms, 0.5),
            of(&self.ttft_ms, 0.9),
            of(&self.ttft_ms, 0.99),
            of(&self.tpot_ms, 0.5),
            of(&self.itl_ms, 0.5),
            of(&self.itl_ms, 0.99),
            self.tokens_per_second
        )
    }

    /// The row of the result file. A latency of no request is null.
    pub(super) fn json(&self) -> Value {
        let of = |values: &[f64], share: f64| {
            (!values.is_empty()).then(|| quantile(values.iter().copied(), share))
        };
        json!({
            "rate": self.rate, "arrived": self.arrived, "requests": self.requests, "failed": self.failed,
            "good": self.good, "good_percent": self.good_percent(),
            "p50_ttft_ms": of(&self.ttft_ms, 0.5), "p90_ttft_ms": of(&self.ttft_ms, 0.9),
            "p99_ttft_ms": of(&self.ttft_ms, 0.99), "p50_tpot_ms": of(&self.tpot_ms, 0.5),
            "p50_itl_ms": of(&self.itl_ms, 0.5), "p99_itl_ms": of(&self.itl_ms, 0.99),
            "output_throughput": self.tokens_per_second,
        })
    }
}

/// The 99th percentile of a request's own gaps in milliseconds: the smallest gap that at most one in a hundred exceeds, as in
/// `integration-tests/peers/goodput.py`. 0 for an answer of one token.
fn own_gap_ms(output: &RequestOutcome) -> f64 {
    let mut gaps = output.itls.clone();
    gaps.sort_unstable_by(f64::total_cmp);
    let rank = (0.99 * gaps.len() as f64) as usize;
    gaps.get(rank.min(gaps.len().saturating_sub(1))).map_or(0.0, |gap| gap * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_request_meets_both_limits() {
        let outcome = |ttft: f64, itls: Vec<f64>| RequestOutcome { ttft, itls, ..RequestOutcome::default() };
        let mut long = vec![0.01; 200];
        long[7] = 5.0;
        let failed = RequestOutcome { error: "500".to_owned(), ..RequestOutcome::default() };
        for (output, good) in [
            (outcome(0.4, vec![0.02, 0.03]), 1),
            (outcome(0.6, vec![0.02, 0.03]), 0),
            (outcome(0.4, vec![0.02, 0.05]), 0),
            // One gap in 200 is beyond the 99th percentile.
            (outcome(0.4, long), 1),
            (outcome(0.4, Vec::new()), 1),
            (failed, 0),
        ] {
            let figures = RateFigures::new(2.0, std::slice::from_ref(&output), 1.0, (500.0, 40.0));
            assert_eq!(figures.good, good, "{output:?}");
        }
    }

    #[test]
    fn the_arrived_rate_is_that_of_the_requests_as_sent() {
        let outcome = |start: f64| RequestOutcome { start, ..RequestOutcome::default() };
        let late = RateFigures::new(4.0, &[1.0, 2.0, 4.0].map(outcome), 1.0, (1.0, 1.0));
        assert!((late.arrived - 0.75).abs() < 1e-9);
        assert_eq!(late.json()["p99_itl_ms"], Value::Null);
    }
}
