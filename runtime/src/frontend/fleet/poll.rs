//! Asks every node of the fleet for its report.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::rt;
use actors::fleet::{NodeView, UNKNOWN_AFTER};
use actors::messages::LoadReport;
use connector::frame::Capabilities;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{FleetMember, FleetProxy, client};
use crate::frontend::node_report::{NodeReport, NodeState};

/// Time between two questions to the same node.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Maximum size of a report: a node with a thousand peers has 30 KiB.
const REPORT_BYTES_MAX: usize = 256 << 10;

/// Asks all nodes every 100 ms, and tells the proxy's state what they answer, until the actix `System` of the caller ends.
pub fn poll(proxy: Arc<FleetProxy>) {
    for index in 0..proxy.members.len() {
        rt::spawn(ask_regularly(Arc::clone(&proxy), index));
    }
    rt::spawn(async move {
        let mut ticks = every(ASK_EVERY);
        loop {
            ticks.tick().await;
            let lost = proxy.state().on_tick(Instant::now());
            for member in lost.into_iter().filter_map(|id| proxy.member(id)) {
                tracing::warn!(node = member.address, "node is silent for 3 s; connections to it are cut");
                member.cut.send_modify(|cuts| *cuts += 1);
            }
        }
    });
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Asks one node. A line is logged when it begins to answer, and when it begins to fail.
async fn ask_regularly(proxy: Arc<FleetProxy>, index: usize) {
    let member = &proxy.members[index];
    let mut failed: Option<String> = Some(String::new());
    let mut ticks = every(ASK_EVERY);
    loop {
        ticks.tick().await;
        let asked = Instant::now();
        let answer = match ask(&proxy, member).await {
            Ok(report) => proxy.state().reported(Instant::now(), member.id, asked, report),
            Err(error) => Err(error),
        };
        match (answer, &failed) {
            (Ok(()), Some(_)) => {
                tracing::info!(node = member.address, "node reports");
                failed = None;
            }
            (Ok(()), None) => {}
            (Err(error), before) if before.as_ref() != Some(&error) => {
                tracing::warn!(node = member.address, "node is left out: {error}");
                failed = Some(error);
            }
            (Err(_), _) => {}
        }
    }
}

async fn ask(proxy: &FleetProxy, member: &FleetMember) -> Result<NodeView, String> {
    let headers = client::headers(proxy.api_key.as_deref());
    let asked = proxy.client.get(&member.address, "/node", headers, REPORT_BYTES_MAX);
    let body = timeout(UNKNOWN_AFTER, asked).await;
    let body = body.map_err(|_| format!("GET /node has no answer after {UNKNOWN_AFTER:?}"))??;
    view(serde_json::from_slice(&body).map_err(|error| format!("GET /node is no report: {error}"))?)
}

fn view(report: NodeReport) -> Result<NodeView, String> {
    let name = u64::from_str_radix(&report.incarnation, 16).map_err(|_| {
        format!("GET /node has the incarnation {:?}, which is no hex number", report.incarnation)
    })?;
    if report.page_tokens == 0 {
        return Err("GET /node has page_tokens 0".to_owned());
    }
    Ok(NodeView {
        name,
        capabilities: Capabilities { prefill: report.prefills, decode: report.decodes },
        accepts: matches!(report.state, NodeState::Ok | NodeState::Degraded),
        model: report.model.into(),
        fingerprint: report.fingerprint.into(),
        page_tokens: report.page_tokens,
        pool_pages: report.pool_pages,
        used_pages: report.used_pages,
        cache_pages: report.cache_pages,
        load: LoadReport::of_peer(report.waiting_tokens, report.begun_tokens, report.nanos_per_token),
        address: report.http,
        prefillers: report.prefillers,
    })
}
