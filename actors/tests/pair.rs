//! A sender and a receiver in one process, or nodes that are both: over the loopback transport and a real link, with an engine that needs
//! no model.
//!
//! The engine writes every token into its page and samples from what it *reads back* from the pages. So a page that does not arrive,
//! arrives too early, or is in the wrong place gives a wrong token.

#[path = "pair/constrained.rs"]
mod constrained;
#[path = "pair/echo.rs"]
mod echo;
#[path = "pair/elsewhere.rs"]
mod elsewhere;
#[path = "pair/failing_engine.rs"]
mod failing_engine;
#[path = "pair/grammars.rs"]
mod grammars;
#[path = "pair/modular.rs"]
mod modular;
#[path = "pair/nodes.rs"]
mod nodes;
#[path = "pair/scores.rs"]
mod scores_of_prompts;
#[path = "pair/senders.rs"]
mod senders;
#[path = "pair/tenants.rs"]
mod tenants;
#[path = "pair/versions.rs"]
mod versions;

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::actors::grammar::GrammarCompiler;
use ::actors::node::{self, LinkConfig, Node, NodeConfig};
use ::actors::peer_link::state::SessionLimits;
use ::actors::request::{
    AbortRequest, FinishReason, Generate, RequestError, RequestId, Route, StreamEvent, Timings,
};
use ::actors::routing::RoutingConfig;
use ::actors::streams::{AnswerEvents, StreamReader};
use ::actors::transfer::state::PAGES_IN_FLIGHT;
use connector::frame::Versions;
use connector::loopback::{LoopbackError, LoopbackTransport};
use connector::transport::{Command, Event, EventSink, SubmitError, Transport};
use echo::{Echo, next_token, scores};
use engine::{EngineError, KvPool};

/// A test fails after waiting this long.
const PATIENCE: Duration = Duration::from_secs(60);
const PAGE_TOKENS: u32 = 4;
const CONTEXT_TOKENS: u32 = 4096;
const VOCABULARY: u32 = 1000;
/// Maximum number of rows in a step of the engine.
const ROWS: u32 = 5;

/// Faults of the lane and the engine.
#[derive(Clone, Default)]
struct Damage {
    /// Every step of the engine fails with this error while it is set.
    engine: Arc<Mutex<Option<EngineError>>>,
    /// The lane says that closing it does not end a peer's writes.
    foreign_writes: bool,
    /// At the next flush the lane flips a bit in the last page that was put.
    armed: Arc<AtomicBool>,
    /// The receiver's pool, in which the bit is flipped.
    victim: Arc<std::sync::OnceLock<Arc<KvPool>>>,
    /// Offset of the last put in the receiver's pool.
    last_put: Arc<AtomicU64>,
}

impl Damage {
    fn on_flushed(&self) {
        if let (true, Some(pool)) = (self.armed.swap(false, Ordering::SeqCst), self.victim.get()) {
            let cells = pool.cells().expect("the pool is on the host");
            // The lowest bit of the page's first token.
            cells[self.last_put.load(Ordering::SeqCst) as usize].fetch_xor(1, Ordering::SeqCst);
        }
    }
}

/// The loopback transport with [`Damage`].
struct Watched(LoopbackTransport, Damage);

impl Transport for Watched {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn close_ends_writes(&self) -> bool {
        self.0.close_ends_writes() && !self.1.foreign_writes
    }

    fn submit(&self, command: Command) -> Result<(), SubmitError> {
        if let Command::Put { remote_offset, .. } = command {
            self.1.last_put.store(remote_offset, Ordering::SeqCst);
        }
        self.0.submit(command)
    }

    fn progress(&self) -> u64 {
        self.0.progress()
    }

    fn shutdown(&self) {
        self.0.shutdown();
    }
}

/// What a node does for its peers: it accepts some and dials others.
struct Ends {
    listener: Option<TcpListener>,
    peers: Vec<String>,
    limits: SessionLimits,
    versions: Versions,
}

fn receiver_at(listener: TcpListener) -> Ends {
    node_at(listener, Vec::new())
}

fn node_at(listener: TcpListener, peers: Vec<String>) -> Ends {
    Ends { listener: Some(listener), peers, limits: SessionLimits::default(), versions: Versions::OURS }
}

fn sender_to(address: String) -> Ends {
    Ends { listener: None, peers: vec![address], limits: SessionLimits::default(), versions: Versions::OURS }
}

fn start(ends: Ends, pages: u32, ring_pages: u64) -> Node {
    start_with(ends, pages, ring_pages, &Damage::default())
}

fn start_with(ends: Ends, pages: u32, ring_pages: u64, damage: &Damage) -> Node {
    start_compiling(ends, pages, ring_pages, damage, None, routing())
}

/// Local prefills only if no sender can.
fn routing() -> RoutingConfig {
    RoutingConfig { local_if_sooner_by: Duration::MAX, ..RoutingConfig::default() }
}

fn start_compiling(
    ends: Ends,
    pages: u32,
    ring_pages: u64,
    damage: &Damage,
    grammars: Option<Arc<dyn GrammarCompiler>>,
    routing: RoutingConfig,
) -> Node {
    let engine = Echo::new(pages, damage.engine.clone());
    let region = actors::pages::region(&engine.pool);
    if ends.listener.is_some() {
        let _ = damage.victim.set(engine.pool.clone());
    }
    let damage = damage.clone();
    let ring_bytes = ring_pages * engine.pool.layout().page_bytes();
    let transport: node::StartTransport<'_, LoopbackError> = Box::new(move |mut sink: EventSink| {
        let flushed = damage.clone();
        let sink: EventSink = Box::new(move |events| {
            if events.iter().any(|event| matches!(event, Event::Flushed { .. })) {
                flushed.on_flushed();
            }
            sink(events);
        });
        let transport = LoopbackTransport::start(vec![region], sink)?;
        Ok(Arc::new(Watched(transport, damage)) as Arc<dyn Transport>)
    });
    let link = Some(LinkConfig {
        listener: ends.listener,
        peers: ends.peers,
        versions: ends.versions,
        finds_peers: false,
        secret: None,
        tls: None,
        http: None,
        ring_bytes,
        limits: ends.limits,
        prefill_pages: None,
        context_tokens: CONTEXT_TOKENS,
        min_gigabytes_per_second: 0.0,
        pages_in_flight: PAGES_IN_FLIGHT,
        page_hash: true,
        transport,
    });
    let config = NodeConfig {
        engine: Box::new(engine),
        grammars,
        prefill_chunk_tokens: 8,
        inter_token_bound: None,
        prefix_cache: true,
        scattered: false,
        routing,
        kv_events: None,
        traces: None,
        link,
    };
    node::start(config).unwrap_or_else(|error| panic!("{error}"))
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never happened: {what}"));
}

/// A receiver, a sender that is ready, and the receiver's address on the link.
async fn pair(pages: u32, ring_pages: u64) -> (Node, Node, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("the socket is bound").to_string();
    let receiver = start(receiver_at(listener), pages, ring_pages);
    let sender = dial(&receiver, &address, pages).await;
    (receiver, sender, address)
}

async fn dial(receiver: &Node, address: &str, pages: u32) -> Node {
    let sender = start(sender_to(address.to_owned()), pages, 1);
    until("both are ready", || receiver.peers() == 1 && sender.peers() == 1).await;
    sender
}

fn prompt(request: u64, tokens: u32) -> Vec<u32> {
    (0..tokens).map(|n| (n * 17 + request as u32 * 5) % VOCABULARY).collect()
}

async fn ask(node: &Node, request: u64, tokens: u32, max_tokens: u32) -> AnswerEvents {
    send(node, generate(request, tokens, max_tokens)).await
}

async fn send(node: &Node, generate: Generate) -> AnswerEvents {
    let source = StreamReader::start(&node.streams).open(generate.request, generate.max_tokens, ());
    node.generate().send(generate).await.expect("it is alive");
    source
}

fn generate(request: u64, tokens: u32, max_tokens: u32) -> Generate {
    Generate {
        request: RequestId(request),
        prompt: prompt(request, tokens).into(),
        max_tokens,
        sampling: Arc::default(),
        grammar: None,
        salt: None,
        ignore_eos: true,
        prompt_logprobs: None,
        sent: Instant::now(),
        deadline: Instant::now() + PATIENCE,
        route: Route::Auto,
        trace: None,
    }
}

/// Reads all tokens and the end. The tokens must be the ones that the prompt leads to.
async fn answer(mut source: AnswerEvents, request: u64, prompt_tokens: u32) -> Result<Timings, RequestError> {
    let mut tokens = prompt(request, prompt_tokens);
    loop {
        let event = tokio::time::timeout(PATIENCE, source.recv())
            .await
            .expect("in time")
            .expect("the stream has an end");
        match event {
            StreamEvent::Prompt(logprobs) => assert_eq!(logprobs, scores(&tokens)),
            StreamEvent::Token(token) => {
                assert_eq!(
                    token.id,
                    next_token(tokens.iter().copied()),
                    "request {request} at {}",
                    tokens.len()
                );
                tokens.push(token.id);
            }
            StreamEvent::Finished { reason, timings } => {
                assert_eq!(reason, FinishReason::Length);
                return Ok(*timings);
            }
            StreamEvent::Failed(error) => return Err(error),
        }
    }
}

#[actix::test]
async fn requests_of_any_length_pass_rings_of_any_size() {
    for ring_pages in [1, 2, 16] {
        let (receiver, sender, _) = pair(64, ring_pages).await;
        for (request, tokens) in [1, 3, 4, 5, 31, 32, 33, 100].into_iter().enumerate() {
            let source = ask(&receiver, request as u64, tokens, 9).await;
            let timings = answer(source, request as u64, tokens).await.expect("the request succeeds");
            assert!(timings.disaggregated, "{timings:?}");
            assert_eq!(timings.pages, tokens.div_ceil(PAGE_TOKENS));
        }
        sender.shut_down(PATIENCE).await;
        receiver.shut_down(PATIENCE).await;
    }
}

#[actix::test]
async fn many_concurrent_requests_on_a_small_pool() {
    let (receiver, _sender, _) = pair(40, 3).await;
    let mut sources = Vec::new();
    for request in 0..32 {
        let tokens = 1 + request as u32 * 7 % 90;
        sources.push((request, tokens, ask(&receiver, request, tokens, 5).await));
    }
    for (request, tokens, source) in sources {
        let timings = answer(source, request, tokens).await.expect("the request succeeds");
        assert!(timings.disaggregated);
    }
    assert!(receiver.streams.is_empty());
}

#[actix::test]
async fn more_sequences_than_rows_in_a_step_all_finish() {
    let (receiver, _sender, _) = pair(200, 3).await;
    let mut sources = Vec::new();
    for request in 0..4 * u64::from(ROWS) {
        sources.push((request, ask(&receiver, request, 6, 30).await));
    }
    for (request, source) in sources {
        answer(source, request, 6).await.expect("the request succeeds");
    }
    assert_eq!(receiver.counters.engine_failures().load(Ordering::SeqCst), 0);
}

#[actix::test]
async fn a_client_that_leaves_frees_its_pages() {
    let (receiver, _sender, _) = pair(40, 3).await;
    for request in 0..40 {
        // Each request needs more than half of the pool, so a leaked page would block the next request.
        let source = ask(&receiver, request, 90, 40).await;
        if request % 2 == 0 {
            drop(source);
        } else {
            receiver.abort().do_send(AbortRequest::cancelled(RequestId(request)));
            let error = answer(source, request, 90).await.expect_err("it was aborted");
            assert_eq!(error, RequestError::Aborted);
        }
        receiver.streams.close(RequestId(request));
    }
    let timings = answer(ask(&receiver, 99, 90, 40).await, 99, 90).await.expect("the request succeeds");
    assert!(timings.disaggregated);
}

#[actix::test]
async fn a_bit_flip_in_a_landed_page_is_detected_and_changes_no_token() {
    let damage = Damage::default();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("the socket is bound").to_string();
    let receiver = start_with(receiver_at(listener), 64, 2, &damage);
    let sender = start_with(sender_to(address), 64, 1, &damage);
    until("both are ready", || receiver.peers() == 1 && sender.peers() == 1).await;
    let counters = receiver.counters.clone();
    for request in 0..10 {
        until("both are ready", || receiver.peers() == 1 && sender.peers() == 1).await;
        damage.armed.store(request % 2 == 0, Ordering::SeqCst);
        let timings =
            answer(ask(&receiver, request, 60, 5).await, request, 60).await.expect("the request succeeds");
        assert_eq!(timings.disaggregated, request % 2 == 1, "{timings:?}");
        assert_eq!(counters.hash_mismatches().load(Ordering::SeqCst), request / 2 + 1);
        assert_eq!(counters.recomputes().load(Ordering::SeqCst), request / 2 + 1);
        let ended = || counters.sessions_ended().load(Ordering::SeqCst);
        until("the session that it came in is over", || ended() == request / 2 + 1).await;
    }
}

#[actix::test]
async fn requests_fail_with_a_reason_when_the_drain_limit_passes() {
    let (receiver, _sender, _) = pair(1000, 2).await;
    let source = ask(&receiver, 1, 60, 3000).await;
    receiver.shut_down(Duration::ZERO).await;
    assert_eq!(answer(source, 1, 60).await, Err(RequestError::ShuttingDown));
}
