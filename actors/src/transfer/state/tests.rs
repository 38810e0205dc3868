use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const S: SessionId = SessionId(1);
const R: RequestId = RequestId(5);

/// A receiver and a lane that do what the state asks, in an order that the test chooses.
struct Peer {
    state: TransferState,
    ring: connector::ring::GrantLedger,
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
            state: TransferState { run_pages, ..TransferState::new(100, 0.0, true, false, PAGES_IN_FLIGHT) },
            ring,
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
        peer.state.on_session_opened(S, ring_pages, 77);
        let actions = peer.state.on_connected(0, S, "tcp/lo".into());
        peer.perform(actions);
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

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Put { ticket, seeds, .. } => {
                    self.longest_run = self.longest_run.max(seeds.len());
                    self.pages.insert(ticket, seeds.len());
                    for seed in seeds.into_iter().flatten() {
                        assert_eq!((seed.session, seed.request), (77, R.0));
                        let hash = seed.credit * 100 + u64::from(seed.place);
                        let credit = CreditNumber(seed.credit);
                        if self.hashes_late {
                            self.hashes.push((credit, hash));
                        } else {
                            assert_eq!(self.state.on_hashed(1, S, credit, hash), [], "it is in flight");
                        }
                    }
                    self.puts.push(ticket);
                }
                Action::Flush { ticket, .. } => self.flushes.push(ticket),
                Action::Frame(_, Frame::PageFilled { first, count, owner, hashes, .. }) => {
                    let expect: Vec<u64> = owner.map_or(vec![], |owner| {
                        (0..count)
                            .map(|n| (first.0 + u64::from(n)) * 100 + u64::from(owner.first_page + n))
                            .collect()
                    });
                    assert_eq!(hashes, expect, "every page has its own hash");
                    self.ring.fill(first, count).expect("announced in order, and only what was granted");
                    self.filled.push((owner, count));
                }
                Action::Frame(..) => {}
                Action::Sent(sent) => self.sent += sent.count,
                Action::Drained(..) => self.drained += 1,
                Action::Break(_, reason) => self.broken.push(reason),
                Action::Measured(..) => self.measured = true,
            }
        }
        let in_flight = self.puts.iter().map(|ticket| self.pages[ticket]).sum();
        self.most_in_flight = self.most_in_flight.max(in_flight);
    }

    fn grant(&mut self) {
        let first = CreditNumber(self.ring.head());
        let pages: Vec<_> = (0..self.ring.room()).map(PageIndex).collect();
        if pages.is_empty() {
            return;
        }
        for page in &pages {
            self.ring.grant(*page).expect("room");
        }
        let actions = self.state.on_granted(1, S, first, &pages);
        self.perform(actions);
    }

    fn complete(&mut self, at: usize, result: Result<(), String>) {
        if !self.puts.is_empty() {
            let ticket = self.puts.remove(at % self.puts.len());
            let actions = self.state.on_put_completed(2, S, ticket, result);
            self.perform(actions);
        }
    }

    fn flush(&mut self) {
        if !self.flushes.is_empty() {
            let ticket = self.flushes.remove(0);
            let actions = self.state.on_flushed(3, S, ticket, Ok(()));
            self.perform(actions);
        }
    }

    fn hash(&mut self) {
        if !self.hashes.is_empty() {
            let (credit, hash) = self.hashes.remove(0);
            let actions = self.state.on_hashed(4, S, credit, hash);
            self.perform(actions);
        }
    }

    fn turn(&mut self) {
        self.grant();
        self.complete(0, Ok(()));
        self.flush();
    }

    fn schedule(&mut self, first_page: u32, count: u32) {
        let pages: Vec<_> = (0..count).map(PageId).collect();
        let actions = self.state.on_schedule(1, S, R, first_page, &pages);
        self.perform(actions);
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
    peer.state.min_gigabytes_per_second = 1e3;
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
    peer.complete(0, Err("Request canceled".into()));
    assert!(
        peer.broken[0].starts_with("lane tcp/lo cannot carry pages (Request canceled); see what UCX_TLS"),
        "{:?}",
        peer.broken
    );
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
fn a_cancelled_request_drains_and_its_pages_are_nobodys() {
    let mut peer = Peer::probed(32);
    peer.grant();
    peer.schedule(0, 20);
    assert_eq!(peer.puts.len(), PAGES_IN_FLIGHT);
    let actions = peer.state.on_cancel(S, R);
    assert_eq!(actions, [], "puts are in flight");
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
    peer.state.on_lost(S);
    assert_eq!(peer.state.on_cancel(S, R), []);
    for _ in 0..3 {
        assert_eq!(peer.drained, 0);
        peer.complete(0, Err("connection reset".into()));
    }
    assert_eq!(peer.drained, 1);
    assert!(peer.broken.is_empty(), "it is lost already");
    assert_eq!(peer.state.on_cancel(S, R), [Action::Drained(S, R)], "a session that is gone has no puts");
}

#[test]
fn what_breaks_the_lane_or_the_ring_breaks_the_session() {
    let mut peer = Peer::probed(8);
    peer.grant();
    peer.schedule(0, 1);
    peer.complete(0, Err("connection reset".into()));
    assert_eq!(peer.broken, ["put failed: connection reset"]);
    peer.flush();
    assert_eq!(peer.filled, [], "nothing is announced in a session that broke");

    let mut peer = Peer::probed(8);
    let actions = peer.state.on_granted(1, S, CreditNumber(999), &[PageIndex(0)]);
    assert!(
        matches!(&actions[..], [Action::Break(S, reason)] if reason.contains("credit 999")),
        "{actions:?}"
    );
    assert_eq!(peer.state.on_granted(1, S, CreditNumber(999), &[PageIndex(0)]), [], "once is enough");
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
        let actions = peer.state.on_tick(OPERATION_MICROS_MAX + 10);
        assert!(matches!(&actions[..], [Action::Break(S, _)]), "{actions:?}");
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
            peer.state.on_lost(S);
        }
        let result = if lost { Ok(()) } else { Err("reset".into()) };
        let actions = peer.state.on_flushed(9, S, ticket, result);
        assert_eq!(actions.len(), usize::from(!lost), "{actions:?}");
        peer.perform(actions);
        assert_eq!(peer.filled, []);
        assert_eq!(peer.state.on_cancel(S, R), [Action::Drained(S, R)]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever the ring, the order of completions and the chunks, every page is announced once, in order of credits.
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
    let actions = peer.state.on_ring_shared(4, S, 5);
    peer.perform(actions);
    assert_eq!(peer.filled, [], "nothing is announced before the puts in front of it");
    while !peer.puts.is_empty() || !peer.flushes.is_empty() {
        peer.complete(0, Ok(()));
        peer.flush();
    }
    let owner = PageOwner { request: R.0, first_page: 0 };
    let back: u32 = peer.filled.iter().filter(|(owner, _)| owner.is_none()).map(|(_, count)| count).sum();
    assert_eq!((peer.filled[0].0, peer.sent, back), (Some(owner), 2, 3));
    assert_eq!(peer.ring.outstanding(), 3, "two put and three given back of eight");
    let actions = peer.state.on_ring_shared(5, S, 5);
    assert_eq!(actions, [], "it holds no more than its share");
}

#[test]
fn credits_go_back_only_once_the_lane_is_there() {
    let mut state = TransferState::new(100, 0.0, true, false, PAGES_IN_FLIGHT);
    state.on_session_opened(S, 4, 1);
    state.on_granted(0, S, CreditNumber(0), &[PageIndex(0), PageIndex(1)]);
    assert_eq!(state.on_ring_shared(0, S, 1), []);
    let actions = state.on_connected(0, S, "tcp/lo".into());
    assert!(actions.iter().any(|action| matches!(action, Action::Flush { .. })), "{actions:?}");
}

#[test]
fn neighbours_on_both_sides_go_as_one_put() {
    let mut peer = Peer::probed_with_runs(16, 4);
    peer.grant();
    // Spends what was granted one by one; then sixteen neighbours are granted at once.
    peer.schedule(0, 16);
    while peer.sent < 16 {
        peer.complete(0, Ok(()));
        peer.flush();
    }
    peer.grant();
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
