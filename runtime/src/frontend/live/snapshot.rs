//! A snapshot of a process for its live page.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use actors::counters::Counters;
use actors::peer_metrics::PeerReport;
use serde::Serialize;

use super::super::observed::EndedTotals;
use super::super::recent::{EndedSince, RecentRequest, Row, time_of};
use super::super::{Frontend, Health, ServedModel};

/// What a snapshot shows beside the parts of a [`Frontend`].
pub(super) struct LiveFacts<'a> {
    pub(super) counters: &'a Counters,
    pub(super) peers: Vec<PeerReport>,
    /// Maximum of the outstanding credits.
    pub(super) ring_pages: u32,
    pub(super) uptime: Duration,
}

/// What the snapshots of all processes begin with.
#[derive(Serialize)]
pub(in crate::frontend) struct SnapshotHead<'a> {
    role: &'static str,
    model: &'a str,
    version: &'static str,
    pid: u32,
    uptime_s: f64,
    /// The time of this process, as RFC 3339 says.
    time: String,
    /// The state as `/health` reports it.
    state: &'static str,
    /// Why the process does not serve, or what an operator has to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// Whether the model has a chat template.
    chat: bool,
}

impl<'a> SnapshotHead<'a> {
    /// The head of this moment. The state has a word and a reason.
    pub(in crate::frontend) fn new(
        role: &'static str,
        model: &'a ServedModel,
        uptime: Duration,
        (state, reason): (&'static str, Option<&'a str>),
    ) -> Self {
        Self {
            role,
            model: &model.name,
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            uptime_s: uptime.as_millis() as f64 / 1e3,
            time: time_of(SystemTime::now()),
            state,
            reason,
            chat: model.template.is_some(),
        }
    }
}

/// The state of a process at one moment. Totals count from its start.
#[derive(Serialize)]
pub(super) struct LiveSnapshot<'a> {
    #[serde(flatten)]
    head: SnapshotHead<'a>,
    peers: Vec<PeerReport>,
    /// Prompts of peers that wait, are computed or are handed over here.
    prefills: u64,
    pages: PagePool,
    ring: CreditRing,
    queue: Queue,
    totals: Totals,
    /// Number of requests that have been in `requests` since the start.
    ended: u64,
    /// The requests that have ended since the snapshot before, the newest first, as `/debug/requests` lists them.
    requests: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct PagePool {
    /// Pages of the pool.
    pool: u64,
    /// Pages that live requests hold, those of peers included.
    used: u64,
    /// Pages that are reserved for KV in transit.
    reserved: u64,
    /// Pages that no request holds and whose content may be reused.
    cached: u64,
    quarantined: u64,
}

#[derive(Serialize)]
struct CreditRing {
    /// Credits outstanding, in all sessions.
    outstanding: u64,
    /// Their maximum; 0 if no peer writes into this pool.
    pages: u32,
}

#[derive(Serialize)]
struct Queue {
    running: usize,
    waiting: usize,
    /// Maximum of `running`.
    concurrency: usize,
}

#[derive(Serialize)]
struct Totals {
    finished: u64,
    failed: u64,
    turned_away: u64,
    /// Tokens of the prompts of finished answers.
    prompt_tokens: u64,
    /// Prompt tokens that this process has computed, for itself and for peers.
    prompt_tokens_computed: u64,
    /// Tokens of answers, also of those that still run.
    sampled_tokens: u64,
}

impl<'a> LiveSnapshot<'a> {
    /// The snapshot of this moment.
    pub(super) fn new(
        frontend: &'a Frontend,
        health: &'a Health,
        facts: LiveFacts<'_>,
        since: &'a EndedSince<RecentRequest>,
    ) -> Self {
        let LiveFacts { counters, peers, ring_pages, uptime } = facts;
        let load = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let EndedTotals { finished, failed, turned_away, prompt_tokens } = frontend.observed.totals();
        let admission = &frontend.admission;
        Self {
            head: SnapshotHead::new(health.role, &frontend.model, uptime, health.word()),
            peers,
            prefills: load(counters.prefills_live()),
            pages: PagePool {
                pool: load(counters.pages()),
                used: load(counters.pages_live()),
                reserved: load(counters.pages_reserved()),
                cached: load(counters.pages_cached()),
                quarantined: load(counters.pages_quarantined()),
            },
            ring: CreditRing { outstanding: load(counters.pages_outstanding()), pages: ring_pages },
            queue: Queue {
                running: admission.running(),
                waiting: admission.waiting(),
                concurrency: admission.most(),
            },
            totals: Totals {
                finished,
                failed,
                turned_away,
                prompt_tokens,
                prompt_tokens_computed: load(counters.prompt_tokens_computed()),
                sampled_tokens: frontend.streams.tokens(),
            },
            ended: since.added,
            requests: since.requests.iter().map(|ended| ended.row()).collect(),
        }
    }
}
