//! A fleet of four nodes with caches that are too small for all prompts, in virtual time: how much is computed, how evenly, and how soon.

use std::collections::{HashMap, VecDeque};
use std::fmt;

use common::splitmix::SplitMix64;

use super::*;
use crate::routing::prefix::PrefixHash;

const NODES: u32 = 4;
const SYSTEM_PROMPTS: u32 = 32;
const SYSTEM_TOKENS: u32 = 512;
const SUFFIX_TOKENS: u32 = 32;
const REQUESTS: u32 = 400;
/// The hashes of few system prompts spread them over the nodes well or badly, so several sets are tried.
const SETS: u32 = 10;
/// Pages that hold 10 of the prompts.
const POOL_PAGES: u32 = 10 * (SYSTEM_TOKENS + SUFFIX_TOKENS) / PAGE;
/// Microseconds per token of every node.
const MICROS: u64 = 1000;

/// A node that only decodes.
const OTHER: u32 = 100;

/// A node: a prefix cache that forgets the least recently used page, and a queue.
#[derive(Default)]
struct SmallNode {
    cached: HashMap<PrefixHash, u64>,
    uses: u64,
    /// Virtual time at which the last prompt in the queue is computed.
    free_at: u64,
    computed: u64,
}

impl SmallNode {
    /// The pages of a prompt come into the cache.
    fn keep(&mut self, prompt: &[u32]) {
        let pages = prefixes(None, prompt, PAGE);
        for page in pages.into_iter().rev() {
            self.uses += 1;
            self.cached.insert(page, self.uses);
        }
        while self.cached.len() > POOL_PAGES as usize {
            let oldest = *self.cached.iter().min_by_key(|(_, used)| **used).unwrap().0;
            self.cached.remove(&oldest);
        }
    }

    /// Computes a prompt that arrives at `now`. Returns the number of computed tokens and the time of the first token.
    fn compute(&mut self, now: u64, prompt: &[u32]) -> (u32, u64) {
        let pages = prefixes(None, prompt, PAGE);
        let usable = &pages[..(prompt.len() - 1) / PAGE as usize];
        let resident = usable.iter().take_while(|page| self.cached.contains_key(page)).count() as u32 * PAGE;
        self.keep(prompt);
        let tokens = prompt.len() as u32 - resident;
        self.computed += u64::from(tokens);
        self.free_at = self.free_at.max(now) + u64::from(tokens) * MICROS;
        (tokens, self.free_at)
    }
}

/// What a run has shown.
#[derive(Debug)]
struct Outcome {
    computed: u64,
    /// Computed tokens of the busiest node over those of the least busy one.
    max_over_min: f64,
    mean_ttft_ms: u64,
    p99_ttft_ms: u64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { computed, max_over_min, mean_ttft_ms, p99_ttft_ms } = self;
        write!(
            f,
            "{computed} tokens computed, busiest over least busy node {max_over_min:.2}, time to first token {mean_ttft_ms} ms \
             (p99 {p99_ttft_ms})"
        )
    }
}

/// How nodes are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// At random; the prefilling node decodes.
    Random,
    /// The prefilling and the decoding node at random.
    RandomPair,
    /// One router; the four nodes prefill for a fifth one, which decodes.
    Prefillers,
    /// One router; the four nodes prefill and decode.
    Nodes,
    /// Four routers that know nothing of each other; the four nodes prefill for one decoder of each router.
    Routers,
}

/// The routers, which know the nodes.
fn routers(way: Way) -> Vec<Routing<u32>> {
    let count = if way == Way::Routers { 4 } else { 1 };
    let mut routers: Vec<Routing<u32>> = (0..count)
        .map(|_| {
            Routing::new(
                PAGE,
                RoutingConfig { local_if_sooner_by: Duration::ZERO, ..RoutingConfig::default() },
            )
        })
        .collect();
    for routing in &mut routers {
        if matches!(way, Way::Prefillers | Way::Routers) {
            routing.joined(OTHER, node(100, 10_000));
        }
        for id in 0..NODES {
            let capabilities = Capabilities { prefill: true, decode: way == Way::Nodes };
            routing.joined(id, Joining { name: u64::from(id) + 7, capabilities, pool_pages: POOL_PAGES });
        }
    }
    routers
}

/// Requests with system prompts of Zipf's distribution (exponent 1) and random suffixes. `load` is the arrival rate over the rate that
/// the four nodes would compute without caches. Each `set` has other system prompts.
fn simulate(way: Way, seed: u64, set: u32, load_share: f64) -> Outcome {
    let (start, mut random) = (Instant::now(), SplitMix64::new(seed));
    let mut uniform = move || (random.draw() >> 11) as f64 / (1_u64 << 53) as f64;
    let weights: Vec<f64> = (1..=SYSTEM_PROMPTS).map(|rank| 1.0 / f64::from(rank)).collect();
    let total: f64 = weights.iter().sum();
    let mut nodes: Vec<SmallNode> = (0..NODES).map(|_| SmallNode::default()).collect();
    let mut routers = routers(way);
    let count = routers.len();
    let mut ends: VecDeque<(u64, usize, Placed<u32>, u32)> = VecDeque::new();
    let (mut now, mut ttft) = (0_u64, Vec::new());
    let gap = f64::from(SYSTEM_TOKENS + SUFFIX_TOKENS) * MICROS as f64 / f64::from(NODES) / load_share;
    for number in 0..REQUESTS {
        now += (-(1.0 - uniform()).ln() * gap) as u64;
        let at = |micros| start + Duration::from_micros(micros);
        ends.make_contiguous().sort_by_key(|(end, ..)| *end);
        while let Some((end, router, placed, tokens)) = ends.pop_front_if(|(end, ..)| *end <= now) {
            let outcome = PrefillOutcome::Computed { tokens, micros: u64::from(tokens) * MICROS };
            routers[router].prefilled(at(end), placed.prefill_on, placed.prefill_tokens, &outcome);
            routers[router].decoded(placed.decode_on, placed.decode);
        }
        let mut pick = uniform() * total;
        let system = weights
            .iter()
            .position(|weight| {
                pick -= weight;
                pick < 0.0
            })
            .unwrap_or(0) as u32;
        let text = [
            prompt(SYSTEM_PROMPTS * set + system, SYSTEM_TOKENS),
            prompt(SYSTEM_PROMPTS * SETS + number, SUFFIX_TOKENS),
        ]
        .concat();
        if matches!(way, Way::Random | Way::RandomPair) {
            let mut node = || (uniform() * f64::from(NODES)) as usize;
            let (prefiller, decoder) = (node(), node());
            let (_, end) = nodes[prefiller].compute(now, &text);
            if way == Way::RandomPair && decoder != prefiller {
                nodes[decoder].keep(&text);
            }
            ttft.push((end - now) / 1000);
            continue;
        }
        let router = number as usize % count;
        let decode_on = match way {
            Way::Nodes => None,
            _ => Some(OTHER),
        };
        let local = if way == Way::Nodes { LocalPrefill::Auto } else { LocalPrefill::Never };
        let placed = routers[router].place(at(now), &Ask { decode_on, local, ..ask(&text) }).unwrap();
        let (tokens, end) = nodes[placed.prefill_on as usize].compute(now, &text);
        if placed.decode_on != placed.prefill_on && placed.decode_on != OTHER {
            // The pages land there.
            nodes[placed.decode_on as usize].keep(&text);
        }
        ttft.push((end - now) / 1000);
        ends.push_back((end, router, placed, tokens));
    }
    let each: Vec<u64> = nodes.iter().map(|node| node.computed).collect();
    let (computed, max, min) =
        (each.iter().sum::<u64>(), each.iter().max().unwrap(), each.iter().min().unwrap());
    ttft.sort_unstable();
    Outcome {
        computed,
        max_over_min: *max as f64 / *min as f64,
        mean_ttft_ms: ttft.iter().sum::<u64>() / ttft.len() as u64,
        p99_ttft_ms: ttft[ttft.len() * 99 / 100],
    }
}

/// At most half of what random routing computes, and even loads, on average over the sets. `--no-capture` shows the figures.
#[test]
fn prefixes_are_computed_once_and_loads_are_even() {
    let check = |way: Way, random: Way, most: f64| {
        for (load_share, seed) in [(0.2, 1), (0.2, 2), (0.6, 3), (0.6, 4), (1.0, 5), (1.0, 6)] {
            let (mut share, mut uneven) = (0.0, 0.0);
            for set in 0..SETS {
                let theirs = simulate(random, seed, set, load_share);
                let ours = simulate(way, seed, set, load_share);
                let context = format!("{way:?}, load {load_share}, seed {seed}, set {set}");
                println!("{context}\n    {ours}\n    {theirs}");
                assert!(ours.mean_ttft_ms < theirs.mean_ttft_ms, "{context}: {ours}, {theirs}");
                share += ours.computed as f64 / theirs.computed as f64 / f64::from(SETS);
                uneven += ours.max_over_min / f64::from(SETS);
            }
            let context = format!("{way:?}, load {load_share}, seed {seed}");
            println!("{context}: {share:.2} of {random:?}, busiest over least busy node {uneven:.2}");
            assert!(share <= most && uneven <= 1.5, "{context}: {share:.2}, {uneven:.2}");
        }
    };
    check(Way::Prefillers, Way::Random, 0.5);
    check(Way::Nodes, Way::RandomPair, 0.5);
    check(Way::Routers, Way::Random, 0.8);
}
