//! The answer of `GET /node`: what routers of a fleet need to know of a node.

use std::net::SocketAddr;

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
    /// Answers that run.
    pub running: u64,
    /// Answers of the requests that wait for admission.
    pub waiting: u64,
    /// The HTTP address of this process that its peers are told (`http.advertise`).
    pub http: Option<SocketAddr>,
    /// The HTTP addresses of the connected peers that can prefill for this process, in order.
    pub prefillers: Vec<SocketAddr>,
}

/// Whether a node serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// The process serves.
    Ok,
    /// The process serves, but an operator has to act.
    Degraded,
    /// The process is shutting down: it refuses new requests and finishes the running ones.
    Draining,
    /// The process cannot serve.
    Down,
}
