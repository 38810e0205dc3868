//! The contract of a transport: commands in through a bounded queue, events out through a sink.
//!
//! One transport serves one process and one registered [`Region`](crate::memory::Region). A *session* is one link
//! between two processes; the receiving side opens it and hands its [`Descriptor`] to the sending side, which
//! connects and puts. Whatever is in flight is owned by its completion inside the transport: dropping a handle,
//! a future or an actor never frees memory that an operation may touch. Every command that is accepted is answered
//! by exactly one terminal event, in failure too.

pub(crate) mod queue;

use serde::{Deserialize, Serialize};

use crate::wire;

/// A session's name inside one process; the caller chooses it and never uses it twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TransportSession(pub u64);

/// Names one put or flush; echoed in its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What a sending process needs to write into a receiving process's region: travels in the Welcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// The transport's name (`"ucx"`, `"loopback"`): the two sides must agree.
    #[serde(deserialize_with = "wire::text")]
    pub transport: String,
    /// Opaque address of the session's worker; at most [`Descriptor::BLOB_BYTES_MAX`].
    #[serde(deserialize_with = "wire::blob")]
    pub worker_address: Vec<u8>,
    /// Opaque key to the registered region; at most [`Descriptor::BLOB_BYTES_MAX`].
    #[serde(deserialize_with = "wire::blob")]
    pub rkey: Vec<u8>,
    /// The region's base address in the receiving process.
    pub base: u64,
    /// The region's length in bytes.
    pub bytes: u64,
}

impl Descriptor {
    /// Longest address or key that is accepted from a peer.
    pub const BLOB_BYTES_MAX: usize = 16 << 10;
}

/// What a transport is asked to do. Each accepted command gets exactly one answer; shutting down answers too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Creates the session's worker. Answered by [`Event::Opened`].
    Open {
        /// A session that was never opened before.
        session: TransportSession,
    },
    /// Connects an opened session to a peer's region. Answered by [`Event::Connected`] or [`Event::Failed`], within
    /// three seconds.
    Connect {
        /// An opened session without a peer.
        session: TransportSession,
        /// What the peer's [`Event::Opened`] reported.
        peer: Descriptor,
    },
    /// Writes bytes from this region into the peer's region. Answered by [`Event::PutCompleted`]: the source may be
    /// reused, the bytes need **not** be visible there yet. An empty put is checked like any other and moves nothing.
    Put {
        /// A connected session.
        session: TransportSession,
        /// Echoed in the answer.
        ticket: Ticket,
        /// Where the bytes begin in this region.
        local_offset: u64,
        /// Where they go in the peer's region.
        remote_offset: u64,
        /// How many.
        bytes: u64,
    },
    /// Makes every put submitted before it visible at the peer. Answered by [`Event::Flushed`].
    Flush {
        /// A connected session.
        session: TransportSession,
        /// Echoed in the answer.
        ticket: Ticket,
    },
    /// Ends a session: operations in flight are drained or failed (each still gets its event), then endpoint, rkey
    /// and worker are destroyed. Answered by [`Event::Closed`], after which no byte of this session moves any more
    /// through this process.
    Close {
        /// Any session; closing one that is not open is answered, with `drained: false`.
        session: TransportSession,
    },
}

impl Command {
    /// The event that answers this command when it fails. A [`Close`](Self::Close) does not fail by itself; its session then reports
    /// [`Event::Failed`].
    pub fn failed(self, error: TransportError) -> Event {
        match self {
            Self::Open { session } => Event::Opened { session, result: Err(error) },
            Self::Put { session, ticket, .. } => Event::PutCompleted { session, ticket, result: Err(error) },
            Self::Flush { session, ticket } => Event::Flushed { session, ticket, result: Err(error) },
            Self::Connect { session, .. } | Self::Close { session } => Event::Failed { session, error },
        }
    }
}

/// What a transport reports, in order for one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The session's worker exists.
    Opened {
        /// The session.
        session: TransportSession,
        /// For the peer that is to write here.
        result: Result<Descriptor, TransportError>,
    },
    /// The connection is up: puts may be submitted.
    Connected {
        /// The session.
        session: TransportSession,
        /// What carries the bytes, for example `tcp/lo`.
        lane: String,
    },
    /// The put's local part is over.
    PutCompleted {
        /// The session.
        session: TransportSession,
        /// The put's.
        ticket: Ticket,
        /// After an error the bytes may be there wholly, in part or not at all.
        result: Result<(), TransportError>,
    },
    /// Everything put before is visible at the peer.
    Flushed {
        /// The session.
        session: TransportSession,
        /// The flush's.
        ticket: Ticket,
        /// After an error nothing is known about the puts before it.
        result: Result<(), TransportError>,
    },
    /// The session's endpoint is dead (peer gone, connect refused) and only `Close` makes sense; what is in flight
    /// fails on its own. Comes once a session by itself, and as the answer to each `Connect` that fails.
    Failed {
        /// The session.
        session: TransportSession,
        /// Why.
        error: TransportError,
    },
    /// The session is gone.
    Closed {
        /// The session.
        session: TransportSession,
        /// Every put had completed without error *and* was flushed before; puts refused at once do not count.
        /// A session that only received is drained by definition.
        drained: bool,
    },
}

/// Why an operation of a transport failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// A library call returned an error status.
    #[error("{call} failed: {status}")]
    Call {
        /// The call, as the library names it.
        call: &'static str,
        /// The library's text for the status.
        status: String,
    },
    /// The session named in the command is not open or not connected.
    #[error("session {0} is not connected")]
    NotConnected(u64),
    /// The range does not lie inside this or the peer's region.
    #[error("range of {bytes} bytes at {offset} leaves the region of {region_bytes} bytes")]
    OutOfRegion {
        /// Offset asked for.
        offset: u64,
        /// Length asked for.
        bytes: u64,
        /// Length of the region it leaves.
        region_bytes: u64,
    },
    /// The session was closed before the operation ran.
    #[error("session closed before the operation ran")]
    Closed,
    /// The command was not accepted.
    #[error(transparent)]
    NotTaken(SubmitError),
    /// The peer's descriptor cannot be used.
    #[error("peer descriptor: {0}")]
    Descriptor(String),
}

impl TransportError {
    /// One word for metrics, logs and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Call { .. } => "call",
            Self::NotConnected(_) => "not_connected",
            Self::OutOfRegion { .. } => "out_of_region",
            Self::Closed => "closed",
            Self::NotTaken(_) => "not_taken",
            Self::Descriptor(_) => "descriptor",
        }
    }
}

/// A command was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The bounded command queue is full; nothing happened, try again after the next event.
    #[error("transport command queue is full")]
    Full,
    /// The transport has been shut down.
    #[error("transport is shut down")]
    ShutDown,
}

/// Takes a batch of events; runs on the transport's own thread and must not block.
pub type EventSink = Box<dyn FnMut(Vec<Event>) + Send>;

/// A running transport; cheap to share, dropped or shut down once.
pub trait Transport: Send + Sync {
    /// The transport's name, as in [`Descriptor::transport`].
    fn name(&self) -> &'static str;

    /// True if what a peer puts moves only while this side's part of the session lives, as over TCP, where the receiver's
    /// own progress does the copying: then [`Event::Closed`] proves that nothing of the session can land any more.
    /// False if the peer's process or device writes our memory by itself: then its word or its end is needed too.
    fn close_ends_writes(&self) -> bool;

    /// Queues a command without blocking.
    fn submit(&self, command: Command) -> Result<(), SubmitError>;

    /// Marks of progress of the transport's thread: a counter that moves at least ten times a second while the
    /// thread is alive. The watchdog reads it.
    fn progress(&self) -> u64;

    /// Closes every session (each reports [`Event::Closed`]), answers every command, frees every registration and
    /// joins the thread. Idempotent; called before exit. From inside the sink it only starts all that.
    fn shutdown(&self);
}
