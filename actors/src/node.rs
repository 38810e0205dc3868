//! One process's actors, started and wired.
//!
//! Who may send what to whom is in the table of [`effect`](crate::effect); here actors get their states, threads and mailboxes:
//! `serving` those of every node, `handing_over` those of a sender, `linking` the peer link and its transport.

mod handing_over;
mod linking;
mod serving;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::prelude::*;
use connector::transport::{EventSink, Transport};
use engine::{Engine, KvPool, ModelInfo};

use crate::counters::Counters;
use crate::decoder::Decoder;
use crate::devices::engine_thread::{EnginePulse, step_times::StepTimes};
use crate::effect::{ToBufferManager, ToDecoder, ToGenerator, ToPeerLink, ToPrefiller, ToProxy, ToTransfer};
use crate::kit::{AWAKE, Awake, KillSwitch, Vitals, tick_every};
use crate::messages::{AbortAll, AnnounceLeaving, BeginDrain, CloseLinks, HealthSeen, StartDialling, Tick};
use crate::pages::Pages;
use crate::prefiller::Prefiller;
use crate::proxy::Proxy;
use crate::request::{AbortRequest, Generate};
use crate::router::Mailboxes;
use crate::streams::Streams;
use crate::watchdog::{NodeHealth, Watchdog, Watched};

/// How often every actor is ticked: deadlines are kept to this, and the watchdog sees a pulse.
const TICK: Duration = Duration::from_millis(250);

/// Cores from which arbiters busy-poll while pages move: they, the transport's thread and the engine's take one each.
const AWAKE_CORES: usize = 8;

/// How long sessions may take to end in good order.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);
/// How long a process that ends waits until its receivers have called its credits back. One that does not keeps those pages
/// quarantined where it cannot see that this process has ended.
const RETURN_LIMIT: Duration = Duration::from_secs(1);

/// What this process is on the link.
pub enum LinkRole {
    /// Accepts senders on this socket.
    Receiver(std::net::TcpListener),
    /// Dials these receivers.
    Sender(Vec<String>),
}

/// Starts a transport with a sink for its events. Called once, on the thread that starts the node.
pub type StartTransport<'a, E> = Box<dyn FnOnce(EventSink) -> Result<Arc<dyn Transport>, E> + 'a>;

/// The link's part of a node.
pub struct LinkConfig<'a, E> {
    /// Which side.
    pub role: LinkRole,
    /// `link.secret`.
    pub secret: Option<String>,
    /// Where this process serves HTTP, as peers are told; empty if it does not.
    pub http: String,
    /// `ring.bytes`: clamped to half the pool.
    pub ring_bytes: u64,
    /// `transport.min_gigabytes_per_second`: a lane that moves less, in gigabytes a second, is not used.
    pub min_gigabytes_per_second: f64,
    /// Most pages of a session in flight, at least one; [`PAGES_IN_FLIGHT`](crate::transfer::state::PAGES_IN_FLIGHT) as a rule.
    pub pages_in_flight: usize,
    /// `transport.page_hash`: pages are hashed, and checked before they are adopted.
    pub page_hash: bool,
    /// The transport.
    pub transport: StartTransport<'a, E>,
}

/// What a node is made of.
pub struct NodeConfig<'a, E> {
    /// The engine, loaded.
    pub engine: Box<dyn Engine>,
    /// `engine.prefill_chunk_tokens`.
    pub prefill_chunk_tokens: u32,
    /// `engine.prefix_cache`: what one request has computed serves others that begin with the same tokens.
    pub prefix_cache: bool,
    /// Pages are taken from all over the pool, as if it had been used for long: for measurements.
    pub scattered: bool,
    /// `frontend.local_if_sooner_by`: a prompt is prefilled here although a sender lives if that saves more than this.
    pub local_if_sooner_by: Duration,
    /// The link; none in a process of its own.
    pub link: Option<LinkConfig<'a, E>>,
}

/// A running node.
pub struct Node {
    proxy: Addr<Proxy>,
    decoder: Addr<Decoder>,
    prefiller: Option<Addr<Prefiller>>,
    link: Option<linking::Linked>,
    /// The live streams.
    pub streams: Streams,
    /// What the watchdog says.
    pub health: NodeHealth,
    /// Pulled when the process cannot go on.
    pub faults: KillSwitch,
    /// Pages that one request may use.
    pub request_pages: u32,
    /// What the node counts.
    pub counters: Counters,
    _watchdog: Watchdog,
}

impl Node {
    /// How many peers pages can travel to or from.
    pub fn peers(&self) -> u64 {
        self.counters.sessions_ready().load(Ordering::Relaxed)
    }

    /// Where the frontend sends requests.
    pub fn generate(&self) -> Recipient<Generate> {
        self.proxy.clone().recipient()
    }

    /// Where the frontend sends aborts. An abort must follow its request over a clone of the same address.
    pub fn abort(&self) -> Recipient<AbortRequest> {
        self.proxy.clone().recipient()
    }

    /// Takes no new requests, waits until the live ones have ended, and the hand-overs to peers with them, or `limit` has
    /// passed; then ends sessions and transport. The node's memory may be freed after this.
    pub async fn shut_down(self, limit: Duration) {
        self.proxy.do_send(ToProxy::from(BeginDrain));
        if let (Some(prefiller), Some(link)) = (&self.prefiller, &self.link) {
            prefiller.do_send(BeginDrain.into());
            link.peer_link.do_send(AnnounceLeaving.into());
        }
        let prefills = || self.counters.prefills_live().load(Ordering::Relaxed);
        let drained = async {
            while !self.streams.is_empty() || prefills() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(limit, drained).await.is_err() {
            let (requests, prefills) = (self.streams.len(), prefills());
            tracing::warn!(requests, prefills, "drain limit passed; requests are cut");
            self.decoder.do_send(AbortAll.into());
        }
        let Some(linking::Linked { peer_link, arbiter, transport }) = self.link else { return };
        let returned = async {
            while self.counters.credits_held().load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // Best effort, as below.
        let _ = tokio::time::timeout(RETURN_LIMIT, returned).await;
        peer_link.do_send(CloseLinks.into());
        let closed = async {
            while self.counters.sessions_held().load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // Best effort: a peer that does not hear the goodbye sees the socket close.
        let _ = tokio::time::timeout(CLOSE_LIMIT, closed).await;
        // Joins the transport's thread, which may wait for a peer: not here, where signals must be heard.
        let _ = tokio::task::spawn_blocking(move || transport.shutdown()).await;
        arbiter.stop();
    }
}

/// What the actors of one node share while they are started.
struct Parts {
    model: ModelInfo,
    pool: Arc<KvPool>,
    /// Pages of the pool that rings may claim.
    ring_pages: u32,
    /// How long arbiters busy-poll while pages move.
    awake: Duration,
    streams: Streams,
    counters: Counters,
    faults: KillSwitch,
    health: NodeHealth,
    vitals: Vec<Vitals>,
}

impl Parts {
    /// For an actor that handles the pages of a hand-over.
    fn awake(&self) -> Awake {
        Awake::new(self.awake)
    }

    /// For an actor that does not.
    fn asleep(&self) -> Awake {
        Awake::new(Duration::ZERO)
    }

    /// The pulse of an actor, which the watchdog watches.
    fn pulse(&mut self, name: &'static str) -> Vitals {
        let pulse = Vitals::new(name);
        self.vitals.push(pulse.clone());
        pulse
    }

    fn page_bytes(&self) -> u64 {
        self.pool.layout().page_bytes()
    }

    fn page_tokens(&self) -> u32 {
        self.pool.layout().page_tokens
    }
}

/// Starts every actor of a node on the current actix system.
///
/// # Errors
/// The transport's, or the operating system gives no thread or socket.
pub fn start<E>(config: NodeConfig<'_, E>) -> Result<Node, StartError<E>> {
    let NodeConfig { engine, link, prefill_chunk_tokens, prefix_cache, scattered, local_if_sooner_by } =
        config;
    let mut parts = parts(engine.as_ref(), link.as_ref())?;
    let times = StepTimes::new(parts.model.parameters, parts.pool.is_on_device());
    let pulse = EnginePulse::new(times);
    let is_sender = matches!(&link, Some(LinkConfig { role: LinkRole::Sender(_), .. }));

    // Addresses first, so that actors can know each other; nothing runs before all of them exist.
    let serving = serving::Contexts::default();
    let handing_over = is_sender.then(handing_over::Contexts::default);
    let mut mailboxes = Mailboxes {
        proxy: serving.proxy.address().recipient(),
        decoder: serving.decoder.address().recipient(),
        buffer_manager: serving.buffer_manager.address().recipient(),
        generator: serving.generator.address().recipient(),
        transfer: handing_over.as_ref().map(|contexts| contexts.transfer.address().recipient()),
        prefiller: handing_over.as_ref().map(|contexts| contexts.prefiller.address().recipient()),
        peer_link: None,
    };
    let hashed = link.as_ref().filter(|link| link.page_hash).map(|_| Pages::new(parts.pool.clone()));
    let sending = link.as_ref().map(|link| (link.min_gigabytes_per_second, link.pages_in_flight));
    let linked = link.map(|link| linking::start(link, &mut parts, &mailboxes)).transpose()?;
    mailboxes.peer_link = linked.as_ref().map(|linked| linked.peer_link.clone().recipient());

    let (proxy, decoder) = (serving.proxy.address(), serving.decoder.address());
    let settings = serving::Settings { prefill_chunk_tokens, prefix_cache, scattered, local_if_sooner_by };
    serving.run(engine, settings, hashed.clone(), &mut parts, &mailboxes, &pulse).map_err(StartError::Io)?;
    let prefiller = handing_over.as_ref().map(|contexts| contexts.prefiller.address());
    if let (Some(contexts), Some(linked), Some(sending)) = (handing_over, &linked, sending) {
        contexts
            .run(sending, hashed, linked.transport.clone(), &mut parts, &mailboxes)
            .map_err(StartError::Io)?;
    }
    tick(&mailboxes, linked.as_ref(), &parts.health);

    let transport = linked.as_ref().map(|linked| linked.transport.clone());
    let watched = Watched { actors: parts.vitals, engine: pulse, transport };
    let watchdog =
        Watchdog::spawn(watched, parts.health.clone(), parts.faults.clone()).map_err(StartError::Io)?;
    Ok(Node {
        proxy,
        decoder,
        prefiller,
        link: linked,
        streams: parts.streams,
        health: parts.health,
        faults: parts.faults,
        request_pages: parts.pool.pages() - parts.ring_pages,
        counters: parts.counters,
        _watchdog: watchdog,
    })
}

fn parts<E>(engine: &dyn Engine, link: Option<&LinkConfig<'_, E>>) -> Result<Parts, StartError<E>> {
    let pool = engine.kv().clone();
    let pages = pool.pages();
    let ring_pages = match link {
        Some(LinkConfig { role: LinkRole::Receiver(_), ring_bytes, .. }) => {
            ring_pages(*ring_bytes, pool.layout().page_bytes(), pages).ok_or(StartError::Pool { pages })?
        }
        _ => 0,
    };
    // A host's cores compute, and few are left for busy-polling.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let awake = if pool.is_on_device() && cores >= AWAKE_CORES { AWAKE } else { Duration::ZERO };
    Ok(Parts {
        model: engine.model().clone(),
        pool,
        ring_pages,
        awake,
        streams: Streams::default(),
        counters: Counters::default(),
        faults: KillSwitch::default(),
        health: NodeHealth::default(),
        vitals: Vec::new(),
    })
}

/// Starts the timers of all actors, and the dialling.
fn tick(mailboxes: &Mailboxes, linked: Option<&linking::Linked>, health: &NodeHealth) {
    let Mailboxes { proxy, decoder, buffer_manager, generator, transfer, prefiller, .. } = mailboxes.clone();
    tick_every(TICK, proxy, || ToProxy::from(Tick));
    tick_every(TICK, decoder, || ToDecoder::from(Tick));
    tick_every(TICK, buffer_manager, || ToBufferManager::from(Tick));
    tick_every(TICK, generator, || ToGenerator::from(Tick));
    if let Some(transfer) = transfer {
        tick_every(TICK, transfer, || ToTransfer::from(Tick));
    }
    if let Some(prefiller) = prefiller {
        tick_every(TICK, prefiller, || ToPrefiller::from(Tick));
    }
    if let Some(linking::Linked { peer_link, arbiter, .. }) = linked {
        let (recipient, health) = (peer_link.clone().recipient(), health.clone());
        arbiter.spawn_fn(move || {
            tick_every(TICK, recipient.clone(), move || ToPeerLink::from(HealthSeen(health.fault())));
            tick_every(TICK, recipient, || ToPeerLink::from(Tick));
        });
        peer_link.do_send(StartDialling.into());
    }
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError<E> {
    /// The transport's reason.
    #[error(transparent)]
    Transport(E),
    /// One page cannot be shared between a ring and a request.
    #[error("a receiver's pool needs at least 2 pages and this one has {pages}; raise engine.kv_bytes")]
    Pool {
        /// Pages in the pool.
        pages: u32,
    },
    /// The operating system's.
    #[error("operating system refused: {0}")]
    Io(std::io::Error),
}

/// `ring.bytes` in pages: at least one, and at most half the pool; `None` if the pool is too small to share.
fn ring_pages(ring_bytes: u64, page_bytes: u64, pages: u32) -> Option<u32> {
    let wanted = u32::try_from(ring_bytes / page_bytes).unwrap_or(u32::MAX).max(1);
    let ring = wanted.min(pages / 2);
    if ring < wanted {
        tracing::info!(wanted, pages = ring, pool = pages, "ring clamped to half the page pool");
    }
    (ring > 0).then_some(ring)
}
