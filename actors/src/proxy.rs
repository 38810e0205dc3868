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
use tokio::sync::watch;

use crate::counters::{Counters, store};
use crate::effect::{Effect, ToProxy};
use crate::request::{AbortRequest, Generate};
use crate::shell::{Behaviour, Shell};
use state::{ProxyReport, ProxyState};

/// The actor.
pub type Proxy = Shell<ProxyBehaviour>;

/// The behaviour of [`Proxy`]: its state, and where its numbers are published.
pub struct ProxyBehaviour {
    /// The state, which makes the decisions.
    pub state: ProxyState,
    /// The node's counters.
    pub counters: Counters,
    /// The newest report for routers of a fleet.
    pub report: watch::Sender<ProxyReport>,
}

impl Behaviour for ProxyBehaviour {
    type Mail = ToProxy;

    fn on(&mut self, now: Instant, mail: ToProxy) -> Vec<Effect> {
        self.state.on(now, mail)
    }

    fn publish(&self) {
        store(self.counters.prefiller_headers_unknown(), self.state.headers_unknown());
        let report = self.state.report();
        self.report.send_if_modified(|published| {
            let is_new = *published != report;
            *published = report;
            is_new
        });
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
