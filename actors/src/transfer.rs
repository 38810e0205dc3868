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

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use actix::prelude::*;
use connector::transport::{Command, Event, Ticket, Transport, TransportSession};

use crate::kit::{self, Outbox, Vitals, delegate};
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
    run_pages: usize,
    /// Puts in flight, by the ticket that the transport knows: which of the state's puts each of them is.
    runs: HashMap<Ticket, Vec<Ticket>>,
    epoch: Instant,
    vitals: Vitals,
}

/// Pages that may go as one put between devices, where each put is a launch: so many that a lane is full with two of them, and few enough
/// that there are two.
pub const RUN_PAGES_ON_DEVICE: usize = state::PUTS_IN_FLIGHT / 2;
/// The same between hosts: the bytes of a long put leave the processor's caches between its sockets and its copies.
pub const RUN_PAGES_ON_HOST: usize = 1;

/// Puts that are one to the transport.
struct Run {
    session: SessionId,
    /// The first page here, and there.
    page: u32,
    into: u32,
    tickets: Vec<Ticket>,
}

impl Run {
    /// True if `next` is the next page on both sides.
    fn goes_on(&self, next: &Self, most: usize) -> bool {
        let pages = self.tickets.len();
        let ends_at = (self.page + pages as u32, self.into + pages as u32);
        pages < most && self.session == next.session && ends_at == (next.page, next.into)
    }
}

impl Transfer {
    /// Puts pages by `state` over `transport`, `page_bytes` bytes each and up to `run_pages` neighbours at once, and announces their hashes if it is given a thread to hash them.
    pub fn new(
        state: TransferState,
        page_bytes: u64,
        run_pages: usize,
        hashing: Option<HashThread>,
        transport: Arc<dyn Transport>,
        out: TransferOutboxes,
        vitals: Vitals,
    ) -> Self {
        let runs = HashMap::new();
        Self { state, page_bytes, run_pages, hashing, transport, out, runs, epoch: Instant::now(), vitals }
    }

    /// Posts puts into neighbouring pages from neighbouring pages as one: a lane carries one large put faster than many small ones.
    fn put(&mut self, run: Run) {
        let Run { session, page, into, tickets } = run;
        let command = Command::Put {
            session: TransportSession(session.0),
            ticket: tickets[0],
            local_offset: u64::from(page) * self.page_bytes,
            remote_offset: u64::from(into) * self.page_bytes,
            bytes: tickets.len() as u64 * self.page_bytes,
        };
        let first = tickets[0];
        self.runs.insert(first, tickets);
        if let Err(error) = self.transport.submit(command) {
            let actions = self.put_completed(session, first, &Err(error.to_string()));
            self.perform(actions);
        }
    }

    /// A put is over, and so are all that it stands for.
    fn put_completed(
        &mut self,
        session: SessionId,
        ticket: Ticket,
        result: &Result<(), String>,
    ) -> Vec<Action> {
        let (now, tickets) = (self.now(), self.runs.remove(&ticket).unwrap_or_default());
        let over = |ticket| self.state.on_put_completed(now, session, ticket, result.clone());
        tickets.into_iter().flat_map(over).collect()
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
        let (mut to_hash, mut run) = (Vec::new(), None::<Run>);
        for action in actions {
            match action {
                Action::Put { session, ticket, page, into, seed } => {
                    to_hash.extend(seed.map(|seed| ToHash { session, ticket, page, seed }));
                    let next = Run { session, page: page.0, into: into.0, tickets: vec![ticket] };
                    let ready = match &mut run {
                        Some(run) if run.goes_on(&next, self.run_pages) => {
                            run.tickets.push(ticket);
                            None
                        }
                        run => run.replace(next),
                    };
                    if let Some(ready) = ready {
                        self.put(ready);
                    }
                }
                Action::Flush { session, ticket } => {
                    // After what it covers.
                    if let Some(run) = run.take() {
                        self.put(run);
                    }
                    self.flush(session, ticket);
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
        if let Some(run) = run {
            self.put(run);
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
        // All of them first: what they make room for may go as one put.
        let mut actions = Vec::new();
        for event in msg.0 {
            actions.extend(match event {
                Event::PutCompleted { session, ticket, result } => {
                    let result = result.map_err(|error| error.to_string());
                    self.put_completed(SessionId(session.0), ticket, &result)
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
    hashed.flat_map(|(session, ticket, hash)| state.on_hashed(now, session, ticket, hash)).collect()
});
delegate!(Transfer: SessionOpened, |state, _now, msg| {
    state.on_session_opened(msg.session, msg.ring_pages, msg.seed);
    Vec::new()
});
delegate!(Transfer: Tick, |state, now, _msg| state.on_tick(now));
