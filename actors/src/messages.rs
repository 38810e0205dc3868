//! The messages that actors, threads and sockets of one process exchange.
//!
//! Commands are imperatives and may be refused by their meaning; events say what has happened. Every message is plain data: no
//! address, no socket, no handle. Who sends it to whom, and what bounds it, is in the table of [`effect`](crate::effect).

mod link;
mod pages;
mod requests;
mod sequences;
mod steps;
mod transfer;

use std::fmt;

use crate::request::RequestId;

pub use link::*;
pub use pages::*;
pub use requests::*;
pub use sequences::*;
pub use steps::*;
pub use transfer::*;

/// One link between two processes, named by this process and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// What holds pages and runs on the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SequenceId {
    /// A request of this process; the decoder's.
    Own(RequestId),
    /// A peer's request that this process prefills; the prefiller numbers it, so a peer that uses a request number twice confuses
    /// nothing here.
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

/// Node → proxy, prefiller: take no new requests; those taken continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeginDrain;

/// Node → decoder: the process ends; every request ends now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortAll;

/// Ticker → every actor: time has passed. Deadlines are checked, and the watchdog sees that the actor is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick;

/// Peer link → process: the process cannot continue, for this reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(pub String);
