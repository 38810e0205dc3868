//! The peer link: sessions with other processes, their frames and their transport.
//!
//! - **Thread**: an arbiter of its own, so that heartbeats go on whatever the node's arbiter does. Each session's socket is
//!   served by one task there ([`tasks`]).
//! - **Mailbox**: [`kit::MAILBOX`]. A session's task has one frame in the mailbox at a time; what others send is bounded by credits,
//!   permits and sessions.
//! - **In**: `PeerConnected`, `FrameCame`, `LinkEnded`, `PeerWatched` (tasks); `SendFrame`, `BreakSession` (any actor); `TransportEvents`
//!   (transport thread); `AnnounceLeaving`, `CloseLinks`, `Tick`.
//! - **Out**: every frame as a message to the actor it is for; `SessionOpened`, `LaneConnected`, `PeerReady`, `PeerLost`, `SessionDrained`.
//! - **Failure**: a link, lane or peer that breaks ends its session: everybody hears `PeerLost`, the transport lets go, the
//!   buffer manager hears `SessionDrained` once there is proof, and a dialer dials again. A peer that can never fit is a fault of the process.

pub mod dial_line;
pub mod route;
pub mod state;
pub mod tasks;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use actix::prelude::*;
use connector::frame::{Frame, Incarnation, Shape, Welcome};
use connector::link::{Link, LinkError, Prover};
use connector::process::Pidfd;
use connector::transport::{Command, Event, Transport, TransportSession};
use tokio::sync::{mpsc, oneshot};

use crate::counters::{Counters, count, store};
use crate::kit::{self, Awake, Vitals};
use crate::messages::{
    BreakSession, LaneConnected, PeerLost, SendFrame, SessionDrained, SessionId, SessionOpened, Tick,
    TransportEvents,
};
use crate::watchdog::NodeHealth;
pub use route::{ReceiverSide, SenderSide, Side};
use state::{Action, PeerLinkState, SenderSession, SessionOver};

/// Frames that may wait for a session's socket. A ring's grants and announcements, and every admitted request's frames, fit; a
/// peer that takes none of them is dead.
const FRAMES_WAITING: usize = 4096;

/// Who we are on the link. It holds the secret, so it has no `Debug`.
#[derive(Clone)]
pub struct Identity {
    /// This process.
    pub incarnation: Incarnation,
    /// What it serves.
    pub shape: Shape,
    /// `link.secret`.
    pub secret: Option<String>,
    /// Most credits outstanding in a session that we receive in.
    pub ring_pages: u32,
}

/// Task → peer link: a handshake is as far as it goes without a transport session.
#[derive(Message)]
#[rtype(result = "()")]
pub struct PeerConnected {
    /// The connection.
    pub link: Link,
    /// The peer's process.
    pub incarnation: Incarnation,
    /// How it goes on.
    pub half: Half,
}

/// The two halves of a handshake.
pub enum Half {
    /// We listen: the peer waits for our Welcome.
    Listened {
        /// The session, as the peer names it.
        sender: SenderSession,
        /// The peer's process, if it runs on this host.
        process: Option<Pidfd>,
        /// Its last session before this one that came up.
        previous: u64,
        /// That one has drained.
        drained: bool,
    },
    /// We dialled and were welcomed.
    Dialled {
        /// What the peer said.
        welcome: Box<Welcome>,
        /// Told when the session is gone.
        over: oneshot::Sender<SessionOver>,
    },
}

/// Task → peer link: a frame came. The task waits until it is handled.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct FrameCame {
    /// From whom.
    pub session: SessionId,
    /// What.
    pub frame: Frame,
}

/// Task → peer link: the connection is over.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct LinkEnded {
    /// Which session's.
    pub session: SessionId,
    /// Why.
    pub error: Option<LinkError>,
}

/// Task → peer link: a peer's process has ended, or is watched no more.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct PeerWatched {
    /// Which process.
    pub incarnation: Incarnation,
    /// It has ended.
    pub gone: bool,
}

/// Node → peer link: tell every receiver to ask for no more prefills.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct AnnounceLeaving;

/// Node → peer link: end every session in good order.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct CloseLinks;

/// A session's connection.
enum Line {
    /// We listened; the peer waits for our Welcome.
    Listened(Link),
    /// We dialled, and may have this many credits.
    Dialled(Link, u32),
    /// Frames flow: a task carries what is put in here.
    Carried(mpsc::Sender<Frame>),
    /// The session is over.
    Over,
}

struct Peer {
    incarnation: Incarnation,
    address: String,
    line: Line,
    /// A dialler waits here; dropped only when this process ends.
    over: Option<oneshot::Sender<SessionOver>>,
}

/// The actor.
pub struct PeerLink {
    state: PeerLinkState,
    identity: Identity,
    transport: Arc<dyn Transport>,
    side: Side,
    peers: HashMap<SessionId, Peer>,
    /// Processes whose end a task waits for.
    watched: HashSet<Incarnation>,
    health: NodeHealth,
    counters: Counters,
    awake: Awake,
    vitals: Vitals,
}

impl PeerLink {
    /// Links this process to others over `transport`.
    pub fn new(
        identity: Identity,
        transport: Arc<dyn Transport>,
        side: Side,
        health: NodeHealth,
        counters: Counters,
        awake: Awake,
        vitals: Vitals,
    ) -> Self {
        let state = PeerLinkState::new(transport.close_ends_writes(), identity.ring_pages);
        let (peers, watched) = (HashMap::new(), HashSet::new());
        Self { state, identity, transport, side, peers, watched, health, counters, awake, vitals }
    }

    fn perform(&mut self, actions: Vec<Action>, ctx: &mut Context<Self>) {
        store(self.counters.sessions_ready(), self.state.ready() as u64);
        store(self.counters.sessions_held(), self.state.held() as u64);
        for action in actions {
            match action {
                Action::Open(session) => self.submit(session, Command::Open { session: name(session) }, ctx),
                Action::Connect(session, peer) => {
                    self.start(session, ctx);
                    self.submit(session, Command::Connect { session: name(session), peer }, ctx);
                }
                Action::Welcome(session, descriptor) => self.welcome(session, descriptor, ctx),
                Action::End { session, reason, orderly } => {
                    if let Some(peer) = self.peers.get_mut(&session) {
                        let (peer_name, address) = (peer.incarnation, &peer.address);
                        if orderly {
                            tracing::info!(%session, peer = %peer_name, address, reason, "session over");
                        } else {
                            tracing::warn!(%session, peer = %peer_name, address, reason, "session over");
                        }
                        count(self.counters.sessions_ended());
                        peer.line = Line::Over;
                    }
                    self.side.lost(PeerLost { session });
                    self.submit(session, Command::Close { session: name(session) }, ctx);
                }
                Action::Over(session, over) => {
                    if let Some(peer) = self.peers.remove(&session)
                        && let Some(dialler) = peer.over.filter(|_| !self.state.is_closing())
                    {
                        // Unless this process is ending, whoever dialled dials again.
                        let _ = dialler.send(over);
                    }
                }
                Action::Proved(session) => self.side.drained(SessionDrained { session }),
            }
        }
    }

    fn submit(&mut self, session: SessionId, command: Command, ctx: &mut Context<Self>) {
        if let Err(error) = self.transport.submit(command) {
            tracing::error!(%session, %error, "transport takes no commands");
            let actions = self.state.on_end(session, error.to_string());
            self.perform(actions, ctx);
        }
    }

    /// The session's worker exists: welcome the peer, then carry frames.
    fn welcome(
        &mut self,
        session: SessionId,
        descriptor: connector::transport::Descriptor,
        ctx: &mut Context<Self>,
    ) {
        let ring_pages = self.identity.ring_pages;
        let Some(peer) = self.peers.get_mut(&session) else { return };
        let Line::Listened(mut link) = std::mem::replace(&mut peer.line, Line::Over) else { return };
        let welcome = Welcome {
            incarnation: self.identity.incarnation,
            shape: self.identity.shape.clone(),
            descriptor,
            ring_pages,
            proof: link.nonces().prove(self.identity.secret.as_deref(), Prover::Listener),
        };
        let (frames, seed) = (self.frames(session), link.nonces().session_seed());
        let addr = ctx.address();
        actix::spawn(async move {
            match link.welcome(welcome).await {
                Ok(()) => tasks::carry(link, frames, session, addr).await,
                Err(error) => addr.do_send(LinkEnded { session, error: Some(error) }),
            }
        });
        self.side.opened(SessionOpened { session, ring_pages, seed });
    }

    /// We were welcomed: carry frames.
    fn start(&mut self, session: SessionId, ctx: &mut Context<Self>) {
        let Some(peer) = self.peers.get_mut(&session) else { return };
        let Line::Dialled(link, ring_pages) = std::mem::replace(&mut peer.line, Line::Over) else { return };
        let frames = self.frames(session);
        let seed = link.nonces().session_seed();
        self.side.opened(SessionOpened { session, ring_pages, seed });
        actix::spawn(tasks::carry(link, frames, session, ctx.address()));
    }

    fn frames(&mut self, session: SessionId) -> mpsc::Receiver<Frame> {
        let (sender, receiver) = mpsc::channel(FRAMES_WAITING);
        if let Some(peer) = self.peers.get_mut(&session) {
            peer.line = Line::Carried(sender);
        }
        receiver
    }
}

fn name(session: SessionId) -> TransportSession {
    TransportSession(session.0)
}

impl Actor for PeerLink {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(kit::MAILBOX);
    }
}

impl Handler<PeerConnected> for PeerLink {
    type Result = ();

    fn handle(&mut self, connected: PeerConnected, ctx: &mut Self::Context) {
        self.vitals.mark();
        let PeerConnected { mut link, incarnation, half } = connected;
        let address = link.peer().to_string();
        let (sender, receiver, line, over) = match half {
            Half::Listened { sender, process, previous, drained } => {
                let actions = self.state.on_hello(sender, previous, drained);
                self.perform(actions, ctx);
                if let Err(reason) = self.state.admit(sender) {
                    actix::spawn(async move {
                        // A peer that is gone needs no answer.
                        let _ = link.put_off(reason).await;
                    });
                    return;
                }
                if let Some(process) = process
                    && self.watched.insert(incarnation)
                {
                    actix::spawn(tasks::watch(incarnation, process, ctx.address()));
                }
                (Some(sender), None, Line::Listened(link), None)
            }
            Half::Dialled { .. } if self.state.is_closing() => return,
            Half::Dialled { welcome, over } => {
                let Welcome { descriptor, ring_pages, .. } = *welcome;
                (None, Some(descriptor), Line::Dialled(link, ring_pages), Some(over))
            }
        };
        let (session, actions) = self.state.on_handshake(Instant::now(), sender, receiver);
        count(self.counters.sessions_opened());
        tracing::info!(%session, peer = %incarnation, address, "session opening");
        self.peers.insert(session, Peer { incarnation, address, line, over });
        self.perform(actions, ctx);
    }
}

impl Handler<FrameCame> for PeerLink {
    type Result = ();

    fn handle(&mut self, came: FrameCame, ctx: &mut Self::Context) {
        self.vitals.mark();
        self.awake.stay();
        let FrameCame { session, frame } = came;
        let probed = matches!(frame, Frame::LinkProbed { .. });
        let Some(peer) = self.peers.get(&session).filter(|peer| matches!(peer.line, Line::Carried(_))) else {
            count(self.counters.frames_stale());
            return;
        };
        let actions = match self.side.route(session, peer.incarnation.pid, frame) {
            Err(reason) => self.state.on_end(session, reason),
            Ok(()) if probed => self.state.on_probed(session),
            Ok(()) => return,
        };
        self.perform(actions, ctx);
    }
}

impl Handler<LinkEnded> for PeerLink {
    type Result = ();

    fn handle(&mut self, ended: LinkEnded, ctx: &mut Self::Context) {
        self.vitals.mark();
        let actions = match ended.error {
            Some(LinkError::Goodbye) => self.state.on_goodbye(ended.session),
            Some(error) => self.state.on_end(ended.session, error.to_string()),
            None => self.state.on_end(ended.session, "we closed the link".into()),
        };
        self.perform(actions, ctx);
    }
}

impl Handler<SendFrame> for PeerLink {
    type Result = ();

    fn handle(&mut self, send: SendFrame, ctx: &mut Self::Context) {
        self.vitals.mark();
        self.awake.stay();
        if let Frame::LinkProbed { .. } = send.frame {
            let actions = self.state.on_probed(send.session);
            self.perform(actions, ctx);
        }
        let Some(Line::Carried(frames)) = self.peers.get(&send.session).map(|peer| &peer.line) else {
            return;
        };
        if frames.try_send(send.frame).is_err() {
            let reason = format!("peer did not take {FRAMES_WAITING} frames");
            let actions = self.state.on_end(send.session, reason);
            self.perform(actions, ctx);
        }
    }
}

impl Handler<BreakSession> for PeerLink {
    type Result = ();

    fn handle(&mut self, broken: BreakSession, ctx: &mut Self::Context) {
        self.vitals.mark();
        let actions = self.state.on_end(broken.session, broken.reason);
        self.perform(actions, ctx);
    }
}

impl Handler<TransportEvents> for PeerLink {
    type Result = ();

    fn handle(&mut self, events: TransportEvents, ctx: &mut Self::Context) {
        self.vitals.mark();
        for event in events.0 {
            let actions = match event {
                Event::Opened { session, result } => {
                    self.state.on_opened(SessionId(session.0), result.map_err(|error| error.to_string()))
                }
                Event::Connected { session, lane } => {
                    self.side.connected(LaneConnected { session: SessionId(session.0), lane });
                    Vec::new()
                }
                Event::Failed { session, error } => {
                    self.state.on_end(SessionId(session.0), error.to_string())
                }
                Event::Closed { session, drained } => self.state.on_closed(SessionId(session.0), drained),
                // The transfer actor's.
                Event::PutCompleted { .. } | Event::Flushed { .. } => continue,
            };
            self.perform(actions, ctx);
        }
    }
}

impl Handler<PeerWatched> for PeerLink {
    type Result = ();

    fn handle(&mut self, PeerWatched { incarnation, gone }: PeerWatched, ctx: &mut Self::Context) {
        self.vitals.mark();
        self.watched.remove(&incarnation);
        if gone {
            let actions = self.state.on_process_gone(&incarnation);
            self.perform(actions, ctx);
        }
    }
}

impl Handler<AnnounceLeaving> for PeerLink {
    type Result = ();

    fn handle(&mut self, _: AnnounceLeaving, _: &mut Self::Context) {
        self.vitals.mark();
        for peer in self.peers.values() {
            if let Line::Carried(frames) = &peer.line {
                // A full queue means that the session is about to end.
                let _ = frames.try_send(Frame::Leaving);
            }
        }
    }
}

impl Handler<CloseLinks> for PeerLink {
    type Result = ();

    fn handle(&mut self, _: CloseLinks, ctx: &mut Self::Context) {
        self.vitals.mark();
        let actions = self.state.on_shutdown();
        self.perform(actions, ctx);
    }
}

impl Handler<Tick> for PeerLink {
    type Result = ();

    fn handle(&mut self, _: Tick, ctx: &mut Self::Context) {
        self.vitals.mark();
        let unwell = self.state.on_health(self.health.fault());
        self.perform(unwell, ctx);
        let late = self.state.on_tick(Instant::now());
        self.perform(late, ctx);
    }
}
