//! A pair, or two nodes, recover from the death of every part: a short run of the rounds that `examples/kills.rs` measures.

use std::time::Duration;

use anyhow::{Context, Result};
use integration_tests::kills::{Bench, Kill, Roles, Terms};

#[test]
fn a_pair_recovers_from_every_kind_of_death() -> Result<()> {
    recover(Roles::Pair)
}

#[test]
fn two_nodes_recover_from_every_kind_of_death() -> Result<()> {
    recover(Roles::Nodes)
}

fn recover(roles: Roles) -> Result<()> {
    let mut backwards = Kill::ALL;
    backwards.reverse();
    // Rounds mostly wait, so two pairs take hardly longer than one.
    std::thread::scope(|scope| {
        let pairs = [(1, Kill::ALL), (2, backwards)]
            .map(|(seed, kills)| scope.spawn(move || run(roles, seed, &kills)));
        pairs.into_iter().try_for_each(|pair| pair.join().expect("the thread did not panic"))
    })
}

/// One round of each of `kills`, with one pair.
fn run(roles: Roles, seed: u64, kills: &[Kill]) -> Result<()> {
    let terms = Terms { in_flight: 4, accounted: Duration::from_secs(120), stop: Duration::from_secs(4) };
    let mut bench = Bench::start(roles, seed, None, terms)?;
    for kill in kills {
        let outcome = bench.round(*kill);
        let round = outcome.with_context(|| format!("{kill:?}\n{}", bench.report()))?;
        println!("{kill:?}: {round:?}");
        let loaded = if roles == Roles::Nodes && round.left == 0 { 2 } else { 1 };
        let ended = round.correct + round.failed + round.left;
        assert_eq!(ended, loaded * terms.in_flight, "{kill:?}: {round:?}");
    }
    Ok(())
}
