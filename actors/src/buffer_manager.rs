//! The buffer manager: owns the page pool's ledger and the ring of each session.
//!
//! - **Thread**: the node's arbiter.
//! - **Mailbox**: [`kit::MAILBOX`](crate::kit::MAILBOX). Every message is about an admitted request, a page under credit or a session,
//!   and each of these is bounded.
//! - **In, out**: see the table in [`effect`](crate::effect).
//! - **Failure**: the outstanding pages of a lost session stay quarantined until there is proof that the peer can no longer write
//!   them. If this actor stops, the node cannot serve and the watchdog reports it. The actor is never restarted in place, because
//!   peers may be writing the pages of the pool.

mod cache_events;
pub mod prefix_cache;
pub mod state;

use std::time::Instant;

use crate::counters::{Counters, store};
use crate::effect::{Effect, ToBufferManager};
use crate::pages::Pages;
use crate::shell::{Behaviour, Shell};
use state::PoolState;

/// The actor.
pub type BufferManager = Shell<BufferManagerBehaviour>;

/// The behaviour of [`BufferManager`]: its state and the parts that the state does not know.
pub struct BufferManagerBehaviour {
    /// The state, which makes the decisions.
    pub state: PoolState,
    /// The pool's pages, to compute the hashes of pages that land; `None` if page hashes are off.
    pub hashed: Option<Pages>,
    /// The node's counters.
    pub counters: Counters,
}

impl Behaviour for BufferManagerBehaviour {
    type Mail = ToBufferManager;

    fn on(&mut self, now: Instant, mail: ToBufferManager) -> Vec<Effect> {
        let hasher = self.hashed.as_ref().map(|pages| move |these: &[_]| pages.hash(these));
        self.state.on(now, mail, hasher.as_ref().map(|hasher| hasher as state::Hasher<'_>))
    }

    fn publish(&self) {
        let (counters, usage, counts) = (&self.counters, self.state.usage(), self.state.counts());
        store(counters.pages(), usage.pages);
        store(counters.pages_reserved(), usage.landing);
        store(counters.pages_outstanding(), usage.outstanding);
        store(counters.pages_live(), usage.held);
        store(counters.prefill_pages_used(), usage.quota_used);
        store(counters.pages_cached(), usage.cached);
        store(counters.pages_quarantined(), usage.quarantined);
        store(counters.pages_resident(), counts.resident);
        store(counters.pages_adopted(), counts.adopted);
        store(counters.hash_mismatches(), counts.mismatches);
        store(counters.pages_lost(), counts.lost);
        store(counters.quarantine_micros(), counts.quarantine_micros);
    }

    fn expects_more(mail: &ToBufferManager) -> bool {
        matches!(mail, ToBufferManager::PageFilled(_))
    }
}
