//! A batch as kernels want it: rows, positions, places in the pool, and page tables as one list; in host memory first, then on the
//! device by one copy.
//!
//! In a step without prompts, where a list begins depends on how many pieces it has room for, and on nothing else: so a captured graph finds it there.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use super::device::{Buffer, Device, Pinned, Result, Stream};
use crate::sampling::Sampling;
use crate::step::{Chunk, Source};

/// A sampled row's settings.
const SETTING_WORDS: usize = 8;

/// Lists are aligned to this many words.
const ALIGN_WORDS: usize = 4;

/// The most pieces of one decode row's context, and the least tokens of a piece that another follows.
const ROW_PIECES_MOST: usize = 32;
const PIECE_TOKENS_LEAST: usize = 256;

/// How many tokens a piece has of a context of so many: blocks of threads attend to a context's pieces side by side, and sum them in order. It
/// depends on nothing else, so that a row rounds alone as it does beside others.
const fn piece_tokens(context: usize) -> usize {
    let tokens = context.div_ceil(ROW_PIECES_MOST).next_power_of_two();
    if tokens < PIECE_TOKENS_LEAST { PIECE_TOKENS_LEAST } else { tokens }
}

/// How many pieces a context of so many tokens has.
const fn pieces(context: usize) -> usize {
    context.div_ceil(piece_tokens(context))
}

/// How many pieces so many decode rows have at most, filled up or not.
pub(super) const fn pieces_most(rows: usize) -> usize {
    (rows * ROW_PIECES_MOST).next_power_of_two()
}

/// Where each list begins, in 32-bit words. Pieces and page tables come last: the copy ends with them.
#[derive(Clone, Copy, Debug)]
struct Places {
    tokens: usize,
    positions: usize,
    places: usize,
    sampled: usize,
    settings: usize,
    row_starts: usize,
    page_starts: usize,
    last_page_tokens: usize,
    row_pieces: usize,
    piece_rows: usize,
    piece_places: usize,
    piece_lengths: usize,
    /// Bytes: 1 for a piece that is, 0 for room.
    piece_are: usize,
    pages: usize,
}

impl Places {
    fn new(rows: usize, chunks: usize, pieces: usize) -> Self {
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
            places: list(2 * rows),
            sampled: list(chunks),
            settings: list(SETTING_WORDS * chunks),
            row_starts: list(chunks + 2),
            page_starts: list(chunks + 2),
            last_page_tokens: list(chunks),
            row_pieces: list(chunks + 1),
            piece_rows: list(pieces),
            piece_places: list(pieces),
            piece_lengths: list(pieces),
            piece_are: list(pieces.div_ceil(4)),
            pages: next,
        }
    }
}

/// A part of the batch that one attention kernel takes: its chunks and its rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) chunks: Range<usize>,
    pub(super) rows: Range<usize>,
    /// Where its entries in the lists of starts begin.
    starts: usize,
}

/// The pieces of the decode rows' contexts, on the device.
pub(super) struct Pieces {
    /// With room that is not used.
    pub(super) count: usize,
    pub(super) rows: *mut c_void,
    /// Which piece of its row.
    pub(super) places: *mut c_void,
    /// Its tokens.
    pub(super) lengths: *mut c_void,
    pub(super) are: *mut c_void,
    /// Pieces before each row's, and in the end how many there are.
    pub(super) before_row: *mut c_void,
}

/// One step's lists.
pub(super) struct Plan {
    /// Two, in turns: a step may be laid out while the copy of the one before has not run.
    host: [Pinned<i32>; 2],
    turn: usize,
    device: Buffer,
    places: Places,
    page_tokens: usize,
    rows_most: usize,
    chunks_most: usize,
    pages_most: usize,
    pieces_most: usize,
    /// Words that the step takes.
    words: usize,
    /// Pieces that the step has room for.
    pieces: usize,
    /// Tokens of KV of each chunk, in row order.
    kv_tokens: Vec<i32>,
    pub(super) rows: usize,
    pub(super) sampled: usize,
    /// Prompts, which come first.
    pub(super) prefill: Part,
    pub(super) decode: Part,
    /// Row order → place in the batch.
    pub(super) order: Vec<usize>,
}

impl Plan {
    /// Room for `rows` rows in `chunks` chunks with `pages` pages in all their tables.
    pub(super) fn new(
        device: &Arc<Device>,
        (rows, chunks, pages): (usize, usize, usize),
        page_tokens: usize,
    ) -> Result<Self> {
        let pieces = pieces_most(rows);
        let places = Places::new(rows, chunks, pieces);
        let words = places.pages + pages;
        Ok(Self {
            host: [Pinned::new(device, words)?, Pinned::new(device, words)?],
            turn: 0,
            device: Buffer::zeroed(device, words * 4)?,
            places,
            page_tokens,
            rows_most: rows,
            chunks_most: chunks,
            pages_most: pages,
            pieces_most: pieces,
            words,
            pieces,
            kv_tokens: Vec::with_capacity(chunks),
            rows: 0,
            sampled: 0,
            prefill: Part::default(),
            decode: Part::default(),
            order: Vec::with_capacity(chunks),
        })
    }

    /// True if page tables of so many entries together fit.
    pub(super) fn has_room(&self, entries: usize) -> bool {
        entries <= self.pages_most
    }

    /// Lays a batch out; decode rows are filled up to `decode_rows` with rows that write nothing, and then there is room for a power of two
    /// of pieces. The batch has been checked and fits. `followed` has for each chunk that follows the row of the step before that it
    /// follows. Of `turn`s, 0 and 1, the other one may still be on its way to the device.
    pub(super) fn lay_out(
        &mut self,
        batch: &[Chunk<'_>],
        followed: &[usize],
        turn: usize,
        decode_rows: usize,
    ) {
        self.turn = turn;
        self.order.clear();
        self.order.extend(0..batch.len());
        // Stable: chunks of one kind stay in the batch's order.
        self.order.sort_by_key(|index| batch[*index].source != Source::Prompt);
        let prefills = batch.iter().filter(|chunk| chunk.source == Source::Prompt).count();
        let fillers = decode_rows.saturating_sub(batch.len() - prefills);
        self.make_room(batch, fillers, decode_rows > 0);
        let Places {
            tokens,
            positions,
            places,
            sampled,
            settings,
            row_starts,
            page_starts,
            last_page_tokens,
            row_pieces,
            piece_rows,
            piece_places,
            piece_lengths,
            piece_are,
            pages,
        } = self.places;
        let (page_tokens, words) = (self.page_tokens, self.host[turn].values_mut());
        let put_settings = |words: &mut [i32], index: usize, sample| {
            words[settings + SETTING_WORDS * index..][..SETTING_WORDS].copy_from_slice(&settings_of(sample));
        };
        let (mut row, mut page, mut samples, mut piece) = (0, 0, 0, 0);
        self.kv_tokens.clear();
        words[piece_are..pages].fill(0);
        words[piece_lengths..piece_lengths + self.pieces].fill(1);
        let mut starts = [(row_starts, page_starts); 2];
        starts[1] = (row_starts + prefills + 1, page_starts + prefills + 1);
        let (mut part_rows, mut part_pages) = (0, 0);
        for place in 0..batch.len() + fillers {
            let (part, within) = if place < prefills { (0, place) } else { (1, place - prefills) };
            if within == 0 {
                (part_rows, part_pages) = (row, page);
            }
            words[starts[part].0 + within] = (row - part_rows) as i32;
            words[starts[part].1 + within] = (page - part_pages) as i32;
            if part == 1 {
                let chunk = self.order.get(place).map(|index| &batch[*index]);
                let context = chunk.map_or(1, Chunk::end);
                words[row_pieces + within] = piece as i32;
                for of_row in 0..pieces(context) {
                    words[piece_rows + piece] = within as i32;
                    words[piece_places + piece] = of_row as i32;
                    words[piece_lengths + piece] = piece_tokens(context) as i32;
                    words[piece_are + piece / 4] |= 1 << (piece % 4 * 8);
                    piece += 1;
                }
                words[row_pieces + within + 1] = piece as i32;
            }
            let Some(chunk) = self.order.get(place).map(|index| &batch[*index]) else {
                // A row that nobody asked for looks at one token of page 0 and writes nowhere.
                words[tokens + row] = 0;
                words[positions + row] = 0;
                put_i64(words, places + 2 * row, -1);
                words[pages + page] = 0;
                words[last_page_tokens + place] = 1;
                words[sampled + samples] = row as i32;
                put_settings(words, samples, None);
                self.kv_tokens.push(1);
                (row, page, samples) = (row + 1, page + 1, samples + 1);
                continue;
            };
            for (offset, token) in chunk.tokens.iter().enumerate() {
                let position = chunk.start as usize + offset;
                words[tokens + row] = match chunk.source {
                    Source::Follows => -1 - followed[self.order[place]] as i32,
                    Source::Prompt | Source::Sampled => token.cast_signed(),
                };
                words[positions + row] = position as i32;
                let in_page = chunk.pages[position / page_tokens].0 as usize;
                put_i64(words, places + 2 * row, (in_page * page_tokens + position % page_tokens) as i64);
                row += 1;
            }
            let end = chunk.end();
            let used = end.div_ceil(page_tokens);
            for (offset, id) in chunk.pages[..used].iter().enumerate() {
                words[pages + page + offset] = id.0.cast_signed();
            }
            page += used;
            words[last_page_tokens + place] = (end - (used - 1) * page_tokens) as i32;
            self.kv_tokens.push(end as i32);
            if let Some(sample) = chunk.sample {
                words[sampled + samples] = (row - 1) as i32;
                put_settings(words, samples, Some((sample.how, end)));
                samples += 1;
            }
        }
        let all = batch.len() + fillers;
        let prefill_rows: usize = self.order[..prefills].iter().map(|index| batch[*index].tokens.len()).sum();
        self.prefill = Part { chunks: 0..prefills, rows: 0..prefill_rows, starts: 0 };
        self.decode = Part { chunks: prefills..all, rows: prefill_rows..row, starts: prefills + 1 };
        for (part, (row_starts, page_starts)) in [&self.prefill, &self.decode].into_iter().zip(starts) {
            let pages: usize = self.kv_tokens[part.chunks.clone()]
                .iter()
                .map(|kv| (*kv as usize).div_ceil(page_tokens))
                .sum();
            words[row_starts + part.chunks.len()] = part.rows.len() as i32;
            words[page_starts + part.chunks.len()] = pages as i32;
        }
        (self.rows, self.sampled) = (row, samples);
        debug_assert!(row <= self.rows_most && piece <= self.pieces);
        self.words = pages + page;
    }

    /// Places the lists so that the batch's pieces have room, and those of `fillers` rows; with `rounded` for a power of two.
    fn make_room(&mut self, batch: &[Chunk<'_>], fillers: usize, rounded: bool) {
        let sampled = batch.iter().filter(|chunk| chunk.source != Source::Prompt);
        let wanted = fillers + sampled.map(|chunk| pieces(chunk.end())).sum::<usize>();
        self.pieces = if rounded { wanted.next_power_of_two() } else { wanted };
        debug_assert!(self.pieces <= self.pieces_most);
        self.places = Places::new(self.rows_most, self.chunks_most, self.pieces);
    }

    /// Copies the lists to the device, in the stream's order.
    pub(super) fn upload(&self, stream: &Stream) -> Result<()> {
        stream.upload(&self.device, &self.host[self.turn], self.words)
    }

    fn at(&self, word: usize) -> *mut c_void {
        self.device.at(word * 4)
    }

    pub(super) fn turn(&self) -> usize {
        self.turn
    }

    pub(super) fn tokens(&self) -> *mut c_void {
        self.at(self.places.tokens)
    }

    pub(super) fn positions(&self) -> *mut c_void {
        self.at(self.places.positions)
    }

    pub(super) fn pool_places(&self) -> *mut c_void {
        self.at(self.places.places)
    }

    pub(super) fn sampled_rows(&self) -> *mut c_void {
        self.at(self.places.sampled)
    }

    /// How each sampled row is sampled.
    pub(super) fn settings(&self) -> *mut c_void {
        self.at(self.places.settings)
    }

    /// Where the rows of each of the part's chunks begin.
    pub(super) fn row_starts(&self, part: &Part) -> *mut c_void {
        self.at(self.places.row_starts + part.starts)
    }

    /// Where the pages of each of the part's chunks begin in its page list.
    pub(super) fn page_starts(&self, part: &Part) -> *mut c_void {
        self.at(self.places.page_starts + part.starts)
    }

    pub(super) fn last_page_tokens(&self, part: &Part) -> *mut c_void {
        self.at(self.places.last_page_tokens + part.chunks.start)
    }

    /// The decode part's pieces.
    pub(super) fn pieces(&self) -> Pieces {
        let Places { row_pieces, piece_rows, piece_places, piece_lengths, piece_are, .. } = self.places;
        Pieces {
            count: self.pieces,
            rows: self.at(piece_rows),
            places: self.at(piece_places),
            lengths: self.at(piece_lengths),
            are: self.at(piece_are),
            before_row: self.at(row_pieces),
        }
    }

    /// The part's page list.
    pub(super) fn pages(&self, part: &Part) -> *mut c_void {
        let before: usize = self.kv_tokens[..part.chunks.start]
            .iter()
            .map(|kv| (*kv as usize).div_ceil(self.page_tokens))
            .sum();
        self.at(self.places.pages + before)
    }

    /// The host's copies of what attention plans are made from: row starts, page starts, tokens of KV.
    pub(super) fn host_lists(&mut self, part: &Part) -> (*mut i32, *mut i32, *mut i32) {
        let Places { row_starts, page_starts, .. } = self.places;
        let words = self.host[self.turn].values_mut().as_mut_ptr();
        // SAFETY: both lists begin inside the words.
        let lists = unsafe { (words.add(row_starts + part.starts), words.add(page_starts + part.starts)) };
        (lists.0, lists.1, self.kv_tokens[part.chunks.clone()].as_mut_ptr())
    }
}

/// How a row is sampled after so many tokens, as `sample.cu` reads it. One that the device does not draw for: the largest logit.
pub(super) fn settings_of(sample: Option<(&Sampling, usize)>) -> [i32; SETTING_WORDS] {
    let mut words = [0; SETTING_WORDS];
    let Some((how, end)) = sample.filter(|(how, _)| how.is_plain()) else { return words };
    let floats = [how.temperature, how.top_p, how.min_p].map(f32::to_bits);
    let whole = [how.top_k, how.seed as u32, (how.seed >> 32) as u32, end as u32];
    let values = floats.into_iter().chain(whole);
    words.iter_mut().zip(values).for_each(|(word, value)| *word = value.cast_signed());
    words
}

/// Two words, in the machine's order.
fn put_i64(words: &mut [i32], at: usize, value: i64) {
    let [low, high] = [value as i32, (value >> 32) as i32];
    words[at..at + 2].copy_from_slice(&if cfg!(target_endian = "little") {
        [low, high]
    } else {
        [high, low]
    });
}
