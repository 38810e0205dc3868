//! Faults, and the lives of processes.

use actors::fleet::Failure;

use super::etcd::Return;
use super::node::Manner;
use super::parts::Proxy;
use super::plan::{Fault, MILLI, SECOND};
use super::world::{Event, Leg, Process, World, address};

/// The time after which the proxy's operating system ends a connection that is not answered.
const UNANSWERED: u64 = 9 * SECOND;

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Swap => "swapped addresses",
            Self::Freeze => "freeze",
            Self::Partition => "partition",
            Self::NodeWithoutEtcd => "node without etcd",
            Self::Upgrade => "upgrade",
            Self::Slow => "slow node",
            Self::Breaks => "node breaks requests",
            Self::BreaksAnswers => "node breaks answers",
            Self::Busy => "node refuses requests",
            Self::Mute => "node is mute",
            Self::ProxyPause => "proxy pause",
            Self::ProxyRestart => "proxy restart",
            Self::ProxyWithoutEtcd => "proxy without etcd",
            Self::EtcdOutage => "etcd outage",
            Self::EtcdEmpty => "etcd comes back empty",
            Self::EtcdRestored => "etcd is restored",
            Self::Compaction => "compaction",
            Self::WatchBreaks => "watch breaks",
            Self::WatchLoses => "watch loses a change",
            Self::WatchLate => "late watches",
        }
    }
}

impl World {
    pub(super) fn fault(&mut self, fault: Fault) {
        let (place, proxy) = (
            self.dice.between(0, self.nodes.len() as u64 - 1) as usize,
            self.dice.between(0, self.proxies.len() as u64 - 1) as usize,
        );
        *self.report.faults.entry(fault.name()).or_default() += 1;
        self.note(|| format!("{fault:?}, node {place}, proxy {proxy}"));
        let until = self.until(300 * MILLI, 8 * SECOND);
        match fault {
            Fault::Crash => self.crash(place),
            Fault::Swap => self.swap(place, (place + 1) % self.nodes.len()),
            Fault::Upgrade => self.upgrade(place),
            Fault::Freeze => self.nodes[place].frozen_until = until,
            Fault::Partition => {
                for place in place..self.nodes.len().min(place + 4) {
                    self.partitions.insert((proxy, place), until);
                }
            }
            Fault::NodeWithoutEtcd => {
                self.nodes[place].without_etcd_until = self.until(2 * SECOND, 30 * SECOND);
            }
            Fault::Slow => self.nodes[place].slow_until = self.until(2 * SECOND, 20 * SECOND),
            Fault::Breaks => self.behave(place, Manner::Breaks),
            Fault::BreaksAnswers => self.behave(place, Manner::BreaksAnswers),
            Fault::Busy => self.behave(place, Manner::Busy),
            Fault::Mute => self.behave(place, Manner::Mute),
            Fault::ProxyPause => {
                let proxy = &mut self.proxies[proxy];
                proxy.paused += until.saturating_sub(self.now.max(proxy.paused_until));
                proxy.paused_until = proxy.paused_until.max(until);
            }
            Fault::ProxyRestart => self.restart(proxy),
            Fault::ProxyWithoutEtcd => {
                self.proxies[proxy].without_etcd_until = self.until(2 * SECOND, 30 * SECOND);
            }
            Fault::EtcdOutage => self.etcd_fails(Return::Same),
            Fault::EtcdEmpty => self.etcd_fails(Return::Empty),
            Fault::EtcdRestored => {
                self.etcd_fails(Return::Restored);
            }
            Fault::Compaction => self.etcd.compact(),
            Fault::WatchBreaks => {
                if let Some(watch) = &mut self.proxies[proxy].watch {
                    watch.until = self.now;
                }
            }
            Fault::WatchLoses => {
                if let Some(watch) = &mut self.proxies[proxy].watch {
                    watch.loses = true;
                }
            }
            Fault::WatchLate => self.watches_late_until = until,
        }
        // What a later restore brings back.
        if self.dice.one_in(3) {
            self.etcd.back_up();
        }
    }

    fn etcd_fails(&mut self, comes_back: Return) {
        let until = self.until(SECOND, 25 * SECOND);
        self.etcd.fail(until, comes_back);
    }

    fn behave(&mut self, place: usize, manner: Manner) {
        let until = self.until(SECOND, 15 * SECOND);
        self.nodes[place].manner = (manner, until);
    }

    /// A process starts at a place.
    pub(super) fn start(&mut self, place: usize) {
        if self.nodes[place].is_alive {
            return;
        }
        self.processes += 1;
        self.nodes[place].start(self.now, self.processes);
        self.places.insert(self.nodes[place].address, place);
        let on = (place, self.nodes[place].life);
        self.after(MILLI, Event::Register(on));
    }

    /// A process ends, and its connections close. Another one starts soon.
    fn crash(&mut self, place: usize) {
        if !self.nodes[place].is_alive {
            return;
        }
        let jobs = self.nodes[place].end();
        for (request, job) in jobs {
            let leg = Leg { request, attempt: job.attempt };
            let Some(request) = self.current(leg) else { continue };
            // A proxy that does not reach the node learns of it from the connection's probes.
            let after = if self.are_parted(request.proxy, place) { UNANSWERED } else { MILLI };
            self.after(after, Event::Failed(leg, Failure::Broke));
        }
        let starts = self.until(200 * MILLI, 8 * SECOND).max(self.now + MILLI);
        self.at(starts, Event::Start(place));
    }

    /// Two processes end. The next ones have each other's address.
    fn swap(&mut self, one: usize, other: usize) {
        self.crash(one);
        self.crash(other);
        if !self.nodes[one].is_alive && !self.nodes[other].is_alive && one != other {
            let addresses = [self.nodes[one].address, self.nodes[other].address];
            for (place, address) in [(other, addresses[0]), (one, addresses[1])] {
                self.nodes[place].address = address;
                self.places.insert(address, place);
            }
        }
    }

    /// A process drains. It leaves after a while.
    fn upgrade(&mut self, place: usize) {
        let node = &mut self.nodes[place];
        if node.is_alive && !node.is_draining {
            node.is_draining = true;
            let on = (place, node.life);
            self.refuse_queue(place);
            let leaves = self.until(500 * MILLI, 5 * SECOND).max(self.now + MILLI);
            self.at(leaves, Event::Leave(on));
        }
    }

    /// A node that drains refuses the requests that wait.
    fn refuse_queue(&mut self, place: usize) {
        for request in std::mem::take(&mut self.nodes[place].queue) {
            if let Some(job) = self.nodes[place].jobs.remove(&request) {
                let leg = Leg { request, attempt: job.attempt };
                self.after(MILLI, Event::Failed(leg, Failure::Draining));
            }
        }
    }

    /// A drained process leaves etcd and ends. Half of the next ones have another address.
    pub(super) fn leave(&mut self, (place, life): Process) {
        if self.nodes[place].life != life {
            return;
        }
        let reaches = self.etcd.is_up() && self.now >= self.nodes[place].without_etcd_until;
        if let Some(lease) = self.nodes[place].registration.lease().filter(|_| reaches) {
            self.etcd.revoke(lease);
        }
        self.crash(place);
        if self.dice.one_in(2) {
            self.places.remove(&self.nodes[place].address);
            self.nodes[place].address = address(place, life + 1);
        }
    }

    /// The rolling upgrade has come to this node.
    pub(super) fn roll(&mut self, place: usize) {
        self.upgrade(place);
        *self.report.faults.entry("rolling upgrade").or_default() += 1;
        if let Some(step) = self.plan.rolling.filter(|_| place + 1 < self.nodes.len()) {
            self.after(step, Event::Roll(place + 1));
        }
    }

    /// A proxy starts afresh. Its requests end.
    fn restart(&mut self, place: usize) {
        for request in self.proxies[place].requests.clone() {
            self.end(request, "lost with its proxy");
        }
        let seed = self.dice.between(0, u64::MAX - 1);
        let before = &self.proxies[place];
        let (life, turn, paused, ppm) = (before.life + 1, before.turn + 1, before.paused, before.ppm);
        let without_etcd_until = before.without_etcd_until;
        self.proxies[place] = Proxy { life, turn, paused, without_etcd_until, ..Proxy::new(ppm, seed) };
        self.after(MILLI, Event::Tick { proxy: place, life });
        self.follow(place, turn);
    }
}
