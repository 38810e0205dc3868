//! One process: its states, its mailboxes, its memory.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use actors::buffer_manager::state::PoolState;
use actors::decoder::state::{DecoderConfig, DecoderState};
use actors::generator::state::{GeneratorState, Plan as StepPlan};
use actors::messages::{
    CancelPuts, Decode, ExtendSequence, GrowPages, PageFilled, PagesAdopted, PagesComputed, PagesGrown,
    PagesReserved, PagesSent, PagesShort, PrefillFailed, PrefillFinished, PrefillOver, PutsDrained,
    ReservePages, SchedulePut, SendFrame, SequenceAdvanced, SequenceId, SessionId, StartPrefill,
    StartSequence,
};
use actors::peer_link::dial_line::{Attempt, DialLine};
use actors::peer_link::state::{PeerLinkState, SessionOver};
use actors::prefiller::state::{PrefillerConfig, PrefillerState};
use actors::proxy::state::ProxyState;
use actors::request::{Generate, RequestId};
use actors::transfer::state::{PAGES_IN_FLIGHT, TransferState};
use connector::frame::{Frame, Incarnation};
use connector::ring::{CreditNumber, PageIndex};
use connector::transport::{Descriptor, Ticket};
use engine::StepLimits;

use super::machine::{Memory, Step};
use super::plan::{PAGE_TOKENS, Plan, VOCABULARY};

/// A sender's queue gets as long as that now and then.
const LOCAL_IF_SOONER_BY: Duration = Duration::from_millis(50);

/// The actors of a process, each with a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Actor {
    Proxy,
    Decoder,
    Buffers,
    Generator,
    Transfer,
    Prefiller,
    Link,
}

/// What actors are told: the messages of `actors::messages` in one type, and what their tasks and threads say.
#[derive(Clone, Debug)]
pub(super) enum Mail {
    Generate(Generate),
    Decode(Decode),
    Abort(RequestId),
    Reserved(PagesReserved),
    Adopted(PagesAdopted),
    Rejected(RequestId),
    Advanced(SequenceAdvanced),
    PeerReady(SessionId, u32),
    PeerLeaving(SessionId),
    PeerLost(SessionId),
    PrefillOver(PrefillOver),
    PrefillFinished(PrefillFinished),
    PrefillFailed(PrefillFailed),
    Reserve(ReservePages),
    Grow(GrowPages),
    Grown(PagesGrown),
    Short(PagesShort),
    Computed(PagesComputed),
    Extend(ExtendSequence),
    Release(SequenceId),
    SessionOpened { session: SessionId, ring_pages: u32, seed: u64 },
    Filled(PageFilled),
    Drained(SessionId),
    Start(StartSequence),
    Stop(SequenceId),
    LaneConnected(SessionId),
    Granted(SessionId, CreditNumber, Vec<PageIndex>),
    RingShared(SessionId, u32),
    SchedulePut(SchedulePut),
    CancelPuts(CancelPuts),
    PutCompleted(SessionId, Ticket, Result<(), String>),
    Hashed(SessionId, CreditNumber, u64),
    Flushed(SessionId, Ticket, Result<(), String>),
    StartPrefill(StartPrefill),
    CancelPrefill(SessionId, RequestId),
    Sent(PagesSent),
    PutsDrained(PutsDrained),
    BeginDrain,
    Hello { conn: u64, attempt: Attempt, incarnation: Incarnation },
    Welcomed { conn: u64, descriptor: Descriptor, ring_pages: u32 },
    Frame(SessionId, Frame),
    LinkEnded { session: SessionId, goodbye: bool },
    Send(SendFrame),
    Break(SessionId, String),
    Opened(SessionId, Descriptor),
    LaneFailed(SessionId),
    Closed(SessionId, bool),
    ProcessGone(Incarnation),
    Over(SessionOver),
    Health(Option<String>),
    Tick,
}

/// What only one of the two roles has.
#[derive(Debug)]
pub(super) enum Role {
    Receiver(Box<Receiver>),
    Sender(Box<Sender>),
}

/// A receiver's own actors.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) proxy: ProxyState,
    pub(super) decoder: DecoderState,
}

/// A sender's own actors, and what its dialling task knows.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) transfer: TransferState,
    pub(super) prefiller: PrefillerState,
    pub(super) line: DialLine,
    /// The connection of the attempt under way: it has not come up.
    pub(super) dialling: Option<u64>,
    pub(super) unwell: bool,
    /// It has been told to end.
    pub(super) leaving: bool,
}

/// One process, in one of its lives.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) life: u32,
    pub(super) alive: bool,
    /// Stopped until then, in virtual microseconds.
    pub(super) stopped_until: u64,
    pub(super) mailboxes: BTreeMap<Actor, VecDeque<Mail>>,
    pub(super) pool: PoolState,
    pub(super) generator: GeneratorState,
    pub(super) link: PeerLinkState,
    pub(super) memory: Memory,
    pub(super) step: Option<Step>,
    /// The step after it, which the engine has already.
    pub(super) step_ahead: Option<StepPlan>,
    /// The next step fails.
    pub(super) step_fails: bool,
    /// Which connection a session runs over.
    pub(super) conns: BTreeMap<SessionId, u64>,
    pub(super) role: Role,
}

impl Node {
    /// A process that has just started.
    pub(super) fn new(plan: &Plan, is_receiver: bool, life: u32) -> Self {
        let (pages, ring) =
            if is_receiver { (plan.receiver_pages, plan.ring_pages) } else { (plan.sender_pages, 0) };
        let role = if is_receiver {
            Role::Receiver(Box::new(Receiver {
                proxy: ProxyState::new(PAGE_TOKENS, pages - ring, LOCAL_IF_SOONER_BY),
                decoder: DecoderState::new(DecoderConfig {
                    page_tokens: PAGE_TOKENS,
                    page_bytes: 1,
                    eos_tokens: vec![0],
                    vocabulary: VOCABULARY,
                    pid: 0,
                    growth_tokens: plan.growth_tokens,
                }),
            }))
        } else {
            Role::Sender(Box::new(Sender {
                transfer: TransferState::new(1, 0.0, plan.hashed, plan.on_device, PAGES_IN_FLIGHT),
                prefiller: PrefillerState::new(PrefillerConfig {
                    page_tokens: PAGE_TOKENS,
                    page_bytes: 1,
                    pool_pages: pages,
                    vocabulary: VOCABULARY,
                    context_tokens: 4096,
                }),
                line: DialLine::new(0),
                dialling: None,
                unwell: false,
                leaving: false,
            }))
        };
        Self {
            life,
            alive: true,
            stopped_until: 0,
            mailboxes: BTreeMap::new(),
            pool: PoolState::new(pages, ring, PAGE_TOKENS),
            generator: GeneratorState::new(
                plan.chunk_tokens,
                StepLimits { tokens: plan.chunk_tokens + 8, rows: plan.step_rows },
                PAGE_TOKENS,
                vec![0],
                plan.runs_ahead,
            ),
            link: PeerLinkState::new(!plan.foreign, ring),
            memory: Memory::new(pages),
            step: None,
            step_ahead: None,
            step_fails: false,
            conns: BTreeMap::new(),
            role,
        }
    }

    pub(super) fn receiver(&mut self) -> Option<(&mut ProxyState, &mut DecoderState)> {
        match &mut self.role {
            Role::Receiver(receiver) => Some((&mut receiver.proxy, &mut receiver.decoder)),
            Role::Sender(_) => None,
        }
    }

    pub(super) fn sender(&mut self) -> Option<&mut Sender> {
        match &mut self.role {
            Role::Sender(sender) => Some(sender),
            Role::Receiver(_) => None,
        }
    }
}

/// The process `node` in its `life`.
pub(super) fn incarnation(node: usize, life: u32) -> Incarnation {
    Incarnation { pid: node as u32, start_ticks: u64::from(life), boot: 1, pid_namespace: 1 }
}
