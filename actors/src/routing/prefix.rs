//! Hashes of prompt prefixes.
//!
//! Each hash covers a salt and all tokens up to the end of one page, so equal hashes mean equal prefixes, as in the
//! [prefix cache](crate::buffer_manager::prefix_cache). The hashes are the same in every process, so that routers without shared state
//! agree. A collision sends a prompt to a member that does not have its KV; it never shares KV, because the members' caches compare tokens.

use common::splitmix::{STEP, mix};

use crate::request::CacheSalt;

/// The hash of a prefix that ends at a page boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PrefixHash(pub(super) u64);

/// The hashes of a prompt's prefixes: one for each full page, the shortest prefix first.
pub(super) fn prefixes(salt: Option<CacheSalt>, tokens: &[u32], page_tokens: u32) -> Vec<PrefixHash> {
    let absorb = |hash: u64, word: u64| mix(hash ^ word).wrapping_add(STEP);
    let words = salt.iter().flat_map(|salt| salt.0.as_chunks::<8>().0).map(|word| u64::from_le_bytes(*word));
    let mut hash = words.fold(u64::from(salt.is_some()), absorb);
    let pages = tokens.chunks_exact(page_tokens.max(1) as usize);
    pages
        .map(|page| {
            hash = page.iter().fold(hash, |hash, token| absorb(hash, u64::from(*token)));
            PrefixHash(hash)
        })
        .collect()
}

/// The weight of a member for a prefix (rendezvous hashing): each prefix prefers the member with the highest weight.
pub(super) fn rendezvous(prefix: PrefixHash, name: u64) -> u64 {
    mix(prefix.0 ^ mix(name.wrapping_add(STEP)))
}
