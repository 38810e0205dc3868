//! A frontend on a free port. A scripted actor takes the place of the proxy.

use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler, Recipient, System};
use actix_web::dev::ServerHandle;
use actors::counters::Counters;
use actors::grammar::{CompiledGrammar, GrammarCompiler, GrammarError, GrammarSource};
use actors::peer_metrics::PeerMetrics;
use actors::request::{
    AbortOutcome, AbortRequest, FinishReason, Generate, Refused, RequestError, RequestId, Route, StreamEvent,
    Timings,
};
use actors::streams::Streams;
use common::metrics::{Metric, MetricsText};
use engine::{Logprobs, Token};
use socket2::SockRef;

use super::super::model_text::ModelText;
use super::super::model_text::testing::{EOS, bytes_model};
use super::super::{
    Admission, Bounds, CacheInfo, DrainControl, Frontend, Grammars, Health, HealthState, InputMemory,
    LeftWork, Limits, LivePage, NodeReport, Observed, ServedModel, bind,
};
use super::http::{HttpClient, WAIT};
use crate::drain::Drain;
use crate::grammar::testing::Nothing;
use crate::traces::Traces;

/// Answers that the server computes at once.
pub(super) const PERMITS: usize = 2;

/// The reaction of the actor to a request.
#[derive(Clone, Debug)]
pub(super) enum Script {
    /// Answers with the prompt, repeated.
    Echo,
    /// Answers with these tokens, repeated.
    Tokens(Vec<u32>),
    /// Sends this many tokens and does not end.
    Hold(u32),
    /// Sends this many tokens, then fails.
    Fail(u32, RequestError),
    /// Refuses the request.
    Refuse(Refused),
    /// Takes the request and drops its sink.
    Forget,
}

/// Compiles any source, except for some regular expressions. Remembers nothing.
pub(super) struct ScriptedCompiler;

impl GrammarCompiler for ScriptedCompiler {
    fn compile(&self, source: &GrammarSource) -> Result<CompiledGrammar, GrammarError> {
        match source.text() {
            "panic" => panic!("on purpose"),
            "slow" => std::thread::sleep(Duration::from_secs(5)),
            "bad" => return Err(GrammarError::Invalid("it is bad".to_owned())),
            "busy" => return Err(GrammarError::Busy("all threads compile".to_owned())),
            _ => {}
        }
        Ok(Nothing::compiled(source))
    }
}

/// The settings of a server.
pub(super) struct Setup {
    pub(super) script: Script,
    pub(super) deadline: Duration,
    pub(super) limits: Limits,
    pub(super) api_key: Option<String>,
    pub(super) context_tokens: u32,
    /// Requests that may wait.
    pub(super) queue: usize,
    /// Memory for what clients send.
    pub(super) input_bytes: usize,
    /// Size of the sockets' send buffers; `None` for the system's.
    pub(super) send_bytes: Option<usize>,
    /// Whether clients may name the prefiller.
    pub(super) trusts_header: bool,
    /// The answer of `/node`; `None` if the port does not serve it.
    pub(super) node: Option<NodeReport>,
    /// Whether the port has the live page.
    pub(super) page: bool,
    /// The drain that `/admin/drain` controls; `None` if the port does not serve it.
    pub(super) drain: Option<Drain>,
    /// The chat template; `None` for that of [`bytes_model`].
    pub(super) template: Option<&'static str>,
    /// Further special tokens. The first one has the id 262.
    pub(super) special: &'static [&'static str],
}

impl Setup {
    pub(super) fn new(script: Script) -> Self {
        Self {
            script,
            deadline: Duration::from_secs(600),
            limits: Limits::default(),
            api_key: None,
            context_tokens: 64,
            queue: 8,
            input_bytes: 64 << 20,
            send_bytes: None,
            trusts_header: false,
            node: None,
            page: true,
            drain: None,
            template: None,
            special: &[],
        }
    }
}

/// The actor that takes requests.
struct ScriptedProxy {
    script: Script,
    streams: Streams,
    accepted: mpsc::Sender<Generate>,
    aborts: mpsc::Sender<RequestId>,
    grammars: Arc<Mutex<Vec<Option<CompiledGrammar>>>>,
}

impl ScriptedProxy {
    /// Answers with `tokens`, repeated up to the request's end.
    fn answer(&self, generate: &Generate, tokens: &[u32]) {
        if let Some(top) = generate.prompt_logprobs {
            self.streams.batch().prompt(generate.request, prompt_logprobs(&generate.prompt, top));
        }
        let mut sent = 0;
        for token in tokens.iter().cycle() {
            sent += 1;
            let logprobs = |_| Logprobs { sampled: -0.5, rank: 1, top: vec![(*token, -0.5)] };
            let logprobs = generate.sampling.logprobs.map(logprobs).map(Box::new);
            self.streams.batch().token(generate.request, Token { id: *token, logprobs });
            let is_stop = *token == EOS && !generate.ignore_eos;
            if is_stop || sent == generate.max_tokens {
                let reason = if is_stop { FinishReason::Stop } else { FinishReason::Length };
                let timings = Timings {
                    prompt_tokens: generate.prompt.len() as u32,
                    cached_tokens: generate.prompt.len() as u32 - 1,
                    completion_tokens: sent,
                    bytes: 4_000_000,
                    transfer_ms: 2.0,
                    decode_ms: 10.0,
                    ..Timings::default()
                };
                let end = StreamEvent::Finished { reason, timings: Box::new(timings) };
                self.streams.batch().end(generate.request, end);
                return;
            }
        }
    }
}

/// The log probabilities of all tokens of a prompt but the first. The prompt's token at place *n* has -*n* and rank *n* + 1. The most
/// probable tokens are "z", "y" and so on, with -0.25, -0.5 and so on.
fn prompt_logprobs(prompt: &[u32], top: u32) -> Vec<Logprobs> {
    let most = |rank: u32| (u32::from(b'z') - rank, -0.25 * (rank + 1) as f32);
    let at = |place: usize| Logprobs {
        sampled: -(place as f32),
        rank: place as u32 + 1,
        top: (0..top).map(most).collect(),
    };
    (1..prompt.len()).map(at).collect()
}

impl Actor for ScriptedProxy {
    type Context = Context<Self>;
}

impl Handler<Generate> for ScriptedProxy {
    type Result = ();

    fn handle(&mut self, generate: Generate, _: &mut Context<Self>) {
        let request = generate.request;
        self.grammars.lock().unwrap().push(generate.grammar.clone());
        let send =
            |tokens: u32| (0..tokens).for_each(|_| assert!(self.streams.batch().token(request, 97.into())));
        match &self.script {
            Script::Echo => self.answer(&generate, &generate.prompt),
            Script::Tokens(tokens) => self.answer(&generate, tokens),
            Script::Hold(tokens) => send(*tokens),
            Script::Fail(tokens, error) => {
                send(*tokens);
                self.streams.batch().end(request, StreamEvent::Failed(error.clone()));
            }
            Script::Refuse(refused) => {
                self.streams.batch().end(request, StreamEvent::Failed(refused.clone().into()));
                return;
            }
            Script::Forget => self.streams.close(request),
        }
        let _ = self.accepted.send(generate);
    }
}

impl Handler<AbortRequest> for ScriptedProxy {
    type Result = ();

    fn handle(&mut self, abort: AbortRequest, _: &mut Context<Self>) {
        let AbortRequest { request, outcome } = abort;
        if let AbortOutcome::Completed { tokens: completion_tokens } = outcome {
            let timings = Timings { completion_tokens, ..Timings::default() };
            let end = StreamEvent::Finished { reason: FinishReason::Stop, timings: Box::new(timings) };
            self.streams.batch().end(request, end);
        }
        let _ = self.aborts.send(request);
    }
}

/// A running frontend. Stops when dropped.
pub(super) struct Server {
    pub(super) http: HttpClient,
    /// The socket on which it listens.
    pub(super) listener: TcpListener,
    handle: ServerHandle,
    thread: Option<JoinHandle<()>>,
    /// Requests that the actor took.
    pub(super) accepted: mpsc::Receiver<Generate>,
    /// Requests that the actor was told to end.
    pub(super) aborts: mpsc::Receiver<RequestId>,
    pub(super) shared: Shared,
}

/// The parts of a server that tests look at.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) streams: Streams,
    pub(super) admission: Admission,
    pub(super) memory: InputMemory,
    /// The state that `/health` reports.
    pub(super) state: Arc<Mutex<HealthState>>,
    pub(super) observed: Arc<Observed>,
    pub(super) counters: Counters,
    /// The grammars of the requests that the actor saw.
    pub(super) grammars: Arc<Mutex<Vec<Option<CompiledGrammar>>>>,
}

impl Server {
    pub(super) fn start(script: Script) -> Self {
        Self::start_with(Setup::new(script))
    }

    pub(super) fn start_with(setup: Setup) -> Self {
        let bounds = Bounds { concurrency: PERMITS, queue: setup.queue, queue_bytes: 1 << 20 };
        let cache = CacheInfo {
            page_tokens: 16,
            request_pages: 64,
            dtype: "f32".to_owned(),
            prefix_cache: true,
            memory_utilization: 0.9,
        };
        let shared = Shared {
            streams: Streams::default(),
            admission: Admission::new(bounds),
            memory: InputMemory::new(setup.input_bytes, 2),
            state: Arc::new(Mutex::new(HealthState::Ok)),
            observed: Arc::new(Observed::new("m", cache, 4)),
            counters: Counters::default(),
            grammars: Arc::default(),
        };
        let listener = bind("frontend.port", "127.0.0.1", 0).unwrap();
        if let Some(bytes) = setup.send_bytes {
            SockRef::from(&listener).set_send_buffer_size(bytes).unwrap();
        }
        let http = HttpClient::new(listener.local_addr().unwrap());
        let (accept, accepted) = mpsc::channel();
        let (abort, aborts) = mpsc::channel();
        let (ready, started) = mpsc::channel();
        let (parts, socket) = (shared.clone(), listener.try_clone().unwrap());
        let thread = std::thread::spawn(move || {
            System::new().block_on(async move {
                let (script, streams) = (setup.script.clone(), parts.streams.clone());
                let grammars = Arc::clone(&parts.grammars);
                let proxy =
                    ScriptedProxy { script, streams, accepted: accept, aborts: abort, grammars }.start();
                let frontend = frontend(setup, parts, proxy.clone().recipient(), proxy.recipient());
                let server = frontend.serve(socket, 1).unwrap();
                ready.send(server.handle()).unwrap();
                server.await.unwrap();
            });
        });
        let handle = started.recv_timeout(WAIT).expect("the server starts");
        Self { http, listener, handle, thread: Some(thread), accepted, aborts, shared }
    }

    /// Waits until the actor takes a request.
    pub(super) fn next_request(&self) -> RequestId {
        self.accepted.recv_timeout(WAIT).expect("a request arrives").request
    }

    /// Ends a request that the actor took.
    pub(super) fn finish(&self, request: RequestId) {
        let end = StreamEvent::Finished { reason: FinishReason::Length, timings: Box::default() };
        assert!(self.shared.streams.batch().end(request, end));
    }

    /// Waits until this many answers run and this many wait.
    pub(super) fn until(&self, running: usize, waiting: usize) {
        let admission = &self.shared.admission;
        poll((running, waiting), || (admission.running(), admission.waiting()), |now, wanted| now == wanted);
    }

    /// Waits until no request holds a permit or a place in the queue.
    pub(super) fn all_permits_return(&self) {
        self.until(0, 0);
    }

    /// Waits until the used bytes of the input memory are in this range.
    pub(super) fn until_used(&self, bytes: std::ops::RangeInclusive<usize>) {
        poll(bytes, || self.shared.memory.used(), |used, bytes| bytes.contains(used));
    }
}

/// Waits until `now` fits `wanted`.
fn poll<W: std::fmt::Debug, N: std::fmt::Debug>(wanted: W, now: impl Fn() -> N, fits: fn(&N, &W) -> bool) {
    let end = Instant::now() + WAIT;
    loop {
        let found = now();
        if fits(&found, &wanted) {
            return;
        }
        assert!(Instant::now() < end, "{found:?}, not {wanted:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn frontend(
    setup: Setup,
    shared: Shared,
    generate: Recipient<Generate>,
    abort: Recipient<AbortRequest>,
) -> Frontend {
    let mut text = ModelText { context_tokens: setup.context_tokens, ..bytes_model() };
    text.chat_template = setup.template.map(str::to_owned).or(text.chat_template);
    text.tokens.extend(setup.special.iter().map(|token| (*token).to_owned()));
    text.token_types.resize(text.tokens.len(), 3);
    let Shared { streams, admission, memory, state, observed, counters, .. } = shared;
    let live_drain = setup.drain.clone().unwrap_or_else(|| Drain::new(Duration::ZERO));
    let page = LivePage::new(counters.clone(), PeerMetrics::default(), 8, live_drain);
    let health = move || {
        let state = state.lock().unwrap().clone();
        Health { state, role: "local", peers: 0, live_requests: 0 }
    };
    Frontend {
        generate,
        abort,
        streams,
        model: Arc::new(ServedModel::new(Path::new("/m/m.gguf"), &text, None).unwrap()),
        grammars: Grammars::new(Arc::new(ScriptedCompiler)),
        route: Route::Auto,
        trusts_header: setup.trusts_header,
        deadline: setup.deadline,
        observed,
        traces: Traces::default(),
        api_key: setup.api_key,
        limits: setup.limits,
        tls: None,
        admission,
        memory,
        health: Arc::new(health),
        node: setup.node.map(|report| Arc::new(move || report.clone()) as _),
        page: setup.page.then_some(page),
        drain_control: setup.drain.map(|drain| DrainControl { drain, work: Arc::new(LeftWork::default) }),
        metrics: Arc::new(|page: &mut MetricsText| page.single(&Metric::gauge("baton_pages", "Pages."), 1)),
        drain: Duration::from_secs(1),
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // `stop` sends the command at once. The thread ends when the server has stopped.
        drop(self.handle.stop(false));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
