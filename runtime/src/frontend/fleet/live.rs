//! The live page of a proxy and its data: the nodes of the fleet, and the requests that were forwarded.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;

use super::FleetProxy;
use super::record::{ForwardedRequest, ForwardedRow};
use crate::frontend::handlers::no_such_path;
use crate::frontend::live::{REQUESTS_MAX, SnapshotHead};
use crate::frontend::node_report::{NodeReport, NodeState};
use crate::frontend::recent::{self, EndedSince};
use crate::frontend::response::json;

/// The state of a proxy at one moment. Totals count from its start.
#[derive(Serialize)]
struct FleetSnapshot<'a> {
    #[serde(flatten)]
    head: SnapshotHead<'a>,
    nodes: Vec<NodeRow<'a>>,
    /// Nodes that take requests.
    ready: usize,
    /// Requests that are forwarded now.
    live: usize,
    totals: Totals,
    /// Number of requests that have been in `requests` since the start.
    ended: u64,
    /// The requests that have ended since the snapshot before, the newest first, as `/debug/requests` lists them.
    requests: Vec<ForwardedRow<'a>>,
}

/// A node of the fleet.
#[derive(Serialize)]
struct NodeRow<'a> {
    address: &'a str,
    /// It takes requests.
    ready: bool,
    /// It gets no requests now, because its connections broke.
    paused: bool,
    /// Its last report is fresh.
    known: bool,
    /// Requests that it has answered with status 200, and those that got no valid answer.
    answered: u64,
    failed: u64,
    #[serde(flatten)]
    reported: Reported,
}

/// What is known of the reports of a node.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Reported {
    /// Its last report.
    #[serde(rename = "report", skip_serializing_if = "Option::is_none")]
    pub(super) facts: Option<ShownReport>,
    /// Why the node is left out, or why there is no new report.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fault: Option<String>,
}

/// The parts of a node's report that the page shows.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ShownReport {
    role: String,
    model: String,
    state: NodeState,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    decodes: bool,
    running: u64,
    waiting: u64,
    decoding: u32,
    pool_pages: u32,
    used_pages: u32,
}

impl ShownReport {
    pub(super) fn of(report: &NodeReport) -> Self {
        let NodeReport { state, decodes, running, waiting, decoding, pool_pages, used_pages, .. } = *report;
        let (role, model, reason) = (report.role.clone(), report.model.clone(), report.reason.clone());
        Self { role, model, state, reason, decodes, running, waiting, decoding, pool_pages, used_pages }
    }
}

#[derive(Serialize)]
struct Totals {
    /// Complete answers with status 200.
    finished: u64,
    /// Requests that no node answered, and answers that broke off.
    failed: u64,
    /// Requests that were sent to another node.
    retried: u64,
}

/// The snapshot of this moment, as JSON.
fn snapshot(proxy: &FleetProxy, uptime: Duration, since: &EndedSince<ForwardedRequest>) -> String {
    let now = Instant::now();
    let members: Vec<_> = proxy.members().values().cloned().collect();
    let standings: Vec<_> = {
        let state = proxy.state();
        let standing = |id| (state.is_ready(now, id), state.is_paused(now, id), state.is_known(now, id));
        members.iter().map(|member| standing(member.id)).collect()
    };
    let nodes = members.iter().zip(standings).map(|(member, (ready, paused, known))| NodeRow {
        address: &member.address,
        ready,
        paused,
        known,
        answered: member.answered.load(Ordering::Relaxed),
        failed: member.failed.load(Ordering::Relaxed),
        reported: member.reported().clone(),
    });
    let counts = &proxy.counts;
    json(&FleetSnapshot {
        head: SnapshotHead::new("proxy", &proxy.model, uptime, proxy.word()),
        nodes: nodes.collect(),
        ready: proxy.ready(),
        live: proxy.state().live(),
        totals: Totals {
            finished: counts.finished.load(Ordering::Relaxed),
            failed: counts.refused.load(Ordering::Relaxed) + counts.broken.load(Ordering::Relaxed),
            retried: counts.retried.load(Ordering::Relaxed),
        },
        ended: since.added,
        requests: since.requests.iter().map(|ended| ended.row()).collect(),
    })
}

/// `GET /`.
pub(super) async fn page(proxy: web::Data<FleetProxy>, request: HttpRequest) -> HttpResponse {
    match &proxy.page {
        Some(page) => page.text().response(),
        None => no_such_path(request).await,
    }
}

/// `GET /debug/live`.
pub(super) async fn stream(proxy: web::Data<FleetProxy>, request: HttpRequest) -> HttpResponse {
    let Some(page) = proxy.page.clone() else { return no_such_path(request).await };
    let has_key = proxy.api_key.is_some();
    let mut seen = 0;
    page.clone().respond(has_key, request, move || {
        let ended = proxy.recent.since(seen, REQUESTS_MAX);
        seen = ended.added;
        snapshot(&proxy, page.uptime(), &ended)
    })
}

/// `GET /debug/requests`.
pub(super) async fn requests(proxy: web::Data<FleetProxy>, request: HttpRequest) -> HttpResponse {
    let newest = proxy.recent.newest_first();
    let rows = || newest.iter().map(|ended| ended.row()).collect();
    recent::respond(proxy.api_key.is_some(), &request, rows)
}
