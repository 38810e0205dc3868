//! The actix actor that all actors share: it gives each message to a [`Behaviour`], and the effects to the router.

use std::time::Instant;

use actix::prelude::*;

use crate::effect::Effect;
use crate::kit::{Awake, MAILBOX, Vitals};
use crate::router::Router;

/// The logic of one actor. [`Shell`] makes an actix actor of it.
pub trait Behaviour: Unpin + 'static {
    /// The messages that the actor handles.
    type Mail: Message<Result = ()> + Send + 'static;

    /// Handles one message. Returns the effects in order.
    fn on(&mut self, now: Instant, mail: Self::Mail) -> Vec<Effect>;

    /// When [`publish`](Self::publish) is called: before a message's effects are delivered, or after.
    const PUBLISHES: Publishes = Publishes::BeforeEffects;

    /// Publishes the state's counters. Called after each message.
    fn publish(&self) {}

    /// True if more messages of a hand-over usually arrive within microseconds of this one.
    fn expects_more(_mail: &Self::Mail) -> bool {
        false
    }
}

/// When an actor's counters are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publishes {
    /// The counters include an answer before the client gets it.
    BeforeEffects,
    /// The other actors know of a change before the counters show it. So when `/health` shows a sender, the next request can go to it.
    AfterEffects,
}

/// An actix actor: gives each message to its behaviour, and the effects to the router.
pub struct Shell<B> {
    behaviour: B,
    router: Router,
    awake: Awake,
    vitals: Vitals,
}

impl<B: Behaviour> Shell<B> {
    /// The actor with this behaviour, whose effects `router` delivers.
    pub fn new(behaviour: B, router: Router, awake: Awake, vitals: Vitals) -> Self {
        Self { behaviour, router, awake, vitals }
    }
}

impl<B: Behaviour> Actor for Shell<B> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl<B: Behaviour> Handler<B::Mail> for Shell<B> {
    type Result = ();

    fn handle(&mut self, mail: B::Mail, _: &mut Self::Context) {
        self.vitals.mark();
        if B::expects_more(&mail) {
            self.awake.stay();
        }
        let effects = self.behaviour.on(Instant::now(), mail);
        if B::PUBLISHES == Publishes::BeforeEffects {
            self.behaviour.publish();
        }
        self.router.deliver(effects);
        if B::PUBLISHES == Publishes::AfterEffects {
            self.behaviour.publish();
        }
    }
}
