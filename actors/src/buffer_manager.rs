//! The buffer manager: owner of the page pool's ledger and of every session's ring.
//!
//! - **Thread**: the node's arbiter.
//! - **Mailbox**: [`kit::MAILBOX`]. Every message is about an admitted request, a page under credit or a session; `post` is never
//!   refused, and the bound only says how far behind it may fall before the counters show it.
//! - **In**: `ReservePages`, `ReleasePages` (decoder, prefiller); `SessionOpened`, `PeerLost`, `SessionDrained`, `PageFilled`
//!   (peer link); `Tick`.
//! - **Out**: `PagesReserved` (decoder, prefiller), `PagesAdopted` (decoder), `SendFrame`, `BreakSession` (peer link).
//! - **Failure**: a lost session quarantines its outstanding pages until proof. If this actor stops, the node cannot
//!   serve and the watchdog says so; it is never restarted in place, because peers may be writing its pages.

pub mod state;

use std::time::Instant;

use actix::prelude::*;
use connector::frame::Frame;

use crate::kit::{self, Outbox, Vitals, delegate};
use crate::messages::{
    BreakSession, PageFilled, PagesAdopted, PagesReserved, PeerLost, ReleasePages, ReservePages, SendFrame,
    SequenceId, SessionDrained, SessionOpened, Tick,
};
use state::{Action, PoolState};

/// Where the buffer manager's messages go.
pub struct BufferManagerOutboxes {
    /// Reservations and adoptions of own requests.
    pub decoder: Outbox<PagesReserved>,
    /// Adoptions.
    pub adopted: Outbox<PagesAdopted>,
    /// Reservations of peers' requests.
    pub prefiller: Option<Outbox<PagesReserved>>,
    /// Grants.
    pub frames: Option<Outbox<SendFrame>>,
    /// Rule breaks.
    pub breaks: Option<Outbox<BreakSession>>,
}

/// The actor.
pub struct BufferManager {
    state: PoolState,
    out: BufferManagerOutboxes,
    vitals: Vitals,
}

impl BufferManager {
    /// Manages the pages that `state` describes.
    pub fn new(state: PoolState, out: BufferManagerOutboxes, vitals: Vitals) -> Self {
        Self { state, out, vitals }
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn perform(&self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Reserved(reserved) => match (reserved.sequence, &self.out.prefiller) {
                    (SequenceId::Peer(_), Some(prefiller)) => prefiller.post(reserved),
                    _ => self.out.decoder.post(reserved),
                },
                Action::Adopted(adopted) => self.out.adopted.post(adopted),
                Action::Grant { session, first, pages } => {
                    if let Some(frames) = &self.out.frames {
                        frames.post(SendFrame { session, frame: Frame::Grant { first, pages } });
                    }
                }
                Action::Break { session, reason } => {
                    if let Some(breaks) = &self.out.breaks {
                        breaks.post(BreakSession { session, reason });
                    }
                }
            }
        }
    }
}

impl Actor for BufferManager {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(kit::MAILBOX);
    }
}

delegate!(BufferManager: ReservePages, |state, _now, msg| state.on_reserve(msg));
delegate!(BufferManager: ReleasePages, |state, _now, msg| state.on_release(msg.sequence));
delegate!(BufferManager: PageFilled, |state, _now, msg| state.on_page_filled(msg));
delegate!(BufferManager: SessionOpened, |state, _now, msg| state.on_session_opened(msg.session, msg.ring_pages));
delegate!(BufferManager: PeerLost, |state, _now, msg| state.on_session_lost(msg.session));
delegate!(BufferManager: SessionDrained, |state, _now, msg| state.on_session_drained(msg.session));

delegate!(BufferManager: Tick, |_state, _now, _msg| Vec::new());
