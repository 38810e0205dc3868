//! The checks at the end of a history.

use std::collections::BTreeSet;

use actors::buffer_manager::state::PageUse;
use actors::messages::SessionId;
use actors::request::RequestId;
use engine::PageId;

use super::parts::OutletName;
use super::plan::SECOND;
use super::world::{Event, RECEIVER, World};

impl World {
    /// All faults have healed. Checks that nothing is held without reason, and sends a last request that must be handed over.
    pub(super) fn judge(&mut self) {
        for node in 0..self.nodes.len() {
            self.is_at_rest(node);
        }
        let set_aside = self.set_aside();
        if let Some(session) = set_aside.iter().find(|session| !self.is_excused(**session)) {
            return self.fail(format!("pages of {session} are still in quarantine"));
        }
        self.forget_faults();
        let (pages, quarantined) = (self.plan.receiver_pages, self.quarantined());
        if self.plan.ring_pages + quarantined >= pages {
            // No request fits beside the quarantined pages.
            self.count_decisions();
            return self.finish();
        }
        // There is only one request, so that no other request uses its pages.
        let request = self.ask(true);
        let wait = self.plan.deadline + 2 * SECOND;
        // A lost session does not block other sessions. New senders wait only while too many pages are quarantined.
        let travels = !self.plan.foreign || quarantined <= pages / 4;
        self.at(wait, None, Event::LastWord { request, travels });
    }

    fn is_at_rest(&mut self, node: usize) {
        let process = &mut self.nodes[node];
        let used = process.pool.usage();
        let (alive, sequences) = (process.alive, process.generator.len());
        let (requests, prefills, waited_for) = match &process.role {
            super::node::Role::Receiver(receiver) => {
                (receiver.decoder.len().max(receiver.proxy.waiting() as usize), 0, 0)
            }
            super::node::Role::Sender(sender) => (0, sender.prefiller.len(), sender.transfer.lost()),
        };
        let rest = [used.landing as usize, used.held as usize, sequences, requests, prefills, waited_for];
        if !alive || rest.iter().any(|left| *left > 0) {
            self.fail(format!(
                "process {node} is not at rest: {used:?}, {sequences} sequences, {requests} requests, \
                 {prefills} prefills, {waited_for} lost sessions with operations in flight"
            ));
        }
    }

    /// Lost sessions of the receiver whose pages are in quarantine.
    fn set_aside(&self) -> BTreeSet<SessionId> {
        let pool = &self.nodes[RECEIVER].pool;
        let pages = (0..self.plan.receiver_pages).map(|page| pool.page_use(PageId(page)));
        pages
            .filter_map(|used| match used {
                PageUse::Quarantined(session) => Some(session),
                _ => None,
            })
            .collect()
    }

    /// Pages of the receiver that are in quarantine.
    pub(super) fn quarantined(&self) -> u32 {
        self.nodes[RECEIVER].pool.usage().quarantined
    }

    /// True if there can be no proof for this session.
    fn is_excused(&self, session: SessionId) -> bool {
        let life = self.nodes[RECEIVER].life;
        let mut conns = self.conns.values();
        let Some(conn) = conns.find(|conn| conn.lives[0] == life && conn.sessions[0] == Some(session)) else {
            return false;
        };
        let (node, life) = (conn.sender, conn.lives[1]);
        let lives = self.nodes[node].life == life;
        let undrained = conn.sessions[1].is_some_and(|session| {
            let outlet = self.outlets.get(&OutletName { node, life, session });
            outlet.is_some_and(|outlet| outlet.drained == Some(false))
        });
        self.plan.foreign && if lives { undrained } else { self.plan.blind }
    }

    /// Checks how the last request ended.
    pub(super) fn last_word(&mut self, request: RequestId, travels: bool) {
        let (end, disaggregated) = self.outcome(request);
        if end != Some("finished") {
            self.fail(format!("{request}, sent after all faults had healed, ended with {end:?}"));
        } else if travels && !disaggregated {
            self.fail(format!("{request}, sent after all faults had healed, was not handed over"));
        }
        self.count_decisions();
        self.finish();
    }
}
