//! The checks at the end of a history.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use actors::fleet::{FleetCounts, LOST_AFTER};

use super::world::World;

impl World {
    /// All faults have healed, and all requests have ended.
    pub(super) fn judge(&mut self) {
        if !self.requests.is_empty() {
            return self.fail(format!("{} requests have not ended", self.requests.len()));
        }
        let (asked, ended) = (self.numbered, self.report.requests());
        if asked != ended || asked != self.plan.requests {
            return self.fail(format!("{asked} requests have {ended} ends"));
        }
        if let Some(node) = self.nodes.iter().find(|node| !node.is_alive || !node.jobs.is_empty()) {
            return self.fail(format!("a node is not at rest: {node:?}"));
        }
        self.report.unused = self.nodes.iter().filter(|node| !node.is_used).count() as u64;
        let expect: BTreeSet<String> = self.nodes.iter().map(|node| node.member().name).collect();
        let found: BTreeSet<String> = self.etcd.members().map(|member| member.name.clone()).collect();
        if expect != found {
            return self.fail(format!("etcd has the members {found:?}, but there are {expect:?}"));
        }
        (0..self.proxies.len()).for_each(|proxy| self.judge_proxy(proxy));
    }

    fn judge_proxy(&mut self, proxy: usize) {
        let decoders = self.nodes.iter().filter(|node| node.capabilities.decode).count();
        let time = self.time(proxy);
        let state = &mut self.proxies[proxy].state;
        let (ready, paused, counts) = (state.ready(time), state.paused(time), state.counts());
        let nodes = self.nodes.len();
        let index_bytes = counts.index_bytes;
        let rest = FleetCounts { nodes, accepting: nodes, index_bytes, ..FleetCounts::default() };
        if (ready, paused) != (decoders, 0) {
            return self
                .fail(format!("proxy {proxy} has {ready} ready nodes of {decoders}, {paused} paused"));
        }
        if counts != rest {
            return self.fail(format!("proxy {proxy} is not at rest: {counts:?}"));
        }
        // All nodes leave.
        state.named([]);
        let mut time = time;
        while time < self.time(proxy) + LOST_AFTER + Duration::from_millis(300) {
            time += Duration::from_millis(100);
            let state = &mut self.proxies[proxy].state;
            state.on_tick(time);
            state.gone(time);
        }
        let counts = self.proxies[proxy].state.counts();
        if counts != FleetCounts::default() {
            return self.fail(format!("proxy {proxy} keeps something of nodes that have left: {counts:?}"));
        }
        let found = self.proxies[proxy].named.clone();
        let expect: BTreeSet<SocketAddr> = self.nodes.iter().map(|node| node.address).collect();
        if found != expect {
            self.fail(format!("proxy {proxy} has the members {found:?}, but there are {expect:?}"));
        }
    }
}
