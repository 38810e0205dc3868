//! The layout of the log probabilities that `score.cu` writes.

use crate::sampling::{Logprobs, Sampling};

/// Words of one scored row: the log probability of its target, the target's rank, and pairs of a token and its log probability.
pub(crate) const SCORE_WORDS: usize = 2 + 2 * Sampling::LOGPROBS_MAX as usize;

/// The log probabilities in the words of one row, with `top` pairs.
pub(crate) fn logprobs_of(words: &[u32], top: u32) -> Logprobs {
    let pairs = words[2..][..2 * top as usize].as_chunks::<2>().0;
    Logprobs {
        sampled: f32::from_bits(words[0]),
        rank: words[1],
        top: pairs.iter().map(|[token, logprob]| (*token, f32::from_bits(*logprob))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_back() {
        let mut words = [9; SCORE_WORDS];
        let bits = f32::to_bits;
        words[..6].copy_from_slice(&[bits(-1.5), 3, 17, bits(-0.25), 4, bits(-1.0)]);
        let logprobs = logprobs_of(&words, 2);
        assert_eq!(logprobs, Logprobs { sampled: -1.5, rank: 3, top: vec![(17, -0.25), (4, -1.0)] });
        assert_eq!(logprobs_of(&words, 0).top, []);
        assert_eq!(logprobs_of(&words, Sampling::LOGPROBS_MAX).top.len(), 20);
    }

    #[test]
    fn the_kernel_has_the_same_layout() {
        let source = include_str!("../../kernels/score.cu");
        assert!(source.contains(&format!("constexpr int TOP_MAX = {};", Sampling::LOGPROBS_MAX)));
        assert!(source.contains("constexpr int ROW_WORDS = 2 + 2 * TOP_MAX;"));
    }
}
