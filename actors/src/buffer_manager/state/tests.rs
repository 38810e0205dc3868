mod property;
mod quota;
mod sessions;

use std::time::Duration;

use connector::frame::{Frame, PageOwner};
use connector::ring::CreditNumber;

use super::landing::{broken, frame};
use super::rings::Ring;
use super::*;
use crate::effect::{ToDecoder, ToKvEvents, ToPeerLink, ToProxy};
use crate::log::LogLine;
use crate::messages::{
    CacheEvent, PageFilled, PageRejected, PagesGrown, PagesReserved, PagesShort, PeerLost, PeerReady,
    ReleasePages, SendFrame, SessionDrained, SessionOpened, Tick,
};
use crate::request::RequestId;
use sessions::{outstanding, unfilled};

const SESSION: SessionId = SessionId(1);

/// A pool with a ring of `ring_pages` pages; 0 means that the pool has no peers.
fn pool(pages: u32, ring_pages: u32, page_tokens: u32) -> PoolState {
    shared_pool(pages, ring_pages, page_tokens, None)
}

/// The same with a quota for prompts of peers.
fn shared_pool(pages: u32, ring_pages: u32, page_tokens: u32, prefill_pages: Option<u32>) -> PoolState {
    PoolState::new(PoolConfig { prefill_pages, ..config(pages, ring_pages, page_tokens) })
}

fn config(pages: u32, ring_pages: u32, page_tokens: u32) -> PoolConfig {
    PoolConfig {
        prefill_pages: None,
        pages,
        ring_pages,
        page_tokens,
        page_bytes: 1 << 20,
        sharing: true,
        announces: false,
        scattered: false,
    }
}

/// Delivers a message to the pool and returns the effects.
fn give(pool: &mut PoolState, mail: impl Into<ToBufferManager>) -> Vec<Effect> {
    pool.on(Instant::now(), mail.into(), None)
}

/// Opens a session and ends its measurement, so that it is idle.
fn open(pool: &mut PoolState, session: SessionId, ring_pages: u32, seed: u64) {
    give(pool, SessionOpened { session, ring_pages, seed });
    give(pool, PeerReady { session, pid: 0, name: 0, http: None });
}

fn release(pool: &mut PoolState, request: u64) -> Vec<Effect> {
    give(pool, ReleasePages { sequence: own(request) })
}

fn lose(pool: &mut PoolState, session: SessionId) -> Vec<Effect> {
    give(pool, PeerLost { session })
}

fn drain(pool: &mut PoolState, session: SessionId) -> Vec<Effect> {
    give(pool, SessionDrained { session })
}

fn own(request: u64) -> SequenceId {
    SequenceId::Own(RequestId(request))
}

/// A reservation of `here` pages of its own and `landing` pages that land. A page has one token, and no two requests have a token
/// in common.
fn reserve(request: u64, here: u32, landing: u32) -> ReservePages {
    let tokens = (0..landing.max(1)).map(|n| request as u32 * 1000 + n).collect();
    ReservePages {
        reads_cache: true,
        sequence: own(request),
        tokens,
        salt: None,
        pages: here + landing,
        landing: (landing > 0).then_some(SESSION),
        priority: ReservePriority::New,
    }
}

fn filled(first: u64, count: u32, owner: Option<u64>) -> PageFilled {
    let owner = owner.map(|request| PageOwner { request, first_page: 0 });
    PageFilled {
        session: SESSION,
        first: CreditNumber(first),
        count,
        owner,
        hashes: vec![],
        transfer_micros: 0,
    }
}

/// The pages for which `effects` grant credits.
fn granted(effects: &[Effect]) -> Vec<u32> {
    let pages = |effect: &Effect| match effect {
        Effect::PeerLink(ToPeerLink::SendFrame(SendFrame { frame: Frame::Grant { pages, .. }, .. })) => {
            pages.iter().map(|page| page.0).collect()
        }
        _ => Vec::new(),
    };
    effects.iter().flat_map(pages).collect()
}

/// The effect that tells a session's peer how many credits it may hold.
fn shared(session: u64, pages: u32) -> Effect {
    frame(SessionId(session), Frame::RingShare { pages })
}

/// True if the only effect is the end of a session.
fn breaks(effects: &[Effect]) -> bool {
    matches!(effects, [Effect::PeerLink(ToPeerLink::BreakSession(_))])
}

#[test]
fn reservations_are_served_in_order() {
    let mut pool = self::pool(4, 0, 1);
    assert_eq!(give(&mut pool, reserve(1, 3, 0)).len(), 1);
    assert_eq!(give(&mut pool, reserve(2, 2, 0)), []);
    assert_eq!(give(&mut pool, reserve(3, 1, 0)), [], "no reservation overtakes another");
    let effects = release(&mut pool, 1);
    assert_eq!(effects.len(), 2, "both reservations fit now: {effects:?}");
}

#[test]
fn each_reservation_is_answered_to_its_owner() {
    let mut pool = self::pool(4, 0, 1);
    let peer = SequenceId::Peer(1);
    let effects = give(&mut pool, ReservePages { sequence: peer, ..reserve(1, 1, 0) });
    let reserved = PagesReserved { sequence: peer, resident: 0, landing: 0, pages: pages(&[0]) };
    assert_eq!(effects, [to::prefiller(reserved.clone())]);
    let effects = give(&mut pool, reserve(1, 1, 0));
    let reserved = PagesReserved { sequence: own(1), pages: pages(&[1]), ..reserved };
    assert_eq!(effects, [to::decoder(reserved)]);
}

fn pages(numbers: &[u32]) -> Vec<PageId> {
    numbers.iter().map(|page| PageId(*page)).collect()
}

/// The resident tokens, the number of landing pages and the page table of a reservation that was served at once.
fn served(effects: &[Effect]) -> (u32, u32, Vec<PageId>) {
    let reserved = effects.iter().find_map(|effect| match effect {
        Effect::Decoder(ToDecoder::PagesReserved(reserved)) => Some(reserved),
        _ => None,
    });
    let reserved = reserved.unwrap_or_else(|| panic!("{effects:?}"));
    (reserved.resident, reserved.landing, reserved.pages.clone())
}

fn beginning_with(request: u64, tokens: &[u32], pages: u32, landing: bool) -> ReservePages {
    let landing = landing.then_some(SESSION);
    ReservePages { tokens: tokens.into(), pages, landing, ..reserve(request, 0, 0) }
}

#[test]
fn computed_pages_are_shared_while_they_are_held_and_afterwards() {
    let mut pool = self::pool(8, 0, 1);
    let (_, _, table) = served(&give(&mut pool, beginning_with(1, &[1, 2, 3], 4, false)));
    assert_eq!(table, pages(&[0, 1, 2, 3]));
    give(&mut pool, PagesComputed { sequence: own(1), tokens: [1, 2, 3].into(), salt: None, pages: table });
    let (resident, _, table) = served(&give(&mut pool, beginning_with(2, &[1, 2, 9], 3, false)));
    assert_eq!((resident, table), (2, pages(&[0, 1, 4])));
    assert_eq!(pool.usage(), PoolUse { pages: 8, held: 5, ..PoolUse::default() });
    release(&mut pool, 1);
    assert_eq!(pool.usage(), PoolUse { pages: 8, held: 3, cached: 1, ..PoolUse::default() });
    release(&mut pool, 2);
    assert_eq!(pool.usage(), PoolUse { pages: 8, cached: 3, ..PoolUse::default() });
    // Cached pages are evicted for request 3, the end of the sequence first.
    let (_, _, table) = served(&give(&mut pool, beginning_with(3, &[7], 6, false)));
    assert_eq!(table.len(), 6);
    let (resident, _, table) = served(&give(&mut pool, beginning_with(4, &[1, 2, 3], 2, false)));
    assert_eq!((resident, table[..1].to_vec()), (2, pages(&[0])));
    assert_eq!(pool.counts().resident, 4);
}

/// The changes of the cache among these effects.
fn changes(effects: &[Effect]) -> Vec<CacheEvent> {
    let changed = |effect: &Effect| match effect {
        Effect::KvEvents(ToKvEvents::CacheChanged(changed)) => Some(changed.0.clone()),
        _ => None,
    };
    effects.iter().filter_map(changed).flatten().collect()
}

#[test]
fn cached_and_evicted_pages_are_announced_if_routers_listen() {
    for announces in [true, false] {
        let mut pool = PoolState::new(PoolConfig { announces, ..config(4, 0, 1) });
        let (_, _, table) = served(&give(&mut pool, beginning_with(1, &[1, 2, 3], 3, false)));
        let computed = PagesComputed { sequence: own(1), tokens: [1, 2, 3].into(), salt: None, pages: table };
        let stored = changes(&give(&mut pool, computed));
        assert_eq!(changes(&release(&mut pool, 1)), []);
        let removed = changes(&give(&mut pool, beginning_with(2, &[9], 2, false)));
        if !announces {
            assert_eq!((stored, removed), (vec![], vec![]));
            continue;
        }
        let [CacheEvent::Stored { parent: None, hashes, tokens }] = &stored[..] else {
            panic!("{stored:?}");
        };
        assert_eq!((hashes.len(), &tokens[..]), (3, &[1, 2, 3][..]));
        assert_eq!(removed, [CacheEvent::Removed { hashes: vec![hashes[2]] }]);
    }
}

#[test]
fn only_pages_that_are_not_resident_land_and_a_single_one_is_computed_here() {
    let mut pool = self::pool(40, 8, 2);
    open(&mut pool, SESSION, 8, 0);
    give(&mut pool, filled(0, 8, None));
    let (_, _, table) = served(&give(&mut pool, beginning_with(1, &[1, 2, 3, 4], 2, false)));
    give(
        &mut pool,
        PagesComputed { sequence: own(1), tokens: [1, 2, 3, 4].into(), salt: None, pages: table },
    );
    let longer = give(&mut pool, beginning_with(2, &[1, 2, 3, 4, 5, 6, 7], 5, true));
    assert_eq!(served(&longer), (4, 2, pages(&[0, 1, 2])), "one page of its own for its answer");
    let little = give(&mut pool, beginning_with(3, &[1, 2, 3, 4, 5], 3, true));
    assert_eq!(served(&little), (4, 0, pages(&[0, 1, 5])));
    let short = give(&mut pool, beginning_with(4, &[8], 1, true));
    assert_eq!(
        served(&short),
        (0, 1, vec![]),
        "a prompt without resident pages is sent, even if it is short"
    );
}

#[test]
fn a_growing_sequence_comes_first_and_pages_short_is_sent_once() {
    let mut pool = self::pool(4, 0, 1);
    give(&mut pool, reserve(1, 2, 0));
    give(&mut pool, reserve(2, 1, 0));
    assert_eq!(give(&mut pool, reserve(3, 2, 0)), []);
    let short = to::decoder(PagesShort { releases: 0 });
    assert_eq!(give(&mut pool, GrowPages { sequence: own(1), least: 2, most: 2 }), [short]);
    assert_eq!(give(&mut pool, reserve(4, 1, 0)), [], "the free page is for the sequence that grows");
    let grown = to::decoder(PagesGrown { sequence: own(1), pages: pages(&[2, 3]) });
    assert_eq!(release(&mut pool, 2), [grown]);
    assert_eq!(
        give(&mut pool, GrowPages { sequence: own(2), least: 1, most: 1 }),
        [],
        "request 2 holds no pages any more"
    );
    // A preempted request comes before requests that have not started.
    assert_eq!(give(&mut pool, ReservePages { priority: ReservePriority::Resumed, ..reserve(5, 3, 0) }), []);
    let order: Vec<SequenceId> = (release(&mut pool, 1).iter())
        .filter_map(|effect| match effect {
            Effect::Decoder(ToDecoder::PagesReserved(reserved)) => Some(reserved.sequence),
            _ => None,
        })
        .collect();
    assert_eq!(order, [own(5)], "too few pages are left for the next request");
}

#[test]
fn a_page_whose_hash_does_not_match_is_not_adopted() {
    let one = |page: PageId, seed: PageSeed| {
        seed.session
            + seed.credit * 10
            + seed.request * 100
            + u64::from(seed.place) * 1000
            + u64::from(page.0) * 10_000
    };
    let hash = |pages: &[(PageId, PageSeed)]| pages.iter().map(|(page, seed)| one(*page, *seed)).collect();
    // Two pages of request 7 under credits 0 and 1, into pages 0 and 1, at places 0 and 1.
    let right = vec![5 + 700, 5 + 10 + 700 + 1000 + 10_000];
    for (hashes, adopted) in [
        (right.clone(), true),
        (vec![right[0], right[1] ^ 1], false),
        (vec![right[1], right[0]], false),
        (vec![right[0]], false),
        (vec![], false),
    ] {
        let mut pool = self::pool(16, 2, 1);
        open(&mut pool, SESSION, 2, 5);
        give(&mut pool, reserve(7, 0, 4));
        let hashed =
            |pool: &mut PoolState, filled: PageFilled| pool.on(Instant::now(), filled.into(), Some(&hash));
        let effects = hashed(&mut pool, PageFilled { hashes, ..filled(0, 2, Some(7)) });
        let adopts = matches!(&effects[0], Effect::Decoder(ToDecoder::PagesAdopted(_)));
        assert_eq!(adopts, adopted, "{effects:?}");
        let request = RequestId(7);
        let (logged, rejected) =
            (to::log(LogLine::PageDamaged { request }), to::decoder(PageRejected { request }));
        let broken = broken(SESSION, "the hash of a page of r7 does not match".into());
        assert_eq!(effects.starts_with(&[logged, rejected, broken]), !adopted, "{effects:?}");
        let counts = if adopted { (2, 0) } else { (0, 1) };
        assert_eq!((pool.counts().adopted, pool.counts().mismatches), counts);
        assert_eq!(granted(&effects).len(), if adopted { 2 } else { 0 });
        // More bytes may land in a damaged page and in all other pages under the session's credits. None of these pages is used
        // again before there is proof.
        if !adopted {
            assert_eq!(hashed(&mut pool, filled(2, 1, Some(7))), []);
            assert_eq!(pool.usage().quarantined, 2);
        }
        lose(&mut pool, SESSION);
        assert_eq!(pool.usage().quarantined, 2);
        release(&mut pool, 7);
        drain(&mut pool, SESSION);
        assert_eq!(pool.usage(), PoolUse { pages: 16, ..PoolUse::default() });
    }
}

#[test]
fn requests_that_no_longer_fit_are_denied_when_a_quarantine_lasts() {
    let (mut pool, mut now) = (self::pool(16, 4, 1), Instant::now());
    open(&mut pool, SESSION, 4, 0);
    give(&mut pool, unfilled(1, 0, 4));
    // Half of the pool becomes quarantined, in two sessions.
    for session in 2..4 {
        open(&mut pool, SessionId(session), 4, 0);
        assert_eq!(outstanding(&pool, session), 4);
        let effects = lose(&mut pool, SessionId(session));
        let quarantined = 4 * (session as u32 - 1);
        let told = |usable| {
            let changed = RoomChanged { pages: 16, usable, quarantined };
            [to::proxy(changed), to::peer_link(changed)]
        };
        assert_eq!(effects[..2], told(16 - quarantined), "most quarantines end soon");
        assert_eq!(effects.len(), 2, "nothing is denied");
        assert_eq!(pool.on(now, Tick.into(), None), []);
        now += Duration::from_secs(3);
        let effects = pool.on(now, Tick.into(), None);
        assert_eq!(effects[..2], told(12 - quarantined));
        if session == 2 {
            // Request 7 runs, and request 8, the largest that still fits, waits for its pages.
            give(&mut pool, reserve(7, 6, 0));
            let tokens = (0..8).collect();
            let largest = ReservePages { tokens, ..reserve(8, 8, 0) };
            assert_eq!(give(&mut pool, largest), []);
        } else {
            let denied = PagesDenied { sequence: own(8), needed: 8, usable: 4 };
            assert!(effects.contains(&to::decoder(denied)), "{effects:?}");
        }
    }
    // Request 7 runs alone and cannot grow either: its growth is denied, and it preempts nothing.
    let denied = PagesDenied { sequence: own(7), needed: 7, usable: 4 };
    let grow = GrowPages { sequence: own(7), least: 1, most: 1 };
    assert_eq!(give(&mut pool, grow), [to::decoder(denied)]);
    assert!(matches!(
        &give(&mut pool, ReservePages { tokens: (0..5).collect(), ..reserve(9, 5, 0) })[..],
        [Effect::Decoder(ToDecoder::PagesDenied(_))]
    ));
    let back = drain(&mut pool, SessionId(2));
    assert!(matches!(&back[0], Effect::Proxy(ToProxy::RoomChanged(room)) if room.usable == 8), "{back:?}");
}
