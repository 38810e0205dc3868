//! A few hundred simulated histories, before the longer run of `cargo xtask sim`.

use integration_tests::simulation::{Violation, history};

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
    assert_eq!(total.faults.len(), 11, "not every kind of fault occurs: {:?}", total.faults);
    let reached = [
        total.finished,
        total.disaggregated,
        total.recomputes,
        total.preemptions,
        total.resident,
        total.damaged,
        total.constrained,
        total.grammars_replaced,
        total.lost_while_compiling,
        total.no_room,
        total.no_credit,
    ];
    assert!(reached.iter().all(|count| *count > 0), "{total:?}");
    Ok(())
}
