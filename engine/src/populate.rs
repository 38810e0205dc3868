//! Commits a host pool's memory before its first use. Otherwise the first write to each page waits for a page fault
//! during a request, once on the prefill side and once on the decode side.

use std::sync::Arc;

use rustix::mm::{Advice, madvise};
use rustix::process::setpriority_process;

use crate::kv::KvPool;

/// Bytes that one system call commits. The call holds the process's mmap lock, which blocks other threads that map
/// memory. So one call commits only one huge page, and the thread does not run at the lowest priority.
const STEP: usize = 2 << 20;
/// The thread's nice value: about a tenth of a core when all cores are busy.
const NICE: i32 = 10;

/// Commits every page of a host pool in a background thread. Does nothing for a pool on a device.
///
/// The thread ends after the last page, or when the pool has no other owner. A page that the thread has not reached is
/// committed at its first write. If the system refuses, all remaining pages are.
pub fn populate(pool: &Arc<KvPool>) {
    if pool.is_on_device() {
        return;
    }
    let pool = Arc::clone(pool);
    let run = move || {
        // On Linux this affects only the calling thread. On failure the thread keeps its normal priority.
        let _ = setpriority_process(None, NICE);
        for start in (0..pool.bytes()).step_by(STEP) {
            if Arc::strong_count(&pool) == 1 {
                return;
            }
            let bytes = STEP.min(pool.bytes() - start);
            // SAFETY: the range lies in the pool's mapping, and the call keeps the contents.
            let backed =
                unsafe { madvise(pool.base().as_ptr().add(start).cast(), bytes, Advice::LinuxPopulateWrite) };
            if backed.is_err() {
                return;
            }
        }
    };
    // Without the thread, pages are committed at their first write.
    let _ = std::thread::Builder::new().name("baton-populate".into()).spawn(run);
}
