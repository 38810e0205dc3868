//! The peer link: sessions with other processes, their frames and their transport.
//!
//! - **Thread**: an arbiter of its own, so that heartbeats do not wait for requests. Each session's socket is served by one task
//!   there ([`sockets`](crate::devices::sockets)).
//! - **Mailbox**: [`kit::MAILBOX`](crate::kit::MAILBOX). A session's task has one frame in the mailbox at a time; credits,
//!   permits and sessions bound what others send.
//! - **In, out**: see the table in [`effect`](crate::effect).
//! - **Failure**: a link, lane or peer that breaks ends its session. Everyone who knows the session hears `PeerLost`, the transport
//!   lets go, the buffer manager hears `SessionDrained` once there is proof, and a dialler dials again.

pub mod dialler;
pub mod state;

use std::time::Instant;

use crate::counters::{Counters, store};
use crate::effect::{Effect, ToPeerLink};
use crate::shell::{Behaviour, Publishes, Shell};
use state::PeerLinkState;

/// The actor.
pub type PeerLink = Shell<PeerLinkBehaviour>;

/// What the actor does with its messages.
pub struct PeerLinkBehaviour {
    /// Its decisions.
    pub state: PeerLinkState,
    /// What the node counts.
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
