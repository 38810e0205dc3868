//! The prefiller: computes the prompts of peers and hands over their pages.
//!
//! - **Thread**: the node's arbiter.
//! - **Mailbox**: [`kit::MAILBOX`](crate::kit::MAILBOX). The messages that wait are bounded: the number of prefills per session is limited, at
//!   most one frame per session waits, and page events are limited by the number of pages in the pool.
//! - **In**: [`ToPrefiller`]: grammars and prefills from the peer link, compiled grammars from the grammar thread, page events from the buffer manager, sequence events from the generator, put events
//!   from the transfer actor.
//! - **Out**: `CompileGrammar` to the grammar thread; `ReservePages`, `PagesComputed` and `ReleasePages` to the buffer manager; `StartSequence` and `StopSequence` to the generator;
//!   `SchedulePut` and `CancelPuts` to the transfer actor; frames to the peer link.
//! - **Failure**: a prompt that cannot be prefilled, or whose grammar cannot be compiled, is refused with `PrefillFailed`. The same frame ends
//!   a prompt at its deadline, and when its session has had pages to send but got no credit for 30 s. If a receiver is lost, its prefills are
//!   cancelled. If this actor stops, the watchdog marks the node unhealthy and its sessions end.

pub mod state;

use std::time::Instant;

use crate::counters::{Counters, store};
use crate::effect::{Effect, ToPrefiller};
use crate::shell::{Behaviour, Shell};
use state::PrefillerState;

/// The actor.
pub type Prefiller = Shell<PrefillerBehaviour>;

/// The actor's behaviour.
pub struct PrefillerBehaviour {
    /// The pure state.
    pub state: PrefillerState,
    /// The node's counters.
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
