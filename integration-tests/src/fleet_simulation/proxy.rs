//! A proxy: it reads the reports of all nodes and follows the membership, in the order of the proxy's shell.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use actors::fleet::{FleetTicket, LOST_AFTER, NodeId, NodeView, UNKNOWN_AFTER};

use super::node::GROUP;
use super::parts::{INDEX_BYTES, Known, Proxy};
use super::plan::MILLI;
use super::world::{Event, World};

/// Time between two ticks, and between two reports of a node.
const TICK: Duration = Duration::from_millis(100);
/// States learn of the age of reports at ticks, by clocks that are not exact, and count each pause as a tick.
const SLACK: u64 = 200 * MILLI;
/// After this time without a report a node gets no requests.
const UNKNOWN: u64 = UNKNOWN_AFTER.as_micros() as u64;
/// After this time it is lost.
const LOST: u64 = LOST_AFTER.as_micros() as u64;

impl World {
    pub(super) fn tick(&mut self, proxy: usize, life: u32) {
        if life != self.proxies[proxy].life {
            return;
        }
        // Reports and ticks come in any order, also after a pause.
        let is_first = self.dice.one_in(2);
        if is_first {
            self.on_tick(proxy);
        }
        self.read_reports(proxy);
        if !is_first {
            self.on_tick(proxy);
        }
        self.check(proxy);
        let next = Self::real(TICK, self.proxies[proxy].ppm) + self.dice.between(0, 2 * MILLI);
        self.after(next, Event::Tick { proxy, life });
    }

    fn on_tick(&mut self, proxy: usize) {
        let (time, ran) = (self.time(proxy), self.ran(proxy));
        let Proxy { state, known, .. } = &mut self.proxies[proxy];
        for node in known.values_mut() {
            node.since.get_or_insert(ran);
        }
        let (cut, gone) = (state.on_tick(time), state.gone(time));
        for id in cut {
            self.report.cuts += 1;
            let node = self.proxies[proxy].known.get(&id);
            let requests: Vec<u64> = node.into_iter().flat_map(|node| node.requests.clone()).collect();
            for request in requests {
                self.cut(request);
            }
        }
        for id in gone {
            self.report.left += 1;
            let Some(node) = self.proxies[proxy].known.remove(&id) else {
                return self.fail(format!("{id:?} has left twice"));
            };
            let silent = ran - node.heard.or(node.since).unwrap_or(ran);
            let is_named = self.proxies[proxy].named.contains(&node.address);
            if is_named || silent < LOST - 2 * SLACK {
                return self.fail(format!(
                    "{} has left proxy {proxy} after {silent} us of silence, named: {is_named}",
                    node.address
                ));
            }
        }
    }

    fn read_reports(&mut self, proxy: usize) {
        let mut known = std::mem::take(&mut self.proxies[proxy].known);
        for (id, node) in &mut known {
            let asked = self.now - self.dice.between(MILLI, 30 * MILLI);
            let (asked, report) = match node.late.take() {
                Some((due, asked, report)) if due <= self.now => (asked, report),
                Some(late) => {
                    node.late = Some(late);
                    continue;
                }
                None => {
                    let Some(report) = self.reported(proxy, node.address) else { continue };
                    if self.dice.one_in(200) {
                        let due = self.now + self.dice.between(50 * MILLI, 700 * MILLI);
                        node.late = Some((due, asked, report));
                        continue;
                    }
                    (asked, report)
                }
            };
            self.report.reports += 1;
            let (accepts, decodes) = (report.accepts, report.capabilities.decode);
            let ppm = self.proxies[proxy].ppm;
            let (time, shown) = (self.time(proxy), self.shown(ppm));
            let asked = self.instant(shown - (self.now - asked));
            if let Err(reason) = self.proxies[proxy].state.reported(time, *id, asked, report) {
                self.fail(format!("a report of {} is refused: {reason}", node.address));
            }
            (node.heard, node.accepts, node.decodes) = (Some(self.ran(proxy)), accepts, decodes);
        }
        self.proxies[proxy].known = known;
    }

    /// What the process at this address answers to a proxy; `None`: there is no answer.
    fn reported(&mut self, proxy: usize, address: SocketAddr) -> Option<NodeView> {
        let place = *self.places.get(&address)?;
        let node = &self.nodes[place];
        let is_lost = self.dice.one_in(300);
        if is_lost || !node.is_alive || node.is_frozen(self.now) || self.are_parted(proxy, place) {
            return None;
        }
        let first = place / GROUP * GROUP;
        let group = &self.nodes[first..self.nodes.len().min(first + GROUP)];
        let prefillers: Vec<SocketAddr> =
            group.iter().filter(|node| node.is_alive).map(|node| node.address).collect();
        Some(node.view(self.now, &prefillers))
    }

    /// The membership has changed.
    pub(super) fn publish(&mut self, proxy: usize) {
        let Proxy { view, resolved, state, known, named, .. } = &mut self.proxies[proxy];
        let members = if self.plan.has_dns { resolved } else { view.members() };
        *named = members.all().filter_map(|member| member.http).collect();
        let mut twice = None;
        for (id, text) in state.named(named.iter().map(|address| address.to_string().into())) {
            let Ok(address) = text.parse() else { continue };
            if known.values().any(|node| node.address == address) {
                twice = Some(address);
            }
            let (heard, since, late, requests) = (None, None, None, BTreeSet::new());
            known.insert(id, Known { address, heard, since, accepts: false, decodes: false, late, requests });
        }
        if let Some(address) = twice {
            self.fail(format!("the node at {address} has joined proxy {proxy} twice"));
        }
    }

    /// Whether a node has reported during the last microseconds that it takes requests.
    pub(super) fn takes(&self, proxy: usize, id: NodeId, within: u64) -> bool {
        let ran = self.ran(proxy);
        self.proxies[proxy].known.get(&id).is_some_and(|node| {
            node.accepts && node.decodes && node.heard.is_some_and(|at| ran - at < within)
        })
    }

    /// The time for which a proxy has run, without its pauses.
    fn ran(&self, proxy: usize) -> u64 {
        self.now - self.proxies[proxy].paused
    }

    /// Checks a placement of a proxy.
    pub(super) fn check_placement(&mut self, proxy: usize, ticket: &FleetTicket) {
        let (id, ran) = (ticket.decode_on, self.ran(proxy));
        let may_prefill = |address: SocketAddr| {
            let mut known = self.proxies[proxy].known.values();
            known.any(|node| {
                let is_fresh = node.heard.is_some_and(|at| ran - at < UNKNOWN + SLACK);
                node.address == address && node.accepts && is_fresh
            })
        };
        if let Some(address) = ticket.prefill_on.filter(|address| !may_prefill(*address)) {
            self.fail(format!("proxy {proxy}, after {ran} us, places a prompt on the node at {address}"));
        }
        if !self.takes(proxy, id, UNKNOWN + SLACK) {
            let node = self.proxies[proxy].known.get(&id);
            let text = format!("proxy {proxy}, after {ran} us, places a request on {id:?}: {node:?}");
            self.fail(text);
        }
    }

    /// Whether a request can be placed on a node that has not got it: a node has just reported that it takes requests.
    pub(super) fn has_place(&self, proxy: usize, tried: &[NodeId]) -> bool {
        let mut ids = self.proxies[proxy].known.keys().filter(|id| !tried.contains(id));
        ids.any(|id| self.takes(proxy, *id, UNKNOWN - SLACK))
    }

    /// The checks after each tick.
    fn check(&mut self, proxy: usize) {
        let Proxy { state, known, named, requests, retrying, .. } = &self.proxies[proxy];
        let (ran, counts) = (self.ran(proxy), state.counts());
        self.report.most_retrying = self.report.most_retrying.max(*retrying as u64);
        let is_bounded = (counts.live, counts.retrying) == (requests.len(), *retrying)
            && counts.unreported <= 2 * counts.live
            && counts.index_bytes <= INDEX_BYTES
            && counts.nodes == known.len();
        let stuck = known.values().find(|node| {
            let is_silent = node.heard.or(node.since).is_some_and(|at| ran - at > LOST + 2 * SLACK);
            is_silent && (!node.requests.is_empty() || !named.contains(&node.address))
        });
        let text = match stuck {
            _ if !is_bounded => {
                format!(
                    "proxy {proxy} has {} requests, {retrying} retries, and counts {counts:?}",
                    requests.len()
                )
            }
            Some(node) => format!("proxy {proxy} still has a silent node after {ran} us: {node:?}"),
            None => return,
        };
        self.fail(text);
    }
}
