//! When each page is put: the decisions of the transfer actor, without actix, clock or transport.
//!
//! - A ready page spends the next credit and is put: one put for each of its [pieces](connector::shards::Piece), on the piece's lane. Pages whose
//!   sources and targets are both neighbours share their puts.
//! - Puts complete in any order.
//! - After every few pages and after the last page, a flush is posted on each lane. When all lanes have answered, all earlier puts are visible at the
//!   receiver.
//! - A page is announced once all of its pieces are put and flushed, and it is hashed.
//!
//! The receiver checks each announced page while later ones are in flight, so only a few pages are left to check after the last frame.
//!
//! ```text
//! ready ──credit──► put ──completion, flush, hash──► visible ──► PageFilled frame, PagesSent
//! ```
//!
//! A new session first moves a few pages that belong to no request. They measure the lane's speed on the path that requests will take; the
//! speed is printed at start-up.

mod measurement;
mod puts;
mod session;

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use connector::frame::{Frame, PageOwner};
use connector::ring::CreditNumber;
use connector::shards::Lanes;
use connector::transport::{Event, Ticket};

use crate::effect::{Effect, ToTransfer, to};
use crate::messages::{
    BreakSession, CreditsGranted, HashPages, LaneConnected, PageToHash, PagesSent, PutsDrained, SchedulePut,
    SendFrame, SessionId, SessionOpened,
};
use crate::request::RequestId;
use session::{Load, PageHash, Put, Session};

/// Default for the maximum number of pages in flight per session: enough to fill a lane, but few enough that they do not queue.
pub const PAGES_IN_FLIGHT: usize = 16;
/// A flush is posted after this many pages. With fewer, waking threads costs more than the earlier announcement saves on a lane of two cores.
const FLUSH_PAGES: usize = 8;
/// Maximum number of neighbouring pages in one put between devices, where each put is a kernel launch. Two puts of this size saturate the
/// lane, and two are in flight.
const RUN_PAGES_ON_DEVICE: usize = 8;
/// Maximum number of neighbouring pages in one put between hosts. The bytes of a longer put would leave the processor's caches between the
/// socket and the copy.
const RUN_PAGES_ON_HOST: usize = 1;
/// Maximum numbers of probe pages at a session's start: in the warm-up, and in the measurement.
const PROBE_PAGES: (u32, u32) = (8, 64);
/// A session is broken if one of its operations has not completed after this time. The link's heartbeats use another connection, so they
/// do not notice a lane that is stuck.
pub const OPERATION_MICROS_MAX: u64 = 5_000_000;
/// Maximum number of pages in a ring that a sender accepts.
const RING_PAGES_MAX: u32 = 1 << 20;

/// The transfer actor's configuration.
#[derive(Clone, Copy, Debug)]
pub struct TransferConfig {
    /// Bytes of a page, with all of its shards.
    pub page_bytes: u64,
    /// Number of shards into which this node divides a page.
    pub shards: u32,
    /// A lane that moves less than this many gigabytes per second is refused.
    pub min_gigabytes_per_second: f64,
    /// Pages are announced with their hashes.
    pub hashed: bool,
    /// Pages are in device memory: neighbouring pages go as one put.
    pub on_device: bool,
    /// Maximum number of pages in flight per session; at least one. A page of several pieces counts once for each.
    pub pages_in_flight: usize,
}

/// The queues of all sessions.
#[derive(Debug)]
pub struct TransferState {
    config: TransferConfig,
    /// Maximum number of neighbouring pages in one put.
    run_pages: usize,
    next_ticket: u64,
    sessions: BTreeMap<SessionId, Session>,
    /// Pages whose puts were posted while this message was handled. Then the hash thread is asked for their hashes.
    to_hash: Vec<PageToHash>,
}

impl TransferState {
    /// No sessions.
    pub fn new(config: TransferConfig) -> Self {
        let config = TransferConfig { pages_in_flight: config.pages_in_flight.max(1), ..config };
        let run_pages = if config.on_device {
            RUN_PAGES_ON_DEVICE.min(config.pages_in_flight.div_ceil(2))
        } else {
            RUN_PAGES_ON_HOST
        };
        Self { config, run_pages, next_ticket: 0, sessions: BTreeMap::new(), to_hash: Vec::new() }
    }

    /// Takes a message.
    pub fn on(&mut self, now_micros: u64, mail: ToTransfer) -> Vec<Effect> {
        let mut effects = match mail {
            ToTransfer::SessionOpened(opened) => self.on_session_opened(opened),
            ToTransfer::LaneConnected(connected) => self.on_connected(now_micros, connected),
            ToTransfer::CreditsGranted(granted) => self.on_granted(now_micros, &granted),
            ToTransfer::RingShared(shared) => self.on_ring_shared(now_micros, shared.session, shared.pages),
            ToTransfer::PeerLost(lost) => self.on_lost(lost.session),
            ToTransfer::SchedulePut(put) => self.on_schedule(now_micros, &put),
            ToTransfer::CancelPuts(cancel) => self.on_cancel(cancel.session, cancel.request),
            ToTransfer::TransportEvents(events) => {
                events.0.into_iter().flat_map(|event| self.on_transport(now_micros, event)).collect()
            }
            ToTransfer::PagesHashed(hashed) => {
                let hashed = hashed.0.into_iter();
                hashed
                    .flat_map(|(session, credit, hash)| self.on_hashed(now_micros, session, credit, hash))
                    .collect()
            }
            ToTransfer::Tick(_) => self.on_tick(now_micros),
        };
        // After all puts, so that the transport starts first. Both only read the page, which is final.
        if !self.to_hash.is_empty() {
            effects.push(to::hash_thread(HashPages(std::mem::take(&mut self.to_hash))));
        }
        effects
    }

    fn on_transport(&mut self, now_micros: u64, event: Event) -> Vec<Effect> {
        match event {
            Event::PutCompleted { session, ticket, result } => {
                let result = result.map_err(|error| error.to_string());
                self.on_put_completed(now_micros, SessionId(session.0), ticket, result)
            }
            Event::Flushed { session, ticket, result } => {
                let result = result.map_err(|error| error.to_string());
                self.on_flushed(now_micros, SessionId(session.0), ticket, result)
            }
            // The peer link handles these.
            Event::Opened { .. } | Event::Connected { .. } | Event::Failed { .. } | Event::Closed { .. } => {
                Vec::new()
            }
        }
    }

    /// Lost sessions that still have a put in flight.
    pub fn lost(&self) -> usize {
        self.sessions.values().filter(|live| live.is_lost()).count()
    }

    /// Live sessions in which this process holds credits, or may still be granted some.
    pub fn sessions_with_credits(&self) -> u32 {
        self.sessions.values().filter(|live| !live.is_lost() && !live.has_returned_all()).count() as u32
    }

    /// A session began. Credits may arrive before the lane is connected.
    fn on_session_opened(&mut self, opened: SessionOpened) -> Vec<Effect> {
        if let Some(capacity) = NonZeroU32::new(opened.ring_pages.min(RING_PAGES_MAX)) {
            self.sessions.insert(opened.session, Session::new(capacity, opened.seed));
        }
        Vec::new()
    }

    /// The lanes are connected: puts may be posted, the probe's first.
    fn on_connected(&mut self, now_micros: u64, connected: LaneConnected) -> Vec<Effect> {
        let LaneConnected { session, lane, shards } = connected;
        match (Lanes::between(self.config.shards, shards), self.sessions.get_mut(&session)) {
            (Ok(lanes), Some(live)) => live.connect(lane, lanes),
            (Err(error), Some(_)) => return self.break_session(session, error.to_string()),
            (_, None) => {}
        }
        self.pump(now_micros, session)
    }

    /// The receiver granted credits.
    fn on_granted(&mut self, now_micros: u64, granted: &CreditsGranted) -> Vec<Effect> {
        let CreditsGranted { session, first, pages } = granted;
        let Some(live) = self.sessions.get_mut(session) else { return Vec::new() };
        live.share = None;
        match live.ring.accept(*first, pages) {
            Ok(()) => self.pump(now_micros, *session),
            Err(error) => self.break_session(*session, error.to_string()),
        }
    }

    /// The session's share of the ring. Free credits beyond the share are returned to the receiver, in the order of credits.
    fn on_ring_shared(&mut self, now_micros: u64, session: SessionId, pages: u32) -> Vec<Effect> {
        let Some(live) = self.sessions.get_mut(&session).filter(|live| !live.is_lost()) else {
            return Vec::new();
        };
        live.share = Some(pages);
        live.give_back(pages, now_micros);
        self.pump(now_micros, session)
    }

    /// Final pages of a request.
    fn on_schedule(&mut self, now_micros: u64, put: &SchedulePut) -> Vec<Effect> {
        let Some(live) = self.sessions.get_mut(&put.session).filter(|live| !live.is_lost()) else {
            return Vec::new();
        };
        for (n, &page) in (0..).zip(&put.pages) {
            let owner = PageOwner { request: put.request.0, first_page: put.first_page + n };
            live.queue(owner, page);
        }
        self.pump(now_micros, put.session)
    }

    /// No more pages of this request are to be sent: all were sent, or the request was cancelled. Its queued pages are dropped.
    /// [`PutsDrained`] is sent when its puts in flight have completed.
    fn on_cancel(&mut self, session: SessionId, request: RequestId) -> Vec<Effect> {
        let Some(live) = self.sessions.get_mut(&session) else {
            return vec![drained(session, request)];
        };
        live.cancel(request);
        if live.is_drained(request) { vec![drained(session, request)] } else { Vec::new() }
    }

    /// The hash of the page that was put under this credit.
    fn on_hashed(
        &mut self,
        now_micros: u64,
        session: SessionId,
        credit: CreditNumber,
        hash: u64,
    ) -> Vec<Effect> {
        let Some(live) = self.sessions.get_mut(&session) else { return Vec::new() };
        let known = PageHash::Known(hash);
        let drained_requests =
            live.update_puts(|put| (put.credit == credit).then(|| put.hash = known).is_some());
        self.after_update(now_micros, session, drained_requests)
    }

    /// A put has completed, so the transport no longer reads its pieces of the source pages; or it failed.
    fn on_put_completed(
        &mut self,
        now_micros: u64,
        session: SessionId,
        ticket: Ticket,
        result: Result<(), String>,
    ) -> Vec<Effect> {
        let Some(live) = self.sessions.get_mut(&session) else { return Vec::new() };
        let drained_requests =
            live.update_puts(|put| put.tickets.contain(ticket).then(|| put.piece_done()).is_some());
        let mut effects = match result {
            Ok(()) => Vec::new(),
            Err(error) => {
                let reason = match live.lane_in_probe().map(str::to_owned) {
                    Some(lane) => format!("lane {lane} cannot carry pages ({error}); {}", self.remedy()),
                    None => format!("put failed: {error}"),
                };
                self.break_session(session, reason)
            }
        };
        effects.extend(self.after_update(now_micros, session, drained_requests));
        effects
    }

    /// Puts have changed: reports these cancelled requests as drained, announces the pages that are complete, and posts more.
    fn after_update(
        &mut self,
        now_micros: u64,
        session: SessionId,
        drained_requests: Vec<RequestId>,
    ) -> Vec<Effect> {
        let mut effects: Vec<Effect> =
            drained_requests.into_iter().map(|request| drained(session, request)).collect();
        self.reap(session);
        effects.extend(self.announce(now_micros, session));
        effects.extend(self.pump(now_micros, session));
        effects
    }

    /// All puts of a lane before this flush are visible at the receiver, or the flush failed.
    fn on_flushed(
        &mut self,
        now_micros: u64,
        session: SessionId,
        ticket: Ticket,
        result: Result<(), String>,
    ) -> Vec<Effect> {
        let Some(live) = self.sessions.get_mut(&session) else { return Vec::new() };
        let mut flushes = live.flushes.iter();
        let Some(index) = flushes.position(|flush| flush.tickets.contain(ticket)) else { return Vec::new() };
        if live.is_lost() {
            return Vec::new();
        }
        if let Err(error) = result {
            return self.break_session(session, format!("flush failed: {error}"));
        }
        if !live.lane_flushed(index) {
            return Vec::new();
        }
        let mut effects = self.announce(now_micros, session);
        effects.extend(self.pump(now_micros, session));
        effects
    }

    /// The session is over. It is kept until its puts in flight have completed, because the transport reads their source pages.
    fn on_lost(&mut self, session: SessionId) -> Vec<Effect> {
        if let Some(live) = self.sessions.get_mut(&session) {
            live.lose();
            self.reap(session);
        }
        Vec::new()
    }

    /// Time has passed: breaks sessions that have an operation in flight for too long.
    fn on_tick(&mut self, now_micros: u64) -> Vec<Effect> {
        let stuck = |live: &Session| {
            // Puts are in the order of posting, so the first is the oldest one that is not complete, flushed and hashed.
            let oldest = live.puts.front().filter(|_| live.may_post());
            oldest.is_some_and(|put| now_micros.saturating_sub(put.posted_micros) > OPERATION_MICROS_MAX)
        };
        let stuck: Vec<SessionId> =
            self.sessions.iter().filter(|(_, live)| stuck(live)).map(|(session, _)| *session).collect();
        let reason = format!("a put or flush has not completed for {} s", OPERATION_MICROS_MAX / 1_000_000);
        stuck.into_iter().flat_map(|session| self.break_session(session, reason.clone())).collect()
    }

    /// Breaks the session: nothing more is posted or announced in it. The peer link is asked once to end it.
    fn break_session(&mut self, session: SessionId, reason: String) -> Vec<Effect> {
        match self.sessions.get_mut(&session) {
            Some(live) if !live.is_lost() => {
                live.lose();
                vec![to::peer_link(BreakSession { session, reason })]
            }
            _ => Vec::new(),
        }
    }

    /// Removes a lost session whose last put has completed.
    fn reap(&mut self, session: SessionId) {
        if self
            .sessions
            .get(&session)
            .is_some_and(|live| live.is_lost() && live.puts.iter().all(Put::is_over))
        {
            self.sessions.remove(&session);
        }
    }

    /// Announces the pages at the front whose puts are complete, flushed and hashed. One frame announces a run of neighbouring pages of one
    /// request.
    fn announce(&mut self, now: u64, session: SessionId) -> Vec<Effect> {
        let page_bytes = self.config.page_bytes;
        let Some(live) = self.sessions.get_mut(&session).filter(|live| !live.is_lost()) else {
            return Vec::new();
        };
        let mut whole = live.take_whole();
        let Some(front) = whole.front() else { return Vec::new() };
        let began = front.posted_micros.max(live.flushed_micros);
        // The lane carried all of these pages together, so each page of a request has an equal part of the time.
        let all_micros = now.saturating_sub(began);
        let all_pages = whole.iter().filter(|put| put.load.owner().is_some()).count() as u64;
        live.flushed_micros = now;
        let mut effects = Vec::new();
        while let Some(put) = whole.pop_front() {
            let (load, owner) = (put.load, put.load.owner());
            let mut count = 1;
            let mut hashes: Vec<u64> = put.announced_hash().into_iter().collect();
            while let Some(next) = whole.pop_front_if(|next| put.is_followed_by(next, count)) {
                hashes.extend(next.announced_hash());
                count += 1;
            }
            let first = match live.ring.announce(count) {
                Ok(first) => first,
                Err(error) => {
                    effects.extend(self.break_session(session, error.to_string()));
                    return effects;
                }
            };
            let began = owner.and_then(|owner| live.began.get(&RequestId(owner.request)));
            let transfer_micros = began.map_or(0, |began| now.saturating_sub(*began));
            let frame = Frame::PageFilled { first, count, owner, hashes, transfer_micros };
            effects.push(to::peer_link(SendFrame { session, frame }));
            if let Some(owner) = owner {
                let request = RequestId(owner.request);
                let put_micros = all_micros * u64::from(count) / all_pages;
                effects.push(to::prefiller(PagesSent { session, request, count, put_micros }));
            } else if load == Load::Probe {
                live.probed(count, page_bytes);
            }
        }
        effects.extend(self.measure(now, session));
        effects
    }
}

fn drained(session: SessionId, request: RequestId) -> Effect {
    to::prefiller(PutsDrained { session, request })
}

#[cfg(test)]
mod tests;
