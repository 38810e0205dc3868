//! The working memory of a thread. It is reused across phases.

/// Buffers for one unit of work. Their contents do not outlive the unit.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// A panel of weights as floats, or the transposed keys of a block.
    pub(super) panel: Vec<f32>,
    /// Products of one panel.
    pub(super) out: Vec<f32>,
    /// Products of a second panel.
    pub(super) out_2: Vec<f32>,
    /// Queries of an attention unit.
    pub(super) queries: Vec<f32>,
    /// Scores of an attention unit.
    pub(super) scores: Vec<f32>,
    /// One head's values of a page, padded to the panel width. Or one head after its norm.
    pub(super) values: Vec<f32>,
    /// The reciprocals of the softmax sums.
    pub(super) factors: Vec<f32>,
}

/// The first `count` floats of a buffer, which grows as needed. They hold data of earlier units.
pub(super) fn take(buffer: &mut Vec<f32>, count: usize) -> &mut [f32] {
    if buffer.len() < count {
        buffer.resize(count, 0.0);
    }
    &mut buffer[..count]
}
