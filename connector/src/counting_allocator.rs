//! An allocator that counts the allocations of a thread. With it, tests and `examples/fuzz_frames.rs` check how much memory a peer
//! can make us allocate.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Allocations of a thread, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allocated {
    /// The largest single allocation.
    pub(crate) largest: usize,
    /// The sum of all allocations, including freed ones. A reallocation counts with its new size.
    pub(crate) total: usize,
    /// The peak number of bytes allocated at the same time.
    pub(crate) peak: usize,
}

thread_local! {
    static SEEN: Cell<Allocated> = const { Cell::new(Allocated { largest: 0, total: 0, peak: 0 }) };
    /// Bytes allocated now, minus those at the start. Negative if earlier allocations are freed.
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(requested: usize, change: isize) {
    // The thread-locals have constant initialisers and no destructor, so accessing them never allocates.
    let live = LIVE.get() + change;
    LIVE.set(live);
    let seen = SEEN.get();
    SEEN.set(Allocated {
        largest: seen.largest.max(requested),
        total: seen.total.saturating_add(requested),
        peak: seen.peak.max(usize::try_from(live).unwrap_or(0)),
    });
}

// SAFETY: every method forwards its arguments to `System`, which is a correct allocator. Counting neither allocates nor panics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), layout.size() as isize);
        // SAFETY: the caller upholds the contract of `alloc`, which is that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), layout.size() as isize);
        // SAFETY: the caller upholds the contract of `alloc_zeroed`, which is that of `System`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(0, -(layout.size() as isize));
        // SAFETY: the caller upholds the contract; `block` came from `System`, because all our allocations do.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes, bytes as isize - layout.size() as isize);
        // SAFETY: the caller upholds the contract; `block` came from `System`, because all our allocations do.
        unsafe { System.realloc(block, layout, bytes) }
    }
}

/// Runs `work` and counts the allocations of this thread meanwhile.
pub(crate) fn allocated<T>(work: impl FnOnce() -> T) -> (T, Allocated) {
    SEEN.set(Allocated::default());
    LIVE.set(0);
    let result = work();
    (result, SEEN.get())
}
