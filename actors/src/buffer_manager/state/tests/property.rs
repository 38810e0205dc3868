//! Property test of the pool with random messages: no page is lost or promised twice.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

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

    /// The state itself asserts its invariant after each message. This test checks that no page is promised twice and none is
    /// lost.
    #[test]
    fn no_page_is_lost_or_promised_twice(pages in 1..20u32, ring in 0..12u32, ops in vec(any_op(), 0..120)) {
        let ring = ring.min(pages / 2);
        let mut pool = self::pool(pages, ring, 1);
        // The next credit number of each session. `back` counts sessions from the newest.
        let mut tails: Vec<u64> = Vec::new();
        // Page tables of requests without landing pages. All requests begin with the same tokens.
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
                // Only a lost session can be proved drained; for others this does nothing.
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
            // A page that two tables share is cached and at the same place in both.
            for (sequence, table) in &tables {
                for (other, theirs) in tables.iter().filter(|(other, _)| *other != sequence) {
                    for (place, page) in table.iter().enumerate().filter(|(_, page)| theirs.contains(page)) {
                        prop_assert!(pool.is_known(*page) && theirs.get(place) == Some(page), "{sequence} {other}");
                    }
                }
            }
            prop_assert!(pool.rings.holds(), "a session with pages to land has no credit");
        }
        // All requests and sessions end.
        for request in 0..4 {
            release(&mut pool, request);
        }
        for session in 0..tails.len() as u64 {
            lose(&mut pool, SessionId(session));
            drain(&mut pool, SessionId(session));
        }
        // Reservations that waited may have been served since.
        for request in 0..4 {
            release(&mut pool, request);
        }
        let cached = pool.usage().cached;
        prop_assert_eq!(pool.usage(), PoolUse { pages, cached, ..PoolUse::default() });
        prop_assert_eq!(pool.free.len() as u32 + cached, pages);
    }
}
