//! The life of sessions: the decisions of the peer link, without actix, clock, sockets or transport.
//!
//! ```text
//!            Opening ──worker exists──► Up ──link or lane broke──► Closing ──transport let go──► Closed ──proof──► gone
//! listener             welcome              everybody hears                 dialler hears         buffer manager hears
//! dialer               connect              PeerLost                        it is over            SessionDrained
//! ```
//!
//! A session ends once, whoever notices first. What its peer may still write stays quarantined until there is **proof** that
//! nothing lands any more: our part of the session is closed, *and* one of these holds:
//!
//! - puts move only while our part lives (TCP: our own worker does the copying);
//! - the peer, the same process, has said in a later Hello that this session has drained;
//! - the peer's process is gone.
//!
//! Without proof (a stopped process, a cut network) the session stays `Closed` for ever, and its pages with it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use connector::frame::Incarnation;
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
    /// Tell the dialler that the session is over and that it may dial again.
    Over(SessionId, SessionOver),
    /// Tell the buffer manager that nothing of the session can land any more.
    Proved(SessionId),
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

/// Most senders at once, where the ring has a page for each.
const SENDERS_MAX: usize = 16;
/// Most lost sessions without proof; the pages of each are out of use.
const UNPROVED_MAX: usize = 1024;
/// Most lines remembered; past it, those without a session are forgotten.
const LINES_MAX: usize = 1024;

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// The transport is creating the worker; a dialer already knows where to connect to.
    Opening(Option<Descriptor>),
    /// Frames flow; pages do not yet.
    Up,
    /// Pages have moved over its lane.
    Probed,
    /// The transport is letting go.
    Closing,
    /// It has let go, and there is no proof yet.
    Closed,
}

/// A sender's session, as the sender names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderSession {
    /// The sender's process.
    pub incarnation: Incarnation,
    /// Which of its receivers it means with us.
    pub line: u32,
    /// Its number for the session.
    pub number: u64,
    /// The kernel said that the process that dialled runs on this host, and its end is waited for.
    pub is_watched: bool,
}

#[derive(Debug)]
struct Session {
    stage: Stage,
    began: Instant,
    probed: bool,
    /// Whose puts come in; `None`: we dialled, and nothing of ours is written.
    sender: Option<SenderSession>,
    /// The sender said that it has drained, or its process is gone.
    harmless: bool,
}

impl Session {
    fn is_live(&self) -> bool {
        !matches!(self.stage, Stage::Closing | Stage::Closed)
    }
}

/// All sessions of this process.
#[derive(Debug)]
pub struct PeerLinkState {
    /// Puts move only while our part of a session lives.
    close_ends_writes: bool,
    senders_max: usize,
    next: u64,
    closing: bool,
    fault: Option<String>,
    sessions: BTreeMap<SessionId, Session>,
    /// The youngest attempt heard of on each line of each sender.
    youngest: HashMap<(Incarnation, u32), u64>,
}

impl PeerLinkState {
    /// No sessions. `close_ends_writes`: what [`Transport`](connector::transport::Transport::close_ends_writes) says; at
    /// most one sender for each of `ring_pages` pages.
    pub fn new(close_ends_writes: bool, ring_pages: u32) -> Self {
        Self {
            close_ends_writes,
            senders_max: SENDERS_MAX.min(ring_pages as usize),
            next: 0,
            closing: false,
            fault: None,
            sessions: BTreeMap::new(),
            youngest: HashMap::new(),
        }
    }

    /// Whether a sender may join, after [`on_hello`](Self::on_hello): not in a process that is ending or unwell, not one more
    /// than there are pages in the ring, and not by a Hello that was read after a younger one: nobody waits for its answer,
    /// and no later one would prove its session harmless.
    ///
    /// # Errors
    /// Why not, for the sender, which may try again.
    pub fn admit(&self, hello: SenderSession) -> Result<(), String> {
        let youngest = self.youngest.get(&(hello.incarnation, hello.line)).copied().unwrap_or_default();
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
        if live >= self.senders_max {
            return Err(format!("{live} senders are connected, as many as the ring serves"));
        }
        if self.sessions.len() - self.held() >= UNPROVED_MAX {
            return Err("too many lost senders may still write here".to_owned());
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
        self.sessions.values().filter(|session| session.stage != Stage::Closed).count()
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

    /// A handshake is as far as this: the session gets its name. A listener knows `sender`, a dialer the `receiver` that it
    /// will connect to.
    pub fn on_handshake(
        &mut self,
        now: Instant,
        sender: Option<SenderSession>,
        receiver: Option<Descriptor>,
    ) -> (SessionId, Vec<Action>) {
        self.next += 1;
        let session = SessionId(self.next);
        let stage = Stage::Opening(receiver);
        self.sessions.insert(session, Session { stage, began: now, probed: false, sender, harmless: false });
        (session, vec![Action::Open(session)])
    }

    /// A sender says Hello, and may be admitted or not. Its attempts since the `previous` session never came up on its
    /// side, and that one may have drained.
    pub fn on_hello(&mut self, hello: SenderSession, previous: u64, drained: bool) -> Vec<Action> {
        let known = self.youngest.contains_key(&(hello.incarnation, hello.line));
        if !known && self.youngest.len() >= LINES_MAX {
            let senders = self.sessions.values().filter_map(|session| session.sender);
            let kept: HashSet<_> = senders.map(|sender| (sender.incarnation, sender.line)).collect();
            self.youngest.retain(|line, _| kept.contains(line));
        }
        let youngest = self.youngest.entry((hello.incarnation, hello.line)).or_default();
        *youngest = hello.number.max(*youngest);
        let over = |peer: &SenderSession| {
            (peer.incarnation, peer.line) == (hello.incarnation, hello.line)
                && ((previous < peer.number && peer.number < hello.number)
                    || (drained && peer.number == previous))
        };
        self.on_harmless(over, "its sender has dialled again")
    }

    /// A sender's process on this host is gone: proof for the sessions that it dialled, and for none of a process elsewhere that
    /// claims to be the same.
    pub fn on_process_gone(&mut self, sender: &Incarnation) -> Vec<Action> {
        self.youngest.retain(|(incarnation, _), _| incarnation != sender);
        self.on_harmless(
            |peer| peer.is_watched && peer.incarnation == *sender,
            "its sender's process is gone",
        )
    }

    fn on_harmless(&mut self, which: impl Fn(&SenderSession) -> bool, reason: &str) -> Vec<Action> {
        let mut actions = Vec::new();
        let named: Vec<SessionId> = (self.sessions.iter())
            .filter(|(_, session)| session.sender.as_ref().is_some_and(&which))
            .map(|(session, _)| *session)
            .collect();
        for session in named {
            if let Some(over) = self.sessions.get_mut(&session) {
                over.harmless = true;
            }
            actions.extend(self.on_end(session, reason.to_owned()));
            actions.extend(self.prove(session));
        }
        actions
    }

    /// A closed session is forgotten once nothing of it can land any more.
    fn prove(&mut self, session: SessionId) -> Option<Action> {
        let over = self.sessions.get(&session).filter(|over| over.stage == Stage::Closed)?;
        if !self.close_ends_writes && over.sender.is_some() && !over.harmless {
            return None;
        }
        self.sessions.remove(&session);
        Some(Action::Proved(session))
    }

    /// The watchdog says that this process is unwell, or well again: peers must not wait for one that is stuck.
    pub fn on_health(&mut self, fault: Option<String>) -> Vec<Action> {
        self.fault = fault;
        match &self.fault {
            Some(fault) => self.end_all(&format!("this process is unwell: {fault}")),
            None => Vec::new(),
        }
    }

    fn end_all(&mut self, reason: &str) -> Vec<Action> {
        let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        sessions.into_iter().flat_map(|session| self.on_end(session, reason.to_owned())).collect()
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
            Some(live) if live.is_live() => {
                live.stage = Stage::Closing;
                vec![Action::End { session, reason, orderly }]
            }
            _ => Vec::new(),
        }
    }

    /// This process ends: so do all sessions.
    pub fn on_shutdown(&mut self) -> Vec<Action> {
        self.closing = true;
        self.end_all("this process is ending")
    }

    /// The transport has let go of the session.
    pub fn on_closed(&mut self, session: SessionId, drained: bool) -> Vec<Action> {
        let Some(over) = self.sessions.get_mut(&session) else { return Vec::new() };
        over.stage = Stage::Closed;
        let told = Action::Over(session, SessionOver { drained, probed: over.probed });
        [told].into_iter().chain(self.prove(session)).collect()
    }
}

#[cfg(test)]
mod tests;
