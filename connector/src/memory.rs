//! Memory regions that peers may write. A region is an address and a length, never a Rust slice.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

/// Where the bytes of a [`Region`] live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryKind {
    /// Host memory.
    Host,
    /// Memory of a CUDA device, allocated with `cuMemAlloc`. The host must not dereference its addresses.
    Cuda,
}

/// A contiguous range of memory. A transport registers it once. A peer may write a page of the region only after the peer has received a
/// credit (a permission) for that page.
///
/// A clone is cheap and keeps the memory alive. A peer may write at any moment, so no method returns a reference to the bytes.
/// Code that reads or writes them uses raw pointers and follows the rules of the [`ring`](crate::ring).
///
/// ```
/// use connector::memory::Region;
///
/// let region = Region::host(4096);
/// assert!(region.at(4000, 96).is_some());
/// assert!(region.at(4000, 97).is_none(), "the range leaves the region");
/// ```
#[derive(Clone)]
pub struct Region {
    base: NonNull<u8>,
    bytes: usize,
    kind: MemoryKind,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: a region is an address and a length. Each use that dereferences the address is `unsafe` and goes through `at`, which
// returns pointers into host memory only. `_owner` keeps the memory mapped as long as a clone exists on any thread.
unsafe impl Send for Region {}
// SAFETY: as above; no method accesses the memory through `&self`.
unsafe impl Sync for Region {}

impl Region {
    /// The region of `bytes` bytes at `base`, kept alive by `owner`.
    ///
    /// # Safety
    /// `base..base + bytes` stays mapped, readable and writable as long as `owner` is alive. No Rust reference into it exists while a
    /// peer may write it.
    pub unsafe fn new(
        base: NonNull<u8>,
        bytes: usize,
        kind: MemoryKind,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self { base, bytes, kind, _owner: owner }
    }

    /// The region of `owner`'s host memory. The region keeps `owner` alive.
    pub fn shared<T: AsRef<[AtomicU8]> + Send + Sync + 'static>(owner: Arc<T>) -> Self {
        let cells: &[AtomicU8] = (*owner).as_ref();
        let (base, bytes) = (NonNull::from(cells).cast::<u8>(), cells.len());
        // SAFETY: the region keeps the Arc alive. While the Arc is shared, its contents do not move and cannot be borrowed mutably, so the
        // memory stays mapped. References to `AtomicU8` permit concurrent writes.
        unsafe { Self::new(base, bytes, MemoryKind::Host, owner) }
    }

    /// The region of `bytes` bytes at `base` on a CUDA device, kept alive by `owner`.
    ///
    /// This function is safe although it checks nothing. Code on the host that reads or writes memory goes through [`at`](Self::at),
    /// which returns no pointer into a device region. The only other use of the address is to pass it to a library for the device.
    pub fn on_device(base: NonNull<u8>, bytes: usize, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self { base, bytes, kind: MemoryKind::Cuda, _owner: owner }
    }

    /// A region of `bytes` zeroed bytes of host memory, aligned to 64 bytes. For tests and small programs.
    pub fn host(bytes: usize) -> Self {
        #[repr(align(64))]
        struct Line(#[allow(dead_code)] [u8; 64]);
        let lines = bytes.div_ceil(64).max(1);
        let mut owner: Vec<Line> = Vec::with_capacity(lines);
        // SAFETY: the vector has capacity for `lines` elements, and zero bytes are a valid `Line`.
        unsafe {
            std::ptr::write_bytes(owner.as_mut_ptr(), 0, lines);
            owner.set_len(lines);
        }
        let base = NonNull::from(owner.as_mut_slice()).cast::<u8>();
        // SAFETY: the region owns the vector through the Arc and never accesses it, so the heap block stays mapped and unborrowed.
        unsafe { Self::new(base, bytes, MemoryKind::Host, Arc::new(owner)) }
    }

    /// Address of the first byte: in this process for host memory, otherwise on the device.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where the bytes live.
    pub fn kind(&self) -> MemoryKind {
        self.kind
    }

    /// The address at `offset`, if `offset..offset + bytes` lies in the region.
    ///
    /// The address is for a library that knows the region's kind, such as UCX or CUDA. Use [`at`](Self::at) for a pointer that the
    /// host may dereference.
    pub fn address(&self, offset: u64, bytes: u64) -> Option<NonNull<u8>> {
        let end = offset.checked_add(bytes)?;
        if end > self.bytes as u64 {
            return None;
        }
        // Saturates because `on_device` accepts ranges that wrap around the address space.
        Some(self.base.map_addr(|base| base.saturating_add(offset as usize)))
    }

    /// A pointer to `offset`, if the region is host memory and `offset..offset + bytes` lies in it.
    pub fn at(&self, offset: u64, bytes: u64) -> Option<NonNull<u8>> {
        self.address(offset, bytes).filter(|_| self.kind == MemoryKind::Host)
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("bytes", &self.bytes).field("kind", &self.kind).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ranges_inside_have_an_address_and_only_host_memory_has_pointers() {
        let host = Region::host(128);
        let device = Region::on_device(host.base(), host.bytes(), Arc::new(host.clone()));
        for (offset, bytes, inside) in
            [(0, 128, true), (128, 0, true), (64, 65, false), (129, 0, false), (u64::MAX, 2, false)]
        {
            assert_eq!(host.at(offset, bytes).is_some(), inside, "{bytes} bytes at {offset}");
            assert_eq!(device.address(offset, bytes), host.at(offset, bytes));
            assert_eq!(device.at(offset, bytes), None, "the host must not dereference device memory");
        }
        let distance = host.at(100, 1).map(|at| at.addr().get() - host.base().addr().get());
        assert_eq!(distance, Some(100));
    }
}
