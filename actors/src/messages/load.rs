//! The load of a process, as it reports it to the routers that place prompts there.

use super::SessionId;

/// The prompts that a process still has to compute, and how fast it computes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Tokens of prompts that are not computed yet.
    pub waiting_tokens: u64,
    /// Nanoseconds per computed prompt token; `None`: not measured yet.
    pub nanos_per_token: Option<u32>,
    /// Pages that can keep the KV of earlier prompts; 0 if the process has no prefix cache.
    pub cache_pages: u32,
}

impl LoadReport {
    /// Microseconds per computed prompt token.
    pub fn micros_per_token(&self) -> Option<f64> {
        self.nanos_per_token.map(|nanos| f64::from(nanos) / 1e3)
    }
}

/// Peer link → proxy: a sender has reported its load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerLoad {
    /// The sender's session.
    pub session: SessionId,
    /// Its load.
    pub load: LoadReport,
}
