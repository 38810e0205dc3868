//! When which page is put: the decisions of the transfer actor, without actix, clock or transport.
//!
//! A ready page spends the next credit and is put, together with its neighbours if theirs are the neighbours of its target; puts complete in
//! any order; a flush follows every few pages, and the last, and is over when all puts before it are visible; only a page whose put is
//! done, flushed and hashed is announced. So what is announced last is a few pages, and the receiver has checked the others by then.
//!
//! ```text
//! ready ──credit──► put ──completion, flush, hash──► visible ──► PageFilled frame, PagesSent
//! ```
//!
//! A new session first moves a few pages that belong to nobody: that is the measurement printed at start-up, over the
//! very path that requests will take.

mod session;

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use connector::frame::{Frame, PageOwner};
use connector::page_hash::PageSeed;
use connector::ring::{CreditNumber, PageIndex};
use connector::transport::Ticket;
use engine::PageId;

use crate::messages::{PagesSent, SessionId};
use crate::request::RequestId;
use session::{Load, Put, Ready, Session};

/// Most pages in flight in a session, as a rule: enough to fill a lane, few enough not to queue behind each other.
pub const PAGES_IN_FLIGHT: usize = 16;
/// Pages after which a flush is posted: fewer wake more threads than they save, where a lane has two cores.
const FLUSH_PAGES: usize = 8;
/// Pages that may go as one put between devices, where each put is a launch: so many that a lane is full with two of them; and there are two.
const RUN_PAGES_ON_DEVICE: usize = 8;
/// The same between hosts: the bytes of a long put leave the processor's caches between its sockets and its copies.
const RUN_PAGES_ON_HOST: usize = 1;
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
    /// Post a put of our pages from `page` on into the receiver's pages from `into` on.
    Put {
        /// To whom.
        session: SessionId,
        /// Names it.
        ticket: Ticket,
        /// First page of our pool.
        page: PageId,
        /// First page of theirs.
        into: PageIndex,
        /// One for each page: what its hash is to be seeded with; `None`: nobody's page, which has none.
        seeds: Vec<Option<PageSeed>>,
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

/// Every session's queue. Every `on_…` returns what has to be done, in order.
#[derive(Debug)]
pub struct TransferState {
    page_bytes: u64,
    /// A lane that moves less than this many gigabytes a second is not used.
    min_gigabytes_per_second: f64,
    /// Pages are announced with their hashes.
    hashed: bool,
    /// Most pages in flight in a session.
    in_flight: usize,
    /// Most neighbours that go as one put.
    run_pages: usize,
    /// What helps where a lane cannot carry pages.
    mend: &'static str,
    next_ticket: u64,
    sessions: BTreeMap<SessionId, Session>,
}

impl TransferState {
    /// No sessions; pages have `page_bytes` bytes, and a lane that moves less than `min_gigabytes_per_second` is not used; pages
    /// are announced with their hashes or not; they lie on a device or on the host; and at most `in_flight` of a session,
    /// at least one, are in flight.
    pub fn new(
        page_bytes: u64,
        min_gigabytes_per_second: f64,
        hashed: bool,
        on_device: bool,
        in_flight: usize,
    ) -> Self {
        let in_flight = in_flight.max(1);
        let (run_pages, mend) = if on_device {
            (
                RUN_PAGES_ON_DEVICE.min(in_flight.div_ceil(2)),
                "let UCX_TLS have cuda_ipc, and see that the two GPUs are peers on one host",
            )
        } else {
            (RUN_PAGES_ON_HOST, "see what UCX_TLS and UCX_NET_DEVICES allow")
        };
        let sessions = BTreeMap::new();
        Self {
            page_bytes,
            min_gigabytes_per_second,
            hashed,
            in_flight,
            run_pages,
            mend,
            next_ticket: 0,
            sessions,
        }
    }

    /// Lost sessions of which an operation is still waited for.
    pub fn lost(&self) -> usize {
        self.sessions.values().filter(|live| live.lost).count()
    }

    /// A session began. Credits may come before the lane is connected.
    pub fn on_session_opened(&mut self, session: SessionId, ring_pages: u32, seed: u64) {
        let Some(capacity) = NonZeroU32::new(ring_pages.min(RING_PAGES_MAX)) else { return };
        self.sessions.insert(session, Session::new(capacity, seed));
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
        let Some(live) = self.sessions.get_mut(&session).filter(|live| !live.lost) else { return Vec::new() };
        live.give_back(pages, now_micros);
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
        live.cancel(request);
        if live.is_drained(request) { vec![Action::Drained(session, request)] } else { Vec::new() }
    }

    /// The hash of the page that was put under this credit. It is announced with the page.
    pub fn on_hashed(
        &mut self,
        now_micros: u64,
        session: SessionId,
        credit: CreditNumber,
        hash: u64,
    ) -> Vec<Action> {
        let Some(live) = self.sessions.get_mut(&session) else { return Vec::new() };
        let over = live.on_over(|put| (put.credit == credit).then(|| put.hash = Some(hash)).is_some());
        self.went_over(now_micros, session, over)
    }

    /// The sources of a put are free again, or the put failed.
    pub fn on_put_completed(
        &mut self,
        now_micros: u64,
        session: SessionId,
        ticket: Ticket,
        result: Result<(), String>,
    ) -> Vec<Action> {
        let Some(live) = self.sessions.get_mut(&session) else { return Vec::new() };
        let over = live.on_over(|put| (put.ticket == ticket).then(|| put.done = true).is_some());
        let mut actions = match result {
            Ok(()) => Vec::new(),
            Err(error) => {
                let reason = match live.probe.as_ref().and(live.lane.as_deref()) {
                    Some(lane) => format!("lane {lane} cannot carry pages ({error}); {}", self.mend),
                    None => format!("put failed: {error}"),
                };
                self.give_up(session, reason)
            }
        };
        actions.extend(self.went_over(now_micros, session, over));
        actions
    }

    /// Nothing of ours reads pages of these cancelled requests any more; and what is whole now is announced.
    fn went_over(&mut self, now_micros: u64, session: SessionId, drained: Vec<RequestId>) -> Vec<Action> {
        let drained = drained.into_iter().map(|request| Action::Drained(session, request));
        let mut actions: Vec<Action> = drained.collect();
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
        let Some(place) = live.flushes.iter().position(|flush| flush.0 == ticket) else { return Vec::new() };
        let Some((_, below)) = live.flushes.remove(place) else { return Vec::new() };
        if live.lost {
            return Vec::new();
        }
        if let Err(error) = result {
            return self.give_up(session, format!("flush failed: {error}"));
        }
        live.flushed = live.flushed.max(below);
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
            // Not done, not flushed, or not hashed. They are in the order of posting.
            let oldest = live.puts.front().filter(|_| live.lane.is_some());
            oldest.is_some_and(|put| now_micros.saturating_sub(put.posted_micros) > OPERATION_MICROS_MAX)
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
        if self.sessions.get(&session).is_some_and(|live| live.lost && live.puts.iter().all(Put::is_over)) {
            self.sessions.remove(&session);
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    /// Posts what can be posted: puts as far as credits and the window go, and flushes behind them.
    fn pump(&mut self, now_micros: u64, session: SessionId) -> Vec<Action> {
        let mut actions: Vec<Action> = Vec::new();
        loop {
            let next = self.ticket();
            let Some(live) = self.sessions.get_mut(&session) else { return actions };
            // A run is not cut by a flush.
            // Twice what those pages need: the last of a request's may be few.
            let most = 2 * self.in_flight.div_ceil(FLUSH_PAGES);
            if let Some(below) = live.flush_below(self.run_pages.max(FLUSH_PAGES), most) {
                live.flushes.push_back((next, below));
                actions.push(Action::Flush { session, ticket: next });
                continue;
            }
            let flying = live.puts.iter().filter(|put| !put.done).count();
            if live.lost || live.lane.is_none() || flying >= self.in_flight || live.ready.is_empty() {
                break;
            }
            let Some(credit) = live.ring.spend() else { break };
            let Ready { load, page } = live.ready.pop_front().expect("it is not empty");
            let seed = live.seed_of(load, credit.number, now_micros);
            let ticket = match actions.last_mut() {
                Some(Action::Put { ticket, page: first, into, seeds, .. })
                    if seeds.len() < self.run_pages
                        && first.0 + seeds.len() as u32 == page.0
                        && into.0 + seeds.len() as u32 == credit.page.0 =>
                {
                    seeds.push(seed);
                    *ticket
                }
                _ => {
                    let seeds = vec![seed];
                    actions.push(Action::Put { session, ticket: next, page, into: credit.page, seeds });
                    next
                }
            };
            let is_hashed = self.hashed && seed.is_some();
            live.puts.push_back(Put {
                ticket,
                credit: credit.number,
                load,
                posted_micros: now_micros,
                is_hashed,
                hash: None,
                done: false,
                cancelled: false,
            });
        }
        actions
    }

    /// Announces the puts at the front that are done, flushed and hashed: one frame a run of one request's neighbouring pages.
    fn announce(&mut self, now: u64, session: SessionId) -> Vec<Action> {
        let page_bytes = self.page_bytes;
        let Some(live) = self.sessions.get_mut(&session).filter(|live| !live.lost) else { return Vec::new() };
        let mut whole = live.take_whole();
        let Some(front) = whole.front() else { return Vec::new() };
        let began = front.posted_micros.max(live.flushed_micros);
        // With the first pages only: the lane had all of them at once.
        let mut put_micros = now.saturating_sub(began);
        live.flushed_micros = now;
        let mut actions = Vec::new();
        while let Some(put) = whole.pop_front() {
            let (load, owner) = (put.load, put.owner());
            let mut count = 1;
            let mut hashes: Vec<u64> = put.hash.filter(|_| owner.is_some()).into_iter().collect();
            while let Some(next) = whole.pop_front_if(|next| put.is_followed_by(next, count)) {
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
            if let Some(owner) = owner {
                let request = RequestId(owner.request);
                let put_micros = std::mem::take(&mut put_micros);
                actions.push(Action::Sent(PagesSent { session, request, count, put_micros }));
            } else if load == Load::Probe {
                live.probed(count, page_bytes);
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
                let speed = bytes as f64 / micros as f64 / 1e3;
                if speed < self.min_gigabytes_per_second {
                    let reason = format!(
                        "lane {lane} moves {speed:.2} GB/s, and transport.min_gigabytes_per_second is {}; {}, or set \
                         it lower",
                        self.min_gigabytes_per_second, self.mend
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
