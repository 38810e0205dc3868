//! Decisions per second of a proxy's routing on one core, for fleets of several sizes.
//!
//! ```text
//! cargo run --release -p integration-tests --example routing_rate -- [REQUESTS]
//! ```
//! The program drives [`FleetState`] in virtual time, without sockets. All nodes prefill and decode, and each one is connected to all others.
//! REQUESTS requests arrive at random, 20 per second and node. Seven of ten prompts begin with one of 64 system prompts, one is a longer turn of
//! an earlier prompt, and the others are new. The lengths are between 100 and 8,000 tokens; each order of magnitude is as likely as another.
//! Each request gets its first byte and its end later, and each node reports ten times per second. The table has the time of one decision,
//! which is the hashes and the choice, and the other calls per decision: first bytes, ends and reports.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use actors::fleet::{FleetAsk, FleetState, NodeId, NodeView, TicketId};
use actors::messages::{DecodeSteps, LoadReport};
use actors::routing::PromptHashes;
use common::splitmix::SplitMix64;
use connector::frame::Capabilities;

const PAGE_TOKENS: u32 = 16;
const POOL_PAGES: u32 = 40_000;
const CONTEXT_TOKENS: u32 = 32_768;
const LENGTHS: (f64, f64) = (100.0, 8000.0);
const SYSTEM_PROMPTS: u64 = 64;
const SYSTEM_TOKENS: u64 = 1024;
const ANSWER_TOKENS: u32 = 200;
/// Arrivals per second and node.
const RATE: u64 = 20;
/// Speed of prefill, and duration of an answer.
const NANOS_PER_TOKEN: u32 = 27_000;
const ANSWER: Duration = Duration::from_secs(2);
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// Memory of the prefix index: the default of `routing.index_bytes`.
const INDEX_BYTES: u64 = 16 << 20;

enum Event {
    Arrives,
    Answered(TicketId),
    Ended(TicketId, usize),
    Reports(usize),
}

/// Time in calls of one kind.
#[derive(Default)]
struct Spent {
    total: Duration,
    longest: Duration,
}

impl Spent {
    fn add<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = work();
        let spent = began.elapsed();
        self.total += spent;
        self.longest = self.longest.max(spent);
        result
    }

    fn nanos(&self, decisions: usize) -> u128 {
        self.total.as_nanos() / decisions as u128
    }
}

/// Prompts of a realistic mixture.
struct Prompts {
    random: SplitMix64,
    recent: Vec<Vec<u32>>,
}

impl Prompts {
    fn uniform(&mut self) -> f64 {
        (self.random.draw() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn tokens(seed: u64, count: u64) -> Vec<u32> {
        let mut random = SplitMix64::new(seed);
        (0..count).map(|_| random.draw() as u32 % 128_000).collect()
    }

    fn next(&mut self) -> Vec<u32> {
        let length = LENGTHS.0 * (LENGTHS.1 / LENGTHS.0).powf(self.uniform());
        let kind = self.random.draw() % 10;
        let mut prompt = match kind {
            0..7 => Self::tokens(self.random.draw() % SYSTEM_PROMPTS, SYSTEM_TOKENS),
            7 if !self.recent.is_empty() => {
                self.recent[self.random.draw() as usize % self.recent.len()].clone()
            }
            _ => Vec::new(),
        };
        let rest = (length as u64).saturating_sub(prompt.len() as u64).max(100);
        prompt.extend(Self::tokens(self.random.draw(), rest));
        prompt.truncate(LENGTHS.1 as usize);
        if self.recent.len() < 256 {
            self.recent.push(prompt.clone());
        } else {
            self.recent[self.random.draw() as usize % 256] = prompt.clone();
        }
        prompt
    }
}

fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, (node / 250) as u8, (node % 250) as u8], 8200))
}

/// The fleet and what its nodes do.
struct Fleet {
    state: FleetState,
    start: Instant,
    ids: Vec<NodeId>,
    /// Answers that run on each node.
    live: Vec<u32>,
    events: BTreeMap<(Duration, u64), Event>,
    scheduled: u64,
}

impl Fleet {
    fn new(nodes: usize) -> Self {
        let mut state = FleetState::new(INDEX_BYTES, Duration::from_secs(1));
        let addresses = (0..nodes).map(|node| format!("{node:04}").into());
        let ids = state.named(addresses).into_iter().map(|(id, _)| id).collect();
        let (live, events) = (vec![0; nodes], BTreeMap::new());
        let mut fleet = Self { state, start: Instant::now(), ids, live, events, scheduled: 0 };
        // A node is known by its address after its first report.
        for now in [Duration::ZERO, Duration::from_millis(1)] {
            (0..nodes).for_each(|node| fleet.report(now, node));
        }
        for node in 0..nodes {
            fleet.at(REPORT_EVERY * node as u32 / nodes as u32, Event::Reports(node));
        }
        fleet
    }

    fn at(&mut self, time: Duration, event: Event) {
        self.scheduled += 1;
        self.events.insert((time, self.scheduled), event);
    }

    fn report(&mut self, now: Duration, node: usize) {
        let view = self.view(node);
        self.tell(now, node, view);
    }

    fn tell(&mut self, now: Duration, node: usize, view: NodeView) {
        let now = self.start + now;
        if let Err(error) = self.state.reported(now, self.ids[node], now, view) {
            panic!("{error}");
        }
    }

    fn view(&self, node: usize) -> NodeView {
        let rows = self.live[node];
        let decode = DecodeSteps { rows: rows.max(1), micros: 8000 + 40 * rows, least_micros: 8000 };
        NodeView {
            name: node as u64 + 1,
            capabilities: Capabilities { prefill: true, decode: true },
            accepts: true,
            model: "model".into(),
            fingerprint: "weights".into(),
            context_tokens: CONTEXT_TOKENS,
            page_tokens: PAGE_TOKENS,
            pool_pages: POOL_PAGES,
            used_pages: rows * 100,
            cache_pages: POOL_PAGES,
            queued: 0,
            load: LoadReport {
                waiting_tokens: u64::from(rows % 7) * 100,
                begun_tokens: 0,
                nanos_per_token: Some(NANOS_PER_TOKEN),
                decoding: rows,
                decode: Some(decode),
            },
            address: Some(address(node)),
            prefillers: (0..self.ids.len()).filter(|other| *other != node).map(address).collect(),
        }
    }
}

fn measure(nodes: usize, requests: usize) {
    let mut fleet = Fleet::new(nodes);
    let mut prompts = Prompts { random: SplitMix64::new(7), recent: Vec::new() };
    let (mut hashes, mut choices, mut ends, mut reports) =
        (Spent::default(), Spent::default(), Spent::default(), Spent::default());
    let (mut arrived, mut tokens, mut next_tick) = (0, 0, Duration::ZERO);
    let index = |id: NodeId| id.0 as usize;
    fleet.at(Duration::ZERO, Event::Arrives);
    while let Some(((time, _), event)) = fleet.events.pop_first() {
        let now = fleet.start + time;
        if time >= next_tick {
            reports.add(|| fleet.state.on_tick(now));
            next_tick = time + REPORT_EVERY;
        }
        match event {
            Event::Arrives if arrived == requests => break,
            Event::Arrives => {
                arrived += 1;
                let prompt = prompts.next();
                tokens += prompt.len();
                let hashes = hashes.add(|| PromptHashes::new(PAGE_TOKENS, None, &prompt));
                let ask = FleetAsk {
                    model: None,
                    prompt: &prompt,
                    salt: None,
                    hashes: Some(&hashes),
                    max_tokens: Some(ANSWER_TOKENS),
                };
                let Ok(ticket) = choices.add(|| fleet.state.place(now, &ask)) else { panic!("no node") };
                let node = index(ticket.decode_on);
                fleet.live[node] += 1;
                let answered = time + Duration::from_nanos(prompt.len() as u64 * u64::from(NANOS_PER_TOKEN));
                fleet.at(answered, Event::Answered(ticket.id));
                fleet.at(answered + ANSWER, Event::Ended(ticket.id, node));
                let gap = -(1.0 - prompts.uniform()).ln() / (RATE as f64 * nodes as f64);
                fleet.at(time + Duration::from_secs_f64(gap), Event::Arrives);
            }
            Event::Answered(ticket) => ends.add(|| fleet.state.answered(now, ticket)),
            Event::Ended(ticket, node) => {
                fleet.live[node] -= 1;
                ends.add(|| {
                    fleet.state.completed(now, ticket);
                    fleet.state.ended(now, ticket);
                });
            }
            Event::Reports(node) => {
                let view = fleet.view(node);
                reports.add(|| fleet.tell(time, node, view));
                fleet.at(time + REPORT_EVERY, Event::Reports(node));
            }
        }
    }
    let decision = hashes.nanos(requests) + choices.nanos(requests);
    println!(
        "{nodes:>6} {:>12} {:>10} {:>10} {:>12.1} {:>14} {:>14} {:>12}",
        tokens / requests,
        hashes.nanos(requests),
        choices.nanos(requests),
        choices.longest.as_secs_f64() * 1e6,
        ends.nanos(requests),
        reports.nanos(requests),
        1_000_000_000 / decision,
    );
}

fn main() {
    let requests = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(20_000);
    println!(
        "{:>6} {:>12} {:>10} {:>10} {:>12} {:>14} {:>14} {:>12}",
        "nodes",
        "tokens/req",
        "hashes ns",
        "choice ns",
        "longest us",
        "other calls ns",
        "reports ns",
        "decisions/s"
    );
    for nodes in [10, 100, 1000] {
        measure(nodes, requests);
    }
}
