//! The load of a process, as it reports it to the proxies that place prompts there.

use super::SessionId;

/// Generator → proxy, decoder, peer link: the prompts that this process still has to compute, and how fast it computes them. Sent when it has changed, at
/// most every 50 ms and at ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Tokens of prompts on the engine that are not computed yet.
    pub waiting_tokens: u64,
    /// Tokens of the same prompts that the engine has computed. Tokens that were cached are not among them.
    pub begun_tokens: u64,
    /// Time of a step with long prompts divided by its prompt tokens, in nanoseconds. It contains the time of the rows that decode in the same step.
    /// `None`: not measured yet.
    pub nanos_per_token: Option<u32>,
    /// Sequences whose prompts are computed, so that they decode now. Routers read it from `GET /node`; the link does not carry it.
    pub decoding: u32,
    /// The steps that only decode. Routers read it from `GET /node`; the link does not carry it. `None`: not measured yet.
    pub decode: Option<DecodeSteps>,
}

/// Measured steps without prompt tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeSteps {
    /// Average number of sequences in the recent steps, rounded up.
    pub rows: u32,
    /// Average duration of the recent steps in microseconds.
    pub micros: u32,
    /// The lowest average duration of 16 steps in a row since the process started, in microseconds.
    pub least_micros: u32,
}

impl LoadReport {
    /// Upper bound of [`waiting_tokens`](Self::waiting_tokens) and [`begun_tokens`](Self::begun_tokens) in a peer's report: more than all prompts
    /// of a process can have.
    pub const TOKENS_MAX: u64 = 1 << 40;

    /// A peer's report, with values inside their bounds.
    pub fn of_peer(waiting_tokens: u64, begun_tokens: u64, nanos_per_token: Option<u32>) -> Self {
        Self {
            waiting_tokens: waiting_tokens.min(Self::TOKENS_MAX),
            begun_tokens: begun_tokens.min(Self::TOKENS_MAX),
            nanos_per_token: nanos_per_token.filter(|nanos| *nanos > 0),
            decoding: 0,
            decode: None,
        }
    }

    /// Microseconds per prompt token.
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
    /// Pages of its pool that can keep earlier prompts; 0 if it has no prefix cache.
    pub cache_pages: u32,
}
