//! The bound of the sessions of a process, and room for peers that wait.
//!
//! A process has at most [`SessionLimits::sessions`] sessions, in both directions together. At the limit it refuses the Hellos of peers and
//! holds its own dialling back. If a peer waits in this way, the session over which this process has prefilled nothing for the longest time, and
//! for at least [`SessionLimits::idle`], ends. Its address is dialled again after 30 s. So a fleet with more nodes than sessions keeps the
//! sessions that are used. Below the limit, idle sessions stay, because they cost almost nothing.

use std::time::{Duration, Instant};

use super::session::{Direction, Stage};
use super::{PeerLinkState, Session};
use crate::effect::Effect;

/// A peer that was refused or not dialled counts as waiting for this long: twice the longest pause of a dialler.
const WAITING: Duration = Duration::from_secs(60);

/// Limits of the sessions of a process.
#[derive(Clone, Copy, Debug)]
pub struct SessionLimits {
    /// `link.sessions`: maximum number of sessions, in both directions together.
    pub sessions: u32,
    /// `link.idle`: a session without a prefill for this long may end to make room for another peer.
    pub idle: Duration,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self { sessions: 64, idle: Duration::from_secs(600) }
    }
}

/// Whether peers wait for a session.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    /// When a peer was refused, or not dialled, because of the limit.
    since: Option<Instant>,
}

impl Crowd {
    /// A peer waits.
    pub(super) fn note(&mut self, now: Instant) {
        self.since = Some(now);
    }

    fn waits(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.saturating_duration_since(since) < WAITING)
    }
}

impl PeerLinkState {
    /// Live sessions and handshakes of this process's own attempts.
    pub(super) fn is_full(&self) -> bool {
        let live = self.sessions.values().filter(|session| session.is_live()).count();
        live + self.targets.len() >= self.limits.sessions as usize
    }

    /// Ends an idle session if this process has as many as it may have and a peer waits.
    pub(super) fn make_room(&mut self, now: Instant) -> Vec<Effect> {
        if !self.is_full() || !self.crowd.waits(now) {
            return Vec::new();
        }
        let idle_since = |session: &Session| {
            let prefills = (session.stage == Stage::Probed
                && matches!(session.direction, Direction::Outgoing { .. }))
            .then_some(&session.prefills)?;
            prefills.idle_since(now, self.limits.idle)
        };
        let idle = self.sessions.iter().filter_map(|(session, live)| Some((idle_since(live)?, *session)));
        let Some((_, session)) = idle.min() else { return Vec::new() };
        self.crowd = Crowd::default();
        if let Some(live) = self.sessions.get_mut(&session) {
            live.ended_for_room = true;
        }
        let reason = "the session was idle, and another peer needs a session; raise link.sessions".to_owned();
        self.end(session, reason, true)
    }
}
