//! Metrics of sessions and hand-overs by peer.
//!
//! No state counts them. The routers pass [`PeerMetrics`] each message that concerns a peer. Threads share the cells; a lock is held to look a
//! peer up, and not while the page of metrics is written.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::metrics::{Histogram, Metric, MetricsText};
use connector::frame::peer_text;
use serde::Serialize;

use crate::log::{LaneSpeed, LogLine};
use crate::messages::{PagesSent, SessionId};
use crate::request::Timings;

/// Maximum number of peers that have a label of their own. The others share the label `other`.
const PEERS_MAX: usize = 64;

/// Label of the peers beyond [`PEERS_MAX`], and of those without a session.
const OTHER: &str = "other";

/// Label of prompts that this process has prefilled itself.
const OWN: &str = "own";

/// Direction of a session over which the peer sends pages to this process.
const FROM: &str = "from";

/// Buckets for the times of a hand-over.
const HAND_OVER_SECONDS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

const PROMPTS: Metric = Metric::counter(
    "baton_prompts_prefilled_total",
    "Finished requests by the process that prefilled their prompt: the address of a peer, own, or other.",
)
.by(&["peer"]);
const PAGES: Metric =
    Metric::counter("baton_handover_pages_total", "KV pages that peers handed over for finished requests.")
        .by(&["peer"]);
const BYTES: Metric = Metric::counter(
    "baton_handover_bytes_total",
    "Bytes of KV that peers handed over for finished requests.",
)
.by(&["peer"]);
const WHOLE: Metric = Metric::histogram(
    "baton_handover_seconds",
    "Time of a hand-over from the first put posted to the last flush, in the process that prefilled.",
)
.by(&["peer"]);
const EXPOSED: Metric = Metric::histogram(
    "baton_handover_exposed_seconds",
    "Time from the arrival of the first token to the adoption of the last page: the delay that the hand-over adds.",
)
.by(&["peer"]);
const SENT_PAGES: Metric =
    Metric::counter("baton_pages_sent_total", "KV pages that this process has put to a peer.").by(&["peer"]);
const SENT_SECONDS: Metric = Metric::counter(
    "baton_pages_sent_seconds_total",
    "Time for which the lane to a peer carried the pages in baton_pages_sent_total.",
)
.by(&["peer"]);
const SESSIONS: Metric = Metric::gauge(
    "baton_peer_sessions",
    "Sessions over which pages can be sent: to a receiver, or from a sender, by the lane that UCX chose.",
)
.by(&["peer", "direction", "lane"]);
const SPEED: Metric = Metric::gauge(
    "baton_peer_lane_bytes_per_second",
    "Speed of the lane that the newest of these sessions measured when it began.",
)
.by(&["peer", "direction", "lane"]);
const BROKEN: Metric =
    Metric::counter("baton_sessions_broken_total", "Sessions that ended without a goodbye of either side.");

/// What is known of a peer at one moment. The numbers are those since the start of this process.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PeerReport {
    /// The label of the peer in metrics.
    pub name: String,
    /// Sessions over which the peer can send pages to this process.
    pub sends: u64,
    /// Sessions over which this process can send pages to the peer.
    pub receives: u64,
    /// The lane of the newest session; empty without a session.
    pub lane: String,
    /// The speed that this session measured when it began.
    pub bytes_per_second: f64,
    /// Finished requests whose prompt the peer has prefilled.
    pub prompts: u64,
    /// Pages that the peer has handed over for them.
    pub pages: u64,
    /// Bytes of these pages.
    pub bytes: u64,
    /// Pages that this process has put to the peer.
    pub sent_pages: u64,
}

/// The metrics of all peers of a process. Cheap to clone; clones share them.
#[derive(Clone, Debug, Default)]
pub struct PeerMetrics {
    shared: Arc<Mutex<PeerTable>>,
}

#[derive(Debug, Default)]
struct PeerTable {
    /// At most [`PEERS_MAX`].
    peers: Vec<Arc<PeerCells>>,
    other: Arc<PeerCells>,
    own_prompts: u64,
    sessions: BTreeMap<SessionId, PeerSession>,
    broken: u64,
}

/// The numbers of one peer.
#[derive(Debug)]
struct PeerCells {
    label: String,
    prompts: AtomicU64,
    pages: AtomicU64,
    bytes: AtomicU64,
    whole: Histogram,
    exposed: Histogram,
    sent_pages: AtomicU64,
    sent_micros: AtomicU64,
}

/// A session that is not over.
#[derive(Debug)]
struct PeerSession {
    address: String,
    http: String,
    ready: Option<ReadySession>,
}

#[derive(Clone, Debug)]
struct ReadySession {
    peer: Arc<PeerCells>,
    direction: &'static str,
    lane: String,
    bytes_per_second: f64,
}

impl Default for PeerCells {
    fn default() -> Self {
        Self::new(OTHER.to_owned())
    }
}

impl PeerCells {
    fn new(label: String) -> Self {
        Self {
            label,
            prompts: AtomicU64::default(),
            pages: AtomicU64::default(),
            bytes: AtomicU64::default(),
            whole: Histogram::seconds(HAND_OVER_SECONDS),
            exposed: Histogram::seconds(HAND_OVER_SECONDS),
            sent_pages: AtomicU64::default(),
            sent_micros: AtomicU64::default(),
        }
    }
}

impl PeerSession {
    /// The label of the peer: the HTTP address that it advertises, else its own address. An accepted connection comes from any port, so that
    /// only the IP address names the peer.
    fn label(&self, is_accepted: bool) -> String {
        let from = self.address.parse::<SocketAddr>().map(|address| address.ip());
        match (self.http.parse::<SocketAddr>(), from) {
            (Ok(http), Ok(ip)) if http.ip().is_unspecified() => SocketAddr::new(ip, http.port()).to_string(),
            (Ok(http), _) => http.to_string(),
            (Err(_), Ok(ip)) if is_accepted => ip.to_string(),
            (Err(_), _) => self.address.clone(),
        }
    }
}

impl PeerTable {
    fn peer(&mut self, label: String) -> Arc<PeerCells> {
        if let Some(known) = self.peers.iter().find(|peer| peer.label == label) {
            return Arc::clone(known);
        }
        if self.peers.len() == PEERS_MAX {
            // A peer without a session and without a request is gone, and may have been replaced.
            self.peers.retain(|peer| Arc::strong_count(peer) > 1);
        }
        if self.peers.len() == PEERS_MAX {
            return Arc::clone(&self.other);
        }
        let peer = Arc::new(PeerCells::new(label));
        self.peers.push(Arc::clone(&peer));
        peer
    }

    fn ready(&mut self, session: SessionId, is_accepted: bool, lane: &LaneSpeed) {
        let Some(known) = self.sessions.get(&session) else { return };
        let ready = ReadySession {
            peer: self.peer(known.label(is_accepted)),
            direction: if is_accepted { FROM } else { "to" },
            lane: peer_text(&lane.name),
            bytes_per_second: lane.bytes as f64 * 1e6 / lane.micros.max(1) as f64,
        };
        if let Some(known) = self.sessions.get_mut(&session) {
            known.ready = Some(ready);
        }
    }

    fn of_session(&self, session: SessionId) -> Option<Arc<PeerCells>> {
        Some(Arc::clone(&self.sessions.get(&session)?.ready.as_ref()?.peer))
    }
}

/// Adds without an order with regard to other cells.
fn add(cell: &AtomicU64, count: u64) {
    cell.fetch_add(count, Ordering::Relaxed);
}

/// A peer that has prefilled a prompt.
#[derive(Clone, Debug)]
pub(crate) struct PrefillingPeer(Arc<PeerCells>);

impl PeerMetrics {
    fn table(&self) -> MutexGuard<'_, PeerTable> {
        // Each change is complete by itself.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a line of the log tells of sessions.
    pub(crate) fn log_line(&self, line: &LogLine) {
        match line {
            LogLine::SessionOpening { session, address, http, .. } => {
                let opened = PeerSession { address: address.clone(), http: http.clone(), ready: None };
                self.table().sessions.insert(*session, opened);
            }
            LogLine::ReceiverReady { session, lane } => self.table().ready(*session, false, lane),
            LogLine::SenderReady { session, lane, .. } => self.table().ready(*session, true, lane),
            LogLine::SessionOver { session, orderly, .. } => {
                let mut table = self.table();
                table.sessions.remove(session);
                table.broken += u64::from(!orderly);
            }
            _ => {}
        }
    }

    /// Pages were put to a peer.
    pub(crate) fn pages_sent(&self, sent: &PagesSent) {
        let Some(peer) = self.table().of_session(sent.session) else { return };
        add(&peer.sent_pages, u64::from(sent.count));
        add(&peer.sent_micros, sent.put_micros);
    }

    /// The peer at the other end of a session.
    pub(crate) fn of_session(&self, session: SessionId) -> Option<PrefillingPeer> {
        self.table().of_session(session).map(PrefillingPeer)
    }

    /// A request has finished, whose prompt `peer` has prefilled if another process did.
    pub(crate) fn finished(&self, peer: Option<PrefillingPeer>, timings: &Timings) {
        if timings.prompt_tokens == 0 {
            // The answer was complete before the decoder reported.
            return;
        }
        if !timings.disaggregated {
            self.table().own_prompts += 1;
            return;
        }
        let peer = peer.map_or_else(|| Arc::clone(&self.table().other), |PrefillingPeer(peer)| peer);
        add(&peer.prompts, 1);
        if timings.pages > 0 {
            add(&peer.pages, u64::from(timings.pages));
            add(&peer.bytes, timings.bytes);
            peer.whole.add(timings.transfer_ms / 1e3);
            peer.exposed.add(timings.exposed_ms / 1e3);
        }
    }

    /// The known peers. A peer that is gone stays known until another one needs its place.
    pub fn report(&self) -> Vec<PeerReport> {
        let table = self.table();
        let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let counted = |peer: &Arc<PeerCells>| PeerReport {
            name: peer.label.clone(),
            prompts: load(&peer.prompts),
            pages: load(&peer.pages),
            bytes: load(&peer.bytes),
            sent_pages: load(&peer.sent_pages),
            ..PeerReport::default()
        };
        let mut reports: Vec<_> = table.peers.iter().chain([&table.other]).map(counted).collect();
        for ready in table.sessions.values().filter_map(|session| session.ready.as_ref()) {
            let Some(report) = reports.iter_mut().find(|report| report.name == ready.peer.label) else {
                continue;
            };
            *(if ready.direction == FROM { &mut report.sends } else { &mut report.receives }) += 1;
            report.lane.clone_from(&ready.lane);
            report.bytes_per_second = ready.bytes_per_second;
        }
        let other = PeerReport { name: OTHER.to_owned(), ..PeerReport::default() };
        reports.retain(|report| *report != other);
        reports
    }

    /// Writes the metrics.
    pub fn write(&self, page: &mut MetricsText) {
        let (peers, own, broken, sessions) = {
            let table = self.table();
            let peers: Vec<_> = table.peers.iter().chain([&table.other]).cloned().collect();
            let sessions: Vec<_> =
                table.sessions.values().filter_map(|session| session.ready.clone()).collect();
            (peers, table.own_prompts, table.broken, sessions)
        };
        let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let mut prompts = page.family(&PROMPTS);
        prompts.sample(&[OWN], own);
        peers.iter().for_each(|peer| prompts.sample(&[&peer.label], load(&peer.prompts)));
        let mut pages = page.family(&PAGES);
        peers.iter().for_each(|peer| pages.sample(&[&peer.label], load(&peer.pages)));
        let mut bytes = page.family(&BYTES);
        peers.iter().for_each(|peer| bytes.sample(&[&peer.label], load(&peer.bytes)));
        let mut whole = page.family(&WHOLE);
        peers.iter().for_each(|peer| whole.histogram(&[&peer.label], &peer.whole));
        let mut exposed = page.family(&EXPOSED);
        peers.iter().for_each(|peer| exposed.histogram(&[&peer.label], &peer.exposed));
        let mut sent = page.family(&SENT_PAGES);
        peers.iter().for_each(|peer| sent.sample(&[&peer.label], load(&peer.sent_pages)));
        let mut seconds = page.family(&SENT_SECONDS);
        peers.iter().for_each(|peer| seconds.sample(&[&peer.label], load(&peer.sent_micros) as f64 / 1e6));
        page.single(&BROKEN, broken);

        // Sessions with the same peer over the same kind of lane are one sample.
        let mut lanes: BTreeMap<[&str; 3], (u64, f64)> = BTreeMap::new();
        for ReadySession { peer, direction, lane, bytes_per_second } in &sessions {
            let entry = lanes.entry([&peer.label, direction, lane]).or_default();
            *entry = (entry.0 + 1, *bytes_per_second);
        }
        let mut ready = page.family(&SESSIONS);
        lanes.iter().for_each(|(labels, (count, _))| ready.sample(labels, count));
        let mut speed = page.family(&SPEED);
        lanes.iter().for_each(|(labels, (_, value))| speed.sample(labels, value));
    }
}

#[cfg(test)]
mod tests {
    use connector::frame::Incarnation;

    use super::*;

    fn opens(metrics: &PeerMetrics, session: u64, address: &str, http: &str) -> SessionId {
        let session = SessionId(session);
        metrics.log_line(&LogLine::SessionOpening {
            session,
            peer: Incarnation::current().unwrap(),
            address: address.to_owned(),
            version: 1,
            http: http.to_owned(),
        });
        session
    }

    fn sender_is_ready(metrics: &PeerMetrics, session: SessionId) {
        let lane = LaneSpeed { name: "tcp/lo".to_owned(), bytes: 2_000, micros: 10 };
        metrics.log_line(&LogLine::SenderReady { session, pid: 1, lane });
    }

    fn has(metrics: &PeerMetrics, expect: &[&str]) {
        let mut page = MetricsText::default();
        metrics.write(&mut page);
        let text = page.into_string();
        for line in expect {
            assert!(text.lines().any(|found| found == *line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn hand_overs_and_lanes_are_counted_by_peer() {
        let metrics = PeerMetrics::default();
        let session = opens(&metrics, 1, "10.0.0.1:40000", "10.0.0.1:8100");
        sender_is_ready(&metrics, session);
        let handed_over = Timings {
            disaggregated: true,
            prompt_tokens: 40,
            pages: 3,
            bytes: 300,
            transfer_ms: 2.0,
            exposed_ms: 0.2,
            ..Timings::default()
        };
        metrics.finished(metrics.of_session(session), &handed_over);
        metrics.finished(None, &Timings { prompt_tokens: 5, ..Timings::default() });
        metrics.finished(None, &Timings::default());
        let lane = "{peer=\"10.0.0.1:8100\",direction=\"from\",lane=\"tcp/lo\"}";
        has(
            &metrics,
            &[
                "baton_prompts_prefilled_total{peer=\"own\"} 1",
                "baton_prompts_prefilled_total{peer=\"10.0.0.1:8100\"} 1",
                "baton_handover_pages_total{peer=\"10.0.0.1:8100\"} 3",
                "baton_handover_bytes_total{peer=\"10.0.0.1:8100\"} 300",
                "baton_handover_seconds_sum{peer=\"10.0.0.1:8100\"} 0.002",
                "baton_handover_exposed_seconds_bucket{peer=\"10.0.0.1:8100\",le=\"0.00025\"} 1",
                &format!("baton_peer_sessions{lane} 1"),
                &format!("baton_peer_lane_bytes_per_second{lane} 200000000"),
            ],
        );
        let expect = PeerReport {
            name: "10.0.0.1:8100".to_owned(),
            sends: 1,
            receives: 0,
            lane: "tcp/lo".to_owned(),
            bytes_per_second: 2e8,
            prompts: 1,
            pages: 3,
            bytes: 300,
            sent_pages: 0,
        };
        assert_eq!(metrics.report(), std::slice::from_ref(&expect));
        let incarnation = Incarnation::current().unwrap();
        for (session, orderly) in [(session, false), (SessionId(2), true)] {
            let (address, reason) = (String::new(), String::new());
            metrics.log_line(&LogLine::SessionOver { session, peer: incarnation, address, reason, orderly });
        }
        has(&metrics, &["baton_sessions_broken_total 1", "baton_handover_pages_total{peer=\"other\"} 0"]);
        assert!(metrics.of_session(session).is_none(), "it is over");
        let gone = PeerReport { sends: 0, lane: String::new(), bytes_per_second: 0.0, ..expect };
        assert_eq!(metrics.report(), [gone]);
    }

    #[test]
    fn labels_do_not_depend_on_the_port_of_an_accepted_connection() {
        let label = |address: &str, http: &str, is_accepted| {
            PeerSession { address: address.to_owned(), http: http.to_owned(), ready: None }.label(is_accepted)
        };
        assert_eq!(label("10.0.0.1:40000", "10.0.0.9:8100", true), "10.0.0.9:8100");
        assert_eq!(label("10.0.0.1:40000", "0.0.0.0:8100", true), "10.0.0.1:8100");
        assert_eq!(label("10.0.0.1:40000", "", true), "10.0.0.1");
        assert_eq!(label("10.0.0.1:40000", "evil\"", true), "10.0.0.1");
        assert_eq!(label("host-b:55555", "", false), "host-b:55555");
        assert_eq!(label("10.0.0.1:55555", "", false), "10.0.0.1:55555");
    }

    #[test]
    fn peers_beyond_the_limit_share_a_label() {
        let metrics = PeerMetrics::default();
        for n in 0..=PEERS_MAX as u64 {
            let session = opens(&metrics, n, "10.0.0.1:4", &format!("10.0.0.1:{}", 1000 + n));
            sender_is_ready(&metrics, session);
            let sent =
                PagesSent { session, request: crate::request::RequestId(1), count: 2, put_micros: 500_000 };
            metrics.pages_sent(&sent);
        }
        has(
            &metrics,
            &[
                "baton_pages_sent_total{peer=\"10.0.0.1:1000\"} 2",
                "baton_pages_sent_total{peer=\"other\"} 2",
                "baton_pages_sent_seconds_total{peer=\"other\"} 0.5",
            ],
        );
    }
}
