//! Assigns places of the token counts on the device to sequences, and tracks which places the host must fill.
//!
//! A place is filled from the tokens of its sequence. After that, the kernel that samples adds each sampled token, so the next step can be submitted
//! before the host knows the token. There is a place for each row of the largest step. If all are taken, the sequence that has waited longest loses its
//! place, which is filled again when the sequence returns. If more sequences take turns than there are places, places are filled at each turn.

use std::collections::HashMap;

use crate::step::{Chunk, TokenSource};

/// A row of a step whose sampling looks back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LookingBack {
    pub(crate) sequence: u64,
    /// The tokens before the sampled one.
    pub(crate) position: usize,
    /// The previous step samples the last of them, and the host may not know it yet.
    pub(crate) follows: bool,
}

impl LookingBack {
    /// The sampled row of a chunk, if its sample looks back.
    pub(crate) fn of(chunk: &Chunk<'_>) -> Option<Self> {
        let follows = chunk.source == TokenSource::Follows;
        let row = Self { sequence: chunk.sequence, position: chunk.end(), follows };
        chunk.sample.filter(|sample| sample.how.looks_back()).map(|_| row)
    }
}

/// The place of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) index: usize,
    /// The host has to fill the place before the row is sampled.
    pub(crate) needs_fill: bool,
}

/// The places and their sequences.
#[derive(Debug)]
pub(crate) struct Places {
    of: HashMap<u64, usize>,
    held: Vec<Held>,
    /// The places that were assigned last, one for each chunk.
    assigned: Vec<Option<Place>>,
    /// Steps so far.
    step: u64,
}

/// A place.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    sequence: Option<u64>,
    /// How many tokens of the sequence the place counts. `None` if it has to be filled.
    counted: Option<usize>,
    /// The last step with the sequence.
    step: u64,
}

impl Places {
    /// `count` empty places.
    pub(crate) fn new(count: usize) -> Self {
        Self { of: HashMap::new(), held: vec![Held::default(); count], assigned: Vec::new(), step: 0 }
    }

    /// Gives each row of a step a place. `chunks` has one entry for each chunk of the batch, `None` if its sample does not look back. There are at most as
    /// many rows as places.
    ///
    /// # Errors
    /// The sequence of a row that [follows](LookingBack::follows) a token that its place does not count.
    pub(crate) fn assign(
        &mut self,
        chunks: impl Iterator<Item = Option<LookingBack>> + Clone,
    ) -> Result<(), u64> {
        self.assigned.clear();
        let mut rows = chunks.clone().flatten();
        let counted =
            |row: &LookingBack| self.of.get(&row.sequence).and_then(|place| self.held[*place].counted);
        if let Some(row) = rows.find(|row| row.follows && counted(row) != Some(row.position)) {
            return Err(row.sequence);
        }
        self.step += 1;
        for row in chunks.clone().flatten() {
            if let Some(place) = self.of.get(&row.sequence) {
                self.held[*place].step = self.step;
            }
        }
        let mut free = None;
        for row in chunks {
            let place = row.map(|row| self.place(&row, &mut free));
            self.assigned.push(place);
        }
        Ok(())
    }

    /// The place of chunk `index` of the batch whose places were assigned last, if its sample looks back.
    pub(crate) fn assigned(&self, index: usize) -> Option<Place> {
        self.assigned[index]
    }

    /// The place of a row. `free` are the places that the step may take, once they have been listed.
    fn place(&mut self, row: &LookingBack, free: &mut Option<std::vec::IntoIter<usize>>) -> Place {
        let index = self.of.get(&row.sequence).copied().unwrap_or_else(|| {
            let index = free
                .get_or_insert_with(|| self.least_recent_first().into_iter())
                .next()
                .expect("a step has at most as many rows as there are places");
            if let Some(before) = self.held[index].sequence {
                self.of.remove(&before);
            }
            self.of.insert(row.sequence, index);
            self.held[index] = Held { sequence: Some(row.sequence), counted: None, step: self.step };
            index
        });
        let needs_fill = self.held[index].counted != Some(row.position);
        if needs_fill {
            self.held[index].counted = None;
        }
        Place { index, needs_fill }
    }

    /// The places without a sequence of this step. Those that have not been used for the longest time come first.
    fn least_recent_first(&self) -> Vec<usize> {
        let mut free: Vec<usize> =
            (0..self.held.len()).filter(|index| self.held[*index].step < self.step).collect();
        free.sort_by_key(|index| self.held[*index].step);
        free
    }

    /// The place of a sequence counts its first `tokens` tokens, because it was filled or the device added the last one. Does nothing if the last step has
    /// assigned no place to the sequence: then its sample does not look back, and the device does not count it.
    pub(crate) fn set_counted(&mut self, sequence: u64, tokens: usize) {
        let Some(held) = self.of.get(&sequence).map(|index| &mut self.held[*index]) else { return };
        if held.step == self.step {
            held.counted = Some(tokens);
        }
    }

    /// All places have to be filled again, because the device may or may not have changed them.
    pub(crate) fn forget(&mut self) {
        self.of.clear();
        self.held.fill(Held::default());
        self.step = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::kv::{PageId, PageTable};
    use crate::sampling::{Sample, Sampling};

    fn row(sequence: u64, position: usize) -> LookingBack {
        LookingBack { sequence, position, follows: false }
    }

    fn follows(sequence: u64, position: usize) -> LookingBack {
        LookingBack { follows: true, ..row(sequence, position) }
    }

    /// Assigns places to these rows.
    fn assign(places: &mut Places, rows: &[LookingBack]) -> Result<Vec<Place>, u64> {
        places.assign(rows.iter().copied().map(Some))?;
        Ok((0..rows.len()).filter_map(|index| places.assigned(index)).collect())
    }

    /// Assigns places. Fills those that need it, and samples all rows.
    fn step(places: &mut Places, rows: &[LookingBack]) -> Vec<(usize, bool)> {
        let assigned = assign(places, rows).expect("all places count their tokens");
        for row in rows {
            places.set_counted(row.sequence, row.position);
            places.set_counted(row.sequence, row.position + 1);
        }
        assigned.into_iter().map(|place| (place.index, place.needs_fill)).collect()
    }

    #[test]
    fn a_place_is_filled_once() {
        let mut places = Places::new(4);
        assert_eq!(step(&mut places, &[row(7, 10), row(8, 3)]), [(0, true), (1, true)]);
        assert_eq!(step(&mut places, &[follows(8, 4), follows(7, 11)]), [(1, false), (0, false)]);
        assert_eq!(step(&mut places, &[row(7, 12)]), [(0, false)], "the host may know the token");
        assert_eq!(step(&mut places, &[row(9, 1), row(8, 5)]), [(2, true), (1, false)]);
    }

    #[test]
    fn only_samples_that_look_back_have_a_place() {
        let how = Sampling { presence_penalty: 1.0, ..Sampling::GREEDY };
        let sample = Sample { how: &how, tokens: &[5, 6, 7], ..Sample::greedy() };
        let (tokens, source, score) = (&[7], TokenSource::Sampled, None);
        let pages = PageTable::from([PageId(0)]);
        let chunk =
            |sequence, sample| Chunk { sequence, tokens, source, start: 2, pages: &pages, sample, score };
        let batch = [chunk(1, None), chunk(2, Some(sample)), chunk(3, Some(Sample::greedy()))];
        let mut places = Places::new(1);
        assert_eq!(places.assign(batch.iter().map(LookingBack::of)), Ok(()));
        let expect = Some(Place { index: 0, needs_fill: true });
        assert_eq!([0, 1, 2].map(|chunk| places.assigned(chunk)), [None, expect, None]);
        places.set_counted(2, 3);
        let after = Chunk { source: TokenSource::Follows, start: 3, ..batch[1] };
        assert_eq!(places.assign([after].iter().map(LookingBack::of)), Err(2), "it follows nothing");
        places.set_counted(2, 4);
        assert_eq!(places.assign([after].iter().map(LookingBack::of)), Ok(()));
    }

    #[test]
    fn a_sample_that_does_not_look_back_is_not_counted() {
        let mut places = Places::new(2);
        step(&mut places, &[row(1, 5)]);
        assign(&mut places, &[row(2, 9)]).unwrap();
        places.set_counted(1, 7);
        assert_eq!(assign(&mut places, &[follows(1, 7)]), Err(1));
        assert_eq!(step(&mut places, &[row(1, 7)]), [(0, true)]);
    }

    #[test]
    fn a_sample_that_was_not_taken_is_not_counted() {
        let mut places = Places::new(1);
        assign(&mut places, &[row(1, 5)]).unwrap();
        places.set_counted(1, 5);
        assert_eq!(assign(&mut places, &[row(1, 5)]), Ok(vec![Place { index: 0, needs_fill: false }]));
        places.set_counted(1, 6);
        assert_eq!(
            assign(&mut places, &[row(1, 5)]),
            Ok(vec![Place { index: 0, needs_fill: true }]),
            "one too many"
        );
    }

    #[test]
    fn an_unfilled_place_counts_nothing() {
        let mut places = Places::new(1);
        assign(&mut places, &[row(1, 5)]).unwrap();
        assert_eq!(assign(&mut places, &[row(1, 5)]), Ok(vec![Place { index: 0, needs_fill: true }]));
    }

    #[test]
    fn the_sequence_that_waits_longest_loses_its_place() {
        let mut places = Places::new(3);
        step(&mut places, &[row(1, 1), row(2, 1), row(3, 1)]);
        step(&mut places, &[row(3, 2), row(1, 2)]);
        step(&mut places, &[row(1, 3)]);
        assert_eq!(step(&mut places, &[row(4, 1), row(5, 1), row(1, 4)]), [(1, true), (2, true), (0, false)]);
        assert_eq!(assign(&mut places, &[follows(2, 2)]), Err(2), "it lost its place");
        assert!(step(&mut places, &[row(2, 2)])[0].1);
    }

    #[test]
    fn nothing_follows_after_a_failure() {
        let mut places = Places::new(2);
        step(&mut places, &[row(1, 1)]);
        assert_eq!(
            assign(&mut places, &[follows(1, 3)]),
            Err(1),
            "not the token after those that are counted"
        );
        places.forget();
        assert_eq!(assign(&mut places, &[follows(1, 2)]), Err(1));
        assert_eq!(step(&mut places, &[row(1, 2)]), [(0, true)]);
    }

    proptest! {
        #[test]
        fn a_place_that_is_not_filled_counts_the_tokens_of_its_sequence(
            steps in prop::collection::vec(prop::collection::btree_map(0u64..9, 0usize..3, 1..=4), 60),
        ) {
            // What the device has in each place: a sequence and the number of its counted tokens.
            let mut device: HashMap<usize, (u64, usize)> = HashMap::new();
            let (mut places, mut lengths) = (Places::new(4), [5; 9]);
            for rows in steps {
                // 0: the sample is not taken. 2: the host recomputes the sequence from a shorter prefix.
                for (sequence, what) in &rows {
                    lengths[*sequence as usize] -= usize::from(*what == 2 && lengths[*sequence as usize] > 1);
                }
                let looking: Vec<LookingBack> =
                    rows.keys().map(|sequence| row(*sequence, lengths[*sequence as usize])).collect();
                let assigned = assign(&mut places, &looking).unwrap();
                let mut used = Vec::new();
                for ((row, place), what) in looking.iter().zip(assigned).zip(rows.values()) {
                    prop_assert!(!used.contains(&place.index), "two sequences have one place");
                    used.push(place.index);
                    if place.needs_fill {
                        device.insert(place.index, (row.sequence, row.position));
                        places.set_counted(row.sequence, row.position);
                    }
                    prop_assert_eq!(device[&place.index], (row.sequence, row.position));
                    if *what > 0 {
                        device.insert(place.index, (row.sequence, row.position + 1));
                        places.set_counted(row.sequence, row.position + 1);
                        lengths[row.sequence as usize] += 1;
                    }
                }
            }
        }
    }
}
