//! The allocator's settings, for the whole process.

/// Blocks from this size on are mapped by themselves. Nothing in a step is as large, so computing does not become slower.
const MAPPED_BYTES: i32 = 1 << 20;

/// Has the allocator give large blocks back to the system when they are freed.
///
/// By itself, glibc keeps free memory up to twice the size of the largest block that was freed, 64 MiB at most, for each of many arenas:
/// after a burst of large requests a process stays hundreds of megabytes larger. Does nothing with another C library.
pub fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    for setting in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: takes two numbers, and the allocator's own lock. If it refuses them, nothing changes.
        unsafe { libc::mallopt(setting, MAPPED_BYTES) };
    }
}
