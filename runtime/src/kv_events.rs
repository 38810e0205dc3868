//! Publishes the changes of the prefix cache to routers, in the format of vLLM's KV events.
//!
//! Subscribers connect to a ZeroMQ PUB socket and get every batch of events as three frames: the topic, the sequence number (8 bytes, big
//! endian) and the events as MessagePack. A ROUTER socket sends the newest batches again. See `docs/routers.md`.
//!
//! - **Thread**: `baton-kv-events` encodes the batches and serves all connections.
//! - **Bounds**: [`QUEUE`] batches from the buffer manager, 10,000 batches or 64 MiB in the history, 64 connections to each port. A
//!   connection has no queue of its own: it reads the history. So a slow subscriber costs no memory, and misses the batches that leave the history
//!   before it reads them. The sequence numbers show this.
//! - **Failure**: an error of a connection ends that connection.

mod connection;
mod history;
mod message;
mod zmtp;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actors::devices::kv_events::CacheBatch;
use tokio::sync::{Semaphore, mpsc, watch};

use connection::Kind;
use history::{Batch, History};

/// Maximum number of batches that wait for the thread.
pub const QUEUE: usize = 1024;

/// Maximum number of connections to each port. Further ones wait until one ends.
const CONNECTIONS_MAX: usize = 64;

/// Maximum number of connections to both ports. Each is one open file.
pub const CONNECTIONS: usize = 2 * CONNECTIONS_MAX;

/// Pause after a connection could not be accepted, for example because too many files are open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listening sockets.
#[derive(Debug)]
pub struct KvEventPorts {
    /// The socket of `kv_events.port`.
    pub publish: TcpListener,
    /// The socket of `kv_events.replay_port`.
    pub replay: TcpListener,
}

/// What the events say of this process.
#[derive(Clone, Debug)]
pub struct EventSource {
    /// The name of this process.
    pub pod: String,
    /// The name of the model in requests.
    pub model: String,
    /// Tokens in a page.
    pub page_tokens: u32,
}

impl EventSource {
    /// The first frame of each batch.
    pub fn topic(&self) -> String {
        format!("kv@{}@{}", self.pod, self.model)
    }
}

/// Publishes `batches` until their sender is dropped.
///
/// # Errors
/// The operating system refuses a thread or a socket.
pub fn publish(
    sockets: KvEventPorts,
    source: EventSource,
    batches: mpsc::Receiver<CacheBatch>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = move || {
        if let Err(error) = runtime.block_on(run(sockets, &source, batches)) {
            tracing::error!(%error, "KV events are no longer published");
        }
    };
    std::thread::Builder::new().name("baton-kv-events".into()).spawn(report).map(drop)
}

async fn run(
    sockets: KvEventPorts,
    source: &EventSource,
    mut batches: mpsc::Receiver<CacheBatch>,
) -> io::Result<()> {
    let (history, reader) = watch::channel(History::default());
    let topic: Arc<[u8]> = source.topic().into_bytes().into();
    for (kind, socket) in [(Kind::Publish, sockets.publish), (Kind::Replay, sockets.replay)] {
        socket.set_nonblocking(true)?;
        let socket = tokio::net::TcpListener::from_std(socket)?;
        tokio::spawn(accept(socket, kind, topic.clone(), reader.clone()));
    }
    while let Some(batch) = batches.recv().await {
        let payload = message::encode(&batch, source.page_tokens);
        history.send_modify(|history| history.push(Batch { sequence: batch.sequence, payload }));
    }
    Ok(())
}

async fn accept(
    socket: tokio::net::TcpListener,
    kind: Kind,
    topic: Arc<[u8]>,
    history: watch::Receiver<History>,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(permit) = permits.clone().acquire_owned().await {
        let (stream, address) = match socket.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection for KV events could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (topic, history) = (topic.clone(), history.clone());
        tokio::spawn(async move {
            tracing::debug!(%address, ?kind, "connected for KV events");
            let ended = connection::serve(stream, kind, &topic, history).await;
            tracing::debug!(%address, ?kind, error = ?ended.err(), "connection for KV events ended");
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests;
