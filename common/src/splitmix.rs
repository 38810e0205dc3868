//! SplitMix64 (Sebastiano Vigna): the finaliser that page hashes use, and the generator that makes reproducible inputs
//! for tests and programs. [`random_word`] is the only source that differs each time.

use std::hash::{BuildHasher, RandomState};

/// The generator's step: 2^64 divided by the golden ratio, rounded to an odd number.
pub const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finaliser. Every input bit affects every output bit, and no two inputs have the same output.
#[must_use]
pub const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The SplitMix64 generator.
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// A generator whose numbers depend only on `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }
}

/// A random number, which may be easy to guess.
pub fn random_word() -> u64 {
    // Each `RandomState` has new keys.
    RandomState::new().hash_one(0u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of the reference implementation for seed 1234567.
    #[test]
    fn numbers_match_the_reference() {
        let mut generator = SplitMix64::new(1_234_567);
        let expect = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(expect.map(|_| generator.draw()), expect);
    }
}
