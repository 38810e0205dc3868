//! Kills parts of a pair, or of two nodes, at random times with eight requests in flight, and prints how long recovery took.
//!
//! ```text
//! cargo build --release -p runtime
//! cargo run --release -p integration-tests --example kills -- [--nodes] [ROUNDS] [SEED] [UCX_TLS]
//! ```
//! With `--nodes` both processes are nodes that prefill for each other, and both have eight requests in flight.
//!
//! The control link goes through a proxy of this program, which can cut it. Pages travel directly. Every answer with status 200 must have the
//! right tokens, and every request must end by its deadline. Within 2 s of a death, or of the silence that reveals it, no request may wait for
//! the dead part. Afterwards every page and credit must be free, the surviving process must not have restarted, and the next request must be
//! handed over. Any other outcome ends the program with an error.

use std::time::Duration;

use anyhow::{Context, Result};
use integration_tests::kills::{Bench, Kill, Roles, Round, Terms};
use integration_tests::statistics::{median, quantile};

fn median_and_worst(rounds: &[Round], of: impl Fn(&Round) -> Option<Duration>) -> String {
    let times: Vec<f64> = rounds.iter().filter_map(of).map(|time| time.as_secs_f64() * 1e3).collect();
    if times.is_empty() {
        return "-".to_owned();
    }
    format!("{:.0} / {:.0}", median(times.iter().copied()), quantile(times, 1.0))
}

fn print(results: &[(Kill, Vec<Round>)]) {
    println!(
        "{:<18} {:>6} {:>7} {:>7} {:>6} {:>10} {:>14} {:>14} {:>14} {:>14}",
        "ms: median / worst",
        "rounds",
        "correct",
        "failed",
        "left",
        "recomputed",
        "accounted",
        "cleared",
        "settled",
        "whole"
    );
    for (kill, rounds) in results {
        let sum = |of: fn(&Round) -> usize| rounds.iter().map(of).sum::<usize>();
        println!(
            "{:<18} {:>6} {:>7} {:>7} {:>6} {:>10} {:>14} {:>14} {:>14} {:>14}",
            format!("{kill:?}"),
            rounds.len(),
            sum(|round| round.correct),
            sum(|round| round.failed),
            sum(|round| round.left),
            sum(|round| round.recomputed as usize),
            median_and_worst(rounds, |round| Some(round.accounted)),
            median_and_worst(rounds, |round| round.cleared),
            median_and_worst(rounds, |round| round.settled),
            median_and_worst(rounds, |round| Some(round.whole))
        );
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    let nodes = arguments.next_if_eq("--nodes").is_some();
    let roles = if nodes { Roles::Nodes } else { Roles::Pair };
    let rounds: usize =
        arguments.next().map_or(Ok(10), |text| text.parse()).context("ROUNDS is not a number")?;
    let seed: u64 = arguments.next().map_or(Ok(1), |text| text.parse()).context("SEED is not a number")?;
    let lanes = arguments.next();
    let terms = Terms { in_flight: 8, accounted: Duration::from_secs(2), stop: Duration::from_secs(10) };
    let mut bench = Bench::start(roles, seed, lanes.as_deref(), terms)?;
    println!("{roles:?}: {rounds} rounds of each kind, {} requests in flight, seed {seed}", terms.in_flight);
    let mut results = Kill::ALL.map(|kill| (kill, Vec::new()));
    for number in 1..=rounds {
        for (kill, done) in &mut results {
            match bench.round(*kill) {
                Ok(round) => done.push(round),
                Err(error) => {
                    let kill = *kill;
                    print(&results);
                    let report = bench.report();
                    return Err(error.context(format!("{kill:?}, round {number}\n{report}")));
                }
            }
        }
    }
    print(&results);
    Ok(())
}
