//! Anonymous memory of the system, for KV pages and weights on the host.

use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Maps `bytes` zero bytes, at least one, and asks for huge pages: they save page faults on first use and misses of the TLB. The system commits the
/// memory on first access.
///
/// # Errors
/// The system refuses the mapping.
pub(crate) fn map(bytes: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: a new anonymous mapping does not affect existing memory.
    let address = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            bytes,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::NORESERVE,
        )
    }?;
    // This is advice: errors are ignored.
    // SAFETY: the range is the mapping made above.
    let _ = unsafe { madvise(address, bytes, Advice::LinuxHugepage) };
    Ok(NonNull::new(address.cast()).expect("mmap without a fixed address never returns null"))
}

/// Ends a mapping.
///
/// # Safety
/// `base` and `bytes` are those of [`map`]. Nothing uses the memory any more.
pub(crate) unsafe fn unmap(base: NonNull<u8>, bytes: usize) {
    // SAFETY: the caller's contract.
    let _ = unsafe { munmap(base.as_ptr().cast(), bytes) };
}
