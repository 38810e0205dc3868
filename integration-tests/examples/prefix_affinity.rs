//! Compares the routing of prompts with shared prefixes with random routing: the prompt tokens that four nodes compute.
//!
//! ```text
//! cargo build --release -p runtime
//! cargo run --release -p integration-tests --example prefix_affinity -- [REQUESTS]
//! ```
//!
//! There are 32 system prompts of 512 tokens. Each request has one of them, by Zipf's distribution with exponent 1, and a suffix of 32 tokens of
//! its own. Each node's pool holds about ten such prompts beside the ring and the pages for peers. Requests arrive one after another, four at a
//! time. *Random*: each request goes to a random node's own port and is computed there. *Router*: one router (`actors::routing`) in this program
//! chooses the node, as the proxy of a fleet does. *Frontends*: requests go to the frontends of all four nodes in turn; that node decodes, and its own
//! router places the prompt. Every run has new nodes.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use actors::messages::PrefillOutcome;
use actors::routing::{Ask, Joining, LocalPrefill, Routing, RoutingConfig};
use anyhow::{Context, Result};
use common::splitmix::SplitMix64;
use connector::frame::Capabilities;
use integration_tests::client::{ask_all, complete, metrics};
use integration_tests::process::{Process, free_port, start_node};
use serde_json::json;

const NODES: usize = 4;
/// Tokens in a page.
const PAGE_TOKENS: u32 = 16;
const SYSTEM_PROMPTS: u64 = 32;
const SYSTEM_TOKENS: u64 = 512;
const SUFFIX_TOKENS: u64 = 32;
const TOKENS: u32 = 4;
/// Requests in flight.
const AT_ONCE: usize = 4;

/// Where requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Random,
    Router,
    Frontends,
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
fn tokens(seed: u64, count: u64) -> Vec<u32> {
    let mut numbers = SplitMix64::new(seed);
    (0..count).map(|_| 100 + (numbers.draw() % 40_000) as u32).collect()
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

/// A request: its number, a random node and its prompt.
type Request = (usize, usize, Vec<u32>);

/// Where the requests of one run go.
struct Target {
    way: Way,
    /// The nodes' own ports, and their frontends.
    own: Vec<String>,
    frontends: Vec<String>,
    routing: Mutex<Routing<usize>>,
}

impl Target {
    fn new(way: Way, nodes: &[Process]) -> Result<Self> {
        let addresses = |key| nodes.iter().map(|node| node.address(key)).collect::<Result<Vec<_>>>();
        let (own, frontends) = (addresses("http.port")?, addresses("frontend.port")?);
        let mut routing = Routing::new(PAGE_TOKENS, RoutingConfig::default());
        for (node, address) in own.iter().enumerate() {
            let pool_pages = metrics(address)?.get("baton_pages")? as u32;
            let capabilities = Capabilities { prefill: true, decode: true };
            routing.joined(node, Joining { name: node as u64, capabilities, pool_pages });
        }
        Ok(Self { way, own, frontends, routing: Mutex::new(routing) })
    }

    fn ask(&self, (number, random, prompt): &Request) -> Result<()> {
        let complete = |address: &str| complete(address, &json!(prompt), TOKENS);
        match self.way {
            Way::Random => complete(&self.own[*random]).map(drop),
            Way::Frontends => complete(&self.frontends[number % NODES]).map(drop),
            Way::Router => {
                let routing = || self.routing.lock().unwrap_or_else(PoisonError::into_inner);
                let ask = Ask {
                    prompt,
                    salt: None,
                    hashes: None,
                    reads_cache: true,
                    max_tokens: TOKENS,
                    decode_on: None,
                    local: LocalPrefill::Always,
                    context_tokens: 0,
                    not_on: &[],
                };
                let placed = routing().place(Instant::now(), &ask)?;
                let timings = complete(&self.own[placed.decode_on])?.timings;
                let computed = prompt.len() as u64 - timings["resident_tokens"].as_u64().unwrap_or(0);
                let micros = (timings["prefill_ms"].as_f64().unwrap_or(0.0) * 1e3) as u64;
                let outcome = PrefillOutcome::Computed { tokens: computed as u32, micros };
                let mut routing = routing();
                routing.prefilled(Instant::now(), placed.prefill_on, placed.prefill_tokens, &outcome);
                routing.decoded(placed.decode_on, placed.decode);
                Ok(())
            }
        }
    }
}

/// Sends the requests. Returns the number of prompt tokens that the nodes have computed.
fn run(way: Way, requests: &[Request]) -> Result<u64> {
    let nodes = start_nodes()?;
    let (target, began) = (Target::new(way, &nodes)?, Instant::now());
    ask_all(requests, AT_ONCE, |request| target.ask(request))?;
    let computed = |address: &String| metrics(address)?.get("baton_prompt_tokens_computed_total");
    let each = target.own.iter().map(computed).collect::<Result<Vec<u64>>>()?;
    let (sum, most) = (each.iter().sum::<u64>(), each.iter().max().copied().unwrap_or(0));
    println!(
        "{way:?}: {sum} prompt tokens computed, by node {each:?}, busiest node {:.2} of the mean, {:.0} s",
        most as f64 * NODES as f64 / sum as f64,
        began.elapsed().as_secs_f64()
    );
    Ok(sum)
}

fn main() -> Result<()> {
    let count = std::env::args().nth(1).map_or(Ok(400), |text| text.parse());
    let mut numbers = SplitMix64::new(7);
    let request = |number| {
        let system = system_prompt(&mut numbers);
        let random = numbers.draw() as usize % NODES;
        let prompt = [tokens(system, SYSTEM_TOKENS), tokens(1000 + number as u64, SUFFIX_TOKENS)].concat();
        (number, random, prompt)
    };
    let requests: Vec<Request> = (0..count.context("REQUESTS is not a number")?).map(request).collect();
    let random = run(Way::Random, &requests)?;
    for way in [Way::Router, Way::Frontends] {
        let ours = run(way, &requests)?;
        println!("{way:?}: {:.2} of the tokens of random routing", ours as f64 / random as f64);
    }
    Ok(())
}
