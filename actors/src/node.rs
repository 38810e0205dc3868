//! Starts the actors of one process and connects them.
//!
//! The table of [`effect`](crate::effect) says which actor may send which message to which. Here actors get their states, threads and
//! mailboxes: `serving` starts the actors of every node, `handing_over` those of a node that prefills for peers, `linking` the peer link and
//! its transport. `shares` divides the page pool.

mod drain;
mod handing_over;
mod linking;
mod serving;
mod shares;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::prelude::*;
use connector::frame::{Capabilities, Incarnation, Versions};
use connector::link::tls::LinkTls;
use connector::transport::{EventSink, Transport};
use engine::{Engine, KvPool, ModelInfo};
use tokio::sync::{mpsc, watch};

use crate::counters::Counters;
use crate::decoder::Decoder;
use crate::devices::{
    Devices, RecordPrefill,
    engine_thread::{EnginePulse, step_times::StepTimes},
    kv_events::CacheBatch,
};
use crate::effect::{ToBufferManager, ToDecoder, ToGenerator, ToPeerLink, ToPrefiller, ToProxy, ToTransfer};
use crate::grammar::GrammarCompiler;
use crate::kit::{AWAKE, Awake, KillSwitch, Vitals, tick_every};
use crate::messages::{AbortAll, CloseLinks, HealthSeen, StartDialling, Tick};
use crate::pages::Pages;
use crate::peer_link::state::SessionLimits;
use crate::peer_metrics::PeerMetrics;
use crate::proxy::{Proxy, state::ProxyReport};
use crate::request::{AbortRequest, Generate};
use crate::router::Mailboxes;
use crate::routing::RoutingConfig;
use crate::streams::Streams;
use crate::watchdog::{NodeHealth, Watchdog, Watched};
pub use drain::{NodeDrain, NodeWork};
pub use linking::kv_shape;
pub use shares::SharesError;
use shares::{Shares, Wanted};

/// Time between two ticks of an actor. It is the precision of deadlines, and the watchdog sees a mark this often.
const TICK: Duration = Duration::from_millis(250);

/// Arbiters busy-poll during hand-overs only on a host with at least this many cores, because both arbiters, the transport's thread and the
/// engine's thread then take one core each.
const AWAKE_CORES: usize = 8;

/// Maximum time that the node waits until sessions have closed with a goodbye.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);
/// How long an ending process waits until its receivers have taken its credits back. A receiver that has not taken them back, and that cannot
/// see that this process has ended, keeps those pages quarantined.
const RETURN_LIMIT: Duration = Duration::from_secs(1);

/// Starts a transport with a sink for its events. Called once, on the thread that starts the node.
pub type StartTransport<'a, E> = Box<dyn FnOnce(EventSink) -> Result<Arc<dyn Transport>, E> + 'a>;

/// The link's part of a node.
pub struct LinkConfig<'a, E> {
    /// Accepts peers that prefill for this process. `None`: no peer prefills for it.
    pub listener: Option<std::net::TcpListener>,
    /// The addresses of the peers that this process dials and prefills for.
    pub peers: Vec<String>,
    /// The versions of the link's protocol that this process supports.
    pub versions: Versions,
    /// Peers are also found while the process runs, and sent to [`Node::peers_found`].
    pub finds_peers: bool,
    /// `link.secret`.
    pub secret: Option<String>,
    /// TLS of the link; `None` for bytes in clear.
    pub tls: Option<Arc<LinkTls>>,
    /// The HTTP address that peers are told; `None` if this process serves no HTTP. If its IP address is unspecified, peers replace it by the one that
    /// they see on the link.
    pub http: Option<SocketAddr>,
    /// `ring.bytes`: clamped to half of the pages that `prefill_pages` leaves.
    pub ring_bytes: u64,
    /// Limits of the sessions.
    pub limits: SessionLimits,
    /// `node.prefill_pages`: pages for the prompts of peers, in a process with a listener and peers. `None`: room for one prompt of the
    /// greatest length.
    pub prefill_pages: Option<u32>,
    /// Maximum number of tokens of a prompt and its answer. The pool may limit it further.
    pub context_tokens: u32,
    /// `transport.min_gigabytes_per_second`: a slower lane is refused.
    pub min_gigabytes_per_second: f64,
    /// Maximum number of pages in flight per session; at least one. The default is [`PAGES_IN_FLIGHT`](crate::transfer::state::PAGES_IN_FLIGHT).
    pub pages_in_flight: usize,
    /// `transport.page_hash`: pages are hashed by the sender, and checked before they are adopted.
    pub page_hash: bool,
    /// The transport.
    pub transport: StartTransport<'a, E>,
}

impl<E> LinkConfig<'_, E> {
    /// What this process does for its peers.
    fn capabilities(&self) -> Capabilities {
        Capabilities { prefill: !self.peers.is_empty() || self.finds_peers, decode: self.listener.is_some() }
    }
}

/// The configuration of a node.
pub struct NodeConfig<'a, E> {
    /// The loaded engine.
    pub engine: Box<dyn Engine>,
    /// `engine.prefill_chunk_tokens`.
    pub prefill_chunk_tokens: u32,
    /// `routing.inter_token_bound`: prompts get less of a step that would take longer than this while answers are decoded.
    pub inter_token_bound: Option<Duration>,
    /// `engine.prefix_cache`: requests that begin with the same tokens share pages.
    pub prefix_cache: bool,
    /// Pages are taken in scattered order, as from a pool that has been used for a long time. For measurements.
    pub scattered: bool,
    /// How the prefillers of requests are chosen.
    pub routing: RoutingConfig,
    /// Compiles the grammars of receivers. `None`: this process prefills no request with a grammar for a peer.
    pub grammars: Option<Arc<dyn GrammarCompiler>>,
    /// Where changes of the prefix cache are sent, to be published. `None`: nowhere.
    pub kv_events: Option<mpsc::Sender<CacheBatch>>,
    /// Records the prefills of traces. `None`: they are not recorded.
    pub traces: Option<RecordPrefill>,
    /// The link; `None` in a process without peers.
    pub link: Option<LinkConfig<'a, E>>,
}

/// What does not change while a node runs.
#[derive(Clone, Copy, Debug)]
pub struct NodeFacts {
    /// This process.
    pub incarnation: Incarnation,
    /// What this process does for its peers.
    pub capabilities: Capabilities,
    /// SHA-256 of the model's weights, which peers compare.
    pub fingerprint: [u8; 32],
    /// Tokens in a page.
    pub page_tokens: u32,
    /// Pages that can keep the KV of earlier prompts.
    pub cache_pages: u32,
    /// The HTTP address that peers are told.
    pub http: Option<SocketAddr>,
}

/// A running node.
pub struct Node {
    proxy: Addr<Proxy>,
    decoder: Addr<Decoder>,
    link: Option<linking::Linked>,
    /// The steps of a drain.
    pub drain: NodeDrain,
    /// The live streams.
    pub streams: Streams,
    /// The node's health, set by the watchdog.
    pub health: NodeHealth,
    /// Pulled when the process cannot continue.
    pub faults: KillSwitch,
    /// Pages that one request may use.
    pub request_pages: u32,
    /// Pages that may be under outstanding credits; 0 if no peer writes here.
    pub ring_pages: u32,
    /// What does not change while the node runs.
    pub facts: NodeFacts,
    /// The node's counters.
    pub counters: Counters,
    /// What is counted by peer.
    pub peer_metrics: PeerMetrics,
    /// The proxy's newest report.
    pub report: watch::Receiver<ProxyReport>,
    _watchdog: Watchdog,
}

impl Node {
    /// Number of peers that pages can be sent to or received from.
    pub fn peers(&self) -> u64 {
        self.counters.sessions_ready().load(Ordering::Relaxed)
    }

    /// The recipient for the addresses of the peers that a fleet's membership names; `None` in a process without peers.
    pub fn peers_found(&self) -> Option<Recipient<ToPeerLink>> {
        self.link.as_ref().map(|link| link.peer_link.clone().recipient())
    }

    /// The recipient for requests of the frontend.
    pub fn generate(&self) -> Recipient<Generate> {
        self.proxy.clone().recipient()
    }

    /// The recipient for aborts of the frontend. Send an abort over a clone of the address that its request was sent over, so that it arrives
    /// after the request.
    pub fn abort(&self) -> Recipient<AbortRequest> {
        self.proxy.clone().recipient()
    }

    /// Drains the node, at most for `limit`. Then cuts what is left, closes the sessions and stops the transport. The node's memory may be freed
    /// after this.
    pub async fn shut_down(self, limit: Duration) {
        self.drain.announce();
        self.drain.refuse();
        if tokio::time::timeout(limit, self.drain.done()).await.is_err() {
            let NodeWork { requests, prefills, landing_pages } = self.drain.work();
            tracing::warn!(requests, prefills, landing_pages, "drain limit passed; cutting requests");
            self.decoder.do_send(AbortAll.into());
        }
        let Some(linking::Linked { peer_link, arbiter, transport }) = self.link else { return };
        let returned = async {
            while self.counters.sessions_with_credits().load(Ordering::Relaxed) > 0 {
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
        // Best effort: a peer that does not receive the goodbye sees the socket close.
        let _ = tokio::time::timeout(CLOSE_LIMIT, closed).await;
        // This joins the transport's thread, which may wait for a peer. It runs elsewhere, because this task must handle signals.
        let _ = tokio::task::spawn_blocking(move || transport.shutdown()).await;
        arbiter.stop();
    }
}

/// The parts that the actors of one node share at start.
struct Parts {
    model: ModelInfo,
    pool: Arc<KvPool>,
    /// The division of the pool.
    shares: Shares,
    /// How long arbiters busy-poll during a hand-over; zero: never.
    awake: Duration,
    streams: Streams,
    peers: PeerMetrics,
    counters: Counters,
    faults: KillSwitch,
    health: NodeHealth,
    vitals: Vec<Vitals>,
}

impl Parts {
    /// The devices that all actors share.
    fn devices(&self) -> Devices {
        Devices { streams: self.streams.clone(), peers: self.peers.clone(), ..Devices::default() }
    }

    /// Busy-polling for an actor that handles the pages of a hand-over.
    fn awake(&self) -> Awake {
        Awake::new(self.awake)
    }

    /// No busy-polling, for the other actors.
    fn asleep(&self) -> Awake {
        Awake::new(Duration::ZERO)
    }

    /// A new liveness mark for an actor, watched by the watchdog.
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
/// The transport does not start, the pool is too small, or the operating system refuses a thread or socket.
pub fn start<E>(config: NodeConfig<'_, E>) -> Result<Node, NodeError<E>> {
    let NodeConfig {
        engine,
        link,
        grammars,
        prefill_chunk_tokens,
        inter_token_bound,
        prefix_cache,
        scattered,
        routing,
        kv_events,
        traces,
    } = config;
    let mut parts = parts(engine.as_ref(), link.as_ref())?;
    let times = StepTimes::new(parts.model.parameters, parts.pool.is_on_device());
    let pulse = EnginePulse::new(times);
    let facts = facts(&parts, link.as_ref(), prefix_cache).map_err(NodeError::Io)?;
    let (reporter, report) = watch::channel(ProxyReport::default());

    // All addresses exist before any actor runs, so that each actor can have the addresses of the others.
    let serving = serving::Contexts::default();
    let handing_over = facts.capabilities.prefill.then(handing_over::Contexts::default);
    let mut mailboxes = mailboxes(&serving, handing_over.as_ref());
    let hashed = link.as_ref().filter(|link| link.page_hash).map(|_| Pages::new(parts.pool.clone()));
    let sending = link.as_ref().map(|link| handing_over::Settings::of(link, grammars, traces));
    let linked = link.map(|link| linking::start(link, &facts, &mut parts, &mailboxes)).transpose()?;
    mailboxes.peer_link = linked.as_ref().map(|linked| linked.peer_link.clone().recipient());

    let (proxy, decoder) = (serving.proxy.address(), serving.decoder.address());
    let settings = serving::Settings {
        prefill_chunk_tokens,
        inter_token_bound,
        prefix_cache,
        scattered,
        routing,
        facts,
        kv_events,
        report: reporter,
    };
    serving.run(engine, settings, hashed.clone(), &mut parts, &mailboxes, &pulse).map_err(NodeError::Io)?;
    let prefiller = handing_over.as_ref().map(|contexts| contexts.prefiller.address());
    let peer_link = linked.as_ref().map(|linked| linked.peer_link.clone());
    let drain = NodeDrain {
        proxy: proxy.clone(),
        prefilling: prefiller.zip(peer_link),
        streams: parts.streams.clone(),
        counters: parts.counters.clone(),
    };
    if let (Some(contexts), Some(linked), Some(sending)) = (handing_over, &linked, sending) {
        contexts
            .run(sending, hashed, linked.transport.clone(), &mut parts, &mailboxes)
            .map_err(NodeError::Io)?;
    }
    tick(&mailboxes, linked.as_ref(), &parts.health);

    let transport = linked.as_ref().map(|linked| linked.transport.clone());
    let watched = Watched { actors: parts.vitals, engine: pulse, transport };
    let watchdog =
        Watchdog::spawn(watched, parts.health.clone(), parts.faults.clone()).map_err(NodeError::Io)?;
    Ok(Node {
        proxy,
        decoder,
        link: linked,
        drain,
        streams: parts.streams,
        health: parts.health,
        faults: parts.faults,
        request_pages: parts.shares.request,
        ring_pages: parts.shares.ring,
        facts,
        counters: parts.counters,
        peer_metrics: parts.peers,
        report,
        _watchdog: watchdog,
    })
}

/// The addresses of all actors but the peer link.
fn mailboxes(serving: &serving::Contexts, handing_over: Option<&handing_over::Contexts>) -> Mailboxes {
    Mailboxes {
        proxy: serving.proxy.address().recipient(),
        decoder: serving.decoder.address().recipient(),
        buffer_manager: serving.buffer_manager.address().recipient(),
        generator: serving.generator.address().recipient(),
        transfer: handing_over.map(|contexts| contexts.transfer.address().recipient()),
        prefiller: handing_over.map(|contexts| contexts.prefiller.address().recipient()),
        peer_link: None,
    }
}

fn facts<E>(
    parts: &Parts,
    link: Option<&LinkConfig<'_, E>>,
    prefix_cache: bool,
) -> std::io::Result<NodeFacts> {
    let nothing = Capabilities { prefill: false, decode: false };
    Ok(NodeFacts {
        incarnation: Incarnation::current()?,
        capabilities: link.map_or(nothing, LinkConfig::capabilities),
        fingerprint: parts.model.fingerprint,
        page_tokens: parts.page_tokens(),
        cache_pages: if prefix_cache { parts.pool.pages() } else { 0 },
        http: link.and_then(|link| link.http),
    })
}

fn parts<E>(engine: &dyn Engine, link: Option<&LinkConfig<'_, E>>) -> Result<Parts, NodeError<E>> {
    let pool = engine.kv().clone();
    let shares = shares(&pool, link).map_err(NodeError::Pool)?;
    // A CPU engine needs all cores, so only GPU nodes busy-poll.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let awake = if pool.is_on_device() && cores >= AWAKE_CORES { AWAKE } else { Duration::ZERO };
    let peers = PeerMetrics::default();
    Ok(Parts {
        model: engine.model().clone(),
        pool,
        shares,
        awake,
        streams: Streams::new(peers.clone()),
        peers,
        counters: Counters::default(),
        faults: KillSwitch::default(),
        health: NodeHealth::default(),
        vitals: Vec::new(),
    })
}

/// Starts the ticks of all actors, and dialling.
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
pub enum NodeError<E> {
    /// The transport did not start.
    #[error(transparent)]
    Transport(E),
    /// The pool cannot be divided.
    #[error(transparent)]
    Pool(SharesError),
    /// The operating system refused a thread or socket.
    #[error("cannot start the node: {0}")]
    Io(std::io::Error),
}

/// Divides the pool of a process with this link.
fn shares<E>(pool: &KvPool, link: Option<&LinkConfig<'_, E>>) -> Result<Shares, SharesError> {
    let pages = pool.pages();
    let Some(link) = link else { return Ok(Shares { ring: 0, quota: None, request: pages }) };
    let Capabilities { prefill, decode } = link.capabilities();
    let ring_pages = u32::try_from(link.ring_bytes / pool.layout().page_bytes()).unwrap_or(u32::MAX).max(1);
    let wanted = Wanted {
        pages,
        page_tokens: pool.layout().page_tokens,
        ring_pages: decode.then_some(ring_pages),
        prefills: prefill,
        prefill_pages: link.prefill_pages,
        context_tokens: link.context_tokens,
    };
    let shares = wanted.divide()?;
    if decode && shares.ring < ring_pages {
        tracing::info!(
            wanted = ring_pages,
            pages = shares.ring,
            pool = pages,
            "ring.bytes clamped to half of the pages that node.prefill_pages leaves"
        );
    }
    if let Some(quota) = shares.quota {
        let Shares { ring, request, .. } = shares;
        tracing::info!(pool = pages, requests = request, ring, prefill_pages = quota, "pages divided");
    }
    Ok(shares)
}
