//! The samples of a step that has been submitted and whose tokens are not known yet.

use crate::error::EngineError;
use crate::sampling::{Sample, Sampling, Token, choose};
use crate::step::{Chunk, SampledToken, TokenMask};

/// A sample whose token is not known.
#[derive(Debug)]
pub(crate) struct PendingSample {
    pub(crate) sequence: u64,
    /// Tokens before the sampled one.
    pub(crate) position: u32,
    /// See [`Sampling::logprobs`].
    #[cfg_attr(
        not(feature = "cuda"),
        expect(dead_code, reason = "only the GPU reads it; the host reads HostSample::how")
    )]
    pub(crate) logprobs: Option<u32>,
    mask: PendingMask,
}

/// The settings and the history of a sample that the host takes.
#[derive(Debug)]
pub(crate) struct HostSample {
    how: Sampling,
    tokens: Vec<u32>,
    prompt: u32,
}

/// The mask of a sample.
#[derive(Debug)]
enum PendingMask {
    /// The sample has none: all tokens are allowed.
    All,
    /// The sample waits for its mask.
    Waits,
    /// The sample did not get its mask in time, so it is not taken.
    Late,
    Given(TokenMask),
}

impl PendingSample {
    /// The sample of a chunk, if it has one.
    pub(crate) fn of(chunk: &Chunk<'_>) -> Option<Self> {
        let sample = chunk.sample?;
        Some(Self {
            sequence: chunk.sequence,
            position: chunk.end() as u32,
            logprobs: sample.how.logprobs,
            mask: if sample.constrained { PendingMask::Waits } else { PendingMask::All },
        })
    }

    /// True if the sample waits for its mask.
    pub(crate) fn waits(&self) -> bool {
        matches!(self.mask, PendingMask::Waits)
    }

    /// True if the sample is not taken.
    pub(crate) fn is_late(&self) -> bool {
        matches!(self.mask, PendingMask::Late)
    }

    /// The mask that was given.
    pub(crate) fn mask(&self) -> Option<&[u32]> {
        match &self.mask {
            PendingMask::Given(mask) => Some(mask),
            PendingMask::All | PendingMask::Waits | PendingMask::Late => None,
        }
    }

    /// The output for a token.
    pub(crate) fn sampled(&self, token: Token) -> SampledToken {
        SampledToken { sequence: self.sequence, token }
    }
}

impl HostSample {
    /// The sample of a chunk, if it has one.
    pub(crate) fn of(chunk: &Chunk<'_>) -> Option<Self> {
        let sample = chunk.sample?;
        Some(Self { how: sample.how.clone(), tokens: sample.tokens.to_vec(), prompt: sample.prompt })
    }

    /// Takes the sample from its logits.
    pub(crate) fn choose(&self, pending: &PendingSample, logits: &mut [f32]) -> Token {
        let (how, tokens, mask) = (&self.how, &self.tokens, pending.mask());
        let sample = Sample { how, tokens, prompt: self.prompt, constrained: mask.is_some() };
        choose(logits, sample, mask, pending.position)
    }
}

/// Gives the waiting samples their masks, in order. A mask of `None` means that the sample is not taken.
///
/// # Errors
/// [`EngineError::BadMasks`] if the number of masks is not the number of waiting samples, or if a mask has the wrong length for
/// `vocabulary` or allows no token of it.
pub(crate) fn give_masks(
    samples: &mut [PendingSample],
    masks: &[Option<TokenMask>],
    vocabulary: u32,
) -> Result<(), EngineError> {
    let waiting = samples.iter().filter(|sample| sample.waits()).count();
    if masks.len() != waiting {
        return Err(EngineError::BadMasks { what: "there is not one mask for each constrained sample" });
    }
    if masks.iter().flatten().any(|mask| mask.len() != vocabulary.div_ceil(32) as usize) {
        return Err(EngineError::BadMasks {
            what: "a mask does not have one bit for each token of the vocabulary",
        });
    }
    if masks.iter().flatten().any(|mask| !allows_any(mask, vocabulary)) {
        return Err(EngineError::BadMasks { what: "a mask allows no token" });
    }
    for (sample, mask) in samples.iter_mut().filter(|sample| sample.waits()).zip(masks) {
        sample.mask = mask.clone().map_or(PendingMask::Late, PendingMask::Given);
    }
    Ok(())
}

/// True if the mask allows a token below `vocabulary`.
fn allows_any(mask: &[u32], vocabulary: u32) -> bool {
    let (whole, rest) = (vocabulary as usize / 32, vocabulary % 32);
    mask[..whole].iter().any(|word| *word != 0) || (rest > 0 && mask[whole] & ((1 << rest) - 1) != 0)
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::kv::PageTable;

    fn chunk(constrained: bool) -> Chunk<'static> {
        static PAGES: LazyLock<PageTable> = LazyLock::new(PageTable::default);
        let sample = Sample { constrained, ..Sample::greedy() };
        Chunk {
            sequence: 1,
            tokens: &[1],
            source: crate::TokenSource::Prompt,
            start: 0,
            pages: &PAGES,
            sample: Some(sample),
            score: None,
        }
    }

    fn sample(constrained: bool) -> PendingSample {
        PendingSample::of(&chunk(constrained)).unwrap()
    }

    #[test]
    fn each_waiting_sample_gets_its_mask() {
        let mut samples = [sample(true), sample(false), sample(true)];
        let mask = TokenMask::from([0b1000, 0]);
        assert_eq!(give_masks(&mut samples, &[Some(mask.clone()), None], 40), Ok(()));
        assert!(samples[0].mask().is_some_and(|given| std::ptr::eq(given, &*mask)), "no word is copied");
        assert_eq!(samples.each_ref().map(PendingSample::is_late), [false, false, true]);
        let logits = || (0..40).map(|n| n as f32).collect::<Vec<_>>();
        let of_host = HostSample::of(&chunk(true)).unwrap();
        assert_eq!(of_host.choose(&samples[0], &mut logits()).id, 3);
        assert_eq!(of_host.choose(&samples[1], &mut logits()).id, 39);
    }

    #[test]
    fn wrong_masks_are_refused() {
        for (masks, vocabulary) in [
            (&[][..], 40),
            (&[None, None][..], 40),
            (&[Some([1].into())][..], 40),
            (&[Some([0, 0].into())][..], 40),
            (&[Some([0, 1 << 8].into())][..], 40),
        ] {
            let refused = give_masks(&mut [sample(true)], masks, vocabulary);
            assert!(matches!(refused, Err(EngineError::BadMasks { .. })), "{masks:?}");
        }
        assert_eq!(give_masks(&mut [sample(true)], &[Some([0, 1 << 7].into())], 40), Ok(()));
        assert_eq!(give_masks(&mut [sample(true)], &[Some([2].into())], 32), Ok(()));
    }
}
