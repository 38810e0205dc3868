//! The cost of one message with few and with many live requests, in nanoseconds in the pure states, without mailboxes, sockets and engine.
//!
//! ```text
//! cargo run --release -p integration-tests --example live_requests -- [FEW] [MANY]
//! ```
//! Each state gets FEW (64) or MANY (4,096) live requests and then handles 64 messages of one kind. This is repeated with fresh states. The
//! program prints medians and the ratio of many to few. A ratio near 1 means that the cost does not grow with the number of requests. Caches and
//! the depth of trees explain a part of larger ratios. A step or tick visits every request, so its cost grows. Nothing is asserted.

mod receiver;
mod sender;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use integration_tests::statistics::median;

/// Messages of one kind for one fresh state.
const MESSAGES: u64 = 64;
/// Fresh states for each number of live requests.
const ROUNDS: usize = 15;
const PAGE_TOKENS: u32 = 16;
const PROMPT_TOKENS: u32 = 64;
const PROMPT_PAGES: u32 = PROMPT_TOKENS / PAGE_TOKENS;

/// Nanoseconds per message, in the order of measurement.
#[derive(Default)]
struct Times(Vec<(String, f64)>);

impl Times {
    /// Measures `take` with these messages.
    fn measure<M>(&mut self, name: &str, mails: Vec<M>, take: impl FnMut(M)) {
        let count = mails.len();
        let began = Instant::now();
        mails.into_iter().for_each(take);
        self.0.push((name.to_owned(), began.elapsed().as_nanos() as f64 / count as f64));
    }
}

/// Numbers of live requests, spread over all of them.
fn spread(live: u64) -> impl Iterator<Item = u64> {
    (0..MESSAGES).map(move |n| n * live / MESSAGES)
}

/// Numbers of further requests.
fn fresh(live: u64) -> impl Iterator<Item = u64> {
    live..live + MESSAGES
}

/// A prompt that shares no page with another one.
fn prompt(request: u64) -> Vec<u32> {
    std::iter::once(request as u32).chain(1..PROMPT_TOKENS).collect()
}

/// The median for every kind of message with `live` requests.
fn medians(live: u64) -> Vec<(String, f64)> {
    let rounds: Vec<Times> = (0..ROUNDS)
        .map(|_| {
            let mut times = Times::default();
            receiver::decoder(live, &mut times);
            receiver::landing(live, &mut times);
            receiver::pool(live, &mut times);
            receiver::full_pool(live, &mut times);
            receiver::credits(live, &mut times);
            sender::prefiller(live, &mut times);
            sender::transfer(live, &mut times);
            sender::generator(live, &mut times);
            times
        })
        .collect();
    let of = |kind: usize| rounds.iter().map(move |times| times.0[kind].1);
    (0..rounds[0].0.len()).map(|kind| (rounds[0].0[kind].0.clone(), median(of(kind)))).collect()
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let few = arguments.next().unwrap_or(Ok(64)).context("FEW is not a number")?;
    let many = arguments.next().unwrap_or(Ok(4096)).context("MANY is not a number")?;
    ensure!(few >= MESSAGES && many >= few, "FEW must be at least {MESSAGES}, and MANY at least FEW");
    // The first round warms the processor up.
    medians(few);
    let (with_few, with_many) = (medians(few), medians(many));
    println!("{:<52} {:>8} {:>8} {:>7}", "ns per message, live requests:", few, many, "ratio");
    for ((name, few), (_, many)) in with_few.iter().zip(&with_many) {
        println!("{name:<52} {few:>8.0} {many:>8.0} {:>7.1}", many / few);
    }
    Ok(())
}
