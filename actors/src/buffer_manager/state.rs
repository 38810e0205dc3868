//! Who holds which page of the pool: the decisions of the buffer manager, without actix, clock or I/O.
//!
//! A page is free, held by one or more sequences, cached, under an outstanding credit of a session, or quarantined. A sequence
//! may also hold a *count* of pages that will land from a sender. The invariant, checked after every change:
//!
//! ```text
//! landing counts + outstanding credits + held + quarantined ≤ pages; cached pages are evicted for all of them
//! ```
//!
//! A landing page moves one from the count and one from the credits to one held, so it always fits, and one page remains that
//! can be granted at once: the ring moves whatever else waits. Who gets credits is decided in `rings.rs`.
//!
//! Free pages serve, in this order: sessions that wait for their first credit, other credits, running sequences that grow, and
//! reservations in the order of asking. A reservation whose pages land is granted only together with a credit for its
//! session. If a running sequence cannot grow, the decoder is told, and preempts the youngest.
//!
//! What can never fit is denied at once: a request may use the pages that neither the ring nor the quarantine claims, and the
//! quarantine may grow while requests wait.
//!
//! A page that a sequence has filled stays cached after it until its place is needed: the next sequence that begins with the
//! same tokens shares it. Only a page that no sequence holds and that is not cached becomes a credit.

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
    GrowPages, PagesComputed, PagesDenied, ReservePages, ReservePriority, RoomChanged, SequenceId, SessionId,
};
use rings::Rings;

/// Most bytes that one session's start-up measurement wants.
const MEASURED_BYTES_MAX: u64 = 256 << 20;
/// Pages that a measurement moves: more credits would not be used.
const MEASURED_PAGES: u64 = 72;

/// How the pool is divided now; a snapshot for logs, `/health` and tests. All in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PoolUse {
    /// In the pool.
    pub pages: u32,
    /// Promised as counts to sequences whose pages land from a sender.
    pub landing: u32,
    /// Under outstanding credits.
    pub outstanding: u32,
    /// Held by sequences.
    pub held: u32,
    /// Held by none, with content that may be wanted again.
    pub cached: u32,
    /// Under credits of lost sessions, or not what was put there, until there is proof.
    pub quarantined: u32,
}

/// What the buffer manager has counted, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// Shared with reservations, which neither compute nor receive them.
    pub resident: u64,
    /// Landed and adopted.
    pub adopted: u64,
    /// Times that a landed page's hash did not match.
    pub mismatches: u64,
}

/// Who may touch a page now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageUse {
    /// Nobody.
    Free,
    /// A sequence holds it, perhaps with others.
    Held(SequenceId),
    /// Nobody; its content is known.
    Cached,
    /// A session's peer may write it.
    Outstanding(SessionId),
    /// A session's peer may still be writing it.
    Quarantined(SessionId),
}

#[derive(Debug, Default)]
struct Holding {
    /// Pages that are to land, and the session that they land from.
    landing: u32,
    from: Option<SessionId>,
    pages: Vec<PageId>,
    /// How often it may be in `growing`.
    grows: u32,
}

/// Computes the hashes of pages of our pool as they are now.
pub type Hasher<'a> = &'a dyn Fn(&[(PageId, PageSeed)]) -> Vec<u64>;

/// What the buffer manager knows of its pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Pages in the pool.
    pub pages: u32,
    /// Most pages under credits at once; 0 where no peer writes.
    pub ring_pages: u32,
    /// Tokens in a page; at least one.
    pub page_tokens: u32,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Sequences share pages that hold the same tokens.
    pub sharing: bool,
    /// Pages are taken from all over the pool, as if it had been used for long: for measurements.
    pub scattered: bool,
}

/// The page pool's ledger.
#[derive(Debug)]
pub struct PoolState {
    config: PoolConfig,
    free: BTreeSet<u32>,
    cache: PrefixCache,
    holdings: HashMap<SequenceId, Holding>,
    /// How many sequences hold a page; no entry, none.
    holders: HashMap<PageId, u32>,
    /// Landing counts of all sequences.
    landing: u32,
    growing: VecDeque<GrowPages>,
    /// `PagesShort` was sent for the first of `growing`; nothing was released since.
    told_short: bool,
    /// Releases of own requests so far. A decoder that has sent more ignores `PagesShort` with this count.
    releases: u64,
    waiting: VecDeque<ReservePages>,
    counts: PoolCounts,
    rings: Rings,
    /// The quarantine that was told last.
    told_quarantined: u32,
}

impl PoolState {
    /// A pool of free pages.
    pub fn new(config: PoolConfig) -> Self {
        let measured = MEASURED_PAGES.min(MEASURED_BYTES_MAX / config.page_bytes.max(1));
        Self {
            config: PoolConfig { page_tokens: config.page_tokens.max(1), ..config },
            free: (0..config.pages).collect(),
            cache: PrefixCache::new(config.page_tokens),
            holdings: HashMap::new(),
            holders: HashMap::new(),
            landing: 0,
            growing: VecDeque::new(),
            told_short: false,
            releases: 0,
            waiting: VecDeque::new(),
            counts: PoolCounts::default(),
            rings: Rings::new(config.ring_pages, measured as u32),
            told_quarantined: 0,
        }
    }

    /// Takes a message. `hasher` computes the hashes of pages that landed; without one, both sides have agreed on none.
    pub fn on(&mut self, now: Instant, mail: ToBufferManager, hasher: Option<Hasher<'_>>) -> Vec<Effect> {
        let mut effects = match mail {
            ToBufferManager::ReservePages(reserve) => self.on_reserve(reserve),
            ToBufferManager::GrowPages(grow) => self.on_grow(grow),
            ToBufferManager::PagesComputed(computed) => self.on_computed(&computed),
            ToBufferManager::ReleasePages(release) => self.on_release(release.sequence),
            ToBufferManager::SessionOpened(opened) => self.on_session_opened(opened),
            ToBufferManager::PeerReady(ready) => self.on_measured(ready.session),
            ToBufferManager::PeerLeaving(leaving) => self.on_peer_leaving(leaving.session),
            ToBufferManager::PageFilled(filled) => self.on_page_filled(filled, hasher),
            ToBufferManager::PeerLost(lost) => self.on_session_lost(lost.session),
            ToBufferManager::SessionDrained(drained) => self.on_session_drained(drained),
            ToBufferManager::Tick(_) => Vec::new(),
        };
        effects.extend(self.settle(now));
        effects
    }

    /// What was counted so far.
    pub fn counts(&self) -> PoolCounts {
        self.counts
    }

    /// How the pool is divided now.
    pub fn usage(&self) -> PoolUse {
        PoolUse {
            pages: self.config.pages,
            landing: self.landing,
            outstanding: self.rings.outstanding(),
            held: self.holders.len() as u32,
            cached: self.cache.unused(),
            quarantined: self.rings.quarantined(),
        }
    }

    /// Pages that the largest reservation or growth that waits needs in all; 0 if none waits. For checks.
    pub fn needed_most(&self) -> u32 {
        let waiting = self.waiting.iter().map(|reserve| self.needed(reserve));
        let growing = self.growing.iter().map(|grow| self.held(grow.sequence) + grow.least);
        waiting.chain(growing).max().unwrap_or_default()
    }

    /// Pages that a sequence holds.
    fn held(&self, sequence: SequenceId) -> u32 {
        self.holdings.get(&sequence).map_or(0, |holding| holding.pages.len() as u32)
    }

    /// Who may touch `page` now; for checks, since it looks through everything.
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

    /// True if the content of `page` is known, so that nobody may change it.
    pub fn is_known(&self, page: PageId) -> bool {
        self.cache.contains(page)
    }

    /// Pages that one request may use: the ring may claim its part at any time, and the quarantine has its part.
    fn usable(&self) -> u32 {
        self.config.pages.saturating_sub(self.config.ring_pages + self.rings.quarantined())
    }

    fn on_reserve(&mut self, reserve: ReservePages) -> Vec<Effect> {
        let denied = self.denial(reserve.sequence, self.needed(&reserve));
        if denied.is_none() && reserve.priority == ReservePriority::Resumed {
            self.waiting.push_front(reserve);
        } else if denied.is_none() {
            self.waiting.push_back(reserve);
        }
        denied.into_iter().collect()
    }

    /// A running sequence wants more.
    fn on_grow(&mut self, grow: GrowPages) -> Vec<Effect> {
        let Some(holding) = self.holdings.get(&grow.sequence) else { return Vec::new() };
        let denied = self.denial(grow.sequence, holding.pages.len() as u32 + grow.least);
        if denied.is_none() {
            self.holdings.entry(grow.sequence).or_default().grows += 1;
            self.growing.push_back(grow);
        }
        denied.into_iter().collect()
    }

    /// What stands in the sequence's pages is known from now on.
    fn on_computed(&mut self, computed: &PagesComputed) -> Vec<Effect> {
        let Some(holding) = self.holdings.get(&computed.sequence) else { return Vec::new() };
        let held: HashSet<PageId> = holding.pages.iter().copied().collect();
        if self.config.sharing && computed.pages.iter().all(|page| held.contains(page)) {
            self.cache.insert(&computed.tokens, &computed.pages);
        }
        Vec::new()
    }

    /// Everything of this sequence goes back. A page still under way to it goes back when it lands.
    fn on_release(&mut self, sequence: SequenceId) -> Vec<Effect> {
        self.told_short = false;
        self.releases += u64::from(matches!(sequence, SequenceId::Own(_)));
        let Some(holding) = self.holdings.remove(&sequence) else {
            // A request that ends before it got its pages is rare enough to be looked for.
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
            let Some(holders) = self.holders.get_mut(&page) else { continue };
            *holders -= 1;
            if *holders == 0 {
                self.holders.remove(&page);
                if !self.cache.on_unused(page) {
                    self.free.insert(page.0);
                }
            }
        }
        Vec::new()
    }

    /// The sequence holds these pages too.
    fn hold(&mut self, sequence: SequenceId, pages: &[PageId]) {
        self.holdings.entry(sequence).or_default().pages.extend(pages);
        for page in pages {
            *self.holders.entry(*page).or_default() += 1;
            self.cache.on_used(*page);
        }
    }

    /// Tells proxy and peer link how much room is left, and denies what no longer fits.
    fn quarantine_changed(&mut self) -> Vec<Effect> {
        let quarantined = self.rings.quarantined();
        if mem::replace(&mut self.told_quarantined, quarantined) == quarantined {
            return Vec::new();
        }
        let changed = RoomChanged { pages: self.config.pages, usable: self.usable(), quarantined };
        let mut effects = vec![to::proxy(changed), to::peer_link(changed)];
        effects.extend(self.deny());
        effects
    }

    /// Pages that a reservation needs at least.
    fn needed(&self, reserve: &ReservePages) -> u32 {
        (reserve.tokens.len() as u32).div_ceil(self.config.page_tokens)
    }

    /// Denies a sequence that needs more pages than one request may use now.
    fn denial(&self, sequence: SequenceId, needed: u32) -> Option<Effect> {
        let usable = self.usable();
        (needed > usable).then(|| denied(PagesDenied { sequence, needed, usable }))
    }

    /// Denies every reservation and growth that fits no more, since fewer pages are usable than before.
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

    /// Pages that nothing claims.
    fn unclaimed(&self) -> u32 {
        (self.free.len() as u32 + self.cache.unused()).saturating_sub(self.landing)
    }

    fn take(&mut self, count: u32) -> Vec<u32> {
        // Lowest first: pages that are granted together tend to be adjacent. Cached pages are evicted when none is free.
        let lowest = |free: &mut BTreeSet<u32>| free.pop_first();
        // A hash of the page decides. It takes time linear in the pool, and only measurements use it.
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
        debug_assert_eq!(taken.len(), count as usize, "what is unclaimed can be taken");
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
        debug_assert!(self.rings.holds(), "a session with pages to land has no credit: {:?}", self.rings);
    }
}

/// To the owner of the reservation.
fn denied(denied: PagesDenied) -> Effect {
    match denied.sequence {
        SequenceId::Own(_) => to::decoder(denied),
        SequenceId::Peer(_) => to::prefiller(denied),
    }
}

#[cfg(test)]
mod tests;
