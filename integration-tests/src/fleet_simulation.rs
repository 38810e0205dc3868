//! Simulates whole histories of a fleet in virtual time: proxies, nodes and an etcd. A seed determines its history.
//!
//! The histories run the pure states of the released program unchanged: [`FleetState`](actors::fleet::FleetState) and
//! [`EtcdView`](actors::membership::EtcdView) of each proxy, and [`Registration`](actors::membership::Registration) of each node. The shells around
//! them are simulated in the order in which the proxy calls the states: reports, ticks, placements, first bytes, ends. Simulated are also the
//! nodes (`node.rs`: a queue, rows, pages, step times), the etcd (`etcd.rs`: revisions, leases, watches), links, clocks and clients. A report is
//! the state of a node at the moment at which a proxy reads it. There is no event for each report: one tick of a proxy reads all nodes.
//!
//! Each history checks these rules:
//!
//! - Each request ends once. It ends at the latest 10 s after its deadline, and pauses of its proxy later.
//! - A request gets no further node after its first byte, and no process twice.
//! - At most a tenth of a proxy's live requests, or 3, are in a retry after a busy node or a broken connection.
//! - A node gets new requests only if its last report is at most 1.2 s old and says that it accepts requests. Pauses of the proxy do not count.
//! - No request stays on a node that has been silent for 3.4 s.
//! - A request is refused only if no node has reported in the last second that it accepts requests, after three attempts, or because of the budget.
//! - A node leaves a proxy only if the membership does not name it and it has been silent for 3 s; then it leaves within 0.4 s.
//! - Queues and counts are bounded: a placed prompt or a retry belongs to a live request, the prefix index stays inside its memory.
//! - Without faults, and from 45 s after the end of all faults on, each request is answered, and its first byte comes within 5 s.
//! - At the end, etcd and all proxies have the same members, each proxy may use every node, and no count is left without requests and nodes.

mod etcd;
mod faults;
mod node;
mod parts;
mod plan;
mod proxy;
mod registry;
mod report;
mod requests;
mod serving;
mod verdict;
mod world;

pub use plan::{Fault, Plan, Shape};
pub use report::{Report, Violation};

/// Runs the history of `seed`. With `trace`, faults and refusals are printed to standard error.
///
/// # Errors
/// The first violation of a rule.
pub fn history(seed: u64, shape: &Shape, trace: bool) -> Result<Report, Violation> {
    world::World::new(Plan::of(seed, shape), trace).run()
}
