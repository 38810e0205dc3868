//! Settings of the process's memory allocator.

/// The allocator maps blocks of this size and larger individually. A step allocates no block of this size, so steps do
/// not become slower.
const MAPPED_BYTES: i32 = 1 << 20;

/// Makes the allocator return large freed blocks to the system.
///
/// By default, each of glibc's arenas keeps free memory of up to twice the size of the largest freed block, at most
/// 64 MiB. After a burst of large requests a process stays hundreds of megabytes larger. This function does nothing with
/// another C library.
pub fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    for setting in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: `mallopt` takes two numbers and locks the allocator itself. If it refuses them, nothing changes.
        unsafe { libc::mallopt(setting, MAPPED_BYTES) };
    }
}
