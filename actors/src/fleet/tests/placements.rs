//! What a report contains of the requests that the proxy has placed.

use super::*;
use crate::routing::DecodeShare;

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

/// The report of the first node with these rows and pages.
fn decodes(decoding: u32, used_pages: u32) -> NodeView {
    NodeView { used_pages, load: LoadReport { decoding, ..report(1).load }, ..report(1) }
}

#[test]
fn answers_in_a_report_are_not_counted_as_those_of_other_proxies() {
    let (mut fleet, [node, ..]) = Fleet::new();
    let rows = |fleet: &Fleet| fleet.state.models["m"].routing.rows(node);
    let tickets = [(); 4].map(|()| fleet.place_on(node));
    // The nodes answer when the whole answer is there, so the proxy has heard of none of them.
    fleet.pass(100);
    fleet.report(node, decodes(4, 0)).unwrap();
    assert_eq!(rows(&fleet), 4.0);
    tickets.iter().for_each(|ticket| fleet.state.answered(fleet.now, ticket.id));
    assert_eq!(rows(&fleet), 4.0);
    tickets.iter().for_each(|ticket| fleet.state.ended(fleet.now, ticket.id));
    fleet.report(node, decodes(1, 0)).unwrap();
    assert_eq!(rows(&fleet), 1.0, "that of another proxy");
    let ticket = fleet.place_on(node);
    let share = f64::from(fleet.state.models["m"].routing.share_of(node).millirows) / 1e3;
    assert!(share > 0.1);
    assert_eq!(rows(&fleet), 1.0 + share);
    fleet.state.ended(fleet.now, ticket.id);
    assert_eq!(rows(&fleet), 1.0);
}

#[test]
fn a_report_that_was_asked_for_before_a_placement_does_not_contain_it() {
    let (mut fleet, [node, ..]) = Fleet::new();
    let state = |fleet: &Fleet| {
        let routing = &fleet.state.models["m"].routing;
        (routing.room(node), routing.rows(node))
    };
    let ticket = fleet.place_on(node);
    // The room and the rows beside those of others: 400 pages and three rows.
    let counted = |fleet: &Fleet| {
        let DecodeShare { pages, millirows } = fleet.state.models["m"].routing.share_of(node);
        (600 - pages, 3.0 + f64::from(millirows) / 1e3)
    };
    let (asked, pages) = (fleet.now, 600 - counted(&fleet).0);
    fleet.now += Duration::from_millis(60);
    // The node was asked when the request was placed.
    fleet.state.reported(fleet.now, node, asked, decodes(3, 400)).unwrap();
    assert_eq!(state(&fleet), counted(&fleet));
    fleet.report(node, decodes(4, 400 + pages)).unwrap();
    assert_eq!(state(&fleet), (600 - pages, 4.0), "asked for 60 ms after the placement");
    // A request that ends before a report contains it leaves nothing behind.
    fleet.state.ended(fleet.now, ticket.id);
    fleet.report(node, decodes(3, 400)).unwrap();
    let ticket = fleet.place_on(node);
    fleet.state.ended(fleet.now, ticket.id);
    fleet.report(node, decodes(3, 400)).unwrap();
    assert_eq!(state(&fleet), (600, 3.0));
    let ticket = fleet.place_on(node);
    assert_eq!(state(&fleet), counted(&fleet));
    fleet.state.ended(fleet.now, ticket.id);
}
