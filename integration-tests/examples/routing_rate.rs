//! Decisions per second of a proxy's routing on one core, for fleets of several sizes.
//!
//! ```text
//! cargo run --release -p integration-tests --example routing_rate -- [REQUESTS]
//! ```
//! The program drives [`FleetState`] in virtual time, without sockets. All nodes prefill and decode, and each one is connected to all others.
//! REQUESTS requests arrive at random, 20 per second and node. Seven of ten prompts begin with one of 64 system prompts, one is a longer turn of
//! an earlier prompt, and the others are new. The lengths are between 100 and 8,000 tokens; each order of magnitude is as likely as another.
//! Each request gets its first byte and its end later, and each node reports ten times per second. Before the measurement, the fleet runs for
//! 10 s of virtual time and 20,000 requests, so that answers end as often as they begin and the prefix index is full.
//!
//! The table has the average times per request. *hashes* is the time of [`PromptHashes::new`], which needs no lock, and *choice* is that of
//! [`FleetState::place`]. Both together are a decision. *ends* is the time of the calls at the first byte and at the end of an answer, and *reports*
//! that of all reports and ticks between two requests. *requests/s* counts all four.

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
/// Virtual time and requests before the measurement.
const WARM_UP: (Duration, usize) = (Duration::from_secs(10), 20_000);

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

    fn nanos(&self, requests: usize) -> u128 {
        self.total.as_nanos() / requests as u128
    }
}

/// What is measured.
#[derive(Default)]
struct Measured {
    requests: usize,
    tokens: usize,
    hashes: Spent,
    choices: Spent,
    ends: Spent,
    reports: Spent,
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
        let mut state = FleetState::new(INDEX_BYTES, Duration::from_secs(1), 0);
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

fn measure(nodes: usize, requests: usize) -> Measured {
    let mut fleet = Fleet::new(nodes);
    let mut prompts = Prompts { random: SplitMix64::new(7), recent: Vec::new() };
    let mut measured = Measured::default();
    let (mut is_warm, mut next_tick) = (false, Duration::ZERO);
    let index = |id: NodeId| id.0 as usize;
    fleet.at(Duration::ZERO, Event::Arrives);
    while let Some(((time, _), event)) = fleet.events.pop_first() {
        let now = fleet.start + time;
        if time >= next_tick {
            measured.reports.add(|| fleet.state.on_tick(now));
            next_tick = time + REPORT_EVERY;
        }
        match event {
            Event::Arrives if is_warm && measured.requests == requests => break,
            Event::Arrives => {
                if !is_warm && time >= WARM_UP.0 && measured.requests >= WARM_UP.1 {
                    (is_warm, measured) = (true, Measured::default());
                }
                let prompt = prompts.next();
                measured.requests += 1;
                measured.tokens += prompt.len();
                let hashes = measured.hashes.add(|| PromptHashes::new(PAGE_TOKENS, None, &prompt));
                let ask = FleetAsk {
                    model: None,
                    prompt: &prompt,
                    salt: None,
                    hashes: Some(&hashes),
                    max_tokens: Some(ANSWER_TOKENS),
                };
                let Ok(ticket) = measured.choices.add(|| fleet.state.place(now, &ask)) else {
                    panic!("no node")
                };
                let node = index(ticket.decode_on);
                fleet.live[node] += 1;
                let answered = time + Duration::from_nanos(prompt.len() as u64 * u64::from(NANOS_PER_TOKEN));
                fleet.at(answered, Event::Answered(ticket.id));
                fleet.at(answered + ANSWER, Event::Ended(ticket.id, node));
                let gap = -(1.0 - prompts.uniform()).ln() / (RATE as f64 * nodes as f64);
                fleet.at(time + Duration::from_secs_f64(gap), Event::Arrives);
            }
            Event::Answered(ticket) => measured.ends.add(|| fleet.state.answered(now, ticket)),
            Event::Ended(ticket, node) => {
                fleet.live[node] -= 1;
                measured.ends.add(|| {
                    fleet.state.completed(now, ticket);
                    fleet.state.ended(now, ticket);
                });
            }
            Event::Reports(node) => {
                let view = fleet.view(node);
                measured.reports.add(|| fleet.tell(time, node, view));
                fleet.at(time + REPORT_EVERY, Event::Reports(node));
            }
        }
    }
    measured
}

fn main() {
    let requests = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(20_000);
    println!(
        "{:>6} {:>12} {:>10} {:>10} {:>12} {:>10} {:>12} {:>12} {:>12}",
        "nodes",
        "tokens/req",
        "hashes ns",
        "choice ns",
        "longest us",
        "ends ns",
        "reports ns",
        "decisions/s",
        "requests/s"
    );
    for nodes in [10, 100, 1000] {
        let Measured { tokens, hashes, choices, ends, reports, .. } = measure(nodes, requests);
        let longest = choices.longest.as_secs_f64() * 1e6;
        let [hashes, choices, ends, reports] =
            [hashes, choices, ends, reports].map(|spent| spent.nanos(requests));
        let decision = hashes + choices;
        println!(
            "{nodes:>6} {:>12} {hashes:>10} {choices:>10} {longest:>12.1} {ends:>10} {reports:>12} {:>12} {:>12}",
            tokens / requests,
            1_000_000_000 / decision,
            1_000_000_000 / (decision + ends + reports),
        );
    }
}
