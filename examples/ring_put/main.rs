//! Puts pages into the memory of another process, using the ring of page credits.
//!
//! ```text
//! cargo xtask fetch        # UCX, once
//! cargo run -p examples --example ring_put
//! ```
//! The program is the receiver, and starts itself again as the sender. The receiver grants 4 credits; each permits writing one page
//! once. The sender has 10 pages. It spends credits, puts pages over UCX, flushes, and announces the pages in a `PageFilled` frame. The
//! receiver checks their hashes and grants the pages again. Both print each step. The last line is `receiver: 10 pages are right`.
#![forbid(unsafe_code)]

mod receiver;
mod sender;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use anyhow::{Context, Result};
use connector::frame::KvShape;
use connector::memory::Region;
use connector::page_hash::{PageSeed, page_hash};
use connector::ring::CreditNumber;
use connector::transport::{Command, Event, Transport, TransportSession};
use connector::ucx::{UcxConfig, UcxTransport};
use tokio::sync::mpsc;

const PAGE_BYTES: u64 = 64 << 10;
const PAGES: u32 = 10;
const REQUEST: u64 = 7;
const SESSION: TransportSession = TransportSession(1);

/// Both sides must have the same shape. In a server it describes the model and its KV pages.
fn shape() -> KvShape {
    KvShape {
        model: "none".to_owned(),
        fingerprint: [0; 32],
        layers: 1,
        kv_heads: 1,
        head_dim: 1,
        page_tokens: 1,
        dtype: "u8".to_owned(),
        scale: "1".to_owned(),
        page_bytes: PAGE_BYTES,
        page_hash: true,
        shards: 1,
    }
}

/// The memory of one process, and its transport.
struct Side {
    region: Region,
    transport: UcxTransport,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Side {
    /// Makes memory whose page `n` is filled with `byte_of(n)`, and opens a session of UCX over TCP.
    fn start(pages: u32, byte_of: fn(u32) -> u8) -> Result<Self> {
        let page = |n| (0..PAGE_BYTES).map(move |_| AtomicU8::new(byte_of(n)));
        let memory: Vec<AtomicU8> = (0..pages).flat_map(page).collect();
        let region = Region::shared(Arc::new(memory));
        let mut config = UcxConfig::default();
        let folder = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")));
        config.search.extend(cache.map(|cache| cache.join("baton/ucx-1.22.0/libucx/lib/libucp.so.0")));
        let (sender, events) = mpsc::unbounded_channel();
        let sink = move |batch: Vec<Event>| batch.into_iter().for_each(|event| drop(sender.send(event)));
        let transport = UcxTransport::start(vec![region.clone()], &config, Box::new(|| ()), Box::new(sink))?;
        transport.submit(Command::Open { session: SESSION })?;
        Ok(Self { region, transport, events })
    }

    /// The transport's next event.
    async fn event(&mut self) -> Result<Event> {
        self.events.recv().await.context("the transport has ended")
    }

    /// The hash of page `page` of this process, which is put under `credit` as page `place` of the request.
    fn hash(&self, page: u32, session: u64, credit: CreditNumber, place: u32) -> Result<u64> {
        let seed = PageSeed { session, credit: credit.0, request: REQUEST, place };
        page_hash(&self.region, offset(page), PAGE_BYTES, seed).context("the page lies outside the region")
    }
}

fn offset(page: u32) -> u64 {
    u64::from(page) * PAGE_BYTES
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match std::env::args().nth(1) {
        None => receiver::run().await,
        Some(address) => sender::run(&address).await,
    }
}
