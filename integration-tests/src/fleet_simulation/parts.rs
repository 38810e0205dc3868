//! What the world of a history consists of at the side of the proxies: the proxies, and their requests.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use actors::fleet::{FleetAsk, FleetState, NodeId, NodeView, TicketId};
use actors::membership::{EtcdView, Members};

/// Memory of the prefix index.
pub(super) const INDEX_BYTES: u64 = 4 << 20;

/// A watch of the keys in etcd.
#[derive(Debug)]
pub(super) struct Watch {
    /// The first revision that was not delivered.
    pub(super) from: i64,
    pub(super) until: u64,
    /// Etcd has said that it has begun.
    pub(super) has_begun: bool,
    /// It loses the next changes.
    pub(super) loses: bool,
}

/// What the checks know of a node at a proxy.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) address: SocketAddr,
    /// The last report and the first tick, in the time for which the proxy has run.
    pub(super) heard: Option<u64>,
    pub(super) since: Option<u64>,
    pub(super) accepts: bool,
    pub(super) decodes: bool,
    /// A report on its way, when it comes, and when it was asked for.
    pub(super) late: Option<(u64, u64, NodeView)>,
    pub(super) requests: BTreeSet<u64>,
}

/// A proxy.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) ppm: i64,
    pub(super) life: u32,
    pub(super) state: FleetState,
    pub(super) view: EtcdView,
    /// The addresses that DNS has returned.
    pub(super) resolved: Members,
    pub(super) watch: Option<Watch>,
    /// The number of the last step of the view. Answers to earlier ones do not count.
    pub(super) turn: u64,
    pub(super) known: BTreeMap<NodeId, Known>,
    /// The addresses that the membership names.
    pub(super) named: BTreeSet<SocketAddr>,
    pub(super) requests: BTreeSet<u64>,
    pub(super) retrying: usize,
    pub(super) paused_until: u64,
    /// Total time of its pauses.
    pub(super) paused: u64,
    pub(super) without_etcd_until: u64,
}

impl Proxy {
    pub(super) fn new(ppm: i64, seed: u64) -> Self {
        Self {
            ppm,
            life: 0,
            state: FleetState::new(INDEX_BYTES, Duration::from_secs(1), seed),
            view: EtcdView::new(3),
            resolved: Members::default(),
            watch: None,
            turn: 0,
            known: BTreeMap::new(),
            named: BTreeSet::new(),
            requests: BTreeSet::new(),
            retrying: 0,
            paused_until: 0,
            paused: 0,
            without_etcd_until: 0,
        }
    }
}

/// A request that has not ended.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) proxy: usize,
    pub(super) ticket: TicketId,
    pub(super) conversation: u64,
    pub(super) prompt: Vec<u32>,
    pub(super) tokens: u32,
    /// Nodes answer it with an error.
    pub(super) is_wrong: bool,
    pub(super) arrived: u64,
    /// The total pause of its proxy then.
    pub(super) paused: u64,
    pub(super) attempt: u32,
    pub(super) placed: u64,
    pub(super) node: NodeId,
    pub(super) to: SocketAddr,
    pub(super) prefill_on: Option<SocketAddr>,
    pub(super) began: bool,
    pub(super) has_place: bool,
    pub(super) tried: Vec<NodeId>,
    /// The incarnations of the processes that have got it.
    pub(super) got: Vec<u64>,
}

impl Request {
    pub(super) fn ask(&self) -> FleetAsk<'_> {
        FleetAsk {
            model: None,
            prompt: &self.prompt,
            salt: None,
            hashes: None,
            max_tokens: Some(self.tokens),
        }
    }
}
