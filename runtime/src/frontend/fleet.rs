//! The HTTP port of a proxy: it chooses a node for each request and forwards the request there.
//!
//! The proxy reads the prompt of a request, because the nodes that have its beginning cached come first. [`FleetState`] chooses the node that decodes and the node
//! that prefills. The body goes unchanged to the HTTP port of the decoding node, with `x-prefiller-host-port` if another node prefills. The answer comes
//! back as it is, so the node checks the request, and its errors reach the client unchanged.
//!
//! Every request has one answer. If the connection to a node breaks, or the node answers 503, before the first byte of an answer, the state decides
//! whether the request goes to another node. If a node dies later, the client's connection breaks. If a client leaves, the connection to the node is
//! closed, and the node aborts the request. A node is told the time that is left, and ends the request by then. So a request waits for its first
//! byte until its deadline, however long the node's queue is, and a node that is silent until then is at fault.

mod client;
mod counts;
mod forward;
mod live;
mod poll;
mod record;

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix_web::dev::Server;
use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use actors::fleet::{FleetState, NodeId};
use common::metrics::MetricsText;
use common::splitmix::random_word;
use serde::Serialize;
use tokio::sync::watch;

use super::api_error::ApiError;
use super::handlers::version;
use super::limits::Limits;
use super::live::LiveFeed;
use super::memory::InputMemory;
use super::openai::ApiKind;
use super::recent::RecentRequests;
use super::response::{self, ModelCard, json};
use super::served_model::ServedModel;
use super::{METRICS_TYPE, WriteMetrics, get, listen, post};
use crate::drain::{Drain, DrainStage};
use crate::tls::{HttpTls, NodesTls};
use crate::traces::Traces;
use counts::{AnswerSource, NodeCounts, ProxyCounts, ProxyGauges};

use live::Reported;
use record::ForwardedRequest;

pub(crate) use client::with_causes;
pub(crate) use counts::write_none;
pub(crate) use poll::node_report;
pub use poll::{poll, set_nodes};

/// One node of the fleet.
struct FleetMember {
    id: NodeId,
    /// Its HTTP port, `host:port`.
    address: Arc<str>,
    /// Changes when all connections to the node are to be cut.
    cut: watch::Sender<u64>,
    /// The last warning about a request.
    warned: Mutex<Option<Instant>>,
    /// It has left the fleet, and is asked no more.
    is_gone: AtomicBool,
    counts: Arc<NodeCounts>,
    /// What the live page shows of its reports.
    reported: Mutex<Reported>,
    /// Requests that it has answered with status 200, and those that got no valid answer.
    answered: AtomicU64,
    failed: AtomicU64,
}

/// Minimum time between two warnings about requests of the same node. When a node dies, all its requests fail.
const WARN_EVERY: Duration = Duration::from_secs(10);

impl FleetMember {
    fn new(id: NodeId, address: Arc<str>, counts: &ProxyCounts) -> Self {
        let (is_gone, counts) = (AtomicBool::new(false), counts.node(&address));
        let cut = watch::Sender::new(0);
        let (warned, reported) = (Mutex::default(), Mutex::default());
        let (answered, failed) = (AtomicU64::default(), AtomicU64::default());
        Self { id, address, cut, warned, is_gone, counts, reported, answered, failed }
    }

    fn reported(&self) -> MutexGuard<'_, Reported> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Warns about a request, unless it did so a moment ago.
    fn warn(&self, what: &str, request: &str, error: &str) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|at| at.elapsed() >= WARN_EVERY) {
            *warned = Some(Instant::now());
            tracing::warn!(node = &*self.address, request, "{what}: {error}");
        }
    }
}

/// The proxy of a fleet.
pub struct FleetProxy {
    state: Mutex<FleetState>,
    members: Mutex<BTreeMap<NodeId, Arc<FleetMember>>>,
    model: Arc<ServedModel>,
    memory: InputMemory,
    limits: Limits,
    /// Maximum duration of a request.
    deadline: Duration,
    /// The key that clients send, and that the proxy sends to nodes.
    api_key: Option<String>,
    /// The certificate of the port.
    tls: Option<HttpTls>,
    /// Connects to the nodes, and keeps the connections.
    client: client::NodeClient,
    /// The connections for reports. Requests cannot use them up.
    polls: client::NodeClient,
    counts: ProxyCounts,
    more_metrics: WriteMetrics,
    /// The drain of the process.
    drain: Drain,
    traces: Traces,
    /// The newest requests that have ended.
    recent: RecentRequests<ForwardedRequest>,
    /// The live page; `None` if the port does not serve it.
    page: Option<LiveFeed>,
}

/// The configuration of a [`FleetProxy`].
pub struct FleetSettings {
    /// The HTTP ports of the nodes, `host:port`.
    pub nodes: Vec<String>,
    /// The tokenizer and chat template of the fleet's model.
    pub model: Arc<ServedModel>,
    /// The memory budget for clients' requests.
    pub memory: InputMemory,
    /// The limits for clients.
    pub limits: Limits,
    /// Maximum duration of a request.
    pub deadline: Duration,
    /// The key that clients send, and that the proxy sends to nodes.
    pub api_key: Option<String>,
    /// The certificate of the port; `None` serves without TLS.
    pub tls: Option<HttpTls>,
    /// TLS to the nodes; `None` connects without TLS.
    pub nodes_tls: Option<NodesTls>,
    /// The drain of the process. The proxy reports it, and goes on with forwarding.
    pub drain: Drain,
    /// Writes the metrics of other parts of the process. Must not block.
    pub more_metrics: WriteMetrics,
    /// `routing.index_bytes`.
    pub index_bytes: u64,
    /// `routing.ttft_target`.
    pub ttft_target: Duration,
    /// Records requests, for a collector of traces.
    pub traces: Traces,
    /// `request.recent`.
    pub recent: usize,
    /// `frontend.page`.
    pub has_page: bool,
}

/// The state of a [`FleetProxy`] at one moment.
#[derive(Clone, Copy, Debug)]
pub struct FleetOverview {
    /// Number of nodes that take requests.
    pub ready: usize,
    /// Number of nodes.
    pub nodes: usize,
    /// Number of requests in flight.
    pub live_requests: usize,
}

impl FleetProxy {
    /// A proxy whose nodes have not reported yet.
    pub fn new(settings: FleetSettings) -> Self {
        let FleetSettings {
            nodes,
            model,
            memory,
            limits,
            deadline,
            api_key,
            tls,
            nodes_tls,
            drain,
            more_metrics,
            index_bytes,
            ttft_target,
            traces,
            recent,
            has_page,
        } = settings;
        let mut state = FleetState::new(index_bytes, ttft_target, random_word());
        let counts = ProxyCounts::default();
        let nodes = state.named(nodes.into_iter().map(Arc::from)).into_iter();
        let members =
            nodes.map(|(id, address)| (id, Arc::new(FleetMember::new(id, address, &counts)))).collect();
        Self {
            state: Mutex::new(state),
            members: Mutex::new(members),
            model,
            memory,
            limits,
            deadline,
            api_key,
            client: client::NodeClient::new(nodes_tls.clone()),
            polls: client::NodeClient::new(nodes_tls),
            tls,
            counts,
            more_metrics,
            page: has_page.then(|| LiveFeed::new(drain.clone())),
            drain,
            traces,
            recent: RecentRequests::new(recent),
        }
    }

    /// What the proxy forwards to at this moment.
    pub fn overview(&self) -> FleetOverview {
        let (ready, nodes, live_requests) = (self.ready(), self.members().len(), self.state().live());
        FleetOverview { ready, nodes, live_requests }
    }

    fn state(&self) -> MutexGuard<'_, FleetState> {
        // A panic inside the state leaves it consistent enough to serve the other requests.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn members(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<FleetMember>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn member(&self, id: NodeId) -> Option<Arc<FleetMember>> {
        self.members().get(&id).cloned()
    }

    /// Serves clients on a port. The returned server runs while it is awaited or spawned inside an actix `System`.
    ///
    /// # Errors
    /// The system refuses to listen.
    pub fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        workers: usize,
        drain: Duration,
    ) -> io::Result<Server> {
        let (limits, api_key, tls) = (self.limits, self.api_key.clone(), self.tls.clone());
        let proxy = web::Data::from(self);
        listen(listener, workers, limits, drain, api_key, tls, move |services| {
            services
                .app_data(proxy.clone())
                .service(post("/v1/completions", web::post().to(completions)))
                .service(post("/v1/chat/completions", web::post().to(chat_completions)))
                .service(post("/v1/responses", web::post().to(responses)))
                .service(get("/v1/models", web::get().to(models)))
                .service(get("/v1/models/{name:.+}", web::get().to(model)))
                .service(get("/health", web::get().to(health)))
                .service(get("/ping", web::get().to(ping)).route(web::post().to(ping)))
                .service(get("/live", web::get().to(alive)))
                .service(get("/debug/requests", web::get().to(live::requests)))
                .service(get("/debug/live", web::get().to(live::stream)))
                .service(get("/", web::get().to(live::page)))
                .service(get("/version", web::get().to(version)))
                .service(get("/metrics", web::get().to(metrics)));
        })
    }

    fn has_models(&self) -> bool {
        self.state().models().next().is_some()
    }

    fn ready(&self) -> usize {
        self.state().ready(Instant::now())
    }

    /// The state in one word, and its reason.
    fn word(&self) -> (&'static str, Option<&'static str>) {
        match (self.drain.stage(), self.ready()) {
            (DrainStage::Serving, 0) => ("down", Some("no node takes requests")),
            (DrainStage::Serving, _) => ("ok", None),
            _ => (
                "draining",
                Some("the proxy is draining: it finishes its requests and is to get no new ones"),
            ),
        }
    }

    /// The HTTP status of `/health` and `/ping`.
    fn status(&self) -> StatusCode {
        let takes_requests = self.drain.stage() == DrainStage::Serving && self.ready() > 0;
        if takes_requests { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
    }
}

type Shared = web::Data<FleetProxy>;

async fn completions(proxy: Shared, request: HttpRequest, body: web::Payload) -> HttpResponse {
    forward::forward(ApiKind::Completion, proxy.into_inner(), request, body).await
}

async fn chat_completions(proxy: Shared, request: HttpRequest, body: web::Payload) -> HttpResponse {
    forward::forward(ApiKind::Chat, proxy.into_inner(), request, body).await
}

async fn responses(proxy: Shared, request: HttpRequest, body: web::Payload) -> HttpResponse {
    forward::forward(ApiKind::Response, proxy.into_inner(), request, body).await
}

/// The cards of the models of all nodes. The proxy knows the path of its own model only.
fn cards<T>(proxy: &FleetProxy, with: impl FnOnce(Vec<ModelCard<'_>>) -> T) -> T {
    let known: Vec<(Arc<str>, Option<u32>)> = {
        let state = proxy.state();
        state.models().map(|name| (Arc::clone(name), state.context_tokens(Some(name)))).collect()
    };
    let own = &proxy.model;
    let cards = known.iter().map(|(name, context)| {
        let root = if **name == *own.name { own.root.as_str() } else { "" };
        ModelCard::named(name, root, own.created, context.unwrap_or_default())
    });
    with(cards.collect())
}

async fn models(proxy: Shared) -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(cards(&proxy, response::models))
}

async fn model(proxy: Shared, name: web::Path<String>) -> HttpResponse {
    let body = cards(&proxy, |cards| cards.iter().find(|card| card.id() == *name).map(json));
    match body {
        Some(body) => HttpResponse::Ok().content_type("application/json").body(body),
        None => forward::no_model(&name).response(),
    }
}

/// The proxy is healthy while at least one node takes requests.
async fn health(proxy: Shared) -> HttpResponse {
    #[derive(Serialize)]
    struct Health {
        status: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'static str>,
        role: &'static str,
        pid: u32,
        nodes: usize,
        nodes_ready: usize,
        live_requests: usize,
    }
    let (ready, nodes, live_requests) = (proxy.ready(), proxy.members().len(), proxy.state().live());
    let (status, reason) = proxy.word();
    let health = Health {
        status,
        reason,
        role: "proxy",
        pid: std::process::id(),
        nodes,
        nodes_ready: ready,
        live_requests,
    };
    HttpResponse::build(proxy.status()).content_type("application/json").body(json(&health))
}

async fn ping(proxy: Shared) -> HttpResponse {
    HttpResponse::build(proxy.status()).finish()
}

/// A proxy whose nodes are gone is alive: a restart would not help.
async fn alive() -> HttpResponse {
    HttpResponse::Ok().finish()
}

async fn metrics(proxy: Shared) -> HttpResponse {
    let now = Instant::now();
    let members: Vec<_> = proxy.members().values().cloned().collect();
    let gauges = {
        let state = proxy.state();
        ProxyGauges {
            nodes: members.len(),
            ready: state.ready(now),
            unready: state.unready(now),
            paused: state.paused(now),
            live: state.live(),
            pauses: members
                .iter()
                .map(|member| (Arc::clone(&member.counts), state.is_paused(now, member.id)))
                .collect(),
        }
    };
    let mut page = MetricsText::default();
    proxy.counts.write(&mut page, &gauges);
    (proxy.more_metrics)(&mut page);
    HttpResponse::Ok().content_type(METRICS_TYPE).body(page.into_string())
}

/// Answers a request that no node answers.
fn refused(proxy: &FleetProxy, error: ApiError) -> HttpResponse {
    if error.status.is_server_error() {
        proxy.counts.refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
    proxy.counts.responded(AnswerSource::Proxy, error.status.as_u16());
    error.response()
}
