//! The checks at the end of a history.

use std::collections::BTreeSet;

use actors::buffer_manager::state::PageUse;
use actors::messages::SessionId;
use actors::request::RequestId;
use actors::routing::LocalPrefill;
use engine::PageId;

use super::parts::{Conn, Lane, OutletName};
use super::plan::SECOND;
use super::world::{Event, World};

impl World {
    /// All faults have healed. Checks that nothing is held without reason, and sends last requests that must be handed over.
    pub(super) fn judge(&mut self) {
        for node in 0..self.nodes.len() {
            self.is_at_rest(node);
        }
        for node in 0..self.nodes.len() {
            let set_aside = self.set_aside(node);
            if let Some(session) = set_aside.iter().find(|session| !self.is_excused(node, **session)) {
                return self.fail(format!("pages of {session} of node {node} are still in quarantine"));
            }
        }
        self.forget_faults();
        self.last_request(0);
    }

    /// Pages that lost sessions keep from the last request of a node. With few sessions, a session may end while the request runs, and its
    /// credits are then quarantined too.
    pub(super) fn pages_at_risk(&self, node: usize) -> u32 {
        let credits = self.plan.limits.map_or(0, |_| self.plan.nodes[node].ring_pages);
        self.nodes[node].pool.usage().quarantined + credits
    }

    /// Sends a last request to the first node from `from` on that has room for one beside its pages at risk. There is only one request
    /// at a time, so that no other request uses its pages. Without such a node the history ends.
    fn last_request(&mut self, from: usize) {
        let quarantined = |world: &Self, node: usize| world.nodes[node].pool.usage().quarantined;
        let mut nodes = from..self.nodes.len();
        let home = nodes.find(|node| {
            let plan = &self.plan.nodes[*node];
            plan.decodes && self.pages_at_risk(*node) < plan.request_pages()
        });
        let Some(home) = home else {
            (0..self.nodes.len()).for_each(|node| self.count_decisions(node));
            return self.finish();
        };
        let request = self.ask(home, true);
        // A lost session does not block other sessions. New peers wait only while too many pages are quarantined.
        let has_peer = self.plan.nodes.iter().any(|node| node.dials.contains(&home));
        let admits = !self.plan.foreign || quarantined(self, home) <= self.plan.nodes[home].pages / 4;
        // With few sessions, the peer may have none with this node now.
        let travels = has_peer && admits && self.plan.limits.is_none() && !self.plan.is_local_if_sooner();
        self.at(SECOND, None, Event::LastWord { request, travels });
    }

    fn is_at_rest(&mut self, node: usize) {
        let process = &self.nodes[node];
        let used = process.pool.usage();
        let (alive, sequences) = (process.alive, process.generator.len());
        let requests = process
            .decoding
            .as_ref()
            .map_or(0, |decoding| decoding.decoder.len().max(decoding.proxy.waiting() as usize));
        let (prefills, waited_for) = process
            .prefilling
            .as_ref()
            .map_or((0, 0), |prefilling| (prefilling.prefiller.len(), prefilling.transfer.lost()));
        let rest = [used.landing as usize, used.held as usize, sequences, requests, prefills, waited_for];
        if !alive || rest.iter().any(|left| *left > 0) {
            self.fail(format!(
                "process {node} is not at rest: {used:?}, {sequences} sequences, {requests} requests, \
                 {prefills} prefills, {waited_for} lost sessions with operations in flight"
            ));
        }
    }

    /// Lost sessions of a node whose pages are in quarantine.
    fn set_aside(&self, node: usize) -> BTreeSet<SessionId> {
        let pool = &self.nodes[node].pool;
        let pages = (0..self.plan.nodes[node].pages).map(|page| pool.page_use(PageId(page)));
        pages
            .filter_map(|used| match used {
                PageUse::Quarantined(session) => Some(session),
                _ => None,
            })
            .collect()
    }

    /// True if there can be no proof for this session of `node`.
    fn is_excused(&self, node: usize, session: SessionId) -> bool {
        let life = self.nodes[node].life;
        let ends_with_worker =
            |lane: &Lane| (lane.node, lane.life, lane.session) == (node, life, session) && !lane.foreign;
        if self.lanes.values().any(ends_with_worker) {
            return false;
        }
        let is_named =
            |conn: &&Conn| (conn.ends[0], conn.lives[0], conn.sessions[0]) == (node, life, Some(session));
        let Some(conn) = self.conns.values().find(is_named) else { return false };
        let (node, life) = (conn.ends[1], conn.lives[1]);
        let lives = self.nodes[node].life == life;
        let undrained = conn.sessions[1].is_some_and(|session| {
            let outlet = self.outlets.get(&OutletName { node, life, session });
            outlet.is_some_and(|outlet| outlet.drained == Some(false))
        });
        // With few sessions, the peer may wait long until it can dial again, and so until it can give proof.
        self.plan.foreign && if lives { undrained || self.plan.limits.is_some() } else { self.plan.blind }
    }

    /// Checks how the last request ended.
    pub(super) fn last_word(&mut self, request: RequestId, travels: bool) {
        let (end, disaggregated) = self.outcome(request);
        let prefilling = self.nodes.iter().filter_map(|node| node.prefilling.as_ref());
        let is_busy =
            end.is_none() || prefilling.map(|prefilling| prefilling.prefiller.len()).sum::<usize>() > 0;
        if is_busy && self.now < self.clients[&request].deadline + 2 * SECOND {
            return self.at(SECOND, None, Event::LastWord { request, travels });
        }
        let needs_peer = self.plan.local == LocalPrefill::Never && !travels;
        if end != Some("finished") && !needs_peer {
            self.fail(format!("{request}, sent after all faults had healed, ended with {end:?}"));
        } else if travels && !disaggregated {
            self.fail(format!("{request}, sent after all faults had healed, was not handed over"));
        }
        self.last_request(self.clients[&request].home + 1);
    }
}
