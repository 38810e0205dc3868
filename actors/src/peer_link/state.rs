//! The life of sessions: the decisions of the peer link, without actix, clock, sockets or transport.
//!
//! ```text
//!            Opening ──worker exists──► Up ──link or lane broke──► Closing ──transport let go──► gone
//! listener             welcome              everybody hears                  proof: drained
//! dialer               connect              PeerLost
//! ```
//!
//! A session ends once, whoever notices first; after `Closing` nothing of it moves through this process, and over a TCP
//! lane, where this process's own worker does the copying, that is the proof that its pages are free.

use std::collections::BTreeMap;

use connector::transport::Descriptor;

use crate::messages::SessionId;

/// What the shell has to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Have the transport open the session.
    Open(SessionId),
    /// Listener: answer the Hello with a Welcome that carries this descriptor, then carry frames.
    Welcome(SessionId, Descriptor),
    /// Dialer: have the transport connect to the peer's descriptor.
    Connect(SessionId, Descriptor),
    /// Tell everybody that the session is over, for this reason, and have the transport close it.
    End(SessionId, String),
    /// Tell the buffer manager that nothing of the session can land any more, and the dialler that it may dial again.
    Drained {
        /// Which session.
        session: SessionId,
        /// True if every put had completed.
        drained: bool,
    },
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// The transport is creating the worker; a dialer already knows where to connect to.
    Opening(Option<Descriptor>),
    Up,
    Closing,
}

/// All sessions of this process.
#[derive(Debug, Default)]
pub struct PeerLinkState {
    next: u64,
    sessions: BTreeMap<SessionId, Stage>,
}

impl PeerLinkState {
    /// Sessions that are opening or up.
    pub fn live(&self) -> usize {
        self.sessions.values().filter(|stage| **stage != Stage::Closing).count()
    }

    /// True while the transport still holds anything.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// A handshake is as far as this: the session gets its name. `peer`: whom a dialer will connect to.
    pub fn on_handshake(&mut self, peer: Option<Descriptor>) -> (SessionId, Vec<Action>) {
        self.next += 1;
        let session = SessionId(self.next);
        self.sessions.insert(session, Stage::Opening(peer));
        (session, vec![Action::Open(session)])
    }

    /// The transport has created the session's worker, or could not.
    pub fn on_opened(&mut self, session: SessionId, result: Result<Descriptor, String>) -> Vec<Action> {
        let Some(stage) = self.sessions.get_mut(&session) else { return Vec::new() };
        let Stage::Opening(peer) = stage else { return Vec::new() };
        let peer = peer.take();
        match (result, peer) {
            (Err(reason), _) => self.on_end(session, reason),
            (Ok(descriptor), None) => {
                *stage = Stage::Up;
                vec![Action::Welcome(session, descriptor)]
            }
            (Ok(_), Some(peer)) => {
                *stage = Stage::Up;
                vec![Action::Connect(session, peer)]
            }
        }
    }

    /// The link broke, the lane failed, or a peer broke a rule. Only the first reason counts.
    pub fn on_end(&mut self, session: SessionId, reason: String) -> Vec<Action> {
        match self.sessions.get_mut(&session) {
            Some(stage) if *stage != Stage::Closing => {
                *stage = Stage::Closing;
                vec![Action::End(session, reason)]
            }
            _ => Vec::new(),
        }
    }

    /// This process ends: so do all sessions.
    pub fn on_shutdown(&mut self) -> Vec<Action> {
        let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        sessions
            .into_iter()
            .flat_map(|session| self.on_end(session, "this process is ending".into()))
            .collect()
    }

    /// The transport has let go of the session.
    pub fn on_closed(&mut self, session: SessionId, drained: bool) -> Vec<Action> {
        match self.sessions.remove(&session) {
            Some(_) => vec![Action::Drained { session, drained }],
            None => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor() -> Descriptor {
        Descriptor { transport: "t".into(), worker_address: vec![], rkey: vec![], base: 0, bytes: 0 }
    }

    #[test]
    fn a_listener_welcomes_and_a_dialer_connects() {
        let mut state = PeerLinkState::default();
        let (session, actions) = state.on_handshake(None);
        assert_eq!(actions, [Action::Open(session)]);
        assert_eq!(state.on_opened(session, Ok(descriptor())), [Action::Welcome(session, descriptor())]);
        let (session, _) = state.on_handshake(Some(descriptor()));
        assert_eq!(state.on_opened(session, Ok(descriptor())), [Action::Connect(session, descriptor())]);
        assert_eq!(state.live(), 2);
    }

    #[test]
    fn a_session_ends_once_and_is_drained_once() {
        let mut state = PeerLinkState::default();
        let (session, _) = state.on_handshake(None);
        state.on_opened(session, Ok(descriptor()));
        assert_eq!(state.on_end(session, "eof".into()), [Action::End(session, "eof".into())]);
        assert_eq!(state.on_end(session, "lane".into()), []);
        assert_eq!(state.live(), 0);
        assert_eq!(state.on_closed(session, false), [Action::Drained { session, drained: false }]);
        assert_eq!(state.on_closed(session, false), []);
        assert!(state.is_empty());
    }

    #[test]
    fn a_worker_that_cannot_be_made_ends_the_session() {
        let mut state = PeerLinkState::default();
        let (session, _) = state.on_handshake(None);
        assert_eq!(state.on_opened(session, Err("no".into())), [Action::End(session, "no".into())]);
    }
}
