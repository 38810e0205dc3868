//! The fleet as a proxy sees it: the nodes, what they report, and where each request goes.
//!
//! [`FleetState`] is a pure state, without actix, clock or I/O. The proxy asks every node for its [`NodeView`] every 100 ms, tells the state the
//! answers, and asks it to place each request. The state has one [`Routing`] for each model of the fleet.
//!
//! **Age of a report.** A node whose last report is older than [`UNKNOWN_AFTER`] gets no new requests. After [`LOST_AFTER`] the proxy cuts all
//! connections to it. A node that reports again is used at once, unless its connections broke. What the router knows of its prefixes stays, unless
//! the process is another one. Ages are in the time for which the proxy has run: a pause, as of a machine that is stopped for a while,
//! counts as one tick, because the nodes' answers are not read yet.
//!
//! **Own placements.** A report contains a placed request if it was asked for at least 50 ms after the placement. Until a report contains it, the
//! rows and pages of its answer are added to the report of the decoding node, and its prompt to that of the prefilling node. A prompt whose
//! first byte has arrived counts no more.
//!
//! **Failures.** The state decides whether a request that has failed goes to another node (`fleet/requests.rs`), and whether a node whose
//! connections break gets requests (`fleet/breaker.rs`).
//!
//! **Models.** The first report of a model name sets its weights. Nodes with other weights are left out while a node with those weights reports.

mod breaker;
mod counts;
mod members;
mod requests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use connector::frame::Capabilities;

use crate::messages::LoadReport;
use crate::routing::{Joining, LocalPrefill, Routing, RoutingConfig};
use breaker::Breaker;
use requests::FleetRequest;

pub use counts::FleetCounts;
pub use requests::{Failure, FleetAsk, FleetRefusal, FleetTicket};

/// After this time without a report, a node gets no new requests.
pub const UNKNOWN_AFTER: Duration = Duration::from_secs(1);

/// After this time without a report, connections to a node are cut.
pub const LOST_AFTER: Duration = Duration::from_secs(3);

/// Maximum time that counts between two ticks. Normally they are 100 ms apart.
const TICK_MAX: Duration = Duration::from_millis(200);

/// Maximum time in which a placed request normally reaches its nodes.
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
    /// Maximum number of tokens of a prompt and its answer together.
    pub context_tokens: u32,
    /// Tokens in a page.
    pub page_tokens: u32,
    /// Pages that requests may use.
    pub pool_pages: u32,
    /// Pages in use.
    pub used_pages: u32,
    /// Pages that can keep the KV of earlier prompts.
    pub cache_pages: u32,
    /// Requests that wait for admission, and are not in `load`.
    pub queued: u64,
    /// The load of its engine.
    pub load: LoadReport,
    /// The HTTP address that it tells its peers; without one it prefills for no other node.
    pub address: Option<SocketAddr>,
    /// The HTTP addresses of the connected peers that can prefill for it.
    pub prefillers: Vec<SocketAddr>,
}

impl NodeView {
    /// Whether both are reports of one process with the same capabilities, model and weights.
    fn is_same_process(&self, other: &Self) -> bool {
        self.name == other.name
            && self.capabilities == other.capabilities
            && self.model == other.model
            && self.fingerprint == other.fingerprint
    }
}

#[derive(Debug, Default)]
struct FleetNode {
    /// The HTTP address at which the proxy asks it.
    address: Arc<str>,
    /// The membership names it.
    is_named: bool,
    /// When it reported last, or the first tick, in the time for which the proxy has run. Before that tick it has not been asked.
    heard: Option<Instant>,
    /// The last report, and when it came, in the time for which the proxy has run.
    last: Option<(NodeView, Instant)>,
    /// Its connections were cut since the last report.
    is_cut: bool,
    breaker: Breaker,
    /// [`FleetState::links`] when its prefillers were last told to the routing.
    links: u64,
    /// Requests that were placed there to prefill or to decode and are in no report yet, the oldest first.
    unreported: VecDeque<(Instant, TicketId)>,
}

impl FleetNode {
    /// See [`FleetState::ready`].
    fn is_ready(&self, ran: Instant) -> bool {
        let serves = |(report, _): &(NodeView, Instant)| report.accepts && report.capabilities.decode;
        self.is_fresh(ran) && self.last.as_ref().is_some_and(serves)
    }

    /// See [`FleetState::is_known`].
    fn is_fresh(&self, ran: Instant) -> bool {
        self.last.as_ref().is_some_and(|(_, at)| ran.saturating_duration_since(*at) < UNKNOWN_AFTER)
    }
}

#[derive(Debug)]
struct FleetModel {
    fingerprint: Arc<str>,
    page_tokens: u32,
    /// The largest context among the nodes that are not lost, in tokens.
    context_tokens: Option<u32>,
    routing: Routing<NodeId>,
}

impl FleetModel {
    /// Whether a node of this model's name has the same weights and pages.
    ///
    /// # Errors
    /// What differs, and how to fix it.
    fn check(&self, report: &NodeView) -> Result<(), String> {
        if self.fingerprint != report.fingerprint {
            return Err(format!(
                "it serves other weights under the name {:?} than the rest of the fleet; give its model another name",
                report.model
            ));
        }
        if self.page_tokens != report.page_tokens {
            return Err(format!(
                "it has pages of {} tokens, and the rest of the fleet has {}; set engine.page_tokens",
                report.page_tokens, self.page_tokens
            ));
        }
        Ok(())
    }

    /// A node has reported its context, its pages and its queue.
    fn room_reported(&mut self, id: NodeId, report: &NodeView) {
        self.context_tokens = self.context_tokens.max(Some(report.context_tokens));
        self.routing.context_reported(id, report.context_tokens);
        self.routing.room_changed(id, report.pool_pages, report.used_pages);
        self.routing.cache_reported(id, report.cache_pages);
        self.routing.queued(id, report.queued);
    }
}

/// The nodes of a fleet and the requests on them.
#[derive(Debug)]
pub struct FleetState {
    config: RoutingConfig,
    nodes: BTreeMap<NodeId, FleetNode>,
    next_node: u32,
    /// The nodes by the HTTP addresses that they report.
    by_address: HashMap<SocketAddr, NodeId>,
    /// Counts the changes of `by_address` and of the members of the routings.
    links: u64,
    models: BTreeMap<Arc<str>, FleetModel>,
    requests: HashMap<TicketId, FleetRequest>,
    next_ticket: u64,
    /// Requests that have a place in the retry budget.
    retrying: usize,
    /// The last tick.
    ticked: Option<Instant>,
    /// The total time of the proxy's pauses.
    paused: Duration,
}

impl FleetState {
    /// A fleet without nodes. The arguments are those of [`RoutingConfig`], for each model. Proxies of the same fleet need different seeds.
    pub fn new(index_bytes: u64, ttft_target: Duration, seed: u64) -> Self {
        // The decoding node is a candidate among the others.
        let (local_if_sooner_by, local) = (Duration::ZERO, LocalPrefill::Auto);
        Self {
            config: RoutingConfig { index_bytes, ttft_target, local_if_sooner_by, local, seed },
            nodes: BTreeMap::new(),
            next_node: 0,
            by_address: HashMap::new(),
            links: 1,
            models: BTreeMap::new(),
            requests: HashMap::new(),
            next_ticket: 0,
            retrying: 0,
            ticked: None,
            paused: Duration::ZERO,
        }
    }

    /// The time for which the proxy has run. From one tick to the next one it advances by at most [`TICK_MAX`].
    fn ran(&self, now: Instant) -> Instant {
        let now = self.ticked.map_or(now, |ticked| now.min(ticked + TICK_MAX));
        now.checked_sub(self.paused).unwrap_or(now)
    }

    /// The number of nodes that decode and whose last report is fresh and says that they accept requests.
    pub fn ready(&self, now: Instant) -> usize {
        let now = self.ran(now);
        self.nodes.values().filter(|node| node.is_ready(now)).count()
    }

    /// Whether this node is one of the [ready](Self::ready) ones.
    pub fn is_ready(&self, now: Instant, id: NodeId) -> bool {
        let now = self.ran(now);
        self.nodes.get(&id).is_some_and(|node| node.is_ready(now))
    }

    /// Whether the last report of this node is fresh.
    pub fn is_known(&self, now: Instant, id: NodeId) -> bool {
        let now = self.ran(now);
        self.nodes.get(&id).is_some_and(|node| node.is_fresh(now))
    }

    /// The number of nodes that are not [ready](Self::ready), except those whose last report says that they only prefill.
    pub fn unready(&self, now: Instant) -> usize {
        let now = self.ran(now);
        let decodes =
            |node: &&FleetNode| node.last.as_ref().is_none_or(|(report, _)| report.capabilities.decode);
        self.nodes.values().filter(decodes).filter(|node| !node.is_ready(now)).count()
    }

    /// The names of the models.
    pub fn models(&self) -> impl Iterator<Item = &Arc<str>> {
        self.models.keys()
    }

    /// The largest context among the nodes that serve a model and were not lost at the last tick, in tokens; `None` if there is none. Without a name
    /// it is that of the fleet's first model.
    pub fn context_tokens(&self, model: Option<&str>) -> Option<u32> {
        self.model(model)?.1.context_tokens
    }

    /// Tokens in a page for [`FleetAsk::hashes`]; `None` if the state does not use them, because it has no prefix index. Without a name of a model it
    /// is that of the fleet's first model.
    pub fn page_tokens(&self, model: Option<&str>) -> Option<u32> {
        let (_, model) = self.model(model).filter(|_| self.config.index_bytes > 0)?;
        Some(model.page_tokens)
    }

    fn model(&self, name: Option<&str>) -> Option<(&Arc<str>, &FleetModel)> {
        match name {
            Some(name) => self.models.get_key_value(name),
            None => self.models.first_key_value(),
        }
    }

    /// The number of nodes that get no requests now, because their connections broke.
    pub fn paused(&self, now: Instant) -> usize {
        self.nodes.values().filter(|node| !node.breaker.admits(now)).count()
    }

    /// Whether this node gets no requests now, because its connections broke.
    pub fn is_paused(&self, now: Instant, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| !node.breaker.admits(now))
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
        let ran = self.ran(now);
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let before = node.last.as_ref().map(|(before, _)| before);
        let is_same = before.is_some_and(|before| before.is_same_process(&report));
        let has_same_prefillers = before.is_some_and(|before| before.prefillers == report.prefillers);
        let old_address = before.and_then(|before| before.address);
        if !is_same {
            node.unreported.clear();
            if let Some((before, _)) = node.last.take() {
                self.forget(id, &before);
            }
        } else if old_address != report.address {
            self.forget_address(id, old_address);
        }
        self.outdate(ran, id, &report);
        let model = self.models.entry(report.model.clone()).or_insert_with(|| FleetModel {
            fingerprint: report.fingerprint.clone(),
            page_tokens: report.page_tokens,
            context_tokens: None,
            routing: Routing::new(report.page_tokens, self.config.clone()),
        });
        model.check(&report)?;
        // The node may have reported other weights meanwhile, or those of the fleet may have changed.
        if !is_same || !model.routing.has(id) {
            let (name, capabilities, pool_pages) = (report.name, report.capabilities, report.pool_pages);
            model.routing.joined(id, Joining { name, capabilities, pool_pages });
            self.links += 1;
        }
        // Of two nodes with one address, the first one has it until it is lost.
        if let Some(address) = report.address {
            let is_live = |other: &NodeId| {
                let last = self.nodes.get(other).and_then(|node| node.last.as_ref());
                last.is_some_and(|(_, at)| ran.saturating_duration_since(*at) < LOST_AFTER)
            };
            if !self.by_address.get(&address).is_some_and(is_live)
                && self.by_address.insert(address, id) != Some(id)
            {
                self.links += 1;
            }
        }
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        if !has_same_prefillers || node.links != self.links {
            let prefillers = report.prefillers.iter().filter_map(|address| self.by_address.get(address));
            model.routing.prefillers_of(id, prefillers.copied());
            node.links = self.links;
        }
        model.room_reported(id, &report);
        let load = report.load;
        let is_smaller = |(before, _): &(NodeView, Instant)| before.context_tokens > report.context_tokens;
        let has_shrunk = node.last.as_ref().is_some_and(is_smaller);
        (node.last, node.heard, node.is_cut) = (Some((report, ran)), Some(ran), false);
        let mut contained = Vec::new();
        while let Some((_, ticket)) = node.unreported.pop_front_if(|(placed, _)| *placed + DELIVERY <= asked)
        {
            let Some(request) = self.requests.get_mut(&ticket) else { continue };
            contained.extend(request.prompt_in_report(id));
            if let Some(share) = request.decode_in_report(id) {
                model.routing.decode_in_reports(id, share);
            }
        }
        if has_shrunk {
            self.update_contexts();
        }
        self.update_accepts(now, id);
        if let Some(model) = self.model_of(id) {
            model.routing.reported_with(now, id, &load, contained);
        }
        Ok(())
    }

    /// Time has passed: normally 100 ms. Returns the nodes whose connections are to be cut.
    pub fn on_tick(&mut self, now: Instant) -> Vec<NodeId> {
        if let Some(before) = self.ticked.replace(now) {
            self.paused += now.saturating_duration_since(before).saturating_sub(TICK_MAX);
        }
        let ran = self.ran(now);
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        let mut cut = Vec::new();
        for id in ids {
            self.update_accepts(now, id);
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            node.heard.get_or_insert(ran);
            let age = node.last.as_ref().map(|(_, at)| ran.saturating_duration_since(*at));
            if age.is_some_and(|age| age >= LOST_AFTER) && !std::mem::replace(&mut node.is_cut, true) {
                cut.push(id);
            }
        }
        self.update_contexts();
        cut
    }

    /// Finds the largest context of each model among the nodes that were not lost at the last tick.
    fn update_contexts(&mut self) {
        self.models.values_mut().for_each(|model| model.context_tokens = None);
        let ran = self.ticked.map(|at| self.ran(at));
        let is_lost = |at: Instant| ran.is_some_and(|ran| ran.saturating_duration_since(at) >= LOST_AFTER);
        for (view, at) in self.nodes.values().filter_map(|node| node.last.as_ref()) {
            if let Some(model) = self.models.get_mut(&view.model).filter(|_| !is_lost(*at)) {
                model.context_tokens = model.context_tokens.max(Some(view.context_tokens));
            }
        }
    }

    /// True if a node has reported a model of this name.
    pub fn serves(&self, model: &str) -> bool {
        self.models.contains_key(model)
    }

    /// Decides whether a node gets requests: its last report is fresh and says so, and its connections do not break.
    fn update_accepts(&mut self, now: Instant, id: NodeId) {
        let Some(node) = self.nodes.get(&id) else { return };
        let Some((view, at)) = &node.last else { return };
        let is_fresh = self.ran(now).saturating_duration_since(*at) < UNKNOWN_AFTER;
        let accepts = view.accepts && is_fresh && node.breaker.admits(now);
        if let Some(model) = self.models.get_mut(&view.model) {
            model.routing.accepts(id, accepts);
        }
    }

    /// Tells the breaker of a node something.
    fn breaker_of(&mut self, now: Instant, id: NodeId, tell: impl FnOnce(&mut Breaker)) {
        if let Some(node) = self.nodes.get_mut(&id) {
            tell(&mut node.breaker);
            self.update_accepts(now, id);
        }
    }

    /// The process of a node that has reported.
    fn name_of(&self, id: NodeId) -> Option<u64> {
        self.nodes.get(&id)?.last.as_ref().map(|(view, _)| view.name)
    }

    /// Forgets the weights of a model that only lost nodes have, if this node reports others under the same name.
    fn outdate(&mut self, ran: Instant, id: NodeId, report: &NodeView) {
        let is_live = |(other, node): (&NodeId, &FleetNode)| {
            node.last.as_ref().is_some_and(|(view, at)| {
                *other != id && view.model == report.model && ran.saturating_duration_since(*at) < LOST_AFTER
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
        self.forget_address(id, report.address);
        let Some(model) = self.models.get_mut(&report.model) else { return };
        model.routing.left(id);
        self.links += 1;
        let has_model = |(other, node): (&NodeId, &FleetNode)| {
            let same = |view: &NodeView| view.model == report.model && view.fingerprint == report.fingerprint;
            *other != id && node.last.as_ref().is_some_and(|(view, _)| same(view))
        };
        if model.fingerprint == report.fingerprint && !self.nodes.iter().any(has_model) {
            self.models.remove(&report.model);
        }
        self.update_contexts();
    }

    /// This address is no longer that of the node.
    fn forget_address(&mut self, id: NodeId, address: Option<SocketAddr>) {
        if let Some(address) = address.filter(|address| self.by_address.get(address) == Some(&id)) {
            self.by_address.remove(&address);
            self.links += 1;
        }
    }
}

#[cfg(test)]
mod tests;
