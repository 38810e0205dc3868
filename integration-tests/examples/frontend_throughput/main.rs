//! The cost of the frontend per request. Measures the frontend with an echo instead of the proxy, and a bare actix-web handler that parses the
//! same JSON, alternately in one run.
//!
//! ```text
//! cargo run --release -p integration-tests --example frontend_throughput -- [SECONDS] [CONNECTIONS]
//! cargo run --release -p integration-tests --example frontend_throughput -- --instructions [REQUESTS]
//! ```
//! With `--instructions` it counts instructions instead, without traces and with them: see `instructions.rs`.
//!
//! The frontend validates, tokenises, admits, opens a stream, passes the request on, takes one token and the end, detokenises and answers. It
//! logs nothing. The handler parses the body and answers with the same number of bytes. Clients and servers share the cores.

mod instructions;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler, System};
use actix_web::{App, HttpResponse, HttpServer, web};
use actors::request::{AbortRequest, FinishReason, Generate, Route, StreamEvent, Timings};
use actors::streams::Streams;
use anyhow::{Context as _, Result};
use integration_tests::client::{Connection, post_request};
use integration_tests::statistics::median;
use runtime::config::Surroundings;
use runtime::frontend::{
    Admission, Bounds, CacheInfo, Frontend, Grammars, Health, HealthState, InputMemory, Limits, Observed,
    ServedModel, bind,
};
use runtime::grammar::ModelCompiler;
use runtime::traces::Traces;

const BODY: &str = r#"{"model": "m", "prompt": "Once upon a time there was a lighthouse", "max_tokens": 1, "temperature": 0}"#;
const ROUNDS: usize = 5;

struct Echo(Streams);

impl Actor for Echo {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1024);
    }
}

impl Handler<Generate> for Echo {
    type Result = ();

    fn handle(&mut self, ask: Generate, _: &mut Self::Context) {
        let mut clients = self.0.batch();
        clients.token(ask.request, ask.prompt[0].into());
        let prompt_tokens = ask.prompt.len() as u32;
        let timings = Box::new(Timings { prompt_tokens, completion_tokens: 1, ..Timings::default() });
        clients.end(ask.request, StreamEvent::Finished { reason: FinishReason::Length, timings });
    }
}

impl Handler<AbortRequest> for Echo {
    type Result = ();

    fn handle(&mut self, _: AbortRequest, _: &mut Self::Context) {}
}

/// Serves in a new thread until the process ends.
fn serve(
    start: impl FnOnce() -> Result<(SocketAddr, actix_web::dev::Server)> + Send + 'static,
) -> Result<SocketAddr> {
    let (ready, started) = mpsc::channel();
    std::thread::spawn(move || {
        System::new().block_on(async move {
            match start() {
                Ok((address, server)) => {
                    let _ = ready.send(Ok(address));
                    let _ = server.await;
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        });
    });
    started.recv().context("the thread of the server has ended")?
}

/// The model that all frontends serve.
fn model() -> Result<Arc<ServedModel>> {
    let path = Surroundings::of_process().default_model();
    let mut model = ServedModel::open(&path, &path, Some("m")).context("run `cargo xtask fetch` first")?;
    model.context_tokens = 2048;
    Ok(Arc::new(model))
}

fn frontend(model: &Arc<ServedModel>, workers: usize, traces: Traces) -> Result<SocketAddr> {
    let (model, tokens) = (Arc::clone(model), model.tokenizer.vocabulary());
    let grammars =
        Grammars::new(Arc::new(ModelCompiler::new(Arc::clone(&model.tokenizer), tokens, &model.eos)));
    serve(move || {
        let streams = Streams::default();
        let echo = Echo(streams.clone()).start();
        let cache = CacheInfo {
            request_pages: 64,
            page_tokens: 16,
            dtype: "f32".to_owned(),
            prefix_cache: false,
            memory_utilization: 0.9,
        };
        let frontend = Frontend {
            generate: echo.clone().recipient(),
            abort: echo.recipient(),
            streams,
            observed: Arc::new(Observed::new("m", cache, 0)),
            traces,
            page: None,
            model,
            grammars,
            route: Route::Auto,
            trusts_header: false,
            node: None,
            drain_control: None,
            deadline: Duration::from_secs(60),
            api_key: None,
            limits: Limits::default(),
            tls: None,
            admission: Admission::new(Bounds { concurrency: 1024, queue: 4096, queue_bytes: 1 << 27 }),
            memory: InputMemory::new(1 << 28, workers),
            health: Arc::new(|| Health { state: HealthState::Ok, role: "local", peers: 0, live_requests: 0 }),
            metrics: Arc::new(|_: &mut _| ()),
            drain: Duration::from_secs(1),
        };
        let listener = bind("frontend.port", "127.0.0.1", 0)?;
        let address = listener.local_addr()?;
        Ok((address, frontend.serve(listener, workers)?))
    })
}

fn bare(workers: usize, answer: String) -> Result<SocketAddr> {
    serve(move || {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let server = HttpServer::new(move || {
            let answer = answer.clone();
            let handler = move |body: web::Json<serde_json::Value>| {
                let known = body["model"] == "m";
                let answer = answer.clone();
                async move {
                    assert!(known, "the body names another model");
                    HttpResponse::Ok().content_type("application/json").body(answer)
                }
            };
            App::new().route("/v1/completions", web::post().to(handler))
        });
        Ok((address, server.workers(workers).listen(listener)?.run()))
    })
}

/// Sends one request over an open connection. Returns the body of the answer.
fn ask(connection: &mut Connection, request: &[u8]) -> Result<String> {
    connection.send(request)?;
    let (status, body) = connection.answer()?;
    anyhow::ensure!(status == 200, "{status}: {body}");
    Ok(body)
}

fn request() -> Vec<u8> {
    post_request("/v1/completions", BODY)
}

/// Answered requests per second with this many connections.
fn measure(address: SocketAddr, connections: usize, time: Duration) -> Result<f64> {
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let began = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        let load = || -> Result<()> {
            let (mut connection, request) = (Connection::open(address)?, request());
            while !stop.load(Ordering::Relaxed) {
                ask(&mut connection, &request)?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let clients: Vec<_> = (0..connections).map(|_| scope.spawn(load)).collect();
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        clients
            .into_iter()
            .try_for_each(|client| client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
    })?;
    Ok(count.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64())
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("--instructions") => return instructions::compare(words.get(1)),
        Some(instructions::SERVE) => return instructions::serve(words.get(1).context("no collector")?),
        _ => {}
    }
    let mut arguments = words.iter().map(|text| text.parse::<u64>());
    let seconds = arguments.next().unwrap_or(Ok(4)).context("SECONDS is not a number")?;
    let connections = arguments.next().unwrap_or(Ok(64)).context("CONNECTIONS is not a number")? as usize;
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(2);
    let frontend = frontend(&model()?, workers, Traces::default())?;
    let answer = ask(&mut Connection::open(frontend)?, &request())?;
    let bare = bare(workers, answer)?;
    let time = Duration::from_secs(seconds);
    measure(frontend, connections, time / 4)?;
    measure(bare, connections, time / 4)?;
    let mut ratios = Vec::new();
    println!("{connections} connections, {workers} workers, {seconds} s each");
    println!("{:>10} {:>14} {:>6}", "frontend/s", "bare handler/s", "ratio");
    for _ in 0..ROUNDS {
        let (ours, theirs) = (measure(frontend, connections, time)?, measure(bare, connections, time)?);
        println!("{ours:>10.0} {theirs:>14.0} {:>6.2}", ours / theirs);
        ratios.push(ours / theirs);
    }
    println!("median ratio {:.2}", median(ratios));
    Ok(())
}
