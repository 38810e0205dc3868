//! The masks of a step's samples, in device memory.

use std::sync::Arc;

use super::device::{Buffer, CudaDevice, Pinned, Result, Stream};

/// The word of a row that is not sampled: -2.
const LATE: u32 = u32::MAX - 1;

/// The mask of a sampled row.
#[derive(Clone, Copy)]
pub(super) enum RowMask<'a> {
    /// All tokens are allowed.
    All,
    /// The row is not sampled.
    Late,
    Words(&'a [u32]),
}

/// Memory for the masks of one step. Word `r` is the number of the mask of sampled row `r`, -1 if it has none, or -2 if it is not sampled; after the words
/// of all rows come the masks, each with a bit for every token.
pub(super) struct Masks {
    /// Steps alternate between two host buffers, as their other lists do.
    host: [Pinned<u32>; 2],
    device: Buffer,
    rows: usize,
    mask_words: usize,
}

/// The device addresses of a step's masks, for work that is submitted to the stream afterwards.
#[derive(Clone, Copy)]
pub(super) struct UploadedMasks {
    pub(super) mask_of: *const i32,
    pub(super) masks: *const u32,
}

impl UploadedMasks {
    /// No masks: all tokens are allowed in all rows.
    pub(super) const NONE: Self = Self { mask_of: std::ptr::null(), masks: std::ptr::null() };
}

impl Masks {
    /// Memory for up to `rows` sampled rows.
    pub(super) fn new(device: &Arc<CudaDevice>, rows: usize, vocabulary: usize) -> Result<Self> {
        let mask_words = vocabulary.div_ceil(32);
        let words = rows * (1 + mask_words);
        let host = || Pinned::new(device, words);
        let host = [host()?, host()?];
        Ok(Self { host, device: Buffer::new(device, words * size_of::<u32>())?, rows, mask_words })
    }

    /// Copies masks to the device, in stream order: one entry for each sampled row, at most the number of rows that there is memory for. A
    /// mask has [`mask_words`](Self) words.
    ///
    /// # Safety
    /// The copy of the last step with the same `turn` has finished. The stream is waited for before `self` is dropped.
    pub(super) unsafe fn upload<'a>(
        &mut self,
        of_rows: impl Iterator<Item = RowMask<'a>>,
        turn: usize,
        stream: &Stream,
    ) -> Result<UploadedMasks> {
        let Self { host, device, rows, mask_words } = self;
        // SAFETY: the only work that reads the words is their copy, which has finished.
        let (mask_of, masks) = unsafe { host[turn].values_mut() }.split_at_mut(*rows);
        mask_of.fill(u32::MAX);
        let mut count = 0;
        for (number, mask) in mask_of.iter_mut().zip(of_rows) {
            let mask = match mask {
                RowMask::All => continue,
                RowMask::Late => {
                    *number = LATE;
                    continue;
                }
                RowMask::Words(mask) => mask,
            };
            masks[count * *mask_words..][..*mask_words].copy_from_slice(mask);
            *number = count as u32;
            count += 1;
        }
        // SAFETY: this buffer is written again only after the copy has finished, by the caller's contract.
        unsafe { stream.upload(device, &host[turn], *rows + count * *mask_words)? };
        Ok(UploadedMasks {
            mask_of: device.numbers::<i32>(0, *rows).cast_const(),
            masks: device.numbers::<u32>(*rows, count * *mask_words).cast_const(),
        })
    }
}
