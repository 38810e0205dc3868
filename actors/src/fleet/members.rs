//! The nodes that the proxy asks: those that the fleet's membership names, and those that still answer.
//!
//! The membership is no proof of death: a registry can fail, be restored, or come back empty. A node that it does not name stays in use until it has
//! been silent for [`LOST_AFTER`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::{FleetNode, FleetState, LOST_AFTER, NodeId};

impl FleetState {
    /// The membership names the nodes at these addresses. Returns the new ones, which the proxy asks from now on. They get requests once they have
    /// reported.
    pub fn named(&mut self, addresses: impl IntoIterator<Item = Arc<str>>) -> Vec<(NodeId, Arc<str>)> {
        let mut new: BTreeSet<Arc<str>> = addresses.into_iter().collect();
        for node in self.nodes.values_mut() {
            node.is_named = new.remove(&node.address);
        }
        new.into_iter().map(|address| (self.joined(Arc::clone(&address)), address)).collect()
    }

    pub(super) fn joined(&mut self, address: Arc<str>) -> NodeId {
        let id = NodeId(self.next_node);
        self.next_node += 1;
        self.nodes.insert(id, FleetNode { address, is_named: true, ..FleetNode::default() });
        id
    }

    /// Removes the nodes that the membership does not name and that have been silent for [`LOST_AFTER`], and returns them. It is called after each
    /// tick, which has cut their connections.
    pub fn gone(&mut self, now: Instant) -> Vec<NodeId> {
        let ran = self.ran(now);
        let is_silent = |at: Instant| ran.saturating_duration_since(at) >= LOST_AFTER;
        let is_gone = |node: &FleetNode| !node.is_named && node.heard.is_some_and(is_silent);
        let gone = self.nodes.iter().filter(|(_, node)| is_gone(node)).map(|(id, _)| *id);
        let gone: Vec<NodeId> = gone.collect();
        gone.iter().for_each(|id| self.left(*id));
        gone
    }

    /// The node has left the fleet.
    pub(super) fn left(&mut self, id: NodeId) {
        if let Some(FleetNode { last: Some((report, _)), .. }) = self.nodes.remove(&id) {
            self.forget(id, &report);
        }
    }
}
