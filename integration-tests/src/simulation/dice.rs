//! Random numbers from a seed.

use common::splitmix::SplitMix64;

/// The only source of randomness of a history.
#[derive(Clone, Debug)]
pub(crate) struct Dice(SplitMix64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SplitMix64::new(seed))
    }

    fn roll(&mut self) -> u64 {
        self.0.draw()
    }

    /// A number in `low..=high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.roll() % (high - low + 1)
    }

    /// One of these, of which there is at least one.
    pub(crate) fn one_of<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.between(0, from.len() as u64 - 1) as usize]
    }

    /// True with probability 1 / `n`.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.roll().is_multiple_of(n)
    }

    /// Microseconds of a wait: at most `usual` in most cases, and up to `longest` in a few.
    pub(crate) fn wait(&mut self, usual: u64, longest: u64) -> u64 {
        if self.one_in(40) { self.between(usual, longest.max(usual)) } else { self.between(1, usual) }
    }
}
