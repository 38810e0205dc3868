//! The decoder: sees every request of this process from its pages to its last token.
//!
//! - **Thread**: the node's arbiter.
//! - **Mailbox**: [`kit::MAILBOX`]; at most one `Decode` an admission permit, and a few events a request and step.
//! - **In**: `Decode` (proxy), `AbortRequest` (frontend), `PagesReserved`, `PagesGrown`, `PagesShort`, `PagesAdopted`, `PageRejected` (buffer manager), `SequenceAdvanced`
//!   (generator), `PeerReady`, `PeerLost`, `PrefillFinished`, `PrefillFailed` (peer link), `Tick`.
//! - **Out**: `ReservePages`, `GrowPages`, `PagesComputed`, `ReleasePages` (buffer manager), `StartSequence`, `ExtendSequence`, `StopSequence` (generator), `SendFrame`
//!   (peer link), `PrefillOver` (proxy), tokens to [`Streams`].
//! - **Failure**: a lost or failing sender costs a recompute here; a client that is gone, or a deadline, ends the
//!   request everywhere. If this actor stops, the watchdog turns the node unhealthy.

pub mod state;

use std::time::Instant;

use actix::prelude::*;
use connector::frame::peer_text;

use crate::counters::{Counters, count, store};
use crate::kit::{self, Outbox, Vitals, delegate};
use crate::messages::{
    Decode, ExtendSequence, GrowPages, PageRejected, PagesAdopted, PagesComputed, PagesGrown, PagesReserved,
    PagesShort, PeerLost, PeerReady, PrefillFailed, PrefillFinished, PrefillOver, ReleasePages, ReservePages,
    SendFrame, SequenceAdvanced, StartSequence, StopSequence, Tick,
};
use crate::request::{AbortRequest, RequestError, RequestId, StreamEvent};
use crate::streams::Streams;
use state::{Action, DecoderState};

/// Node → decoder: the process is ending; every request ends now.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct AbortAll;

/// Where the decoder's messages go.
pub struct DecoderOutboxes {
    /// Reservations.
    pub reserve: Outbox<ReservePages>,
    /// Releases.
    pub release: Outbox<ReleasePages>,
    /// Growth.
    pub grow: Outbox<GrowPages>,
    /// What stands in pages.
    pub computed: Outbox<PagesComputed>,
    /// Sequences to run.
    pub start: Outbox<StartSequence>,
    /// More pages for them.
    pub extend: Outbox<ExtendSequence>,
    /// Sequences to stop.
    pub stop: Outbox<StopSequence>,
    /// Prompts that wait no more.
    pub over: Outbox<PrefillOver>,
    /// Frames to senders; none in a process without a link.
    pub frames: Option<Outbox<SendFrame>>,
}

/// The actor.
pub struct Decoder {
    state: DecoderState,
    out: DecoderOutboxes,
    streams: Streams,
    counters: Counters,
    vitals: Vitals,
}

impl Decoder {
    /// Decodes `state`'s requests into `streams`.
    pub fn new(
        state: DecoderState,
        out: DecoderOutboxes,
        streams: Streams,
        counters: Counters,
        vitals: Vitals,
    ) -> Self {
        Self { state, out, streams, counters, vitals }
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn perform(&mut self, actions: Vec<Action>) {
        store(self.counters.taken(), self.state.taken());
        store(self.counters.recomputes(), self.state.recomputes());
        store(self.counters.preemptions(), self.state.preemptions());
        let mut gone: Vec<RequestId> = Vec::new();
        for action in actions {
            match action {
                Action::Reserve(reserve) => self.out.reserve.post(reserve),
                Action::Release(sequence) => self.out.release.post(ReleasePages { sequence }),
                Action::Grow(grow) => self.out.grow.post(grow),
                Action::Computed(computed) => self.out.computed.post(computed),
                Action::Start(start) => self.out.start.post(start),
                Action::Extend(extend) => self.out.extend.post(extend),
                Action::Stop(sequence) => self.out.stop.post(StopSequence { sequence }),
                Action::Frame(frame) => {
                    if let Some(frames) = &self.out.frames {
                        frames.post(frame);
                    }
                }
                Action::Over(over) => self.out.over.post(over),
                Action::Token(request, token) => {
                    if !self.streams.token(request, token) {
                        gone.push(request);
                    }
                }
                Action::End(request, event) => {
                    count(match &event {
                        StreamEvent::Failed(RequestError::Deadline { .. }) => {
                            self.counters.deadlines_missed()
                        }
                        StreamEvent::Failed(RequestError::Engine(_)) => self.counters.engine_failures(),
                        StreamEvent::Failed(RequestError::ShuttingDown) => self.counters.cut_at_the_end(),
                        StreamEvent::Failed(RequestError::Aborted | RequestError::Refused(_)) => {
                            self.counters.aborts()
                        }
                        StreamEvent::Finished { .. } | StreamEvent::Token(_) => self.counters.finished(),
                    });
                    tracing::debug!(%request, ?event, "request ended");
                    self.streams.end(request, event);
                }
            }
        }
        for request in gone {
            let actions = self.state.on_abort(request);
            self.perform(actions);
        }
    }
}

impl Actor for Decoder {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(kit::MAILBOX);
    }
}

impl Handler<Decode> for Decoder {
    type Result = ();

    fn handle(&mut self, decode: Decode, _: &mut Self::Context) {
        self.vitals.mark();
        let client_waits = self.streams.has(decode.generate.request);
        let actions = self.state.on_decode(self.now(), decode, client_waits);
        self.perform(actions);
    }
}

delegate!(Decoder: AbortRequest, |state, _now, msg| match msg.complete_with {
    None => state.on_abort(msg.request),
    Some(tokens) => state.on_complete(msg.request, tokens),
});
delegate!(Decoder: AbortAll, |state, _now, _msg| state.on_abort_all());
delegate!(Decoder: PagesReserved, |state, now, msg| state.on_reserved(now, msg));
delegate!(Decoder: PagesGrown, |state, _now, msg| state.on_grown(msg));
delegate!(Decoder: PagesShort, |state, _now, msg| state.on_short(msg));
delegate!(Decoder: PageRejected, |state, _now, msg| state.on_rejected(msg.request));
delegate!(Decoder: PagesAdopted, |state, now, msg| state.on_adopted(now, msg));
delegate!(Decoder: SequenceAdvanced, |state, now, msg| state.on_advanced(now, msg));
delegate!(Decoder: PrefillFinished, |state, now, msg| state.on_prefill_finished(now, msg));
delegate!(Decoder: PeerLost, |state, _now, msg| state.on_peer_lost(msg.session));
delegate!(Decoder: Tick, |state, now, _msg| state.on_tick(now));

delegate!(Decoder: PeerReady, |state, _now, msg| {
    state.on_peer_ready(msg.session, msg.pid);
    Vec::new()
});
delegate!(Decoder: PrefillFailed, |state, _now, msg| {
    tracing::warn!(request = %msg.request, session = %msg.session, reason = peer_text(&msg.reason), "sender did not prefill; computing here");
    state.on_prefill_failed(msg.session, msg.request)
});
