//! What nodes are: their weights, addresses, contexts and pages.

use super::*;
use crate::routing::DecodeShare;

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
    // The last one comes with the new weights. The others still get requests.
    fleet.report(dead, upgraded(3)).unwrap();
    fleet.report(first, upgraded(1)).unwrap();
    fleet.report(second, upgraded(2)).unwrap();
    assert!([first, second, dead].into_iter().all(|node| fleet.is_used(node)));
}

#[test]
fn a_node_whose_address_changes_keeps_its_counts() {
    let (mut fleet, [first, ..]) = Fleet::new();
    let ticket = fleet.place_on(first);
    let moved = NodeView { address: Some(address(9)), ..report(1) };
    fleet.report(first, moved).unwrap();
    assert_eq!((fleet.state.by_address.get(&address(1)), fleet.state.by_address[&address(9)]), (None, first));
    let share = |fleet: &Fleet| fleet.state.models["m"].routing.share_of(first);
    assert!(share(&fleet).millirows > 0);
    fleet.state.ended(fleet.now, ticket.id);
    assert_eq!(share(&fleet), DecodeShare::default());
}

#[test]
fn the_address_and_the_context_of_a_lost_node_do_not_count() {
    let (mut fleet, [first, second, _]) = Fleet::new();
    fleet.report(first, NodeView { context_tokens: 1 << 20, ..report(1) }).unwrap();
    fleet.pass(3000);
    let heir = NodeView { address: Some(address(1)), ..report(2) };
    let context_tokens = heir.context_tokens;
    fleet.report(second, heir).unwrap();
    assert_eq!(fleet.state.by_address[&address(1)], second);
    assert_eq!(fleet.state.context_tokens(Some("m")), Some(context_tokens));
}

#[test]
fn a_larger_context_does_not_count_once_its_node_has_left_or_reports_a_smaller_one() {
    // Without a tick.
    let check = |shrinks: bool| {
        let (mut fleet, [first, ..]) = Fleet::new();
        let larger = NodeView { context_tokens: 1 << 20, ..report(1) };
        fleet.report(first, larger).unwrap();
        if shrinks {
            fleet.report(first, report(1)).unwrap();
        } else {
            fleet.state.left(first);
        }
        assert_eq!(fleet.state.context_tokens(None), Some(4096));
        let asked = prompt(1, 100);
        let ask = FleetAsk { max_tokens: Some(1 << 20), ..ask(&asked) };
        assert!(fleet.state.place(fleet.now, &ask).is_ok(), "shrinks: {shrinks}");
    };
    [true, false].into_iter().for_each(check);
}

#[test]
fn prompts_are_not_hashed_for_a_state_without_an_index() {
    for (index_bytes, expect) in [(0, None), (1 << 20, Some(PAGE))] {
        let mut state = FleetState::new(index_bytes, Duration::from_secs(1), 0);
        let (node, now) = (state.joined("1".into()), Instant::now());
        state.reported(now, node, now, report(1)).unwrap();
        assert_eq!(state.page_tokens(Some("m")), expect);
        assert!(state.place(now, &ask(&prompt(1, 100))).is_ok());
    }
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

#[test]
fn a_sender_is_neither_ready_nor_missing() {
    let (mut fleet, [first, second, _]) = Fleet::new();
    let only_prefills = Capabilities { decode: false, ..report(1).capabilities };
    fleet.report(first, NodeView { capabilities: only_prefills, ..report(1) }).unwrap();
    fleet.report(second, NodeView { accepts: false, ..report(2) }).unwrap();
    assert_eq!((fleet.state.ready(fleet.now), fleet.state.unready(fleet.now)), (1, 1));
    fleet.state.named([Arc::from("new")]);
    assert_eq!(fleet.state.unready(fleet.now), 2, "it has not reported yet");
}
