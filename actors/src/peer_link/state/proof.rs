//! Admission of senders, and the proof that no write of a lost session can land any more.

use std::collections::HashSet;

use connector::frame::Incarnation;
use connector::transport::lane::ends_with_worker;

use super::{Direction, PeerLinkState, Session, Stage};
use crate::effect::{Effect, to};
use crate::messages::{ProcessWatched, RoomChanged, SenderSession, SessionDrained, SessionId, SessionOpened};

/// Upper bound of the lost sessions without proof. The pages of each are out of use.
const UNPROVED_MAX: usize = 1024;
/// New senders over lanes that need proof are refused while more than 1/`QUARANTINE_PART` of the pool is quarantined.
const QUARANTINE_PART: u32 = 4;
/// Upper bound of the senders whose highest attempt is remembered. Above it, senders without a session are forgotten.
pub(super) const SENDERS_KNOWN_MAX: usize = 1024;

impl PeerLinkState {
    /// Decides whether a sender may join after its Hello. A process that is shutting down or unhealthy admits no sender, and
    /// neither does a process with one sender per page of the ring, or with as many sessions as it may have. A Hello that was read after a newer one of the same sender is
    /// refused too: its dialler has given up, and no later Hello would be proof for its session.
    ///
    /// # Errors
    /// The reason, which is sent to the sender. The sender may try again.
    pub fn admit(&self, hello: SenderSession) -> Result<(), String> {
        let youngest = self.youngest.get(&hello.incarnation).copied().unwrap_or_default();
        if hello.number < youngest {
            return Err(format!(
                "attempt {} arrived after attempt {youngest} of the same sender",
                hello.number
            ));
        }
        if self.closing {
            return Err("this process is shutting down".to_owned());
        }
        if let Some(fault) = &self.fault {
            return Err(format!("this process is unhealthy: {fault}"));
        }
        let is_incoming = |session: &&Session| session.is_live() && session.sender().is_some();
        let live = self.sessions.values().filter(is_incoming).count();
        if live >= self.ring_pages as usize {
            return Err(format!("{live} senders are connected, which is the most that this receiver serves"));
        }
        if self.is_full() {
            let sessions = self.limits.sessions;
            return Err(format!(
                "this process has {sessions} sessions, which is its limit; raise its link.sessions"
            ));
        }
        if let Some(RoomChanged { pages, quarantined, .. }) = self.room.filter(|_| !self.close_ends_writes)
            && quarantined > pages / QUARANTINE_PART
        {
            return Err(format!(
                "lost senders may still write {quarantined} of {pages} pages; they become free when those processes end on this host or dial again"
            ));
        }
        if self.sessions.len() - self.held() >= UNPROVED_MAX {
            return Err(format!("{UNPROVED_MAX} sessions of lost senders may still write here"));
        }
        Ok(())
    }

    /// Uses the statement of a Hello as proof, whether or not the sender is admitted. The sender's attempts after session
    /// `previous` never came up on its side, and `drained` says whether session `previous` has drained.
    pub(super) fn on_hello(&mut self, hello: SenderSession, previous: u64, drained: bool) -> Vec<Effect> {
        let known = self.youngest.contains_key(&hello.incarnation);
        if !known && self.youngest.len() >= SENDERS_KNOWN_MAX {
            let senders = self.sessions.values().filter_map(Session::sender);
            let kept: HashSet<_> = senders.map(|sender| sender.incarnation).collect();
            self.youngest.retain(|sender, _| kept.contains(sender));
        }
        let youngest = self.youngest.entry(hello.incarnation).or_default();
        *youngest = hello.number.max(*youngest);
        let over = |peer: &SenderSession| {
            peer.incarnation == hello.incarnation
                && ((previous < peer.number && peer.number < hello.number)
                    || (drained && peer.number == previous))
        };
        self.on_writes_over(over, "the sender dialled again")
    }

    pub(super) fn on_process_watched(&mut self, watched: ProcessWatched) -> Vec<Effect> {
        self.watched.remove(&watched.incarnation);
        if watched.gone { self.on_process_gone(&watched.incarnation) } else { Vec::new() }
    }

    /// A sender's process on this host has ended. That is proof for the sessions that it dialled, but not for sessions of a
    /// process on another host that claims the same incarnation.
    pub(super) fn on_process_gone(&mut self, sender: &Incarnation) -> Vec<Effect> {
        self.youngest.remove(sender);
        self.on_writes_over(
            |peer| peer.is_watched && peer.incarnation == *sender,
            "the sender's process has ended",
        )
    }

    /// The peers of the incoming sessions selected by `which` write no more. Sessions that are live end.
    pub(super) fn on_writes_over(
        &mut self,
        which: impl Fn(&SenderSession) -> bool,
        reason: &str,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let named: Vec<SessionId> = (self.sessions.iter())
            .filter(|(_, session)| session.sender().is_some_and(&which))
            .map(|(session, _)| *session)
            .collect();
        for session in named {
            self.set_close_is_proof(session);
            effects.extend(self.on_end(session, reason.to_owned()));
            effects.extend(self.prove(session));
        }
        effects
    }

    /// Notes that the peer of an incoming session can write no more once our side of the session is closed.
    pub(super) fn set_close_is_proof(&mut self, session: SessionId) {
        if let Some(Direction::Incoming { close_is_proof, .. }) =
            self.sessions.get_mut(&session).map(|over| &mut over.direction)
        {
            *close_is_proof = true;
        }
    }

    /// The buffer manager reports that an ended session held no credit.
    pub(super) fn on_nothing_outstanding(&mut self, session: SessionId) -> Vec<Effect> {
        self.set_close_is_proof(session);
        self.prove(session).into_iter().collect()
    }

    /// The peer has named the transports of the session's lane, so the buffer manager may grant credits now. If the lane ends with our worker,
    /// no further proof is needed.
    ///
    /// # Errors
    /// The lane is connected already.
    pub(super) fn on_lane_named(&mut self, session: SessionId, lane: &str) -> Result<SessionOpened, String> {
        let live = self.sessions.get_mut(&session).filter(|live| live.stage == Stage::Connecting);
        let live = live.ok_or("peer sent LaneConnected twice")?;
        live.on_lane();
        let opened = live.opened(session);
        if ends_with_worker(lane) {
            self.set_close_is_proof(session);
        }
        Ok(opened)
    }

    /// Removes a closed session if there is proof that no write of it can land, and tells the buffer manager.
    pub(super) fn prove(&mut self, session: SessionId) -> Option<Effect> {
        let over = self.sessions.get(&session).filter(|over| over.stage == Stage::Closed)?;
        let proof = match over.direction {
            Direction::Incoming { close_is_proof: false, .. } => return None,
            Direction::Incoming { .. } => Some(to::buffer_manager(SessionDrained { session })),
            // The peer of an outgoing session does not write our pages.
            Direction::Outgoing { .. } => None,
        };
        self.sessions.remove(&session);
        proof
    }
}
