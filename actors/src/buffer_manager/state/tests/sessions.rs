//! Credits of sessions, and the quarantine of lost sessions.

use super::*;
use crate::messages::{NothingOutstanding, PeerLeaving};

pub(super) fn outstanding(pool: &PoolState, session: u64) -> u32 {
    pool.rings.get(SessionId(session)).map_or(0, Ring::outstanding)
}

/// A reservation whose `landing` pages land in a session.
pub(super) fn landing(session: u64, request: u64, landing: u32) -> ReservePages {
    ReservePages { landing: Some(SessionId(session)), ..reserve(request, 0, landing) }
}

#[test]
fn a_session_is_measured_and_then_holds_credits_for_pages_that_land() {
    let mut pool = self::pool(20, 4, 1);
    let effects = give(&mut pool, SessionOpened { session: SESSION, ring_pages: 4, seed: 0 });
    assert_eq!(granted(&effects), [0, 1, 2, 3], "the measurement takes all pages of the ring");
    // Pages of a measurement belong to no request and are granted again.
    assert_eq!(granted(&give(&mut pool, filled(0, 2, None))).len(), 2);
    give(&mut pool, PeerReady { session: SESSION, pid: 0, name: 0, http: None });
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
fn a_page_that_no_request_waits_for_becomes_free_at_once() {
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
    give(&mut pool, landing(1, 7, 2));
    give(&mut pool, landing(2, 8, 2));
    // The credit is the session's own, so only the request is wrong.
    let announced = PageFilled { session: SessionId(2), ..filled(0, 1, Some(7)) };
    let effects = give(&mut pool, announced);
    let is_wrong = |effect: &Effect| {
        matches!(effect, Effect::Decoder(_) | Effect::PeerLink(ToPeerLink::BreakSession(_)))
    };
    assert!(!effects.iter().any(is_wrong), "{effects:?}");
    let first = pool.holdings[&own(7)].landing;
    assert_eq!(first, 2, "no page of request 7 has landed");
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
    assert_eq!(outstanding(&pool, 1), 8, "a session that is alone gets the whole ring");
    // Session 1 is told its share. Session 2 gets its first credit with the next page that session 1 returns.
    let effects = give(&mut pool, landing(2, 20, 2));
    assert_eq!((effects, outstanding(&pool, 2)), (vec![shared(1, 7)], 0));
    let effects = give(&mut pool, PageFilled { session: SessionId(1), ..filled(8, 1, Some(10)) });
    assert_eq!((outstanding(&pool, 1), outstanding(&pool, 2)), (7, 1), "{effects:?}");
    assert_eq!(served(&effects).1, 2, "the reservation is served together with the credit");
    assert!(effects.contains(&shared(1, 6)), "session 2 wants two credits: {effects:?}");
}

#[test]
fn idle_credits_go_back_after_five_seconds() {
    let mut pool = self::pool(20, 4, 1);
    open(&mut pool, SESSION, 4, 0);
    let tick = |pool: &mut PoolState, now| pool.on(now, crate::messages::Tick.into(), None);
    let now = Instant::now();
    assert_eq!(tick(&mut pool, now + Duration::from_secs(4)), []);
    assert_eq!(tick(&mut pool, now + Duration::from_secs(6)), [shared(1, 0)]);
    assert_eq!(tick(&mut pool, now + Duration::from_secs(7)), [], "the share is sent once");
    assert_eq!(give(&mut pool, unfilled(1, 0, 4)), []);
    assert_eq!(pool.usage(), PoolUse { pages: 20, ..PoolUse::default() });
}

#[test]
fn an_idle_session_returns_credits_to_a_measurement_that_waits() {
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
    give(&mut pool, PeerReady { session: SessionId(2), pid: 0, name: 0, http: None });
    assert_eq!((outstanding(&pool, 5), outstanding(&pool, 6)), (1, 0));
}

#[test]
fn a_lost_session_does_not_reduce_the_ring_of_others() {
    let mut pool = self::pool(40, 8, 1);
    open(&mut pool, SessionId(1), 8, 0);
    lose(&mut pool, SessionId(1));
    assert_eq!(pool.usage().quarantined, 8, "the whole ring");
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
fn a_lost_session_is_quarantined_until_proof() {
    let mut pool = self::pool(6, 2, 1);
    open(&mut pool, SESSION, 2, 0);
    lose(&mut pool, SESSION);
    assert_eq!(pool.usage().quarantined, 2);
    assert_eq!(give(&mut pool, filled(0, 1, None)), [], "a frame of a lost session is ignored");
    assert_eq!(
        served(&give(&mut pool, reserve(1, 3, 0))).2.len(),
        2,
        "the reservation is cut to the usable pages"
    );
    drain(&mut pool, SESSION);
    assert_eq!(pool.usage(), PoolUse { pages: 6, held: 2, ..PoolUse::default() });
}

#[test]
fn the_time_from_the_end_of_a_session_until_its_pages_are_free_is_counted() {
    let mut pool = self::pool(20, 4, 1);
    let (began, millis) = (Instant::now(), Duration::from_millis);
    let mut at = |millis, mail: ToBufferManager| {
        pool.on(began + millis, mail, None);
        (pool.counts().lost, pool.counts().quarantine_micros)
    };
    let opened = |session| SessionOpened { session, ring_pages: 1, seed: 0 };
    at(millis(0), opened(SESSION).into());
    at(millis(0), opened(SessionId(2)).into());
    assert_eq!(at(millis(10), PeerLost { session: SESSION }.into()), (1, 0));
    assert_eq!(at(millis(20), PeerLost { session: SessionId(2) }.into()), (2, 0));
    assert_eq!(at(millis(25), SessionDrained { session: SESSION }.into()), (2, 15_000));
    assert_eq!(at(millis(25), SessionDrained { session: SESSION }.into()), (2, 15_000), "its pages are free");
    assert_eq!(at(millis(60), SessionDrained { session: SessionId(2) }.into()), (2, 55_000));
    assert_eq!(pool.usage().quarantined, 0);
}

pub(super) fn unfilled(session: u64, first: u64, count: u32) -> PageFilled {
    PageFilled { session: SessionId(session), ..filled(first, count, None) }
}

#[test]
fn an_announcement_that_does_not_match_the_credits_ends_the_session() {
    let mut pool = self::pool(4, 2, 1);
    open(&mut pool, SESSION, 2, 0);
    for wrong in [filled(1, 1, None), filled(0, 3, None)] {
        assert!(breaks(&give(&mut pool, wrong)));
    }
}

#[test]
fn a_session_ends_if_its_peer_keeps_credits_that_it_must_return() {
    let mut pool = self::pool(20, 4, 1);
    open(&mut pool, SESSION, 4, 0);
    let now = Instant::now();
    let tick = |pool: &mut PoolState, seconds| {
        pool.on(now + Duration::from_secs(seconds), crate::messages::Tick.into(), None)
    };
    assert_eq!(tick(&mut pool, 6), [shared(1, 0)]);
    assert_eq!(tick(&mut pool, 35), []);
    // One credit is returned, so the limit counts from here.
    pool.on(now + Duration::from_secs(35), unfilled(1, 0, 1).into(), None);
    assert_eq!(tick(&mut pool, 64), []);
    let reason = "peer was told to hold at most 0 credits and returned none for 30 s".to_owned();
    assert_eq!(tick(&mut pool, 66), [broken(SESSION, reason)]);
    assert_eq!(tick(&mut pool, 100), [], "the end of the session is requested once");
}

#[test]
fn a_leaving_sender_returns_its_credits_when_no_more_pages_land() {
    let mut pool = self::pool(20, 4, 1);
    open(&mut pool, SESSION, 4, 0);
    give(&mut pool, unfilled(1, 0, 3));
    give(&mut pool, reserve(7, 0, 1));
    assert_eq!((outstanding(&pool, 1), give(&mut pool, PeerLeaving { session: SESSION })), (1, vec![]));
    // The last page of request 7 lands. A credit is granted for request 8, which is released before its page lands.
    give(&mut pool, reserve(8, 0, 1));
    give(&mut pool, filled(3, 1, Some(7)));
    assert_eq!(outstanding(&pool, 1), 1);
    assert_eq!(release(&mut pool, 8), [shared(1, 0)], "no more pages will land");
    give(&mut pool, unfilled(1, 4, 1));
    assert_eq!(lose(&mut pool, SESSION), [to::peer_link(NothingOutstanding { session: SESSION })]);
}

#[test]
fn a_leaving_sender_without_a_credit_is_told_that_it_gets_none() {
    let mut pool = self::pool(20, 4, 1);
    open(&mut pool, SESSION, 4, 0);
    give(&mut pool, unfilled(1, 0, 4));
    assert_eq!(give(&mut pool, PeerLeaving { session: SESSION }), [shared(1, 0)]);
    assert_eq!(release(&mut pool, 9), [], "the share is sent once");
}

#[test]
fn a_lost_session_is_reported_empty_only_if_it_held_no_credit() {
    let empty = |session| to::peer_link(NothingOutstanding { session: SessionId(session) });
    let mut pool = self::pool(20, 4, 1);
    open(&mut pool, SESSION, 4, 0);
    assert!(!lose(&mut pool, SESSION).contains(&empty(1)), "four credits are outstanding");
    open(&mut pool, SessionId(2), 4, 0);
    give(&mut pool, unfilled(2, 0, 4));
    assert_eq!(lose(&mut pool, SessionId(2)), [empty(2)]);
    assert_eq!(lose(&mut pool, SessionId(3)), [empty(3)], "session 3 was never opened");
}

#[test]
fn an_announcement_of_more_pages_than_expected_ends_the_session() {
    let mut pool = self::pool(20, 4, 1);
    open(&mut pool, SESSION, 4, 0);
    give(&mut pool, reserve(7, 0, 1));
    let effects = give(&mut pool, filled(0, 2, Some(7)));
    let reason = "peer announced 2 pages of r7, but 1 were expected".to_owned();
    assert_eq!(effects[0], broken(SESSION, reason));
    assert_eq!(pool.holdings[&own(7)].landing, 1, "no page was adopted");
    assert_eq!(
        pool.usage().quarantined,
        4,
        "the announced pages wait for proof, as the others of the session"
    );
    assert!(!lose(&mut pool, SESSION).contains(&to::peer_link(NothingOutstanding { session: SESSION })));
    drain(&mut pool, SESSION);
    assert_eq!(pool.usage().quarantined, 0);
}
