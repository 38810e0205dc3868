//! Who holds which page of the pool: the decisions of the buffer manager, without actix, clock or I/O.
//!
//! A page is free, held by one or more sequences, cached, under an outstanding credit of a session, or quarantined. A sequence
//! may also hold a *count* of pages that will land from a sender. The invariant, checked after every change:
//!
//! ```text
//! landing counts + outstanding credits + held + cached + quarantined ≤ pages, where cached pages give way to all others
//! ```
//!
//! A landing page moves one from the count and one from the credits to one held, so it always fits, and a page is left over
//! that can be granted at once: the ring moves whatever else waits. Credits are granted before reservations are
//! served; they never claim more than `ring_pages`, and nothing larger than the rest is ever promised.
//!
//! A page that a sequence has filled stays cached after it until somebody needs room: the next sequence that begins with the
//! same tokens shares it. Only a page that nobody holds and that is not cached becomes a credit.
//!
//! A running sequence that grows goes before every reservation. If there is no room, the decoder is told, and gives back what
//! the youngest has.
//!
//! Sessions share the ring equally. One that holds more than its share, because another one has joined, is told so and
//! gives unspent credits back. A session that has had a credit is never left without one: it has pages to land.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::num::NonZeroU32;

use connector::frame::{Frame, GRANT_PAGES_MAX};
use connector::page_hash::PageSeed;
use connector::ring::{CreditNumber, GrantLedger, PageIndex};
use engine::PageId;

use super::prefix_cache::PrefixCache;
use crate::effect::{Effect, ToBufferManager, to};
use crate::log::LogLine;
use crate::messages::{
    BreakSession, GrowPages, PageFilled, PageRejected, PagesAdopted, PagesComputed, PagesGrown,
    PagesReserved, PagesShort, ReservePages, SendFrame, SequenceId, SessionDrained, SessionId, SessionOpened,
};
use crate::request::RequestId;

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
    landing: u32,
    pages: Vec<PageId>,
}

/// Computes the hashes of pages of our pool as they are now.
pub type Hasher<'a> = &'a dyn Fn(&[(PageId, PageSeed)]) -> Vec<u64>;

#[derive(Debug)]
struct Ring {
    ledger: GrantLedger,
    seed: u64,
    /// The share that its peer was told while it held more.
    told: Option<u32>,
}

/// The page pool's ledger.
#[derive(Debug)]
pub struct PoolState {
    pages: u32,
    ring_pages: u32,
    page_tokens: u32,
    free: BTreeSet<u32>,
    cache: PrefixCache,
    /// Pages are shared between sequences.
    shares: bool,
    /// Neighbours are not taken one after the other.
    spreads: bool,
    holdings: HashMap<SequenceId, Holding>,
    /// How many sequences hold a page; no entry, none.
    holders: HashMap<PageId, u32>,
    growing: VecDeque<GrowPages>,
    /// The first that grows has been called short, and nothing has come back since.
    told_short: bool,
    /// Releases of own requests so far: what a decoder that has sent more is told of room is out of date.
    releases: u64,
    waiting: VecDeque<ReservePages>,
    counts: PoolCounts,
    rings: BTreeMap<SessionId, Ring>,
    quarantine: BTreeMap<SessionId, Vec<PageIndex>>,
}

impl PoolState {
    /// A pool of `pages` free pages of `page_tokens` tokens, of which at most `ring_pages` are ever under credits or
    /// quarantined.
    pub fn new(pages: u32, ring_pages: u32, page_tokens: u32) -> Self {
        Self {
            pages,
            ring_pages,
            page_tokens: page_tokens.max(1),
            free: (0..pages).collect(),
            cache: PrefixCache::new(page_tokens),
            shares: true,
            spreads: false,
            holdings: HashMap::new(),
            holders: HashMap::new(),
            growing: VecDeque::new(),
            told_short: false,
            releases: 0,
            waiting: VecDeque::new(),
            counts: PoolCounts::default(),
            rings: BTreeMap::new(),
            quarantine: BTreeMap::new(),
        }
    }

    /// As it is, or with every sequence computing or receiving all its pages for itself.
    #[must_use]
    pub fn sharing(self, shares: bool) -> Self {
        Self { shares, ..self }
    }

    /// As it is, or with pages taken from all over the pool, as if it had been used for long: for measurements.
    #[must_use]
    pub fn scattered(self, spreads: bool) -> Self {
        Self { spreads, ..self }
    }

    /// Takes a message. `hasher` computes the hashes of pages that landed; without one, both sides have agreed on none.
    pub fn on(&mut self, mail: ToBufferManager, hasher: Option<Hasher<'_>>) -> Vec<Effect> {
        match mail {
            ToBufferManager::ReservePages(reserve) => self.on_reserve(reserve),
            ToBufferManager::GrowPages(grow) => self.on_grow(grow),
            ToBufferManager::PagesComputed(computed) => self.on_computed(&computed),
            ToBufferManager::ReleasePages(release) => self.on_release(release.sequence),
            ToBufferManager::SessionOpened(opened) => self.on_session_opened(opened),
            ToBufferManager::PageFilled(filled) => self.on_page_filled(filled, hasher),
            ToBufferManager::PeerLost(lost) => self.on_session_lost(lost.session),
            ToBufferManager::SessionDrained(drained) => self.on_session_drained(drained),
            ToBufferManager::Tick(_) => Vec::new(),
        }
    }

    /// What was counted so far.
    pub fn counts(&self) -> PoolCounts {
        self.counts
    }

    /// How the pool is divided now.
    pub fn usage(&self) -> PoolUse {
        PoolUse {
            pages: self.pages,
            landing: self.holdings.values().map(|holding| holding.landing).sum(),
            outstanding: self.rings.values().map(|ring| ring.ledger.outstanding()).sum(),
            held: self.holders.len() as u32,
            cached: self.cache.unused(),
            quarantined: self.quarantine.values().map(|pages| pages.len() as u32).sum(),
        }
    }

    /// Who may touch `page` now; for checks, since it looks through everything.
    pub fn page_use(&self, page: PageId) -> PageUse {
        let index = PageIndex(page.0);
        let held = self.holdings.iter().find(|(_, holding)| holding.pages.contains(&page));
        let granted = self.rings.iter().find(|(_, ring)| ring.ledger.covers(index));
        let set_aside = self.quarantine.iter().find(|(_, pages)| pages.contains(&index));
        match (held, granted, set_aside) {
            (Some((sequence, _)), ..) => PageUse::Held(*sequence),
            (None, Some((session, _)), _) => PageUse::Outstanding(*session),
            (None, None, Some((session, _))) => PageUse::Quarantined(*session),
            (None, None, None) if self.cache.contains(page) => PageUse::Cached,
            (None, None, None) => PageUse::Free,
        }
    }

    /// True if the content of `page` is known, so that nobody may change it.
    pub fn is_known(&self, page: PageId) -> bool {
        self.cache.contains(page)
    }

    /// Somebody wants pages.
    fn on_reserve(&mut self, reserve: ReservePages) -> Vec<Effect> {
        if reserve.again {
            self.waiting.push_front(reserve);
        } else {
            self.waiting.push_back(reserve);
        }
        self.settle()
    }

    /// A running sequence wants more.
    fn on_grow(&mut self, grow: GrowPages) -> Vec<Effect> {
        if self.holdings.contains_key(&grow.sequence) {
            self.growing.push_back(grow);
        }
        self.settle()
    }

    /// What stands in the sequence's pages is known from now on.
    fn on_computed(&mut self, computed: &PagesComputed) -> Vec<Effect> {
        let Some(holding) = self.holdings.get(&computed.sequence) else { return Vec::new() };
        let held: HashSet<PageId> = holding.pages.iter().copied().collect();
        if self.shares && computed.pages.iter().all(|page| held.contains(page)) {
            self.cache.insert(&computed.tokens, &computed.pages);
        }
        Vec::new()
    }

    /// Everything of this sequence goes back. A page still under way to it goes back when it lands.
    fn on_release(&mut self, sequence: SequenceId) -> Vec<Effect> {
        self.waiting.retain(|waiting| waiting.sequence != sequence);
        self.growing.retain(|growing| growing.sequence != sequence);
        self.told_short = false;
        self.releases += u64::from(matches!(sequence, SequenceId::Own(_)));
        for page in self.holdings.remove(&sequence).unwrap_or_default().pages {
            let Some(holders) = self.holders.get_mut(&page) else { continue };
            *holders -= 1;
            if *holders == 0 {
                self.holders.remove(&page);
                if !self.cache.on_unused(page) {
                    self.free.insert(page.0);
                }
            }
        }
        self.settle()
    }

    /// The sequence holds these pages too.
    fn hold(&mut self, sequence: SequenceId, pages: &[PageId]) {
        self.holdings.entry(sequence).or_default().pages.extend(pages);
        for page in pages {
            *self.holders.entry(*page).or_default() += 1;
            self.cache.on_used(*page);
        }
    }

    /// A session began: its peer may write up to `ring_pages` pages of ours, whose hashes have this seed.
    fn on_session_opened(&mut self, opened: SessionOpened) -> Vec<Effect> {
        let SessionOpened { session, ring_pages, seed } = opened;
        if let Some(capacity) = NonZeroU32::new(ring_pages) {
            self.rings.insert(session, Ring { ledger: GrantLedger::new(capacity), seed, told: None });
        }
        self.settle()
    }

    /// A session ended: puts into its outstanding pages may still land.
    fn on_session_lost(&mut self, session: SessionId) -> Vec<Effect> {
        if let Some(ring) = self.rings.remove(&session) {
            self.quarantine.insert(session, ring.ledger.close());
        }
        self.settle()
    }

    /// Proof: no byte of this lost session can land any more.
    fn on_session_drained(&mut self, drained: SessionDrained) -> Vec<Effect> {
        for page in self.quarantine.remove(&drained.session).unwrap_or_default() {
            self.free.insert(page.0);
        }
        self.settle()
    }

    /// A sender says that pages are whole and visible. They are adopted only if they are what it put: `hasher` computes
    /// what is there; without one, both sides have agreed to do without.
    fn on_page_filled(&mut self, filled: PageFilled, hasher: Option<Hasher<'_>>) -> Vec<Effect> {
        let session = filled.session;
        let Some(ring) = self.rings.get_mut(&session) else { return Vec::new() };
        let seed = ring.seed;
        let pages = match ring.ledger.fill(filled.first, filled.count) {
            Ok(pages) => pages,
            Err(error) => return vec![broken(session, error.to_string())],
        };
        let holding = filled.owner.and_then(|owner| {
            let request = RequestId(owner.request);
            Some((owner, request, self.holdings.get_mut(&SequenceId::Own(request))?))
        });
        let mut effects = Vec::new();
        match holding {
            Some((owner, request, holding)) if holding.landing >= filled.count => {
                let pages: Vec<PageId> = pages.iter().map(|page| PageId(page.0)).collect();
                let seed_of = |n: u32| PageSeed {
                    session: seed,
                    credit: filled.first.0 + u64::from(n),
                    request: request.0,
                    place: owner.first_page.wrapping_add(n),
                };
                let whole = |hasher: Hasher<'_>| {
                    let seeded: Vec<_> = (0..).zip(&pages).map(|(n, page)| (*page, seed_of(n))).collect();
                    hasher(&seeded) == filled.hashes
                };
                if !hasher.is_none_or(whole) {
                    // Whether a bit has flipped or the flush did not hold what it says: more may land there, and wherever
                    // the session has a credit. So for us it is over, its pages wait for proof, and the link hears of it.
                    let damaged = pages.iter().map(|page| PageIndex(page.0)).collect();
                    let outstanding =
                        self.rings.remove(&session).map_or(Vec::new(), |ring| ring.ledger.close());
                    self.quarantine.insert(session, [damaged, outstanding].concat());
                    let reason = format!("a page of {request} is not what was put");
                    self.counts.mismatches += 1;
                    let told = to::log(LogLine::PageDamaged { request });
                    return vec![told, to::decoder(PageRejected { request }), broken(session, reason)];
                }
                holding.landing -= filled.count;
                self.hold(SequenceId::Own(request), &pages);
                self.counts.adopted += pages.len() as u64;
                effects.push(to::decoder(PagesAdopted {
                    request,
                    first_page: owner.first_page,
                    pages,
                    transfer_micros: filled.transfer_micros,
                }));
            }
            // Nobody's: a probe, or a request that ended while its pages were under way.
            _ => self.free.extend(pages.iter().map(|page| page.0)),
        }
        effects.extend(self.settle());
        effects
    }

    fn unclaimed(&self) -> u32 {
        let landing: u32 = self.holdings.values().map(|holding| holding.landing).sum();
        (self.free.len() as u32 + self.cache.unused()).saturating_sub(landing)
    }

    fn take(&mut self, count: u32) -> Vec<u32> {
        // Lowest first: what is granted together tends to be adjacent. What is cached gives way when nothing is free.
        let lowest = |free: &mut BTreeSet<u32>| free.pop_first();
        // A hash of the page decides: linear in the pool, but nobody serves like that.
        let scattered = |free: &mut BTreeSet<u32>| {
            let page = free.iter().copied().min_by_key(|page| page.wrapping_mul(0x9e37_79b1))?;
            free.take(&page)
        };
        let spreads = self.spreads;
        let mut next = || {
            let free = if spreads { scattered(&mut self.free) } else { lowest(&mut self.free) };
            free.or_else(|| self.cache.evict().map(|page| page.0))
        };
        let taken: Vec<u32> = (0..count).filter_map(|_| next()).collect();
        debug_assert_eq!(taken.len(), count as usize, "what is unclaimed can be taken");
        taken
    }

    /// Grants credits, then lets sequences grow, then serves reservations, as far as free pages go.
    fn settle(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        let usage = self.usage();
        let budget = self.ring_pages.saturating_sub(usage.quarantined);
        let mut room = budget.saturating_sub(usage.outstanding).min(self.unclaimed());
        let sessions = self.rings.len() as u32;
        let shares = (0..).zip(&self.rings).map(|(n, (session, ring))| {
            let equal = budget / sessions + u32::from(n < budget % sessions);
            (*session, equal.max(u32::from(ring.ledger.head() > 0)))
        });
        let mut shares: Vec<(SessionId, u32)> = shares.collect();
        // Whoever has least is first; one that never had any is behind those whose pages may be landing.
        shares.sort_by_key(|(session, _)| {
            let ledger = &self.rings[session].ledger;
            (ledger.outstanding(), ledger.head() == 0)
        });
        for (session, share) in shares {
            let Some(ring) = self.rings.get_mut(&session) else { continue };
            let outstanding = ring.ledger.outstanding();
            if outstanding > share {
                if ring.told != Some(share) {
                    ring.told = Some(share);
                    effects.push(frame(session, Frame::RingShare { pages: share }));
                }
                continue;
            }
            ring.told = None;
            let wanted = (share - outstanding).min(ring.ledger.room());
            let granted = wanted.min(room).min(GRANT_PAGES_MAX as u32);
            if granted == 0 {
                continue;
            }
            room -= granted;
            let pages: Vec<PageIndex> = self.take(granted).into_iter().map(PageIndex).collect();
            let Some(ring) = self.rings.get_mut(&session) else { continue };
            let first = CreditNumber(ring.ledger.head());
            for &page in &pages {
                ring.ledger.grant(page).expect("count is at most the ring's room");
            }
            effects.push(frame(session, Frame::Grant { first, pages }));
        }
        while let Some(&GrowPages { sequence, least, most }) = self.growing.front() {
            let pages = most.min(self.unclaimed());
            if pages < least {
                if !std::mem::replace(&mut self.told_short, true) {
                    effects.push(to::decoder(PagesShort { releases: self.releases }));
                }
                self.check();
                return effects;
            }
            self.growing.pop_front();
            let pages: Vec<PageId> = self.take(pages).into_iter().map(PageId).collect();
            self.hold(sequence, &pages);
            effects.push(to::decoder(PagesGrown { sequence, pages }));
        }
        while self.waiting.front().is_some_and(|next| self.cost(next) <= self.unclaimed()) {
            let next = self.waiting.pop_front().expect("it is in front");
            effects.push(reserved(self.serve(next)));
        }
        self.check();
        effects
    }

    /// Unclaimed pages that a reservation takes: its own, those that land, and those shared ones that nobody holds yet.
    fn cost(&self, reserve: &ReservePages) -> u32 {
        let shared = self.cache.lookup(&reserve.tokens);
        let held = shared.iter().filter(|page| self.holders.contains_key(page)).count() as u32;
        reserve.pages - held
    }

    fn serve(&mut self, reserve: ReservePages) -> PagesReserved {
        let ReservePages { sequence, tokens, pages, landing, .. } = reserve;
        let mut table = self.cache.lookup(&tokens);
        let (tokens, shared) = (tokens.len() as u32, table.len() as u32);
        let resident = shared * self.page_tokens;
        // The last page travels in the time that it takes to compute it.
        let little = shared > 0 && tokens - resident <= self.page_tokens;
        let landing = if landing && !little { tokens.div_ceil(self.page_tokens) - shared } else { 0 };
        self.counts.resident += u64::from(shared);
        // First those that are shared: what is held is not evicted for the rest.
        self.hold(sequence, &table);
        let own: Vec<PageId> = self.take(pages - shared - landing).into_iter().map(PageId).collect();
        self.hold(sequence, &own);
        self.holdings.entry(sequence).or_default().landing += landing;
        table.extend(own);
        PagesReserved { sequence, resident, landing, pages: table }
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
    }
}

/// To the owner of the reservation.
fn reserved(reserved: PagesReserved) -> Effect {
    match reserved.sequence {
        SequenceId::Own(_) => to::decoder(reserved),
        SequenceId::Peer(_) => to::prefiller(reserved),
    }
}

fn frame(session: SessionId, frame: Frame) -> Effect {
    to::peer_link(SendFrame { session, frame })
}

fn broken(session: SessionId, reason: String) -> Effect {
    to::peer_link(BreakSession { session, reason })
}

#[cfg(test)]
mod tests;
