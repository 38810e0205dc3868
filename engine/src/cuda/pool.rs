//! The pool's memory on the device, and the lane that hashes its pages.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use super::device::{Buffer, Device, Pinned, Result, Stream};
use super::kernels::{baton_page_contents, launched};
use crate::error::OpenError;
use crate::kv::{DeviceMemory, KvLayout, KvPool, PageId};

/// Pages that are hashed by one launch; more take several.
const PAGES_MOST: usize = 256;

/// A pool of pages in one plain allocation.
pub(super) struct DevicePool {
    memory: Buffer,
    page_bytes: u64,
    device: Arc<Device>,
    lane: Mutex<Lane>,
}

/// What a launch of the hash needs: a stream that no step waits for, and where pages and sums travel.
struct Lane {
    stream: Stream,
    pages: (Pinned<u32>, Buffer),
    sums: (Pinned<u64>, Buffer),
}

impl DevicePool {
    /// Allocates `pages` pages of `layout`.
    pub(super) fn allocate(
        device: &Arc<Device>,
        layout: KvLayout,
        pages: u32,
    ) -> std::result::Result<KvPool, OpenError> {
        let page_bytes = layout.page_bytes();
        let bytes = usize::try_from(page_bytes.saturating_mul(u64::from(pages))).unwrap_or(usize::MAX);
        let pool = Self::new(device, bytes, page_bytes).map_err(OpenError::Cuda)?;
        let base = NonNull::new(pool.memory.start().cast()).expect("the driver gives no null");
        Ok(KvPool::on_device(layout, pages, base, Box::new(pool))?)
    }

    fn new(device: &Arc<Device>, bytes: usize, page_bytes: u64) -> Result<Self> {
        let (pages, sums) = (PAGES_MOST * size_of::<u32>(), PAGES_MOST * size_of::<u64>());
        let lane = Lane {
            stream: Stream::urgent(device)?,
            pages: (Pinned::new(device, PAGES_MOST)?, Buffer::new(device, pages)?),
            sums: (Pinned::new(device, PAGES_MOST)?, Buffer::new(device, sums)?),
        };
        let memory = Buffer::zeroed(device, bytes)?;
        Ok(Self { memory, page_bytes, device: Arc::clone(device), lane: Mutex::new(lane) })
    }

    fn sums(&self, lane: &mut Lane, pages: &[PageId]) -> Result<Vec<u64>> {
        lane.pages.0.values_mut().iter_mut().zip(pages).for_each(|(place, page)| *place = page.0);
        let count = pages.len();
        lane.stream.upload(&lane.pages.1, &lane.pages.0, count)?;
        // SAFETY: the pages are the pool's, as `KvPool` has checked; both lists hold as many.
        let status = unsafe {
            baton_page_contents(
                self.memory.start(),
                self.page_bytes,
                lane.pages.1.start(),
                count as i32,
                lane.sums.1.start(),
                lane.stream.raw(),
            )
        };
        launched("baton_page_contents", status)?;
        lane.stream.download(&lane.sums.0, &lane.sums.1, count)?;
        lane.stream.wait()?;
        Ok(lane.sums.0.values()[..count].to_vec())
    }
}

impl DeviceMemory for DevicePool {
    fn contents(&self, pages: &[PageId]) -> std::result::Result<Vec<u64>, String> {
        let mut lane = self.lane.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Vec::with_capacity(pages.len());
        self.device.bind().map_err(|error| error.to_string())?;
        for some in pages.chunks(PAGES_MOST) {
            all.extend(self.sums(&mut lane, some).map_err(|error| error.to_string())?);
        }
        Ok(all)
    }

    fn bind_thread(&self) {
        if let Err(error) = self.device.bind() {
            tracing::error!(%error, "the GPU cannot be used from another thread");
        }
    }
}
