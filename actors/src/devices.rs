//! What effects reach besides actors: the threads and sockets of a process, each behind a handle.

pub mod engine_thread;
pub mod hash_thread;
pub mod sockets;

use std::sync::Arc;

use connector::transport::Transport;

use crate::kit::KillSwitch;
use crate::streams::Streams;
use engine_thread::EngineThread;
use hash_thread::HashThread;
use sockets::Sockets;

/// The devices of one actor: those that it uses.
#[derive(Default)]
pub struct Devices {
    /// The clients' streams.
    pub streams: Streams,
    /// The generator's.
    pub engine: Option<EngineThread>,
    /// The transfer actor's.
    pub hash_thread: Option<HashThread>,
    /// The transfer actor's and the peer link's.
    pub transport: Option<Arc<dyn Transport>>,
    /// The peer link's.
    pub sockets: Option<Sockets>,
    /// The process's.
    pub faults: KillSwitch,
}
