//! The page pool's ledger: the decisions of the buffer manager, without actix, clock or I/O.
//!
//! A page is in one of five states: free, held by one or more sequences, cached, under an outstanding credit of a session, or
//! quarantined. A sequence may also hold a *count* of pages that will land from a sender. The invariant, checked after every
//! message:
//!
//! ```text
//! landing counts + outstanding credits + held + quarantined ≤ pages
//! ```
//!
//! Cached pages are not part of the sum, because they are evicted when one of the other uses needs a page.
//!
//! When a page lands, the landing count and the outstanding credits both fall by one and the held pages rise by one. So a landing
//! page always fits, and one more page becomes unclaimed and can be granted at once. Therefore the ring makes progress whatever
//! else waits. `rings.rs` decides which session gets credits.
//!
//! Free pages are given out in this order: first credits of sessions, other credits, growth of running sequences, and
//! reservations in the order of their arrival. A reservation whose pages land is granted only together with a credit for its
//! session. If a running sequence cannot grow, the buffer manager tells the decoder, which preempts the youngest request.
//!
//! A reservation that can never fit is denied at once. A request may use the pages that neither the ring nor a lasting quarantine
//! claims: most quarantines end within milliseconds. When one lasts, waiting reservations that no longer fit are denied too.
//!
//! **Two processes that prefill for each other must not wait for each other's pages.** So such a process keeps a quota of pages for
//! the prompts of its peers. Credits, growth and own reservations never take these pages. A peer's reservation gets its pages from the
//! quota at once or is denied. It never waits. A page that an own request shares counts as the own request's page.
//!
//! A page that a sequence has filled stays cached after the sequence ends, until the pool needs the page. The next sequence that
//! begins with the same tokens and has the same salt shares it. Only a page that no sequence holds and that is not cached becomes a credit.

mod holders;
mod landing;
mod rings;
mod serving;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::mem;
use std::time::Instant;

use connector::page_hash::PageSeed;
use connector::ring::PageIndex;
use engine::PageId;

use super::prefix_cache::PrefixCache;
use crate::effect::{Effect, ToBufferManager, to};
use crate::messages::{
    CacheChanged, GrowPages, PagesComputed, PagesDenied, PagesGrown, ReservePages, ReservePriority,
    RoomChanged, SequenceId, SessionId,
};
use holders::Holders;
use rings::Rings;

/// Upper bound of the bytes under credit for one session's start-up measurement.
const MEASURED_BYTES_MAX: u64 = 256 << 20;
/// Number of pages that a measurement moves. It could not use more credits.
const MEASURED_PAGES: u64 = 72;

/// A snapshot of the pool's use, in pages, for logs, `/health` and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PoolUse {
    /// Pages in the pool.
    pub pages: u32,
    /// Pages promised as counts to sequences whose pages land from a sender.
    pub landing: u32,
    /// Pages under outstanding credits.
    pub outstanding: u32,
    /// Pages that sequences hold.
    pub held: u32,
    /// Those of the held pages that prompts of peers have from the quota.
    pub quota_used: u32,
    /// Pages in the prefix cache that no sequence holds.
    pub cached: u32,
    /// Pages under credits of lost sessions, and pages whose hash did not match, until there is proof that no write can reach
    /// them.
    pub quarantined: u32,
}

/// Totals since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// Cached pages that reservations shared instead of computing or receiving them.
    pub resident: u64,
    /// Pages that landed and were adopted.
    pub adopted: u64,
    /// Announcements with a page hash that did not match.
    pub mismatches: u64,
    /// Pages that were quarantined.
    pub lost: u64,
    /// Microseconds from the end of a session until its pages were free again, summed over the sessions whose quarantine has ended.
    pub quarantine_micros: u64,
}

/// The state of one page, which says who may read or write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageUse {
    /// The page is free.
    Free,
    /// This sequence holds the page, possibly together with others.
    Held(SequenceId),
    /// No sequence holds the page; its content is in the prefix cache.
    Cached,
    /// The session's peer has a credit for the page and may write it.
    Outstanding(SessionId),
    /// The session is lost and its peer may still be writing the page.
    Quarantined(SessionId),
}

#[derive(Debug, Default)]
struct Holding {
    /// Number of pages that will land.
    landing: u32,
    /// The session that they land from.
    from: Option<SessionId>,
    pages: Vec<PageId>,
    /// Number of this sequence's entries in `growing`.
    grows: u32,
}

/// A function that computes the hashes of pages of our pool from their present content.
pub type Hasher<'a> = &'a dyn Fn(&[(PageId, PageSeed)]) -> Vec<u64>;

/// Sizes and settings of the pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Pages in the pool.
    pub pages: u32,
    /// Upper bound of the pages under credits, over all sessions; 0 if no peer writes into the pool.
    pub ring_pages: u32,
    /// Tokens in a page; at least one.
    pub page_tokens: u32,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Pages that only prompts of peers may use, for a process that prefills for peers and whose peers prefill for it. `None`: reservations
    /// of peers wait in the same queue as own ones. That is safe in a process that waits for no peer.
    pub prefill_pages: Option<u32>,
    /// Whether sequences share pages that hold the same tokens (`engine.prefix_cache`).
    pub sharing: bool,
    /// Whether changes of the prefix cache are announced to routers (`kv_events.enabled`).
    pub announces: bool,
    /// Whether pages are taken in a pseudo-random order, as from a pool that has been in use for long. Only measurements set it.
    pub scattered: bool,
}

/// The page pool's ledger.
#[derive(Debug)]
pub struct PoolState {
    config: PoolConfig,
    free: BTreeSet<u32>,
    cache: PrefixCache,
    holdings: HashMap<SequenceId, Holding>,
    holders: Holders,
    /// Sum of the landing counts of all sequences.
    landing: u32,
    growing: VecDeque<GrowPages>,
    /// `PagesShort` was sent for the first of `growing`, and no sequence was released since.
    sent_short: bool,
    /// Number of releases of own requests so far. A decoder that has sent more releases ignores a `PagesShort` with this count.
    releases: u64,
    waiting: VecDeque<ReservePages>,
    counts: PoolCounts,
    rings: Rings,
    /// All quarantined pages, and those of lasting quarantines, in the last `RoomChanged` message.
    reported_quarantined: (u32, u32),
}

impl PoolState {
    /// A pool whose pages are all free.
    pub fn new(config: PoolConfig) -> Self {
        let measured = MEASURED_PAGES.min(MEASURED_BYTES_MAX / config.page_bytes.max(1));
        let cache = PrefixCache::new(config.page_tokens);
        Self {
            config: PoolConfig { page_tokens: config.page_tokens.max(1), ..config },
            free: (0..config.pages).collect(),
            cache: if config.announces { cache.announcing() } else { cache },
            holdings: HashMap::new(),
            holders: Holders::default(),
            landing: 0,
            growing: VecDeque::new(),
            sent_short: false,
            releases: 0,
            waiting: VecDeque::new(),
            counts: PoolCounts::default(),
            rings: Rings::new(config.ring_pages, measured as u32),
            reported_quarantined: (0, 0),
        }
    }

    /// Handles a message and returns the effects. `hasher` computes the hashes of pages that landed; it is `None` if page hashes
    /// are off.
    pub fn on(&mut self, now: Instant, mail: ToBufferManager, hasher: Option<Hasher<'_>>) -> Vec<Effect> {
        let mut effects = match mail {
            ToBufferManager::ReservePages(reserve) => self.on_reserve(reserve),
            ToBufferManager::GrowPages(grow) => self.on_grow(grow),
            ToBufferManager::ComputeHere(here) => self.on_compute_here(here.sequence),
            ToBufferManager::PagesComputed(computed) => self.on_computed(&computed),
            ToBufferManager::ReleasePages(release) => self.on_release(release.sequence),
            ToBufferManager::SessionOpened(opened) => self.on_session_opened(opened),
            ToBufferManager::PeerReady(ready) => self.on_measured(ready.session),
            ToBufferManager::PeerLeaving(leaving) => self.on_peer_leaving(leaving.session),
            ToBufferManager::PageFilled(filled) => self.on_page_filled(now, filled, hasher),
            ToBufferManager::PeerLost(lost) => self.on_session_lost(now, lost.session),
            ToBufferManager::SessionDrained(drained) => self.on_session_drained(now, drained),
            ToBufferManager::Tick(_) => {
                self.rings.on_tick(now);
                self.quarantine_changed()
            }
        };
        effects.extend(self.settle(now));
        effects.extend(self.cache.take_events().map(|events| to::kv_events(CacheChanged(events))));
        effects
    }

    /// The totals so far.
    pub fn counts(&self) -> PoolCounts {
        self.counts
    }

    /// The present use of the pool.
    pub fn usage(&self) -> PoolUse {
        PoolUse {
            pages: self.config.pages,
            landing: self.landing,
            outstanding: self.rings.outstanding(),
            held: self.holders.len() as u32,
            quota_used: self.config.prefill_pages.unwrap_or_default() - self.quota(),
            cached: self.cache.unused(),
            quarantined: self.rings.quarantined(),
        }
    }

    /// Total pages that the largest waiting reservation or growing sequence needs; 0 if none waits. For checks.
    pub fn needed_most(&self) -> u32 {
        let waiting = self.waiting.iter().map(|reserve| self.needed(reserve));
        let growing = self.growing.iter().map(|grow| self.held(grow.sequence) + grow.least);
        waiting.chain(growing).max().unwrap_or_default()
    }

    /// Pages of quarantines that last. For checks.
    pub fn lasting_quarantine(&self) -> u32 {
        self.rings.lasting()
    }

    /// Number of cached pages without a salt. For checks.
    pub fn unsalted(&self) -> usize {
        self.cache.unsalted()
    }

    /// Number of pages that a sequence holds.
    fn held(&self, sequence: SequenceId) -> u32 {
        self.holdings.get(&sequence).map_or(0, |holding| holding.pages.len() as u32)
    }

    /// The state of `page`. It searches all holdings and rings, so only checks call it.
    pub fn page_use(&self, page: PageId) -> PageUse {
        let held = self.holdings.iter().find(|(_, holding)| holding.pages.contains(&page));
        match (held, self.rings.writer(PageIndex(page.0))) {
            (Some((sequence, _)), _) => PageUse::Held(*sequence),
            (None, Some((session, false))) => PageUse::Outstanding(session),
            (None, Some((session, true))) => PageUse::Quarantined(session),
            (None, None) if self.cache.contains(page) => PageUse::Cached,
            (None, None) => PageUse::Free,
        }
    }

    /// True if `page` is in the prefix cache, so that its content must not change.
    pub fn is_known(&self, page: PageId) -> bool {
        self.cache.contains(page)
    }

    /// Number of pages that one own request may use: the pool without the ring, the quota and lasting quarantines. The ring may claim
    /// all its pages at any time.
    fn usable(&self) -> u32 {
        let quota = self.config.prefill_pages.unwrap_or_default();
        self.config.pages.saturating_sub(self.config.ring_pages + quota + self.rings.lasting())
    }

    /// The pages of the quota that no prompt of a peer uses.
    fn quota(&self) -> u32 {
        self.config.prefill_pages.unwrap_or_default().saturating_sub(self.holders.of_peers())
    }

    fn on_reserve(&mut self, reserve: ReservePages) -> Vec<Effect> {
        if let (SequenceId::Peer(_), Some(_)) = (reserve.sequence, self.config.prefill_pages) {
            return vec![self.serve_peer(reserve)];
        }
        let denied = self.denial(reserve.sequence, self.needed(&reserve));
        if denied.is_none() && reserve.priority == ReservePriority::Resumed {
            self.waiting.push_front(reserve);
        } else if denied.is_none() {
            self.waiting.push_back(reserve);
        }
        denied.into_iter().collect()
    }

    /// A running sequence needs more pages.
    fn on_grow(&mut self, grow: GrowPages) -> Vec<Effect> {
        let Some(holding) = self.holdings.get(&grow.sequence) else { return Vec::new() };
        let denied = self.denial(grow.sequence, holding.pages.len() as u32 + grow.least);
        if denied.is_none() {
            self.holdings.entry(grow.sequence).or_default().grows += 1;
            self.growing.push_back(grow);
        }
        denied.into_iter().collect()
    }

    /// The pages that the sequence waits for will not land: it gets free pages for them. Its landing count has kept them free.
    fn on_compute_here(&mut self, sequence: SequenceId) -> Vec<Effect> {
        let Some(holding) = self.holdings.get_mut(&sequence) else { return Vec::new() };
        let (landing, from) = (mem::take(&mut holding.landing), holding.from.take());
        self.landing -= landing;
        if let Some(session) = from {
            self.rings.expect_less(session, landing);
        }
        let pages: Vec<PageId> = self.take(landing).into_iter().map(PageId).collect();
        self.hold(sequence, &pages);
        vec![to::decoder(PagesGrown { sequence, pages })]
    }

    /// A sequence's pages hold the KV of these tokens: adds them to the prefix cache.
    fn on_computed(&mut self, computed: &PagesComputed) -> Vec<Effect> {
        let Some(holding) = self.holdings.get(&computed.sequence) else { return Vec::new() };
        let held: HashSet<PageId> = holding.pages.iter().copied().collect();
        if self.config.sharing && computed.pages.iter().all(|page| held.contains(page)) {
            self.cache.insert(computed.salt, &computed.tokens, &computed.pages);
        }
        Vec::new()
    }

    /// Takes back all pages of a sequence. A page that has not landed yet returns to the pool when it lands.
    fn on_release(&mut self, sequence: SequenceId) -> Vec<Effect> {
        self.sent_short = false;
        self.releases += u64::from(matches!(sequence, SequenceId::Own(_)));
        let Some(holding) = self.holdings.remove(&sequence) else {
            // Few requests end before they get pages, so a linear search is fast enough.
            self.waiting.retain(|waiting| waiting.sequence != sequence);
            return Vec::new();
        };
        if holding.grows > 0 {
            self.growing.retain(|growing| growing.sequence != sequence);
        }
        self.landing -= holding.landing;
        if let Some(session) = holding.from {
            self.rings.expect_less(session, holding.landing);
        }
        for page in holding.pages {
            if self.holders.remove(page, sequence) && !self.cache.on_unused(page) {
                self.free.insert(page.0);
            }
        }
        Vec::new()
    }

    /// Adds `pages` to the pages that the sequence holds.
    fn hold(&mut self, sequence: SequenceId, pages: &[PageId]) {
        self.holdings.entry(sequence).or_default().pages.extend(pages);
        for page in pages {
            self.holders.add(*page, sequence);
            self.cache.on_used(*page);
        }
    }

    /// After a change of the quarantine, tells proxy and peer link how many pages are usable, and denies reservations and growth
    /// that no longer fit.
    fn quarantine_changed(&mut self) -> Vec<Effect> {
        let quarantined = self.rings.quarantined();
        let changed = (quarantined, self.rings.lasting());
        if mem::replace(&mut self.reported_quarantined, changed) == changed {
            return Vec::new();
        }
        let changed = RoomChanged { pages: self.config.pages, usable: self.usable(), quarantined };
        let mut effects = vec![to::proxy(changed), to::peer_link(changed)];
        effects.extend(self.deny());
        effects
    }

    /// Minimum number of pages that a reservation needs.
    fn needed(&self, reserve: &ReservePages) -> u32 {
        (reserve.tokens.len() as u32).div_ceil(self.config.page_tokens)
    }

    /// The denial of a sequence that needs more pages than one request may use now; `None` if it fits.
    fn denial(&self, sequence: SequenceId, needed: u32) -> Option<Effect> {
        let usable = self.usable();
        (needed > usable).then(|| denied(PagesDenied { sequence, needed, usable }))
    }

    /// Denies all waiting reservations and growth that need more pages than are usable now.
    fn deny(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        let (mut waiting, mut growing) = (mem::take(&mut self.waiting), mem::take(&mut self.growing));
        waiting.retain(|reserve| {
            let denied = self.denial(reserve.sequence, self.needed(reserve));
            effects.extend(denied.clone());
            denied.is_none()
        });
        growing.retain(|grow| {
            let denied = self.denial(grow.sequence, self.held(grow.sequence) + grow.least);
            effects.extend(denied.clone());
            denied.is_none()
        });
        (self.waiting, self.growing) = (waiting, growing);
        effects
    }

    /// Number of free and cached pages that no landing count claims.
    fn unclaimed(&self) -> u32 {
        (self.free.len() as u32 + self.cache.unused()).saturating_sub(self.landing)
    }

    /// Number of free and cached pages for credits and own requests.
    fn unclaimed_here(&self) -> u32 {
        self.unclaimed().saturating_sub(self.quota())
    }

    fn take(&mut self, count: u32) -> Vec<u32> {
        // Lowest first, so that pages that are granted together tend to be adjacent. Without a free page, a cached page is
        // evicted.
        let lowest = |free: &mut BTreeSet<u32>| free.pop_first();
        // In the order of a hash of the page number. This takes time linear in the pool, and only measurements use it.
        let scattered = |free: &mut BTreeSet<u32>| {
            let page = free.iter().copied().min_by_key(|page| page.wrapping_mul(0x9e37_79b1))?;
            free.take(&page)
        };
        let spreads = self.config.scattered;
        let mut next = || {
            let free = if spreads { scattered(&mut self.free) } else { lowest(&mut self.free) };
            free.or_else(|| self.cache.evict().map(|page| page.0))
        };
        let taken: Vec<u32> = (0..count).filter_map(|_| next()).collect();
        debug_assert_eq!(taken.len(), count as usize, "all unclaimed pages can be taken");
        taken
    }

    fn check(&self) {
        let used = self.usage();
        debug_assert!(
            used.landing + used.outstanding + used.held + used.quarantined <= used.pages
                && self.free.len() as u32 + used.outstanding + used.held + used.cached + used.quarantined
                    == used.pages,
            "page invariant broken: {used:?} and {} free",
            self.free.len()
        );
        debug_assert!(
            self.quota() <= self.unclaimed(),
            "{} of {} unclaimed pages are left for peers: {used:?}",
            self.quota(),
            self.unclaimed()
        );
        debug_assert!(self.rings.holds(), "a session with pages to land has no credit: {:?}", self.rings);
    }
}

/// Sends the denial to the owner of the reservation.
fn denied(denied: PagesDenied) -> Effect {
    match denied.sequence {
        SequenceId::Own(_) => to::decoder(denied),
        SequenceId::Peer(_) => to::prefiller(denied),
    }
}

#[cfg(test)]
mod tests;
