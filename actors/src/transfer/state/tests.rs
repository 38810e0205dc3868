mod failures;
mod peer;

use connector::page_hash::PageSeed;
use connector::ring::PageIndex;
use connector::transport::{Command, TransportError, TransportSession};
use engine::PageId;
use proptest::prelude::*;

use super::*;
use crate::effect::{ToHashThread, ToLog, ToPeerLink, ToPrefiller, ToTransport};
use crate::messages::{PagesHashed, PeerLost, RingShared, TransportEvents};
use peer::Peer;

const S: SessionId = SessionId(1);
const R: RequestId = RequestId(5);
const CONFIG: TransferConfig = TransferConfig {
    page_bytes: 100,
    shards: 1,
    min_gigabytes_per_second: 0.0,
    hashed: true,
    on_device: false,
    pages_in_flight: PAGES_IN_FLIGHT,
};

/// The numbers of shards of two sides.
const SHARDS: &[(u32, u32)] = &[(1, 1), (2, 2), (2, 1), (1, 2), (4, 2)];

fn opened(ring_pages: u32, seed: u64) -> SessionOpened {
    SessionOpened { session: S, ring_pages, seed }
}

fn connected() -> LaneConnected {
    LaneConnected { session: S, lane: "tcp/lo".into(), shards: 1 }
}

fn granted(first: u64, pages: &[u32]) -> CreditsGranted {
    let pages = pages.iter().map(|page| PageIndex(*page)).collect();
    CreditsGranted { session: S, first: CreditNumber(first), pages }
}

fn scheduled(first_page: u32, pages: impl IntoIterator<Item = u32>) -> SchedulePut {
    let pages = pages.into_iter().map(PageId).collect();
    SchedulePut { session: S, request: R, first_page, pages }
}

fn shared(pages: u32) -> RingShared {
    RingShared { session: S, pages }
}

fn flushed(ticket: Ticket, result: Result<(), TransportError>) -> TransportEvents {
    TransportEvents(vec![Event::Flushed { session: TransportSession(S.0), ticket, result }])
}

/// The error of a put or flush that failed.
fn lane_error(status: &str) -> TransportError {
    TransportError::Call { call: "ucp_put_nbx", status: status.into() }
}

/// The prefiller is told that no put of the request is in flight.
fn drained() -> Effect {
    to::prefiller(PutsDrained { session: S, request: R })
}

/// The reason, if the only effect is to end the session.
fn broken(effects: &[Effect]) -> Option<&str> {
    match effects {
        [Effect::PeerLink(ToPeerLink::BreakSession(BreakSession { session: S, reason }))] => Some(reason),
        _ => None,
    }
}

/// The source offset, target offset and length of a put, in bytes.
fn span(effect: &Effect) -> Option<(u64, u64, u64)> {
    match effect {
        Effect::Transport(ToTransport::Command(Command::Put {
            local_offset, remote_offset, bytes, ..
        })) => Some((*local_offset, *remote_offset, *bytes)),
        _ => None,
    }
}

fn put_micros(effect: &Effect) -> Option<u64> {
    match effect {
        Effect::Prefiller(ToPrefiller::PagesSent(sent)) => Some(sent.put_micros),
        _ => None,
    }
}

fn is_flush(effect: &Effect) -> bool {
    matches!(effect, Effect::Transport(ToTransport::Command(Command::Flush { .. })))
}

#[test]
fn a_ring_of_one_page_works() {
    let mut peer = Peer::probed(1);
    peer.schedule(0, 20);
    for _ in 0..20 {
        peer.turn();
    }
    assert_eq!(peer.sent, 20);
    assert!(peer.broken.is_empty(), "{:?}", peer.broken);
}

#[test]
fn nothing_is_announced_before_its_flush() {
    let mut peer = Peer::probed(8);
    peer.grant();
    peer.schedule(0, 2);
    assert_eq!((peer.puts.len(), peer.flushes.len()), (2, 1), "two puts, and a flush after the last");
    peer.complete(1, Ok(()));
    peer.complete(0, Ok(()));
    assert_eq!(peer.filled, []);
    peer.flush();
    assert_eq!(
        peer.filled,
        [(Some(PageOwner { request: 5, first_page: 0 }), 2)],
        "one frame announces neighbouring pages"
    );
}

#[test]
fn nothing_is_announced_before_its_completion_and_its_hash() {
    let mut peer = Peer::probed(8);
    peer.hashes_late = true;
    peer.grant();
    peer.schedule(0, 2);
    peer.flush();
    peer.hash();
    assert_eq!(peer.filled, [], "no put has completed");
    peer.complete(1, Ok(()));
    assert_eq!(peer.filled, [], "the page with the earlier credit is not complete");
    peer.complete(0, Ok(()));
    assert_eq!(
        peer.filled,
        [(Some(PageOwner { request: 5, first_page: 0 }), 1)],
        "the second page has no hash yet"
    );
    peer.hash();
    assert_eq!(peer.sent, 2);
}

#[test]
fn credits_beyond_the_share_are_returned_in_order() {
    let mut peer = Peer::probed(8);
    peer.schedule(0, 2);
    peer.grant();
    // Eight credits; two of them are spent on puts in flight.
    peer.hear(4, shared(5));
    assert_eq!(peer.filled, [], "credits are announced in order, after the puts before them");
    while !peer.puts.is_empty() || !peer.flushes.is_empty() {
        peer.complete(0, Ok(()));
        peer.flush();
    }
    let owner = PageOwner { request: R.0, first_page: 0 };
    let back: u32 = peer.filled.iter().filter(|(owner, _)| owner.is_none()).map(|(_, count)| count).sum();
    assert_eq!((peer.filled[0].0, peer.sent, back), (Some(owner), 2, 3));
    assert_eq!(peer.ring.outstanding(), 3, "of eight credits two were put and three returned");
    assert_eq!(peer.state.on(5, shared(5).into()), [], "it holds no more than its share");
}

#[test]
fn credits_are_returned_after_the_lane_is_connected() {
    let mut state = TransferState::new(CONFIG);
    assert_eq!(state.on(0, opened(4, 1).into()), []);
    assert_eq!(state.on(0, granted(0, &[0, 1]).into()), []);
    assert_eq!(state.on(0, shared(1).into()), []);
    let effects = state.on(0, connected().into());
    assert!(effects.iter().any(is_flush), "{effects:?}");
}

#[test]
fn pages_announced_together_share_the_time() {
    let mut peer = Peer::probed(8);
    peer.grant();
    // The pages are not neighbours, so they have two frames.
    peer.schedule(0, 1);
    peer.schedule(5, 1);
    peer.flush();
    peer.flush();
    peer.complete(1, Ok(()));
    let (session, ticket) = (TransportSession(S.0), peer.puts[0]);
    let completed = TransportEvents(vec![Event::PutCompleted { session, ticket, result: Ok(()) }]);
    // The lane carried them from 2, when the probe's last pages were announced, to 103.
    let times: Vec<u64> = peer.state.on(103, completed.into()).iter().filter_map(put_micros).collect();
    assert_eq!(times, [50, 50]);
}

#[test]
fn neighbouring_pages_go_as_one_put() {
    let mut peer = Peer::with_sixteen_neighbours(4);
    peer.schedule(0, 6);
    assert_eq!(peer.puts.iter().map(|ticket| peer.pages[ticket]).collect::<Vec<_>>(), [4, 2]);
    assert_eq!(peer.flushes.len(), 1, "after the last page");
    peer.complete(1, Ok(()));
    peer.complete(0, Ok(()));
    assert_eq!(peer.sent, 16);
    peer.flush();
    peer.flush();
    assert_eq!(peer.sent, 22);
}

#[test]
fn puts_count_in_bytes_and_one_message_asks_for_all_hashes() {
    let mut peer = Peer::with_sixteen_neighbours(4);
    let credit = peer.ring.head() - 16;
    let effects = peer.state.on(9, scheduled(20, [3, 4, 5, 9]).into());
    let [first, second, flush, Effect::HashThread(ToHashThread::HashPages(HashPages(pages)))] = &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!([span(first), span(second)], [Some((300, 0, 300)), Some((900, 300, 100))]);
    assert!(is_flush(flush), "{flush:?}");
    let expect = [3, 4, 5, 9].map(PageId).into_iter().zip(0..).map(|(page, n)| {
        let seed = PageSeed { session: 77, credit: credit + u64::from(n), request: R.0, place: 20 + n };
        PageToHash { session: S, page, seed }
    });
    assert_eq!(*pages, expect.collect::<Vec<_>>());
}

#[test]
fn pages_are_not_hashed_if_hashing_is_off() {
    let mut peer = Peer::with_sixteen_neighbours(1);
    peer.state.config.hashed = false;
    let effects = peer.state.on(9, scheduled(16, [3]).into());
    let [put, flush] = &effects[..] else { panic!("{effects:?}") };
    assert!(span(put).is_some() && is_flush(flush), "{effects:?}");
}

/// The lane, source offset, target offset and length of each put in `effects`.
fn pieces(effects: &[Effect]) -> Vec<(u32, u64, u64, u64)> {
    let piece = |effect: &Effect| match effect {
        Effect::Transport(ToTransport::Command(Command::Put {
            lane,
            local_offset,
            remote_offset,
            bytes,
            ..
        })) => Some((*lane, *local_offset, *remote_offset, *bytes)),
        _ => None,
    };
    effects.iter().filter_map(piece).collect()
}

#[test]
fn a_page_is_put_in_pieces_where_either_side_divides_it() {
    for (local, remote, expect) in [
        (1, 1, vec![(0, 300, 0, 100)]),
        (2, 2, vec![(0, 150, 0, 50), (1, 150, 0, 50)]),
        // The sender's shard is the whole page, and the receiver's is one half.
        (1, 2, vec![(0, 300, 0, 50), (1, 350, 0, 50)]),
        (2, 1, vec![(0, 150, 0, 50), (1, 150, 50, 50)]),
    ] {
        let mut peer = Peer::probed_in_shards(1, 1, (local, remote));
        peer.grant();
        let effects = peer.state.on(9, scheduled(0, [3]).into());
        assert_eq!(pieces(&effects), expect, "{local} to {remote}");
        let lanes = local.max(remote) as usize;
        assert_eq!(effects.iter().filter(|effect| is_flush(effect)).count(), lanes, "{local} to {remote}");
    }
}

/// A peer's number of shards does not decide how much of the transport's queue a session takes.
#[test]
fn a_session_has_as_many_operations_in_flight_with_many_lanes() {
    for lanes in [1, 4, 16] {
        let mut peer = Peer::probed_in_shards(64, 1, (1, lanes));
        peer.grant();
        peer.schedule(0, 64);
        let most = PAGES_IN_FLIGHT.max(lanes as usize);
        assert_eq!(peer.puts.len(), most, "{lanes} lanes");
        assert!(peer.flushes.len() <= most, "{lanes} lanes: {} flushes", peer.flushes.len());
    }
}

#[test]
fn neighbours_share_their_puts_where_both_sides_have_neighbours() {
    for (shards, expect) in [
        ((2, 2), vec![(0, 150, 0, 150), (1, 150, 0, 150), (0, 450, 150, 50), (1, 450, 150, 50)]),
        // The halves of neighbouring pages are no neighbours in a pool of whole pages.
        (
            (1, 2),
            (0..3)
                .flat_map(|n| [0, 1].map(|half| (half as u32, 300 + 100 * n + 50 * half, 50 * n, 50)))
                .collect(),
        ),
    ] {
        let mut peer = Peer::with_sixteen_neighbours_in_shards(4, shards);
        let pages = if shards.0 == 2 { vec![3, 4, 5, 9] } else { vec![3, 4, 5] };
        let effects = peer.state.on(9, scheduled(0, pages).into());
        assert_eq!(pieces(&effects), expect, "{shards:?}");
    }
}

#[test]
fn a_page_is_announced_after_its_last_piece_and_its_last_flush() {
    let mut peer = Peer::probed_in_shards(4, 1, (2, 2));
    peer.grant();
    peer.schedule(0, 2);
    assert_eq!((peer.puts.len(), peer.flushes.len()), (4, 2), "one of each on each lane");
    peer.flush();
    for _ in 0..4 {
        peer.complete(0, Ok(()));
    }
    assert_eq!(peer.filled, [], "the second lane is not flushed");
    peer.flush();
    assert_eq!(peer.filled, [(Some(PageOwner { request: R.0, first_page: 0 }), 2)]);

    let mut peer = Peer::probed_in_shards(4, 1, (1, 2));
    peer.grant();
    peer.schedule(0, 1);
    peer.flush();
    peer.flush();
    peer.complete(1, Ok(()));
    assert_eq!(peer.filled, [], "the first piece is in flight");
    assert_eq!(peer.state.on_cancel(S, R), [], "the transport reads the first piece");
    peer.complete(0, Ok(()));
    assert_eq!((peer.drained, &peer.filled[..]), (1, &[(None, 1)][..]));
}

#[test]
fn a_receiver_whose_shards_do_not_fit_ends_the_session() {
    let mut state = TransferState::new(TransferConfig { shards: 2, ..CONFIG });
    assert_eq!(state.on(0, opened(4, 1).into()), []);
    let effects = state.on(0, LaneConnected { shards: 3, ..connected() }.into());
    let reason = broken(&effects).expect("the session is broken");
    assert!(reason.starts_with("one side has 2 shards of a page and the other side 3"), "{reason}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Every page is announced once, in order of credits, for every ring, order of completions and size of chunks.
    #[test]
    fn every_page_arrives(ring in 1..24u32, run_pages in 1..9usize, shards in proptest::sample::select(SHARDS), chunks in proptest::collection::vec(1..6u32, 1..8), order in any::<u64>()) {
        let mut peer = Peer::probed_in_shards(ring, run_pages, shards);
        let lanes = shards.0.max(shards.1);
        let total: u32 = chunks.iter().sum();
        let mut at = 0;
        let mut random = order;
        for count in chunks {
            peer.schedule(at, count);
            at += count;
            peer.grant();
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
            peer.complete((random >> 33) as usize, Ok(()));
        }
        for _ in 0..4 * total * lanes + 4 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
            peer.grant();
            peer.complete((random >> 33) as usize, Ok(()));
            if random >> 63 == 0 {
                peer.flush();
            }
        }
        // Completes the flushes and puts that the random order has left in flight.
        for _ in 0..total {
            while !peer.puts.is_empty() {
                peer.complete(0, Ok(()));
            }
            while !peer.flushes.is_empty() {
                peer.flush();
            }
            peer.grant();
        }
        prop_assert_eq!(peer.sent, total);
        prop_assert!(peer.broken.is_empty());
        prop_assert!(peer.most_in_flight <= PAGES_IN_FLIGHT && peer.longest_run <= run_pages);
        let mut places: Vec<u32> =
            peer.filled.iter().flat_map(|(owner, count)| (0..*count).map(move |n| owner.expect("ours").first_page + n)).collect();
        places.sort_unstable();
        prop_assert_eq!(places, (0..total).collect::<Vec<_>>());
    }
}
