//! The log lines of the actors' states: the fields and the message of each line.

use std::net::SocketAddr;
use std::sync::Arc;

use connector::frame::{Incarnation, peer_text};

use crate::messages::SessionId;
use crate::request::RequestId;

/// One line of the log.
#[derive(Clone, Debug, PartialEq)]
pub enum LogLine {
    /// A page's hash does not match.
    PageDamaged {
        /// The request for which the page landed.
        request: RequestId,
    },
    /// A sender did not prefill a request.
    PrefillFailed {
        /// The request.
        request: RequestId,
        /// The sender's session.
        session: SessionId,
        /// The sender's reason.
        reason: String,
    },
    /// Pages can be put to a receiver.
    ReceiverReady {
        /// The session.
        session: SessionId,
        /// The measured speed.
        lane: LaneSpeed,
    },
    /// A sender can prefill.
    SenderReady {
        /// The session.
        session: SessionId,
        /// The sender's process id.
        pid: u32,
        /// The speed that the sender has measured.
        lane: LaneSpeed,
    },
    /// A prompt's KV was handed over.
    Stored {
        /// The request.
        request: RequestId,
        /// Tokens whose KV was put.
        tokens: u32,
        /// Bytes of KV that were put.
        bytes: u64,
        /// The time for which the lane carried these bytes.
        put_micros: u64,
    },
    /// A handshake has succeeded; the transport opens the session.
    SessionOpening {
        /// The session.
        session: SessionId,
        /// The peer's process.
        peer: Incarnation,
        /// The peer's address.
        address: String,
        /// The protocol version of the session.
        version: u32,
        /// The peer's HTTP address; empty if the peer serves no HTTP or has not sent the address.
        http: String,
    },
    /// The header `x-prefiller-host-port` of a request names neither a connected sender nor this process.
    UnknownPrefiller {
        /// The request.
        request: RequestId,
        /// The addresses in the header, without malformed ones.
        addresses: Arc<[SocketAddr]>,
        /// The number of such requests so far.
        total: u64,
    },
    /// A session ended.
    SessionOver {
        /// The session.
        session: SessionId,
        /// The peer's process.
        peer: Incarnation,
        /// The peer's address.
        address: String,
        /// The reason.
        reason: String,
        /// One side ended the session with a goodbye.
        orderly: bool,
    },
    /// A receiver refuses sessions until a setting is changed.
    Refused {
        /// The receiver's address.
        address: String,
        /// The reason.
        reason: String,
        /// The reason has not been logged before.
        is_news: bool,
    },
    /// An address leads to this process.
    OwnAddress {
        /// The address.
        address: String,
        /// False if it was logged before.
        is_news: bool,
    },
    /// A receiver is not dialled, because this process has as many sessions as it may have.
    Full {
        /// The receiver's address.
        address: String,
        /// The limit.
        sessions: u32,
        /// This has not been logged before.
        is_news: bool,
    },
    /// Two addresses lead to one receiver.
    SameReceiver {
        /// The address that is not used.
        address: String,
        /// The process.
        peer: Incarnation,
        /// This has not been logged before.
        is_news: bool,
    },
    /// A receiver cannot be reached.
    Unreachable {
        /// The receiver's address.
        address: String,
        /// The reason.
        reason: String,
        /// The reason has not been logged before.
        is_news: bool,
    },
}

/// The result of a session's start-up measurement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneSpeed {
    /// The transport and the device that carry the pages, for example `tcp/lo`.
    pub name: String,
    /// Bytes moved in the measured part.
    pub bytes: u64,
    /// Duration of the measured part, in microseconds.
    pub micros: u64,
}

impl LaneSpeed {
    /// Megabytes moved and gigabytes per second, rounded for a log line.
    fn rounded(&self) -> (f64, f64) {
        let round = |value: f64, digits: f64| (value * digits).round() / digits;
        (round(self.bytes as f64 / 1e6, 10.0), round(gigabytes_per_second(self.bytes, self.micros), 100.0))
    }
}

/// The speed of `bytes` in `micros` microseconds, in gigabytes per second. `micros` counts as at least one.
pub fn gigabytes_per_second(bytes: u64, micros: u64) -> f64 {
    bytes as f64 / micros.max(1) as f64 / 1e3
}

impl LogLine {
    /// Writes the line.
    pub fn write(&self) {
        match self {
            Self::PageDamaged { request } => {
                tracing::warn!(%request, "page hash mismatch; recomputing the prompt here");
            }
            Self::PrefillFailed { request, session, reason } => {
                let reason = peer_text(reason);
                tracing::warn!(%request, %session, reason, "sender did not prefill; the prompt is computed elsewhere");
            }
            Self::ReceiverReady { session, lane } => {
                let (megabytes, gigabytes_per_second) = lane.rounded();
                let lane = &lane.name;
                tracing::info!(%session, lane, megabytes, gigabytes_per_second, "receiver ready");
            }
            Self::SenderReady { session, pid, lane } => {
                let (megabytes, gigabytes_per_second) = lane.rounded();
                let lane = peer_text(&lane.name);
                tracing::info!(%session, pid, lane, megabytes, gigabytes_per_second, "sender ready");
            }
            Self::Stored { request, tokens, bytes, put_micros } => {
                let (ms, speed) = (*put_micros as f64 / 1e3, gigabytes_per_second(*bytes, *put_micros));
                // The wording of LMCache's log line. Pages are put without a copy, so the offload time is zero.
                tracing::info!(
                    %request,
                    "Store {tokens} tokens takes: {ms:.4} ms, throughput: {speed:.4} GB/s; \
                     offload_time: 0.0000 ms, put_time: {ms:.4} ms"
                );
            }
            Self::SessionOpening { session, peer, address, version, http } => {
                tracing::info!(%session, %peer, address, version, http = peer_text(http), "session opening");
            }
            Self::UnknownPrefiller { request, addresses, total } => {
                tracing::warn!(%request, ?addresses, total, "prefiller header names no connected sender");
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
                tracing::warn!(address, %peer, "address leads to a receiver that is already connected");
            }
            Self::OwnAddress { address, is_news: true } => {
                tracing::info!(address, "address leads to this process");
            }
            Self::OwnAddress { address, is_news: false } => {
                tracing::debug!(address, "address still leads to this process");
            }
            Self::Full { address, sessions, is_news: true } => {
                tracing::warn!(
                    address,
                    sessions,
                    "no session with this receiver: all sessions (link.sessions) are in use; trying again every 2 s"
                );
            }
            Self::Full { address, is_news: false, .. } => {
                tracing::debug!(address, "still no session with this receiver");
            }
            Self::Refused { address, is_news: false, .. } => {
                tracing::debug!(address, "receiver still refuses sessions");
            }
            Self::SameReceiver { address, is_news: false, .. } => {
                tracing::debug!(address, "address still leads to a receiver that is already connected");
            }
            Self::Unreachable { address, reason, is_news: true } => {
                tracing::info!(address, reason, "receiver cannot be reached yet; dialling again");
            }
            Self::Unreachable { address, reason, is_news: false } => {
                tracing::debug!(address, reason, "receiver still cannot be reached");
            }
        }
    }
}
