//! Which senders may join, and when nothing of a lost session can land any more.

use std::collections::HashSet;

use connector::frame::Incarnation;

use super::{Direction, PeerLinkState, Session, Stage};
use crate::effect::{Effect, to};
use crate::messages::{ProcessWatched, RoomChanged, SenderSession, SessionDrained, SessionId};

/// Most senders at once, where the ring has a page for each.
const SENDERS_MAX: usize = 16;
/// Most lost sessions without proof; the pages of each are out of use.
const UNPROVED_MAX: usize = 1024;
/// Senders that could leave pages without proof are put off while more than this part of the pool is quarantined: a quarter.
const QUARANTINE_PART: u32 = 4;
/// Most senders remembered; past it, those without a session are forgotten.
pub(super) const SENDERS_KNOWN_MAX: usize = 1024;

impl PeerLinkState {
    /// Whether a sender may join, after its Hello. It may not join a process that is ending or unwell, nor
    /// exceed one sender for each page of the ring, nor join with a Hello that was read after a younger one: its dialler has
    /// given up, and no later Hello would prove its session harmless.
    ///
    /// # Errors
    /// Why not, for the sender, which may try again.
    pub fn admit(&self, hello: SenderSession) -> Result<(), String> {
        let youngest = self.youngest.get(&hello.incarnation).copied().unwrap_or_default();
        if hello.number < youngest {
            return Err(format!("attempt {youngest} of this sender came before attempt {}", hello.number));
        }
        if self.closing {
            return Err("this process is ending".to_owned());
        }
        if let Some(fault) = &self.fault {
            return Err(format!("this process is unwell: {fault}"));
        }
        let live = self.sessions.values().filter(|session| session.is_live()).count();
        if live >= SENDERS_MAX.min(self.ring_pages as usize) {
            return Err(format!("{live} senders are connected, as many as the ring serves"));
        }
        if let Some(RoomChanged { pages, quarantined, .. }) = self.room.filter(|_| !self.close_ends_writes)
            && quarantined > pages / QUARANTINE_PART
        {
            return Err(format!(
                "{quarantined} of {pages} pages may still be written by lost senders; they come back when those processes have ended"
            ));
        }
        if self.sessions.len() - self.held() >= UNPROVED_MAX {
            return Err("too many lost senders may still write here".to_owned());
        }
        Ok(())
    }

    /// A sender says Hello, and may be admitted or not. Its attempts since the `previous` session never came up on its
    /// side, and that one may have drained.
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
        self.on_harmless(over, "its sender has dialled again")
    }

    pub(super) fn on_process_watched(&mut self, watched: ProcessWatched) -> Vec<Effect> {
        self.watched.remove(&watched.incarnation);
        if watched.gone { self.on_process_gone(&watched.incarnation) } else { Vec::new() }
    }

    /// A sender's process on this host is gone. That is proof for the sessions that it dialled, and for none of a process
    /// elsewhere that claims to be the same.
    pub(super) fn on_process_gone(&mut self, sender: &Incarnation) -> Vec<Effect> {
        self.youngest.remove(sender);
        self.on_harmless(
            |peer| peer.is_watched && peer.incarnation == *sender,
            "its sender's process is gone",
        )
    }

    pub(super) fn on_harmless(
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
            self.set_harmless(session);
            effects.extend(self.on_end(session, reason.to_owned()));
            effects.extend(self.prove(session));
        }
        effects
    }

    pub(super) fn set_harmless(&mut self, session: SessionId) {
        if let Some(Direction::Incoming { harmless, .. }) =
            self.sessions.get_mut(&session).map(|over| &mut over.direction)
        {
            *harmless = true;
        }
    }

    /// A session that is over held no credit.
    pub(super) fn on_nothing_outstanding(&mut self, session: SessionId) -> Vec<Effect> {
        self.set_harmless(session);
        self.prove(session).into_iter().collect()
    }

    /// A closed session is forgotten once nothing of it can land any more.
    pub(super) fn prove(&mut self, session: SessionId) -> Option<Effect> {
        let over = self.sessions.get(&session).filter(|over| over.stage == Stage::Closed)?;
        let proof = match over.direction {
            Direction::Incoming { harmless, .. } if !self.close_ends_writes && !harmless => return None,
            Direction::Incoming { .. } => Some(to::buffer_manager(SessionDrained { session })),
            // Nothing of ours is written in it.
            Direction::Outgoing { .. } => None,
        };
        self.sessions.remove(&session);
        proof
    }
}
