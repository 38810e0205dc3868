//! The decoder: runs every request of this process, from its reservation of pages to its last token.
//!
//! - **Thread**: the node's arbiter.
//! - **Mailbox**: [`kit::MAILBOX`](crate::kit::MAILBOX). Admission permits bound the requests: there is one `Decode` for each permit, and a
//!   few events for each request and step.
//! - **In**: [`ToDecoder`]: requests from the proxy, page events from the buffer manager, sequence events from the generator, prefill results
//!   from the peer link.
//! - **Out**: `ReservePages`, `GrowPages`, `PagesComputed` and `ReleasePages` to the buffer manager; `StartSequence`, `ExtendSequence` and
//!   `StopSequence` to the generator; frames to the peer link; `PrefillOver`, `HandOverEnded` and `PlaceAgain` to the proxy; tokens and ends to the streams.
//! - **Failure**: if a sender is lost or fails, its prompts are recomputed here or, if that is not allowed, by another sender. If a client leaves or a deadline passes, the request ends here
//!   and on its sender. If this actor stops, the watchdog marks the node unhealthy.

pub mod state;

use std::time::Instant;

use crate::counters::{Counters, store};
use crate::effect::{Effect, ToDecoder};
use crate::shell::{Behaviour, Shell};
use state::DecoderState;

/// The actor.
pub type Decoder = Shell<DecoderBehaviour>;

/// The actor's behaviour.
pub struct DecoderBehaviour {
    /// The pure state.
    pub state: DecoderState,
    /// The node's counters.
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
        store(counters.grammar_failures(), counts.grammar_failures);
        store(counters.cut_at_the_end(), counts.cut_at_the_end);
    }
}
