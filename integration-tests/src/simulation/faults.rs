//! The faults of a history and their healing.

use actors::effect::{Effect, Endpoint, ToDecoder, to};
use actors::messages::{AbortAll, AnnounceLeaving, BeginDrain, CloseLinks, HealthSeen};
use connector::link::SILENCE;

use super::node::{Edge, Node};
use super::plan::{Fault, MS, POOL_STALL, SECOND};
use super::world::{Event, World};

/// Time limit of each of the two waits of an orderly shutdown: first for the hand-overs, then for the end of the sessions.
const DRAIN: u64 = 3 * SECOND;
/// Time between the announcement of a drain and the refusal of new work. Requests and prefills still arrive in it.
const DRAIN_DELAY: u64 = 60 * MS;

impl World {
    pub(super) fn inject(&mut self, fault: Fault) {
        self.trace_event(|| format!("FAULT {fault:?}"));
        *self.report.faults.entry(fault.name()).or_default() += 1;
        match fault {
            Fault::Crashes(node) => self.crash(node),
            Fault::Stops(node) => self.stop(node),
            Fault::LinkBreaks(dialler, listener) => {
                let heals = self.now + self.dice.between(0, 5 * SECOND);
                self.cut_until.insert((dialler, listener), heals);
                let conns = self.conns_of(dialler).into_iter();
                let between = conns.filter(|(conn, _)| self.conns[conn].ends == [listener, dialler]);
                for (conn, _) in between.collect::<Vec<_>>() {
                    let waits = [self.dice.wait(MS, 3 * SECOND), self.dice.wait(MS, 3 * SECOND)];
                    self.cut(conn, waits);
                }
            }
            Fault::LaneFails(node) | Fault::LaneHangs(node) => {
                let life = self.nodes[node].life;
                let live = self.outlets.iter_mut();
                for (_, outlet) in live.filter(|(name, outlet)| {
                    (name.node, name.life) == (node, life) && outlet.drained.is_none()
                }) {
                    match fault {
                        Fault::LaneHangs(_) => outlet.hangs = true,
                        _ => outlet.fails = true,
                    }
                }
            }
            Fault::BitFlips => self.flip = true,
            Fault::PieceMissing => self.lose = true,
            Fault::Miscounts(node) => {
                self.miscounts.insert(node);
            }
            Fault::Leaves(node) => self.leave_in_order(node),
            Fault::Unhealthy(node) => {
                let unhealthy = to::peer_link(HealthSeen(Some("stuck".into())));
                self.perform(node, Endpoint::Ticker, vec![unhealthy]);
                let wait = self.dice.between(500 * MS, 3 * SECOND);
                self.send_later(node, wait, Endpoint::Ticker, to::peer_link(HealthSeen(None)));
            }
            Fault::PoolStalls(node) => self.nodes[node].pool_stalls = true,
            Fault::StepFails(node) => self.nodes[node].step_fails = true,
        }
    }

    /// Cancels faults that have not taken effect yet, such as a lane that fails at its next use.
    pub(super) fn forget_faults(&mut self) {
        for outlet in self.outlets.values_mut() {
            (outlet.fails, outlet.hangs) = (false, false);
        }
        (self.flip, self.lose) = (false, false);
        self.miscounts.clear();
        self.nodes.iter_mut().for_each(|node| node.step_fails = false);
    }

    /// The buffer manager has handled a message. If it reserved pages for a transfer, a stall begins now, so that the transfer's sender gets no
    /// credits. The stall ends before the horizon.
    pub(super) fn may_stall(&mut self, node: usize, effects: &[Effect]) {
        let reserves = |effect: &Effect| matches!(effect, Effect::Decoder(ToDecoder::PagesReserved(reserved)) if reserved.landing > 0);
        let process = &mut self.nodes[node];
        if process.pool_stalls && effects.iter().any(reserves) && self.now + POOL_STALL <= self.plan.horizon {
            process.pool_stalls = false;
            process.pool_stalled_until = self.now + POOL_STALL;
        }
    }

    /// True if this message waits because the buffer manager is stalled.
    pub(super) fn waits_for_pool(&self, node: usize, (_, actor): Edge) -> bool {
        actor == Endpoint::BufferManager && self.nodes[node].pool_stalled_until > self.now
    }

    /// Adds the counts of a node's states to the report, at the end of its life or of the history.
    pub(super) fn count_decisions(&mut self, node: usize) {
        let process = &self.nodes[node];
        if let Some(decoding) = &process.decoding {
            let counts = decoding.decoder.counts();
            self.report.recomputes += counts.recomputes;
            self.report.preemptions += counts.preemptions;
            self.report.resident += process.pool.counts().resident;
        }
    }

    /// The connections of a process in its current life, and its side of each.
    fn conns_of(&self, node: usize) -> Vec<(u64, usize)> {
        let life = self.nodes[node].life;
        let sides = self.conns.iter().flat_map(|(conn, found)| [(*conn, found, 0), (*conn, found, 1)]);
        let mine = sides.filter(|(_, found, side)| {
            (found.ends[*side], found.lives[*side]) == (node, life) && found.open.contains(&true)
        });
        mine.map(|(conn, _, side)| (conn, side)).collect()
    }

    /// Cuts a connection. Each side notices after its own wait.
    fn cut(&mut self, conn: u64, waits: [u64; 2]) {
        let Some(found) = self.conns.get_mut(&conn) else { return };
        let open = std::mem::take(&mut found.open);
        for side in 0..2 {
            if open[side] {
                self.link_ends(conn, side, waits[side], false);
            }
        }
    }

    fn crash(&mut self, node: usize) {
        if !self.nodes[node].alive {
            return;
        }
        let conns = self.conns_of(node);
        self.count_decisions(node);
        self.nodes[node].alive = false;
        let life = self.nodes[node].life;
        for (conn, side) in conns {
            self.hang_up(conn, side, false);
        }
        self.clients_are_cut(node);
        self.process_ended(node, life);
        let wait = self.dice.between(50 * MS, 3 * SECOND);
        self.at(wait, None, Event::Restart(node));
    }

    pub(super) fn restart(&mut self, node: usize) {
        let life = self.nodes[node].life + 1;
        self.nodes[node] = Node::new(&self.plan, node, life);
        self.begin_life(node);
    }

    fn stop(&mut self, node: usize) {
        if !self.nodes[node].alive || self.nodes[node].stopped_until > self.now {
            return;
        }
        let pause = self.dice.between(100 * MS, 8 * SECOND);
        self.nodes[node].stopped_until = self.now + pause;
        self.clients_wait(node, pause);
        let silence = SILENCE.as_micros() as u64;
        if pause > silence {
            for (conn, side) in self.conns_of(node) {
                let mut waits = [silence; 2];
                waits[side] = pause + 1;
                self.cut(conn, waits);
            }
        }
    }

    /// The process ends in the order of a drain and of `Node::shut_down`: its peers are told, and later it refuses new work.
    fn leave_in_order(&mut self, node: usize) {
        let process = &mut self.nodes[node];
        if std::mem::replace(&mut process.leaving, true) || !process.alive {
            return;
        }
        let told = process.prefilling.is_some().then(|| to::peer_link(AnnounceLeaving));
        self.perform(node, Endpoint::Node, told.into_iter().collect());
        self.at_node(node, DRAIN_DELAY, Event::RefuseWork);
    }

    pub(super) fn refuse_work(&mut self, node: usize) {
        let process = &self.nodes[node];
        let decoding = process.decoding.is_some().then(|| to::proxy(BeginDrain));
        let prefilling = process.prefilling.is_some().then(|| to::prefiller(BeginDrain));
        self.perform(node, Endpoint::Node, decoding.into_iter().chain(prefilling).collect());
        let since = self.now;
        self.at_node(node, 20 * MS, Event::LookWhetherDone { since, closing: false });
    }

    pub(super) fn look_whether_done(&mut self, node: usize, since: u64, closing: bool) {
        let limit = self.now - since > DRAIN;
        let process = &self.nodes[node];
        if closing {
            if limit || (process.link.is_closing() && process.link.held() == 0) {
                return self.crash(node);
            }
            return self.at_node(node, 5 * MS, Event::LookWhetherDone { since, closing });
        }
        let requests = process.decoding.as_ref().map_or(0, |decoding| decoding.decoder.len());
        let (prefills, credits) = process.prefilling.as_ref().map_or((0, 0), |prefilling| {
            (prefilling.prefiller.len(), prefilling.transfer.sessions_with_credits())
        });
        if !limit && (requests > 0 || prefills > 0 || credits > 0) {
            return self.at_node(node, 20 * MS, Event::LookWhetherDone { since, closing });
        }
        let cut = process.decoding.is_some().then(|| to::decoder(AbortAll));
        self.perform(node, Endpoint::Node, cut.into_iter().chain([to::peer_link(CloseLinks)]).collect());
        let since = self.now;
        self.at_node(node, 5 * MS, Event::LookWhetherDone { since, closing: true });
    }
}
