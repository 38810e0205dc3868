//! The newest batches. Subscribers read them, and the replay sends them again.

use std::collections::VecDeque;
use std::sync::Arc;

/// Maximum number of batches.
const BATCHES_MAX: usize = 10_000;
/// Maximum number of bytes of all payloads together. The newest batch stays even if it is larger.
const BYTES_MAX: usize = 64 << 20;

/// A batch as subscribers get it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) sequence: u64,
    pub(super) payload: Vec<u8>,
}

/// The newest batches, in the order of their sequence numbers. Numbers of batches that were dropped are absent.
#[derive(Debug, Default)]
pub(super) struct History {
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
}

impl History {
    /// Adds a batch with a greater sequence number than all others, and forgets the oldest ones above the bounds.
    pub(super) fn push(&mut self, batch: Batch) {
        self.bytes += batch.payload.len();
        self.batches.push_back(Arc::new(batch));
        while self.batches.len() > BATCHES_MAX || (self.bytes > BYTES_MAX && self.batches.len() > 1) {
            self.bytes -= self.batches.pop_front().map_or(0, |oldest| oldest.payload.len());
        }
    }

    /// The first batch whose sequence number is at least this.
    pub(super) fn first_from(&self, sequence: u64) -> Option<Arc<Batch>> {
        let place = self.batches.partition_point(|batch| batch.sequence < sequence);
        self.batches.get(place).cloned()
    }

    /// The number after that of the newest batch.
    pub(super) fn end(&self) -> u64 {
        self.batches.back().map_or(0, |newest| newest.sequence + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequences(history: &History) -> (u64, u64, usize) {
        (history.first_from(0).map_or(0, |batch| batch.sequence), history.end(), history.batches.len())
    }

    #[test]
    fn a_reader_goes_on_after_dropped_and_forgotten_batches() {
        let mut history = History::default();
        assert_eq!((history.first_from(0), history.end()), (None, 0));
        for sequence in [0, 1, 5] {
            history.push(Batch { sequence, payload: vec![0; 3] });
        }
        let next = |from| history.first_from(from).map(|batch| batch.sequence);
        assert_eq!([0, 1, 2, 5, 6].map(next), [Some(0), Some(1), Some(5), Some(5), None]);
        assert_eq!(history.end(), 6);
    }

    #[test]
    fn batches_and_bytes_are_bounded() {
        let mut history = History::default();
        for sequence in 0..BATCHES_MAX as u64 + 7 {
            history.push(Batch { sequence, payload: vec![0] });
        }
        assert_eq!(sequences(&history), (7, BATCHES_MAX as u64 + 7, BATCHES_MAX));
        assert_eq!(history.bytes, BATCHES_MAX);
        for sequence in 20_000..20_003 {
            history.push(Batch { sequence, payload: vec![0; BYTES_MAX / 2] });
        }
        assert_eq!(sequences(&history), (20_001, 20_003, 2));
        history.push(Batch { sequence: 20_003, payload: vec![0; BYTES_MAX + 1] });
        assert_eq!(sequences(&history), (20_003, 20_004, 1));
    }
}
