//! The generator: the scheduler in front of the engine thread.
//!
//! - **Thread**: the node's arbiter; the engine has a thread of its own ([`engine_thread`](crate::devices::engine_thread)).
//! - **Mailbox**: [`kit::MAILBOX`](crate::kit::MAILBOX); sequences are bounded by admission permits and by the pages that they hold,
//!   and at most two steps are in flight.
//! - **In, out**: see the table in [`effect`](crate::effect).
//! - **Failure**: an engine error ends the sequence that it belongs to, or else all of its step; their owners report it. A step that
//!   does not come back leaves the engine's pulse busy, and the watchdog turns the node unhealthy; requests end at their deadlines.

pub mod state;

use std::time::Instant;

use crate::effect::{Effect, ToGenerator};
use crate::shell::{Behaviour, Shell};
use state::GeneratorState;

/// The actor.
pub type Generator = Shell<GeneratorBehaviour>;

/// What the actor does with its messages.
pub struct GeneratorBehaviour {
    /// Its decisions.
    pub state: GeneratorState,
    /// When the state's clock began.
    pub epoch: Instant,
}

impl Behaviour for GeneratorBehaviour {
    type Mail = ToGenerator;

    fn on(&mut self, now: Instant, mail: ToGenerator) -> Vec<Effect> {
        self.state.on((now - self.epoch).as_micros() as u64, mail)
    }
}
