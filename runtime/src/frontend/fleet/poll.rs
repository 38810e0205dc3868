//! Asks every node of the fleet for its report.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix_web::rt;
use actors::fleet::{NodeView, UNKNOWN_AFTER};
use actors::messages::LoadReport;
use connector::frame::Capabilities;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::client::NodeClient;
use super::live::ShownReport;
use super::{FleetMember, FleetProxy};
use crate::frontend::node_report::{DecodeReport, NodeReport, NodeState};
use crate::tls::NodesTls;

/// Time between two questions to the same node.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Maximum length of an error in the log. A node decides what is in it.
const LOGGED_CHARACTERS: usize = 600;

/// Maximum size of a report: a node with a thousand peers has 30 KiB.
const REPORT_BYTES_MAX: usize = 256 << 10;

/// Asks all nodes every 100 ms, and tells the proxy's state what they answer, until the actix `System` of the caller ends.
pub fn poll(proxy: Arc<FleetProxy>) {
    for member in proxy.members().values() {
        rt::spawn(ask_regularly(Arc::clone(&proxy), Arc::clone(member)));
    }
    rt::spawn(async move {
        let mut ticks = every(ASK_EVERY);
        loop {
            ticks.tick().await;
            let now = Instant::now();
            let (lost, gone) = {
                let mut state = proxy.state();
                (state.on_tick(now), state.gone(now))
            };
            for member in lost.into_iter().filter_map(|id| proxy.member(id)) {
                tracing::warn!(
                    node = &*member.address,
                    "node gave no valid report for 3 s; connections to it are cut"
                );
                member.cut.send_modify(|cuts| *cuts += 1);
            }
            for member in gone.iter().filter_map(|id| proxy.members().remove(id)) {
                member.is_gone.store(true, Ordering::Relaxed);
                tracing::info!(node = &*member.address, "node has left the fleet and does not answer");
            }
        }
    });
}

/// The fleet's membership names these nodes. New ones are asked from now on. The others stay until they do not answer for 3 s.
pub fn set_nodes(proxy: &Arc<FleetProxy>, addresses: Vec<String>) {
    let new = proxy.state().named(addresses.into_iter().map(Arc::from));
    for (id, address) in new {
        let member = Arc::new(FleetMember::new(id, address, &proxy.counts));
        rt::spawn(ask_regularly(Arc::clone(proxy), Arc::clone(&member)));
        proxy.members().insert(id, member);
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Asks one node until it has left the fleet. A line is logged when it begins to answer, and when it begins to fail.
async fn ask_regularly(proxy: Arc<FleetProxy>, member: Arc<FleetMember>) {
    // `None`: it has not been asked yet.
    let mut reports: Option<bool> = None;
    let mut ticks = every(ASK_EVERY);
    loop {
        ticks.tick().await;
        if member.is_gone.load(Ordering::Relaxed) {
            return;
        }
        let asked = Instant::now();
        let answer = match ask(&proxy, &member).await {
            Ok((report, facts)) => {
                member.reported().facts = Some(facts);
                proxy.state().reported(Instant::now(), member.id, asked, report)
            }
            Err(error) => Err(error),
        };
        member.reported().fault = answer.as_ref().err().map(|error| shortened(error));
        let before = reports.replace(answer.is_ok());
        match answer {
            Ok(()) if before != Some(true) => tracing::info!(node = &*member.address, "node reports"),
            Err(error) if before != Some(false) => {
                tracing::warn!(node = &*member.address, "node is left out: {}", shortened(&error));
            }
            _ => {}
        }
    }
}

fn shortened(error: &str) -> String {
    error.chars().take(LOGGED_CHARACTERS).collect()
}

async fn ask(proxy: &FleetProxy, member: &FleetMember) -> Result<(NodeView, ShownReport), String> {
    let asked = timeout(UNKNOWN_AFTER, proxy.polls.get(&member.address, "/node", REPORT_BYTES_MAX)).await;
    let (body, from) = asked.map_err(|_| format!("GET /node has no answer after {UNKNOWN_AFTER:?}"))??;
    let report: NodeReport =
        serde_json::from_slice(&body).map_err(|error| format!("GET /node is no report: {error}"))?;
    let facts = ShownReport::of(&report);
    Ok((view(report, from.map(|from| from.ip()))?, facts))
}

/// Asks a node for its report once, as a proxy does.
///
/// # Errors
/// Why there is none, in one sentence.
pub(crate) async fn node_report(address: &str, tls: Option<NodesTls>) -> Result<NodeReport, String> {
    let client = NodeClient::new(tls);
    let (body, _) = client.get(address, "/node", REPORT_BYTES_MAX).await?;
    serde_json::from_slice(&body).map_err(|error| format!("GET /node is no report: {error}"))
}

/// What the state needs to know. The report came from the address `from`.
fn view(report: NodeReport, from: Option<IpAddr>) -> Result<NodeView, String> {
    let name = u64::from_str_radix(&report.incarnation, 16)
        .map_err(|_| "GET /node has an incarnation that is no hex number".to_owned())?;
    // A node that listens on all addresses does not know the one under which others reach it.
    let address = report.http.and_then(|http| match from {
        Some(from) if http.ip().is_unspecified() => Some(SocketAddr::new(from, http.port())),
        _ => (!http.ip().is_unspecified()).then_some(http),
    });
    if report.page_tokens == 0 {
        return Err("GET /node has page_tokens 0".to_owned());
    }
    Ok(NodeView {
        name,
        capabilities: Capabilities { prefill: report.prefills, decode: report.decodes },
        accepts: matches!(report.state, NodeState::Ok | NodeState::Degraded),
        model: report.model.into(),
        fingerprint: report.fingerprint.into(),
        context_tokens: report.context_tokens,
        page_tokens: report.page_tokens,
        pool_pages: report.pool_pages,
        used_pages: report.used_pages,
        cache_pages: report.cache_pages,
        queued: report.waiting,
        load: LoadReport {
            decoding: report.decoding,
            decode: report.decode.map(DecodeReport::steps),
            ..LoadReport::of_peer(report.waiting_tokens, report.begun_tokens, report.nanos_per_token)
        },
        address,
        prefillers: report.prefillers,
    })
}
