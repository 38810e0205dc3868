//! The routing of requests: the decisions of the proxy, without actix, clock or I/O.
//!
//! The proxy refuses requests that do not fit, and asks [`Routing`] for the prefiller of the others. This node decodes all of them.
//!
//! A request may name its prefiller by HTTP addresses ([`Route::On`]). The first address of a connected sender or of this node decides, even if that
//! sender pauses after failures. The rules that `frontend.local` sets for a failed prefill apply as for other requests. If the setting is
//! `never`, this node does not prefill such a request either.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use connector::frame::Capabilities;

use crate::decoder::state::fits_frames;
use crate::effect::{Effect, ToProxy, to};
use crate::log::LogLine;
use crate::messages::{
    Decode, LoadReport, PeerLoad, PeerReady, PlaceAgain, PlacedAgain, Placement, PrefillOver, SessionId,
    StreamEnd,
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
    /// The HTTP address that this process advertises; `None` if it serves no HTTP.
    pub http: Option<SocketAddr>,
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
    /// The HTTP addresses of the senders that advertise one.
    addresses: BTreeMap<SessionId, SocketAddr>,
    /// The newest report of this node's own generator.
    load: LoadReport,
    draining: bool,
    /// Requests whose header named no connected sender.
    headers_unknown: u64,
    /// When such a request was logged last.
    header_logged: Option<Instant>,
}

/// The part of the proxy's state that this process reports to routers of a fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyReport {
    /// The newest load of this process.
    pub load: LoadReport,
    /// The advertised HTTP addresses of the senders that can prefill for this process, sorted.
    pub prefillers: Vec<SocketAddr>,
}

/// Minimum time between two log lines about headers that name no connected sender. The counter has all of them.
const HEADER_LOGGED_EVERY: Duration = Duration::from_secs(60);

/// This node's name in the routing.
const HERE: Option<SessionId> = None;

impl ProxyState {
    /// A state without senders.
    pub fn new(config: ProxyConfig) -> Self {
        let mut routing = Routing::new(config.page_tokens, config.routing.clone());
        let capabilities = Capabilities { prefill: true, decode: true };
        let pool_pages = config.pool_pages;
        routing.joined(HERE, Joining { name: config.name, capabilities, pool_pages });
        Self {
            usable_pages: config.request_pages,
            config,
            routing,
            addresses: BTreeMap::new(),
            load: LoadReport::default(),
            draining: false,
            headers_unknown: 0,
            header_logged: None,
        }
    }

    /// Handles a message and returns the effects.
    pub fn on(&mut self, now: Instant, mail: ToProxy) -> Vec<Effect> {
        match mail {
            ToProxy::Generate(generate) => return self.on_generate(now, *generate),
            // Aborts take the same path as requests, so that the decoder gets a request before its abort.
            ToProxy::AbortRequest(abort) => return vec![to::decoder(abort)],
            ToProxy::PlaceAgain(again) => return vec![self.on_place_again(now, &again)],
            ToProxy::PrefillOver(over) => self.on_prefill_over(now, &over),
            ToProxy::HandOverEnded(ended) => {
                self.routing.handed_over(Some(ended.session), ended.exposed_micros);
            }
            ToProxy::LoadReport(load) => {
                self.load = load;
                self.routing.reported(now, HERE, &load);
            }
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

    fn on_generate(&mut self, now: Instant, generate: Generate) -> Vec<Effect> {
        let mut effects = self.note_unknown(now, &generate);
        effects.push(match self.route(now, &generate) {
            Ok(placement) => to::decoder(Decode { generate, placement }),
            Err(refused) => {
                let event = StreamEvent::Failed(refused.into());
                to::streams(StreamEnd { request: generate.request, event })
            }
        });
        effects
    }

    /// Counts a request whose header names no prefiller that can be used, and logs it if the last such line is old enough.
    fn note_unknown(&mut self, now: Instant, generate: &Generate) -> Vec<Effect> {
        let Route::On(addresses) = &generate.route else { return Vec::new() };
        if self.named(addresses, &[]).is_some() {
            return Vec::new();
        }
        self.headers_unknown += 1;
        let is_due = |at: Instant| now.saturating_duration_since(at) >= HEADER_LOGGED_EVERY;
        if !self.header_logged.is_none_or(is_due) {
            return Vec::new();
        }
        self.header_logged = Some(now);
        let (request, addresses, total) = (generate.request, addresses.clone(), self.headers_unknown);
        vec![to::log(LogLine::UnknownPrefiller { request, addresses, total })]
    }

    /// The member of the routing that the first usable address names, without the senders that were `tried`. If two senders advertise the same
    /// address, the later one has it, because a restarted sender may connect before the loss of its last session is noticed.
    fn named(&self, addresses: &[SocketAddr], tried: &[Option<SessionId>]) -> Option<Option<SessionId>> {
        addresses.iter().find_map(|address| {
            if self.config.http == Some(*address) {
                return (self.config.routing.local != LocalPrefill::Never).then_some(HERE);
            }
            let mut youngest_first = self.addresses.iter().rev();
            let sender = youngest_first.find(|(_, http)| *http == address).map(|(session, _)| Some(*session));
            sender.filter(|sender| !tried.contains(sender))
        })
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
        self.addresses.extend(ready.http.map(|http| (ready.session, http)));
    }

    /// A sender's session has ended, or the sender accepts no new prefills.
    fn on_peer_lost(&mut self, session: SessionId) {
        self.routing.left(Some(session));
        self.addresses.remove(&session);
    }

    /// A prefill has ended. A sender whose session has ended has no record any more.
    fn on_prefill_over(&mut self, now: Instant, over: &PrefillOver) {
        self.routing.prefilled(now, over.placement.on, over.placement.tokens, &over.outcome);
    }

    /// Total tokens that are to be computed here and at senders for prompts of this node.
    pub fn waiting(&self) -> u64 {
        self.routing.waiting()
    }

    /// Number of requests whose header named no prefiller that could be used.
    pub fn headers_unknown(&self) -> u64 {
        self.headers_unknown
    }

    /// The report for routers of a fleet.
    pub fn report(&self) -> ProxyReport {
        let mut prefillers: Vec<SocketAddr> = self.addresses.values().copied().collect();
        prefillers.sort_unstable();
        prefillers.dedup();
        ProxyReport { load: self.load, prefillers }
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
        let (local, named) = match (&generate.route, self.config.routing.local) {
            (Route::Local, _) => (LocalPrefill::Always, None),
            (_, LocalPrefill::Never) if !fits_frames(generate) => return Err(Refused::TooLargeToSend),
            (_, _) if !fits_frames(generate) => (LocalPrefill::Always, None),
            (Route::Auto, local) => (local, None),
            (Route::On(addresses), local) => (local, self.named(addresses, tried)),
        };
        let ask = Ask {
            prompt: &generate.prompt,
            salt: generate.salt,
            hashes: None,
            reads_cache: generate.prompt_logprobs.is_none(),
            max_tokens: generate.max_tokens,
            decode_on: Some(HERE),
            local,
            context_tokens: 0,
            not_on: tried,
        };
        let placed = match named {
            Some(on) => self.routing.place_on(now, &ask, on),
            None => self.routing.place(now, &ask),
        };
        let placed = placed.map_err(|_| Refused::NoPrefiller)?;
        let (on, tokens) = (placed.prefill_on, placed.prefill_tokens);
        Ok(Placement { on, tokens, may_fall_back: local != LocalPrefill::Never })
    }
}

#[cfg(test)]
mod tests;
