//! Chance, from a seed.

use common::splitmix::SplitMix64;

/// The one source of chance of a history.
#[derive(Clone, Debug)]
pub(super) struct Dice(SplitMix64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    fn roll(&mut self) -> u64 {
        self.0.draw()
    }

    /// A number of `low..=high`.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.roll() % (high - low + 1)
    }

    /// True once in `n` times.
    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.roll().is_multiple_of(n)
    }

    /// Microseconds of a wait that is short, as a rule, and sometimes as long as `longest`.
    pub(super) fn wait(&mut self, usual: u64, longest: u64) -> u64 {
        if self.one_in(40) { self.between(usual, longest.max(usual)) } else { self.between(1, usual) }
    }
}
