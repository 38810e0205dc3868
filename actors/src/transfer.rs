//! The transfer actor: schedules puts of final pages into the receiver's credited pages and announces them.
//!
//! - **Thread**: the node's arbiter; the transport's own thread moves the bytes.
//! - **Mailbox**: [`kit::MAILBOX`]; bounded by the pages of the pool, the credits of the ring and the operations in flight.
//! - **In**: `SchedulePut`, `CancelPuts` (prefiller); `SessionOpened`, `LaneConnected`, `CreditsGranted`, `RingShared`, `PeerLost` (peer link);
//!   `TransportEvents` (transport thread); `Tick`.
//! - **Out**: commands to the transport; `SendFrame`, `BreakSession` (peer link); `PagesSent`, `PutsDrained` (prefiller).
//! - **Failure**: a put or flush that fails, or a peer that grants wrongly, breaks its session and no other. Operations in
//!   flight belong to the transport, so this actor's end frees nothing that they touch.

pub mod state;

use std::sync::Arc;
use std::time::Instant;

use actix::prelude::*;
use connector::transport::{Command, Event, Ticket, Transport, TransportSession};

use crate::kit::{self, Outbox, Vitals, delegate};
use crate::messages::{
    BreakSession, CancelPuts, CreditsGranted, LaneConnected, PagesSent, PeerLost, PutsDrained, RingShared,
    SchedulePut, SendFrame, SessionId, SessionOpened, Tick, TransportEvents,
};
use crate::pages::Pages;
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
    hashed: Option<Pages>,
    transport: Arc<dyn Transport>,
    out: TransferOutboxes,
    epoch: Instant,
    vitals: Vitals,
}

impl Transfer {
    /// Puts pages of `page_bytes` bytes over `transport`, and announces their hashes if it is given the pages to hash.
    pub fn new(
        page_bytes: u64,
        hashed: Option<Pages>,
        transport: Arc<dyn Transport>,
        out: TransferOutboxes,
        vitals: Vitals,
    ) -> Self {
        let state = TransferState::new(page_bytes);
        Self { state, page_bytes, hashed, transport, out, epoch: Instant::now(), vitals }
    }

    /// Posts an operation; one that the transport refuses has failed.
    fn submit(&mut self, session: SessionId, ticket: Ticket, command: Command) {
        let is_put = matches!(command, Command::Put { .. });
        let Err(error) = self.transport.submit(command) else { return };
        let (now, result) = (self.now(), Err(error.to_string()));
        let actions = if is_put {
            self.state.on_put_completed(now, session, ticket, result)
        } else {
            self.state.on_flushed(now, session, ticket, result)
        };
        self.perform(actions);
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }

    fn perform(&mut self, actions: Vec<Action>) {
        let mut to_hash = Vec::new();
        for action in actions {
            match action {
                Action::Put { session, ticket, page, into, seed } => {
                    let command = Command::Put {
                        session: TransportSession(session.0),
                        ticket,
                        local_offset: u64::from(page.0) * self.page_bytes,
                        remote_offset: u64::from(into.0) * self.page_bytes,
                        bytes: self.page_bytes,
                    };
                    self.submit(session, ticket, command);
                    to_hash.extend(seed.map(|seed| (session, ticket, page, seed)));
                }
                Action::Flush { session, ticket } => {
                    let command = Command::Flush { session: TransportSession(session.0), ticket };
                    self.submit(session, ticket, command);
                }
                Action::Frame(session, frame) => self.out.frames.post(SendFrame { session, frame }),
                Action::Sent(sent) => self.out.sent.post(sent),
                Action::Drained(session, request) => self.out.drained.post(PutsDrained { session, request }),
                Action::Break(session, reason) => self.out.breaks.post(BreakSession { session, reason }),
                Action::Measured(session, lane, bytes, micros) => {
                    let gbps = bytes as f64 / micros as f64 / 1e3;
                    tracing::info!(
                        %session, lane, "receiver ready: moved {:.1} MB at {gbps:.2} GB/s", bytes as f64 / 1e6
                    );
                }
            }
        }
        // With all puts posted: no put waits for another one's hash. A page is final, and read twice: here and by the transport.
        let Some(pages) = &self.hashed else { return };
        let seeded: Vec<_> = to_hash.iter().map(|(_, _, page, seed)| (*page, *seed)).collect();
        for ((session, ticket, ..), hash) in to_hash.into_iter().zip(pages.hash(&seeded)) {
            self.state.on_hashed(session, ticket, hash);
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
delegate!(Transfer: TransportEvents, |state, now, msg| {
    let mut actions = Vec::new();
    for event in msg.0 {
        actions.extend(match event {
            Event::PutCompleted { session, ticket, result } => {
                state.on_put_completed(now, SessionId(session.0), ticket, result.map_err(|error| error.to_string()))
            }
            Event::Flushed { session, ticket, result } => {
                state.on_flushed(now, SessionId(session.0), ticket, result.map_err(|error| error.to_string()))
            }
            // The peer link's.
            Event::Opened { .. } | Event::Connected { .. } | Event::Failed { .. } | Event::Closed { .. } => continue,
        });
    }
    actions
});

delegate!(Transfer: SessionOpened, |state, _now, msg| {
    state.on_session_opened(msg.session, msg.ring_pages, msg.seed);
    Vec::new()
});
delegate!(Transfer: Tick, |state, now, _msg| state.on_tick(now));
