//! The biases and penalties of a step's samples, in device memory: lists of the step, and the token counts of sequences.

use std::sync::Arc;

use super::device::{Buffer, CudaDevice, Pinned, Result, Stream};
use super::kernels::{baton_count_tokens, launch};
use crate::gpu::adjustment_lists::{AdjustedRow, AdjustmentLists, SEQUENCE_WORDS, counts_bytes};
use crate::gpu::arguments::CountTokens;

/// Words for biases and tokens that there is memory for from the start. The memory grows if a step needs more.
const WORDS_FIRST: usize = 64 << 10;

/// Memory for the biases and penalties of one step, and for the counts of sequences.
pub(super) struct Adjustments {
    lists: AdjustmentLists,
    /// Steps alternate between two host buffers, as their other lists do.
    host: [Pinned<u32>; 2],
    words: Buffer,
    counts: Buffer,
    places: usize,
    vocabulary: usize,
    device: Arc<CudaDevice>,
}

/// The device addresses of a step's biases and penalties, for work that is submitted to the stream afterwards.
#[derive(Clone, Copy)]
pub(super) struct UploadedAdjustments {
    pub(super) place_of: *const i32,
    pub(super) bias_starts: *const i32,
    pub(super) biases: *const u32,
    pub(super) counts: *mut u16,
}

impl UploadedAdjustments {
    /// No row has biases or penalties.
    pub(super) const NONE: Self = Self {
        place_of: std::ptr::null(),
        bias_starts: std::ptr::null(),
        biases: std::ptr::null(),
        counts: std::ptr::null_mut(),
    };
}

impl Adjustments {
    /// Memory for the counts of `places` sequences.
    pub(super) fn new(device: &Arc<CudaDevice>, places: usize, vocabulary: usize) -> Result<Self> {
        let host = || Pinned::new(device, WORDS_FIRST);
        Ok(Self {
            lists: AdjustmentLists::default(),
            host: [host()?, host()?],
            words: Buffer::new(device, WORDS_FIRST * size_of::<u32>())?,
            counts: Buffer::zeroed(device, counts_bytes(places, vocabulary))?,
            places,
            vocabulary,
            device: Arc::clone(device),
        })
    }

    /// Copies the biases and places of a step with `rows` sampled rows to the device, in stream order, and fills the places that need it. The first rows are
    /// those of `sampled`, and the others are padding.
    ///
    /// # Safety
    /// The copy of the last step with the same `turn` has finished. The stream is waited for before `self` is dropped.
    pub(super) unsafe fn upload<'a>(
        &mut self,
        sampled: impl Iterator<Item = AdjustedRow<'a>> + Clone,
        rows: usize,
        turn: usize,
        stream: &Stream,
    ) -> Result<()> {
        let Self { lists, host, words, counts, places, vocabulary, device } = self;
        lists.lay_out(sampled.clone(), rows, *vocabulary);
        assert!(sampled.filter_map(|row| row.place).all(|place| place.index < *places));
        let length = lists.words().len();
        if host[turn].count() < length {
            host[turn] = Pinned::new(device, length.next_power_of_two())?;
        }
        if words.bytes() < size_of_val(lists.words()) {
            // The driver waits for kernels that use the old memory.
            *words = Buffer::new(device, length.next_power_of_two() * size_of::<u32>())?;
        }
        // SAFETY: the only work that reads the words is their copy, which has finished.
        let on_host = unsafe { host[turn].values_mut() };
        on_host[..length].copy_from_slice(lists.words());
        // SAFETY: this buffer is written again only after the copy has finished, by the caller's contract.
        unsafe { stream.upload(words, &host[turn], length)? };
        let (sequences, tokens) = (lists.sequences(), lists.tokens());
        let arguments = CountTokens {
            sequences: words.numbers(sequences.start, sequences.len()),
            tokens: words.numbers(tokens.start, tokens.len()),
            counts: counts.numbers(0, counts.bytes() / size_of::<u16>()),
            count: (sequences.len() / SEQUENCE_WORDS) as i32,
            vocabulary: *vocabulary as i32,
        };
        // SAFETY: the lists name tokens of their own list and places of the counts, as just checked.
        unsafe { launch("baton_count_tokens", baton_count_tokens, &arguments, stream) }
    }

    /// The biases and penalties that were uploaded last.
    pub(super) fn uploaded(&self) -> UploadedAdjustments {
        let Self { lists, words, counts, .. } = self;
        let list = |list: std::ops::Range<usize>| words.numbers::<u32>(list.start, list.len()).cast_const();
        UploadedAdjustments {
            place_of: list(lists.place_of()).cast(),
            bias_starts: list(lists.bias_starts()).cast(),
            biases: list(lists.biases()),
            counts: counts.numbers(0, counts.bytes() / size_of::<u16>()),
        }
    }
}
