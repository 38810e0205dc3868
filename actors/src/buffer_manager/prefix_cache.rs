//! The prefix cache: pages that stay in the pool after their sequence, because another sequence may begin with the same tokens.
//!
//! The cache has one tree for each salt. A node is one full page, and its path from the root spells all tokens up to the page's
//! end. Keys are token ids, not hashes, so two different prompts never match. A tree without pages is removed, so the pool bounds
//! the number of trees. A page in use pins the pages before it, because a sequence that
//! uses a page uses all pages of its prefix. Therefore unused pages can always be evicted, leaves first, in the order of their
//! last use. The cache has no clock; it counts uses.

use std::collections::{BTreeSet, HashMap, hash_map};

use engine::PageId;

use super::cache_events::CacheEvents;
use crate::messages::{CacheEvent, PrefixHash};
use crate::request::CacheSalt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct NodeId(u64);

/// A node's position in its tree.
#[derive(Clone, Copy, Debug)]
enum Parent {
    /// The first page of a sequence with this salt.
    Root(Option<CacheSalt>),
    Node(NodeId),
}

/// Nodes by the tokens of their page.
type Children = HashMap<Box<[u32]>, NodeId>;

#[derive(Debug)]
struct Node {
    page: PageId,
    parent: Parent,
    tokens: Box<[u32]>,
    children: Children,
    in_use: bool,
    last_use: u64,
    /// The page's hash; `None` if the page is not announced.
    hash: Option<PrefixHash>,
}

/// A map from token prefixes to the pages that hold their KV.
#[derive(Debug)]
pub struct PrefixCache {
    page_tokens: usize,
    next: u64,
    uses: u64,
    /// The first pages of each tree; never empty.
    roots: HashMap<Option<CacheSalt>, Children>,
    nodes: HashMap<NodeId, Node>,
    by_page: HashMap<PageId, NodeId>,
    /// Unused nodes without children, least recently used first.
    leaves: BTreeSet<(u64, NodeId)>,
    unused: u32,
    /// The changes to announce; `None` if no page is announced.
    events: Option<CacheEvents>,
}

impl PrefixCache {
    /// An empty cache of pages that hold `page_tokens` tokens each.
    pub fn new(page_tokens: u32) -> Self {
        Self {
            page_tokens: page_tokens.max(1) as usize,
            next: 0,
            uses: 0,
            roots: HashMap::new(),
            nodes: HashMap::new(),
            by_page: HashMap::new(),
            leaves: BTreeSet::new(),
            unused: 0,
            events: None,
        }
    }

    /// Announces the pages without a salt that are cached and evicted from now on.
    pub fn announcing(self) -> Self {
        Self { events: Some(CacheEvents::default()), ..self }
    }

    /// Takes the changes to announce; `None` if there are none.
    pub fn take_events(&mut self) -> Option<Vec<CacheEvent>> {
        self.events.as_mut()?.take()
    }

    /// Number of cached pages without a salt. It visits all of them, so only checks call it.
    pub fn unsalted(&self) -> usize {
        let mut stack: Vec<&Children> = self.roots.get(&None).into_iter().collect();
        let mut count = 0;
        while let Some(children) = stack.pop() {
            count += children.len();
            stack.extend(children.values().map(|id| &self.nodes[id].children));
        }
        count
    }

    /// Number of cached pages that no sequence uses. All of them can be evicted.
    pub fn unused(&self) -> u32 {
        self.unused
    }

    /// True if `page` is cached.
    pub fn contains(&self, page: PageId) -> bool {
        self.by_page.contains_key(&page)
    }

    fn child(&self, parent: Parent, tokens: &[u32]) -> Option<NodeId> {
        let children = match parent {
            Parent::Root(salt) => self.roots.get(&salt)?,
            Parent::Node(id) => &self.nodes.get(&id)?.children,
        };
        children.get(tokens).copied()
    }

    /// The cached pages of this salt that hold a prefix of `tokens`, in order. The last token is never part of the prefix, because its logits
    /// must be computed.
    pub fn lookup(&self, salt: Option<CacheSalt>, tokens: &[u32]) -> Vec<PageId> {
        let mut parent = Parent::Root(salt);
        let mut pages = Vec::new();
        let known = tokens.split_last().map_or(tokens, |(_, before)| before);
        for chunk in known.chunks_exact(self.page_tokens) {
            let Some(node) = self.child(parent, chunk) else { break };
            pages.push(self.nodes[&node].page);
            parent = Parent::Node(node);
        }
        pages
    }

    /// Caches the full pages among `pages`, which are in use and hold `tokens`. If another page is already cached at the same
    /// place in the salt's tree, this page and all pages after it are not cached.
    pub fn insert(&mut self, salt: Option<CacheSalt>, tokens: &[u32], pages: &[PageId]) {
        let mut parent = Parent::Root(salt);
        for (chunk, &page) in tokens.chunks_exact(self.page_tokens).zip(pages) {
            let node = match self.child(parent, chunk) {
                Some(node) if self.nodes[&node].page == page => node,
                None if !self.contains(page) => self.add(parent, chunk, page),
                _ => return,
            };
            parent = Parent::Node(node);
        }
    }

    fn add(&mut self, parent: Parent, tokens: &[u32], page: PageId) -> NodeId {
        self.next += 1;
        let (id, tokens) = (NodeId(self.next), Box::<[u32]>::from(tokens));
        let siblings = match parent {
            Parent::Root(salt) => Some(self.roots.entry(salt).or_default()),
            Parent::Node(parent) => self.nodes.get_mut(&parent).map(|parent| &mut parent.children),
        };
        if let Some(siblings) = siblings {
            siblings.insert(tokens.clone(), id);
        }
        let (children, last_use, hash) = (HashMap::new(), self.uses, self.announce(parent, &tokens));
        self.nodes.insert(id, Node { page, parent, tokens, children, in_use: true, last_use, hash });
        self.by_page.insert(page, id);
        id
    }

    /// Announces a new page. Returns its hash; `None` if the page is not announced.
    fn announce(&mut self, parent: Parent, tokens: &[u32]) -> Option<PrefixHash> {
        let before = match parent {
            Parent::Root(None) => None,
            Parent::Root(Some(_)) => return None,
            Parent::Node(id) => Some(self.nodes.get(&id)?.hash?),
        };
        Some(self.events.as_mut()?.stored(before, tokens))
    }

    /// Marks a page as used by a sequence. Does nothing if the page is not cached.
    pub fn on_used(&mut self, page: PageId) {
        let Some(id) = self.by_page.get(&page) else { return };
        let Some(node) = self.nodes.get_mut(id).filter(|node| !node.in_use) else { return };
        node.in_use = true;
        self.unused -= 1;
        self.leaves.remove(&(node.last_use, *id));
    }

    /// Marks a page as used by no sequence. Returns true if the page is cached, so that it keeps its content until it is evicted.
    pub fn on_unused(&mut self, page: PageId) -> bool {
        let Some(id) = self.by_page.get(&page) else { return false };
        let Some(node) = self.nodes.get_mut(id).filter(|node| node.in_use) else { return true };
        self.uses += 1;
        (node.in_use, node.last_use) = (false, self.uses);
        self.unused += 1;
        if node.children.is_empty() {
            self.leaves.insert((node.last_use, *id));
        }
        true
    }

    /// Removes the least recently used page among those that no sequence uses and no cached page needs. The caller may overwrite
    /// it.
    pub fn evict(&mut self) -> Option<PageId> {
        let (_, id) = self.leaves.pop_first()?;
        let node = self.nodes.remove(&id)?;
        self.by_page.remove(&node.page);
        self.unused -= 1;
        if let (Some(hash), Some(events)) = (node.hash, &mut self.events) {
            events.removed(hash);
        }
        match node.parent {
            Parent::Root(salt) => {
                if let hash_map::Entry::Occupied(mut root) = self.roots.entry(salt) {
                    root.get_mut().remove(&node.tokens);
                    if root.get().is_empty() {
                        root.remove();
                    }
                }
            }
            Parent::Node(id) => {
                if let Some(parent) = self.nodes.get_mut(&id) {
                    parent.children.remove(&node.tokens);
                    if !parent.in_use && parent.children.is_empty() {
                        self.leaves.insert((parent.last_use, id));
                    }
                }
            }
        }
        Some(node.page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(numbers: &[u32]) -> Vec<PageId> {
        numbers.iter().map(|number| PageId(*number)).collect()
    }

    #[test]
    fn full_pages_of_a_prefix_are_found_and_the_last_token_is_left_to_compute() {
        let mut cache = PrefixCache::new(2);
        cache.insert(None, &[1, 2, 3, 4, 5], &pages(&[7, 8, 9]));
        for (tokens, expect) in [
            (&[1, 2, 3, 4, 5][..], &[7, 8][..]),
            (&[1, 2, 3, 4], &[7]),
            (&[1, 2, 9, 9, 9], &[7]),
            (&[1, 2], &[]),
            (&[2, 1, 3], &[]),
            (&[], &[]),
        ] {
            assert_eq!(cache.lookup(None, tokens), pages(expect), "{tokens:?}");
        }
        assert!(!cache.contains(PageId(9)), "page 9 is not full");
    }

    #[test]
    fn the_least_recently_used_page_is_evicted_first_and_never_before_its_children() {
        let mut cache = PrefixCache::new(1);
        cache.insert(None, &[1, 2], &pages(&[0, 1]));
        cache.insert(None, &[1, 3], &pages(&[0, 2]));
        assert_eq!(cache.evict(), None, "all pages are in use");
        for page in pages(&[0, 2, 1]) {
            assert!(cache.on_unused(page));
        }
        assert_eq!(cache.unused(), 3);
        cache.on_used(PageId(1));
        cache.on_used(PageId(0));
        assert_eq!((cache.evict(), cache.evict()), (Some(PageId(2)), None));
        cache.on_unused(PageId(0));
        cache.on_unused(PageId(1));
        assert_eq!([cache.evict(), cache.evict(), cache.evict()], [Some(PageId(1)), Some(PageId(0)), None]);
        assert_eq!((cache.unused(), cache.lookup(None, &[1, 2, 3])), (0, vec![]));
        assert!(!cache.on_unused(PageId(1)), "page 1 is no longer cached");
    }

    #[test]
    fn only_one_of_two_pages_with_the_same_tokens_is_cached() {
        let mut cache = PrefixCache::new(1);
        cache.insert(None, &[1, 2], &pages(&[0, 1]));
        cache.insert(None, &[1, 2, 3], &pages(&[5, 6, 7]));
        assert_eq!(cache.lookup(None, &[1, 2, 3, 4]), pages(&[0, 1]));
        assert!(!cache.contains(PageId(7)), "its prefix is cached in other pages");
    }

    #[test]
    fn salts_share_no_page_and_a_tree_without_pages_is_removed() {
        let salts = [None, Some(CacheSalt::of("a")), Some(CacheSalt::of("b"))];
        let mut cache = PrefixCache::new(1);
        for (salt, first) in salts.into_iter().zip([0, 10, 20]) {
            assert_eq!(cache.lookup(salt, &[1, 2, 3]), []);
            cache.insert(salt, &[1, 2], &pages(&[first, first + 1]));
        }
        for (salt, first) in salts.into_iter().zip([0, 10, 20]) {
            assert_eq!(cache.lookup(salt, &[1, 2, 3]), pages(&[first, first + 1]));
        }
        for page in pages(&[1, 0, 11, 10, 21, 20]) {
            cache.on_unused(page);
        }
        assert_eq!([cache.evict(), cache.evict()], [Some(PageId(1)), Some(PageId(0))]);
        assert_eq!((cache.lookup(None, &[1, 2, 3]), cache.roots.len()), (vec![], 2));
        assert_eq!(cache.lookup(salts[1], &[1, 2, 3]), pages(&[10, 11]));
        while cache.evict().is_some() {}
        assert_eq!((cache.roots.len(), cache.nodes.len()), (0, 0));
    }

    fn stored(parent: Option<PrefixHash>, hashes: &[PrefixHash], tokens: &[u32]) -> CacheEvent {
        CacheEvent::Stored { parent, hashes: hashes.to_vec(), tokens: tokens.to_vec() }
    }

    #[test]
    fn pages_are_announced_when_they_are_cached_and_when_they_are_evicted() {
        let mut cache = PrefixCache::new(2).announcing();
        let a = PrefixHash::of(None, &[1, 2]);
        let [b, c, d] = [[3, 4], [5, 6], [7, 8]].map(|tokens| PrefixHash::of(Some(a), &tokens));
        let e = PrefixHash::of(Some(c), &[9, 9]);
        assert_eq!(cache.take_events(), None);
        cache.insert(None, &[1, 2, 3, 4, 5], &pages(&[0, 1, 2]));
        assert_eq!(cache.take_events(), Some(vec![stored(None, &[a, b], &[1, 2, 3, 4])]));
        cache.insert(None, &[1, 2, 5, 6, 9, 9], &pages(&[0, 3, 4]));
        cache.insert(None, &[1, 2, 7, 8], &pages(&[0, 5]));
        let two = [stored(Some(a), &[c, e], &[5, 6, 9, 9]), stored(Some(a), &[d], &[7, 8])];
        assert_eq!((cache.take_events(), cache.unsalted()), (Some(two.to_vec()), 5));
        // A known prefix, and another page with the same tokens, are no news.
        cache.insert(None, &[1, 2, 3, 4], &pages(&[0, 1]));
        cache.insert(None, &[1, 2, 7, 8], &pages(&[0, 6]));
        assert_eq!(cache.take_events(), None);
        for page in pages(&[5, 4, 3, 1, 0]) {
            cache.on_unused(page);
        }
        assert_eq!([cache.evict(), cache.evict(), cache.evict()], [5, 4, 3].map(|page| Some(PageId(page))));
        let removed = |hashes: &[PrefixHash]| Some(vec![CacheEvent::Removed { hashes: hashes.to_vec() }]);
        assert_eq!((cache.take_events(), cache.unsalted()), (removed(&[d, e, c]), 2));
        assert_eq!([cache.evict(), cache.evict()], [1, 0].map(|page| Some(PageId(page))));
        assert_eq!((cache.take_events(), cache.unsalted()), (removed(&[b, a]), 0));
    }

    #[test]
    fn pages_with_a_salt_are_never_announced() {
        let mut cache = PrefixCache::new(1).announcing();
        cache.insert(Some(CacheSalt::of("a")), &[1, 2], &pages(&[0, 1]));
        assert_eq!(cache.unsalted(), 0);
        assert!(cache.on_unused(PageId(1)) && cache.on_unused(PageId(0)));
        assert_eq!([cache.evict(), cache.evict()], [Some(PageId(1)), Some(PageId(0))]);
        assert_eq!(cache.take_events(), None);
    }

    /// The hashes must not change: processes of different versions serve in one fleet.
    #[test]
    fn hashes_are_the_same_in_all_versions() {
        let first = PrefixHash::of(None, &[1, 2, 3]);
        assert_eq!(
            [first, PrefixHash::of(Some(first), &[70_000])].map(|hash| hash.0),
            [0x87ce_d875_8e26_0a6c, 0xa01c_091c_026d_5b2d]
        );
    }
}
