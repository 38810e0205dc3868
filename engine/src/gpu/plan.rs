//! A batch as GPU kernels take it: rows, positions, places in the pool, and page tables, as lists of 32-bit words that one copy brings to the device.
//!
//! In a step without prompts, the offset of a list depends only on the number of pieces that there is room for, so a captured graph finds the lists of
//! every step of its size.

use std::ops::Range;

use crate::step::{Chunk, TokenSource};

mod offsets;
mod pieces;
#[cfg(test)]
mod tests;
mod writer;

use offsets::Offsets;
use pieces::pieces;
use writer::{End, Writer};

pub(crate) use offsets::{Part, SETTING_WORDS};
pub(crate) use pieces::pieces_max;
pub(crate) use writer::settings_of;

/// What the largest step has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) rows: usize,
    pub(crate) chunks: usize,
    /// Entries of all page tables together.
    pub(crate) pages: usize,
}

/// One step's lists: what is in them, and where in the step's words each of them lies.
#[derive(Debug)]
pub(crate) struct Plan {
    room: Room,
    page_tokens: usize,
    offsets: Offsets,
    /// Words that the step takes.
    words: usize,
    /// Pieces that the step has room for.
    pieces: usize,
    /// Tokens of KV of each chunk, in row order.
    kv_tokens: Vec<i32>,
    pub(crate) rows: usize,
    pub(crate) sampled: usize,
    /// Prompts, which come first.
    pub(crate) prefill: Part,
    pub(crate) decode: Part,
    /// Row order → place in the batch.
    pub(crate) order: Vec<usize>,
}

impl Plan {
    /// A plan of an empty step, with room for larger ones.
    pub(crate) fn new(room: Room, page_tokens: usize) -> Self {
        let pieces = pieces_max(room.rows);
        Self {
            room,
            page_tokens,
            offsets: Offsets::new(room.rows, room.chunks, pieces),
            words: 0,
            pieces,
            kv_tokens: Vec::with_capacity(room.chunks),
            rows: 0,
            sampled: 0,
            prefill: Part::default(),
            decode: Part::default(),
            order: Vec::with_capacity(room.chunks),
        }
    }

    /// The most words that a step takes.
    pub(crate) fn words_max(&self) -> usize {
        let Room { rows, chunks, pages } = self.room;
        Offsets::new(rows, chunks, pieces_max(rows)).pages + pages
    }

    /// True if page tables of so many entries together fit.
    pub(crate) fn has_room(&self, entries: usize) -> bool {
        entries <= self.room.pages
    }

    /// Lays a batch out in `words`, of which there are [`words_max`](Self::words_max). Decode rows are filled up to `decode_rows` with rows that write
    /// nothing; then the pieces have room for a power of two. The batch has been checked and fits. `followed` has for each
    /// chunk that [follows](TokenSource::Follows) the row of the step before that it follows.
    pub(crate) fn lay_out(
        &mut self,
        batch: &[Chunk<'_>],
        followed: &[usize],
        decode_rows: usize,
        words: &mut [i32],
    ) {
        self.order.clear();
        self.order.extend(0..batch.len());
        // Stable: chunks of one kind stay in the batch's order.
        self.order.sort_by_key(|index| batch[*index].source != TokenSource::Prompt);
        let prefills = batch.iter().filter(|chunk| chunk.source == TokenSource::Prompt).count();
        let fillers = decode_rows.saturating_sub(batch.len() - prefills);
        self.make_room(batch, fillers, decode_rows > 0);
        let Offsets { piece_lengths, piece_flags, pages, .. } = self.offsets;
        words[piece_flags..pages].fill(0);
        words[piece_lengths..][..self.pieces].fill(1);
        self.kv_tokens.clear();
        let mut writer = Writer {
            words,
            offsets: self.offsets,
            page_tokens: self.page_tokens,
            kv_tokens: &mut self.kv_tokens,
            part: Part::default(),
            end: End::default(),
        };
        let (prompts, decodes) = self.order.split_at(prefills);
        for index in prompts {
            writer.start_chunk();
            writer.chunk(&batch[*index], followed[*index]);
        }
        self.prefill = writer.end_part();
        for index in decodes {
            writer.start_chunk();
            writer.context(batch[*index].end());
            writer.chunk(&batch[*index], followed[*index]);
        }
        for _ in 0..fillers {
            writer.start_chunk();
            writer.context(1);
            writer.filler();
        }
        self.decode = writer.end_part();
        let End { rows, pages, sampled, pieces, .. } = writer.end;
        debug_assert!(rows <= self.room.rows && pieces <= self.pieces);
        (self.rows, self.sampled) = (rows, sampled);
        self.words = self.offsets.pages + pages;
    }

    /// Moves the lists so that the batch's pieces have room, and those of `fillers` rows; if `rounded`, room for a power of two.
    fn make_room(&mut self, batch: &[Chunk<'_>], fillers: usize, rounded: bool) {
        let sampled = batch.iter().filter(|chunk| chunk.source != TokenSource::Prompt);
        let wanted = fillers + sampled.map(|chunk| pieces(chunk.end())).sum::<usize>();
        self.pieces = if rounded { wanted.next_power_of_two() } else { wanted };
        let Room { rows, chunks, .. } = self.room;
        debug_assert!(self.pieces <= pieces_max(rows));
        self.offsets = Offsets::new(rows, chunks, self.pieces);
    }

    /// Words that the step takes, from the first on.
    pub(crate) fn words(&self) -> usize {
        self.words
    }

    /// Token ids of the rows; -1 - n for what row n of the step before samples.
    pub(crate) fn tokens(&self) -> Range<usize> {
        list(self.offsets.tokens, self.rows)
    }

    /// Positions of the rows.
    pub(crate) fn positions(&self) -> Range<usize> {
        list(self.offsets.positions, self.rows)
    }

    /// Where in the pool each row's key and value go, as 64-bit numbers: page × tokens of a page + place in it; -1 for nowhere.
    pub(crate) fn pool_places(&self) -> Range<usize> {
        list(self.offsets.pool_places, 2 * self.rows)
    }

    /// The rows that are sampled after, ascending.
    pub(crate) fn sampled_rows(&self) -> Range<usize> {
        list(self.offsets.sampled_rows, self.sampled)
    }

    /// How each of them is sampled, [`SETTING_WORDS`] each.
    pub(crate) fn settings(&self) -> Range<usize> {
        list(self.offsets.settings, SETTING_WORDS * self.sampled)
    }

    /// Where the rows of each of the part's chunks begin, and the number of its rows.
    pub(crate) fn row_starts(&self, part: &Part) -> Range<usize> {
        list(self.offsets.row_starts + part.starts, part.chunks.len() + 1)
    }

    /// Where the pages of each of the part's chunks begin in its page list, and the number of its pages.
    pub(crate) fn page_starts(&self, part: &Part) -> Range<usize> {
        list(self.offsets.page_starts + part.starts, part.chunks.len() + 1)
    }

    /// Tokens in the last page of each of the part's chunks.
    pub(crate) fn last_page_tokens(&self, part: &Part) -> Range<usize> {
        list(self.offsets.last_page_tokens + part.chunks.start, part.chunks.len())
    }

    /// The part's page list: the page tables of its chunks one after the other.
    pub(crate) fn pages(&self, part: &Part) -> Range<usize> {
        list(self.offsets.pages + part.pages.start, part.pages.len())
    }

    /// How many pieces of the decode rows' contexts there is room for, used or not.
    pub(crate) fn pieces(&self) -> usize {
        self.pieces
    }

    /// The decode row of each piece.
    pub(crate) fn piece_rows(&self) -> Range<usize> {
        list(self.offsets.piece_rows, self.pieces)
    }

    /// Which piece of its row each piece is.
    pub(crate) fn piece_places(&self) -> Range<usize> {
        list(self.offsets.piece_places, self.pieces)
    }

    /// Tokens of each piece; 1 where there is none.
    pub(crate) fn piece_lengths(&self) -> Range<usize> {
        list(self.offsets.piece_lengths, self.pieces)
    }

    /// A byte a piece: 1 for one that is there, 0 for room.
    pub(crate) fn piece_flags(&self) -> Range<usize> {
        list(self.offsets.piece_flags, self.pieces.div_ceil(4))
    }

    /// Pieces before each decode row's, and the number of all of them.
    pub(crate) fn row_pieces(&self) -> Range<usize> {
        list(self.offsets.row_pieces, self.decode.chunks.len() + 1)
    }

    /// Tokens of KV of each of the part's chunks.
    pub(crate) fn kv_tokens(&self, part: &Part) -> &[i32] {
        &self.kv_tokens[part.chunks.clone()]
    }
}

fn list(start: usize, length: usize) -> Range<usize> {
    start..start + length
}
