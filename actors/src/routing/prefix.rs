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
#[derive(Clone, Debug)]
pub struct PromptHashes {
    pub(super) page_tokens: u32,
    pub(super) hashes: Vec<PrefixHash>,
}

impl PromptHashes {
    /// Hashes a prompt. Pages have `page_tokens` tokens.
    pub fn new(page_tokens: u32, salt: Option<CacheSalt>, prompt: &[u32]) -> Self {
        Self { page_tokens, hashes: prefixes(salt, prompt, page_tokens) }
    }
}

/// The hashes of [`PromptHashes`].
pub(super) fn prefixes(salt: Option<CacheSalt>, tokens: &[u32], page_tokens: u32) -> Vec<PrefixHash> {
    let absorb = |hash: u64, word: u64| mix(hash ^ word).wrapping_add(STEP);
    let words = salt.iter().flat_map(|salt| salt.0.as_chunks::<8>().0).map(|word| u64::from_le_bytes(*word));
    let mut hash = words.fold(u64::from(salt.is_some()), absorb);
    let pages = tokens.chunks_exact(page_tokens.max(1) as usize);
    pages
        .map(|page| {
            // The tokens of a page are hashed on their own, two at a time, so that the processor hashes several pages at the same time.
            let (pairs, last) = page.as_chunks::<2>();
            let words = pairs.iter().map(|[low, high]| u64::from(*low) | (u64::from(*high) << 32));
            let words = words.chain(last.iter().map(|token| u64::from(*token)));
            hash = absorb(hash, words.fold(0, absorb));
            PrefixHash(hash)
        })
        .collect()
}

/// The weight of a member for a prefix (rendezvous hashing): each prefix prefers the member with the highest weight.
pub(super) fn rendezvous(prefix: PrefixHash, name: u64) -> u64 {
    mix(prefix.0 ^ mix(name.wrapping_add(STEP)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shorter prompt has the first hashes. A changed token changes the hashes of its page and of all later pages.
    #[test]
    fn hashes_are_equal_for_equal_prefixes_only() {
        for page_tokens in [1, 2, 7, 16] {
            let hashes = |tokens: &[u32]| prefixes(None, tokens, page_tokens);
            let prompt: Vec<u32> = (0..100).collect();
            let all = hashes(&prompt);
            assert_eq!(all.len(), 100 / page_tokens as usize);
            for length in 0..100 {
                assert_eq!(hashes(&prompt[..length]), all[..length / page_tokens as usize]);
            }
            for changed in 0..all.len() * page_tokens as usize {
                let mut other = prompt.clone();
                other[changed] += 1;
                for (page, (theirs, ours)) in hashes(&other).iter().zip(&all).enumerate() {
                    let is_before = page < changed / page_tokens as usize;
                    assert_eq!(theirs == ours, is_before, "token {changed}, page {page} of {page_tokens}");
                }
                other.swap(changed, (changed + 1) % 100);
                assert_ne!(hashes(&other), all);
            }
        }
    }
}
