//! A few hundred simulated histories, before the longer run of `cargo xtask sim`.

use actors::routing::LocalPrefill;
use integration_tests::fleet_simulation as fleet;
use integration_tests::simulation::{NodePlan, Plan, Violation, history};

#[test]
fn a_seed_repeats_its_history() -> Result<(), Violation> {
    for seed in 0..20 {
        assert_eq!(history(seed, false)?, history(seed, false)?, "seed {seed}");
    }
    Ok(())
}

#[test]
fn histories_reach_every_fault_and_outcome() -> Result<(), Violation> {
    let mut total = integration_tests::simulation::Report::default();
    for seed in 0..600 {
        total.add(&history(seed, false)?);
    }
    assert_eq!(total.faults.len(), 12, "not every kind of fault occurs: {:?}", total.faults);
    let reached = [
        total.finished,
        total.disaggregated,
        total.recomputes,
        total.preemptions,
        total.resident,
        total.damaged,
        total.pieces,
        total.constrained,
        total.grammars_replaced,
        total.lost_while_compiling,
        total.no_room,
        total.no_credit,
    ];
    assert!(reached.iter().all(|count| *count > 0), "{total:?}");
    Ok(())
}

/// Each node of such a ring prefills for the next one, and its pool has room for two of the longest prompts. These are the plans in which
/// nodes are most likely to wait for each other.
#[test]
fn one_history_in_fifty_is_a_ring_whose_nodes_may_not_prefill_their_own_prompts() {
    const HISTORIES: u64 = 10_000;
    let holds_two = |node: &NodePlan| {
        let quota = node.prefill_pages.unwrap_or(0);
        let longest = node.pages - node.ring_pages - quota;
        (longest..2 * longest).contains(&quota)
    };
    let is_ring = |plan: &Plan, count: usize| {
        let dials_next = |(place, node): (usize, &NodePlan)| node.dials == [(place + 1) % count];
        plan.nodes.len() == count
            && plan.nodes.iter().enumerate().all(dials_next)
            && plan.nodes.iter().all(holds_two)
    };
    let plans: Vec<Plan> = (0..HISTORIES).map(Plan::of).collect();
    for count in [2, 5] {
        let forbids = |plan: &&Plan| plan.local == LocalPrefill::Never && is_ring(plan, count);
        let found = plans.iter().filter(forbids).count() as u64;
        let calm = plans.iter().filter(forbids).filter(|plan| plan.bound.is_some()).count();
        assert!(found * 50 >= HISTORIES, "{found} of {HISTORIES} histories are such rings of {count} nodes");
        assert!(calm > 0, "no such ring of {count} nodes is free of faults");
    }
}

#[test]
fn a_seed_repeats_its_history_of_a_fleet() -> Result<(), fleet::Violation> {
    let shape = fleet::Shape::default();
    for seed in 0..5 {
        assert_eq!(fleet::history(seed, &shape, false)?, fleet::history(seed, &shape, false)?, "seed {seed}");
    }
    Ok(())
}

#[test]
fn histories_of_fleets_reach_every_fault_and_outcome() -> Result<(), fleet::Violation> {
    let mut total = fleet::Report::default();
    for seed in 0..50 {
        total.add(&fleet::history(seed, &fleet::Shape::default(), false)?);
    }
    assert_eq!(total.faults.len(), 22, "not every kind of fault occurs: {:?}", total.faults);
    assert_eq!(total.ends.len(), 9, "not every kind of end occurs: {:?}", total.ends);
    let reached = [
        total.handed_over,
        total.retries,
        total.cuts,
        total.left,
        total.resyncs,
        total.leases_lost,
        total.longest_queue,
        total.most_retrying,
    ];
    assert!(reached.iter().all(|count| *count > 0), "{total}");
    Ok(())
}
