//! The answer of `GET /node`: what routers of a fleet need to know of a node.

use std::net::SocketAddr;

use actors::messages::DecodeSteps;
use serde::{Deserialize, Serialize};

/// The state of a node at one moment. Readers ignore fields that they do not know, so later versions may add some.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The name of this run of the process: 16 hexadecimal digits. A restarted process has another one.
    pub incarnation: String,
    /// The role of the process.
    pub role: String,
    /// The process prefills prompts for peers: those in its `link.peers`, or those that it finds in its fleet.
    pub prefills: bool,
    /// The process accepts peers that prefill for it.
    pub decodes: bool,
    /// Whether the process serves.
    pub state: NodeState,
    /// Why the process does not serve, or what an operator has to do.
    pub reason: Option<String>,
    /// The name of the model in requests.
    pub model: String,
    /// SHA-256 of the model's weights: 64 hexadecimal digits. Only processes with the same weights exchange KV.
    pub fingerprint: String,
    /// Maximum number of tokens of a prompt and its answer together.
    pub context_tokens: u32,
    /// Tokens in a KV page.
    pub page_tokens: u32,
    /// KV pages that requests of this process can use: the pool without the ring and without `node.prefill_pages`.
    pub pool_pages: u32,
    /// Those that are held, or reserved for KV in transit.
    pub used_pages: u32,
    /// KV pages that can keep earlier prompts; 0 if `engine.prefix_cache` is off.
    pub cache_pages: u32,
    /// Tokens of prompts in the engine that are not computed yet, of own requests and of peers.
    pub waiting_tokens: u64,
    /// Tokens of the same prompts that are computed.
    pub begun_tokens: u64,
    /// Duration of a step divided by its prompt tokens, in nanoseconds; `None` until it is measured.
    pub nanos_per_token: Option<u32>,
    /// Sequences that decode now.
    #[serde(default)]
    pub decoding: u32,
    /// The steps that only decode; `None` until they are measured.
    #[serde(default)]
    pub decode: Option<DecodeReport>,
    /// Answers that run. Prompts of peers do not count.
    pub running: u64,
    /// Answers of the requests that wait for admission.
    pub waiting: u64,
    /// The HTTP address of this process that its peers are told (`http.advertise`).
    pub http: Option<SocketAddr>,
    /// The HTTP addresses of the connected peers that can prefill for this process, in order.
    pub prefillers: Vec<SocketAddr>,
}

/// Measured steps of a node that only decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecodeReport {
    /// Average number of answers in the recent steps.
    pub rows: u32,
    /// Average duration of the recent steps in microseconds.
    pub micros: u32,
    /// The lowest average duration of 16 steps in a row since the process started, in microseconds.
    pub least_micros: u32,
}

impl DecodeReport {
    /// The report of these steps.
    pub fn of(steps: DecodeSteps) -> Self {
        Self { rows: steps.rows, micros: steps.micros, least_micros: steps.least_micros }
    }

    /// The reported steps.
    pub fn steps(self) -> DecodeSteps {
        DecodeSteps { rows: self.rows, micros: self.micros, least_micros: self.least_micros }
    }
}

/// Whether a node serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// The process serves.
    Ok,
    /// The process serves, but an operator has to act.
    Degraded,
    /// The process drains: routers send it no new requests. It finishes those that it has.
    Draining,
    /// The process cannot serve.
    Down,
}
