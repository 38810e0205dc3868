//! The buffer manager: owner of the page pool's ledger and of every session's ring.
//!
//! - **Thread**: the node's arbiter.
//! - **Mailbox**: [`kit::MAILBOX`]. Every message is about an admitted request, a page under credit or a session; `post` is never
//!   refused, and the bound only says how far behind it may fall before the counters show it.
//! - **In**: `ReservePages`, `PagesComputed`, `ReleasePages` (decoder, prefiller), `GrowPages` (decoder); `SessionOpened`, `PeerLost`, `SessionDrained`, `PageFilled`
//!   (peer link); `Tick`.
//! - **Out**: `PagesReserved` (decoder, prefiller), `PagesGrown`, `PagesShort`, `PagesAdopted`, `PageRejected` (decoder), `SendFrame`, `BreakSession` (peer link).
//! - **Failure**: a lost session quarantines its outstanding pages until proof. If this actor stops, the node cannot
//!   serve and the watchdog says so; it is never restarted in place, because peers may be writing its pages.

pub mod prefix_cache;
pub mod state;

use std::sync::atomic::Ordering;
use std::time::Instant;

use actix::prelude::*;
use connector::frame::Frame;

use crate::counters::{Counters, count, store};
use crate::kit::{self, Awake, Outbox, Vitals, delegate};
use crate::messages::{
    BreakSession, GrowPages, PageFilled, PageRejected, PagesAdopted, PagesComputed, PagesGrown,
    PagesReserved, PagesShort, PeerLost, ReleasePages, ReservePages, SendFrame, SequenceId, SessionDrained,
    SessionOpened, Tick,
};
use crate::pages::Pages;
use state::{Action, PoolState};

/// Where the buffer manager's messages go.
pub struct BufferManagerOutboxes {
    /// Reservations and adoptions of own requests.
    pub decoder: Outbox<PagesReserved>,
    /// Pages for those that grow.
    pub grown: Outbox<PagesGrown>,
    /// No pages for those that grow.
    pub short: Outbox<PagesShort>,
    /// Adoptions.
    pub adopted: Outbox<PagesAdopted>,
    /// Pages that are not what was put.
    pub rejected: Outbox<PageRejected>,
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
    hashed: Option<Pages>,
    out: BufferManagerOutboxes,
    counters: Counters,
    awake: Awake,
    vitals: Vitals,
}

impl BufferManager {
    /// Manages the pages that `state` describes, and checks those that land in `hashed`.
    pub fn new(
        state: PoolState,
        hashed: Option<Pages>,
        out: BufferManagerOutboxes,
        counters: Counters,
        awake: Awake,
        vitals: Vitals,
    ) -> Self {
        Self { state, hashed, out, counters, awake, vitals }
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn perform(&self, actions: Vec<Action>) {
        let (counters, usage) = (&self.counters, self.state.usage());
        store(counters.pages(), usage.pages);
        store(counters.pages_reserved(), usage.landing);
        store(counters.pages_outstanding(), usage.outstanding);
        store(counters.pages_live(), usage.held);
        store(counters.pages_cached(), usage.cached);
        store(counters.pages_resident(), self.state.resident_pages());
        store(counters.pages_quarantined(), usage.quarantined);
        for action in actions {
            match action {
                Action::Reserved(reserved) => match (reserved.sequence, &self.out.prefiller) {
                    (SequenceId::Peer(_), Some(prefiller)) => prefiller.post(reserved),
                    _ => self.out.decoder.post(reserved),
                },
                Action::Grown(grown) => self.out.grown.post(grown),
                Action::Short(short) => self.out.short.post(short),
                Action::Adopted(adopted) => {
                    counters.pages_adopted().fetch_add(adopted.pages.len() as u64, Ordering::Relaxed);
                    self.out.adopted.post(adopted);
                }
                Action::Rejected(request) => {
                    count(counters.hash_mismatches());
                    tracing::warn!(%request, "a page arrived damaged; computing the prompt here");
                    self.out.rejected.post(PageRejected { request });
                }
                Action::Grant { session, first, pages } => {
                    if let Some(frames) = &self.out.frames {
                        frames.post(SendFrame { session, frame: Frame::Grant { first, pages } });
                    }
                }
                Action::Share { session, pages } => {
                    if let Some(frames) = &self.out.frames {
                        frames.post(SendFrame { session, frame: Frame::RingShare { pages } });
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
delegate!(BufferManager: GrowPages, |state, _now, msg| state.on_grow(msg));
delegate!(BufferManager: PagesComputed, |state, _now, msg| {
    state.on_computed(&msg);
    Vec::new()
});
delegate!(BufferManager: ReleasePages, |state, _now, msg| state.on_release(msg.sequence));
delegate!(BufferManager: SessionOpened, |state, _now, msg| {
    state.on_session_opened(msg.session, msg.ring_pages, msg.seed)
});
delegate!(BufferManager: PeerLost, |state, _now, msg| state.on_session_lost(msg.session));
delegate!(BufferManager: SessionDrained, |state, _now, msg| state.on_session_drained(msg.session));

delegate!(BufferManager: Tick, |_state, _now, _msg| Vec::new());

impl Handler<PageFilled> for BufferManager {
    type Result = ();

    fn handle(&mut self, filled: PageFilled, _: &mut Self::Context) {
        self.vitals.mark();
        self.awake.stay();
        let hasher = self.hashed.as_ref().map(|pages| move |these: &[_]| pages.hash(these));
        let hasher = hasher.as_ref().map(|hasher| hasher as state::Hasher<'_>);
        let actions = self.state.on_page_filled(filled, hasher);
        self.perform(actions);
    }
}
