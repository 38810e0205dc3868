//! What is ready, posted and flushed in one session.

use std::collections::{HashMap, VecDeque, hash_map};
use std::num::NonZeroU32;

use connector::frame::PageOwner;
use connector::page_hash::PageSeed;
use connector::ring::{CreditNumber, SpendLedger};
use connector::transport::Ticket;
use engine::PageId;

use super::PROBE_PAGES;
use crate::request::RequestId;

/// What a credit is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// A page that belongs to nobody, to measure the lane.
    Probe,
    /// A page of a request.
    Page(PageOwner),
    /// Nothing: the credit goes back.
    Nothing,
}

impl Load {
    fn is_of(self, request: RequestId) -> bool {
        matches!(self, Self::Page(owner) if owner.request == request.0)
    }
}

/// A page that waits for a credit.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) load: Load,
    pub(super) page: PageId,
}

/// A spent credit whose page is not announced yet.
#[derive(Debug)]
pub(super) struct Put {
    /// Neighbours that went as one put have the same.
    pub(super) ticket: Ticket,
    pub(super) credit: CreditNumber,
    pub(super) load: Load,
    pub(super) posted_micros: u64,
    /// A hash of it was asked for.
    pub(super) is_hashed: bool,
    pub(super) hash: Option<u64>,
    pub(super) done: bool,
    /// The request was cancelled: the page is announced as nobody's.
    pub(super) cancelled: bool,
}

impl Put {
    /// Whose page it is announced as.
    pub(super) fn owner(&self) -> Option<PageOwner> {
        match self.load {
            Load::Page(owner) if !self.cancelled => Some(owner),
            _ => None,
        }
    }

    /// True when nobody reads its source any more.
    pub(super) fn is_over(&self) -> bool {
        self.done && (self.hash.is_some() || !self.is_hashed)
    }

    /// True if one frame can announce this page, `count - 1` that follow it, and then `next`.
    pub(super) fn is_followed_by(&self, next: &Self, count: u32) -> bool {
        match (self.owner(), next.owner()) {
            (Some(first), Some(next)) => next == PageOwner { first_page: first.first_page + count, ..first },
            (None, None) => (self.load == Load::Probe) == (next.load == Load::Probe),
            _ => false,
        }
    }
}

/// The measurement at a session's start: pages still to be announced before and during the measured part.
#[derive(Debug, Default)]
pub(super) struct Probe {
    pub(super) warm: u32,
    pub(super) measured: u32,
    pub(super) began_micros: Option<u64>,
    pub(super) bytes: u64,
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) ring: SpendLedger,
    seed: u64,
    pub(super) lane: Option<String>,
    pub(super) ready: VecDeque<Ready>,
    /// Pages of each request in `ready`.
    queued: HashMap<u64, u32>,
    /// Spent credits in order.
    pub(super) puts: VecDeque<Put>,
    /// Credits below this number are flushed.
    pub(super) flushed: u64,
    /// Flushes in flight in the order of posting, and below which credit number each of them makes visible.
    pub(super) flushes: VecDeque<(Ticket, u64)>,
    /// When each request's first put was posted.
    pub(super) began: HashMap<RequestId, u64>,
    pub(super) probe: Option<Probe>,
    pub(super) lost: bool,
    /// When the last flush was over.
    pub(super) flushed_micros: u64,
}

impl Session {
    /// A ring of `capacity` credits, none of them granted yet; hashes begin with `seed`.
    pub(super) fn new(capacity: NonZeroU32, seed: u64) -> Self {
        let pages = capacity.get();
        Self {
            ring: SpendLedger::new(capacity),
            seed,
            lane: None,
            ready: VecDeque::new(),
            queued: HashMap::new(),
            puts: VecDeque::new(),
            flushed: 0,
            flushes: VecDeque::new(),
            began: HashMap::new(),
            probe: Some(Probe {
                warm: PROBE_PAGES.0.min(pages),
                measured: PROBE_PAGES.1.min(pages.max(PROBE_PAGES.0)),
                ..Probe::default()
            }),
            lost: false,
            flushed_micros: 0,
        }
    }

    /// Queues a page of a request.
    pub(super) fn queue(&mut self, owner: PageOwner, page: PageId) {
        *self.queued.entry(owner.request).or_default() += 1;
        self.ready.push_back(Ready { load: Load::Page(owner), page });
    }

    /// Takes the page that is queued longest.
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
        self.lost = true;
        self.ready.clear();
        self.queued.clear();
    }

    /// Spends credits on nothing as long as there are more than `share` and some of them are free.
    pub(super) fn give_back(&mut self, share: u32, now_micros: u64) {
        let excess = (self.ring.available() + self.ring.unannounced()).saturating_sub(share);
        for _ in 0..excess {
            let Some(credit) = self.ring.spend() else { break };
            self.puts.push_back(Put {
                // No ticket is zero.
                ticket: Ticket(0),
                credit: credit.number,
                load: Load::Nothing,
                posted_micros: now_micros,
                is_hashed: false,
                hash: None,
                done: true,
                cancelled: false,
            });
        }
    }

    /// What the hash of a page that is put now is to be seeded with; notes when its request's first put, or the probe, began.
    pub(super) fn seed_of(&mut self, load: Load, credit: CreditNumber, now_micros: u64) -> Option<PageSeed> {
        if let Load::Page(PageOwner { request, first_page: place }) = load {
            self.began.entry(RequestId(request)).or_insert(now_micros);
            return Some(PageSeed { session: self.seed, credit: credit.0, request, place });
        }
        if let Some(probe) = self.probe.as_mut().filter(|probe| probe.warm == 0) {
            probe.began_micros.get_or_insert(now_micros);
        }
        None
    }

    /// Below which credit number a flush is to be posted now, if one is: behind every `pages` pages, and behind the last one that can be
    /// posted; with at most `most` of them in flight.
    pub(super) fn flush_below(&self, pages: usize, most: usize) -> Option<u64> {
        let posted = self.puts.back()?.credit.0 + 1;
        let covered = self.flushes.back().map_or(0, |flush| flush.1).max(self.flushed);
        let is_last = self.ready.is_empty() || self.ring.available() == 0;
        let may = self.lane.is_some() && !self.lost && self.flushes.len() < most;
        let enough = if is_last { 1 } else { pages as u64 };
        (may && posted.saturating_sub(covered) >= enough).then_some(posted)
    }

    /// Takes the puts at the front that are over and flushed.
    pub(super) fn take_whole(&mut self) -> VecDeque<Put> {
        let flushed = self.flushed;
        let is_whole = |put: &&Put| put.credit.0 < flushed && put.is_over();
        let count = self.puts.iter().take_while(is_whole).count();
        self.puts.drain(..count).collect()
    }

    /// Drops what is queued of a request, and disowns what is posted.
    pub(super) fn cancel(&mut self, request: RequestId) {
        if self.queued.remove(&request.0).is_some() {
            self.ready.retain(|ready| !ready.load.is_of(request));
        }
        self.began.remove(&request);
        self.puts.iter_mut().filter(|put| put.load.is_of(request)).for_each(|put| put.cancelled = true);
    }

    /// True if nobody reads pages of the request any more.
    pub(super) fn is_drained(&self, request: RequestId) -> bool {
        self.puts.iter().filter(|put| put.load.is_of(request)).all(Put::is_over)
    }

    /// Changes puts by `change`, which says whether it did; the cancelled requests that are drained by that.
    pub(super) fn on_over(&mut self, mut change: impl FnMut(&mut Put) -> bool) -> Vec<RequestId> {
        let mut cancelled = Vec::new();
        for put in &mut self.puts {
            if change(put)
                && put.is_over()
                && let (Load::Page(owner), true) = (put.load, put.cancelled)
            {
                cancelled.push(RequestId(owner.request));
            }
        }
        cancelled.sort_unstable();
        cancelled.dedup();
        cancelled.retain(|request| self.is_drained(*request));
        cancelled
    }

    /// `count` pages of the probe, `page_bytes` bytes each, are announced.
    pub(super) fn probed(&mut self, count: u32, page_bytes: u64) {
        match &mut self.probe {
            Some(probe) if probe.warm > 0 => probe.warm = probe.warm.saturating_sub(count),
            Some(probe) => {
                probe.measured = probe.measured.saturating_sub(count);
                probe.bytes += u64::from(count) * page_bytes;
            }
            None => {}
        }
    }
}
