//! A few hundred histories that any change should pass before the long run.

use integration_tests::simulation::{Violation, history};

#[test]
fn a_seed_is_one_history() -> Result<(), Violation> {
    for seed in 0..20 {
        assert_eq!(history(seed, false)?, history(seed, false)?, "seed {seed}");
    }
    Ok(())
}

#[test]
fn histories_reach_what_they_are_for() -> Result<(), Violation> {
    let mut total = integration_tests::simulation::Report::default();
    for seed in 0..300 {
        total.add(&history(seed, false)?);
    }
    assert_eq!(total.faults.len(), 12, "every kind of fault: {:?}", total.faults);
    let reached = [
        total.finished,
        total.disaggregated,
        total.recomputes,
        total.preemptions,
        total.resident,
        total.damaged,
    ];
    assert!(reached.iter().all(|count| *count > 0), "{total:?}");
    Ok(())
}
