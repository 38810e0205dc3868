//! Samples tokens from logits in device memory.

use std::sync::Arc;

use super::adjustments::{Adjustments, UploadedAdjustments};
use super::device::{Buffer, CudaDevice, Result, Stream};
use super::kernels::{baton_sample_rows, launch};
use super::masks::{Masks, RowMask, UploadedMasks};
use crate::gpu::adjustment_lists::AdjustedRow;
use crate::gpu::arguments::SampleRows;
use crate::gpu::places::Place;
use crate::gpu::plan::{SETTING_WORDS, settings_of};
use crate::sampling::Sample;

/// See [`CudaEngine::draw`](super::CudaEngine::draw).
pub(super) fn draw(
    device: &Arc<CudaDevice>,
    stream: &Stream,
    logits: &[f32],
    samples: &[(Sample<'_>, Option<&[u32]>, u32)],
) -> Result<Vec<u32>> {
    let rows = samples.len();
    let settings: Vec<_> =
        samples.iter().map(|(sample, _, end)| settings_of(Some((sample.how, *end as usize)))).collect();
    let (values, settings) = (Buffer::of(device, logits)?, Buffer::of(device, &settings)?);
    let chosen = Buffer::new(device, rows * size_of::<u32>())?;
    let settings = settings.numbers::<i32>(0, rows * SETTING_WORDS);
    let vocabulary = logits.len() / rows;
    let mut memory = Masks::new(device, rows, vocabulary)?;
    let masks = samples.iter().map(|(_, mask, _)| mask.map_or(RowMask::All, RowMask::Words));
    // SAFETY: this is the first copy, and the stream is waited for below.
    let masks = unsafe { memory.upload(masks, 0, stream)? };
    let mut adjustments = Adjustments::new(device, rows, vocabulary)?;
    let adjusted = (samples.iter().enumerate()).map(|(index, (sample, _, _))| AdjustedRow {
        sample: *sample,
        position: sample.tokens.len(),
        place: sample.how.looks_back().then_some(Place { index, needs_fill: true }),
    });
    // SAFETY: as above.
    unsafe { adjustments.upload(adjusted, rows, 0, stream)? };
    let (uploaded, sizes) = (adjustments.uploaded(), (rows, vocabulary));
    // SAFETY: each row has settings, and a mask or none, and its sequence a place if it needs one, as just set.
    let sampled = unsafe { sample_rows(&values, settings, (masks, uploaded), &chosen, sizes, stream) };
    stream.wait()?;
    sampled?;
    chosen.read_at(0, rows)
}

/// Samples a token from each row of logits with the row's settings.
///
/// # Safety
/// `settings` points to [`SETTING_WORDS`] words on the device for each row. The masks and adjustments cover the rows and the vocabulary.
pub(super) unsafe fn sample_rows(
    logits: &Buffer,
    settings: *const i32,
    (masks, adjustments): (UploadedMasks, UploadedAdjustments),
    out: &Buffer,
    (rows, vocabulary): (usize, usize),
    stream: &Stream,
) -> Result<()> {
    let arguments = SampleRows {
        logits: logits.numbers(0, rows * vocabulary),
        settings: settings.cast(),
        mask_of: masks.mask_of,
        masks: masks.masks,
        place_of: adjustments.place_of,
        bias_starts: adjustments.bias_starts,
        biases: adjustments.biases,
        counts: adjustments.counts,
        out: out.numbers(0, rows),
        rows: rows as i32,
        vocabulary: vocabulary as i32,
    };
    // SAFETY: see the documentation of `forward`. The caller's contract covers settings, masks and adjustments.
    unsafe { launch("baton_sample_rows", baton_sample_rows, &arguments, stream) }
}
