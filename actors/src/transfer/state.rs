//! When which page is put: the decisions of the transfer actor, without actix, clock or transport.
//!
//! A ready page spends the next credit and is put; puts complete in any order; a flush covers those that are done, and the rest too when
//! nothing more can be posted; only a page whose put is done, flushed and hashed is announced. One flush is in flight at a time, and
//! while it is, further puts are posted.
//!
//! ```text
//! ready ──credit──► put ──completion, flush, hash──► visible ──► PageFilled frame, PagesSent
//! ```
//!
//! A new session first moves a few pages that belong to nobody: that is the measurement printed at start-up, over the
//! very path that requests will take.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::num::NonZeroU32;

use connector::frame::{Frame, PageOwner};
use connector::page_hash::PageSeed;
use connector::ring::{CreditNumber, PageIndex, SpendLedger};
use connector::transport::Ticket;
use engine::PageId;

use crate::messages::{PagesSent, SessionId};
use crate::request::RequestId;

/// Most puts in flight in a session: enough to fill a lane, few enough not to queue behind each other.
pub const PUTS_IN_FLIGHT: usize = 16;
/// Most pages moved by the measurement at a session's start, before and during the measured part.
const PROBE_PAGES: (u32, u32) = (8, 64);
/// A put or flush that has not completed for this long is lost, whatever the lane says: the link's heartbeats do not
/// see the lane.
pub const OPERATION_MICROS_MAX: u64 = 5_000_000;
/// Largest ring that a sender keeps books for.
const RING_PAGES_MAX: u32 = 1 << 20;

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Post a put of our `page` into the receiver's page `into`.
    Put {
        /// To whom.
        session: SessionId,
        /// Names it.
        ticket: Ticket,
        /// Page of our pool.
        page: PageId,
        /// Page of theirs.
        into: PageIndex,
        /// What its hash is to be seeded with; `None`: nobody's page, which has none.
        seed: Option<PageSeed>,
    },
    /// Post a flush.
    Flush {
        /// To whom.
        session: SessionId,
        /// Names it.
        ticket: Ticket,
    },
    /// Tell the receiver.
    Frame(SessionId, Frame),
    /// Tell the prefiller: these more pages are visible there.
    Sent(PagesSent),
    /// Tell the prefiller: no put of this cancelled request is in flight.
    Drained(SessionId, RequestId),
    /// The peer or the lane broke: end the session, for this reason.
    Break(SessionId, String),
    /// The lane was measured: lane, bytes, microseconds.
    Measured(SessionId, String, u64, u64),
}

/// What a credit was spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    /// A page that belongs to nobody, to measure the lane.
    Probe,
    /// A page of a request.
    Page(PageOwner),
    /// Nothing: the credit goes back.
    Nothing,
}

impl Load {
    fn is_of(self, request: RequestId) -> bool {
        matches!(self, Self::Page(owner) if owner.request == request.0)
    }
}

#[derive(Debug)]
struct Ready {
    load: Load,
    page: PageId,
}

#[derive(Debug)]
struct Put {
    ticket: Ticket,
    load: Load,
    posted_micros: u64,
    hash: Option<u64>,
    done: bool,
    /// The request was cancelled: the page is announced as nobody's.
    cancelled: bool,
}

impl Put {
    /// Whose page it is announced as.
    fn owner(&self) -> Option<PageOwner> {
        match self.load {
            Load::Page(owner) if !self.cancelled => Some(owner),
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
struct Probe {
    warm: u32,
    measured: u32,
    began_micros: Option<u64>,
    bytes: u64,
}

#[derive(Debug)]
struct Session {
    ring: SpendLedger,
    seed: u64,
    lane: Option<String>,
    ready: VecDeque<Ready>,
    /// Spent credits in order: in flight, done, or under the flush.
    puts: VecDeque<Put>,
    /// How many puts from the front are flushed.
    flushed: usize,
    /// The flush in flight, how many puts from the front it covers, and when it was posted.
    flush: Option<(Ticket, usize, u64)>,
    /// When each request's first put was posted.
    began: HashMap<RequestId, u64>,
    probe: Option<Probe>,
    lost: bool,
    /// When the last flush was over.
    flushed_micros: u64,
}

/// Every session's queue. Every `on_…` returns what has to be done, in order.
#[derive(Debug)]
pub struct TransferState {
    page_bytes: u64,
    /// A lane that moves less than this many gigabytes a second is not used.
    min_gbps: f64,
    /// Pages are announced with their hashes.
    hashed: bool,
    next_ticket: u64,
    sessions: BTreeMap<SessionId, Session>,
}

impl TransferState {
    /// No sessions; pages have `page_bytes` bytes, and a lane that moves less than `min_gbps` GB/s is not used; pages are
    /// announced with their hashes or not.
    pub fn new(page_bytes: u64, min_gbps: f64, hashed: bool) -> Self {
        Self { page_bytes, min_gbps, hashed, next_ticket: 0, sessions: BTreeMap::new() }
    }

    /// Lost sessions of which an operation is still waited for.
    pub fn lost(&self) -> usize {
        self.sessions.values().filter(|live| live.lost).count()
    }

    /// A session began. Credits may come before the lane is connected.
    pub fn on_session_opened(&mut self, session: SessionId, ring_pages: u32, seed: u64) {
        let Some(capacity) = NonZeroU32::new(ring_pages.min(RING_PAGES_MAX)) else { return };
        let probe = Probe {
            warm: PROBE_PAGES.0.min(ring_pages),
            measured: PROBE_PAGES.1.min(ring_pages.max(PROBE_PAGES.0)),
            ..Probe::default()
        };
        self.sessions.insert(
            session,
            Session {
                ring: SpendLedger::new(capacity),
                seed,
                lane: None,
                ready: VecDeque::new(),
                puts: VecDeque::new(),
                flushed: 0,
                flush: None,
                began: HashMap::new(),
                probe: Some(probe),
                lost: false,
                flushed_micros: 0,
            },
        );
    }

    /// Puts may be posted: first the probe's.
    pub fn on_connected(&mut self, now_micros: u64, session: SessionId, lane: String) -> Vec<Action> {
        if let Some(live) = self.sessions.get_mut(&session) {
            live.lane = Some(lane);
            let warm = live.probe.as_ref().map_or(0, |probe| probe.warm);
            live.ready.extend((0..warm).map(|_| Ready { load: Load::Probe, page: PageId(0) }));
        }
        self.pump(now_micros, session)
    }

    /// The receiver granted credits.
    pub fn on_granted(
        &mut self,
        now_micros: u64,
        session: SessionId,
        first: CreditNumber,
        pages: &[PageIndex],
    ) -> Vec<Action> {
        let Some(live) = self.sessions.get_mut(&session) else { return Vec::new() };
        match live.ring.accept(first, pages) {
            Ok(()) => self.pump(now_micros, session),
            Err(error) => self.give_up(session, error.to_string()),
        }
    }

    /// Our share of the ring: of the credits beyond it, those that no put has spent go back, in their turn.
    pub fn on_ring_shared(&mut self, now_micros: u64, session: SessionId, pages: u32) -> Vec<Action> {
        let ticket = self.ticket();
        let Some(live) = self.sessions.get_mut(&session).filter(|live| !live.lost) else { return Vec::new() };
        let excess = (live.ring.available() + live.ring.unannounced()).saturating_sub(pages);
        for _ in 0..excess {
            let Some(_) = live.ring.spend() else { break };
            let (load, posted_micros, hash) = (Load::Nothing, now_micros, None);
            live.puts.push_back(Put { ticket, load, posted_micros, hash, done: true, cancelled: false });
        }
        self.pump(now_micros, session)
    }

    /// Final pages of a request, the first of them at `first_page` of its page table.
    pub fn on_schedule(
        &mut self,
        now_micros: u64,
        session: SessionId,
        request: RequestId,
        first_page: u32,
        pages: &[PageId],
    ) -> Vec<Action> {
        let Some(live) = self.sessions.get_mut(&session).filter(|live| !live.lost) else { return Vec::new() };
        for (n, &page) in (0..).zip(pages) {
            let owner = PageOwner { request: request.0, first_page: first_page + n };
            live.ready.push_back(Ready { load: Load::Page(owner), page });
        }
        self.pump(now_micros, session)
    }

    /// Nothing more of this request is to be sent, because all is or because nobody wants it: what is queued is
    /// dropped, what is in flight is waited for.
    pub fn on_cancel(&mut self, session: SessionId, request: RequestId) -> Vec<Action> {
        let Some(live) = self.sessions.get_mut(&session) else {
            return vec![Action::Drained(session, request)];
        };
        live.ready.retain(|ready| !ready.load.is_of(request));
        live.began.remove(&request);
        let mut flying = false;
        for put in live.puts.iter_mut().filter(|put| put.load.is_of(request)) {
            put.cancelled = true;
            flying |= !put.done;
        }
        if flying { Vec::new() } else { vec![Action::Drained(session, request)] }
    }

    /// The hash of the page that this put carries. It is announced with the page.
    pub fn on_hashed(
        &mut self,
        now_micros: u64,
        session: SessionId,
        ticket: Ticket,
        hash: u64,
    ) -> Vec<Action> {
        let put = self
            .sessions
            .get_mut(&session)
            .and_then(|live| live.puts.iter_mut().find(|put| put.ticket == ticket));
        let Some(put) = put else { return Vec::new() };
        put.hash = Some(hash);
        let mut actions = self.announce(now_micros, session);
        if !actions.is_empty() {
            // The probe may have come to its measured part.
            actions.extend(self.pump(now_micros, session));
        }
        actions
    }

    /// A put's source is free again, or the put failed.
    pub fn on_put_completed(
        &mut self,
        now_micros: u64,
        session: SessionId,
        ticket: Ticket,
        result: Result<(), String>,
    ) -> Vec<Action> {
        let Some(live) = self.sessions.get_mut(&session) else { return Vec::new() };
        let Some(put) = live.puts.iter_mut().find(|put| put.ticket == ticket) else { return Vec::new() };
        put.done = true;
        let mut actions = Vec::new();
        if let (Load::Page(owner), true) = (put.load, put.cancelled) {
            let request = RequestId(owner.request);
            if !live.puts.iter().any(|put| !put.done && put.load.is_of(request)) {
                actions.push(Action::Drained(session, request));
            }
        }
        if let Err(error) = result {
            actions.extend(self.give_up(session, format!("put failed: {error}")));
        }
        self.reap(session);
        actions.extend(self.announce(now_micros, session));
        actions.extend(self.pump(now_micros, session));
        actions
    }

    /// Everything under the flush is visible at the receiver, or the flush failed.
    pub fn on_flushed(
        &mut self,
        now_micros: u64,
        session: SessionId,
        ticket: Ticket,
        result: Result<(), String>,
    ) -> Vec<Action> {
        let Some(live) = self.sessions.get_mut(&session) else { return Vec::new() };
        let Some((_, covered, _)) = live.flush.take_if(|flush| flush.0 == ticket) else { return Vec::new() };
        if live.lost {
            return Vec::new();
        }
        if let Err(error) = result {
            return self.give_up(session, format!("flush failed: {error}"));
        }
        live.flushed = live.flushed.max(covered);
        let mut actions = self.announce(now_micros, session);
        actions.extend(self.pump(now_micros, session));
        actions
    }

    /// The session is over. Puts in flight are still waited for: their sources are in use until they complete.
    pub fn on_lost(&mut self, session: SessionId) {
        if let Some(live) = self.sessions.get_mut(&session) {
            live.lost = true;
            live.ready.clear();
            self.reap(session);
        }
    }

    /// Time has passed: a session whose lane holds an operation for too long is given up.
    pub fn on_tick(&mut self, now_micros: u64) -> Vec<Action> {
        let stuck = |live: &Session| {
            // Not done, not flushed, or not hashed.
            let puts = live.puts.iter().filter(|_| live.lane.is_some()).map(|put| put.posted_micros);
            let oldest = puts.chain(live.flush.map(|flush| flush.2)).min();
            oldest.is_some_and(|posted| now_micros.saturating_sub(posted) > OPERATION_MICROS_MAX)
        };
        let stuck: Vec<SessionId> =
            self.sessions.iter().filter(|(_, live)| stuck(live)).map(|(session, _)| *session).collect();
        let reason =
            format!("lane has held an operation for more than {} s", OPERATION_MICROS_MAX / 1_000_000);
        stuck.into_iter().flat_map(|session| self.give_up(session, reason.clone())).collect()
    }

    /// Nothing more is posted or announced in a session that broke; its end is asked for once.
    fn give_up(&mut self, session: SessionId, reason: String) -> Vec<Action> {
        match self.sessions.get_mut(&session) {
            Some(live) if !live.lost => {
                live.lost = true;
                live.ready.clear();
                vec![Action::Break(session, reason)]
            }
            _ => Vec::new(),
        }
    }

    /// Forgets a lost session whose last operation has completed.
    fn reap(&mut self, session: SessionId) {
        if self.sessions.get(&session).is_some_and(|live| live.lost && live.puts.iter().all(|put| put.done)) {
            self.sessions.remove(&session);
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    /// Posts what can be posted: puts as far as credits and the window go, and a flush over what is done.
    fn pump(&mut self, now_micros: u64, session: SessionId) -> Vec<Action> {
        let mut actions = Vec::new();
        loop {
            let ticket = self.ticket();
            let Some(live) = self.sessions.get_mut(&session) else { return actions };
            let flying = live.puts.iter().filter(|put| !put.done).count();
            if live.lost || live.lane.is_none() || flying >= PUTS_IN_FLIGHT || live.ready.is_empty() {
                break;
            }
            let Some(credit) = live.ring.spend() else { break };
            let Ready { load, page } = live.ready.pop_front().expect("it is not empty");
            let mut seed = None;
            if let Load::Page(PageOwner { request, first_page: place }) = load {
                live.began.entry(RequestId(request)).or_insert(now_micros);
                seed = Some(PageSeed { session: live.seed, credit: credit.number.0, request, place });
            } else if let Some(probe) = live.probe.as_mut().filter(|probe| probe.warm == 0) {
                probe.began_micros.get_or_insert(now_micros);
            }
            let (posted_micros, hash) = (now_micros, None);
            live.puts.push_back(Put { ticket, load, posted_micros, hash, done: false, cancelled: false });
            actions.push(Action::Put { session, ticket, page, into: credit.page, seed });
        }
        let ticket = self.ticket();
        let Some(live) = self.sessions.get_mut(&session) else { return actions };
        if live.flush.is_some() || live.lane.is_none() || live.lost {
            return actions;
        }
        // With nothing more to post it need not wait for what is in flight: it is over after that.
        let is_last = live.ready.is_empty() || live.ring.available() == 0;
        let done = live.puts.iter().skip(live.flushed).take_while(|put| put.done).count();
        let covered = if is_last { live.puts.len() } else { live.flushed + done };
        if covered > live.flushed {
            live.flush = Some((ticket, covered, now_micros));
            actions.push(Action::Flush { session, ticket });
        }
        actions
    }

    /// Announces the puts at the front that are done, flushed and hashed: one frame a run of one request's neighbouring pages.
    fn announce(&mut self, now: u64, session: SessionId) -> Vec<Action> {
        let hashed = self.hashed;
        let Some(live) = self.sessions.get_mut(&session).filter(|live| !live.lost) else { return Vec::new() };
        let is_whole = |put: &&Put| put.done && (!hashed || put.hash.is_some() || put.owner().is_none());
        let count = live.puts.iter().take(live.flushed).take_while(is_whole).count();
        if count == 0 {
            return Vec::new();
        }
        let mut covered: VecDeque<Put> = live.puts.drain(..count).collect();
        live.flushed -= count;
        if let Some((_, covers, _)) = &mut live.flush {
            *covers -= count;
        }
        let mut actions = Vec::new();
        let began = covered.front().map_or(now, |put| put.posted_micros.max(live.flushed_micros));
        // With the first pages only: the lane had all of them at once.
        let mut put_micros = now.saturating_sub(began);
        live.flushed_micros = now;
        while let Some(put) = covered.pop_front() {
            let (load, owner) = (put.load, put.owner());
            let mut count = 1;
            let mut hashes: Vec<u64> = put.hash.filter(|_| owner.is_some()).into_iter().collect();
            let follows = |put: &Put, count: u32| match (owner, put.owner()) {
                (Some(first), Some(next)) => {
                    next == PageOwner { first_page: first.first_page + count, ..first }
                }
                (None, None) => (load == Load::Probe) == (put.load == Load::Probe),
                _ => false,
            };
            while let Some(next) = covered.pop_front_if(|put| follows(put, count)) {
                hashes.extend(next.hash.filter(|_| owner.is_some()));
                count += 1;
            }
            let first = match live.ring.announce(count) {
                Ok(first) => first,
                Err(error) => {
                    actions.extend(self.give_up(session, error.to_string()));
                    return actions;
                }
            };
            let began = owner.and_then(|owner| live.began.get(&RequestId(owner.request)));
            let transfer_micros = began.map_or(0, |began| now.saturating_sub(*began));
            actions.push(Action::Frame(
                session,
                Frame::PageFilled { first, count, owner, hashes, transfer_micros },
            ));
            match (owner, load, &mut live.probe) {
                (Some(owner), ..) => {
                    let request = RequestId(owner.request);
                    let put_micros = std::mem::take(&mut put_micros);
                    actions.push(Action::Sent(PagesSent { session, request, count, put_micros }));
                }
                (None, Load::Probe, Some(probe)) if probe.warm > 0 => {
                    probe.warm = probe.warm.saturating_sub(count);
                }
                (None, Load::Probe, Some(probe)) => {
                    probe.measured = probe.measured.saturating_sub(count);
                    probe.bytes += u64::from(count) * self.page_bytes;
                }
                _ => {}
            }
        }
        actions.extend(self.measure(now, session));
        actions
    }

    /// Moves the probe on: from warming to measuring, from measuring to its result.
    fn measure(&mut self, now_micros: u64, session: SessionId) -> Vec<Action> {
        let Some(live) = self.sessions.get_mut(&session) else { return Vec::new() };
        let Some(probe) = &live.probe else { return Vec::new() };
        let queued = live.ready.iter().any(|ready| ready.load == Load::Probe)
            || live.puts.iter().any(|put| put.load == Load::Probe);
        if probe.warm > 0 || queued {
            return Vec::new();
        }
        match probe.began_micros {
            None => {
                let measured = probe.measured;
                live.ready.extend((0..measured).map(|_| Ready { load: Load::Probe, page: PageId(0) }));
                Vec::new()
            }
            Some(began) => {
                let (bytes, micros) = (probe.bytes, now_micros.saturating_sub(began).max(1));
                let lane = live.lane.clone().unwrap_or_default();
                live.probe = None;
                let gbps = bytes as f64 / micros as f64 / 1e3;
                if gbps < self.min_gbps {
                    let reason = format!(
                        "lane {lane} moves {gbps:.2} GB/s, and transport.min_gbps is {}; see that UCX has cuda_ipc (UCX_TLS) and the \
                         GPUs a link, or set it lower",
                        self.min_gbps
                    );
                    return self.give_up(session, reason);
                }
                vec![
                    Action::Measured(session, lane.clone(), bytes, micros),
                    Action::Frame(session, Frame::LinkProbed { lane, bytes, micros }),
                ]
            }
        }
    }
}

#[cfg(test)]
mod tests;
