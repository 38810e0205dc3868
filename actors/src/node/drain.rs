//! The drain of a node: it takes no new work, and finishes the work that it has.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix::prelude::*;

use crate::counters::Counters;
use crate::effect::ToProxy;
use crate::messages::{AnnounceLeaving, BeginDrain};
use crate::peer_link::PeerLink;
use crate::prefiller::Prefiller;
use crate::proxy::Proxy;
use crate::streams::Streams;

/// The addresses that a drain needs. Cheap to clone. Each step may be repeated: a second time it does nothing.
#[derive(Clone)]
pub struct NodeDrain {
    pub(super) proxy: Addr<Proxy>,
    /// The actors that know of the prompts of peers; `None` if the node prefills for no peer.
    pub(super) prefilling: Option<(Addr<Prefiller>, Addr<PeerLink>)>,
    pub(super) streams: Streams,
    pub(super) counters: Counters,
}

/// The work that a node has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeWork {
    /// Requests that run.
    pub requests: usize,
    /// Prompts of peers that wait, are computed, or are handed over here.
    pub prefills: u64,
    /// Pages that requests expect from peers.
    pub landing_pages: u64,
}

impl NodeWork {
    /// True if there is none.
    pub fn is_done(&self) -> bool {
        *self == Self::default()
    }
}

impl NodeDrain {
    /// Tells the peers that this node prefills for to send no more prefills. Prefills that arrive are still accepted.
    pub fn announce(&self) {
        if let Some((_, peer_link)) = &self.prefilling {
            peer_link.do_send(AnnounceLeaving.into());
        }
    }

    /// Refuses new requests and new prefills of peers.
    pub fn refuse(&self) {
        self.proxy.do_send(ToProxy::from(BeginDrain));
        if let Some((prefiller, _)) = &self.prefilling {
            prefiller.do_send(BeginDrain.into());
        }
    }

    /// The work of this moment.
    pub fn work(&self) -> NodeWork {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NodeWork {
            requests: self.streams.len(),
            prefills: load(self.counters.prefills_live()),
            landing_pages: load(self.counters.pages_reserved()),
        }
    }

    /// Waits until all requests and the hand-overs in both directions have ended.
    pub async fn done(&self) {
        // A prefill that arrived just before the refusal counts only once its actor has read it.
        let mut idle = 0;
        while idle < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            idle = if self.work().is_done() { idle + 1 } else { 0 };
        }
    }
}
