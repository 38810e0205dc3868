//! The prefix index: which member has the KV of which prefixes, as far as this router has placed them.
//!
//! The index is a radix tree. A [`Segment`] is a run of pages that all prompts in the index share or lack together, so the cost of a prompt
//! depends on the number of its segments, not on its length. A segment is found by the hash of its first page. That hash covers all pages before
//! it, so a segment needs no link to the one before it.
//!
//! The index is bounded twice. All members share [`RoutingConfig::index_bytes`](super::RoutingConfig::index_bytes) equally, and a member has at
//! most as many pages as its pool. Beyond that its least recently used pages are forgotten. A prefix is always used together with
//! the shorter prefixes before it. Of segments that were used at the same time, the deepest is forgotten first. So a member never has a
//! page without the pages before it. The searches below rely on this.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::prefix::PrefixHash;

/// Memory of a page of a segment.
pub(super) const PAGE_BYTES: u64 = size_of::<PrefixHash>() as u64;

/// Memory of a segment at one member, without its pages: at most 150 bytes in `segments` (a table that is less than half full), 100 in its
/// lists, and 60 in `by_age` (a B-tree that is half full).
pub(super) const SEGMENT_BYTES: u64 = 320;

/// A member's number in the index. The number of a member that has left may be used again.
pub(super) type Key = u32;

/// A member that holds the beginning of a segment.
#[derive(Debug)]
struct Held {
    key: Key,
    /// Number of pages of the segment that it holds; at least one.
    pages: u32,
    /// The last use.
    used: u64,
}

/// A run of pages. A member that holds a later page holds the earlier ones too.
#[derive(Debug)]
struct Segment {
    /// Number of pages before it.
    start: u32,
    /// At least one member holds all of them.
    pages: Vec<PrefixHash>,
    /// The members that hold its first page, by their keys.
    holders: Vec<Held>,
}

impl Segment {
    /// The number of pages that are the first ones of `prefixes`.
    fn matched(&self, prefixes: &[PrefixHash]) -> usize {
        // Equal hashes mean equal prefixes, so the pages after a different one are different.
        let (mut same, mut end) = (0, self.pages.len().min(prefixes.len()));
        if self.pages[..end] == prefixes[..end] {
            return end;
        }
        while same < end {
            let middle = same + (end - same) / 2;
            if self.pages[middle] == prefixes[middle] { same = middle + 1 } else { end = middle }
        }
        same
    }

    fn find(&self, key: Key) -> Result<usize, usize> {
        self.holders.binary_search_by_key(&key, |held| held.key)
    }

    /// Forgets the pages that no member holds any more.
    fn truncate(&mut self) {
        let held = self.holders.iter().map(|held| held.pages as usize).max().unwrap_or(0);
        if held < self.pages.len() {
            self.pages.truncate(held);
            self.pages.shrink_to_fit();
        }
    }
}

/// What one member holds.
#[derive(Debug, Default)]
struct Holder {
    /// Pages of the member's pool.
    pool_pages: u32,
    /// Number of pages that it holds.
    pages: usize,
    /// Their memory.
    bytes: u64,
    /// Its segments: the last use, the start and the first page. The first one is forgotten next.
    by_age: BTreeSet<(u64, Reverse<u32>, PrefixHash)>,
}

impl Holder {
    fn add(&mut self, pages: u32, segments: u64) {
        self.pages += pages as usize;
        self.bytes += u64::from(pages) * PAGE_BYTES + segments * SEGMENT_BYTES;
    }

    fn subtract(&mut self, pages: u32, segments: u64) {
        self.pages -= pages as usize;
        self.bytes -= u64::from(pages) * PAGE_BYTES + segments * SEGMENT_BYTES;
    }
}

/// A bounded map from prefixes to the members that hold them.
#[derive(Debug)]
pub(super) struct PrefixIndex {
    bytes_max: u64,
    uses: u64,
    /// By the first page.
    segments: HashMap<PrefixHash, Segment>,
    holders: BTreeMap<Key, Holder>,
}

/// The segments that begin like one prompt.
#[derive(Debug)]
pub(super) struct Path<'a> {
    /// Each segment, the number of pages before it, and the number of its pages that the prompt has.
    segments: Vec<(&'a Segment, usize, usize)>,
}

impl Path<'_> {
    /// Number of leading pages that some member holds.
    pub(super) fn known(&self) -> usize {
        self.segments.last().map_or(0, |(_, start, matched)| start + matched)
    }

    /// Number of leading pages that a member holds.
    pub(super) fn resident(&self, key: Key) -> usize {
        let mut pages = 0;
        for (segment, _, matched) in &self.segments {
            let held = segment.find(key).map_or(0, |place| segment.holders[place].pages as usize);
            pages += held.min(*matched);
            if held < *matched {
                break;
            }
        }
        pages
    }

    /// The members, at most `most`, that hold the longest prefixes and satisfy `is_usable`, with the number of leading pages that they hold.
    /// Members that hold equally much are taken in the order of their keys from `from` on.
    pub(super) fn longest(
        &self,
        most: usize,
        from: Key,
        is_usable: impl Fn(Key) -> bool,
    ) -> Vec<(Key, usize)> {
        let mut found: Vec<(Key, usize)> = Vec::with_capacity(most);
        for (segment, start, matched) in self.segments.iter().rev() {
            let (before, after) =
                segment.holders.split_at(segment.holders.partition_point(|held| held.key < from));
            let all = || after.iter().chain(before);
            let is_whole = |held: &&Held| held.pages as usize >= *matched;
            for held in all().filter(is_whole) {
                if found.len() == most {
                    return found;
                }
                if found.iter().all(|(known, _)| *known != held.key) && is_usable(held.key) {
                    found.push((held.key, start + matched));
                }
            }
            let mut parts: Vec<&Held> = all().filter(|held| !is_whole(held) && is_usable(held.key)).collect();
            parts.sort_by_key(|held| Reverse(held.pages));
            parts.truncate(most - found.len());
            found.extend(parts.into_iter().map(|held| (held.key, start + held.pages as usize)));
        }
        found
    }
}

impl PrefixIndex {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, uses: 0, segments: HashMap::new(), holders: BTreeMap::new() }
    }

    /// Bytes of all entries. A page that several members hold counts for each of them.
    pub(super) fn bytes(&self) -> u64 {
        self.holders.values().map(|holder| holder.bytes).sum()
    }

    /// Adds a member, or changes the size of its pool.
    pub(super) fn set_pool(&mut self, key: Key, pool_pages: u32) {
        let is_new = !self.holders.contains_key(&key);
        self.holders.entry(key).or_default().pool_pages = pool_pages;
        // A new member makes the share of all others smaller.
        let shrunk: Vec<Key> = if is_new { self.holders.keys().copied().collect() } else { vec![key] };
        shrunk.into_iter().for_each(|key| self.evict(key));
    }

    /// Forgets a member and its pages.
    pub(super) fn remove(&mut self, key: Key) {
        let Some(holder) = self.holders.remove(&key) else { return };
        for (.., first) in holder.by_age {
            self.release(key, first, u32::MAX);
        }
    }

    /// The segments that begin like a prompt with these prefixes.
    pub(super) fn path(&self, prefixes: &[PrefixHash]) -> Path<'_> {
        let (mut segments, mut start) = (Vec::new(), 0);
        while let Some(segment) = prefixes.get(start).and_then(|first| self.segments.get(first)) {
            let matched = segment.matched(&prefixes[start..]);
            segments.push((segment, start, matched));
            start += matched;
            if matched < segment.pages.len() {
                break;
            }
        }
        Path { segments }
    }

    /// The member holds the pages of these prefixes, or will.
    pub(super) fn insert(&mut self, key: Key, prefixes: &[PrefixHash]) {
        let Some(most) = self.holders.get(&key).map(|holder| holder.pool_pages as usize) else { return };
        let prefixes = &prefixes[..prefixes.len().min(most)];
        self.uses += 1;
        let (mut start, mut grown) = (0, vec![key]);
        while let Some(first) = prefixes.get(start) {
            let rest = &prefixes[start..];
            let segment = self.segments.entry(*first).or_insert_with(|| Segment {
                start: start as u32,
                pages: rest.to_vec(),
                holders: Vec::new(),
            });
            let matched = segment.matched(rest);
            if matched < segment.pages.len() && matched < rest.len() {
                self.split(*first, matched, &mut grown);
            }
            self.hold(key, *first, matched as u32);
            start += matched;
        }
        grown.into_iter().for_each(|key| self.evict(key));
    }

    /// Divides a segment after `pages` pages. `grown` gets the members that need memory for another segment.
    fn split(&mut self, first: PrefixHash, pages: usize, grown: &mut Vec<Key>) {
        let Some(segment) = self.segments.get_mut(&first) else { return };
        let rest = segment.pages.split_off(pages);
        segment.pages.shrink_to_fit();
        let start = segment.start + pages as u32;
        let mut holders = Vec::new();
        for held in &mut segment.holders {
            let Some(more) = held.pages.checked_sub(pages as u32).filter(|more| *more > 0) else { continue };
            held.pages = pages as u32;
            holders.push(Held { pages: more, ..*held });
            if let Some(holder) = self.holders.get_mut(&held.key) {
                holder.by_age.insert((held.used, Reverse(start), rest[0]));
                holder.add(0, 1);
                grown.push(held.key);
            }
        }
        self.segments.insert(rest[0], Segment { start, pages: rest, holders });
    }

    /// The member uses the first pages of a segment.
    fn hold(&mut self, key: Key, first: PrefixHash, pages: u32) {
        let (Some(segment), Some(holder)) = (self.segments.get_mut(&first), self.holders.get_mut(&key))
        else {
            return;
        };
        let place = segment.find(key).unwrap_or_else(|place| {
            segment.holders.insert(place, Held { key, pages: 0, used: 0 });
            holder.add(0, 1);
            place
        });
        let held = &mut segment.holders[place];
        holder.add(pages.saturating_sub(held.pages), 0);
        holder.by_age.remove(&(held.used, Reverse(segment.start), first));
        (held.pages, held.used) = (held.pages.max(pages), self.uses);
        holder.by_age.insert((held.used, Reverse(segment.start), first));
    }

    /// The member no longer holds the last `pages` pages of what it holds of a segment. Returns how many it has held.
    fn release(&mut self, key: Key, first: PrefixHash, pages: u32) -> u32 {
        let Some(segment) = self.segments.get_mut(&first) else { return 0 };
        let Ok(place) = segment.find(key) else { return 0 };
        let held = &mut segment.holders[place];
        let before = held.pages;
        held.pages = before.saturating_sub(pages);
        if held.pages == 0 {
            segment.holders.remove(place);
        }
        if before as usize == segment.pages.len() {
            segment.truncate();
        }
        if segment.holders.is_empty() {
            self.segments.remove(&first);
        }
        before
    }

    /// Forgets the least recently used pages of a member that has too many.
    fn evict(&mut self, key: Key) {
        let share = self.bytes_max / (self.holders.len() as u64).max(1);
        while let Some(holder) = self.holders.get_mut(&key) {
            let bytes = holder.bytes.saturating_sub(share).div_ceil(PAGE_BYTES);
            let pages = holder.pages.saturating_sub(holder.pool_pages as usize) as u64;
            let over = bytes.max(pages).min(u64::from(u32::MAX)) as u32;
            let Some(oldest) = holder.by_age.first().copied().filter(|_| over > 0) else { return };
            let held = self.release(key, oldest.2, over);
            let Some(holder) = self.holders.get_mut(&key) else { return };
            let is_gone = held <= over;
            holder.subtract(held.min(over), u64::from(is_gone));
            if is_gone {
                holder.by_age.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
impl PrefixIndex {
    /// Number of pages that a member holds.
    pub(super) fn pages_of(&self, key: Key) -> usize {
        self.holders.get(&key).map_or(0, |holder| holder.pages)
    }

    /// Checks all counts and orders, and that no member has a page without the pages before it.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut counted: BTreeMap<Key, (usize, u64, usize)> = BTreeMap::new();
        for (first, segment) in &self.segments {
            let longest = segment.holders.iter().map(|held| held.pages as usize).max();
            if segment.pages.first() != Some(first)
                || longest != Some(segment.pages.len())
                || !segment.holders.is_sorted_by(|a, b| a.key < b.key)
            {
                return Err(format!("{first:?}: {segment:?}"));
            }
            for held in &segment.holders {
                let (pages, bytes, segments) = counted.entry(held.key).or_default();
                *pages += held.pages as usize;
                *bytes += SEGMENT_BYTES + u64::from(held.pages) * PAGE_BYTES;
                *segments += 1;
                let entry = (held.used, Reverse(segment.start), *first);
                if held.pages == 0 || !self.holders[&held.key].by_age.contains(&entry) {
                    return Err(format!("{held:?} of {segment:?}"));
                }
            }
        }
        for (key, holder) in &self.holders {
            let counts = (holder.pages, holder.bytes, holder.by_age.len());
            if counts != counted.remove(key).unwrap_or_default() {
                return Err(format!("member {key} has not {counts:?}"));
            }
        }
        if counted.is_empty() { Ok(()) } else { Err(format!("{counted:?} have left")) }
    }

    /// Checks that a member has no page of a prompt without the pages before it.
    pub(super) fn is_closed_under(&self, key: Key, prefixes: &[PrefixHash]) -> bool {
        let resident = self.path(prefixes).resident(key);
        prefixes[resident..]
            .iter()
            .all(|first| self.segments.get(first).is_none_or(|segment| segment.find(key).is_err()))
    }
}
