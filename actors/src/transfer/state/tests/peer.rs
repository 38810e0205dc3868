//! A receiver and a lane for tests of the transfer state.

use std::collections::{HashMap, VecDeque};

use super::*;
use crate::log::LogLine;

/// A receiver and a lane that perform the state's effects, in an order that the test chooses.
pub(super) struct Peer {
    pub(super) state: TransferState,
    pub(super) ring: connector::ring::GrantLedger,
    lanes: Lanes,
    /// By lane: granted pages that are not the target of a put yet, in the order of their credits.
    targets: Vec<VecDeque<u32>>,
    pub(super) puts: Vec<Ticket>,
    pub(super) flushes: Vec<Ticket>,
    pub(super) filled: Vec<(Option<PageOwner>, u32)>,
    pub(super) sent: u32,
    pub(super) drained: u32,
    pub(super) measured: bool,
    pub(super) broken: Vec<String>,
    pub(super) most_in_flight: usize,
    /// Pages of each put, by its ticket.
    pub(super) pages: HashMap<Ticket, usize>,
    /// The lane of each put.
    lane_of: HashMap<Ticket, u32>,
    /// Pages of the longest put so far.
    pub(super) longest_run: usize,
    /// Hashes arrive when the test calls [`hash`](Self::hash), not at once.
    pub(super) hashes_late: bool,
    hashes: Vec<(CreditNumber, u64)>,
}

impl Peer {
    pub(super) fn new(ring_pages: u32) -> Self {
        Self::in_shards(ring_pages, 1, (1, 1))
    }

    /// A peer whose pages have `shards.1` shards, of a sender whose pages have `shards.0`.
    fn in_shards(ring_pages: u32, run_pages: usize, shards: (u32, u32)) -> Self {
        let lanes = Lanes::between(shards.0, shards.1).expect("they fit");
        let config = TransferConfig { shards: shards.0, ..CONFIG };
        let ring = connector::ring::GrantLedger::new(NonZeroU32::new(ring_pages).expect("at least one"));
        let mut peer = Self {
            state: TransferState { run_pages, ..TransferState::new(config) },
            ring,
            lanes,
            targets: vec![VecDeque::new(); lanes.count() as usize],
            puts: Vec::new(),
            flushes: Vec::new(),
            filled: Vec::new(),
            sent: 0,
            drained: 0,
            measured: false,
            broken: Vec::new(),
            most_in_flight: 0,
            pages: HashMap::new(),
            lane_of: HashMap::new(),
            longest_run: 0,
            hashes_late: false,
            hashes: Vec::new(),
        };
        peer.hear(0, opened(ring_pages, 77));
        peer.hear(0, LaneConnected { shards: shards.1, ..connected() });
        peer
    }

    /// A peer whose start-up measurement is over.
    pub(super) fn probed(ring_pages: u32) -> Self {
        Self::probed_in_shards(ring_pages, 1, (1, 1))
    }

    pub(super) fn probed_in_shards(ring_pages: u32, run_pages: usize, shards: (u32, u32)) -> Self {
        let mut peer = Self::in_shards(ring_pages, run_pages, shards);
        while !peer.measured {
            peer.turn();
        }
        peer.filled.clear();
        peer
    }

    /// Gives the state a message and performs its effects.
    pub(super) fn hear(&mut self, now_micros: u64, mail: impl Into<ToTransfer>) {
        let effects = self.state.on(now_micros, mail.into());
        self.perform(effects);
    }

    pub(super) fn perform(&mut self, effects: Vec<Effect>) {
        // Pages of the sender's pool that this message puts.
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
        // A page may be in flight on some of its lanes.
        let in_flight = |lane| {
            let on_lane = self.puts.iter().filter(|ticket| self.lane_of[*ticket] == lane);
            on_lane.map(|ticket| self.pages[ticket]).sum()
        };
        let most = (0..self.lanes.count()).map(in_flight).max();
        self.most_in_flight = self.most_in_flight.max(most.unwrap_or_default());
    }

    /// Takes a put or flush. Returns the pages that are put.
    fn submit(&mut self, command: Command) -> Vec<PageId> {
        match command {
            Command::Put { session, ticket, lane, local_offset, remote_offset, bytes } => {
                let piece = 100 / u64::from(self.lanes.count());
                assert_eq!((session, bytes % piece), (TransportSession(S.0), 0));
                let pages = (bytes / piece) as usize;
                let targets: Vec<u32> = self.targets[lane as usize].drain(..pages).collect();
                // The first page of the put is the one whose piece begins there.
                let starts = |page: &u32| self.piece(lane, *page, targets[0]).local_offset == local_offset;
                let first = (0..64).find(starts).expect("a piece of this lane begins there");
                for (n, into) in (0..).zip(targets) {
                    let at = u64::from(n) * piece;
                    let piece = self.piece(lane, first + n, into);
                    let offsets = (piece.local_offset, piece.remote_offset);
                    assert_eq!(
                        offsets,
                        (local_offset + at, remote_offset + at),
                        "each page goes under its own credit"
                    );
                }
                self.longest_run = self.longest_run.max(pages);
                self.pages.insert(ticket, pages);
                self.lane_of.insert(ticket, lane);
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

    fn piece(&self, lane: u32, page: u32, into: u32) -> connector::shards::Piece {
        self.lanes.pieces(100, page, into).nth(lane as usize).expect("there is such a lane")
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

    pub(super) fn grant(&mut self) {
        let first = self.ring.head();
        let pages: Vec<u32> = (0..self.ring.room()).collect();
        if pages.is_empty() {
            return;
        }
        for page in &pages {
            self.ring.grant(PageIndex(*page)).expect("there is room");
        }
        self.targets.iter_mut().for_each(|targets| targets.extend(&pages));
        self.hear(1, granted(first, &pages));
    }

    pub(super) fn complete(&mut self, at: usize, result: Result<(), TransportError>) {
        if !self.puts.is_empty() {
            let ticket = self.puts.remove(at % self.puts.len());
            let event = Event::PutCompleted { session: TransportSession(S.0), ticket, result };
            self.hear(2, TransportEvents(vec![event]));
        }
    }

    pub(super) fn flush(&mut self) {
        if !self.flushes.is_empty() {
            let ticket = self.flushes.remove(0);
            self.hear(3, flushed(ticket, Ok(())));
        }
    }

    pub(super) fn hash(&mut self) {
        if !self.hashes.is_empty() {
            let (credit, hash) = self.hashes.remove(0);
            self.hear(4, PagesHashed(vec![(S, credit, hash)]));
        }
    }

    pub(super) fn turn(&mut self) {
        self.grant();
        self.complete(0, Ok(()));
        self.flush();
    }

    pub(super) fn schedule(&mut self, first_page: u32, count: u32) {
        self.hear(1, scheduled(first_page, 0..count));
    }

    /// A peer with nothing in flight and sixteen free credits for neighbouring pages.
    pub(super) fn with_sixteen_neighbours(run_pages: usize) -> Self {
        Self::with_sixteen_neighbours_in_shards(run_pages, (1, 1))
    }

    pub(super) fn with_sixteen_neighbours_in_shards(run_pages: usize, shards: (u32, u32)) -> Self {
        let mut peer = Self::probed_in_shards(16, run_pages, shards);
        peer.grant();
        // This spends the credits that were granted one at a time.
        peer.schedule(0, 16);
        while peer.sent < 16 {
            peer.complete(0, Ok(()));
            peer.flush();
        }
        peer.grant();
        peer
    }
}
