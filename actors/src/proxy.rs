//! The proxy: takes requests in and picks the sender that prefills, or this node.
//!
//! - **Thread**: the node's arbiter.
//! - **Mailbox**: [`kit::MAILBOX`](crate::kit::MAILBOX); the frontend's admission permits bound what is in it.
//! - **In, out**: see the table in [`effect`](crate::effect). `Generate` is the one message that a full mailbox refuses.
//! - **Failure**: a stopped decoder is a refusal, told at once to the client. A sender whose prefills fail gets none for growing
//!   pauses, until one succeeds.

mod place;
pub mod state;

use std::time::Instant;

use actix::prelude::*;

use crate::effect::{Effect, ToProxy};
use crate::request::{AbortRequest, Generate};
use crate::shell::{Behaviour, Shell};
use state::ProxyState;

/// The actor.
pub type Proxy = Shell<ProxyBehaviour>;

/// What the actor does with its messages.
pub struct ProxyBehaviour {
    /// Its decisions.
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
