//! An allocator that counts what a thread asks for: how tests and `examples/fuzz_frames.rs` bound what a peer can cost.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What was asked for, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allocated {
    /// The largest allocation.
    pub(crate) largest: usize,
    /// All of them together, those that were freed meanwhile too. One that grows counts anew.
    pub(crate) total: usize,
    /// Most at once.
    pub(crate) peak: usize,
}

thread_local! {
    static SEEN: Cell<Allocated> = const { Cell::new(Allocated { largest: 0, total: 0, peak: 0 }) };
    /// Can be below zero: what was allocated before may be freed.
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(asked: usize, live: isize) {
    // Constants without a destructor: they exist as long as their thread, and touching them allocates nothing.
    let live = LIVE.get() + live;
    LIVE.set(live);
    let seen = SEEN.get();
    SEEN.set(Allocated {
        largest: seen.largest.max(asked),
        total: seen.total.saturating_add(asked),
        peak: seen.peak.max(usize::try_from(live).unwrap_or(0)),
    });
}

// SAFETY: every call goes to `System` as it came, and `System` is an allocator; counting neither allocates nor panics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), layout.size() as isize);
        // SAFETY: the caller keeps `alloc`'s contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(0, -(layout.size() as isize));
        // SAFETY: as above; `block` came from `System`, since everything here does.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes, bytes as isize - layout.size() as isize);
        // SAFETY: as above; `block` came from `System`, since everything here does.
        unsafe { System.realloc(block, layout, bytes) }
    }
}

/// What this thread asks for while `work` runs.
pub(crate) fn allocated<T>(work: impl FnOnce() -> T) -> (T, Allocated) {
    SEEN.set(Allocated::default());
    LIVE.set(0);
    let result = work();
    (result, SEEN.get())
}
