//! The messages of the link between two processes.
//!
//! The listener sends a [`Challenge`], the dialer answers with a [`Hello`], and the listener ends the handshake with an
//! [`Answer`]. After a [`Welcome`] each side sends [`Frame`]s. Integers have a fixed width. KV bytes do not travel over the link.
//!
//! Challenge and Hello begin with [`Versions`], whose encoding never changes. The two sides use the highest version that both
//! support. A change of any type here makes a new version. `frame/versions.rs` has the versions that this build supports. The tests keep their
//! golden bytes.

mod prefill;
mod shape;
mod versions;

use std::fmt;

use common::splitmix::mix;
use serde::{Deserialize, Serialize};

use crate::ring::{CreditNumber, PageIndex};
use crate::shards::ShardError;
use crate::transport::Descriptor;
use crate::wire;
pub use prefill::{
    FirstToken, GRAMMAR_BYTES_MAX, GRAMMARS_MAX, GrammarKind, LOGIT_BIAS_MAX, PROMPT_LOGPROBS_MAX,
    PROMPT_TOKENS_MAX, PageOwner, PrefillFault, TokenLogprobs, TraceContext,
};
pub use shape::KvShape;
pub use versions::Versions;

/// The work that a process does for its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The process prefills prompts.
    pub prefill: bool,
    /// The process decodes.
    pub decode: bool,
}

/// Identifies one run of one process.
///
/// A peer can claim any incarnation, so it proves nothing about where a process runs or whether it has ended. The module
/// [`process`](crate::process) gets that from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Incarnation {
    /// Process id.
    pub pid: u32,
    /// Start time of the process, in clock ticks since boot.
    pub start_ticks: u64,
    /// Boot id of the machine.
    pub boot: u128,
    /// PID namespace in which `pid` is valid.
    pub pid_namespace: u64,
    /// Random number drawn at process start. Cloned virtual machines can agree in all other fields.
    pub random: u128,
}

impl Incarnation {
    /// A number that all processes know this one by. It does not depend on [`random`](Self::random), so a process can compute its own at any time.
    /// Different processes have the same number only by chance, or if their virtual machines are clones.
    pub fn name(&self) -> u64 {
        let boot = [self.boot as u64, (self.boot >> 64) as u64];
        let parts = [u64::from(self.pid), self.start_ticks, self.pid_namespace, boot[0], boot[1]];
        parts.into_iter().fold(0, |name, part| mix(name ^ mix(part)))
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.pid, self.start_ticks)
    }
}

/// Two processes cannot work together. The text says what differs and how to fix it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Incompatible {
    /// The peer is another program, or a build from before versions were sent.
    #[error(
        "peer does not speak baton's link protocol; check the address, and run builds of about the same age on both sides"
    )]
    Stranger,
    /// The two builds have no version in common. The text is right on both sides: the sender dials, and the receiver listens.
    #[error(
        "the sender supports {sender} of the link protocol and the receiver {receiver}; upgrade the {}",
        .sender.older_than(.receiver)
    )]
    Protocol {
        /// The versions of the side that dials.
        sender: Versions,
        /// The versions of the side that listens.
        receiver: Versions,
    },
    /// The dialer did not choose the highest version that both sides support.
    #[error(
        "the sender chose version {chosen} of the link protocol instead of version {agreed}; upgrade the sender"
    )]
    Chosen {
        /// The version in the peer's Hello.
        chosen: u32,
        /// The highest version that both sides support.
        agreed: u32,
    },
    /// The two sides have different weights.
    #[error(
        "peer serves model {theirs} and we serve {ours}; give both sides the same --model and the same engine.quantization"
    )]
    Model {
        /// Our model, with the first four bytes of its fingerprint.
        ours: String,
        /// The peer's model, in the same form.
        theirs: String,
    },
    /// The two sides have different KV pages.
    #[error("peer's {field} is {theirs} and ours is {ours}; give both sides the same {key}")]
    Page {
        /// The property that differs.
        field: &'static str,
        /// The configuration key or flag that sets it.
        key: &'static str,
        /// Our value.
        ours: String,
        /// The peer's value.
        theirs: String,
    },
    /// The numbers of shards do not fit each other, the KV heads or the page size.
    #[error(transparent)]
    Shards(#[from] ShardError),
    /// The listener's list of regions does not have one region for each shard.
    #[error(
        "peer sent {regions} memory regions for {shards} shards of a page; run the same build on both sides"
    )]
    Regions {
        /// Number of regions in the list.
        regions: usize,
        /// Number of shards in the peer's shape.
        shards: u32,
    },
    /// The listener's regions are not all of one size.
    #[error("peer's memory regions differ in size; run the same build on both sides")]
    RegionSizes,
    /// The peer's proof of the secret is missing or wrong.
    #[error("peer does not know our link.secret; set the same link.secret on both sides")]
    Secret,
}

/// The name of [`KvShape::page_bytes`] in errors.
const PAGE_SIZE: &str = "page size in bytes";

impl Incompatible {
    /// Whether the peer only asked ([`Link::ask`](crate::link::Link::ask)): everything before the size of a page fits, and this size is 0.
    pub fn is_question(&self) -> bool {
        matches!(self, Self::Page { field, theirs, .. } if *field == PAGE_SIZE && theirs == "0")
    }

    /// One word for metrics, logs and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::Protocol { .. } | Self::Chosen { .. } => "protocol",
            Self::Model { .. } => "model",
            Self::Page { .. } => "page",
            Self::Shards(error) => error.kind(),
            Self::Regions { .. } | Self::RegionSizes => "regions",
            Self::Secret => "secret",
        }
    }
}

/// The first message on a connection, from the listener.
///
/// Dialers of all versions read it, so later versions may only append fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// The versions that the listener supports.
    pub versions: Versions,
    /// Random bytes that the proofs of the secret cover.
    pub nonce: [u8; 32],
    /// The listener's process. A dialer numbers its sessions separately for each listener.
    pub incarnation: Incarnation,
}

/// The dialer's answer to a [`Challenge`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The versions that the dialer supports.
    pub versions: Versions,
    /// The version of all later messages, in both directions.
    pub version: u32,
    /// The dialer's process.
    pub incarnation: Incarnation,
    /// The work that the dialer does for the listener.
    pub capabilities: Capabilities,
    /// Address of the dialer's HTTP port, as `host:port`; empty if it has none.
    #[serde(deserialize_with = "wire::text")]
    pub http: String,
    /// The dialer's number for this attempt to open a session. Numbers grow and are never reused.
    pub session: u64,
    /// The last earlier attempt that got a session, or 0 if there was none or all earlier sessions had drained. The attempts in
    /// between got no session and wrote nothing.
    pub previous: u64,
    /// Whether all puts of the session `previous` had completed and were flushed before the dialer dialled again.
    pub previous_drained: bool,
    /// The model that the dialer serves.
    pub shape: KvShape,
    /// Random bytes that the proofs of the secret cover.
    pub nonce: [u8; 32],
    /// The dialer's proof that it knows `link.secret`, if one is set: [`Nonces::prove`](crate::link::Nonces::prove).
    pub proof: Option<[u8; 32]>,
}

impl Hello {
    /// Checks that the dialer chose the version `agreed`.
    ///
    /// # Errors
    /// [`Incompatible::Chosen`] if it chose another one.
    pub fn speaks(&self, agreed: u32) -> Result<(), Incompatible> {
        let chosen = self.version;
        if chosen == agreed { Ok(()) } else { Err(Incompatible::Chosen { chosen, agreed }) }
    }
}

/// The listener's answer to a [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The session begins.
    Welcome(Box<Welcome>),
    /// The listener refuses the session until a setting is changed. The text says which one.
    Refused(#[serde(deserialize_with = "wire::text")] String),
    /// The listener refuses the session for now. The text says why; a later attempt may succeed.
    Busy(#[serde(deserialize_with = "wire::text")] String),
}

/// The start of a session: everything that the dialer needs to put pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The listener's process.
    pub incarnation: Incarnation,
    /// The model that the listener serves.
    pub shape: KvShape,
    /// Addresses of the listener's pools for remote writes.
    pub descriptor: Descriptor,
    /// Maximum number of outstanding credits in this session; at least 1.
    pub ring_pages: u32,
    /// The listener's proof that it knows `link.secret`, if one is set.
    pub proof: Option<[u8; 32]>,
}

/// A message after the handshake. The receiver assigns the request numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Frame {
    /// Both directions: the side is alive. Sent after 500 ms without another frame.
    Heartbeat,
    /// Both directions: the side ends the session cleanly.
    Goodbye,
    /// Receiver → sender: grants the credits from `first` on, one for each page.
    Grant {
        /// Number of the first credit.
        first: CreditNumber,
        /// The pages that the sender may now write, in the order of their credits.
        #[serde(deserialize_with = "wire::list")]
        pages: Vec<PageIndex>,
    },
    /// Receiver → sender: compute this prompt's KV and put its pages.
    Prefill {
        /// The request's number.
        request: u64,
        /// Token ids of the prompt.
        #[serde(deserialize_with = "wire::list")]
        prompt: Vec<u32>,
        /// Leading tokens whose KV the receiver already has. Their pages are not put. A whole number of pages, and less than the
        /// whole prompt.
        resident: u32,
        /// Sampling parameters for the first token.
        sampling: Box<FirstToken>,
        /// Hash of the request's cache salt. The sender shares cached pages only between requests of the same salt.
        salt: Option<[u8; 32]>,
        /// SHA-256 of the kind and the text of the grammar that the answer must match. A [`Grammar`](Self::Grammar) frame of this
        /// session has brought the grammar, and no later one has replaced it. Boxed, so that a frame stays small.
        grammar: Option<Box<[u8; 32]>>,
        /// Milliseconds until the request's deadline.
        remaining_ms: u64,
    },
    /// Receiver → sender: stop this prefill; the request has ended.
    CancelPrefill {
        /// The request's number.
        request: u64,
    },
    /// Sender → receiver: the lane is measured and may be used for requests.
    LinkProbed {
        /// The transports and devices of the lane, for the log.
        #[serde(deserialize_with = "wire::text")]
        lane: String,
        /// Bytes that were measured.
        bytes: u64,
        /// Microseconds that moving them took.
        micros: u64,
    },
    /// Sender → receiver: `count` pages are complete and visible in the receiver's pool.
    PageFilled {
        /// The first credit that was spent.
        first: CreditNumber,
        /// Number of credits, and so of pages.
        count: u32,
        /// The request of these pages and the place of the first one in its page table. `None` if the pages belong to no request:
        /// a probe, a cancelled request, or credits returned unspent.
        owner: Option<PageOwner>,
        /// One hash for each page ([`page_hash`](crate::page_hash)). Empty without an owner, and if the shapes turn hashes off.
        #[serde(deserialize_with = "wire::list")]
        hashes: Vec<u64>,
        /// Microseconds from the request's first put to the completion of the flush that covers these pages.
        transfer_micros: u64,
    },
    /// Sender → receiver: the prompt is computed and its first token sampled. Puts may still be in flight.
    PrefillFinished {
        /// The request's number.
        request: u64,
        /// The first sampled token.
        token: u32,
        /// Its log probabilities, if the request asked for them.
        logprobs: Option<TokenLogprobs>,
        /// Leading tokens of the prompt that were not computed, because the sender's prefix cache had their KV. Less than the whole
        /// prompt.
        cached: u32,
        /// Microseconds from the start of the first step to the sampled token.
        prefill_micros: u64,
    },
    /// Sender → receiver: the sender does not prefill this request.
    PrefillFailed {
        /// The request's number.
        request: u64,
        /// Whether the sender refused the request, or failed.
        fault: PrefillFault,
        /// The reason.
        #[serde(deserialize_with = "wire::text")]
        reason: String,
    },
    /// Receiver → sender: this session's share of the ring. The sender returns unspent credits beyond it, in order, in
    /// [`PageFilled`](Self::PageFilled) frames without an owner.
    RingShare {
        /// Maximum number of credits that the sender should hold.
        pages: u32,
    },
    /// Sender → receiver: send no more prefills. Prefills that were sent before continue.
    Leaving,
    /// Receiver → sender: keep this grammar for later prefills of the session.
    Grammar {
        /// Where the sender keeps it; below [`GRAMMARS_MAX`]. It replaces the grammar that is there.
        index: u32,
        /// What it is written in.
        kind: GrammarKind,
        /// The source; at most [`GRAMMAR_BYTES_MAX`] bytes.
        #[serde(deserialize_with = "wire::text")]
        text: String,
    },
    /// Sender → receiver: log probabilities of the prompt's tokens, in order, for a request that asks for them. All of them come before
    /// [`PrefillFinished`](Self::PrefillFinished).
    PromptLogprobs {
        /// The request's number.
        request: u64,
        /// Number of tokens that were sent before. The first token of a prompt has no log probability, so 0 means its second token.
        first: u32,
        /// The log probabilities; at most [`PROMPT_LOGPROBS_MAX`] tokens.
        #[serde(deserialize_with = "wire::list")]
        tokens: Vec<TokenLogprobs>,
    },
    /// Sender → receiver: the sender's load. Sent after [`LinkProbed`](Self::LinkProbed), and when it has changed.
    Load {
        /// Tokens of prompts of all receivers, and of the sender itself, that are not computed yet.
        waiting_tokens: u64,
        /// Tokens of the same prompts that the engine has computed. Tokens that were cached are not among them.
        begun_tokens: u64,
        /// Nanoseconds that one more prompt token adds to a step; `None`: not measured yet.
        nanos_per_token: Option<u32>,
        /// Pages of the sender's pool that can keep the KV of earlier prompts; 0 if it has no prefix cache.
        cache_pages: u32,
    },
    /// Sender → receiver: the lane is connected. Sent once. The receiver grants no credits before this frame.
    LaneConnected {
        /// All UCX transports and devices of the lane, for example `tcp/lo` or `rc_mlx5/mlx5_0:1,tcp/eth0`. They decide whether closing the
        /// session at the receiver is proof ([`lane`](crate::transport::lane)).
        #[serde(deserialize_with = "wire::text")]
        lane: String,
    },
    /// Receiver → sender: record the prefill of this request. Its [`Prefill`](Self::Prefill) is the next frame with a request.
    Trace {
        /// The request's number.
        request: u64,
        /// The trace that the request belongs to.
        context: TraceContext,
    },
}

/// Maximum number of credits in one [`Frame::Grant`].
pub const GRANT_PAGES_MAX: usize = 65_536;

impl Frame {
    /// The frame's name, for logs. A frame's contents come from a peer and may be long.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Heartbeat => "Heartbeat",
            Self::Goodbye => "Goodbye",
            Self::Grant { .. } => "Grant",
            Self::Prefill { .. } => "Prefill",
            Self::CancelPrefill { .. } => "CancelPrefill",
            Self::LinkProbed { .. } => "LinkProbed",
            Self::PageFilled { .. } => "PageFilled",
            Self::PromptLogprobs { .. } => "PromptLogprobs",
            Self::PrefillFinished { .. } => "PrefillFinished",
            Self::PrefillFailed { .. } => "PrefillFailed",
            Self::RingShare { .. } => "RingShare",
            Self::Leaving => "Leaving",
            Self::Grammar { .. } => "Grammar",
            Self::Load { .. } => "Load",
            Self::LaneConnected { .. } => "LaneConnected",
            Self::Trace { .. } => "Trace",
        }
    }
}

/// Makes a peer's text safe for the log: one line, at most 200 characters.
pub fn peer_text(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests;
