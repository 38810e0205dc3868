//! Who holds which page of the pool: the decisions of the buffer manager, without actix, clock or I/O.
//!
//! A page is free, held by a sequence, under an outstanding credit of a session, or quarantined. A sequence may also
//! hold a *count* of pages that will land from a sender. The invariant, checked after every change:
//!
//! ```text
//! landing counts + outstanding credits + held + quarantined ≤ pages
//! ```
//!
//! A landing page moves one from the count and one from the credits to one held, so it always fits, and a page is left over
//! that can be granted at once: the ring moves whatever else waits. Credits are granted before reservations are
//! served; they never claim more than `ring_pages`, and nothing larger than the rest is ever promised.
//!
//! Sessions share the ring equally. One that holds more than its share, because another one has joined, is told so and
//! gives unspent credits back. A session that has had a credit is never left without one: it has pages to land.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::num::NonZeroU32;

use connector::frame::GRANT_PAGES_MAX;
use connector::page_hash::PageSeed;
use connector::ring::{CreditNumber, GrantLedger, PageIndex};
use engine::PageId;

use crate::messages::{PageFilled, PagesAdopted, PagesReserved, ReservePages, SequenceId, SessionId};
use crate::request::RequestId;

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Tell the owner that its reservation stands.
    Reserved(PagesReserved),
    /// Tell the decoder that pages landed for it.
    Adopted(PagesAdopted),
    /// Send these credits to the session's peer.
    Grant {
        /// To whom.
        session: SessionId,
        /// Number of the first credit.
        first: CreditNumber,
        /// One page a credit.
        pages: Vec<PageIndex>,
    },
    /// Tell the session's peer how many credits it should hold at most: it has more, and others have none.
    Share {
        /// To whom.
        session: SessionId,
        /// Its share of the ring.
        pages: u32,
    },
    /// Tell the decoder that a page of the request is not what its sender put.
    Rejected(RequestId),
    /// The peer broke a rule: end its session, for this reason.
    Break {
        /// Which.
        session: SessionId,
        /// One sentence.
        reason: String,
    },
}

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
    /// Under credits of lost sessions, or not what was put there, until there is proof.
    pub quarantined: u32,
}

/// Who may touch a page now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageUse {
    /// Nobody.
    Free,
    /// A sequence holds it.
    Held(SequenceId),
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

/// Computes the hash of a page of our pool as it is now.
pub type Hasher<'a> = &'a dyn Fn(PageId, PageSeed) -> u64;

#[derive(Debug)]
struct Ring {
    ledger: GrantLedger,
    seed: u64,
    /// The share that its peer was told while it held more.
    told: Option<u32>,
    /// Pages that were called filled and are not what was put: who knows when the rest of it lands.
    damaged: Vec<PageIndex>,
}

/// The page pool's ledger. Every `on_…` returns what has to be done, in order.
#[derive(Debug)]
pub struct PoolState {
    pages: u32,
    ring_pages: u32,
    free: BTreeSet<u32>,
    holdings: HashMap<SequenceId, Holding>,
    waiting: VecDeque<ReservePages>,
    rings: BTreeMap<SessionId, Ring>,
    quarantine: BTreeMap<SessionId, Vec<PageIndex>>,
}

impl PoolState {
    /// A pool of `pages` free pages, of which at most `ring_pages` are ever under credits or quarantined.
    pub fn new(pages: u32, ring_pages: u32) -> Self {
        Self {
            pages,
            ring_pages,
            free: (0..pages).collect(),
            holdings: HashMap::new(),
            waiting: VecDeque::new(),
            rings: BTreeMap::new(),
            quarantine: BTreeMap::new(),
        }
    }

    /// How the pool is divided now.
    pub fn usage(&self) -> PoolUse {
        PoolUse {
            pages: self.pages,
            landing: self.holdings.values().map(|holding| holding.landing).sum(),
            outstanding: self.rings.values().map(|ring| ring.ledger.outstanding()).sum(),
            held: self.holdings.values().map(|holding| holding.pages.len() as u32).sum(),
            quarantined: (self.quarantine.values())
                .chain(self.rings.values().map(|ring| &ring.damaged))
                .map(|pages| pages.len() as u32)
                .sum(),
        }
    }

    /// Who may touch `page` now; for checks, since it looks through everything.
    pub fn page_use(&self, page: PageId) -> PageUse {
        let index = PageIndex(page.0);
        let held = self.holdings.iter().find(|(_, holding)| holding.pages.contains(&page));
        let granted = self.rings.iter().find(|(_, ring)| ring.ledger.covers(index));
        let set_aside = (self.quarantine.iter())
            .chain(self.rings.iter().map(|(session, ring)| (session, &ring.damaged)))
            .find(|(_, pages)| pages.contains(&index));
        match (held, granted, set_aside) {
            (Some((sequence, _)), ..) => PageUse::Held(*sequence),
            (None, Some((session, _)), _) => PageUse::Outstanding(*session),
            (None, None, Some((session, _))) => PageUse::Quarantined(*session),
            (None, None, None) => PageUse::Free,
        }
    }

    /// Somebody wants pages.
    pub fn on_reserve(&mut self, reserve: ReservePages) -> Vec<Action> {
        self.waiting.push_back(reserve);
        self.settle()
    }

    /// Everything of this sequence goes back. A page still under way to it goes back when it lands.
    pub fn on_release(&mut self, sequence: SequenceId) -> Vec<Action> {
        self.waiting.retain(|waiting| waiting.sequence != sequence);
        if let Some(holding) = self.holdings.remove(&sequence) {
            self.free.extend(holding.pages.iter().map(|page| page.0));
        }
        self.settle()
    }

    /// A session began: its peer may write up to `ring_pages` pages of ours, whose hashes have this seed.
    pub fn on_session_opened(&mut self, session: SessionId, ring_pages: u32, seed: u64) -> Vec<Action> {
        if let Some(capacity) = NonZeroU32::new(ring_pages) {
            self.rings.insert(
                session,
                Ring { ledger: GrantLedger::new(capacity), seed, told: None, damaged: Vec::new() },
            );
        }
        self.settle()
    }

    /// A session ended: puts into its outstanding pages may still land.
    pub fn on_session_lost(&mut self, session: SessionId) -> Vec<Action> {
        if let Some(ring) = self.rings.remove(&session) {
            let pages = [ring.ledger.close(), ring.damaged].concat();
            self.quarantine.insert(session, pages);
        }
        self.settle()
    }

    /// Proof: no byte of this lost session can land any more.
    pub fn on_session_drained(&mut self, session: SessionId) -> Vec<Action> {
        for page in self.quarantine.remove(&session).unwrap_or_default() {
            self.free.insert(page.0);
        }
        self.settle()
    }

    /// A sender says that pages are whole and visible. They are adopted only if they are what it put: `hasher` computes
    /// what is there; without one, both sides have agreed to do without.
    pub fn on_page_filled(&mut self, filled: PageFilled, hasher: Option<Hasher<'_>>) -> Vec<Action> {
        let session = filled.session;
        let Some(ring) = self.rings.get_mut(&session) else { return Vec::new() };
        let seed = ring.seed;
        let pages = match ring.ledger.fill(filled.first, filled.count) {
            Ok(pages) => pages,
            Err(error) => return vec![Action::Break { session, reason: error.to_string() }],
        };
        let holding = filled.owner.and_then(|owner| {
            let request = RequestId(owner.request);
            Some((owner, request, self.holdings.get_mut(&SequenceId::Own(request))?))
        });
        let mut actions = Vec::new();
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
                    filled.hashes.len() == pages.len()
                        && (0..)
                            .zip(&pages)
                            .zip(&filled.hashes)
                            .all(|((n, page), hash)| hasher(*page, seed_of(n)) == *hash)
                };
                if !hasher.is_none_or(whole) {
                    // Whether a bit has flipped or the flush did not hold what it says: more may land there, so the
                    // pages wait for proof, and nothing else of this session is trusted.
                    ring.damaged.extend(pages.iter().map(|page| PageIndex(page.0)));
                    let reason = format!("a page of {request} is not what was put");
                    return vec![Action::Rejected(request), Action::Break { session, reason }];
                }
                holding.landing -= filled.count;
                holding.pages.extend(&pages);
                actions.push(Action::Adopted(PagesAdopted {
                    request,
                    first_page: owner.first_page,
                    pages,
                    transfer_micros: filled.transfer_micros,
                }));
            }
            // Nobody's: a probe, or a request that ended while its pages were under way.
            _ => self.free.extend(pages.iter().map(|page| page.0)),
        }
        actions.extend(self.settle());
        actions
    }

    fn unclaimed(&self) -> u32 {
        let landing: u32 = self.holdings.values().map(|holding| holding.landing).sum();
        (self.free.len() as u32).saturating_sub(landing)
    }

    fn take(&mut self, count: u32) -> Vec<u32> {
        // Lowest first: what is granted together tends to be adjacent.
        (0..count).filter_map(|_| self.free.pop_first()).collect()
    }

    /// Grants credits, then serves reservations, as far as free pages go.
    fn settle(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
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
                    actions.push(Action::Share { session, pages: share });
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
            actions.push(Action::Grant { session, first, pages });
        }
        while let Some(next) = self.waiting.front() {
            if next.here + next.landing > self.unclaimed() {
                break;
            }
            let ReservePages { sequence, here, landing } = self.waiting.pop_front().expect("it is in front");
            let pages: Vec<PageId> = self.take(here).into_iter().map(PageId).collect();
            let holding = self.holdings.entry(sequence).or_default();
            holding.landing += landing;
            holding.pages.extend(&pages);
            actions.push(Action::Reserved(PagesReserved { sequence, pages }));
        }
        self.check();
        actions
    }

    fn check(&self) {
        let used = self.usage();
        debug_assert!(
            used.landing + used.outstanding + used.held + used.quarantined <= used.pages
                && self.free.len() as u32 + used.outstanding + used.held + used.quarantined == used.pages,
            "page invariant broken: {used:?} and {} free",
            self.free.len()
        );
    }
}

#[cfg(test)]
mod tests;
