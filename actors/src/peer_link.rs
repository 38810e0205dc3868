//! The peer link: manages sessions with other processes, their frames and their transport.
//!
//! - **Thread**: an arbiter of its own, so that heartbeats do not wait for requests. On it, one task serves the socket of each
//!   session ([`sockets`](crate::devices::sockets)).
//! - **Mailbox**: [`kit::MAILBOX`](crate::kit::MAILBOX). Each session's task has at most one frame in the mailbox. Credits, permits
//!   and the number of sessions bound the messages of other actors.
//! - **In, out**: see the table in [`effect`](crate::effect).
//! - **Failure**: a broken link, lane or peer ends its session. All actors that know the session get `PeerLost`, and the transport
//!   closes the session. Once there is proof that the peer can no longer write our pages, the buffer manager gets `SessionDrained`.
//!   A process that dials then dials again.

pub mod dialler;
pub mod state;

use std::time::Instant;

use crate::counters::{Counters, store};
use crate::effect::{Effect, ToPeerLink};
use crate::shell::{Behaviour, Publishes, Shell};
use state::PeerLinkState;

/// The actor.
pub type PeerLink = Shell<PeerLinkBehaviour>;

/// The behaviour of [`PeerLink`]: its state and its counters.
pub struct PeerLinkBehaviour {
    /// The state, which makes the decisions.
    pub state: PeerLinkState,
    /// The node's counters.
    pub counters: Counters,
}

impl Behaviour for PeerLinkBehaviour {
    type Mail = ToPeerLink;

    fn on(&mut self, now: Instant, mail: ToPeerLink) -> Vec<Effect> {
        self.state.on(now, mail)
    }

    const PUBLISHES: Publishes = Publishes::AfterEffects;

    fn publish(&self) {
        let (counters, counts) = (&self.counters, self.state.counts());
        store(counters.sessions_ready(), self.state.ready() as u64);
        store(counters.sessions_held(), self.state.held() as u64);
        store(counters.sessions_opened(), counts.opened);
        store(counters.sessions_ended(), counts.ended);
        store(counters.frames_stale(), counts.stale_frames);
    }

    fn expects_more(mail: &ToPeerLink) -> bool {
        matches!(mail, ToPeerLink::FrameCame(_) | ToPeerLink::SendFrame(_))
    }
}
