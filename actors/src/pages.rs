//! Gives the KV pool's memory to the transport and hashes pages of the pool. The transfer actor announces hashes, and the buffer manager checks
//! them.

use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use connector::memory::Region;
use connector::page_hash::{PageSeed, finished, page_hash};
use engine::{KvPool, PageId};

/// Number of shards into which this node divides a page: its only process has the whole page.
pub const SHARDS: u32 = 1;

/// A host pool's bytes.
struct Cells(Arc<KvPool>);

impl AsRef<[AtomicU8]> for Cells {
    fn as_ref(&self) -> &[AtomicU8] {
        self.0.cells().unwrap_or_default()
    }
}

/// The memory that a transport registers for a pool.
pub fn region(pool: &Arc<KvPool>) -> Region {
    if pool.is_on_device() {
        Region::on_device(pool.base(), pool.bytes(), Arc::clone(pool) as _)
    } else {
        Region::shared(Arc::new(Cells(Arc::clone(pool))))
    }
}

/// A pool of pages of one size. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pages {
    pool: Arc<KvPool>,
    region: Region,
    page_bytes: u64,
}

impl Pages {
    /// The pages of a pool.
    pub fn new(pool: Arc<KvPool>) -> Self {
        let (region, page_bytes) = (region(&pool), pool.layout().page_bytes());
        Self { pool, region, page_bytes }
    }

    /// Hashes these pages. The caller must ensure that nothing writes them during the call. On the host, each page takes tens of microseconds.
    /// On a GPU, the whole call takes tens of microseconds. The hash is 0 for a page outside the pool, and for every page if the GPU fails.
    pub fn hash(&self, pages: &[(PageId, PageSeed)]) -> Vec<u64> {
        if !self.pool.is_on_device() {
            let on_host = |(page, seed): &(PageId, PageSeed)| {
                page_hash(&self.region, u64::from(page.0) * self.page_bytes, self.page_bytes, *seed)
            };
            return pages.iter().map(|page| on_host(page).unwrap_or_default()).collect();
        }
        let ids: Vec<PageId> = pages.iter().map(|(page, _)| *page).collect();
        match self.pool.device_contents(&ids) {
            Ok(contents) => {
                let seeded = contents.into_iter().zip(pages);
                seeded.map(|(content, (_, seed))| finished(content, self.page_bytes, *seed)).collect()
            }
            Err(error) => {
                tracing::error!(error, "cannot hash pages");
                vec![0; pages.len()]
            }
        }
    }
}
