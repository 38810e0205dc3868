//! Changes of the prefix cache, for routers.

use sha2::{Digest, Sha256};

/// Hash of all tokens from the start of a sequence to the end of a full page. It is never 0.
///
/// Equal prefixes have equal hashes in all processes with pages of the same length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixHash(pub u64);

impl PrefixHash {
    /// The hash of a page with these tokens. `parent` is the hash of the page before it; `None` for the first page of a sequence.
    pub fn of(parent: Option<Self>, tokens: &[u32]) -> Self {
        let mut hash = Sha256::new_with_prefix(b"baton prefix");
        hash.update(parent.map_or(0, |parent| parent.0).to_le_bytes());
        tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        let bytes: [u8; 32] = hash.finalize().into();
        let [a, b, c, d, e, f, g, h, ..] = bytes;
        Self(u64::from_le_bytes([a, b, c, d, e, f, g, h]).max(1))
    }
}

/// A change of the cached pages without a salt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheEvent {
    /// The cache is empty. The first event of a process.
    Cleared,
    /// Consecutive pages of one sequence are cached now.
    Stored {
        /// The page before the first one; `None` if the sequence begins with these pages.
        parent: Option<PrefixHash>,
        /// The pages, in order.
        hashes: Vec<PrefixHash>,
        /// The tokens of all these pages.
        tokens: Vec<u32>,
    },
    /// Pages are cached no longer.
    Removed {
        /// The pages. A page comes after the pages that follow it in their sequences.
        hashes: Vec<PrefixHash>,
    },
}

/// Buffer manager → publisher of KV events: what one message has changed in the prefix cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheChanged(pub Vec<CacheEvent>);
