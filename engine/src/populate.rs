//! Backing a pool with memory before it is used: the first write to a page otherwise waits for the system to find and clear one, in the
//! midst of a request, once on each side of a hand-over.

use std::sync::Arc;

use rustix::mm::{Advice, madvise};
use rustix::process::setpriority_process;

use crate::kv::KvPool;

/// Bytes at a time. The system's lock on the process's mappings is held meanwhile, and whoever wants to map something waits for it: so it is no
/// more than one large page, and the thread's priority not the lowest.
const STEP: usize = 2 << 20;
/// Nice value of the thread: a tenth of a core where all are busy.
const NICE: i32 = 10;

/// Has the system back every page of a pool on the host, by a thread that ends with the pool or its last page. So the pool's memory is taken at
/// the start. Until the thread is there a page is backed at its first write, as without it, and where the system refuses, all are.
pub fn populate(pool: &Arc<KvPool>) {
    if pool.is_on_device() {
        return;
    }
    let pool = Arc::clone(pool);
    let run = move || {
        // On Linux this is the calling thread alone. Refused, it runs at the usual priority.
        let _ = setpriority_process(None, NICE);
        for start in (0..pool.bytes()).step_by(STEP) {
            if Arc::strong_count(&pool) == 1 {
                return;
            }
            let bytes = STEP.min(pool.bytes() - start);
            // SAFETY: the range lies in the pool's mapping; what is written there stays.
            let backed =
                unsafe { madvise(pool.base().as_ptr().add(start).cast(), bytes, Advice::LinuxPopulateWrite) };
            if backed.is_err() {
                return;
            }
        }
    };
    // Without a thread the pool is as good, only later.
    let _ = std::thread::Builder::new().name("baton-populate".into()).spawn(run);
}
