//! The fleet as a proxy sees it: the nodes, what they report, and where each request goes.
//!
//! [`FleetState`] is a pure state, without actix, clock or I/O. The proxy asks every node for its [`NodeView`] every 100 ms, tells the state the
//! answers, and asks it to place each request. The state has one [`Routing`] for each model of the fleet.
//!
//! **Age of a report.** A node whose last report is older than [`UNKNOWN_AFTER`] gets no new requests. After [`LOST_AFTER`] the proxy cuts all
//! connections to it. A node that reports again is used at once. What the router knows of its prefixes stays, unless the process is another one.
//!
//! **Own placements.** A placed prompt counts at its prefiller until its first byte arrives, or until a report that was asked for at least 50 ms
//! after the placement.
//!
//! **Models.** The first report of a model name sets its weights. Nodes with other weights are left out while a node with those weights reports.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use connector::frame::Capabilities;

use crate::messages::{LoadReport, PrefillOutcome};
use crate::request::CacheSalt;
use crate::routing::{Ask, DecodeShare, Joining, LocalPrefill, NotPlaced, Routing, RoutingConfig};

/// After this time without a report, a node gets no new requests.
pub const UNKNOWN_AFTER: Duration = Duration::from_secs(1);

/// After this time without a report, connections to a node are cut.
pub const LOST_AFTER: Duration = Duration::from_secs(3);

/// First and maximum length of the pause of a node whose connection broke. Each further break in a row doubles the pause.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Maximum time in which a placed request normally reaches its prefiller.
const DELIVERY: Duration = Duration::from_millis(50);

/// The number of a node at one proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// The number of a placed request at one proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TicketId(u64);

/// What a node reports about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// [`Incarnation::name`](connector::frame::Incarnation::name) of the process.
    pub name: u64,
    /// The work that it accepts.
    pub capabilities: Capabilities,
    /// It takes new requests.
    pub accepts: bool,
    /// The name of its model.
    pub model: Arc<str>,
    /// A hash of the model's weights and configuration.
    pub fingerprint: Arc<str>,
    /// Tokens in a page.
    pub page_tokens: u32,
    /// Pages that requests may use.
    pub pool_pages: u32,
    /// Pages in use.
    pub used_pages: u32,
    /// Pages that can keep the KV of earlier prompts.
    pub cache_pages: u32,
    /// The load of its engine.
    pub load: LoadReport,
    /// The HTTP address that it tells its peers; without one it prefills for no other node.
    pub address: Option<SocketAddr>,
    /// The HTTP addresses of the connected peers that can prefill for it.
    pub prefillers: Vec<SocketAddr>,
}

/// A request that is to be placed.
#[derive(Clone, Copy, Debug)]
pub struct FleetAsk<'a> {
    /// The model; `None`: the fleet's first one.
    pub model: Option<&'a str>,
    /// Prompt token ids.
    pub prompt: &'a [u32],
    /// The salt of its prefix cache.
    pub salt: Option<CacheSalt>,
    /// Number of tokens to sample.
    pub max_tokens: u32,
    /// Nodes that have failed to answer this request.
    pub tried: &'a [NodeId],
}

/// Where a request runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetTicket {
    /// Its number. [`FleetState::answered`] and [`FleetState::ended`] take it.
    pub id: TicketId,
    /// The node that decodes and answers.
    pub decode_on: NodeId,
    /// The HTTP address of the node that prefills, as the decoding node knows it; `None`: the decoding node itself.
    pub prefill_on: Option<SocketAddr>,
}

/// Why a request cannot be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FleetRefusal {
    /// No node has reported this model.
    #[error("no node of the fleet serves this model")]
    NoModel,
    /// No node takes the request now.
    #[error("no node of the fleet takes requests now; retry later")]
    NoNode,
}

#[derive(Debug)]
struct FleetNode {
    /// The last report, and when it came.
    last: Option<(NodeView, Instant)>,
    /// Its connections were cut since the last report.
    is_cut: bool,
    /// Set if connections broke since the last answer: the length of the pause and its end.
    pause: Option<(Duration, Instant)>,
    /// Prompts that were placed there and are in no report yet, the oldest first.
    unreported: VecDeque<(Instant, TicketId)>,
}

#[derive(Debug)]
struct FleetModel {
    fingerprint: Arc<str>,
    page_tokens: u32,
    routing: Routing<NodeId>,
}

#[derive(Debug)]
struct Placement {
    model: Arc<str>,
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
}

/// The nodes of a fleet and the requests on them.
#[derive(Debug)]
pub struct FleetState {
    config: RoutingConfig,
    nodes: BTreeMap<NodeId, FleetNode>,
    next_node: u32,
    /// The nodes by the HTTP addresses that they report.
    by_address: HashMap<SocketAddr, NodeId>,
    models: BTreeMap<Arc<str>, FleetModel>,
    tickets: HashMap<TicketId, Placement>,
    next_ticket: u64,
}

impl FleetState {
    /// A fleet without nodes. `index_bytes` and `ttft_target` are those of [`RoutingConfig`], for each model.
    pub fn new(index_bytes: u64, ttft_target: Duration) -> Self {
        // The decoding node is a candidate among the others.
        let (local_if_sooner_by, local) = (Duration::ZERO, LocalPrefill::Auto);
        Self {
            config: RoutingConfig { index_bytes, ttft_target, local_if_sooner_by, local },
            nodes: BTreeMap::new(),
            next_node: 0,
            by_address: HashMap::new(),
            models: BTreeMap::new(),
            tickets: HashMap::new(),
            next_ticket: 0,
        }
    }

    /// A node is a member of the fleet. It gets requests once it has reported.
    pub fn joined(&mut self) -> NodeId {
        let id = NodeId(self.next_node);
        self.next_node += 1;
        self.nodes
            .insert(id, FleetNode { last: None, is_cut: false, pause: None, unreported: VecDeque::new() });
        id
    }

    /// The node has left the fleet. Its requests continue.
    pub fn left(&mut self, id: NodeId) {
        if let Some(FleetNode { last: Some((report, _)), .. }) = self.nodes.remove(&id) {
            self.forget(id, &report);
        }
    }

    /// The number of nodes that decode and get requests now.
    pub fn ready(&self, now: Instant) -> usize {
        let is_ready = |node: &&FleetNode| {
            node.last.as_ref().is_some_and(|(report, at)| {
                report.accepts
                    && report.capabilities.decode
                    && now.saturating_duration_since(*at) < UNKNOWN_AFTER
            })
        };
        self.nodes.values().filter(is_ready).count()
    }

    /// The names of the models.
    pub fn models(&self) -> impl Iterator<Item = &Arc<str>> {
        self.models.keys()
    }

    /// Requests that are placed and have not ended.
    pub fn live(&self) -> usize {
        self.tickets.len()
    }

    /// A node has reported. It was asked at `asked`.
    ///
    /// # Errors
    /// The node is left out, with the reason in one sentence: it has other weights under the name of a known model, or another page size.
    pub fn reported(
        &mut self,
        now: Instant,
        id: NodeId,
        asked: Instant,
        report: NodeView,
    ) -> Result<(), String> {
        let Some(node) = self.nodes.get(&id) else { return Ok(()) };
        let before = node.last.as_ref().map(|(report, _)| report.clone());
        let is_paused = node.pause.is_some_and(|(_, until)| now < until);
        let is_same = before.as_ref().is_some_and(|before| {
            let of = |view: &NodeView| {
                (view.name, view.capabilities, view.address, view.model.clone(), view.fingerprint.clone())
            };
            of(before) == of(&report)
        });
        if let Some(before) = before.filter(|_| !is_same) {
            self.forget(id, &before);
            self.nodes.entry(id).and_modify(|node| (node.last, node.unreported) = (None, VecDeque::new()));
        }
        self.outdate(now, id, &report);
        let model = self.models.entry(report.model.clone()).or_insert_with(|| FleetModel {
            fingerprint: report.fingerprint.clone(),
            page_tokens: report.page_tokens,
            routing: Routing::new(report.page_tokens, self.config.clone()),
        });
        if model.fingerprint != report.fingerprint {
            return Err(format!(
                "it serves other weights under the name {:?} than the rest of the fleet; give its model another name",
                report.model
            ));
        }
        if model.page_tokens != report.page_tokens {
            return Err(format!(
                "it has pages of {} tokens, and the rest of the fleet has {}; set engine.page_tokens",
                report.page_tokens, model.page_tokens
            ));
        }
        if !is_same {
            let (name, capabilities, pool_pages) = (report.name, report.capabilities, report.pool_pages);
            model.routing.joined(id, Joining { name, capabilities, pool_pages });
        }
        // Of two nodes with one address, the first one has it until it leaves.
        if let Some(address) = report.address {
            self.by_address.entry(address).or_insert(id);
        }
        let prefillers = report.prefillers.iter().filter_map(|address| self.by_address.get(address)).copied();
        model.routing.prefillers_of(id, prefillers);
        model.routing.accepts(id, report.accepts && !is_paused);
        model.routing.room_changed(id, report.pool_pages, report.used_pages);
        model.routing.cache_reported(id, report.cache_pages);
        let load = report.load;
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        (node.last, node.is_cut) = (Some((report, now)), false);
        let mut contained = Vec::new();
        while let Some((_, ticket)) = node.unreported.pop_front_if(|(placed, _)| *placed + DELIVERY <= asked)
        {
            if let Some(placement) = self.tickets.get_mut(&ticket)
                && std::mem::take(&mut placement.is_counted)
            {
                contained.push(placement.prefill_tokens);
            }
        }
        if let Some(model) = self.model_of(id) {
            model.routing.reported_with(now, id, &load, contained);
        }
        Ok(())
    }

    /// Time has passed. Returns the nodes whose connections are to be cut.
    pub fn on_tick(&mut self, now: Instant) -> Vec<NodeId> {
        let age = |node: &FleetNode| node.last.as_ref().map(|(_, at)| now.saturating_duration_since(*at));
        let silent: Vec<(NodeId, Duration)> = self
            .nodes
            .iter()
            .filter_map(|(id, node)| Some((*id, age(node)?)))
            .filter(|(_, age)| *age >= UNKNOWN_AFTER)
            .collect();
        let mut cut = Vec::new();
        for (id, age) in silent {
            if let Some(model) = self.model_of(id) {
                model.routing.accepts(id, false);
            }
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            if age >= LOST_AFTER && !std::mem::replace(&mut node.is_cut, true) {
                cut.push(id);
            }
        }
        cut
    }

    /// A connection to this node broke. It gets no new requests during a pause, and then until it reports again, unless no other node takes
    /// them.
    pub fn broken(&mut self, now: Instant, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            let pause = match node.pause {
                // The request was placed before the pause began.
                Some((_, until)) if now < until => return,
                Some((pause, _)) => (2 * pause).min(PAUSE.1),
                None => PAUSE.0,
            };
            node.pause = Some((pause, now + pause));
        }
        if let Some(model) = self.model_of(id) {
            model.routing.accepts(id, false);
        }
    }

    /// True if a node has reported a model of this name.
    pub fn serves(&self, model: &str) -> bool {
        self.models.contains_key(model)
    }

    /// Places a request.
    ///
    /// # Errors
    /// [`FleetRefusal`].
    pub fn place(&mut self, now: Instant, ask: &FleetAsk<'_>) -> Result<FleetTicket, FleetRefusal> {
        let name = match ask.model {
            Some(name) => self.models.get_key_value(name).map(|(name, _)| name),
            None => self.models.keys().next(),
        };
        let name = name.cloned().ok_or(FleetRefusal::NoModel)?;
        let model = self.models.get_mut(&name).ok_or(FleetRefusal::NoModel)?;
        let asked = Ask {
            prompt: ask.prompt,
            salt: ask.salt,
            reads_cache: true,
            max_tokens: ask.max_tokens,
            decode_on: None,
            local: LocalPrefill::Auto,
            not_on: ask.tried,
        };
        let mut placed = model.routing.place(now, &asked);
        if placed == Err(NotPlaced::NoDecoder) {
            // A node that pauses is better than none.
            let paused = |(_, node): &(&NodeId, &FleetNode)| {
                let is_live = |(view, at): &(NodeView, Instant)| {
                    view.model == name && view.accepts && now.saturating_duration_since(*at) < UNKNOWN_AFTER
                };
                node.pause.is_some() && node.last.as_ref().is_some_and(is_live)
            };
            self.nodes.iter().filter(paused).for_each(|(id, _)| model.routing.accepts(*id, true));
            placed = model.routing.place(now, &asked);
        }
        if placed == Err(NotPlaced::NoPrefiller) {
            // Every node can prefill what it decodes.
            placed = model.routing.place(now, &Ask { local: LocalPrefill::Always, ..asked });
        }
        let placed = placed.map_err(|_| FleetRefusal::NoNode)?;
        let id = TicketId(self.next_ticket);
        self.next_ticket += 1;
        let (decode_on, prefill_on) = (placed.decode_on, placed.prefill_on);
        self.tickets.insert(
            id,
            Placement {
                model: name,
                decode_on,
                decode_name: self.name_of(decode_on).unwrap_or_default(),
                decode: placed.decode,
                prefill_on,
                prefill_name: self.name_of(prefill_on).unwrap_or_default(),
                prefill_tokens: placed.prefill_tokens,
                placed: now,
                is_counted: true,
            },
        );
        if let Some(node) = self.nodes.get_mut(&prefill_on) {
            node.unreported.push_back((now, id));
        }
        let address = self.nodes.get(&prefill_on).and_then(|node| node.last.as_ref());
        let address = address.and_then(|(report, _)| report.address);
        Ok(FleetTicket { id, decode_on, prefill_on: address.filter(|_| prefill_on != decode_on) })
    }

    /// The first byte of a request's answer has come, and it is no error.
    pub fn answered(&mut self, now: Instant, ticket: TicketId) {
        let Some(placement) = self.tickets.get(&ticket) else { return };
        if let Some(node) = self.nodes.get_mut(&placement.decode_on) {
            node.pause = None;
        }
        let (tokens, took) = (placement.prefill_tokens, now.saturating_duration_since(placement.placed));
        self.uncount(now, ticket, &PrefillOutcome::Computed { tokens, micros: took.as_micros() as u64 });
    }

    /// A request has ended, in any way.
    pub fn ended(&mut self, now: Instant, ticket: TicketId) {
        self.uncount(now, ticket, &PrefillOutcome::Withdrawn);
        let Some(placement) = self.tickets.remove(&ticket) else { return };
        let is_there = self.name_of(placement.decode_on) == Some(placement.decode_name);
        if let Some(model) = self.models.get_mut(&placement.model).filter(|_| is_there) {
            model.routing.decoded(placement.decode_on, placement.decode);
        }
        if let Some(node) = self.nodes.get_mut(&placement.prefill_on) {
            node.unreported.retain(|(_, unreported)| *unreported != ticket);
        }
    }

    /// The prompt of this request no longer counts at its prefiller.
    fn uncount(&mut self, now: Instant, ticket: TicketId, outcome: &PrefillOutcome) {
        let Some(placement) = self.tickets.get_mut(&ticket) else { return };
        let was_counted = std::mem::take(&mut placement.is_counted);
        let node = self.nodes.get(&placement.prefill_on).and_then(|node| node.last.as_ref());
        let is_there = node.is_some_and(|(view, _)| view.name == placement.prefill_name);
        if let Some(model) = self.models.get_mut(&placement.model).filter(|_| was_counted && is_there) {
            model.routing.prefilled(now, placement.prefill_on, placement.prefill_tokens, outcome);
        }
    }

    /// The process of a node that has reported.
    fn name_of(&self, id: NodeId) -> Option<u64> {
        self.nodes.get(&id)?.last.as_ref().map(|(view, _)| view.name)
    }

    /// Forgets the weights of a model that only lost nodes have, if this node reports others under the same name.
    fn outdate(&mut self, now: Instant, id: NodeId, report: &NodeView) {
        let is_live = |(other, node): (&NodeId, &FleetNode)| {
            node.last.as_ref().is_some_and(|(view, at)| {
                *other != id && view.model == report.model && now.saturating_duration_since(*at) < LOST_AFTER
            })
        };
        let is_other =
            self.models.get(&report.model).is_some_and(|model| model.fingerprint != report.fingerprint);
        if is_other && !self.nodes.iter().any(is_live) {
            self.models.remove(&report.model);
        }
    }

    fn model_of(&mut self, id: NodeId) -> Option<&mut FleetModel> {
        let (report, _) = self.nodes.get(&id)?.last.as_ref()?;
        self.models.get_mut(&report.model)
    }

    /// Removes a node from the routing of the model that it reported.
    fn forget(&mut self, id: NodeId, report: &NodeView) {
        if let Some(address) = report.address.filter(|address| self.by_address.get(address) == Some(&id)) {
            self.by_address.remove(&address);
        }
        let Some(model) = self.models.get_mut(&report.model) else { return };
        model.routing.left(id);
        let has_model = |(other, node): (&NodeId, &FleetNode)| {
            let same = |view: &NodeView| view.model == report.model && view.fingerprint == report.fingerprint;
            *other != id && node.last.as_ref().is_some_and(|(view, _)| same(view))
        };
        if !self.nodes.iter().any(has_model) {
            self.models.remove(&report.model);
        }
    }
}

#[cfg(test)]
mod tests;
