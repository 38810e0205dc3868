//! The transfer actor: schedules puts of final pages into the receiver's credited pages and announces them.
//!
//! - **Thread**: the node's arbiter; the transport's own thread moves the bytes, and the hash thread hashes them.
//! - **Mailbox**: [`kit::MAILBOX`](crate::kit::MAILBOX); bounded by the pages of the pool, the credits of the ring and the operations
//!   in flight.
//! - **In, out**: see the table in [`effect`](crate::effect).
//! - **Failure**: a put or flush that fails, or a peer that grants wrongly, breaks its session and no other. Operations in
//!   flight belong to the transport, so the end of this actor frees nothing that they touch.

pub mod state;

use std::time::Instant;

use crate::counters::{Counters, store};
use crate::effect::{Effect, ToTransfer};
use crate::shell::{Behaviour, Shell};
use state::TransferState;

/// The actor.
pub type Transfer = Shell<TransferBehaviour>;

/// What the actor does with its messages.
pub struct TransferBehaviour {
    /// Its decisions.
    pub state: TransferState,
    /// When the state's clock began.
    pub epoch: Instant,
    /// What the node counts.
    pub counters: Counters,
}

impl Behaviour for TransferBehaviour {
    type Mail = ToTransfer;

    fn on(&mut self, now: Instant, mail: ToTransfer) -> Vec<Effect> {
        self.state.on((now - self.epoch).as_micros() as u64, mail)
    }

    fn publish(&self) {
        store(self.counters.credits_held(), self.state.credits_held());
    }

    fn expects_more(mail: &ToTransfer) -> bool {
        matches!(
            mail,
            ToTransfer::TransportEvents(_) | ToTransfer::SchedulePut(_) | ToTransfer::CreditsGranted(_)
        )
    }
}
