//! The contract of a transport: commands enter through a bounded queue, events leave through a sink.
//!
//! One transport serves one node and its registered [`Region`](crate::memory::Region)s, one for each [shard](crate::shards) of its pages. A
//! *session* connects two nodes. The receiving side opens it and gives its [`Descriptor`] to the sending side, which connects and puts. A session
//! has one [lane](crate::shards::Lanes) for each pair of regions between which it moves bytes. The transport owns each
//! operation until it completes, so dropping a handle, a future or an actor never frees memory that an operation may access. Each
//! accepted command gets exactly one final event, even if it fails.

pub mod lane;
pub(crate) mod queue;

use serde::{Deserialize, Serialize};

use crate::wire;

/// Identifies a session within one process. The caller chooses the number and never reuses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TransportSession(pub u64);

/// Identifies one put or flush. Its completion returns the same ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Everything that a sending node needs to write into a receiving node's regions. It travels in the Welcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// The transport's name (`"ucx"` or `"loopback"`). Both sides must use the same transport.
    #[serde(deserialize_with = "wire::text")]
    pub transport: String,
    /// The receiving node's regions, one for each shard of its pages.
    #[serde(deserialize_with = "wire::list")]
    pub shards: Vec<ShardDescriptor>,
}

/// Everything that a sending process needs to write into one region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardDescriptor {
    /// Opaque address of the session's worker; at most [`ShardDescriptor::BLOB_BYTES_MAX`].
    #[serde(deserialize_with = "wire::blob")]
    pub worker_address: Vec<u8>,
    /// Opaque key to the registered region; at most [`ShardDescriptor::BLOB_BYTES_MAX`].
    #[serde(deserialize_with = "wire::blob")]
    pub rkey: Vec<u8>,
    /// The region's base address in the receiving process.
    pub base: u64,
    /// The region's length in bytes.
    pub bytes: u64,
}

impl ShardDescriptor {
    /// Maximum number of bytes of a worker address or key from a peer.
    pub const BLOB_BYTES_MAX: usize = 16 << 10;
}

/// A command to a transport. Each accepted command gets exactly one answer, even during shutdown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Creates the session's worker. Answered by [`Event::Opened`].
    Open {
        /// A session that was never opened before.
        session: TransportSession,
    },
    /// Connects all lanes of an opened session to a peer's regions. Answered by [`Event::Connected`] or [`Event::Failed`] within 3 s.
    Connect {
        /// An opened session without a peer.
        session: TransportSession,
        /// The descriptor from the peer's [`Event::Opened`].
        peer: Descriptor,
    },
    /// Writes bytes from a region of this node into a region of the peer. Answered by [`Event::PutCompleted`]. After that the source may be
    /// reused, but the bytes need **not** be visible at the peer yet. A put of 0 bytes is checked and moves nothing.
    Put {
        /// A connected session.
        session: TransportSession,
        /// Returned in the answer.
        ticket: Ticket,
        /// The session's lane, which says from which region into which one.
        lane: u32,
        /// Start of the source in the lane's region of this node.
        local_offset: u64,
        /// Start of the target in the lane's region of the peer.
        remote_offset: u64,
        /// Number of bytes.
        bytes: u64,
    },
    /// Makes all earlier puts of a lane visible at the peer. Answered by [`Event::Flushed`].
    Flush {
        /// A connected session.
        session: TransportSession,
        /// Returned in the answer.
        ticket: Ticket,
        /// The session's lane.
        lane: u32,
    },
    /// Ends a session. Operations in flight complete or fail, and each gets its event. Then the endpoint, the rkey and the worker are
    /// destroyed. Answered by [`Event::Closed`]; after that event this process moves no more bytes of the session.
    Close {
        /// Any session. Closing a session that is not open is answered with `drained: false`.
        session: TransportSession,
    },
}

impl Command {
    /// The event that answers this command when it fails. A [`Close`](Self::Close) does not fail by itself; its session reports
    /// [`Event::Failed`] instead.
    pub fn failed(self, error: TransportError) -> Event {
        match self {
            Self::Open { session } => Event::Opened { session, result: Err(error) },
            Self::Put { session, ticket, .. } => Event::PutCompleted { session, ticket, result: Err(error) },
            Self::Flush { session, ticket, .. } => Event::Flushed { session, ticket, result: Err(error) },
            Self::Connect { session, .. } | Self::Close { session } => Event::Failed { session, error },
        }
    }
}

/// An event from a transport. The events of one session arrive in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The session's worker exists, or could not be created.
    Opened {
        /// The session.
        session: TransportSession,
        /// The descriptor for the peer that will write into this region.
        result: Result<Descriptor, TransportError>,
    },
    /// All lanes are connected; puts may be submitted.
    Connected {
        /// The session.
        session: TransportSession,
        /// All transports and devices that carry the bytes, for example `tcp/lo`.
        lane: String,
    },
    /// A put is complete at the source.
    PutCompleted {
        /// The session.
        session: TransportSession,
        /// The put's ticket.
        ticket: Ticket,
        /// After an error, all, some or none of the bytes may have been written.
        result: Result<(), TransportError>,
    },
    /// All puts that were submitted to the lane before the flush are visible at the peer.
    Flushed {
        /// The session.
        session: TransportSession,
        /// The flush's ticket.
        ticket: Ticket,
        /// After an error, the puts before the flush may be visible or not.
        result: Result<(), TransportError>,
    },
    /// The session's endpoint has failed: the peer is gone, or did not accept the connection. Operations in flight fail with their
    /// own events; only `Close` is useful now. A session reports this at most once by itself, and as the answer to each failed
    /// `Connect`.
    Failed {
        /// The session.
        session: TransportSession,
        /// The reason.
        error: TransportError,
    },
    /// The session has ended.
    Closed {
        /// The session.
        session: TransportSession,
        /// Whether all puts had completed without error *and* were flushed. Puts that were refused before they started do not
        /// count. A session that only received is drained.
        drained: bool,
    },
}

/// The reason why an operation of a transport failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// A library call returned an error status.
    #[error("{call} failed: {status}")]
    Call {
        /// The library's name of the call.
        call: &'static str,
        /// The library's text for the status.
        status: String,
    },
    /// The command's session is not open or not connected.
    #[error("session {0} is not connected")]
    NotConnected(u64),
    /// The source leaves this region, or the target leaves the peer's region.
    #[error("range of {bytes} bytes at {offset} leaves the region of {region_bytes} bytes")]
    OutOfRegion {
        /// Offset of the range.
        offset: u64,
        /// Length of the range.
        bytes: u64,
        /// Length of the region.
        region_bytes: u64,
    },
    /// The session has no lane of this number.
    #[error("session has no lane {0}")]
    NoLane(u32),
    /// The session was closed before the operation completed.
    #[error("session was closed before the operation completed")]
    Closed,
    /// The transport did not accept the command.
    #[error(transparent)]
    NotTaken(SubmitError),
    /// The peer's descriptor is not usable, or the session cannot take one now.
    #[error("descriptor is not usable: {0}")]
    Descriptor(String),
}

impl TransportError {
    /// One word for metrics, logs and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Call { .. } => "call",
            Self::NotConnected(_) => "not_connected",
            Self::OutOfRegion { .. } => "out_of_region",
            Self::NoLane(_) => "no_lane",
            Self::Closed => "closed",
            Self::NotTaken(_) => "not_taken",
            Self::Descriptor(_) => "descriptor",
        }
    }
}

/// The transport did not accept a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The bounded command queue is full. The caller may submit the command again after the next event.
    #[error("transport command queue is full")]
    Full,
    /// The transport has been shut down.
    #[error("transport is shut down")]
    ShutDown,
}

/// Receives a batch of events. It runs on the transport's thread and must not block.
pub type EventSink = Box<dyn FnMut(Vec<Event>) + Send>;

/// A running transport. Dropping it shuts it down.
pub trait Transport: Send + Sync {
    /// The transport's name, as in [`Descriptor::transport`].
    fn name(&self) -> &'static str;

    /// Whether [`Event::Closed`] proves that no put of the peer can land any more, in every session.
    ///
    /// True if every lane that may be used ends with our worker of the session ([`lane`]). Otherwise it is proof only in the sessions
    /// whose lane is known to do so. In the others, the proof also needs the peer's statement that the session has drained, or the end of
    /// the peer's process.
    fn close_ends_writes(&self) -> bool;

    /// Queues a command without blocking.
    ///
    /// # Errors
    /// [`SubmitError`]; the command gets no event.
    fn submit(&self, command: Command) -> Result<(), SubmitError>;

    /// A counter that the transport's thread increments at least ten times per second. The watchdog reads it.
    fn progress(&self) -> u64;

    /// Closes all sessions (each reports [`Event::Closed`]), answers all commands, frees all registrations and joins the thread.
    ///
    /// Idempotent. A call from inside the sink starts the shutdown and returns at once.
    fn shutdown(&self);
}
