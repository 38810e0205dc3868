//! Checks that no prompt of a peer waits for credits for ever, and that sessions end only for a reason.

use actors::effect::ToTransfer;
use actors::messages::SessionId;
use actors::request::RequestId;
use connector::frame::Frame;

use super::parts::{Outlet, OutletName};
use super::plan::{Fault, SECOND};
use super::world::World;

/// Time in which a node gives up a prompt whose session gets no credit: 30 s after the last page was sent, and time to put and to stop.
const GIVING_UP: u64 = 38 * SECOND;
/// The reasons with which a session ends whose peer has broken a rule.
const BROKEN_RULES: [&str; 7] = [
    "LinkProbed was sent",
    "peer announced",
    "peer sent",
    "peer granted",
    "expected credit",
    "ring of",
    "pages announced",
];

impl World {
    /// A transfer actor gets a message.
    pub(super) fn transfer_hears(&mut self, node: usize, mail: &ToTransfer) {
        let session = match mail {
            ToTransfer::CreditsGranted(granted) => granted.session,
            ToTransfer::LaneConnected(connected) => connected.session,
            ToTransfer::SchedulePut(put) => put.session,
            ToTransfer::CancelPuts(cancel) => cancel.session,
            ToTransfer::PeerLost(lost) => lost.session,
            _ => return,
        };
        let name = OutletName { node, life: self.nodes[node].life, session };
        let Some(outlet) = self.outlets.get_mut(&name) else { return };
        match mail {
            ToTransfer::LaneConnected(_) => outlet.named = true,
            ToTransfer::CreditsGranted(_) if !outlet.named => {
                self.fail(format!("{name:?} gets credits before it has named its lane"));
            }
            ToTransfer::CreditsGranted(granted) => {
                outlet.credits.extend(&granted.pages);
                outlet.credit_at = self.now;
            }
            ToTransfer::SchedulePut(put) => {
                if outlet.waiting.is_empty() {
                    outlet.credit_at = self.now;
                }
                *outlet.waiting.entry(put.request).or_default() += put.pages.len() as u32;
            }
            ToTransfer::CancelPuts(cancel) => {
                outlet.waiting.remove(&cancel.request);
            }
            _ => outlet.waiting.clear(),
        }
    }

    /// A frame says that pages of a request are filled: they wait no longer.
    pub(super) fn pages_are_sent(&mut self, outlet: OutletName, frame: &Frame) {
        let Frame::PageFilled { owner: Some(owner), count, .. } = frame else { return };
        let Some(outlet) = self.outlets.get_mut(&outlet) else { return };
        let request = RequestId(owner.request);
        if let Some(waiting) = outlet.waiting.get_mut(&request) {
            *waiting = waiting.saturating_sub(*count);
            outlet.waiting.retain(|_, waiting| *waiting > 0);
        }
    }

    /// A prefiller looks at the time. It has given up prompts whose session has got no credit for long.
    pub(super) fn gives_up(&mut self, node: usize) {
        let process = &self.nodes[node];
        if process.stopped_until + SECOND > self.now {
            return;
        }
        let of_node = OutletName { node, life: process.life, session: SessionId(0) }..=OutletName {
            node,
            life: process.life,
            session: SessionId(u64::MAX),
        };
        let late = |outlet: &Outlet| !outlet.waiting.is_empty() && self.now > outlet.credit_at + GIVING_UP;
        let late = self.outlets.range(of_node).find(|(_, outlet)| late(outlet));
        if let Some((name, outlet)) = late {
            self.fail(format!(
                "pages of {:?} still wait in {name:?}, which has got no credit since {:.6} s",
                outlet.waiting,
                outlet.credit_at as f64 / 1e6
            ));
        }
    }

    /// A session has ended. Without faults, none does. If no node miscounts, no peer has broken a rule.
    pub(super) fn may_end(&mut self, node: usize, session: SessionId, reason: &str) {
        let is_calm = self.plan.bound.is_some() && self.now < self.plan.horizon;
        let miscounts = self.plan.faults.iter().any(|(_, fault)| matches!(fault, Fault::Miscounts(_)));
        let breaks_rule = !miscounts && BROKEN_RULES.iter().any(|rule| reason.contains(rule));
        if is_calm || breaks_rule {
            self.fail(format!("{session} of node {node} ends without a fault: {reason}"));
        }
    }
}
