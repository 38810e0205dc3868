//! The prefix cache: pages that stay in the pool after their sequence, because another sequence may begin with the same tokens.
//!
//! The cache has one tree for each salt. A node is one full page, and its path from the root spells all tokens up to the page's
//! end. Keys are token ids, not hashes, so two different prompts never match. A tree without pages is removed, so the pool bounds
//! the number of trees. A page in use pins the pages before it, because a sequence that
//! uses a page uses all pages of its prefix. Therefore unused pages can always be evicted, leaves first, in the order of their
//! last use. The cache has no clock; it counts uses.

use std::collections::{BTreeSet, HashMap, hash_map};

use engine::PageId;

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
        }
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
        let (children, last_use) = (HashMap::new(), self.uses);
        self.nodes.insert(id, Node { page, parent, tokens, children, in_use: true, last_use });
        self.by_page.insert(page, id);
        id
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
}
