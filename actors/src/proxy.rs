//! The proxy: the door for requests; picks the sender that prefills, or this node.
//!
//! - **Thread**: the node's arbiter.
//! - **Mailbox**: [`kit::MAILBOX`]; the frontend's admission permits bound what is in it.
//! - **In**: `Generate` (frontend), `PrefillOver` (decoder), `PeerReady`, `PeerLeaving`, `PeerLost` (peer link), `BeginDrain`, `Tick`.
//! - **Out**: `Decode` (decoder), the one edge that may be refused; refusals to [`Streams`].
//! - **Failure**: a full or stopped decoder is a refusal, said at once to the client. A sender whose prefills fail gets none for growing pauses,
//!   until one succeeds.

mod place;
pub mod state;

use std::time::Instant;

use actix::prelude::*;

use crate::kit::{self, Outbox, Undelivered, Vitals};
use crate::messages::{
    BeginDrain, Decode, PeerLeaving, PeerLost, PeerReady, PrefillOutcome, PrefillOver, Tick,
};
use crate::request::{Generate, Refused, StreamEvent};
use crate::streams::Streams;
use state::ProxyState;

/// The actor.
pub struct Proxy {
    state: ProxyState,
    decoder: Outbox<Decode>,
    streams: Streams,
    vitals: Vitals,
}

impl Proxy {
    /// Routes by `state` to `decoder`; what it refuses ends in `streams`.
    pub fn new(state: ProxyState, decoder: Outbox<Decode>, streams: Streams, vitals: Vitals) -> Self {
        Self { state, decoder, streams, vitals }
    }

    fn hand_over(&mut self, generate: Generate) -> Result<(), Refused> {
        let now = Instant::now();
        let prefill_on = self.state.route(now, &generate)?;
        let tokens = generate.prompt.len() as u32;
        self.decoder.command(Decode { generate, prefill_on }).map_err(|undelivered| {
            let outcome = PrefillOutcome::Withdrawn;
            self.state.on_prefill_over(now, &PrefillOver { on: prefill_on, tokens, outcome });
            match undelivered {
                Undelivered::Full(_) => Refused::Busy,
                Undelivered::Closed(_) => Refused::ShuttingDown,
            }
        })
    }
}

impl Actor for Proxy {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(kit::MAILBOX);
    }
}

impl Handler<Generate> for Proxy {
    type Result = ();

    fn handle(&mut self, generate: Generate, _: &mut Self::Context) {
        self.vitals.mark();
        let request = generate.request;
        if let Err(refused) = self.hand_over(generate) {
            self.streams.end(request, StreamEvent::Failed(refused.into()));
        }
    }
}

impl Handler<PrefillOver> for Proxy {
    type Result = ();

    fn handle(&mut self, over: PrefillOver, _: &mut Self::Context) {
        self.vitals.mark();
        self.state.on_prefill_over(Instant::now(), &over);
    }
}

impl Handler<PeerReady> for Proxy {
    type Result = ();

    fn handle(&mut self, peer: PeerReady, _: &mut Self::Context) {
        self.vitals.mark();
        self.state.on_peer_ready(peer.session);
    }
}

impl Handler<PeerLeaving> for Proxy {
    type Result = ();

    fn handle(&mut self, peer: PeerLeaving, _: &mut Self::Context) {
        self.vitals.mark();
        self.state.on_peer_lost(peer.session);
    }
}

impl Handler<PeerLost> for Proxy {
    type Result = ();

    fn handle(&mut self, peer: PeerLost, _: &mut Self::Context) {
        self.vitals.mark();
        self.state.on_peer_lost(peer.session);
    }
}

impl Handler<BeginDrain> for Proxy {
    type Result = ();

    fn handle(&mut self, _: BeginDrain, _: &mut Self::Context) {
        self.vitals.mark();
        self.state.on_drain();
    }
}

impl Handler<Tick> for Proxy {
    type Result = ();

    fn handle(&mut self, _: Tick, _: &mut Self::Context) {
        self.vitals.mark();
    }
}
