//! What a proxy counts, and its metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use common::metrics::{Histogram, Metric, MetricsText};

/// Maximum number of nodes that have a label of their own. The others share the label `other`.
const NODES_MAX: usize = 64;

/// Statuses of answers that have a label of their own. The others share the label `other`.
const STATUSES: [u16; 13] = [200, 400, 401, 404, 408, 413, 415, 422, 429, 500, 502, 503, 504];

/// Buckets for the time until an answer begins, as in the nodes.
const FIRST_BYTE_SECONDS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// Buckets for the time until an answer is complete, as in the nodes.
const REQUEST_SECONDS: &[f64] = &[
    0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0,
    60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];

const NODES: Metric = Metric::gauge("baton_proxy_nodes", "Nodes of the fleet.");
const READY: Metric = Metric::gauge("baton_proxy_nodes_ready", "Nodes that take requests now.");
const PAUSED: Metric = Metric::gauge(
    "baton_proxy_nodes_paused",
    "Nodes that get no requests now, because their connections broke.",
);
const UNREADY: Metric = Metric::gauge(
    "baton_proxy_nodes_unready",
    "Nodes of the fleet that take no requests now. Senders do not count.",
);
const LIVE: Metric = Metric::gauge("baton_proxy_requests_live", "Requests in flight.");
const FORWARDED: Metric =
    Metric::counter("baton_proxy_requests_forwarded_total", "Requests that a node has begun to answer.");
const RETRIED: Metric = Metric::counter(
    "baton_proxy_retries_total",
    "Failed attempts after which the request went to another node.",
);
const REFUSED: Metric = Metric::counter(
    "baton_proxy_requests_refused_total",
    "Requests that the proxy answered with 502, 503 or 504.",
);
const BROKEN: Metric =
    Metric::counter("baton_proxy_answers_broken_total", "Answers whose node was lost after they began.");
const RESPONSES: Metric = Metric::counter(
    "baton_proxy_responses_total",
    "Answers that clients got to completions, chats and responses, by status: those of a node that were passed on, and those of the proxy itself. Refusals of an API key, a path or a method are not counted.",
)
.by(&["status", "source"]);
const FIRST_BYTE: Metric = Metric::histogram(
    "baton_proxy_first_byte_seconds",
    "Time from the arrival of a request to the first bytes of a node's answer with status 200.",
);
const WHOLE: Metric = Metric::histogram(
    "baton_proxy_request_seconds",
    "Time from the arrival of a request to the end of a complete answer with status 200.",
);
const ATTEMPTS: Metric = Metric::counter(
    "baton_proxy_attempts_total",
    "Requests sent to a node, by how it answered: answered (200), rejected (another status), busy (429 or 503), failed, out_of_time (the deadline passed, and the node had little of the time), or abandoned (the client left first).",
)
.by(&["node", "outcome"]);
const NODE_PAUSED: Metric = Metric::gauge(
    "baton_proxy_node_paused",
    "1 for a node that gets no requests now, because its connections broke.",
)
.by(&["node"]);

/// How a node has answered one request.
#[derive(Clone, Copy, Debug)]
pub(super) enum AttemptOutcome {
    /// Status 200.
    Answered,
    /// Another status, which the client gets.
    Rejected,
    /// Status 429 or 503.
    Busy,
    /// No valid answer.
    Failed,
    /// No answer until the deadline, of which the node got too little to be at fault.
    OutOfTime,
    /// The client left before the node answered.
    Abandoned,
}

impl AttemptOutcome {
    const NAMES: [&str; 6] = ["answered", "rejected", "busy", "failed", "out_of_time", "abandoned"];
}

/// Who has made an answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum AnswerSource {
    /// A node.
    Node,
    /// The proxy.
    Proxy,
}

impl AnswerSource {
    const NAMES: [&str; 2] = ["node", "proxy"];
}

/// What is counted of one node.
#[derive(Debug)]
pub(super) struct NodeCounts {
    label: Arc<str>,
    attempts: [AtomicU64; AttemptOutcome::NAMES.len()],
}

impl NodeCounts {
    fn new(label: Arc<str>) -> Arc<Self> {
        Arc::new(Self { label, attempts: Default::default() })
    }

    /// The node has answered a request, or has failed to.
    fn attempted(&self, outcome: AttemptOutcome) {
        self.attempts[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A request is sent to the node.
    pub(super) fn attempt(&self) -> Attempt<'_> {
        Attempt { counts: self, outcome: AttemptOutcome::Abandoned }
    }
}

/// A request that was sent to a node. Dropping it counts its outcome.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    counts: &'a NodeCounts,
    outcome: AttemptOutcome,
}

impl Attempt<'_> {
    /// The attempt is over.
    pub(super) fn ended(mut self, outcome: AttemptOutcome) {
        self.outcome = outcome;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.counts.attempted(self.outcome);
    }
}

/// What the proxy has counted.
#[derive(Debug)]
pub(super) struct ProxyCounts {
    pub(super) forwarded: AtomicU64,
    pub(super) retried: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) broken: AtomicU64,
    /// By [`AnswerSource`], and then by [`STATUSES`] and the others.
    responses: [[AtomicU64; STATUSES.len() + 1]; AnswerSource::NAMES.len()],
    /// Complete answers with status 200.
    pub(super) finished: AtomicU64,
    first_byte: Histogram,
    whole: Histogram,
    /// At most [`NODES_MAX`].
    nodes: Mutex<Vec<Arc<NodeCounts>>>,
    other: Arc<NodeCounts>,
}

/// The gauges of the proxy at one moment.
#[derive(Debug, Default)]
pub(super) struct ProxyGauges {
    pub(super) nodes: usize,
    pub(super) ready: usize,
    pub(super) unready: usize,
    pub(super) paused: usize,
    pub(super) live: usize,
    /// Each node, and whether it is paused.
    pub(super) pauses: Vec<(Arc<NodeCounts>, bool)>,
}

impl Default for ProxyCounts {
    fn default() -> Self {
        Self {
            forwarded: AtomicU64::default(),
            retried: AtomicU64::default(),
            refused: AtomicU64::default(),
            broken: AtomicU64::default(),
            responses: Default::default(),
            finished: AtomicU64::default(),
            first_byte: Histogram::seconds(FIRST_BYTE_SECONDS),
            whole: Histogram::seconds(REQUEST_SECONDS),
            nodes: Mutex::default(),
            other: NodeCounts::new("other".into()),
        }
    }
}

impl ProxyCounts {
    /// The counts of a node at this address.
    pub(super) fn node(&self, address: &Arc<str>) -> Arc<NodeCounts> {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = nodes.iter().find(|node| node.label == *address) {
            return Arc::clone(known);
        }
        if nodes.len() == NODES_MAX {
            // Nodes that have left the fleet make room.
            nodes.retain(|node| Arc::strong_count(node) > 1);
        }
        if nodes.len() == NODES_MAX {
            return Arc::clone(&self.other);
        }
        let node = NodeCounts::new(Arc::clone(address));
        nodes.push(Arc::clone(&node));
        node
    }

    /// A client gets an answer with this status.
    pub(super) fn responded(&self, source: AnswerSource, status: u16) {
        let place = STATUSES.iter().position(|known| *known == status).unwrap_or(STATUSES.len());
        self.responses[source as usize][place].fetch_add(1, Ordering::Relaxed);
    }

    /// The first bytes of an answer have come, this long after the request.
    pub(super) fn first_byte(&self, after: Duration) {
        self.first_byte.add(after.as_secs_f64());
    }

    /// An answer is complete, this long after the request.
    pub(super) fn completed(&self, after: Duration) {
        self.whole.add(after.as_secs_f64());
    }

    /// Writes the metrics.
    pub(super) fn write(&self, page: &mut MetricsText, gauges: &ProxyGauges) {
        let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        page.single(&NODES, gauges.nodes);
        page.single(&READY, gauges.ready);
        page.single(&UNREADY, gauges.unready);
        page.single(&PAUSED, gauges.paused);
        page.single(&LIVE, gauges.live);
        page.single(&FORWARDED, load(&self.forwarded));
        page.single(&RETRIED, load(&self.retried));
        page.single(&REFUSED, load(&self.refused));
        page.single(&BROKEN, load(&self.broken));
        let mut responses = page.family(&RESPONSES);
        for (source, counts) in AnswerSource::NAMES.iter().zip(&self.responses) {
            for (place, count) in counts.iter().enumerate() {
                let status = STATUSES.get(place).map_or_else(|| "other".to_owned(), u16::to_string);
                responses.sample(&[&status, source], load(count));
            }
        }
        page.family(&FIRST_BYTE).histogram(&[], &self.first_byte);
        page.family(&WHOLE).histogram(&[], &self.whole);
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut attempts = page.family(&ATTEMPTS);
        for node in nodes.iter().chain([&self.other]) {
            for (outcome, count) in AttemptOutcome::NAMES.iter().zip(&node.attempts) {
                attempts.sample(&[&node.label, outcome], load(count));
            }
        }
        let mut paused = page.family(&NODE_PAUSED);
        let (shared, own): (Vec<_>, Vec<_>) =
            gauges.pauses.iter().partition(|(node, _)| Arc::ptr_eq(node, &self.other));
        own.iter().for_each(|(node, is_paused)| paused.sample(&[&node.label], u8::from(*is_paused)));
        let rest = shared.iter().filter(|(_, is_paused)| *is_paused).count();
        paused.sample(&[&self.other.label], rest);
    }
}

/// Writes the metrics of a proxy that has counted nothing.
pub(crate) fn write_none(page: &mut MetricsText) {
    ProxyCounts::default().write(page, &ProxyGauges::default());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(counts: &ProxyCounts, gauges: &ProxyGauges) -> String {
        let mut page = MetricsText::default();
        counts.write(&mut page, gauges);
        page.into_string()
    }

    #[test]
    fn answers_are_counted_by_status_and_source() {
        let counts = ProxyCounts::default();
        for (source, status) in
            [(AnswerSource::Node, 429), (AnswerSource::Proxy, 503), (AnswerSource::Proxy, 418)]
        {
            counts.responded(source, status);
        }
        let text = written(&counts, &ProxyGauges::default());
        for (status, source, count) in
            [("429", "node", 1), ("429", "proxy", 0), ("503", "proxy", 1), ("other", "proxy", 1)]
        {
            let line =
                format!("\nbaton_proxy_responses_total{{status=\"{status}\",source=\"{source}\"}} {count}\n");
            assert!(text.contains(&line), "{line} is not in {text}");
        }
    }

    #[test]
    fn an_attempt_is_counted_once_even_if_its_client_leaves() {
        let counts = ProxyCounts::default();
        let node = counts.node(&"10.0.0.1:1".into());
        node.attempt().ended(AttemptOutcome::Answered);
        node.attempt().ended(AttemptOutcome::OutOfTime);
        drop(node.attempt());
        let text = written(&counts, &ProxyGauges::default());
        for (outcome, count) in [("answered", 1), ("failed", 0), ("out_of_time", 1), ("abandoned", 1)] {
            let line = format!(
                "\nbaton_proxy_attempts_total{{node=\"10.0.0.1:1\",outcome=\"{outcome}\"}} {count}\n"
            );
            assert!(text.contains(&line), "{line} is not in {text}");
        }
    }

    #[test]
    fn the_labels_of_nodes_are_bounded_and_become_free() {
        let counts = ProxyCounts::default();
        let node = |n: usize| counts.node(&format!("10.0.0.1:{n}").into());
        let first: Vec<_> = (0..NODES_MAX).map(node).collect();
        let one_too_many = node(NODES_MAX);
        one_too_many.attempted(AttemptOutcome::Failed);
        node(3).attempted(AttemptOutcome::Busy);
        let gauges = ProxyGauges {
            pauses: vec![(node(3), true), (node(4), false), (one_too_many, true)],
            ..ProxyGauges::default()
        };
        let text = written(&counts, &gauges);
        for line in [
            "baton_proxy_attempts_total{node=\"10.0.0.1:3\",outcome=\"busy\"} 1",
            "baton_proxy_attempts_total{node=\"other\",outcome=\"failed\"} 1",
            "baton_proxy_node_paused{node=\"10.0.0.1:3\"} 1",
            "baton_proxy_node_paused{node=\"10.0.0.1:4\"} 0",
            "baton_proxy_node_paused{node=\"other\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
        drop((first, gauges));
        node(NODES_MAX + 1).attempted(AttemptOutcome::Answered);
        let text = written(&counts, &ProxyGauges::default());
        assert!(text.contains(&format!("node=\"10.0.0.1:{}\",outcome=\"answered\"}} 1", NODES_MAX + 1)));
        assert!(!text.contains("10.0.0.1:3\""), "it has left the fleet");
    }
}
