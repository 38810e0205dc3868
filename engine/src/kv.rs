//! Where keys and values live: the layout of a page and the pool of pages.
//!
//! A page holds `page_tokens` consecutive positions of one sequence in every layer, as one contiguous run of
//! bytes, `[layer][K,V][page_token][kv_head][head_dim]`, so that it travels to a peer as one put.

use std::ptr::NonNull;
use std::sync::atomic::AtomicU8;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use serde::{Deserialize, Serialize};

#[cfg(test)]
mod tests;

/// The number of a page in its pool, from 0. Means nothing in another pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PageId(pub u32);

/// The number format of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvDtype {
    /// 32-bit IEEE 754, the machine's byte order.
    F32,
    /// The upper half of that.
    Bf16,
}

impl KvDtype {
    /// The format's name, which two ends of a link compare: a name that changes is a change of the protocol.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes of one number.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Which of the two tensors of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyOrValue {
    Key,
    Value,
}

/// The shape of a page. Two engines whose layouts and [fingerprints](crate::ModelInfo::fingerprint) are equal
/// may exchange pages as bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvLayout {
    /// Transformer layers.
    pub layers: u32,
    /// Key/value heads of a layer.
    pub kv_heads: u32,
    /// Numbers in one head's key, or value.
    pub head_dim: u32,
    /// Positions in a page.
    pub page_tokens: u32,
    /// The number format.
    pub dtype: KvDtype,
}

impl KvLayout {
    /// Bytes of one page, all layers; `u64::MAX` when that overflows, which no pool accepts.
    #[must_use]
    pub fn page_bytes(&self) -> u64 {
        let runs = u64::from(self.layers) * 2;
        runs.saturating_mul(u64::from(self.page_tokens)).saturating_mul(self.token_bytes())
    }

    /// Bytes from one position to the next inside a layer's keys, or values.
    fn token_bytes(&self) -> u64 {
        (u64::from(self.kv_heads) * u64::from(self.head_dim)).saturating_mul(self.dtype.bytes())
    }

    /// Bytes from a page's start to head 0 of the position `page_token` in `layer`.
    pub(crate) fn offset_bytes(&self, layer: u32, part: KeyOrValue, page_token: u32) -> u64 {
        debug_assert!(layer < self.layers && page_token < self.page_tokens);
        let run = u64::from(layer) * 2 + u64::from(part == KeyOrValue::Value);
        (run * u64::from(self.page_tokens) + u64::from(page_token)) * self.token_bytes()
    }
}

/// Why a pool could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvPoolError {
    /// A layout without bytes, no pages, or more bytes than this machine can address.
    #[error("a KV pool of {pages} pages of {page_bytes} bytes cannot be addressed on this machine")]
    Size {
        /// Pages asked for.
        pages: u32,
        /// Bytes of one page.
        page_bytes: u64,
    },
    /// The operating system refused the memory.
    #[error("mmap of {bytes} bytes for the KV pool failed: {error}")]
    Map {
        /// Bytes asked for.
        bytes: u64,
        /// What the system said.
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

/// The memory of all pages. On the host: one anonymous mapping, zero at first, committed by the system as it is touched. On a GPU: one
/// plain allocation, whose address means nothing to the host.
///
/// Peers and kernels write here side by side, so it is never a Rust slice: whoever holds [`base`](Self::base)
/// reads and writes through raw pointers. Who may touch which page when is decided by the page allocator and the
/// ring of credits, not here. Usable from any thread; unmapped when the last `Arc` is gone.
pub struct KvPool {
    base: NonNull<u8>,
    bytes: usize,
    pages: u32,
    layout: KvLayout,
    /// The device's part of a pool that lies there.
    device: Option<Box<dyn DeviceMemory>>,
}

/// Memory of a device, and what the device can tell of it.
pub(crate) trait DeviceMemory: Send + Sync {
    /// The sums over the segments of these pages' bytes, from which hashes are finished, as `connector::page_hash` has them.
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

// SAFETY: the pool hands out addresses and plain numbers; reads and writes through the addresses are unsafe and
// ordered by their callers.
unsafe impl Send for KvPool {}
// SAFETY: as for `Send`: no method reads or writes the memory.
unsafe impl Sync for KvPool {}

impl KvPool {
    /// Maps `pages` pages of `layout`.
    ///
    /// # Errors
    /// [`KvPoolError`] when the size is nothing or not addressable, or the system refuses it.
    pub fn new(layout: KvLayout, pages: u32) -> Result<Self, KvPoolError> {
        let bytes = Self::size(&layout, pages)?;
        // SAFETY: a fresh anonymous mapping touches no memory that exists.
        let address = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        };
        let address =
            address.map_err(|error| KvPoolError::Map { bytes: bytes as u64, error: error.into() })?;
        // Pages are written whole by peers: large mappings save most of the faults on first use. Advice, so no error matters.
        // SAFETY: the range is the mapping made above.
        let _ = unsafe { madvise(address, bytes, Advice::LinuxHugepage) };
        let base = NonNull::new(address.cast()).expect("mmap without a fixed address never returns null");
        Ok(Self { base, bytes, pages, layout, device: None })
    }

    /// Takes over `memory`, which lies on a device at `base` and holds `pages` pages of `layout`.
    ///
    /// # Errors
    /// As [`new`](Self::new) for a size that is nothing.
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

    /// True if the pages lie on a GPU.
    #[must_use]
    pub fn is_on_device(&self) -> bool {
        self.device.is_some()
    }

    /// Of a pool on a device: makes that current on the calling thread, for libraries that want it so.
    pub fn bind_thread(&self) {
        if let Some(device) = &self.device {
            device.bind_thread();
        }
    }

    /// Of a pool on a device: for each page, the sum from which its hash is finished, computed there. Takes some tens of microseconds;
    /// nobody may write these pages meanwhile.
    ///
    /// # Errors
    /// The device's, or that the pool lies on the host, whose bytes can be read.
    pub fn device_contents(&self, pages: &[PageId]) -> Result<Vec<u64>, String> {
        match &self.device {
            Some(device) if pages.iter().all(|page| page.0 < self.pages) => device.contents(pages),
            Some(_) => Err(format!("a page is outside the pool of {} pages", self.pages)),
            None => Err("the pool lies on the host".to_owned()),
        }
    }

    /// The pool's bytes as shared cells, for whoever names this memory to a transport; `None` if they lie on a device.
    #[must_use]
    pub fn cells(&self) -> Option<&[AtomicU8]> {
        if self.device.is_some() {
            return None;
        }
        // SAFETY: the mapping is `bytes` long and lives as long as the pool; cells of AtomicU8 have the layout of bytes and
        // may be written by anybody at any time.
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

    /// Pages in the pool; their numbers are `0..pages`.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// The shape of every page.
    #[must_use]
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// The address of head 0 of a position.
    ///
    /// # Panics
    /// When `page` is not in the pool, or (debug builds) the layer or position not in the page.
    pub(crate) fn address(
        &self,
        page: PageId,
        layer: u32,
        part: KeyOrValue,
        page_token: u32,
    ) -> NonNull<f32> {
        assert!(page.0 < self.pages, "page {} of {}", page.0, self.pages);
        let offset =
            u64::from(page.0) * self.layout.page_bytes() + self.layout.offset_bytes(layer, part, page_token);
        // SAFETY: the page is in the pool and the offset inside the page, so the sum is inside the mapping, whose
        // size fits `isize`.
        unsafe { self.base.add(offset as usize).cast() }
    }
}

impl Drop for KvPool {
    fn drop(&mut self) {
        if self.device.is_some() {
            // It frees itself.
            return;
        }
        // SAFETY: `base` and `bytes` are what mmap returned, unmapped once; every user holds the pool by `Arc`
        // and so is gone.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
