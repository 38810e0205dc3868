//! The faults of a history and their healing.

use actors::effect::{Endpoint, to};
use actors::messages::{AnnounceLeaving, BeginDrain, CloseLinks, HealthSeen};
use connector::link::SILENCE;

use super::node::Node;
use super::plan::{Fault, MS, SECOND};
use super::world::{Event, RECEIVER, World};

/// Time limit of each of the two waits of an orderly shutdown: first for the hand-overs, then for the end of the sessions.
const DRAIN: u64 = 3 * SECOND;

impl World {
    pub(super) fn inject(&mut self, fault: Fault) {
        self.trace_event(|| format!("FAULT {fault:?}"));
        *self.report.faults.entry(fault.name()).or_default() += 1;
        match fault {
            Fault::SenderCrashes(node) => self.crash(node),
            Fault::ReceiverCrashes => self.crash(RECEIVER),
            Fault::SenderStops(node) => self.stop(node),
            Fault::ReceiverStops => self.stop(RECEIVER),
            Fault::LinkBreaks(node) => {
                let heals = self.now + self.dice.between(0, 5 * SECOND);
                self.cut_until.insert(node, heals);
                for conn in self.conns_of(node) {
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
            Fault::SenderMiscounts(node) => {
                self.miscounts.insert(node);
            }
            Fault::SenderLeaves(node) => self.leave_in_order(node),
            Fault::SenderUnhealthy(node) => {
                let unhealthy = to::peer_link(HealthSeen(Some("stuck".into())));
                self.perform(node, Endpoint::Ticker, vec![unhealthy]);
                let wait = self.dice.between(500 * MS, 3 * SECOND);
                self.send_later(node, wait, Endpoint::Ticker, to::peer_link(HealthSeen(None)));
            }
            Fault::StepFails(node) => self.nodes[node].step_fails = true,
        }
    }

    /// Cancels faults that have not taken effect yet, such as a lane that fails at its next use.
    pub(super) fn forget_faults(&mut self) {
        for outlet in self.outlets.values_mut() {
            (outlet.fails, outlet.hangs) = (false, false);
        }
        self.flip = false;
        self.miscounts.clear();
        self.nodes.iter_mut().for_each(|node| node.step_fails = false);
    }

    /// Adds the counts of the receiver's states to the report, at the end of its life or of the history.
    pub(super) fn count_decisions(&mut self) {
        if let Some(receiver) = self.nodes[RECEIVER].receiver() {
            let counts = receiver.decoder.counts();
            self.report.recomputes += counts.recomputes;
            self.report.preemptions += counts.preemptions;
            self.report.resident += self.nodes[RECEIVER].pool.counts().resident;
        }
    }

    /// The connections of a process in its current life.
    fn conns_of(&self, node: usize) -> Vec<u64> {
        let side = usize::from(node != RECEIVER);
        let life = self.nodes[node].life;
        let mine = self.conns.iter().filter(|(_, conn)| {
            conn.lives[side] == life && (side == 0 || conn.sender == node) && conn.open.contains(&true)
        });
        mine.map(|(conn, _)| *conn).collect()
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
        let side = usize::from(node != RECEIVER);
        let conns = self.conns_of(node);
        if node == RECEIVER {
            self.count_decisions();
        }
        self.nodes[node].alive = false;
        let life = self.nodes[node].life;
        for conn in conns {
            self.hang_up(conn, side, false);
        }
        if node == RECEIVER {
            self.receiver_died(life);
        } else {
            self.process_ended(node, life);
        }
        let wait = self.dice.between(50 * MS, 3 * SECOND);
        self.at(wait, None, Event::Restart(node));
    }

    pub(super) fn restart(&mut self, node: usize) {
        let life = self.nodes[node].life + 1;
        self.nodes[node] = Node::new(&self.plan, node == RECEIVER, life);
        self.begin_life(node);
    }

    fn stop(&mut self, node: usize) {
        if !self.nodes[node].alive || self.nodes[node].stopped_until > self.now {
            return;
        }
        let pause = self.dice.between(100 * MS, 8 * SECOND);
        self.nodes[node].stopped_until = self.now + pause;
        if node == RECEIVER {
            self.receiver_stopped(pause);
        }
        let silence = SILENCE.as_micros() as u64;
        if pause > silence {
            let side = usize::from(node != RECEIVER);
            for conn in self.conns_of(node) {
                let mut waits = [silence; 2];
                waits[side] = pause + 1;
                self.cut(conn, waits);
            }
        }
    }

    fn leave_in_order(&mut self, node: usize) {
        let Some(sender) = self.nodes[node].sender() else { return };
        if std::mem::replace(&mut sender.leaving, true) || !self.nodes[node].alive {
            return;
        }
        let leaving = vec![to::prefiller(BeginDrain), to::peer_link(AnnounceLeaving)];
        self.perform(node, Endpoint::Node, leaving);
        let since = self.now;
        self.at_node(node, 20 * MS, Event::LookWhetherDone { since, closing: false });
    }

    pub(super) fn look_whether_done(&mut self, node: usize, since: u64, closing: bool) {
        let limit = self.now - since > DRAIN;
        let Some(sender) = self.nodes[node].sender() else { return };
        let (prefills, credits) = (sender.prefiller.len(), sender.transfer.sessions_with_credits());
        let process = &mut self.nodes[node];
        if closing {
            if limit || (process.link.is_closing() && process.link.held() == 0) {
                return self.crash(node);
            }
            self.at_node(node, 5 * MS, Event::LookWhetherDone { since, closing });
        } else if limit || (prefills == 0 && credits == 0) {
            self.perform(node, Endpoint::Node, vec![to::peer_link(CloseLinks)]);
            let since = self.now;
            self.at_node(node, 5 * MS, Event::LookWhetherDone { since, closing: true });
        } else {
            self.at_node(node, 20 * MS, Event::LookWhetherDone { since, closing });
        }
    }
}
