//! Without a collector, traces allocate nothing and record nothing.

#[path = "../../connector/src/counting_allocator.rs"]
mod counting_allocator;

use std::time::Instant;

use counting_allocator::allocated;
use runtime::traces::{Traces, record_prefills};

#[test]
fn traces_without_a_collector_allocate_nothing() {
    let (kept, cost) = allocated(|| Box::new([5u8; 100]));
    assert_eq!(cost.total, kept.len(), "allocations are counted");
    let traces = Traces::default();
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let ((), cost) = allocated(|| {
        for _ in 0..1000 {
            assert!(traces.begin("/v1/completions", Instant::now(), || Some(parent)).is_none());
            assert!(traces.unrecorded(None).is_none());
            assert!(record_prefills(&traces).is_none());
        }
    });
    assert_eq!((cost.largest, cost.total, cost.peak), (0, 0, 0));
}
