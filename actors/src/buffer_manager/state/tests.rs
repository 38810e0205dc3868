use std::time::Duration;

use connector::frame::PageOwner;
use connector::ring::CreditNumber;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::effect::{ToDecoder, ToPeerLink, ToProxy};
use crate::messages::{PeerLost, PeerReady, ReleasePages};

const SESSION: SessionId = SessionId(1);

/// A pool without peers, or with a ring, and a clock that stands still.
fn pool(pages: u32, ring_pages: u32, page_tokens: u32) -> PoolState {
    let (page_bytes, sharing, scattered) = (1 << 20, true, false);
    PoolState::new(PoolConfig { pages, ring_pages, page_tokens, page_bytes, sharing, scattered })
}

/// What the pool does with a message.
fn give(pool: &mut PoolState, mail: impl Into<ToBufferManager>) -> Vec<Effect> {
    pool.on(Instant::now(), mail.into(), None)
}

/// A session that was measured and is idle.
fn open(pool: &mut PoolState, session: SessionId, ring_pages: u32, seed: u64) {
    give(pool, SessionOpened { session, ring_pages, seed });
    give(pool, PeerReady { session, pid: 0 });
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

/// Pages have one token; no two requests have a token in common.
fn reserve(request: u64, here: u32, landing: u32) -> ReservePages {
    let tokens = (0..landing.max(1)).map(|n| request as u32 * 1000 + n).collect();
    ReservePages {
        sequence: own(request),
        tokens,
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

/// The pages that credits are granted for.
fn granted(effects: &[Effect]) -> Vec<u32> {
    let pages = |effect: &Effect| match effect {
        Effect::PeerLink(ToPeerLink::SendFrame(SendFrame { frame: Frame::Grant { pages, .. }, .. })) => {
            pages.iter().map(|page| page.0).collect()
        }
        _ => Vec::new(),
    };
    effects.iter().flat_map(pages).collect()
}

/// A session's peer hears how many credits it may hold.
fn shared(session: u64, pages: u32) -> Effect {
    frame(SessionId(session), Frame::RingShare { pages })
}

/// The only effect is the end of a session.
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
    assert_eq!(effects.len(), 2, "both fit now: {effects:?}");
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

/// What a reservation that was served at once gave: resident tokens, pages that land, the table.
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
fn what_was_computed_is_shared_while_it_is_held_and_after() {
    let mut pool = self::pool(8, 0, 1);
    let (_, _, table) = served(&give(&mut pool, beginning_with(1, &[1, 2, 3], 4, false)));
    assert_eq!(table, pages(&[0, 1, 2, 3]));
    give(&mut pool, PagesComputed { sequence: own(1), tokens: [1, 2, 3].into(), pages: table });
    let (resident, _, table) = served(&give(&mut pool, beginning_with(2, &[1, 2, 9], 3, false)));
    assert_eq!((resident, table), (2, pages(&[0, 1, 4])));
    assert_eq!(pool.usage(), PoolUse { pages: 8, held: 5, ..PoolUse::default() });
    release(&mut pool, 1);
    assert_eq!(pool.usage(), PoolUse { pages: 8, held: 3, cached: 1, ..PoolUse::default() });
    release(&mut pool, 2);
    assert_eq!(pool.usage(), PoolUse { pages: 8, cached: 3, ..PoolUse::default() });
    // What others need goes, the end of the sequence first.
    let (_, _, table) = served(&give(&mut pool, beginning_with(3, &[7], 6, false)));
    assert_eq!(table.len(), 6);
    let (resident, _, table) = served(&give(&mut pool, beginning_with(4, &[1, 2, 3], 2, false)));
    assert_eq!((resident, table[..1].to_vec()), (2, pages(&[0])));
    assert_eq!(pool.counts().resident, 4);
}

#[test]
fn only_what_is_not_resident_lands_and_little_of_it_is_computed_here() {
    let mut pool = self::pool(40, 8, 2);
    open(&mut pool, SESSION, 8, 0);
    give(&mut pool, filled(0, 8, None));
    let (_, _, table) = served(&give(&mut pool, beginning_with(1, &[1, 2, 3, 4], 2, false)));
    give(&mut pool, PagesComputed { sequence: own(1), tokens: [1, 2, 3, 4].into(), pages: table });
    let longer = give(&mut pool, beginning_with(2, &[1, 2, 3, 4, 5, 6, 7], 5, true));
    assert_eq!(served(&longer), (4, 2, pages(&[0, 1, 2])), "one page of its own for what it will get");
    let little = give(&mut pool, beginning_with(3, &[1, 2, 3, 4, 5], 3, true));
    assert_eq!(served(&little), (4, 0, pages(&[0, 1, 5])));
    let short = give(&mut pool, beginning_with(4, &[8], 1, true));
    assert_eq!(served(&short), (0, 1, vec![]), "what has nothing here travels, however short");
}

#[test]
fn a_growing_sequence_goes_first_and_is_called_short_once() {
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
        "it holds nothing any more"
    );
    // One that has had pages goes before those that have not.
    assert_eq!(give(&mut pool, ReservePages { priority: ReservePriority::Resumed, ..reserve(5, 3, 0) }), []);
    let order: Vec<SequenceId> = (release(&mut pool, 1).iter())
        .filter_map(|effect| match effect {
            Effect::Decoder(ToDecoder::PagesReserved(reserved)) => Some(reserved.sequence),
            _ => None,
        })
        .collect();
    assert_eq!(order, [own(5)], "and it leaves too little for the next");
}

#[test]
fn a_page_that_is_not_what_was_put_is_not_adopted() {
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
        let (told, rejected) =
            (to::log(LogLine::PageDamaged { request }), to::decoder(PageRejected { request }));
        let broken = broken(SESSION, "a page of r7 is not what was put".into());
        assert_eq!(effects.starts_with(&[told, rejected, broken]), !adopted, "{effects:?}");
        let counts = if adopted { (2, 0) } else { (0, 1) };
        assert_eq!((pool.counts().adopted, pool.counts().mismatches), counts);
        assert_eq!(granted(&effects).len(), if adopted { 2 } else { 0 });
        // More may land in a damaged page, and wherever the session has a credit: nothing of it is used again before there
        // is proof, whatever else comes.
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

fn outstanding(pool: &PoolState, session: u64) -> u32 {
    pool.rings.get(SessionId(session)).map_or(0, Ring::outstanding)
}

/// A reservation whose `landing` pages land from a session.
fn landing(session: u64, request: u64, landing: u32) -> ReservePages {
    ReservePages { landing: Some(SessionId(session)), ..reserve(request, 0, landing) }
}

#[test]
fn a_session_is_measured_and_then_holds_credits_for_pages_that_land() {
    let mut pool = self::pool(20, 4, 1);
    let effects = give(&mut pool, SessionOpened { session: SESSION, ring_pages: 4, seed: 0 });
    assert_eq!(granted(&effects), [0, 1, 2, 3], "the measurement takes what the ring has");
    // Its pages belong to no request and come back as credits.
    assert_eq!(granted(&give(&mut pool, filled(0, 2, None))).len(), 2);
    give(&mut pool, PeerReady { session: SESSION, pid: 0 });
    assert_eq!(granted(&give(&mut pool, filled(2, 4, None))), [] as [u32; 0], "an idle session wants none");
    let effects = give(&mut pool, reserve(7, 0, 3));
    assert_eq!((granted(&effects).len(), served(&effects).1), (3, 3));
    for n in 6..9 {
        let effects = give(&mut pool, filled(n, 1, Some(7)));
        assert!(
            matches!(&effects[0], Effect::Decoder(ToDecoder::PagesAdopted(adopted)) if adopted.request == RequestId(7)),
            "{effects:?}"
        );
    }
    assert_eq!(pool.usage(), PoolUse { pages: 20, held: 3, ..PoolUse::default() });
}

#[test]
fn a_landing_request_streams_through_a_ring_of_one_page() {
    let mut pool = self::pool(6, 1, 1);
    open(&mut pool, SESSION, 1, 0);
    give(&mut pool, filled(0, 1, None));
    assert_eq!(granted(&give(&mut pool, reserve(7, 0, 3))).len(), 1);
    for n in 1..3 {
        let effects = give(&mut pool, filled(n, 1, Some(7)));
        assert_eq!(granted(&effects).len(), 1, "the next credit follows at once: {effects:?}");
    }
    give(&mut pool, filled(3, 1, Some(7)));
    assert_eq!(pool.usage(), PoolUse { pages: 6, held: 3, ..PoolUse::default() });
}

#[test]
fn a_page_that_no_request_waits_for_goes_straight_back() {
    let mut pool = self::pool(6, 2, 1);
    open(&mut pool, SESSION, 2, 0);
    give(&mut pool, reserve(7, 0, 2));
    release(&mut pool, 7);
    give(&mut pool, filled(0, 1, Some(7)));
    give(&mut pool, filled(1, 1, None));
    assert_eq!(pool.usage(), PoolUse { pages: 6, ..PoolUse::default() });
}

#[test]
fn a_page_is_adopted_only_from_the_session_that_its_request_lands_from() {
    let mut pool = self::pool(20, 4, 1);
    open(&mut pool, SessionId(1), 4, 0);
    open(&mut pool, SessionId(2), 4, 0);
    give(&mut pool, unfilled(1, 0, 4));
    give(&mut pool, unfilled(2, 0, 1));
    give(&mut pool, landing(1, 7, 2));
    give(&mut pool, landing(2, 8, 2));
    let announced = PageFilled { session: SessionId(2), ..filled(1, 1, Some(7)) };
    let effects = give(&mut pool, announced);
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Decoder(_))), "{effects:?}");
    let first = pool.holdings[&own(7)].landing;
    assert_eq!(first, 2, "nothing of request 7 has landed");
}

#[test]
fn sessions_share_the_ring_by_what_they_want() {
    let mut pool = self::pool(60, 8, 1);
    for session in 1..4 {
        open(&mut pool, SessionId(session), 8, 0);
        let first = pool.rings.get(SessionId(session)).map_or(0, Ring::outstanding);
        give(&mut pool, unfilled(session, 0, first));
    }
    assert_eq!(pool.usage().outstanding, 0, "idle sessions hold nothing");
    give(&mut pool, landing(1, 10, 12));
    assert_eq!(outstanding(&pool, 1), 8, "one that is alone has all");
    // A second one gets its first credit with the page that comes back, and the first is told its share.
    let told = give(&mut pool, landing(2, 20, 2));
    assert_eq!((told, outstanding(&pool, 2)), (vec![shared(1, 7)], 0));
    let effects = give(&mut pool, PageFilled { session: SessionId(1), ..filled(8, 1, Some(10)) });
    assert_eq!((outstanding(&pool, 1), outstanding(&pool, 2)), (7, 1), "{effects:?}");
    assert_eq!(served(&effects).1, 2, "it is served together with its credit");
    assert!(effects.contains(&shared(1, 6)), "and wants two: {effects:?}");
}

#[test]
fn idle_credits_go_back_after_five_seconds() {
    let mut pool = self::pool(20, 4, 1);
    open(&mut pool, SESSION, 4, 0);
    let tick = |pool: &mut PoolState, now| pool.on(now, crate::messages::Tick.into(), None);
    let now = Instant::now();
    assert_eq!(tick(&mut pool, now + Duration::from_secs(4)), []);
    assert_eq!(tick(&mut pool, now + Duration::from_secs(6)), [shared(1, 0)]);
    assert_eq!(tick(&mut pool, now + Duration::from_secs(7)), [], "told once");
    assert_eq!(give(&mut pool, unfilled(1, 0, 4)), []);
    assert_eq!(pool.usage(), PoolUse { pages: 20, ..PoolUse::default() });
}

#[test]
fn a_measurement_that_waits_for_the_ring_makes_an_idle_session_give_back() {
    let mut pool = self::pool(20, 4, 1);
    open(&mut pool, SESSION, 4, 0);
    let second = SessionOpened { session: SessionId(2), ring_pages: 4, seed: 0 };
    assert_eq!(give(&mut pool, second), [shared(1, 0)]);
    give(&mut pool, unfilled(1, 0, 1));
    assert_eq!((outstanding(&pool, 1), outstanding(&pool, 2)), (3, 1));
}

#[test]
fn four_sessions_are_measured_at_once() {
    let mut pool = self::pool(100, 20, 1);
    for session in 1..7 {
        give(&mut pool, SessionOpened { session: SessionId(session), ring_pages: 1, seed: 0 });
    }
    let held: Vec<u32> = (1..7).map(|session| outstanding(&pool, session)).collect();
    assert_eq!(held, [1, 1, 1, 1, 0, 0]);
    give(&mut pool, PeerReady { session: SessionId(2), pid: 0 });
    assert_eq!((outstanding(&pool, 5), outstanding(&pool, 6)), (1, 0));
}

#[test]
fn a_lost_session_takes_nothing_from_the_ring_of_others() {
    let mut pool = self::pool(40, 8, 1);
    open(&mut pool, SessionId(1), 8, 0);
    lose(&mut pool, SessionId(1));
    assert_eq!(pool.usage().quarantined, 8, "all that the ring had");
    open(&mut pool, SessionId(2), 8, 0);
    assert_eq!(outstanding(&pool, 2), 8);
    give(&mut pool, unfilled(2, 0, 8));
    assert_eq!(served(&give(&mut pool, landing(2, 7, 5))).1, 5);
}

#[test]
fn a_measurement_comes_before_growth_when_the_pool_is_full() {
    let mut pool = self::pool(4, 1, 1);
    give(&mut pool, reserve(1, 3, 0));
    give(&mut pool, reserve(2, 1, 0));
    give(&mut pool, SessionOpened { session: SESSION, ring_pages: 1, seed: 0 });
    assert_eq!(outstanding(&pool, 1), 0, "requests hold every page");
    give(&mut pool, GrowPages { sequence: own(2), least: 1, most: 1 });
    let effects = release(&mut pool, 1);
    assert_eq!((outstanding(&pool, 1), granted(&effects).len()), (1, 1));
    assert!(matches!(effects.last(), Some(Effect::Decoder(ToDecoder::PagesGrown(_)))), "{effects:?}");
}

#[test]
fn what_no_longer_fits_is_denied_at_once() {
    let mut pool = self::pool(16, 4, 1);
    open(&mut pool, SESSION, 4, 0);
    give(&mut pool, unfilled(1, 0, 4));
    // Half of the pool is to be quarantined, in two sessions.
    for session in 2..4 {
        open(&mut pool, SessionId(session), 4, 0);
        assert_eq!(outstanding(&pool, session), 4);
        let effects = lose(&mut pool, SessionId(session));
        let quarantined = 4 * (session as u32 - 1);
        let changed = RoomChanged { pages: 16, usable: 12 - quarantined, quarantined };
        assert_eq!(effects[..2], [to::proxy(changed), to::peer_link(changed)]);
        if session == 2 {
            // One runs, and the largest that still fits waits for its pages.
            give(&mut pool, reserve(7, 6, 0));
            let tokens = (0..8).collect();
            let largest = ReservePages { tokens, ..reserve(8, 8, 0) };
            assert_eq!(give(&mut pool, largest), []);
        } else {
            let denied = PagesDenied { sequence: own(8), needed: 8, usable: 4 };
            assert!(effects.contains(&to::decoder(denied)), "{effects:?}");
        }
    }
    // The one that runs alone cannot grow either: it is told so, and preempts nothing.
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

#[test]
fn a_lost_session_is_quarantined_until_proof() {
    let mut pool = self::pool(6, 2, 1);
    open(&mut pool, SESSION, 2, 0);
    lose(&mut pool, SESSION);
    assert_eq!(pool.usage().quarantined, 2);
    assert_eq!(give(&mut pool, filled(0, 1, None)), [], "a frame of a lost session is nothing");
    assert_eq!(
        served(&give(&mut pool, reserve(1, 3, 0))).2.len(),
        2,
        "it gets what may be used, cut to that"
    );
    drain(&mut pool, SESSION);
    assert_eq!(pool.usage(), PoolUse { pages: 6, held: 2, ..PoolUse::default() });
}

fn unfilled(session: u64, first: u64, count: u32) -> PageFilled {
    PageFilled { session: SessionId(session), ..filled(first, count, None) }
}

#[test]
fn a_peer_that_miscounts_loses_its_session() {
    let mut pool = self::pool(4, 2, 1);
    open(&mut pool, SESSION, 2, 0);
    for wrong in [filled(1, 1, None), filled(0, 3, None)] {
        assert!(breaks(&give(&mut pool, wrong)));
    }
}

#[derive(Clone, Debug)]
enum Op {
    Reserve(u64, u32, u32),
    Grow(u64, u32),
    Computed(u64),
    Release(u64),
    Open,
    Measured(u64),
    Fill(u64, u32, Option<u64>),
    Lose(u64),
    Drain(u64),
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..4u64, 0..6u32, 0..6u32).prop_map(|(request, here, landing)| Op::Reserve(request, here, landing)),
        2 => (0..4u64, 1..4u32).prop_map(|(request, pages)| Op::Grow(request, pages)),
        3 => (0..4u64).prop_map(Op::Computed),
        3 => (0..4u64).prop_map(Op::Release),
        1 => Just(Op::Open),
        1 => (0..3u64).prop_map(Op::Measured),
        6 => (0..3u64, 1..3u32, proptest::option::of(0..4u64))
            .prop_map(|(back, count, owner)| Op::Fill(back, count, owner)),
        1 => (0..3u64).prop_map(Op::Lose),
        1 => (0..3u64).prop_map(Op::Drain),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// The invariant is asserted inside on every change; here: no page is promised twice, none is lost.
    #[test]
    fn no_page_is_lost_or_doubled(pages in 1..20u32, ring in 0..12u32, ops in vec(any_op(), 0..120)) {
        let ring = ring.min(pages / 2);
        let mut pool = self::pool(pages, ring, 1);
        // Sessions count up; `back` counts down from the youngest.
        let mut tails: Vec<u64> = Vec::new();
        // Page tables of those without landing pages; all requests begin with the same tokens.
        let mut tables: HashMap<SequenceId, Vec<PageId>> = HashMap::new();
        let nth = |tails: &Vec<u64>, back: u64| (tails.len() as u64).checked_sub(back + 1);
        for op in ops {
            let mut effects = Vec::new();
            match op {
                Op::Reserve(request, here, landing) => {
                    let waits = pool.waiting.iter().any(|waiting| waiting.sequence == own(request));
                    let known = waits || pool.holdings.contains_key(&own(request));
                    if !known && here + landing <= pages - ring {
                        let tokens = (0..(here / 2 + landing).max(1)).collect();
                        let pages = (here + landing).max(1);
                        let youngest = nth(&tails, 0).filter(|_| landing > 0).map(SessionId);
                        let (sequence, landing) = (own(request), youngest);
                        let priority = if here == 1 { ReservePriority::Resumed } else { ReservePriority::New };
                        effects = give(&mut pool, ReservePages { sequence, tokens, pages, landing, priority });
                    }
                }
                Op::Grow(request, pages) => {
                    if !pool.growing.iter().any(|growing| growing.sequence == own(request)) {
                        effects = give(&mut pool, GrowPages { sequence: own(request), least: 1, most: pages });
                    }
                }
                Op::Computed(request) => {
                    if let Some(table) = tables.get(&own(request)) {
                        let tokens = (0..table.len() as u32).collect();
                        give(&mut pool, PagesComputed { sequence: own(request), tokens, pages: table.clone() });
                    }
                }
                Op::Release(request) => {
                    tables.remove(&own(request));
                    effects = release(&mut pool, request);
                }
                Op::Open => {
                    let session = SessionId(tails.len() as u64);
                    effects = give(&mut pool, SessionOpened { session, ring_pages: ring, seed: 0 });
                    tails.push(0);
                }
                Op::Fill(back, count, owner) => {
                    let Some(session) = nth(&tails, back) else { continue };
                    let mut frame = filled(tails[session as usize], count, owner);
                    frame.session = SessionId(session);
                    let live = pool.rings.get(SessionId(session)).is_some();
                    effects = give(&mut pool, frame);
                    if !breaks(&effects) && live {
                        tails[session as usize] += u64::from(count);
                    }
                }
                Op::Lose(back) => {
                    let session = nth(&tails, back).into_iter();
                    effects = session.flat_map(|session| lose(&mut pool, SessionId(session))).collect();
                }
                Op::Measured(back) => {
                    let session = nth(&tails, back).into_iter();
                    effects = session
                        .flat_map(|session| give(&mut pool, PeerReady { session: SessionId(session), pid: 0 }))
                        .collect();
                }
                // Only what is lost can be proved.
                Op::Drain(back) => {
                    let session = nth(&tails, back).into_iter();
                    effects = session.flat_map(|session| drain(&mut pool, SessionId(session))).collect();
                }
            }
            for effect in effects {
                match effect {
                    Effect::Decoder(ToDecoder::PagesReserved(reserved)) if reserved.landing == 0 => {
                        tables.insert(reserved.sequence, reserved.pages);
                    }
                    Effect::Decoder(ToDecoder::PagesGrown(grown)) => {
                        tables.entry(grown.sequence).and_modify(|table| table.extend(grown.pages));
                    }
                    _ => {}
                }
            }
            // What two tables share is known, and at the same place.
            for (sequence, table) in &tables {
                for (other, theirs) in tables.iter().filter(|(other, _)| *other != sequence) {
                    for (place, page) in table.iter().enumerate().filter(|(_, page)| theirs.contains(page)) {
                        prop_assert!(pool.is_known(*page) && theirs.get(place) == Some(page), "{sequence} {other}");
                    }
                }
            }
            prop_assert!(pool.rings.holds(), "a session with pages to land has no credit");
        }
        // Everything ends: every page is free again or under a credit of the live session.
        for request in 0..4 {
            release(&mut pool, request);
        }
        for session in 0..tails.len() as u64 {
            lose(&mut pool, SessionId(session));
            drain(&mut pool, SessionId(session));
        }
        // What waited for the last of them may have been served.
        for request in 0..4 {
            release(&mut pool, request);
        }
        let cached = pool.usage().cached;
        prop_assert_eq!(pool.usage(), PoolUse { pages, cached, ..PoolUse::default() });
        prop_assert_eq!(pool.free.len() as u32 + cached, pages);
    }
}
