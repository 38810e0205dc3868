//! Sessions with peers: connections, frames and what they carry.

use std::sync::Arc;
use std::time::Duration;

use connector::frame::{Frame, Incarnation, PrefillFault};
use connector::transport::Descriptor;
use engine::{Sampling, Token};

use super::SessionId;
use crate::request::RequestId;

/// One TCP connection, named by the sockets of this process and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// One address that this process dials: its place in the list of receivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReceiverId(pub u32);

/// A sender's session, as the sender names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderSession {
    /// The sender's process.
    pub incarnation: Incarnation,
    /// Its number for the session. The sender numbers all its attempts, so it grows from one session with us to the next.
    pub number: u64,
    /// The kernel said that the process that dialled runs on this host, so its end can be seen.
    pub is_watched: bool,
}

/// What one Hello says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Number of this attempt.
    pub session: u64,
    /// The last attempt before this one that came up, or 0.
    pub previous: u64,
    /// Every put of that one had completed and was flushed.
    pub previous_drained: bool,
}

/// Any actor → peer link: send a frame to a session's peer. Dropped if the session is over.
#[derive(Clone, Debug, PartialEq)]
pub struct SendFrame {
    /// Which session.
    pub session: SessionId,
    /// What.
    pub frame: Frame,
}

/// Any actor → peer link: the peer broke a rule; end the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakSession {
    /// Which.
    pub session: SessionId,
    /// One sentence for the log.
    pub reason: String,
}

/// Peer link → buffer manager, decoder and proxy: a sender has moved real bytes over its lane and can prefill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerReady {
    /// Its session.
    pub session: SessionId,
    /// Its process id.
    pub pid: u32,
}

/// Peer link → proxy and buffer manager: this sender takes no new prefills; those it has continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerLeaving {
    /// Its session.
    pub session: SessionId,
}

/// Peer link → everyone who knows the session: it is over. Only completions of its last puts follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerLost {
    /// Which.
    pub session: SessionId,
}

/// Buffer manager → peer link: no credit of this lost session was outstanding, so its peer may write no page of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NothingOutstanding {
    /// Which.
    pub session: SessionId,
}

/// Peer link → prefiller: a receiver wants this prompt's KV.
#[derive(Clone, Debug, PartialEq)]
pub struct StartPrefill {
    /// The receiver's session.
    pub session: SessionId,
    /// The receiver's number for it.
    pub request: RequestId,
    /// Prompt token ids.
    pub prompt: Vec<u32>,
    /// Leading tokens whose KV the receiver has: their pages do not travel.
    pub resident: u32,
    /// How the first token is chosen.
    pub sampling: Arc<Sampling>,
    /// Milliseconds until its deadline.
    pub remaining_ms: u64,
}

/// Peer link → prefiller: the receiver no longer wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CancelPrefill {
    /// The receiver's session.
    pub session: SessionId,
    /// Which.
    pub request: RequestId,
}

/// Peer link → decoder: the sender has sampled the first token.
#[derive(Clone, Debug, PartialEq)]
pub struct PrefillFinished {
    /// The sender's session.
    pub session: SessionId,
    /// Which.
    pub request: RequestId,
    /// The first token.
    pub token: Token,
    /// How long the prefill took.
    pub prefill_micros: u64,
}

/// Peer link → decoder: the sender will not prefill this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefillFailed {
    /// The sender's session.
    pub session: SessionId,
    /// Which.
    pub request: RequestId,
    /// What that says of the sender.
    pub fault: PrefillFault,
    /// Why.
    pub reason: String,
}

/// Node → peer link: begin to dial the receivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartDialling;

/// Node → peer link: tell every receiver to ask for no more prefills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnounceLeaving;

/// Node → peer link: end every session in good order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseLinks;

/// Ticker → peer link: what the watchdog says of this process; `None`: all is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthSeen(pub Option<String>);

/// Sockets → peer link: the wait of [`WakeDialler`] is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DialDue {
    /// Which receiver.
    pub receiver: ReceiverId,
}

/// Sockets → peer link: a receiver answers at its address, and waits for [`SayHello`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenged {
    /// Which address.
    pub receiver: ReceiverId,
    /// The connection.
    pub connection: ConnectionId,
    /// The receiver's process.
    pub incarnation: Incarnation,
}

/// Sockets → peer link: the receiver was not reached, or did not welcome us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialFailed {
    /// Which receiver.
    pub receiver: ReceiverId,
    /// Why, as one sentence.
    pub reason: String,
    /// Dialling again cannot help until a setting is changed on either side.
    pub permanent: bool,
}

/// Sockets → peer link: the receiver welcomed us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcomed {
    /// Which receiver.
    pub receiver: ReceiverId,
    /// The connection, which waits for [`Carry`].
    pub connection: ConnectionId,
    /// The receiver's address.
    pub address: String,
    /// The receiver's process.
    pub incarnation: Incarnation,
    /// How to write into its pool.
    pub descriptor: Descriptor,
    /// Most credits outstanding in the session.
    pub ring_pages: u32,
    /// Seed of the session's page hashes.
    pub seed: u64,
}

/// Sockets → peer link: a sender that fits said Hello and waits for [`Welcome`] or [`Refuse`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelloCame {
    /// The connection.
    pub connection: ConnectionId,
    /// The sender's address.
    pub address: String,
    /// Where the sender serves HTTP; empty if it does not.
    pub http: String,
    /// The session, as the sender names it.
    pub sender: SenderSession,
    /// Its last session before this one that came up.
    pub previous: u64,
    /// That one has drained.
    pub drained: bool,
    /// Seed of the session's page hashes.
    pub seed: u64,
}

/// Sockets → peer link: a frame came. The connection's task waits until it is handled.
#[derive(Clone, Debug, PartialEq)]
pub struct FrameCame {
    /// The sending peer's session.
    pub session: SessionId,
    /// What.
    pub frame: Frame,
}

/// Sockets → peer link: a session's connection is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkEnded {
    /// Which session's.
    pub session: SessionId,
    /// How.
    pub end: LinkEnd,
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEnd {
    /// The peer said goodbye.
    Goodbye,
    /// It broke, for this reason.
    Broken(String),
}

/// Sockets → peer link: a peer's process has ended, or is not watched any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessWatched {
    /// Which process.
    pub incarnation: Incarnation,
    /// It has ended.
    pub gone: bool,
}

/// Peer link → sockets: send [`DialDue`] after this pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WakeDialler {
    /// Which receiver.
    pub receiver: ReceiverId,
    /// How long to wait.
    pub pause: Duration,
}

/// Peer link → sockets: connect to a receiver. Answered by [`Challenged`] or [`DialFailed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dial {
    /// Which receiver.
    pub receiver: ReceiverId,
}

/// Peer link → sockets: say Hello. Answered by [`Welcomed`] or [`DialFailed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SayHello {
    /// Which receiver.
    pub receiver: ReceiverId,
    /// A connection that waits for it.
    pub connection: ConnectionId,
    /// What the Hello says of the session.
    pub attempt: Attempt,
}

/// Peer link → sockets: there is no session now, for this reason; the sender may try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refuse {
    /// The sender's connection.
    pub connection: ConnectionId,
    /// One sentence for the sender.
    pub reason: String,
}

/// Peer link → sockets: welcome a sender, then carry the session's frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The sender's connection.
    pub connection: ConnectionId,
    /// The session.
    pub session: SessionId,
    /// How to write into our pool.
    pub descriptor: Descriptor,
}

/// Peer link → sockets: carry the session's frames over a connection that we dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carry {
    /// The connection.
    pub connection: ConnectionId,
    /// The session.
    pub session: SessionId,
}

/// Peer link → sockets: send a frame. If too many wait already, the session is over ([`LinkEnded`]).
#[derive(Clone, Debug, PartialEq)]
pub struct WriteFrame {
    /// The session.
    pub session: SessionId,
    /// Its connection.
    pub connection: ConnectionId,
    /// What.
    pub frame: Frame,
}

/// Peer link → sockets: say goodbye if the session was up, and close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HangUp {
    /// The connection.
    pub connection: ConnectionId,
}

/// Peer link → sockets: send [`ProcessWatched`] when the process that dialled this connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchProcess {
    /// A connection that waits for [`Welcome`].
    pub connection: ConnectionId,
    /// Which process.
    pub incarnation: Incarnation,
}
