//! The KV pool's memory on the device, and the stream that hashes its pages.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use super::device::{Buffer, CudaDevice, Pinned, Result, Stream};
use super::kernels::{baton_page_contents, baton_page_totals_bytes, baton_pages_max, launch};
use crate::error::OpenError;
use crate::gpu::arguments::PageContents;
use crate::kv::{DeviceMemory, KvLayout, KvPool, PageId};

/// A pool of pages in one plain allocation.
pub(super) struct DevicePool {
    memory: Buffer,
    page_bytes: u64,
    device: Arc<CudaDevice>,
    hasher: Mutex<PageHasher>,
}

/// The resources of the hash kernel.
struct PageHasher {
    /// A separate stream, so steps and hashes do not wait for each other.
    stream: Stream,
    /// The kernel's partial sums.
    totals: Buffer,
    /// The kernel writes the content sums here.
    sums: Pinned<u64>,
}

impl DevicePool {
    /// Allocates `pages` pages of `layout`.
    pub(super) fn allocate(
        device: &Arc<CudaDevice>,
        layout: KvLayout,
        pages: u32,
    ) -> std::result::Result<KvPool, OpenError> {
        let page_bytes = layout.page_bytes();
        let bytes = usize::try_from(page_bytes.saturating_mul(u64::from(pages))).unwrap_or(usize::MAX);
        let pool = Self::new(device, bytes, page_bytes).map_err(OpenError::Cuda)?;
        let base = NonNull::new(pool.memory.numbers::<u8>(0, bytes))
            .expect("cuMemAlloc never returns a null address");
        Ok(KvPool::on_device(layout, pages, base, Box::new(pool))?)
    }

    fn new(device: &Arc<CudaDevice>, bytes: usize, page_bytes: u64) -> Result<Self> {
        let hasher = PageHasher {
            stream: Stream::urgent(device)?,
            totals: Buffer::zeroed(device, baton_page_totals_bytes() as usize)?,
            sums: Pinned::new(device, baton_pages_max() as usize)?,
        };
        let memory = Buffer::zeroed(device, bytes)?;
        Ok(Self { memory, page_bytes, device: Arc::clone(device), hasher: Mutex::new(hasher) })
    }

    fn sums(&self, hasher: &mut PageHasher, pages: &[PageId]) -> Result<Vec<u64>> {
        let numbers: Vec<u32> = pages.iter().map(|page| page.0).collect();
        assert!(
            numbers.len() <= hasher.sums.count(),
            "{} pages exceed the {} sums of one launch",
            numbers.len(),
            hasher.sums.count()
        );
        let arguments = PageContents {
            base: self.memory.numbers::<u8>(0, self.memory.bytes()).cast_const().cast(),
            page_bytes: self.page_bytes,
            host_pages: numbers.as_ptr(),
            totals: hasher.totals.numbers::<u8>(0, baton_page_totals_bytes() as usize).cast(),
            host_out: hasher.sums.raw(),
            count: numbers.len() as i32,
        };
        // SAFETY: `KvPool::device_contents` has checked that the pages are in the pool, and `sums` has an entry for each. The
        // hasher is locked, so only this launch uses its totals and sums.
        unsafe { launch("baton_page_contents", baton_page_contents, &arguments, &hasher.stream)? };
        hasher.stream.wait()?;
        // SAFETY: the stream has finished.
        Ok(unsafe { hasher.sums.values() }[..pages.len()].to_vec())
    }
}

impl DeviceMemory for DevicePool {
    fn contents(&self, pages: &[PageId]) -> std::result::Result<Vec<u64>, String> {
        let mut hasher = self.hasher.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Vec::with_capacity(pages.len());
        self.device.bind().map_err(|error| error.to_string())?;
        for some in pages.chunks(hasher.sums.count()) {
            all.extend(self.sums(&mut hasher, some).map_err(|error| error.to_string())?);
        }
        Ok(all)
    }

    fn bind_thread(&self) {
        if let Err(error) = self.device.bind() {
            tracing::error!(%error, "cannot make the GPU current on this thread");
        }
    }
}
