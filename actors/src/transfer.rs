//! The transfer actor: schedules puts of final pages into the receiver's credited pages and announces them.
//!
//! - **Thread**: the node's arbiter; the transport's own thread moves the bytes, and one hashes them.
//! - **Mailbox**: [`kit::MAILBOX`]; bounded by the pages of the pool, the credits of the ring and the operations in flight.
//! - **In**: `SchedulePut`, `CancelPuts` (prefiller); `SessionOpened`, `LaneConnected`, `CreditsGranted`, `RingShared`, `PeerLost` (peer link);
//!   `TransportEvents` (transport thread); `PagesHashed` (hash thread); `Tick`.
//! - **Out**: commands to the transport; `SendFrame`, `BreakSession` (peer link); `PagesSent`, `PutsDrained` (prefiller).
//! - **Failure**: a put or flush that fails, or a peer that grants wrongly, breaks its session and no other. Operations in
//!   flight belong to the transport, so this actor's end frees nothing that they touch.

pub mod hash_thread;
pub mod state;

use std::sync::Arc;
use std::time::Instant;

use actix::prelude::*;
use connector::ring::PageIndex;
use connector::transport::{Command, Event, Ticket, Transport, TransportSession};
use engine::PageId;

use crate::kit::{self, Awake, Outbox, Vitals, delegate};
use crate::messages::{
    BreakSession, CancelPuts, CreditsGranted, LaneConnected, PagesSent, PeerLost, PutsDrained, RingShared,
    SchedulePut, SendFrame, SessionId, SessionOpened, Tick, TransportEvents,
};
use hash_thread::{HashThread, PagesHashed, ToHash};
use state::{Action, TransferState};

/// Where the transfer actor's messages go.
pub struct TransferOutboxes {
    /// Frames to receivers.
    pub frames: Outbox<SendFrame>,
    /// Broken sessions.
    pub breaks: Outbox<BreakSession>,
    /// Pages that are visible at the receiver.
    pub sent: Outbox<PagesSent>,
    /// Requests without puts.
    pub drained: Outbox<PutsDrained>,
}

/// The actor.
pub struct Transfer {
    state: TransferState,
    page_bytes: u64,
    hashing: Option<HashThread>,
    transport: Arc<dyn Transport>,
    out: TransferOutboxes,
    epoch: Instant,
    awake: Awake,
    vitals: Vitals,
}

impl Transfer {
    /// Puts pages by `state` over `transport`, `page_bytes` bytes each, and announces their hashes if it is given a thread to hash them.
    pub fn new(
        state: TransferState,
        page_bytes: u64,
        hashing: Option<HashThread>,
        transport: Arc<dyn Transport>,
        out: TransferOutboxes,
        awake: Awake,
        vitals: Vitals,
    ) -> Self {
        Self { state, page_bytes, hashing, transport, out, epoch: Instant::now(), awake, vitals }
    }

    fn put(&mut self, session: SessionId, ticket: Ticket, (page, into): (PageId, PageIndex), pages: usize) {
        self.awake.stay();
        let command = Command::Put {
            session: TransportSession(session.0),
            ticket,
            local_offset: u64::from(page.0) * self.page_bytes,
            remote_offset: u64::from(into.0) * self.page_bytes,
            bytes: pages as u64 * self.page_bytes,
        };
        if let Err(error) = self.transport.submit(command) {
            let actions = self.state.on_put_completed(self.now(), session, ticket, Err(error.to_string()));
            self.perform(actions);
        }
    }

    fn flush(&mut self, session: SessionId, ticket: Ticket) {
        let command = Command::Flush { session: TransportSession(session.0), ticket };
        if let Err(error) = self.transport.submit(command) {
            let actions = self.state.on_flushed(self.now(), session, ticket, Err(error.to_string()));
            self.perform(actions);
        }
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }

    fn perform(&mut self, actions: Vec<Action>) {
        let mut to_hash = Vec::new();
        for action in actions {
            match action {
                Action::Put { session, ticket, page, into, seeds } => {
                    self.put(session, ticket, (page, into), seeds.len());
                    let pages = (page.0..).map(PageId).zip(seeds);
                    to_hash
                        .extend(pages.filter_map(|(page, seed)| Some(ToHash { session, page, seed: seed? })));
                }
                Action::Flush { session, ticket } => self.flush(session, ticket),
                Action::Frame(session, frame) => self.out.frames.post(SendFrame { session, frame }),
                Action::Sent(sent) => self.out.sent.post(sent),
                Action::Drained(session, request) => self.out.drained.post(PutsDrained { session, request }),
                Action::Break(session, reason) => self.out.breaks.post(BreakSession { session, reason }),
                Action::Measured(session, lane, bytes, micros) => {
                    let speed = bytes as f64 / micros as f64 / 1e3;
                    tracing::info!(
                        %session, lane, "receiver ready: moved {:.1} MB at {speed:.2} GB/s", bytes as f64 / 1e6
                    );
                }
            }
        }
        // With all puts posted. A page is final, and read twice: there and by the transport.
        if let Some(hashing) = self.hashing.as_ref().filter(|_| !to_hash.is_empty()) {
            hashing.post(to_hash);
        }
    }
}

impl Actor for Transfer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(kit::MAILBOX);
    }
}

delegate!(Transfer: SchedulePut, |state, now, msg| state.on_schedule(
    now,
    msg.session,
    msg.request,
    msg.first_page,
    &msg.pages
));
delegate!(Transfer: CancelPuts, |state, _now, msg| state.on_cancel(msg.session, msg.request));
delegate!(Transfer: LaneConnected, |state, now, msg| state.on_connected(now, msg.session, msg.lane));
delegate!(Transfer: CreditsGranted, |state, now, msg| state.on_granted(now, msg.session, msg.first, &msg.pages));
delegate!(Transfer: RingShared, |state, now, msg| state.on_ring_shared(now, msg.session, msg.pages));
delegate!(Transfer: PeerLost, |state, _now, msg| {
    state.on_lost(msg.session);
    Vec::new()
});
impl Handler<TransportEvents> for Transfer {
    type Result = ();

    fn handle(&mut self, msg: TransportEvents, _: &mut Self::Context) {
        self.vitals.mark();
        self.awake.stay();
        let mut actions = Vec::new();
        for event in msg.0 {
            actions.extend(match event {
                Event::PutCompleted { session, ticket, result } => {
                    let (now, result) = (self.now(), result.map_err(|error| error.to_string()));
                    self.state.on_put_completed(now, SessionId(session.0), ticket, result)
                }
                Event::Flushed { session, ticket, result } => {
                    let (now, result) = (self.now(), result.map_err(|error| error.to_string()));
                    self.state.on_flushed(now, SessionId(session.0), ticket, result)
                }
                // The peer link's.
                Event::Opened { .. }
                | Event::Connected { .. }
                | Event::Failed { .. }
                | Event::Closed { .. } => {
                    continue;
                }
            });
        }
        self.perform(actions);
    }
}

delegate!(Transfer: PagesHashed, |state, now, msg| {
    let hashed = msg.0.into_iter();
    hashed.flat_map(|(session, credit, hash)| state.on_hashed(now, session, credit, hash)).collect()
});
delegate!(Transfer: SessionOpened, |state, _now, msg| {
    state.on_session_opened(msg.session, msg.ring_pages, msg.seed);
    Vec::new()
});
delegate!(Transfer: Tick, |state, now, _msg| state.on_tick(now));
