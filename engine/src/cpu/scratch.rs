//! A thread's own working memory, kept from phase to phase.

/// Buffers that one unit of work fills and uses; nothing in them outlives the unit.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// A panel of weights as floats, or the transposed keys of a block.
    pub(super) panel: Vec<f32>,
    /// Products of one panel.
    pub(super) out: Vec<f32>,
    /// Products of a second panel.
    pub(super) out_2: Vec<f32>,
    /// Queries of an attention tile.
    pub(super) queries: Vec<f32>,
    /// Their scores.
    pub(super) scores: Vec<f32>,
    /// A page's values of one head, in whole panels.
    pub(super) values: Vec<f32>,
    /// What their weights' sums are divided by, inverted.
    pub(super) factors: Vec<f32>,
}

/// The first `count` floats of a buffer, which grows as needed; what they hold is left over.
pub(super) fn take(buffer: &mut Vec<f32>, count: usize) -> &mut [f32] {
    if buffer.len() < count {
        buffer.resize(count, 0.0);
    }
    &mut buffer[..count]
}
