//! Starts and stops a process of any role.
//!
//! A process opens its ports, loads the model, starts the actors, and then serves HTTP. A process that cannot start says why in one
//! sentence. It shuts down in three phases: it drains ([`Drain`]), which takes up to `shutdown.delay` and `shutdown.drain`, it cuts the requests that
//! still run, and it ends the sessions, the transport and the memory pool, in this order. A process that `POST /admin/drain` has drained stays up
//! until a signal or a fault ends it.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actors::devices::kv_events::CacheBatch;
use actors::grammar::GrammarCompiler;
use actors::node::{self, LinkConfig, Node, NodeConfig};
use actors::peer_link::state::SessionLimits;
use actors::routing::RoutingConfig;
use actors::transfer::state::PAGES_IN_FLIGHT;
use anyhow::Context as _;
use common::splitmix::random_word;
use connector::frame::Versions;
use connector::transport::Transport;
use connector::ucx::UcxTransport;
use engine::{Engine, EngineConfig, KvPool, ModelInfo};
use tokio::sync::mpsc::Sender;

use crate::config::{Config, Role};
use crate::drain::{Drain, DrainStage};
use crate::frontend::{
    Admission, Bounds, CacheInfo, Grammars, InputMemory, Limits, Observed, ServedModel, bind,
};
use crate::grammar::ModelCompiler;
use crate::kv_events::{EventSource, KvEventPorts};
use crate::membership::MembershipMetrics;
use crate::open_files;
use crate::service_manager::{self, ServiceManager, StartProgress};
use crate::telemetry;
use crate::traces::{CollectorError, Traces, record_prefills};
use announcing::Announcing;
use certificates::Certificates;
use ending::{
    Signals, TEAR_DOWN_LIMIT, drain_when_asked, end_at_faults, end_by, ending, exit_after, leave_when_asked,
};
use exposure::Port;
use plan::OpenFilePlan;
use servers::Servers;

mod announcing;
pub(crate) mod certificates;
mod ending;
pub(crate) mod exposure;
pub(crate) mod joining;
pub(crate) mod plan;
pub(crate) mod proxying;
mod reporting;
mod servers;

/// The listening sockets of a process, and their certificates. They are opened before the model is loaded, so that a port in use is noticed at once.
struct ListeningSockets {
    http: Option<TcpListener>,
    frontend: Option<TcpListener>,
    link: Option<TcpListener>,
    kv_events: Option<KvEventPorts>,
    certificates: Certificates,
}

impl ListeningSockets {
    fn open(role: Role, config: &Config) -> anyhow::Result<Self> {
        let certificates = Certificates::open(role, config)?;
        let ports = plan::ports(role, config);
        let open = |key: &str| {
            let port = ports.iter().find(|port| port.key == key);
            port.map(|port| bind(port.key, port.host, port.port)).transpose()
        };
        let kv_events = config.kv_events.enabled.then(|| announcing::open(&config.kv_events));
        Ok(Self {
            http: open("http.port")?,
            frontend: open("frontend.port")?,
            link: open("link.port")?,
            kv_events: kv_events.transpose()?,
            certificates,
        })
    }

    /// The number of HTTP ports.
    fn http_count(&self) -> usize {
        [&self.http, &self.frontend].into_iter().flatten().count()
    }
}

/// The function that opens the engine: [`engine::open_watched`], or a wrapper in a test.
pub type OpenEngine = fn(&EngineConfig, engine::Progress<'_>) -> Result<Box<dyn Engine>, engine::OpenError>;

/// Runs a process of `role` with the engine that `open` opens, until a signal or a fault ends it.
///
/// # Errors
/// Why the process could not start or had to stop, in one sentence.
pub fn run(role: Role, config: Config, open: OpenEngine) -> anyhow::Result<()> {
    engine::heap::return_large_blocks();
    if role == Role::Proxy {
        return proxying::run(config);
    }
    let began = Instant::now();
    let open_files = open_files::raise();
    let ports = ListeningSockets::open(role, &config)?;
    let limits = limits(&config, open_files, ports.http_count());
    tracing::info!(%role, pid = std::process::id(), model = %config.model.display(), "starting");
    service_manager::report_start("loading the model");
    let (shown, start) = (telemetry::loading(), StartProgress::default());
    let loading = |done, total| {
        shown(done, total);
        start.made();
    };
    let engine = open(&plan::engine(&config), &loading)?;
    let model = served_model(&config, engine.model())?;
    let (pool, layout) = (engine.kv().pages(), engine.kv().layout().clone());
    tracing::info!(
        model = model.name,
        device = config.engine.device.name(),
        threads = config.engine.threads,
        pages = pool,
        page_tokens = layout.page_tokens,
        page_kib = layout.page_bytes() / 1024,
        seconds = %format_args!("{:.1}", began.elapsed().as_secs_f64()),
        "model loaded"
    );
    engine::populate(engine.kv());
    actix::System::new().block_on(serve(role, config, ports, limits, engine, model, began))
}

/// The model as clients see it. The engine describes it as `known`.
pub(crate) fn served_model(config: &Config, known: &ModelInfo) -> anyhow::Result<ServedModel> {
    let path: &Path = &known.path;
    let text = config.tokenizer.as_deref().unwrap_or(path);
    let mut model = ServedModel::open(path, text, config.served_model_name.as_deref())
        .with_context(|| format!("cannot read the tokenizer of the model in {}", text.display()))?;
    // The engine decides the context length and the end-of-sequence tokens; the frontend takes them over.
    anyhow::ensure!(
        model.tokenizer.vocabulary() <= known.vocabulary,
        "the tokenizer of model {} has {} tokens, but the model has embeddings for {}; use the tokenizer that belongs to the model",
        path.display(),
        model.tokenizer.vocabulary(),
        known.vocabulary
    );
    model.context_tokens = model.context_tokens.min(known.context_tokens);
    if config.request.context_tokens > 0 {
        model.context_tokens = model.context_tokens.min(config.request.context_tokens);
    }
    model.eos = known.eos_tokens.clone();
    model.set_parsers(
        config.frontend.tool_call_parser.as_deref(),
        config.frontend.reasoning_parser.as_deref(),
    );
    Ok(model)
}

/// The compiler of grammars for the engine's vocabulary. It builds its tables for the first grammar.
fn grammars(model: &ServedModel, engine: &dyn Engine) -> Grammars {
    let tokenizer = Arc::clone(&model.tokenizer);
    Grammars::new(Arc::new(ModelCompiler::new(tokenizer, engine.model().vocabulary, &model.eos)))
}

/// Returns a function that starts the UCX transport over the engine's page pool.
pub(crate) fn transport(
    config: &Config,
    pool: &Arc<KvPool>,
) -> node::StartTransport<'static, connector::ucx::StartError> {
    let settings = plan::ucx(config, pool.is_on_device());
    let (region, pool) = (actors::pages::region(pool), Arc::clone(pool));
    Box::new(move |sink| {
        let transport =
            UcxTransport::start(vec![region], &settings, Box::new(move || pool.bind_thread()), sink)?;
        tracing::info!(ucx = %transport.library().version(), path = %transport.library().path().display(), "UCX loaded");
        Ok(Arc::new(transport) as Arc<dyn Transport>)
    })
}

/// Logs where peers connect to this process.
fn log_link_port(listener: &TcpListener, config: &Config) -> std::io::Result<()> {
    let address = listener.local_addr()?;
    tracing::info!(%address, key = "link.port", "listening for peers that prefill");
    if config.role == Role::Node && config.link.peers.is_empty() && config.fleet.source().is_none() {
        tracing::info!(
            %address,
            "this node works alone, because link.peers is empty; to connect another process, set its link.peers to this address"
        );
    }
    let warning = Port::link(config).and_then(|port| port.warning(address, config.link.secret.as_ref()));
    if let Some(warning) = warning {
        tracing::warn!(%address, "{warning}");
    }
    Ok(())
}

async fn serve(
    role: Role,
    config: Config,
    mut ports: ListeningSockets,
    limits: Limits,
    engine: Box<dyn Engine>,
    mut model: ServedModel,
    began: Instant,
) -> anyhow::Result<()> {
    let traces = start_traces(&config)?;
    let cache = cache_info(&config, engine.as_ref());
    let grammars = grammars(&model, engine.as_ref());
    let compiler = Arc::clone(grammars.compiler());
    let link = ports.link.as_ref().map(TcpListener::local_addr).transpose()?;
    let (announcing, batches) = Announcing::begin(ports.kv_events.take());
    let node =
        start_node(role, &config, &mut ports, engine, compiler, model.context_tokens, (batches, &traces))?;
    limit_context(&mut model, u64::from(node.request_pages) * u64::from(node.facts.page_tokens));
    if let Some(announcing) = announcing {
        let page_tokens = node.facts.page_tokens;
        let pod = announcing::pod(&config, node.facts.http, ports.frontend.as_ref());
        announcing.publish(EventSource { pod, model: model.name.clone(), page_tokens })?;
    }
    let cache = CacheInfo { request_pages: node.request_pages, ..cache };
    let shared = SharedState::new(&config, cache, model, grammars, limits, traces.clone());
    actix::spawn(report_regularly(shared.observed.clone()));
    let servers = Servers::start(role, &config, ports, &node, &shared)?;
    let registered = joining::join(role, &config, &node, link, &shared)?;
    let left = registered.map(|registered| leave_when_asked(&shared, registered));
    tracing::info!(%role, "ready in {:.1} s", began.elapsed().as_secs_f64());
    let service = ServiceManager::report(reporting::of_node(role, &node, &shared))?;
    drain_when_asked(&shared, &node);
    let mut signals = Signals::new()?;
    let end = ending(&node, &mut signals).await;
    service.end();
    let limit = config.shutdown.drain;
    match &end {
        None => {
            shared.drain.begin();
            end_at_faults(&node, shared.drain.clone(), end_by(Instant::now(), &config));
        }
        Some(fault) => {
            exit_after(limit + TEAR_DOWN_LIMIT, fault.clone())?;
            shared.drain.begin_at_once();
        }
    }
    actix::spawn(async move {
        signals.next().await;
        tracing::warn!("second signal: exiting at once");
        std::process::exit(1);
    });
    shared.drain.reached(DrainStage::Refusing).await;
    let faults = node.faults.clone();
    servers.stop(node.shut_down(limit)).await;
    if let Some(left) = left {
        let _ = left.await;
    }
    report(&shared.observed);
    end_traces(traces).await;
    // A fault during the drain counts too, although the memory was released. The caller prints it as the last line.
    if let Some(fault) = faults.fault() {
        anyhow::bail!(fault.to_owned());
    }
    tracing::info!("ended");
    Ok(())
}

/// Starts the actors. Takes the listening socket of the link out of `ports`. A request has at most `context_tokens` tokens.
fn start_node(
    role: Role,
    config: &Config,
    ports: &mut ListeningSockets,
    engine: Box<dyn Engine>,
    grammars: Arc<dyn GrammarCompiler>,
    context_tokens: u32,
    (kv_events, traces): (Option<Sender<CacheBatch>>, &Traces),
) -> anyhow::Result<Node> {
    let pool = Arc::clone(engine.kv());
    let http = ports.http.as_ref().map(TcpListener::local_addr).transpose()?;
    let listener = ports.link.take();
    listener.as_ref().map(|listener| log_link_port(listener, config)).transpose()?;
    let link = (role != Role::Local).then(|| LinkConfig {
        listener,
        peers: if role.dials_peers() { config.link.peers.clone() } else { Vec::new() },
        versions: Versions::OURS,
        finds_peers: role.dials_peers() && config.fleet.source().is_some(),
        secret: config.link.secret.as_ref().map(|secret| secret.reveal().to_owned()),
        tls: ports.certificates.link.clone(),
        http: config.http.advertise.or(http),
        ring_bytes: config.ring.bytes.0,
        limits: SessionLimits { sessions: config.link.sessions, idle: config.link.idle },
        prefill_pages: config.node.prefill_pages,
        context_tokens,
        page_hash: config.transport.page_hash,
        min_gigabytes_per_second: plan::min_gigabytes_per_second(config),
        pages_in_flight: PAGES_IN_FLIGHT,
        transport: transport(config, &pool),
    });
    Ok(node::start(NodeConfig {
        engine,
        grammars: Some(grammars),
        prefill_chunk_tokens: config.prefill_chunk_tokens(),
        inter_token_bound: config.inter_token_bound(),
        prefix_cache: config.engine.prefix_cache,
        scattered: false,
        routing: routing(config),
        kv_events,
        traces: record_prefills(traces),
        link,
    })?)
}

/// Sends the spans that wait. The thread of the system does not wait for it.
async fn end_traces(traces: Traces) {
    let _ = tokio::task::spawn_blocking(move || traces.end()).await;
}

/// Starts the export of traces, if there is a collector.
fn start_traces(config: &Config) -> Result<Traces, CollectorError> {
    let Some(endpoint) = &config.traces.otlp_endpoint else { return Ok(Traces::default()) };
    let certificates = config.surroundings.hub.certificates.as_deref();
    Traces::start(endpoint, config.traces.sample.into(), config.role.name(), certificates)
}

fn routing(config: &Config) -> RoutingConfig {
    RoutingConfig {
        // Without peers that prefill, there is nothing to choose.
        index_bytes: if config.role.accepts_peers() { config.routing.index_bytes.0 } else { 0 },
        ttft_target: config.routing.ttft_target,
        local_if_sooner_by: config.frontend.local_if_sooner_by,
        local: config.frontend.local,
        seed: random_word(),
    }
}

/// Limits the context of the model to the tokens that the page pool holds.
fn limit_context(model: &mut ServedModel, pool_tokens: u64) {
    if pool_tokens < u64::from(model.context_tokens) {
        tracing::info!(
            context = model.context_tokens,
            tokens = pool_tokens,
            "the page pool limits requests to fewer tokens than the model allows; raise engine.kv_bytes, or lower ring.bytes and \
             node.prefill_pages"
        );
        model.context_tokens = pool_tokens as u32;
    }
}

/// The state that both HTTP ports of a process share.
struct SharedState {
    drain: Drain,
    admission: Admission,
    memory: InputMemory,
    observed: Arc<Observed>,
    membership: Arc<MembershipMetrics>,
    model: Arc<ServedModel>,
    grammars: Grammars,
    limits: Limits,
    traces: Traces,
}

impl SharedState {
    fn new(
        config: &Config,
        cache: CacheInfo,
        model: ServedModel,
        grammars: Grammars,
        limits: Limits,
        traces: Traces,
    ) -> Self {
        let input_bytes = usize::try_from(config.request.input_bytes.0).unwrap_or(usize::MAX);
        let bounds = Bounds {
            concurrency: config.concurrency(),
            queue: config.request.queue,
            // The other half is for bodies that arrive and requests that run.
            queue_bytes: input_bytes / 2,
        };
        Self {
            drain: Drain::new(config.shutdown.delay),
            admission: Admission::new(bounds),
            memory: InputMemory::new(input_bytes, config.surroundings.cores),
            observed: Arc::new(Observed::new(&model.name, cache, config.request.recent)),
            membership: Arc::default(),
            model: Arc::new(model),
            grammars,
            limits,
            traces,
        }
    }
}

fn cache_info(config: &Config, engine: &dyn Engine) -> CacheInfo {
    let layout = engine.kv().layout();
    CacheInfo {
        page_tokens: layout.page_tokens,
        request_pages: engine.kv().pages(),
        dtype: format!("{:?}", layout.dtype).to_lowercase(),
        prefix_cache: config.engine.prefix_cache,
        memory_utilization: config.engine.gpu_memory_utilization,
    }
}

/// Interval of the report on first-token times.
const REPORT_EVERY: Duration = Duration::from_secs(30);

async fn report_regularly(observed: Arc<Observed>) {
    loop {
        tokio::time::sleep(REPORT_EVERY).await;
        report(&observed);
    }
}

fn report(observed: &Observed) {
    if let Some(report) = observed.report() {
        tracing::info!("times to the first token of requests that a sender prefilled\n{report}");
    }
}

/// The limits for clients. The log says if the limit of open files does not allow a connection for each request that may run or wait.
fn limits(config: &Config, open_files: u64, ports: usize) -> Limits {
    let OpenFilePlan { wanted, connections, needed } = OpenFilePlan::new(config, open_files, ports);
    if connections < wanted {
        tracing::warn!(
            open_files,
            connections,
            "each HTTP port takes {connections} connections, fewer than the {wanted} that request.concurrency and request.queue \
             need; raise the hard limit of open files (ulimit -Hn) to {needed}"
        );
    }
    Limits { connections, ..Limits::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Surroundings;
    use crate::kv_events;

    fn config(role: Role) -> Config {
        Config::load(role, None, &[], Surroundings::from_variables([], 2)).unwrap()
    }

    /// The sessions of a node take open files; a process of role local has none. Each connection takes one, for HTTP or for KV events.
    #[test]
    fn open_files_are_reserved_for_sessions_and_subscribers() {
        let connections = |config: &Config| limits(config, 1024, 1).connections;
        let mut local = config(Role::Local);
        assert_eq!((connections(&config(Role::Node)), connections(&local)), (512, 960));
        local.kv_events.enabled = true;
        assert_eq!(connections(&local), 960 - kv_events::CONNECTIONS);
    }

    #[test]
    fn only_a_process_with_peers_that_prefill_has_a_prefix_index() {
        let bytes = |role| routing(&config(role)).index_bytes;
        assert_eq!((bytes(Role::Receiver), bytes(Role::Node)), (16 << 20, 16 << 20));
        assert_eq!((bytes(Role::Sender), bytes(Role::Local)), (0, 0));
    }
}
