//! Memory that peers may write: named by address and length, never borrowed as a Rust slice.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

/// Where the bytes of a [`Region`] live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryKind {
    /// Ordinary host memory.
    Host,
    /// A CUDA device's memory, from plain `cuMemAlloc`. The host must not dereference its addresses.
    Cuda,
}

/// A contiguous piece of memory that a transport registers once and peers may write under a credit.
///
/// Cloning is cheap; the memory lives as long as any clone does. No method hands out a reference to the bytes: a
/// remote write may happen at any moment, so readers and writers go through raw pointers under the ring's rules.
#[derive(Clone)]
pub struct Region {
    base: NonNull<u8>,
    bytes: usize,
    kind: MemoryKind,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: a region is an address and a length; dereferencing it is `unsafe` at each use, which checks that it is host memory
// (`at`), and `_owner` keeps the memory mapped for as long as any clone exists on any thread.
unsafe impl Send for Region {}
// SAFETY: as above; no method reads or writes the memory through `&self` without `unsafe`.
unsafe impl Sync for Region {}

impl Region {
    /// Names `bytes` bytes at `base`, kept alive by `owner`.
    ///
    /// # Safety
    /// `base..base + bytes` stays mapped, readable and writable for as long as `owner` is alive, and nobody holds a
    /// Rust reference into it while a peer may write it.
    pub unsafe fn new(
        base: NonNull<u8>,
        bytes: usize,
        kind: MemoryKind,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self { base, bytes, kind, _owner: owner }
    }

    /// Names the host memory that `owner` shares: as long as the region lives, the owner does, and so does its memory.
    pub fn shared<T: AsRef<[AtomicU8]> + Send + Sync + 'static>(owner: Arc<T>) -> Self {
        let cells: &[AtomicU8] = (*owner).as_ref();
        let (base, bytes) = (NonNull::from(cells).cast::<u8>(), cells.len());
        // SAFETY: the borrow of `*owner` is good for as long as the Arc is, because an Arc's contents neither move nor are
        // borrowed mutably while it is shared; cells of AtomicU8 may be written by anybody at any time.
        unsafe { Self::new(base, bytes, MemoryKind::Host, owner) }
    }

    /// Names `bytes` bytes at `base` on a CUDA device, kept alive by `owner`.
    ///
    /// This function is safe because it promises nothing about the memory: [`at`](Self::at), which all code that copies or
    /// reads on the host goes through, gives no pointer into a device region. What uses the address itself hands it to the
    /// device's driver, as device memory.
    pub fn on_device(base: NonNull<u8>, bytes: usize, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self { base, bytes, kind: MemoryKind::Cuda, _owner: owner }
    }

    /// Host memory of `bytes` zeroed bytes, 64-byte aligned; for tests and small programs.
    pub fn host(bytes: usize) -> Self {
        #[repr(align(64))]
        struct Line(#[allow(dead_code)] [u8; 64]);
        let lines = bytes.div_ceil(64).max(1);
        let mut owner: Vec<Line> = Vec::with_capacity(lines);
        // SAFETY: the spare capacity is at least `lines` lines; zeroing makes every one of them a valid `Line`.
        unsafe {
            std::ptr::write_bytes(owner.as_mut_ptr(), 0, lines);
            owner.set_len(lines);
        }
        let base = NonNull::from(owner.as_mut_slice()).cast::<u8>();
        // SAFETY: the vector is moved into the Arc and never touched again, so its heap block outlives the region.
        unsafe { Self::new(base, bytes, MemoryKind::Host, Arc::new(owner)) }
    }

    /// The first byte's address: of this process for host memory, else of the device.
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

    /// The address of `offset`, if `offset..offset + bytes` lies inside the region; for a library that knows the region's kind.
    /// The host may dereference it only if the region is host memory: see [`at`](Self::at).
    pub fn address(&self, offset: u64, bytes: u64) -> Option<NonNull<u8>> {
        let end = offset.checked_add(bytes)?;
        if end > self.bytes as u64 {
            return None;
        }
        // Saturates where a device region that names addresses it does not have would overflow.
        Some(self.base.map_addr(|base| base.saturating_add(offset as usize)))
    }

    /// A pointer to `offset`, if the region is host memory and `offset..offset + bytes` lies inside it.
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
    fn ranges_inside_have_an_address_and_only_host_memory_has_pointers() {
        let host = Region::host(128);
        let device = Region::on_device(host.base(), host.bytes(), Arc::new(host.clone()));
        for (offset, bytes, inside) in
            [(0, 128, true), (128, 0, true), (64, 65, false), (129, 0, false), (u64::MAX, 2, false)]
        {
            assert_eq!(host.at(offset, bytes).is_some(), inside, "{bytes} bytes at {offset}");
            assert_eq!(device.address(offset, bytes), host.at(offset, bytes));
            assert_eq!(device.at(offset, bytes), None, "the host may not dereference a device's memory");
        }
        let distance = host.at(100, 1).map(|at| at.addr().get() - host.base().addr().get());
        assert_eq!(distance, Some(100));
    }
}
