//! One session: its stage, its direction, and the prefills in it.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use connector::frame::{Frame, Incarnation};
use connector::transport::Descriptor;

use crate::messages::{ConnectionId, ReceiverId, SenderSession, SessionId, SessionOpened};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The transport is creating the worker.
    Opening,
    /// Frames flow. The lane is not connected, or the sender has not named it yet, so no credits are granted.
    Connecting,
    /// The lane is connected, but has not moved pages yet.
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
    /// The session was ended to make room for another peer.
    pub(super) ended_for_room: bool,
    /// When [`PROBE_LIMIT`] began to count: at the opening until the lane is connected, then at the first credit.
    pub(super) since: Option<Instant>,
    /// The lane has moved pages. It stays true after the session has ended.
    pub(super) probed: bool,
    pub(super) connection: ConnectionId,
    pub(super) peer: Incarnation,
    pub(super) address: String,
    /// The peer's HTTP address.
    pub(super) http: Option<SocketAddr>,
    pub(super) ring_pages: u32,
    /// The version of the protocol.
    pub(super) version: u32,
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

    /// The lane is connected. Returns what begins now, or `None` if the session is not [`Stage::Connecting`]. The measurement waits until
    /// other sessions have been measured, so its limit counts from the first credit.
    pub(super) fn on_lane(&mut self, session: SessionId) -> Option<SessionOpened> {
        if self.stage != Stage::Connecting {
            return None;
        }
        (self.stage, self.since) = (Stage::Up, None);
        Some(self.opened(session))
    }

    pub(super) fn opened(&self, session: SessionId) -> SessionOpened {
        SessionOpened { session, ring_pages: self.ring_pages, seed: self.seed }
    }

    /// Starts the limit of the measurement at the first credit.
    pub(super) fn note_credit(&mut self, now: Instant, frame: &Frame) {
        if matches!(frame, Frame::Grant { .. }) {
            self.since.get_or_insert(now);
        }
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
