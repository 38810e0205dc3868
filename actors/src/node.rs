//! One process's actors, started and wired: the only place that knows who talks to whom.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::prelude::*;
use connector::frame::{Incarnation, Shape};
use connector::transport::{Event, EventSink, Transport};
use engine::Engine;
use tokio::net::TcpListener;

use crate::buffer_manager::{BufferManager, BufferManagerOutboxes, state::PoolState};
use crate::counters::Counters;
use crate::decoder::{
    AbortAll, Decoder, DecoderOutboxes,
    state::{DecoderConfig, DecoderState},
};
use crate::generator::{
    Generator,
    engine_thread::{EnginePulse, EngineThread},
    state::GeneratorState,
};
use crate::kit::{AWAKE, Awake, KillSwitch, Outbox, Vitals, tick_every};
use crate::messages::{BeginDrain, Tick, TransportEvents};
use crate::pages::Pages;
use crate::peer_link::{
    AnnounceLeaving, CloseLinks, Identity, PeerLink, ReceiverSide, SenderSide, Side, tasks,
};
use crate::prefiller::{
    Prefiller, PrefillerOutboxes,
    state::{PrefillerConfig, PrefillerState},
};
use crate::proxy::{Proxy, state::ProxyState};
use crate::request::{AbortRequest, Generate};
use crate::streams::Streams;
use crate::transfer::{Transfer, TransferOutboxes, hash_thread::HashThread, state::TransferState};
use crate::watchdog::{NodeHealth, Watchdog, Watched};

/// How often every actor is ticked: deadlines are kept to this, and the watchdog sees a pulse.
const TICK: Duration = Duration::from_millis(250);

/// How far ahead of its tokens a request's pages are reserved: one that may get thousands keeps nobody out who gets few.
const GROWTH_TOKENS: u32 = 256;

/// Cores from which on arbiters stay awake while pages move: they, the transport's thread and the engine's take one each.
const AWAKE_CORES: usize = 8;

/// How long sessions may take to end in good order.
const CLOSE_LIMIT: Duration = Duration::from_secs(3);

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
    /// Where requests go.
    pub proxy: Addr<Proxy>,
    /// Where aborts go.
    pub abort: Recipient<AbortRequest>,
    /// The live streams.
    pub streams: Streams,
    /// What the watchdog says.
    pub health: NodeHealth,
    /// Pulled when the process cannot go on.
    pub faults: KillSwitch,
    /// Pages that one request may use.
    pub request_pages: u32,
    drop_all: Recipient<AbortAll>,
    /// What the node counts.
    pub counters: Counters,
    link: Option<(Addr<PeerLink>, Arbiter, Arc<dyn Transport>)>,
    prefiller: Option<Addr<Prefiller>>,
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

    /// Takes no new requests, waits until the live ones have ended, and the hand-overs to peers with them, or `limit` has
    /// passed; then ends sessions and transport. The node's memory may be freed after this.
    pub async fn shut_down(self, limit: Duration) {
        self.proxy.do_send(BeginDrain);
        if let (Some(prefiller), Some((link, ..))) = (&self.prefiller, &self.link) {
            prefiller.do_send(BeginDrain);
            link.do_send(AnnounceLeaving);
        }
        let busy = || !self.streams.is_empty() || self.counters.prefills_live().load(Ordering::Relaxed) > 0;
        let drained = async {
            while busy() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(limit, drained).await.is_err() {
            let prefills = self.counters.prefills_live().load(Ordering::Relaxed);
            tracing::warn!(live = self.streams.len(), prefills, "drain limit passed; requests are cut");
            self.drop_all.do_send(AbortAll);
        }
        let Some((link, arbiter, transport)) = self.link else { return };
        link.do_send(CloseLinks);
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

/// Starts every actor of a node on the current actix system.
///
/// # Errors
/// The transport's, or the operating system gives no thread or socket.
pub fn start<E>(config: NodeConfig<'_, E>) -> Result<Node, StartError<E>> {
    let NodeConfig { engine, prefill_chunk_tokens, prefix_cache, scattered, local_if_sooner_by, link } =
        config;
    let (model, step_tokens) = (engine.model().clone(), engine.limits().tokens);
    let (pool, layout) = (engine.kv().clone(), engine.kv().layout().clone());
    let (page_bytes, pages) = (layout.page_bytes(), pool.pages());
    // A host's cores compute, and few are wanted for other things.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let awake = if pool.is_on_device() && cores >= AWAKE_CORES { AWAKE } else { Duration::ZERO };
    let ring_pages = match &link {
        Some(LinkConfig { role: LinkRole::Receiver(_), ring_bytes, .. }) => {
            ring_pages(*ring_bytes, page_bytes, pages).ok_or(StartError::Pool { pages })?
        }
        _ => 0,
    };
    let pid = std::process::id();
    let streams = Streams::default();
    let (faults, health) = (KillSwitch::default(), NodeHealth::default());
    let counters = Counters::default();
    let pulse = EnginePulse::new();
    let mut vitals = Vec::new();
    let mut pulse_of = |name| {
        let pulse = Vitals::new(name);
        vitals.push(pulse.clone());
        pulse
    };

    // Addresses first, so that actors can know each other; nothing runs before all of them do.
    let proxy = Context::<Proxy>::new();
    let decoder = Context::<Decoder>::new();
    let buffers = Context::<BufferManager>::new();
    let generator = Context::<Generator>::new();
    let is_sender = matches!(&link, Some(LinkConfig { role: LinkRole::Sender(_), .. }));
    let transfer = Context::<Transfer>::new();
    let prefiller = Context::<Prefiller>::new();
    let (to_proxy, to_decoder, to_buffers) = (proxy.address(), decoder.address(), buffers.address());
    let (to_generator, to_transfer, to_prefiller) =
        (generator.address(), transfer.address(), prefiller.address());

    macro_rules! outbox {
        ($edge:literal, $address:expr) => {
            Outbox::new($edge, $address.clone().recipient())
        };
    }

    let (min_gigabytes_per_second, pages_in_flight) =
        link.as_ref().map_or((0.0, 0), |link| (link.min_gigabytes_per_second, link.pages_in_flight));
    let hashed = link.as_ref().filter(|link| link.page_hash);
    let hashed = hashed.map(|_| Pages::new(pool.clone()));
    let mut linked = None;
    if let Some(link) = link {
        let incarnation = Incarnation::current().map_err(StartError::Io)?;
        let shape = Shape {
            model: model.name.clone(),
            fingerprint: model.fingerprint,
            layers: layout.layers,
            kv_heads: layout.kv_heads,
            head_dim: layout.head_dim,
            page_tokens: layout.page_tokens,
            dtype: layout.dtype.name().to_owned(),
            page_bytes,
            page_hash: link.page_hash,
        };
        let identity = Identity { incarnation, shape, secret: link.secret, ring_pages };
        let side = if is_sender {
            Side::Sender(Box::new(SenderSide {
                opened: outbox!("peer_link→transfer", to_transfer),
                connected: outbox!("peer_link→transfer", to_transfer),
                granted: outbox!("peer_link→transfer", to_transfer),
                shared: outbox!("peer_link→transfer", to_transfer),
                lost: [
                    outbox!("peer_link→transfer", to_transfer),
                    outbox!("peer_link→prefiller", to_prefiller),
                ],
                prefill: outbox!("peer_link→prefiller", to_prefiller),
                cancel: outbox!("peer_link→prefiller", to_prefiller),
            }))
        } else {
            Side::Receiver(Box::new(ReceiverSide {
                opened: outbox!("peer_link→buffer_manager", to_buffers),
                filled: outbox!("peer_link→buffer_manager", to_buffers),
                drained: outbox!("peer_link→buffer_manager", to_buffers),
                ready: [outbox!("peer_link→decoder", to_decoder), outbox!("peer_link→proxy", to_proxy)],
                lost: [
                    outbox!("peer_link→proxy", to_proxy),
                    outbox!("peer_link→decoder", to_decoder),
                    outbox!("peer_link→buffer_manager", to_buffers),
                ],
                leaving: outbox!("peer_link→proxy", to_proxy),
                finished: outbox!("peer_link→decoder", to_decoder),
                failed: outbox!("peer_link→decoder", to_decoder),
            }))
        };
        let (sink, late_link) = sink(to_transfer.clone().recipient());
        let transport = (link.transport)(sink).map_err(StartError::Transport)?;
        let arbiter = Arbiter::new();
        let link_vitals = pulse_of("peer_link");
        let to_link = {
            let (identity, transport) = (identity.clone(), transport.clone());
            let (health, counters) = (health.clone(), counters.clone());
            PeerLink::start_in_arbiter(&arbiter.handle(), move |_| {
                let awake = Awake::new(awake);
                PeerLink::new(identity, transport, side, health, counters, awake, link_vitals)
            })
        };
        // Set once, here, before the transport has a session that could report anything.
        let _ = late_link.set(to_link.clone().recipient());
        let (identity, faults, address) = (identity, faults.clone(), to_link.clone());
        match link.role {
            LinkRole::Receiver(listener) => {
                listener.set_nonblocking(true).map_err(StartError::Io)?;
                arbiter.spawn(async move {
                    match TcpListener::from_std(listener) {
                        Ok(listener) => tasks::listen(listener, identity, address).await,
                        Err(error) => faults.pull(format!("link port: {error}")),
                    }
                });
            }
            LinkRole::Sender(peers) => {
                for (line, peer) in (0..).zip(peers) {
                    let (identity, address) = (identity.clone(), address.clone());
                    arbiter.spawn(tasks::dial(line, peer, identity, address, health.clone(), faults.clone()));
                }
            }
        }
        let recipient = to_link.clone().recipient();
        arbiter.spawn_fn(move || tick_every(TICK, recipient, || Tick));
        linked = Some((to_link, arbiter, transport));
    }
    let to_link = linked.as_ref().map(|(address, ..)| address.clone());

    buffers.run(BufferManager::new(
        PoolState::new(pages, ring_pages, layout.page_tokens).sharing(prefix_cache).scattered(scattered),
        hashed.clone(),
        BufferManagerOutboxes {
            decoder: outbox!("buffer_manager→decoder", to_decoder),
            grown: outbox!("buffer_manager→decoder", to_decoder),
            short: outbox!("buffer_manager→decoder", to_decoder),
            adopted: outbox!("buffer_manager→decoder", to_decoder),
            rejected: outbox!("buffer_manager→decoder", to_decoder),
            prefiller: is_sender.then(|| outbox!("buffer_manager→prefiller", to_prefiller)),
            frames: to_link.as_ref().map(|link| outbox!("buffer_manager→peer_link", link)),
            breaks: to_link.as_ref().map(|link| outbox!("buffer_manager→peer_link", link)),
        },
        counters.clone(),
        Awake::new(awake),
        pulse_of("buffer_manager"),
    ));
    let runs_ahead = engine.runs_ahead();
    let engine = EngineThread::spawn(engine, to_generator.clone().recipient(), pulse.clone())
        .map_err(StartError::Io)?;
    generator.run(Generator::new(
        GeneratorState::new(
            prefill_chunk_tokens,
            step_tokens,
            layout.page_tokens,
            model.eos_tokens.clone(),
            runs_ahead,
        ),
        engine,
        outbox!("generator→decoder", to_decoder),
        is_sender.then(|| outbox!("generator→prefiller", to_prefiller)),
        pulse_of("generator"),
    ));
    let decoder_config = DecoderConfig {
        page_tokens: layout.page_tokens,
        page_bytes,
        eos_tokens: model.eos_tokens,
        vocabulary: model.vocabulary,
        pid,
        growth_tokens: GROWTH_TOKENS,
    };
    decoder.run(Decoder::new(
        DecoderState::new(decoder_config),
        DecoderOutboxes {
            reserve: outbox!("decoder→buffer_manager", to_buffers),
            release: outbox!("decoder→buffer_manager", to_buffers),
            grow: outbox!("decoder→buffer_manager", to_buffers),
            computed: outbox!("decoder→buffer_manager", to_buffers),
            start: outbox!("decoder→generator", to_generator),
            extend: outbox!("decoder→generator", to_generator),
            stop: outbox!("decoder→generator", to_generator),
            over: outbox!("decoder→proxy", to_proxy),
            frames: to_link.as_ref().map(|link| outbox!("decoder→peer_link", link)),
        },
        streams.clone(),
        counters.clone(),
        pulse_of("decoder"),
    ));
    proxy.run(Proxy::new(
        ProxyState::new(layout.page_tokens, pages - ring_pages, local_if_sooner_by),
        outbox!("proxy→decoder", to_decoder),
        streams.clone(),
        pulse_of("proxy"),
    ));
    tick_every(TICK, to_buffers.clone().recipient(), || Tick);
    tick_every(TICK, to_generator.clone().recipient(), || Tick);
    tick_every(TICK, to_decoder.clone().recipient(), || Tick);
    tick_every(TICK, to_proxy.clone().recipient(), || Tick);
    if let (true, Some((link, _, transport))) = (is_sender, &linked) {
        let hashing = hashed
            .map(|pages| HashThread::spawn(pages, to_transfer.clone().recipient()))
            .transpose()
            .map_err(StartError::Io)?;
        transfer.run(Transfer::new(
            TransferState::new(
                page_bytes,
                min_gigabytes_per_second,
                hashing.is_some(),
                pool.is_on_device(),
                pages_in_flight,
            ),
            page_bytes,
            hashing,
            transport.clone(),
            TransferOutboxes {
                frames: outbox!("transfer→peer_link", link),
                breaks: outbox!("transfer→peer_link", link),
                sent: outbox!("transfer→prefiller", to_prefiller),
                drained: outbox!("transfer→prefiller", to_prefiller),
            },
            Awake::new(awake),
            pulse_of("transfer"),
        ));
        prefiller.run(Prefiller::new(
            PrefillerState::new(PrefillerConfig {
                page_tokens: layout.page_tokens,
                page_bytes: layout.page_bytes(),
                pool_pages: pages,
                vocabulary: model.vocabulary,
                context_tokens: model.context_tokens,
            }),
            PrefillerOutboxes {
                reserve: outbox!("prefiller→buffer_manager", to_buffers),
                release: outbox!("prefiller→buffer_manager", to_buffers),
                computed: outbox!("prefiller→buffer_manager", to_buffers),
                start: outbox!("prefiller→generator", to_generator),
                stop: outbox!("prefiller→generator", to_generator),
                puts: outbox!("prefiller→transfer", to_transfer),
                cancels: outbox!("prefiller→transfer", to_transfer),
                frames: outbox!("prefiller→peer_link", link),
            },
            counters.clone(),
            pulse_of("prefiller"),
        ));
        tick_every(TICK, to_transfer.recipient(), || Tick);
        tick_every(TICK, to_prefiller.clone().recipient(), || Tick);
    }
    let transport = linked.as_ref().map(|(.., transport)| transport.clone());
    let watchdog = Watchdog::spawn(Watched { actors: vitals, engine: pulse, transport }, health.clone())
        .map_err(StartError::Io)?;
    Ok(Node {
        proxy: to_proxy,
        abort: to_decoder.clone().recipient(),
        streams,
        health,
        faults,
        drop_all: to_decoder.recipient(),
        request_pages: pages - ring_pages,
        counters,
        link: linked,
        prefiller: is_sender.then_some(to_prefiller),
        _watchdog: watchdog,
    })
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

type LateLink = Arc<std::sync::OnceLock<Recipient<TransportEvents>>>;

/// Sorts the transport's events: completions to the transfer actor, the rest to the peer link, which starts later.
/// One batch of completions holds at most what was in flight, so sending past the mailbox's bound is bounded too.
fn sink(transfer: Recipient<TransportEvents>) -> (EventSink, LateLink) {
    let late = LateLink::default();
    let link = late.clone();
    let sink = move |events: Vec<Event>| {
        let (completions, sessions): (Vec<Event>, Vec<Event>) = events
            .into_iter()
            .partition(|event| matches!(event, Event::PutCompleted { .. } | Event::Flushed { .. }));
        if !completions.is_empty() {
            transfer.do_send(TransportEvents(completions));
        }
        if let (false, Some(link)) = (sessions.is_empty(), link.get()) {
            link.do_send(TransportEvents(sessions));
        }
    };
    (Box::new(sink), late)
}
