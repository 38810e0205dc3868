//! The world of a history: its processes, its events and its clock.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use actors::fleet::Failure;
use actors::membership::ViewEvent;
use connector::frame::Capabilities;

use super::etcd::Etcd;
use super::node::Node;
use super::parts::{Proxy, Request};
use super::plan::{BEGIN, DEADLINE, Fault, MILLI, Plan, SECOND};
use super::report::{Report, Violation};
use crate::simulation::dice::Dice;

/// An attempt of a request at one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Leg {
    pub(super) request: u64,
    pub(super) attempt: u32,
}

/// A process of a node: its place and its life.
pub(super) type Process = (usize, u32);

#[derive(Debug)]
pub(super) enum Event {
    /// A client sends a request.
    Arrive,
    /// A proxy reads a request.
    Ask {
        proxy: usize,
    },
    /// A request comes to a node.
    Deliver(Leg),
    /// A prompt is computed, perhaps by another process.
    Prefilled {
        leg: Leg,
        on: Process,
        by: Option<Process>,
    },
    /// A node has sent all of an answer.
    Done {
        leg: Leg,
        on: Process,
    },
    /// The time that a node has for a request is over.
    Expires {
        leg: Leg,
        on: Process,
    },
    /// The first byte of an answer comes to the proxy.
    FirstByte {
        leg: Leg,
        is_error: bool,
    },
    /// The end of an answer comes to the proxy.
    Finished(Leg),
    /// The proxy notices that a node has failed.
    Failed(Leg, Failure),
    Deadline(u64),
    ClientLeaves(u64),
    Tick {
        proxy: usize,
        life: u32,
    },
    EtcdTick,
    /// A node does the next step of its registration.
    Register(Process),
    /// Etcd did not answer to it.
    NotRegistered {
        on: Process,
        sent: Instant,
    },
    /// A proxy does the next step of its view.
    View {
        proxy: usize,
        turn: u64,
    },
    Viewed {
        proxy: usize,
        turn: u64,
        event: ViewEvent,
    },
    /// A proxy asks DNS for the nodes.
    Resolve {
        proxy: usize,
        turn: u64,
    },
    Fault(Fault),
    /// The rolling upgrade comes to this node.
    Roll(usize),
    /// A process starts at this place.
    Start(usize),
    /// A drained process ends.
    Leave(Process),
    /// The end of the history.
    Judge,
}

/// An event in the queue: its time, its number and the event. Events are ordered by time and number.
struct Due(u64, u64, Event);

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.1 == other.1
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) dice: Dice,
    pub(super) now: u64,
    queue: BinaryHeap<Reverse<Due>>,
    number: u64,
    /// Time 0.
    base: Instant,
    pub(super) nodes: Vec<Node>,
    /// The places of the nodes by their present addresses.
    pub(super) places: HashMap<SocketAddr, usize>,
    pub(super) processes: u64,
    pub(super) proxies: Vec<Proxy>,
    /// Pairs of a proxy and a node that do not reach each other until this time.
    pub(super) partitions: HashMap<(usize, usize), u64>,
    pub(super) etcd: Etcd,
    pub(super) watches_late_until: u64,
    pub(super) requests: HashMap<u64, Request>,
    pub(super) asked: u64,
    pub(super) numbered: u64,
    pub(super) report: Report,
    violation: Option<Violation>,
    is_over: bool,
    trace: bool,
}

/// The time that a clock shows which runs fast by this many millionths.
fn shown(now: u64, ppm: i64) -> u64 {
    now.saturating_add_signed(now as i64 / 1000 * ppm / 1000)
}

impl World {
    pub(super) fn new(plan: Plan, trace: bool) -> Self {
        let mut dice = Dice::new(plan.seed ^ 0x000F_1EE7);
        let skew = |dice: &mut Dice| dice.between(0, 40_000) as i64 - 20_000;
        let node = |place: usize, dice: &mut Dice| {
            let decode = !plan.has_prefillers || place % 4 != 3;
            let capabilities = Capabilities { prefill: true, decode };
            Node::new(address(place, 0), capabilities, plan.rows, skew(dice))
        };
        let nodes: Vec<Node> = (0..plan.nodes).map(|place| node(place, &mut dice)).collect();
        let proxies =
            (0..plan.proxies).map(|_| Proxy::new(skew(&mut dice), dice.between(0, u64::MAX - 1))).collect();
        Self {
            dice,
            now: 0,
            queue: BinaryHeap::new(),
            number: 0,
            base: Instant::now(),
            places: HashMap::new(),
            nodes,
            processes: 0,
            proxies,
            partitions: HashMap::new(),
            etcd: Etcd::new(),
            watches_late_until: 0,
            requests: HashMap::new(),
            asked: 0,
            numbered: 0,
            report: Report::default(),
            violation: None,
            is_over: false,
            trace,
            plan,
        }
    }

    pub(super) fn run(mut self) -> Result<Report, Violation> {
        (0..self.plan.nodes).for_each(|place| {
            let after = self.dice.between(0, SECOND);
            self.after(after, Event::Start(place));
        });
        for proxy in 0..self.plan.proxies {
            self.after(0, Event::Tick { proxy, life: 0 });
            self.follow(proxy, 0);
        }
        self.after(0, Event::EtcdTick);
        self.after(BEGIN, Event::Arrive);
        for (at, fault) in self.plan.faults.clone() {
            self.after(at, Event::Fault(fault));
        }
        self.note(|| {
            let Plan { nodes, proxies, requests, has_prefillers, has_dns, rows, rolling, .. } = &self.plan;
            format!(
                "{nodes} nodes with {rows} rows, {proxies} proxies, {requests} requests, prefillers: {has_prefillers}, DNS: {has_dns}, \
                 rolling upgrade: {rolling:?}"
            )
        });
        if self.plan.rolling.is_some() {
            self.after(BEGIN + SECOND, Event::Roll(0));
        }
        self.after(self.plan.ends + DEADLINE + 12 * SECOND, Event::Judge);
        while let Some(Reverse(Due(at, _, event))) = self.queue.pop() {
            self.now = at;
            self.report.events += 1;
            self.handle(event);
            if let Some(violation) = self.violation {
                return Err(violation);
            }
            if self.is_over {
                break;
            }
        }
        self.report.micros = self.now;
        self.report.processes = self.processes;
        Ok(self.report)
    }

    fn handle(&mut self, event: Event) {
        if let Some(until) = self.proxy_of(&event).map(|proxy| self.proxies[proxy].paused_until)
            && self.now < until
        {
            return self.at(until, event);
        }
        match event {
            Event::Arrive => self.on_arrival(),
            Event::Ask { proxy } => self.ask(proxy),
            Event::Deliver(leg) => self.deliver(leg),
            Event::Prefilled { leg, on, by } => self.prefilled(leg, on, by),
            Event::Done { leg, on } => self.done(leg, on),
            Event::Expires { leg, on } => self.expires(leg, on),
            Event::FirstByte { leg, is_error } => self.first_byte(leg, is_error),
            Event::Finished(leg) => self.finished(leg),
            Event::Failed(leg, failure) => self.failed(leg, failure),
            Event::Deadline(request) => self.deadline(request),
            Event::ClientLeaves(request) => self.client_leaves(request),
            Event::Tick { proxy, life } => self.tick(proxy, life),
            Event::EtcdTick => self.etcd_tick(),
            Event::Register(on) => self.register(on),
            Event::NotRegistered { on, sent } => self.not_registered(on, sent),
            Event::View { proxy, turn } => self.view(proxy, turn),
            Event::Resolve { proxy, turn } => self.resolve(proxy, turn),
            Event::Viewed { proxy, turn, event } if turn == self.proxies[proxy].turn => {
                self.viewed(proxy, event);
            }
            Event::Viewed { .. } => {}
            Event::Fault(fault) => self.fault(fault),
            Event::Roll(place) => self.roll(place),
            Event::Start(place) => self.start(place),
            Event::Leave(process) => self.leave(process),
            Event::Judge => {
                self.judge();
                self.is_over = true;
            }
        }
    }

    /// The proxy that handles an event.
    fn proxy_of(&self, event: &Event) -> Option<usize> {
        match event {
            Event::Ask { proxy }
            | Event::Tick { proxy, .. }
            | Event::View { proxy, .. }
            | Event::Resolve { proxy, .. }
            | Event::Viewed { proxy, .. } => Some(*proxy),
            Event::FirstByte { leg, .. } | Event::Finished(leg) | Event::Failed(leg, _) => {
                self.requests.get(&leg.request).map(|request| request.proxy)
            }
            Event::Deadline(request) | Event::ClientLeaves(request) => {
                self.requests.get(request).map(|request| request.proxy)
            }
            _ => None,
        }
    }

    pub(super) fn at(&mut self, at: u64, event: Event) {
        self.number += 1;
        self.queue.push(Reverse(Due(at, self.number, event)));
    }

    pub(super) fn after(&mut self, micros: u64, event: Event) {
        self.at(self.now + micros, event);
    }

    /// The time on a network of one host group.
    pub(super) fn hop(&mut self) -> u64 {
        self.dice.wait(MILLI, 20 * MILLI)
    }

    /// A time in the future at which a fault is over.
    pub(super) fn until(&mut self, low: u64, high: u64) -> u64 {
        let length = self.dice.between(low, high);
        (self.now + length).min(self.plan.heals)
    }

    /// Microseconds on a clock.
    pub(super) fn shown(&self, ppm: i64) -> u64 {
        shown(self.now, ppm)
    }

    /// A time on a clock, as states know it.
    pub(super) fn instant(&self, micros: u64) -> Instant {
        self.base + Duration::from_micros(micros)
    }

    /// The present time on the clock of a proxy.
    pub(super) fn time(&self, proxy: usize) -> Instant {
        self.instant(self.shown(self.proxies[proxy].ppm))
    }

    /// The microseconds after which such a clock has advanced by `length`.
    pub(super) fn real(length: Duration, ppm: i64) -> u64 {
        (length.as_micros() as i64 * 1_000_000 / (1_000_000 + ppm)) as u64
    }

    pub(super) fn are_parted(&self, proxy: usize, place: usize) -> bool {
        self.partitions.get(&(proxy, place)).is_some_and(|until| self.now < *until)
    }

    pub(super) fn fail(&mut self, rule: String) {
        let (seed, at) = (self.plan.seed, self.now);
        self.violation.get_or_insert(Violation { seed, at, rule });
    }

    pub(super) fn note(&self, text: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>12.6} {}", self.now as f64 / 1e6, text());
        }
    }
}

/// The address of the node at a place after it has moved this many times.
pub(super) fn address(place: usize, moves: u32) -> SocketAddr {
    let [_, high, middle, low] = (place as u32).to_be_bytes();
    SocketAddr::from(([10, high, middle, low], 8000 + (moves % 10_000) as u16))
}
