use connector::frame::PageOwner;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::effect::{ToDecoder, ToPeerLink};

const SESSION: SessionId = SessionId(1);

fn own(request: u64) -> SequenceId {
    SequenceId::Own(RequestId(request))
}

/// Pages have one token; no two requests have a token in common.
fn reserve(request: u64, here: u32, landing: u32) -> ReservePages {
    let tokens = (0..landing.max(1)).map(|n| request as u32 * 1000 + n).collect();
    ReservePages { sequence: own(request), tokens, pages: here + landing, landing: landing > 0, again: false }
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

/// A session with a ring of so many pages, whose hashes have this seed.
fn opened(session: SessionId, ring_pages: u32, seed: u64) -> SessionOpened {
    SessionOpened { session, ring_pages, seed }
}

fn drained(session: SessionId) -> SessionDrained {
    SessionDrained { session }
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
    let mut pool = PoolState::new(4, 0, 1);
    assert_eq!(pool.on_reserve(reserve(1, 3, 0)).len(), 1);
    assert_eq!(pool.on_reserve(reserve(2, 2, 0)), []);
    assert_eq!(pool.on_reserve(reserve(3, 1, 0)), [], "no reservation overtakes another");
    let effects = pool.on_release(own(1));
    assert_eq!(effects.len(), 2, "both fit now: {effects:?}");
}

#[test]
fn each_reservation_is_answered_to_its_owner() {
    let mut pool = PoolState::new(4, 0, 1);
    let peer = SequenceId::Peer(1);
    let effects = pool.on_reserve(ReservePages { sequence: peer, ..reserve(1, 1, 0) });
    let reserved = PagesReserved { sequence: peer, resident: 0, landing: 0, pages: pages(&[0]) };
    assert_eq!(effects, [to::prefiller(reserved.clone())]);
    let effects = pool.on_reserve(reserve(1, 1, 0));
    let reserved = PagesReserved { sequence: own(1), pages: pages(&[1]), ..reserved };
    assert_eq!(effects, [to::decoder(reserved)]);
}

fn pages(numbers: &[u32]) -> Vec<PageId> {
    numbers.iter().map(|page| PageId(*page)).collect()
}

/// What a reservation that was served at once gave: resident tokens, pages that land, the table.
fn served(effects: &[Effect]) -> (u32, u32, Vec<PageId>) {
    match effects {
        [Effect::Decoder(ToDecoder::PagesReserved(reserved))] => {
            (reserved.resident, reserved.landing, reserved.pages.clone())
        }
        other => panic!("{other:?}"),
    }
}

fn beginning_with(request: u64, tokens: &[u32], pages: u32, landing: bool) -> ReservePages {
    ReservePages { sequence: own(request), tokens: tokens.into(), pages, landing, again: false }
}

#[test]
fn what_was_computed_is_shared_while_it_is_held_and_after() {
    let mut pool = PoolState::new(8, 0, 1);
    let (_, _, table) = served(&pool.on_reserve(beginning_with(1, &[1, 2, 3], 4, false)));
    assert_eq!(table, pages(&[0, 1, 2, 3]));
    pool.on_computed(&PagesComputed { sequence: own(1), tokens: [1, 2, 3].into(), pages: table });
    let (resident, _, table) = served(&pool.on_reserve(beginning_with(2, &[1, 2, 9], 3, false)));
    assert_eq!((resident, table), (2, pages(&[0, 1, 4])));
    assert_eq!(pool.usage(), PoolUse { pages: 8, held: 5, ..PoolUse::default() });
    pool.on_release(own(1));
    assert_eq!(pool.usage(), PoolUse { pages: 8, held: 3, cached: 1, ..PoolUse::default() });
    pool.on_release(own(2));
    assert_eq!(pool.usage(), PoolUse { pages: 8, cached: 3, ..PoolUse::default() });
    // What others need goes, the end of the sequence first.
    let (_, _, table) = served(&pool.on_reserve(beginning_with(3, &[7], 6, false)));
    assert_eq!(table.len(), 6);
    let (resident, _, table) = served(&pool.on_reserve(beginning_with(4, &[1, 2, 3], 2, false)));
    assert_eq!((resident, table[..1].to_vec()), (2, pages(&[0])));
    assert_eq!(pool.counts().resident, 4);
}

#[test]
fn only_what_is_not_resident_lands_and_little_of_it_is_computed_here() {
    let mut pool = PoolState::new(16, 0, 2);
    let (_, _, table) = served(&pool.on_reserve(beginning_with(1, &[1, 2, 3, 4], 2, false)));
    pool.on_computed(&PagesComputed { sequence: own(1), tokens: [1, 2, 3, 4].into(), pages: table });
    let longer = pool.on_reserve(beginning_with(2, &[1, 2, 3, 4, 5, 6, 7], 5, true));
    assert_eq!(served(&longer), (4, 2, pages(&[0, 1, 2])), "one page of its own for what it will get");
    let little = pool.on_reserve(beginning_with(3, &[1, 2, 3, 4, 5], 3, true));
    assert_eq!(served(&little), (4, 0, pages(&[0, 1, 3])));
    let short = pool.on_reserve(beginning_with(4, &[8], 1, true));
    assert_eq!(served(&short), (0, 1, vec![]), "what has nothing here travels, however short");
}

#[test]
fn a_growing_sequence_goes_first_and_is_called_short_once() {
    let mut pool = PoolState::new(4, 0, 1);
    pool.on_reserve(reserve(1, 2, 0));
    pool.on_reserve(reserve(2, 1, 0));
    assert_eq!(pool.on_reserve(reserve(3, 2, 0)), []);
    let short = to::decoder(PagesShort { releases: 0 });
    assert_eq!(pool.on_grow(GrowPages { sequence: own(1), least: 2, most: 2 }), [short]);
    assert_eq!(pool.on_reserve(reserve(4, 1, 0)), [], "the free page is for the sequence that grows");
    let grown = to::decoder(PagesGrown { sequence: own(1), pages: pages(&[2, 3]) });
    assert_eq!(pool.on_release(own(2)), [grown]);
    assert_eq!(
        pool.on_grow(GrowPages { sequence: own(2), least: 1, most: 1 }),
        [],
        "it holds nothing any more"
    );
    // One that has had pages goes before those that have not.
    assert_eq!(pool.on_reserve(ReservePages { again: true, ..reserve(5, 3, 0) }), []);
    let order: Vec<SequenceId> = (pool.on_release(own(1)).iter())
        .filter_map(|effect| match effect {
            Effect::Decoder(ToDecoder::PagesReserved(reserved)) => Some(reserved.sequence),
            _ => None,
        })
        .collect();
    assert_eq!(order, [own(5)], "and it leaves too little for the next");
}

#[test]
fn a_landed_page_is_adopted_and_the_ring_moves() {
    let mut pool = PoolState::new(4, 1, 1);
    assert_eq!(granted(&pool.on_session_opened(opened(SESSION, 1, 0))), [0]);
    assert_eq!(pool.on_reserve(reserve(7, 0, 3)).len(), 1);
    for n in 0..3 {
        let effects = pool.on_page_filled(filled(n, 1, Some(7)), None);
        assert!(
            matches!(&effects[0], Effect::Decoder(ToDecoder::PagesAdopted(adopted)) if adopted.request == RequestId(7)),
            "{effects:?}"
        );
        assert_eq!(granted(&effects).len(), 1, "the next credit follows at once: {effects:?}");
    }
    assert_eq!(pool.usage(), PoolUse { pages: 4, outstanding: 1, held: 3, ..PoolUse::default() });
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
        let mut pool = PoolState::new(8, 2, 1);
        pool.on_session_opened(opened(SESSION, 2, 5));
        pool.on_reserve(reserve(7, 0, 4));
        let effects = pool.on_page_filled(PageFilled { hashes, ..filled(0, 2, Some(7)) }, Some(&hash));
        let adopts = matches!(&effects[0], Effect::Decoder(ToDecoder::PagesAdopted(_)));
        assert_eq!(adopts, adopted, "{effects:?}");
        let request = RequestId(7);
        let (told, rejected) =
            (to::log(LogLine::PageDamaged { request }), to::decoder(PageRejected { request }));
        let broken = broken(SESSION, "a page of r7 is not what was put".into());
        assert_eq!(effects[..] == [told, rejected, broken], !adopted, "{effects:?}");
        let counts = if adopted { (2, 0) } else { (0, 1) };
        assert_eq!((pool.counts().adopted, pool.counts().mismatches), counts);
        assert_eq!(granted(&effects).len(), if adopted { 2 } else { 0 });
        // More may land in a damaged page, and wherever the session has a credit: nothing of it is used again before there
        // is proof, whatever else comes.
        if !adopted {
            assert_eq!(pool.on_page_filled(filled(2, 1, Some(7)), Some(&hash)), []);
            assert_eq!(pool.usage().quarantined, 2);
        }
        pool.on_session_lost(SESSION);
        assert_eq!(pool.usage().quarantined, 2);
        pool.on_release(own(7));
        pool.on_session_drained(drained(SESSION));
        assert_eq!(pool.usage(), PoolUse { pages: 8, ..PoolUse::default() });
    }
}

#[test]
fn a_page_that_no_request_waits_for_goes_straight_back() {
    let mut pool = PoolState::new(4, 2, 1);
    pool.on_session_opened(opened(SESSION, 2, 0));
    pool.on_reserve(reserve(7, 0, 1));
    pool.on_release(own(7));
    assert_eq!(granted(&pool.on_page_filled(filled(0, 1, Some(7)), None)).len(), 1);
    assert_eq!(granted(&pool.on_page_filled(filled(1, 1, None), None)).len(), 1);
    assert_eq!(pool.usage(), PoolUse { pages: 4, outstanding: 2, ..PoolUse::default() });
}

#[test]
fn a_lost_session_is_quarantined_until_proof() {
    let mut pool = PoolState::new(4, 2, 1);
    pool.on_session_opened(opened(SESSION, 2, 0));
    pool.on_session_lost(SESSION);
    assert_eq!(pool.usage().quarantined, 2);
    assert_eq!(pool.on_reserve(reserve(1, 3, 0)), [], "two pages may still be written");
    assert_eq!(pool.on_page_filled(filled(0, 1, None), None), [], "a frame of a lost session is nothing");
    assert_eq!(pool.on_session_drained(drained(SESSION)).len(), 1);
    assert_eq!(pool.usage(), PoolUse { pages: 4, held: 3, ..PoolUse::default() });
}

fn outstanding(pool: &PoolState, session: u64) -> u32 {
    pool.rings[&SessionId(session)].ledger.outstanding()
}

fn unfilled(session: u64, first: u64, count: u32) -> PageFilled {
    PageFilled { session: SessionId(session), ..filled(first, count, None) }
}

#[test]
fn senders_share_the_ring() {
    let mut pool = PoolState::new(20, 8, 1);
    pool.on_session_opened(opened(SessionId(1), 8, 0));
    assert_eq!(outstanding(&pool, 1), 8, "alone it has all");
    let told = pool.on_session_opened(opened(SessionId(2), 8, 0));
    assert_eq!(told, [shared(1, 4)], "and must give back, told once");
    assert_eq!(pool.on_reserve(reserve(1, 1, 0)).len(), 1);
    // What comes back goes to the other, whether it was spent or not.
    pool.on_page_filled(unfilled(1, 0, 1), None);
    assert_eq!((outstanding(&pool, 1), outstanding(&pool, 2)), (7, 1));
    pool.on_page_filled(unfilled(1, 1, 5), None);
    assert_eq!((outstanding(&pool, 1), outstanding(&pool, 2)), (4, 4));
    // A third one; eight pages for three.
    let told = pool.on_session_opened(opened(SessionId(3), 8, 0));
    assert_eq!(told, [shared(1, 3), shared(2, 3)]);
    pool.on_page_filled(unfilled(2, 0, 1), None);
    assert_eq!((outstanding(&pool, 2), outstanding(&pool, 3)), (3, 1));
    // One leaves, with proof: the rest is shared anew.
    pool.on_session_lost(SessionId(1));
    assert_eq!(outstanding(&pool, 3), 1, "its pages may still be written");
    pool.on_session_drained(drained(SessionId(1)));
    assert_eq!((outstanding(&pool, 2), outstanding(&pool, 3)), (4, 4));
}

#[test]
fn a_sender_that_has_had_a_credit_always_has_one() {
    let mut pool = PoolState::new(20, 2, 1);
    pool.on_session_opened(opened(SessionId(1), 2, 0));
    pool.on_session_opened(opened(SessionId(2), 2, 0));
    pool.on_page_filled(unfilled(1, 0, 1), None);
    assert_eq!((outstanding(&pool, 1), outstanding(&pool, 2)), (1, 1));
    pool.on_session_lost(SessionId(2));
    pool.on_session_opened(opened(SessionId(3), 2, 0));
    for credit in 1..5 {
        pool.on_page_filled(unfilled(1, credit, 1), None);
        assert_eq!((outstanding(&pool, 1), outstanding(&pool, 3)), (1, 0), "the other page is quarantined");
    }
    pool.on_session_drained(drained(SessionId(2)));
    assert_eq!((outstanding(&pool, 1), outstanding(&pool, 3)), (1, 1));
}

#[test]
fn a_peer_that_miscounts_loses_its_session() {
    let mut pool = PoolState::new(4, 2, 1);
    pool.on_session_opened(opened(SESSION, 2, 0));
    for wrong in [filled(1, 1, None), filled(0, 3, None)] {
        assert!(breaks(&pool.on_page_filled(wrong, None)));
    }
}

#[derive(Clone, Debug)]
enum Op {
    Reserve(u64, u32, u32),
    Grow(u64, u32),
    Computed(u64),
    Release(u64),
    Open,
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
        let mut pool = PoolState::new(pages, ring, 1);
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
                        let (sequence, landing) = (own(request), landing > 0);
                        effects = pool.on_reserve(ReservePages { sequence, tokens, pages, landing, again: here == 1 });
                    }
                }
                Op::Grow(request, pages) => {
                    if !pool.growing.iter().any(|growing| growing.sequence == own(request)) {
                        effects = pool.on_grow(GrowPages { sequence: own(request), least: 1, most: pages });
                    }
                }
                Op::Computed(request) => {
                    if let Some(table) = tables.get(&own(request)) {
                        let tokens = (0..table.len() as u32).collect();
                        pool.on_computed(&PagesComputed { sequence: own(request), tokens, pages: table.clone() });
                    }
                }
                Op::Release(request) => {
                    tables.remove(&own(request));
                    effects = pool.on_release(own(request));
                }
                Op::Open => {
                    // A ring without pages is none, and one has a page for each sender.
                    if pool.rings.len() < ring as usize {
                        pool.on_session_opened(opened(SessionId(tails.len() as u64), ring, 0));
                        tails.push(0);
                    }
                }
                Op::Fill(back, count, owner) => {
                    let Some(session) = nth(&tails, back) else { continue };
                    let mut frame = filled(tails[session as usize], count, owner);
                    frame.session = SessionId(session);
                    let live = pool.rings.contains_key(&SessionId(session));
                    if !breaks(&pool.on_page_filled(frame, None)) && live {
                        tails[session as usize] += u64::from(count);
                    }
                }
                Op::Lose(back) => {
                    nth(&tails, back).into_iter().for_each(|session| drop(pool.on_session_lost(SessionId(session))));
                }
                // Only what is lost can be proved.
                Op::Drain(back) => {
                    nth(&tails, back).into_iter().for_each(|session| drop(pool.on_session_drained(drained(SessionId(session)))));
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
            let had = pool.rings.values().filter(|ring| ring.ledger.head() > 0);
            prop_assert!(had.clone().all(|ring| ring.ledger.outstanding() > 0), "a sender was left without a credit");
        }
        // Everything ends: every page is free again or under a credit of the live session.
        for request in 0..4 {
            pool.on_release(own(request));
        }
        for session in 0..tails.len() as u64 {
            pool.on_session_lost(SessionId(session));
            pool.on_session_drained(drained(SessionId(session)));
        }
        let cached = pool.usage().cached;
        prop_assert_eq!(pool.usage(), PoolUse { pages, cached, ..PoolUse::default() });
        prop_assert_eq!(pool.free.len() as u32 + cached, pages);
    }
}
