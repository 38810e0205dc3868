//! The life of sessions: the decisions of the peer link, without actix, clock, sockets or transport.
//!
//! ```text
//!            Opening ──worker exists──► Up ──link or lane broke──► Closing ──transport let go──► Closed ──proof──► gone
//! listener             welcome              PeerLost                                              SessionDrained
//! dialler              connect              PeerLost                dials again
//! ```
//!
//! A session ends once; the first reason counts. What its peer may still write stays quarantined until there is **proof** that
//! nothing lands any more: our part of the session is closed, *and* one of these holds:
//!
//! - puts move only while our part lives (TCP: our own worker does the copying);
//! - the peer, the same process, has said in a later Hello that this session has drained;
//! - the peer's process is gone;
//! - no credit of the session was outstanding when it ended, so the peer may write nothing.
//!
//! Without proof (a stopped process, a cut network) the session stays `Closed`, and its pages quarantined.

mod dialling;
mod frames;
mod proof;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use connector::frame::{Frame, Incarnation};
use connector::transport::{Command, Descriptor, Event, SubmitError, TransportError, TransportSession};

use super::dialler::{Attempts, Dialler};
use crate::effect::{Effect, ToPeerLink, to};
use crate::log::LogLine;
use crate::messages::{
    Carry, ConnectionId, HangUp, HelloCame, LaneConnected, LinkEnd, LinkEnded, PeerLost, ReceiverId, Refuse,
    RoomChanged, SendFrame, SenderSession, SessionId, SessionOpened, WatchProcess, Welcome, WriteFrame,
};

/// A session whose lane has not moved its first pages this long after its first credit is ended: it takes a place and serves no
/// request.
pub const PROBE_LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// The transport is creating the worker.
    Opening,
    /// Frames flow; pages do not yet.
    Up,
    /// Pages have moved over its lane.
    Probed,
    /// The transport is letting go.
    Closing,
    /// It has let go, and there is no proof yet.
    Closed,
}

/// Which way a session's pages go.
#[derive(Debug)]
enum Direction {
    /// Its peer puts pages into our pool.
    Incoming {
        sender: SenderSession,
        /// The sender said that the session has drained, its process is gone, or it held no credit at the end.
        harmless: bool,
    },
    /// We put pages into its peer's pool.
    Outgoing { receiver: ReceiverId, descriptor: Descriptor },
}

#[derive(Debug)]
struct Session {
    stage: Stage,
    direction: Direction,
    /// When the limit of what it does now began to count: its opening, or the first credit of its measurement.
    since: Option<Instant>,
    /// Pages had moved over its lane, also if it is over now.
    probed: bool,
    connection: ConnectionId,
    peer: Incarnation,
    address: String,
    ring_pages: u32,
    seed: u64,
}

impl Session {
    fn is_live(&self) -> bool {
        !matches!(self.stage, Stage::Closing | Stage::Closed)
    }

    /// Frames flow.
    fn is_up(&self) -> bool {
        matches!(self.stage, Stage::Up | Stage::Probed)
    }

    /// The first credit starts the clock of the measurement.
    fn note_credit(&mut self, now: Instant, frame: &Frame) {
        if matches!(frame, Frame::Grant { .. }) {
            self.since.get_or_insert(now);
        }
    }

    fn sender(&self) -> Option<&SenderSession> {
        match &self.direction {
            Direction::Incoming { sender, .. } => Some(sender),
            Direction::Outgoing { .. } => None,
        }
    }
}

/// What a handshake has agreed on.
struct Agreed {
    direction: Direction,
    connection: ConnectionId,
    peer: Incarnation,
    address: String,
    ring_pages: u32,
    seed: u64,
}

/// What the peer link has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounts {
    /// Sessions begun.
    pub opened: u64,
    /// Sessions that ended.
    pub ended: u64,
    /// Frames of sessions that were over.
    pub stale_frames: u64,
}

/// All sessions of this process.
#[derive(Debug)]
pub struct PeerLinkState {
    /// Puts move only while our part of a session lives.
    close_ends_writes: bool,
    /// Most credits outstanding in a session that we receive in.
    ring_pages: u32,
    next: u64,
    /// This process takes no new prefills.
    leaving: bool,
    closing: bool,
    fault: Option<String>,
    /// What the quarantine holds of the pool.
    room: Option<RoomChanged>,
    sessions: BTreeMap<SessionId, Session>,
    diallers: Vec<Dialler>,
    attempts: Attempts,
    /// The process that each dialler is talking to.
    targets: HashMap<ReceiverId, Incarnation>,
    /// The youngest attempt heard of from each sender.
    youngest: HashMap<Incarnation, u64>,
    /// Processes whose end is waited for.
    watched: HashSet<Incarnation>,
    counts: LinkCounts,
}

fn name(session: SessionId) -> TransportSession {
    TransportSession(session.0)
}

impl PeerLinkState {
    /// No sessions. `close_ends_writes`: what [`Transport`](connector::transport::Transport::close_ends_writes) says; at
    /// most one sender for each of `ring_pages` pages; `receivers` are the addresses to dial.
    pub fn new(close_ends_writes: bool, ring_pages: u32, receivers: Vec<String>) -> Self {
        Self {
            close_ends_writes,
            ring_pages,
            next: 0,
            leaving: false,
            closing: false,
            fault: None,
            room: None,
            sessions: BTreeMap::new(),
            diallers: receivers.into_iter().map(Dialler::new).collect(),
            attempts: Attempts::default(),
            targets: HashMap::new(),
            youngest: HashMap::new(),
            watched: HashSet::new(),
            counts: LinkCounts::default(),
        }
    }

    /// Takes a message.
    pub fn on(&mut self, now: Instant, mail: ToPeerLink) -> Vec<Effect> {
        match mail {
            ToPeerLink::StartDialling(_) => self.on_start_dialling(),
            ToPeerLink::DialDue(due) => self.on_dial_due(due.receiver),
            ToPeerLink::Challenged(challenged) => self.on_challenged(challenged),
            ToPeerLink::DialFailed(failed) => self.on_dial_failed(failed),
            ToPeerLink::Welcomed(welcomed) => self.on_welcomed(now, *welcomed),
            ToPeerLink::HelloCame(hello) => self.on_hello_came(now, *hello),
            ToPeerLink::FrameCame(came) => self.on_frame(now, came.session, came.frame),
            ToPeerLink::LinkEnded(ended) => self.on_link_ended(ended),
            ToPeerLink::ProcessWatched(watched) => self.on_process_watched(watched),
            ToPeerLink::TransportEvents(events) => {
                events.0.into_iter().flat_map(|event| self.on_transport(event)).collect()
            }
            ToPeerLink::SendFrame(send) => self.on_send(now, send),
            ToPeerLink::BreakSession(broken) => self.on_end(broken.session, broken.reason),
            ToPeerLink::RoomChanged(room) => {
                self.room = Some(room);
                Vec::new()
            }
            ToPeerLink::NothingOutstanding(over) => self.on_nothing_outstanding(over.session),
            ToPeerLink::HealthSeen(health) => self.on_health(health.0),
            ToPeerLink::AnnounceLeaving(_) => self.on_announce_leaving(),
            ToPeerLink::CloseLinks(_) => self.on_shutdown(),
            ToPeerLink::Tick(_) => self.on_tick(now),
        }
    }

    /// What was counted so far.
    pub fn counts(&self) -> LinkCounts {
        self.counts
    }

    /// True once this process is ending: no session begins any more.
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// No new session may begin: this process takes no prefills any more.
    fn is_ending(&self) -> bool {
        self.leaving || self.closing
    }

    /// Sessions over which pages can travel.
    pub fn ready(&self) -> usize {
        self.sessions.values().filter(|session| session.stage == Stage::Probed).count()
    }

    /// Sessions that the transport still holds anything of.
    pub fn held(&self) -> usize {
        self.sessions.values().filter(|session| session.stage != Stage::Closed).count()
    }

    /// A sender that fits said Hello: it joins, or is told why not.
    fn on_hello_came(&mut self, now: Instant, came: HelloCame) -> Vec<Effect> {
        let HelloCame { connection, address, http, sender, previous, drained, seed } = came;
        let mut effects = self.on_hello(sender, previous, drained);
        if let Err(reason) = self.admit(sender) {
            effects.push(to::sockets(Refuse { connection, reason }));
            return effects;
        }
        let peer = sender.incarnation;
        if sender.is_watched && self.watched.insert(peer) {
            effects.push(to::sockets(WatchProcess { connection, incarnation: peer }));
        }
        let direction = Direction::Incoming { sender, harmless: false };
        let ring_pages = self.ring_pages;
        effects.extend(self.begin(
            now,
            http,
            Agreed { direction, connection, peer, address, ring_pages, seed },
        ));
        effects
    }

    /// A handshake is over: the session gets its name, and the transport opens it.
    fn begin(&mut self, now: Instant, http: String, agreed: Agreed) -> Vec<Effect> {
        let Agreed { direction, connection, peer, address, ring_pages, seed } = agreed;
        self.next += 1;
        self.counts.opened += 1;
        let session = SessionId(self.next);
        let line = LogLine::SessionOpening { session, peer, address: address.clone(), http };
        self.sessions.insert(
            session,
            Session {
                stage: Stage::Opening,
                direction,
                since: Some(now),
                probed: false,
                connection,
                peer,
                address,
                ring_pages,
                seed,
            },
        );
        vec![to::log(line), to::transport(Command::Open { session: name(session) })]
    }

    /// The watchdog says that this process is unwell, or well again: peers must not wait for one that is stuck.
    fn on_health(&mut self, fault: Option<String>) -> Vec<Effect> {
        self.fault = fault;
        match &self.fault {
            Some(fault) => self.end_all(&format!("this process is unwell: {fault}")),
            None => Vec::new(),
        }
    }

    fn on_transport(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Opened { session, result } => {
                self.on_opened(SessionId(session.0), result.map_err(|error| error.to_string()))
            }
            Event::Connected { session, lane } => {
                vec![to::transfer(LaneConnected { session: SessionId(session.0), lane })]
            }
            Event::Failed { session, error } => self.on_failed(SessionId(session.0), &error),
            Event::Closed { session, drained } => self.on_closed(SessionId(session.0), drained),
            // The transfer actor's.
            Event::PutCompleted { .. } | Event::Flushed { .. } => Vec::new(),
        }
    }

    /// A transport that takes no more commands has let go of everything, or is about to: it answers no Close.
    fn on_failed(&mut self, session: SessionId, error: &TransportError) -> Vec<Effect> {
        match (self.sessions.get(&session).map(Session::is_live), error) {
            (Some(false), TransportError::NotTaken(SubmitError::ShutDown)) => self.on_closed(session, false),
            (Some(false), TransportError::NotTaken(_)) => {
                // Its queue is full, which events will empty.
                vec![to::transport(Command::Close { session: name(session) })]
            }
            _ => self.on_end(session, error.to_string()),
        }
    }

    /// The transport has created the session's worker, or could not.
    fn on_opened(&mut self, session: SessionId, result: Result<Descriptor, String>) -> Vec<Effect> {
        let Some(live) = self.sessions.get_mut(&session).filter(|live| live.stage == Stage::Opening) else {
            return Vec::new();
        };
        let descriptor = match result {
            Ok(descriptor) => descriptor,
            Err(reason) => return self.on_end(session, reason),
        };
        live.stage = Stage::Up;
        // It is measured when its turn comes, which the first credit says.
        live.since = None;
        let connection = live.connection;
        let opened = SessionOpened { session, ring_pages: live.ring_pages, seed: live.seed };
        match &live.direction {
            Direction::Incoming { .. } => {
                vec![to::buffer_manager(opened), to::sockets(Welcome { connection, session, descriptor })]
            }
            Direction::Outgoing { descriptor: peer, .. } => vec![
                to::transfer(opened),
                to::sockets(Carry { connection, session }),
                to::transport(Command::Connect { session: name(session), peer: peer.clone() }),
            ],
        }
    }

    fn on_send(&mut self, now: Instant, send: SendFrame) -> Vec<Effect> {
        let SendFrame { session, frame } = send;
        let Some(live) = self.sessions.get_mut(&session).filter(|live| live.is_up()) else {
            return Vec::new();
        };
        live.note_credit(now, &frame);
        let connection = live.connection;
        let probed = matches!(frame, Frame::LinkProbed { .. });
        let write = |frame| to::sockets(WriteFrame { session, connection, frame });
        let mut effects = vec![write(frame)];
        if probed {
            if let Err(reason) = self.on_probed(session) {
                return self.on_end(session, reason);
            }
            // The receiver uses the session from now on, and has to hear again that it must not.
            effects.extend(self.leaving.then(|| write(Frame::Leaving)));
        }
        effects
    }

    /// Pages have moved over the session's lane.
    fn on_probed(&mut self, session: SessionId) -> Result<(), String> {
        match self.sessions.get_mut(&session) {
            Some(live) if live.stage == Stage::Up => {
                (live.stage, live.probed) = (Stage::Probed, true);
                Ok(())
            }
            _ => Err("lane was called probed out of turn".to_owned()),
        }
    }

    fn on_announce_leaving(&mut self) -> Vec<Effect> {
        self.leaving = true;
        let up = self.sessions.iter().filter(|(_, live)| live.is_up());
        up.map(|(session, live)| {
            to::sockets(WriteFrame { session: *session, connection: live.connection, frame: Frame::Leaving })
        })
        .collect()
    }

    /// Time has passed: a session that has not moved a page by now is ended.
    fn on_tick(&mut self, now: Instant) -> Vec<Effect> {
        let late = |session: &Session| {
            matches!(session.stage, Stage::Opening | Stage::Up)
                && session.since.is_some_and(|since| now.saturating_duration_since(since) > PROBE_LIMIT)
        };
        let late: Vec<SessionId> =
            self.sessions.iter().filter(|(_, session)| late(session)).map(|(session, _)| *session).collect();
        let reason = format!("no page had moved over its lane after {} s", PROBE_LIMIT.as_secs());
        late.into_iter().flat_map(|session| self.on_end(session, reason.clone())).collect()
    }

    fn on_link_ended(&mut self, ended: LinkEnded) -> Vec<Effect> {
        match ended.end {
            LinkEnd::Goodbye => self.end(ended.session, "peer said goodbye".into(), true),
            LinkEnd::Broken(reason) => self.on_end(ended.session, reason),
        }
    }

    /// The link broke, the lane failed, or a peer broke a rule. Only the first reason counts.
    fn on_end(&mut self, session: SessionId, reason: String) -> Vec<Effect> {
        self.end(session, reason, self.closing)
    }

    fn end(&mut self, session: SessionId, reason: String, orderly: bool) -> Vec<Effect> {
        let Some(live) = self.sessions.get_mut(&session).filter(|live| live.is_live()) else {
            return Vec::new();
        };
        live.stage = Stage::Closing;
        self.counts.ended += 1;
        let (peer, address) = (live.peer, live.address.clone());
        let mut effects = vec![to::log(LogLine::SessionOver { session, peer, address, reason, orderly })];
        effects.extend(lost(&live.direction, PeerLost { session }));
        effects.push(to::sockets(HangUp { connection: live.connection }));
        effects.push(to::transport(Command::Close { session: name(session) }));
        effects
    }

    fn end_all(&mut self, reason: &str) -> Vec<Effect> {
        let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        sessions.into_iter().flat_map(|session| self.on_end(session, reason.to_owned())).collect()
    }

    /// This process ends: so do all sessions.
    fn on_shutdown(&mut self) -> Vec<Effect> {
        self.closing = true;
        self.end_all("this process is ending")
    }

    /// The transport has let go of the session.
    fn on_closed(&mut self, session: SessionId, drained: bool) -> Vec<Effect> {
        let Some(over) = self.sessions.get_mut(&session) else { return Vec::new() };
        over.stage = Stage::Closed;
        let redial = match (&over.direction, over.probed) {
            (Direction::Outgoing { receiver, .. }, probed) => Some((*receiver, over.peer, probed)),
            _ => None,
        };
        let mut effects: Vec<Effect> = self.prove(session).into_iter().collect();
        if let Some((receiver, peer, probed)) = redial {
            self.attempts.over(peer, drained);
            if let (true, Some(dialler)) = (probed, self.diallers.get_mut(receiver.0 as usize)) {
                dialler.on_worked();
            }
            effects.extend(self.dial_again(receiver));
        }
        effects
    }
}

/// Everyone who knows a session hears that it is lost. The proxy first: it places no request on a sender that the decoder no
/// longer knows.
fn lost(direction: &Direction, lost: PeerLost) -> Vec<Effect> {
    match direction {
        Direction::Incoming { .. } => vec![to::proxy(lost), to::decoder(lost), to::buffer_manager(lost)],
        Direction::Outgoing { .. } => vec![to::transfer(lost), to::prefiller(lost)],
    }
}

#[cfg(test)]
mod tests;
