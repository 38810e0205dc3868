//! The HTTP frontend: converts requests of the OpenAI API into tokens, and tokens into responses. No other module of Baton knows HTTP,
//! OpenAI's JSON, the tokenizer or the chat template.
//!
//! The frontend runs on actix-web's worker threads. It reads a request, waits in the queue of the process until there is a permit for
//! each answer, opens a stream for each answer, and sends [`Generate`] to the proxy. Tokens come back through [`Streams`], which holds
//! at most `max_tokens` of them for each answer. A client that leaves before its request runs frees its place in the queue. A client
//! that leaves later drops the guard of its request, which sends [`AbortRequest`].
//!
//! Every wait has an end, and every buffer has a bound:
//! - [`Limits`] bounds the waits for slow, silent and gone clients, and the number of connections.
//! - [`InputMemory`] bounds the bytes of clients' requests, from the first byte of a body to the last byte of its answer.
//! - The number of cores bounds the threads that tokenize. A request waits for a thread until its deadline.
//! - [`Grammars`] bounds the threads that wait for the compiler of grammars, which has a deadline of its own.
//! - [`Bounds`] bounds the running and the waiting requests. A request waits for permits until its deadline, which counts from the
//!   arrival of its head.
//! - The frontend waits for tokens until the deadline, which the decoder enforces. If the decoder is gone, the frontend gives up after
//!   another `grace`.
//! - A client has to read its answer by the same time. The decoder does not wait for the client, because the stream holds all tokens.

mod admin;
mod admission;
mod answer_parser;
mod api_error;
mod api_key;
mod begin;
mod body;
mod chat_template;
mod choices;
mod client_stream;
mod connection;
mod deadline_header;
mod ended;
mod field_table;
mod fields;
mod fleet;
mod generate;
mod handlers;
mod https;
mod lark;
mod limits;
mod live;
mod logprobs;
mod memory;
mod messages;
mod model_text;
mod names;
mod node_report;
mod observed;
mod openai;
mod openapi;
mod operator;
mod page;
mod prefiller_header;
mod prompt_logprobs;
mod prompts;
mod reasoning;
mod recent;
mod reply;
mod response;
mod responses_api;
mod sampling;
mod served_model;
mod server;
mod server_timing;
mod stop;
mod stream;
mod strftime;
mod structured;
mod text;
mod tokenizer;
mod tool_parser;
mod tools;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix::Recipient;
use actix_web::dev::Server;
use actix_web::http::StatusCode;
use actix_web::middleware::from_fn;
use actix_web::web::ServiceConfig;
use actix_web::{App, Resource, Route, web};
use actors::request::{AbortRequest, Generate};
use actors::streams::{StreamReader, Streams};
use common::metrics::MetricsText;
use serde::Serialize;
use socket2::{SockRef, TcpKeepalive};

use crate::tls::HttpTls;
use crate::traces::Traces;

use api_key::ApiKey;
use connection::attend;
use server::ServerShape;

pub use actix_web::dev::ServerHandle;
pub use admin::{DrainControl, LeftWork};
pub use admission::{Admission, Bounds};
pub use chat_template::{ChatTemplate, Conversation};
pub use field_table::parameters_page;
pub use fleet::{FleetOverview, FleetProxy, FleetSettings, poll, set_nodes};
pub(crate) use fleet::{node_report as ask_node_report, with_causes, write_none as write_proxy_metrics};
pub use limits::Limits;
pub use live::LivePage;
pub use memory::InputMemory;
#[cfg(test)]
pub(crate) use model_text::testing;
pub use model_text::{ModelText, TextError};
pub use node_report::{DecodeReport, NodeReport, NodeState};
pub use observed::{AnswerCounts, CacheInfo, Observed, used_pages};
pub use reasoning::ReasoningFormat;
pub use served_model::ServedModel;
pub use structured::Grammars;
pub use tokenizer::{Bos, Detokenizer, SpecialTokens, Tokenizer};
pub use tool_parser::ToolFormat;

/// The content type of `/metrics`: Prometheus's text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Writes metrics to a page. Must not block.
pub type WriteMetrics = Arc<dyn Fn(&mut MetricsText) + Send + Sync>;

/// One HTTP port and the parts of the process that it uses.
pub struct Frontend {
    /// The actor that takes requests: the proxy.
    pub generate: Recipient<Generate>,
    /// The actor that aborts requests: the proxy.
    pub abort: Recipient<AbortRequest>,
    /// The live streams, shared by all ports of the process.
    pub streams: Streams,
    /// The model as clients see it.
    pub model: Arc<ServedModel>,
    /// Compiles the grammars of requests, shared by all ports of the process.
    pub grammars: Grammars,
    /// Where requests on this port may be prefilled.
    pub route: actors::request::Route,
    /// Whether the clients are routers: `x-prefiller-host-port` overrides `route`, and `x-envoy-expected-rq-timeout-ms` shortens `deadline`.
    pub trusts_header: bool,
    /// Maximum duration of a request, from the arrival of its head.
    pub deadline: Duration,
    /// Statistics on ended requests, shared by all ports of the process.
    pub observed: Arc<Observed>,
    /// Records requests, for a collector of traces.
    pub traces: Traces,
    /// The API key that clients send as `Authorization: Bearer KEY`; `None` accepts all clients.
    pub api_key: Option<String>,
    /// The limits for clients.
    pub limits: Limits,
    /// The certificate of the port; `None` serves without TLS.
    pub tls: Option<HttpTls>,
    /// The permits and the queue of the process. While the process drains, they are closed and requests are answered 503.
    pub admission: Admission,
    /// The memory budget for clients' requests.
    pub memory: InputMemory,
    /// Called for each `/health`. Must not block.
    pub health: Arc<dyn Fn() -> Health + Send + Sync>,
    /// Called for each `/node`; `None` if this port does not serve it. Must not block.
    pub node: Option<Arc<dyn Fn() -> NodeReport + Send + Sync>>,
    /// The drain; `None` if this port does not serve `/admin/drain`.
    pub drain_control: Option<DrainControl>,
    /// The live page and its data; `None` if this port does not serve them.
    pub page: Option<LivePage>,
    /// Called for each `/metrics`.
    pub metrics: WriteMetrics,
    /// Maximum time for streams to end after the server is told to stop.
    pub drain: Duration,
}

/// What `/health` reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether the process serves.
    pub state: HealthState,
    /// Role of the process.
    pub role: &'static str,
    /// Live sessions with peers.
    pub peers: usize,
    /// Requests in flight.
    pub live_requests: usize,
}

/// Whether the process serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthState {
    /// The process serves.
    Ok,
    /// The process serves, but an operator has to act.
    Degraded {
        /// What is wrong and what to do.
        reason: String,
    },
    /// The process drains or is drained. `/health` answers 503.
    Draining {
        /// Which of them.
        reason: String,
    },
    /// The process cannot serve. `/health` answers 503.
    Down {
        /// The fault that stopped it.
        reason: String,
    },
}

impl Health {
    /// The HTTP status of `/health` and `/ping`.
    fn http_status(&self) -> StatusCode {
        match self.state {
            HealthState::Ok | HealthState::Degraded { .. } => StatusCode::OK,
            HealthState::Draining { .. } | HealthState::Down { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The HTTP status of `/live`. A draining process is alive, and a degraded one serves.
    fn live_status(&self) -> StatusCode {
        match self.state {
            HealthState::Down { .. } => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::OK,
        }
    }

    /// The state in one word, and its reason.
    fn word(&self) -> (&'static str, Option<&str>) {
        match &self.state {
            HealthState::Ok => ("ok", None),
            HealthState::Degraded { reason } => ("degraded", Some(reason)),
            HealthState::Draining { reason } => ("draining", Some(reason)),
            HealthState::Down { reason } => ("down", Some(reason)),
        }
    }

    fn body(&self) -> String {
        #[derive(Serialize)]
        struct HealthBody<'a> {
            status: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            reason: Option<&'a str>,
            role: &'a str,
            pid: u32,
            peers: usize,
            live_requests: usize,
        }
        let (status, reason) = self.word();
        response::json(&HealthBody {
            status,
            reason,
            role: self.role,
            pid: std::process::id(),
            peers: self.peers,
            live_requests: self.live_requests,
        })
    }
}

/// Why the process cannot listen on a port.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The port is in use.
    #[error("{name} port {port} on {host} is in use; stop the other process or set {key}")]
    InUse {
        /// The purpose of the port in one word.
        name: String,
        /// The configuration key of the port.
        key: &'static str,
        /// The host or address.
        host: String,
        /// The port.
        port: u16,
    },
    /// The system refuses to listen, for example because the address is not one of this machine.
    #[error("cannot listen on {host}:{port} ({key}): {error}; set another host or port")]
    Refused {
        /// The configuration key of the port.
        key: &'static str,
        /// The address.
        host: String,
        /// The port.
        port: u16,
        /// The error of the system.
        error: io::Error,
    },
}

impl BindError {
    /// The kind of the error in one word, for metrics, logs and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::InUse { .. } => "in_use",
            Self::Refused { .. } => "refused",
        }
    }
}

/// Listens on a port. Port 0 takes a free one. `key` is the configuration key of the port, such as `frontend.port`.
///
/// # Errors
/// [`BindError`], with the key to change.
pub fn bind(key: &'static str, host: &str, port: u16) -> Result<TcpListener, BindError> {
    TcpListener::bind((host, port)).map_err(|error| {
        let host = host.to_owned();
        match error.kind() {
            io::ErrorKind::AddrInUse => {
                let name = key.split('.').next().unwrap_or_default().to_owned();
                BindError::InUse { name, key, host, port }
            }
            _ => BindError::Refused { key, host, port, error },
        }
    })
}

impl Frontend {
    /// Serves on a port. The returned server runs while it is awaited or spawned inside an actix `System`. It ignores signals; its
    /// handle's `stop` ends it.
    ///
    /// # Errors
    /// The system refuses to listen.
    pub fn serve(self, listener: TcpListener, workers: usize) -> io::Result<Server> {
        let (limits, drain, api_key, tls) = (self.limits, self.drain, self.api_key.clone(), self.tls.clone());
        let frontend = web::Data::new(self);
        listen(listener, workers, limits, drain, api_key, tls, move |services| {
            services
                .app_data(frontend.clone())
                .app_data(StreamReader::start(&frontend.streams))
                .service(post("/v1/completions", web::post().to(handlers::completions)))
                .service(post("/v1/chat/completions", web::post().to(handlers::chat_completions)))
                .service(post("/v1/responses", web::post().to(handlers::responses)))
                .service(post("/tokenize", web::post().to(text::tokenize)))
                .service(post("/detokenize", web::post().to(text::detokenize)))
                .service(get("/v1/models", web::get().to(handlers::list_models)))
                .service(get("/v1/models/{name:.+}", web::get().to(handlers::show_model)))
                .service(get("/health", web::get().to(handlers::health)))
                .service(get("/ping", web::get().to(handlers::ping)).route(web::post().to(handlers::ping)))
                .service(get("/live", web::get().to(handlers::live)))
                .service(
                    get("/admin/drain", web::get().to(admin::show_drain))
                        .route(web::post().to(admin::start_drain))
                        .default_service(web::to(handlers::only("GET, POST"))),
                )
                .service(get("/debug/requests", web::get().to(recent::list)))
                .service(get("/debug/live", web::get().to(live::stream)))
                .service(get("/", web::get().to(page::show)))
                .service(get("/node", web::get().to(handlers::node)))
                .service(get("/version", web::get().to(handlers::version)))
                .service(get("/load", web::get().to(handlers::load)))
                .service(get("/openapi.json", web::get().to(handlers::openapi)))
                .service(get("/metrics", web::get().to(handlers::metrics)));
        })
    }
}

/// Serves these paths on a port, with the checks and limits that all ports have.
fn listen(
    listener: TcpListener,
    workers: usize,
    limits: Limits,
    drain: Duration,
    api_key: Option<String>,
    tls: Option<HttpTls>,
    services: impl Fn(&mut ServiceConfig) + Clone + Send + 'static,
) -> io::Result<Server> {
    prepare(&listener, &limits)?;
    let key = web::Data::new(ApiKey(api_key));
    let app = move || {
        App::new()
            .app_data(key.clone())
            .configure(services.clone())
            .default_service(web::to(handlers::no_such_path))
            .wrap(from_fn(api_key::check))
            .wrap(from_fn(attend))
    };
    let drain_seconds = drain.as_secs_f64().ceil() as u64;
    server::serve(listener, tls.as_ref(), ServerShape { workers, limits, drain_seconds }, app)
}

/// A path that accepts POST only.
fn post(path: &'static str, route: Route) -> Resource {
    web::resource(path).route(route).default_service(web::to(handlers::only("POST")))
}

/// A path that accepts GET only, unless the caller adds a route.
fn get(path: &'static str, route: Route) -> Resource {
    web::resource(path).route(route).default_service(web::to(handlers::only("GET")))
}

/// Minimum backlog of connections that wait to be accepted.
const BACKLOG_MIN: usize = 1024;

/// Sets the options that accepted sockets inherit.
///
/// Small writes are sent at once. With Nagle's algorithm, the second token on a kept connection would wait 40 ms for the client's
/// delayed acknowledgement of the first one. The system resets a connection whose client acknowledges nothing, or has no room, for
/// `unanswered`. The backlog has room for all connections at the same time, because a client that finds the backlog full retries
/// only after a second.
fn prepare(listener: &TcpListener, limits: &Limits) -> io::Result<()> {
    // The system measures the interval of probes in whole seconds, at least one.
    let probe = (limits.unanswered / 3).max(Duration::from_secs(1));
    let socket = SockRef::from(listener);
    socket.set_tcp_nodelay(true)?;
    // This timeout covers sent bytes. While nothing is sent (a client waits for a whole answer), the probes cover the connection.
    socket.set_tcp_user_timeout(Some(limits.unanswered))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(probe).with_interval(probe))?;
    // A second `listen` changes the backlog. The system caps it (net.core.somaxconn).
    socket.listen(i32::try_from(limits.connections.max(BACKLOG_MIN)).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests;
