//! Simulates whole histories of nodes that prefill for each other in virtual time. A seed determines its history.
//!
//! A node prefills, decodes, or does both (`topology.rs`): one receiver with up to three senders, two nodes that prefill for each other, rings,
//! meshes, and a sender with two receivers.
//!
//! The histories run the pure states of all actors unchanged and simulate everything around them: mailboxes that deliver late, links that
//! break, lanes on which puts land, complete and fail at random times, engines whose memory can be read, and processes that crash, stop and
//! restart. Pages have small real contents, and every token depends on all tokens before it as read from the pages. So an error in any page
//! leads to a wrong token. Nodes may divide their pages into 1, 2 or 4 shards, and all heads of a page must have the same tokens.
//!
//! Each history checks these rules of `docs/lab/hand-over-safety.md`:
//!
//! - A put lands only in a page under a credit of its session, or in a page quarantined for it.
//! - The engine reads and writes only pages that a sequence holds.
//! - A page that a frame reports as filled has landed, with all of its pieces. A put moves one piece to the same place in its page.
//! - A sequence uses cached and landed pages only if a request with the same cache salt computed them.
//! - A sequence has the grammar of its request. A node reserves pages for a peer's prompt only after it has compiled the prompt's grammar.
//! - Every token is right. A request ends once, by its deadline, and has no token after its end.
//! - A node has at most as many sessions as it may have.
//! - A node that may not prefill its own prompts does not.
//! - A node gives up a peer's prompt if it gets no credit for its pages. A session ends for a broken rule only if a node miscounts.
//! - Without faults every request finishes in a time that is much shorter than its deadline, although all prompts are prefilled by peers, and
//!   no session ends. If nodes may not prefill their own prompts, a request may also end in that time because its peers have no room.
//! - At the end, after all faults have healed, no page is held, reserved or quarantined without reason, no put is awaited, and the next
//!   request is handed over.

mod announcements;
mod client;
mod credits;
pub(crate) mod dice;
mod engine;
mod faults;
mod grammars;
mod lane;
mod machine;
mod node;
mod parts;
mod plan;
mod routing;
mod sockets;
mod tenants;
mod topology;
mod traces;
mod verdict;
mod world;

pub use parts::{Report, Violation};
pub use plan::{Fault, Plan};
pub use topology::NodePlan;

/// Runs the history of `seed`. With `trace`, every event is printed to standard error.
///
/// # Errors
/// The first violation of a rule.
pub fn history(seed: u64, trace: bool) -> Result<Report, Violation> {
    world::World::new(Plan::of(seed), trace).run()
}
