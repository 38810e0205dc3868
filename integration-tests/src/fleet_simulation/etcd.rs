//! An etcd with the keys of one fleet.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use actors::membership::{Entry, KeyChange, LEASE, Member, ViewEvent};

/// Microseconds of a lease.
const LIFE: u64 = LEASE.as_micros() as u64;

/// What an etcd is after an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Return {
    /// As before.
    Same,
    /// Another cluster without keys.
    Empty,
    /// The same cluster with an earlier revision.
    Restored,
}

/// A key: its revision, its lease and its value.
type Key = (i64, i64, Member);

/// What an etcd has stored.
#[derive(Clone, Debug, Default)]
struct Store {
    cluster: u64,
    revision: i64,
    keys: BTreeMap<String, Key>,
    /// Leases, and when each one ends.
    leases: BTreeMap<i64, u64>,
}

/// The etcd.
#[derive(Debug)]
pub(super) struct Etcd {
    store: Store,
    backup: Store,
    /// The changes since the compaction.
    log: VecDeque<(i64, KeyChange)>,
    next_lease: i64,
    /// The end of an outage, and what comes back.
    outage: Option<(u64, Return)>,
}

impl Etcd {
    pub(super) fn new() -> Self {
        let store = Store { cluster: 1, revision: 1, ..Store::default() };
        Self { backup: store.clone(), store, log: VecDeque::new(), next_lease: 1, outage: None }
    }

    pub(super) fn is_up(&self) -> bool {
        self.outage.is_none()
    }

    /// It goes down until this time.
    pub(super) fn fail(&mut self, until: u64, comes_back: Return) {
        self.outage = self.outage.or(Some((until, comes_back)));
    }

    /// It may come back like this after a later outage.
    pub(super) fn back_up(&mut self) {
        self.backup = self.store.clone();
    }

    pub(super) fn compact(&mut self) {
        self.log.clear();
    }

    /// Time has passed: outages and leases end.
    pub(super) fn advance(&mut self, now: u64) {
        if let Some((_, comes_back)) = self.outage.take_if(|(until, _)| now >= *until) {
            match comes_back {
                Return::Same => {}
                Return::Empty => {
                    let cluster = self.store.cluster + 1;
                    self.store = Store { cluster, revision: 1, ..Store::default() };
                    self.backup = self.store.clone();
                }
                Return::Restored => self.store = self.backup.clone(),
            }
            if comes_back != Return::Same {
                self.log.clear();
            }
            // A new leader renews all leases.
            self.store.leases.values_mut().for_each(|until| *until = now + LIFE);
        }
        if self.is_up() {
            let over = self.store.leases.iter().filter(|(_, until)| now >= **until).map(|(lease, _)| *lease);
            over.collect::<Vec<_>>().into_iter().for_each(|lease| self.revoke(lease));
        }
    }

    pub(super) fn grant(&mut self, now: u64) -> i64 {
        // Leases have random numbers in etcd, so a restored one does not grant an earlier one again.
        self.next_lease += 1;
        self.store.leases.insert(self.next_lease, now + LIFE);
        self.next_lease
    }

    pub(super) fn keep_alive(&mut self, now: u64, lease: i64) -> Option<Duration> {
        let until = self.store.leases.get_mut(&lease)?;
        *until = now + LIFE;
        Some(LEASE)
    }

    /// Puts a key under a lease, unless it is there under this lease. False if there is no such lease.
    pub(super) fn put(&mut self, member: &Member, lease: i64) -> bool {
        if !self.store.leases.contains_key(&lease) {
            return false;
        }
        if self.store.keys.get(&member.name).is_none_or(|(_, of, _)| *of != lease) {
            self.store.revision += 1;
            let key = (self.store.revision, lease, member.clone());
            self.store.keys.insert(member.name.clone(), key);
            let entry = Entry { name: member.name.clone(), member: Ok(member.clone()) };
            self.log.push_back((self.store.revision, KeyChange::Put(entry)));
        }
        true
    }

    pub(super) fn revoke(&mut self, lease: i64) {
        self.store.leases.remove(&lease);
        let of_lease = self.store.keys.iter().filter(|(_, (_, of, _))| *of == lease);
        let names: Vec<String> = of_lease.map(|(name, _)| name.clone()).collect();
        if !names.is_empty() {
            self.store.revision += 1;
        }
        for name in names {
            self.store.keys.remove(&name);
            self.log.push_back((self.store.revision, KeyChange::Delete(name)));
        }
    }

    pub(super) fn members(&self) -> impl Iterator<Item = &Member> {
        self.store.keys.values().map(|(_, _, member)| member)
    }

    pub(super) fn range(&self) -> ViewEvent {
        let entry = |member: &Member| Entry { name: member.name.clone(), member: Ok(member.clone()) };
        let (cluster, revision) = (self.store.cluster, self.store.revision);
        ViewEvent::Ranged { cluster, revision, entries: self.members().map(entry).collect() }
    }

    /// The answer to a watch from this revision on, from an etcd that is `late` revisions behind.
    pub(super) fn watch(&self, from: i64, late: i64) -> ViewEvent {
        let revision = self.store.revision;
        let oldest = self.log.front().map_or(revision + 1, |(revision, _)| *revision);
        if from < oldest && from <= revision {
            return ViewEvent::Compacted;
        }
        ViewEvent::WatchBegun { cluster: self.store.cluster, revision: (revision - late).max(1) }
    }

    /// The changes from this revision on, and the first revision after them.
    pub(super) fn changes(&self, from: i64) -> (Vec<(i64, KeyChange)>, i64) {
        let first = self.log.partition_point(|(revision, _)| *revision < from);
        let changes = self.log.range(first..).cloned().collect();
        (changes, self.store.revision + 1)
    }

    pub(super) fn cluster(&self) -> u64 {
        self.store.cluster
    }
}
