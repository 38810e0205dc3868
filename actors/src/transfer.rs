//! The transfer actor: puts final pages into the receiver's credited pages, and announces them.
//!
//! - **Thread**: the node's arbiter. The transport's thread moves the bytes, and the hash thread hashes them.
//! - **Mailbox**: [`kit::MAILBOX`](crate::kit::MAILBOX). Messages are bounded by the pages of the pool, the credits of the ring, and the
//!   operations in flight.
//! - **In**: [`ToTransfer`]: final pages from the prefiller, sessions and credits from the peer link, completions from the transport, hashes
//!   from the hash thread.
//! - **Out**: commands to the transport; `HashPages` to the hash thread; `PagesSent` and `PutsDrained` to the prefiller; frames and
//!   `BreakSession` to the peer link.
//! - **Failure**: a failed or stuck put or flush, or an invalid grant, ends its session and no other. Operations in flight belong to the
//!   transport, so the end of this actor frees no memory that they use.

pub mod state;

use std::time::Instant;

use crate::counters::{Counters, store};
use crate::effect::{Effect, ToTransfer};
use crate::shell::{Behaviour, Shell};
use state::TransferState;

/// The actor.
pub type Transfer = Shell<TransferBehaviour>;

/// The actor's behaviour.
pub struct TransferBehaviour {
    /// The pure state.
    pub state: TransferState,
    /// The zero of the state's clock.
    pub epoch: Instant,
    /// The node's counters.
    pub counters: Counters,
}

impl Behaviour for TransferBehaviour {
    type Mail = ToTransfer;

    fn on(&mut self, now: Instant, mail: ToTransfer) -> Vec<Effect> {
        self.state.on((now - self.epoch).as_micros() as u64, mail)
    }

    fn publish(&self) {
        store(self.counters.sessions_with_credits(), self.state.sessions_with_credits());
    }

    fn expects_more(mail: &ToTransfer) -> bool {
        matches!(
            mail,
            ToTransfer::TransportEvents(_) | ToTransfer::SchedulePut(_) | ToTransfer::CreditsGranted(_)
        )
    }
}
