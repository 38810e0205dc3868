//! The plan of a history, which its seed determines.

use std::time::Duration;

use actors::peer_link::state::SessionLimits;
use actors::routing::LocalPrefill;

use super::dice::Dice;
use super::topology::{self, NodePlan};

/// Microseconds of a millisecond.
pub(super) const MS: u64 = 1000;
/// Microseconds of a second.
pub(super) const SECOND: u64 = 1_000_000;
/// Tokens in a page.
pub(super) const PAGE_TOKENS: u32 = 4;
/// KV heads of a page, and the number of its bytes: a head has one.
pub(super) const HEADS: u32 = 4;
/// Token ids are below this number. Token 0 ends a sequence.
pub(super) const VOCABULARY: u32 = 50;

/// Time in which a request finishes without faults. In 20,000 histories, each took less than half of it.
const BOUND: u64 = 10 * SECOND;
/// For how long a stalled buffer manager handles no messages. A peer gives up prompts after 30 s without a credit.
pub(super) const POOL_STALL: u64 = 45 * SECOND;
/// A prompt is not prefilled where it was asked if a peer is connected: it is never sooner by this time.
const PEERS_ONLY: Duration = Duration::from_secs(3600);
/// Time in which all nodes are linked without faults.
const LINKING: u64 = 10 * SECOND;

/// A fault. The number names a node by its place in [`Plan::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The node is killed and restarts later.
    Crashes(usize),
    /// The node is stopped and continues later. Its device may continue to write in the meantime.
    Stops(usize),
    /// The connection of these two nodes, the dialler first, breaks, and cannot be opened again for a while.
    LinkBreaks(usize, usize),
    /// From now on puts of the node's sessions fail. Some of them land nevertheless.
    LaneFails(usize),
    /// From now on operations of the node's sessions never complete.
    LaneHangs(usize),
    /// One bit of the next piece of a page that lands is flipped.
    BitFlips,
    /// The next piece of a page that lands does not land, and its lane does not report it.
    PieceMissing,
    /// The node's next frame about filled pages is sent twice, with a wrong credit, or for a request that another node prefills.
    Miscounts(usize),
    /// The node ends in order and restarts later.
    Leaves(usize),
    /// The watchdog reports the node as unhealthy for a while.
    Unhealthy(usize),
    /// After the node's buffer manager has next reserved pages for a transfer, it handles no messages for 45 s, so that its peers get no
    /// credits.
    PoolStalls(usize),
    /// A step of the node's engine fails.
    StepFails(usize),
}

impl Fault {
    /// A fault of any kind at any node or link.
    fn any(dice: &mut Dice, nodes: usize, links: &[(usize, usize)], hashed: bool) -> Self {
        let node = dice.between(0, nodes as u64 - 1) as usize;
        let (dialler, listener) = *dice.one_of(links);
        match dice.between(0, 15) {
            0..=2 => Self::Crashes(node),
            3..=5 => Self::Stops(node),
            6 | 7 => Self::LinkBreaks(dialler, listener),
            8 => Self::LaneFails(dialler),
            9 => Self::LaneHangs(dialler),
            10 if hashed && dice.one_in(2) => Self::BitFlips,
            10 if hashed => Self::PieceMissing,
            10 | 11 => Self::Miscounts(dialler),
            12 => Self::Leaves(node),
            13 => Self::Unhealthy(node),
            _ => Self::StepFails(node),
        }
    }

    /// The fault's name without the number.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crashes(_) => "node crashes",
            Self::Stops(_) => "node stops",
            Self::LinkBreaks(..) => "link breaks",
            Self::LaneFails(_) => "lane fails",
            Self::LaneHangs(_) => "lane hangs",
            Self::BitFlips => "bit flips",
            Self::PieceMissing => "piece missing",
            Self::Miscounts(_) => "node miscounts",
            Self::Leaves(_) => "node leaves",
            Self::Unhealthy(_) => "node unhealthy",
            Self::PoolStalls(_) => "pool stalls",
            Self::StepFails(_) => "step fails",
        }
    }
}

/// Sizes, rates and faults of one history.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed of this plan.
    pub seed: u64,
    /// The nodes.
    pub nodes: Vec<NodePlan>,
    /// Maximum number of tokens of one prompt in a step.
    pub chunk_tokens: u32,
    /// Number of further tokens for which the pages of a request are reserved.
    pub growth_tokens: u32,
    /// In some sessions the peer writes directly, so that closing the receiving end does not stop its puts.
    pub foreign: bool,
    /// A node cannot see whether a peer's process has ended.
    pub blind: bool,
    /// Every fourth Hello stays in a buffer, often until its dialler has given up and sent another one.
    pub late_hellos: bool,
    /// Pages are hashed and checked.
    pub hashed: bool,
    /// Pages are in device memory, so that adjacent pages go as one put.
    pub on_device: bool,
    /// A prompt is prefilled where it was asked if that is sooner by more than this.
    pub local_if_sooner_by: Duration,
    /// Whether nodes prefill their own prompts.
    pub local: LocalPrefill,
    /// Limits of the sessions of a node. `None`: each node may have a session with every other one.
    pub limits: Option<SessionLimits>,
    /// Engines accept a second step while one runs.
    pub runs_ahead: bool,
    /// Maximum number of rows in a step, often less than the number of decoding sequences.
    pub step_rows: u32,
    /// Maximum number of grammars that a node keeps for a session.
    pub grammars: u32,
    /// Nodes compile no grammars for peers.
    pub refuses_grammars: bool,
    /// Deadline of a request in microseconds.
    pub deadline: u64,
    /// In a history without faults whose peers prefill all prompts: every request finishes in this time. If nodes may not prefill their own
    /// prompts, it may also end because its peers have no room. The time is much shorter than the deadline, so that a deadline does not end
    /// a circular wait.
    pub bound: Option<u64>,
    /// Arrival times of requests in microseconds, and the nodes that get them.
    pub requests: Vec<(u64, usize)>,
    /// Faults and their times.
    pub faults: Vec<(u64, Fault)>,
    /// The time after which there are no more faults, and everything heals.
    pub horizon: u64,
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let nodes = topology::nodes(&mut dice);
        let links: Vec<(usize, usize)> = (0..nodes.len())
            .flat_map(|dialler| nodes[dialler].dials.iter().map(move |listener| (dialler, *listener)))
            .collect();
        let is_mixed = nodes.iter().any(|node| node.prefill_pages.is_some());
        let is_calm = is_mixed && dice.one_in(3);
        let began = if is_calm { LINKING } else { 0 };
        // In a burst all pools are full.
        let (from, until, most) = if is_mixed && dice.one_in(2) {
            let from = began + dice.between(2 * SECOND, 8 * SECOND);
            (from, from + dice.between(10 * MS, 500 * MS), 40)
        } else {
            (began, began + dice.between(1, 12) * SECOND, 24)
        };
        let horizon = until + dice.between(0, 4) * SECOND;
        // A node without peers must prefill its own prompts.
        let is_dialled = |node: usize| links.iter().any(|(_, listener)| *listener == node);
        let may_forbid = (0..nodes.len()).all(|node| !nodes[node].decodes || is_dialled(node));
        let homes: Vec<usize> = (0..nodes.len()).filter(|node| nodes[*node].decodes).collect();
        let requests = (0..dice.between(2, most)).map(|_| (dice.between(from, until), *dice.one_of(&homes)));
        let requests = requests.collect();
        let hashed = !dice.one_in(3);
        let faults = if is_calm || dice.one_in(6) { 0 } else { dice.between(1, 8) };
        let mut faults: Vec<(u64, Fault)> = (0..faults)
            .map(|_| {
                let fault = Fault::any(&mut dice, nodes.len(), &links, hashed);
                (dice.between(0, horizon), fault)
            })
            .collect();
        let stalls = !is_calm && dice.one_in(8);
        if stalls {
            faults.push((dice.between(from, until), Fault::PoolStalls(dice.one_of(&links).1)));
        }
        // While a pool is stalled, peers give up a prompt before its deadline.
        let (horizon, deadlines) = if stalls { (horizon + POOL_STALL, (60, 90)) } else { (horizon, (5, 30)) };
        Self {
            seed,
            nodes,
            chunk_tokens: dice.between(1, 16) as u32,
            growth_tokens: dice.between(1, 30) as u32,
            foreign: dice.one_in(2),
            blind: dice.one_in(4),
            late_hellos: dice.one_in(4) && !is_calm,
            hashed,
            deadline: if is_calm { 6 * BOUND } else { dice.between(deadlines.0, deadlines.1) * SECOND },
            bound: is_calm.then_some(BOUND),
            requests,
            faults,
            horizon,
            on_device: dice.one_in(2),
            limits: (is_mixed && !is_calm && dice.one_in(6)).then(|| SessionLimits {
                sessions: dice.between(1, 3) as u32,
                idle: Duration::from_secs(dice.between(8, 15)),
            }),
            local_if_sooner_by: if is_calm || dice.one_in(2) {
                PEERS_ONLY
            } else {
                Duration::from_millis(50)
            },
            local: if may_forbid && dice.one_in(3) { LocalPrefill::Never } else { LocalPrefill::Auto },
            runs_ahead: dice.one_in(2),
            step_rows: dice.between(1, 8) as u32,
            grammars: dice.between(1, 4) as u32,
            refuses_grammars: dice.one_in(8),
        }
    }

    /// True if a prompt may be prefilled where it was asked although a peer is connected, because that is sooner.
    pub(super) fn is_local_if_sooner(&self) -> bool {
        self.local == LocalPrefill::Auto && self.local_if_sooner_by < PEERS_ONLY
    }
}
