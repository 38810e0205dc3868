//! The generator: the scheduler in front of the engine thread.
//!
//! - **Thread**: the node's arbiter; the engine has a thread of its own ([`engine_thread`](crate::devices::engine_thread)).
//! - **Mailbox**: [`kit::MAILBOX`](crate::kit::MAILBOX). Admission permits and the pages that they hold bound the sequences, and at most two
//!   steps are in flight.
//! - **In**: [`ToGenerator`]: sequences from the decoder and the prefiller, finished steps from the engine thread.
//! - **Out**: `RunStep` to the engine thread; `SequenceAdvanced` to the owner of each sequence; `SequenceBegun` to the decoder; `LoadReport` to the proxy, the
//!   decoder and the peer link.
//! - **Failure**: an engine error fails the sequence that caused it, or else all sequences of its step. Their owners report the failure. If a
//!   step does not return, the engine's pulse exceeds its limit, the watchdog marks the node unhealthy, and requests fail at their deadlines.

pub mod state;

use std::time::Instant;

use crate::counters::{Counters, store};
use crate::effect::{Effect, ToGenerator};
use crate::shell::{Behaviour, Shell};
use state::GeneratorState;

/// The actor.
pub type Generator = Shell<GeneratorBehaviour>;

/// The actor's behaviour.
pub struct GeneratorBehaviour {
    /// The pure state.
    pub state: GeneratorState,
    /// The zero of the state's clock.
    pub epoch: Instant,
    /// The node's counters.
    pub counters: Counters,
}

impl Behaviour for GeneratorBehaviour {
    type Mail = ToGenerator;

    fn on(&mut self, now: Instant, mail: ToGenerator) -> Vec<Effect> {
        self.state.on((now - self.epoch).as_micros() as u64, mail)
    }

    fn publish(&self) {
        store(self.counters.prompt_tokens_computed(), self.state.prompt_tokens_computed());
    }
}
