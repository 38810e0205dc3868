use std::collections::{HashMap, VecDeque};

use connector::page_hash::PageSeed;
use connector::transport::TransportError;
use proptest::prelude::*;

use super::*;
use crate::effect::{ToHashThread, ToLog, ToPeerLink, ToPrefiller};
use crate::messages::{PagesHashed, PeerLost, RingShared, TransportEvents};

const S: SessionId = SessionId(1);
const R: RequestId = RequestId(5);
const CONFIG: TransferConfig = TransferConfig {
    page_bytes: 100,
    min_gigabytes_per_second: 0.0,
    hashed: true,
    on_device: false,
    pages_in_flight: PAGES_IN_FLIGHT,
};

fn opened(ring_pages: u32, seed: u64) -> SessionOpened {
    SessionOpened { session: S, ring_pages, seed }
}

fn connected() -> LaneConnected {
    LaneConnected { session: S, lane: "tcp/lo".into() }
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

/// What a put or flush reports that the lane has not carried.
fn lane_error(status: &str) -> TransportError {
    TransportError::Call { call: "ucp_put_nbx", status: status.into() }
}

/// The prefiller hears that no put of the request is in flight.
fn drained() -> Effect {
    to::prefiller(PutsDrained { session: S, request: R })
}

/// Why the session is to end, if that is all that is to be done.
fn broken(effects: &[Effect]) -> Option<&str> {
    match effects {
        [Effect::PeerLink(ToPeerLink::BreakSession(BreakSession { session: S, reason }))] => Some(reason),
        _ => None,
    }
}

/// From where, to where and how much a put moves, in bytes.
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

/// A receiver and a lane that do what the state asks, in an order that the test chooses.
struct Peer {
    state: TransferState,
    ring: connector::ring::GrantLedger,
    /// Granted pages that no put has been posted into, in the order of their credits.
    targets: VecDeque<u32>,
    puts: Vec<Ticket>,
    flushes: Vec<Ticket>,
    filled: Vec<(Option<PageOwner>, u32)>,
    sent: u32,
    drained: u32,
    measured: bool,
    broken: Vec<String>,
    most_in_flight: usize,
    /// Pages of each put in flight, by its ticket, and of the longest so far.
    pages: HashMap<Ticket, usize>,
    longest_run: usize,
    /// Hashes come when the test says.
    hashes_late: bool,
    hashes: Vec<(CreditNumber, u64)>,
}

impl Peer {
    fn new(ring_pages: u32) -> Self {
        Self::with_runs(ring_pages, 1)
    }

    fn with_runs(ring_pages: u32, run_pages: usize) -> Self {
        let ring = connector::ring::GrantLedger::new(NonZeroU32::new(ring_pages).expect("at least one"));
        let mut peer = Self {
            state: TransferState { run_pages, ..TransferState::new(CONFIG) },
            ring,
            targets: VecDeque::new(),
            puts: Vec::new(),
            flushes: Vec::new(),
            filled: Vec::new(),
            sent: 0,
            drained: 0,
            measured: false,
            broken: Vec::new(),
            most_in_flight: 0,
            pages: HashMap::new(),
            longest_run: 0,
            hashes_late: false,
            hashes: Vec::new(),
        };
        peer.hear(0, opened(ring_pages, 77));
        peer.hear(0, connected());
        peer
    }

    /// A peer whose probe is over.
    fn probed(ring_pages: u32) -> Self {
        Self::probed_with_runs(ring_pages, 1)
    }

    fn probed_with_runs(ring_pages: u32, run_pages: usize) -> Self {
        let mut peer = Self::with_runs(ring_pages, run_pages);
        while !peer.measured {
            peer.turn();
        }
        peer.filled.clear();
        peer
    }

    /// The state takes a message; what it wants done is done.
    fn hear(&mut self, now_micros: u64, mail: impl Into<ToTransfer>) {
        let effects = self.state.on(now_micros, mail.into());
        self.perform(effects);
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        // Pages of our pool that this message puts.
        let mut put = Vec::new();
        for effect in effects {
            match effect {
                Effect::Transport(ToTransport::Command(command)) => put.extend(self.submit(command)),
                Effect::HashThread(ToHashThread::HashPages(HashPages(pages))) => {
                    for page in pages {
                        assert!(put.contains(&page.page), "{page:?} is not put");
                        self.ask_for_hash(page);
                    }
                }
                Effect::PeerLink(ToPeerLink::SendFrame(SendFrame { session: S, frame })) => {
                    self.take_frame(frame);
                }
                Effect::PeerLink(ToPeerLink::BreakSession(broken)) => self.broken.push(broken.reason),
                Effect::Prefiller(ToPrefiller::PagesSent(sent)) => self.sent += sent.count,
                Effect::Prefiller(ToPrefiller::PutsDrained(_)) => self.drained += 1,
                Effect::Log(ToLog::LogLine(LogLine::ReceiverReady { .. })) => self.measured = true,
                other => panic!("{other:?}"),
            }
        }
        let in_flight = self.puts.iter().map(|ticket| self.pages[ticket]).sum();
        self.most_in_flight = self.most_in_flight.max(in_flight);
    }

    /// Takes a put or flush; the pages that are put.
    fn submit(&mut self, command: Command) -> Vec<PageId> {
        match command {
            Command::Put { session, ticket, local_offset, remote_offset, bytes } => {
                assert_eq!((session, local_offset % 100, bytes % 100), (TransportSession(S.0), 0, 0));
                let (first, pages) = ((local_offset / 100) as u32, (bytes / 100) as usize);
                let targets: Vec<u64> = self.targets.drain(..pages).map(u64::from).collect();
                let span: Vec<u64> = (0..pages as u64).map(|n| remote_offset / 100 + n).collect();
                assert_eq!((span, remote_offset % 100), (targets, 0), "each page goes under its own credit");
                self.longest_run = self.longest_run.max(pages);
                self.pages.insert(ticket, pages);
                self.puts.push(ticket);
                (first..).map(PageId).take(pages).collect()
            }
            Command::Flush { ticket, .. } => {
                self.flushes.push(ticket);
                Vec::new()
            }
            other => panic!("{other:?}"),
        }
    }

    fn ask_for_hash(&mut self, page: PageToHash) {
        let PageToHash { session, seed, .. } = page;
        assert_eq!((session, seed.session, seed.request), (S, 77, R.0));
        let (credit, hash) = (CreditNumber(seed.credit), seed.credit * 100 + u64::from(seed.place));
        if self.hashes_late {
            self.hashes.push((credit, hash));
        } else {
            let hashed = PagesHashed(vec![(S, credit, hash)]);
            assert_eq!(self.state.on(1, hashed.into()), [], "it is in flight");
        }
    }

    fn take_frame(&mut self, frame: Frame) {
        let Frame::PageFilled { first, count, owner, hashes, .. } = frame else { return };
        let expect: Vec<u64> = owner.map_or(vec![], |owner| {
            (0..count).map(|n| (first.0 + u64::from(n)) * 100 + u64::from(owner.first_page + n)).collect()
        });
        assert_eq!(hashes, expect, "every page has its own hash");
        self.ring.fill(first, count).expect("announced in order, and only what was granted");
        self.filled.push((owner, count));
    }

    fn grant(&mut self) {
        let first = self.ring.head();
        let pages: Vec<u32> = (0..self.ring.room()).collect();
        if pages.is_empty() {
            return;
        }
        for page in &pages {
            self.ring.grant(PageIndex(*page)).expect("room");
        }
        self.targets.extend(&pages);
        self.hear(1, granted(first, &pages));
    }

    fn complete(&mut self, at: usize, result: Result<(), TransportError>) {
        if !self.puts.is_empty() {
            let ticket = self.puts.remove(at % self.puts.len());
            let event = Event::PutCompleted { session: TransportSession(S.0), ticket, result };
            self.hear(2, TransportEvents(vec![event]));
        }
    }

    fn flush(&mut self) {
        if !self.flushes.is_empty() {
            let ticket = self.flushes.remove(0);
            self.hear(3, flushed(ticket, Ok(())));
        }
    }

    fn hash(&mut self) {
        if !self.hashes.is_empty() {
            let (credit, hash) = self.hashes.remove(0);
            self.hear(4, PagesHashed(vec![(S, credit, hash)]));
        }
    }

    fn turn(&mut self) {
        self.grant();
        self.complete(0, Ok(()));
        self.flush();
    }

    fn schedule(&mut self, first_page: u32, count: u32) {
        self.hear(1, scheduled(first_page, 0..count));
    }

    /// Nothing is in flight, and sixteen credits for neighbouring pages are granted at once.
    fn with_sixteen_neighbours(run_pages: usize) -> Self {
        let mut peer = Self::probed_with_runs(16, run_pages);
        peer.grant();
        // This spends the credits that were granted one by one.
        peer.schedule(0, 16);
        while peer.sent < 16 {
            peer.complete(0, Ok(()));
            peer.flush();
        }
        peer.grant();
        peer
    }
}

#[test]
fn a_ring_of_one_measures_and_carries() {
    let mut peer = Peer::probed(1);
    peer.schedule(0, 20);
    for _ in 0..20 {
        peer.turn();
    }
    assert_eq!(peer.sent, 20);
    assert!(peer.broken.is_empty(), "{:?}", peer.broken);
}

#[test]
fn a_lane_that_is_too_slow_is_not_used() {
    let mut peer = Peer::new(8);
    peer.state.config.min_gigabytes_per_second = 1e3;
    while peer.broken.is_empty() {
        peer.turn();
    }
    assert!(!peer.measured);
    assert!(peer.broken[0].contains("transport.min_gigabytes_per_second is 1000"), "{:?}", peer.broken);
}

#[test]
fn a_lane_that_cannot_carry_pages_says_what_helps() {
    let mut peer = Peer::new(8);
    peer.grant();
    peer.complete(0, Err(lane_error("Request canceled")));
    let expect = "lane tcp/lo cannot carry pages (ucp_put_nbx failed: Request canceled); check what UCX_TLS";
    assert!(peer.broken[0].starts_with(expect), "{:?}", peer.broken);
}

#[test]
fn nothing_is_announced_before_its_flush() {
    let mut peer = Peer::probed(8);
    peer.grant();
    peer.schedule(0, 2);
    assert_eq!((peer.puts.len(), peer.flushes.len()), (2, 1), "there is nothing more to post");
    peer.complete(1, Ok(()));
    peer.complete(0, Ok(()));
    assert_eq!(peer.filled, []);
    peer.flush();
    assert_eq!(peer.filled, [(Some(PageOwner { request: 5, first_page: 0 }), 2)], "neighbours share a frame");
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
    assert_eq!(peer.filled, [], "the second one's credit comes later");
    peer.complete(0, Ok(()));
    assert_eq!(
        peer.filled,
        [(Some(PageOwner { request: 5, first_page: 0 }), 1)],
        "the second one has no hash"
    );
    peer.hash();
    assert_eq!(peer.sent, 2);
}

#[test]
fn a_cancelled_request_drains_and_its_pages_are_announced_without_owner() {
    let mut peer = Peer::probed(32);
    peer.grant();
    peer.schedule(0, 20);
    assert_eq!(peer.puts.len(), PAGES_IN_FLIGHT);
    assert_eq!(peer.state.on_cancel(S, R), [], "puts are in flight");
    while !peer.puts.is_empty() {
        assert_eq!(peer.drained, 0);
        peer.complete(0, Ok(()));
    }
    assert_eq!(peer.drained, 1);
    while !peer.flushes.is_empty() {
        peer.flush();
    }
    assert_eq!(peer.filled, [(None, 8); 2], "a flush follows every eight pages");
    assert_eq!(peer.sent, 0);
}

#[test]
fn a_lost_session_still_waits_for_its_puts() {
    let mut peer = Peer::probed(8);
    peer.grant();
    peer.schedule(0, 3);
    assert_eq!(peer.state.on(1, PeerLost { session: S }.into()), []);
    assert_eq!(peer.state.on_cancel(S, R), []);
    for _ in 0..3 {
        assert_eq!(peer.drained, 0);
        peer.complete(0, Err(lane_error("connection reset")));
    }
    assert_eq!(peer.drained, 1);
    assert!(peer.broken.is_empty(), "it is lost already");
    assert_eq!(peer.state.on_cancel(S, R), [drained()], "a session that is gone has no puts");
}

#[test]
fn what_breaks_the_lane_or_the_ring_breaks_the_session() {
    let mut peer = Peer::probed(8);
    peer.grant();
    peer.schedule(0, 1);
    peer.complete(0, Err(lane_error("connection reset")));
    assert_eq!(peer.broken, ["put failed: ucp_put_nbx failed: connection reset"]);
    peer.flush();
    assert_eq!(peer.filled, [], "nothing is announced in a session that broke");

    let mut peer = Peer::probed(8);
    let effects = peer.state.on(1, granted(999, &[0]).into());
    assert!(broken(&effects).is_some_and(|reason| reason.contains("credit 999")), "{effects:?}");
    assert_eq!(peer.state.on(1, granted(999, &[0]).into()), [], "once is enough");
}

#[test]
fn a_lane_that_holds_an_operation_for_ever_is_given_up() {
    for flushing in [false, true] {
        let mut peer = Peer::probed(8);
        peer.grant();
        peer.schedule(0, 1);
        if flushing {
            peer.complete(0, Ok(()));
            assert_eq!(peer.flushes.len(), 1);
        }
        assert_eq!(peer.state.on_tick(OPERATION_MICROS_MAX), []);
        let effects = peer.state.on_tick(OPERATION_MICROS_MAX + 10);
        assert!(broken(&effects).is_some(), "{effects:?}");
        assert_eq!(peer.state.on_tick(OPERATION_MICROS_MAX + 10), [], "once is enough");
    }
}

#[test]
fn a_flush_that_fails_or_comes_late_announces_nothing() {
    for lost in [true, false] {
        let mut peer = Peer::probed(8);
        peer.grant();
        peer.schedule(0, 1);
        peer.complete(0, Ok(()));
        let ticket = peer.flushes[0];
        if lost {
            assert_eq!(peer.state.on(1, PeerLost { session: S }.into()), []);
        }
        let result = if lost { Ok(()) } else { Err(lane_error("reset")) };
        let effects = peer.state.on(9, flushed(ticket, result).into());
        let expect = (!lost).then_some("flush failed: ucp_put_nbx failed: reset");
        assert_eq!((broken(&effects), effects.len()), (expect, usize::from(!lost)), "{effects:?}");
        peer.perform(effects);
        assert_eq!(peer.filled, []);
        assert_eq!(peer.state.on_cancel(S, R), [drained()]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Every page is announced once, in order of credits, for every ring, order of completions and size of chunks.
    #[test]
    fn every_page_arrives(ring in 1..24u32, run_pages in 1..9usize, chunks in proptest::collection::vec(1..6u32, 1..8), order in any::<u64>()) {
        let mut peer = Peer::probed_with_runs(ring, run_pages);
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
        for _ in 0..4 * total + 4 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
            peer.grant();
            peer.complete((random >> 33) as usize, Ok(()));
            if random >> 63 == 0 {
                peer.flush();
            }
        }
        // Where chance let many a flush wait, the rest goes now.
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

#[test]
fn credits_beyond_the_share_go_back_in_their_turn() {
    let mut peer = Peer::probed(8);
    peer.schedule(0, 2);
    peer.grant();
    // Eight credits, two of them spent on puts that are under way.
    peer.hear(4, shared(5));
    assert_eq!(peer.filled, [], "nothing is announced before the puts in front of it");
    while !peer.puts.is_empty() || !peer.flushes.is_empty() {
        peer.complete(0, Ok(()));
        peer.flush();
    }
    let owner = PageOwner { request: R.0, first_page: 0 };
    let back: u32 = peer.filled.iter().filter(|(owner, _)| owner.is_none()).map(|(_, count)| count).sum();
    assert_eq!((peer.filled[0].0, peer.sent, back), (Some(owner), 2, 3));
    assert_eq!(peer.ring.outstanding(), 3, "two put and three given back of eight");
    assert_eq!(peer.state.on(5, shared(5).into()), [], "it holds no more than its share");
}

#[test]
fn credits_go_back_only_once_the_lane_is_there() {
    let mut state = TransferState::new(CONFIG);
    assert_eq!(state.on(0, opened(4, 1).into()), []);
    assert_eq!(state.on(0, granted(0, &[0, 1]).into()), []);
    assert_eq!(state.on(0, shared(1).into()), []);
    let effects = state.on(0, connected().into());
    assert!(effects.iter().any(is_flush), "{effects:?}");
}

#[test]
fn pages_that_are_announced_together_share_the_time() {
    let mut peer = Peer::probed(8);
    peer.grant();
    // No neighbours: two frames.
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
fn neighbours_on_both_sides_go_as_one_put() {
    let mut peer = Peer::with_sixteen_neighbours(4);
    peer.schedule(0, 6);
    assert_eq!(peer.puts.iter().map(|ticket| peer.pages[ticket]).collect::<Vec<_>>(), [4, 2]);
    assert_eq!(peer.flushes.len(), 1, "behind the last");
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
fn pages_are_not_hashed_where_both_sides_have_agreed_on_none() {
    let mut peer = Peer::with_sixteen_neighbours(1);
    peer.state.config.hashed = false;
    let effects = peer.state.on(9, scheduled(16, [3]).into());
    let [put, flush] = &effects[..] else { panic!("{effects:?}") };
    assert!(span(put).is_some() && is_flush(flush), "{effects:?}");
}

#[test]
fn a_cancelled_request_waits_for_its_hashes_too() {
    let mut peer = Peer::probed(8);
    peer.hashes_late = true;
    peer.grant();
    peer.schedule(0, 1);
    assert_eq!(peer.state.on_cancel(S, R), []);
    peer.complete(0, Ok(()));
    peer.flush();
    assert_eq!((peer.drained, peer.filled.len()), (0, 0), "a thread may be reading it");
    peer.hash();
    assert_eq!((peer.drained, &peer.filled[..]), (1, &[(None, 1)][..]));
}
