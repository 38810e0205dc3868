//! Compares the throughput of two nodes and a proxy while etcd runs and while it is stopped, in turns.
//!
//! ```text
//! cargo build --release -p runtime
//! cargo run --release -p integration-tests --example etcd_outage -- [ROUNDS] [SECONDS]
//! ```
//! It needs `etcd` in PATH. Eight clients ask the proxy one request after another. Each round has two phases of this many seconds: etcd runs, and
//! etcd is stopped. etcd comes back empty before the next round. The program ends with an error if a request fails, if the throughput of all
//! phases without etcd is below 0.95 of that with etcd, or if a session between the nodes ends.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration_tests::client::{complete, get, metrics};
use integration_tests::process::{Process, start_member};
use serde_json::{Value, json};

#[path = "../tests/membership/etcd.rs"]
#[expect(dead_code, reason = "the tests of the membership use the rest")]
mod etcd;

use etcd::Etcd;

const CLIENTS: usize = 8;
const LEAST_RATIO: f64 = 0.95;
const KEYS: &str = "baton/v1/default/";

/// 64 token ids that share no page with those of another number.
fn prompt(number: u32) -> Value {
    json!((0..64).map(|token| 1000 + (number * 97 + token * 7) % 20_000).collect::<Vec<u32>>())
}

/// The answers of one phase, per second.
fn phase(proxy: &str, asked: &AtomicU32, time: Duration) -> Result<f64> {
    let (is_over, began) = (AtomicBool::new(false), Instant::now());
    let client = || -> Result<u32> {
        let mut answers = 0;
        while !is_over.load(Ordering::Relaxed) {
            complete(proxy, &prompt(asked.fetch_add(1, Ordering::Relaxed)), 8)?;
            answers += 1;
        }
        Ok(answers)
    };
    let answers = scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        sleep(time);
        is_over.store(true, Ordering::Relaxed);
        let join = |client: std::thread::ScopedJoinHandle<'_, Result<u32>>| {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?
        };
        clients.into_iter().map(join).sum::<Result<u32>>()
    })?;
    Ok(f64::from(answers) / began.elapsed().as_secs_f64())
}

/// Sessions that the nodes have opened so far.
fn opened(nodes: &[Process]) -> Result<u64> {
    let of = |node: &Process| metrics(&node.address("http.port")?)?.get("baton_sessions_opened_total");
    nodes.iter().map(of).sum()
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let rounds: u32 = arguments.next().map_or(Ok(3), |rounds| rounds.parse()).context("ROUNDS")?;
    let seconds: u64 = arguments.next().map_or(Ok(20), |seconds| seconds.parse()).context("SECONDS")?;
    let time = Duration::from_secs(seconds);
    let Some(mut etcd) = Etcd::start()? else { return Ok(()) };
    let source = format!("fleet.etcd_endpoints={}", etcd.url());
    let sets = [&*source, "engine.threads=1"];
    let nodes = [start_member("node", &sets)?, start_member("node", &sets)?];
    let proxy = start_member("proxy", &[&source])?;
    nodes.iter().try_for_each(|node| node.wait_peers(2))?;
    let address = proxy.address("frontend.port")?;
    let ready = || Ok(get(&address, "/health")?.1["nodes_ready"] == 2);
    proxy.until("the proxy has found both nodes", ready)?;

    let asked = AtomicU32::new(0);
    phase(&address, &asked, time / 2)?;
    let sessions = opened(&nodes)?;
    let [mut with, mut without] = [0.0, 0.0];
    println!("{:>6} {:>20} {:>20}", "round", "with etcd", "etcd stopped");
    for round in 1..=rounds {
        let running = phase(&address, &asked, time)?;
        etcd.kill()?;
        let stopped = phase(&address, &asked, time)?;
        etcd.restart_empty()?;
        etcd.until_keys(KEYS, nodes.len())?;
        println!("{round:>6} {running:>18.1}/s {stopped:>18.1}/s");
        (with, without) = (with + running, without + stopped);
    }
    let ratio = without / with;
    println!("throughput without etcd: {ratio:.3} of that with etcd");
    ensure!(opened(&nodes)? == sessions, "a session between the nodes ended");
    ensure!(ratio >= LEAST_RATIO, "it is below {LEAST_RATIO}");
    Ok(())
}
