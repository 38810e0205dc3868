//! The proxy: accepts requests and chooses who prefills each, a sender or this node. [`routing`](crate::routing) has the rules.
//!
//! - **Thread**: the node's arbiter.
//! - **Mailbox**: [`kit::MAILBOX`](crate::kit::MAILBOX); the frontend's admission permits bound its messages.
//! - **In, out**: see the table in [`effect`](crate::effect). `Generate` is the only message that a full mailbox refuses.
//! - **Failure**: if the decoder has stopped, requests are refused at once. A sender whose prefills fail gets none during pauses,
//!   which grow until a prefill succeeds.

pub mod state;

use std::time::Instant;

use actix::prelude::*;

use crate::effect::{Effect, ToProxy};
use crate::request::{AbortRequest, Generate};
use crate::shell::{Behaviour, Shell};
use state::ProxyState;

/// The actor.
pub type Proxy = Shell<ProxyBehaviour>;

/// The behaviour of [`Proxy`]: its state.
pub struct ProxyBehaviour {
    /// The state, which makes the decisions.
    pub state: ProxyState,
}

impl Behaviour for ProxyBehaviour {
    type Mail = ToProxy;

    fn on(&mut self, now: Instant, mail: ToProxy) -> Vec<Effect> {
        self.state.on(now, mail)
    }
}

impl Handler<Generate> for Proxy {
    type Result = ();

    fn handle(&mut self, generate: Generate, ctx: &mut Self::Context) {
        self.handle(ToProxy::from(generate), ctx);
    }
}

impl Handler<AbortRequest> for Proxy {
    type Result = ();

    fn handle(&mut self, abort: AbortRequest, ctx: &mut Self::Context) {
        self.handle(ToProxy::from(abort), ctx);
    }
}
