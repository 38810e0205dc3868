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
    /// Placed requests that are in no report yet, at the node that decodes and at another one that prefills: at most two for each request.
    pub unreported: usize,
    /// Members of the routers that get requests.
    pub accepting: usize,
    /// Tokens of placed prompts that count as waiting.
    pub waiting_tokens: u64,
    /// Pages of placed requests.
    pub placed_pages: u64,
    /// Expected thousandths of rows of placed requests.
    pub placed_millirows: u64,
    /// Pages of those that are in no report of their node yet.
    pub unreported_pages: u64,
    /// Their expected thousandths of rows.
    pub unreported_millirows: u64,
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
            let [placed, unreported] = routing.placed();
            counts.accepting += routing.accepting();
            counts.waiting_tokens += routing.waiting();
            (counts.placed_pages, counts.placed_millirows) =
                (counts.placed_pages + placed.0, counts.placed_millirows + placed.1);
            (counts.unreported_pages, counts.unreported_millirows) =
                (counts.unreported_pages + unreported.0, counts.unreported_millirows + unreported.1);
            counts.index_bytes += routing.index_bytes();
        }
        counts
    }
}
