//! The offsets of a step's lists, and the two parts of a step.

use std::ops::Range;

/// Words of one sampled row's settings.
pub(crate) const SETTING_WORDS: usize = 12;

/// The alignment of lists, in words.
const ALIGN_WORDS: usize = 4;

/// The offset of each list in words. Page tables come last, so a copy to the device stops at their end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offsets {
    pub(super) tokens: usize,
    pub(super) positions: usize,
    pub(super) pool_indices: usize,
    pub(super) sampled_rows: usize,
    pub(super) settings: usize,
    pub(super) reported_rows: usize,
    pub(super) scored_rows: usize,
    pub(super) targets: usize,
    pub(super) page_starts: usize,
    pub(super) last_page_tokens: usize,
    pub(super) row_pieces: usize,
    pub(super) piece_rows: usize,
    pub(super) piece_starts: usize,
    pub(super) piece_lengths: usize,
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
        Self {
            tokens: list(rows),
            positions: list(rows),
            pool_indices: list(2 * rows),
            sampled_rows: list(chunks),
            settings: list(SETTING_WORDS * chunks),
            reported_rows: list(chunks),
            scored_rows: list(rows),
            targets: list(rows),
            page_starts: list(chunks + 1),
            last_page_tokens: list(chunks),
            row_pieces: list(chunks + 1),
            piece_rows: list(pieces),
            piece_starts: list(pieces),
            piece_lengths: list(pieces),
            pages: next,
        }
    }
}

/// The part of a batch that one attention kernel computes: prefill or decode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    /// Chunks of the part, in row order.
    pub(crate) chunks: Range<usize>,
    pub(crate) rows: Range<usize>,
    /// The part's entries in the list of page tables.
    pub(super) pages: Range<usize>,
}
