//! The queue from the buffer manager to the publisher of KV events. A full queue drops a batch, so a slow publisher delays no actor.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tokio::sync::mpsc::Sender;

use crate::counters::Counters;
use crate::messages::{CacheChanged, CacheEvent};

/// The changes of the prefix cache by one message.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheBatch {
    /// Counts the batches of a process from 0. A gap means that batches were dropped.
    pub sequence: u64,
    /// The time of the changes.
    pub at: SystemTime,
    /// The changes, in order.
    pub events: Vec<CacheEvent>,
}

/// The sending end of the queue.
#[derive(Debug)]
pub struct KvEventQueue {
    batches: Sender<CacheBatch>,
    next: AtomicU64,
    counters: Counters,
}

impl KvEventQueue {
    /// Sends batches to `batches`. The first one says that the cache is empty.
    pub fn new(batches: Sender<CacheBatch>, counters: Counters) -> Self {
        let queue = Self { batches, next: AtomicU64::new(0), counters };
        queue.post(CacheChanged(vec![CacheEvent::Cleared]));
        queue
    }

    /// Sends a batch, or drops and counts it if the queue is full.
    pub fn post(&self, CacheChanged(events): CacheChanged) {
        let sequence = self.next.fetch_add(1, Ordering::Relaxed);
        self.counters.kv_event_batches().store(sequence + 1, Ordering::Relaxed);
        if self.batches.try_send(CacheBatch { sequence, at: SystemTime::now(), events }).is_err() {
            self.counters.kv_event_batches_dropped().fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_full_queue_drops_batches_and_the_sequence_numbers_show_it() {
        let (sender, mut batches) = channel(2);
        let counters = Counters::default();
        let queue = KvEventQueue::new(sender, counters.clone());
        let changed = || CacheChanged(vec![CacheEvent::Removed { hashes: Vec::new() }]);
        (0..3).for_each(|_| queue.post(changed()));
        let first = batches.try_recv().expect("it is queued");
        assert_eq!((first.sequence, first.events), (0, vec![CacheEvent::Cleared]));
        assert_eq!(batches.try_recv().map(|batch| batch.sequence), Ok(1));
        queue.post(changed());
        assert_eq!(batches.try_recv().map(|batch| batch.sequence), Ok(4), "2 and 3 were dropped");
        let counts = [counters.kv_event_batches(), counters.kv_event_batches_dropped()];
        assert_eq!(counts.map(|count| count.load(Ordering::Relaxed)), [5, 2]);
    }
}
