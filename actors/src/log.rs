//! What actors say in the log: each line's fields and sentence, in one place.

use std::fmt;

use connector::frame::{Incarnation, peer_text};

use crate::messages::SessionId;
use crate::request::RequestId;

/// One line of the log.
#[derive(Clone, Debug, PartialEq)]
pub enum LogLine {
    /// A page's hash does not match.
    PageDamaged {
        /// The request that it landed for.
        request: RequestId,
    },
    /// A sender did not prefill.
    PrefillFailed {
        /// Which request.
        request: RequestId,
        /// The sender's session.
        session: SessionId,
        /// The sender's reason.
        reason: String,
    },
    /// A receiver can be handed pages.
    ReceiverReady {
        /// Its session.
        session: SessionId,
        /// What was measured.
        lane: LaneSpeed,
    },
    /// A sender can prefill.
    SenderReady {
        /// Its session.
        session: SessionId,
        /// Its process id.
        pid: u32,
        /// What the sender measured.
        lane: LaneSpeed,
    },
    /// A prompt's KV was handed over.
    Stored {
        /// Whose.
        request: RequestId,
        /// Tokens whose KV travelled.
        tokens: u32,
        /// Its bytes.
        bytes: u64,
        /// How long the lane carried them.
        put_micros: u64,
    },
    /// A handshake is over; the transport opens the session.
    SessionOpening {
        /// Which.
        session: SessionId,
        /// The peer's process.
        peer: Incarnation,
        /// The peer's address.
        address: String,
        /// Where the peer serves HTTP; empty if it does not, or has not said.
        http: String,
    },
    /// A session ended.
    SessionOver {
        /// Which.
        session: SessionId,
        /// The peer's process.
        peer: Incarnation,
        /// The peer's address.
        address: String,
        /// Why.
        reason: String,
        /// One side ended it in good order.
        orderly: bool,
    },
    /// A receiver refuses sessions until a setting is changed.
    Refused {
        /// Its address.
        address: String,
        /// Why.
        reason: String,
        /// The reason has not been logged before.
        is_news: bool,
    },
    /// Two addresses lead to one process.
    SameReceiver {
        /// The address that is not used.
        address: String,
        /// The process.
        peer: Incarnation,
        /// It has not been logged before.
        is_news: bool,
    },
    /// A receiver was not reached.
    Unreachable {
        /// Its address.
        address: String,
        /// Why.
        reason: String,
        /// The reason has not been logged before.
        is_news: bool,
    },
}

/// What a session's start-up measurement found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneSpeed {
    /// What carries the pages, for example `tcp/lo`.
    pub name: String,
    /// Bytes moved in the measured part.
    pub bytes: u64,
    /// How long that took.
    pub micros: u64,
}

impl fmt::Display for LaneSpeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = self.bytes as f64 / 1e6;
        write!(f, "moved {megabytes:.1} MB at {:.2} GB/s", gigabytes_per_second(self.bytes, self.micros))
    }
}

/// Speed of `bytes` in `micros`, which counts as at least one.
pub fn gigabytes_per_second(bytes: u64, micros: u64) -> f64 {
    bytes as f64 / micros.max(1) as f64 / 1e3
}

impl LogLine {
    /// Writes the line.
    pub fn write(&self) {
        match self {
            Self::PageDamaged { request } => {
                tracing::warn!(%request, "a page arrived damaged; computing the prompt here");
            }
            Self::PrefillFailed { request, session, reason } => {
                let reason = peer_text(reason);
                tracing::warn!(%request, %session, reason, "sender did not prefill; computing here");
            }
            Self::ReceiverReady { session, lane } => {
                tracing::info!(%session, lane = lane.name, "receiver ready: {lane}");
            }
            Self::SenderReady { session, pid, lane } => {
                tracing::info!(%session, pid, lane = peer_text(&lane.name), "sender ready: {lane}");
            }
            Self::Stored { request, tokens, bytes, put_micros } => {
                let (ms, speed) = (*put_micros as f64 / 1e3, gigabytes_per_second(*bytes, *put_micros));
                // LMCache's line. Nothing is copied before it is put, so nothing is offloaded.
                tracing::info!(
                    %request,
                    "Store {tokens} tokens takes: {ms:.4} ms, throughput: {speed:.4} GB/s; \
                     offload_time: 0.0000 ms, put_time: {ms:.4} ms"
                );
            }
            Self::SessionOpening { session, peer, address, http } => {
                tracing::info!(%session, %peer, address, http = peer_text(http), "session opening");
            }
            Self::SessionOver { session, peer, address, reason, orderly: true } => {
                tracing::info!(%session, %peer, address, reason, "session over");
            }
            Self::SessionOver { session, peer, address, reason, orderly: false } => {
                tracing::warn!(%session, %peer, address, reason, "session over");
            }
            Self::Refused { address, reason, is_news: true } => {
                tracing::warn!(address, reason, "receiver refuses sessions; dialling again every 30 s");
            }
            Self::SameReceiver { address, peer, is_news: true } => {
                tracing::warn!(address, %peer, "address leads to a receiver that is connected already");
            }
            Self::Refused { address, is_news: false, .. } => {
                tracing::debug!(address, "receiver still refuses sessions");
            }
            Self::SameReceiver { address, is_news: false, .. } => {
                tracing::debug!(address, "address still leads to a receiver that is connected already");
            }
            Self::Unreachable { address, reason, is_news: true } => {
                tracing::info!(address, reason, "receiver cannot be reached yet; dialling on");
            }
            Self::Unreachable { address, reason, is_news: false } => {
                tracing::debug!(address, reason, "receiver still cannot be reached");
            }
        }
    }
}
