//! The parts of a history besides its processes: lanes, connections, clients and the report.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::ops::Range;

use actors::grammar::CompiledGrammar;
use actors::messages::SessionId;
use actors::request::{CacheSalt, RequestId};
use connector::frame::Frame;
use connector::ring::PageIndex;
use connector::shards::Lanes;

use super::machine::Head;

/// The sending end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OutletName {
    pub(super) node: usize,
    pub(super) life: u32,
    pub(super) session: SessionId,
}

/// A put, by its outlet and ticket.
pub(super) type PutName = (OutletName, u64);

/// The receiving end of a session.
#[derive(Debug)]
pub(super) struct Lane {
    /// The receiving node, its life, and its name for the session.
    pub(super) node: usize,
    pub(super) life: u32,
    pub(super) session: SessionId,
    pub(super) open: bool,
    /// The peer writes directly, so that closing the receiving end does not stop its puts.
    pub(super) foreign: bool,
}

/// A put in flight.
#[derive(Debug, Default)]
pub(super) struct Put {
    pub(super) lane: u32,
    /// The heads that it carries, of each page.
    pub(super) heads: Range<u32>,
    pub(super) page: u32,
    /// True for pages of a request, false for pages of the probe.
    pub(super) is_owned: bool,
    pub(super) into: u32,
    /// The number of pages from `page` and from `into` on.
    pub(super) pages: u32,
    /// By page: the heads.
    pub(super) content: Option<Vec<Vec<Head>>>,
    pub(super) lands_at: u64,
    pub(super) landed: bool,
    pub(super) completed: bool,
    pub(super) fails: bool,
}

/// The state of a sending end. Its puts are in the order of their credits.
#[derive(Debug, Default)]
pub(super) struct Outlet {
    pub(super) lane: Option<u64>,
    /// The lanes between the shards of both nodes; `None` until they are connected.
    pub(super) lanes: Option<Lanes>,
    /// Puts by ticket, in the order of posting.
    pub(super) puts: BTreeMap<u64, Put>,
    /// The lane is connected, and the peer gets its name.
    pub(super) named: bool,
    /// The page of each credit.
    pub(super) credits: Vec<PageIndex>,
    /// Number of pages of each request that are to be put and were not announced.
    pub(super) waiting: BTreeMap<RequestId, u32>,
    /// When the session last got a credit, or began to have pages that wait for one.
    pub(super) credit_at: u64,
    /// The lanes of flushes in flight, by ticket.
    pub(super) flushes: BTreeMap<u64, u32>,
    /// Whether the probe has ended. Later puts carry pages of requests.
    pub(super) probed: bool,
    pub(super) fails: bool,
    pub(super) hangs: bool,
    pub(super) closing: bool,
    /// Set by the close: whether the outlet had drained before.
    pub(super) drained: Option<bool>,
}

/// One TCP connection. The first element of each pair belongs to the listener, the second to the dialler.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) ends: [usize; 2],
    pub(super) lives: [u32; 2],
    pub(super) sessions: [Option<SessionId>; 2],
    /// Where the dialler has grammars.
    pub(super) grammars: BTreeSet<u32>,
    /// Frames on their way to each side.
    pub(super) frames: [VecDeque<Frame>; 2],
    /// Whether each side still receives.
    pub(super) open: [bool; 2],
    /// Whether each side accepts frames: after its handshake and before the end of its session.
    pub(super) carried: [bool; 2],
}

/// A request as its client sees it.
#[derive(Debug)]
pub(super) struct Client {
    /// The node that got the request.
    pub(super) home: usize,
    pub(super) tokens: Vec<u32>,
    pub(super) prompt: usize,
    pub(super) max_tokens: u32,
    pub(super) ignore_eos: bool,
    pub(super) salt: Option<CacheSalt>,
    pub(super) grammar: Option<CompiledGrammar>,
    /// The request asks for the log probabilities of its prompt.
    pub(super) scores_prompt: bool,
    /// They have arrived.
    pub(super) scored: bool,
    pub(super) deadline: u64,
    pub(super) left: bool,
    /// How the request ended. It is set once.
    pub(super) end: Option<&'static str>,
    pub(super) disaggregated: bool,
}

/// Counts of a history that broke no rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Events.
    pub events: u64,
    /// Virtual microseconds.
    pub micros: u64,
    /// Requests that finished.
    pub finished: u64,
    /// Finished requests that a peer prefilled.
    pub disaggregated: u64,
    /// Other requests, by the kind of their end.
    pub failed: BTreeMap<&'static str, u64>,
    /// Prompts recomputed where they were asked.
    pub recomputes: u64,
    /// Requests that were preempted.
    pub preemptions: u64,
    /// Pages that were found in the cache.
    pub resident: u64,
    /// Prompts of peers with a grammar whose prefill started.
    pub constrained: u64,
    /// Grammars of peers that replaced another one.
    pub grammars_replaced: u64,
    /// Prefills that a peer refused because its pages for peers were in use.
    pub no_room: u64,
    /// Prefills that a peer gave up because it got no credit.
    pub no_credit: u64,
    /// Prompts that waited for their grammar when their session was lost.
    pub lost_while_compiling: u64,
    /// Reports of damaged pages, which were not adopted.
    pub damaged: u64,
    /// Puts of a piece of a page, because a side divides its pages.
    pub pieces: u64,
    /// Pages of puts that landed, once for each of their pieces.
    pub landed: u64,
    /// Sessions that became ready.
    pub sessions: u64,
    /// Faults by name.
    pub faults: BTreeMap<&'static str, u64>,
}

impl Report {
    /// Adds another history's figures.
    pub fn add(&mut self, other: &Report) {
        self.events += other.events;
        self.micros += other.micros;
        self.finished += other.finished;
        self.disaggregated += other.disaggregated;
        self.recomputes += other.recomputes;
        self.preemptions += other.preemptions;
        self.resident += other.resident;
        self.constrained += other.constrained;
        self.grammars_replaced += other.grammars_replaced;
        self.no_room += other.no_room;
        self.no_credit += other.no_credit;
        self.lost_while_compiling += other.lost_while_compiling;
        self.damaged += other.damaged;
        self.pieces += other.pieces;
        self.landed += other.landed;
        self.sessions += other.sessions;
        for (name, count) in &other.failed {
            *self.failed.entry(name).or_default() += count;
        }
        for (name, count) in &other.faults {
            *self.faults.entry(name).or_default() += count;
        }
    }
}

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The seed of the history. The same seed gives the same violation.
    pub seed: u64,
    /// Virtual microseconds.
    pub micros: u64,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}, {:.6} s: {}", self.seed, self.micros as f64 / 1e6, self.what)
    }
}

impl std::error::Error for Violation {}
