//! The HTTP frontend: OpenAI's endpoints on one side, tokens on the other. Nothing else in Baton knows HTTP, OpenAI's JSON,
//! the tokenizer or the chat template.
//!
//! It runs on actix-web's worker threads. A request is read, waits in the process's one queue for a permit for each of its answers,
//! opens their streams, and is sent to the proxy as [`Generate`]; tokens come back through [`Streams`], which bounds them by the
//! request's own `max_tokens`. A client that leaves before its request runs frees its place; one that leaves later drops the request's
//! guard, and that sends [`AbortRequest`].
//!
//! Every wait ends, and everything that piles up is bounded:
//! - for a client that is slow, silent or gone: by [`Limits`], which also bounds how many connections there are;
//! - for its bytes, from the first of its body to the last of its answer: by [`InputMemory`];
//! - for a thread to tokenise on: as many as there are cores, until the request's deadline;
//! - for permits: by [`Bounds`], until the request's deadline, which runs from the arrival of its head;
//! - for tokens, or the proxy's word that there will be none: until the request's deadline, which the decoder keeps, and `grace` for a decoder that is gone;
//! - for a client to take its answer: until the same moment. The decoder does not wait for it: the tokens lie in the stream.

mod admission;
mod api_error;
mod api_key;
mod body;
mod chat_template;
mod choices;
mod connection;
mod fields;
mod generate;
mod handlers;
mod limits;
mod logprobs;
mod memory;
mod model_text;
mod names;
mod observed;
mod openai;
mod prompts;
mod reply;
mod response;
mod sampling;
mod served_model;
mod stop;
mod stream;
mod strftime;
mod text;
mod tokenizer;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use actix::Recipient;
use actix_web::dev::Server;
use actix_web::http::StatusCode;
use actix_web::middleware::from_fn;
use actix_web::{App, HttpServer, Resource, Route, web};
use actors::request::{AbortRequest, Generate};
use actors::streams::Streams;
use serde::Serialize;
use socket2::{SockRef, TcpKeepalive};

use connection::{Connection, attend};

pub use admission::{Admission, Bounds};
pub use chat_template::{ChatTemplate, Message};
pub use limits::Limits;
pub use memory::InputMemory;
pub use model_text::{ModelText, TextError};
pub use observed::{AnswerCounts, CacheInfo, Observed};
pub use served_model::ServedModel;
pub use tokenizer::{Bos, Detokenizer, SpecialTokens, Tokenizer};

/// One HTTP port and what stands behind it.
pub struct Frontend {
    /// The proxy, or whoever takes requests.
    pub generate: Recipient<Generate>,
    /// Whoever ends requests early.
    pub abort: Recipient<AbortRequest>,
    /// The live streams, shared by all ports of the process.
    pub streams: Streams,
    /// The model as clients see it.
    pub model: Arc<ServedModel>,
    /// Where requests on this port may be prefilled.
    pub route: actors::request::Route,
    /// How long a request may take, from the arrival of its head.
    pub deadline: Duration,
    /// How requests ended, shared by all ports of the process.
    pub observed: Arc<Observed>,
    /// What clients have to show as `Authorization: Bearer`; without one, anybody may ask.
    pub api_key: Option<String>,
    /// What clients may not exceed.
    pub limits: Limits,
    /// The process's permits and queue. Closed, it answers 503: the process is ending.
    pub admission: Admission,
    /// The process's budget for what clients send.
    pub memory: InputMemory,
    /// Asked at each `/health`; answers from memory.
    pub health: Arc<dyn Fn() -> Health + Send + Sync>,
    /// Asked at each `/metrics`; answers from memory, in Prometheus's text format.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// How long streams may take to end once the server is told to stop.
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
            HealthState::Down { .. } => StatusCode::SERVICE_UNAVAILABLE,
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
        let (status, reason) = match &self.state {
            HealthState::Ok => ("ok", None),
            HealthState::Degraded { reason } => ("degraded", Some(&**reason)),
            HealthState::Down { reason } => ("down", Some(&**reason)),
        };
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

/// Why a port cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another process has it.
    #[error("{name} port {port} on {host} is in use; stop the other process or set {key}")]
    InUse {
        /// What the port is for, in a word.
        name: String,
        /// The configuration key that moves it.
        key: &'static str,
        /// The address.
        host: String,
        /// The port.
        port: u16,
    },
    /// The address is not of this machine, or the port needs privileges.
    #[error("cannot listen on {host}:{port} ({key}): {error}")]
    Refused {
        /// The configuration key of the port.
        key: &'static str,
        /// The address.
        host: String,
        /// The port.
        port: u16,
        /// What the system says.
        error: io::Error,
    },
}

impl BindError {
    /// One word for metrics, logs and JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::InUse { .. } => "in_use",
            Self::Refused { .. } => "refused",
        }
    }
}

/// Listens on a port; 0 takes a free one. `key` is the configuration key that names it, such as `frontend.port`.
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
    /// Serves on a port. The returned server runs while it is awaited or spawned inside an actix `System`; it reacts to no
    /// signal, only to its handle's `stop`.
    ///
    /// # Errors
    /// What the system says against listening.
    pub fn serve(self, listener: TcpListener, workers: usize) -> io::Result<Server> {
        let drain_s = self.drain.as_secs_f64().ceil() as u64;
        let limits = self.limits;
        prepare(&listener, &limits)?;
        let frontend = web::Data::new(self);
        let server = HttpServer::new(move || {
            App::new()
                .app_data(frontend.clone())
                .service(post("/v1/completions", web::post().to(handlers::completions)))
                .service(post("/v1/chat/completions", web::post().to(handlers::chat_completions)))
                .service(post("/tokenize", web::post().to(text::tokenize)))
                .service(post("/detokenize", web::post().to(text::detokenize)))
                .service(get("/v1/models", web::get().to(handlers::list_models)))
                .service(get("/v1/models/{name:.+}", web::get().to(handlers::show_model)))
                .service(get("/health", web::get().to(handlers::health)))
                .service(get("/ping", web::get().to(handlers::ping)).route(web::post().to(handlers::ping)))
                .service(get("/version", web::get().to(handlers::version)))
                .service(get("/load", web::get().to(handlers::load)))
                .service(get("/metrics", web::get().to(handlers::metrics)))
                .default_service(web::to(handlers::no_such_path))
                .wrap(from_fn(api_key::check))
                .wrap(from_fn(attend))
        });
        Ok(server
            .workers(workers)
            .disable_signals()
            // A client that half-closes is gone: its request must end although it could still read.
            .h1_allow_half_closed(false)
            .client_request_timeout(limits.head)
            .keep_alive(limits.idle)
            .max_connections(limits.connections.div_ceil(workers))
            .on_connect(Connection::accept(limits))
            .shutdown_timeout(drain_s)
            .listen(listener)?
            .run())
    }
}

/// A path that takes POST only.
fn post(path: &'static str, route: Route) -> Resource {
    web::resource(path).route(route).default_service(web::to(handlers::only("POST")))
}

/// A path that takes GET only, if nothing else is added.
fn get(path: &'static str, route: Route) -> Resource {
    web::resource(path).route(route).default_service(web::to(handlers::only("GET")))
}

/// Connections may wait to be accepted where few are taken.
const BACKLOG_MIN: usize = 1024;

/// Sets the options that accepted sockets inherit. Small writes are sent at once: with Nagle's algorithm the second token of a
/// kept connection would wait for the client's delayed acknowledgement of the first, 40 ms. The system resets connections
/// whose other end neither answers nor takes bytes for `unanswered`. As many connections as are taken may also arrive in one moment:
/// one that finds the backlog full is tried again only after a second.
fn prepare(listener: &TcpListener, limits: &Limits) -> io::Result<()> {
    // The system's clock for probes ticks in whole seconds, at least one.
    let probe = (limits.unanswered / 3).max(Duration::from_secs(1));
    let socket = SockRef::from(listener);
    socket.set_tcp_nodelay(true)?;
    // Covers sent bytes; while nothing is sent (a client waits for a whole answer), the probes cover the connection.
    socket.set_tcp_user_timeout(Some(limits.unanswered))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(probe).with_interval(probe))?;
    // Again, for a longer backlog. The system takes what it allows of it (net.core.somaxconn).
    socket.listen(i32::try_from(limits.connections.max(BACKLOG_MIN)).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests;
