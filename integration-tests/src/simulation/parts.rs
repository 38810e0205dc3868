//! What a history consists of besides its processes: lanes, connections, clients, and what it came to.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use actors::messages::SessionId;
use connector::frame::Frame;
use connector::ring::PageIndex;

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
    /// The receiver's life and name for the session.
    pub(super) life: u32,
    pub(super) session: SessionId,
    pub(super) open: bool,
}

/// A put on its way.
#[derive(Debug, Default)]
pub(super) struct Put {
    pub(super) page: u32,
    /// They are requests' pages, not the probe's.
    pub(super) is_owned: bool,
    pub(super) into: u32,
    /// So many pages from each of them on.
    pub(super) pages: u32,
    pub(super) content: Option<Vec<Vec<u32>>>,
    pub(super) lands_at: u64,
    pub(super) landed: bool,
    pub(super) completed: bool,
    pub(super) fails: bool,
}

/// The sending end: its puts in the order of their credits.
#[derive(Debug, Default)]
pub(super) struct Outlet {
    pub(super) lane: Option<u64>,
    /// By ticket, which is the order of posting.
    pub(super) puts: BTreeMap<u64, Put>,
    /// The page that each credit allows to write.
    pub(super) credits: Vec<PageIndex>,
    /// Flushes in flight.
    pub(super) flushes: BTreeSet<u64>,
    /// The probe is over: what is put from now on are requests' pages.
    pub(super) probed: bool,
    pub(super) fails: bool,
    pub(super) hangs: bool,
    pub(super) closing: bool,
    /// `Some` when it is closed: whether it had drained.
    pub(super) drained: Option<bool>,
}

/// One TCP connection, dialled by a sender. Of each pair the receiver's is first.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) sender: usize,
    pub(super) lives: [u32; 2],
    pub(super) sessions: [Option<SessionId>; 2],
    /// Frames on their way to each side.
    pub(super) frames: [VecDeque<Frame>; 2],
    /// Each side still hears what comes.
    pub(super) open: [bool; 2],
    /// Each side takes frames: its handshake is over, and its session is not.
    pub(super) carried: [bool; 2],
}

/// A request, seen from outside.
#[derive(Debug)]
pub(super) struct Client {
    /// The receiver's life that it asked.
    pub(super) life: u32,
    pub(super) tokens: Vec<u32>,
    pub(super) prompt: usize,
    pub(super) max_tokens: u32,
    pub(super) ignore_eos: bool,
    pub(super) deadline: u64,
    pub(super) left: bool,
    /// How it ended; never unset.
    pub(super) end: Option<&'static str>,
    pub(super) disaggregated: bool,
}

/// What happened in a history that broke no rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Events handled.
    pub events: u64,
    /// Virtual microseconds.
    pub micros: u64,
    /// Requests that ended well, and how many of them were prefilled elsewhere.
    pub finished: u64,
    /// As said.
    pub disaggregated: u64,
    /// Requests that ended otherwise, by how.
    pub failed: BTreeMap<&'static str, u64>,
    /// Prompts computed again at the receiver.
    pub recomputes: u64,
    /// Requests that gave their pages back for others.
    pub preemptions: u64,
    /// Pages shared rather than computed or received.
    pub resident: u64,
    /// Pages that landed damaged and were not adopted.
    pub damaged: u64,
    /// Puts that landed.
    pub landed: u64,
    /// Sessions that came up.
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
        self.damaged += other.damaged;
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

/// Something that must never happen, and when it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The history's seed: running it again shows the same.
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
