//! The recipients of effects that are not actors: the threads and sockets of a process, each behind a handle.

pub mod engine_thread;
pub mod grammar_thread;
pub mod hash_thread;
pub mod kv_events;
pub mod mask_threads;
pub mod sockets;

use std::sync::Arc;

use connector::transport::Transport;

use crate::kit::KillSwitch;
use crate::messages::PrefillTraced;
use crate::peer_metrics::PeerMetrics;
use crate::streams::Streams;
use engine_thread::EngineThread;
use grammar_thread::GrammarThread;
use hash_thread::HashThread;
use kv_events::KvEventQueue;
use sockets::Sockets;

/// Records a prefill of a trace. Must not block.
pub type RecordPrefill = Arc<dyn Fn(PrefillTraced) + Send + Sync>;

/// The devices that one actor uses.
#[derive(Default)]
pub struct Devices {
    /// The clients' streams.
    pub streams: Streams,
    /// What is counted by peer.
    pub peers: PeerMetrics,
    /// Used by the generator.
    pub engine: Option<EngineThread>,
    /// Used by the transfer actor.
    pub hash_thread: Option<HashThread>,
    /// Used by the prefiller.
    pub grammar_thread: Option<GrammarThread>,
    /// Used by the buffer manager.
    pub kv_events: Option<KvEventQueue>,
    /// Used by the prefiller.
    pub traces: Option<RecordPrefill>,
    /// Used by the transfer actor and the peer link.
    pub transport: Option<Arc<dyn Transport>>,
    /// Used by the peer link.
    pub sockets: Option<Sockets>,
    /// The process's kill switch.
    pub faults: KillSwitch,
}
