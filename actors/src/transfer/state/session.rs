//! One session's queue: pages that wait for a credit, puts in flight, flushes in flight, and the start-up measurement.

use std::collections::{HashMap, VecDeque, hash_map};
use std::num::NonZeroU32;

use connector::frame::PageOwner;
use connector::page_hash::PageSeed;
use connector::ring::{CreditNumber, SpendLedger};
use connector::shards::Lanes;
use connector::transport::Ticket;
use engine::PageId;

use super::PROBE_PAGES;
use crate::request::RequestId;

/// The use of a spent credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// A page of no request; it measures the lane.
    Probe,
    /// A page of a request.
    Page(PageOwner),
    /// A page of a request that was cancelled after the put was posted. It is announced without an owner.
    Cancelled(RequestId),
    /// No page: the credit is returned to the receiver.
    Nothing,
}

impl Load {
    fn is_of(self, request: RequestId) -> bool {
        match self {
            Self::Page(owner) => owner.request == request.0,
            Self::Cancelled(cancelled) => cancelled == request,
            Self::Probe | Self::Nothing => false,
        }
    }

    /// The owner that the page is announced with.
    pub(super) fn owner(self) -> Option<PageOwner> {
        match self {
            Self::Page(owner) => Some(owner),
            Self::Probe | Self::Cancelled(_) | Self::Nothing => None,
        }
    }
}

/// A page that waits for a credit.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) load: Load,
    pub(super) page: PageId,
}

/// The hash that is announced with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageHash {
    /// The page is announced without a hash.
    NotNeeded,
    /// The hash thread has been asked.
    Pending,
    /// The hash thread has answered.
    Known(u64),
}

/// A spent credit whose page is not announced yet.
#[derive(Debug)]
pub(super) struct Put {
    /// The tickets of the transport's puts. Neighbouring pages that were posted together share them.
    pub(super) tickets: Tickets,
    pub(super) credit: CreditNumber,
    pub(super) load: Load,
    pub(super) posted_micros: u64,
    /// Number of pieces whose completion the transport has not reported.
    pub(super) left: u32,
    pub(super) hash: PageHash,
}

/// Consecutive tickets of the puts of a page, or of the flushes, on all lanes of a session, in the order of the lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tickets {
    pub(super) first: Ticket,
    pub(super) count: u32,
}

impl Tickets {
    /// No operations. No ticket is zero.
    const NONE: Self = Self { first: Ticket(0), count: 0 };

    pub(super) fn contain(self, ticket: Ticket) -> bool {
        (self.first.0..self.first.0 + u64::from(self.count)).contains(&ticket.0)
    }

    /// The ticket of a lane.
    pub(super) fn of(self, lane: u32) -> Ticket {
        Ticket(self.first.0 + u64::from(lane))
    }
}

/// A flush of all lanes.
#[derive(Debug)]
pub(super) struct Flush {
    pub(super) tickets: Tickets,
    /// Number of lanes that are not flushed.
    pub(super) left: u32,
    /// When all lanes are flushed, the credits below this number are visible.
    pub(super) below: u64,
}

impl Put {
    /// A piece was put, or its put failed.
    pub(super) fn piece_done(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// True when all pieces are put.
    pub(super) fn is_done(&self) -> bool {
        self.left == 0
    }

    /// True when neither the transport nor the hash thread reads the source page.
    pub(super) fn is_over(&self) -> bool {
        self.is_done() && self.hash != PageHash::Pending
    }

    /// The hash that is announced with the page. A page without an owner is announced without a hash.
    pub(super) fn announced_hash(&self) -> Option<u64> {
        match self.hash {
            PageHash::Known(hash) => self.load.owner().map(|_| hash),
            PageHash::NotNeeded | PageHash::Pending => None,
        }
    }

    /// True if one frame can announce this page, the `count - 1` pages after it, and then `next`.
    pub(super) fn is_followed_by(&self, next: &Self, count: u32) -> bool {
        match (self.load.owner(), next.load.owner()) {
            (Some(first), Some(next)) => next == PageOwner { first_page: first.first_page + count, ..first },
            (None, None) => (self.load == Load::Probe) == (next.load == Load::Probe),
            _ => false,
        }
    }
}

/// The phase of a session: what it can do now.
#[derive(Debug)]
pub(super) enum Phase {
    /// The lane is not connected: credits are accepted, nothing is posted.
    Connecting,
    /// Probe pages warm the lane up before the measurement.
    WarmingUp {
        lane: String,
        /// Probe pages that are not announced yet.
        pages: u32,
    },
    /// Probe pages measure the lane.
    Measuring {
        lane: String,
        /// When the first probe page of the measurement was posted.
        began_micros: Option<u64>,
        /// Bytes announced so far.
        bytes: u64,
    },
    /// The measurement is over.
    Ready,
    /// The session has ended. It is kept until its last put has completed.
    Lost,
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) ring: SpendLedger,
    seed: u64,
    pub(super) phase: Phase,
    /// Maximum number of credits in the ring.
    capacity: u32,
    /// The share of the ring that the receiver has sent since its last grant.
    pub(super) share: Option<u32>,
    pub(super) ready: VecDeque<Ready>,
    /// Pages of each request in `ready`.
    queued: HashMap<u64, u32>,
    /// Spent credits in order.
    pub(super) puts: VecDeque<Put>,
    /// Credits below this number are flushed.
    pub(super) flushed: u64,
    /// Flushes in flight in the order of posting.
    pub(super) flushes: VecDeque<Flush>,
    /// The lanes; `None` until they are connected.
    pub(super) lanes: Option<Lanes>,
    /// When each request's first put was posted.
    pub(super) began: HashMap<RequestId, u64>,
    /// When pages were last announced.
    pub(super) flushed_micros: u64,
}

impl Session {
    /// A ring of `capacity` credits, none of them granted yet. `seed` is the seed of the session's page hashes.
    pub(super) fn new(capacity: NonZeroU32, seed: u64) -> Self {
        Self {
            ring: SpendLedger::new(capacity),
            seed,
            phase: Phase::Connecting,
            capacity: capacity.get(),
            share: None,
            ready: VecDeque::new(),
            queued: HashMap::new(),
            puts: VecDeque::new(),
            flushed: 0,
            flushes: VecDeque::new(),
            lanes: None,
            began: HashMap::new(),
            flushed_micros: 0,
        }
    }

    /// True once the session has ended.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self.phase, Phase::Lost)
    }

    /// True if this process holds no credit, and the receiver has said that it grants none.
    pub(super) fn has_returned_all(&self) -> bool {
        self.share == Some(0) && self.ring.available() + self.ring.unannounced() == 0
    }

    /// True if puts and flushes may be posted.
    pub(super) fn may_post(&self) -> bool {
        !matches!(self.phase, Phase::Connecting | Phase::Lost)
    }

    /// The lane, while it is measured.
    pub(super) fn lane_in_probe(&self) -> Option<&str> {
        match &self.phase {
            Phase::WarmingUp { lane, .. } | Phase::Measuring { lane, .. } => Some(lane),
            Phase::Connecting | Phase::Ready | Phase::Lost => None,
        }
    }

    /// The lanes are connected: the warm-up begins.
    pub(super) fn connect(&mut self, lane: String, lanes: Lanes) {
        if matches!(self.phase, Phase::Connecting) {
            self.lanes = Some(lanes);
            let pages = PROBE_PAGES.0.min(self.capacity);
            self.phase = Phase::WarmingUp { lane, pages };
            self.queue_probe(pages);
        }
    }

    /// The warm-up is over: the measurement begins.
    pub(super) fn begin_measuring(&mut self, lane: String) {
        self.phase = Phase::Measuring { lane, began_micros: None, bytes: 0 };
        self.queue_probe(PROBE_PAGES.1.min(self.capacity.max(PROBE_PAGES.0)));
    }

    fn queue_probe(&mut self, pages: u32) {
        self.ready.extend((0..pages).map(|_| Ready { load: Load::Probe, page: PageId(0) }));
    }

    /// True if probe pages are queued or in flight.
    pub(super) fn is_probing(&self) -> bool {
        self.ready.iter().any(|ready| ready.load == Load::Probe)
            || self.puts.iter().any(|put| put.load == Load::Probe)
    }

    /// Queues a page of a request.
    pub(super) fn queue(&mut self, owner: PageOwner, page: PageId) {
        *self.queued.entry(owner.request).or_default() += 1;
        self.ready.push_back(Ready { load: Load::Page(owner), page });
    }

    /// Takes the page that has been queued longest.
    pub(super) fn next(&mut self) -> Option<Ready> {
        let ready = self.ready.pop_front()?;
        if let Load::Page(owner) = ready.load
            && let hash_map::Entry::Occupied(mut count) = self.queued.entry(owner.request)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        Some(ready)
    }

    /// The session is over: nothing more of it is posted.
    pub(super) fn lose(&mut self) {
        self.phase = Phase::Lost;
        self.ready.clear();
        self.queued.clear();
    }

    /// Returns free credits to the receiver until at most `share` credits are left or no credit is free.
    pub(super) fn give_back(&mut self, share: u32, now_micros: u64) {
        let excess = (self.ring.available() + self.ring.unannounced()).saturating_sub(share);
        for _ in 0..excess {
            let Some(credit) = self.ring.spend() else { break };
            self.puts.push_back(Put {
                tickets: Tickets::NONE,
                credit: credit.number,
                load: Load::Nothing,
                posted_micros: now_micros,
                left: 0,
                hash: PageHash::NotNeeded,
            });
        }
    }

    /// The seed of the hash of a page that is put now; `None` for a page that is not hashed. Notes when the first put of the request, or
    /// of the measurement, was posted.
    pub(super) fn seed_of(&mut self, load: Load, credit: CreditNumber, now_micros: u64) -> Option<PageSeed> {
        if let Load::Page(PageOwner { request, first_page: place }) = load {
            self.began.entry(RequestId(request)).or_insert(now_micros);
            return Some(PageSeed { session: self.seed, credit: credit.0, request, place });
        }
        if let Phase::Measuring { began_micros, .. } = &mut self.phase {
            began_micros.get_or_insert(now_micros);
        }
        None
    }

    /// The flush to post now, if any: it covers the credits below the returned number. A flush is due after every `pages` pages and after
    /// the last page that can be posted. At most `most` flushes are in flight.
    pub(super) fn flush_below(&self, pages: usize, most: usize) -> Option<u64> {
        let posted = self.puts.back()?.credit.0 + 1;
        let covered = self.flushes.back().map_or(0, |flush| flush.below).max(self.flushed);
        let is_last = self.ready.is_empty() || self.ring.available() == 0;
        let may = self.may_post() && self.flushes.len() < most;
        let enough = if is_last { 1 } else { pages as u64 };
        (may && posted.saturating_sub(covered) >= enough).then_some(posted)
    }

    /// A lane has answered a flush. True if this lane was the last one, so that more pages are visible.
    pub(super) fn lane_flushed(&mut self, index: usize) -> bool {
        let Some(flush) = self.flushes.get_mut(index) else { return false };
        flush.left = flush.left.saturating_sub(1);
        if flush.left > 0 {
            return false;
        }
        self.flushed = self.flushed.max(flush.below);
        self.flushes.remove(index);
        true
    }

    /// Takes the puts at the front that are complete, hashed and flushed.
    pub(super) fn take_whole(&mut self) -> VecDeque<Put> {
        let flushed = self.flushed;
        let is_whole = |put: &&Put| put.credit.0 < flushed && put.is_over();
        let count = self.puts.iter().take_while(is_whole).count();
        self.puts.drain(..count).collect()
    }

    /// Drops the request's queued pages. Its puts in flight are announced without an owner.
    pub(super) fn cancel(&mut self, request: RequestId) {
        if self.queued.remove(&request.0).is_some() {
            self.ready.retain(|ready| !ready.load.is_of(request));
        }
        self.began.remove(&request);
        let of_request = self.puts.iter_mut().filter(|put| put.load.is_of(request));
        of_request.for_each(|put| put.load = Load::Cancelled(request));
    }

    /// True if neither the transport nor the hash thread reads a page of the request.
    pub(super) fn is_drained(&self, request: RequestId) -> bool {
        self.puts.iter().filter(|put| put.load.is_of(request)).all(Put::is_over)
    }

    /// Applies `change` to every put; it returns true if it changed the put. Returns the cancelled requests that are drained as a result.
    pub(super) fn update_puts(&mut self, mut change: impl FnMut(&mut Put) -> bool) -> Vec<RequestId> {
        let mut cancelled = Vec::new();
        for put in &mut self.puts {
            if change(put)
                && put.is_over()
                && let Load::Cancelled(request) = put.load
            {
                cancelled.push(request);
            }
        }
        cancelled.sort_unstable();
        cancelled.dedup();
        cancelled.retain(|request| self.is_drained(*request));
        cancelled
    }

    /// `count` probe pages of `page_bytes` bytes each were announced.
    pub(super) fn probed(&mut self, count: u32, page_bytes: u64) {
        match &mut self.phase {
            Phase::WarmingUp { pages, .. } => *pages = pages.saturating_sub(count),
            Phase::Measuring { bytes, .. } => *bytes += u64::from(count) * page_bytes,
            Phase::Connecting | Phase::Ready | Phase::Lost => {}
        }
    }
}
