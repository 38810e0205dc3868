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
use std::time::{Duration, Instant};

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
    /// Tell everybody that the session is over, and have the transport close it.
    End {
        /// Which session.
        session: SessionId,
        /// Why, for the log.
        reason: String,
        /// One of the two sides ended it in good order.
        orderly: bool,
    },
    /// Tell the buffer manager that nothing of the session can land any more, and the dialler that it may dial again.
    Drained(SessionId, SessionOver),
}

/// How a session ended, for whoever dials again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionOver {
    /// Every put had completed.
    pub drained: bool,
    /// Pages had moved over its lane: it worked.
    pub probed: bool,
}

/// A session whose lane has not moved a page after this is ended: it holds a place and helps nobody.
pub const PROBE_LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// The transport is creating the worker; a dialer already knows where to connect to.
    Opening(Option<Descriptor>),
    /// Frames flow; pages do not yet.
    Up,
    /// Pages have moved over its lane.
    Probed,
    Closing,
}

#[derive(Debug)]
struct Session {
    stage: Stage,
    began: Instant,
    probed: bool,
}

/// All sessions of this process.
#[derive(Debug, Default)]
pub struct PeerLinkState {
    next: u64,
    closing: bool,
    sessions: BTreeMap<SessionId, Session>,
}

impl PeerLinkState {
    /// Whether another sender may join: one is served at a time, and none by a process that is ending.
    ///
    /// # Errors
    /// Why not, for the sender, which may try again.
    pub fn admit(&self) -> Result<(), &'static str> {
        if self.closing {
            return Err("this process is ending");
        }
        if self.sessions.values().any(|session| session.stage != Stage::Closing) {
            return Err("another sender is connected and one is served at a time");
        }
        Ok(())
    }

    /// True once this process is ending: no session begins any more, and nobody is to dial again.
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// Sessions over which pages can travel.
    pub fn ready(&self) -> usize {
        self.sessions.values().filter(|session| session.stage == Stage::Probed).count()
    }

    /// Sessions that the transport still holds anything of.
    pub fn held(&self) -> usize {
        self.sessions.len()
    }

    /// Pages have moved over the session's lane.
    pub fn on_probed(&mut self, session: SessionId) -> Vec<Action> {
        match self.sessions.get_mut(&session) {
            Some(live) if live.stage == Stage::Up => {
                (live.stage, live.probed) = (Stage::Probed, true);
                Vec::new()
            }
            Some(_) => self.on_end(session, "lane was called probed out of turn".into()),
            None => Vec::new(),
        }
    }

    /// Time has passed: a session that is not of use by now is ended.
    pub fn on_tick(&mut self, now: Instant) -> Vec<Action> {
        let late = |session: &Session| {
            matches!(session.stage, Stage::Opening(_) | Stage::Up)
                && now.saturating_duration_since(session.began) > PROBE_LIMIT
        };
        let late: Vec<SessionId> =
            self.sessions.iter().filter(|(_, session)| late(session)).map(|(session, _)| *session).collect();
        let reason = format!("no page had moved over its lane after {} s", PROBE_LIMIT.as_secs());
        late.into_iter().flat_map(|session| self.on_end(session, reason.clone())).collect()
    }

    /// A handshake is as far as this: the session gets its name. `peer`: whom a dialer will connect to.
    pub fn on_handshake(&mut self, now: Instant, peer: Option<Descriptor>) -> (SessionId, Vec<Action>) {
        self.next += 1;
        let session = SessionId(self.next);
        self.sessions.insert(session, Session { stage: Stage::Opening(peer), began: now, probed: false });
        (session, vec![Action::Open(session)])
    }

    /// The transport has created the session's worker, or could not.
    pub fn on_opened(&mut self, session: SessionId, result: Result<Descriptor, String>) -> Vec<Action> {
        let Some(live) = self.sessions.get_mut(&session) else { return Vec::new() };
        let Stage::Opening(peer) = &mut live.stage else { return Vec::new() };
        let peer = peer.take();
        match (result, peer) {
            (Err(reason), _) => self.on_end(session, reason),
            (Ok(descriptor), None) => {
                live.stage = Stage::Up;
                vec![Action::Welcome(session, descriptor)]
            }
            (Ok(_), Some(peer)) => {
                live.stage = Stage::Up;
                vec![Action::Connect(session, peer)]
            }
        }
    }

    /// The link broke, the lane failed, or a peer broke a rule. Only the first reason counts.
    pub fn on_end(&mut self, session: SessionId, reason: String) -> Vec<Action> {
        self.end(session, reason, self.closing)
    }

    /// The peer said goodbye.
    pub fn on_goodbye(&mut self, session: SessionId) -> Vec<Action> {
        self.end(session, "peer said goodbye".into(), true)
    }

    fn end(&mut self, session: SessionId, reason: String, orderly: bool) -> Vec<Action> {
        match self.sessions.get_mut(&session) {
            Some(live) if live.stage != Stage::Closing => {
                live.stage = Stage::Closing;
                vec![Action::End { session, reason, orderly }]
            }
            _ => Vec::new(),
        }
    }

    /// This process ends: so do all sessions.
    pub fn on_shutdown(&mut self) -> Vec<Action> {
        self.closing = true;
        let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        sessions
            .into_iter()
            .flat_map(|session| self.on_end(session, "this process is ending".into()))
            .collect()
    }

    /// The transport has let go of the session.
    pub fn on_closed(&mut self, session: SessionId, drained: bool) -> Vec<Action> {
        match self.sessions.remove(&session) {
            Some(over) => vec![Action::Drained(session, SessionOver { drained, probed: over.probed })],
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
        let (session, actions) = state.on_handshake(Instant::now(), None);
        assert_eq!(actions, [Action::Open(session)]);
        assert_eq!(state.on_opened(session, Ok(descriptor())), [Action::Welcome(session, descriptor())]);
        let (session, _) = state.on_handshake(Instant::now(), Some(descriptor()));
        assert_eq!(state.on_opened(session, Ok(descriptor())), [Action::Connect(session, descriptor())]);
    }

    #[test]
    fn a_session_ends_once_and_is_drained_once() {
        let mut state = PeerLinkState::default();
        let (session, _) = state.on_handshake(Instant::now(), None);
        state.on_opened(session, Ok(descriptor()));
        assert_eq!(
            state.on_end(session, "eof".into()),
            [Action::End { session, reason: "eof".into(), orderly: false }]
        );
        assert_eq!(state.on_end(session, "lane".into()), []);
        assert_eq!(state.admit(), Ok(()), "there is room for the next sender");
        let over = SessionOver { drained: false, probed: false };
        assert_eq!(state.on_closed(session, false), [Action::Drained(session, over)]);
        assert_eq!(state.on_closed(session, false), []);
        assert_eq!(state.held(), 0);
    }

    #[test]
    fn a_session_must_prove_its_lane_once_and_in_time() {
        let (mut state, now) = (PeerLinkState::default(), Instant::now());
        let (session, _) = state.on_handshake(now, None);
        state.on_opened(session, Ok(descriptor()));
        assert_eq!((state.on_tick(now + PROBE_LIMIT), state.ready()), (vec![], 0));
        assert_eq!((state.on_probed(session), state.ready()), (vec![], 1));
        assert_eq!(state.on_tick(now + PROBE_LIMIT * 2), []);
        assert!(matches!(&state.on_probed(session)[..], [Action::End { .. }]), "twice is a lie");
        let over = SessionOver { drained: true, probed: true };
        assert_eq!(state.on_closed(session, true), [Action::Drained(session, over)]);
        let (session, _) = state.on_handshake(now, None);
        let actions = state.on_tick(now + PROBE_LIMIT + Duration::from_secs(1));
        assert!(
            matches!(&actions[..], [Action::End { session: ended, .. }] if *ended == session),
            "{actions:?}"
        );
    }

    #[test]
    fn one_sender_is_admitted_and_none_at_the_end() {
        let mut state = PeerLinkState::default();
        assert_eq!(state.admit(), Ok(()));
        let (session, _) = state.on_handshake(Instant::now(), None);
        assert!(state.admit().is_err());
        assert!(matches!(&state.on_goodbye(session)[..], [Action::End { orderly: true, .. }]));
        assert_eq!(state.admit(), Ok(()));
        assert_eq!(state.on_shutdown(), []);
        assert!(state.admit().is_err() && state.is_closing());
    }

    #[test]
    fn a_worker_that_cannot_be_made_ends_the_session() {
        let mut state = PeerLinkState::default();
        let (session, _) = state.on_handshake(Instant::now(), None);
        assert_eq!(
            state.on_opened(session, Err("no".into())),
            [Action::End { session, reason: "no".into(), orderly: false }]
        );
    }
}
