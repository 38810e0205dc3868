//! The figures of one rate.

use common::statistics::quantile;
use serde_json::{Value, json};

use super::super::client::RequestOutcome;
use super::super::results::tpot;

/// The figures of one rate.
pub(super) struct RateFigures {
    /// Requests per second as planned.
    rate: f64,
    /// Seconds in which the requests were sent.
    sending: f64,
    /// Seconds until the last one ended.
    duration: f64,
    requests: usize,
    failed: usize,
    good: usize,
    /// Of all requests that succeeded, in milliseconds; from the planned time of the request.
    ttft_ms: Vec<f64>,
    itl_ms: Vec<f64>,
    tpot_ms: Vec<f64>,
    /// Longest time from the planned time of a request to its sending.
    late_ms: f64,
    tokens: u64,
}

impl RateFigures {
    /// The head of the table. Latencies are in milliseconds.
    pub(super) const HEAD: &str = "  rate  arrived  requests  failed   good   TTFT p50     p90     p99   TPOT p50   gap p50     p99  tokens/s  late max";

    /// The figures of requests that took `duration` seconds. The limits are those of a good request, in milliseconds.
    pub(super) fn new(rate: f64, outputs: &[RequestOutcome], duration: f64, (ttft, gap): (f64, f64)) -> Self {
        let succeeded = || outputs.iter().filter(|output| output.is_good());
        let ttft_ms = |output: &RequestOutcome| (output.queued + output.ttft) * 1e3;
        let is_good = |output: &&RequestOutcome| ttft_ms(output) <= ttft && keeps_gap(output, gap);
        Self {
            rate,
            sending: outputs.iter().map(|output| output.start).fold(0.0, f64::max),
            duration,
            requests: outputs.len(),
            failed: outputs.len() - succeeded().count(),
            good: succeeded().filter(is_good).count(),
            ttft_ms: succeeded().map(ttft_ms).collect(),
            itl_ms: succeeded().flat_map(|output| &output.itls).map(|gap| gap * 1e3).collect(),
            tpot_ms: succeeded().filter_map(tpot).map(|seconds| seconds * 1e3).collect(),
            late_ms: outputs.iter().map(|output| output.queued * 1e3).fold(0.0, f64::max),
            tokens: succeeded().map(|output| u64::from(output.output_tokens)).sum(),
        }
    }

    /// Adds the figures of another measurement at the same rate.
    pub(super) fn add(&mut self, other: Self) {
        self.sending += other.sending;
        self.duration += other.duration;
        self.requests += other.requests;
        self.failed += other.failed;
        self.good += other.good;
        self.ttft_ms.extend(other.ttft_ms);
        self.itl_ms.extend(other.itl_ms);
        self.tpot_ms.extend(other.tpot_ms);
        self.late_ms = self.late_ms.max(other.late_ms);
        self.tokens += other.tokens;
    }

    /// Requests per second as planned.
    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    /// Requests per second as sent.
    pub(super) fn arrived(&self) -> f64 {
        if self.sending > 0.0 { self.requests as f64 / self.sending } else { self.rate }
    }

    fn tokens_per_second(&self) -> f64 {
        if self.duration > 0.0 { self.tokens as f64 / self.duration } else { 0.0 }
    }

    /// Of all requests, also of those that failed.
    pub(super) fn good_percent(&self) -> f64 {
        100.0 * self.good as f64 / self.requests.max(1) as f64
    }

    /// The row of the table.
    pub(super) fn row(&self) -> String {
        let of = |values: &[f64], share: f64| quantile(values.iter().copied(), share);
        format!(
            "{:6.2}  {:7.2}  {:8}  {:6}  {:5.1} %  {:8.0}  {:6.0}  {:6.0}   {:8.1}  {:8.1}  {:6.1}  {:8.0}  {:8.1}",
            self.rate,
            self.arrived(),
            self.requests,
            self.failed,
            self.good_percent(),
            of(&self.ttft_ms, 0.5),
            of(&self.ttft_ms, 0.9),
            of(&self.ttft_ms, 0.99),
            of(&self.tpot_ms, 0.5),
            of(&self.itl_ms, 0.5),
            of(&self.itl_ms, 0.99),
            self.tokens_per_second(),
            self.late_ms
        )
    }

    /// The row of the result file. A latency is null if no request succeeded.
    pub(super) fn json(&self) -> Value {
        let of = |values: &[f64], share: f64| {
            (!values.is_empty()).then(|| quantile(values.iter().copied(), share))
        };
        json!({
            "rate": self.rate, "arrived": self.arrived(), "requests": self.requests, "failed": self.failed,
            "good": self.good, "good_percent": self.good_percent(),
            "p50_ttft_ms": of(&self.ttft_ms, 0.5), "p90_ttft_ms": of(&self.ttft_ms, 0.9),
            "p99_ttft_ms": of(&self.ttft_ms, 0.99), "p50_tpot_ms": of(&self.tpot_ms, 0.5),
            "p50_itl_ms": of(&self.itl_ms, 0.5), "p99_itl_ms": of(&self.itl_ms, 0.99),
            "output_throughput": self.tokens_per_second(), "max_late_ms": self.late_ms,
        })
    }
}

/// True if the 99th percentile of a request's own gaps is at most `limit` milliseconds. It is the smallest gap that fewer than one in a
/// hundred exceed, as in `integration-tests/peers/goodput.py`. An answer without gaps is good only if one token was asked for.
fn keeps_gap(output: &RequestOutcome, limit: f64) -> bool {
    let mut gaps = output.itls.clone();
    gaps.sort_unstable_by(f64::total_cmp);
    let rank = (0.99 * gaps.len() as f64) as usize;
    gaps.get(rank).map_or(output.wanted_tokens <= 1, |gap| gap * 1e3 <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_request_meets_both_limits() {
        let outcome = |ttft: f64, itls: Vec<f64>| RequestOutcome {
            ttft,
            itls,
            wanted_tokens: 9,
            ..RequestOutcome::default()
        };
        let late = |queued: f64| RequestOutcome { queued, ..outcome(0.3, vec![0.02]) };
        let one = RequestOutcome { wanted_tokens: 1, ..outcome(0.4, Vec::new()) };
        let mut long = vec![0.01; 200];
        long[7] = 5.0;
        let failed = RequestOutcome { error: "500".to_owned(), ..RequestOutcome::default() };
        for (output, good) in [
            (outcome(0.4, vec![0.02, 0.03]), 1),
            (outcome(0.6, vec![0.02, 0.03]), 0),
            (outcome(0.4, vec![0.02, 0.05]), 0),
            // One gap in 200 is beyond the 99th percentile.
            (outcome(0.4, long), 1),
            (outcome(0.4, Vec::new()), 0),
            (one, 1),
            (late(0.1), 1),
            (late(0.3), 0),
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
        assert!((late.arrived() - 0.75).abs() < 1e-9);
        assert_eq!(late.json()["p99_itl_ms"], Value::Null);
        let mut both = late;
        both.add(RateFigures::new(4.0, &[1.0, 2.0].map(outcome), 1.0, (1.0, 1.0)));
        assert!((both.arrived() - 5.0 / 6.0).abs() < 1e-9);
    }

    #[test]
    fn no_request_and_one_request_have_figures() {
        let none = RateFigures::new(4.0, &[], 0.0, (1.0, 1.0));
        assert_eq!((none.arrived(), none.good_percent(), none.tokens_per_second()), (4.0, 0.0, 0.0));
        let only = RequestOutcome { ttft: 0.1, wanted_tokens: 1, ..RequestOutcome::default() };
        let one = RateFigures::new(4.0, &[only], 1.0, (500.0, 1.0));
        assert_eq!((one.arrived(), one.good_percent()), (4.0, 100.0));
        for json in [none.json(), one.json()] {
            assert!(json["arrived"].is_number() && json["output_throughput"].is_number(), "{json}");
        }
    }
}
