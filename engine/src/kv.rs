//! The layout of a KV page, and the pool of pages.
//!
//! A page holds the keys and values of `page_tokens` consecutive positions of one sequence, for all layers. It is one
//! contiguous range of bytes, `[kv_head][layer][K,V][page_token][head_dim]`, so one put sends it to a peer. The KV heads are
//! outermost, so that the pages of a GPU with a part of the heads are contiguous ranges too.

use std::ptr::NonNull;
use std::sync::atomic::AtomicU8;

use serde::{Deserialize, Serialize};

use crate::mapping::{map, unmap};

mod numbers;
mod page_table;
#[cfg(test)]
mod tests;

pub use page_table::PageTable;

/// The number of a page in its pool, from 0. It is valid only in this pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PageId(pub u32);

/// The number format of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvDtype {
    /// 32-bit IEEE 754 in the machine's byte order.
    F32,
    /// bfloat16: the upper half of an `F32`.
    Bf16,
    /// FP8: e4m3 codes (`float8_e4m3fn`). A number is the value of its code times [`SCALE`](Self::SCALE).
    Fp8,
}

impl KvDtype {
    /// The number of a code is the code's value times this. The two ends of a link compare it. `kernels/kv.cuh` relies on 1.
    pub const SCALE: f32 = 1.0;

    /// The format's name. The two ends of a link compare it, so a changed name is a protocol change.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
        }
    }

    /// Bytes of one number.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Fp8 => 1,
        }
    }
}

/// One of the two KV tensors of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyOrValue {
    Key,
    Value,
}

/// The layout of a page. Two engines may exchange pages as bytes if their layouts and
/// [fingerprints](crate::ModelInfo::fingerprint) are equal.
///
/// ```
/// use engine::{KvDtype, KvLayout, KvPool};
///
/// // SmolLM2-135M with pages of 16 tokens.
/// let layout = KvLayout { layers: 30, kv_heads: 3, head_dim: 64, page_tokens: 16, dtype: KvDtype::F32 };
/// assert_eq!(layout.page_bytes(), 720 << 10);
///
/// let pool = KvPool::new(layout, 4)?;
/// assert_eq!(pool.bytes(), 4 * (720 << 10));
/// # Ok::<(), engine::KvPoolError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvLayout {
    /// Transformer layers.
    pub layers: u32,
    /// KV heads of a layer.
    pub kv_heads: u32,
    /// Numbers in the key, or value, of one head.
    pub head_dim: u32,
    /// Positions in a page.
    pub page_tokens: u32,
    /// The number format.
    pub dtype: KvDtype,
}

impl KvLayout {
    /// Bytes of one page with all layers. `u64::MAX` on overflow, which no pool accepts.
    #[must_use]
    pub fn page_bytes(&self) -> u64 {
        self.head_bytes().saturating_mul(u64::from(self.kv_heads))
    }

    /// Bytes of one head in a page, with all layers: the distance from a head to the next one. `u64::MAX` on overflow.
    pub(crate) fn head_bytes(&self) -> u64 {
        let runs = u64::from(self.layers) * 2;
        runs.saturating_mul(u64::from(self.page_tokens)).saturating_mul(self.token_bytes())
    }

    /// Bytes from one position to the next in the keys, or values, of a head in a layer.
    fn token_bytes(&self) -> u64 {
        u64::from(self.head_dim).saturating_mul(self.dtype.bytes())
    }

    /// Numbers of one page in one layer: `[kv_head][K,V][page_token][head_dim]`.
    pub(crate) fn layer_numbers(&self) -> u64 {
        2 * u64::from(self.kv_heads) * u64::from(self.page_tokens) * u64::from(self.head_dim)
    }

    /// The distances in a pool.
    #[cfg(feature = "cuda")]
    pub(crate) fn strides(&self) -> KvStrides {
        let numbers = |bytes: u64| (bytes / self.dtype.bytes()) as i64;
        KvStrides { page: numbers(self.page_bytes()), head: numbers(self.head_bytes()) }
    }

    /// Bytes from the start of a page to the key or value of position `page_token` in a layer, for one KV head.
    pub(crate) fn offset_bytes(&self, kv_head: u32, layer: u32, part: KeyOrValue, page_token: u32) -> u64 {
        debug_assert!(kv_head < self.kv_heads && layer < self.layers && page_token < self.page_tokens);
        let run = u64::from(layer) * 2 + u64::from(part == KeyOrValue::Value);
        let place = run * u64::from(self.page_tokens) + u64::from(page_token);
        u64::from(kv_head) * self.head_bytes() + place * self.token_bytes()
    }
}

/// Distances in a pool, in numbers of its format.
#[cfg(feature = "cuda")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct KvStrides {
    /// From a page to the next one.
    pub(crate) page: i64,
    /// From a KV head to the next one in a page.
    pub(crate) head: i64,
}

/// The error of creating a pool.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvPoolError {
    /// The layout has no bytes, the pool has no pages, or the machine cannot address as many bytes.
    #[error("a KV pool of {pages} pages of {page_bytes} bytes cannot be addressed on this machine")]
    Size {
        /// Pages requested.
        pages: u32,
        /// Bytes of one page.
        page_bytes: u64,
    },
    /// The operating system refused the memory.
    #[error("mmap of {bytes} bytes for the KV pool failed: {error}")]
    Map {
        /// Bytes requested.
        bytes: u64,
        /// The system's error.
        error: std::io::Error,
    },
}

impl KvPoolError {
    /// A short constant name for metrics, logs and JSON.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Size { .. } => "pool_size",
            Self::Map { .. } => "pool_map",
        }
    }
}

/// The memory of all pages.
///
/// On the host it is one anonymous mapping, initially zero. The system commits it on first access. On a GPU it is one
/// plain device allocation, and the host cannot dereference its address.
///
/// Peers and kernels write the memory concurrently, so it is never a Rust slice. Code that holds [`base`](Self::base)
/// accesses it through raw pointers. The page allocator and the ring of credits decide which code may access which page.
/// The pool is usable from any thread. Dropping the last `Arc` frees the memory.
pub struct KvPool {
    base: NonNull<u8>,
    bytes: usize,
    pages: u32,
    layout: KvLayout,
    /// The allocation of a pool on a device.
    device: Option<Box<dyn DeviceMemory>>,
}

/// A pool's memory on a device.
pub(crate) trait DeviceMemory: Send + Sync {
    /// For each page, the content sum of its bytes, computed on the device. `connector::page_hash` defines the sum and makes
    /// the page's hash from it.
    fn contents(&self, pages: &[PageId]) -> Result<Vec<u64>, String>;

    /// Makes the device current on the calling thread.
    fn bind_thread(&self);
}

impl std::fmt::Debug for KvPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { bytes, pages, layout, .. } = self;
        f.debug_struct("KvPool")
            .field("bytes", bytes)
            .field("pages", pages)
            .field("layout", layout)
            .finish_non_exhaustive()
    }
}

// SAFETY: the pool returns only addresses and plain numbers. Access through the addresses is unsafe, and its callers
// order it.
unsafe impl Send for KvPool {}
// SAFETY: as for `Send`: no method reads or writes the memory.
unsafe impl Sync for KvPool {}

impl KvPool {
    /// Maps `pages` pages of `layout`.
    ///
    /// # Errors
    /// [`KvPoolError`] if the size is zero or not addressable, or if the system refuses the mapping.
    pub fn new(layout: KvLayout, pages: u32) -> Result<Self, KvPoolError> {
        let bytes = Self::size(&layout, pages)?;
        let base = map(bytes).map_err(|error| KvPoolError::Map { bytes: bytes as u64, error })?;
        Ok(Self { base, bytes, pages, layout, device: None })
    }

    /// Takes ownership of `memory`, which lies on a device at `base` and holds `pages` pages of `layout`.
    ///
    /// # Errors
    /// [`KvPoolError::Size`], as in [`new`](Self::new).
    #[cfg(feature = "cuda")]
    pub(crate) fn on_device(
        layout: KvLayout,
        pages: u32,
        base: NonNull<u8>,
        memory: Box<dyn DeviceMemory>,
    ) -> Result<Self, KvPoolError> {
        let bytes = Self::size(&layout, pages)?;
        Ok(Self { base, bytes, pages, layout, device: Some(memory) })
    }

    fn size(layout: &KvLayout, pages: u32) -> Result<usize, KvPoolError> {
        let page_bytes = layout.page_bytes();
        page_bytes
            .checked_mul(u64::from(pages))
            .and_then(|bytes| usize::try_from(bytes).ok())
            .filter(|&bytes| bytes > 0 && isize::try_from(bytes).is_ok())
            .ok_or(KvPoolError::Size { pages, page_bytes })
    }

    /// True if the pool is on a GPU.
    #[must_use]
    pub fn is_on_device(&self) -> bool {
        self.device.is_some()
    }

    /// Makes the pool's device current on the calling thread, for libraries that need this. Does nothing for a host pool.
    pub fn bind_thread(&self) {
        if let Some(device) = &self.device {
            device.bind_thread();
        }
    }

    /// For a pool on a device: the content sum of each page, computed on the device. The page's hash is made from it. Takes
    /// some tens of microseconds. No other code may write these pages during the call.
    ///
    /// # Errors
    /// The device's error, a page outside the pool, or a pool on the host.
    pub fn device_contents(&self, pages: &[PageId]) -> Result<Vec<u64>, String> {
        match &self.device {
            Some(device) if pages.iter().all(|page| page.0 < self.pages) => device.contents(pages),
            Some(_) => Err(format!("a page is outside the pool of {} pages", self.pages)),
            None => Err("the pool is on the host".to_owned()),
        }
    }

    /// The pool's bytes as shared cells, for registration with a transport. `None` for a pool on a device.
    #[must_use]
    pub fn cells(&self) -> Option<&[AtomicU8]> {
        if self.device.is_some() {
            return None;
        }
        // SAFETY: the mapping is `bytes` long and lives as long as the pool. `AtomicU8` has the layout of a byte and allows
        // concurrent writes.
        Some(unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), self.bytes) })
    }

    /// The first byte of page 0, aligned to the system's page size. Page `n` starts `n * page_bytes` further.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes of all pages together.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Pages in the pool. Their numbers are `0..pages`.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// The layout of every page.
    #[must_use]
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// The address of the key or value of a position in a page, for one KV head.
    ///
    /// # Panics
    /// If `page` is not in the pool. In debug builds also if the head, the layer or the position is not in the page.
    pub(crate) fn address(
        &self,
        page: PageId,
        kv_head: u32,
        layer: u32,
        part: KeyOrValue,
        page_token: u32,
    ) -> NonNull<u8> {
        assert!(page.0 < self.pages, "page {} of {}", page.0, self.pages);
        let offset = u64::from(page.0) * self.layout.page_bytes()
            + self.layout.offset_bytes(kv_head, layer, part, page_token);
        // SAFETY: the page is in the pool and the offset is inside the page, so the sum is inside the mapping, whose size
        // fits `isize`.
        unsafe { self.base.add(offset as usize) }
    }
}

impl Drop for KvPool {
    fn drop(&mut self) {
        if self.device.is_some() {
            // Dropping `device` frees the memory.
            return;
        }
        // SAFETY: `base` and `bytes` are those of the mapping, which is unmapped once. Every user holds the pool by `Arc`,
        // so there is no user left.
        unsafe { unmap(self.base, self.bytes) };
    }
}
