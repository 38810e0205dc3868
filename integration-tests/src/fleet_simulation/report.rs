//! What histories have shown.

use std::collections::BTreeMap;
use std::fmt;

/// The figures of one or more histories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Events.
    pub events: u64,
    /// Virtual microseconds.
    pub micros: u64,
    /// Requests by the kind of their end.
    pub ends: BTreeMap<&'static str, u64>,
    /// Requests that another node prefilled than the one that answered.
    pub handed_over: u64,
    /// Failed attempts after which a request went to another node.
    pub retries: u64,
    /// Reports that proxies have read.
    pub reports: u64,
    /// Nodes whose connections a proxy has cut.
    pub cuts: u64,
    /// Nodes that have left a proxy.
    pub left: u64,
    /// Processes of nodes.
    pub processes: u64,
    /// Resyncs of the membership.
    pub resyncs: u64,
    /// Leases that were lost.
    pub leases_lost: u64,
    /// The longest time to the first byte of a request for which the rule of 5 s holds, in microseconds.
    pub longest_wait: u64,
    /// The largest number of requests that waited at one node.
    pub longest_queue: u64,
    /// Nodes that computed or decoded nothing for requests for which that rule holds.
    pub unused: u64,
    /// The largest number of retries in progress at one proxy.
    pub most_retrying: u64,
    /// Faults by name.
    pub faults: BTreeMap<&'static str, u64>,
}

impl Report {
    /// Adds another history's figures.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.micros += other.micros;
        self.handed_over += other.handed_over;
        self.retries += other.retries;
        self.reports += other.reports;
        self.cuts += other.cuts;
        self.left += other.left;
        self.processes += other.processes;
        self.resyncs += other.resyncs;
        self.leases_lost += other.leases_lost;
        self.longest_wait = self.longest_wait.max(other.longest_wait);
        self.longest_queue = self.longest_queue.max(other.longest_queue);
        self.unused += other.unused;
        self.most_retrying = self.most_retrying.max(other.most_retrying);
        for (name, count) in &other.ends {
            *self.ends.entry(name).or_default() += count;
        }
        for (name, count) in &other.faults {
            *self.faults.entry(name).or_default() += count;
        }
    }

    /// Requests.
    pub fn requests(&self) -> u64 {
        self.ends.values().sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |counts: &BTreeMap<&'static str, u64>| {
            counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
        };
        writeln!(
            f,
            "requests: {}; {}; {} handed over, {} retries",
            self.requests(),
            list(&self.ends),
            self.handed_over,
            self.retries
        )?;
        writeln!(
            f,
            "nodes: {} processes, {} reports read, {} times cut, {} times left a proxy",
            self.processes, self.reports, self.cuts, self.left
        )?;
        writeln!(f, "membership: {} resyncs, {} leases lost", self.resyncs, self.leases_lost)?;
        writeln!(
            f,
            "without faults: longest wait {:.2} s, {} nodes unused; longest queue of a node {}, most retries in progress at a proxy {}",
            self.longest_wait as f64 / 1e6,
            self.unused,
            self.longest_queue,
            self.most_retrying
        )?;
        write!(f, "faults: {}", list(&self.faults))
    }
}

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The seed of the history. The same seed gives the same violation.
    pub seed: u64,
    /// Virtual microseconds.
    pub at: u64,
    /// What was broken.
    pub rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}, at {:.6} s: {}", self.seed, self.at as f64 / 1e6, self.rule)
    }
}

impl std::error::Error for Violation {}
