//! What the service manager is told of a process that serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actors::node::Node;

use super::SharedState;
use super::servers::health_state;
use crate::config::Role;
use crate::drain::{Drain, DrainStage};
use crate::frontend::{FleetOverview, FleetProxy, HealthState};
use crate::service_manager::state::ServiceView;

/// Interval at which a proxy counts its progress.
const PROGRESS: Duration = Duration::from_millis(250);

/// Shows a process that has an engine.
pub(super) fn of_node(
    role: Role,
    node: &Node,
    shared: &SharedState,
) -> impl Fn() -> ServiceView + Send + 'static {
    let (health, counters, streams) = (node.health.clone(), node.counters.clone(), node.streams.clone());
    let (admission, drain, model) = (shared.admission.clone(), shared.drain.clone(), shared.model.clone());
    move || {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = health_state(health.fault(), drain.stage(), load(counters.pages_quarantined()));
        let work = NodeStatus {
            role,
            model: &model.name,
            running: streams.len() as u64 + load(counters.prefills_live()),
            waiting: admission.waiting() as u64,
            peers: load(counters.sessions_ready()),
        };
        ServiceView {
            is_ready: matches!(state, HealthState::Ok | HealthState::Degraded { .. }),
            is_ending: false,
            progress: health.checks_passed(),
            status: work.line(&state),
        }
    }
}

/// What a node does at one moment.
struct NodeStatus<'a> {
    role: Role,
    model: &'a str,
    /// Requests that run, and prompts of peers.
    running: u64,
    waiting: u64,
    peers: u64,
}

impl NodeStatus<'_> {
    /// One line for a person.
    fn line(&self, state: &HealthState) -> String {
        let Self { role, model, running, waiting, peers } = self;
        let mut work = format!("{running} running, {waiting} waiting");
        if *role != Role::Local {
            work += &format!(", {peers} peers");
        }
        match state {
            HealthState::Ok => format!("serving {model}: {work}"),
            HealthState::Degraded { reason } => format!("serving {model}: {work}; {reason}"),
            HealthState::Draining { .. } => format!("draining: {work}"),
            HealthState::Down { reason } => format!("down: {reason}"),
        }
    }
}

/// Shows a proxy. A task counts the progress of the thread that polls the nodes.
pub(super) fn of_proxy(proxy: Arc<FleetProxy>, drain: Drain) -> impl Fn() -> ServiceView + Send + 'static {
    let progress = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&progress);
    actix::spawn(async move {
        loop {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(PROGRESS).await;
        }
    });
    move || {
        let overview = proxy.overview();
        ServiceView {
            // Its port is open. Waiting for a node would delay the boot of the machine.
            is_ready: true,
            is_ending: false,
            progress: progress.load(Ordering::Relaxed),
            status: proxy_status(overview, drain.stage()),
        }
    }
}

/// One line for a person.
fn proxy_status(overview: FleetOverview, stage: DrainStage) -> String {
    let FleetOverview { ready, nodes, live_requests } = overview;
    let doing = if stage == DrainStage::Serving { "forwarding" } else { "draining" };
    format!("{doing}: {live_requests} running, {ready} of {nodes} nodes take requests")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_says_what_a_node_does() {
        let line =
            |role, state| NodeStatus { role, model: "m", running: 3, waiting: 1, peers: 2 }.line(&state);
        let reason = || "the reason".to_owned();
        for (role, state, expect) in [
            (Role::Local, HealthState::Ok, "serving m: 3 running, 1 waiting"),
            (Role::Sender, HealthState::Ok, "serving m: 3 running, 1 waiting, 2 peers"),
            (
                Role::Node,
                HealthState::Degraded { reason: reason() },
                "serving m: 3 running, 1 waiting, 2 peers; the reason",
            ),
            (Role::Local, HealthState::Draining { reason: reason() }, "draining: 3 running, 1 waiting"),
            (Role::Local, HealthState::Down { reason: reason() }, "down: the reason"),
        ] {
            assert_eq!(line(role, state), expect);
        }
    }

    #[test]
    fn the_status_of_a_proxy_has_its_nodes() {
        let overview = FleetOverview { ready: 2, nodes: 3, live_requests: 5 };
        let serving = proxy_status(overview, DrainStage::Serving);
        assert_eq!(serving, "forwarding: 5 running, 2 of 3 nodes take requests");
        assert!(proxy_status(overview, DrainStage::Leaving).starts_with("draining: 5"));
    }
}
