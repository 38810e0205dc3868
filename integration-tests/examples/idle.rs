//! The CPU use of an idle pair: starts a sender and a receiver, waits, and prints CPU time over wall time.
//!
//! ```text
//! cargo build --release -p runtime
//! cargo run --release -p integration-tests --example idle -- 20
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use integration_tests::process::Pair;

fn main() -> Result<()> {
    let seconds = std::env::args()
        .nth(1)
        .map_or(Ok(20), |text| text.parse::<u64>())
        .context("the argument is not a number of seconds")?;
    let pair = Pair::start(&[])?;
    let used = || -> Result<[Duration; 2]> { Ok([pair.receiver.cpu()?, pair.sender.cpu()?]) };
    // The start is over when the link has been measured. Wait one more second for the work after that.
    std::thread::sleep(Duration::from_secs(1));
    let (before, began) = (used()?, Instant::now());
    std::thread::sleep(Duration::from_secs(seconds));
    let (after, wall) = (used()?, began.elapsed());
    let percent = |n: usize| 100.0 * (after[n] - before[n]).as_secs_f64() / wall.as_secs_f64();
    println!(
        "idle for {:.0} s, percent of one core (the kernel counts in units of 10 ms)",
        wall.as_secs_f64()
    );
    println!("  receiver {:.2}", percent(0));
    println!("  sender   {:.2}", percent(1));
    println!("  together {:.2}", percent(0) + percent(1));
    Ok(())
}
