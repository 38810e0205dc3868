//! The routing of requests: the decisions of the proxy, without actix, clock or I/O.
//!
//! The proxy refuses requests that do not fit, and asks [`Routing`] for the prefiller of the others. This node decodes all of them.

use std::time::Instant;

use connector::frame::Capabilities;

use crate::decoder::state::fits_frames;
use crate::effect::{Effect, ToProxy, to};
use crate::messages::{
    Decode, PeerLoad, PeerReady, PlaceAgain, PlacedAgain, Placement, PrefillOver, SessionId, StreamEnd,
};
use crate::request::{Generate, Refused, Route, StreamEvent};
use crate::routing::{Ask, Joining, LocalPrefill, Routing, RoutingConfig};

/// The proxy's configuration.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Tokens in a page.
    pub page_tokens: u32,
    /// Pages of this node's pool.
    pub pool_pages: u32,
    /// Pages that a request may use when no page is quarantined.
    pub request_pages: u32,
    /// [`Incarnation::name`](connector::frame::Incarnation::name) of this process.
    pub name: u64,
    /// How prefillers are chosen.
    pub routing: RoutingConfig,
}

/// The senders that can prefill, and the pages that a request may use here.
#[derive(Debug)]
pub struct ProxyState {
    config: ProxyConfig,
    /// Pages that a request may use now.
    usable_pages: u32,
    /// The senders by their sessions, and this node as [`HERE`].
    routing: Routing<Option<SessionId>>,
    draining: bool,
}

/// This node's name in the routing.
const HERE: Option<SessionId> = None;

impl ProxyState {
    /// A state without senders.
    pub fn new(config: ProxyConfig) -> Self {
        let mut routing = Routing::new(config.page_tokens, config.routing.clone());
        let capabilities = Capabilities { prefill: true, decode: true };
        let pool_pages = config.pool_pages;
        routing.joined(HERE, Joining { name: config.name, capabilities, pool_pages });
        Self { usable_pages: config.request_pages, config, routing, draining: false }
    }

    /// Handles a message and returns the effects.
    pub fn on(&mut self, now: Instant, mail: ToProxy) -> Vec<Effect> {
        match mail {
            ToProxy::Generate(generate) => return vec![self.on_generate(now, generate)],
            // Aborts take the same path as requests, so that the decoder gets a request before its abort.
            ToProxy::AbortRequest(abort) => return vec![to::decoder(abort)],
            ToProxy::PlaceAgain(again) => return vec![self.on_place_again(now, &again)],
            ToProxy::PrefillOver(over) => self.on_prefill_over(now, &over),
            ToProxy::HandOverEnded(ended) => {
                self.routing.handed_over(Some(ended.session), ended.exposed_micros);
            }
            ToProxy::LoadReport(load) => self.routing.reported(now, HERE, &load),
            ToProxy::PeerLoad(PeerLoad { session, load, cache_pages }) => {
                self.routing.reported(now, Some(session), &load);
                self.routing.cache_reported(Some(session), cache_pages);
            }
            ToProxy::PeerReady(ready) => self.on_peer_ready(ready),
            ToProxy::PeerLeaving(leaving) => self.on_peer_lost(leaving.session),
            ToProxy::PeerLost(lost) => self.on_peer_lost(lost.session),
            ToProxy::RoomChanged(room) => self.usable_pages = room.usable,
            ToProxy::BeginDrain(_) => self.draining = true,
            ToProxy::Tick(_) => {}
        }
        Vec::new()
    }

    fn on_generate(&mut self, now: Instant, generate: Generate) -> Effect {
        match self.route(now, &generate) {
            Ok(placement) => to::decoder(Decode { generate, placement }),
            Err(refused) => {
                let event = StreamEvent::Failed(refused.into());
                to::streams(StreamEnd { request: generate.request, event })
            }
        }
    }

    /// A sender does not prefill a request that this node must not prefill. The request was accepted, so a drain does not stop it.
    fn on_place_again(&mut self, now: Instant, again: &PlaceAgain) -> Effect {
        let tried: Vec<_> = again.tried.iter().map(|session| Some(*session)).collect();
        let placement = self.place(now, &again.generate, &tried).ok();
        to::decoder(PlacedAgain { request: again.generate.request, placement })
    }

    /// A sender can prefill. All senders are assumed to have pools of this node's size until they report it.
    fn on_peer_ready(&mut self, ready: PeerReady) {
        let capabilities = Capabilities { prefill: true, decode: false };
        let pool_pages = self.config.pool_pages;
        let joining = Joining { name: ready.name, capabilities, pool_pages };
        self.routing.joined(Some(ready.session), joining);
    }

    /// A sender's session has ended, or the sender accepts no new prefills.
    fn on_peer_lost(&mut self, session: SessionId) {
        self.routing.left(Some(session));
    }

    /// A prefill has ended. A sender whose session has ended has no record any more.
    fn on_prefill_over(&mut self, now: Instant, over: &PrefillOver) {
        self.routing.prefilled(now, over.placement.on, over.placement.tokens, &over.outcome);
    }

    /// Total tokens that are to be computed here and at senders for prompts of this node.
    pub fn waiting(&self) -> u64 {
        self.routing.waiting()
    }

    /// Chooses who prefills this request.
    ///
    /// # Errors
    /// [`Refused`].
    fn route(&mut self, now: Instant, generate: &Generate) -> Result<Placement, Refused> {
        if self.draining {
            return Err(Refused::ShuttingDown);
        }
        let tokens = generate.prompt.len() as u64 + u64::from(generate.max_tokens).saturating_sub(1);
        let needed = tokens.div_ceil(u64::from(self.config.page_tokens)) as u32;
        if needed > self.config.request_pages {
            return Err(Refused::TooLarge { needed, usable: self.config.request_pages });
        }
        if needed > self.usable_pages {
            return Err(Refused::NoRoom { needed, usable: self.usable_pages });
        }
        self.place(now, generate, &[])
    }

    /// Chooses who prefills this request, without the senders that were `tried`.
    fn place(
        &mut self,
        now: Instant,
        generate: &Generate,
        tried: &[Option<SessionId>],
    ) -> Result<Placement, Refused> {
        let local = match (generate.route, self.config.routing.local) {
            (Route::Local, _) => LocalPrefill::Always,
            (Route::Auto, LocalPrefill::Never) if !fits_frames(generate) => {
                return Err(Refused::TooLargeToSend);
            }
            (Route::Auto, _) if !fits_frames(generate) => LocalPrefill::Always,
            (Route::Auto, local) => local,
        };
        let ask = Ask {
            prompt: &generate.prompt,
            salt: generate.salt,
            reads_cache: generate.prompt_logprobs.is_none(),
            max_tokens: generate.max_tokens,
            decode_on: Some(HERE),
            local,
            not_on: tried,
        };
        let placed = self.routing.place(now, &ask).map_err(|_| Refused::NoPrefiller)?;
        let (on, tokens) = (placed.prefill_on, placed.prefill_tokens);
        Ok(Placement { on, tokens, may_fall_back: local != LocalPrefill::Never })
    }
}

#[cfg(test)]
mod tests;
