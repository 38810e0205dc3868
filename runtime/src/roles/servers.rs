//! The HTTP servers of a process, and what they report of the node.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actors::node::{Node, NodeWork};
use actors::request::Route;
use common::metrics::MetricsText;
use tokio::time::timeout;

use super::certificates::Certificates;
use super::exposure::Port;
use super::{ListeningSockets, SharedState};
use crate::config::{Config, Role, Secret};
use crate::drain::DrainStage;
use crate::frontend::{
    AnswerCounts, DecodeReport, DrainControl, Frontend, Health, HealthState, LeftWork, LivePage, NodeReport,
    NodeState, ServerHandle, used_pages,
};
use crate::process_metrics::ProcessMetrics;

/// The running servers.
pub(super) struct Servers {
    /// The server of `http.port`.
    http: Option<ServerHandle>,
    /// The server of `frontend.port`.
    frontend: Option<ServerHandle>,
}

/// Time for clients of `http.port` to read the ends of their answers after the last request has ended.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

impl Servers {
    /// Starts a server for each HTTP port of the process.
    pub(super) fn start(
        role: Role,
        config: &Config,
        ports: ListeningSockets,
        node: &Node,
        shared: &SharedState,
    ) -> anyhow::Result<Self> {
        let certificates = &ports.certificates;
        let page = config.frontend.page.then(|| {
            let (counters, peers) = (node.counters.clone(), node.peer_metrics.clone());
            LivePage::new(counters, peers, node.ring_pages, shared.drain.clone())
        });
        let http = Frontend {
            route: Route::Local,
            // The clients of this port are routers, which choose where each request runs.
            trusts_header: true,
            node: Some(node_report(role, node, shared)),
            drain_control: Some(drain_control(node, shared)),
            page: page.clone(),
            ..frontend(role, config, node, shared, certificates)
        };
        let frontend = Frontend { page, ..frontend(role, config, node, shared, certificates) };
        let (workers, api_key) = (config.surroundings.cores.min(2), config.request.api_key.as_ref());
        Ok(Self {
            http: start(("http.port", ports.http), http, 1, api_key)?,
            frontend: start(("frontend.port", ports.frontend), frontend, workers, api_key)?,
        })
    }

    /// Stops the servers. `shut_down` is the end of the node.
    ///
    /// The frontend accepts no more connections from now on, and its server waits for the streams of live requests. The port of the node
    /// reports the drain to routers until the node has ended. The drain refuses requests already.
    pub(super) async fn stop(self, shut_down: impl Future<Output = ()>) {
        let http = async {
            shut_down.await;
            // A client that reads too slowly is cut when the process ends.
            let _ = timeout(LAST_ANSWERS, stop(self.http)).await;
        };
        tokio::join!(http, stop(self.frontend));
    }
}

/// Starts a server if the process has the port of this `key`.
fn start(
    (key, listener): (&'static str, Option<TcpListener>),
    frontend: Frontend,
    workers: usize,
    api_key: Option<&Secret>,
) -> anyhow::Result<Option<ServerHandle>> {
    let Some(listener) = listener else { return Ok(None) };
    let address = listener.local_addr()?;
    let scheme = if frontend.tls.is_some() { "https" } else { "http" };
    tracing::info!(url = %format_args!("{scheme}://{address}"), key, route = ?frontend.route, "listening");
    if let Some(warning) = Port::Http.warning(address, api_key) {
        tracing::warn!(%address, key, "{warning}");
    }
    let server = frontend.serve(listener, workers)?;
    let handle = server.handle();
    actix::spawn(server);
    Ok(Some(handle))
}

async fn stop(server: Option<ServerHandle>) {
    if let Some(server) = server {
        server.stop(true).await;
    }
}

/// The port `frontend.port`.
fn frontend(
    role: Role,
    config: &Config,
    node: &Node,
    shared: &SharedState,
    certificates: &Certificates,
) -> Frontend {
    let (health, streams, counters) = (node.health.clone(), node.streams.clone(), node.counters.clone());
    let (metrics, observed, live) = (node.counters.clone(), shared.observed.clone(), node.streams.clone());
    let (peers, model) = (node.peer_metrics.clone(), shared.model.clone());
    let process =
        ProcessMetrics::new(role.name(), config.engine.device.name(), certificates.expiries.clone());
    let (queue, drain, membership) =
        (shared.admission.clone(), shared.drain.clone(), shared.membership.clone());
    Frontend {
        generate: node.generate(),
        abort: node.abort(),
        streams: node.streams.clone(),
        model: shared.model.clone(),
        grammars: shared.grammars.clone(),
        observed: shared.observed.clone(),
        traces: shared.traces.clone(),
        route: Route::Auto,
        trusts_header: config.frontend.trust_header,
        deadline: config.request.deadline,
        api_key: config.request.api_key.as_ref().map(|key| key.reveal().to_owned()),
        limits: shared.limits,
        tls: certificates.http.clone(),
        admission: shared.admission.clone(),
        memory: shared.memory.clone(),
        health: Arc::new(move || Health {
            state: health_state(health.fault(), drain.stage(), load(counters.pages_quarantined())),
            role: role.name(),
            peers: load(counters.sessions_ready()) as usize,
            live_requests: streams.len(),
        }),
        node: None,
        drain_control: None,
        page: None,
        metrics: Arc::new(move |page: &mut MetricsText| {
            // Unlike `running` in `/node`, this count has the prompts of peers, so that a router sees the load of a sender.
            let running = live.len() + load(metrics.prefills_live()) as usize;
            metrics.write(page);
            observed.write(page, &metrics, AnswerCounts { running, waiting: queue.waiting() });
            live.write_metrics(&model.name, page);
            peers.write(page);
            membership.write(page);
            process.write(page);
        }),
        drain: config.shutdown.drain + Duration::from_secs(2),
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// The health of a process that may have failed with `fault`, may drain, and has quarantined this many KV pages.
pub(super) fn health_state(fault: Option<String>, drain: DrainStage, quarantined_pages: u64) -> HealthState {
    let draining = |text: &str| HealthState::Draining { reason: text.to_owned() };
    match (fault, drain, quarantined_pages) {
        (Some(reason), ..) => HealthState::Down { reason },
        (None, DrainStage::Leaving | DrainStage::Refusing, _) => {
            draining("the process is draining: it finishes its requests and is to get no new ones")
        }
        (None, DrainStage::Drained, _) => {
            draining("the process is drained: it has no requests and takes no new ones")
        }
        (None, DrainStage::Serving, 0) => HealthState::Ok,
        (None, DrainStage::Serving, pages) => HealthState::Degraded {
            reason: format!(
                "{pages} KV pages are quarantined because lost senders may still write them; they become free when those sender \
                 processes end, so end the processes that hang"
            ),
        },
    }
}

/// What `/admin/drain` controls and reports.
fn drain_control(node: &Node, shared: &SharedState) -> DrainControl {
    let (node, admission) = (node.drain.clone(), shared.admission.clone());
    let work = move || {
        let NodeWork { requests, prefills, landing_pages } = node.work();
        LeftWork { running: requests, waiting: admission.waiting(), prefills, landing_pages }
    };
    DrainControl { drain: shared.drain.clone(), work: Arc::new(work) }
}

/// The state in `/node` of a process with this health.
fn node_state(health: HealthState) -> (NodeState, Option<String>) {
    match health {
        HealthState::Ok => (NodeState::Ok, None),
        HealthState::Degraded { reason } => (NodeState::Degraded, Some(reason)),
        HealthState::Draining { reason } => (NodeState::Draining, Some(reason)),
        HealthState::Down { reason } => (NodeState::Down, Some(reason)),
    }
}

/// The function that answers `/node`.
fn node_report(role: Role, node: &Node, shared: &SharedState) -> Arc<dyn Fn() -> NodeReport + Send + Sync> {
    let (health, counters, proxy) = (node.health.clone(), node.counters.clone(), node.report.clone());
    let (streams, admission, drain) = (node.streams.clone(), shared.admission.clone(), shared.drain.clone());
    let (facts, pool_pages, model) = (node.facts, node.request_pages, shared.model.clone());
    let incarnation = format!("{:016x}", facts.incarnation.name());
    let fingerprint: String = facts.fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
    Arc::new(move || {
        let health = health_state(health.fault(), drain.stage(), load(counters.pages_quarantined()));
        let (state, reason) = node_state(health);
        let proxy = proxy.borrow().clone();
        NodeReport {
            incarnation: incarnation.clone(),
            role: role.name().to_owned(),
            prefills: facts.capabilities.prefill,
            decodes: facts.capabilities.decode,
            state,
            reason,
            model: model.name.clone(),
            fingerprint: fingerprint.clone(),
            context_tokens: model.context_tokens,
            page_tokens: facts.page_tokens,
            pool_pages,
            used_pages: used_pages(&counters),
            cache_pages: facts.cache_pages,
            waiting_tokens: proxy.load.waiting_tokens,
            begun_tokens: proxy.load.begun_tokens,
            nanos_per_token: proxy.load.nanos_per_token,
            decoding: proxy.load.decoding,
            decode: proxy.load.decode.map(DecodeReport::of),
            running: streams.len() as u64,
            waiting: admission.waiting() as u64,
            http: facts.http,
            prefillers: proxy.prefillers,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_comes_before_the_drain_and_the_drain_before_a_quarantine() {
        let state = |fault: Option<&str>, drain, pages| {
            node_state(health_state(fault.map(str::to_owned), drain, pages))
        };
        assert_eq!(state(None, DrainStage::Serving, 0), (NodeState::Ok, None));
        let (degraded, reason) = state(None, DrainStage::Serving, 3);
        assert_eq!(degraded, NodeState::Degraded);
        assert!(reason.is_some_and(|reason| reason.starts_with("3 KV pages are quarantined")));
        for pages in [0, 3] {
            let stages = [
                (DrainStage::Leaving, "the process is draining"),
                (DrainStage::Refusing, "the process is draining"),
                (DrainStage::Drained, "the process is drained"),
            ];
            for (drain, expect) in stages {
                let (draining, reason) = state(None, drain, pages);
                assert_eq!(draining, NodeState::Draining);
                assert!(reason.is_some_and(|reason| reason.starts_with(expect)), "{drain:?}");
            }
            for drain in [DrainStage::Serving, DrainStage::Leaving, DrainStage::Drained] {
                let down = (NodeState::Down, Some("engine stopped".to_owned()));
                assert_eq!(state(Some("engine stopped"), drain, pages), down);
            }
        }
    }
}
