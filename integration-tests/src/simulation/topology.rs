//! The nodes of a history: their sizes, and which of them prefill for which others.

use super::dice::Dice;

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
    /// Shards into which the node divides a page.
    pub shards: u32,
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

/// The nodes of a history. In half of the histories, one node decodes and one to three nodes prefill. In half of the histories, nodes divide their
/// pages into shards, each node in its own way.
pub(super) fn nodes(dice: &mut Dice) -> Vec<NodePlan> {
    let mut nodes = undivided(dice);
    if dice.one_in(2) {
        nodes.iter_mut().for_each(|node| node.shards = *dice.one_of(&[1, 2, 4]));
    }
    nodes
}

fn undivided(dice: &mut Dice) -> Vec<NodePlan> {
    if dice.one_in(2) {
        return receiver_and_senders(dice);
    }
    let dials = match dice.between(0, 6) {
        0 | 1 => ring(2),
        2 => ring(dice.between(3, 4) as usize),
        3 => ring(5),
        // All have the same list, so that each dials itself too.
        4 => vec![vec![0, 1, 2]; 3],
        // A sender, two nodes that prefill for each other, and a receiver.
        5 => vec![vec![1, 3], vec![2], vec![1, 3], vec![]],
        // A sender with two receivers.
        _ => vec![vec![1, 2], vec![], vec![]],
    };
    // All nodes have the same sizes, so that each of them can prefill the longest prompt. A pool has room for two such prompts: an own one
    // and a peer's.
    let request_pages = dice.between(2, 8) as u32;
    let ring_pages = dice.between(1, u64::from(request_pages)) as u32;
    let quota = request_pages + dice.between(0, u64::from(request_pages / 2)) as u32;
    let is_dialled = |node: usize| dials.iter().any(|dials| dials.contains(&node));
    (0..dials.len())
        .map(|node| {
            let (decodes, dials) = (is_dialled(node), dials[node].clone());
            let prefill_pages = (decodes && !dials.is_empty()).then_some(quota);
            let ring_pages = if decodes { ring_pages } else { 0 };
            let pages = request_pages + ring_pages + prefill_pages.unwrap_or_default();
            NodePlan { decodes, dials, pages, ring_pages, prefill_pages, shards: 1 }
        })
        .collect()
}

fn receiver_and_senders(dice: &mut Dice) -> Vec<NodePlan> {
    let pages = dice.between(8, 40) as u32;
    let ring_pages = match dice.between(0, 2) {
        0 => dice.between(1, 2) as u32,
        _ => dice.between(1, u64::from(pages / 2)) as u32,
    };
    let dials = Vec::new();
    let receiver = NodePlan { decodes: true, dials, pages, ring_pages, prefill_pages: None, shards: 1 };
    let pages = dice.between(4, 40) as u32;
    // A sender may serve requests too. It waits for no peer, so that peers' prompts need no pages of their own.
    let decodes = dice.one_in(4);
    let dials = vec![0];
    let sender = NodePlan { decodes, dials, pages, ring_pages: 0, prefill_pages: None, shards: 1 };
    let senders = std::iter::repeat_n(sender, dice.between(1, 3) as usize);
    std::iter::once(receiver).chain(senders).collect()
}

/// Each node prefills for the next one.
fn ring(count: usize) -> Vec<Vec<usize>> {
    (0..count).map(|node| vec![(node + 1) % count]).collect()
}
