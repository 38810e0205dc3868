//! The plan of a history, which its seed determines.

use super::dice::Dice;

/// Microseconds of a millisecond.
pub(super) const MS: u64 = 1000;
/// Microseconds of a second.
pub(super) const SECOND: u64 = 1_000_000;
/// Tokens in a page.
pub(super) const PAGE_TOKENS: u32 = 4;
/// Token ids are below this number. Token 0 ends a sequence.
pub(super) const VOCABULARY: u32 = 50;

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
    /// One bit of the next page that lands is flipped.
    BitFlips,
    /// The node's next frame about filled pages is sent twice, with a wrong credit, or for a request that another node prefills.
    Miscounts(usize),
    /// The node ends in order and restarts later.
    Leaves(usize),
    /// The watchdog reports the node as unhealthy for a while.
    Unhealthy(usize),
    /// A step of the node's engine fails.
    StepFails(usize),
}

impl Fault {
    /// The fault's name without the number.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crashes(_) => "node crashes",
            Self::Stops(_) => "node stops",
            Self::LinkBreaks(..) => "link breaks",
            Self::LaneFails(_) => "lane fails",
            Self::LaneHangs(_) => "lane hangs",
            Self::BitFlips => "bit flips",
            Self::Miscounts(_) => "node miscounts",
            Self::Leaves(_) => "node leaves",
            Self::Unhealthy(_) => "node unhealthy",
            Self::StepFails(_) => "step fails",
        }
    }
}

/// The size of a node, and what it does.
#[derive(Clone, Debug)]
pub struct NodePlan {
    /// The node serves requests: it has a proxy and a decoder.
    pub decodes: bool,
    /// The nodes for which it prefills. It dials them. If there are any, it has a prefiller and a transfer actor.
    pub dials: Vec<usize>,
    /// Pages in its pool.
    pub pages: u32,
    /// Maximum number of outstanding credits, in pages.
    pub ring_pages: u32,
    /// Pages that only prompts of peers may use. See [`PoolConfig`](actors::buffer_manager::state::PoolConfig).
    pub prefill_pages: Option<u32>,
}

impl NodePlan {
    /// Pages that one of its own requests may use.
    pub(super) fn request_pages(&self) -> u32 {
        self.pages - self.ring_pages - self.prefill_pages.unwrap_or_default()
    }

    /// Pages of the longest prompt that it can prefill for a peer.
    pub(super) fn prompt_pages(&self) -> u32 {
        self.prefill_pages.unwrap_or(self.pages)
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
    /// Nodes write the memory of their peers directly, so that closing the receiving end does not stop puts.
    pub foreign: bool,
    /// A node cannot see whether a peer's process has ended.
    pub blind: bool,
    /// Every fourth Hello stays in a buffer, often until its dialler has given up and sent another one.
    pub late_hellos: bool,
    /// Pages are hashed and checked.
    pub hashed: bool,
    /// Pages are in device memory, so that adjacent pages go as one put.
    pub on_device: bool,
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
        let senders = dice.between(1, 3) as usize;
        let receiver_pages = dice.between(8, 40) as u32;
        let ring_pages = match dice.between(0, 2) {
            0 => dice.between(1, 2) as u32,
            _ => dice.between(1, u64::from(receiver_pages / 2)) as u32,
        };
        let horizon = dice.between(1, 12) * SECOND;
        let hashed = !dice.one_in(3);
        let requests = (0..dice.between(2, 24)).map(|_| (dice.between(0, horizon), 0)).collect();
        let count = if dice.one_in(6) { 0 } else { dice.between(1, 8) };
        let faults = (0..count)
            .map(|_| {
                let who = dice.between(1, senders as u64) as usize;
                let fault = match dice.between(0, 14) {
                    0 | 1 => Fault::Crashes(who),
                    2 => Fault::Crashes(0),
                    3 | 4 => Fault::Stops(who),
                    5 => Fault::Stops(0),
                    6 | 7 => Fault::LinkBreaks(who, 0),
                    8 => Fault::LaneFails(who),
                    9 => Fault::LaneHangs(who),
                    10 if hashed => Fault::BitFlips,
                    10 | 11 => Fault::Miscounts(who),
                    12 => Fault::Leaves(who),
                    13 => Fault::Unhealthy(who),
                    _ => Fault::StepFails(dice.between(0, senders as u64) as usize),
                };
                (dice.between(0, horizon), fault)
            })
            .collect();
        let receiver = NodePlan {
            decodes: true,
            dials: Vec::new(),
            pages: receiver_pages,
            ring_pages,
            prefill_pages: None,
        };
        let sender = NodePlan {
            decodes: false,
            dials: vec![0],
            pages: dice.between(4, 40) as u32,
            ring_pages: 0,
            prefill_pages: None,
        };
        Self {
            seed,
            nodes: std::iter::once(receiver).chain(std::iter::repeat_n(sender, senders)).collect(),
            chunk_tokens: dice.between(1, 16) as u32,
            growth_tokens: dice.between(1, 30) as u32,
            foreign: dice.one_in(2),
            blind: dice.one_in(4),
            late_hellos: dice.one_in(4),
            hashed,
            deadline: dice.between(5, 30) * SECOND,
            requests,
            faults,
            horizon,
            on_device: dice.one_in(2),
            runs_ahead: dice.one_in(2),
            step_rows: dice.between(1, 8) as u32,
            grammars: dice.between(1, 4) as u32,
            refuses_grammars: dice.one_in(8),
        }
    }
}
