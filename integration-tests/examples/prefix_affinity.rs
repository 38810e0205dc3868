//! Compares the routing of prompts with shared prefixes with random routing: the prompt tokens that four nodes compute.
//!
//! ```text
//! cargo build --release -p runtime
//! cargo run --release -p integration-tests --example prefix_affinity -- [REQUESTS]
//! ```
//!
//! There are 32 system prompts of 512 tokens. Each request has one of them, by Zipf's distribution with exponent 1, and a suffix of 32 tokens of
//! its own. Each node's pool holds about ten such prompts beside the ring and the pages for peers. Requests arrive one after another, four at a
//! time. *Routed*: requests go to the frontends of all four nodes in turn, and each node places the prompt. *One frontend*: all requests go
//! to the first node's frontend. *Random*: each request goes to a random node's own port and is computed there. Every run has new nodes.

use std::time::Instant;

use anyhow::{Context, Result};
use common::splitmix::SplitMix64;
use integration_tests::client::{ask_all, complete, metrics};
use integration_tests::process::{Process, free_port, start_node};
use serde_json::json;

const NODES: usize = 4;
const SYSTEM_PROMPTS: u64 = 32;
const SYSTEM_TOKENS: u64 = 512;
const SUFFIX_TOKENS: u64 = 32;
const TOKENS: u32 = 4;
/// Requests in flight.
const AT_ONCE: usize = 4;

/// Where requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Routed,
    OneFrontend,
    Random,
}

/// A system prompt's number, by Zipf's distribution.
fn system_prompt(numbers: &mut SplitMix64) -> u64 {
    let total: f64 = (1..=SYSTEM_PROMPTS).map(|rank| 1.0 / rank as f64).sum();
    let mut left = (numbers.draw() >> 11) as f64 / (1_u64 << 53) as f64 * total;
    let found = (1..=SYSTEM_PROMPTS).find(|rank| {
        left -= 1.0 / *rank as f64;
        left < 0.0
    });
    found.unwrap_or(SYSTEM_PROMPTS)
}

/// Token ids that depend on `seed`.
fn tokens(seed: u64, count: u64) -> Vec<u64> {
    let mut numbers = SplitMix64::new(seed);
    (0..count).map(|_| 100 + numbers.draw() % 40_000).collect()
}

fn start_nodes() -> Result<Vec<Process>> {
    let ports = (0..NODES).map(|_| free_port()).collect::<Result<Vec<u16>>>()?;
    let peers: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let sets = [
        "engine.kv_bytes=256MiB",
        "request.context_tokens=768",
        "ring.bytes=8MiB",
        "engine.prefix_cache=true",
        "engine.threads=1",
    ];
    let nodes = ports.iter().map(|port| start_node(*port, &peers, &sets, &[])).collect::<Result<Vec<_>>>()?;
    nodes.iter().try_for_each(|node| node.wait_peers(2 * (NODES as u64 - 1)))?;
    Ok(nodes)
}

/// Sends the requests and returns the prompt tokens that each node has computed.
fn run(way: Way, requests: usize) -> Result<Vec<u64>> {
    let nodes = start_nodes()?;
    let began = Instant::now();
    let address = |node: usize, key| nodes[node].address(key);
    let mut numbers = SplitMix64::new(7);
    let mut asked = Vec::new();
    for number in 0..requests {
        let system = system_prompt(&mut numbers);
        let random = numbers.draw() as usize % NODES;
        let to = match way {
            Way::Routed => address(number % NODES, "frontend.port")?,
            Way::OneFrontend => address(0, "frontend.port")?,
            Way::Random => address(random, "http.port")?,
        };
        let prompt = [tokens(system, SYSTEM_TOKENS), tokens(1000 + number as u64, SUFFIX_TOKENS)].concat();
        asked.push((to, prompt));
    }
    ask_all(&asked, AT_ONCE, |(to, prompt)| complete(to, &json!(prompt), TOKENS))?;
    let computed =
        |node: usize| metrics(&address(node, "http.port")?)?.get("baton_prompt_tokens_computed_total");
    let each = (0..NODES).map(computed).collect::<Result<Vec<u64>>>()?;
    let (sum, most) = (each.iter().sum::<u64>(), each.iter().max().copied().unwrap_or(0));
    println!(
        "{way:?}: {sum} prompt tokens computed, by node {each:?}, busiest node {:.2} of the mean, {:.0} s",
        most as f64 * NODES as f64 / sum as f64,
        began.elapsed().as_secs_f64()
    );
    Ok(each)
}

fn main() -> Result<()> {
    let requests =
        std::env::args().nth(1).map_or(Ok(400), |text| text.parse()).context("REQUESTS is not a number")?;
    let random: u64 = run(Way::Random, requests)?.iter().sum();
    for way in [Way::Routed, Way::OneFrontend] {
        let ours: u64 = run(way, requests)?.iter().sum();
        println!("{way:?}: {:.2} of the tokens of random routing", ours as f64 / random as f64);
    }
    Ok(())
}
