//! The membership: nodes register in etcd, and proxies follow the keys there or the addresses in DNS.

use std::time::{Duration, Instant};

use actors::membership::{
    Change, Entry, Member, RANGE_EVERY, RegistrationEvent, RegistrationStep, ViewEvent, ViewStep,
};

use super::parts::Watch;
use super::plan::{MILLI, SECOND};
use super::world::{Event, Process, World};

/// Time after which a question counts as unanswered.
const ANSWER: u64 = 3 * SECOND;
/// Time between two lookups.
const RESOLVE_EVERY: Duration = Duration::from_secs(5);
/// Time between two rounds of etcd.
const ROUND: u64 = 50 * MILLI;

impl World {
    /// The wait for an answer that does not come: the connection is refused, or nothing comes.
    fn in_vain(&mut self) -> u64 {
        if self.dice.one_in(2) { MILLI } else { ANSWER }
    }

    /// A node does the next step of its registration.
    pub(super) fn register(&mut self, on: Process) {
        let (now, node) = (self.now, &self.nodes[on.0]);
        if node.life != on.1 {
            return;
        }
        if node.is_frozen(now) {
            return self.at(self.nodes[on.0].frozen_until, Event::Register(on));
        }
        let sent = self.instant(self.shown(node.ppm));
        if !self.etcd.is_up() || now < node.without_etcd_until {
            let wait = self.in_vain();
            return self.after(wait, Event::NotRegistered { on, sent });
        }
        let event = match node.registration.next() {
            RegistrationStep::Grant { .. } => RegistrationEvent::Granted(self.etcd.grant(now)),
            RegistrationStep::Put { lease, .. } => match self.etcd.put(&node.member(), lease) {
                true => RegistrationEvent::Put,
                false => RegistrationEvent::LeaseGone,
            },
            RegistrationStep::KeepAlive { lease, .. } => match self.etcd.keep_alive(now, lease) {
                Some(life) => RegistrationEvent::KeptAlive(life),
                None => RegistrationEvent::LeaseGone,
            },
        };
        if self.dice.one_in(200) {
            // The answer is lost.
            return self.after(ANSWER, Event::NotRegistered { on, sent });
        }
        self.report.leases_lost += u64::from(event == RegistrationEvent::LeaseGone);
        self.step_registration(on, sent, event);
    }

    pub(super) fn not_registered(&mut self, on: Process, sent: Instant) {
        if self.nodes[on.0].life == on.1 {
            self.step_registration(on, sent, RegistrationEvent::Failed);
        }
    }

    fn step_registration(&mut self, on: Process, sent: Instant, event: RegistrationEvent) {
        let node = &mut self.nodes[on.0];
        node.registration.on(sent, event);
        let (RegistrationStep::Grant { after, .. }
        | RegistrationStep::Put { after, .. }
        | RegistrationStep::KeepAlive { after, .. }) = node.registration.next();
        let after = Self::real(after, node.ppm) + MILLI;
        self.after(after, Event::Register(on));
    }

    /// A proxy begins to follow the membership.
    pub(super) fn follow(&mut self, proxy: usize, turn: u64) {
        let event =
            if self.plan.has_dns { Event::Resolve { proxy, turn } } else { Event::View { proxy, turn } };
        self.after(MILLI, event);
    }

    /// A proxy asks DNS. While there are faults, the answer can be missing, empty or not whole. The first two change nothing.
    pub(super) fn resolve(&mut self, proxy: usize, turn: u64) {
        if turn != self.proxies[proxy].turn {
            return;
        }
        let has_faults = self.now < self.plan.heals && !self.plan.faults.is_empty();
        let is_whole = !(has_faults && self.dice.one_in(4));
        let mut entries = Vec::new();
        for node in &self.nodes {
            if node.is_alive && !node.is_draining && (is_whole || self.dice.one_in(2)) {
                let member = Member::at(Some(node.address), None);
                entries.push(Entry { name: member.name.clone(), member: Ok(member) });
            }
        }
        let is_lost = has_faults && self.dice.one_in(4);
        if !entries.is_empty() && !is_lost && !self.proxies[proxy].resolved.resync(entries).is_empty() {
            self.publish(proxy);
        }
        let after = Self::real(RESOLVE_EVERY, self.proxies[proxy].ppm);
        self.after(after, Event::Resolve { proxy, turn });
    }

    fn reaches_etcd(&self, proxy: usize) -> bool {
        self.etcd.is_up() && self.now >= self.proxies[proxy].without_etcd_until
    }

    /// A proxy does the next step of its view.
    pub(super) fn view(&mut self, proxy: usize, turn: u64) {
        if turn != self.proxies[proxy].turn {
            return;
        }
        let step = self.proxies[proxy].view.next();
        if !self.reaches_etcd(proxy) || self.dice.one_in(100) {
            let wait = self.in_vain();
            return self.after(wait, Event::Viewed { proxy, turn, event: ViewEvent::Failed });
        }
        let wait = self.dice.wait(5 * MILLI, 2 * SECOND);
        let event = match step {
            ViewStep::Range { .. } => self.etcd.range(),
            ViewStep::Watch { from, .. } => {
                let late = if self.dice.one_in(20) { self.dice.between(1, 5) as i64 } else { 0 };
                let until = self.now + Self::real(RANGE_EVERY, self.proxies[proxy].ppm);
                self.proxies[proxy].watch = Some(Watch { from, until, has_begun: false, loses: false });
                self.etcd.watch(from, late)
            }
        };
        self.after(wait, Event::Viewed { proxy, turn, event });
    }

    /// The view of a proxy handles an answer.
    pub(super) fn viewed(&mut self, proxy: usize, event: ViewEvent) {
        if let Some(watch) = &mut self.proxies[proxy].watch {
            watch.has_begun |= matches!(event, ViewEvent::WatchBegun { .. });
        }
        let changes = self.proxies[proxy].view.on(event);
        let resyncs = changes.iter().filter(|change| matches!(change, Change::Resync(_))).count();
        self.report.resyncs += resyncs as u64;
        if changes.iter().any(|change| !matches!(change, Change::Skipped(..))) {
            self.publish(proxy);
        }
        let ppm = self.proxies[proxy].ppm;
        let after = match (self.proxies[proxy].view.next(), &self.proxies[proxy].watch) {
            (ViewStep::Range { after, .. }, _) => Self::real(after, ppm),
            (ViewStep::Watch { .. }, None) => Self::real(Duration::ZERO, ppm),
            (ViewStep::Watch { .. }, Some(_)) => return,
        };
        self.proxies[proxy].watch = None;
        self.proxies[proxy].turn += 1;
        self.after(after, Event::View { proxy, turn: self.proxies[proxy].turn });
    }

    /// Leases end, and watches deliver.
    pub(super) fn etcd_tick(&mut self) {
        self.etcd.advance(self.now);
        for proxy in 0..self.proxies.len() {
            let Some(watch) = &self.proxies[proxy].watch else { continue };
            if !watch.has_begun || self.now < self.proxies[proxy].paused_until {
                continue;
            }
            let event = if !self.etcd.is_up() {
                ViewEvent::Failed
            } else if self.now >= watch.until {
                ViewEvent::WatchOver
            } else if self.now < self.watches_late_until || !self.reaches_etcd(proxy) {
                continue;
            } else {
                let (changes, next) = self.etcd.changes(watch.from);
                if changes.is_empty() {
                    continue;
                }
                if let Some(watch) = &mut self.proxies[proxy].watch {
                    watch.from = next;
                    if std::mem::take(&mut watch.loses) {
                        continue;
                    }
                }
                ViewEvent::Watched { cluster: self.etcd.cluster(), changes }
            };
            self.viewed(proxy, event);
        }
        self.after(ROUND, Event::EtcdTick);
    }
}
