//! One process: its states, its mailboxes and its memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use actors::buffer_manager::state::{PoolConfig, PoolState};
use actors::decoder::state::{DecoderConfig, DecoderState};
use actors::effect::{Effect, Endpoint};
use actors::finish::FinishRule;
use actors::generator::state::{GeneratorConfig, GeneratorState};
use actors::grammar::GrammarHash;
use actors::messages::{PrefixHash, RunStep};
use actors::peer_link::state::{PeerLinkConfig, PeerLinkState};
use actors::prefiller::state::{PrefillerConfig, PrefillerState};
use actors::proxy::state::{ProxyConfig, ProxyState};
use actors::routing::RoutingConfig;
use actors::transfer::state::{PAGES_IN_FLIGHT, TransferConfig, TransferState};
use connector::frame::Incarnation;
use engine::{StepLimits, Token};

use super::machine::{Memory, Step};
use super::plan::{HEADS, PAGE_TOKENS, Plan, VOCABULARY};
use super::topology::NodePlan;

/// An edge between two endpoints. Messages stay in order on an edge.
pub(super) type Edge = (Endpoint, Endpoint);

/// The actors of a node that serves requests.
#[derive(Debug)]
pub(super) struct Decoding {
    pub(super) proxy: ProxyState,
    pub(super) decoder: DecoderState,
}

/// The actors of a node that prefills for peers.
#[derive(Debug)]
pub(super) struct Prefilling {
    pub(super) transfer: TransferState,
    pub(super) prefiller: PrefillerState,
}

/// One process in one of its lives.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) life: u32,
    pub(super) alive: bool,
    /// The virtual time in microseconds until which the process is stopped.
    pub(super) stopped_until: u64,
    pub(super) mailboxes: BTreeMap<Edge, VecDeque<Effect>>,
    pub(super) pool: PoolState,
    /// The cached pages that routers know.
    pub(super) announced: BTreeSet<PrefixHash>,
    pub(super) generator: GeneratorState,
    pub(super) link: PeerLinkState,
    pub(super) memory: Memory,
    pub(super) step: Option<Step>,
    /// The next step, which the engine already has.
    pub(super) step_ahead: Option<RunStep>,
    /// The tokens sampled by the last finished step. The next step may use them.
    pub(super) sampled: Vec<(u64, Token)>,
    /// The chunks of the last finished step that sampled no token, because their masks were late.
    pub(super) late: Vec<u64>,
    /// True if the buffer manager stalls when it next reserves pages for a transfer.
    pub(super) pool_stalls: bool,
    /// The virtual time until which the buffer manager handles no messages.
    pub(super) pool_stalled_until: u64,
    /// True if one of the next steps fails.
    pub(super) step_fails: bool,
    /// The peer processes that this process watches for their end, each as (node, life).
    pub(super) watched: BTreeSet<(usize, u32)>,
    /// The grammars that this process has compiled.
    pub(super) compiled: BTreeSet<GrammarHash>,
    /// The virtual time at which the grammar thread has compiled all its grammars.
    pub(super) compiling_until: u64,
    pub(super) decoding: Option<Box<Decoding>>,
    pub(super) prefilling: Option<Box<Prefilling>>,
    /// By the node that is dialled: the connection that is being opened.
    pub(super) dialling: BTreeMap<usize, u64>,
    /// True if the process was told to end.
    pub(super) leaving: bool,
}

impl Decoding {
    fn new(plan: &Plan, node: usize) -> Self {
        let own = &plan.nodes[node];
        Self {
            proxy: ProxyState::new(ProxyConfig {
                page_tokens: PAGE_TOKENS,
                pool_pages: own.pages,
                request_pages: own.request_pages(),
                name: node as u64,
                http: None,
                routing: RoutingConfig {
                    local_if_sooner_by: plan.local_if_sooner_by,
                    local: plan.local,
                    ..RoutingConfig::default()
                },
            }),
            decoder: DecoderState::new(DecoderConfig {
                page_tokens: PAGE_TOKENS,
                page_bytes: u64::from(HEADS),
                finish: FinishRule::new(vec![0]),
                vocabulary: VOCABULARY,
                pid: node as u32,
                growth_tokens: plan.growth_tokens,
                grammars_per_session: plan.grammars,
                // On a GPU the engine runs ahead and an inter-token bound is set.
                holds_first_token: plan.runs_ahead,
            }),
        }
    }
}

impl Prefilling {
    fn new(plan: &Plan, node: usize) -> Self {
        Self {
            transfer: TransferState::new(TransferConfig {
                page_bytes: u64::from(HEADS),
                shards: plan.nodes[node].shards,
                min_gigabytes_per_second: 0.0,
                hashed: plan.hashed,
                on_device: plan.on_device,
                pages_in_flight: PAGES_IN_FLIGHT,
            }),
            prefiller: PrefillerState::new(PrefillerConfig {
                page_tokens: PAGE_TOKENS,
                page_bytes: u64::from(HEADS),
                pool_pages: plan.nodes[node].prompt_pages(),
                vocabulary: VOCABULARY,
                context_tokens: 4096,
                compiles_grammars: !plan.refuses_grammars,
                records_traces: true,
            }),
        }
    }
}

impl Node {
    /// The process of a node after its start.
    pub(super) fn new(plan: &Plan, node: usize, life: u32) -> Self {
        let own = &plan.nodes[node];
        let NodePlan { pages, ring_pages, prefill_pages, .. } = *own;
        let decoding = own.decodes.then(|| Box::new(Decoding::new(plan, node)));
        let prefilling = (!own.dials.is_empty()).then(|| Box::new(Prefilling::new(plan, node)));
        let receivers = own.dials.iter().map(|receiver| format!("node {receiver}")).collect();
        Self {
            life,
            alive: true,
            stopped_until: 0,
            mailboxes: BTreeMap::new(),
            announced: BTreeSet::new(),
            pool: PoolState::new(PoolConfig {
                prefill_pages,
                pages,
                ring_pages,
                page_tokens: PAGE_TOKENS,
                page_bytes: u64::from(HEADS),
                sharing: true,
                announces: true,
                scattered: false,
            }),
            generator: GeneratorState::new(GeneratorConfig {
                chunk_tokens: plan.chunk_tokens,
                inter_token_bound: None,
                limits: StepLimits { tokens: plan.chunk_tokens + 8, rows: plan.step_rows },
                page_tokens: PAGE_TOKENS,
                finish: FinishRule::new(vec![0]),
                runs_ahead: plan.runs_ahead,
            }),
            link: PeerLinkState::new(PeerLinkConfig {
                own: incarnation(node, life),
                close_ends_writes: !plan.foreign,
                ring_pages,
                receivers,
                cache_pages: pages,
            })
            .with_limits(plan.limits.unwrap_or_default()),
            memory: Memory::new(pages, own.shards),
            step: None,
            step_ahead: None,
            sampled: Vec::new(),
            late: Vec::new(),
            pool_stalls: false,
            pool_stalled_until: 0,
            step_fails: false,
            watched: BTreeSet::new(),
            compiled: BTreeSet::new(),
            compiling_until: 0,
            decoding,
            prefilling,
            dialling: BTreeMap::new(),
            leaving: false,
        }
    }
}

/// The incarnation of node `node` in life `life`.
pub(super) fn incarnation(node: usize, life: u32) -> Incarnation {
    Incarnation { pid: node as u32, start_ticks: u64::from(life), boot: 1, pid_namespace: 1, random: 1 }
}
