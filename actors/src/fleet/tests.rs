use super::*;

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
        page_tokens: PAGE,
        pool_pages: 1000,
        used_pages: 0,
        cache_pages: 1000,
        load: LoadReport {
            waiting_tokens: 0,
            begun_tokens: 0,
            nanos_per_token: Some(1_000_000),
            decoding: 0,
            decode: None,
        },
        address: Some(address(number)),
        prefillers: others.map(address).collect(),
    }
}

fn prompt(number: u32, tokens: u32) -> Vec<u32> {
    (0..tokens).map(|token| number * 10_000 + token).collect()
}

fn ask(prompt: &[u32]) -> FleetAsk<'_> {
    FleetAsk { model: None, prompt, salt: None, max_tokens: 8, tried: &[] }
}

impl Fleet {
    /// Three nodes that have reported. Two rounds of reports, because a node is known by its address after its first one.
    fn new() -> (Self, [NodeId; 3]) {
        let mut fleet =
            Self { state: FleetState::new(16 << 20, Duration::from_secs(1)), now: Instant::now() };
        let nodes = [1, 2, 3].map(|_| fleet.state.joined());
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

    fn pass(&mut self, millis: u64) -> Vec<NodeId> {
        self.now += Duration::from_millis(millis);
        self.state.on_tick(self.now)
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
}

#[test]
fn a_broken_or_draining_node_gets_nothing_until_it_reports() {
    let (mut fleet, nodes) = Fleet::new();
    let kept = fleet.run(&prompt(1, 400)).1;
    fleet.state.broken(fleet.now, kept);
    assert_ne!(fleet.run(&prompt(1, 400)).1, kept);
    let number = 1 + nodes.iter().position(|node| *node == kept).unwrap() as u64;
    fleet.report(kept, NodeView { accepts: false, ..report(number) }).unwrap();
    assert_ne!(fleet.run(&prompt(1, 400)).1, kept);
    let tried = [nodes[0], nodes[1]];
    let ticket = fleet.state.place(fleet.now, &FleetAsk { tried: &tried, ..ask(&prompt(9, 40)) });
    assert!(ticket.is_err() || ticket.is_ok_and(|ticket| ticket.decode_on == nodes[2]));
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
fn placements_count_until_a_report_contains_them() {
    let (mut fleet, nodes) = Fleet::new();
    let first = fleet.place(&prompt(1, 500));
    let number = 1 + nodes.iter().position(|node| *node == first.decode_on).unwrap() as u64;
    let waiting = |fleet: &Fleet| fleet.state.models["m"].routing.waiting();
    assert_eq!(waiting(&fleet), 500);
    fleet.report(first.decode_on, report(number)).unwrap();
    assert_eq!(waiting(&fleet), 500, "the report was asked for before the request could arrive");
    fleet.pass(100);
    fleet.report(first.decode_on, report(number)).unwrap();
    assert_eq!(waiting(&fleet), 0, "the node has computed it");
    fleet.state.answered(fleet.now, first.id);
    fleet.state.ended(fleet.now, first.id);
    fleet.state.ended(fleet.now, first.id);
    assert_eq!((waiting(&fleet), fleet.state.live()), (0, 0));
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
    let mut fleet = Fleet { state: FleetState::new(0, Duration::from_secs(1)), now: Instant::now() };
    let node = fleet.state.joined();
    fleet.report(node, lone_receiver(1)).unwrap();
    assert_eq!(fleet.run(&prompt(1, 100)), (None, node));
}

#[test]
fn a_node_whose_connections_break_pauses_for_longer_each_time() {
    let (mut fleet, [node, ..]) = Fleet::new();
    let is_used = |fleet: &mut Fleet, from: u32| {
        (from..from + 30).any(|number| fleet.run(&prompt(number, 100)).1 == node)
    };
    // It reports all the time.
    let after = |fleet: &mut Fleet, millis| {
        fleet.now += Duration::from_millis(millis);
        for (node, number) in [NodeId(0), NodeId(1), NodeId(2)].into_iter().zip(1..) {
            fleet.report(node, report(number)).unwrap();
        }
    };
    fleet.state.broken(fleet.now, node);
    fleet.state.broken(fleet.now, node);
    after(&mut fleet, 90);
    assert!(!is_used(&mut fleet, 100));
    after(&mut fleet, 20);
    assert!(is_used(&mut fleet, 200), "its first pause is 100 ms, also if several requests broke at once");
    fleet.state.broken(fleet.now, node);
    after(&mut fleet, 110);
    assert!(is_used(&mut fleet, 300), "an answer ended the series");
}

#[test]
fn a_node_that_pauses_is_better_than_none() {
    let (mut fleet, nodes) = Fleet::new();
    nodes.iter().for_each(|node| fleet.state.broken(fleet.now, *node));
    let asked = prompt(1, 50);
    let mut tried = Vec::new();
    for _ in 0..3 {
        let ticket = fleet.state.place(fleet.now, &FleetAsk { tried: &tried, ..ask(&asked) }).unwrap();
        assert!(!tried.contains(&ticket.decode_on));
        tried.push(ticket.decode_on);
    }
    let refused = fleet.state.place(fleet.now, &FleetAsk { tried: &tried, ..ask(&asked) });
    assert_eq!(refused, Err(FleetRefusal::NoNode), "each was tried");
}

#[test]
fn upgraded_weights_replace_those_of_lost_nodes() {
    let (mut fleet, [first, second, dead]) = Fleet::new();
    let upgraded = |number: u64| NodeView { name: number + 30, fingerprint: "new".into(), ..report(number) };
    assert!(fleet.report(first, upgraded(1)).is_err(), "two nodes have the old weights");
    assert!(fleet.report(second, upgraded(2)).is_err(), "one node has");
    fleet.pass(3000);
    fleet.report(first, upgraded(1)).unwrap();
    fleet.report(second, upgraded(2)).unwrap();
    assert_eq!(fleet.state.ready(fleet.now), 2);
    for number in 0..20 {
        assert_ne!(fleet.run(&prompt(number, 100)).1, dead);
    }
    assert!(fleet.report(dead, report(3)).unwrap_err().contains("other weights"));
}

#[test]
fn an_address_belongs_to_one_node() {
    let (mut fleet, nodes) = Fleet::new();
    // The second node claims the address of the first one, and is then another process.
    let liar = NodeView { address: Some(address(1)), name: 40, ..report(2) };
    fleet.report(nodes[1], liar).unwrap();
    assert_eq!(fleet.state.by_address[&address(1)], nodes[0]);
    fleet.report(nodes[1], report(2)).unwrap();
    assert_eq!(fleet.state.by_address[&address(1)], nodes[0]);
    assert_eq!(fleet.state.by_address[&address(2)], nodes[1]);
}

#[test]
fn another_page_size_is_left_out() {
    let (mut fleet, [first, ..]) = Fleet::new();
    let error = fleet.report(first, NodeView { page_tokens: 64, name: 9, ..report(1) }).unwrap_err();
    assert!(error.contains("pages of 64 tokens") && error.contains("has 16"), "{error}");
}
