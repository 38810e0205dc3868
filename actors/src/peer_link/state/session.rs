//! One session: its stage, its direction, and the prefills in it.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use connector::frame::{Frame, Incarnation, TraceContext};
use connector::transport::Descriptor;

use super::PROBE_LIMIT;
use crate::messages::{ConnectionId, ReceiverId, SenderSession, SessionId, SessionOpened};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The transport is creating the worker.
    Opening,
    /// The sender connects its lane. It has not named the lane yet, so the receiver grants no credits.
    Connecting,
    /// The sender has named its lane. The lane has not moved pages yet.
    Up,
    /// The lane has moved pages.
    Probed,
    /// The transport is closing its side.
    Closing,
    /// The transport has closed its side, and there is no proof yet.
    Closed,
}

/// The direction in which a session's pages move.
#[derive(Debug)]
pub(super) enum Direction {
    /// The peer puts pages into our pool.
    Incoming {
        sender: SenderSession,
        /// Once our side is closed, the peer can write no more: the lane ends with our worker, the peer said that the session has
        /// drained, its process ended, or it held no credit at the end.
        close_is_proof: bool,
    },
    /// We put pages into the peer's pool.
    Outgoing { receiver: ReceiverId, descriptor: Descriptor },
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) stage: Stage,
    pub(super) direction: Direction,
    /// The prefills for the peer, in an outgoing session.
    pub(super) prefills: Prefills,
    /// The request of the next prefill and its trace, in an outgoing session.
    pub(super) trace: Option<(u64, TraceContext)>,
    /// The session was ended to make room for another peer.
    pub(super) ended_for_room: bool,
    /// The start of [`Stage::Opening`] or [`Stage::Connecting`], whichever came last.
    pub(super) since: Instant,
    /// The first credit.
    pub(super) first_credit: Option<Instant>,
    /// The lane has moved pages. It stays true after the session has ended.
    pub(super) probed: bool,
    pub(super) connection: ConnectionId,
    pub(super) peer: Incarnation,
    pub(super) address: String,
    /// The peer's HTTP address.
    pub(super) http: Option<SocketAddr>,
    pub(super) ring_pages: u32,
    pub(super) seed: u64,
}

impl Session {
    pub(super) fn is_live(&self) -> bool {
        !matches!(self.stage, Stage::Closing | Stage::Closed)
    }

    /// True while frames flow.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.stage, Stage::Connecting | Stage::Up | Stage::Probed)
    }

    /// True if pages can be sent, or could be if the lane were measured.
    pub(super) fn has_lane(&self) -> bool {
        matches!(self.stage, Stage::Up | Stage::Probed)
    }

    /// The lane is connected. False if the session was not [`Stage::Connecting`].
    pub(super) fn on_lane(&mut self) -> bool {
        let is_first = self.stage == Stage::Connecting;
        if is_first {
            self.stage = Stage::Up;
        }
        is_first
    }

    /// The message that tells the transfer actor or the buffer manager of the session.
    pub(super) fn opened(&self, session: SessionId) -> SessionOpened {
        SessionOpened { session, ring_pages: self.ring_pages, seed: self.seed }
    }

    /// Notes the first credit.
    pub(super) fn note_credit(&mut self, now: Instant, frame: &Frame) {
        if matches!(frame, Frame::Grant { .. }) {
            self.first_credit.get_or_insert(now);
        }
    }

    /// Why the session has to end, if its present stage has lasted longer than [`PROBE_LIMIT`]. A measurement waits until other sessions have been
    /// measured, so its limit counts from the first credit.
    pub(super) fn is_late(&self, now: Instant) -> Option<String> {
        let (since, reason) = match (&self.stage, &self.direction) {
            (Stage::Opening, _) => (self.since, "the transport did not open the session"),
            (Stage::Connecting, Direction::Incoming { .. }) => {
                (self.since, "the sender did not name its lane")
            }
            (Stage::Connecting, Direction::Outgoing { .. }) => (self.since, "the lane was not connected"),
            (Stage::Up, _) => (self.first_credit?, "the lane moved no page"),
            _ => return None,
        };
        let is_late = now.saturating_duration_since(since) > PROBE_LIMIT;
        is_late.then(|| format!("{reason} within {} s", PROBE_LIMIT.as_secs()))
    }

    pub(super) fn sender(&self) -> Option<&SenderSession> {
        match &self.direction {
            Direction::Incoming { sender, .. } => Some(sender),
            Direction::Outgoing { .. } => None,
        }
    }
}

/// The HTTP address that a peer advertises. If its IP address is unspecified, as `0.0.0.0` is, the peer's IP address on the link replaces it.
/// `None` if `http` is not `ip:port`.
pub(super) fn advertised(http: &str, link: &str) -> Option<SocketAddr> {
    let http: SocketAddr = http.parse().ok()?;
    let ip = match http.ip().to_canonical() {
        ip if ip.is_unspecified() => link.parse::<SocketAddr>().ok()?.ip().to_canonical(),
        ip => ip,
    };
    Some(SocketAddr::new(ip, http.port()))
}

/// The prefills of a session: which are in progress, and when there was one last.
#[derive(Debug)]
pub(super) struct Prefills {
    /// The peer's numbers of the requests in progress.
    open: HashSet<u64>,
    /// When the session began, or the last time at which a prefill began, sent pages or ended.
    used: Instant,
}

impl Prefills {
    /// No prefills, in a session that begins now.
    pub(super) fn new(now: Instant) -> Self {
        Self { open: HashSet::new(), used: now }
    }

    /// A frame was sent or received.
    pub(super) fn note(&mut self, now: Instant, frame: &Frame) {
        match frame {
            Frame::Prefill { request, .. } => drop(self.open.insert(*request)),
            Frame::CancelPrefill { request }
            | Frame::PrefillFinished { request, .. }
            | Frame::PrefillFailed { request, .. } => drop(self.open.remove(request)),
            Frame::PageFilled { .. } => {}
            _ => return,
        }
        self.used = now;
    }

    /// When there was a prefill last, if none has been in progress for this long.
    pub(super) fn idle_since(&self, now: Instant, idle: Duration) -> Option<Instant> {
        (self.open.is_empty() && now.saturating_duration_since(self.used) >= idle).then_some(self.used)
    }
}
