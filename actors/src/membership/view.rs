//! Follows the members in an etcd: what to ask next, and what the answers change.
//!
//! The view reads all keys at a revision `r` (a *range*), watches from `r + 1` for [`RANGE_EVERY`], and begins again. So an event that a watch has
//! lost is noticed after that time. A range whose history does not continue the known one makes a [`Change::Resync`]: the first one, one from
//! another cluster, one with a smaller revision (an etcd that was restored or came back empty), and one after a compaction.

use std::time::Duration;

use super::{Change, Entry, Members, pause_after};

/// Time between two ranges.
pub const RANGE_EVERY: Duration = Duration::from_secs(30);

/// Pause before the range that checks a watch whose etcd knows fewer revisions. That etcd may only be late.
const LATE: Duration = Duration::from_millis(500);

/// What to do next. `endpoint` is the index of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewStep {
    /// Read all keys, after a pause.
    Range {
        /// Where.
        endpoint: usize,
        /// The pause.
        after: Duration,
    },
    /// Watch the keys from this revision on, or go on with the watch. Report [`ViewEvent::WatchOver`] after [`RANGE_EVERY`].
    Watch {
        /// Where.
        endpoint: usize,
        /// The first revision.
        from: i64,
    },
}

/// A change of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyChange {
    /// The key has a new value.
    Put(Entry),
    /// The key of this name was deleted, or its lease has expired.
    Delete(String),
}

/// What etcd has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ViewEvent {
    /// All keys at this revision.
    Ranged {
        /// The cluster.
        cluster: u64,
        /// The revision.
        revision: i64,
        /// The keys.
        entries: Vec<Entry>,
    },
    /// The watch has begun at an etcd that knows this revision.
    WatchBegun {
        /// The cluster.
        cluster: u64,
        /// The revision.
        revision: i64,
    },
    /// Keys have changed. Each change has its revision.
    Watched {
        /// The cluster.
        cluster: u64,
        /// The changes, in order.
        changes: Vec<(i64, KeyChange)>,
    },
    /// The revision that the watch begins with was compacted.
    Compacted,
    /// [`RANGE_EVERY`] has passed.
    WatchOver,
    /// There was no answer, or the watch ended.
    Failed,
}

/// The members in an etcd.
#[derive(Debug)]
pub struct EtcdView {
    members: Members,
    /// The cluster and the revision of the newest answer; `None` before the first range, and after the history broke.
    known: Option<(u64, i64)>,
    endpoints: usize,
    endpoint: usize,
    failures: u32,
    next: ViewStep,
}

impl EtcdView {
    /// A view without members of an etcd with this many endpoints; at least one.
    pub fn new(endpoints: usize) -> Self {
        let next = ViewStep::Range { endpoint: 0, after: Duration::ZERO };
        Self { members: Members::default(), known: None, endpoints, endpoint: 0, failures: 0, next }
    }

    /// The members.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// What to do next.
    pub fn next(&self) -> ViewStep {
        self.next
    }

    /// Handles an answer, and returns what it has changed.
    pub fn on(&mut self, event: ViewEvent) -> Vec<Change> {
        match event {
            ViewEvent::Ranged { cluster, revision, entries } => self.on_ranged(cluster, revision, entries),
            ViewEvent::WatchBegun { cluster, revision } => {
                self.failures = 0;
                // A watch from a later revision than that of its etcd would be silent until the revision is reached.
                if self.known.is_none_or(|(known, newest)| known != cluster || revision < newest) {
                    self.range(LATE);
                }
                Vec::new()
            }
            ViewEvent::Watched { cluster, changes } => self.on_watched(cluster, changes),
            ViewEvent::Compacted => {
                self.known = None;
                self.range(Duration::ZERO);
                Vec::new()
            }
            ViewEvent::WatchOver => {
                self.range(Duration::ZERO);
                Vec::new()
            }
            ViewEvent::Failed => {
                self.failures += 1;
                self.endpoint = (self.endpoint + 1) % self.endpoints.max(1);
                self.range(pause_after(self.failures));
                Vec::new()
            }
        }
    }

    fn range(&mut self, after: Duration) {
        self.next = ViewStep::Range { endpoint: self.endpoint, after };
    }

    fn on_ranged(&mut self, cluster: u64, revision: i64, entries: Vec<Entry>) -> Vec<Change> {
        let continues = self.known.is_some_and(|(known, newest)| known == cluster && newest <= revision);
        self.known = Some((cluster, revision));
        self.next = ViewStep::Watch { endpoint: self.endpoint, from: revision + 1 };
        let changes = self.members.resync(entries);
        if continues {
            return changes;
        }
        let skipped = changes.into_iter().filter(|change| matches!(change, Change::Skipped(..)));
        skipped.chain([Change::Resync(self.members.all().cloned().collect())]).collect()
    }

    fn on_watched(&mut self, cluster: u64, changes: Vec<(i64, KeyChange)>) -> Vec<Change> {
        let Some((_, newest)) = self.known.as_mut().filter(|(known, _)| *known == cluster) else {
            self.range(Duration::ZERO);
            return Vec::new();
        };
        let mut changed = Vec::new();
        for (revision, change) in changes {
            // A change below that is part of the range.
            if revision < *newest {
                continue;
            }
            *newest = revision;
            changed.extend(match change {
                KeyChange::Put(entry) => self.members.put(entry),
                KeyChange::Delete(name) => self.members.remove(&name),
            });
        }
        self.next = ViewStep::Watch { endpoint: self.endpoint, from: *newest + 1 };
        changed
    }
}
