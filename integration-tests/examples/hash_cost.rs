//! The cost of page hashes per request: pairs with `transport.page_hash` on and off answer the same prompts alternately.
//!
//! ```text
//! cargo build --release -p runtime
//! cargo run --release -p integration-tests --example hash_cost -- [PAIRS] [ROUNDS]
//! ```
//! The program starts a pair of each kind PAIRS times. In each of ROUNDS rounds it sends a prompt of each length to both pairs and alternates
//! which pair is first. Every prompt is new, so that no page is found in a cache. The cost is the median difference between the two answers to
//! a prompt. The range beside it contains the true median with 95 % confidence (order statistics, without an assumption about the noise). If the
//! range contains zero, the noise is larger than the cost. The program also measures the hash alone, once per round.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use connector::memory::Region;
use connector::page_hash::{PageSeed, page_hash};
use integration_tests::client::complete;
use integration_tests::fixtures::prompts;
use integration_tests::process::Pair;
use integration_tests::statistics::quartiles;
use serde_json::Value;

const LENGTHS: [usize; 3] = [100, 400, 800];
const PAGE_TOKENS: usize = 16;
/// Room for the longest prompt and the ring, and no more, so that all pages have been touched after a few prompts.
const POOL: &str = "engine.kv_bytes=96MiB";
const WARM_UPS: u32 = 4;
/// The second token needs all pages. Further tokens would only take time.
const TOKENS: u32 = 2;
/// The compared times: the name in the table and the name in the `timings` of an answer. The last one is the time from the first token to the
/// second. It includes the exposed part of the hand-over and one decode step.
const TIMES: [(&str, &str); 4] = [
    ("hand-over", "transfer_ms"),
    ("exposed", "exposed_ms"),
    ("TTFT", "first_token_ms"),
    ("2nd token", "decode_ms"),
];

/// Pages that are hashed to measure the hash alone. They exceed every CPU cache.
const HASHED_PAGES: u64 = 64;

/// The two answers to a prompt: each of [`TIMES`] with the hash and without it.
type Sample = [[f64; 2]; TIMES.len()];

/// Microseconds that one core needs to hash a page whose bytes are not in a cache.
fn page_micros(region: &Region, page_bytes: u64, round: u64) -> f64 {
    let began = Instant::now();
    for credit in 0..HASHED_PAGES {
        let seed = PageSeed { session: round, credit, request: 1, place: 1 };
        black_box(page_hash(region, credit * page_bytes, page_bytes, seed));
    }
    began.elapsed().as_secs_f64() * 1e6 / HASHED_PAGES as f64
}

/// A prompt of `length` tokens with a first token of its own, so that all its pages are computed and transferred.
fn prompt(tokens: &[u32], length: usize, number: u32) -> Vec<u32> {
    std::iter::once(1000 + number).chain(tokens.iter().copied()).take(length).collect()
}

fn ask(pair: &Pair, prompt: &[u32]) -> Result<(Vec<u32>, Value)> {
    let answer = complete(&pair.frontend, &Value::from(prompt), TOKENS)?;
    let pages = prompt.len().div_ceil(PAGE_TOKENS);
    ensure!(answer.timings["pages"] == pages, "not all {pages} pages were handed over: {}", answer.timings);
    Ok((answer.ids, answer.timings))
}

/// The median of the differences, and the range that contains the true median with 95 % confidence. The number of `n` differences below the
/// true median has a binomial distribution with probability one half, so the ranks lie 1.96 √n / 2 to either side of the middle.
fn difference(both: &[[f64; 2]]) -> [f64; 3] {
    let mut differences: Vec<f64> = both.iter().map(|[on, off]| on - off).collect();
    differences.sort_unstable_by(f64::total_cmp);
    let (n, last) = (differences.len() as f64, differences.len() - 1);
    let reach = 0.98 * n.sqrt();
    let low = (n / 2.0 - reach).floor().max(0.0) as usize;
    let high = ((n / 2.0 + reach).ceil() as usize).min(last);
    [differences[low], differences[last.div_ceil(2)], differences[high]]
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default| arguments.next().map_or(Ok(default), |text| text.parse::<usize>());
    let (pairs, rounds) =
        (number(3).context("PAIRS must be a number")?, number(20).context("ROUNDS must be a number")?);
    ensure!(pairs > 0 && rounds > 0, "PAIRS and ROUNDS must be at least 1");
    let tokens = prompts()?.into_iter().map(|prompt| prompt.prompt_ids).max_by_key(Vec::len);
    let tokens = tokens.context("there are no prompts")?;
    let mut samples: [Vec<Sample>; LENGTHS.len()] = Default::default();
    let (mut page_bytes, mut alone) = (0, Vec::new());
    for _ in 0..pairs {
        let start = |hash| Pair::start(&[&format!("transport.page_hash={hash}"), POOL]);
        let kinds = [start(true)?, start(false)?];
        let mut numbers = 0..;
        let mut next = |length| prompt(&tokens, length, numbers.next().unwrap_or_default());
        for _ in 0..WARM_UPS {
            let prompt = next(tokens.len());
            for pair in &kinds {
                let (_, timings) = ask(pair, &prompt)?;
                let of =
                    |key: &str| timings[key].as_u64().with_context(|| format!("the timings have no {key}"));
                page_bytes = of("bytes")? / of("pages")?;
            }
        }
        let region = Region::host((page_bytes * HASHED_PAGES) as usize);
        for round in 0..rounds {
            for (samples, length) in samples.iter_mut().zip(LENGTHS) {
                let (first, prompt) = (round % 2, next(length));
                let mut answers = [ask(&kinds[first], &prompt)?, ask(&kinds[1 - first], &prompt)?];
                answers.rotate_left(first);
                let [(ids, on), (other_ids, off)] = answers;
                ensure!(ids == other_ids, "{length} tokens: other tokens without the hash");
                let ms = |timings: &Value, key: &str| {
                    timings[key].as_f64().with_context(|| format!("the timings have no {key}"))
                };
                let mut sample = Sample::default();
                for ((_, key), both) in TIMES.iter().zip(&mut sample) {
                    *both = [ms(&on, key)?, ms(&off, key)?];
                }
                samples.push(sample);
            }
            alone.push(page_micros(&region, page_bytes, round as u64));
        }
    }
    println!("{pairs} pairs of each kind, {rounds} rounds each, pages of {page_bytes} bytes");
    report(&samples, alone);
    Ok(())
}

fn report(samples: &[Vec<Sample>], alone: Vec<f64>) {
    let [low, micros, high] = quartiles(alone);
    println!("the hash alone: {micros:.0} µs per page on each side (quartiles {low:.0} to {high:.0})");
    for (samples, length) in samples.iter().zip(LENGTHS) {
        let pages = length.div_ceil(PAGE_TOKENS);
        let alone = pages as f64 * micros / 1e3;
        println!("\n{length} tokens, {pages} pages: {alone:.2} ms of hash on each side");
        println!(
            "{:<10} {:>24} {:>24} {:>28} {:>24} {:>12}",
            "ms", "hash, quartiles", "none, quartiles", "cost, 95 %", "% of none", "alone %"
        );
        for (n, (name, _)) in TIMES.iter().enumerate() {
            let both: Vec<[f64; 2]> = samples.iter().map(|sample| sample[n]).collect();
            let of = |kind: usize| quartiles(both.iter().map(|times| times[kind]));
            let spread = |[low, middle, high]: [f64; 3]| format!("{middle:.2} ({low:.2}–{high:.2})");
            let [low, cost, high] = difference(&both);
            let percent = |ms: f64| 100.0 * ms / of(1)[1];
            println!(
                "{name:<10} {:>24} {:>24} {:>28} {:>24} {:>12.1}",
                spread(of(0)),
                spread(of(1)),
                format!("{cost:+.2} ({low:+.2} to {high:+.2})"),
                format!("{:+.1} ({:+.1} to {:+.1})", percent(cost), percent(low), percent(high)),
                percent(alone)
            );
        }
    }
}
