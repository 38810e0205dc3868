//! The sums of what the state counts, for checks: without requests only nodes and the index are left, and without nodes nothing is.

use super::FleetState;

/// What a [`FleetState`] counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FleetCounts {
    /// Nodes.
    pub nodes: usize,
    /// Live requests.
    pub live: usize,
    /// Requests that have a place in the retry budget.
    pub retrying: usize,
    /// Placed prompts that are in no report yet.
    pub unreported: usize,
    /// Tokens of placed prompts that count as waiting.
    pub waiting_tokens: u64,
    /// Pages of placed requests.
    pub placed_pages: u64,
    /// Expected thousandths of rows of placed requests.
    pub placed_millirows: u64,
    /// Bytes of the prefix indexes.
    pub index_bytes: u64,
}

impl FleetState {
    /// What the state counts now.
    pub fn counts(&self) -> FleetCounts {
        let (nodes, live, retrying) = (self.nodes.len(), self.requests.len(), self.retrying);
        let unreported = self.nodes.values().map(|node| node.unreported.len()).sum();
        let mut counts = FleetCounts { nodes, live, retrying, unreported, ..FleetCounts::default() };
        for routing in self.models.values().map(|model| &model.routing) {
            let (pages, millirows) = routing.placed();
            counts.waiting_tokens += routing.waiting();
            counts.placed_pages += pages;
            counts.placed_millirows += millirows;
            counts.index_bytes += routing.index_bytes();
        }
        counts
    }
}
