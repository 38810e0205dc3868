//! A sender and a receiver in one process: two nodes over the loopback transport and a real link, with an engine that needs
//! no model.
//!
//! The engine writes every token into its page and samples from what it *reads back* from the pages, so a page that did
//! not arrive, arrived too early, or stands in the wrong place gives a wrong token.

#[path = "pair/failing_engine.rs"]
mod failing_engine;

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::actors::node::{self, LinkConfig, LinkRole, Node, NodeConfig};
use ::actors::request::{FinishReason, Generate, RequestError, RequestId, Route, StreamEvent, Timings};
use ::actors::transfer::state::PAGES_IN_FLIGHT;
use connector::loopback::{LoopbackError, LoopbackTransport};
use connector::transport::{Command, Event, EventSink, SubmitError, Transport};
use engine::{
    Chunk, Engine, EngineError, KvDtype, KvLayout, KvPool, ModelInfo, PageId, SampledToken, Step, StepLimits,
    StepOutput, TokenSource,
};
use tokio::sync::mpsc::Receiver;

/// Longest wait in a test before it fails.
const PATIENCE: Duration = Duration::from_secs(60);
const PAGE_TOKENS: u32 = 4;
const VOCABULARY: u32 = 1000;
/// Rows that the engine takes in a step.
const ROWS: u32 = 5;

struct Echo {
    model: ModelInfo,
    pool: Arc<KvPool>,
    /// What the last step sampled: chunks of the next one may follow it.
    sampled: Vec<SampledToken>,
    error: Arc<Mutex<Option<EngineError>>>,
}

impl Echo {
    fn new(pages: u32, error: Arc<Mutex<Option<EngineError>>>) -> Self {
        let layout =
            KvLayout { layers: 1, kv_heads: 1, head_dim: 32, page_tokens: PAGE_TOKENS, dtype: KvDtype::F32 };
        let model = ModelInfo {
            name: "echo".into(),
            path: PathBuf::new(),
            fingerprint: [1; 32],
            context_tokens: 4096,
            vocabulary: VOCABULARY,
            eos_tokens: vec![0],
            parameters: 0,
        };
        let pool = Arc::new(KvPool::new(layout, pages).expect("a small pool"));
        Self { model, pool, sampled: Vec::new(), error }
    }

    /// The four bytes where the token of `position` stands.
    fn cell(&self, pages: &[PageId], position: u32) -> &[AtomicU8] {
        let page = pages[(position / PAGE_TOKENS) as usize];
        let page_bytes = self.pool.layout().page_bytes() as usize;
        let at = page.0 as usize * page_bytes + (position % PAGE_TOKENS) as usize * 128;
        &self.pool.cells().expect("on the host")[at..at + 4]
    }
}

/// What follows these tokens.
fn next_token(tokens: impl Iterator<Item = u32>) -> u32 {
    1 + tokens.fold(7u32, |hash, token| hash.wrapping_mul(31).wrapping_add(token)) % (VOCABULARY - 1)
}

impl Engine for Echo {
    fn model(&self) -> &ModelInfo {
        &self.model
    }

    fn kv(&self) -> &Arc<KvPool> {
        &self.pool
    }

    fn limits(&self) -> StepLimits {
        StepLimits { tokens: 64, rows: ROWS }
    }

    fn runs_ahead(&self) -> bool {
        true
    }

    fn submit(&mut self, batch: &[Chunk<'_>]) -> Result<Step, EngineError> {
        if let Some(error) = self.error.lock().expect("no panic").clone() {
            return Err(error);
        }
        let mut output = StepOutput::default();
        let rows = batch.iter().filter(|chunk| chunk.takes_row()).count() as u64;
        if rows > u64::from(ROWS) {
            return Err(EngineError::TooManyRows { rows, limit: ROWS });
        }
        for chunk in batch {
            let followed = self.sampled.iter().find(|sampled| sampled.sequence == chunk.sequence);
            let follows = chunk.source == TokenSource::Follows;
            let followed = followed.filter(|_| follows).map(|sampled| [sampled.token.id]);
            if follows && followed.is_none() {
                return Err(EngineError::FollowsNothing { sequence: chunk.sequence });
            }
            let tokens = followed.as_ref().map_or(chunk.tokens, |token| token);
            for (position, token) in (chunk.start..).zip(tokens) {
                let cell = self.cell(chunk.pages, position);
                cell.iter()
                    .zip(token.to_le_bytes())
                    .for_each(|(cell, byte)| cell.store(byte, Ordering::Relaxed));
            }
            if chunk.sample.is_some() {
                let end = chunk.start + chunk.tokens.len() as u32;
                let read = |position| {
                    let cell = self.cell(chunk.pages, position);
                    u32::from_le_bytes(std::array::from_fn(|n| cell[n].load(Ordering::Relaxed)))
                };
                let token = next_token((0..end).map(read));
                output.tokens.push(SampledToken { sequence: chunk.sequence, token: token.into() });
            }
        }
        self.sampled.clone_from(&output.tokens);
        Ok(Step::finished(output))
    }

    fn poll(&mut self, step: &mut Step) -> Result<Option<StepOutput>, EngineError> {
        Ok(step.take())
    }

    fn acquire(&mut self, _: &[PageId]) -> Result<(), EngineError> {
        Ok(())
    }
}

/// What is wrong with the lane and the engine. The lane flips a bit of the receiver's memory, when told to, in the last page put before a flush
/// is reported; and it may say that peers write by themselves. The engine fails every step with an error while there is one.
#[derive(Clone, Default)]
struct Damage {
    engine: Arc<Mutex<Option<EngineError>>>,
    foreign_writes: bool,
    armed: Arc<AtomicBool>,
    victim: Arc<std::sync::OnceLock<Arc<KvPool>>>,
    last_put: Arc<AtomicU64>,
}

impl Damage {
    fn on_flushed(&self) {
        if let (true, Some(pool)) = (self.armed.swap(false, Ordering::SeqCst), self.victim.get()) {
            let cells = pool.cells().expect("on the host");
            // The first token of the page; its lowest bit.
            cells[self.last_put.load(Ordering::SeqCst) as usize].fetch_xor(1, Ordering::SeqCst);
        }
    }
}

/// The loopback transport, seen by [`Damage`].
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

fn start(role: LinkRole, pages: u32, ring_pages: u64) -> Node {
    start_with(role, pages, ring_pages, &Damage::default())
}

fn start_with(role: LinkRole, pages: u32, ring_pages: u64, damage: &Damage) -> Node {
    let engine = Echo::new(pages, damage.engine.clone());
    let region = actors::pages::region(&engine.pool);
    if let LinkRole::Receiver(_) = role {
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
        let transport = LoopbackTransport::start(region, sink)?;
        Ok(Arc::new(Watched(transport, damage)) as Arc<dyn Transport>)
    });
    let link = Some(LinkConfig {
        role,
        secret: None,
        http: String::new(),
        ring_bytes,
        min_gigabytes_per_second: 0.0,
        pages_in_flight: PAGES_IN_FLIGHT,
        page_hash: true,
        transport,
    });
    let config = NodeConfig {
        engine: Box::new(engine),
        prefill_chunk_tokens: 8,
        prefix_cache: true,
        scattered: false,
        local_if_sooner_by: Duration::MAX,
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

/// A receiver, its address on the link, and a sender that is ready.
async fn pair(pages: u32, ring_pages: u64) -> (Node, Node, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let receiver = start(LinkRole::Receiver(listener), pages, ring_pages);
    let sender = dial(&receiver, &address, pages).await;
    (receiver, sender, address)
}

async fn dial(receiver: &Node, address: &str, pages: u32) -> Node {
    let sender = start(LinkRole::Sender(vec![address.to_owned()]), pages, 1);
    until("both are ready", || receiver.peers() == 1 && sender.peers() == 1).await;
    sender
}

fn prompt(request: u64, tokens: u32) -> Vec<u32> {
    (0..tokens).map(|n| (n * 17 + request as u32 * 5) % VOCABULARY).collect()
}

async fn ask(node: &Node, request: u64, tokens: u32, max_tokens: u32) -> Receiver<StreamEvent> {
    let request_id = RequestId(request);
    let source = node.streams.open(request_id, max_tokens, ());
    let generate = Generate {
        request: request_id,
        prompt: prompt(request, tokens).into(),
        max_tokens,
        sampling: Arc::default(),
        ignore_eos: true,
        deadline: Instant::now() + PATIENCE,
        route: Route::Auto,
    };
    node.generate().send(generate).await.expect("alive");
    source
}

/// All tokens and the end; they must be what the prompt alone would give.
async fn answer(
    mut source: Receiver<StreamEvent>,
    request: u64,
    prompt_tokens: u32,
) -> Result<Timings, RequestError> {
    let mut tokens = prompt(request, prompt_tokens);
    loop {
        let event = tokio::time::timeout(PATIENCE, source.recv()).await.expect("in time").expect("an end");
        match event {
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
async fn requests_of_any_length_come_through_rings_of_any_size() {
    for ring_pages in [1, 2, 16] {
        let (receiver, sender, _) = pair(64, ring_pages).await;
        for (request, tokens) in [1, 3, 4, 5, 31, 32, 33, 100].into_iter().enumerate() {
            let source = ask(&receiver, request as u64, tokens, 9).await;
            let timings = answer(source, request as u64, tokens).await.expect("it goes well");
            assert!(timings.disaggregated, "{timings:?}");
            assert_eq!(timings.pages, tokens.div_ceil(PAGE_TOKENS));
        }
        sender.shut_down(PATIENCE).await;
        receiver.shut_down(PATIENCE).await;
    }
}

#[actix::test]
async fn many_requests_at_once_on_a_pool_that_holds_a_few() {
    let (receiver, _sender, _) = pair(40, 3).await;
    let mut sources = Vec::new();
    for request in 0..32 {
        let tokens = 1 + request as u32 * 7 % 90;
        sources.push((request, tokens, ask(&receiver, request, tokens, 5).await));
    }
    for (request, tokens, source) in sources {
        let timings = answer(source, request, tokens).await.expect("it goes well");
        assert!(timings.disaggregated);
    }
    assert!(receiver.streams.is_empty());
}

#[actix::test]
async fn more_sequences_than_a_step_has_rows_all_get_their_tokens() {
    let (receiver, _sender, _) = pair(200, 3).await;
    let mut sources = Vec::new();
    for request in 0..4 * u64::from(ROWS) {
        sources.push((request, ask(&receiver, request, 6, 30).await));
    }
    for (request, source) in sources {
        answer(source, request, 6).await.expect("it goes well");
    }
    assert_eq!(receiver.counters.engine_failures().load(Ordering::SeqCst), 0);
}

#[actix::test]
async fn a_client_that_leaves_frees_everything() {
    let (receiver, _sender, _) = pair(40, 3).await;
    for request in 0..40 {
        // Each needs more than half of the pool: a page that leaked would stop the next one.
        let source = ask(&receiver, request, 90, 40).await;
        if request % 2 == 0 {
            drop(source);
        } else {
            receiver.abort().do_send(::actors::request::AbortRequest {
                request: RequestId(request),
                complete_with: None,
            });
            let error = answer(source, request, 90).await.expect_err("it was aborted");
            assert_eq!(error, RequestError::Aborted);
        }
        receiver.streams.close(RequestId(request));
    }
    let timings = answer(ask(&receiver, 99, 90, 40).await, 99, 90).await.expect("it goes well");
    assert!(timings.disaggregated);
}

#[actix::test]
async fn a_sender_that_ends_costs_no_request_and_another_takes_over() {
    let (receiver, sender, address) = pair(64, 2).await;
    let mut sources = Vec::new();
    for request in 0..8 {
        sources.push((request, ask(&receiver, request, 60, 5).await));
    }
    sender.shut_down(Duration::ZERO).await;
    for (request, source) in sources {
        answer(source, request, 60).await.expect("prefilled there or here");
    }
    until("the receiver has noticed", || receiver.peers() == 0).await;
    let timings = answer(ask(&receiver, 10, 60, 5).await, 10, 60).await.expect("it goes well");
    assert!(!timings.disaggregated);
    let _sender = dial(&receiver, &address, 64).await;
    let timings = answer(ask(&receiver, 11, 60, 5).await, 11, 60).await.expect("it goes well");
    assert!(timings.disaggregated);
}

#[actix::test]
async fn a_sender_that_is_told_to_end_finishes_its_hand_overs_and_another_goes_on() {
    let (receiver, first, address) = pair(64, 4).await;
    let second = start(LinkRole::Sender(vec![address]), 64, 1);
    until("both senders are ready", || receiver.peers() == 2).await;
    let mut sources = Vec::new();
    for request in 0..16 {
        sources.push((request, ask(&receiver, request, 60, 5).await));
    }
    until("the first has work", || first.counters.prefills_live().load(Ordering::SeqCst) > 0).await;
    until("the second has work", || second.counters.prefills_live().load(Ordering::SeqCst) > 0).await;
    first.shut_down(PATIENCE).await;
    for request in 16..20 {
        sources.push((request, ask(&receiver, request, 60, 5).await));
    }
    let mut recomputed = 0;
    for (request, source) in sources {
        recomputed += u64::from(!answer(source, request, 60).await.expect("it goes well").disaggregated);
    }
    // Only what had not reached the first sender before it began to end was computed here.
    assert_eq!(recomputed, receiver.counters.recomputes().load(Ordering::SeqCst));
    assert!(recomputed < 8, "{recomputed} of the 8 requests of the first sender were cut");
    assert_eq!(receiver.peers(), 1);
}

/// Passes connections on to `address` until told to cut them all; then takes new ones.
async fn pass_on(address: String, cut: Arc<tokio::sync::Notify>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let ours = listener.local_addr().expect("bound").to_string();
    actix::spawn(async move {
        loop {
            let (mut inner, _) = listener.accept().await.expect("a connection");
            let (address, cut) = (address.clone(), cut.clone());
            actix::spawn(async move {
                let mut outer = tokio::net::TcpStream::connect(address).await.expect("the receiver listens");
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut inner, &mut outer) => {}
                    () = cut.notified() => {}
                }
            });
        }
    });
    ours
}

#[actix::test]
async fn a_lost_sender_without_proof_disables_no_other_sender() {
    let foreign = Damage { foreign_writes: true, ..Damage::default() };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let receiver = start_with(LinkRole::Receiver(listener), 64, 4, &foreign);
    let quarantined = || receiver.counters.pages_quarantined().load(Ordering::SeqCst);
    // A sender that ends without dialling again gives no proof, and its process lives: ours.
    let mute = start(LinkRole::Sender(vec![address.clone()]), 64, 1);
    until("it is ready", || receiver.peers() == 1).await;
    mute.shut_down(PATIENCE).await;
    until("its pages are set aside", || quarantined() == 4).await;
    // They count against the pool and not against the ring: another sender serves as before.
    let next = dial(&receiver, &address, 64).await;
    for request in 0..3 {
        let timings = answer(ask(&receiver, request, 60, 5).await, request, 60).await.expect("it goes well");
        assert!(timings.disaggregated && quarantined() == 4, "{timings:?}");
    }
    next.shut_down(PATIENCE).await;
    receiver.shut_down(PATIENCE).await;
}

#[actix::test]
async fn a_sender_that_dials_again_proves_that_its_last_session_has_drained() {
    let foreign = Damage { foreign_writes: true, ..Damage::default() };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let receiver = start_with(LinkRole::Receiver(listener), 64, 4, &foreign);
    let quarantined = || receiver.counters.pages_quarantined().load(Ordering::SeqCst);
    let cut = Arc::new(tokio::sync::Notify::new());
    let address = pass_on(address, cut.clone()).await;
    let sender = start(LinkRole::Sender(vec![address]), 64, 1);
    for request in 0..5 {
        until("both are ready", || receiver.peers() == 1 && sender.peers() == 1).await;
        let timings = answer(ask(&receiver, request, 60, 5).await, request, 60).await.expect("it goes well");
        assert!(timings.disaggregated, "the sender dialled again and said that it had drained");
        assert_eq!(quarantined(), 0);
        let source = ask(&receiver, 100 + request, 60, 5).await;
        cut.notify_waiters();
        answer(source, 100 + request, 60).await.expect("prefilled there or here");
        until("the cut is seen", || receiver.counters.sessions_ended().load(Ordering::SeqCst) == request + 1)
            .await;
    }
}

#[actix::test]
async fn a_bit_that_flips_in_a_landed_page_is_seen_and_changes_no_word() {
    let damage = Damage::default();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let receiver = start_with(LinkRole::Receiver(listener), 64, 2, &damage);
    let sender = start_with(LinkRole::Sender(vec![address]), 64, 1, &damage);
    until("both are ready", || receiver.peers() == 1 && sender.peers() == 1).await;
    let counters = receiver.counters.clone();
    for request in 0..10 {
        until("both are ready", || receiver.peers() == 1 && sender.peers() == 1).await;
        damage.armed.store(request % 2 == 0, Ordering::SeqCst);
        let timings = answer(ask(&receiver, request, 60, 5).await, request, 60).await.expect("it goes well");
        assert_eq!(timings.disaggregated, request % 2 == 1, "{timings:?}");
        assert_eq!(counters.hash_mismatches().load(Ordering::SeqCst), request / 2 + 1);
        assert_eq!(counters.recomputes().load(Ordering::SeqCst), request / 2 + 1);
        let ended = || counters.sessions_ended().load(Ordering::SeqCst);
        until("the session that it came in is over", || ended() == request / 2 + 1).await;
    }
}

#[actix::test]
async fn a_drain_limit_that_passes_ends_requests_with_a_word() {
    let (receiver, _sender, _) = pair(1000, 2).await;
    let source = ask(&receiver, 1, 60, 3000).await;
    receiver.shut_down(Duration::ZERO).await;
    assert_eq!(answer(source, 1, 60).await, Err(RequestError::ShuttingDown));
}
