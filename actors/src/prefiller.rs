//! The prefiller: computes peers' prompts and hands each page to transfer as soon as it is final.
//!
//! - **Thread**: the node's arbiter.
//! - **Mailbox**: [`kit::MAILBOX`]; at most one prefill an admission permit of each receiver, and a few events a step.
//! - **In**: `StartPrefill`, `CancelPrefill`, `PeerLost` (peer link); `PagesReserved` (buffer manager); `SequenceAdvanced` (generator);
//!   `PagesSent`, `PutsDrained` (transfer); `BeginDrain` (node); `Tick`.
//! - **Out**: `ReservePages`, `ReleasePages` (buffer manager); `StartSequence`, `StopSequence` (generator); `SchedulePut`, `CancelPuts`
//!   (transfer); `SendFrame` (peer link).
//! - **Failure**: a lost receiver ends its prefills; their pages go back once engine and puts have let go. An engine error
//!   is told to the receiver, which computes the prompt itself.

pub mod state;

use std::time::Instant;

use actix::prelude::*;

use crate::counters::{Counters, store};
use crate::kit::{self, Outbox, Vitals, delegate};
use crate::messages::{
    BeginDrain, CancelPrefill, CancelPuts, PagesComputed, PagesReserved, PagesSent, PeerLost, PutsDrained,
    ReleasePages, ReservePages, SchedulePut, SendFrame, SequenceAdvanced, StartPrefill, StartSequence,
    StopSequence, Tick,
};
use state::{Action, PrefillerState};

/// Where the prefiller's messages go.
pub struct PrefillerOutboxes {
    /// Reservations.
    pub reserve: Outbox<ReservePages>,
    /// Releases.
    pub release: Outbox<ReleasePages>,
    /// What stands in pages.
    pub computed: Outbox<PagesComputed>,
    /// Prompts to run.
    pub start: Outbox<StartSequence>,
    /// Prompts to stop.
    pub stop: Outbox<StopSequence>,
    /// Final pages.
    pub puts: Outbox<SchedulePut>,
    /// Requests without further puts.
    pub cancels: Outbox<CancelPuts>,
    /// Frames to receivers.
    pub frames: Outbox<SendFrame>,
}

/// The actor.
pub struct Prefiller {
    state: PrefillerState,
    out: PrefillerOutboxes,
    counters: Counters,
    vitals: Vitals,
}

impl Prefiller {
    /// Prefills `state`'s prompts.
    pub fn new(state: PrefillerState, out: PrefillerOutboxes, counters: Counters, vitals: Vitals) -> Self {
        Self { state, out, counters, vitals }
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn perform(&mut self, actions: Vec<Action>) {
        store(self.counters.prefills_live(), self.state.len() as u64);
        for action in actions {
            match action {
                Action::Reserve(reserve) => self.out.reserve.post(reserve),
                Action::Release(sequence) => self.out.release.post(ReleasePages { sequence }),
                Action::Computed(computed) => self.out.computed.post(computed),
                Action::Start(start) => self.out.start.post(start),
                Action::Stop(sequence) => self.out.stop.post(StopSequence { sequence }),
                Action::Put(put) => self.out.puts.post(put),
                Action::Cancel((session, request)) => self.out.cancels.post(CancelPuts { session, request }),
                Action::Frame(session, frame) => self.out.frames.post(SendFrame { session, frame }),
                Action::Stored { request, tokens, bytes, put_micros } => {
                    let (ms, speed) =
                        (put_micros as f64 / 1e3, bytes as f64 / put_micros.max(1) as f64 / 1e3);
                    // Nothing is copied before it is put, so nothing is offloaded.
                    tracing::info!(
                        %request,
                        "Store {tokens} tokens takes: {ms:.4} ms, throughput: {speed:.4} GB/s; \
                         offload_time: 0.0000 ms, put_time: {ms:.4} ms"
                    );
                }
            }
        }
    }
}

impl Actor for Prefiller {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(kit::MAILBOX);
    }
}

delegate!(Prefiller: StartPrefill, |state, now, msg| state.on_prefill(now, msg));
delegate!(Prefiller: CancelPrefill, |state, _now, msg| state.on_cancel((msg.session, msg.request)));
delegate!(Prefiller: PeerLost, |state, _now, msg| state.on_peer_lost(msg.session));
delegate!(Prefiller: PagesReserved, |state, _now, msg| state.on_reserved(msg));
delegate!(Prefiller: SequenceAdvanced, |state, _now, msg| state.on_advanced(msg));
delegate!(Prefiller: PagesSent, |state, _now, msg| state.on_sent(&msg));
delegate!(Prefiller: PutsDrained, |state, _now, msg| state.on_drained((msg.session, msg.request)));
delegate!(Prefiller: BeginDrain, |state, _now, _msg| {
    state.on_drain();
    Vec::new()
});
delegate!(Prefiller: Tick, |state, now, _msg| state.on_tick(now));
