mod identity;
mod placements;

use super::*;
use crate::messages::DecodeSteps;

const PAGE: u32 = 16;

struct Fleet {
    state: FleetState,
    now: Instant,
}

fn address(number: u64) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number as u8], 8200))
}

/// The report of an idle node with this number.
fn report(number: u64) -> NodeView {
    let others = (1..=3).filter(|other| *other != number);
    NodeView {
        name: number,
        capabilities: Capabilities { prefill: true, decode: true },
        accepts: true,
        model: "m".into(),
        fingerprint: "f".into(),
        context_tokens: 4096,
        page_tokens: PAGE,
        pool_pages: 1000,
        used_pages: 0,
        cache_pages: 1000,
        queued: 0,
        load: LoadReport {
            waiting_tokens: 0,
            begun_tokens: 0,
            nanos_per_token: Some(1_000_000),
            decoding: 0,
            decode: Some(DecodeSteps { rows: 1, micros: 4000, least_micros: 4000 }),
        },
        address: Some(address(number)),
        prefillers: others.map(address).collect(),
    }
}

fn prompt(number: u32, tokens: u32) -> Vec<u32> {
    (0..tokens).map(|token| number * 10_000 + token).collect()
}

fn ask(prompt: &[u32]) -> FleetAsk<'_> {
    FleetAsk { model: None, prompt, salt: None, hashes: None, max_tokens: Some(8) }
}

impl Fleet {
    /// Three nodes that have reported. Two rounds of reports, because a node is known by its address after its first one.
    fn new() -> (Self, [NodeId; 3]) {
        let mut fleet =
            Self { state: FleetState::new(16 << 20, Duration::from_secs(1), 0), now: Instant::now() };
        let nodes = ["1", "2", "3"].map(|address| fleet.state.joined(address.into()));
        for _ in 0..2 {
            nodes.into_iter().zip(1..).for_each(|(node, number)| fleet.report(node, report(number)).unwrap());
        }
        (fleet, nodes)
    }

    fn report(&mut self, node: NodeId, report: NodeView) -> Result<(), String> {
        self.state.reported(self.now, node, self.now, report)
    }

    fn place(&mut self, prompt: &[u32]) -> FleetTicket {
        self.state.place(self.now, &ask(prompt)).unwrap()
    }

    /// Runs a request to its end. Returns the node that prefilled, if it is not the one that answered, and the one that answered.
    fn run(&mut self, prompt: &[u32]) -> (Option<SocketAddr>, NodeId) {
        let ticket = self.place(prompt);
        self.state.answered(self.now, ticket.id);
        self.state.ended(self.now, ticket.id);
        (ticket.prefill_on, ticket.decode_on)
    }

    /// Time passes, with a tick every 100 ms.
    fn pass(&mut self, millis: u64) -> Vec<NodeId> {
        let ticks = (0..millis).step_by(100).map(|passed| (millis - passed).min(100));
        ticks.flat_map(|millis| self.tick_after(millis)).collect()
    }

    fn tick_after(&mut self, millis: u64) -> Vec<NodeId> {
        self.now += Duration::from_millis(millis);
        self.state.on_tick(self.now)
    }

    /// Time passes, and the three nodes report.
    fn pass_and_report(&mut self, millis: u64) {
        self.pass(millis);
        for (node, number) in [NodeId(0), NodeId(1), NodeId(2)].into_iter().zip(1..) {
            self.report(node, report(number)).unwrap();
        }
    }

    /// A request that this node decodes.
    fn place_on(&mut self, node: NodeId) -> FleetTicket {
        for number in 0..200 {
            let ticket = self.place(&prompt(1000 + number, 100));
            if ticket.decode_on == node {
                return ticket;
            }
            self.state.ended(self.now, ticket.id);
        }
        panic!("{node:?} gets no requests");
    }

    /// The connection of a request to this node breaks.
    fn break_on(&mut self, node: NodeId) {
        let ticket = self.place_on(node);
        self.state.broke_off(self.now, ticket.id);
        self.state.ended(self.now, ticket.id);
    }

    /// Whether new requests come to this node.
    fn is_used(&mut self, node: NodeId) -> bool {
        (0..30).any(|_| {
            let number = self.state.next_ticket as u32;
            self.run(&prompt(number, 100)).1 == node
        })
    }
}

#[test]
fn a_conversation_returns_to_the_node_with_its_kv() {
    let (mut fleet, _) = Fleet::new();
    let mut turns = prompt(1, 400);
    let (_, first) = fleet.run(&turns);
    for turn in 2..10 {
        fleet.run(&prompt(100 + turn, 400));
        turns.extend(prompt(turn, 200));
        assert_eq!(fleet.run(&turns).1, first, "turn {turn}");
    }
    assert_eq!(fleet.state.live(), 0);
}

#[test]
fn requests_go_only_to_nodes_that_report() {
    let (mut fleet, [silent, second, third]) = Fleet::new();
    assert_eq!(fleet.pass(1000), [], "unknown");
    fleet.report(second, report(2)).unwrap();
    fleet.report(third, report(3)).unwrap();
    assert_eq!(fleet.state.ready(fleet.now), 2);
    for number in 0..20 {
        assert_ne!(fleet.run(&prompt(number, 100)).1, silent);
    }
    for _ in 0..3 {
        fleet.pass(600);
        fleet.report(second, report(2)).unwrap();
        fleet.report(third, report(3)).unwrap();
    }
    assert_eq!(fleet.pass(300), [silent], "lost");
    assert_eq!(fleet.pass(100), [], "cut once");
    fleet.report(silent, report(1)).unwrap();
    let used = (100..140).any(|number| fleet.run(&prompt(number, 100)).1 == silent);
    assert!(used, "a healed node is used at once");
    // No node reports.
    fleet.pass(5000);
    let refused = fleet.state.place(fleet.now, &ask(&prompt(1, 10)));
    assert_eq!(refused, Err(FleetRefusal::NoNode));
    assert_eq!(fleet.state.live(), 0);
}

#[test]
fn a_pause_of_the_proxy_costs_no_node() {
    let (mut fleet, nodes) = Fleet::new();
    fleet.pass(100);
    let kept = fleet.place_on(nodes[0]);
    for pause in [4000, 990] {
        // The first byte of an answer comes before the first tick after the pause.
        fleet.now += Duration::from_millis(pause);
        assert_eq!(fleet.state.ready(fleet.now), 3);
        fleet.state.answered(fleet.now, kept.id);
        assert!(fleet.is_used(nodes[0]));
        assert_eq!(fleet.tick_after(0), [], "the nodes' answers are not read yet");
        assert_eq!(fleet.state.ready(fleet.now), 3);
        fleet.run(&prompt(1, 100));
    }
    // Each pause counts as 200 ms. Nodes that are silent afterwards are lost.
    fleet.pass(400);
    assert_eq!((fleet.state.ready(fleet.now), fleet.state.unready(fleet.now)), (3, 0));
    fleet.pass(200);
    assert_eq!(fleet.state.ready(fleet.now), 0);
    assert_eq!(fleet.state.unready(fleet.now), 3);
    assert_eq!(fleet.pass(2000), nodes);
}

#[test]
fn a_node_that_is_not_named_any_more_stays_while_it_answers() {
    let (mut fleet, nodes) = Fleet::new();
    let named = |fleet: &mut Fleet, addresses: &[&str]| {
        fleet.state.named(addresses.iter().map(|address| Arc::from(*address)))
    };
    fleet.pass(100);
    assert_eq!(named(&mut fleet, &[]), [], "the registry came back empty");
    for _ in 0..40 {
        fleet.pass_and_report(100);
        assert_eq!(fleet.state.gone(fleet.now), []);
    }
    assert_eq!(fleet.state.ready(fleet.now), 3);
    // The nodes' answers are not read yet.
    fleet.tick_after(4000);
    assert_eq!(fleet.state.gone(fleet.now), [], "a pause of the proxy costs no node");
    assert_eq!(fleet.state.ready(fleet.now), 3);
    let new = named(&mut fleet, &["2", "3", "4"]);
    assert!(new.len() == 1 && &*new[0].1 == "4", "known nodes do not join again: {new:?}");
    fleet.pass(2700);
    assert_eq!(fleet.state.gone(fleet.now), []);
    assert_eq!(named(&mut fleet, &["2"]), []);
    fleet.pass(900);
    fleet.report(nodes[2], report(3)).unwrap();
    assert_eq!(fleet.state.gone(fleet.now), [nodes[0], new[0].0], "silent and not named");
    assert_eq!(fleet.state.gone(fleet.now), []);
}

#[test]
fn a_broken_or_draining_node_gets_nothing() {
    let (mut fleet, nodes) = Fleet::new();
    let kept = fleet.run(&prompt(1, 400)).1;
    fleet.break_on(kept);
    assert_ne!(fleet.run(&prompt(1, 400)).1, kept);
    fleet.pass_and_report(100);
    // Another node has the prompt too by now.
    assert!((0..30).any(|_| fleet.run(&prompt(1, 400)).1 == kept), "its pause is over");
    let number = 1 + nodes.iter().position(|node| *node == kept).unwrap() as u64;
    fleet.report(kept, NodeView { accepts: false, ..report(number) }).unwrap();
    assert!((0..30).all(|_| fleet.run(&prompt(1, 400)).1 != kept));
}

#[test]
fn only_a_connected_node_prefills_for_another() {
    let (mut fleet, nodes) = Fleet::new();
    for (node, number) in nodes.into_iter().zip(1..) {
        let decode = number == 1;
        let capabilities = Capabilities { prefill: !decode, decode };
        let prefillers = if decode { vec![address(3)] } else { Vec::new() };
        // A process with other capabilities is another process.
        let report = NodeView { name: number + 10, capabilities, prefillers, ..report(number) };
        fleet.report(node, report.clone()).unwrap();
        fleet.report(node, report).unwrap();
    }
    let decoder = NodeView {
        name: 11,
        capabilities: Capabilities { prefill: false, decode: true },
        prefillers: vec![address(3)],
        ..report(1)
    };
    fleet.report(nodes[0], decoder).unwrap();
    for number in 0..5 {
        assert_eq!(fleet.run(&prompt(number, 100)), (Some(address(3)), nodes[0]));
    }
}

#[test]
fn other_weights_under_the_same_name_are_left_out() {
    let (mut fleet, [first, ..]) = Fleet::new();
    let other = NodeView { name: 9, fingerprint: "other".into(), ..report(1) };
    assert!(fleet.report(first, other.clone()).unwrap_err().contains("other weights under the name \"m\""));
    for number in 0..20 {
        assert_ne!(fleet.run(&prompt(number, 100)).1, first);
    }
    // Under another name they are another model.
    let other = NodeView { model: "n".into(), ..other };
    fleet.report(first, other).unwrap();
    let asked = prompt(1, 30);
    let ticket = fleet.state.place(fleet.now, &FleetAsk { model: Some("n"), ..ask(&asked) }).unwrap();
    assert_eq!(ticket.decode_on, first);
    let unknown = fleet.state.place(fleet.now, &FleetAsk { model: Some("x"), ..ask(&asked) });
    assert_eq!(unknown, Err(FleetRefusal::NoModel));
    fleet.state.left(first);
    fleet.state.ended(fleet.now, ticket.id);
    assert_eq!(fleet.state.models().count(), 1);
}

/// The report of a process that decodes, and to which no prefiller is connected.
fn lone_receiver(number: u64) -> NodeView {
    let capabilities = Capabilities { prefill: false, decode: true };
    NodeView { name: number + 20, capabilities, prefillers: Vec::new(), ..report(number) }
}

#[test]
fn a_receiver_without_senders_prefills_itself() {
    let mut fleet = Fleet { state: FleetState::new(0, Duration::from_secs(1), 0), now: Instant::now() };
    let node = fleet.state.joined("1".into());
    fleet.report(node, lone_receiver(1)).unwrap();
    assert_eq!(fleet.run(&prompt(1, 100)), (None, node));
}

#[test]
fn a_node_that_reports_and_breaks_each_request_pauses_for_longer_each_time() {
    let (mut fleet, [node, ..]) = Fleet::new();
    let mut pauses = Vec::new();
    for _ in 0..10 {
        let ticket = fleet.place_on(node);
        let next = fleet.state.failed(fleet.now, ticket.id, Failure::Broke, &ask(&prompt(1, 100))).unwrap();
        assert_ne!(next.decode_on, node);
        fleet.state.ended(fleet.now, ticket.id);
        let broke = fleet.now;
        assert_eq!(fleet.state.paused(fleet.now), 1);
        while fleet.state.paused(fleet.now) > 0 {
            assert!(!fleet.is_used(node), "a pause");
            fleet.pass_and_report(100);
        }
        pauses.push((fleet.now - broke).as_millis());
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000]);
    assert!(fleet.is_used(node));
}

#[test]
fn one_request_probes_a_node_after_its_pause() {
    let (mut fleet, [node, ..]) = Fleet::new();
    fleet.break_on(node);
    fleet.pass_and_report(99);
    assert!(!fleet.is_used(node));
    fleet.pass_and_report(1);
    let probe = fleet.place_on(node);
    assert!(!fleet.is_used(node), "one at a time");
    fleet.pass_and_report(100);
    assert!(!fleet.is_used(node), "a report does not end the probe");
    // The client of the probe leaves.
    fleet.state.ended(fleet.now, probe.id);
    let probe = fleet.place_on(node);
    assert!(!fleet.is_used(node));
    fleet.state.answered(fleet.now, probe.id);
    assert!(fleet.is_used(node));
}

#[test]
fn a_node_that_answers_no_request_before_its_deadline_pauses() {
    let (mut fleet, [node, ..]) = Fleet::new();
    let fail = |fleet: &mut Fleet, failure| {
        let ticket = fleet.place_on(node);
        let refused = fleet.state.failed(fleet.now, ticket.id, failure, &ask(&prompt(1, 100)));
        assert_eq!(refused, Err(FleetRefusal::Late), "there is no time for another node");
        fleet.state.ended(fleet.now, ticket.id);
        fleet.state.paused(fleet.now)
    };
    let late = |fleet: &mut Fleet| fail(fleet, Failure::Late);
    (0..9).for_each(|_| assert_eq!(fail(&mut fleet, Failure::OutOfTime), 0, "it had no time to answer"));
    assert_eq!([late(&mut fleet), late(&mut fleet)], [0, 0]);
    let ticket = fleet.place_on(node);
    fleet.state.rejected(fleet.now, ticket.id);
    fleet.state.ended(fleet.now, ticket.id);
    assert_eq!([late(&mut fleet), late(&mut fleet), late(&mut fleet)], [0, 0, 1], "three in a row");
    assert!(!fleet.is_used(node));
}

#[test]
fn a_node_that_pauses_is_better_than_none() {
    let (mut fleet, nodes) = Fleet::new();
    nodes.into_iter().for_each(|node| fleet.break_on(node));
    assert_eq!(fleet.state.paused(fleet.now), 3);
    let asked = prompt(1, 50);
    let mut ticket = fleet.place(&asked);
    let mut tried = vec![ticket.decode_on];
    for _ in 0..2 {
        ticket = fleet.state.failed(fleet.now, ticket.id, Failure::Busy, &ask(&asked)).unwrap();
        assert!(!tried.contains(&ticket.decode_on));
        tried.push(ticket.decode_on);
    }
}

/// Lets a request fail in these ways, one after the other, until it is refused. `nodes` nodes report.
fn refusal(nodes: usize, failures: &[Failure]) -> (usize, FleetRefusal) {
    let (mut fleet, all) = Fleet::new();
    all[nodes..].iter().for_each(|node| fleet.state.left(*node));
    let asked = prompt(1, 50);
    let mut ticket = fleet.place(&asked);
    for (attempts, failure) in (1..).zip(failures) {
        match fleet.state.failed(fleet.now, ticket.id, *failure, &ask(&asked)) {
            Ok(next) => assert_ne!(std::mem::replace(&mut ticket, next.clone()).decode_on, next.decode_on),
            Err(refusal) => return (attempts, refusal),
        }
    }
    panic!("{failures:?} do not end the attempts");
}

#[test]
fn the_refusal_says_how_the_nodes_failed() {
    use Failure::{Broke, Busy, Late, Unreachable};
    let check = |nodes, failures: &[Failure], expect| {
        assert_eq!(refusal(nodes, failures), expect, "{nodes} {failures:?}");
    };
    check(3, &[Busy; 3], (3, FleetRefusal::Busy { nodes: 3 }));
    check(2, &[Busy; 3], (2, FleetRefusal::Busy { nodes: 2 }));
    check(2, &[Broke; 3], (2, FleetRefusal::Lost { nodes: 2 }));
    check(3, &[Unreachable; 3], (3, FleetRefusal::Lost { nodes: 3 }));
    check(3, &[Busy, Broke, Busy], (3, FleetRefusal::Lost { nodes: 3 }));
    check(3, &[Broke, Busy, Busy], (3, FleetRefusal::Lost { nodes: 3 }));
    check(3, &[Busy, Late], (2, FleetRefusal::Late));
    check(1, &[Broke], (1, FleetRefusal::Lost { nodes: 1 }));
}

#[test]
fn a_request_whose_answer_has_begun_gets_no_other_node() {
    for failure in [Failure::Broke, Failure::Busy, Failure::Unreachable] {
        let (mut fleet, _) = Fleet::new();
        let asked = prompt(1, 50);
        let ticket = fleet.place(&asked);
        fleet.state.answered(fleet.now, ticket.id);
        let next = fleet.state.failed(fleet.now, ticket.id, failure, &ask(&asked));
        assert!(next.is_err(), "{failure:?}");
    }
}

#[test]
fn at_most_a_tenth_of_the_live_requests_is_in_a_retry() {
    let asked = prompt(1, 50);
    // The number of requests that get another node if all `failing` ones fail, beside `others` live ones.
    let retries = |others: usize, failing: usize, failure| {
        let (mut fleet, _) = Fleet::new();
        for _ in 0..others {
            fleet.place(&asked);
        }
        let tickets: Vec<FleetTicket> = (0..failing).map(|_| fleet.place(&asked)).collect();
        let mut failed =
            |ticket: &FleetTicket| fleet.state.failed(fleet.now, ticket.id, failure, &ask(&asked));
        tickets.iter().filter_map(|ticket| failed(ticket).ok()).count()
    };
    assert_eq!(retries(0, 20, Failure::Busy), 3);
    assert_eq!(retries(60, 40, Failure::Busy), 10);
    assert_eq!(retries(60, 40, Failure::Broke), 10);
    assert_eq!(retries(0, 20, Failure::Unreachable), 20, "no node has begun to compute them");
    assert_eq!(retries(0, 20, Failure::Draining), 20, "a node that drains has a queue of any length");
}

#[test]
fn a_retry_leaves_the_budget_when_it_is_answered_or_ends() {
    let (mut fleet, _) = Fleet::new();
    let asked = prompt(1, 50);
    let retry = |fleet: &mut Fleet| {
        let ticket = fleet.place(&asked);
        fleet.state.failed(fleet.now, ticket.id, Failure::Busy, &ask(&asked))
    };
    let tickets = [(); 3].map(|()| retry(&mut fleet).unwrap().id);
    assert_eq!(retry(&mut fleet), Err(FleetRefusal::Busy { nodes: 1 }));
    // A second retry of a request needs no second place.
    fleet.state.failed(fleet.now, tickets[0], Failure::Busy, &ask(&asked)).unwrap();
    fleet.state.answered(fleet.now, tickets[0]);
    fleet.state.rejected(fleet.now, tickets[1]);
    fleet.state.ended(fleet.now, tickets[2]);
    tickets.iter().for_each(|ticket| fleet.state.ended(fleet.now, *ticket));
    let places = (0..10).filter_map(|_| retry(&mut fleet).ok()).count();
    assert_eq!(places, 3);
}

#[test]
fn only_a_node_with_a_large_enough_context_gets_a_long_request() {
    let (mut fleet, [large, ..]) = Fleet::new();
    fleet.report(large, NodeView { context_tokens: 8192, ..report(1) }).unwrap();
    assert_eq!(fleet.state.context_tokens(Some("m")), Some(8192));
    assert_eq!(fleet.state.context_tokens(None), Some(8192));
    assert_eq!(fleet.state.context_tokens(Some("n")), None);
    let mut check = |tokens: u32, max_tokens, on_large: bool| {
        let all_on_large = (0..10).all(|number| {
            let asked = prompt(number, tokens);
            let ask = FleetAsk { max_tokens, ..ask(&asked) };
            let ticket = fleet.state.place(fleet.now, &ask).unwrap();
            fleet.state.ended(fleet.now, ticket.id);
            ticket.decode_on == large && ticket.prefill_on.is_none()
        });
        assert_eq!(all_on_large, on_large, "{tokens} {max_tokens:?}");
    };
    check(4095, None, false);
    check(4096, None, true);
    check(4000, Some(96), false);
    check(4000, Some(97), true);
    // No node has room for it. The node with the largest context says so.
    check(4000, Some(u32::MAX), true);
}

#[test]
fn the_pages_of_an_answer_are_those_that_the_context_allows() {
    // Prompts with the same beginning return to the node that has it, as long as it has room for all their pages.
    let returns = |max_tokens: Option<u32>| {
        let (mut fleet, _) = Fleet::new();
        let asked = prompt(1, 400);
        let ask = FleetAsk { max_tokens, ..ask(&asked) };
        let first = fleet.state.place(fleet.now, &ask).unwrap().decode_on;
        (1..99).find(|_| fleet.state.place(fleet.now, &ask).unwrap().decode_on != first).unwrap()
    };
    assert_eq!(returns(Some(u32::MAX)), 1000 / 256, "4096 tokens are 256 of 1000 pages");
    // 400 and 255 tokens are 41 pages.
    assert!((10..=1000 / 41).contains(&returns(None)), "{}", returns(None));
}
