//! The layout of a batch for the GPU kernels: token ids, positions, pool indices and page tables. All lists lie in one array
//! of 32-bit words, which one copy sends to the device.
//!
//! The offsets of the lists depend only on the numbers of rows and chunks and on the capacity for split-KV pieces. So a captured graph
//! finds the lists of every step of its size, and a small step has few words.

use std::ops::Range;

use crate::step::{Chunk, TokenSource};

mod groups;
mod offsets;
mod pieces;
mod prompt_lists;
#[cfg(test)]
mod tests;
mod writer;

use offsets::Offsets;
use pieces::pieces;
use prompt_lists::PromptLists;
use writer::{Writer, Written};

#[cfg(feature = "cuda")]
pub(crate) use groups::{PromptGroup, groups};
pub(crate) use offsets::{Part, SETTING_WORDS};
pub(crate) use pieces::pieces_max;
pub(crate) use writer::settings_of;

/// The capacity of a plan: the sizes of its largest step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepCapacity {
    pub(crate) rows: usize,
    pub(crate) chunks: usize,
    /// Entries of all page tables.
    pub(crate) pages: usize,
}

/// The lists of one step: their offsets and lengths in the step's words.
#[derive(Debug)]
pub(crate) struct Plan {
    capacity: StepCapacity,
    page_tokens: usize,
    offsets: Offsets,
    /// Words of the step.
    words: usize,
    /// The step's capacity for split-KV pieces.
    pieces: usize,
    /// Lists that only the host reads.
    pub(crate) prompts: PromptLists,
    pub(crate) rows: usize,
    pub(crate) sampled: usize,
    /// Rows whose next token is scored.
    pub(crate) scored: usize,
    /// Sampled rows whose log probabilities are reported.
    pub(crate) reported: usize,
    /// The prompts. They come first.
    pub(crate) prefill: Part,
    pub(crate) decode: Part,
    /// The batch index of each chunk, in row order.
    pub(crate) order: Vec<usize>,
}

impl Plan {
    /// The plan of an empty step, with the given capacity.
    pub(crate) fn new(capacity: StepCapacity, page_tokens: usize) -> Self {
        let pieces = pieces_max(capacity.rows);
        Self {
            capacity,
            page_tokens,
            offsets: Offsets::new(capacity.rows, capacity.chunks, pieces),
            words: 0,
            pieces,
            prompts: PromptLists::new(capacity.chunks),
            rows: 0,
            sampled: 0,
            scored: 0,
            reported: 0,
            prefill: Part::default(),
            decode: Part::default(),
            order: Vec::with_capacity(capacity.chunks),
        }
    }

    /// Maximum number of words of a step.
    pub(crate) fn words_max(&self) -> usize {
        let StepCapacity { rows, chunks, pages } = self.capacity;
        Offsets::new(rows, chunks, pieces_max(rows)).pages + pages
    }

    /// True if page tables with `entries` entries in total fit.
    pub(crate) fn has_room(&self, entries: usize) -> bool {
        entries <= self.capacity.pages
    }

    /// Writes a batch's lists to `words`, which has [`words_max`](Self::words_max) words. The batch has been checked and fits.
    /// If `decode_rows` is above 0, padding rows fill up the decode rows to this number, and the piece capacity is a power of
    /// two. If chunk `i` takes its token from the previous step ([`TokenSource::Follows`]), `followed(i)` is the row that samples the token there.
    pub(crate) fn lay_out(
        &mut self,
        batch: &[Chunk<'_>],
        followed: impl Fn(usize) -> usize,
        decode_rows: usize,
        words: &mut [i32],
    ) {
        self.order.clear();
        // Prompts and decode rows each keep the batch's order.
        let is_prompt = |index: &usize| batch[*index].source == TokenSource::Prompt;
        self.order.extend((0..batch.len()).filter(is_prompt));
        let prefills = self.order.len();
        self.order.extend((0..batch.len()).filter(|index| !is_prompt(index)));
        let fillers = decode_rows.saturating_sub(batch.len() - prefills);
        let rows = self.set_sizes(batch, fillers, decode_rows > 0);
        self.prompts.clear();
        let mut writer = Writer {
            words,
            offsets: self.offsets,
            page_tokens: self.page_tokens,
            prompts: &mut self.prompts,
            part: Part::default(),
            written: Written::default(),
        };
        let (prompts, decodes) = self.order.split_at(prefills);
        for index in prompts {
            writer.prompt(&batch[*index]);
        }
        self.prefill = writer.end_prompts();
        for index in decodes {
            writer.decode_row(&batch[*index], || followed(*index));
        }
        for _ in 0..fillers {
            writer.filler();
        }
        self.decode = writer.end_part();
        let Written { pages, sampled, scored, reported, pieces, .. } = writer.written;
        // The kernels take these numbers as they are.
        assert!(
            writer.written.rows == rows && pieces <= self.pieces,
            "the lists of the step exceed their room"
        );
        (self.rows, self.sampled, self.scored, self.reported) = (rows, sampled, scored, reported);
        self.words = self.offsets.pages + pages;
    }

    /// Sets the piece capacity and the list offsets for the batch and `fillers` padding rows. If `rounded`, the capacity is
    /// a power of two. Returns the number of rows.
    fn set_sizes(&mut self, batch: &[Chunk<'_>], fillers: usize, rounded: bool) -> usize {
        let rows = fillers + batch.iter().map(|chunk| chunk.tokens.len()).sum::<usize>();
        let chunks = fillers + batch.len();
        let decodes = batch.iter().filter(|chunk| chunk.source != TokenSource::Prompt);
        let wanted = fillers + decodes.map(|chunk| pieces(chunk.end())).sum::<usize>();
        self.pieces = if rounded { wanted.next_power_of_two() } else { wanted };
        assert!(
            rows <= self.capacity.rows
                && chunks <= self.capacity.chunks
                && self.pieces <= pieces_max(self.capacity.rows),
            "the step exceeds the capacity of its lists"
        );
        self.offsets = Offsets::new(rows, chunks, self.pieces);
        rows
    }

    /// The number of words of the step.
    pub(crate) fn words(&self) -> usize {
        self.words
    }

    /// Token ids of the rows. -1 - n means the token that row n of the previous step samples.
    pub(crate) fn tokens(&self) -> Range<usize> {
        list(self.offsets.tokens, self.rows)
    }

    /// Positions of the rows.
    pub(crate) fn positions(&self) -> Range<usize> {
        list(self.offsets.positions, self.rows)
    }

    /// The pool index of each row's key and value, as 64-bit numbers: page × page_tokens + position in the page. -1 writes
    /// nothing.
    pub(crate) fn pool_indices(&self) -> Range<usize> {
        list(self.offsets.pool_indices, 2 * self.rows)
    }

    /// The sampled rows, ascending.
    pub(crate) fn sampled_rows(&self) -> Range<usize> {
        list(self.offsets.sampled_rows, self.sampled)
    }

    /// The scored rows, ascending.
    pub(crate) fn scored_rows(&self) -> Range<usize> {
        list(self.offsets.scored_rows, self.scored)
    }

    /// The token that is scored after each scored row.
    pub(crate) fn targets(&self) -> Range<usize> {
        list(self.offsets.targets, self.scored)
    }

    /// The sampled rows whose log probabilities are reported, ascending. Row n is the n-th sampled row.
    pub(crate) fn reported_rows(&self) -> Range<usize> {
        list(self.offsets.reported_rows, self.reported)
    }

    /// The sampling settings of each sampled row, [`SETTING_WORDS`] words each.
    pub(crate) fn settings(&self) -> Range<usize> {
        list(self.offsets.settings, SETTING_WORDS * self.sampled)
    }

    /// For each decode row: the index of its first entry in the decode rows' page list. The last value is the list's length.
    pub(crate) fn page_starts(&self) -> Range<usize> {
        list(self.offsets.page_starts, self.decode.chunks.len() + 1)
    }

    /// Tokens in the last page of each decode row.
    pub(crate) fn last_page_tokens(&self) -> Range<usize> {
        list(self.offsets.last_page_tokens, self.decode.chunks.len())
    }

    /// The part's page list: the concatenated page tables of its chunks.
    pub(crate) fn pages(&self, part: &Part) -> Range<usize> {
        list(self.offsets.pages + part.pages.start, part.pages.len())
    }

    /// The step's capacity for split-KV pieces. The used ones come first in the lists of pieces. Entries after them are undefined, and the kernels do not read them.
    pub(crate) fn pieces(&self) -> usize {
        self.pieces
    }

    /// The decode row of each piece.
    pub(crate) fn piece_rows(&self) -> Range<usize> {
        list(self.offsets.piece_rows, self.pieces)
    }

    /// The first position of each piece in the context of its row.
    pub(crate) fn piece_starts(&self) -> Range<usize> {
        list(self.offsets.piece_starts, self.pieces)
    }

    /// For each piece: the length in tokens of the pieces of its row.
    pub(crate) fn piece_lengths(&self) -> Range<usize> {
        list(self.offsets.piece_lengths, self.pieces)
    }

    /// The number of pieces before each decode row, then the number of all used pieces.
    pub(crate) fn row_pieces(&self) -> Range<usize> {
        list(self.offsets.row_pieces, self.decode.chunks.len() + 1)
    }
}

fn list(start: usize, length: usize) -> Range<usize> {
    start..start + length
}
