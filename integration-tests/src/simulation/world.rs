//! Virtual time: the queue of events, and the simulated processes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use actors::effect::{Effect, Endpoint, to};
use actors::messages::{SessionId, StartDialling, Tick};
use actors::request::RequestId;

use super::dice::Dice;
use super::node::{Edge, Node};
use super::parts::{Client, Conn, Lane, Outlet, OutletName, PutName, Report, Violation};
use super::plan::{Fault, MS, Plan, SECOND};

/// Time between two ticks of an actor.
const TICK: u64 = 250 * MS;
/// Time to heal after the last fault. It is longer than all backoffs, quarantines that end with proof, and lane deadlines together.
const HEALING: u64 = 60 * SECOND;
/// Maximum number of events. A longer history does not make progress.
const EVENTS_MAX: u64 = 3_000_000;

/// An event.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// An actor handles the next message of one of its edges.
    Deliver(Edge),
    /// A thread, a socket or a client sends a message.
    Send(Endpoint, Box<Effect>),
    StepDone,
    Tick,
    /// The Challenge or Welcome of the listener arrives at the dialler of this connection.
    Answered(u64, Box<Effect>),
    /// The handshake of this connection has timed out.
    HandshakeLate(u64),
    /// The next frame of a connection arrives, at the listener (0) or the dialler (1).
    FrameArrives(u64, usize),
    PutIsRead(PutName),
    PutLands(PutName),
    PutCompletes(PutName),
    FlushIsOver(OutletName, u64, u64),
    OutletCloses(OutletName, bool),
    LaneCloses(u64),
    /// A node gets a request.
    Ask(usize),
    Leave(RequestId),
    MustHaveEnded(RequestId),
    Fault(Fault),
    Restart(usize),
    /// A process that was told to end accepts no more work.
    RefuseWork,
    /// A process that was told to end checks whether it can end.
    LookWhetherDone {
        since: u64,
        closing: bool,
    },
    /// Check whether requests still wait for this session, long after it was lost.
    MustBeForgotten {
        session: SessionId,
        is_last: bool,
    },
    Judge,
    /// Check whether a last request has ended. If `travels` is true, the request must have been handed over.
    LastWord {
        request: RequestId,
        travels: bool,
    },
}

/// The time, the process and its life, and the event. Ordered by time and then by the order of scheduling.
struct Scheduled(Reverse<(u64, u64)>, Option<(usize, u32)>, Event);

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

/// A running history.
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) dice: Dice,
    /// Virtual microseconds.
    pub(super) now: u64,
    pub(super) epoch: Instant,
    queue: BinaryHeap<Scheduled>,
    scheduled: u64,
    pub(super) nodes: Vec<Node>,
    pub(super) conns: BTreeMap<u64, Conn>,
    /// The time until which a dialler cannot reach a listener.
    pub(super) cut_until: BTreeMap<(usize, usize), u64>,
    /// Receiving ends, by the number in their descriptor.
    pub(super) lanes: BTreeMap<u64, Lane>,
    pub(super) outlets: BTreeMap<OutletName, Outlet>,
    pub(super) clients: BTreeMap<RequestId, Client>,
    /// The next piece that lands is damaged.
    pub(super) flip: bool,
    /// The next piece that lands is lost.
    pub(super) lose: bool,
    /// The next announcement of these nodes is wrong.
    pub(super) miscounts: BTreeSet<usize>,
    /// The node that was asked last to prefill each request.
    pub(super) asked: BTreeMap<u64, usize>,
    pub(super) report: Report,
    violation: Option<Violation>,
    trace: bool,
    over: bool,
}

impl World {
    pub(super) fn new(plan: Plan, trace: bool) -> Self {
        let nodes = (0..plan.nodes.len()).map(|node| Node::new(&plan, node, 1)).collect();
        let mut world = Self {
            dice: Dice::new(plan.seed ^ 0x5eed),
            now: 0,
            epoch: Instant::now(),
            queue: BinaryHeap::new(),
            scheduled: 0,
            nodes,
            conns: BTreeMap::new(),
            cut_until: BTreeMap::new(),
            lanes: BTreeMap::new(),
            outlets: BTreeMap::new(),
            clients: BTreeMap::new(),
            flip: false,
            lose: false,
            miscounts: BTreeSet::new(),
            asked: BTreeMap::new(),
            report: Report::default(),
            violation: None,
            trace,
            over: false,
            plan,
        };
        for node in 0..world.nodes.len() {
            world.begin_life(node);
        }
        for (at, home) in world.plan.requests.clone() {
            world.at(at, None, Event::Ask(home));
        }
        for (at, fault) in world.plan.faults.clone() {
            world.at(at, None, Event::Fault(fault));
        }
        world.at(world.plan.horizon + HEALING, None, Event::Judge);
        world
    }

    /// Starts the ticks and the dialling of a process.
    pub(super) fn begin_life(&mut self, node: usize) {
        self.at_node(node, 0, Event::Tick);
        if !self.plan.nodes[node].dials.is_empty() {
            self.at_node(node, 0, Event::Send(Endpoint::Node, Box::new(to::peer_link(StartDialling))));
        }
    }

    pub(super) fn run(mut self) -> Result<Report, Violation> {
        self.trace_event(|| String::from("plan"));
        while let Some(Scheduled(Reverse((at, _)), who, event)) = self.queue.pop() {
            self.now = at;
            if let Some((node, life)) = who {
                let process = &self.nodes[node];
                if !process.alive || process.life != life {
                    continue;
                }
                if process.stopped_until > at {
                    let until = process.stopped_until;
                    self.schedule(until, who, event);
                    continue;
                }
            }
            self.report.events += 1;
            if self.report.events > EVENTS_MAX {
                self.fail(format!("the history has not ended after {EVENTS_MAX} events"));
            }
            self.happen(who.map_or(0, |(node, _)| node), event);
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
            if self.over {
                break;
            }
        }
        self.report.micros = self.now;
        Ok(self.report)
    }

    fn happen(&mut self, node: usize, event: Event) {
        match event {
            Event::Deliver(edge) if self.waits_for_pool(node, edge) => {
                let wait = self.nodes[node].pool_stalled_until - self.now;
                self.at_node(node, wait, Event::Deliver(edge));
            }
            Event::Deliver(edge) => {
                let waiting =
                    self.nodes[node].mailboxes.get_mut(&edge).and_then(|mailbox| mailbox.pop_front());
                if let Some(effect) = waiting {
                    self.deliver(node, edge, effect);
                }
            }
            Event::Send(from, effect) => self.perform(node, from, vec![*effect]),
            Event::StepDone => self.step_done(node),
            Event::Tick => {
                let Node { decoding, prefilling, .. } = &self.nodes[node];
                let decoding = decoding.is_some().then(|| vec![to::proxy(Tick), to::decoder(Tick)]);
                let prefilling = prefilling.is_some().then(|| vec![to::prefiller(Tick), to::transfer(Tick)]);
                let common = vec![to::buffer_manager(Tick), to::generator(Tick), to::peer_link(Tick)];
                let ticks = decoding.into_iter().chain(prefilling).chain([common]).flatten().collect();
                self.perform(node, Endpoint::Ticker, ticks);
                self.at_node(node, TICK, Event::Tick);
            }
            Event::Answered(conn, answer) => self.answered(node, conn, *answer),
            Event::HandshakeLate(conn) => self.handshake_late(node, conn),
            Event::FrameArrives(conn, side) => self.frame_arrives(conn, side),
            Event::PutIsRead(put) => self.put_is_read(put),
            Event::PutLands(put) => self.put_lands(put),
            Event::PutCompletes(put) => self.put_completes(put),
            Event::FlushIsOver(outlet, ticket, covers) => self.flush_is_over(outlet, ticket, covers),
            Event::OutletCloses(outlet, force) => self.outlet_closes(outlet, force),
            Event::LaneCloses(lane) => self.lane_closes(lane),
            Event::Ask(home) => {
                self.ask(home, false);
            }
            Event::Leave(request) => self.leave(request),
            Event::MustHaveEnded(request) => self.must_have_ended(request),
            Event::Fault(fault) => self.inject(fault),
            Event::Restart(node) => self.restart(node),
            Event::RefuseWork => self.refuse_work(node),
            Event::LookWhetherDone { since, closing } => self.look_whether_done(node, since, closing),
            Event::MustBeForgotten { session, is_last } => self.must_be_forgotten(node, session, is_last),
            Event::Judge => self.judge(),
            Event::LastWord { request, travels } => self.last_word(request, travels),
        }
    }

    /// The virtual time as an `Instant`, for the states.
    pub(super) fn instant(&self) -> Instant {
        self.epoch + Duration::from_micros(self.now)
    }

    fn schedule(&mut self, at: u64, who: Option<(usize, u32)>, event: Event) {
        self.scheduled += 1;
        self.queue.push(Scheduled(Reverse((at, self.scheduled)), who, event));
    }

    /// Schedules an event after `wait`, for a process in a life or for no process.
    pub(super) fn at(&mut self, wait: u64, who: Option<(usize, u32)>, event: Event) {
        self.schedule(self.now + wait, who, event);
    }

    /// Schedules an event for a process after `wait`, if it still lives then.
    pub(super) fn at_node(&mut self, node: usize, wait: u64, event: Event) {
        let life = self.nodes[node].life;
        self.at(wait, Some((node, life)), event);
    }

    /// Records a violation. Only the first one counts.
    pub(super) fn fail(&mut self, what: String) {
        self.trace_event(|| format!("VIOLATION {what}"));
        let (seed, micros) = (self.plan.seed, self.now);
        self.violation.get_or_insert(Violation { seed, micros, what });
    }

    pub(super) fn trace_event(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>12.6} {}", self.now as f64 / 1e6, what());
        }
    }

    /// Ends the history.
    pub(super) fn finish(&mut self) {
        self.over = true;
    }
}
