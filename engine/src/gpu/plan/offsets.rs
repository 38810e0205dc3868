//! Where the lists of a step lie in its words, and the parts that a step has.

use std::ops::Range;

/// A sampled row's settings.
pub(crate) const SETTING_WORDS: usize = 8;

/// Lists are aligned to this many words.
const ALIGN_WORDS: usize = 4;

/// Where each list begins, in words. Pieces and page tables come last: the copy ends with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offsets {
    pub(super) tokens: usize,
    pub(super) positions: usize,
    pub(super) pool_places: usize,
    pub(super) sampled_rows: usize,
    pub(super) settings: usize,
    pub(super) row_starts: usize,
    pub(super) page_starts: usize,
    pub(super) last_page_tokens: usize,
    pub(super) row_pieces: usize,
    pub(super) piece_rows: usize,
    pub(super) piece_places: usize,
    pub(super) piece_lengths: usize,
    pub(super) piece_flags: usize,
    pub(super) pages: usize,
}

impl Offsets {
    pub(super) fn new(rows: usize, chunks: usize, pieces: usize) -> Self {
        let mut next = 0;
        let mut list = |words: usize| {
            let start = next;
            next += words.next_multiple_of(ALIGN_WORDS);
            start
        };
        // Starts come twice, for the prefill part and the decode part of a batch, each with an end.
        Self {
            tokens: list(rows),
            positions: list(rows),
            pool_places: list(2 * rows),
            sampled_rows: list(chunks),
            settings: list(SETTING_WORDS * chunks),
            row_starts: list(chunks + 2),
            page_starts: list(chunks + 2),
            last_page_tokens: list(chunks),
            row_pieces: list(chunks + 1),
            piece_rows: list(pieces),
            piece_places: list(pieces),
            piece_lengths: list(pieces),
            piece_flags: list(pieces.div_ceil(4)),
            pages: next,
        }
    }
}

/// A part of the batch that one attention kernel takes: its chunks and its rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    /// In row order.
    pub(crate) chunks: Range<usize>,
    pub(crate) rows: Range<usize>,
    /// Entries of the part's page tables.
    pub(super) pages: Range<usize>,
    /// Where its entries in the lists of starts begin.
    pub(super) starts: usize,
}
