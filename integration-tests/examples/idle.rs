//! The cost of idle sessions: starts a receiver and senders, waits, and prints memory, threads, open files and CPU time.
//!
//! ```text
//! cargo build --release -p runtime
//! cargo run --release -p integration-tests --example idle -- [SECONDS] [SENDERS]
//! ```
//! With several senders it prints what the receiver has with one session and with all, and the difference for each session.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use integration_tests::process::{Process, start_receiver, start_sender};

/// What an idle process has and uses.
struct Cost {
    mib: f64,
    threads: usize,
    files: usize,
    /// Percent of one core.
    cpu: f64,
}

/// Observes the process for this time.
fn cost(process: &Process, time: Duration) -> Result<Cost> {
    let (before, began) = (process.cpu()?, Instant::now());
    std::thread::sleep(time);
    let cpu = 100.0 * (process.cpu()? - before).as_secs_f64() / began.elapsed().as_secs_f64();
    let count = |folder: &str| -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/{folder}", process.pid()))?.count())
    };
    Ok(Cost { mib: process.resident_mib()?, threads: count("task")?, files: count("fd")?, cpu })
}

fn print(name: &str, cost: &Cost) {
    let Cost { mib, threads, files, cpu } = cost;
    println!("  {name:<26} {mib:>8.1} MiB {threads:>4} threads {files:>5} files {cpu:>6.2} % CPU");
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let time = arguments.next().unwrap_or(Ok(20)).context("SECONDS is not a number")?;
    let senders = arguments.next().unwrap_or(Ok(1)).context("SENDERS is not a number")?;
    let time = Duration::from_secs(time);
    let sets = ["engine.kv_bytes=128MiB", "engine.threads=1"];
    let receiver = start_receiver(&sets)?;
    let mut joined = vec![start_sender(&receiver, &sets)?];
    receiver.wait_peers(1)?;
    // After 5 s an idle session has returned its credits.
    std::thread::sleep(Duration::from_secs(7));
    println!("idle for {time:?}; percent of one core (the kernel counts in units of 10 ms)");
    let one = cost(&receiver, time)?;
    print("receiver, 1 session", &one);
    print("sender", &cost(&joined[0], time)?);
    if senders == 1 {
        return Ok(());
    }
    for peers in 2..=senders {
        joined.push(start_sender(&receiver, &sets)?);
        receiver.wait_peers(peers)?;
    }
    std::thread::sleep(Duration::from_secs(7));
    let all = cost(&receiver, time)?;
    print(&format!("receiver, {senders} sessions"), &all);
    let more = (senders - 1) as f64;
    println!(
        "  each session               {:>8.2} MiB {:>4.1} threads {:>5.1} files {:>6.3} % CPU",
        (all.mib - one.mib) / more,
        (all.threads as f64 - one.threads as f64) / more,
        (all.files as f64 - one.files as f64) / more,
        (all.cpu - one.cpu) / more
    );
    Ok(())
}
