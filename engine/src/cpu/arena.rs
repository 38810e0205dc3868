//! The memory of the weights: one mapping, which asks the system for huge pages.
//!
//! A decode step reads all weights once, so most of its reads miss the caches. With pages of 4 KiB most of them also miss the TLB.
//! On the virtual machine measured, a core reads 18 GB/s from pages of 4 KiB and 32 GB/s from huge pages. Matrices of small models
//! are smaller than a huge page, so they share one mapping.

use std::io::ErrorKind;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::OpenError;
use crate::mapping::{map, unmap};

/// Every block begins at a multiple of this: a cache line.
const ALIGNMENT: usize = 64;

/// A mapping that is divided into blocks. A block lives as long as its owner, and the mapping as long as its last block.
pub(super) struct Arena {
    base: NonNull<u8>,
    bytes: usize,
    used: AtomicUsize,
}

// SAFETY: the arena accesses its memory only through blocks, which do not overlap.
unsafe impl Send for Arena {}
// SAFETY: as for `Send`.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps memory for blocks of these sizes in bytes. The system commits it on first access.
    ///
    /// # Errors
    /// [`OpenError::WeightMemory`] if the system refuses it, or the sum exceeds the address space.
    pub(super) fn new(mut blocks: impl Iterator<Item = usize>) -> Result<Arc<Self>, OpenError> {
        let sum = |sum: usize, bytes: usize| sum.checked_add(bytes.checked_next_multiple_of(ALIGNMENT)?);
        let refused = |bytes: usize, error| OpenError::WeightMemory { bytes: bytes as u64, error };
        let Some(bytes) = blocks.try_fold(0, sum).map(|bytes| bytes.max(ALIGNMENT)) else {
            return Err(refused(usize::MAX, ErrorKind::OutOfMemory.into()));
        };
        let base = map(bytes).map_err(|error| refused(bytes, error))?;
        Ok(Arc::new(Self { base, bytes, used: AtomicUsize::new(0) }))
    }

    /// Takes a block of `count` zeros.
    ///
    /// # Panics
    /// If the blocks taken are larger than those given to [`new`](Self::new).
    pub(super) fn take<T: Plain>(self: &Arc<Self>, count: usize) -> Block<T> {
        let is_within = |end: &usize| *end <= self.bytes;
        let bytes = count
            .checked_mul(size_of::<T>())
            .filter(is_within)
            .map(|bytes| bytes.next_multiple_of(ALIGNMENT));
        let start = bytes.map(|bytes| self.used.fetch_add(bytes, Ordering::Relaxed));
        let end = start.zip(bytes).and_then(|(start, bytes)| start.checked_add(bytes)).filter(is_within);
        let Some(start) = start.filter(|_| end.is_some()) else {
            panic!("the arena of {} bytes is full", self.bytes)
        };
        // SAFETY: inside the mapping, as just checked, and at a multiple of 64 bytes, as `Plain` needs.
        let base = unsafe { self.base.add(start) }.cast();
        Block { _arena: Arc::clone(self), base, count, numbers: PhantomData }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`. Blocks own the arena, so none is left.
        unsafe { unmap(self.base, self.bytes) };
    }
}

/// A type of numbers.
///
/// # Safety
/// Zero bytes are a valid value, and the alignment is at most that of a block.
pub(super) unsafe trait Plain: Copy {}
// SAFETY: any byte is valid.
unsafe impl Plain for u8 {}
// SAFETY: zero bytes are 0, and the alignment is 4.
unsafe impl Plain for f32 {}

/// Numbers in an [`Arena`].
pub(super) struct Block<T> {
    _arena: Arc<Arena>,
    base: NonNull<T>,
    count: usize,
    numbers: PhantomData<[T]>,
}

// SAFETY: a block is the only owner of its numbers, like a `Vec`.
unsafe impl<T: Plain + Send> Send for Block<T> {}
// SAFETY: as for `Send`.
unsafe impl<T: Plain + Sync> Sync for Block<T> {}

impl<T> Deref for Block<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `take` made the block of `count` initialised numbers. Blocks do not overlap.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.count) }
    }
}

impl<T> DerefMut for Block<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_zero_aligned_and_apart_and_outlive_the_arena() {
        let arena = Arena::new([3, 70 * 4].into_iter()).unwrap();
        let (mut bytes, mut floats) = (arena.take::<u8>(3), arena.take::<f32>(70));
        drop(arena);
        assert!(bytes.iter().all(|&byte| byte == 0) && floats.iter().all(|&float| float == 0.0));
        assert!(bytes.as_ptr().addr().is_multiple_of(ALIGNMENT));
        assert!(floats.as_ptr().addr().is_multiple_of(ALIGNMENT));
        bytes.fill(7);
        floats.fill(1.5);
        assert_eq!((&bytes[..], &floats[..]), (&[7; 3][..], &[1.5; 70][..]));
    }

    #[test]
    #[should_panic(expected = "the arena of 64 bytes is full")]
    fn more_than_was_asked_for_panics() {
        Arena::new([10].into_iter()).unwrap().take::<u8>(65);
    }

    #[test]
    #[should_panic(expected = "the arena of 64 bytes is full")]
    fn a_size_beyond_the_address_space_panics() {
        Arena::new([10].into_iter()).unwrap().take::<f32>(1 << 62);
    }

    #[test]
    fn memory_that_the_system_refuses_is_an_error() {
        let check = |blocks: &[usize], expect: &str| {
            let refused =
                Arena::new(blocks.iter().copied()).err().expect("no system has that much").to_string();
            assert!(refused.starts_with(expect) && refused.contains("serve a smaller model"), "{refused}");
        };
        check(&[usize::MAX / 2], "no memory for 9223372036854775");
        // These sums exceed 64 bits.
        let most = "no memory for 18446744073709551615 bytes of weights: out of memory; ";
        check(&[usize::MAX / 2 + 1, usize::MAX / 2 + 1], most);
        check(&[usize::MAX], most);
        check(&[usize::MAX - 63, 64], most);
    }
}
