//! The changes of the prefix cache that routers are told.
//!
//! Pages with a salt are never announced. A router looks prompts up by their tokens, without a salt. So it would send prompts to a process that
//! may not use its cached pages for them, and a tenant's tokens would be visible to all subscribers.

use std::mem;

use crate::messages::{CacheEvent, PrefixHash};

/// The changes since they were last taken.
#[derive(Debug, Default)]
pub(super) struct CacheEvents(Vec<CacheEvent>);

impl CacheEvents {
    /// A page after the page `parent` is cached now. Returns the hash of the new page.
    pub(super) fn stored(&mut self, parent: Option<PrefixHash>, page: &[u32]) -> PrefixHash {
        let hash = PrefixHash::of(parent, page);
        match self.0.last_mut() {
            Some(CacheEvent::Stored { hashes, tokens, .. }) if hashes.last().copied() == parent => {
                hashes.push(hash);
                tokens.extend(page);
            }
            _ => self.0.push(CacheEvent::Stored { parent, hashes: vec![hash], tokens: page.to_vec() }),
        }
        hash
    }

    /// A page is cached no longer.
    pub(super) fn removed(&mut self, hash: PrefixHash) {
        match self.0.last_mut() {
            Some(CacheEvent::Removed { hashes }) => hashes.push(hash),
            _ => self.0.push(CacheEvent::Removed { hashes: vec![hash] }),
        }
    }

    /// Takes the changes; `None` if there are none.
    pub(super) fn take(&mut self) -> Option<Vec<CacheEvent>> {
        (!self.0.is_empty()).then(|| mem::take(&mut self.0))
    }
}
