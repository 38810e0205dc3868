//! The prefix index: which member has the KV of which prefixes, as far as this router has placed them.
//!
//! The index is bounded twice. All members share [`RoutingConfig::index_bytes`](super::RoutingConfig::index_bytes) equally, and a member has at
//! most as many entries as its pool has pages. Beyond that its least recently used pages are forgotten. A prefix is always used together with
//! the shorter prefixes before it, which count as used later. So a member's longest prefixes are forgotten first, and it never has a
//! page without the pages before it. The searches below rely on this.

use std::collections::BTreeMap;

use super::prefix::PrefixHash;

/// Memory of one entry: at most 66 bytes in `held` and 47 in `by_age`, in nodes of B-trees that are half full.
pub(super) const ENTRY_BYTES: u64 = 120;

/// A member's number in the index. Numbers are never reused.
pub(super) type Key = u32;

/// The entries of one member.
#[derive(Debug)]
struct Holder {
    /// Pages of the member's pool.
    pool_pages: u32,
    /// Its pages, the least recently used first.
    by_age: BTreeMap<u64, PrefixHash>,
}

/// A bounded map from prefixes to the members that hold them.
#[derive(Debug)]
pub(super) struct PrefixIndex {
    entries_max: u64,
    uses: u64,
    /// For each page and member: the last use.
    held: BTreeMap<(PrefixHash, Key), u64>,
    holders: BTreeMap<Key, Holder>,
}

impl PrefixIndex {
    pub(super) fn new(bytes: u64) -> Self {
        Self { entries_max: bytes / ENTRY_BYTES, uses: 0, held: BTreeMap::new(), holders: BTreeMap::new() }
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Number of a member's entries.
    #[cfg(test)]
    pub(super) fn entries_of(&self, key: Key) -> usize {
        self.holders.get(&key).map_or(0, |holder| holder.by_age.len())
    }

    /// Adds a member, or changes the size of its pool.
    pub(super) fn set_pool(&mut self, key: Key, pool_pages: u32) {
        let is_new = !self.holders.contains_key(&key);
        self.holders
            .entry(key)
            .or_insert_with(|| Holder { pool_pages, by_age: BTreeMap::new() })
            .pool_pages = pool_pages;
        // A new member makes the share of all others smaller.
        let shrunk: Vec<Key> = if is_new { self.holders.keys().copied().collect() } else { vec![key] };
        shrunk.into_iter().for_each(|key| self.evict(key));
    }

    /// Forgets a member and its entries.
    pub(super) fn remove(&mut self, key: Key) {
        for page in self.holders.remove(&key).into_iter().flat_map(|holder| holder.by_age.into_values()) {
            self.held.remove(&(page, key));
        }
    }

    /// Maximum number of entries of a member.
    fn most(&self, key: Key) -> usize {
        let share = self.entries_max / (self.holders.len() as u64).max(1);
        self.holders.get(&key).map_or(0, |holder| share.min(u64::from(holder.pool_pages)) as usize)
    }

    fn evict(&mut self, key: Key) {
        let most = self.most(key);
        let Some(holder) = self.holders.get_mut(&key) else { return };
        while holder.by_age.len() > most {
            let Some((_, page)) = holder.by_age.pop_first() else { return };
            self.held.remove(&(page, key));
        }
    }

    /// The member holds the pages of these prefixes, or will.
    pub(super) fn insert(&mut self, key: Key, prefixes: &[PrefixHash]) {
        let most = self.most(key);
        let Some(holder) = self.holders.get_mut(&key) else { return };
        // The longest prefix counts as used first.
        for &prefix in prefixes.iter().take(most).rev() {
            self.uses += 1;
            if let Some(before) = self.held.insert((prefix, key), self.uses) {
                holder.by_age.remove(&before);
            }
            holder.by_age.insert(self.uses, prefix);
        }
        self.evict(key);
    }

    /// Number of leading pages that a member holds.
    pub(super) fn resident(&self, key: Key, prefixes: &[PrefixHash]) -> usize {
        prefixes.partition_point(|prefix| self.held.contains_key(&(*prefix, key)))
    }

    /// The members, at most `most`, that hold the longest prefixes and satisfy `is_usable`, with the number of leading pages that they hold.
    /// Members that hold equally much are taken in the order of their keys from `from` on.
    pub(super) fn longest(
        &self,
        prefixes: &[PrefixHash],
        most: usize,
        from: Key,
        is_usable: impl Fn(Key) -> bool,
    ) -> Vec<(Key, usize)> {
        let mut found: Vec<(Key, usize)> = Vec::new();
        while found.len() < most {
            let another = |prefix: &PrefixHash| {
                let is_new = |key: &Key| is_usable(*key) && found.iter().all(|(known, _)| known != key);
                self.holders_of(*prefix, from).find(is_new)
            };
            // A member that holds a prefix holds the shorter ones too.
            let pages = prefixes.partition_point(|prefix| another(prefix).is_some());
            let Some(next) = pages.checked_sub(1).and_then(|last| another(&prefixes[last])) else { break };
            found.push((next, pages));
        }
        found
    }

    fn holders_of(&self, prefix: PrefixHash, from: Key) -> impl Iterator<Item = Key> {
        let (from, first, last) = ((prefix, from), (prefix, 0), (prefix, Key::MAX));
        let all = self.held.range(from..=last).chain(self.held.range(first..from));
        all.map(|((_, key), _)| *key)
    }

    /// True if some member holds this prefix.
    pub(super) fn is_known(&self, prefix: PrefixHash) -> bool {
        self.holders_of(prefix, 0).next().is_some()
    }

    /// Checks that no member has a page without the pages before it.
    #[cfg(test)]
    pub(super) fn is_closed_under(&self, key: Key, prefixes: &[PrefixHash]) -> bool {
        let held = |prefix: &PrefixHash| self.held.contains_key(&(*prefix, key));
        prefixes[self.resident(key, prefixes)..].iter().all(|prefix| !held(prefix))
    }
}
