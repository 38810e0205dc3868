//! The buffer manager: owner of the page pool's ledger and of every session's ring.
//!
//! - **Thread**: the node's arbiter.
//! - **Mailbox**: [`kit::MAILBOX`](crate::kit::MAILBOX). Every message is about an admitted request, a page under credit or a session.
//! - **In, out**: see the table in [`effect`](crate::effect).
//! - **Failure**: a lost session quarantines its outstanding pages until proof. If this actor stops, the node cannot serve and the
//!   watchdog says so; it is never restarted in place, because peers may be writing its pages.

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

/// What the actor does with its messages.
pub struct BufferManagerBehaviour {
    /// Its decisions.
    pub state: PoolState,
    /// Where pages land whose hashes are checked; `None` if both sides have agreed on none.
    pub hashed: Option<Pages>,
    /// What the node counts.
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
        store(counters.pages_cached(), usage.cached);
        store(counters.pages_quarantined(), usage.quarantined);
        store(counters.pages_resident(), counts.resident);
        store(counters.pages_adopted(), counts.adopted);
        store(counters.hash_mismatches(), counts.mismatches);
    }

    fn expects_more(mail: &ToBufferManager) -> bool {
        matches!(mail, ToBufferManager::PageFilled(_))
    }
}
