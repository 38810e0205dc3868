//! The pool's pages as bytes to hash: what transfer announces and the buffer manager checks.

use connector::memory::Region;
use connector::page_hash::{PageSeed, page_hash};
use engine::PageId;

/// A pool of pages of one size. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pages {
    region: Region,
    page_bytes: u64,
}

impl Pages {
    /// The pages of `page_bytes` bytes that `region` is made of.
    pub fn new(region: Region, page_bytes: u64) -> Self {
        Self { region, page_bytes }
    }

    /// Hashes a page that nobody writes now: tens of microseconds, from memory. A page that is not in the pool has
    /// hash 0.
    pub fn hash(&self, page: PageId, seed: PageSeed) -> u64 {
        page_hash(&self.region, u64::from(page.0) * self.page_bytes, self.page_bytes, seed)
            .unwrap_or_default()
    }
}
