//! The prefiller: computes the prompts of peers and hands their pages over.
//!
//! - **Thread**: the node's arbiter.
//! - **Mailbox**: [`kit::MAILBOX`](crate::kit::MAILBOX); bounded by the requests that receivers admit, their pages and one frame a
//!   session.
//! - **In, out**: see the table in [`effect`](crate::effect).
//! - **Failure**: what it cannot prefill it refuses with `PrefillFailed`; a lost receiver ends its requests here. If this actor
//!   stops, the watchdog turns the node unhealthy and its sessions end.

pub mod state;

use std::time::Instant;

use crate::counters::{Counters, store};
use crate::effect::{Effect, ToPrefiller};
use crate::shell::{Behaviour, Shell};
use state::PrefillerState;

/// The actor.
pub type Prefiller = Shell<PrefillerBehaviour>;

/// What the actor does with its messages.
pub struct PrefillerBehaviour {
    /// Its decisions.
    pub state: PrefillerState,
    /// What the node counts.
    pub counters: Counters,
}

impl Behaviour for PrefillerBehaviour {
    type Mail = ToPrefiller;

    fn on(&mut self, now: Instant, mail: ToPrefiller) -> Vec<Effect> {
        self.state.on(now, mail)
    }

    fn publish(&self) {
        store(self.counters.prefills_live(), self.state.len() as u64);
    }
}
