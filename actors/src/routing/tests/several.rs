//! Several routers that do not know each other place requests on the same members, and see the same reports every 100 ms.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::messages::DecodeSteps;

const ROUTERS: u64 = 8;
const MEMBERS: u32 = 8;

/// Routers with different seeds that know these idle members.
fn routers(loads: impl Fn(u32) -> LoadReport) -> Vec<Routing<u32>> {
    let now = Instant::now();
    let config =
        |seed| RoutingConfig { seed, local_if_sooner_by: Duration::ZERO, ..RoutingConfig::default() };
    let routing = |seed| {
        let mut routing = Routing::new(PAGE, config(seed));
        for id in 0..MEMBERS {
            routing.joined(id, node(u64::from(id) + 1, 10_000));
            routing.reported(now, id, &loads(id));
        }
        routing
    };
    (0..ROUTERS).map(routing).collect()
}

fn free(prompt: &[u32]) -> Ask<'_, u32> {
    Ask { decode_on: None, max_tokens: 200, ..ask(prompt) }
}

/// The load of a member whose steps take 4 ms for the first row and 10 us for each further one.
fn packs(decoding: u32) -> LoadReport {
    let rows = decoding.max(1);
    let decode = DecodeSteps { rows, micros: 4_000 + 10 * (rows - 1), least_micros: 4_000 };
    LoadReport { decoding, decode: Some(decode), ..load(0) }
}

#[test]
fn routers_with_the_same_reports_do_not_all_choose_the_same_member() {
    // A prompt without a full page, so without a prefix that they could agree by.
    let short = prompt(1, 10);
    let count = |loads: &dyn Fn(u32) -> LoadReport| {
        let place = |mut routing: Routing<u32>| {
            let placed = routing.place(Instant::now(), &free(&short)).unwrap();
            (placed.prefill_on, placed.decode_on)
        };
        routers(loads).into_iter().map(place).collect::<BTreeSet<_>>()
    };
    let all = count(&|_| packs(0));
    assert!(all.len() >= 4, "idle: {all:?}");
    // Every step with a row is long, so no member gets more rows, and the predictions differ by at most 4 %.
    let busy = |id: u32| {
        let decode = DecodeSteps { rows: 1, micros: 9_000, least_micros: 4_000 };
        LoadReport { decoding: 1, decode: Some(decode), ..load(1000 + 5 * u64::from(id)) }
    };
    let all = count(&busy);
    assert!(all.len() >= 4, "busy: {all:?}");
    assert!(all.iter().all(|(prefiller, decoder)| prefiller == decoder), "no hand-over is needed: {all:?}");
    // One is much sooner than the others.
    let all = count(&|id| LoadReport { waiting_tokens: 100 * u64::from(id), ..busy(id) });
    assert_eq!(all, BTreeSet::from([(0, 0)]));
}

#[test]
fn a_known_prefix_is_worth_more_than_chance() {
    for mut routing in routers(|_| packs(0)) {
        let now = Instant::now();
        let long = prompt(1, 600);
        let first = run(&mut routing, now, &Ask { not_on: &[0, 1, 2, 3, 4, 5, 6], ..free(&long) });
        assert_eq!((first.decode_on, first.prefill_on), (7, 7));
        let longer = [long, prompt(2, 100)].concat();
        for _ in 0..3 {
            // The holder and the others differ by more than 2 % of the prompt.
            let placed = routing.place(now, &free(&longer)).unwrap();
            assert_eq!((placed.decode_on, placed.prefill_on), (7, 7));
            routing.prefilled(now, 7, placed.prefill_tokens, &computed(&placed));
            routing.decoded(7, placed.decode);
        }
    }
}

/// Places `each` requests of 200 steps on every router between two reports, and returns the rows of the members after each report.
fn rows_by_report(each: u32, reports: u32) -> Vec<BTreeMap<u32, u32>> {
    let mut routers = routers(|_| packs(0));
    let (mut now, mut number) = (Instant::now(), 0);
    let mut rows: BTreeMap<u32, u32> = BTreeMap::new();
    let mut after = Vec::new();
    for _ in 0..reports {
        for routing in &mut routers {
            for _ in 0..each {
                number += 1;
                let text = prompt(number, 320);
                let placed = routing.place(now, &free(&text)).unwrap();
                routing.prefilled(now, placed.prefill_on, placed.prefill_tokens, &computed(&placed));
                routing.row_began(placed.decode_on);
                *rows.entry(placed.decode_on).or_default() += 1;
            }
        }
        now += Duration::from_millis(100);
        for routing in &mut routers {
            (0..MEMBERS)
                .for_each(|id| routing.reported(now, id, &packs(rows.get(&id).copied().unwrap_or(0))));
        }
        after.push(rows.clone());
    }
    after
}

#[test]
fn several_routers_decode_on_few_members() {
    let rows = rows_by_report(1, 6);
    let (first, last) = (&rows[0], &rows[5]);
    assert!(first.len() > 1, "without a row they do not know where the others decode: {first:?}");
    let added = |id: &u32| last[id] - first.get(id).copied().unwrap_or(0);
    let joined: Vec<u32> = last.keys().map(added).filter(|added| *added > 0).collect();
    assert_eq!(joined, [5 * ROUTERS as u32], "all later requests go to one member: {rows:?}");
}

/// Between two reports, each router places as many requests on a member as the last report has free rows, so all of them together at most
/// [`ROUTERS`] times as many.
#[test]
fn a_router_adds_its_own_placements_to_the_rows_of_others() {
    let now = Instant::now();
    // Room for 24 rows: twice what is measured, and 8.
    for mut routing in routers(|id| packs(if id == 0 { 8 } else { 0 })) {
        let mut joins = |number| {
            let text = prompt(number, 320);
            let placed = routing.place(now, &free(&text)).unwrap();
            routing.prefilled(now, placed.prefill_on, placed.prefill_tokens, &computed(&placed));
            placed.decode_on == 0
        };
        // A request decodes for 800 ms of 1120 ms, so 23 of them are 16 rows.
        let joined = (1..100).take_while(|number| joins(*number)).count() as u32;
        assert!((20..=24).contains(&joined), "{joined}");
        // They are in the next report, and do not count twice.
        (0..joined).for_each(|_| routing.row_began(0));
        routing.reported(now, 0, &packs(8 + joined));
        assert_eq!(routing.rows(0), f64::from(8 + joined));
        // They end, and the others stay.
        (0..joined).for_each(|_| routing.row_ended(0));
        routing.reported(now, 0, &packs(8));
        assert!(routing.rows(0) >= 23.0, "they are placed, and have not begun");
    }
}

#[test]
fn a_router_adds_its_own_placements_to_the_pages_of_others() {
    let (mut routing, now) = (Routing::new(PAGE, RoutingConfig::default()), Instant::now());
    for id in 0..2 {
        routing.joined(id, node(u64::from(id) + 1, if id == 0 { 100 } else { 1000 }));
        routing.reported(now, id, &packs(if id == 0 { 8 } else { 0 }));
    }
    routing.room_changed(0, 100, 60);
    let place = |routing: &mut Routing<u32>, number| {
        let text = prompt(number, 121);
        routing.place(now, &free(&text)).unwrap()
    };
    // 20 pages each.
    let placed = [1, 2, 3].map(|number| place(&mut routing, number));
    assert_eq!(placed.map(|placed| placed.decode_on), [0, 0, 1]);
    assert_eq!(placed[0].decode.pages, 20);
    // They are in the next report.
    routing.room_changed(0, 100, 80);
    assert_eq!(place(&mut routing, 4).decode_on, 0);
    assert_eq!(place(&mut routing, 5).decode_on, 1);
}
