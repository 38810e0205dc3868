//! The decoder: follows every request of this process from its pages to its last token.
//!
//! - **Thread**: the node's arbiter.
//! - **Mailbox**: [`kit::MAILBOX`](crate::kit::MAILBOX); at most one `Decode` an admission permit, and a few events a request and
//!   step.
//! - **In, out**: see the table in [`effect`](crate::effect).
//! - **Failure**: a lost or failing sender costs a recompute here; a client that has left, or a deadline, ends the request
//!   everywhere. If this actor stops, the watchdog turns the node unhealthy.

pub mod state;

use std::time::Instant;

use crate::counters::{Counters, store};
use crate::effect::{Effect, ToDecoder};
use crate::shell::{Behaviour, Shell};
use state::DecoderState;

/// The actor.
pub type Decoder = Shell<DecoderBehaviour>;

/// What the actor does with its messages.
pub struct DecoderBehaviour {
    /// Its decisions.
    pub state: DecoderState,
    /// What the node counts.
    pub counters: Counters,
}

impl Behaviour for DecoderBehaviour {
    type Mail = ToDecoder;

    fn on(&mut self, now: Instant, mail: ToDecoder) -> Vec<Effect> {
        self.state.on(now, mail)
    }

    fn publish(&self) {
        let (counters, counts) = (&self.counters, self.state.counts());
        store(counters.taken(), counts.taken);
        store(counters.recomputes(), counts.recomputes);
        store(counters.preemptions(), counts.preemptions);
        store(counters.finished(), counts.finished);
        store(counters.aborts(), counts.aborted);
        store(counters.deadlines_missed(), counts.deadlines_missed);
        store(counters.denied(), counts.denied);
        store(counters.engine_failures(), counts.engine_failures);
        store(counters.cut_at_the_end(), counts.cut_at_the_end);
    }
}
