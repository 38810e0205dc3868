//! Compares the latencies of two servers that got the same requests: medians, their ratios and 95 % intervals of the ratios.
//!
//! The intervals come from a bootstrap in two stages: blocks are drawn with replacement, and then requests within each drawn block. The first
//! stage covers changes of the machine between blocks, the second one differences between requests. A request that is drawn counts for both
//! servers, because both got the same prompt. A request that failed at one server counts for none.

use std::fmt::Write as _;

use common::statistics::{median, quantile};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::client::RequestOutcome;
use super::results::tpot;

/// Number of samples of the bootstrap.
const SAMPLES: usize = 2000;
/// Smallest number of blocks with an interval. The bootstrap of fewer blocks gives intervals that are too narrow.
const BLOCKS_MIN: usize = 6;

/// What both servers did with one block of the requests.
#[derive(Default)]
pub(super) struct Block {
    /// In the order of the requests, the same one for both servers.
    pub(super) outputs: [Vec<RequestOutcome>; 2],
    /// Seconds.
    pub(super) duration: [f64; 2],
}

/// The values of a block: those of both servers for each request that has both.
type Values = Vec<[f64; 2]>;

/// One compared metric.
#[derive(Debug)]
pub(super) struct Comparison {
    metric: &'static str,
    unit: &'static str,
    /// Medians of both servers.
    medians: [f64; 2],
    /// The second server's median divided by the first one's; `None` if a median is missing or 0.
    ratio: Option<f64>,
    /// The 95 % interval of the ratio; `None` with fewer than [`BLOCKS_MIN`] blocks.
    interval: Option<[f64; 2]>,
}

impl Comparison {
    fn new(metric: &'static str, unit: &'static str, blocks: &[Values], seed: u64) -> Self {
        let medians = medians(&blocks.concat());
        let ratio = ratio(medians);
        let blocks: Vec<&Values> = blocks.iter().filter(|block| !block.is_empty()).collect();
        let interval = ratio.filter(|_| blocks.len() >= BLOCKS_MIN).map(|_| {
            let ratios = bootstrap(&blocks, seed);
            [0.025, 0.975].map(|share| quantile(ratios.iter().copied(), share))
        });
        Self { metric, unit, medians, ratio, interval }
    }

    fn verdict(&self) -> &'static str {
        match (self.ratio, self.interval) {
            (None, _) => "not measured",
            (_, None) => "too few blocks for an interval",
            (_, Some([low, high])) if low <= 1.0 && 1.0 <= high => {
                "no difference is shown: the interval includes 1"
            }
            (Some(ratio), _) if ratio > 1.0 => "B is higher",
            _ => "B is lower",
        }
    }

    /// The row of a result file.
    pub(super) fn json(&self) -> Value {
        let [a, b] = self.medians;
        json!({
            "metric": self.metric, "unit": self.unit, "median_a": a, "median_b": b,
            "ratio": self.ratio, "ratio_interval_95": self.interval, "verdict": self.verdict(),
        })
    }
}

/// Counts of both servers over all requests.
#[derive(Debug)]
pub(super) struct Totals {
    requests: usize,
    /// Requests that succeeded at both servers. The medians are those of these requests.
    pairs: usize,
    failed: [usize; 2],
    /// Of the requests that succeeded.
    output_tokens: [u64; 2],
}

impl Totals {
    pub(super) fn new(blocks: &[Block]) -> Self {
        let outputs = |server: usize| blocks.iter().flat_map(move |block| &block.outputs[server]);
        let tokens = |output: &RequestOutcome| u64::from(output.output_tokens);
        Self {
            requests: outputs(0).count(),
            pairs: outputs(0).zip(outputs(1)).filter(|(a, b)| a.is_good() && b.is_good()).count(),
            failed: [0, 1].map(|server| outputs(server).filter(|output| !output.is_good()).count()),
            output_tokens: [0, 1]
                .map(|server| outputs(server).filter(|output| output.is_good()).map(tokens).sum()),
        }
    }

    /// The counts in a result file.
    pub(super) fn json(&self) -> Value {
        json!({
            "requests": self.requests, "succeeded_at_both": self.pairs, "failed": self.failed,
            "output_tokens": self.output_tokens,
        })
    }
}

/// Compares time to first token, time per output token, the longest gap, the whole latency and the throughput. `seed` is that of the
/// bootstrap.
pub(super) fn compare(blocks: &[Block], seed: u64) -> Vec<Comparison> {
    let of = |value: fn(&RequestOutcome) -> Option<f64>| -> Vec<Values> {
        blocks
            .iter()
            .map(|block| {
                let value = |output: &RequestOutcome| output.is_good().then(|| value(output)).flatten();
                let [a, b] = &block.outputs;
                a.iter().zip(b).filter_map(|(a, b)| Some([value(a)?, value(b)?])).collect()
            })
            .collect()
    };
    let longest = |output: &RequestOutcome| output.itls.iter().copied().reduce(f64::max).map(|gap| gap * 1e3);
    let throughput: Vec<Values> = blocks
        .iter()
        .map(|block| {
            let rates = [0, 1].map(|n| {
                let good = block.outputs[n].iter().filter(|output| output.is_good());
                let tokens: u64 = good.map(|output| u64::from(output.output_tokens)).sum();
                tokens as f64 / block.duration[n]
            });
            if rates.iter().all(|rate| *rate > 0.0) { vec![rates] } else { Vec::new() }
        })
        .collect();
    vec![
        Comparison::new("TTFT", "ms", &of(|output| Some(output.ttft * 1e3)), seed),
        Comparison::new("TPOT", "ms", &of(|output| tpot(output).map(|seconds| seconds * 1e3)), seed),
        Comparison::new("longest gap", "ms", &of(longest), seed),
        Comparison::new("E2EL", "ms", &of(|output| Some(output.latency * 1e3)), seed),
        Comparison::new("throughput of a block", "tokens/s", &throughput, seed),
    ]
}

/// The printed table.
pub(super) fn table(rows: &[Comparison], totals: &Totals) -> String {
    let mut out =
        format!("{:<34} {:>10} {:>10} {:>8}   {:<16}\n", "Median", "A", "B", "B/A", "95 % interval");
    for row in rows {
        let name = format!("{} ({})", row.metric, row.unit);
        let [a, b] = row.medians;
        let ratio = row.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.3}"));
        let interval = row.interval.map_or("-".to_owned(), |[low, high]| format!("{low:.3} to {high:.3}"));
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name:<34} {a:>10.2} {b:>10.2} {ratio:>8}   {interval:<16} {}", row.verdict());
    }
    let whole = |name: &str, a: u64, b: u64| format!("{name:<34} {a:>10} {b:>10}\n");
    out += &whole("failed requests", totals.failed[0] as u64, totals.failed[1] as u64);
    out += &whole("output tokens", totals.output_tokens[0], totals.output_tokens[1]);
    let _ = writeln!(
        out,
        "The latencies are those of the {} of {} requests that succeeded at both servers.",
        totals.pairs, totals.requests
    );
    if rows.iter().any(|row| row.ratio.is_some() && row.interval.is_none()) {
        let _ = writeln!(out, "An interval needs at least {BLOCKS_MIN} blocks; set --compare-blocks.");
    }
    if rows.iter().all(|row| row.interval.is_none()) {
        return out;
    }
    let _ = writeln!(
        out,
        "The intervals come from {SAMPLES} bootstrap samples: blocks are drawn with replacement, then requests within each block. \
         Each interval is at 95 % by itself; at least one of five is wrong more often."
    );
    out
}

/// The medians of both servers, 0 without values.
fn medians(values: &[[f64; 2]]) -> [f64; 2] {
    [0, 1].map(|n| median(values.iter().map(|pair| pair[n])))
}

fn ratio([a, b]: [f64; 2]) -> Option<f64> {
    (a > 0.0 && b > 0.0).then(|| b / a)
}

/// The ratios of the samples. No block is empty.
fn bootstrap(blocks: &[&Values], seed: u64) -> Vec<f64> {
    let mut random = SmallRng::seed_from_u64(seed ^ 0xb007);
    let mut drawn = Vec::new();
    (0..SAMPLES)
        .filter_map(|_| {
            drawn.clear();
            for _ in 0..blocks.len() {
                let block = blocks[random.random_range(0..blocks.len())];
                drawn.extend((0..block.len()).map(|_| block[random.random_range(0..block.len())]));
            }
            ratio(medians(&drawn))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of ten requests. The second server takes `factor` times as long; all values vary by up to a tenth.
    fn blocks(count: usize, factor: f64) -> Vec<Block> {
        let mut random = SmallRng::seed_from_u64(7);
        let mut outcome = |factor: f64| {
            let mut time = |seconds: f64| seconds * factor * (0.95 + 0.1 * random.random::<f64>());
            let (ttft, itls) = (time(0.1), vec![time(0.02); 10]);
            let latency = ttft + itls.iter().sum::<f64>();
            RequestOutcome { ttft, itls, latency, output_tokens: 11, ..RequestOutcome::default() }
        };
        let mut block = || Block {
            outputs: [1.0, factor].map(|factor| (0..10).map(|_| outcome(factor)).collect()),
            duration: [1.0, factor],
        };
        (0..count).map(|_| block()).collect()
    }

    #[test]
    fn a_difference_is_shown_and_equality_is_said() {
        for row in compare(&blocks(8, 1.5), 0) {
            let (ratio, [low, high]) = (row.ratio.unwrap(), row.interval.unwrap());
            let expect = if row.unit == "ms" { 1.5 } else { 1.0 / 1.5 };
            assert!((ratio / expect - 1.0).abs() < 0.05, "{row:?}");
            // All blocks have the same throughput, so its interval is a point, up to rounding.
            assert!(low <= ratio && ratio <= high, "{row:?}");
            assert_eq!(row.verdict(), if row.unit == "ms" { "B is higher" } else { "B is lower" }, "{row:?}");
        }
        let equal_blocks = blocks(8, 1.0);
        let equal = compare(&equal_blocks, 0);
        assert_eq!(equal[0].verdict(), "no difference is shown: the interval includes 1", "{equal:?}");
        let text = table(&equal, &Totals::new(&equal_blocks));
        assert!(text.contains("TTFT (ms)") && text.contains("the interval includes 1"), "{text}");
        assert!(text.contains("80 of 80 requests that succeeded at both servers"), "{text}");
    }

    #[test]
    fn few_blocks_have_no_interval() {
        let blocks = blocks(5, 1.5);
        for row in compare(&blocks, 0) {
            assert_eq!((row.verdict(), row.interval), ("too few blocks for an interval", None), "{row:?}");
            assert!(row.ratio.is_some(), "{row:?}");
        }
        let text = table(&compare(&blocks, 0), &Totals::new(&blocks));
        assert!(text.contains("An interval needs at least 6 blocks"), "{text}");
    }

    /// Blocks differ more than requests within one, as on a machine that becomes slower: an interval over requests alone would be too narrow.
    #[test]
    fn intervals_cover_changes_between_blocks() {
        let drifting = |pair: fn(f64) -> [f64; 2]| -> Vec<Values> {
            (0..8).map(|n| vec![pair(f64::from(n) / 8.0); 20]).collect()
        };
        // The second server is faster in five of eight blocks.
        let apart = drifting(|n| [1.0, if n < 0.6 { 0.8 } else { 1.3 }]);
        let blockwise = Comparison::new("x", "ms", &apart, 1);
        assert_eq!(blockwise.verdict(), "no difference is shown: the interval includes 1", "{blockwise:?}");
        let each: Vec<Values> = apart.concat().into_iter().map(|pair| vec![pair]).collect();
        let each = Comparison::new("x", "ms", &each, 1);
        assert_eq!(each.verdict(), "B is lower", "without blocks, the interval is too narrow: {each:?}");
        // Both servers become slower together.
        let together = Comparison::new("x", "ms", &drifting(|n| [1.0 + n, 1.2 * (1.0 + n)]), 1);
        assert_eq!(together.verdict(), "B is higher", "{together:?}");
    }

    #[test]
    fn requests_count_if_both_servers_answer() {
        let mut blocks = blocks(6, 1.0);
        for block in &mut blocks {
            block.outputs[0][0] = RequestOutcome { error: "500".to_owned(), ..RequestOutcome::default() };
        }
        // The second server was slow there, which does not count either.
        blocks.iter_mut().for_each(|block| block.outputs[1][0].ttft = 1e3);
        let rows = compare(&blocks, 0);
        assert!(rows[0].medians.iter().all(|ms| (90.0..110.0).contains(ms)), "{rows:?}");
        let totals = Totals::new(&blocks);
        assert_eq!(
            (totals.pairs, totals.failed, totals.output_tokens),
            (54, [6, 0], [594, 660]),
            "{totals:?}"
        );
        for block in &mut blocks {
            block.outputs[1].iter_mut().for_each(|output| output.error = "500".to_owned());
        }
        let row = &compare(&blocks, 0)[0];
        assert_eq!((row.verdict(), row.json()["ratio"].clone()), ("not measured", Value::Null));
    }
}
