//! A frontend on a free port, with an actor behind it that plays a script in place of the proxy.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler, System};
use actix_web::dev::ServerHandle;
use actors::request::{
    AbortRequest, FinishReason, Generate, Refused, RequestError, RequestId, Route, StreamEvent, Timings,
};
use actors::streams::Streams;
use engine::{Logprobs, Token};
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};
use ureq::http::Response;
use ureq::{Agent, Body};

use super::super::model_text::ModelText;
use super::super::model_text::testing::{EOS, bytes_model};
use super::super::{
    Admission, Bounds, CacheInfo, Frontend, Health, HealthState, InputMemory, Limits, Observed, ServedModel,
    bind,
};

/// Longest wait for anything that must happen.
pub(super) const WAIT: Duration = Duration::from_secs(20);

/// How many answers the server under test computes at once.
pub(super) const PERMITS: usize = 2;

/// What the actor does with a request.
#[derive(Clone, Debug)]
pub(super) enum Script {
    /// Says the prompt over and over.
    Echo,
    /// Says these tokens over and over.
    Tokens(Vec<u32>),
    /// Says this many tokens, then nothing more.
    Hold(u32),
    /// Says this many tokens, then fails.
    Fail(u32, RequestError),
    /// Does not take the request.
    Refuse(Refused),
    /// Takes the request and drops its sink.
    Forget,
}

/// What a test wants of the server.
pub(super) struct Setup {
    pub(super) script: Script,
    pub(super) deadline: Duration,
    pub(super) limits: Limits,
    pub(super) api_key: Option<String>,
    pub(super) context_tokens: u32,
    /// How many requests may wait.
    pub(super) queue: usize,
    /// Its budget for what clients send.
    pub(super) input_bytes: usize,
    /// Size of its sockets' send buffers, if not the system's.
    pub(super) send_bytes: Option<usize>,
}

impl Setup {
    pub(super) fn new(script: Script) -> Self {
        let deadline = Duration::from_secs(600);
        Self {
            script,
            deadline,
            limits: Limits::default(),
            api_key: None,
            context_tokens: 64,
            queue: 8,
            input_bytes: 64 << 20,
            send_bytes: None,
        }
    }
}

struct Echo {
    script: Script,
    streams: Streams,
    accepted: mpsc::Sender<RequestId>,
    aborts: mpsc::Sender<RequestId>,
}

impl Actor for Echo {
    type Context = Context<Self>;
}

impl Handler<Generate> for Echo {
    type Result = ();

    fn handle(&mut self, ask: Generate, _: &mut Context<Self>) {
        let request = ask.request;
        let say = |tokens: &[u32]| {
            let mut said = 0;
            for token in tokens.iter().cycle() {
                said += 1;
                let told = |_| Logprobs { sampled: -0.5, rank: 1, top: vec![(*token, -0.5)] };
                let logprobs = ask.sampling.logprobs.map(told).map(Box::new);
                self.streams.token(request, Token { id: *token, logprobs });
                let stop = *token == EOS && !ask.ignore_eos;
                if stop || said == ask.max_tokens {
                    let reason = if stop { FinishReason::Stop } else { FinishReason::Length };
                    let timings = Timings {
                        prompt_tokens: ask.prompt.len() as u32,
                        completion_tokens: said,
                        bytes: 4_000_000,
                        transfer_ms: 2.0,
                        decode_ms: 10.0,
                        ..Timings::default()
                    };
                    let timings = Box::new(timings);
                    self.streams.end(request, StreamEvent::Finished { reason, timings });
                    return;
                }
            }
        };
        let some = |tokens: u32| (0..tokens).for_each(|_| assert!(self.streams.token(request, 97.into())));
        match &self.script {
            Script::Echo => say(&ask.prompt),
            Script::Tokens(tokens) => say(tokens),
            Script::Hold(tokens) => some(*tokens),
            Script::Fail(tokens, error) => {
                some(*tokens);
                self.streams.end(request, StreamEvent::Failed(error.clone()));
            }
            Script::Refuse(refused) => {
                self.streams.end(request, StreamEvent::Failed(refused.clone().into()));
                return;
            }
            Script::Forget => self.streams.close(request),
        }
        let _ = self.accepted.send(request);
    }
}

impl Handler<AbortRequest> for Echo {
    type Result = ();

    fn handle(&mut self, abort: AbortRequest, _: &mut Context<Self>) {
        let AbortRequest { request, complete_with } = abort;
        if let Some(completion_tokens) = complete_with {
            let (reason, timings) = (FinishReason::Stop, Timings { completion_tokens, ..Timings::default() });
            let timings = Box::new(timings);
            self.streams.end(request, StreamEvent::Finished { reason, timings });
        }
        let _ = self.aborts.send(request);
    }
}

/// A running frontend; stops when dropped.
pub(super) struct Server {
    address: SocketAddr,
    /// The socket on which it listens.
    pub(super) listener: TcpListener,
    agent: Agent,
    handle: ServerHandle,
    thread: Option<JoinHandle<()>>,
    /// Requests that the actor took.
    pub(super) accepted: mpsc::Receiver<RequestId>,
    /// Requests that the actor was told to end.
    pub(super) aborts: mpsc::Receiver<RequestId>,
    pub(super) streams: Streams,
    pub(super) admission: Admission,
    pub(super) memory: InputMemory,
    /// Why `/health` says that the process cannot serve.
    pub(super) down: Arc<Mutex<Option<String>>>,
}

impl Server {
    pub(super) fn start(script: Script) -> Self {
        Self::start_with(Setup::new(script))
    }

    pub(super) fn start_with(setup: Setup) -> Self {
        let Setup { script, deadline, limits, api_key, context_tokens, queue, input_bytes, send_bytes } =
            setup;
        let streams = Streams::default();
        let bounds = Bounds { concurrency: PERMITS, queue, queue_bytes: 1 << 20 };
        let (admission, memory) = (Admission::new(bounds), InputMemory::new(input_bytes, 2));
        let behind_memory = memory.clone();
        let down = Arc::new(Mutex::new(None::<String>));
        let (accept, accepted) = mpsc::channel();
        let (abort, aborts) = mpsc::channel();
        let (ready, started) = mpsc::channel();
        let echo = Echo { script, streams: streams.clone(), accepted: accept, aborts: abort };
        let (behind_streams, behind_admission, behind_down) =
            (streams.clone(), admission.clone(), down.clone());
        let thread = std::thread::spawn(move || {
            System::new().block_on(async move {
                let echo = echo.start();
                let text = ModelText { context_tokens, ..bytes_model() };
                let cache = CacheInfo {
                    page_tokens: 16,
                    dtype: "f32".to_owned(),
                    prefix_cache: true,
                    memory_utilization: 0.9,
                };
                let model = ServedModel::new(Path::new("/m/m.gguf"), &text, None).unwrap();
                let frontend = Frontend {
                    generate: echo.clone().recipient(),
                    abort: echo.recipient(),
                    streams: behind_streams,
                    model: Arc::new(model),
                    route: Route::Auto,
                    deadline,
                    observed: Arc::new(Observed::new("m", cache)),
                    api_key,
                    limits,
                    admission: behind_admission,
                    memory: behind_memory,
                    health: Arc::new(move || Health {
                        state: match behind_down.lock().unwrap().clone() {
                            None => HealthState::Ok,
                            Some(reason) => HealthState::Down { reason },
                        },
                        role: "local",
                        peers: 0,
                        live_requests: 0,
                    }),
                    metrics: Arc::new(|| "baton_pages 1\n".to_owned()),
                    drain: Duration::from_secs(1),
                };
                let listener = bind("frontend.port", "127.0.0.1", 0).unwrap();
                let address = listener.local_addr().unwrap();
                if let Some(bytes) = send_bytes {
                    SockRef::from(&listener).set_send_buffer_size(bytes).unwrap();
                }
                let same = listener.try_clone().unwrap();
                let server = frontend.serve(listener, 1).unwrap();
                ready.send((address, same, server.handle())).unwrap();
                server.await.unwrap();
            });
        });
        let (address, listener, handle) = started.recv_timeout(WAIT).expect("the server starts");
        let agent =
            Agent::config_builder().http_status_as_error(false).timeout_global(Some(WAIT)).build().into();
        let thread = Some(thread);
        Self { address, listener, agent, handle, thread, accepted, aborts, streams, admission, memory, down }
    }

    pub(super) fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(WAIT)).unwrap();
        client
    }

    /// A connection that has sent a whole request to complete "a".
    pub(super) fn ask(&self, more: &str) -> TcpStream {
        self.ask_over(self.connect(), more)
    }

    /// The same with a receive buffer of this size.
    pub(super) fn ask_with_room(&self, bytes: usize, more: &str) -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(bytes).unwrap();
        socket.set_read_timeout(Some(WAIT)).unwrap();
        socket.connect(&self.address.into()).unwrap();
        self.ask_over(socket.into(), more)
    }

    fn ask_over(&self, mut client: TcpStream, more: &str) -> TcpStream {
        let body = format!(r#"{{"prompt": "a"{more}}}"#);
        let length = body.len();
        write!(client, "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}")
            .unwrap();
        client
    }

    pub(super) fn send(&self, path: &str, body: &str, content_type: Option<&str>) -> Response<Body> {
        let mut request =
            self.agent.post(format!("http://{}{path}", self.address)).header("x-request-id", "t");
        if let Some(content_type) = content_type {
            request = request.content_type(content_type);
        }
        request.send(body.as_bytes()).unwrap()
    }

    pub(super) fn post_as(&self, path: &str, body: &str, content_type: Option<&str>) -> (u16, String) {
        let mut response = self.send(path, body, content_type);
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    pub(super) fn post(&self, path: &str, body: &str) -> (u16, String) {
        self.post_as(path, body, Some("application/json"))
    }

    pub(super) fn post_with_key(&self, path: &str, body: &str, key: Option<&str>) -> (u16, String) {
        let mut request =
            self.agent.post(format!("http://{}{path}", self.address)).content_type("application/json");
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.send(body.as_bytes()).unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    pub(super) fn get(&self, path: &str) -> (u16, String) {
        let mut response = self.agent.get(format!("http://{}{path}", self.address)).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    /// Posts a body that must be refused; `field` is empty if no field is at fault.
    pub(super) fn refused(&self, path: &str, body: &str, status: u16, field: &str, words: &str) {
        let (got, text) = self.post(path, body);
        assert_eq!(got, status, "{text}");
        let error = serde_json::from_str::<Value>(&text).unwrap()["error"].clone();
        assert_eq!(error["param"].as_str().unwrap_or_default(), field, "{text}");
        assert_eq!(error["code"], status, "{text}");
        assert!(error["message"].as_str().unwrap().contains(words), "{text}");
    }

    /// Waits until so many answers run, and so many of requests wait.
    pub(super) fn until(&self, running: usize, waiting: usize) {
        let end = Instant::now() + WAIT;
        loop {
            let now = (self.admission.running(), self.admission.waiting());
            if now == (running, waiting) {
                return;
            }
            assert!(Instant::now() < end, "{now:?} run and wait, not {running} and {waiting}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until no request holds a permit or a place.
    pub(super) fn all_permits_return(&self) {
        self.until(0, 0);
    }

    /// Waits until so many bytes of the budget are in use, or more.
    pub(super) fn until_used(&self, bytes: std::ops::RangeInclusive<usize>) {
        let end = Instant::now() + WAIT;
        while !bytes.contains(&self.memory.used()) {
            assert!(Instant::now() < end, "{} bytes are in use, not {bytes:?}", self.memory.used());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Told to stop at once; the thread ends when the server has.
        drop(self.handle.stop(false));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
