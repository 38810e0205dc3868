//! The requests of a fleet: where each one runs, and what happens after a node has failed to answer it.
//!
//! **Retries.** A request that has failed before the first byte of its answer goes to another node, up to [`ATTEMPTS`] nodes in all. A retry
//! after a busy node or a broken connection needs a place in the retry budget until the other node answers: at most a tenth of the live
//! requests, and [`RETRIES_MIN`] in a small fleet. So a fault that makes most requests fail does not multiply the load on the nodes that are
//! left. The budget counts the retries in progress, as Envoy's does. Unlike a token bucket, it needs no clock, and follows the load at
//! once. A retry after a connection that could not be made needs no place, because no node has got the request. Neither does one after a node that
//! drains and refuses its queue, because the request has not run and the node refuses it once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::{FleetModel, FleetState, NodeId, NodeView, TicketId, UNKNOWN_AFTER};
use crate::messages::PrefillOutcome;
use crate::request::CacheSalt;
use crate::routing::{Ask, DecodeShare, LocalPrefill, NotPlaced, PromptHashes};

/// Maximum number of nodes that get a request one after the other.
const ATTEMPTS: usize = 3;

/// One in this many live requests may be in a retry.
const RETRIES_PART: usize = 10;

/// Number of requests that may always be in a retry.
const RETRIES_MIN: usize = 3;

/// Length of an answer whose client sets no limit, for the count of a node's pages. A node also reserves pages for this many tokens when an answer
/// begins.
const ANSWER_TOKENS: u32 = 256;

/// A request that is to be placed.
#[derive(Clone, Copy, Debug)]
pub struct FleetAsk<'a> {
    /// The model; `None`: the fleet's first one.
    pub model: Option<&'a str>,
    /// Prompt token ids.
    pub prompt: &'a [u32],
    /// The salt of its prefix cache.
    pub salt: Option<CacheSalt>,
    /// The hashes of the prompt with its salt, for pages of [`FleetState::page_tokens`]. The state computes them if they are missing. A caller that
    /// shares the state among threads computes them first, while it does not hold the lock.
    pub hashes: Option<&'a PromptHashes>,
    /// Maximum number of tokens to sample; `None`: as many as the context has room for.
    pub max_tokens: Option<u32>,
}

/// Where a request runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetTicket {
    /// The number of the request.
    pub id: TicketId,
    /// The node that decodes and answers.
    pub decode_on: NodeId,
    /// The HTTP address of the node that prefills, as the decoding node knows it; `None`: the decoding node itself.
    pub prefill_on: Option<SocketAddr>,
}

/// Why a node has not begun to answer a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It has answered that it takes no requests now.
    Busy,
    /// It drains, and has not begun the request.
    Draining,
    /// No connection to it could be made, so it has not got the request.
    Unreachable,
    /// The connection broke.
    Broke,
    /// The deadline of the request has passed.
    Late,
    /// The deadline of the request has passed, and the node had little time for it.
    OutOfTime,
}

/// Why a request gets no node, or no further one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FleetRefusal {
    /// No node has reported this model.
    #[error("no node of the fleet serves this model")]
    NoModel,
    /// No node takes the request now.
    #[error("no node of the fleet takes requests now; retry later")]
    NoNode,
    /// Every node that was tried is busy.
    #[error("{nodes} nodes got the request and have no room for it now; retry later")]
    Busy {
        /// Number of nodes that were tried.
        nodes: usize,
    },
    /// The connection to at least one of the nodes that were tried broke, or could not be made.
    #[error("{nodes} nodes were tried and did not answer; retry later")]
    Lost {
        /// Number of nodes that were tried.
        nodes: usize,
    },
    /// The deadline of the request has passed.
    #[error("no node answered before the deadline of the request")]
    Late,
}

/// A live request.
#[derive(Debug)]
pub(super) struct FleetRequest {
    model: Arc<str>,
    /// Where it runs; `None` after a failure.
    placement: Option<Placement>,
    /// Nodes that have failed to answer it.
    tried: Vec<NodeId>,
    /// The connection to one of them broke, or could not be made.
    is_lost: bool,
    /// It has a place in the retry budget.
    is_retry: bool,
    /// The first byte of an answer has come. From then on it stays with its node.
    is_answered: bool,
}

#[derive(Debug)]
struct Placement {
    decode_on: NodeId,
    /// The process of that node, and that of the next one.
    decode_name: u64,
    decode: DecodeShare,
    prefill_on: NodeId,
    prefill_name: u64,
    prefill_tokens: u32,
    placed: Instant,
    /// The prompt counts at its prefiller.
    is_counted: bool,
    /// A report of the decoding node contains the request.
    is_reported: bool,
}

impl FleetRequest {
    /// A report of this node contains the request. Returns the work of its prompt, if the node prefills it and it has counted there until now.
    pub(super) fn prompt_in_report(&mut self, node: NodeId) -> Option<u32> {
        let placement = self.placement.as_mut().filter(|placement| placement.prefill_on == node)?;
        std::mem::take(&mut placement.is_counted).then_some(placement.prefill_tokens)
    }

    /// A report of this node contains the request. Returns what the answer takes there, if the node decodes it and no report has contained it.
    pub(super) fn decode_in_report(&mut self, node: NodeId) -> Option<DecodeShare> {
        let placement = self.placement.as_mut().filter(|placement| placement.decode_on == node)?;
        let was_reported = std::mem::replace(&mut placement.is_reported, true);
        (!was_reported).then_some(placement.decode)
    }
}

impl FleetState {
    /// Places a request.
    ///
    /// # Errors
    /// [`FleetRefusal`].
    pub fn place(&mut self, now: Instant, ask: &FleetAsk<'_>) -> Result<FleetTicket, FleetRefusal> {
        let (name, _) = self.model(ask.model).ok_or(FleetRefusal::NoModel)?;
        let model = Arc::clone(name);
        let id = TicketId(self.next_ticket);
        self.next_ticket += 1;
        let request = FleetRequest {
            model,
            placement: None,
            tried: Vec::new(),
            is_lost: false,
            is_retry: false,
            is_answered: false,
        };
        self.requests.insert(id, request);
        let placed = self.assign(now, id, ask);
        if placed.is_err() {
            self.requests.remove(&id);
        }
        placed
    }

    /// The node of a request has failed. Returns the node that gets the request next; there is none if an answer has begun. `ask` is that of
    /// [`place`](Self::place).
    ///
    /// # Errors
    /// The client gets this refusal.
    pub fn failed(
        &mut self,
        now: Instant,
        ticket: TicketId,
        failure: Failure,
        ask: &FleetAsk<'_>,
    ) -> Result<FleetTicket, FleetRefusal> {
        self.judge(now, ticket, |breaker, placed| match failure {
            Failure::Busy | Failure::Draining => breaker.began(placed),
            Failure::Unreachable | Failure::Broke => breaker.broke(now, placed),
            Failure::Late => breaker.was_late(now, placed),
            Failure::OutOfTime => {}
        });
        let node = self.release(now, ticket);
        let may_begin = self.retrying < RETRIES_MIN.max(self.requests.len() / RETRIES_PART);
        let Some(request) = self.requests.get_mut(&ticket) else { return Err(FleetRefusal::NoNode) };
        request.tried.extend(node);
        request.is_lost |= !matches!(failure, Failure::Busy | Failure::Draining);
        let nodes = request.tried.len();
        let refusal = match (failure, request.is_lost) {
            (Failure::Late | Failure::OutOfTime, _) => return Err(FleetRefusal::Late),
            (_, true) => FleetRefusal::Lost { nodes },
            (_, false) => FleetRefusal::Busy { nodes },
        };
        let cost_nothing = matches!(failure, Failure::Unreachable | Failure::Draining);
        let needs_place = !cost_nothing && !request.is_retry;
        if nodes >= ATTEMPTS || request.is_answered || (needs_place && !may_begin) {
            return Err(refusal);
        }
        let placed = self.assign(now, ticket, ask).map_err(|_| refusal)?;
        if needs_place && let Some(request) = self.requests.get_mut(&ticket) {
            request.is_retry = true;
            self.retrying += 1;
        }
        Ok(placed)
    }

    /// The first byte of a request's answer has come, and it is no error.
    pub fn answered(&mut self, now: Instant, ticket: TicketId) {
        let placement = self.requests.get(&ticket).and_then(|request| request.placement.as_ref());
        let Some(Placement { prefill_tokens: tokens, placed, .. }) = placement else { return };
        let micros = now.saturating_duration_since(*placed).as_micros() as u64;
        let outcome = PrefillOutcome::Computed { tokens: *tokens, micros };
        self.began(now, ticket, &outcome);
    }

    /// The first byte of a request's answer has come, and it is an error of the node that the client gets.
    pub fn rejected(&mut self, now: Instant, ticket: TicketId) {
        self.began(now, ticket, &PrefillOutcome::Withdrawn);
    }

    /// The node has sent all of a request's answer.
    pub fn completed(&mut self, now: Instant, ticket: TicketId) {
        self.judge(now, ticket, |breaker, placed| breaker.completed(placed));
    }

    /// The connection to the node broke after the answer had begun.
    pub fn broke_off(&mut self, now: Instant, ticket: TicketId) {
        self.judge(now, ticket, |breaker, placed| breaker.broke(now, placed));
    }

    /// A request has ended, in any way.
    pub fn ended(&mut self, now: Instant, ticket: TicketId) {
        self.release(now, ticket);
        self.leave_budget(ticket);
        self.requests.remove(&ticket);
    }

    /// Requests that are placed and have not ended.
    pub fn live(&self) -> usize {
        self.requests.len()
    }

    fn began(&mut self, now: Instant, ticket: TicketId, outcome: &PrefillOutcome) {
        self.judge(now, ticket, |breaker, placed| breaker.began(placed));
        self.uncount(now, ticket, outcome);
        self.leave_budget(ticket);
        if let Some(request) = self.requests.get_mut(&ticket) {
            request.is_answered = true;
        }
        // The prefiller has done its part, so another request may probe it.
        let placement = self.requests.get(&ticket).and_then(|request| request.placement.as_ref());
        if let Some((node, placed)) = placement.map(|placement| (placement.prefill_on, placement.placed)) {
            let is_computed = matches!(outcome, PrefillOutcome::Computed { .. });
            self.breaker_of(now, node, |breaker| {
                breaker.ended(ticket);
                if is_computed {
                    breaker.began(placed);
                }
            });
        }
    }

    /// Tells the breaker of the node that decodes a request what has become of it.
    fn judge(&mut self, now: Instant, ticket: TicketId, tell: impl FnOnce(&mut super::Breaker, Instant)) {
        let placement = self.requests.get(&ticket).and_then(|request| request.placement.as_ref());
        if let Some(Placement { decode_on, placed, .. }) = placement {
            let (node, placed) = (*decode_on, *placed);
            self.breaker_of(now, node, |breaker| tell(breaker, placed));
        }
    }

    fn leave_budget(&mut self, ticket: TicketId) {
        if self.requests.get_mut(&ticket).is_some_and(|request| std::mem::take(&mut request.is_retry)) {
            self.retrying -= 1;
        }
    }

    /// Chooses the nodes of a request that has none.
    fn assign(
        &mut self,
        now: Instant,
        ticket: TicketId,
        ask: &FleetAsk<'_>,
    ) -> Result<FleetTicket, FleetRefusal> {
        let (request, ran) = (self.requests.get(&ticket).ok_or(FleetRefusal::NoNode)?, self.ran(now));
        let name = request.model.clone();
        let context = self.context_tokens(Some(&name)).unwrap_or(0);
        let prompt = u32::try_from(ask.prompt.len()).unwrap_or(u32::MAX);
        let needed = prompt.saturating_add(ask.max_tokens.unwrap_or(1)).min(context);
        let asked = Ask {
            prompt: ask.prompt,
            salt: ask.salt,
            hashes: ask.hashes,
            reads_cache: true,
            max_tokens: ask.max_tokens.unwrap_or(ANSWER_TOKENS).min(context.saturating_sub(prompt)),
            decode_on: None,
            local: LocalPrefill::Auto,
            context_tokens: needed,
            not_on: &request.tried,
        };
        let FleetModel { routing, .. } = self.models.get_mut(&name).ok_or(FleetRefusal::NoModel)?;
        let mut placed = routing.place(now, &asked);
        let mut opened = Vec::new();
        if placed == Err(NotPlaced::NoDecoder) {
            // A node that pauses is better than none.
            for (id, node) in self.nodes.iter().filter(|(_, node)| node.breaker.is_tripped()) {
                let is_live = |(view, at): &(NodeView, Instant)| {
                    view.model == name && view.accepts && ran.saturating_duration_since(*at) < UNKNOWN_AFTER
                };
                if node.last.as_ref().is_some_and(is_live) {
                    routing.accepts(*id, true);
                    opened.push(*id);
                }
            }
            placed = routing.place(now, &asked);
        }
        if placed == Err(NotPlaced::NoPrefiller) {
            // Every node can prefill what it decodes.
            placed = routing.place(now, &Ask { local: LocalPrefill::Always, ..asked });
        }
        opened.into_iter().for_each(|id| self.update_accepts(now, id));
        let placed = placed.map_err(|_| FleetRefusal::NoNode)?;
        let (decode_on, prefill_on) = (placed.decode_on, placed.prefill_on);
        let placement = Placement {
            decode_on,
            decode_name: self.name_of(decode_on).unwrap_or_default(),
            decode: placed.decode,
            prefill_on,
            prefill_name: self.name_of(prefill_on).unwrap_or_default(),
            prefill_tokens: placed.prefill_tokens,
            placed: now,
            is_counted: true,
            is_reported: false,
        };
        if let Some(request) = self.requests.get_mut(&ticket) {
            request.placement = Some(placement);
        }
        for node in [decode_on, prefill_on] {
            self.breaker_of(now, node, |breaker| breaker.placed(now, ticket));
        }
        let other = Some(prefill_on).filter(|_| prefill_on != decode_on);
        for id in std::iter::once(decode_on).chain(other) {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.unreported.push_back((now, ticket));
            }
        }
        let address = self.nodes.get(&prefill_on).and_then(|node| node.last.as_ref());
        let address = address.and_then(|(report, _)| report.address);
        Ok(FleetTicket { id: ticket, decode_on, prefill_on: address.filter(|_| prefill_on != decode_on) })
    }

    /// A request no longer runs on its nodes. Returns the one that decoded it.
    fn release(&mut self, now: Instant, ticket: TicketId) -> Option<NodeId> {
        self.uncount(now, ticket, &PrefillOutcome::Withdrawn);
        let request = self.requests.get_mut(&ticket)?;
        let (placement, model) = (request.placement.take()?, request.model.clone());
        let is_there = self.name_of(placement.decode_on) == Some(placement.decode_name);
        if let Some(model) = self.models.get_mut(&model).filter(|_| is_there) {
            if !placement.is_reported {
                model.routing.decode_in_reports(placement.decode_on, placement.decode);
            }
            model.routing.decoded(placement.decode_on, placement.decode);
        }
        for id in [placement.decode_on, placement.prefill_on] {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.unreported.retain(|(_, unreported)| *unreported != ticket);
            }
            self.breaker_of(now, id, |breaker| breaker.ended(ticket));
        }
        Some(placement.decode_on)
    }

    /// The prompt of this request no longer counts at its prefiller.
    fn uncount(&mut self, now: Instant, ticket: TicketId, outcome: &PrefillOutcome) {
        let Some(request) = self.requests.get_mut(&ticket) else { return };
        let Some(placement) = request.placement.as_mut() else { return };
        let was_counted = std::mem::take(&mut placement.is_counted);
        let Placement { prefill_on, prefill_name, prefill_tokens, .. } = placement;
        let node = self.nodes.get(prefill_on).and_then(|node| node.last.as_ref());
        let is_there = node.is_some_and(|(view, _)| view.name == *prefill_name);
        if let Some(model) = self.models.get_mut(&request.model).filter(|_| was_counted && is_there) {
            model.routing.prefilled(now, *prefill_on, *prefill_tokens, outcome);
        }
    }
}
