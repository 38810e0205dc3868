//! Starts and stops the proxy of a fleet. It has no engine: `model` needs the tokenizer and the chat template only.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use common::metrics::MetricsText;

use crate::config::{Config, Role};
use crate::drain::Drain;
use crate::frontend::{FleetProxy, FleetSettings, InputMemory, Limits, ServedModel, bind, poll, set_nodes};
use crate::membership::{self, MembershipMetrics};
use crate::open_files;
use crate::process_metrics::ProcessMetrics;
use crate::roles::{
    certificates::Certificates, end_traces, ending::Signals, exposure::Port, joining, reporting, start_traces,
};
use crate::service_manager::{self, ServiceManager};

/// Runs a proxy until a signal ends it.
///
/// # Errors
/// Why the process could not start, in one sentence.
pub(super) fn run(config: Config) -> anyhow::Result<()> {
    let began = Instant::now();
    let open_files = open_files::raise();
    let certificates = Certificates::open(Role::Proxy, &config)?;
    let listener = bind("frontend.port", &config.frontend.host, config.frontend.port)?;
    tracing::info!(role = "proxy", pid = std::process::id(), model = %config.model.display(), "starting");
    service_manager::report_start("reading the tokenizer");
    let model = served_text(&config)?;
    let limits = Limits { connections: connections(open_files), ..Limits::default() };
    let input_bytes = usize::try_from(config.request.input_bytes.0).unwrap_or(usize::MAX);
    let traces = start_traces(&config)?;
    let drain = Drain::new(config.shutdown.delay);
    let membership = Arc::new(MembershipMetrics::default());
    let proxy = Arc::new(FleetProxy::new(FleetSettings {
        nodes: config.fleet.nodes.clone(),
        model: Arc::new(model),
        memory: InputMemory::new(input_bytes, config.surroundings.cores),
        limits,
        deadline: config.request.deadline,
        api_key: config.request.api_key.as_ref().map(|key| key.reveal().to_owned()),
        tls: certificates.http,
        nodes_tls: certificates.nodes,
        drain: drain.clone(),
        more_metrics: Arc::new({
            let membership = membership.clone();
            let process = ProcessMetrics::new(Role::Proxy.name(), "none", certificates.expiries);
            move |page: &mut MetricsText| {
                membership.write(page);
                process.write(page);
            }
        }),
        index_bytes: config.routing.index_bytes.0,
        ttft_target: config.routing.ttft_target,
        traces: traces.clone(),
        recent: config.request.recent,
        has_page: config.frontend.page,
    }));
    actix::System::new().block_on(async {
        let result = serve(config, drain, membership, proxy, listener, began).await;
        end_traces(traces).await;
        result
    })
}

/// The tokenizer and the chat template of the model.
pub(crate) fn served_text(config: &Config) -> anyhow::Result<ServedModel> {
    let text = config.tokenizer.as_deref().unwrap_or(&config.model);
    let mut model = ServedModel::open(&config.model, text, config.served_model_name.as_deref())
        .with_context(|| format!("cannot read the tokenizer of the model in {}", text.display()))?;
    model.set_parsers(
        config.frontend.tool_call_parser.as_deref(),
        config.frontend.reasoning_parser.as_deref(),
    );
    Ok(model)
}

/// Open files of a proxy for each client: its connection, and two to nodes.
pub(crate) const FILES_PER_CLIENT: u64 = 3;

/// Connections of clients that this limit of open files allows. Two thirds of the files are for connections to nodes: while load moves from one node to another,
/// a client has a connection in use and one that is idle.
pub(crate) fn connections(open_files: u64) -> usize {
    open_files::connections(open_files / FILES_PER_CLIENT, Limits::CONNECTIONS, 1, open_files::reserved(0, 0))
}

async fn serve(
    config: Config,
    drain: Drain,
    metrics: Arc<MembershipMetrics>,
    proxy: Arc<FleetProxy>,
    listener: TcpListener,
    began: Instant,
) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    let scheme = if config.tls.cert_file.is_some() { "https" } else { "http" };
    tracing::info!(url = %format_args!("{scheme}://{address}"), key = "frontend.port", "listening");
    if let Some(warning) = Port::Http.warning(address, config.request.api_key.as_ref()) {
        tracing::warn!(%address, key = "frontend.port", "{warning}");
    }
    poll(Arc::clone(&proxy));
    if let Some(source) = joining::source(Role::Proxy, &config) {
        follow(Arc::clone(&proxy), membership::join(source, None, &metrics)?.members);
    }
    let server = Arc::clone(&proxy).serve(listener, config.surroundings.cores, config.shutdown.drain)?;
    let handle = server.handle();
    actix::spawn(server);
    tracing::info!(
        role = "proxy",
        nodes = config.fleet.nodes.len(),
        "ready in {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let service = ServiceManager::report(reporting::of_proxy(proxy, drain.clone()))?;
    let mut signals = Signals::new()?;
    let signal = signals.next().await;
    service.end();
    tracing::info!(signal, "shutting down");
    drain.begin();
    actix::spawn(async move {
        signals.next().await;
        tracing::warn!("second signal: exiting at once");
        std::process::exit(1);
    });
    // `stop` refuses new connections as soon as it is called, and completes when the requests have ended.
    drain.run(|| (), || (), async { handle.stop(true).await }).await;
    tracing::info!("ended");
    Ok(())
}

/// Forwards requests to the members of the fleet that have an HTTP port.
fn follow(proxy: Arc<FleetProxy>, mut members: membership::MembersWatch) {
    actix::spawn(async move {
        while members.changed().await.is_ok() {
            let found = members.borrow_and_update().clone();
            let addresses = found.iter().filter_map(|member| member.http);
            set_nodes(&proxy, addresses.map(|address| address.to_string()).collect());
        }
    });
}
