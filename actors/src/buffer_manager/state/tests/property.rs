//! Property test of the pool with random messages: no page is lost or promised twice.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::effect::ToPrefiller;
use crate::messages::ComputeHere;
use crate::request::CacheSalt;

#[derive(Clone, Debug)]
enum Op {
    Reserve(u64, u32, u32),
    Grow(u64, u32),
    Computed(u64),
    Here(u64),
    Release(u64),
    Open,
    Measured(u64),
    Fill(u64, u32, Option<u64>),
    Lose(u64),
    Drain(u64),
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..REQUESTS, 0..6u32, 0..6u32).prop_map(|(request, here, landing)| Op::Reserve(request, here, landing)),
        2 => (0..4u64, 1..4u32).prop_map(|(request, pages)| Op::Grow(request, pages)),
        3 => (0..REQUESTS).prop_map(Op::Computed),
        2 => (0..OWN).prop_map(Op::Here),
        3 => (0..REQUESTS).prop_map(Op::Release),
        1 => Just(Op::Open),
        1 => (0..3u64).prop_map(Op::Measured),
        6 => (0..3u64, 1..3u32, proptest::option::of(0..4u64))
            .prop_map(|(back, count, owner)| Op::Fill(back, count, owner)),
        1 => (0..3u64).prop_map(Op::Lose),
        1 => (0..3u64).prop_map(Op::Drain),
    ]
}

/// Requests below this number are own requests. The others are prompts of peers.
const OWN: u64 = 4;
const REQUESTS: u64 = 7;

fn name(request: u64) -> SequenceId {
    if request < OWN { own(request) } else { SequenceId::Peer(request) }
}

/// Half of the requests have a salt.
fn salt(sequence: SequenceId) -> Option<CacheSalt> {
    let (SequenceId::Own(RequestId(number)) | SequenceId::Peer(number)) = sequence;
    (number % 2 == 1).then(|| CacheSalt::of("salt"))
}

/// A pool that takes random messages, and what its decoder would know of it.
struct Model {
    pool: PoolState,
    /// Most pages of one own request.
    usable: u32,
    quota: Option<u32>,
    ring: u32,
    /// The next credit number of each session.
    tails: Vec<u64>,
    /// Page tables of requests without landing pages. All requests begin with the same tokens.
    tables: HashMap<SequenceId, Vec<PageId>>,
    /// The salt of the request that computed each page.
    computed: HashMap<PageId, Option<CacheSalt>>,
}

impl Model {
    /// The session that is `back` sessions older than the newest.
    fn session(&self, back: u64) -> Option<SessionId> {
        (self.tails.len() as u64).checked_sub(back + 1).map(SessionId)
    }

    /// Applies an operation. Returns false if a request got a page of another salt.
    fn apply(&mut self, op: Op) -> bool {
        let effects = match op {
            Op::Reserve(request, here, landing) => self.reserve(request, here, landing),
            Op::Grow(request, pages) => {
                let sequence = own(request);
                let grows = self.pool.growing.iter().any(|growing| growing.sequence == sequence);
                let grow = (!grows).then_some(GrowPages { sequence, least: 1, most: pages });
                grow.map(|grow| give(&mut self.pool, grow)).unwrap_or_default()
            }
            Op::Computed(request) => {
                if let Some(table) = self.tables.get(&name(request)) {
                    let tokens = (0..table.len() as u32).collect();
                    let (sequence, pages) = (name(request), table.clone());
                    self.computed.extend(pages.iter().map(|page| (*page, salt(sequence))));
                    let computed = PagesComputed { sequence, tokens, salt: salt(sequence), pages };
                    give(&mut self.pool, computed);
                }
                Vec::new()
            }
            Op::Here(request) => {
                let landing = self.pool.holdings.get(&own(request)).map(|holding| holding.landing);
                let effects = give(&mut self.pool, ComputeHere { sequence: own(request) });
                let got = effects.iter().find_map(|effect| match effect {
                    Effect::Decoder(ToDecoder::PagesGrown(grown)) if grown.sequence == own(request) => {
                        Some(grown.pages.len() as u32)
                    }
                    _ => None,
                });
                assert_eq!(got, landing, "each page that does not land is replaced at once");
                // Its table is not known here.
                effects.into_iter().filter(|effect| !matches!(effect, Effect::Decoder(_))).collect()
            }
            Op::Release(request) => {
                let sequence = name(request);
                self.tables.remove(&sequence);
                give(&mut self.pool, ReleasePages { sequence })
            }
            Op::Open => {
                let session = SessionId(self.tails.len() as u64);
                self.tails.push(0);
                give(&mut self.pool, SessionOpened { session, ring_pages: self.ring, seed: 0 })
            }
            Op::Fill(back, count, owner) => self.fill(back, count, owner),
            Op::Measured(back) => self
                .with(back, |pool, session| give(pool, PeerReady { session, pid: 0, name: 0, http: None })),
            Op::Lose(back) => self.with(back, lose),
            // Only a lost session can be proved drained; for others this does nothing.
            Op::Drain(back) => self.with(back, drain),
        };
        let mut isolated = true;
        for effect in effects {
            match effect {
                Effect::Decoder(ToDecoder::PagesReserved(reserved))
                | Effect::Prefiller(ToPrefiller::PagesReserved(reserved)) => {
                    // A page has one token.
                    let mut shared = reserved.pages[..reserved.resident as usize].iter();
                    isolated &= shared.all(|page| self.computed[page] == salt(reserved.sequence));
                    if reserved.landing == 0 {
                        self.tables.insert(reserved.sequence, reserved.pages);
                    }
                }
                Effect::Decoder(ToDecoder::PagesGrown(grown)) => {
                    self.tables.entry(grown.sequence).and_modify(|table| table.extend(grown.pages));
                }
                _ => {}
            }
        }
        isolated
    }

    fn with(&mut self, back: u64, act: impl Fn(&mut PoolState, SessionId) -> Vec<Effect>) -> Vec<Effect> {
        self.session(back).map(|session| act(&mut self.pool, session)).unwrap_or_default()
    }

    fn reserve(&mut self, request: u64, here: u32, landing: u32) -> Vec<Effect> {
        let sequence = name(request);
        let (here, landing) = if request < OWN { (here, landing) } else { (here + landing, 0) };
        let most = if request < OWN { self.usable } else { self.pool.config.pages };
        let waits = self.pool.waiting.iter().any(|waiting| waiting.sequence == sequence);
        if waits || self.pool.holdings.contains_key(&sequence) || here + landing > most {
            return Vec::new();
        }
        let tokens = (0..(here / 2 + landing).max(1)).collect();
        let pages = (here + landing).max(1);
        let landing = self.session(0).filter(|_| landing > 0);
        let priority = if here == 1 { ReservePriority::Resumed } else { ReservePriority::New };
        let salt = salt(sequence);
        give(
            &mut self.pool,
            ReservePages { sequence, tokens, salt, reads_cache: true, pages, landing, priority },
        )
    }

    fn fill(&mut self, back: u64, count: u32, owner: Option<u64>) -> Vec<Effect> {
        let Some(session) = self.session(back) else { return Vec::new() };
        let is_live = self.pool.rings.get(session).is_some();
        let tail = &mut self.tails[session.0 as usize];
        let effects = give(&mut self.pool, PageFilled { session, ..filled(*tail, count, owner) });
        if !breaks(&effects) && is_live {
            *tail += u64::from(count);
        }
        effects
    }

    /// A page that two tables share is cached and at the same place in both.
    fn shares_only_known_pages(&self) -> bool {
        self.tables.iter().all(|(sequence, table)| {
            let others = self.tables.iter().filter(|(other, _)| *other != sequence);
            others.into_iter().all(|(_, theirs)| {
                let mut shared = table.iter().enumerate().filter(|(_, page)| theirs.contains(page));
                shared.all(|(place, page)| self.pool.is_known(*page) && theirs.get(place) == Some(page))
            })
        })
    }

    /// All requests and sessions end.
    fn end(&mut self) {
        let all = || (0..REQUESTS).map(|request| ReleasePages { sequence: name(request) });
        all().for_each(|release| drop(give(&mut self.pool, release)));
        for session in (0..self.tails.len() as u64).map(SessionId) {
            lose(&mut self.pool, session);
            drain(&mut self.pool, session);
        }
        // Reservations that waited may have been served since.
        all().for_each(|release| drop(give(&mut self.pool, release)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// The state itself asserts its invariant after each message. This test checks that no page is promised twice, none is lost,
    /// and none is shared between salts.
    #[test]
    fn no_page_is_lost_or_promised_twice(
        pages in 1..20u32, ring in 0..12u32, quota in proptest::option::of(0..8u32), ops in vec(any_op(), 0..120)
    ) {
        let ring = ring.min(pages / 2);
        let quota = quota.map(|quota| quota.min(pages - ring));
        let usable = pages - ring - quota.unwrap_or_default();
        let (tails, tables, computed) = (Vec::new(), HashMap::new(), HashMap::new());
        let pool = shared_pool(pages, ring, 1, quota);
        let mut model = Model { pool, usable, quota, ring, tails, tables, computed };
        for op in ops {
            prop_assert!(model.apply(op), "a request got a page of another salt");
            prop_assert!(model.shares_only_known_pages(), "{:?}", model.tables);
            prop_assert!(model.pool.rings.holds(), "a session with pages to land has no credit");
            let waits = |waiting: &ReservePages| matches!(waiting.sequence, SequenceId::Peer(_));
            prop_assert!(model.quota.is_none() || !model.pool.waiting.iter().any(waits), "a peer's prompt waits");
        }
        model.end();
        let cached = model.pool.usage().cached;
        prop_assert_eq!(model.pool.usage(), PoolUse { pages, cached, ..PoolUse::default() });
        prop_assert_eq!(model.pool.free.len() as u32 + cached, pages);
    }
}
