//! What two processes say to each other over the link.
//!
//! The listener opens with a [`Challenge`], the dialer answers with its [`Hello`], and the listener ends the handshake with a
//! [`Welcome`] or a refusal. After that each side sends [`Frame`]s. Every field is fixed-width; KV bytes never travel
//! here.
//!
//! Both begin with their [`Versions`], which every version can read. The two sides speak the highest version that both know. A
//! change of any of these types makes a new version, beside the one before; the golden bytes of each version stay in the tests.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ring::{CreditNumber, PageIndex};
use crate::transport::Descriptor;
use crate::wire;

/// The versions of the protocol that a process speaks: the first twelve bytes of a [`Challenge`] and of a [`Hello`].
///
/// Frozen: four bytes `BTON`, then the lowest and the highest version, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    magic: [u8; 4],
    /// The oldest version.
    pub lowest: u32,
    /// The newest version.
    pub highest: u32,
}

impl Versions {
    /// What this build speaks.
    pub const OURS: Self = Self::new(8, 8);

    /// The versions from `lowest` to `highest`.
    pub const fn new(lowest: u32, highest: u32) -> Self {
        Self { magic: *b"BTON", lowest, highest }
    }

    /// The version that this process and a peer speak with each other.
    ///
    /// # Errors
    /// The peer speaks no version of the protocol, or none of ours.
    pub fn agree(&self, theirs: &Self) -> Result<u32, Incompatible> {
        if theirs.magic != self.magic {
            return Err(Incompatible::Stranger);
        }
        let version = self.highest.min(theirs.highest);
        if version < self.lowest.max(theirs.lowest) {
            return Err(Incompatible::Protocol { ours: *self, theirs: *theirs });
        }
        Ok(version)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { lowest, highest, .. } if lowest == highest => write!(f, "version {lowest}"),
            Self { lowest, highest, .. } => write!(f, "versions {lowest} to {highest}"),
        }
    }
}

/// What a process can do for its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// It prefills prompts.
    pub prefill: bool,
    /// It decodes.
    pub decode: bool,
}

/// One life of one process. A name, and no evidence: where the process runs, the kernel has to say
/// ([`process`](crate::process)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Incarnation {
    /// Process id.
    pub pid: u32,
    /// When the process started, in clock ticks since boot.
    pub start_ticks: u64,
    /// Which boot of which machine.
    pub boot: u128,
    /// Where on that machine the process id means this process.
    pub pid_namespace: u64,
    /// Drawn when the process started: cloned machines have all of the above in common.
    pub random: u128,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.pid, self.start_ticks)
    }
}

/// The model and the shape of a KV page. Two processes whose shapes differ cannot exchange pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// The model's name, for the sentence that says what differs.
    #[serde(deserialize_with = "wire::text")]
    pub model: String,
    /// SHA-256 of the model's weights.
    pub fingerprint: [u8; 32],
    /// Layers.
    pub layers: u32,
    /// Key-value heads.
    pub kv_heads: u32,
    /// Elements of a head.
    pub head_dim: u32,
    /// Tokens in a page.
    pub page_tokens: u32,
    /// Element type of the KV cache, for example `f32`.
    #[serde(deserialize_with = "wire::text")]
    pub dtype: String,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Whether pages are hashed by the sender and checked by the receiver.
    pub page_hash: bool,
}

/// Two processes cannot work together: what differs, and how to fix it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Incompatible {
    /// Another program, or a build that is too old to say its versions.
    #[error(
        "peer does not speak baton's link protocol; check the address, and run builds of about the same age on both sides"
    )]
    Stranger,
    /// Builds too far apart.
    #[error("peer speaks {theirs} of the link protocol and we speak {ours}; upgrade the older side")]
    Protocol {
        /// Ours.
        ours: Versions,
        /// The peer's.
        theirs: Versions,
    },
    /// The peer speaks another version than the one that both agree on.
    #[error(
        "peer speaks version {chosen} of the link protocol where version {agreed} was agreed; upgrade the older side"
    )]
    Chosen {
        /// What the peer says that it speaks.
        chosen: u32,
        /// What both sides agree on.
        agreed: u32,
    },
    /// Different weights.
    #[error("peer serves model {theirs} and we serve {ours}; give both sides the same --model")]
    Model {
        /// Ours, with a short fingerprint.
        ours: String,
        /// The peer's.
        theirs: String,
    },
    /// Different pages.
    #[error("peer's {field} is {theirs} and ours is {ours}; give both sides the same {key}")]
    Page {
        /// What differs.
        field: &'static str,
        /// The key that sets it.
        key: &'static str,
        /// Ours.
        ours: String,
        /// The peer's.
        theirs: String,
    },
    /// Different secrets.
    #[error("peer does not know our link.secret; set the same link.secret on both sides")]
    Secret,
}

impl Incompatible {
    /// One word for metrics, logs and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::Protocol { .. } | Self::Chosen { .. } => "protocol",
            Self::Model { .. } => "model",
            Self::Page { .. } => "page",
            Self::Secret => "secret",
        }
    }
}

impl Shape {
    fn named(&self) -> String {
        let [a, b, c, d, ..] = self.fingerprint;
        format!("{} (sha256 {a:02x}{b:02x}{c:02x}{d:02x}…)", peer_text(&self.model))
    }

    /// Whether pages of `theirs` can be adopted here.
    ///
    /// # Errors
    /// The first thing that differs, as one sentence.
    pub fn accepts(&self, theirs: &Shape) -> Result<(), Incompatible> {
        if self.fingerprint != theirs.fingerprint {
            return Err(Incompatible::Model { ours: self.named(), theirs: theirs.named() });
        }
        let page = |field, key, ours: &dyn fmt::Display, theirs: &dyn fmt::Display| {
            let (ours, theirs) = (ours.to_string(), peer_text(&theirs.to_string()));
            if ours == theirs { Ok(()) } else { Err(Incompatible::Page { field, key, ours, theirs }) }
        };
        page("page length in tokens", "engine.page_tokens", &self.page_tokens, &theirs.page_tokens)?;
        page("KV element type", "engine.device", &self.dtype, &theirs.dtype)?;
        page("number of layers", "--model", &self.layers, &theirs.layers)?;
        page("number of KV heads", "--model", &self.kv_heads, &theirs.kv_heads)?;
        page("head size", "--model", &self.head_dim, &theirs.head_dim)?;
        page("page size in bytes", "engine.page_tokens", &self.page_bytes, &theirs.page_bytes)?;
        page("use of page hashes", "transport.page_hash", &self.page_hash, &theirs.page_hash)
    }
}

/// First frame on a connection, from the listener. Later versions may only append to it: dialers of every version read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// What the listener speaks.
    pub versions: Versions,
    /// What the dialer's proof must cover.
    pub nonce: [u8; 32],
    /// Which process listens: the dialer numbers its sessions for each.
    pub incarnation: Incarnation,
}

/// The dialer's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// What the dialer speaks.
    pub versions: Versions,
    /// The version of everything that follows, in both directions.
    pub version: u32,
    /// Which process dials.
    pub incarnation: Incarnation,
    /// What it can do for the listener.
    pub capabilities: Capabilities,
    /// Where it serves HTTP, as `host:port`; empty if it does not.
    #[serde(deserialize_with = "wire::text")]
    pub http: String,
    /// The dialer's number for this attempt at a session: it grows, and is never used twice.
    pub session: u64,
    /// Its last attempt before this one that came up, or 0: those in between never did, and wrote nothing.
    pub previous: u64,
    /// Every put of that previous session had completed and was flushed before the dialer dialled again.
    pub previous_drained: bool,
    /// What the dialer serves.
    pub shape: Shape,
    /// What the listener's proof must cover.
    pub nonce: [u8; 32],
    /// The dialer's proof that it knows `link.secret`, if one is set: [`Nonces::prove`](crate::link::Nonces::prove).
    pub proof: Option<[u8; 32]>,
}

impl Hello {
    /// Whether the dialer speaks the version that both agree on.
    ///
    /// # Errors
    /// [`Incompatible::Chosen`].
    pub fn speaks(&self, agreed: u32) -> Result<(), Incompatible> {
        let chosen = self.version;
        if chosen == agreed { Ok(()) } else { Err(Incompatible::Chosen { chosen, agreed }) }
    }
}

/// The listener's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The session is up.
    Welcome(Box<Welcome>),
    /// It is not, and never will be before somebody changes a setting; this sentence says which.
    Refused(#[serde(deserialize_with = "wire::text")] String),
    /// It is not now, for this reason; dialling again later may help.
    Busy(#[serde(deserialize_with = "wire::text")] String),
}

/// What the dialer needs to put pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Which process listens.
    pub incarnation: Incarnation,
    /// What the listener serves.
    pub shape: Shape,
    /// How to write into the listener's pool.
    pub descriptor: Descriptor,
    /// Most credits outstanding in this session; at least 1.
    pub ring_pages: u32,
    /// The listener's proof that it knows `link.secret`, if one is set.
    pub proof: Option<[u8; 32]>,
}

/// How a sender chooses a request's first token; the names are those that requests have for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FirstToken {
    /// 0 takes the most probable token.
    pub temperature: f32,
    /// 1 for all tokens.
    pub top_p: f32,
    /// 0 for all tokens.
    pub top_k: u32,
    /// 0 for all tokens.
    pub min_p: f32,
    /// 1 for none. The penalties for tokens that were sampled do not matter yet.
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens; requests have at most [`LOGIT_BIAS_MAX`].
    #[serde(deserialize_with = "wire::list")]
    pub logit_bias: Vec<(u32, f32)>,
    /// What the draw depends on, beside the position.
    pub seed: u64,
    /// Asks for the token's probability, and for this many of the most probable ones.
    pub logprobs: Option<u32>,
}

/// How probable a first token was: natural logarithms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FirstTokenLogprobs {
    /// The token's own.
    pub sampled: f32,
    /// How many tokens are at least as probable.
    pub rank: u32,
    /// Tokens and theirs, the most probable first.
    #[serde(deserialize_with = "wire::list")]
    pub top: Vec<(u32, f32)>,
}

/// Most tokens with a bias in one request.
pub const LOGIT_BIAS_MAX: usize = 1024;

/// What a prefill that a sender does not do says of the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PrefillFault {
    /// Nothing: it did not take this request, and may take the next one. For example, the prompt is too large for its pool.
    Refused,
    /// It took the request and failed, for example by an engine error. Later requests may fail too.
    Failed,
}

/// Everything after the handshake. Request numbers are the receiver's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Frame {
    /// Either way, every 500 ms: I am alive.
    Heartbeat,
    /// Either way: I end this session in good order.
    Goodbye,
    /// Receiver → sender: credits from `first` on, one for each page.
    Grant {
        /// Number of the first credit.
        first: CreditNumber,
        /// Pages that may now be written, in the order of their credits.
        #[serde(deserialize_with = "wire::list")]
        pages: Vec<PageIndex>,
    },
    /// Receiver → sender: compute this prompt's KV and hand it over.
    Prefill {
        /// The receiver's number for the request.
        request: u64,
        /// Prompt token ids.
        #[serde(deserialize_with = "wire::list")]
        prompt: Vec<u32>,
        /// Leading tokens whose KV the receiver has: a whole number of pages, less than all. They do not travel.
        resident: u32,
        /// How the first token is chosen.
        sampling: FirstToken,
        /// Milliseconds until the request's deadline.
        remaining_ms: u64,
    },
    /// Receiver → sender: nobody wants this prompt any more.
    CancelPrefill {
        /// Which request.
        request: u64,
    },
    /// Sender → receiver: real bytes were moved over the lane, and the path may be used.
    LinkProbed {
        /// What carried them, for example `tcp/lo`.
        #[serde(deserialize_with = "wire::text")]
        lane: String,
        /// Bytes moved in the measured part.
        bytes: u64,
        /// How long that took.
        micros: u64,
    },
    /// Sender → receiver: `count` pages are whole and visible in the receiver's pool.
    PageFilled {
        /// First credit spent.
        first: CreditNumber,
        /// How many credits, and pages.
        count: u32,
        /// Whose pages: the request and the place of the first one in its page table. `None`: nobody's (a probe, a
        /// cancelled request, or credits given back unspent).
        owner: Option<PageOwner>,
        /// Hash of each page as [`page_hash`](crate::page_hash) defines it; empty for nobody's pages, and where both
        /// sides have agreed on none.
        #[serde(deserialize_with = "wire::list")]
        hashes: Vec<u64>,
        /// From the request's first put to the flush that covers these pages.
        transfer_micros: u64,
    },
    /// Sender → receiver: the prompt is computed and the first token sampled; pages may still be under way.
    PrefillFinished {
        /// Which request.
        request: u64,
        /// The first sampled token.
        token: u32,
        /// How probable it was, if that was asked for.
        logprobs: Option<FirstTokenLogprobs>,
        /// How long the prefill took, first step's start to sampling.
        prefill_micros: u64,
    },
    /// Sender → receiver: the request will not be prefilled here.
    PrefillFailed {
        /// Which request.
        request: u64,
        /// What that says of the sender.
        fault: PrefillFault,
        /// Why.
        #[serde(deserialize_with = "wire::text")]
        reason: String,
    },
    /// Receiver → sender: this session's share of the ring. Unspent credits beyond it are to come back, which they do as
    /// [`PageFilled`](Self::PageFilled) of nobody's pages, in their turn.
    RingShare {
        /// Most credits that the sender should hold.
        pages: u32,
    },
    /// Sender → receiver: ask for no more prefills; those asked for go on.
    Leaving,
}

/// Longest prompt that a [`Frame::Prefill`] carries, in tokens; a longer one is prefilled where it came in.
pub const PROMPT_TOKENS_MAX: usize = 250_000;
/// Most credits in one [`Frame::Grant`].
pub const GRANT_PAGES_MAX: usize = 65_536;

impl Frame {
    /// The frame's name, for logs: its contents may be a peer's and long.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Heartbeat => "Heartbeat",
            Self::Goodbye => "Goodbye",
            Self::Grant { .. } => "Grant",
            Self::Prefill { .. } => "Prefill",
            Self::CancelPrefill { .. } => "CancelPrefill",
            Self::LinkProbed { .. } => "LinkProbed",
            Self::PageFilled { .. } => "PageFilled",
            Self::PrefillFinished { .. } => "PrefillFinished",
            Self::PrefillFailed { .. } => "PrefillFailed",
            Self::RingShare { .. } => "RingShare",
            Self::Leaving => "Leaving",
        }
    }
}

/// A peer's text as it may stand in our log: one line, at most 200 characters.
pub fn peer_text(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Which pages of which request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageOwner {
    /// The receiver's number for the request.
    pub request: u64,
    /// Index of the first page in the request's page table: it holds tokens from `first_page * page_tokens` on.
    pub first_page: u32,
}

#[cfg(test)]
mod tests;
