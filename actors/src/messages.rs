//! What actors say to each other inside one process.
//!
//! Commands are imperatives, events say what has happened. Every message between these actors is about a request that
//! holds an admission permit, a page that holds a credit, or a session, and each of those is bounded; so the edges
//! use [`Outbox::post`](crate::kit::Outbox::post), and only the proxy, where requests come in, may be told "full".

use std::fmt;
use std::sync::Arc;

use actix::Message;
use connector::frame::{Frame, PageOwner};
use connector::ring::{CreditNumber, PageIndex};
use connector::transport::Event;
use engine::{PageId, Sampling, Token};

use crate::request::{FinishReason, Generate, RequestId};

/// One link between two processes, named by this process and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// Whoever holds pages and runs on the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SequenceId {
    /// A request of this process: the decoder's.
    Own(RequestId),
    /// A request of a peer that we prefill: the prefiller's, which counts them, so that a peer that uses a number twice
    /// mixes nothing up.
    Peer(u64),
}

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(request) => request.fmt(f),
            Self::Peer(serial) => write!(f, "p{serial}"),
        }
    }
}

/// Proxy → decoder: run this request, prefilled by `prefill_on` or here.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct Decode {
    /// The request.
    pub generate: Generate,
    /// The session whose sender prefills; `None`: this process.
    pub prefill_on: Option<SessionId>,
}

/// Decoder → proxy: a prompt that [`Decode`] brought does not wait for its prefill any more. Comes once for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct PrefillOver {
    /// [`Decode::prefill_on`].
    pub on: Option<SessionId>,
    /// Tokens of the prompt.
    pub tokens: u32,
    /// How its wait ended.
    pub outcome: PrefillOutcome,
}

/// How a prompt's wait for its prefill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefillOutcome {
    /// It was prefilled where the proxy sent it.
    Computed {
        /// Tokens that were computed: those of the prompt that were not resident.
        tokens: u32,
        /// How long that took.
        micros: u64,
    },
    /// The sender failed: it said so, was lost, or sent something wrong.
    Failed,
    /// The request ended first, gave its pages back or is prefilled elsewhere, which says nothing about the place.
    Withdrawn,
}

/// Decoder, prefiller → buffer manager: hold pages for a sequence.
///
/// Answered by [`PagesReserved`] when there are enough, first come first served but for those that come again. Pages that hold a prefix of `tokens` already
/// are shared.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct ReservePages {
    /// Who wants them.
    pub sequence: SequenceId,
    /// Its tokens so far, at least one.
    pub tokens: Arc<[u32]>,
    /// Pages wanted in all; at least those of `tokens`.
    pub pages: u32,
    /// Those of `tokens` that are not shared land from a sender: they are held as a count, each becomes the page that lands.
    pub landing: bool,
    /// It had pages and gave them back, or its sender is lost: it goes before those that have not had any.
    pub again: bool,
}

/// Buffer manager → decoder, prefiller: the reservation stands.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct PagesReserved {
    /// Whose.
    pub sequence: SequenceId,
    /// Leading tokens that the first pages hold already: a whole number of pages, and not all tokens.
    pub resident: u32,
    /// Pages held as a count. None, although they were to land, if little is left to compute.
    pub landing: u32,
    /// The shared pages, then those that are the sequence's own from now on.
    pub pages: Vec<PageId>,
}

/// Decoder → buffer manager: a running sequence will need more pages. Answered by [`PagesGrown`], before any new
/// reservation is served; by [`PagesShort`] first, if somebody has to give some back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct GrowPages {
    /// Whose.
    pub sequence: SequenceId,
    /// With fewer it cannot go on for long; at least one.
    pub least: u32,
    /// As many would be fine.
    pub most: u32,
}

/// Buffer manager → decoder: these pages are the sequence's too.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct PagesGrown {
    /// Whose.
    pub sequence: SequenceId,
    /// They follow those that it has.
    pub pages: Vec<PageId>,
}

/// Buffer manager → decoder: a sequence cannot grow before another one gives pages back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct PagesShort {
    /// How many [`ReleasePages`] of own requests had come by then: if more are under way, there may be room already.
    pub releases: u64,
}

/// Decoder, prefiller → buffer manager: the KV of these tokens stands in the sequence's pages, and may be shared.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct PagesComputed {
    /// Whose.
    pub sequence: SequenceId,
    /// Tokens from the first one on.
    pub tokens: Arc<[u32]>,
    /// The sequence's page table.
    pub pages: Vec<PageId>,
}

/// Decoder, prefiller → buffer manager: everything this sequence holds or waits for goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct ReleasePages {
    /// Whose.
    pub sequence: SequenceId,
}

/// Peer link → buffer manager: pages of our pool are whole and visible.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct PageFilled {
    /// Where it came from.
    pub session: SessionId,
    /// First credit spent.
    pub first: CreditNumber,
    /// How many.
    pub count: u32,
    /// Whose pages; `None`: nobody's.
    pub owner: Option<PageOwner>,
    /// Hash of each page, or none at all.
    pub hashes: Vec<u64>,
    /// From the request's first put to the covering flush.
    pub transfer_micros: u64,
}

/// Buffer manager → decoder: landed pages now belong to the request.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct PagesAdopted {
    /// Whose.
    pub request: RequestId,
    /// Place of the first page in the request's page table.
    pub first_page: u32,
    /// The pages.
    pub pages: Vec<PageId>,
    /// From the request's first put to the covering flush.
    pub transfer_micros: u64,
}

/// Buffer manager → decoder: a page that landed for the request is not what its sender put; nothing of it was adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct PageRejected {
    /// Whose.
    pub request: RequestId,
}

/// Decoder, prefiller → generator: run a sequence on the engine.
#[derive(Clone, Debug, PartialEq, Message)]
#[rtype(result = "()")]
pub struct StartSequence {
    /// Its name.
    pub sequence: SequenceId,
    /// All its tokens so far; at least one more than `resident`.
    pub tokens: Vec<u32>,
    /// How many leading tokens have their KV in `pages` already.
    pub resident: u32,
    /// Page table, long enough for `tokens`; a sequence that comes to its end waits for [`ExtendSequence`].
    pub pages: Vec<PageId>,
    /// How many of `tokens` are the prompt's.
    pub prompt: u32,
    /// How many tokens to sample; at least one.
    pub sample: u32,
    /// How they are chosen.
    pub sampling: Arc<Sampling>,
    /// Goes on past an end-of-sequence token.
    pub ignore_eos: bool,
}

/// Decoder → generator: the sequence has these pages too.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct ExtendSequence {
    /// Which.
    pub sequence: SequenceId,
    /// They follow those that it has.
    pub pages: Vec<PageId>,
}

/// Decoder, prefiller → generator: end this sequence. Answered by a last [`SequenceAdvanced`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct StopSequence {
    /// Which.
    pub sequence: SequenceId,
}

/// Generator → decoder, prefiller: a step has moved this sequence, or it has ended.
///
/// After the event with `ended` set the engine no longer touches the sequence's pages.
#[derive(Clone, Debug, PartialEq, Message)]
#[rtype(result = "()")]
pub struct SequenceAdvanced {
    /// Which.
    pub sequence: SequenceId,
    /// Leading tokens whose KV is in the pages now.
    pub resident: u32,
    /// The token sampled, if one was.
    pub token: Option<Token>,
    /// Microseconds since the sequence's first step began.
    pub running_micros: u64,
    /// Set on the last event of a sequence.
    pub ended: Option<SequenceEnd>,
}

/// How a sequence ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SequenceEnd {
    /// By itself.
    Finished(FinishReason),
    /// By [`StopSequence`].
    Stopped,
    /// The engine failed.
    Failed(String),
}

/// Prefiller → transfer: these pages of a peer's request are final; hand them over.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct SchedulePut {
    /// To whom.
    pub session: SessionId,
    /// Whose.
    pub request: RequestId,
    /// Place of the first page in the request's page table.
    pub first_page: u32,
    /// Pages of our pool.
    pub pages: Vec<PageId>,
}

/// Prefiller → transfer: nothing more of this request is to be sent, because all is or because nobody wants it.
/// Answered by [`PutsDrained`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct CancelPuts {
    /// To whom they went.
    pub session: SessionId,
    /// Whose.
    pub request: RequestId,
}

/// Transfer → prefiller: this many more pages of the request are visible at the receiver, and free of puts here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct PagesSent {
    /// To whom.
    pub session: SessionId,
    /// Whose.
    pub request: RequestId,
    /// How many more.
    pub count: u32,
    /// How long the lane had what one flush covers, from the first put's posting on; told once, and not counted twice where flushes
    /// overlap.
    pub put_micros: u64,
}

/// Transfer → prefiller: no put of this request is in flight any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct PutsDrained {
    /// To whom they went.
    pub session: SessionId,
    /// Whose.
    pub request: RequestId,
}

/// Any actor → peer link: send a frame to a session's peer. Dropped if the session is over.
#[derive(Clone, Debug, PartialEq, Message)]
#[rtype(result = "()")]
pub struct SendFrame {
    /// To whom.
    pub session: SessionId,
    /// What.
    pub frame: Frame,
}

/// Any actor → peer link: the peer broke a rule; end the session.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct BreakSession {
    /// Which.
    pub session: SessionId,
    /// One sentence for the log.
    pub reason: String,
}

/// Peer link → buffer manager, transfer: a session began; frames follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct SessionOpened {
    /// Which.
    pub session: SessionId,
    /// Most credits outstanding in it.
    pub ring_pages: u32,
    /// Seed of its page hashes.
    pub seed: u64,
}

/// Peer link → transfer: puts of this session may be posted, over this lane.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct LaneConnected {
    /// Which.
    pub session: SessionId,
    /// What carries them.
    pub lane: String,
}

/// Peer link → transfer: the receiver granted credits.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct CreditsGranted {
    /// In which session.
    pub session: SessionId,
    /// Number of the first one.
    pub first: CreditNumber,
    /// The receiver's pages.
    pub pages: Vec<PageIndex>,
}

/// Peer link → proxy, decoder: a sender has moved real bytes over its lane and can prefill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct PeerReady {
    /// Its session.
    pub session: SessionId,
    /// Its process id.
    pub pid: u32,
}

/// Peer link → proxy: this sender takes no new prefills; those asked for go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct PeerLeaving {
    /// Its session.
    pub session: SessionId,
}

/// Peer link → transfer: the session's share of the ring; unspent credits beyond it are to go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct RingShared {
    /// Which.
    pub session: SessionId,
    /// Most credits that we should hold.
    pub pages: u32,
}

/// Peer link → everybody: this session is over; nothing of it comes any more but its last puts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct PeerLost {
    /// Which.
    pub session: SessionId,
}

/// Peer link → buffer manager: proof that no byte of this lost session can land any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct SessionDrained {
    /// Which.
    pub session: SessionId,
}

/// Peer link → prefiller: a receiver wants this prompt's KV.
#[derive(Clone, Debug, PartialEq, Message)]
#[rtype(result = "()")]
pub struct StartPrefill {
    /// From whom.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct CancelPrefill {
    /// From whom.
    pub session: SessionId,
    /// Which.
    pub request: RequestId,
}

/// Peer link → decoder: the sender has sampled the first token.
#[derive(Clone, Debug, PartialEq, Message)]
#[rtype(result = "()")]
pub struct PrefillFinished {
    /// By whom.
    pub session: SessionId,
    /// Which.
    pub request: RequestId,
    /// The first token.
    pub token: Token,
    /// How long the prefill took.
    pub prefill_micros: u64,
}

/// Peer link → decoder: the sender will not prefill this.
#[derive(Clone, Debug, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct PrefillFailed {
    /// By whom.
    pub session: SessionId,
    /// Which.
    pub request: RequestId,
    /// Why.
    pub reason: String,
}

/// Transport thread → transfer, peer link: a batch of its events.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct TransportEvents(pub Vec<Event>);

/// Node → proxy, prefiller: take nothing new from now on; what was taken goes on.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct BeginDrain;

/// Ticker → every actor: time has passed. Deadlines are checked, and the watchdog sees that the actor is alive.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Tick;
