//! Writes the lists of a step, one chunk at a time.

use super::offsets::{Offsets, Part, SETTING_WORDS};
use super::pieces::piece_tokens;
use super::prompt_lists::PromptLists;
use crate::sampling::Sampling;
use crate::step::{Chunk, TokenSource};

/// The number of entries written so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Written {
    pub(super) chunks: usize,
    pub(super) rows: usize,
    pub(super) pages: usize,
    pub(super) sampled: usize,
    pub(super) scored: usize,
    pub(super) reported: usize,
    pub(super) pieces: usize,
}

/// Writes the chunks of one part after the other: prompts, then decode rows.
pub(super) struct Writer<'a> {
    pub(super) words: &'a mut [i32],
    pub(super) offsets: Offsets,
    pub(super) page_tokens: usize,
    pub(super) prompts: &'a mut PromptLists,
    /// The current part. Its ranges are empty and mark its start.
    pub(super) part: Part,
    pub(super) written: Written,
}

impl Writer<'_> {
    /// Ends the prompts and returns their part. Starts the decode rows.
    pub(super) fn end_prompts(&mut self) -> Part {
        self.words[self.offsets.page_starts] = 0;
        self.words[self.offsets.row_pieces] = 0;
        self.end_part()
    }

    /// Ends the current part and returns it. Starts the next part.
    pub(super) fn end_part(&mut self) -> Part {
        let Written { chunks, rows, pages, .. } = self.written;
        let next = Part { chunks: chunks..chunks, rows: rows..rows, pages: pages..pages };
        let mut part = std::mem::replace(&mut self.part, next);
        (part.chunks.end, part.rows.end, part.pages.end) = (chunks, rows, pages);
        part
    }

    /// Writes a prompt.
    pub(super) fn prompt(&mut self, chunk: &Chunk<'_>) {
        self.chunk(chunk, || 0);
        self.prompts.push(chunk.end(), (self.written.rows, self.written.pages));
    }

    /// Writes a decode row. If it [follows](TokenSource::Follows), `followed` returns the row of the previous step that samples its token.
    pub(super) fn decode_row(&mut self, chunk: &Chunk<'_>, followed: impl Fn() -> usize) {
        self.chunk(chunk, followed);
        self.end_decode_row(chunk.end());
    }

    /// Writes a padding row. It reads one token of page 0 and writes nothing to the pool.
    pub(super) fn filler(&mut self) {
        self.row(0, 0, -1);
        self.table([0]);
        self.sample(None);
        self.end_decode_row(1);
    }

    /// Writes where a decode row's page table ends, the tokens in its last page, and its split-KV pieces. Its context has `tokens` tokens.
    fn end_decode_row(&mut self, tokens: usize) {
        let Offsets { page_starts, last_page_tokens, row_pieces, .. } = self.offsets;
        let Offsets { piece_rows, piece_starts, piece_lengths, .. } = self.offsets;
        let row = self.written.chunks - 1 - self.part.chunks.start;
        let length = piece_tokens(tokens);
        for start in (0..tokens).step_by(length) {
            let piece = self.written.pieces;
            self.words[piece_rows + piece] = row as i32;
            self.words[piece_starts + piece] = start as i32;
            self.words[piece_lengths + piece] = length as i32;
            self.written.pieces += 1;
        }
        self.words[row_pieces + row + 1] = self.written.pieces as i32;
        self.words[page_starts + row + 1] = (self.written.pages - self.part.pages.start) as i32;
        self.words[last_page_tokens + row] = ((tokens - 1) % self.page_tokens + 1) as i32;
    }

    /// Writes a chunk. If it [follows](TokenSource::Follows), `followed` returns the row of the previous step that samples its token.
    fn chunk(&mut self, chunk: &Chunk<'_>, followed: impl Fn() -> usize) {
        if let Some(score) = chunk.score {
            self.score(score.targets);
        }
        for (offset, token) in chunk.tokens.iter().enumerate() {
            let token = match chunk.source {
                TokenSource::Follows => -1 - followed() as i32,
                TokenSource::Prompt | TokenSource::Sampled => token.cast_signed(),
            };
            let position = chunk.start as usize + offset;
            let page = chunk.pages[position / self.page_tokens].0 as usize;
            let index = page * self.page_tokens + position % self.page_tokens;
            self.row(token, position, index as i64);
        }
        let end = chunk.end();
        let used = end.div_ceil(self.page_tokens);
        self.table(chunk.pages[..used].iter().map(|page| page.0.cast_signed()));
        if let Some(sample) = chunk.sample {
            self.sample(Some((sample.how, end)));
        }
    }

    fn row(&mut self, token: i32, position: usize, pool_index: i64) {
        let row = self.written.rows;
        self.words[self.offsets.tokens + row] = token;
        self.words[self.offsets.positions + row] = position as i32;
        let at = self.offsets.pool_indices + 2 * row;
        self.words[at..at + 2].copy_from_slice(&words_of(pool_index));
        self.written.rows += 1;
    }

    /// Ends a chunk with its page table.
    fn table(&mut self, pages: impl IntoIterator<Item = i32>) {
        for page in pages {
            self.words[self.offsets.pages + self.written.pages] = page;
            self.written.pages += 1;
        }
        self.written.chunks += 1;
    }

    /// Marks the next rows as scored, one for each target.
    fn score(&mut self, targets: &[u32]) {
        for (offset, target) in targets.iter().enumerate() {
            let scored = self.written.scored;
            self.words[self.offsets.scored_rows + scored] = (self.written.rows + offset) as i32;
            self.words[self.offsets.targets + scored] = target.cast_signed();
            self.written.scored += 1;
        }
    }

    /// Marks the last row as sampled. `how` has its settings and the tokens up to it.
    fn sample(&mut self, how: Option<(&Sampling, usize)>) {
        let sampled = self.written.sampled;
        self.words[self.offsets.sampled_rows + sampled] = (self.written.rows - 1) as i32;
        let at = self.offsets.settings + SETTING_WORDS * sampled;
        self.words[at..at + SETTING_WORDS].copy_from_slice(&settings_of(how));
        if how.is_some_and(|(how, _)| how.logprobs.is_some()) {
            self.words[self.offsets.reported_rows + self.written.reported] = sampled as i32;
            self.written.reported += 1;
        }
        self.written.sampled += 1;
    }
}

/// Encodes the sampling settings of a row for `sample.cu`. `sample` has the settings and the tokens before the sampled
/// token. A padding row has none.
pub(crate) fn settings_of(sample: Option<(&Sampling, usize)>) -> [i32; SETTING_WORDS] {
    let mut words = [0; SETTING_WORDS];
    let Some((how, end)) = sample else { return words };
    let limits = [how.temperature, how.top_p, how.min_p].map(f32::to_bits);
    let whole = [how.top_k, how.seed as u32, (how.seed >> 32) as u32, end as u32];
    let penalties = [how.repetition_penalty, how.presence_penalty, how.frequency_penalty].map(f32::to_bits);
    let values = limits.into_iter().chain(whole).chain(penalties);
    words.iter_mut().zip(values).for_each(|(word, value)| *word = value.cast_signed());
    words
}

/// The two words of a 64-bit number, in the machine's byte order.
fn words_of(value: i64) -> [i32; 2] {
    let [low, high] = [value as i32, (value >> 32) as i32];
    if cfg!(target_endian = "little") { [low, high] } else { [high, low] }
}
