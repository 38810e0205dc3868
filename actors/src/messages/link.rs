//! Sessions with peers: connections, handshakes and frames.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use connector::frame::{Frame, Incarnation, PrefillFault, TraceContext};
use connector::transport::Descriptor;
use engine::{Logprobs, Sampling, Token};

use super::SessionId;
use crate::grammar::GrammarHash;
use crate::request::{CacheSalt, RequestId};

/// The id of one TCP connection. The sockets of this process choose it and never reuse it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// An address that this process dials. Numbers are not reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReceiverId(pub u32);

/// A sender's session, as the sender identifies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderSession {
    /// The sender's process.
    pub incarnation: Incarnation,
    /// The sender's number for the session. The sender numbers all its attempts, so the number grows from one session to the next.
    pub number: u64,
    /// The kernel has confirmed that the dialling process runs on this host, so its end can be observed.
    pub is_watched: bool,
}

/// A Hello's statement about its attempt to open a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Number of this attempt.
    pub session: u64,
    /// The last earlier attempt that became a session, or 0.
    pub previous: u64,
    /// Every put of the previous session has completed and was flushed.
    pub previous_drained: bool,
}

/// Any actor → peer link: send a frame to a session's peer. The frame is dropped if the session is over.
#[derive(Clone, Debug, PartialEq)]
pub struct SendFrame {
    /// The session.
    pub session: SessionId,
    /// The frame.
    pub frame: Frame,
}

/// Any actor → peer link: end the session, because of an error of the peer or the lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakSession {
    /// The session.
    pub session: SessionId,
    /// One sentence for the log.
    pub reason: String,
}

/// Peer link → buffer manager, decoder, proxy: a sender has measured its lane and can prefill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerReady {
    /// The sender's session.
    pub session: SessionId,
    /// The sender's process id.
    pub pid: u32,
    /// [`Incarnation::name`](connector::frame::Incarnation::name) of the sender.
    pub name: u64,
    /// The HTTP address that the sender advertises; `None` if it advertises none that can be used.
    pub http: Option<SocketAddr>,
}

/// Peer link → proxy and buffer manager: this sender accepts no new prefills; those that it has continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerLeaving {
    /// The sender's session.
    pub session: SessionId,
}

/// Peer link → the actors that know the session: the session is over. Afterwards only completions of its last puts arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerLost {
    /// The session.
    pub session: SessionId,
}

/// Buffer manager → peer link: no credit of this lost session was outstanding, so its peer may write no page of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NothingOutstanding {
    /// The session.
    pub session: SessionId,
}

/// Peer link → prefiller: a receiver wants this prompt's KV.
#[derive(Clone, Debug, PartialEq)]
pub struct StartPrefill {
    /// The receiver's session.
    pub session: SessionId,
    /// The receiver's number for the request.
    pub request: RequestId,
    /// Prompt token ids.
    pub prompt: Vec<u32>,
    /// Leading tokens whose KV the receiver has. Their pages are not put.
    pub resident: u32,
    /// How the first token is sampled.
    pub sampling: Arc<Sampling>,
    /// The salt of the request.
    pub salt: Option<CacheSalt>,
    /// The grammar that the answer must match.
    pub grammar: Option<GrammarHash>,
    /// Asks for the log probabilities of the prompt's tokens, and of this many most probable tokens at the place of each.
    pub prompt_logprobs: Option<u32>,
    /// Milliseconds until the request's deadline.
    pub remaining_ms: u64,
    /// The trace that the request belongs to. `None` if it is not recorded.
    pub trace: Option<TraceContext>,
}

/// Peer link → prefiller: the receiver no longer wants this prefill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CancelPrefill {
    /// The receiver's session.
    pub session: SessionId,
    /// The request.
    pub request: RequestId,
}

/// Peer link → decoder: the sender has computed log probabilities of the prompt's tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptLogprobs {
    /// The sender's session.
    pub session: SessionId,
    /// The request.
    pub request: RequestId,
    /// Number of tokens that were reported before.
    pub first: u32,
    /// The log probabilities of the next tokens, in order.
    pub logprobs: Vec<Logprobs>,
}

/// Peer link → decoder: the sender has sampled the first token.
#[derive(Clone, Debug, PartialEq)]
pub struct PrefillFinished {
    /// The sender's session.
    pub session: SessionId,
    /// The request.
    pub request: RequestId,
    /// The first token.
    pub token: Token,
    /// Leading tokens of the prompt that the sender had in its prefix cache.
    pub cached: u32,
    /// The duration of the prefill.
    pub prefill_micros: u64,
}

/// Peer link → decoder: the sender does not prefill this request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefillFailed {
    /// The sender's session.
    pub session: SessionId,
    /// The request.
    pub request: RequestId,
    /// Whether the sender refused the request or failed it.
    pub fault: PrefillFault,
    /// The reason.
    pub reason: String,
}

/// Node → peer link: start dialling the receivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartDialling;

/// Node → peer link: the addresses of all peers to dial, as the fleet's membership says. It replaces the addresses before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeersFound {
    /// The link ports, `host:port`.
    pub addresses: Vec<String>,
}

/// Node → peer link: tell every receiver to ask for no more prefills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnounceLeaving;

/// Node → peer link: end every session with a goodbye.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseLinks;

/// Ticker → peer link: the fault that the watchdog has found in this process; `None`: the process is healthy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthSeen(pub Option<String>);

/// Sockets → peer link: the pause of [`WakeDialler`] is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DialDue {
    /// The receiver.
    pub receiver: ReceiverId,
}

/// Sockets → peer link: a receiver has answered at its address. Its connection waits for [`SayHello`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenged {
    /// The receiver.
    pub receiver: ReceiverId,
    /// The connection.
    pub connection: ConnectionId,
    /// The receiver's process.
    pub incarnation: Incarnation,
}

/// Sockets → peer link: the receiver could not be reached, or refused the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialFailed {
    /// The receiver.
    pub receiver: ReceiverId,
    /// The reason, as one sentence.
    pub reason: String,
    /// Dialling again is useless until a setting is changed on one of the sides.
    pub permanent: bool,
}

/// Sockets → peer link: the receiver has accepted the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcomed {
    /// The receiver.
    pub receiver: ReceiverId,
    /// The connection. It waits for [`Carry`].
    pub connection: ConnectionId,
    /// The receiver's address.
    pub address: String,
    /// The receiver's process.
    pub incarnation: Incarnation,
    /// The access to the receiver's pool.
    pub descriptor: Descriptor,
    /// Maximum number of outstanding credits in the session.
    pub ring_pages: u32,
    /// The protocol version of the session.
    pub version: u32,
    /// The seed of the session's page hashes.
    pub seed: u64,
}

/// Sockets → peer link: a compatible sender has said Hello. Its connection waits for [`SayWelcome`] or [`Refuse`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelloCame {
    /// The connection.
    pub connection: ConnectionId,
    /// The sender's address.
    pub address: String,
    /// The HTTP address that the sender advertises, as `ip:port`; empty if it serves no HTTP.
    pub http: String,
    /// The session, as the sender identifies it.
    pub sender: SenderSession,
    /// [`Attempt::previous`].
    pub previous: u64,
    /// [`Attempt::previous_drained`].
    pub drained: bool,
    /// The protocol version of the session.
    pub version: u32,
    /// The seed of the session's page hashes.
    pub seed: u64,
}

/// Sockets → peer link: a frame has arrived. The connection's task waits until the frame is handled.
#[derive(Clone, Debug, PartialEq)]
pub struct FrameCame {
    /// The session of the peer that sent it.
    pub session: SessionId,
    /// The frame.
    pub frame: Frame,
}

/// Sockets → peer link: a session's connection has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkEnded {
    /// The session.
    pub session: SessionId,
    /// How the connection ended.
    pub end: LinkEnd,
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEnd {
    /// The peer said goodbye.
    Goodbye,
    /// The connection broke, for this reason.
    Broken(String),
}

/// Sockets → peer link: a peer's process has ended, or is no longer watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessWatched {
    /// The process.
    pub incarnation: Incarnation,
    /// True if the process has ended.
    pub gone: bool,
}

/// Peer link → sockets: send [`DialDue`] after this pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WakeDialler {
    /// The receiver.
    pub receiver: ReceiverId,
    /// The pause.
    pub pause: Duration,
}

/// Peer link → sockets: connect to a receiver. Answered by [`Challenged`] or [`DialFailed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    /// The receiver.
    pub receiver: ReceiverId,
    /// Its link port, `host:port`.
    pub address: String,
}

/// Peer link → sockets: say Hello. Answered by [`Welcomed`] or [`DialFailed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SayHello {
    /// The receiver.
    pub receiver: ReceiverId,
    /// A connection that waits for this message.
    pub connection: ConnectionId,
    /// The Hello's statement about the attempt.
    pub attempt: Attempt,
}

/// Peer link → sockets: refuse the session for now; the sender may try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refuse {
    /// The sender's connection.
    pub connection: ConnectionId,
    /// The reason, as one sentence for the sender.
    pub reason: String,
}

/// Peer link → sockets: accept a sender's session, then carry its frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SayWelcome {
    /// The sender's connection.
    pub connection: ConnectionId,
    /// The session.
    pub session: SessionId,
    /// The access to this process's pool.
    pub descriptor: Descriptor,
}

/// Peer link → sockets: carry the session's frames over a connection that this process dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carry {
    /// The connection.
    pub connection: ConnectionId,
    /// The session.
    pub session: SessionId,
}

/// Peer link → sockets: send a frame. If too many frames wait already, the connection ends ([`LinkEnded`]).
#[derive(Clone, Debug, PartialEq)]
pub struct WriteFrame {
    /// The session.
    pub session: SessionId,
    /// The session's connection.
    pub connection: ConnectionId,
    /// The frame.
    pub frame: Frame,
}

/// Peer link → sockets: say goodbye if there was a session, and close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HangUp {
    /// The connection.
    pub connection: ConnectionId,
}

/// Peer link → sockets: send [`ProcessWatched`] when the process that dialled this connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchProcess {
    /// A connection that waits for [`SayWelcome`].
    pub connection: ConnectionId,
    /// The process.
    pub incarnation: Incarnation,
}
