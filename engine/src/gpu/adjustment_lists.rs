//! The lists of a step's biases and penalties for `sample.cu` and `counts.cu`. All lie in one array of 32-bit words, which one copy sends to the device.

use std::ops::Range;

use super::places::Place;
use crate::sampling::Sample;

/// Words of one sequence in the list of places to fill.
pub(crate) const SEQUENCE_WORDS: usize = 4;

/// Bytes of the counts of `places` sequences. `counts.cuh` has the same layout.
pub(crate) fn counts_bytes(places: usize, vocabulary: usize) -> usize {
    places * vocabulary.next_multiple_of(8) * size_of::<u16>()
}

/// A sampled row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdjustedRow<'a> {
    pub(crate) sample: Sample<'a>,
    /// The tokens before the sampled one.
    pub(crate) position: usize,
    /// The place of its sequence, if the row has penalties.
    pub(crate) place: Option<Place>,
}

/// The lists of one step: the place of each row, where its biases start, the biases, the sequences to count, and their tokens.
#[derive(Debug, Default)]
pub(crate) struct AdjustmentLists {
    words: Vec<u32>,
    rows: usize,
    biases: usize,
    sequences: usize,
}

impl AdjustmentLists {
    /// Writes the lists of a step that samples `rows` rows: `sampled`, and padding rows.
    pub(crate) fn lay_out<'a>(
        &mut self,
        sampled: impl Iterator<Item = AdjustedRow<'a>> + Clone,
        rows: usize,
        vocabulary: usize,
    ) {
        let words = &mut self.words;
        words.clear();
        let place_of = |row: AdjustedRow<'_>| row.place.map_or(u32::MAX, |place| place.index as u32);
        words.extend(sampled.clone().map(place_of));
        words.resize(rows, u32::MAX);
        let mut biases = 0;
        for row in sampled.clone() {
            words.push(biases as u32);
            biases += biases_of(&row, vocabulary).len();
        }
        words.resize(2 * rows + 1, biases as u32);
        words.reserve(2 * biases);
        for row in sampled.clone() {
            let start = words.len();
            let of_row = biases_of(&row, vocabulary);
            words.resize(start + 2 * of_row.len(), 0);
            let pairs = words[start..].as_chunks_mut::<2>().0;
            pairs.iter_mut().zip(of_row).for_each(|(pair, (token, bias))| *pair = [*token, bias.to_bits()]);
        }
        let filled =
            || sampled.clone().filter_map(|row| Some((row, row.place.filter(|place| place.needs_fill)?)));
        let mut next = 0;
        for (row, place) in filled() {
            let tokens = tokens_of(&row).len() as u32;
            let prompt = row.sample.prompt.min(tokens);
            words.extend([place.index as u32, next, next + prompt, next + tokens]);
            next += tokens;
        }
        filled().for_each(|(row, _)| words.extend(tokens_of(&row)));
        let sequences = filled().count();
        (self.rows, self.biases, self.sequences) = (rows, biases, sequences);
    }

    /// The words of all lists.
    pub(crate) fn words(&self) -> &[u32] {
        &self.words
    }

    /// The place of each row; -1: the row has no penalties.
    pub(crate) fn place_of(&self) -> Range<usize> {
        0..self.rows
    }

    /// The number of biases before those of each row, then the number of all.
    pub(crate) fn bias_starts(&self) -> Range<usize> {
        self.rows..2 * self.rows + 1
    }

    /// Pairs of a token and the bits of a float, ordered by token in each row.
    pub(crate) fn biases(&self) -> Range<usize> {
        let start = self.bias_starts().end;
        start..start + 2 * self.biases
    }

    /// The sequences whose places are filled, [`SEQUENCE_WORDS`] words each.
    pub(crate) fn sequences(&self) -> Range<usize> {
        let start = self.biases().end;
        start..start + SEQUENCE_WORDS * self.sequences
    }

    /// The tokens of these sequences.
    pub(crate) fn tokens(&self) -> Range<usize> {
        self.sequences().end..self.words.len()
    }
}

/// The row's biases, without those of tokens outside the vocabulary.
fn biases_of<'a>(row: &AdjustedRow<'a>, vocabulary: usize) -> &'a [(u32, f32)] {
    let biases = &row.sample.how.logit_bias;
    &biases[..biases.partition_point(|(token, _)| (*token as usize) < vocabulary)]
}

/// The tokens that a row looks back at.
fn tokens_of<'a>(row: &AdjustedRow<'a>) -> &'a [u32] {
    let tokens = row.sample.tokens;
    tokens.get(..row.position).unwrap_or(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::Sampling;

    #[test]
    fn every_row_has_its_biases_and_every_unfilled_place_its_tokens() {
        let biased =
            |biases: &[(u32, f32)]| Sampling { logit_bias: biases.to_vec().into(), ..Sampling::GREEDY };
        let hows = [biased(&[(7, 1.0), (2, 2.0), (50, 9.0), (2, 3.0)]), biased(&[]), biased(&[(1, -1.0)])];
        let place = |index, needs_fill| Some(Place { index, needs_fill });
        let rows = [
            AdjustedRow {
                sample: Sample { how: &hows[0], tokens: &[5, 6, 7, 8], prompt: 2, constrained: false },
                position: 3,
                place: place(4, true),
            },
            AdjustedRow {
                sample: Sample { how: &hows[1], tokens: &[1, 2], prompt: 1, constrained: false },
                position: 2,
                place: place(9, false),
            },
            AdjustedRow { sample: Sample { how: &hows[2], ..Sample::greedy() }, position: 5, place: None },
            AdjustedRow {
                sample: Sample { how: &hows[1], tokens: &[3], prompt: 8, constrained: false },
                position: 1,
                place: place(0, true),
            },
        ];
        let mut lists = AdjustmentLists::default();
        // The lists of an earlier step are overwritten.
        lists.lay_out(rows.iter().copied(), 4, 8);
        lists.lay_out(rows.iter().copied(), 6, 50);
        let words = lists.words();
        let none = u32::MAX;
        assert_eq!(words[lists.place_of()], [4, 9, none, 0, none, none]);
        assert_eq!(words[lists.bias_starts()], [0, 3, 3, 4, 4, 4, 4]);
        let bits = f32::to_bits;
        assert_eq!(
            words[lists.biases()],
            [2, bits(2.0), 2, bits(3.0), 7, bits(1.0), 1, bits(-1.0)],
            "a token outside the vocabulary is left out"
        );
        assert_eq!(words[lists.sequences()], [4, 0, 2, 3, 0, 3, 4, 4]);
        assert_eq!(words[lists.tokens()], [5, 6, 7, 3]);
        lists.lay_out(rows[..0].iter().copied(), 2, 50);
        assert_eq!(lists.words(), [none, none, 0, 0, 0]);
    }

    #[test]
    fn the_kernels_have_the_same_layout() {
        let header = include_str!("../../kernels/counts.cuh");
        assert!(header.contains("return (vocabulary + 7) / 8 * 8;"));
        assert_eq!(counts_bytes(3, 17), 3 * 24 * 2);
        let counts = include_str!("../../kernels/counts.cu");
        assert!(
            counts
                .contains(&format!("static_assert(sizeof(Counted) == {SEQUENCE_WORDS} * sizeof(int32_t));"))
        );
        assert!(header.contains(&format!("COUNT_MAX = {:#06X};", crate::sampling::COUNT_MAX)));
    }
}
