//! A node: a queue, rows, pages and a prefill at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use actors::fleet::NodeView;
use actors::membership::{Member, Registration};
use actors::messages::{DecodeSteps, LoadReport};
use connector::frame::Capabilities;

use super::plan::{STEP, TOKEN};

pub(super) const PAGE_TOKENS: u32 = 16;
pub(super) const CONTEXT_TOKENS: u32 = 4096;
/// Nodes of one group prefill for each other.
pub(super) const GROUP: usize = 8;
/// Conversations whose KV a node keeps.
const KEPT: usize = 64;

/// What a node does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// It answers.
    Answers,
    Breaks,
    BreaksAnswers,
    Busy,
    Mute,
}

/// A request on a node.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) attempt: u32,
    pub(super) pages: u32,
    /// It has a row and pages.
    pub(super) runs: bool,
    /// Its first byte was sent.
    pub(super) began: bool,
}

/// A node, and its present process.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) address: SocketAddr,
    /// Changes when a process starts or ends.
    pub(super) life: u32,
    pub(super) incarnation: u64,
    pub(super) is_alive: bool,
    pub(super) is_draining: bool,
    pub(super) capabilities: Capabilities,
    pub(super) rows_max: u32,
    pub(super) frozen_until: u64,
    pub(super) without_etcd_until: u64,
    pub(super) slow_until: u64,
    pub(super) manner: (Manner, u64),
    pub(super) ppm: i64,
    pub(super) registration: Registration,
    pub(super) jobs: BTreeMap<u64, Job>,
    pub(super) queue: VecDeque<u64>,
    pub(super) rows: u32,
    pub(super) pages: u32,
    /// When the prompts of its running requests are computed.
    pub(super) free_at: u64,
    /// The conversations whose KV it has.
    kept: (VecDeque<u64>, BTreeSet<u64>),
    /// It has worked for a request for which nothing is broken.
    pub(super) is_used: bool,
    model: Arc<str>,
}

impl Node {
    pub(super) fn new(address: SocketAddr, capabilities: Capabilities, rows_max: u32, ppm: i64) -> Self {
        Self {
            address,
            life: 0,
            incarnation: 0,
            is_alive: false,
            is_draining: false,
            capabilities,
            rows_max,
            frozen_until: 0,
            without_etcd_until: 0,
            slow_until: 0,
            manner: (Manner::Answers, 0),
            ppm,
            registration: Registration::new(1),
            jobs: BTreeMap::new(),
            queue: VecDeque::new(),
            rows: 0,
            pages: 0,
            free_at: 0,
            kept: Default::default(),
            is_used: false,
            model: "m".into(),
        }
    }

    /// A process starts.
    pub(super) fn start(&mut self, now: u64, incarnation: u64) {
        self.end();
        (self.incarnation, self.is_alive, self.free_at) = (incarnation, true, now);
        self.registration = Registration::new(1 + (incarnation % 3) as usize);
    }

    /// The process ends. Returns its requests.
    pub(super) fn end(&mut self) -> BTreeMap<u64, Job> {
        self.life += 1;
        (self.is_alive, self.is_draining) = (false, false);
        (self.frozen_until, self.slow_until, self.manner) = (0, 0, (Manner::Answers, 0));
        (self.rows, self.pages, self.kept) = (0, 0, Default::default());
        self.queue.clear();
        std::mem::take(&mut self.jobs)
    }

    pub(super) fn member(&self) -> Member {
        let name = format!("{:016x}", self.incarnation);
        Member { name, http: Some(self.address), link: None, says: None }
    }

    pub(super) fn is_frozen(&self, now: u64) -> bool {
        now < self.frozen_until
    }

    /// How it handles requests now.
    pub(super) fn handles(&self, now: u64) -> Manner {
        if now < self.manner.1 { self.manner.0 } else { Manner::Answers }
    }

    fn slowness(&self, now: u64) -> u64 {
        if now < self.slow_until { 4 } else { 1 }
    }

    pub(super) fn step(&self, now: u64) -> u64 {
        STEP * self.slowness(now)
    }

    pub(super) fn pool(&self) -> u32 {
        self.rows_max * 48
    }

    pub(super) fn queue_max(&self) -> usize {
        8 * self.rows_max as usize + 64
    }

    /// When this node has computed a prompt of a conversation. From then on it keeps it.
    pub(super) fn prefill(&mut self, now: u64, conversation: u64, tokens: u64) -> u64 {
        let (order, known) = &mut self.kept;
        let work = if known.insert(conversation) { tokens } else { tokens.min(64) };
        if work == tokens {
            order.push_back(conversation);
        }
        if order.len() > KEPT
            && let Some(oldest) = order.pop_front()
        {
            known.remove(&oldest);
        }
        self.free_at = self.free_at.max(now) + work * TOKEN * self.slowness(now);
        self.free_at
    }

    /// The request no longer uses the node. Returns true if it was there.
    pub(super) fn release(&mut self, request: u64, attempt: u32) -> bool {
        let Some(job) = self.jobs.get(&request).filter(|job| job.attempt == attempt).cloned() else {
            return false;
        };
        self.jobs.remove(&request);
        if job.runs {
            self.rows -= 1;
            self.pages -= job.pages;
        } else {
            self.queue.retain(|waiting| *waiting != request);
        }
        true
    }

    /// What it reports.
    pub(super) fn view(&self, now: u64, prefillers: &[SocketAddr]) -> NodeView {
        let token = TOKEN * self.slowness(now);
        let decoding = self.jobs.values().filter(|job| job.began).count() as u32;
        let steps =
            DecodeSteps { rows: decoding.max(1), micros: self.step(now) as u32, least_micros: STEP as u32 };
        let load =
            LoadReport::of_peer(self.free_at.saturating_sub(now) / token, 0, Some(token as u32 * 1000));
        NodeView {
            name: self.incarnation,
            capabilities: self.capabilities,
            accepts: !self.is_draining,
            model: Arc::clone(&self.model),
            fingerprint: Arc::clone(&self.model),
            context_tokens: CONTEXT_TOKENS,
            page_tokens: PAGE_TOKENS,
            pool_pages: self.pool(),
            used_pages: self.pages,
            cache_pages: self.pool(),
            queued: self.queue.len() as u64,
            load: LoadReport { decoding, decode: Some(steps), ..load },
            address: Some(self.address),
            prefillers: prefillers.iter().filter(|address| **address != self.address).copied().collect(),
        }
    }
}
