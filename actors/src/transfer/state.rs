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
use connector::ring::{CreditNumber, PageIndex};
use connector::transport::{Command, Event, Ticket, TransportSession};
use engine::PageId;

use crate::effect::{Effect, ToTransfer, ToTransport, to};
use crate::log::{LaneSpeed, LogLine, gigabytes_per_second};
use crate::messages::{
    BreakSession, CreditsGranted, HashPages, LaneConnected, PageToHash, PagesSent, PutsDrained, SchedulePut,
    SendFrame, SessionId, SessionOpened,
};
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

/// What the transfer actor knows of its node.
#[derive(Clone, Copy, Debug)]
pub struct TransferConfig {
    /// Bytes of a page.
    pub page_bytes: u64,
    /// A lane that moves less than this is not used.
    pub min_gigabytes_per_second: f64,
    /// Pages are announced with their hashes.
    pub hashed: bool,
    /// Pages lie on a device: neighbours go as one put.
    pub on_device: bool,
    /// Most pages of a session in flight; at least one.
    pub pages_in_flight: usize,
}

/// Every session's queue.
#[derive(Debug)]
pub struct TransferState {
    config: TransferConfig,
    /// Most neighbours that go as one put.
    run_pages: usize,
    next_ticket: u64,
    sessions: BTreeMap<SessionId, Session>,
    /// Pages whose puts were posted and whose hashes are to be asked for.
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
            ToTransfer::LaneConnected(LaneConnected { session, lane }) => {
                self.on_connected(now_micros, session, lane)
            }
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
        // Behind all puts: a page is final, and the transport and the hash thread read it at the same time.
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
            // The peer link's.
            Event::Opened { .. } | Event::Connected { .. } | Event::Failed { .. } | Event::Closed { .. } => {
                Vec::new()
            }
        }
    }

    /// What helps where a lane cannot carry pages.
    fn remedy(&self) -> &'static str {
        if self.config.on_device {
            "let UCX_TLS have cuda_ipc, and see that the two GPUs are peers on one host"
        } else {
            "see what UCX_TLS and UCX_NET_DEVICES allow"
        }
    }

    /// Lost sessions of which an operation is still waited for.
    pub fn lost(&self) -> usize {
        self.sessions.values().filter(|live| live.lost).count()
    }

    /// Credits of live sessions that are not spent, or spent and not announced.
    pub fn credits_held(&self) -> u32 {
        let live = self.sessions.values().filter(|live| !live.lost);
        live.map(|live| live.ring.available() + live.ring.unannounced()).sum()
    }

    /// A session began. Credits may come before the lane is connected.
    fn on_session_opened(&mut self, opened: SessionOpened) -> Vec<Effect> {
        if let Some(capacity) = NonZeroU32::new(opened.ring_pages.min(RING_PAGES_MAX)) {
            self.sessions.insert(opened.session, Session::new(capacity, opened.seed));
        }
        Vec::new()
    }

    /// Puts may be posted: first the probe's.
    fn on_connected(&mut self, now_micros: u64, session: SessionId, lane: String) -> Vec<Effect> {
        if let Some(live) = self.sessions.get_mut(&session) {
            live.lane = Some(lane);
            let warm = live.probe.as_ref().map_or(0, |probe| probe.warm);
            live.ready.extend((0..warm).map(|_| Ready { load: Load::Probe, page: PageId(0) }));
        }
        self.pump(now_micros, session)
    }

    /// The receiver granted credits.
    fn on_granted(&mut self, now_micros: u64, granted: &CreditsGranted) -> Vec<Effect> {
        let CreditsGranted { session, first, pages } = granted;
        let Some(live) = self.sessions.get_mut(session) else { return Vec::new() };
        match live.ring.accept(*first, pages) {
            Ok(()) => self.pump(now_micros, *session),
            Err(error) => self.give_up(*session, error.to_string()),
        }
    }

    /// Our share of the ring: of the credits beyond it, those that no put has spent go back, in their turn.
    fn on_ring_shared(&mut self, now_micros: u64, session: SessionId, pages: u32) -> Vec<Effect> {
        let Some(live) = self.sessions.get_mut(&session).filter(|live| !live.lost) else { return Vec::new() };
        live.give_back(pages, now_micros);
        self.pump(now_micros, session)
    }

    /// Final pages of a request.
    fn on_schedule(&mut self, now_micros: u64, put: &SchedulePut) -> Vec<Effect> {
        let Some(live) = self.sessions.get_mut(&put.session).filter(|live| !live.lost) else {
            return Vec::new();
        };
        for (n, &page) in (0..).zip(&put.pages) {
            let owner = PageOwner { request: put.request.0, first_page: put.first_page + n };
            live.queue(owner, page);
        }
        self.pump(now_micros, put.session)
    }

    /// Nothing more of this request is to be sent, because all is or because nobody wants it: what is queued is
    /// dropped, what is in flight is waited for.
    fn on_cancel(&mut self, session: SessionId, request: RequestId) -> Vec<Effect> {
        let Some(live) = self.sessions.get_mut(&session) else {
            return vec![drained(session, request)];
        };
        live.cancel(request);
        if live.is_drained(request) { vec![drained(session, request)] } else { Vec::new() }
    }

    /// The hash of the page that was put under this credit. It is announced with the page.
    fn on_hashed(
        &mut self,
        now_micros: u64,
        session: SessionId,
        credit: CreditNumber,
        hash: u64,
    ) -> Vec<Effect> {
        let Some(live) = self.sessions.get_mut(&session) else { return Vec::new() };
        let over = live.on_over(|put| (put.credit == credit).then(|| put.hash = Some(hash)).is_some());
        self.went_over(now_micros, session, over)
    }

    /// The sources of a put are free again, or the put failed.
    fn on_put_completed(
        &mut self,
        now_micros: u64,
        session: SessionId,
        ticket: Ticket,
        result: Result<(), String>,
    ) -> Vec<Effect> {
        let Some(live) = self.sessions.get_mut(&session) else { return Vec::new() };
        let over = live.on_over(|put| (put.ticket == ticket).then(|| put.done = true).is_some());
        let mut effects = match result {
            Ok(()) => Vec::new(),
            Err(error) => {
                let reason = match live.probe.as_ref().and(live.lane.clone()) {
                    Some(lane) => format!("lane {lane} cannot carry pages ({error}); {}", self.remedy()),
                    None => format!("put failed: {error}"),
                };
                self.give_up(session, reason)
            }
        };
        effects.extend(self.went_over(now_micros, session, over));
        effects
    }

    /// Nothing of ours reads pages of these cancelled requests any more; and what is whole now is announced.
    fn went_over(&mut self, now_micros: u64, session: SessionId, over: Vec<RequestId>) -> Vec<Effect> {
        let mut effects: Vec<Effect> = over.into_iter().map(|request| drained(session, request)).collect();
        self.reap(session);
        effects.extend(self.announce(now_micros, session));
        effects.extend(self.pump(now_micros, session));
        effects
    }

    /// Everything under the flush is visible at the receiver, or the flush failed.
    fn on_flushed(
        &mut self,
        now_micros: u64,
        session: SessionId,
        ticket: Ticket,
        result: Result<(), String>,
    ) -> Vec<Effect> {
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
        let mut effects = self.announce(now_micros, session);
        effects.extend(self.pump(now_micros, session));
        effects
    }

    /// The session is over. Puts in flight are still waited for: their sources are in use until they complete.
    fn on_lost(&mut self, session: SessionId) -> Vec<Effect> {
        if let Some(live) = self.sessions.get_mut(&session) {
            live.lose();
            self.reap(session);
        }
        Vec::new()
    }

    /// Time has passed: a session whose lane holds an operation for too long is given up.
    fn on_tick(&mut self, now_micros: u64) -> Vec<Effect> {
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
    fn give_up(&mut self, session: SessionId, reason: String) -> Vec<Effect> {
        match self.sessions.get_mut(&session) {
            Some(live) if !live.lost => {
                live.lose();
                vec![to::peer_link(BreakSession { session, reason })]
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
    fn pump(&mut self, now_micros: u64, session: SessionId) -> Vec<Effect> {
        let mut effects: Vec<Effect> = Vec::new();
        loop {
            let next = self.ticket();
            let Some(live) = self.sessions.get_mut(&session) else { return effects };
            // A run is not cut by a flush.
            // Twice what those pages need: the last of a request's may be few.
            let most = 2 * self.config.pages_in_flight.div_ceil(FLUSH_PAGES);
            if let Some(below) = live.flush_below(self.run_pages.max(FLUSH_PAGES), most) {
                live.flushes.push_back((next, below));
                let session = TransportSession(session.0);
                effects.push(to::transport(Command::Flush { session, ticket: next }));
                continue;
            }
            let flying = live.puts.iter().filter(|put| !put.done).count();
            if live.lost
                || live.lane.is_none()
                || flying >= self.config.pages_in_flight
                || live.ready.is_empty()
            {
                break;
            }
            let Some(credit) = live.ring.spend() else { break };
            let Ready { load, page } = live.next().expect("it is not empty");
            let seed = live.seed_of(load, credit.number, now_micros);
            let ticket = self.post(&mut effects, session, next, (page, credit.page));
            let seed = seed.filter(|_| self.config.hashed);
            self.to_hash.extend(seed.map(|seed| PageToHash { session, page, seed }));
            let Some(live) = self.sessions.get_mut(&session) else { return effects };
            live.puts.push_back(Put {
                ticket,
                credit: credit.number,
                load,
                posted_micros: now_micros,
                is_hashed: seed.is_some(),
                hash: None,
                done: false,
                cancelled: false,
            });
        }
        effects
    }

    /// Posts a put of one page, or adds the page to the run that was posted last, whose ticket it then shares.
    fn post(
        &self,
        effects: &mut Vec<Effect>,
        session: SessionId,
        ticket: Ticket,
        (page, into): (PageId, PageIndex),
    ) -> Ticket {
        let page_bytes = self.config.page_bytes;
        let (from, to_offset) = (u64::from(page.0) * page_bytes, u64::from(into.0) * page_bytes);
        if let Some(Effect::Transport(ToTransport::Command(Command::Put {
            ticket,
            local_offset,
            remote_offset,
            bytes,
            ..
        }))) = effects.last_mut()
            && *bytes < self.run_pages as u64 * page_bytes
            && *local_offset + *bytes == from
            && *remote_offset + *bytes == to_offset
        {
            *bytes += page_bytes;
            return *ticket;
        }
        effects.push(to::transport(Command::Put {
            session: TransportSession(session.0),
            ticket,
            local_offset: from,
            remote_offset: to_offset,
            bytes: page_bytes,
        }));
        ticket
    }

    /// Announces the puts at the front that are done, flushed and hashed: one frame a run of one request's neighbouring pages.
    fn announce(&mut self, now: u64, session: SessionId) -> Vec<Effect> {
        let page_bytes = self.config.page_bytes;
        let Some(live) = self.sessions.get_mut(&session).filter(|live| !live.lost) else { return Vec::new() };
        let mut whole = live.take_whole();
        let Some(front) = whole.front() else { return Vec::new() };
        let began = front.posted_micros.max(live.flushed_micros);
        // The lane carried all of these pages together, so each page of a request has an equal part of the time.
        let all_micros = now.saturating_sub(began);
        let all_pages = whole.iter().filter(|put| put.owner().is_some()).count() as u64;
        live.flushed_micros = now;
        let mut effects = Vec::new();
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
                    effects.extend(self.give_up(session, error.to_string()));
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

    /// Moves the probe on: from warming to measuring, from measuring to its result.
    fn measure(&mut self, now_micros: u64, session: SessionId) -> Vec<Effect> {
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
                let speed = gigabytes_per_second(bytes, micros);
                let least = self.config.min_gigabytes_per_second;
                if speed < least {
                    let remedy = self.remedy();
                    let reason = format!(
                        "lane {lane} moves {speed:.2} GB/s, and transport.min_gigabytes_per_second is {least}; {remedy}, or set it lower"
                    );
                    return self.give_up(session, reason);
                }
                let measured = LaneSpeed { name: lane.clone(), bytes, micros };
                let frame = Frame::LinkProbed { lane, bytes, micros };
                vec![
                    to::log(LogLine::ReceiverReady { session, lane: measured }),
                    to::peer_link(SendFrame { session, frame }),
                ]
            }
        }
    }
}

fn drained(session: SessionId, request: RequestId) -> Effect {
    to::prefiller(PutsDrained { session, request })
}

#[cfg(test)]
mod tests;
