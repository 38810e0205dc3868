//! Opens the ports for KV events, and publishes the events of the node on them.

use std::net::{SocketAddr, TcpListener};

use actors::devices::kv_events::CacheBatch;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::exposure::Port;
use crate::config::{Config, KvEventsSection};
use crate::frontend::bind;
use crate::kv_events::{self, EventSource, KvEventPorts, QUEUE};

/// Opens the ports.
pub(super) fn open(config: &KvEventsSection) -> anyhow::Result<KvEventPorts> {
    Ok(KvEventPorts {
        publish: bind("kv_events.port", &config.host, config.port)?,
        replay: bind("kv_events.replay_port", &config.host, config.replay_port)?,
    })
}

/// The name of this process in the topic: `kv_events.pod`, or the address of the first HTTP port.
pub(super) fn pod(config: &Config, http: Option<SocketAddr>, frontend: Option<&TcpListener>) -> String {
    let frontend = || frontend.and_then(|socket| socket.local_addr().ok());
    let address = config.http.advertise.or(http).or_else(frontend);
    let address = || address.map(|address| address.to_string());
    config.kv_events.pod.clone().or_else(address).unwrap_or_default()
}

/// The ports, and the batches that will be published.
pub(super) struct Announcing {
    sockets: KvEventPorts,
    batches: Receiver<CacheBatch>,
}

impl Announcing {
    /// Creates the queue of batches if there are ports for them.
    pub(super) fn begin(sockets: Option<KvEventPorts>) -> (Option<Self>, Option<Sender<CacheBatch>>) {
        let begin = |sockets| {
            let (sender, batches) = channel(QUEUE);
            (Self { sockets, batches }, sender)
        };
        sockets.map(begin).unzip()
    }

    /// Publishes the batches until the node ends.
    pub(super) fn publish(self, source: EventSource) -> std::io::Result<()> {
        let KvEventPorts { publish, replay } = &self.sockets;
        let topic = source.topic();
        for (socket, key) in [(publish, "kv_events.port"), (replay, "kv_events.replay_port")] {
            let address = socket.local_addr()?;
            tracing::info!(%address, key, topic, "listening for subscribers of KV events");
            if let Some(warning) = Port::KvEvents.warning(address, None) {
                tracing::warn!(%address, key, "{warning}");
            }
        }
        kv_events::publish(self.sockets, source, self.batches)
    }
}
