//! The messages that actors, threads and sockets of one process exchange.
//!
//! Commands are imperatives and may be refused; events report what has happened. Every message is plain data, without addresses, sockets or
//! handles. The table of [`effect`](crate::effect) lists each message's senders, recipient and bound.

mod cache;
mod grammars;
mod link;
mod load;
mod pages;
mod requests;
mod sequences;
mod steps;
mod traces;
mod transfer;

use std::fmt;

use crate::request::RequestId;

pub use cache::*;
pub use grammars::*;
pub use link::*;
pub use load::*;
pub use pages::*;
pub use requests::*;
pub use sequences::*;
pub use steps::*;
pub use traces::*;
pub use transfer::*;

/// The id of one link between two processes. This process chooses it and never reuses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// The id of a sequence, which holds pages and runs on the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SequenceId {
    /// A request of this process. It belongs to the decoder.
    Own(RequestId),
    /// A peer's request that this process prefills. The prefiller numbers it, so a peer may reuse its own request numbers.
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

/// Node → proxy, prefiller: refuse new requests; accepted ones continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeginDrain;

/// Node → decoder: the process ends; fail every request now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortAll;

/// Ticker → every actor: time has passed. The actor checks deadlines, and the watchdog sees that it is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick;

/// Peer link → process: the process cannot continue, for this reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessFault(pub String);
