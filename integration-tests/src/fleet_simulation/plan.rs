//! What happens in a history: its nodes, its load and its faults.

use crate::simulation::dice::Dice;

pub(super) const MILLI: u64 = 1000;
pub(super) const SECOND: u64 = 1_000_000;

/// Maximum duration of a request at its proxy.
pub(super) const DEADLINE: u64 = 10 * SECOND;
/// Nodes register and proxies find them until then.
pub(super) const BEGIN: u64 = 8 * SECOND;
/// Faults begin in this time.
const FAULTS: u64 = 60 * SECOND;
/// Time after the last fault in which everything must recover: a request may fail until its deadline, and its node then pauses for up to 30 s.
pub(super) const SETTLE: u64 = 45 * SECOND;
/// Time after that in which every request must be answered.
const CALM: u64 = 15 * SECOND;

/// Microseconds of a step that decodes.
pub(super) const STEP: u64 = 25 * MILLI;
/// Microseconds of a prompt token.
pub(super) const TOKEN: u64 = 50;

/// Something that breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A node dies and comes back as another process.
    Crash,
    /// Two nodes die and come back with each other's address.
    Swap,
    /// A node does nothing for a while.
    Freeze,
    /// A proxy and some nodes do not reach each other.
    Partition,
    /// A node does not reach etcd.
    NodeWithoutEtcd,
    /// A node drains, leaves, and comes back as another process, half the time at another address.
    Upgrade,
    /// A node is four times as slow.
    Slow,
    /// A node breaks the connection of each request before the first byte.
    Breaks,
    /// A node breaks the connection of each request after the first byte.
    BreaksAnswers,
    /// A node refuses each request with 503.
    Busy,
    /// A node answers no request.
    Mute,
    /// A proxy does nothing for a while.
    ProxyPause,
    /// A proxy starts afresh.
    ProxyRestart,
    /// A proxy does not reach etcd.
    ProxyWithoutEtcd,
    /// Etcd is down for a while.
    EtcdOutage,
    /// Etcd is down and comes back empty, as another cluster.
    EtcdEmpty,
    /// Etcd is down and comes back as it was some time ago.
    EtcdRestored,
    /// Etcd forgets its history.
    Compaction,
    /// A watch breaks.
    WatchBreaks,
    /// A watch loses an event.
    WatchLoses,
    /// Watches are late.
    WatchLate,
}

/// Faults of nodes.
const OF_NODES: [Fault; 11] = [
    Fault::Crash,
    Fault::Swap,
    Fault::Freeze,
    Fault::Partition,
    Fault::NodeWithoutEtcd,
    Fault::Upgrade,
    Fault::Slow,
    Fault::Breaks,
    Fault::BreaksAnswers,
    Fault::Busy,
    Fault::Mute,
];

/// Faults of proxies and of etcd.
const OF_OTHERS: [Fault; 10] = [
    Fault::ProxyPause,
    Fault::ProxyRestart,
    Fault::ProxyWithoutEtcd,
    Fault::EtcdOutage,
    Fault::EtcdEmpty,
    Fault::EtcdRestored,
    Fault::Compaction,
    Fault::WatchBreaks,
    Fault::WatchLoses,
    Fault::WatchLate,
];

/// The size of histories. What is `None` is drawn from the seed.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    /// Nodes.
    pub nodes: Option<usize>,
    /// Requests.
    pub requests: Option<u64>,
    /// Proxies.
    pub proxies: Option<usize>,
}

/// A history.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Nodes.
    pub nodes: usize,
    /// Proxies.
    pub proxies: usize,
    /// Requests.
    pub requests: u64,
    /// Every fourth node only prefills.
    pub has_prefillers: bool,
    /// Proxies find the nodes with DNS, and not in etcd.
    pub has_dns: bool,
    /// Sequences that a node decodes at one time.
    pub rows: u32,
    /// Faults, with the time at which each one begins. None in one of four histories.
    pub faults: Vec<(u64, Fault)>,
    /// All nodes are upgraded one after the other, with this time between two.
    pub rolling: Option<u64>,
    /// All faults are over.
    pub heals: u64,
    /// The last request arrives before this.
    pub ends: u64,
}

impl Plan {
    /// The history of a seed.
    pub fn of(seed: u64, shape: &Shape) -> Self {
        let mut dice = Dice::new(seed);
        let nodes = shape.nodes.unwrap_or(dice.between(2, 20) as usize).max(1);
        let proxies = shape.proxies.unwrap_or(dice.between(1, 3) as usize).max(1);
        let requests = shape.requests.unwrap_or(dice.between(800, 4000));
        let is_calm = dice.one_in(4);
        let heals = BEGIN + if is_calm { 10 * SECOND } else { FAULTS };
        let ends = heals + CALM + if is_calm { 0 } else { SETTLE };
        let (has_prefillers, has_dns) = (nodes >= 4 && dice.one_in(3), dice.one_in(5));
        // An answer takes about a second. The nodes that decode are busy to a fifth up to three fifths.
        let decoders = if has_prefillers { nodes - nodes / 4 } else { nodes };
        let per_node = requests as f64 * SECOND as f64 / (ends - BEGIN) as f64 / decoders as f64;
        let rows = (per_node * 100.0 / dice.between(20, 60) as f64).ceil().max(3.0) as u32;
        let mut faults = Vec::new();
        let mut rolling = None;
        if !is_calm {
            let mut add = |kinds: &[Fault], count: u64| {
                for _ in 0..count {
                    faults.push((dice.between(BEGIN + SECOND, heals - SECOND), *dice.one_of(kinds)));
                }
            };
            let size = nodes as u64;
            add(&OF_NODES, 4 + size / 2);
            add(&OF_OTHERS, 4 + 2 * proxies as u64 + size / 50);
            rolling = dice.one_in(3).then(|| (FAULTS / 2) / size);
        }
        faults.sort_by_key(|(at, _)| *at);
        Self { seed, nodes, proxies, requests, has_prefillers, has_dns, rows, faults, rolling, heals, ends }
    }

    /// Whether a request that arrives at this time must be answered.
    pub(super) fn is_calm_at(&self, at: u64) -> bool {
        at >= self.heals + SETTLE || self.faults.is_empty()
    }
}
