//! Whole histories of a receiver and its senders, in virtual time: one seed, one history.
//!
//! The pure states of every actor run as they are; what is simulated is everything around them: mailboxes that deliver late,
//! a link that breaks, lanes on which puts complete, land and fail in their own time, engines whose memory can be read back,
//! and processes that crash, stop and come back. Pages hold real (small) contents and every token depends on
//! all tokens before it, as read from the pages, so whatever goes wrong with a page ends in a wrong word.
//!
//! Checked while a history runs, each against what it says in `docs/lab/hand-over-safety.md`:
//!
//! - a put lands only in a page under a credit of its session, or set aside for it;
//! - the engine touches only pages that a sequence holds;
//! - what a frame calls filled has landed;
//! - every token is the right one, and none is taken back; a request ends once, and by its deadline;
//! - at the end, with all faults healed: no page is held, promised or set aside without reason, no put is waited for, and the
//!   next request is handed over.

mod client;
mod dice;
mod engine;
mod faults;
mod lane;
mod machine;
mod node;
mod plan;
mod routing;
mod sockets;
mod verdict;
mod world;

pub use plan::{Fault, Plan};
pub use verdict::{Report, Violation};

/// Runs the history of `seed`. With `trace`, everything that happens goes to standard error.
///
/// # Errors
/// The first thing that must never happen, if it did.
pub fn history(seed: u64, trace: bool) -> Result<Report, Violation> {
    world::World::new(Plan::of(seed), trace).run()
}
