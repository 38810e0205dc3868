//! The lifecycle of sessions: the decisions of the peer link, without actix, clock, sockets or transport.
//!
//! ```text
//!            Opening ──worker exists──► Connecting ──lane is connected──► Up ──lane moved pages──► Probed
//! listener             SayWelcome                    SessionOpened
//! dialler              SessionOpened, Connect        LaneConnected
//!
//!            any of them ──link or lane broke──► Closing ──transport closed it──► Closed ──proof──► removed
//! listener                 PeerLost                                                        SessionDrained
//! dialler                  PeerLost                               dials again
//! ```
//!
//! The sender names the transports of its lane in `LaneConnected`. The receiver grants no credits before this frame. So it knows which proof the
//! session needs before the peer may write a page.
//!
//! A session ends once, and the first reason is the one in the log. The pages that its peer may still write stay quarantined
//! until there is **proof** that no more writes land. Proof requires that our side of the session is closed *and* one of these:
//!
//! - the session's lane ends with our worker ([`connector::transport::lane`]): the sender has named only such transports, or the
//!   configuration allows no other lane;
//! - the same peer process said in a later Hello that this session has drained;
//! - the peer's process has ended;
//! - no credit of the session was outstanding when it ended, so the peer had no page to write.
//!
//! Without proof (for example after a network cut, or while the peer's process is stopped) the session stays `Closed` and its
//! pages stay quarantined.

mod dialling;
mod frames;
mod limits;
mod loads;
mod proof;
mod session;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use connector::frame::{Frame, Incarnation};
use connector::transport::{Command, Descriptor, Event, SubmitError, TransportError, TransportSession};

use super::dialler::{Attempts, Dialler};
use crate::effect::{Effect, ToPeerLink, to};
use crate::log::LogLine;
use crate::messages::{
    Carry, ConnectionId, HangUp, HelloCame, LaneConnected, LinkEnd, LinkEnded, LoadReport, PeerLost,
    ReceiverId, Refuse, RoomChanged, SayWelcome, SendFrame, SessionId, WatchProcess, WriteFrame,
};
use limits::Crowd;
pub use limits::SessionLimits;
use session::{Direction, Prefills, Session, Stage, advertised};

/// Limit for each step of the beginning of a session: to open it, to connect its lane, and to move the first pages after the first credit. A
/// session that exceeds it is ended, because it counts as a connected sender but serves no request.
pub const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// The result of a handshake.
struct Agreed {
    direction: Direction,
    connection: ConnectionId,
    peer: Incarnation,
    address: String,
    ring_pages: u32,
    version: u32,
    seed: u64,
}

/// Totals since the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounts {
    /// Sessions begun.
    pub opened: u64,
    /// Sessions that ended.
    pub ended: u64,
    /// Frames of sessions that had ended, or were not up yet.
    pub stale_frames: u64,
}

/// The configuration of the peer link.
#[derive(Clone, Debug)]
pub struct PeerLinkConfig {
    /// This process.
    pub own: Incarnation,
    /// True if every lane that may be used ends with our worker of the session: the value of
    /// [`Transport::close_ends_writes`](connector::transport::Transport::close_ends_writes).
    pub close_ends_writes: bool,
    /// Upper bound of the credits outstanding in an incoming session, and of the incoming sessions. 0: no peer prefills for this process.
    pub ring_pages: u32,
    /// The addresses to dial.
    pub receivers: Vec<String>,
    /// Pages that can keep the KV of earlier prompts, for load reports.
    pub cache_pages: u32,
}

/// All sessions of this process.
#[derive(Debug)]
pub struct PeerLinkState {
    own: Incarnation,
    close_ends_writes: bool,
    ring_pages: u32,
    limits: SessionLimits,
    crowd: Crowd,
    cache_pages: u32,
    /// The last report of the generator.
    load: LoadReport,
    next: u64,
    /// This process accepts no new prefills.
    leaving: bool,
    /// This process is shutting down and has closed its links.
    closing: bool,
    /// The fault that the watchdog found.
    fault: Option<String>,
    /// The last report of the buffer manager about the quarantine.
    room: Option<RoomChanged>,
    sessions: BTreeMap<SessionId, Session>,
    diallers: BTreeMap<ReceiverId, Dialler>,
    /// The number of the next dialler.
    next_receiver: u32,
    /// The addresses come from a fleet, which may name others later.
    finds_peers: bool,
    attempts: Attempts,
    /// The process that each dialler is in a handshake with.
    targets: HashMap<ReceiverId, Incarnation>,
    /// The highest attempt number in the Hellos of each sender.
    youngest: HashMap<Incarnation, u64>,
    /// Processes that a task watches until they end.
    watched: HashSet<Incarnation>,
    counts: LinkCounts,
}

fn name(session: SessionId) -> TransportSession {
    TransportSession(session.0)
}

impl PeerLinkState {
    /// A state without sessions.
    pub fn new(config: PeerLinkConfig) -> Self {
        let PeerLinkConfig { own, close_ends_writes, ring_pages, receivers, cache_pages } = config;
        let next_receiver = receivers.len() as u32;
        let diallers = receivers.into_iter().map(Dialler::new);
        Self {
            own,
            close_ends_writes,
            ring_pages,
            limits: SessionLimits::default(),
            crowd: Crowd::default(),
            cache_pages,
            load: LoadReport::default(),
            next: 0,
            leaving: false,
            closing: false,
            fault: None,
            room: None,
            sessions: BTreeMap::new(),
            diallers: (0..).map(ReceiverId).zip(diallers).collect(),
            next_receiver,
            finds_peers: false,
            attempts: Attempts::default(),
            targets: HashMap::new(),
            youngest: HashMap::new(),
            watched: HashSet::new(),
            counts: LinkCounts::default(),
        }
    }

    /// The same state with these limits.
    #[must_use]
    pub fn with_limits(self, limits: SessionLimits) -> Self {
        Self { limits, ..self }
    }

    /// Handles a message and returns the effects.
    pub fn on(&mut self, now: Instant, mail: ToPeerLink) -> Vec<Effect> {
        match mail {
            ToPeerLink::StartDialling(_) => self.on_start_dialling(),
            ToPeerLink::PeersFound(found) => self.on_peers_found(&found.addresses),
            ToPeerLink::DialDue(due) => self.on_dial_due(due.receiver),
            ToPeerLink::Challenged(challenged) => self.on_challenged(now, challenged),
            ToPeerLink::DialFailed(failed) => self.on_dial_failed(failed),
            ToPeerLink::Welcomed(welcomed) => self.on_welcomed(now, *welcomed),
            ToPeerLink::HelloCame(hello) => self.on_hello_came(now, *hello),
            ToPeerLink::FrameCame(came) => self.on_frame(now, came.session, came.frame),
            ToPeerLink::LinkEnded(ended) => self.on_link_ended(ended),
            ToPeerLink::ProcessWatched(watched) => self.on_process_watched(watched),
            ToPeerLink::TransportEvents(events) => {
                events.0.into_iter().flat_map(|event| self.on_transport(now, event)).collect()
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
            ToPeerLink::LoadReport(load) => self.on_load(load),
            ToPeerLink::Tick(_) => self.on_tick(now),
        }
    }

    /// The totals so far.
    pub fn counts(&self) -> LinkCounts {
        self.counts
    }

    /// True once this process has closed its links. No session begins after that.
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// True if this process dials no more receivers, because it accepts no new prefills.
    fn is_ending(&self) -> bool {
        self.leaving || self.closing
    }

    /// Number of sessions whose lane has moved pages.
    pub fn ready(&self) -> usize {
        self.sessions.values().filter(|session| session.stage == Stage::Probed).count()
    }

    /// Number of sessions that the transport has not closed yet.
    pub fn held(&self) -> usize {
        self.sessions.values().filter(|session| session.stage != Stage::Closed).count()
    }

    /// A sender with a valid Hello wants to join. It is admitted, or refused with a reason.
    fn on_hello_came(&mut self, now: Instant, came: HelloCame) -> Vec<Effect> {
        let HelloCame { connection, address, http, sender, previous, drained, version, seed } = came;
        let mut effects = self.on_hello(sender, previous, drained);
        if let Err(reason) = self.admit(sender) {
            if self.is_full() {
                self.crowd.note(now);
            }
            effects.push(to::sockets(Refuse { connection, reason }));
            return effects;
        }
        let peer = sender.incarnation;
        if sender.is_watched && self.watched.insert(peer) {
            effects.push(to::sockets(WatchProcess { connection, incarnation: peer }));
        }
        let direction = Direction::Incoming { sender, close_is_proof: self.close_ends_writes };
        let ring_pages = self.ring_pages;
        effects.extend(self.begin(
            now,
            http,
            Agreed { direction, connection, peer, address, ring_pages, version, seed },
        ));
        effects
    }

    /// A handshake has succeeded: gives the session its id and has the transport open it.
    fn begin(&mut self, now: Instant, http: String, agreed: Agreed) -> Vec<Effect> {
        let Agreed { direction, connection, peer, address, ring_pages, version, seed } = agreed;
        self.next += 1;
        self.counts.opened += 1;
        let session = SessionId(self.next);
        let advertised = advertised(&http, &address);
        let line = LogLine::SessionOpening { session, peer, address: address.clone(), version, http };
        self.sessions.insert(
            session,
            Session {
                stage: Stage::Opening,
                prefills: Prefills::new(now),
                trace: None,
                ended_for_room: false,
                direction,
                since: now,
                first_credit: None,
                probed: false,
                connection,
                peer,
                address,
                http: advertised,
                ring_pages,
                seed,
            },
        );
        vec![to::log(line), to::transport(Command::Open { session: name(session) })]
    }

    /// The watchdog found a fault, or the fault has passed. A fault ends all sessions, so that peers do not wait for a process
    /// that is stuck.
    fn on_health(&mut self, fault: Option<String>) -> Vec<Effect> {
        self.fault = fault;
        match &self.fault {
            Some(fault) => self.end_all(&format!("this process is unhealthy: {fault}")),
            None => Vec::new(),
        }
    }

    fn on_transport(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        match event {
            Event::Opened { session, result } => {
                self.on_opened(now, SessionId(session.0), result.map_err(|error| error.to_string()))
            }
            Event::Connected { session, lane } => self.on_connected(SessionId(session.0), lane),
            Event::Failed { session, error } => self.on_failed(SessionId(session.0), &error),
            Event::Closed { session, drained } => self.on_closed(SessionId(session.0), drained),
            // These events go to the transfer actor.
            Event::PutCompleted { .. } | Event::Flushed { .. } => Vec::new(),
        }
    }

    /// The lane of an outgoing session is connected. The receiver gets its transports first, because they decide what proves the end of the
    /// session. The receiver does not know the session before, so `Leaving` comes after it.
    fn on_connected(&mut self, session: SessionId, lane: String) -> Vec<Effect> {
        let Some(live) = self.sessions.get_mut(&session) else { return Vec::new() };
        if !live.on_lane() {
            return Vec::new();
        }
        let connection = live.connection;
        let write = |frame| to::sockets(WriteFrame { session, connection, frame });
        let mut effects = vec![write(Frame::LaneConnected { lane: lane.clone() })];
        effects.extend(self.leaving.then(|| write(Frame::Leaving)));
        if let Direction::Outgoing { descriptor, .. } = &live.direction {
            let shards = descriptor.shards.len() as u32;
            effects.push(to::transfer(LaneConnected { session, lane, shards }));
        }
        effects
    }

    /// A session failed in the transport. A transport that has shut down answers no Close, and has closed all sessions or is
    /// about to.
    fn on_failed(&mut self, session: SessionId, error: &TransportError) -> Vec<Effect> {
        match (self.sessions.get(&session).map(Session::is_live), error) {
            (Some(false), TransportError::NotTaken(SubmitError::ShutDown)) => self.on_closed(session, false),
            (Some(false), TransportError::NotTaken(_)) => {
                // The transport's queue is full. Each event makes room in it, so the command is sent again.
                vec![to::transport(Command::Close { session: name(session) })]
            }
            _ => self.on_end(session, error.to_string()),
        }
    }

    /// The transport has created the session's worker, or failed to.
    fn on_opened(
        &mut self,
        now: Instant,
        session: SessionId,
        result: Result<Descriptor, String>,
    ) -> Vec<Effect> {
        let Some(live) = self.sessions.get_mut(&session).filter(|live| live.stage == Stage::Opening) else {
            return Vec::new();
        };
        let descriptor = match result {
            Ok(descriptor) => descriptor,
            Err(reason) => return self.on_end(session, reason),
        };
        (live.stage, live.since) = (Stage::Connecting, now);
        let connection = live.connection;
        match &live.direction {
            Direction::Incoming { .. } => {
                vec![to::sockets(SayWelcome { connection, session, descriptor })]
            }
            Direction::Outgoing { descriptor: peer, .. } => vec![
                to::transfer(live.opened(session)),
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
        live.prefills.note(now, &frame);
        let connection = live.connection;
        let probed = matches!(frame, Frame::LinkProbed { .. });
        let write = |frame| to::sockets(WriteFrame { session, connection, frame });
        let mut effects = vec![write(frame)];
        if probed {
            if let Err(reason) = self.on_probed(session) {
                return self.on_end(session, reason);
            }
            // The receiver starts to use the session at LinkProbed, so it has no earlier Load, and Leaving must be sent again.
            effects.push(write(self.load_frame()));
            effects.extend(self.leaving.then(|| write(Frame::Leaving)));
        }
        effects
    }

    /// The session's lane has moved pages.
    fn on_probed(&mut self, session: SessionId) -> Result<(), String> {
        match self.sessions.get_mut(&session) {
            Some(live) if live.stage == Stage::Up => {
                (live.stage, live.probed) = (Stage::Probed, true);
                Ok(())
            }
            _ => Err("LinkProbed was sent for a lane that is already probed".to_owned()),
        }
    }

    fn on_announce_leaving(&mut self) -> Vec<Effect> {
        if std::mem::replace(&mut self.leaving, true) {
            return Vec::new();
        }
        // Only peers that we prefill for need to know.
        let prefilling =
            |live: &Session| live.has_lane() && matches!(live.direction, Direction::Outgoing { .. });
        let up = self.sessions.iter().filter(|(_, live)| prefilling(live));
        up.map(|(session, live)| {
            to::sockets(WriteFrame { session: *session, connection: live.connection, frame: Frame::Leaving })
        })
        .collect()
    }

    /// Ends the sessions that have exceeded [`PROBE_LIMIT`], and an idle one if another peer waits.
    fn on_tick(&mut self, now: Instant) -> Vec<Effect> {
        let late = self.sessions.iter().filter_map(|(session, live)| Some((*session, live.is_late(now)?)));
        let late: Vec<(SessionId, String)> = late.collect();
        let mut effects: Vec<Effect> =
            late.into_iter().flat_map(|(session, reason)| self.on_end(session, reason)).collect();
        effects.extend(self.make_room(now));
        effects
    }

    fn on_link_ended(&mut self, ended: LinkEnded) -> Vec<Effect> {
        match ended.end {
            LinkEnd::Goodbye => self.end(ended.session, "peer said goodbye".into(), true),
            LinkEnd::Broken(reason) => self.on_end(ended.session, reason),
        }
    }

    /// Ends a session because the link broke, the lane failed, or the peer broke a rule. Later reasons for the same session are
    /// ignored.
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

    /// This process is shutting down: ends all sessions.
    fn on_shutdown(&mut self) -> Vec<Effect> {
        self.closing = true;
        self.end_all("this process is shutting down")
    }

    /// The transport has closed its side of the session.
    fn on_closed(&mut self, session: SessionId, drained: bool) -> Vec<Effect> {
        let Some(over) = self.sessions.get_mut(&session) else { return Vec::new() };
        over.stage = Stage::Closed;
        let redial = match &over.direction {
            Direction::Outgoing { receiver, .. } => {
                Some((*receiver, over.peer, over.probed, over.ended_for_room))
            }
            Direction::Incoming { .. } => None,
        };
        let mut effects: Vec<Effect> = self.prove(session).into_iter().collect();
        if let Some((receiver, peer, probed, ended_for_room)) = redial {
            self.attempts.over(peer, drained);
            if let (true, Some(dialler)) = (probed, self.diallers.get_mut(&receiver)) {
                dialler.on_worked();
            }
            effects.extend(if ended_for_room {
                self.dial_later(receiver)
            } else {
                self.dial_again(receiver)
            });
        }
        effects
    }
}

/// Sends `PeerLost` to all actors that know the session. The proxy gets it first, so that it places no request on a sender that
/// the decoder no longer knows.
fn lost(direction: &Direction, lost: PeerLost) -> Vec<Effect> {
    match direction {
        Direction::Incoming { .. } => vec![to::proxy(lost), to::decoder(lost), to::buffer_manager(lost)],
        Direction::Outgoing { .. } => vec![to::transfer(lost), to::prefiller(lost)],
    }
}

#[cfg(test)]
mod tests;
